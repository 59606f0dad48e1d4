"""The rules by which a notebook becomes a page; test_site.py looks at the pages, test_notebooks.py at README.md."""
import re
from base64 import b64encode
from importlib import import_module
from io import BytesIO

import nbformat
import numpy as np
import pytest
from fastai.learner import Learner
from nbformat.v4 import new_code_cell, new_notebook, new_output, new_raw_cell
from PIL import Image

from docs.api import import_lines, parameter_table
from docs.bridge import api_sections, code_cell, code_cells, options
from docs.links import local_link, markdown
from docs.pictures import alts, as_png, halves, opened, shown_width, shrink
from support.helpers import ROOT
from onecycle_callback import OneCycle, OneCycleSchedule

SITE = 'https://example.org/lib'
KNOWN = {'onecycleplan', 'onecycleplan.plot', 'demo'}

def cell(source, **data):
    "A code cell that shows `data` by the type's name: `png` or `markdown`."
    types = dict(png='image/png', markdown='text/markdown', widget='application/vnd.jupyter.widget-view+json')
    outputs = [new_output('display_data', {types[name]: shown for name, shown in data.items()})] if data else []
    return new_code_cell(source, outputs=outputs)

def show(source, **data): return code_cell(cell(source, **data), str.upper)

def md(text): return markdown(text, SITE, set())

def sections(*names):
    "The names in the sections that each of the cells makes which show these `names`."
    head = new_raw_cell('---\noutput-file: schedule.html\n---\n')
    nb = new_notebook(cells=[head, *(new_code_cell(f'show_doc({name})') for name in names)])
    return [[*shown] for shown in api_sections(nb, 'onecycle_callback').values()]

def imports(module, *names):
    return import_lines(names, import_module(f'onecycle_callback.{module}'), 'onecycle_callback')

def panels(*columns, width=1400):
    "A picture that is black in these `columns`, from a fraction of the width to another."
    pixels = np.full((40, width, 3), 255, 'uint8')
    for first, last in columns: pixels[10:30, round(first * width):round(last * width)] = 0
    return as_png(Image.fromarray(pixels))

ONE, TWO = panels((.1, .9)), panels((.1, .45), (.55, .9))
LEFT_RIGHT = "#| fig-alt: 'Left: a line. Right: a point'\nplot()"

CODE = f'```\n[a]({SITE}/a.html)\n::: {{.callout-note}}\n```\n'

ANNEALS = ['anneal_cos', 'anneal_exp', 'anneal_linear']

RULES = dict(
    options_leave_the_source=(lambda: options("#| echo: false\n#| fig-alt: 'Rises: falls'\nx = 1\n#| not: this\n"),
                              ({'echo': False, 'fig-alt': 'Rises: falls'}, 'x = 1\n#| not: this')),
    **{option: (lambda option=option: show(f'#| {option}').metadata.tags, tags) for option, tags in {
        'echo: false': ['remove-input'], 'output: false': ['remove-output'], 'include: false': ['remove-cell'],
        'code-fold: true': ['hide-input'], 'code-fold: show': [], 'warning: false': []}.items()},
    picture=(lambda: show("#| label: fig-lr\n#| fig-cap: The rate\n#| fig-alt: 'A line'\nplot()").metadata.mystnb,
             {'image': {'alt': 'A line'}, 'figure': {'caption': 'The rate', 'name': 'fig-lr'}}),
    half_its_pixels=(lambda: show('plot()', png=panels(width=1234)).metadata.mystnb, {'image': {'width': '617px'}}),
    output=(lambda: show('x', markdown='x', widget={}).outputs[0].data, {'text/markdown': 'X'}),
    three_panels=(lambda: len(halves(panels((.1, .3), (.4, .6), (.7, .9)))), 1),
    narrow=(lambda: len(halves(panels((.1, .2), width=1000))), 1),
    two_descriptions=(lambda: alts('Left: a line. It rises. Right: a point'), ['A line. It rises', 'A point']),
    one_description=(lambda: alts('LR'), ['LR, on the left', 'LR, on the right']),
    patched_in=(lambda: sections('OneCycleSchedule', 'OneCycleSchedule.plan', '_Phase'),
                [['OneCycleSchedule'], ['OneCycleSchedule.plan']]),
    import_patched=(lambda: imports('learner', 'Learner.fit_one_cycle'), 'import onecycle_callback'),
    import_two=(lambda: imports('compare', 'LRComparison.plot', 'Learner.compare_max_lr'),
                'import onecycle_callback\nfrom onecycle_callback.compare import LRComparison'),
    import_wraps=(lambda: imports('schedule', 'OneCycleSchedule.plan', 'OneCyclePlan', *ANNEALS),
                  'from onecycle_callback import (OneCycleSchedule, OneCyclePlan, anneal_cos, anneal_exp,\n'
                  '    anneal_linear)'),
    code_stays=(lambda: md(f'[a]({SITE}/a.html) and [b](02_plot.ipynb)\n{CODE}[c](x.png)'),
                f'[a](/a.ipynb) and [b](plot.ipynb)\n{CODE}[c](x.png)'),
    callout=(lambda: md('a\n\n::: {.callout-tip}\nDo it.\n:::\n'), 'a\n\n:::{tip}\nDo it.\n:::\n'),
    callout_with_title=(lambda: md('::: {.callout-note}\n## Why\nSo.\n:::'),
                        ':::{admonition} Why\n:class: note\n\nSo.\n:::'),
    **{url: (lambda url=url: local_link(url, SITE, KNOWN), local) for url, local in {
        f'{SITE}/schedule.html#onecycleplan.plot': '#onecycleplan.plot',
        f'{SITE}/schedule.html#onecycleplan._all': '#onecycleplan',
        f'{SITE}/plot.html#_every': '/plot.ipynb', f'{SITE}/demo.html#demo': '/demo.ipynb',
        f'{SITE}/resume.checkpoint.html': '/resume.checkpoint.ipynb',
        SITE: '/index.ipynb', f'{SITE}/': '/index.ipynb', 'tutorials/a_b.ipynb': 'tutorials/a_b.ipynb',
        '../02_callback.ipynb#the-callback': '../callback.ipynb#the-callback',
        '../01_schedule.ipynb#onecycleplan': '#onecycleplan',
        **{same: same for same in ('https://docs.fast.ai/learner.html#learner', 'https://example.com/a.ipynb',
                                   '#a-heading', 'LICENSE')}}.items()})

@pytest.mark.parametrize('made, wanted', RULES.values(), ids=RULES)
def test_rule(made, wanted): assert made() == wanted

@pytest.mark.parametrize('make, says', [
    (lambda: show('#| fig-widht: 3\nplot()'), 'the options of a cell must be among .*fig-alt.*, got fig-widht'),
    (lambda: code_cells(cell('#| fig-cap: A cycle\nplot()', png=TWO), str), 'must have no fig-cap'),
    (lambda: md('::: {.column}\na\n:::'), 'a ::: block must be a callout, got ::: {.column}')],
    ids=['option', 'caption', 'block'])
def test_what_has_no_rule_is_refused(make, says):
    with pytest.raises(ValueError, match=says): make()

def test_pictures_are_saved_in_few_colours_once(tmp_path):
    colours, file = np.random.default_rng(0).integers(0, 256, (40, 60, 3), 'uint8'), BytesIO()
    Image.fromarray(colours).save(file, 'png')
    path = tmp_path / 'a.ipynb'
    nbformat.write(new_notebook(cells=[cell('plot()', png=b64encode(file.getvalue()).decode())]), path)
    assert shrink(path) and not shrink(path)
    image = opened(nbformat.read(path, 4).cells[0].outputs[0].data['image/png'])
    assert image.mode == 'P' and np.abs(np.asarray(image.convert('RGB')).astype(int) - colours).mean() < 15

def test_the_halves_of_a_picture_become_cells_which_say_what_is_in_them():
    first, *parts = code_cells(cell(LEFT_RIGHT, png=TWO), str)
    assert first.source == 'plot()' and first.outputs == []
    assert [part.metadata.mystnb.image.alt for part in parts] == ['A line', 'A point']
    assert {*parts[0].metadata.tags} == {*parts[1].metadata.tags} == {'remove-input', 'half'}
    assert [part.outputs[0].data['image/png'] for part in parts] == halves(TWO)
    assert [len(code_cells(each, str)) for each in (
        cell('#| echo: false\nplot()', png=TWO), cell(LEFT_RIGHT, png=ONE))] == [2, 1]

def test_a_picture_is_cut_at_the_gap_and_not_between_the_letters_of_a_label():
    both = halves(panels((.1, .45), (.453, .457), (.48, .485), (.51, .9)))
    ink = [(np.asarray(opened(half).convert('L')) < 128).any(0).sum() for half in both]
    assert ink == pytest.approx([.354 * 1400, .395 * 1400], abs=4) and len({*map(shown_width, both)}) == 1

@pytest.mark.parametrize('obj, own', [(OneCycle, []), (Learner.fit_one_cycle, []), (Learner.preview_one_cycle, []),
                                      (Learner.fine_tune, ['max_lr', 'div_factor', 'pct_start', 'final_div'])])
def test_the_arguments_of_the_schedule_are_described_once_for_all(obj, own):
    def rows(obj): return {line.split(' | ')[0].strip('| '): line for line in parameter_table(obj).splitlines()[2:]}
    shared = {name: row for name, row in rows(OneCycleSchedule).items() if name not in own}
    assert len(shared) == 7 - len(own) and shared.items() <= rows(obj).items()

def test_readme_reads_well_where_it_is_read():
    "It is short and says first what isn't published; links lead to the site, and the picture lies in the repository."
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    links = re.findall(r'(?<!!)\[[^]]*\]\(([^)]+)\)', text)
    assert len(text.split()) <= 450 and links and all(re.match('https://|#', link) for link in links)
    picture = re.search(r'!\[[^]]{60,}\]\(([^)]+)\)', text)
    assert (ROOT / picture[1]).is_file() and text.index('placeholders') < picture.start() < text.index('```python')
