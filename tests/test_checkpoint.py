"""A cycle that is interrupted and run again ends with the same bits; a file that isn't its own is refused and kept."""
import os
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.basics import Callback, DataLoader, L, OptimWrapper, Adam, SGD
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import ParamScheduler, combined_cos
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import Lookahead
from torch import nn

from support.helpers import frozen_state
from support.interrupted import N_BATCH, N_EPOCH, Interrupt, assert_same, items, learner, results
from onecycle_callback import CycleCheckpoint

pytestmark = pytest.mark.matrix

def with_training_metrics(path):
    learn = learner(path)
    learn.recorder.train_metrics = True
    return learn

LEARNERS = {'Adam': learner,
            'SGD': partial(learner, opt_func=partial(SGD, mom=.9)),
            'AdamW of torch': partial(learner, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW)),
            'RMSprop of torch': partial(learner, opt_func=partial(OptimWrapper, opt=torch.optim.RMSprop)),
            'Lookahead': partial(learner, opt_func=lambda params, **kwargs: Lookahead(Adam(params, **kwargs), k=3)),
            'two workers': partial(learner, workers=2),
            'loader of torch': partial(learner, torch_loader=True),
            'training metrics': with_training_metrics,
            'CSV log': lambda path: learner(path, cbs=CSVLogger())}

@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    "The results of an uninterrupted cycle of a Learner of `LEARNERS`, each computed once."
    @cache
    def run(name):
        learn = LEARNERS[name](tmp_path_factory.mktemp('uninterrupted'))
        learn.fit_one_cycle(N_EPOCH, .05)
        return results(learn)
    return run

def interrupt(make, path, at, every=None, cbs=None, error=RuntimeError, **kwargs):
    "A Learner whose cycle was interrupted after batch `at`."
    learn = make(path)
    with pytest.raises(error, match='interrupted'):
        learn.fit_one_cycle(N_EPOCH, .05, cbs=L(cbs) + Interrupt(at, error),
                            checkpoint=CycleCheckpoint('run1', every=every), **kwargs)
    return learn

def resume(make, path, every=None, **kwargs):
    "A new Learner with which the same call was run again."
    learn = make(path)
    torch.rand(3)
    learn.fit_one_cycle(N_EPOCH, .05, checkpoint=CycleCheckpoint('run1', every=every), **kwargs)
    return learn

@pytest.mark.parametrize('every, at', [(None, 1), (None, 12), (None, 30), (None, 48), (1, 1), (30, 30), (4, 12), (7, 3),
                                       (7, 30), (7, 47), (8, 48)])
def test_ends_with_the_same_bits(uninterrupted, tmp_path, every, at):
    interrupt(learner, tmp_path, at, every)
    assert_same(results(resume(learner, tmp_path, every)), uninterrupted('Adam'))

@pytest.mark.parametrize('name', list(LEARNERS)[1:])
def test_every_learner(uninterrupted, tmp_path, name):
    interrupt(LEARNERS[name], tmp_path, 30, 7)
    assert_same(results(resume(LEARNERS[name], tmp_path, 7)), uninterrupted(name))

@pytest.mark.slow
def test_workers_between_epochs(uninterrupted, tmp_path):
    interrupt(LEARNERS['two workers'], tmp_path, 30)
    assert_same(results(resume(LEARNERS['two workers'], tmp_path)), uninterrupted('two workers'))

@pytest.mark.parametrize('hidden', [('no_bar',), ('no_logging',), ('no_bar', 'no_logging')])
def test_without_bar_or_table(uninterrupted, tmp_path, hidden):
    "Removing them changes nothing else."
    with pytest.raises(RuntimeError, match='interrupted'), ExitStack() as stack:
        first = learner(tmp_path)
        for name in hidden: stack.enter_context(getattr(first, name)())
        first.fit_one_cycle(N_EPOCH, .05, cbs=Interrupt(30), checkpoint=CycleCheckpoint('run1', every=7))
    learn = learner(tmp_path)
    with ExitStack() as stack:
        for name in hidden: stack.enter_context(getattr(learn, name)())
        learn.fit_one_cycle(N_EPOCH, .05, checkpoint=CycleCheckpoint('run1', every=7))
    assert_same(results(learn), uninterrupted('Adam'))

@pytest.mark.parametrize('every, at', [(None, 30), (7, 30), (1, 5)])
def test_the_same_learner_again(uninterrupted, tmp_path, every, at):
    "Press Ctrl-C and run the same cell of a notebook again, but not the one that made the Learner."
    learn = interrupt(learner, tmp_path, at, every, error=KeyboardInterrupt)
    learn.fit_one_cycle(N_EPOCH, .05, checkpoint=CycleCheckpoint('run1', every=every))
    assert_same(results(learn), uninterrupted('Adam'))

def test_interrupted_twice(uninterrupted, tmp_path):
    interrupt(learner, tmp_path, 16, 7)
    interrupt(learner, tmp_path, 30, 7)
    assert_same(results(resume(learner, tmp_path, 7)), uninterrupted('Adam'))

@pytest.mark.parametrize('every, at', [(None, 18), (7, 18)])
def test_part_of_a_cycle(tmp_path, every, at):
    "The middle epochs of a cycle, interrupted in the second of them."
    part = dict(start_epoch=1, stop_epoch=3)
    calm = learner(tmp_path)
    calm.fit_one_cycle(N_EPOCH, .05, **part)
    expected = results(calm)
    interrupt(learner, tmp_path, at, every, **part)
    assert_same(results(resume(learner, tmp_path, every, **part)), expected)

def test_callbacks_carry_their_state(tmp_path):
    "Gradients that wait, the best loss, the patience used up, another schedule's record."
    def cbs(): return [GradientAccumulation(20), SaveModelCallback(fname='best'), EarlyStoppingCallback(patience=30),
                       ParamScheduler(dict(wd=combined_cos(.3, 0., .1, .01)))]
    calm = learner(tmp_path)
    calm.fit_one_cycle(N_EPOCH, .05, cbs=cbs())
    expected = results(calm)
    interrupt(learner, tmp_path, 30, 4, cbs())
    again = resume(learner, tmp_path, 4, cbs=cbs())
    assert_same(results(again), expected)
    assert len(again.recorder.hps['wd']) == N_EPOCH * N_BATCH

def test_early_stop_is_an_end(tmp_path, capsys):
    def fit(**kwargs):
        learn = learner(tmp_path)
        learn.fit_one_cycle(8, .05, cbs=EarlyStoppingCallback(monitor='accuracy', comp=np.less, patience=2), **kwargs)
        return len(learn.recorder.losses)
    with pytest.warns(UserWarning, match='The cycle was'): n = fit()
    assert n < 8 * N_BATCH
    with pytest.warns(UserWarning, match='The cycle was'): assert fit(checkpoint='run1') == n
    assert 'ended early' not in capsys.readouterr().out
    assert fit(checkpoint='run1') == n
    assert 'ended early' in capsys.readouterr().out

class Seen(Callback):
    "Note the position of each batch in a list of the caller's, so that nothing is restored from an earlier process."
    def __init__(self, places): self._see = places.append
    def after_pred(self): self._see((self.epoch, self.iter)) if self.training else None

class Count(Callback):
    "Note the same in attributes, which are restored, and count the batches of the running epoch."
    def __init__(self): self.places, self.per_epoch = [], 0
    def before_epoch(self): self.per_epoch = 0
    def after_batch(self):
        if self.training: self.places.append((self.epoch, self.iter)); self.per_epoch += 1

def test_trained_batches_are_shown_to_nobody(tmp_path):
    places, count = [], Count()
    interrupt(learner, tmp_path, 30, 7, [Count(), Seen([])])
    resume(learner, tmp_path, 7, cbs=[count, Seen(places)])
    everything = [(epoch, i) for epoch in range(N_EPOCH) for i in range(N_BATCH)]
    assert places == everything[28:] and count.places == everything and count.per_epoch == N_BATCH

def test_the_starting_point_is_kept_too(tmp_path):
    "Without a seed, a crash in the first epoch does not lose the first weights."
    first = learner(tmp_path)
    weights = [p.clone() for p in first.model.parameters()]
    interrupt(lambda _: first, tmp_path, 3)
    class Look(Callback):
        order = 20_000
        def before_epoch(self):
            if self.epoch == 0: self.weights = [p.clone() for p in self.model.parameters()]
    look, again = Look(), learner(tmp_path)
    again.model[0].reset_parameters()
    resume(lambda _: again, tmp_path, cbs=look)
    assert all(map(torch.equal, weights, look.weights))

def test_a_complete_cycle_is_not_trained_again(tmp_path, capsys):
    learn = learner(tmp_path)
    learn.fit_one_cycle(2, .05, checkpoint='run1')
    expected, modified = results(learn), (tmp_path / 'models/run1.cycle').stat().st_mtime_ns
    again = learner(tmp_path)
    again.fit_one_cycle(2, .05, checkpoint='run1')
    assert 'is complete' in capsys.readouterr().out
    assert_same(results(again), expected)
    assert (tmp_path / 'models/run1.cycle').stat().st_mtime_ns == modified
    again.recorder.plot_lr()

def test_restart(tmp_path):
    count = Count()
    learner(tmp_path).fit_one_cycle(1, .05, checkpoint='run1')
    learner(tmp_path).fit_one_cycle(1, .05, cbs=count, checkpoint=CycleCheckpoint('run1', restart=True))
    assert len(count.places) == N_BATCH

def test_learner_is_as_before(tmp_path):
    learn = learner(tmp_path)
    attributes, callbacks = {*vars(learn)}, [*map(id, learn.cbs)]
    learn.fit_one_cycle(1, .05)
    plain = {*vars(learn)} - attributes
    learn = learner(tmp_path)
    attributes, callbacks = {*vars(learn)}, [*map(id, learn.cbs)]
    learn.fit_one_cycle(1, .05, checkpoint='run1')
    assert {*vars(learn)} - attributes == plain and [*map(id, learn.cbs)] == callbacks
    learn.fit_one_cycle(1, .05)
    assert os.listdir(tmp_path / 'models') == ['run1.cycle']

def refused(learn, error, match, call=dict(cycle_len=1, max_lr=.05, checkpoint='run1')):
    "Check that the call raises, and leaves `learn` unchanged."
    before = frozen_state(learn)
    with pytest.raises(error, match=match): learn.fit_one_cycle(**call)
    assert frozen_state(learn) == before

@pytest.fixture(scope='module')
def complete(tmp_path_factory):
    "The folder of a complete cycle, to be looked at only."
    path = tmp_path_factory.mktemp('complete')
    learner(path).fit_one_cycle(2, .05, checkpoint='run1')
    return path

@pytest.mark.parametrize('name, call, kwargs', [
    ('max_lr', dict(max_lr=.06), {}), ('cycle_len', dict(cycle_len=3), {}), ('pct_start', dict(pct_start=.4), {}),
    ('wd', dict(wd=.1), {}),
    ('stop_epoch', dict(stop_epoch=1), {}), ('anneal', dict(anneal='linear'), {}), ('n_batch', {}, dict(n_batch=11)),
    ('optimizer', {}, dict(opt_func=SGD))])
def test_other_work_is_refused(complete, name, call, kwargs):
    content = (complete / 'models/run1.cycle').read_bytes()
    refused(learner(complete, **kwargs), ValueError, rf"checkpoint 'run1' .*{name}: .* in the file, .* now",
            dict(cycle_len=2, max_lr=.05, checkpoint='run1') | call)
    assert (complete / 'models/run1.cycle').read_bytes() == content

def test_another_model_is_refused(complete):
    learn = learner(complete)
    learn.model[0] = nn.Linear(6, 16, bias=False)
    refused(learn, ValueError, r'model 0\.bias: torch.float32 \(16,\) in the file, nothing now',
            dict(cycle_len=2, max_lr=.05, checkpoint='run1'))

class Evil:
    def __reduce__(self): return os.mkdir, ('evil_code_ran',)

def evil(path): torch.save(dict(format=Evil()), path)
def truncated(path): path.write_bytes(path.read_bytes()[:-300])
def empty(path): path.write_bytes(b'')
def foreign(path): torch.save(dict(model=torch.ones(3)), path)
def text(path): path.write_text('my notes', encoding='utf-8')

@pytest.mark.parametrize('spoil, why', [(evil, 'is damaged or was made by something else'), (truncated, 'is damaged'),
                                        (empty, 'it is empty'), (foreign, 'was made by something else'),
                                        (text, 'is damaged')])
@pytest.mark.parametrize('restart', [False, True])
def test_a_file_that_is_no_checkpoint(complete, tmp_path, monkeypatch, spoil, why, restart):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'models/run1.cycle'
    path.parent.mkdir()
    path.write_bytes((complete / 'models/run1.cycle').read_bytes())
    spoil(path)
    content = path.read_bytes()
    refused(learner(tmp_path), ValueError, rf'run1\.cycle.*{why}.*Move it away',
            dict(cycle_len=2, max_lr=.05, checkpoint=CycleCheckpoint('run1', restart=restart)))
    assert path.read_bytes() == content and not Path('evil_code_ran').exists()

def test_the_evil_file_is_evil(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil(tmp_path / 'file')
    torch.load(tmp_path / 'file', weights_only=False)
    assert Path('evil_code_ran').exists()

def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'models').write_text('a file where the folder should be', encoding='utf-8')
    refused(learner(tmp_path), OSError, "checkpoint 'run1' cannot be written in .*models")

def test_a_disk_without_room(tmp_path, monkeypatch):
    usage = type('Usage', (), dict(free=10))
    monkeypatch.setattr('shutil.disk_usage', lambda _: usage)
    refused(learner(tmp_path), OSError, '10 bytes are free and the weights alone take')

@pytest.mark.parametrize('bad, error, why', [(7, TypeError, 'a name or a CycleCheckpoint, got 7'),
                                             ('', ValueError, 'a name without (a )?folder'),
                                             ('a/b', ValueError, "got 'a/b'"), ('..', ValueError, 'name')])
def test_bad_names(tmp_path, bad, error, why):
    refused(learner(tmp_path), error, f'checkpoint must .*{why}', dict(cycle_len=1, checkpoint=bad))

@pytest.mark.parametrize('kwargs, error, why', [(dict(every=0), ValueError, 'every must .*got 0'),
                                                (dict(every=1.5), TypeError, 'every must .*got 1.5'),
                                                (dict(restart=1), TypeError, 'restart must .*got 1')])
def test_bad_arguments(kwargs, error, why):
    with pytest.raises(error, match=why): CycleCheckpoint('run1', **kwargs)

def test_not_as_a_callback_of_a_cycle(tmp_path):
    refused(learner(tmp_path), ValueError, 'give it as checkpoint', dict(cycle_len=1, cbs=CycleCheckpoint('run1')))

def test_not_as_a_callback_of_a_fit(tmp_path):
    with pytest.raises(ValueError, match='works through fit_one_cycle'):
        learner(tmp_path).fit(1, cbs=CycleCheckpoint('run1'))

def test_what_cannot_be_carried_is_named_once(tmp_path):
    class Odd(Callback):
        def before_fit(self): self.stream = (i for i in range(1000))
        def after_batch(self): next(self.stream, None)
    with pytest.warns(UserWarning, match=r'does not hold Odd\.stream') as caught:
        learner(tmp_path).fit_one_cycle(3, .05, cbs=Odd(), checkpoint='run1')
    assert sum('Odd.stream' in str(w.message) for w in caught) == 1

def test_persistent_workers_are_named(tmp_path):
    learn = learner(tmp_path)
    learn.dls.loaders[0] = DataLoader(items(46), bs=4, num_workers=1, persistent_workers=True)
    with pytest.warns(UserWarning, match='persistent_workers'): learn.fit_one_cycle(1, .05, checkpoint='run1')

def fine_tuned(path, **kwargs):
    learn = learner(path, splitter=lambda m: [list(m[:4].parameters()), list(m[4:].parameters())])
    learn.fine_tune(2, .05, **kwargs)
    return results(learn)

@pytest.fixture(scope='module')
def uninterrupted_fine_tune(tmp_path_factory): return fine_tuned(tmp_path_factory.mktemp('fine_tune'))

@pytest.mark.parametrize('at', [6, 18, 30],
                         ids=['while groups are frozen', 'in the first epoch of the whole model', 'in its second'])
def test_fine_tune(uninterrupted_fine_tune, tmp_path, at):
    n = 0
    class InterruptOnce(Callback):
        "Interrupt after batch `at` of both cycles."
        order = 20_000
        def after_batch(self):
            nonlocal n
            n += self.training
            if self.training and n == at: raise RuntimeError('interrupted')
    with pytest.raises(RuntimeError, match='interrupted'):
        fine_tuned(tmp_path, cbs=InterruptOnce(), checkpoint=CycleCheckpoint('run1', every=4))
    assert_same(fine_tuned(tmp_path, checkpoint=CycleCheckpoint('run1', every=4)), uninterrupted_fine_tune)
    assert sorted(os.listdir(tmp_path / 'models')) == ['run1.cycle', 'run1_frozen.cycle']
