import os
import subprocess
import sys

os.environ.setdefault('OMP_NUM_THREADS', '1')     # two workers share the cores, and the tests' models are tiny

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import pytest

# These take longest, the longest first
FIRST = ('test_notebooks.py', 'test_site.py', 'test_distributed.py', 'test_stories.py', 'test_crash.py',
         'test_resume_state.py', 'test_runs.py', 'test_explorer.py', 'test_benchmarks.py', 'test_clock.py',
         'test_compare.py', 'test_nested.py', 'test_stream.py')

def is_first_case(item):
    "Whether each parameter has its first value. Not the first to be met: pytest-randomly shuffles the items."
    return not hasattr(item, 'callspec') or not any(item.callspec.indices.values())

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    "Make slow all but the first case of each test that is marked as a matrix; start with the files that take longest."
    for item in items:
        if item.get_closest_marker('matrix') and not is_first_case(item): item.add_marker('slow')
    order = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(FIRST)))     # which leaves the tests of a file in order

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The folder of the whole site, built from clean in a copy of the project."
    from support.helpers import copy_tree     # not above: the process that only starts the workers needs no fastai
    tree = copy_tree(tmp_path_factory.mktemp('site'))
    run = subprocess.run([sys.executable, '-m', 'docs'], cwd=tree, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return tree / '_docs/html'
