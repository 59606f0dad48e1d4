"""`recorder.hps` and the optimizer's momentum, however a fit ends."""
import warnings

import pytest
import torch
from torch import nn
from fastai.basics import Adam, Callback, CancelFitException, OptimWrapper, partial
from fastai.callback.schedule import ParamScheduler
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau
from fastai.callback.training import ShortEpochCallback

from helpers import Spy, groups_of, learner, momentum
from onecycle_callback import OneCycle

class At(Callback):
    "Do something in an event of one batch."
    order = 200
    def __init__(self, epoch, batch, act, event='after_batch'): self.when, self.act, self.event = (epoch, batch), act, event
    def _maybe(self, event):
        if event == self.event and self.training and (self.epoch, self.iter) == self.when: self.act()
    def before_batch(self): self._maybe('before_batch')
    def after_batch(self): self._maybe('after_batch')

def throw(e):
    def act(): raise e
    return act

def ran(learn, n):
    plan = learn.recorder.plan
    assert learn.recorder.hps == dict(lr=plan.lrs[:n, 0].tolist(), mom=plan.moms[:n].tolist())
    assert momentum(groups_of(learn.opt)[0]) == .9
    assert len(learn.recorder.lrs) == n and not hasattr(learn, 'one_cycle')
    learn.recorder.plot_sched()

OPTS = [Adam, partial(OptimWrapper, opt=torch.optim.AdamW)]
@pytest.mark.parametrize('opt', OPTS, ids=['Adam', 'AdamW'])
@pytest.mark.parametrize('fit', ['fit_one_cycle', 'fit'])
def test_however_it_ends(opt, fit):
    def go(learn, cbs=None):
        if fit == 'fit': learn.fit(3, cbs=[OneCycle(.1), *(cbs or [])])
        else: learn.fit_one_cycle(3, .1, cbs=cbs)
    learn = learner(opt_func=opt)
    go(learn)
    ran(learn, 15)
    for error in (KeyboardInterrupt(), RuntimeError('boom'), MemoryError('none left')):
        learn = learner(opt_func=opt)
        with pytest.raises(type(error)): go(learn, [At(1, 2, throw(error))])
        ran(learn, 8)
    learn = learner(opt_func=opt)
    with pytest.warns(UserWarning, match=r'broken off in epoch 1 of 3 .*after 8 batches, .* of its peak'): go(learn, [At(1, 2, throw(CancelFitException()))])
    ran(learn, 8)
    go(learn)
    ran(learn, 15)

def test_error_in_the_loss():
    calls = []
    def loss(pred, target):
        calls.append(1)
        if len(calls) == 4: raise RuntimeError('no loss')
        return nn.functional.mse_loss(pred, target)
    learn = learner(loss_func=loss)
    with pytest.raises(RuntimeError, match='no loss'): learn.fit_one_cycle(3, .1)
    ran(learn, 3)

def test_there_from_the_first_batch_on():
    seen = []
    learn = learner()
    learn.fit_one_cycle(1, .1, cbs=At(0, 0, lambda: seen.append(learn.recorder.hps['lr'].copy())))
    assert seen == [[.1/25]]

def test_a_plain_fit_has_none():
    learn = learner()
    learn.fit_one_cycle(1)
    learn.fit(1)
    assert learn.recorder.hps == {}

def test_beside_another_scheduler_also_when_it_dies():
    learn = learner()
    with pytest.raises(RuntimeError): learn.fit_one_cycle(2, .1, cbs=[ParamScheduler({'wd': lambda pct: pct}), At(1, 0, throw(RuntimeError('boom')))])
    assert {k: len(v) for k, v in learn.recorder.hps.items()} == dict(wd=6, lr=6, mom=6)

def test_early_stopping_names_the_lr_as_a_share_of_the_peak():
    learn = learner()
    with pytest.warns(UserWarning, match=r'learning rate of 0\.\d+, \d+% of its peak'):
        learn.fit_one_cycle(5, .1, cbs=EarlyStoppingCallback(min_delta=1e9, patience=1))
    ran(learn, 5 * len(learn.recorder.values))
    assert len(learn.recorder.values) < 5

def test_no_warning_where_the_cycle_was_whole():
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learner().fit_one_cycle(2, cbs=EarlyStoppingCallback(min_delta=1e9, patience=2))
        learner().fit_one_cycle(4, stop_epoch=2)

def test_plateau_is_named_once():
    with pytest.warns(UserWarning, match='ReduceLROnPlateau has no effect') as seen: learner().fit_one_cycle(3, cbs=ReduceLROnPlateau(min_delta=1e9))
    assert sum('ReduceLROnPlateau' in str(w.message) for w in seen) == 1

def test_epochs_cut_short_keep_the_later_ones_in_place():
    learn = learner(10)
    learn.fit_one_cycle(4, .1, cbs=ShortEpochCallback(pct=.5))
    plan, done = learn.recorder.plan, len(learn.recorder.hps['lr']) // 4
    assert 0 < done < 10 and learn.recorder.hps['lr'] == [plan.lrs[e * 10 + i, 0] for e in range(4) for i in range(done)]
    assert learn.recorder.plot_lr().lines[0].get_xdata().tolist() == [e * 10 + i for e in range(4) for i in range(done)]

@pytest.mark.parametrize('real', [3, 8])
def test_loader_of_another_length_than_it_says(real):
    class Says(list):
        def __len__(self): return 5
    learn = learner()
    batches = [(torch.ones(2, 3), torch.ones(2, 1))] * real
    learn.dls.loaders[0] = Says(batches)
    spy = Spy()
    learn.fit_one_cycle(2, .1, cbs=spy)
    plan = learn.recorder.plan
    assert learn.recorder.hps['lr'] == [lr for lr, in spy.seen_lrs] == [plan.lrs[min(e * 5 + i, 9), 0] for e in range(2) for i in range(real)]
    if real == 8: assert learn.recorder.hps['lr'][-3:] == [.1/25] * 3
    learn.recorder.plot_lr(show_moms=True)
