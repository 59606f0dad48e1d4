"""The main job as its user starts it."""
import subprocess
import sys

import pytest

def demo(*args, cwd): return subprocess.run([sys.executable, '-m', 'onecycle_callback', *args], cwd=cwd, capture_output=True, text=True)

def test_the_forums_call(tmp_path):
    first, second = demo(cwd=tmp_path), demo('--out', 'again.png', cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    rows = {r[0]: r[1:] for r in map(str.split, lines) if len(r) == 5 and r[0].isdigit() and r[4].count(':') == 0}
    assert rows['0'][0] == '0.0040' and rows['3'][0] == '0.1000' and rows['9'][1] == '0.0040'
    accuracy = [line for line in lines if line.startswith('validation accuracy')]
    assert float(accuracy[0].split()[-1]) >= .97
    assert accuracy == [line for line in second.stdout.splitlines() if line.startswith('validation accuracy')]
    assert 'recorded values equal the plan: yes, 220 of 220 batches' in lines
    assert (tmp_path / 'onecycle.png').read_bytes()[:4] == b'\x89PNG' and (tmp_path / 'again.png').exists()

def test_values_that_differ_end_in_1(tmp_path):
    code = "import sys; from onecycle_callback import demo, callback\nrecord = callback._BatchWriter.record\n" \
        "def off(self): record(self); self.hps['lr'][-1] += 1e-17 + self.hps['lr'][-1] * 1e-15\ncallback._BatchWriter.record = off\nsys.argv[1:] = ['--cycle_len', '1']\ndemo.main()"
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1 and 'recorded values equal the plan: NO' in run.stdout

@pytest.mark.parametrize('args, text', [
    (['--max_lr', 'abc'], 'max-lr: invalid float value'), (['--max_lr', '-1'], 'max_lr must be'), (['--pct_start', '1.5'], 'pct_start must be'), (['--div_factor', 'nan'], 'div_factor must be'),
    (['--cycle_len', '0'], 'cycle_len must be'), (['--bs', '0'], 'bs must be'), (['--bs', '5000'], 'at least one batch'), (['--seed', '-1'], 'seed must be'), (['--out', 'no/where.png'], 'out must be'),
    (['--out', 'a.doc'], 'out must end'), (['--nonsense'], 'unrecognized')])
def test_bad_values_end_in_one_line(args, text, tmp_path):
    run = demo(*args, cwd=tmp_path)
    assert run.returncode == 2 and run.stderr.count('\n') == 1 and text in run.stderr and 'Traceback' not in run.stderr

def test_help(tmp_path):
    run = demo('--help', cwd=tmp_path)
    assert run.returncode == 0 and 'Peak learning rate' in run.stdout
