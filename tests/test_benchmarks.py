"""The benchmark runs and its columns make sense. No time is asserted."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

@pytest.mark.slow
def test_overhead(tmp_path):
    script = Path(__file__).parents[1] / 'benchmarks/overhead.py'
    run = subprocess.run([sys.executable, '-W', 'error::UserWarning', str(script), '--quick', '--json', 'o.json'], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / 'o.json').read_text())
    rows = found['us_per_batch']
    assert set(rows) == {f'{opt}, {n} groups' for opt in ('Adam', 'AdamW') for n in (1, 10, 100)}
    for row in rows.values(): assert {'OneCycle own', 'OneCycle whole', 'fastai own', 'empty whole', 'OneCycleLR own', 'floor own'} <= set(row)
    assert set(found['loop']) == {'fastai fit_one_cycle', 'fit_one_cycle', 'fit'}
    assert set(found['preview']) == {'plan', 'OneCycleLR loop'} and set(found['imports']) == {'fastai', 'onecycle_callback'}
    assert 'own / OneCycleLR' in run.stdout

@pytest.mark.slow
@pytest.mark.parametrize('args, shown', [(['--quick'], ['show, own curve', 'plot_sched', "torch's loop", 'a million batches / a thousand']),
                                         (['--train', '1000'], ['1,000 batches: the record', 'ratio'])], ids=str)
def test_scale(args, shown):
    script = Path(__file__).parents[1] / 'benchmarks/scale.py'
    run = subprocess.run([sys.executable, '-W', 'error::UserWarning', str(script), *args], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert all(words in run.stdout for words in shown)

@pytest.mark.slow
def test_saves(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / 'benchmarks')
    from saves import measure
    found = measure(2, n_recorded=10)
    assert list(found) == ['save', 'torch.save', 'flushed', 'stands still', 'copy', 'MB', 'torch.save MB'] and min(found.values()) > 0
