"""A save inside an epoch goes on in a thread: training doesn't wait, and the file holds the batch it was made at."""
import os
import signal
from functools import partial
from threading import Event, current_thread, main_thread
from time import sleep

import pytest
from fastai.basics import Adam, Callback, OptimWrapper, SGD, torch
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import Lookahead

from support.helpers import fork
from support.interrupted import N_EPOCH, Interrupt, assert_same, learner, results
from onecycle_callback import CycleCheckpoint
from onecycle_callback.resume import run

pytestmark = pytest.mark.matrix

AT, OPENS = 16, 19     # the batch of the save that is held up, and the one after which it goes on

class Gate(Callback):
    "Hold up the writes in a thread until batch `OPENS`, or for 20 seconds."
    order = 20_000
    def __init__(self, monkeypatch):
        self.opened, self.seen, self.write = Event(), [], run.write_file
        monkeypatch.setattr(run, 'write_file', self.held)
    def held(self, path, state):
        if current_thread() is not main_thread(): self.opened.wait(20)
        self.write(path, state)
        self.seen.append(('written', state['epoch'], state['done']))
    def after_batch(self):
        if not self.training: return
        self.seen.append(('trained', self.learn.epoch, self.learn.iter + 1))
        if self.train_iter == OPENS: self.opened.set()

def test_training_goes_on_meanwhile(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    learner(tmp_path).fit_one_cycle(N_EPOCH, .05, cbs=gate, checkpoint=CycleCheckpoint('run1', every=AT))
    assert gate.seen.index(('trained', 1, 7)) < gate.seen.index(('written', 1, 4)) < gate.seen.index(('written', 2, 0))

LEARNERS = {'Adam': learner, 'SGD': partial(learner, opt_func=partial(SGD, mom=.9)),
            'AdamW of torch': partial(learner, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)),
            'Lookahead': partial(learner, opt_func=lambda params, **kwargs: Lookahead(Adam(params, **kwargs), k=3)),
            'accumulated gradients': lambda path: learner(path, cbs=GradientAccumulation(12))}

@pytest.mark.parametrize('name', LEARNERS)
def test_holds_the_batch_it_was_saved_at(tmp_path, monkeypatch, name):
    "The fit is interrupted after four more batches, and the write is waited for."
    calm = LEARNERS[name](tmp_path)
    calm.fit_one_cycle(N_EPOCH, .05)
    expected = results(calm)
    with monkeypatch.context() as patches, pytest.raises(RuntimeError, match='interrupted'):
        gate = Gate(patches)
        LEARNERS[name](tmp_path).fit_one_cycle(N_EPOCH, .05, cbs=[gate, Interrupt(OPENS + 1)],
                                               checkpoint=CycleCheckpoint('run1', every=AT))
    assert gate.seen.index(('trained', 1, 7)) < gate.seen.index(('written', 1, 4))
    learn = LEARNERS[name](tmp_path)
    learn.fit_one_cycle(N_EPOCH, .05, checkpoint=CycleCheckpoint('run1', every=AT))
    assert_same(results(learn), expected)

def train_and_die(path, when):
    "Train, and kill this process in its first write in a thread: half-way, before the file is renamed, or after."
    replace = os.replace
    def replace_and_die(part, file):
        if current_thread() is main_thread(): return replace(part, file)
        if when == 'half': os.truncate(part, os.path.getsize(part) // 2)
        if when == 'after': replace(part, file)
        os.kill(os.getpid(), signal.SIGKILL)
    os.replace = replace_and_die
    learner(path).fit_one_cycle(N_EPOCH, .05, checkpoint=CycleCheckpoint('run1', every=AT))

@pytest.mark.slow
@pytest.mark.fork
@pytest.mark.sigkill
@pytest.mark.parametrize('when, place, left', [('half', 'epoch 1, batch 0', 1), ('before', 'epoch 1, batch 0', 1),
                                               ('after', 'epoch 1, batch 4', 0)])
def test_killed_inside_it(tmp_path, capsys, when, place, left):
    process = fork(train_and_die, tmp_path, when, out=tmp_path / 'out')
    process.join(120)
    assert process.exitcode == -signal.SIGKILL and len(list(tmp_path.glob('models/*.part'))) == left
    calm = learner(tmp_path)
    calm.fit_one_cycle(N_EPOCH, .05)
    expected = results(calm)
    learn = learner(tmp_path)
    capsys.readouterr()
    learn.fit_one_cycle(N_EPOCH, .05, checkpoint=CycleCheckpoint('run1', every=AT))
    assert f'resumes in {place}.' in capsys.readouterr().out
    assert_same(results(learn), expected)
    assert not list(tmp_path.glob('models/*.part'))

def test_the_next_save_waits(tmp_path, monkeypatch):
    places, now, write = [], [], run.write_file
    def slow(path, state):
        now.append(1)
        assert len(now) == 1
        sleep(.01)
        write(path, state)
        places.append((state['epoch'], state['done']))
        now.pop()
    monkeypatch.setattr(run, 'write_file', slow)
    learner(tmp_path).fit_one_cycle(2, .05, checkpoint=CycleCheckpoint('run1', every=1))
    assert places == sorted(places) and len(places) == 1 + 2 * (12 + 1) + 1

def test_an_error_is_a_warning_and_training_continues(tmp_path, monkeypatch):
    write = run.write_file
    def fail(path, state):
        if (state['epoch'], state['done']) == (1, 4): raise OSError('No space left on device')
        write(path, state)
    monkeypatch.setattr(run, 'write_file', fail)
    calm = learner(tmp_path)
    calm.fit_one_cycle(N_EPOCH, .05)
    expected, learn = results(calm), learner(tmp_path)
    message = "'run1' could not be saved at epoch 1, batch 4: No space left on device. Training continues"
    with pytest.warns(UserWarning, match=message):
        learn.fit_one_cycle(N_EPOCH, .05, checkpoint=CycleCheckpoint('run1', every=AT))
    assert_same(results(learn), expected)

def test_an_error_in_the_first_save_is_raised_before_training(tmp_path, monkeypatch):
    def fail(path, state): raise OSError('No space left on device')
    learn = learner(tmp_path)
    before = [p.clone() for p in learn.model.parameters()]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="'run1' cannot be written to .*: No space left"):
        patch.setattr(run, 'write_file', fail)
        learn.fit_one_cycle(N_EPOCH, .05, checkpoint='run1')
    assert_same([*learn.model.parameters()], before)
    learn.fit_one_cycle(N_EPOCH, .05, checkpoint='run1')

def test_an_error_in_the_last_save_is_told_after_an_interrupt(tmp_path, monkeypatch):
    write = run.write_file
    def fail(path, state):
        if state['done']: raise OSError('No space left on device')
        write(path, state)
    monkeypatch.setattr(run, 'write_file', fail)
    with pytest.warns(UserWarning, match='could not be saved at epoch 1, batch 4: No space'), \
         pytest.raises(KeyboardInterrupt):
        learner(tmp_path).fit_one_cycle(N_EPOCH, .05, cbs=Interrupt(AT, KeyboardInterrupt),
                                        checkpoint=CycleCheckpoint('run1', every=AT))
