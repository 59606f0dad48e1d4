"""The rules by which a notebook becomes a page, and the index the README; test_site.py looks at the built pages."""
import re
from base64 import b64encode
from functools import reduce
from importlib import import_module
from io import BytesIO

import nbformat
import numpy as np
import pytest
from fastai.learner import Learner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

from docs.api import api_section, import_lines, is_public, members, parameter_table, signature
from docs.bridge import (
    WARNING, api_sections, code_cell, code_cells, frontmatter, one_header, options, page, shown_name, toctree)
from docs.conf import breakable
from docs.links import local_link, markdown
from docs.pictures import alts, as_png, halves, opened, shrink, shown_width, with_halves
from docs.readme import readme
from PIL import Image
from nbdev.showdoc import show_doc
from torch import nn

from support.helpers import ROOT
from onecycle_callback import CycleCheckpoint, OneCycle, OneCyclePlan, OneCycleSchedule

SITE = 'https://example.org/lib'
PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
HEAD = new_raw_cell("---\ndescription: 'A line about `it`'\noutput-file: schedule.html\ntitle: schedule\n---\n")

def same(text): return text

def show(source): return code_cell(new_code_cell(source), same)

def md(text): return markdown(text, SITE, set())

def panels(*columns, width=1400):
    "A picture that is black in these `columns`, from a fraction of the width to another."
    pixels = np.full((40, width, 3), 255, 'uint8')
    for first, last in columns: pixels[10:30, round(first * width):round(last * width)] = 0
    return as_png(Image.fromarray(pixels))

ONE, TWO = panels((.1, .9)), panels((.1, .45), (.55, .9))
LEFT_RIGHT = "#| fig-alt: 'Left: a line. Right: a point'\nplot()"

def plotted(png, source=LEFT_RIGHT):
    return new_code_cell(source, outputs=[new_output('display_data', {'image/png': png})])

def html_image(png): return f'<img alt="LR" src="data:image/png;base64,{png}"/>'

def imports(page, *names):
    return import_lines(names, import_module(f'onecycle_callback.{page}'), 'onecycle_callback')

def pre(text): return f'<span class="pre">{text}</span>'

class Sample:
    "What a section is made of."
    @property
    def size(self) -> int: # How many
        "The size of the sample."
        return 1

    def take(self,
        first:int, # The first one
        by_name:str|None=None, # Which name; see `OneCycle`
        *, a_rather_long_argument:float=.5, # Long
        one_more_long_argument:bool=False # Longer
    ) -> nn.Module: # What was taken
        "Take some of it, as `OneCycle` does."

def plain(x, y=1): "Nothing is known of its types."

ROW = '<tr><th>0</th><td>1</td></tr>'
TWO_HEADERS = '<tr style="a"><th></th><th>lr</th><th>mom</th></tr><tr><th>epoch</th><th></th><th></th></tr>'
CODE = f'```\n[a]({SITE}/a.html)\n::: {{.callout-note}}\n```\n'

RULES = dict(
    options_leave_the_source=(lambda: options("#| echo: false\n#| fig-alt: 'Rises: falls'\nx = 1\n#| not: this\n"),
                              ({'echo': False, 'fig-alt': 'Rises: falls'}, 'x = 1\n#| not: this')),
    no_options=(lambda: options('x = 1'), ({}, 'x = 1')), only_options=(lambda: options('#| a: 1'), ({'a': 1}, '')),
    source=(lambda: show('#| echo: false\nx = 1').source, 'x = 1'),
    **{option: (lambda option=option: show(f'#| {option}\nx = 1').metadata, dict(tags=tags)) for option, tags in {
        'echo: false': ['remove-input'], 'output: false': ['remove-output'], 'include: false': ['remove-cell'],
        'code-fold: true': ['hide-input'], 'code-fold: show': [], 'echo: true': [], 'warning: false': []}.items()},
    picture=(lambda: show("#| label: fig-lr\n#| fig-cap: The rate\n#| fig-alt: 'A line'\nplot()").metadata.mystnb,
             {'image': {'alt': 'A line'}, 'figure': {'caption': 'The rate', 'name': 'fig-lr'}}),
    shown_at_half_its_pixels=(lambda: code_cell(plotted(panels(width=1234), 'plot()'), same).metadata.mystnb,
                              {'image': {'width': '617px'}}),
    one_panel=(lambda: halves(ONE), [ONE]), one_panel_in_html=(lambda: with_halves(html_image(ONE)), html_image(ONE)),
    three_panels=(lambda: len(halves(panels((.1, .3), (.4, .6), (.7, .9)))), 1),
    narrow=(lambda: len(halves(panels((.1, .2), width=1000))), 1),
    two_descriptions=(lambda: alts('Left: a line. It rises. Right: a point'), ['A line. It rises', 'A point']),
    one_description=(lambda: alts('Two'), ['Two, on the left', 'Two, on the right']),
    one_row_of_names=(lambda: one_header(TWO_HEADERS + ROW),
                      f'<tr style="a"><th>epoch</th><th>lr</th><th>mom</th></tr>{ROW}'),
    had_one=(lambda: one_header(f'<tr><th></th><th>lr</th></tr>{ROW}'), f'<tr><th></th><th>lr</th></tr>{ROW}'),
    import_patched=(lambda: imports('learner', 'Learner.fit_one_cycle'), 'import onecycle_callback'),
    import_public=(lambda: imports('schedule', 'OneCycleSchedule', 'OneCycleSchedule.plan'),
                   'from onecycle_callback import OneCycleSchedule'),
    import_both=(lambda: imports('demo', 'digits_dls'), 'from onecycle_callback.demo import digits_dls'),
    import_two=(lambda: imports('compare', 'LRComparison.plot', 'Learner.compare_max_lr'),
                'import onecycle_callback\nfrom onecycle_callback.compare import LRComparison'),
    code_stays=(lambda: md(f'[a]({SITE}/a.html) and [b](02_plot.ipynb)\n{CODE}[c](x.png)'),
                f'[a](/a.ipynb) and [b](plot.ipynb)\n{CODE}[c](x.png)'),
    callout=(lambda: md('a\n\n::: {.callout-tip}\nDo it.\n:::\n'), 'a\n\n:::{tip}\nDo it.\n:::\n'),
    callout_with_title=(lambda: md('::: {.callout-note}\n## Why\nSo.\n:::'),
                        ':::{admonition} Why\n:class: note\n\nSo.\n:::'),
    shows_a_name=(lambda: shown_name(new_code_cell('#| echo: false\nshow_doc(OneCyclePlan.plot)')),
                  'OneCyclePlan.plot'),
    shows_none=(lambda: [shown_name(new_code_cell('x = show_doc')), shown_name(new_markdown_cell('show_doc(a)'))],
                [None] * 2),
    members=(lambda: [members(OneCyclePlan), members(OneCycleSchedule)],
             [['length', 'curve', 'positions', 'peak', 'at', 'lrs', 'moms', 'table', 'to_frame', 'plot',
               'picture', 'parts', 'call', 'explore'],
              ['plan']]),
    public=(lambda: [*filter(is_public, ['f', 'A.f', '_f', 'A._f', '_A.f', 'A.before_fit'])], ['f', 'A.f']),
    outputs_lose_widgets_and_have_their_links_changed=(
        lambda: [o.data for o in code_cell(new_code_cell('show()', outputs=[
            new_output('display_data', {'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 'sliders'}),
            new_output('display_data', {'text/markdown': 'x'})]), str.upper).outputs],
        [{'text/plain': 'sliders'}, {'text/markdown': 'X'}]),
    **{name: (lambda name=name, obj=obj: signature(name, obj, show_doc(obj)), wanted) for name, obj, wanted in [
        ('plain', plain, 'plain(x, y:int=1)'), ('Sample.size', Sample.size, 'Sample.size: int'),
        ('Sample.take', Sample.take,
         'Sample.take(\n    first:int,\n    by_name:str | None=None,\n    *,\n    a_rather_long_argument:float=0.5,\n'
         '    one_more_long_argument:bool=False\n) -> Module')]},
    **{url: (lambda url=url: local_link(url, SITE, {'onecycleplan', 'onecycleplan.plot', 'demo'}), local)
       for url, local in {
           f'{SITE}/schedule.html#onecycleplan.plot': '#onecycleplan.plot',
           f'{SITE}/schedule.html#onecycleplan._all': '#onecycleplan',
           f'{SITE}/plot.html#_every': '/plot.ipynb', f'{SITE}/demo.html#demo': '/demo.ipynb',
           f'{SITE}/resume.checkpoint.html': '/resume.checkpoint.ipynb',
           SITE: '/index.ipynb', f'{SITE}/': '/index.ipynb', 'tutorials/a_b.ipynb': 'tutorials/a_b.ipynb',
           '../02_callback.ipynb#the-callback': '../callback.ipynb#the-callback',
           '../01_schedule.ipynb#onecycleplan': '#onecycleplan',
           **{same: same for same in ('https://docs.fast.ai/learner.html#learner', 'https://example.com/a.ipynb',
                                      '#a-heading', 'LICENSE')}}.items()},
    **{name: (lambda name=name: breakable(f'<table>{pre(name)}</table>{pre(name)}'),
              f'<table>{pre(words.replace(" ", "<wbr/>"))}</table>{pre(name)}') for name, words in {
        'TerminateOnNaNCallback': 'Terminate On NaN Callback', 'CSVLogger': 'CSV Logger', 'MixUp': 'Mix Up',
        'three_phase': 'three_ phase', 'learn.no_bar': 'learn. no_ bar', 'lr': 'lr'}.items()})

@pytest.mark.parametrize('made, wanted', RULES.values(), ids=RULES)
def test_rule(made, wanted): assert made() == wanted

@pytest.mark.parametrize('make, says', [
    (lambda: show('#| fig-widht: 3\nplot()'), 'the options of a cell must be among .*fig-alt.*, got fig-widht'),
    (lambda: code_cells(plotted(TWO, '#| fig-cap: A cycle\nplot()'), same), 'must have no fig-cap'),
    (lambda: md('::: {.column}\na\n:::'), 'a ::: block must be a callout, got ::: {.column}')],
    ids=['option', 'caption', 'block'])
def test_what_has_no_rule_is_refused(make, says):
    with pytest.raises(ValueError, match=says): make()

def test_pictures_are_saved_in_few_colours_once(tmp_path):
    colours, file = np.random.default_rng(0).integers(0, 256, (40, 60, 3), 'uint8'), BytesIO()
    path = tmp_path / 'a.ipynb'
    colours[:10] = 255
    Image.fromarray(colours).save(file, 'png')
    nbformat.write(new_notebook(cells=[plotted(b64encode(file.getvalue()).decode())]), path)
    assert shrink(path) and not shrink(path)
    image = opened(nbformat.read(path, 4).cells[0].outputs[0].data['image/png'])
    pixels = np.asarray(image.convert('RGB'))
    assert image.mode == 'P' and pixels.shape == colours.shape and (pixels[:10] == 255).all()
    assert np.abs(pixels.astype(int) - colours).mean() < 15

def test_the_halves_of_a_picture_become_cells_which_say_what_is_in_them():
    first, *parts = code_cells(plotted(TWO), same)
    assert first.source == 'plot()' and first.outputs == []
    assert [cell.metadata.mystnb.image.alt for cell in parts] == ['A line', 'A point']
    assert {*parts[0].metadata.tags} == {*parts[1].metadata.tags} == {'remove-input', 'half'}
    assert [cell.outputs[0].data['image/png'] for cell in parts] == halves(TWO)
    assert [len(code_cells(plotted(png, source), same)) for png, source in (
        (TWO, '#| echo: false\nplot()'), (ONE, LEFT_RIGHT))] == [2, 1]
    assert len({shown_width(half) for half in halves(TWO)}) == 1 and 350 <= shown_width(halves(TWO)[0]) < 390

def test_a_picture_is_cut_at_the_gap_and_not_between_the_letters_of_a_label():
    left, right = halves(panels((.1, .45), (.49, .495), (.498, .503), (.51, .9)))
    ink = [(np.asarray(opened(half).convert('L')) < 128).any(0).sum() for half in (left, right)]
    assert ink == pytest.approx([.35 * 1400, .4 * 1400], abs=2)

def test_a_phone_shrinks_pictures_by_a_third_at_most():
    "So that type of 12 points has 11 pixels there. What is drawn for a page without scripts, and in README, is wider."
    pictures = [(path.name, half) for path in (ROOT / 'nbs').rglob('*.ipynb') if not re.match(r'\d', path.name)
                for cell in nbformat.read(path, 4).cells for output in cell.get('outputs', [])
                if 'image/png' in output.get('data', {}) for half in halves(output.data['image/png'])]
    wide = [(name, shown_width(png)) for name, png in pictures if shown_width(png) > 360 * 3 / 2]
    assert len(pictures) > 30 and [name for name, _ in wide] == ['understanding_the_1cycle_policy.ipynb']

def test_a_picture_in_html_is_cut_too():
    html = with_halves(f'<p>x</p>{html_image(TWO)}')
    assert html.count('<img class="half"') == 2 and html.startswith('<p>x</p>') and 'alt="LR, on the right"' in html

def test_a_long_import_takes_several_lines():
    names = ['anneal_cos', 'anneal_linear', 'anneal_exp', 'OneCycleSchedule', 'OneCyclePlan']
    exec(code := imports('schedule', *names), found := {})
    assert set(names) <= set(found) and max(map(len, code.splitlines())) < 90

# The section of a public name

def test_a_long_signature_fits_the_column():
    text = signature('Learner.fit_one_cycle', Learner.fit_one_cycle, show_doc(Learner.fit_one_cycle))
    assert text.startswith('Learner.fit_one_cycle(\n    cycle_len:int') and '\n    *,\n' in text
    assert '#' not in text and 'NoneType' not in text and max(map(len, text.splitlines())) <= 60

@pytest.mark.parametrize('name, obj, parts', [
    ('Sample.take', Sample.take, [
        r'^<div id="sample.take"></div>\n\n\(sample.take\)=\n\n### Sample.take\n\n```python\nSample.take\(',
        r'\n\nTake some of it, as \[`OneCycle`\]\(', r'\| `first` \| int \|  \| The first one \|',
        r'\| `by_name` \| str \\\| None \| None \| Which name; see \[`OneCycle`\]\(']),
    ('Sample.size', Sample.size, [r'### Sample.size\n[^|]*The size of the sample.[^|]*$']),
    ('OneCycleSchedule', OneCycleSchedule, [r'\| `anneal` \| str \\\| tuple \\\| Callable \|', r'^(?!.*<div)']),
    ('Learner.fine_tune', Learner.fine_tune, [
        r'\[source\]\(https://github.com/.*/onecycle_callback/learner.py#L\d+\)', r'(?s)^(?!.*\n---)'])],
    ids=lambda v: str(v)[:20])
def test_sections(name, obj, parts):
    text = api_section(name, obj, SITE, {'onecycle'}, 3).source
    assert [part for part in parts if not re.search(part, text)] == []

def rows(obj):
    "The rows of the parameter table of `obj`, `{name: row}`."
    return {line.split(' | ')[0].strip('| '): line for line in parameter_table(obj).splitlines()[2:]}

def test_types_are_short():
    assert ' str \\| CycleCheckpoint \\| None ' in rows(Learner.fit_one_cycle)['checkpoint']
    assert ' Iterable[float] \\| Literal[False] \\| None ' in rows(Learner.fit_one_cycle)['moms']

@pytest.mark.parametrize('obj, own', [(OneCycle, []), (Learner.fit_one_cycle, []), (Learner.preview_one_cycle, []),
                                      (Learner.fine_tune, ['max_lr', 'div_factor', 'pct_start', 'final_div'])])
def test_the_arguments_of_the_schedule_are_described_once_for_all(obj, own):
    shared = {name: row for name, row in rows(OneCycleSchedule).items() if name not in own}
    assert len(shared) == 7 - len(own) and {name: rows(obj).get(name) for name in shared} == shared
    assert all(row.split(' | ')[-1].strip('| ') and '<br>' not in row for row in rows(obj).values())

# A page

LIB = 'onecycle_callback'

def headed(*cells, **changes):
    "A notebook below the frontmatter of that about schedule.py, in which some words are replaced."
    nb = new_notebook()     # `cells` given here would be validated, and nbdev's are not all valid
    head = reduce(lambda text, change: text.replace(*change), changes.items(), HEAD.source)
    nb.cells = [new_raw_cell(head), *cells]
    return nb

def test_page():
    "A method that is patched in by a separate cell has its section there; private names and events have none."
    cells = [new_code_cell(f'#| echo: false\nshow_doc({name})')
             for name in ('OneCycleSchedule', 'OneCycleSchedule.plan', '_Phase', 'OneCycleSchedule._anneals')]
    cells[0]['has_sd'] = True
    out = page(headed(new_markdown_cell(WARNING), new_markdown_cell('## Then'), cells[0], new_markdown_cell('## Last'),
                      *cells[1:], new_code_cell('x = 1')), LIB, SITE, {'onecycleschedule'})
    nbformat.validate(out)
    lines = [line for c in out.cells if c.cell_type == 'markdown' for line in c.source.splitlines()]
    headings = [line for line in lines if line.startswith('#')]
    assert headings == ['# schedule', '## Then', '### OneCycleSchedule', '## Last', '### OneCycleSchedule.plan']
    assert 'A line about `it`' in out.cells[0].source and WARNING not in str(out) and 'has_sd' not in str(out)
    assert out.cells[-1].source == 'x = 1' and out.cells[-1].cell_type == 'code'

def test_a_page_is_about_the_module_that_its_notebook_is_named_after():
    nb = headed(new_code_cell('show_doc(CycleCheckpoint)'), **{'schedule.html': 'resume.checkpoint.html'})
    assert frontmatter(nb)['title'] == 'schedule'
    assert api_sections(nb, LIB)['CycleCheckpoint']['CycleCheckpoint'] is CycleCheckpoint

def test_a_page_says_by_which_words_the_search_finds_it():
    assert 'index' not in page(headed(), LIB, SITE, set()).cells[0].source
    out = page(headed(description='keywords: warmup, lr finder\nsearch: false\ndescription'), LIB, SITE, set())
    assert '```{index} ! warmup, ! lr finder\n```' in out.cells[0].source and out.metadata.nosearch is True

def test_toctree(tmp_path):
    for name in ('index', '10_b', '02_a', 'howto/c', 'howto/d', 'other/d', '03_resume.checkpoint'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f'{name}.ipynb').touch()
    contents = ['index.ipynb', dict(section='How to', contents=['howto/d.ipynb', 'howto/c.ipynb']),
                dict(section='None yet', contents='none/*.ipynb'), dict(section='API', contents='[0-9]*.ipynb')]
    text = toctree(dict(website=dict(sidebar=dict(contents=contents))), tmp_path)
    trees = [tree.split('\n', 2)[2].split('\n\n') for tree in text.removesuffix('\n```').split('\n```\n\n')]
    assert text.startswith('```{toctree}\n:hidden:\n')
    assert trees == [[':caption: How to', 'howto/d\nhowto/c'], [':caption: API', 'a\nresume.checkpoint\nb']]

def test_readme():
    html = '<div>\n<style scoped>\n td {}\n</style>\n<table></table>\n</div>'
    cells = [HEAD, new_markdown_cell(WARNING),
             new_markdown_cell('First.'),
             new_code_cell('#| echo: false\nsecret()', outputs=[new_output('display_data', {'text/html': html})]),
             new_markdown_cell('Before.'),
             new_code_cell("#| fig-alt: 'A line'\nplot()", outputs=[new_output('display_data', {'image/png': PNG})]),
             new_markdown_cell('See [the plan](01_schedule.ipynb#a) and [that](https://example.com/a.html).')]
    nb = new_notebook(cells=cells)
    before = nbformat.writes(nb)
    text, pictures = readme(nb, SITE)
    assert nbformat.writes(nb) == before
    assert text.startswith('<!-- Made from nbs/index.ipynb')
    assert '\n# schedule\n\n> A line about `it`\n\nFirst.\n' in text
    assert text.index('First.') < text.index('![A line](docs/images/readme_0.png)') < text.index('Before.')
    assert '<table></table>' in text and 'plot()' in text
    assert not [hidden for hidden in ('secret', 'style', WARNING) if hidden in text]
    assert list(pictures) == ['docs/images/readme_0.png'] and pictures['docs/images/readme_0.png'][1:4] == b'PNG'
    assert f'[the plan]({SITE}/schedule.html#a) and [that](https://example.com/a.html)' in text

def test_readme_reads_well_where_it_is_read():
    "It is short and says first what isn't published; links lead to the site, and the picture lies in the repository."
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    links = re.findall(r'(?<!!)\[[^]]*\]\(([^)]+)\)', text)
    assert len(text.split()) <= 450 and links and all(re.match('https://|#', link) for link in links)
    picture = re.search(r'!\[[^]]{60,}\]\(([^)]+)\)', text)
    assert (ROOT / picture[1]).is_file() and text.index('placeholders') < picture.start() < text.index('```python')
