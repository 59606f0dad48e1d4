"""The explorer of the site's pages, in a browser: its numbers are those of plans, and it can be used in every way."""
import re
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import test_site
from docs.explorer import MARK, PLAN
from helpers import ROOT, copy_tree, learner
from onecycle_callback import OneCycleSchedule
from onecycle_callback.schedule import MOMS

pytestmark = pytest.mark.slow

browser = test_site.browser     # a fixture
NAMES = ['cycle_len', 'n_batch', 'max_lr', 'div_factor', 'pct_start', 'final_div']
FIRST = dict(cycle_len='10', n_batch='22', max_lr='0.1', div_factor='25', pct_start='0.3', final_div='None')

@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "A page of the site with nothing but the explorer."
    tree = copy_tree(tmp_path_factory.mktemp('explorer'))
    run = test_site.build(tree, index=[MARK])
    assert run.returncode == 0, run.stderr
    return tree / '_docs/html/index.html'

def plan_of(cycle_len=10, n_batch=22, max_lr=.1, **schedule):
    "Return the plan that the explorer should show."
    return OneCycleSchedule(max_lr, **schedule).plan(cycle_len, n_batch)

class Explorer:
    "The explorer on a page: moved by keys and pointer, and read back."
    def __init__(self, browser):
        self.browser, self.driver = browser, browser.driver

    def find(self, selector): return self.driver.find_element(By.CSS_SELECTOR, f'.onecycle-explorer {selector}')

    def texts(self, selector):
        return self.browser.js(f"return [...document.querySelectorAll('.onecycle-explorer {selector}')].map(e => e.textContent).filter(Boolean)")

    def slider(self, name): return self.find(f'[type=range][name={name}]')

    def field(self, name): return self.find(f'[type=text][name={name}]')

    def press(self, name, *keys): self.slider(name).send_keys(*keys)

    def type(self, name, text): self.field(name).send_keys(Keys.CONTROL, 'a', Keys.NULL, text, Keys.ENTER)

    @property
    def values(self): return {name: self.field(name).get_property('value') for name in NAMES}

    @property
    def read_aloud(self): return {name: self.slider(name).get_attribute('aria-valuetext') for name in NAMES}

    @property
    def call(self): return self.find('.call code').text

    @property
    def error(self): return self.find('.error').text

    @property
    def batch(self):
        "What is shown of the batch that is chosen: its numbers, as a screen reader reads them."
        text = self.find('.cycle').get_attribute('aria-valuetext')
        assert text == self.find('.values').text
        return [float(number) for number in re.findall(r'\d[\d.e-]*', text)]

    @property
    def axis(self):
        "The numbers of the axes of the whole cycle."
        return self.texts('.cycle text.tick')

    def drawn(self, chart, panel):
        "Return the points of the curve in a panel, with the vertical axis as the numbers beside it say."
        d = self.browser.js(f"return document.querySelectorAll('.onecycle-explorer .{chart} .line')[{panel}].getAttribute('d')")
        points = np.array(re.findall(r'[\d.]+,[\d.]+', d))
        x, y = np.array([point.split(',') for point in points], float).T
        ticks = self.browser.js(f"return [...document.querySelectorAll('.onecycle-explorer .{chart} text.tick[text-anchor=end]')]"
                                ".map(t => [t.getAttribute('y') - 5, +t.textContent])")
        inside = sorted(tick for tick in ticks if (tick[0] < 220) == (panel == 0))
        (y0, v0), (y1, v1) = inside[0], inside[-1]
        return x, v0 + (y - y0) / (y1 - y0) * (v1 - v0)

@pytest.fixture
def explorer(browser, page): return Explorer(browser.open(page))

# The numbers

CASES = dict(
    first={}, other=dict(max_lr=.0037, div_factor=7.3, pct_start=1/3, final_div=1234.5, cycle_len=7, n_batch=31),
    peak_first=dict(pct_start=0.), peak_last=dict(pct_start=1.), peak_second=dict(pct_start=.0045), peak_between=dict(pct_start=.25, cycle_len=1, n_batch=2),
    ends_at_0=dict(final_div=np.inf), ends_like_fastai=dict(final_div=1e5), ends_at_peak=dict(final_div=1.), flat=dict(div_factor=1.),
    one_batch=dict(cycle_len=1, n_batch=1), two_batches=dict(cycle_len=1, n_batch=2), one_batch_per_epoch=dict(cycle_len=3, n_batch=1), one_epoch=dict(cycle_len=1),
    tiny=dict(max_lr=1e-7, div_factor=1e6, final_div=1e9), large=dict(max_lr=1e3), long=dict(cycle_len=30, n_batch=1563, pct_start=.25))

def in_browser(browser, plan):
    "Return what the page's script gives as LR and momentum of every batch of `plan`."
    s = plan.schedule
    values = dict(cycle_len=plan.n_epoch, n_batch=plan.n_batch, max_lr=s.max_lr, div_factor=s.div_factor, pct_start=s.pct_start, final_div=s.final_div)
    values = {name: str(value) for name, value in values.items()}
    rows = browser.driver.execute_script('''
        const [values, moms] = arguments, parsed = Object.entries(values).map(([name, text]) => [name, onecycle.parse(text)]);
        const plan = onecycle.makePlan(Object.fromEntries(parsed), moms);
        return Array.from({length: plan.n}, (_, i) => [plan.lr(i), plan.mom(i)])''', values, MOMS)
    return np.array(rows).T

@pytest.mark.parametrize('case', CASES)
def test_every_batch_has_the_values_of_the_plan(explorer, case):
    plan = plan_of(**CASES[case])
    lrs, moms = in_browser(explorer.browser, plan)
    assert len(lrs) == len(plan)
    np.testing.assert_allclose(lrs, plan.lrs[:, 0], rtol=1e-12, atol=0)
    np.testing.assert_allclose(moms, plan.moms, rtol=1e-12, atol=0)
    ends = [0, plan.peak, -1]
    assert (lrs[ends] == plan.lrs[ends, 0]).all() and (moms[ends] == plan.moms[ends]).all()

def test_the_picture_is_drawn_with_these_values(explorer):
    plan = plan_of()
    for panel, values in enumerate((plan.lrs[:, 0], plan.moms)):
        x, y = explorer.drawn('cycle', panel)
        assert y == pytest.approx(values, abs=1e-4) and np.diff(x) == pytest.approx(np.diff(x).mean(), abs=.011)

def test_an_epoch_is_drawn_as_one_stair_per_batch(explorer):
    explorer.find('.cycle').send_keys(Keys.PAGE_UP)
    assert explorer.batch[0] == 22
    for panel, values in enumerate((plan_of().lrs[22:44, 0], plan_of().moms[22:44])):
        x, y = explorer.drawn('zoom', panel)
        assert y == pytest.approx(values.repeat(2), abs=1e-4) and (np.diff(x)[1::2] == 0).all() and (np.diff(x)[::2] > 5).all()

# Its controls

def test_starts_with_the_defaults_of_the_package(explorer):
    s, values = PLAN.schedule, explorer.values
    assert values == explorer.read_aloud == FIRST
    assert [float(values[name]) for name in ('max_lr', 'div_factor', 'pct_start')] == [s.max_lr, s.div_factor, s.pct_start]
    assert s == OneCycleSchedule(.1) and (PLAN.n_epoch, PLAN.n_batch) == (10, 22)

MOVES = dict(cycle_len=('11', '1', '15'), n_batch=('30', '1', '1000'), max_lr=('0.105', '0.005', '0.15'), div_factor=('30', '1', '800'),
             pct_start=('0.31', '0', '1'), final_div=('1', 'None', 'inf'))

@pytest.mark.parametrize('name', NAMES)
def test_keys_move_a_slider_and_its_number_is_read_aloud(explorer, name):
    for key, value in zip((Keys.ARROW_RIGHT, Keys.HOME, Keys.END), MOVES[name]):
        explorer.press(name, key)
        assert explorer.values == explorer.read_aloud == FIRST | {name: value}

@pytest.mark.parametrize('name', NAMES)
def test_a_slider_moves_the_curve_and_not_the_axis(explorer, name):
    before, line = explorer.axis, explorer.drawn('cycle', 0)
    explorer.press(name, Keys.END)
    assert [text for text in explorer.axis if 'dashed' not in text] == before
    assert not all(np.array_equal(a, b) for a, b in zip(explorer.drawn('cycle', 0), line))

def test_a_typed_number_is_exact(explorer):
    explorer.type('n_batch', '1563')
    explorer.type('pct_start', '0.123')
    assert explorer.values == explorer.read_aloud == FIRST | dict(n_batch='1563', pct_start='0.123')
    assert 'pct_start=0.123' in explorer.call and explorer.error == ''

def test_a_typed_number_beyond_its_slider_gets_a_slider_and_an_axis_around_it(explorer):
    explorer.type('max_lr', '3e-4')
    explorer.type('cycle_len', '40')
    assert '0.0004' in explorer.axis and '40' in explorer.axis and '0.10' not in explorer.axis
    explorer.press('max_lr', Keys.END)
    explorer.press('cycle_len', Keys.END)
    assert explorer.values == FIRST | dict(max_lr='0.00045', cycle_len='60')
    explorer.find('[type=reset]').click()
    assert explorer.values == explorer.read_aloud == FIRST and '0.10' in explorer.axis

@pytest.mark.parametrize('name, text, allowed', [
    ('cycle_len', '2.5', 'a whole number of at least 1'), ('cycle_len', '0', 'a whole number of at least 1'), ('n_batch', 'None', 'a whole number of at least 1'),
    ('max_lr', '0', 'a number above 0'), ('max_lr', 'inf', 'a number above 0'), ('max_lr', '', 'a number above 0'), ('div_factor', '0.5', 'a number of at least 1'),
    ('pct_start', '1.5', 'between 0 and 1'), ('final_div', '0.5', 'a number of at least 1, inf to end at 0, or None'), ('final_div', 'x', 'a number of at least 1, inf to end at 0, or None')])
def test_what_the_package_refuses_is_refused(explorer, name, text, allowed):
    call = explorer.call
    explorer.type(name, text or Keys.DELETE)
    assert explorer.error == f'{name} must be {allowed}' and explorer.call == call
    explorer.press(name, Keys.ARROW_RIGHT)
    assert explorer.error == ''

@pytest.mark.parametrize('typed', [{}, dict(final_div='inf'), dict(final_div='1e5', pct_start='0'), dict(cycle_len='3', max_lr='1e-7', div_factor='1'), dict(n_batch='7')])
def test_the_copied_line_trains_with_the_plan(explorer, typed):
    for name, text in typed.items(): explorer.type(name, text)
    values = {name: eval(text, dict(inf=np.inf)) for name, text in explorer.values.items()}
    explorer.find('.call [type=button]').click()
    WebDriverWait(explorer.driver, 10).until(lambda driver: explorer.texts('[role=status]') == ['Copied'])
    explorer.driver.execute_script("document.querySelector('article').insertAdjacentHTML('beforeend', '<input class=paste>')")
    pasted = explorer.driver.find_element(By.CLASS_NAME, 'paste')
    pasted.send_keys(Keys.CONTROL, 'v')
    line = pasted.get_property('value')
    assert line == explorer.call and line.startswith('learn.fit_one_cycle(cycle_len=')
    made = eval(line.replace('fit_', 'preview_'), dict(learn=learner(n_batch=values['n_batch'])))
    assert (made.lrs == plan_of(**values).lrs).all() and made.lrs.max() == values['max_lr']

# The batch that is chosen

KEYS = [(Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.PAGE_UP, 24), (Keys.PAGE_UP, 46), (Keys.ARROW_LEFT, 45), (Keys.PAGE_DOWN, 23), (Keys.END, 219),
        (Keys.ARROW_RIGHT, 219), (Keys.HOME, 0), (Keys.ARROW_LEFT, 0)]

def test_keys_on_the_picture_read_every_batch(explorer):
    plan, cycle = plan_of(), explorer.find('.cycle')
    for key, batch in KEYS:
        cycle.send_keys(key)
        assert explorer.batch == pytest.approx([batch, batch % 22, batch // 22, plan.lrs[batch, 0], plan.moms[batch]], rel=6e-4)
        assert [cycle.get_attribute(f'aria-value{name}') for name in ('min', 'now', 'max')] == ['0', str(batch), '219']

@pytest.mark.parametrize('chart, fraction, batch', [('cycle', 3 / 15, 66), ('cycle', 10 / 15, 219), ('cycle', 14 / 15, 219), ('zoom', .3 / 22, 0), ('zoom', 5.5 / 22, 5), ('zoom', 21.9 / 22, 21)])
def test_the_pointer_chooses_a_batch(explorer, chart, fraction, batch):
    svg, plan = explorer.find(f'.{chart}'), plan_of()
    explorer.browser.js("document.querySelector('.onecycle-explorer').scrollIntoView()")
    width = svg.rect['width']
    ActionChains(explorer.driver).move_to_element_with_offset(svg, round(58 + fraction * (width - 72) - width / 2), 0).perform()
    assert explorer.batch == pytest.approx([batch, batch % 22, batch // 22, plan.lrs[batch, 0], plan.moms[batch]], rel=6e-4)

# How it looks, and what it needs

def test_every_control_has_a_name(explorer):
    for element in [explorer.find('.cycle'), *map(explorer.slider, NAMES), *map(explorer.field, NAMES)]: assert element.accessible_name
    assert [explorer.slider(name).accessible_name for name in NAMES] == [name.replace('n_batch', 'batches per epoch') for name in NAMES]
    assert {explorer.slider(name).aria_role for name in NAMES} | {explorer.find('.cycle').aria_role} == {'slider'}

def luminance(color):
    linear = [c / 12.92 if c <= .03928 else ((c + .055) / 1.055) ** 2.4 for c in color]
    return np.dot(linear, [.2126, .7152, .0722])

def contrast(color, paper):
    "Return the ratio between two colours, each red, green, blue and alpha, as WCAG 2 defines it; the first one is on the second."
    mixed = [c * color[3] + p * (1 - color[3]) for c, p in zip(color[:3], paper[:3])]
    low, high = sorted((luminance(mixed), luminance(paper[:3])))
    return (high + .05) / (low + .05)

COLORS = '''
    const root = document.querySelector('.onecycle-explorer'), canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = (color, opacity = 1) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r / 255, g / 255, b / 255, a / 255 * opacity];
    };
    const paper = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (rgba(c)[3] === 1) return rgba(c); } return [1, 1, 1, 1]; };
    return [...root.querySelectorAll(arguments[0])].map(e => {
        const style = getComputedStyle(e), color = e.closest('svg') ? (e.tagName === 'text' || e.tagName === 'circle' ? style.fill : style.stroke) : style.color;
        return [rgba(color, +style.opacity), paper(e)];
    })'''

@pytest.mark.parametrize('mode', ['light', 'dark'])
def test_text_and_lines_stand_out(browser, page, mode):
    explorer = Explorer(browser.open(page, 1280, mode))
    explorer.type('max_lr', '0.12')
    explorer.type('pct_start', '2')
    for selector, least in (('legend, label span, input[type=text], .error, text, .values, .call code, button', 4.5), ('.line, circle', 3)):
        colors = browser.driver.execute_script(COLORS, selector)
        assert len(colors) >= 4 and min(contrast(*pair) for pair in colors) >= least

def test_the_site_is_really_dark(browser, page):
    browser.open(page, 1280, 'dark')
    assert luminance(browser.driver.execute_script(COLORS, 'legend')[0][1][:3]) < .05

@pytest.mark.parametrize('width', [400, 1280])
def test_fits_a_phone_and_a_screen(browser, page, width):
    explorer = Explorer(browser.open(page, width))
    explorer.type('final_div', 'inf')
    assert browser.overflow <= 0 and browser.small_text == [] and browser.errors == []
    outside = browser.js('''
        const root = document.querySelector('.onecycle-explorer'), {left, right} = root.getBoundingClientRect();
        const isOutside = box => box.width && (box.left < left - 1 || box.right > right + 1);
        return [...root.querySelectorAll('*')].filter(e => isOutside(e.getBoundingClientRect())).map(e => e.outerHTML)''')
    assert outside == []

class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture
def server(page):
    "The address of the site on this machine; from a file, a browser keeps no record of what it loads."
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Silent, directory=page.parent)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()

def test_nothing_comes_from_another_address_and_nothing_after_the_page(browser, server):
    browser.driver.get(server)
    def loaded(): return browser.js("return performance.getEntriesByType('resource').map(e => e.name)")
    before = loaded()
    explorer = Explorer(browser)
    for name in NAMES: explorer.press(name, Keys.END)
    explorer.find('.cycle').send_keys(Keys.END)
    explorer.find('.call [type=button]').click()
    assert explorer.values['max_lr'] == '0.15' and any('explorer.js' in url for url in before)
    assert loaded() == before and all(url.startswith(server) for url in before)

def test_without_a_script_there_is_the_picture(browser, page):
    cdp = browser.driver.execute_cdp_cmd
    cdp('Emulation.setScriptExecutionDisabled', dict(value=True))
    try:
        browser.open(page, 400)
        shown = browser.driver.find_elements(By.CSS_SELECTOR, '.onecycle-explorer img')
        assert [image.get_dom_attribute('alt')[:26] for image in shown] == ['The learning rate rises fr'] and shown[0].rect['width'] > 300
        assert browser.driver.find_elements(By.CSS_SELECTOR, '.onecycle-explorer form') == []
    finally: cdp('Emulation.setScriptExecutionDisabled', dict(value=False))

def test_pages_without_it_do_not_load_it(page):
    others = [p for p in page.parent.rglob('*.html') if p != page]
    assert others and 'explorer.js' in page.read_text() and not any('explorer.' in p.read_text() for p in others)

@pytest.mark.parametrize('notebook', ['index.ipynb', 'tutorials/understanding_the_1cycle_policy.ipynb'])
def test_index_and_tutorial_have_it(notebook):
    assert (ROOT / 'nbs' / notebook).read_text().count(MARK.replace('"', '\\"')) == 1

def test_readme_has_nothing_of_it(): assert 'onecycle-explorer' not in (ROOT / 'README.md').read_text()
