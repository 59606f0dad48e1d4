import os
import signal
from multiprocessing import get_all_start_methods
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')     # two workers share the cores, and the tests' models are tiny

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import pytest
from filelock import FileLock

# These take longest, the longest first
FIRST = ('test_notebooks.py', 'test_site.py', 'test_distributed.py', 'test_compare.py', 'test_resume_state.py',
         'test_clock.py', 'test_explore.py', 'test_pages.py', 'test_explorer.py', 'test_runs.py',
         'test_resume_changes.py', 'test_checkpoint.py', 'test_stories.py', 'test_stream.py', 'test_crash.py',
         'test_nested.py', 'test_damage.py', 'test_benchmarks.py', 'test_search.py', 'test_position.py')

def is_first_case(item):
    "Whether each parameter has its first value. Not the first to be met: pytest-randomly shuffles the items."
    return not hasattr(item, 'callspec') or not any(item.callspec.indices.values())

# What some systems lack, by marker; `nox -s elsewhere` takes it away
NEEDED = dict(fork='fork' in get_all_start_methods(), sigkill=hasattr(signal, 'SIGKILL'), proc=Path('/proc').exists())

def pytest_runtest_setup(item):
    for name, is_here in NEEDED.items():
        if item.get_closest_marker(name) and not is_here: pytest.skip(f'needs {name}, which this system lacks')

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    "Make slow all but the first case of each test that is marked as a matrix; start with the files that take longest."
    for item in items:
        for name in {'fork', 'browser'} & {*item.fixturenames}: item.add_marker(name)
        if item.get_closest_marker('matrix') and not is_first_case(item): item.add_marker('slow')
    order = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(FIRST)))     # which leaves the tests of a file in order

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

@pytest.fixture(scope='module', autouse=True)
def one_thread_to_fork(request):
    "Let a file that forks train with one thread: a forked process has none of this one's others, and waits for them."
    items = (item for item in request.session.items if item.path == request.path)
    if not any(item.get_closest_marker('fork') for item in items): return (yield)
    import torch
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('OMP_NUM_THREADS', '1')     # for what is started, and compared with what is forked
        yield
    torch.set_num_threads(n_threads)

@pytest.fixture(scope='session', autouse=True)
def impatient_loaders():
    "Wait half a second for the workers of a loader that is given up, and not five: some don't end by themselves."
    from torch.utils.data import _utils
    with pytest.MonkeyPatch.context() as patch:
        for module in _utils, _utils.worker: patch.setattr(module, 'MP_STATUS_CHECK_INTERVAL', .5)
        yield

@pytest.fixture(scope='session', autouse=True)
def without_flushes():
    "Leave what is written to the system to write to the disk: tests kill processes, and never the machine."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'fsync', lambda descriptor: None)
        yield

@pytest.fixture(scope='session')
def fork():
    "Named by fixtures that start processes by `fork`: their tests have this marker."

@pytest.fixture(scope='session')
def site(tmp_path_factory, worker_id):
    "The folder of the whole site, built from clean in a copy of the project, once for all workers."
    from support import fresh
    from support.helpers import copy_tree     # not above: the process that only starts the workers needs no fastai
    base = tmp_path_factory.getbasetemp()
    tree = (base if worker_id == 'master' else base.parent) / 'site'
    with FileLock(f'{tree}.lock'):
        if not tree.exists():
            copy_tree(tree)
            run = fresh.module('docs', cwd=tree)
            (tree / 'built').write_text(f'{run.stdout}{run.stderr}\n{run.returncode}\n', encoding='utf-8')
    log = (tree / 'built').read_text(encoding='utf-8')
    assert log.endswith('\n0\n'), log
    return tree / '_docs/html'

@pytest.fixture(scope='session')
def browser():
    from support.browser import started
    with started() as browser: yield browser
