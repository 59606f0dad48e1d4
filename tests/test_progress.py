"""The progress bar, the table and the graph show how far a cycle is, even if it doesn't begin with the first batch."""
import pytest
from fastai.basics import Callback
from fastai.callback import progress
from fastai.callback.progress import CSVLogger, ShowGraphCallback

from fastprogress import fastprogress

from support import interrupted
from support.helpers import Time
from support.interrupted import N_EPOCH, Interrupt, bars, epochs_shown, rows
from onecycle_callback import CycleCheckpoint

pytestmark = pytest.mark.matrix

N_BATCH = 30

def learner(path, **kwargs): return interrupted.learner(path, N_BATCH, **kwargs)

def interrupt(path, at, every=None, **kwargs):
    with pytest.raises(RuntimeError, match='interrupted'):
        learner(path).fit_one_cycle(N_EPOCH, .1, cbs=Interrupt(at), checkpoint=CycleCheckpoint('run1', every=every),
                                    **kwargs)

def resume(path, every=None, **kwargs):
    learner(path).fit_one_cycle(N_EPOCH, .1, checkpoint=CycleCheckpoint('run1', every=every), **kwargs)

def test_whole_cycle(tmp_path, capsys):
    learner(tmp_path).fit_one_cycle(N_EPOCH, .1)
    out = capsys.readouterr().out
    assert epochs_shown(out) == ['1/4', '2/4', '3/4', '4/4'] and rows(out) == [0, 1, 2, 3]

def test_resume_between_epochs(tmp_path, capsys):
    interrupt(tmp_path, at=2 * N_BATCH + 15)
    capsys.readouterr()
    resume(tmp_path)
    out = capsys.readouterr().out
    assert epochs_shown(out) == ['3/4', '4/4'] and rows(out) == [0, 1, 2, 3]
    assert bars(out)[:2] == [(3, 4, 0, N_BATCH), (3, 4, 1, N_BATCH)]

def test_resume_inside_an_epoch(tmp_path, capsys):
    interrupt(tmp_path, at=2 * N_BATCH + 15, every=7)     # saved last after 70 batches, 10 of them of the third epoch
    capsys.readouterr()
    resume(tmp_path, every=7)
    out = capsys.readouterr().out
    assert epochs_shown(out) == ['3/4', '4/4'] and rows(out) == [0, 1, 2, 3]
    assert bars(out)[:2] == [(3, 4, 0, N_BATCH), (3, 4, 11, N_BATCH)]

@pytest.mark.parametrize('every', [None, 7])
def test_resume_in_a_late_epoch(tmp_path, capsys, every):
    "fastprogress skips updates of a fast bar; the epochs that an earlier process trained must not make it seem one."
    def fit(cbs=None):
        interrupted.learner(tmp_path).fit_one_cycle(12, .1, cbs=cbs, checkpoint=CycleCheckpoint('run1', every=every))
    with pytest.raises(RuntimeError, match='interrupted'): fit(Interrupt(8 * interrupted.N_BATCH + 6))
    capsys.readouterr()
    fit()
    out = capsys.readouterr().out
    assert epochs_shown(out) == ['9/12', '10/12', '11/12', '12/12'] and rows(out) == list(range(12))

def test_parts_of_a_cycle(tmp_path, capsys):
    learn = learner(tmp_path)
    learn.fit_one_cycle(N_EPOCH, .1, stop_epoch=1)
    first = capsys.readouterr().out
    learn.fit_one_cycle(N_EPOCH, .1, start_epoch=1, stop_epoch=3)
    second = capsys.readouterr().out
    assert epochs_shown(first) == ['1/4'] and rows(first) == [0]
    assert epochs_shown(second) == ['2/4', '3/4'] and rows(second) == [1, 2]

def test_resume_a_part_of_a_cycle(tmp_path, capsys):
    interrupt(tmp_path, at=N_BATCH + 15, every=7, start_epoch=1, stop_epoch=3)     # in the second of the two epochs
    capsys.readouterr()
    resume(tmp_path, every=7, start_epoch=1, stop_epoch=3)
    out = capsys.readouterr().out
    assert epochs_shown(out) == ['3/4'] and rows(out) == [1, 2]
    assert bars(out)[:2] == [(3, 4, 0, N_BATCH), (3, 4, 13, N_BATCH)]

def test_resume_a_complete_cycle(tmp_path, capsys):
    learner(tmp_path).fit_one_cycle(N_EPOCH, .1, checkpoint='run1')
    capsys.readouterr()
    resume(tmp_path)
    out = capsys.readouterr().out
    assert 'is complete' in out and bars(out) == [] and rows(out) == [0, 1, 2, 3]

def test_rows_are_those_of_an_uninterrupted_run(tmp_path, capsys):
    def table(out): return [line.split()[:4] for line in out.replace('\r', '\n').splitlines() if rows(line)]
    learner(tmp_path).fit_one_cycle(N_EPOCH, .1)
    expected = table(capsys.readouterr().out)
    interrupt(tmp_path, at=2 * N_BATCH + 15, every=7)
    first = table(capsys.readouterr().out)
    resume(tmp_path, every=7)
    assert table(capsys.readouterr().out) == expected and first == expected[:2]

@pytest.mark.parametrize('every', [None, 7])
def test_graph(tmp_path, monkeypatch, every):
    "`ShowGraphCallback` draws the losses of the whole cycle, those of an earlier process too."
    graphs = []
    def update_graph(self, lines, x_bounds, y_bounds):
        graphs.append(([[list(x), [float(v) for v in y]] for x, y in lines], x_bounds))
    monkeypatch.setattr(progress.master_bar, 'update_graph', update_graph)      # a console shows no graph
    learner(tmp_path, cbs=ShowGraphCallback()).fit_one_cycle(N_EPOCH, .1)
    expected = graphs[:]
    assert [len(lines[1][0]) for lines, _ in expected] == [1, 2, 3, 4] and expected[-1][1] == (0, N_EPOCH * N_BATCH)
    keep = dict(checkpoint=CycleCheckpoint('run1', every=every))
    graphs.clear()
    with pytest.raises(RuntimeError, match='interrupted'):
        learner(tmp_path, cbs=[ShowGraphCallback(), Interrupt(2 * N_BATCH + 15)]).fit_one_cycle(N_EPOCH, .1, **keep)
    assert graphs == expected[:2]
    graphs.clear()
    learn = learner(tmp_path, cbs=ShowGraphCallback())
    learn.fit_one_cycle(N_EPOCH, .1, checkpoint=CycleCheckpoint('run1', every=every))
    assert graphs == expected[2:]

def test_csv_log(tmp_path):
    "The file of the resumed process holds each epoch once."
    with pytest.raises(RuntimeError, match='interrupted'):
        learner(tmp_path).fit_one_cycle(N_EPOCH, .1, cbs=[CSVLogger(), Interrupt(2 * N_BATCH + 15)],
                                        checkpoint=CycleCheckpoint('run1', every=7))
    log = CSVLogger()
    learn = learner(tmp_path, cbs=log)
    learn.fit_one_cycle(N_EPOCH, .1, checkpoint=CycleCheckpoint('run1', every=7))
    assert log.read_log().epoch.tolist() == [0, 1, 2, 3]

class Ticks(Callback):
    "Let a second pass with each training batch."
    order = -20
    def __init__(self, time): self.tell = lambda: time
    def after_batch(self): self.tell().now += self.training

@pytest.mark.parametrize('every, at', [(None, 4 * N_BATCH + 15), (7, 4 * N_BATCH + 17)])
def test_the_time_left_counts_what_this_process_trained(tmp_path, monkeypatch, every, at):
    shown, now = [], Time()
    monkeypatch.setattr('time.time', now)
    monkeypatch.setattr(fastprogress.ConsoleProgressBar, 'on_update', lambda self, val,
                        text: shown.append((self.total, val, text)))
    def fit(*cbs):
        learner(tmp_path).fit_one_cycle(6, .1, cbs=[Ticks(now), *cbs], checkpoint=CycleCheckpoint('run1', every=every))
    with pytest.raises(RuntimeError, match='interrupted'): fit(Interrupt(at))
    shown.clear()
    fit()
    def left(total):
        return {val: text.partition('<')[2].rstrip(']').partition('...')[0] for n, val, text in shown if n == total}
    epochs, batches = left(6), left(N_BATCH)
    # As long as what this process trained of the epoch before
    assert epochs[4] == '?' and epochs[5] == f'00:{30 if every is None else 17}'
    if every: assert batches[26] == '00:04' and batches[30] == '00:00'
