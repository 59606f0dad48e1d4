"""The explorer of the site's pages, in a browser: its numbers are those of plans, and it can be used in every way."""
import re
from functools import partial

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from docs.explorer import PLAN
from support.explored import CASES, arguments_of, plan_of
from support.helpers import ROOT, serve
from onecycle_callback import OneCycleSchedule
from onecycle_callback.schedule import MOMS

pytestmark = pytest.mark.slow

NAMES = ['cycle_len', 'n_batch', 'max_lr', 'div_factor', 'pct_start', 'final_div']
FIRST = dict(cycle_len='10', n_batch='22', max_lr='0.1', div_factor='25', pct_start='0.3', final_div='None')

@pytest.fixture(scope='module')
def page(site): return site / 'index.html'

@pytest.fixture
def explorer(browser, page):
    "The explorer as it is at first: on a page that is loaded once, and reset for each test."
    reset = """const form = document.querySelector('.onecycle-explorer form');
               document.querySelector('#pasted')?.remove();
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

    def slider(self, name): return self.find(f'[type=range][name={name}]')

    def field(self, name): return self.find(f'[type=text][name={name}]')

    def press(self, name, key): self.slider(name).send_keys(key)

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
        "What is shown of the chosen batch, and read aloud: its number, that in its epoch, the epoch, LR and momentum."
        text = self.find('.cycle').get_attribute('aria-valuetext')
        assert text == self.find('.values').text
        return [float(number) for number in re.findall(r'\d[\d.e-]*', text)]

    @property
    def axis(self):
        "The numbers of the axes of the whole cycle, each with its place."
        return self.js('''return all('.cycle text.tick:not(.note)').map(
            e => [e.textContent, e.getAttribute('x'), e.getAttribute('y')])''')

    def drawn(self, chart, panel):
        "Return the points of the curve in a panel: x in pixels, and y as the numbers of its axis say."
        path = self.js(f"return all('.{chart} .line')[{panel}].getAttribute('d')")
        x, y = np.array([point.split(',') for point in re.findall(r'[\d.]+,[\d.]+', path)], float).T
        ticks = self.js(f"""return all('.{chart} text.tick[text-anchor=end]').map(
            e => [+e.getAttribute('y') - 5, +e.textContent])""")
        (y0, value0), *_, (y1, value1) = sorted(tick for tick in ticks if (tick[0] > 220) == panel)
        return x, value0 + (y - y0) / (y1 - y0) * (value1 - value0)

# The numbers

def in_browser(explorer, plan):
    "Return what the page's script gives as LR and momentum of every batch of `plan`, shape (2, `N`)."
    s = plan.schedule
    values = dict(cycle_len=plan.n_epoch, n_batch=plan.n_batch) | {name: getattr(s, name) for name in NAMES[2:]}
    return np.array(explorer.js('''
        const [texts, moms] = arguments, values = {};
        for (const name in texts) values[name] = onecycle.parse(texts[name]);
        const plan = onecycle.makePlan(values, moms);
        return [plan.lr, plan.mom].map(value => Array.from({length: plan.n}, (_, i) => value(i)))
        ''', {name: str(value) for name, value in values.items()}, MOMS))

@pytest.mark.parametrize('case', CASES)
def test_every_batch_has_the_values_of_the_plan(explorer, case):
    plan = plan_of(**CASES[case])
    wanted = np.array([plan.lrs[:, 0], plan.moms])
    found = in_browser(explorer, plan)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=0)
    ends = [0, plan.peak, -1]
    assert (found[:, ends] == wanted[:, ends]).all()

@pytest.mark.parametrize('panel, values', [(0, plan_of().lrs[:, 0]), (1, plan_of().moms)], ids=['lr', 'mom'])
def test_the_pictures_are_drawn_with_these_values(explorer, panel, values):
    "The whole cycle as a curve, and one epoch as a stair per batch."
    x, y = explorer.drawn('cycle', panel)
    assert y == pytest.approx(values, abs=1e-4) and np.diff(x) == pytest.approx(np.diff(x).mean(), abs=.011)
    explorer.find('.cycle').send_keys(Keys.PAGE_UP)
    x, y = explorer.drawn('zoom', panel)
    assert y == pytest.approx(values[22:44].repeat(2), abs=1e-4)
    assert (np.diff(x)[1::2] == 0).all() and (np.diff(x)[::2] > 5).all()

# The controls

def test_starts_with_the_defaults_of_the_package(explorer):
    assert explorer.values == explorer.read_aloud == FIRST
    schedule = {name: eval(FIRST[name]) for name in NAMES[2:]}
    assert OneCycleSchedule(**schedule) == OneCycleSchedule(.1) == PLAN.schedule

@pytest.mark.parametrize('name, stops', [
    ('cycle_len', ['11', '1', '15']), ('n_batch', ['30', '1', '1000']), ('max_lr', ['0.105', '0.005', '0.15']),
    ('div_factor', ['26', '1', '100']), ('pct_start', ['0.31', '0', '1']), ('final_div', ['1', 'None', 'inf'])])
def test_keys_move_a_slider_and_the_curve_but_no_axis(explorer, name, stops):
    "Each number is read aloud."
    axis, curve = explorer.axis, explorer.drawn('cycle', 0)
    for key, stop in zip((Keys.ARROW_RIGHT, Keys.HOME, Keys.END), stops):
        explorer.press(name, key)
        assert explorer.values == explorer.read_aloud == FIRST | {name: stop}
        assert len(axis) > 10 and explorer.axis == axis
    assert not np.array_equal(explorer.drawn('cycle', 0), curve)

def test_a_typed_number_beyond_its_slider_gets_a_slider_and_an_axis_around_it(explorer):
    axis = explorer.axis
    explorer.type('max_lr', '3e-4')
    explorer.type('cycle_len', '40')
    numbers = {number for number, *place in explorer.axis}
    assert {'0.0004', '60'} <= numbers and not {'0.10', '2'} & numbers
    explorer.press('max_lr', Keys.END)
    explorer.press('cycle_len', Keys.END)
    assert explorer.values == FIRST | dict(max_lr='0.00045', cycle_len='60')
    explorer.find('[type=reset]').click()
    assert explorer.values == explorer.read_aloud == FIRST and explorer.axis == axis

WHOLE, DIV = 'a whole number of at least 1', 'a number of at least 1'

@pytest.mark.parametrize('name, text, allowed', [
    ('cycle_len', '2.5', WHOLE), ('cycle_len', '0', WHOLE), ('n_batch', 'None', WHOLE),
    ('max_lr', '0', 'a number above 0'), ('max_lr', 'inf', 'a number above 0'),
    ('max_lr', Keys.DELETE, 'a number above 0'), ('div_factor', '0.5', DIV),
    ('div_factor', 'None', DIV), ('pct_start', '1.5', 'between 0 and 1'), ('pct_start', 'None', 'between 0 and 1'),
    ('final_div', '0.5', f'{DIV}, inf to end at 0, or None'), ('final_div', 'x', f'{DIV}, inf to end at 0, or None')])
def test_what_the_package_refuses_is_refused(explorer, name, text, allowed):
    call = explorer.call
    explorer.type(name, text)
    assert explorer.error == f'{name} must be {allowed}' and explorer.call == call
    assert explorer.field(name).get_attribute('aria-invalid') == 'true'
    explorer.press(name, Keys.END)
    assert explorer.error == '' and explorer.values[name] == explorer.read_aloud[name]
    assert explorer.field(name).get_attribute('aria-invalid') == 'false'

@pytest.mark.parametrize('typed', [
    {}, dict(n_batch='1563', pct_start='0.123'), dict(final_div='inf'), dict(final_div='100000', pct_start='0'),
    dict(cycle_len='3', max_lr='1e-7', div_factor='1')],
    ids=str)
def test_the_copied_line_trains_with_the_plan(explorer, typed):
    for name, text in typed.items(): explorer.type(name, text)
    assert explorer.values == explorer.read_aloud == FIRST | typed and explorer.error == ''
    explorer.find('.call [type=button]').click()
    WebDriverWait(explorer.driver, 10).until(lambda driver: explorer.find('[role=status]').text == 'Copied')
    explorer.js("root.insertAdjacentHTML('afterend', '<input id=pasted>')")
    pasted = explorer.driver.find_element(By.ID, 'pasted')
    pasted.send_keys(Keys.CONTROL, 'v')
    line = pasted.get_property('value')
    assert line == explorer.call and line.startswith('learn.fit_one_cycle(cycle_len=')
    values = {name: eval(text, dict(inf=np.inf)) for name, text in (FIRST | typed).items()}
    called = dict(n_batch=values['n_batch']) | arguments_of(line)
    assert plan_of(**called) == plan_of(**values)

# The batch that is chosen

def shown_of(batch):
    "Return what should be shown of a batch, which is rounded to four digits."
    plan = plan_of()
    return pytest.approx([batch, batch % 22, batch // 22, plan.lrs[batch, 0], plan.moms[batch]], rel=6e-4)

KEYS = [(Keys.ARROW_RIGHT, 1), (Keys.ARROW_UP, 2), (Keys.PAGE_UP, 24), (Keys.PAGE_UP, 46), (Keys.ARROW_LEFT, 45),
        (Keys.ARROW_DOWN, 44), (Keys.PAGE_DOWN, 22), (Keys.END, 219), (Keys.ARROW_RIGHT, 219), (Keys.HOME, 0),
        (Keys.ARROW_LEFT, 0)]

def test_keys_on_the_picture_read_every_batch(explorer):
    cycle = explorer.find('.cycle')
    for key, batch in KEYS:
        cycle.send_keys(key)
        assert explorer.batch == shown_of(batch)
        assert [cycle.get_attribute(f'aria-value{name}') for name in ('min', 'now', 'max')] == ['0', str(batch), '219']

@pytest.mark.parametrize('chart, fraction, batch', [
    ('cycle', 3 / 15, 66), ('cycle', 10 / 15, 219), ('cycle', 14 / 15, 219),
    ('zoom', .3 / 22, 0), ('zoom', 5.5 / 22, 5), ('zoom', 21.9 / 22, 21)])
def test_the_pointer_chooses_a_batch(explorer, chart, fraction, batch):
    svg = explorer.find(f'.{chart}')
    explorer.js('root.scrollIntoView()')
    left, *_, right = explorer.js(f"""
        const {{x, width}} = root.querySelector('.{chart} .grid').getBoundingClientRect();
        return [x, x + width].map(edge => edge - root.querySelector('.{chart}').getBoundingClientRect().x)""")
    x = left + fraction * (right - left) - svg.rect['width'] / 2
    ActionChains(explorer.driver).move_to_element_with_offset(svg, round(x), 0).perform()
    assert explorer.batch == shown_of(batch)

# What it looks like, and what it needs

def test_every_control_has_a_name(explorer):
    sliders, cycle = [*map(explorer.slider, NAMES)], explorer.find('.cycle')
    labels = [name.replace('n_batch', 'batches per epoch') for name in NAMES]
    assert [slider.accessible_name for slider in sliders] == labels
    assert all(explorer.field(name).accessible_name for name in NAMES) and cycle.accessible_name == 'batch'
    assert {element.aria_role for element in [*sliders, cycle]} == {'slider'}

def luminance(color):
    linear = [c / 12.92 if c <= .03928 else ((c + .055) / 1.055) ** 2.4 for c in color]
    return np.dot(linear, [.2126, .7152, .0722])

def contrast(color, paper):
    "Return the contrast, as WCAG 2 defines it, of `color` on `paper`; both are red, green, blue and alpha."
    mixed = [c * color[3] + p * (1 - color[3]) for c, p in zip(color[:3], paper)]
    low, high = sorted((luminance(mixed), luminance(paper[:3])))
    return (high + .05) / (low + .05)

COLORS = '''
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    function rgba(color, opacity = 1) {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].map((part, i) => part / 255 * (i === 3 ? opacity : 1));
    }
    function paper(element) {
        if (!element) return [1, 1, 1, 1];
        const color = rgba(getComputedStyle(element).backgroundColor);
        return color[3] === 1 ? color : paper(element.parentElement);
    }
    return all(arguments[0]).map(element => {
        const style = getComputedStyle(element), isShape = element.closest('svg');
        const color = isShape ? (style.fill === 'none' ? style.stroke : style.fill) : style.color;
        return [rgba(color, +style.opacity), paper(element)];
    })'''

@pytest.mark.parametrize('mode', ['light', 'dark'])
@pytest.mark.parametrize('css, least', [
    ('legend, label span, input[type=text], .error, svg text, .values, .call code, button', 4.5), ('.line, circle', 3)])
def test_text_and_lines_stand_out(browser, page, mode, css, least):
    explorer = Explorer(browser.open(page, 1280, mode))
    explorer.type('max_lr', '0.12')     # makes a note
    explorer.type('pct_start', '2')     # makes an error
    colors = explorer.js(COLORS, css)
    assert all((luminance(paper[:3]) < .2) == (mode == 'dark') for _, paper in colors)
    assert len(colors) > 5 and min(contrast(*pair) for pair in colors) >= least

@pytest.mark.parametrize('width', [400, 1280])
def test_fits_a_phone_and_a_screen(browser, page, width):
    explorer = Explorer(browser.open(page, width))
    explorer.type('final_div', 'inf')
    assert browser.overflow <= 0 and browser.small_text == [] and browser.errors == []
    assert explorer.js('''
        const {left, right} = root.getBoundingClientRect();
        const isOutside = box => box.width && (box.left < left - 1 || box.right > right + 1);
        return all('*').filter(e => isOutside(e.getBoundingClientRect())).map(e => e.outerHTML)''') == []

@pytest.fixture
def server(page):
    "The address of the site on this machine; a browser keeps no record of what it loads from files."
    with serve(page.parent) as address: yield address

def test_nothing_comes_from_another_address_and_nothing_after_the_page(browser, page, server):
    browser.open(page).load(server)     # at the usual width
    explorer = Explorer(browser)
    def loaded():
        urls = explorer.js("return performance.getEntriesByType('resource').map(e => e.name)")
        return [url for url in urls if url != f'{server}favicon.ico']     # which the browser looks for by itself
    before = loaded()
    for name in NAMES: explorer.press(name, Keys.END)
    explorer.find('.cycle').send_keys(Keys.END)
    explorer.find('.call [type=button]').click()
    assert explorer.values['max_lr'] == '0.15' and any('explorer.js' in url for url in before)
    assert loaded() == before and all(url.startswith(server) for url in before)

def test_without_a_script_there_is_the_picture(browser, page):
    disable = partial(browser.driver.execute_cdp_cmd, 'Emulation.setScriptExecutionDisabled')
    disable(dict(value=True))
    try:
        browser.open(page, 400)
        explorer = Explorer(browser)
        image = explorer.find('img')
        assert 'learning rate rises' in image.get_dom_attribute('alt') and image.rect['width'] > 300
        assert explorer.driver.find_elements(By.CSS_SELECTOR, '.onecycle-explorer form') == []
    finally: disable(dict(value=False))

def test_index_and_tutorial_have_it_and_no_other_page_loads_it(page):
    with_it = {page, page.parent / 'tutorials/understanding_the_1cycle_policy.html'}
    assert {p for p in page.parent.rglob('*.html') if 'explorer.' in p.read_text(encoding='utf-8')} == with_it
    assert 'onecycle-explorer' not in (ROOT / 'README.md').read_text(encoding='utf-8')
