"""The versions that are tested: `nox --list` names the sessions, `nox -s "tests(newest)"` runs one of them."""
import nox

nox.options.sessions = ['tests']

# The documentation is built with one set of versions, so its tests run in the pinned corner only.
DOCS_TESTS = ['test_docs.py', 'test_notebooks.py', 'test_site.py']

# Each torchvision is the one of its torch release. fastai.vision of 2.8.8 and before needs fasttransform 0.0.2;
# fastai 2.8.7 needs fastcore 1 and doesn't say so.
CORNERS = [
    nox.param('3.11', ['-c', 'constraints.txt', '-e', '.[dev]'], id='pinned'),
    nox.param('3.10', ['-e', '.[test]', 'torch==2.6.*', 'torchvision==0.21.*', 'fastai==2.8.8', 'fasttransform==0.0.2'],
              id='torch-2.6'),
    nox.param('3.12', ['-e', '.[test]', 'torch==2.11.*', 'torchvision==0.26.*', 'fastai==2.8.7', 'fasttransform==0.0.2',
                       'fastcore==1.14.5'], id='fastcore-1'),
    nox.param('3.13', ['-e', '.[test]'], id='newest'),
]


@nox.session
@nox.parametrize('python, requirements', CORNERS)
def tests(session, requirements):
    "Run the tests with the versions of one corner; arguments after `--` go to pytest."
    session.install(*requirements)
    session.run('pip', 'list')
    left_out = [] if '.[dev]' in requirements else [f'--ignore=tests/{name}' for name in DOCS_TESTS]
    session.run('pytest', '-rs', *left_out, *session.posargs)
