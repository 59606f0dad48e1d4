"""The explorer of the site's pages, in a browser: its numbers are those of plans, and it can be used in every way."""
import re
from functools import partial

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from docs.explorer import PLAN
from support.browser import POLL
from support.explored import CASES, arguments_of, plan_of
from support.helpers import ROOT, serve
from onecycle_callback.schedule import MOMS

pytestmark = pytest.mark.slow

FIRST = dict(cycle_len='10', n_batch='22', max_lr='0.1', div_factor='25', pct_start='0.3', final_div='None')

@pytest.fixture(scope='module')
def page(site): return site / 'index.html'

@pytest.fixture
def explorer(browser, page):
    "The explorer as it is at first: on a page that is loaded once, and reset for each test."
    reset = """const form = document.querySelector('.onecycle-explorer form');
               form?.reset();
               return form && location.href"""
    if browser.width != 1280 or browser.js(reset) != page.as_uri(): browser.open(page)
    return Explorer(browser)

class Explorer:
    "The explorer on a page: moved by keys and pointer, and read back."
    def __init__(self, browser): self.browser, self.driver = browser, browser.driver

    def js(self, code, *arguments):
        "Return what a script returns; `root` is the explorer, and `all` finds elements in it."
        names = """const root = document.querySelector('.onecycle-explorer');
                   const all = css => [...root.querySelectorAll(css)];"""
        return self.driver.execute_script(names + code, *arguments)

    def find(self, css): return self.driver.find_element(By.CSS_SELECTOR, f'.onecycle-explorer {css}')

    def text(self, css): return self.find(css).text

    def press(self, name, key): self.find(f'[type=range][name={name}]').send_keys(key)

    def type(self, name, text):
        self.find(f'[type=text][name={name}]').send_keys(Keys.CONTROL, 'a', Keys.NULL, text, Keys.ENTER)

    def shows(self, **values):
        "Check that the fields show `values`, where they aren't the first ones, and that no error is shown."
        read = """return Object.fromEntries(all(arguments[0]).map(
            e => [e.name, e.getAttribute('aria-valuetext') ?? e.value]))"""
        assert self.js(read, '[type=text]') == self.js(read, '[type=range]') == FIRST | values
        assert self.text('.error') == '' and self.js(read, '[aria-invalid=true]') == {}

    def shows_batch(self, batch):
        "Check that this batch is shown and read aloud: its place, LR and momentum."
        text = (f'Batch {batch}, which is batch {batch % 22} of epoch {batch // 22}: '
                f'learning rate {PLAN.lrs[batch, 0]:.4g}, momentum {PLAN.moms[batch]:.4g}')
        read_aloud = [self.find('.cycle').get_attribute(f'aria-value{name}') for name in ('min', 'now', 'max', 'text')]
        assert read_aloud == ['0', str(batch), '219', text] and self.text('.values') == text

    def axes(self): return self.js("return all('.cycle text.tick:not(.note)').map(e => e.outerHTML)")

    def drawn(self, chart, panel):
        "Return the points of the curve in a panel: x in pixels, and y as the numbers of its axis say."
        path = self.js(f"return all('.{chart} .line')[{panel}].getAttribute('d')")
        x, y = np.array([point.split(',') for point in re.findall(r'[\d.]+,[\d.]+', path)], float).T
        ticks = self.js(f"""return all('.{chart} text.tick[text-anchor=end]').map(
            e => [+e.getAttribute('y') - 5, +e.textContent])""")
        (y0, value0), *_, (y1, value1) = sorted(tick for tick in ticks if (tick[0] > 220) == panel)
        return x, value0 + (y - y0) / (y1 - y0) * (value1 - value0)

# The numbers

@pytest.mark.parametrize('case', CASES)
def test_every_batch_has_the_values_of_the_plan(explorer, case):
    plan = plan_of(**CASES[case])
    values = {name: getattr(plan.schedule, name, None) for name in FIRST} | dict(
        cycle_len=plan.n_epoch, n_batch=plan.n_batch)
    found = np.array(explorer.js('''
        const [texts, moms] = arguments, values = {};
        for (const name in texts) values[name] = onecycle.parse(texts[name]);
        const plan = onecycle.makePlan(values, moms);
        return [plan.lr, plan.mom].map(value => Array.from({length: plan.n}, (_, i) => value(i)))
        ''', {name: str(value) for name, value in values.items()}, MOMS))
    wanted, ends = np.array([plan.lrs[:, 0], plan.moms]), [0, plan.peak, -1]
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=0)
    assert (found[:, ends] == wanted[:, ends]).all()

def test_the_pictures_are_drawn_with_these_values(explorer):
    "The whole cycle as a curve, and one epoch as a stair per batch."
    explorer.find('.cycle').send_keys(Keys.PAGE_UP)
    for panel, values in enumerate((PLAN.lrs[:, 0], PLAN.moms)):
        x, y = explorer.drawn('cycle', panel)
        assert y == pytest.approx(values, abs=1e-4) and np.diff(x) == pytest.approx(np.diff(x).mean(), abs=.011)
        x, y = explorer.drawn('zoom', panel)
        assert y == pytest.approx(values[22:44].repeat(2), abs=1e-4)
        assert (np.diff(x)[1::2] == 0).all() and (np.diff(x)[::2] > 5).all()

# The controls

@pytest.mark.parametrize('name, stops', [
    ('cycle_len', ['11', '1', '15']), ('n_batch', ['30', '1', '1000']), ('max_lr', ['0.105', '0.005', '0.15']),
    ('div_factor', ['26', '1', '100']), ('pct_start', ['0.31', '0', '1']), ('final_div', ['1', 'None', 'inf'])])
def test_keys_move_a_slider_and_the_curve_but_no_axis(explorer, name, stops):
    axes, curve = explorer.axes(), explorer.drawn('cycle', 0)
    for key, stop in zip((Keys.ARROW_RIGHT, Keys.HOME, Keys.END), stops):
        explorer.press(name, key)
        explorer.shows(**{name: stop})
        assert len(axes) > 10 and explorer.axes() == axes
    assert not np.array_equal(explorer.drawn('cycle', 0), curve)

def test_a_typed_number_beyond_its_slider_gets_a_slider_and_an_axis_around_it(explorer):
    axes = explorer.axes()
    explorer.type('max_lr', '3e-4')
    explorer.type('cycle_len', '40')
    numbers = re.findall('>(.*?)<', ''.join(explorer.axes()))
    assert {'0.0004', '60'} <= {*numbers} and not {'0.10', '2'} & {*numbers}
    explorer.press('max_lr', Keys.END)
    explorer.press('cycle_len', Keys.END)
    explorer.shows(max_lr='0.00045', cycle_len='60')
    explorer.find('[type=reset]').click()
    explorer.shows()
    assert explorer.axes() == axes

@pytest.mark.parametrize('name, texts, allowed', [
    ('cycle_len', ['2.5', '0'], 'a whole number of at least 1'), ('n_batch', ['None'], 'a whole number of at least 1'),
    ('max_lr', ['0', 'inf', Keys.DELETE], 'a number above 0'), ('pct_start', ['1.5', 'None'], 'between 0 and 1'),
    ('div_factor', ['0.5', 'None'], 'a number of at least 1'),
    ('final_div', ['0.5', 'x'], 'a number of at least 1, inf to end at 0, or None')])
def test_what_the_package_refuses_is_refused(explorer, name, texts, allowed):
    call = explorer.text('.call code')
    for text in texts:
        explorer.type(name, text)
        assert explorer.text('.error') == f'{name} must be {allowed}' and explorer.text('.call code') == call
        assert explorer.js("return all('[aria-invalid=true]').map(e => e.name)") == [name]
        explorer.find('[type=reset]').click()
        explorer.shows()

@pytest.mark.parametrize('typed', [
    {}, dict(n_batch='1563', pct_start='0.123'), dict(final_div='inf'),
    dict(cycle_len='3', max_lr='1e-7', div_factor='1', final_div='100000', pct_start='0')], ids=str)
def test_the_copied_line_trains_with_the_plan(explorer, typed):
    for name, text in typed.items(): explorer.type(name, text)
    explorer.shows(**typed)
    explorer.find('.call [type=button]').click()
    WebDriverWait(explorer.driver, 10, POLL).until(lambda driver: explorer.text('[role=status]') == 'Copied')
    field = explorer.find('[name=cycle_len][type=text]')
    field.send_keys(Keys.CONTROL, 'a', 'v')
    line = field.get_property('value')
    assert line == explorer.text('.call code') and line.startswith('learn.fit_one_cycle(cycle_len=')
    values = {name: eval(text, dict(inf=np.inf)) for name, text in (FIRST | typed).items()}
    plan = plan_of(**values)
    assert plan_of(n_batch=values['n_batch'], **arguments_of(line)) == plan and (typed or plan == PLAN)

# The batch that is chosen

KEYS = [(Keys.ARROW_RIGHT, 1), (Keys.ARROW_UP, 2), (Keys.PAGE_UP, 24), (Keys.PAGE_UP, 46), (Keys.ARROW_LEFT, 45),
        (Keys.ARROW_DOWN, 44), (Keys.PAGE_DOWN, 22), (Keys.END, 219), (Keys.ARROW_RIGHT, 219), (Keys.HOME, 0),
        (Keys.ARROW_LEFT, 0)]

def test_keys_on_the_picture_read_every_batch(explorer):
    for key, batch in KEYS:
        explorer.find('.cycle').send_keys(key)
        explorer.shows_batch(batch)

@pytest.mark.parametrize('chart, fraction, batch', [
    ('cycle', 3 / 15, 66), ('cycle', 10 / 15, 219), ('cycle', 14 / 15, 219),
    ('zoom', .3 / 22, 0), ('zoom', 5.5 / 22, 5), ('zoom', 21.9 / 22, 21)])
def test_the_pointer_chooses_a_batch(explorer, chart, fraction, batch):
    svg, grid = explorer.find(f'.{chart}'), explorer.find(f'.{chart} .grid').rect
    explorer.js('root.scrollIntoView()')
    x = grid['x'] - svg.rect['x'] + fraction * grid['width'] - svg.rect['width'] / 2
    ActionChains(explorer.driver).move_to_element_with_offset(svg, round(x), 0).perform()
    explorer.shows_batch(batch)

# What it looks like, and what it needs

def test_every_control_has_a_name(explorer):
    labels = [name.replace('n_batch', 'batches per epoch') for name in FIRST]
    for kind, ending in ('range', ''), ('text', ', typed'):
        names = [explorer.find(f'[type={kind}][name={name}]').accessible_name for name in FIRST]
        assert names == [label + ending for label in labels]
    assert explorer.find('.cycle').accessible_name == 'batch' and explorer.find('.cycle').aria_role == 'slider'

COLORS = '''
    const background = e => e ? getComputedStyle(e).backgroundColor : 'rgb(255, 255, 255)';
    const paper = e => background(e).startsWith('rgb(') ? background(e) : paper(e.parentElement);
    return all('legend, label span, [type=text], .error, .values, .call code, button, text, .line, circle').map(e => {
        const {fill, stroke, color, opacity} = getComputedStyle(e), ofShape = fill === 'none' ? stroke : fill;
        return [e.tagName, e.closest('svg') ? ofShape : color, +opacity, paper(e)];
    })'''

def luminance(color):
    "Return the luminance, as WCAG 2 defines it, of red, green and blue from 0 to 255."
    part = color / 255
    return np.where(part <= .03928, part / 12.92, ((part + .055) / 1.055) ** 2.4) @ [.2126, .7152, .0722]

@pytest.mark.parametrize('mode', ['light', 'dark'])
def test_text_and_lines_stand_out(browser, page, mode):
    explorer = Explorer(browser.open(page, 1280, mode))
    explorer.type('max_lr', '0.12')     # makes a note
    explorer.type('pct_start', '2')     # makes an error
    colors = explorer.js(COLORS)
    assert len(colors) > 50
    for tag, color, opacity, paper in colors:
        color, paper = (np.array(re.findall(r'[\d.]+', each)[:3], float) for each in (color, paper))
        low, high = sorted((luminance(color * opacity + paper * (1 - opacity)), luminance(paper)))
        assert (luminance(paper) < .2) == (mode == 'dark')
        assert (high + .05) / (low + .05) >= (3 if tag in ('path', 'circle') else 4.5), tag

@pytest.mark.parametrize('width', [400, 1280])
def test_fits_a_phone_and_a_screen(browser, page, width):
    explorer = Explorer(browser.open(page, width))
    explorer.type('final_div', 'inf')
    assert browser.overflow <= 0 and browser.small_text == [] and browser.errors == []
    assert explorer.js('''
        const {left, right} = root.getBoundingClientRect();
        const isOutside = box => box.width && (box.left < left - 1 || box.right > right + 1);
        return all('*').filter(e => isOutside(e.getBoundingClientRect())).map(e => e.outerHTML)''') == []

def test_nothing_is_loaded_after_the_page(browser, page):
    "From a server, since a browser keeps no record of what it loads from files."
    with serve(page.parent) as address:
        explorer = Explorer(browser.open(page).load(address))
        def loaded(): return {*browser.requests} - {f'{address}favicon.ico'}     # which it looks for by itself
        before = loaded()
        for name in FIRST: explorer.press(name, Keys.END)
        explorer.find('.cycle').send_keys(Keys.END)
        explorer.find('.call [type=button]').click()
        assert loaded() == before and any('explorer.js' in url for url in before)

def test_without_a_script_there_is_the_picture(browser, page):
    disable = partial(browser.driver.execute_cdp_cmd, 'Emulation.setScriptExecutionDisabled')
    disable(dict(value=True))
    try:
        image = Explorer(browser.open(page, 400)).find('img')
        assert 'learning rate rises' in image.get_dom_attribute('alt') and image.rect['width'] > 300
        assert browser.driver.find_elements(By.CSS_SELECTOR, '.onecycle-explorer form') == []
    finally: disable(dict(value=False))

def test_index_and_tutorial_have_it_and_no_other_page_loads_it(page):
    with_it = {page, page.parent / 'tutorials/understanding_the_1cycle_policy.html'}
    assert {p for p in page.parent.rglob('*.html') if 'explorer.' in p.read_text(encoding='utf-8')} == with_it
    assert 'onecycle-explorer' not in (ROOT / 'README.md').read_text(encoding='utf-8')
