"""The built site: every page and public name is there, links work, pictures are described, and a browser shows it."""
import inspect
import json
import re
from functools import reduce
from importlib import import_module

import pytest
from bs4 import BeautifulSoup
from fastai.callback.core import Callback
from fastcore.nbio import mk_cell, new_nb, write_nb
from nbdev.config import nbpath2html

import onecycle_callback
from docs.api import is_public
from test_public_names import KNOWN
from support import fresh
from support.helpers import ROOT, copy_tree
from onecycle_callback import OneCycleSchedule
from onecycle_callback.demo import digits_dls

pytestmark = pytest.mark.slow

LIB = 'onecycle_callback'
NOTEBOOKS = {nbpath2html(p.relative_to(ROOT / 'nbs')).as_posix(): p for p in sorted((ROOT / 'nbs').rglob('*.ipynb'))
             if '.ipynb_checkpoints' not in p.parts}
TUTORIAL = 'tutorials/understanding_the_1cycle_policy.html'

@pytest.fixture(scope='session')
def pages(site):
    return {p.relative_to(site).as_posix(): BeautifulSoup(p.read_text(encoding='utf-8'), 'html.parser')
            for p in site.rglob('*.html')}

def test_every_notebook_is_a_page_in_the_contents(pages):
    listed = {a['href'] for a in pages['index.html'].select('.sidebar-tree a')} | {'index.html'}
    assert set(NOTEBOOKS) <= set(pages) and set(NOTEBOOKS) == listed

def test_titles_and_descriptions(pages):
    "A search engine shows a title with the version, and a line about the page; both differ from page to page."
    written = [page for name, page in pages.items() if name in NOTEBOOKS]
    titles = {page.title.text for page in written}
    lines = {page.find('meta', {'name': 'description'}) for page in written}
    version = f'onecycle_callback {onecycle_callback.__version__}'
    assert len(titles) == len(lines) == len(written) and all(title.endswith(version) for title in titles)
    assert all(re.fullmatch(r'[^`*\[\]]{20,200}', line['content']) for line in lines)
    assert {page.select_one('.sidebar-brand-text').text for page in pages.values()} == {version}

def test_two_hyphens_stay_two(pages):
    "`--cycle_len` is an option; with a dash, it can't be copied."
    assert {name: found for name, page in pages.items()
            if (found := re.findall(r'[–—][a-z]\w+', page.select_one('article').text))} == {}
    assert '--cycle_len' in pages['demo.html'].select_one('article').text

def test_no_page_is_empty(pages):
    assert 'genindex.html' not in pages and set(pages) - set(NOTEBOOKS) == {'search.html'}
    assert {name: h.text for name, page in pages.items() for h in page.select('article h2, article h3, article h4')
            if h.find_next_sibling() is None or 'getstate' in h.text} == {}

def test_the_tutorial_leads_to_the_first_how_to(pages):
    assert pages[TUTORIAL].select_one('a.next-page')['href'] == '../howto/choose_max_lr.html'

def test_how_tos_come_in_the_order_of_need(pages):
    listed = [a['href'].split('/')[-1].removesuffix('.html') for a in pages['index.html'].select('.sidebar-tree a')
              if a['href'].startswith('howto/')]
    wanted = ['choose_max_lr', 'discriminative_lrs', 'resume_after_a_crash', 'callbacks', 'several_processes',
              'migrate', 'without_a_learner']
    assert [name for name in listed if name in wanted] == wanted

# Public names

PUBLIC = [name for name in NOTEBOOKS if re.match(r'\d', NOTEBOOKS[name].name)]

@pytest.mark.parametrize('name', PUBLIC)
def test_public_page_shows_how_it_is_imported_and_nothing_private(pages, name):
    code = [block.text for block in pages[name].select('article .highlight-python pre, article .cell_input pre')]
    assert f'import {LIB}' in code[0] or f'from {LIB}' in code[0]
    assert [found for block in code for found in re.findall(r'(?<![\w.])_[a-zA-Z]\w*|(?<=\.)_[a-z]\w*', block)] == []

def public_api():
    "`{page#anchor: object}` of the functions and classes in `__all__`, their members, and what is patched into others."
    found = {}
    for path, symbols in import_module(f'{LIB}._modidx').d['syms'].items():
        module = import_module(path)
        for name, (link, _) in symbols.items():
            parts = name.removeprefix(f'{path}.').split('.')
            is_shown = parts[0] in module.__all__ or getattr(module, parts[0]).__module__ != path
            if is_shown and is_public('.'.join(parts)) and not hasattr(Callback, parts[-1]):
                found[link] = reduce(getattr, parts, module)
    return found

def test_the_names_that_must_be_found_are():
    anchors = {link.partition('#')[2] for link in public_api()}
    assert {re.sub(r'^(compare|demo|distributed)\.', '', name).lower() for name in KNOWN} <= anchors

def parameters(obj):
    "Return the parameters that `obj` must describe: not those of a constructor that a class inherits, nor `_`."
    if isinstance(obj, type) and not {'__init__', '__new__'} & vars(obj).keys(): return []
    return [p for p in inspect.signature(obj).parameters if p not in ('self', '_')]

def missing_from(pages, api):
    "Return what in `api` has no section, or no row in its section's table for one of its parameters."
    missing = []
    for link, obj in api.items():
        page, _, anchor = link.partition('#')
        where = pages.get(page) and pages[page].find(id=anchor)
        if not where: missing.append(link); continue
        section = where if where.name == 'section' else where.find_next('section')
        described = {code.text for row in section.select('table tr') if (code := row.select_one('td:first-child code'))}
        if callable(obj): missing += [f'{link}({p})' for p in parameters(obj) if p not in described]
    return missing

def test_every_public_name_has_a_section_with_its_parameters(pages): assert missing_from(pages, public_api()) == []

def test_a_missing_name_and_a_missing_parameter_are_seen(pages):
    cut = dict(pages) | {'learner.html': BeautifulSoup(str(pages['learner.html']), 'html.parser')}
    page = cut['learner.html']
    page.find(id='learner.fine_tune').decompose()
    next(c for c in page.find(id='learner.fit_one_cycle').find_next('section').select('td code')
         if c.text == 'pct_start').string = 'pct'
    api = public_api()
    before = missing_from(pages, api)
    assert set(missing_from(cut, api)) - set(before) == {
        'learner.html#learner.fit_one_cycle(pct_start)', 'learner.html#learner.fine_tune'}

# Links and pictures; the build fails at a link that leads nowhere, and the browser sees what a page requests

def test_code_can_be_copied(pages):
    for name, page in pages.items(): assert bool(page.select('script[src*=copybutton]')) or name == 'search.html'

def undescribed(page):
    return [str(img)[:80] for img in page.select('article img') if not re.search(r'\w+ \w+', img.get('alt', ''))]

def test_pictures_have_alternative_text(pages):
    assert [(name, img) for name, page in pages.items() for img in undescribed(page)] == []
    assert sum(len(page.select('article img')) for page in pages.values()) >= 5
    three = '<article><img src="a"/><img alt="_images/a.png"/><img alt="A line rises"/></article>'
    assert len(undescribed(BeautifulSoup(three, 'html.parser'))) == 2

def test_names_link_to_fastai_torch_and_this_site(pages):
    def to(name): return {a['href'] for a in pages[name].select('article a')}
    assert 'https://docs.fast.ai/learner.html#learner' in to('learner.html')
    assert any(url.startswith('https://pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR')
               for url in to('schedule.html'))
    assert 'learner.html#learner-fit-one-cycle' in to('index.html')

def build(tree, **pages):
    "Run the builder on the project in `tree` with only these `pages`, `{name: cells}`: a string is a Markdown cell."
    for path in (tree / 'nbs').rglob('*.ipynb'): path.unlink()
    contents = '[{section: All of them, contents: "*.ipynb"}]'
    (tree / 'nbs/sidebar.yml').write_text(f'website: {{sidebar: {{contents: {contents}}}}}', encoding='utf-8')
    for name, cells in pages.items():
        cells = [mk_cell(f'# {name}\n\n> About {name}', 'markdown'),
                 *(mk_cell(cell, 'markdown') if isinstance(cell, str) else cell for cell in cells)]
        write_nb(new_nb(cells), tree / f'nbs/{name}.ipynb')
    return fresh.module('docs', cwd=tree)

def test_a_bad_link_fails_the_build_and_formulas_need_no_script(tmp_path):
    tree = copy_tree(tmp_path)
    run = build(tree, **{'index': ['## Install and try'],
                         '1_page': ['[a](gone.ipynb) [b](index.ipynb#gone) [c](index.ipynb#install-and-try) $x^2$']})
    warnings = [line.rpartition('WARNING: ')[2] for line in run.stderr.splitlines() if 'WARNING' in line]
    assert run.returncode != 0 and len(warnings) == 2, run.stderr
    assert "target not found: 'gone.ipynb'" in warnings[0] and "not found in doc 'index': 'gone'" in warnings[1]
    html = (tree / '_docs/html/page.html').read_text(encoding='utf-8')
    assert '<math' in html and 'mathjax.js' not in html.lower() and 'cdn.' not in html

def test_code_next_to_an_import_fails_the_build(tmp_path):
    cells = [mk_cell('#| default_exp sample'), '## A part', mk_cell('#| export\ndef f(): return 1'),
             mk_cell('import os\nx = f()')]
    run = build(copy_tree(tmp_path), index=[], sample=cells)
    assert run.returncode != 0 and 'Found cells containing imports and other code' in run.stderr

# In a browser

def headings_of(notebook, level):
    "The headings that the Markdown cells of `notebook` hold, as they read."
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    text = re.sub(r'^```.*?^```$|^:::.*?^:::$', '', text, flags=re.M | re.S)
    found = re.findall(rf'^{"#" * level} (.*)$', text, re.M)
    return [re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', h).replace('`', '').replace('*', '').replace("'", '’').strip()
            for h in found]

@pytest.mark.parametrize('name', NOTEBOOKS)
def test_page_in_a_browser(site, browser, name):
    "On a screen and, in dark mode, on a phone."
    browser.open(site / name)
    assert browser.headings(1) == headings_of(NOTEBOOKS[name], 1)
    assert [h.replace("'", '’') for h in browser.headings(2)] == headings_of(NOTEBOOKS[name], 2)
    if not name.startswith('design'): assert browser.wrapped_code == []
    for width, mode in ((1280, 'light'), (400, 'dark')):
        browser.show(width, mode)
        assert all(complete and natural > 0 and shown > 200 for complete, natural, shown in browser.pictures)
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

def test_copy_button(site, browser):
    buttons = browser.open(site / 'index.html').js("return document.querySelectorAll('article button.copybtn').length")
    assert buttons == 2

def shows(table, plan):
    "Return whether a table on a page holds the numbers of `plan`, to the digits that it shows."
    def reads(text, value): return float(text) == round(value, len(text.partition('.')[2]))
    return list(table) == list(plan.table) and all(
        len(table[name]) == len(values) and all(map(reads, table[name], values)) for name, values in plan.table.items())

def test_table_shows_the_plan(site, browser):
    browser.open(site / TUTORIAL)
    plan = OneCycleSchedule(0.1, 25.).plan(n_epoch=10, n_batch=len(digits_dls().train))
    assert any(shows(table, plan) for table in browser.tables)
    assert not any(shows(table, OneCycleSchedule(0.1, 25.).plan(10, plan.n_batch + 1)) for table in browser.tables)

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
