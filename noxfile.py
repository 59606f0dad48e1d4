"""What one environment can't test: `nox --list` names the sessions, `nox -s "tests(newest)"` runs one of them."""
import os
import shutil
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory

import nox

nox.options.sessions = ['tests']

# The documentation is built with one set of versions, so its tests run in the pinned corner only.
DOCS_TESTS = [f'test_{name}.py' for name in ('docs', 'notebooks', 'pages', 'site', 'explorer', 'search')]

# Each torchvision is the one of its torch release. What fastai 2.8.7 and 2.8.8 need and don't declare is in
# nbs/howto/versions.ipynb.
CORNERS = [
    nox.param('3.11', ['-c', 'constraints.txt', '-e', '.[dev]'], id='pinned'),
    nox.param('3.10', ['-e', '.[test]', 'torch==2.6.*', 'torchvision==0.21.*', 'fastai==2.8.8', 'fasttransform==0.0.2',
                       'plum-dispatch<2.10'], id='torch-2.6'),
    nox.param('3.12', ['-e', '.[test]', 'torch==2.11.*', 'torchvision==0.26.*', 'fastai==2.8.7', 'fasttransform==0.0.2',
                       'plum-dispatch<2.10', 'fastcore==1.14.5'], id='fastcore-1'),
    nox.param('3.13', ['-e', '.[test]'], id='newest'),
    nox.param('3.14', ['-e', '.[test]'], id='python-3.14'),   # not tried yet
]


@nox.session
@nox.parametrize('python, requirements', CORNERS)
def tests(session, requirements):
    "Run the tests with the versions of one corner; arguments after `--` go to pytest."
    session.install(*requirements)
    session.run('pip', 'list')
    left_out = [] if '.[dev]' in requirements else [f'--ignore=tests/{name}' for name in DOCS_TESTS]
    session.run('pytest', '-rs', *left_out, *session.posargs)


# Other processors, numbers of threads, loads and orders

CPUS = [*(nox.param(cpu, n_threads, 0, id=f'{cpu or "native"}-{n_threads}')
          for cpu in ('default', 'avx2', None) for n_threads in (1, 4)),
        nox.param(None, 1, os.cpu_count(), id='busy')]

@nox.session(venv_backend='none')
@nox.parametrize('cpu, n_threads, n_loops', CPUS)
def cpus(session, cpu, n_threads, n_loops):
    "Run the tests in the environment of nox with the instructions of another x86 processor, or beside busy loops."
    with ExitStack() as loops:
        for _ in range(n_loops): loops.callback(Popen([sys.executable, '-c', 'while True: pass']).kill)
        session.run(sys.executable, '-m', 'pytest', '-rs', *session.posargs,
                    # On fewer cores than threads, those that wait would take the time of those they wait for
                    env=dict(ATEN_CPU_CAPABILITY=cpu, OMP_NUM_THREADS=str(n_threads), OMP_WAIT_POLICY='passive'))


@nox.session(python='3.11')
def random(session):
    "Run each file of tests by itself, in three random orders."
    session.install('-c', 'constraints.txt', '-e', '.[dev]', 'pytest-randomly')
    for seed in 1, 2, 3:
        for path in sorted(Path('tests').glob('test_*.py')):
            session.run('pytest', '-n', '0', f'--randomly-seed={seed}', str(path), *session.posargs,
                        success_codes=[0, 5])     # 5: `-m "not slow"` leaves none


@nox.session(venv_backend='none')
def elsewhere(session):
    "Run the quick tests without `fork` and SIGKILL, as on Windows; tests/support/elsewhere.py takes them away."
    session.run(sys.executable, '-m', 'pytest', '-m', 'not slow', '-p', 'tests.support.elsewhere', '-rs',
                *session.posargs, env=dict(PYTHONPATH='.'))


@nox.session(venv_backend='none')
def gpu(session):
    "Run the tests that need a GPU, and the quick ones with the training of each Learner on it."
    session.run(sys.executable, '-m', 'pytest', '-rs', 'tests/test_gpu.py', *session.posargs)
    session.run(sys.executable, '-m', 'pytest', '-m', 'not slow', '-p', 'tests.support.on_gpu', '-rs',
                '--ignore=tests/test_gpu.py', *session.posargs, env=dict(PYTHONPATH='.'))


@nox.session(python='3.11')
def all_cases(session):
    "Run all cases of each matrix; `pytest` runs as many as tests/support/pairs.py chooses."
    session.install('-c', 'constraints.txt', '-e', '.[dev]')
    session.run('pytest', '-m', 'matrix', *session.posargs, env=dict(ALL_CASES='1'))


# Other libraries that train through fastai

CLIENTS = [
    nox.param('3.11', ['tsai==1.0.1', 'pyts<0.14'], id='tsai'),   # tsai imports pyts.image.gaf, which pyts 0.14 lacks
    nox.param('3.11', ['autogluon.tabular[fastai]==1.6.3'], id='autogluon'),   # brings fastai 2.8.7 with fastcore 1
    nox.param('3.11', ['fastxtend==0.1.7'], id='fastxtend'),
    nox.param('3.11', ['mlflow==2.22.5'], id='mlflow'),   # MLflow 3 has no fastai any more
    nox.param('3.11', ['wandb==0.31.0', 'tensorboard', 'optuna==5.0.0', 'optuna-integration==5.0.0'], id='wandb'),
]


@nox.session
@nox.parametrize('python, requirements', CLIENTS)
def clients(session, requirements):
    "Run the tests of one client, alongside the newest of everything that it accepts."
    session.install('-e', '.[test]', *requirements)
    session.run('pip', 'list')
    name = requirements[0].split('=')[0].split('.')[0]
    session.run('pytest', '-rs', f'tests/clients/test_{name}.py', *session.posargs)


# What is published

@nox.session(python='3.11')
def release(session):
    """Build the release into dist/ and try it: the wheel in an empty environment, the tests in the unpacked sdist.

    An argument after `--` is the tag of the release, such as `v1.2.3`: it must match the version and CHANGELOG.md."""
    checkout = Path.cwd()
    shutil.rmtree('dist', ignore_errors=True)
    session.install('-c', 'constraints.txt', 'build', 'twine', 'mypy')
    session.run('python', '-m', 'build')
    sdist, wheel = next(Path('dist').glob('*.tar.gz')).resolve(), next(Path('dist').glob('*.whl')).resolve()
    session.run('twine', 'check', '--strict', str(sdist), str(wheel))
    with TemporaryDirectory() as folder, session.chdir(folder):
        session.run('python', '-m', 'venv', 'empty')
        python = str(Path('empty/bin/python').absolute())
        session.run(python, '-m', 'pip', 'uninstall', '-q', '-y', 'setuptools', external=True)
        session.run(python, '-m', 'pip', 'install', '-q', '-c', str(checkout / 'constraints.txt'), str(wheel), external=True)
        session.run(python, str(checkout / 'tests/check_release.py'), str(checkout), *session.posargs, external=True)
        shutil.copy(checkout / 'tests/typing_example.py', folder)
        session.run('mypy', '--strict', '--python-executable', python, 'typing_example.py')
        with tarfile.open(sdist) as tar: tar.extractall(folder, filter='data')
        session.chdir(sdist.name.removesuffix('.tar.gz'))
        session.install('-c', 'constraints.txt', '.[dev]')
        session.run('pytest', '-m', 'not slow')
