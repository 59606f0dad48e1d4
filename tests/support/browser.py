"""A browser that looks at the site's pages."""
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver.support.ui import WebDriverWait

POLL = .02     # seconds; Selenium's own, half a second, is longer than most of what it waits for

@contextmanager
def started():
    "Yield a browser without a window; skip the test, or fail where CI asks for one, if none is installed."
    from selenium import webdriver
    chrome, driver = shutil.which('chromium') or shutil.which('google-chrome'), shutil.which('chromedriver')
    if not (chrome and driver):
        reason = "needs a browser: Debian's chromium and chromium-driver are not installed"
        if os.environ.get('SITE_NEEDS_BROWSER'): pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for argument in ('--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--disable-dev-shm-usage'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try: yield Browser(driver)
    finally: driver.quit()

class Browser:
    "A browser window of a given width, in light or dark mode, and what it shows."
    def __init__(self, driver): self.driver, self.width = driver, None
    def js(self, code): return self.driver.execute_script(code)

    def open(self, file, width=1280, mode='light'):
        self.show(width, mode)
        self.driver.get_log('browser')
        return self.load(Path(file).as_uri())

    def load(self, url):
        "Load a page to its end: on busy cores, `get` may return while the page before is still shown."
        self.driver.get(url)
        loaded = 'return document.readyState === "complete" && location.href.startsWith(arguments[0])'
        WebDriverWait(self.driver, 60, POLL).until(lambda driver: driver.execute_script(loaded, url))
        self.js('document.documentElement.style.scrollBehavior = "auto"')     # a click doesn't wait for a smooth one
        return self

    def show(self, width, mode='light'):
        "Show the page in a window of another width, or in another mode, without loading it again."
        cdp = self.driver.execute_cdp_cmd
        cdp('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1, mobile=False))
        cdp('Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value=mode)]))
        self.width = width
        return self

    @property
    def errors(self):
        return [line['message'] for line in self.driver.get_log('browser') if line['level'] in ('SEVERE', 'WARNING')]

    @property
    def pictures(self):
        return self.js("""return [...document.querySelectorAll('article img')]
            .map(i => [i.alt, i.naturalWidth, i.getBoundingClientRect().width])""")

    @property
    def overflow(self): return self.js('return document.documentElement.scrollWidth') - self.width

    @property
    def scrolling(self):
        "What scrolls sideways within the page."
        return self.js("""return [...document.querySelectorAll('article *')]
            .filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth
                && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX))
            .map(e => e.className + ': ' + e.textContent.trim().slice(0, 60))""")

    @property
    def wrapped_code(self):
        "Lines of code that need more than one row."
        return self.js("""
            const code = [...document.querySelectorAll('article .cell_input pre, article .highlight-python pre')];
            return code.filter(e => {
                const style = getComputedStyle(e), px = name => parseFloat(style[name]);
                const rows = (e.clientHeight - px('paddingTop') - px('paddingBottom')) / px('lineHeight');
                return rows > e.textContent.trimEnd().split('\\n').length + .6;
            }).map(e => e.textContent.slice(0, 300))""")

    @property
    def cut_names(self):
        "The names in tables that a line breaks: on a phone within a word or a number, elsewhere at all."
        return self.js("""
            const top = (node, i) => {
                const range = document.createRange();
                range.setStart(node, i);
                range.setEnd(node, i + 1);
                return range.getBoundingClientRect().top;
            };
            const cut = new Set(), isPhone = innerWidth <= 46 * 16;
            const isWhole = pair => isPhone
                ? /^[a-zA-Z0-9]{2}|[0-9][.]|[.][0-9]/.test(pair) && !/[a-z][A-Z]/.test(pair) : /^[^ -][^ ]/.test(pair);
            for (const code of document.querySelectorAll('article td code, article th code')) {
                const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
                while (walker.nextNode()) {
                    const node = walker.currentNode, text = node.textContent;
                    if (top(node, 0) === top(node, text.length - 1)) continue;
                    for (let i = 1; i < text.length; i++) {
                        const isBroken = top(node, i) > top(node, i - 1) + 5;
                        if (isBroken && isWhole(text.slice(i - 1, i + 1))) cut.add(text);
                    }
                }
            }
            return [...cut]""")

    @property
    def requests(self):
        return self.js("""return performance.getEntriesByType('resource').map(e => e.name)
            .filter(url => !url.startsWith('file:') && !url.startsWith('data:'))""")

    @property
    def small_text(self):
        return self.js('''
            const walker = document.createTreeWalker(document.querySelector('article'), NodeFilter.SHOW_TEXT);
            const small = [];
            while (walker.nextNode()) {
                const text = walker.currentNode.textContent.trim(), parent = walker.currentNode.parentElement;
                if (text && !parent.closest('.headerlink, math, style, script')
                    && parseFloat(getComputedStyle(parent).fontSize) < 14) small.push(text);
            }
            return small''')

    def headings(self, level):
        return self.js(f"""return [...document.querySelectorAll('article h{level}')].map(h => {{
            h = h.cloneNode(true);
            h.querySelectorAll('.headerlink').forEach(a => a.remove());
            return h.textContent;
        }})""")
