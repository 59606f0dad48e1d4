"""The rules by which a notebook becomes a page, and the index the README; test_site.py looks at the built pages."""
import re
import sys
from base64 import b64encode
from importlib import import_module
from textwrap import dedent

import nbformat
import pytest
from fastai.learner import Learner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

from docs.bridge import (WARNING, api_section, api_sections, code_cell, frontmatter, local_link, markdown, members, options, page,
                         parameter_table, shown_name, signature, toctree)
from docs.readme import readme
from nbdev.showdoc import show_doc
from torch import nn
from onecycle_callback import OneCycle, OneCyclePlan, OneCycleSchedule

SITE = 'https://example.org/lib'
PNG = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
HEAD = new_raw_cell("---\ndescription: 'A line about `it`'\noutput-file: schedule.html\ntitle: schedule\n---\n")

def same(text): return text

def test_options_are_yaml_and_leave_the_source():
    assert options("#| echo: false\n#| fig-alt: 'Rises: falls'\nx = 1\n#| not: this\n") == ({'echo': False, 'fig-alt': 'Rises: falls'}, 'x = 1\n#| not: this')
    assert options('x = 1') == ({}, 'x = 1')
    assert options('#| echo: false') == ({'echo': False}, '')

@pytest.mark.parametrize('option, tags', [('echo: false', ['remove-input']), ('output: false', ['remove-output']), ('include: false', ['remove-cell']),
                                          ('code-fold: true', ['hide-input']), ('code-fold: show', []), ('echo: true', []), ('warning: false', [])])
def test_options_become_tags(option, tags):
    cell = code_cell(new_code_cell(f'#| {option}\nx = 1'), same)
    assert cell.metadata == {'tags': tags} and cell.source == 'x = 1'

def test_picture_gets_caption_name_and_alternative_text():
    cell = code_cell(new_code_cell("#| label: fig-lr\n#| fig-cap: The rate\n#| fig-alt: 'A line'\nplot()"), same)
    assert cell.metadata.mystnb == {'image': {'alt': 'A line'}, 'figure': {'caption': 'The rate', 'name': 'fig-lr'}}

@pytest.mark.parametrize('pixels, size', [(1234, {'width': '617px'}), (2400, {'width': '1200px', 'classes': 'wide'})])
def test_picture_is_shown_at_half_its_pixels(pixels, size):
    png = b64encode(b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR' + pixels.to_bytes(4, 'big') + bytes(40)).decode()
    cell = code_cell(new_code_cell('plot()', outputs=[new_output('display_data', {'image/png': png})]), same)
    assert cell.metadata.mystnb == {'image': size}

def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match='the options of a cell must be among .*fig-alt.*, got fig-widht'):
        code_cell(new_code_cell('#| fig-widht: 3\nplot()'), same)

def test_outputs_lose_widgets_and_have_their_links_changed():
    outputs = [new_output('display_data', {'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 'sliders'}), new_output('display_data', {'text/markdown': 'x'})]
    cell = code_cell(new_code_cell('show()', outputs=outputs), str.upper)
    assert [o.data for o in cell.outputs] == [{'text/plain': 'sliders'}, {'text/markdown': 'X'}]

@pytest.mark.parametrize('url, local', [
    (f'{SITE}/schedule.html#onecycleplan.plot', '#onecycleplan.plot'),
    (f'{SITE}/schedule.html#onecycleplan._all', '#onecycleplan'),
    (f'{SITE}/plot.html#_every', '/plot.ipynb'), (f'{SITE}/demo.html#demo', '/demo.ipynb'),
    (f'{SITE}/tutorials/a.html', '/tutorials/a.ipynb'), (f'{SITE}/rooms/resume.file.html', '/rooms/resume.file.ipynb'),
    (SITE, '/index.ipynb'), (f'{SITE}/', '/index.ipynb'),
    ('tutorials/a_b.ipynb', 'tutorials/a_b.ipynb'),
    ('../03_callback.ipynb#the-callback', '../callback.ipynb#the-callback'), ('rooms/resume.file.ipynb', 'rooms/resume.file.ipynb'),
    ('../01_schedule.ipynb#onecycleplan', '#onecycleplan'),
    ('https://docs.fast.ai/learner.html#learner', 'https://docs.fast.ai/learner.html#learner'),
    ('https://example.com/a.ipynb', 'https://example.com/a.ipynb'),
    ('#a-heading', '#a-heading'), ('LICENSE', 'LICENSE')])
def test_links(url, local):
    assert local_link(url, SITE, {'onecycleplan', 'onecycleplan.plot', 'demo'}) == local

def test_markdown_outside_of_code():
    text = f'[a]({SITE}/a.html) and [b](02_plot.ipynb)\n```\n[a]({SITE}/a.html)\n::: {{.callout-note}}\n```\n[c](x.png)'
    assert markdown(text, SITE, set()) == f'[a](/a.ipynb) and [b](plot.ipynb)\n```\n[a]({SITE}/a.html)\n::: {{.callout-note}}\n```\n[c](x.png)'

def test_callouts():
    assert markdown('a\n\n::: {.callout-tip}\nDo it.\n:::\n', SITE, set()) == 'a\n\n:::{tip}\nDo it.\n:::\n'
    assert markdown('::: {.callout-note}\n## Why\nSo.\n:::', SITE, set()) == ':::{admonition} Why\n:class: note\n\nSo.\n:::'
    with pytest.raises(ValueError, match='a ::: block must be a callout, got ::: {.column}'): markdown('::: {.column}\na\n:::', SITE, set())

def test_which_cell_shows_a_name():
    assert shown_name(new_code_cell('#| echo: false\n#| output: asis\nshow_doc(OneCyclePlan.plot)')) == 'OneCyclePlan.plot'
    assert shown_name(new_code_cell('x = show_doc')) is None and shown_name(new_markdown_cell('show_doc(a)')) is None

def test_members_are_public_documented_and_no_events():
    assert members(OneCyclePlan) == ['peak', 'at', 'lrs', 'moms', 'table', 'to_frame', 'plot']
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
    ('Sample.take', Sample.take, 'Sample.take(\n    first:int, by_name:str | None=None, *, a_rather_long_argument:float=0.5,\n'
                                 '    one_more_long_argument:bool=False) -> Module')])
def test_signatures(name, obj, wanted): assert call(name, obj) == wanted

def test_a_long_signature_fits_the_column():
    text = call('Learner.fit_one_cycle', Learner.fit_one_cycle)
    assert text.startswith('Learner.fit_one_cycle(\n    cycle_len:int')
    assert '#' not in text and 'NoneType' not in text and max(map(len, text.splitlines())) <= 81

def test_section_of_a_method():
    text = api_section('Sample.take', Sample.take, SITE, {'onecycle'}, 3).source
    assert text.startswith('<div id="sample.take"></div>\n\n(sample.take)=\n\n### Sample.take\n\n```python\nSample.take(')
    assert '\n\nTake some of it, as [`OneCycle`](' in text
    assert '| `first` | int |  | The first one |' in text and '| `by_name` | str \\| None | None | Which name; see [`OneCycle`](' in text

def test_section_of_a_property_has_no_table():
    text = api_section('Sample.size', Sample.size, SITE, set(), 4).source
    assert '#### Sample.size\n' in text and 'The size of the sample.' in text and '|' not in text

def test_section_of_a_class_needs_no_anchor_of_its_own():
    assert '<div' not in api_section('OneCyclePlan', OneCyclePlan, SITE, set(), 3).source
    assert '| `anneal` | str \\| tuple \\| Callable |' in api_section('OneCycleSchedule', OneCycleSchedule, SITE, set(), 3).source

def test_section_leads_to_its_source():
    text = api_section('Learner.fine_tune', Learner.fine_tune, SITE, set(), 3).source
    assert re.search(r'\[source\]\(https://github.com/.*/onecycle_callback/learner.py#L\d+\)', text)

def notebook(*cells, page='schedule.html'):
    "A notebook as nbdev hands it over: its frontmatter, the warning, `cells`."
    nb = new_notebook()     # `cells` given here would be validated, and nbdev's are not all valid
    nb.cells = [new_raw_cell(HEAD.source.replace('schedule.html', page)), new_markdown_cell(WARNING), *cells]
    return nb

def headings(nb): return [line for c in nb.cells if c.cell_type == 'markdown' for line in c.source.splitlines() if line.startswith('#')]

def test_page():
    shown = new_code_cell('#| echo: false\nshow_doc(OneCyclePlan)')
    shown['has_sd'] = True
    nb = notebook(new_markdown_cell('## Then'), shown, new_code_cell('x = 1'))
    assert frontmatter(nb)['title'] == 'schedule'
    out = page(nb, 'onecycle_callback', SITE, {'onecycleplan'})
    nbformat.validate(out)
    assert headings(out) == ['# schedule', '## Then', '### OneCyclePlan'] + [f'#### OneCyclePlan.{m}' for m in members(OneCyclePlan)]
    assert 'A line about `it`' in out.cells[0].source and WARNING not in str(out) and 'has_sd' not in str(out)
    assert out.cells[-1].source == 'x = 1' and out.cells[-1].cell_type == 'code'

@pytest.fixture
def room(tmp_path, monkeypatch):
    "A module of an inner room, `lib/resume/file.py`, whose class grows by methods that are patched in."
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

def test_page_of_an_inner_room(room):
    shown = [new_code_cell(f'show_doc({name})') for name in ('File', 'File.write', 'File.before_fit', 'File._sync', '_Hidden.seen')]
    nb = notebook(shown[0], new_markdown_cell('## Writing'), *shown[1:], page='resume.file.html')
    assert api_sections(nb, 'lib') == {'File': {'File': room.File, 'File.read': room.File.read}, 'File.write': {'File.write': room.File.write}}
    assert headings(page(nb, 'lib', SITE, set())) == ['# schedule', '### File', '#### File.read', '## Writing', '### File.write']

def rows(obj):
    "The rows of the parameter table of `obj`, `{name: row}`."
    lines = parameter_table(obj).splitlines()[2:]
    return {line.split(' | ')[0].strip('| '): line for line in lines}

@pytest.mark.parametrize('obj, own', [(OneCycle, []), (Learner.fit_one_cycle, []), (Learner.preview_one_cycle, []),
                                      (Learner.fine_tune, ['max_lr', 'div_factor', 'pct_start', 'final_div'])])
def test_the_arguments_of_the_schedule_are_described_once_for_all(obj, own):
    shared = {name: row for name, row in rows(OneCycleSchedule).items() if name not in own}
    assert len(shared) == 7 - len(own) and {name: rows(obj).get(name) for name in shared} == shared
    assert all(row.split(' | ')[-1].strip('| ') and '<br>' not in row for row in rows(obj).values())

def test_toctree(tmp_path):
    for name in ('index', '10_b', '02_a', 'howto/c', 'other/d', 'rooms/resume.file', 'rooms/arguments'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f'{name}.ipynb').touch()
    contents = ['index.ipynb', dict(section='How to', contents='howto/*.ipynb'), dict(section='None yet', contents='none/*.ipynb'), dict(section='API', contents='[0-9]*.ipynb'),
                dict(section='Inner rooms', contents='rooms/*.ipynb')]
    text = toctree(dict(website=dict(sidebar=dict(contents=contents))), tmp_path)
    trees = [tree.split('\n', 2)[2].split('\n\n') for tree in text.removesuffix('\n```').split('\n```\n\n')]
    assert text.startswith('```{toctree}\n:hidden:\n') and trees == [[':caption: How to', 'howto/c'], [':caption: API', 'a\nb'], [':caption: Inner rooms', 'rooms/arguments\nrooms/resume.file']]

def test_readme():
    html = '<div>\n<style scoped>\n td {}\n</style>\n<table></table>\n</div>'
    cells = [HEAD, new_markdown_cell(WARNING), new_code_cell('#| echo: false\nsecret()', outputs=[new_output('display_data', {'text/html': html})]),
             new_code_cell("#| fig-alt: 'A line'\nplot()", outputs=[new_output('display_data', {'image/png': PNG})]),
             new_markdown_cell('See [the plan](01_schedule.ipynb#a) and [that](https://example.com/a.html).')]
    nb = new_notebook(cells=cells)
    before = nbformat.writes(nb)
    text, pictures = readme(nb, SITE)
    assert nbformat.writes(nb) == before
    assert '\n# schedule\n\n> A line about `it`\n\n' in text and text.startswith('<!-- Made from nbs/index.ipynb')
    assert 'secret' not in text and 'style' not in text and WARNING not in text and '<table></table>' in text and 'plot()' in text
    assert '![A line](docs/images/readme_0.png)' in text and list(pictures) == ['docs/images/readme_0.png'] and pictures['docs/images/readme_0.png'][1:4] == b'PNG'
    assert f'[the plan]({SITE}/schedule.html#a) and [that](https://example.com/a.html)' in text
