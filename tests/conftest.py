import os
import subprocess
import sys

os.environ.setdefault('OMP_NUM_THREADS', '1')     # two workers share the cores, and the tests' models are tiny

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    "Make slow all but the first case of each test that is marked as a matrix."
    seen = set()
    for item in items:
        test = item.nodeid.partition('[')[0]
        if item.get_closest_marker('matrix') and test in seen: item.add_marker('slow')
        seen.add(test)

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The folder of the whole site, built from clean in a copy of the project."
    from helpers import copy_tree     # not above: the process that only starts the workers needs no fastai
    tree = copy_tree(tmp_path_factory.mktemp('site'))
    run = subprocess.run([sys.executable, '-m', 'docs'], cwd=tree, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return tree / '_docs/html'
