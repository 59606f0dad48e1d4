"""The types that the package declares are true: mypy and Python accept the same calls, and refuse the same."""
import subprocess
import sys

import pytest

from support.helpers import ROOT, copy_tree
from typing_example import accepted, refused

def mypy(folder):
    "Return what mypy prints about the project in `folder`, an empty string if it finds nothing wrong."
    pytest.importorskip('mypy')
    command = [sys.executable, '-m', 'mypy', '--no-error-summary', '--cache-dir', ROOT / '.mypy_cache']
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return run.stdout + run.stderr

@pytest.mark.slow
def test_mypy_accepts_the_package_and_what_users_write(): assert mypy(ROOT) == ''

@pytest.mark.slow
def test_mypy_sees_what_is_false(tmp_path):
    "Another type, no type, a call that needn't be refused, and one that must be."
    tree, errors = copy_tree(tmp_path), []
    for file, old, new, error in [
            ('onecycle_callback/schedule.py', 'def lrs(self) -> np.ndarray:', 'def lrs(self) -> list:',
             'Expression is of type "list[Any]"'),
            ('onecycle_callback/schedule.py', 'def moms(self) -> np.ndarray|None:', 'def moms(self):',
             'Expression is of type "Any"'),
            ('tests/typing_example.py', 'OneCycle(moms=True)', 'OneCycle(moms=False)', 'Unused "type: ignore" comment'),
            ('tests/typing_example.py', 'make(moms=False)', 'make(moms=True)', 'Argument "moms"')]:
        text = (tree / file).read_text(encoding='utf-8')
        assert old in text
        (tree / file).write_text(text.replace(old, new), encoding='utf-8')
        errors.append(error)
    found = mypy(tree)
    assert [error for error in errors if error not in found] == [], found

def test_python_accepts_what_mypy_accepts(): accepted()

@pytest.mark.parametrize('name', refused)
def test_python_refuses_what_mypy_refuses(name):
    with pytest.raises((TypeError, ValueError)): refused[name]()
