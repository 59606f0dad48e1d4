"""Files of strangers, drawn at random, run nothing, touch nothing and are refused in words.

The benchmark draws 20,000."""
import subprocess
import sys

import pytest

from support.helpers import ROOT

pytestmark = pytest.mark.slow

def test_files_of_strangers(tmp_path):
    "In a process of its own, since an audit hook stays for good."
    command = [sys.executable, ROOT / 'benchmarks/crash.py', '--strangers', '1500', '--seed', '1']
    run = subprocess.run(command, cwd=tmp_path,
                         capture_output=True, text=True)
    figures = dict(line.split(': ', 1) for line in run.stdout.splitlines() if ': ' in line)
    assert run.returncode == 0, run.stderr
    assert int(figures['files']) == 1500 and int(figures['refused']) > 1000
    names = 'raw_errors', 'too_large', 'files_touched', 'calls_outside'
    assert {name: figures[name] for name in names} == dict.fromkeys(names, '0'), run.stdout
