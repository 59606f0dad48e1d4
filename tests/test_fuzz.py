"""Files of strangers, drawn at random, run nothing, touch nothing and are refused in words.

The benchmark draws 20,000."""
import pytest

from support.helpers import ROOT, fork_script
from support.pairs import all_cases

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.fork]

N_FILES = 1500 if all_cases() else 500

def test_files_of_strangers(tmp_path):
    "In a process of its own, since an audit hook stays for good."
    run = fork_script(ROOT / 'benchmarks/crash.py', '--strangers', N_FILES, '--seed', '1', cwd=tmp_path)
    figures = dict(line.split(': ', 1) for line in run.stdout.splitlines() if ': ' in line)
    assert run.returncode == 0, run.stderr
    assert int(figures['files']) == N_FILES and int(figures['refused']) > N_FILES * 2 / 3
    names = 'raw_errors', 'too_large', 'files_touched', 'calls_outside'
    assert {name: figures[name] for name in names} == dict.fromkeys(names, '0'), run.stdout
