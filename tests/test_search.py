"""The site's search, in a browser: what people look for has its page first."""
from urllib.parse import quote

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from support.browser import POLL
from support.helpers import serve

pytestmark = pytest.mark.slow

SEARCHES = {
    'warmup': 'howto/faq', 'how many epochs': 'howto/faq', 'nan': 'howto/faq', 'adam': 'howto/faq',
    'learning rate finder': 'howto/choose_max_lr', 'lr_find': 'howto/choose_max_lr',
    'fine_tune': 'howto/discriminative_lrs',
    'gradient accumulation': 'howto/callbacks', 'mixed precision': 'howto/callbacks',
    'early stopping': 'howto/callbacks',
    'colab': 'howto/colab_and_kaggle', 'kaggle': 'howto/colab_and_kaggle', 'wandb': 'howto/log_the_lr',
    'weight decay': 'howto/weight_decay', 'resume': 'howto/resume_after_a_crash', 'slurm': 'howto/resume_after_a_crash',
    'multiple gpus': 'howto/several_processes', 'cosine annealing': 'howto/choose_a_shape',
    'momentum': 'tutorials/understanding_the_1cycle_policy', 'fit_one_cycle': 'learner'}

@pytest.fixture(scope='module')
def address(site):
    with serve(site) as address: yield address

def found(browser, address, words):
    "Return the pages that a search for `words` finds, best first."
    driver = browser.load(f'{address}search.html?q={quote(words)}').driver
    def summary(driver): return driver.find_element(By.CSS_SELECTOR, '.search-summary').text
    WebDriverWait(driver, 30, POLL).until(lambda driver: 'finished' in summary(driver) or 'match' in summary(driver))
    links = driver.find_elements(By.CSS_SELECTOR, 'ul.search li > a')
    return [link.get_attribute('href').removeprefix(address).partition('.html')[0] for link in links]

@pytest.mark.parametrize('words', SEARCHES)
def test_a_search_has_its_page_first(browser, address, words):
    assert found(browser, address, words)[:1] == [SEARCHES[words]]

def test_what_no_page_holds_is_not_found(browser, address): assert found(browser, address, 'zebra') == []

def test_the_page_for_contributors_is_not_found(browser, address):
    assert 'design' not in found(browser, address, 'module')
