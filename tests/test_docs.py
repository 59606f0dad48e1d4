"""The rules by which a notebook becomes a page, and the index the README; test_site.py looks at the built pages."""
import re
import sys
from base64 import b64decode, b64encode
from importlib import import_module
from io import BytesIO
from textwrap import dedent

import nbformat
import numpy as np
import pytest
from fastai.learner import Learner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

from docs.api import api_section, import_lines, members, parameter_table, signature
from docs.bridge import (
    WARNING, api_sections, code_cell, code_cells, frontmatter, one_header, options, page, shown_name, toctree)
from docs.links import local_link, markdown
from docs.pictures import alts, as_png, halves, opened, shrink, shown_width, with_halves
from docs.readme import readme
from PIL import Image
from nbdev.showdoc import show_doc
from torch import nn

from support.helpers import ROOT
from onecycle_callback import OneCycle, OneCyclePlan, OneCycleSchedule

SITE = 'https://example.org/lib'
PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
HEAD = new_raw_cell("---\ndescription: 'A line about `it`'\noutput-file: schedule.html\ntitle: schedule\n---\n")

def same(text): return text

def test_options_are_yaml_and_leave_the_source():
    found, source = options("#| echo: false\n#| fig-alt: 'Rises: falls'\nx = 1\n#| not: this\n")
    assert found == {'echo': False, 'fig-alt': 'Rises: falls'} and source == 'x = 1\n#| not: this'
    assert options('x = 1') == ({}, 'x = 1')
    assert options('#| echo: false') == ({'echo': False}, '')

@pytest.mark.parametrize('option, tags', [('echo: false', ['remove-input']), ('output: false', ['remove-output']),
                                          ('include: false', ['remove-cell']),
                                          ('code-fold: true', ['hide-input']), ('code-fold: show', []),
                                          ('echo: true', []), ('warning: false', [])])
def test_options_become_tags(option, tags):
    cell = code_cell(new_code_cell(f'#| {option}\nx = 1'), same)
    assert cell.metadata == {'tags': tags} and cell.source == 'x = 1'

def test_picture_gets_caption_name_and_alternative_text():
    cell = code_cell(new_code_cell("#| label: fig-lr\n#| fig-cap: The rate\n#| fig-alt: 'A line'\nplot()"), same)
    assert cell.metadata.mystnb == {'image': {'alt': 'A line'}, 'figure': {'caption': 'The rate', 'name': 'fig-lr'}}

def panels(*columns, width=1400):
    "A picture that is black in these `columns`, from a fraction of the width to another."
    pixels = np.full((40, width, 3), 255, 'uint8')
    for first, last in columns: pixels[10:30, round(first * width):round(last * width)] = 0
    return as_png(Image.fromarray(pixels))

def plotted(png, source="#| fig-alt: 'Left: a line. Right: a point'\nplot()"):
    return new_code_cell(source, outputs=[new_output('display_data', {'image/png': png})])

def test_picture_is_shown_at_half_its_pixels():
    assert code_cell(plotted(panels(width=1234), 'plot()'), same).metadata.mystnb == {'image': {'width': '617px'}}

def test_pictures_are_saved_in_few_colours_once(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (40, 60, 3), 'uint8')
    file, path = BytesIO(), tmp_path / 'a.ipynb'
    colours[:10] = 255
    Image.fromarray(colours).save(file, 'png')
    nbformat.write(new_notebook(cells=[plotted(b64encode(file.getvalue()).decode())]), path)
    assert shrink(path) and not shrink(path)
    image = opened(nbformat.read(path, 4).cells[0].outputs[0].data['image/png'])
    pixels = np.asarray(image.convert('RGB'))
    assert image.mode == 'P' and pixels.shape == colours.shape and (pixels[:10] == 255).all()
    assert np.abs(pixels.astype(int) - colours).mean() < 15

def test_a_wide_picture_is_cut_between_its_panels():
    left, right = halves(panels((.1, .45), (.6, .9)))
    assert shown_width(left) == shown_width(right) and 350 <= shown_width(left) < 390

@pytest.mark.parametrize('columns, width',
                         [([(.1, .9)], 1400), ([(.1, .3), (.4, .6), (.7, .9)], 1400), ([(.1, .2)], 1000)],
                         ids=['one panel', 'three panels', 'narrow'])
def test_another_picture_stays_whole(columns, width): assert len(halves(panels(*columns, width=width))) == 1

def test_the_halves_of_a_picture_become_cells_which_say_what_is_in_them():
    first, *parts = code_cells(plotted(panels((.1, .45), (.55, .9))), same)
    assert first.source == 'plot()' and first.outputs == []
    assert [cell.metadata.mystnb.image.alt for cell in parts] == ['A line', 'A point']
    assert all(set(cell.metadata.tags) == {'remove-input', 'half'}
               and b64decode(cell.outputs[0].data['image/png'])[1:4] == b'PNG' for cell in parts)
    assert len(code_cells(plotted(panels((.1, .45), (.55, .9)), '#| echo: false\nplot()'), same)) == 2
    assert len(code_cells(plotted(panels((.1, .9))), same)) == 1
    with pytest.raises(ValueError, match='must have no fig-cap'):
        code_cells(plotted(panels((.1, .4), (.6, .9)), '#| fig-cap: A cycle\nplot()'), same)

def test_a_picture_in_html_is_cut_too():
    png = panels((.1, .45), (.55, .9))
    html = with_halves(f'<p>x</p><img alt="LR and momentum" src="data:image/png;base64,{png}"/>')
    assert html.count('<img class="half"') == 2 and html.startswith('<p>x</p>')
    assert 'alt="LR and momentum, on the right"' in html
    one = f'<img alt="LR" src="data:image/png;base64,{panels((.1, .9))}"/>'
    assert with_halves(one) == one

def test_a_description_in_two_halves():
    assert alts('Left: a line. It rises. Right: a point') == ['A line. It rises', 'A point']
    assert alts('Two') == ['Two, on the left', 'Two, on the right']

def test_a_data_frame_has_one_row_of_names():
    row = '<tr><th>0</th><td>1</td></tr>'
    two = '<tr style="a"><th></th><th>lr</th><th>mom</th></tr><tr><th>epoch</th><th></th><th></th></tr>'
    assert one_header(two + row) == f'<tr style="a"><th>epoch</th><th>lr</th><th>mom</th></tr>{row}'
    one = f'<tr><th></th><th>lr</th></tr>{row}'
    assert one_header(one) == one

@pytest.mark.parametrize('page, names, code', [
    ('learner', ['Learner.fit_one_cycle'], 'import onecycle_callback'),
    ('schedule', ['OneCycleSchedule', 'OneCycleSchedule.plan'], 'from onecycle_callback import OneCycleSchedule'),
    ('demo', ['digits_dls'], 'from onecycle_callback.demo import digits_dls'),
    ('compare', ['LRComparison.plot', 'Learner.compare_max_lr'],
     'import onecycle_callback\nfrom onecycle_callback.compare import LRComparison')])
def test_how_names_are_imported(page, names, code):
    assert import_lines(names, import_module(f'onecycle_callback.{page}'), 'onecycle_callback') == code

def test_a_long_import_takes_several_lines():
    names = ['anneal_cos', 'anneal_linear', 'anneal_exp', 'OneCycleSchedule', 'OneCyclePlan', 'MOMS']
    code = import_lines(names[:5], import_module('onecycle_callback.schedule'), 'onecycle_callback')
    exec(code, found := {})
    assert set(names[:5]) <= set(found) and max(map(len, code.splitlines())) < 90

def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match='the options of a cell must be among .*fig-alt.*, got fig-widht'):
        code_cell(new_code_cell('#| fig-widht: 3\nplot()'), same)

def test_outputs_lose_widgets_and_have_their_links_changed():
    outputs = [new_output('display_data', {'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 'sliders'}),
               new_output('display_data', {'text/markdown': 'x'})]
    cell = code_cell(new_code_cell('show()', outputs=outputs), str.upper)
    assert [o.data for o in cell.outputs] == [{'text/plain': 'sliders'}, {'text/markdown': 'X'}]

@pytest.mark.parametrize('url, local', [
    (f'{SITE}/schedule.html#onecycleplan.plot', '#onecycleplan.plot'),
    (f'{SITE}/schedule.html#onecycleplan._all', '#onecycleplan'),
    (f'{SITE}/plot.html#_every', '/plot.ipynb'), (f'{SITE}/demo.html#demo', '/demo.ipynb'),
    (f'{SITE}/tutorials/a.html', '/tutorials/a.ipynb'), (f'{SITE}/inner/resume.file.html', '/inner/resume.file.ipynb'),
    (SITE, '/index.ipynb'), (f'{SITE}/', '/index.ipynb'),
    ('tutorials/a_b.ipynb', 'tutorials/a_b.ipynb'),
    ('../02_callback.ipynb#the-callback', '../callback.ipynb#the-callback'),
    ('inner/resume.file.ipynb', 'inner/resume.file.ipynb'),
    ('../01_schedule.ipynb#onecycleplan', '#onecycleplan'),
    ('https://docs.fast.ai/learner.html#learner', 'https://docs.fast.ai/learner.html#learner'),
    ('https://example.com/a.ipynb', 'https://example.com/a.ipynb'),
    ('#a-heading', '#a-heading'), ('LICENSE', 'LICENSE')])
def test_links(url, local):
    assert local_link(url, SITE, {'onecycleplan', 'onecycleplan.plot', 'demo'}) == local

def test_markdown_outside_of_code():
    code = f'```\n[a]({SITE}/a.html)\n::: {{.callout-note}}\n```\n[c](x.png)'
    text = f'[a]({SITE}/a.html) and [b](02_plot.ipynb)\n{code}'
    assert markdown(text, SITE, set()) == f'[a](/a.ipynb) and [b](plot.ipynb)\n{code}'

def test_callouts():
    assert markdown('a\n\n::: {.callout-tip}\nDo it.\n:::\n', SITE, set()) == 'a\n\n:::{tip}\nDo it.\n:::\n'
    titled = markdown('::: {.callout-note}\n## Why\nSo.\n:::', SITE, set())
    assert titled == ':::{admonition} Why\n:class: note\n\nSo.\n:::'
    with pytest.raises(ValueError, match='a ::: block must be a callout, got ::: {.column}'):
        markdown('::: {.column}\na\n:::', SITE, set())

def test_which_cell_shows_a_name():
    cell = new_code_cell('#| echo: false\n#| output: asis\nshow_doc(OneCyclePlan.plot)')
    assert shown_name(cell) == 'OneCyclePlan.plot'
    assert shown_name(new_code_cell('x = show_doc')) is None and shown_name(new_markdown_cell('show_doc(a)')) is None

def test_members_are_public_documented_and_no_events():
    assert members(OneCyclePlan) == ['length', 'peak', 'at', 'lrs', 'moms', 'table', 'to_frame', 'plot', 'explore']
    assert members(OneCycleSchedule) == ['plan']
    assert 'start' in members(OneCycle) and not {'before_batch', 'learn', 'order'} & set(members(OneCycle))

def test_what_another_module_patches_in_is_no_member(monkeypatch):
    def elsewhere(self): "Documented."
    monkeypatch.setattr(OneCyclePlan, 'elsewhere', elsewhere, raising=False)
    assert 'elsewhere' not in members(OneCyclePlan)

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

def call(name, obj): return signature(name, obj, show_doc(obj))

@pytest.mark.parametrize('name, obj, wanted', [
    ('plain', plain, 'plain(x, y:int=1)'), ('Sample.size', Sample.size, 'Sample.size: int'),
    ('Sample.take', Sample.take, 'Sample.take(\n    first:int,\n    by_name:str | None=None,\n    *,\n'
     '    a_rather_long_argument:float=0.5,\n    one_more_long_argument:bool=False\n) -> Module')])
def test_signatures(name, obj, wanted): assert call(name, obj) == wanted

def test_a_long_signature_fits_the_column():
    text = call('Learner.fit_one_cycle', Learner.fit_one_cycle)
    assert text.startswith('Learner.fit_one_cycle(\n    cycle_len:int') and '\n    *,\n' in text
    assert '\n    checkpoint:str | CycleCheckpoint | None=None\n)' in text
    assert '#' not in text and 'NoneType' not in text and max(map(len, text.splitlines())) <= 60

def test_section_of_a_method():
    text = api_section('Sample.take', Sample.take, SITE, {'onecycle'}, 3).source
    head = '<div id="sample.take"></div>\n\n(sample.take)=\n\n### Sample.take\n\n```python\nSample.take('
    assert text.startswith(head)
    assert '\n\nTake some of it, as [`OneCycle`](' in text
    assert '| `first` | int |  | The first one |' in text
    assert '| `by_name` | str \\| None | None | Which name; see [`OneCycle`](' in text

def test_section_of_a_property_has_no_table():
    text = api_section('Sample.size', Sample.size, SITE, set(), 4).source
    assert '#### Sample.size\n' in text and 'The size of the sample.' in text and '|' not in text

def test_section_of_a_class_needs_no_anchor_of_its_own():
    assert '<div' not in api_section('OneCyclePlan', OneCyclePlan, SITE, set(), 3).source
    text = api_section('OneCycleSchedule', OneCycleSchedule, SITE, set(), 3).source
    assert '| `anneal` | str \\| tuple \\| Callable |' in text

def test_section_leads_to_its_source():
    text = api_section('Learner.fine_tune', Learner.fine_tune, SITE, set(), 3).source
    assert re.search(r'\[source\]\(https://github.com/.*/onecycle_callback/learner.py#L\d+\)', text)

def notebook(*cells, page='schedule.html'):
    "A notebook as nbdev hands it over: its frontmatter, the warning, `cells`."
    nb = new_notebook()     # `cells` given here would be validated, and nbdev's are not all valid
    nb.cells = [new_raw_cell(HEAD.source.replace('schedule.html', page)), new_markdown_cell(WARNING), *cells]
    return nb

def headings(nb):
    return [line for c in nb.cells if c.cell_type == 'markdown' for line in c.source.splitlines()
            if line.startswith('#')]

def test_page():
    shown = new_code_cell('#| echo: false\nshow_doc(OneCyclePlan)')
    shown['has_sd'] = True
    nb = notebook(new_markdown_cell('## Then'), shown, new_code_cell('x = 1'))
    assert frontmatter(nb)['title'] == 'schedule'
    out = page(nb, 'onecycle_callback', SITE, {'onecycleplan'})
    nbformat.validate(out)
    assert headings(out) == ['# schedule', '## Then',
                             '### OneCyclePlan'] + [f'#### OneCyclePlan.{m}' for m in members(OneCyclePlan)]
    assert 'A line about `it`' in out.cells[0].source and WARNING not in str(out) and 'has_sd' not in str(out)
    assert out.cells[-1].source == 'x = 1' and out.cells[-1].cell_type == 'code'

@pytest.fixture
def internal(tmp_path, monkeypatch):
    "A module in a folder, `lib/resume/file.py`, whose class grows by methods that are patched in."
    (tmp_path / 'lib/resume').mkdir(parents=True)
    (tmp_path / 'lib/resume/file.py').write_text(dedent('''
        from fastcore.basics import patch
        class File:
            "A file."
            def read(self): "Read it."
        @patch
        def write(self:File, data:bytes): # What to write
            "Write it."
        @patch
        def before_fit(self:File): "An event of fastai."
        @patch
        def _sync(self:File): "A private method."
        class _Hidden: pass
        @patch
        def seen(self:_Hidden): "A method of a private class."'''))
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module('lib.resume.file')
    for name in ('lib', 'lib.resume', 'lib.resume.file'): del sys.modules[name]

def test_page_of_a_module_in_a_folder(internal):
    shown = [new_code_cell(f'show_doc({name})')
             for name in ('File', 'File.write', 'File.before_fit', 'File._sync', '_Hidden.seen')]
    nb = notebook(shown[0], new_markdown_cell('## Writing'), *shown[1:], page='resume.file.html')
    assert api_sections(nb, 'lib') == {'File': {'File': internal.File, 'File.read': internal.File.read},
                                       'File.write': {'File.write': internal.File.write}}
    found = headings(page(nb, 'lib', SITE, set()))
    assert found == ['# schedule', '### File', '#### File.read', '## Writing', '### File.write']

def rows(obj):
    "The rows of the parameter table of `obj`, `{name: row}`."
    lines = parameter_table(obj).splitlines()[2:]
    return {line.split(' | ')[0].strip('| '): line for line in lines}

def test_types_are_short():
    assert ' str \\| CycleCheckpoint \\| None ' in rows(Learner.fit_one_cycle)['checkpoint']
    assert ' Iterable[float] \\| Literal[False] \\| None ' in rows(Learner.fit_one_cycle)['moms']

def test_fine_tune_shows_all_that_fit_one_cycle_takes():
    other = {'cycle_len', 'max_lr', 'div_factor', 'minutes'}     # it has epochs, base_lr and div, and takes no time
    own = {'epochs', 'base_lr', 'freeze_epochs', 'lr_mult', 'div'}
    assert set(rows(Learner.fit_one_cycle)) - other == set(rows(Learner.fine_tune)) - own

@pytest.mark.parametrize('obj, own', [(OneCycle, []), (Learner.fit_one_cycle, []), (Learner.preview_one_cycle, []),
                                      (Learner.fine_tune, ['max_lr', 'div_factor', 'pct_start', 'final_div'])])
def test_the_arguments_of_the_schedule_are_described_once_for_all(obj, own):
    shared = {name: row for name, row in rows(OneCycleSchedule).items() if name not in own}
    assert len(shared) == 7 - len(own) and {name: rows(obj).get(name) for name in shared} == shared
    assert all(row.split(' | ')[-1].strip('| ') and '<br>' not in row for row in rows(obj).values())

def test_toctree(tmp_path):
    for name in ('index', '10_b', '02_a', 'howto/c', 'howto/d', 'other/d', 'inner/resume.file', 'inner/arguments'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f'{name}.ipynb').touch()
    contents = ['index.ipynb', dict(section='How to', contents=['howto/d.ipynb', 'howto/c.ipynb']),
                dict(section='None yet', contents='none/*.ipynb'), dict(section='API', contents='[0-9]*.ipynb'),
                dict(section='Internal', contents='inner/*.ipynb')]
    text = toctree(dict(website=dict(sidebar=dict(contents=contents))), tmp_path)
    trees = [tree.split('\n', 2)[2].split('\n\n') for tree in text.removesuffix('\n```').split('\n```\n\n')]
    assert text.startswith('```{toctree}\n:hidden:\n')
    assert trees == [[':caption: How to', 'howto/d\nhowto/c'], [':caption: API', 'a\nb'],
                     [':caption: Internal', 'inner/arguments\ninner/resume.file']]

def test_readme():
    html = '<div>\n<style scoped>\n td {}\n</style>\n<table></table>\n</div>'
    cells = [HEAD, new_markdown_cell(WARNING),
             new_code_cell('#| echo: false\nsecret()', outputs=[new_output('display_data', {'text/html': html})]),
             new_markdown_cell('Before.'),
             new_code_cell("#| fig-alt: 'A line'\nplot()", outputs=[new_output('display_data', {'image/png': PNG})]),
             new_markdown_cell('See [the plan](01_schedule.ipynb#a) and [that](https://example.com/a.html).')]
    nb = new_notebook(cells=cells)
    before = nbformat.writes(nb)
    text, pictures = readme(nb, SITE, 'https://example.com/main')
    assert nbformat.writes(nb) == before
    assert text.startswith('<!-- Made from nbs/index.ipynb')
    assert f'\n# schedule\n\n> A line about `it`\n\n[Documentation]({SITE})\n\n' in text
    assert '<table></table>' in text and 'plot()' in text
    assert not [hidden for hidden in ('secret', 'style', WARNING) if hidden in text]
    assert '![A line](https://example.com/main/docs/images/readme_0.png)' in text
    assert text.index('![A line]') < text.index('Before.')
    assert list(pictures) == ['docs/images/readme_0.png'] and pictures['docs/images/readme_0.png'][1:4] == b'PNG'
    assert f'[the plan]({SITE}/schedule.html#a) and [that](https://example.com/a.html)' in text

def test_readme_reads_well_where_it_is_read():
    "A package index shows it without the files next to it, and in a narrow column."
    text = (ROOT / 'README.md').read_text()
    links = re.findall(r'\]\(([^)]+)\)', text)
    assert links and all(re.match('https://|#', link) for link in links)
    tables = re.findall(r'^\|.*\|$', text, re.M)
    assert max([row.count('|') - 1 for row in tables], default=0) <= 3 and text.count('<th>') <= 5 + text.count('<tr>')
    assert text.index('![') < text.index('## ') and 'pip install onecycle_callback\n' in text and 'placeholders' in text
