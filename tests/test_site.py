"""The built site: every page and public name is there, links work, pictures are described, and a browser shows it."""
import re
from functools import cache

import nbformat
import pytest
from bs4 import BeautifulSoup
from fastcore.nbio import mk_cell, new_nb, write_nb
from nbdev.config import nbpath2html

import onecycle_callback
from docs.bridge import plain
from test_public_names import KNOWN
from support import fresh
from support.helpers import ROOT, copy_tree

pytestmark = pytest.mark.slow

NOTEBOOKS = {nbpath2html(p.relative_to(ROOT / 'nbs')).as_posix(): p for p in sorted((ROOT / 'nbs').rglob('*.ipynb'))
             if '.ipynb_checkpoints' not in p.parts}
PUBLIC = [name for name in NOTEBOOKS if re.match(r'\d', NOTEBOOKS[name].name)]
TUTORIAL = 'tutorials/understanding_the_1cycle_policy.html'
HOW_TOS = ['choose_max_lr', 'discriminative_lrs', 'resume_after_a_crash', 'callbacks', 'several_processes', 'migrate',
           'without_a_learner']     # in the order of need

@pytest.fixture(scope='session')
def page(site): return cache(lambda name: BeautifulSoup((site / name).read_text(encoding='utf-8'), 'html.parser'))

def test_every_notebook_is_a_page_and_the_contents_list_them_in_the_order_of_need(site, page):
    listed = [a['href'] for a in page('index.html').select('.sidebar-tree a')]
    pages = {path.relative_to(site).as_posix() for path in site.rglob('*.html')}
    assert {*listed, 'index.html'} == {*NOTEBOOKS} == pages - {'search.html'}
    how_tos = [name.split('/')[-1].removesuffix('.html') for name in listed if name.startswith('howto/')]
    assert [name for name in how_tos if name in HOW_TOS] == HOW_TOS
    assert page(TUTORIAL).select_one('a.next-page')['href'] == f'../howto/{HOW_TOS[0]}.html'

def test_titles_and_descriptions(site):
    "A search engine shows a title with the version, and a line about the page; both differ from page to page."
    pages = [(site / name).read_text(encoding='utf-8') for name in NOTEBOOKS]
    titles = {re.search('<title>(.*?)</title>', page)[1] for page in pages}
    lines = {re.search('<meta content="(.*?)" name="description"', page)[1] for page in pages}
    version = f'onecycle_callback {onecycle_callback.__version__}'
    assert len(titles) == len(lines) == len(pages) and all(title.endswith(version) for title in titles)
    assert all(re.fullmatch(r'[^`*\[\]]{20,200}', line) for line in lines)

# Public names

PRIVATE = re.compile(r'(?<![\w.])_[a-zA-Z]\w*|(?<=\.)_[a-z]\w*|__getstate__|\.(?:before|after)_(?:fit|batch)')

@pytest.mark.parametrize('name', PUBLIC)
def test_public_page_shows_how_it_is_imported_and_nothing_private(page, name):
    code = [block.text for block in page(name).select('article .highlight-python pre, article .cell_input pre')]
    assert 'import onecycle_callback' in code[0] or 'from onecycle_callback' in code[0]
    assert [found for block in code for found in PRIVATE.findall(block)] == []

def test_every_public_name_has_a_section(page):
    names = {re.sub(r'^(compare|demo|distributed)\.', '', name).lower() for name in KNOWN}
    assert names <= {element['id'] for name in PUBLIC for element in page(name).select('article [id]')}

def test_a_section_holds_signature_description_and_parameters(page):
    def section(name, anchor): return page(name).find(id=anchor).find_next('section')
    fit, plan = section('learner.html', 'learner.fit_one_cycle'), section('schedule.html', 'onecycleschedule.plan')
    first, *lines, last = fit.select_one('pre').text.splitlines()
    assert (first, lines[0], last) == ('Learner.fit_one_cycle(', '    cycle_len:int | None=None,', ')')
    assert {'    *,', '    moms:Iterable[float] | Literal[False] | None=None,', '    wd=None,'} <= {*lines}
    assert fit.select('p')[1].text.startswith('Train for one cycle')
    rows = [[cell.text for cell in row.select('td')] for row in fit.select('tr')]
    assert ['cycle_len', 'int | None', 'None', 'Number of epochs'] in rows
    assert plan.select_one('pre').text.strip().endswith(') -> OneCyclePlan')
    assert section('schedule.html', 'onecycleplan.peak').select_one('pre').text == 'OneCyclePlan.peak: int\n'

# Links, and what fails the build

def test_names_link_to_fastai_torch_this_site_and_their_source(page):
    def to(name): return ' '.join(a['href'] for a in page(name).select('article a'))
    assert 'https://docs.fast.ai/learner.html#learner ' in to('learner.html')
    assert 'https://pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR' in to('schedule.html')
    assert ' learner.html#learner-fit-one-cycle ' in to('index.html')
    assert re.search(r'https://github.com/\S*/onecycle_callback/learner.py#L\d+', to('learner.html'))

@pytest.mark.parametrize('cells, says', [
    ([mk_cell('[a](gone.ipynb) [b](index.ipynb#gone)', 'markdown')],
     ["target not found: 'gone.ipynb'", "not found in doc 'index': 'gone'"]),
    ([mk_cell('#| default_exp sample'), mk_cell('## A part', 'markdown'), mk_cell('#| export\ndef f(): return 1'),
      mk_cell('import os\nx = f()')], ['Found cells containing imports and other code'])], ids=['link', 'import'])
def test_a_dead_link_or_code_next_to_an_import_fails_the_build(tmp_path, cells, says):
    tree = copy_tree(tmp_path)
    for path in (tree / 'nbs').rglob('*.ipynb'): path.unlink()
    contents = '[{section: All of them, contents: "*.ipynb"}]'
    (tree / 'nbs/sidebar.yml').write_text(f'website: {{sidebar: {{contents: {contents}}}}}', encoding='utf-8')
    for name, body in dict(index=[mk_cell('Text', 'markdown')], page=cells).items():
        head = mk_cell(f'# {name}\n\n> About {name}', 'markdown')
        write_nb(new_nb([head, *body]), tree / f'nbs/{name}.ipynb')
    run = fresh.module('docs', cwd=tree)
    assert run.returncode != 0 and [text for text in says if text not in run.stderr] == []

# In a browser

def headings_of(notebook, level):
    "The headings that the Markdown cells of `notebook` hold, as they read."
    text = '\n'.join(c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == 'markdown')
    text = re.sub(r'^```.*?^```$|^:::.*?^:::$', '', text, flags=re.M | re.S)
    return [plain(heading).replace("'", '’').strip() for heading in re.findall(rf'^{"#" * level} (.*)$', text, re.M)]

@pytest.mark.parametrize('name', NOTEBOOKS)
def test_page_in_a_browser(site, browser, name):
    """On a screen and, in dark mode, on a phone, which shrinks no tutorial's picture by more than a third.

    `--cycle_len` is an option; with a dash instead of its hyphens, it can't be copied."""
    browser.open(site / name)
    assert browser.headings(1) == headings_of(NOTEBOOKS[name], 1)
    assert [h.replace("'", '’') for h in browser.headings(2)] == headings_of(NOTEBOOKS[name], 2)
    assert re.findall(r'[–—][a-z]\w+', browser.js("return document.querySelector('article').textContent")) == []
    assert browser.js("return document.querySelectorAll('article :is(h2, h3, h4):last-child').length") == 0
    if not name.startswith('design'): assert browser.wrapped_code == []
    for width, mode in ((1280, 'light'), (400, 'dark')):
        browser.show(width, mode)
        for alt, natural, shown in browser.pictures:
            assert re.search(r'\w+ \w+', alt) and natural > 0 and shown > 200
            assert shown > natural / 3 or name in PUBLIC
        assert browser.overflow <= 0 and browser.small_text == []
        has_wide_tables = name == 'design.html' or (name, width) == ('benchmarks/what_looking_costs.html', 400)
        assert has_wide_tables or browser.scrolling == [], width
        assert browser.cut_names == [], width
    assert browser.errors == [] and browser.requests == []

def test_layout_at_any_width(site, browser):
    browser.open(site / 'learner.html')
    for width in (700, 900, 1024, 1200, 1330, 1400, 1600): assert browser.show(width).overflow <= 0, width

def test_the_first_screen_answers_the_question(site, browser):
    "At 1280 by 800: what it is, how to start, what the line does, whose names these are, and why not fastai's own."
    browser.open(site / 'index.html')
    seen = browser.js("""
        return [...document.querySelectorAll('article h1, article pre, article p, article li, article img')]
            .filter(e => e.getBoundingClientRect().bottom <= 800)
            .map(e => e.tagName == 'IMG' ? e.alt : e.textContent)""")
    text = '\n'.join(seen)
    for part in ('The 1cycle policy for fastai', 'import onecycle_callback',
                 'fit_one_cycle(cycle_len=10, max_lr=0.1, div_factor=25.', 'learning rate (LR)', 'every batch',
                 'no second cycle inside an epoch', '4th epoch', '0.1/25 = 0.004', 'Momentum mirrors it', 'fastai 1',
                 'n_epoch', 'before you train', 'A crash', 'Mistakes'): assert part in text, part
    assert browser.js("return document.querySelectorAll('article button.copybtn').length") == 2

HALVES = """return [...document.querySelectorAll('article .tag_half img, article img.half')]
    .map(i => i.getBoundingClientRect()).map(r => [r.x, r.y])"""

@pytest.mark.parametrize('name', [TUTORIAL, 'learner.html'])
def test_panels_stand_side_by_side_and_stack_on_a_phone(site, browser, name):
    (x, y), (x_right, y_right), *_ = browser.open(site / name).js(HALVES)
    assert y == y_right and x < x_right
    (x, y), (x_below, y_below), *_ = browser.show(400).js(HALVES)
    assert x == x_below and y < y_below

def test_dark_pages(site, browser):
    "Pictures have no white paper, and what is imported isn't underlined."
    browser.open(site / TUTORIAL, mode='dark')
    assert 'invert' in browser.js("return getComputedStyle(document.querySelector('article img')).filter")
    lines = browser.js("""return [...document.querySelectorAll('article .highlight span')]
        .map(e => getComputedStyle(e).textDecorationLine)""")
    assert set(lines) == {'none'}

def test_tables_have_one_row_of_names_and_formulas_need_no_script(page):
    assert page('design.html').select('article math')
    rows = [[cell.text for cell in row.select('th')] for row in page(TUTORIAL).select('table.dataframe tr')]
    assert ['epoch', 'lr_first', 'lr_last', 'mom_first', 'mom_last'] in rows

def test_the_browser_sees_what_is_wrong(browser, tmp_path):
    page = tmp_path / 'page.html'
    page.write_text('''<!doctype html><article>
        <h1>A<a class="headerlink">#</a></h1><p style="font-size: 12px">small</p><img src="gone.png"/>
        <div style="width: 900px">wide</div>
        <style>pre { width: 90px; font-size: 14px; white-space: pre-wrap; line-height: 20px }</style>
        <div class="highlight-python"><pre>far too long a line of code</pre></div>
        <div style="overflow: auto"><div style="width: 990px">table</div></div>
        <table style="width: 4em; table-layout: fixed; font-size: 14px; word-break: break-all"><tr>
        <td><code>a_long_name</code></td><td><code>0.123456</code></td></tr></table></article>
        <script src="https://localhost:9/a.js"></script><script>console.error("broken")</script>''', encoding='utf-8')
    browser.open(page, 400)
    assert [text[:12] for text in browser.wrapped_code] == ['far too long'] and browser.scrolling == [': table']
    assert browser.requests == ['https://localhost:9/a.js'] and browser.headings(1) == ['A']
    assert browser.cut_names == ['a_long_name', '0.123456']
    assert browser.small_text == ['small'] and browser.overflow > 400 and browser.pictures[0][1] == 0
    assert any('broken' in message for message in browser.errors)
