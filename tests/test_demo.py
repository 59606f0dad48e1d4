"""The demo as users start it: `onecycle-demo`, or `python -m onecycle_callback`."""
import math
import subprocess
import sys

import pytest
from fastai.learner import Learner

from support import fresh
from onecycle_callback import demo

@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    "Run the command line with `args` in an empty folder; return its exit code, and its lines on stdout and stderr."
    monkeypatch.chdir(tmp_path)
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['onecycle-demo', *args])
        try: code = demo.main()
        except SystemExit as stopped: code = stopped.code
        out, err = capsys.readouterr()
        return code or 0, out.splitlines(), err.splitlines()
    return run

def process(*args, cwd): return fresh.module('onecycle_callback', *args, cwd=cwd)

def own_lines(lines): return [line for line in lines if line.startswith('onecycle-demo: ')]

@pytest.mark.slow
def test_the_forums_call(run, tmp_path):
    command = [sys.executable, '-m', 'onecycle_callback']     # this one as users start it
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    rows = {r[0]: r[1:] for r in map(str.split, lines) if len(r) == 5 and r[0].isdigit() and r[4].count(':') == 0}
    assert rows['0'][0] == '0.0040' and rows['3'][0] == '0.1000' and rows['9'][1] == '0.0040'
    accuracy = [line for line in lines if line.startswith('validation accuracy')]
    assert float(accuracy[0].split()[-1]) >= .97
    assert 'recorded values equal the plan: yes, 220 of 220 batches' in lines
    code, again, _ = run('--out', 'again.png')
    assert code == 0 and accuracy == [line for line in again if line.startswith('validation accuracy')]
    assert (tmp_path / 'onecycle.png').read_bytes()[:4] == b'\x89PNG' and (tmp_path / 'again.png').exists()

def test_values_that_differ_end_in_1(run, monkeypatch):
    fit = Learner.fit_one_cycle
    def fit_and_falsify(self, *args, **kwargs):
        fit(self, *args, **kwargs)
        rates = self.recorder.hps['lr']
        rates[-1] = math.nextafter(rates[-1], 1)
    monkeypatch.setattr(Learner, 'fit_one_cycle', fit_and_falsify)
    code, out, _ = run('--cycle_len', '1')
    assert code == 1 and any(line.startswith('recorded values equal the plan: NO') for line in out)

BAD = [(['--max_lr', 'abc'], 'max-lr: invalid float value'), (['--max_lr', '-1'], 'max_lr must be'),
       (['--pct_start', '1.5'], 'pct_start must be'),
       (['--div_factor', 'nan'], 'div_factor must be'), (['--cycle_len', '0'], 'cycle_len must be'),
       (['--bs', '0'], 'bs must be'),
       (['--bs', '5000'], 'at least one batch'), (['--seed', '-1'], 'seed must be'),
       (['--out', 'no/where.png'], 'out must be'),
       (['--out', 'a.doc'], 'out must end'), (['--nonsense'], 'unrecognized')]

@pytest.mark.parametrize('args, text', BAD)
def test_a_bad_value_is_one_line_and_nothing_is_trained(run, args, text):
    code, out, err = run(*args)
    assert code == 2 and out == [] and err == own_lines(err) and len(err) == 1
    assert text.replace('-', '_') in err[0].replace('-', '_')      # fastcore 1 spells flags with _

@pytest.mark.slow
def test_a_bad_value_as_a_process_sees_it(tmp_path):
    run = process('--bs', '0', cwd=tmp_path)
    assert run.returncode == 2 and run.stdout == '' and 'Traceback' not in run.stderr
    assert len(own_lines(run.stderr.splitlines())) == 1      # torch and fastai may add warnings

def test_help(run):
    code, out, _ = run('--help')
    assert code == 0 and 'Peak learning rate' in '\n'.join(out)
