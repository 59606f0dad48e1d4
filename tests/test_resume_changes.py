"""What changes during a fit, or between a crash and the rerun, is resumed, refused or named."""
import os
import threading
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.basics import (Adam, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, F1Score, L, OptimWrapper, SGD,
                           accuracy)
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.schedule import ParamScheduler, combined_cos
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.losses import FocalLossFlat, LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from support.helpers import Spy, frozen_state
from support.interrupted import N_BATCH, N_EPOCH, Interrupt, assert_same, items, learner, results, rows
from support.pairs import each
from onecycle_callback import CycleCheckpoint, callback
from onecycle_callback.resume.file import read_state
from onecycle_callback.resume.objects import Standing, load

pytestmark = pytest.mark.matrix

CYCLE = 'models/run1.cycle'

def fit(learn, cbs=None, every=7, n_epoch=N_EPOCH, max_lr=.05, **kwargs):
    learn.fit_one_cycle(n_epoch, max_lr, cbs=cbs, checkpoint=CycleCheckpoint('run1', every=every, **kwargs))
    return learn

def interrupt(learn, cbs=(), at=30, error=RuntimeError, **kwargs):
    with pytest.raises(error, match='interrupted'): fit(learn, [*cbs, Interrupt(at, error)], **kwargs)
    return learn

def two_groups(model):
    first, *rest = model.parameters()
    return [[first], rest]

def calm(make, path, cbs=()):
    learn = make(path)
    learn.fit_one_cycle(N_EPOCH, .05, cbs=[*cbs])
    return results(learn)

class At(Callback):
    "Do something once: after training batch `at`, or before epoch 1."
    order = 9_000
    def __init__(self, act, at=20, event='after_batch'): self._act, self._at, self._event = act, at, event
    def _maybe(self, event, is_now):
        if event == self._event and is_now: self._act(self.learn)
    def after_batch(self): self._maybe('after_batch', self.training and self.train_iter == self._at)
    def before_epoch(self): self._maybe('before_epoch', self.epoch == 1)

# During a fit

@pytest.mark.parametrize('every, event', [(7, 'after_batch'), (None, 'before_epoch'), (7, 'before_epoch')])
def test_a_callback_that_is_taken_off(tmp_path, every, event):
    def take_off(learn):
        if hasattr(learn, 'mix_up'): learn.loss_func = learn.mix_up.old_lf; learn.remove_cb(learn.mix_up)
    def make(path): return learner(path, cbs=MixUp())
    expected = calm(make, tmp_path, [At(take_off, event=event)])
    interrupt(make(tmp_path), [At(take_off, event=event)], every=every)
    assert_same(results(fit(make(tmp_path), At(take_off, event=event), every=every)), expected)

def test_the_learner_of_a_callback_is_never_stored(tmp_path):
    "It belongs to fastai: what a callback that was taken off has there is nothing to go on with."
    class Ordinary(Callback):
        run_valid, n = False, 0
        def after_batch(self): self.n += 1
    interrupt(learner(tmp_path), [Ordinary(), At(lambda learn: learn.remove_cb(learn.ordinary))])
    states = load(read_state(tmp_path / CYCLE)['processes'][0]['carried'], Standing())[0]
    assert states['Ordinary']['attributes'] == dict(n=20) and len(states) > 10
    assert not any({'learn', '_learn'} & state.get('attributes', {}).keys() for state in states.values())
    learn, kept = learner(tmp_path), Ordinary()
    fit(learn, kept)
    assert kept.n == 20 and kept.learn is None

class BatchSize(Callback):
    "Give each epoch a batch size, in `event` of it or of the one before."
    def __init__(self, event): setattr(self, event, self._set)
    def _set(self): self.learn.dls.train.bs = [4, 2, 8, 4, 4][self.epoch]

@pytest.mark.parametrize('place, event', each(
    [(7, 5), (7, 20), (7, 40), (None, 20), (None, 40), (None, 44)], ['before_epoch', 'after_epoch']), ids=str)
def test_another_batch_size_in_each_epoch(tmp_path, event, place):
    every, at = place
    expected = calm(learner, tmp_path, [BatchSize(event)])
    interrupt(learner(tmp_path), [BatchSize(event)], at, every=every)
    assert_same(results(fit(learner(tmp_path), BatchSize(event), every=every)), expected)

def test_a_callback_that_is_added_is_named(tmp_path):
    with pytest.warns(UserWarning, match=r'does not hold MixUp \(added during the fit\)'):
        interrupt(learner(tmp_path), [At(lambda learn: learn.add_cb(MixUp()), event='before_epoch')])
    with pytest.warns(UserWarning, match=r'was saved without MixUp \(added during the fit\)'): fit(learner(tmp_path))

@pytest.mark.parametrize('mix, error', each([MixUp, CutMix], [KeyboardInterrupt, RuntimeError]))
def test_an_interrupt_inside_a_batch_with_mixup(tmp_path, mix, error):
    "fastai leaves another loss function on the Learner. The same cell again."
    data = [(torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(i)), i % 2) for i in range(46)]
    def make(path):
        learn = learner(path)
        learn.dls = DataLoaders(DataLoader(data, bs=4, shuffle=True), DataLoader(data, bs=10), device='cpu')
        learn.model = nn.Sequential(nn.Flatten(), *learn.model)
        learn.model[1] = nn.Linear(48, 16)
        return learn
    class Inside(Callback):
        order = 200
        def __init__(self, at): self.at = at
        def after_loss(self):
            if self.training and self.train_iter == self.at: raise error('interrupted')
    def end(learn): return learn.model.state_dict(), [float(x) for x in learn.recorder.losses]
    expected = make(tmp_path)
    expected.fit_one_cycle(N_EPOCH, .05, cbs=mix())
    learn = make(tmp_path)
    loss = learn.loss_func
    with pytest.raises(error, match='interrupted'): fit(learn, [mix(), Inside(30)])
    assert learn.loss_func is loss
    assert_same(end(fit(learn, mix())), end(expected))

def test_a_callback_that_unfreezes_in_the_same_learner(tmp_path):
    def freeze_first(path):
        learn = learner(path, splitter=lambda m: [list(m[:4].parameters()), list(m[4:].parameters())])
        learn.freeze()
        return learn
    def unfreeze(learn): learn.unfreeze()
    expected = calm(freeze_first, tmp_path, [At(unfreeze)])
    learn = interrupt(freeze_first(tmp_path), [At(unfreeze)], error=KeyboardInterrupt)
    assert not next(learn.model.parameters()).requires_grad
    assert_same(results(fit(learn, At(unfreeze))), expected)

class Scaled(nn.Module):
    "A loss with a factor, which counts its calls."
    def __init__(self): super().__init__(); self.alpha, self.n_calls = 1., 0
    def forward(self, pred, y):
        self.n_calls += 1
        return self.alpha * F.cross_entropy(pred, y)

def scaled(path):
    learn = learner(path)
    learn.loss_func = Scaled()
    return learn

def with_torch_loader(path):
    "Its batch sampler knows the batch size."
    learn = learner(path, torch_loader=True)
    learn.dls.loaders[0].bs = 4
    return learn

def set_loss(learn, value): learn.loss_func.alpha = value
def set_dropout(learn, value): learn.model[3].p = value
def set_bs(learn, value): learn.dls.train.bs = int(2 / value)
def set_sampler(learn, value): learn.dls.train.batch_sampler.batch_size = int(2 / value)
def set_wd(learn, value): learn.wd = value
def set_train_bn(learn, value): learn.train_bn = value > .5
def set_lr(learn, value): learn.lr, learn.moms = value, (value, value, value)

class Anneal(Callback):
    "Set something at the beginning of each epoch; what the cycle is planned with, at its end."
    def __init__(self, act): self._act = act
    def before_epoch(self): self._set(self._act is not set_lr)
    def after_epoch(self): self._set(self._act is set_lr)
    def _set(self, is_now):
        if is_now: self._act(self.learn, [.5, .25, .5, .2][self.epoch])

ANNEALED = dict(loss=(scaled, set_loss, None), dropout=(learner, set_dropout, r'layers 3: Dropout\(p=0\.'),
                bs=(learner, set_bs, 'bs: 4 in the file, 20 now'),
                sampler=(with_torch_loader, set_sampler, 'n_batch: 12 in the file, 3 now'),
                wd=(learner, set_wd, 'wd: None in the file, 0.1 now'),
                train_bn=(learner, set_train_bn, 'train_bn: True in the file, False now'),
                lr=(learner, set_lr, 'moms'))

@pytest.mark.parametrize('place, name', each([(7, 20), (None, 30), (7, 3)], ANNEALED))
def test_what_training_changes_in_the_same_learner(tmp_path, capsys, name, place):
    "The same cell is the same run, as often as it is interrupted; and what the user changes in between is refused."
    (make, act, why), (every, at) = ANNEALED[name], place
    expected = calm(make, tmp_path, [Anneal(act)])
    learn = interrupt(make(tmp_path), [Anneal(act)], at, KeyboardInterrupt, every=every)
    interrupt(learn, [Anneal(act)], at + 4, KeyboardInterrupt, every=every)
    assert_same(results(fit(learn, Anneal(act), every=every)), expected)
    interrupt(learn := make(tmp_path), [Anneal(act)], at, KeyboardInterrupt, every=every, restart=True)
    act(learn, .1)
    if why is None:     # it is state
        fit(learn, Anneal(act), every=every)
        assert "'run1' sets loss alpha back to what training made of it\n" in capsys.readouterr().out
        return assert_same(results(learn), expected)
    with pytest.raises(ValueError, match=f"'run1' belongs to a different run.*{why}"):
        fit(learn, Anneal(act), every=every)

@pytest.mark.parametrize('name', ['dropout', 'bs', 'sampler', 'wd', 'lr'])
def test_what_training_has_changed_in_a_complete_run(tmp_path, capsys, name):
    make, act, why = ANNEALED[name]
    learn = fit(make(tmp_path), Anneal(act))
    expected = learn.recorder.to_frame().to_dict('list')
    fit(learn, Anneal(act))
    assert 'is complete' in capsys.readouterr().out
    assert_same(learn.recorder.to_frame().to_dict('list'), expected)
    act(learn, .1)
    with pytest.raises(ValueError, match=f"'run1' belongs to a different run.*{why}"): fit(learn, Anneal(act))

@pytest.mark.parametrize('at', [30, None], ids=['interrupted', 'complete'])
def test_what_training_changes_in_a_loss_is_state(tmp_path, capsys, at):
    "It may count its validations too. What no fit has changed is a setting."
    learn = scaled(tmp_path)
    if at: interrupt(learn, at=at)
    else: fit(learn)
    learn.validate()
    fit(learn)
    assert "'run1' sets loss n_calls back to what training made of it\n" in capsys.readouterr().out
    assert learn.loss_func.n_calls == N_EPOCH * (N_BATCH + 2)
    learn.loss_func.alpha = .1
    with pytest.raises(ValueError, match='different run.*: loss alpha: 1.0 in the file, 0.1 now[.]'): fit(learn)

class Once(Callback):
    "Set something in the first epoch only, before its first batch."
    def __init__(self, act): self._act = act
    def before_epoch(self):
        if self.epoch == 0: self._act(self.learn, .25)

@pytest.mark.parametrize('name', ['lr', 'bs', 'sampler'])
@pytest.mark.parametrize('every, at', [(7, 20), (None, 20), (7, None)])
def test_what_the_cycle_is_planned_with_once_it_starts(tmp_path, name, every, at):
    make, act, _ = ANNEALED[name]
    expected = calm(make, tmp_path, [Once(act)])
    if at: interrupt(make(tmp_path), [Once(act)], at, every=every)
    else: fit(make(tmp_path), Once(act), every=every)
    assert_same(results(fit(make(tmp_path), Once(act), every=every)), expected)

def test_a_longer_cycle_after_one_with_other_batches(tmp_path):
    "Of which the record tells."
    fit(learner(tmp_path), BatchSize('before_epoch'))
    frame = fit(learner(tmp_path), BatchSize('before_epoch'), n_epoch=5, extend=True).recorder.to_frame()
    assert [*frame.epoch.value_counts(sort=False)] == [12, 23, 6, 12, 12] and [*frame.batch] == [*range(65)]

def test_a_restart_begins_with_what_is_there(tmp_path):
    "Which another process hasn't."
    learn = interrupt(scaled(tmp_path), [Anneal(set_loss)])
    interrupt(learn, [Anneal(set_loss)], restart=True)
    assert read_state(tmp_path / CYCLE)['work']['loss']['alpha'] == '0.5'
    with pytest.raises(ValueError, match='different run.*loss alpha: '): fit(scaled(tmp_path), Anneal(set_loss))
    fit(learn, Anneal(set_loss))

def test_a_loss_that_was_trained_with_in_a_new_learner(tmp_path):
    "And another run tells its own beginning."
    loss = Scaled()
    def make(path, of=Scaled):
        learn = learner(path)
        learn.loss_func = of()
        return learn
    expected = calm(make, tmp_path, [Anneal(set_loss)])
    interrupt(make(tmp_path, lambda: loss), [Anneal(set_loss)])
    assert loss.n_calls > 30 and loss.alpha == .5
    assert_same(results(fit(make(tmp_path, lambda: loss), Anneal(set_loss))), expected)
    with pytest.raises(RuntimeError, match='interrupted'):
        learn = make(tmp_path, lambda: loss)
        learn.fit_one_cycle(2, .05, cbs=Interrupt(15), checkpoint='run2')
    with pytest.raises(ValueError, match='different run.*loss alpha: '):
        make(tmp_path).fit_one_cycle(2, .05, checkpoint='run2')

def new_loader(): return DataLoader(items(46), bs=4, shuffle=True)

@pytest.mark.parametrize('replace', [
    lambda learn: setattr(learn, 'dls', DataLoaders(new_loader(), DataLoader(items(20), bs=10), device='cpu')),
    lambda learn: learn.dls.loaders.__setitem__(0, new_loader()),
    lambda learn: setattr(learn.dls, 'loaders', [new_loader(), learn.dls.valid]),
    lambda learn: setattr(learn.dls.train, 'dataset', items(46))], ids=['dls', 'loader', 'loaders', 'dataset'])
def test_data_that_are_replaced_are_named(tmp_path, replace):
    with pytest.warns(UserWarning, match=r'does not hold Learner\.dls, which cannot be stored'):
        interrupt(learner(tmp_path), [At(replace, event='before_epoch')])
    with pytest.warns(UserWarning, match=r'was saved without Learner\.dls'): fit(learner(tmp_path))

# What can be stored by half

class Head(Callback):
    "Make a head with an optimizer of its own at the first batch."
    head = opt = None
    def __init__(self, opt_func): self.opt_func = opt_func
    def after_pred(self):
        if not self.training: return
        if self.head is None:
            self.head = nn.Linear(2, 1).to(self.pred.device)
            self.own_opt = self.opt_func(self.head.parameters())
        loss = (self.head(self.pred.detach()) - 1).pow(2).mean()
        loss.backward()
        self.own_opt.step()
        self.own_opt.zero_grad()

class Odd(torch.optim.SGD):
    "An optimizer of the user's, which no code names."
HEADS = [torch.optim.Adam, Odd]

MADE = {'torch': partial(torch.optim.Adam, lr=.1), 'fastai': lambda params: Adam(L(params), lr=.1),
        'fastai, momentum': lambda params: SGD(L(params), lr=.1, mom=.9),
        'wrapped': lambda params: OptimWrapper(L(params), torch.optim.AdamW)}

@pytest.mark.parametrize('name', MADE)
def test_a_head_that_is_made_on_the_way_resumes(tmp_path, name):
    def cbs(): return [Head(MADE[name])]
    expected, mine = calm(learner, tmp_path, a := cbs()), cbs()
    interrupt(learner(tmp_path), cbs())
    assert_same(results(fit(learner(tmp_path), mine)), expected)
    assert_same(mine[0].head.state_dict(), a[0].head.state_dict())

def test_a_head_whose_optimizer_cannot_be_stored_starts_over_with_it(tmp_path):
    def cbs(): return [Head(lambda params: HEADS[1](params, lr=.1))]
    message = r'does not hold Head\.head, Head\.own_opt, which cannot be stored: they start over'
    with pytest.warns(UserWarning, match=message):
        interrupt(learner(tmp_path), cbs())
    mine = cbs()
    fit(learner(tmp_path), mine)
    assert isinstance(mine[0].own_opt, Odd)

class Client:
    "What logs for a callback, as wandb does: it can't be stored."
    def __init__(self): self.lock = threading.Lock()
    def log(self, value): pass

class LogsBound(Callback):
    "Log by a method that it holds from a batch on, and count in a layer made then."
    log = net = None
    def after_batch(self):
        self.log = self.log or Client().log
        if self.net is None: self.net = nn.Linear(1, 1, bias=False)
        self.net.weight.data.add_(1)
        self.log(self.loss)

def test_a_bound_function_that_is_lost_takes_nothing_with_it(tmp_path):
    made = LogsBound()
    expected = calm(learner, tmp_path, [made])
    with pytest.warns(UserWarning, match=r'does not hold LogsBound\.log, which'):
        interrupt(learner(tmp_path), [LogsBound()])
    again = LogsBound()
    assert_same(results(fit(learner(tmp_path), again)), expected)
    assert_same(again.net.weight, made.net.weight)

def test_bound_functions_of_one_name(tmp_path):
    "In the same Learner, where all is restored."
    class Appends(Callback):
        def __init__(self): self.a, self.b = [], []; self.to_a, self.to_b = self.a.append, self.b.append
        def after_batch(self): self.to_a(1); self.to_b(2)
    cb, learn = Appends(), learner(tmp_path)
    interrupt(learn, [cb], error=KeyboardInterrupt)
    fit(learn, cb)
    assert {*cb.a} == {1} and {*cb.b} == {2} and len(cb.a) == len(cb.b) == N_EPOCH * (N_BATCH + 2)

@pytest.mark.parametrize('change, what', [
    (lambda learn: setattr(learn, 'opt', SGD(learn.opt.param_lists, lr=.01)), r'optimizer: .*at the beginning'),
    (lambda learn: prune.l1_unstructured(learn.model[0], 'weight', .5), r'model 0\.weight'),
    (lambda learn: learn.model.register_buffer('made', torch.zeros(1)), 'model made: nothing at the beginning')],
    ids=['optimizer', 'pruning', 'buffer'])
def test_what_no_new_learner_could_load_is_not_saved(tmp_path, change, what):
    "The rerun starts before it, and ends with the bits of an uninterrupted run."
    expected = learner(tmp_path)
    expected.fit_one_cycle(N_EPOCH, .05, cbs=At(change, at=20))
    message = rf"'run1' cannot be saved from here on.*{what}.*resumes it in epoch 1, batch 6"
    with pytest.warns(UserWarning, match=message):
        interrupt(learner(tmp_path), [At(change, at=20)], every=2, at=30)
    with pytest.warns(UserWarning, match='cannot be saved from here on'):
        again = fit(learner(tmp_path), At(change, at=20), every=2)
    assert_same(again.model.state_dict(), expected.model.state_dict())
    assert [float(x) for x in again.recorder.losses] == [float(x) for x in expected.recorder.losses]

def test_a_model_that_is_only_here_stays(tmp_path):
    "An interrupt puts back the model that the fit has replaced, but not where no file holds the new one."
    larger = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    learn = learner(tmp_path)
    with pytest.warns(UserWarning, match='cannot be saved from here on'):
        interrupt(learn, [At(lambda learn: setattr(learn, 'model', larger), at=20)])
    assert learn.model is larger

# Between a crash and the rerun

def frozen(path):
    learn = learner(path, splitter=lambda m: [list(m[:4].parameters()), list(m[4:].parameters())])
    learn.freeze()
    return learn
def unfrozen(path):
    learn = frozen(path)
    learn.unfreeze()
    return learn
def with_loss_func(make_loss, *args, **kwargs):
    def make(path):
        learn = learner(path)
        learn.loss_func = make_loss(*args, **kwargs)
        return learn
    return make
def smoothed(path):
    learn = learner(path)
    learn.loss_func.func.label_smoothing = .1     # of which fastai's loss has a copy
    return learn
def with_loss(*weights): return with_loss_func(lambda: CrossEntropyLossFlat(weight=torch.tensor(weights)))

class Sum(nn.Module):
    "A loss that calls others, which it holds in each way."
    def __init__(self, weight=.5, gamma=2., factors=(1., 2.), smooth=.1, prior=.5, n_prior=2, offset=0., f=F.mse_loss):
        super().__init__()
        self.ce, self.flat = nn.CrossEntropyLoss(weight=torch.tensor([weight, .5])), FocalLossFlat(gamma=gamma)
        self.factors, self.losses = [torch.tensor(f) for f in factors], [LabelSmoothingCrossEntropyFlat(eps=smooth)]
        self.options = dict(prior=np.full(n_prior, prior), offset=offset, f=f)
        self.network, self.calls, self.itself = nn.Linear(2, 2), [], [self]

    def forward(self, pred, y):
        self.calls.append(len(y))
        losses = [self.ce(pred, y), self.flat(pred, y), *(loss(pred, y) for loss in self.losses)]
        return sum(losses) * sum(self.factors) + self.options['prior'].sum() + self.options['offset']
with_sum = partial(with_loss_func, Sum)
def with_partial(*weights): return with_loss_func(partial, F.cross_entropy, weight=torch.tensor(weights))
def with_opt(*args, **kwargs): return lambda path: learner(path, opt_func=partial(*args, **kwargs))
def with_metrics(*metrics):
    def make(path):
        learn = learner(path)
        learn.metrics = metrics
        return learn
    return make
torch_opt = partial(with_opt, OptimWrapper)

CHANGED = {
    'unfrozen': (frozen, unfrozen, r'trained: \[\d+, \d+\] in the file, \[\d+, \d+\] now'),
    'eps': (with_opt(Adam), with_opt(Adam, eps=1e-3), 'opt eps of group 0: 1e-05 in the file, 0.001 now'),
    'sqr_mom': (with_opt(Adam), with_opt(Adam, sqr_mom=.9), 'opt sqr_mom of group 0: 0.99 in the file, 0.9 now'),
    'amsgrad': (torch_opt(opt=torch.optim.AdamW), torch_opt(opt=partial(torch.optim.AdamW, amsgrad=True)),
                'opt amsgrad'),
    'betas': (torch_opt(opt=torch.optim.AdamW), torch_opt(opt=partial(torch.optim.AdamW, betas=(.9, .9))), 'opt betas'),
    'weight_decay': (torch_opt(opt=torch.optim.AdamW), torch_opt(opt=partial(torch.optim.AdamW, weight_decay=.3)),
                     'opt weight_decay'),
    'wd_bn_bias': (learner, partial(learner, wd_bn_bias=True), 'wd_bn_bias: False in the file, True now'),
    'train_bn': (learner, partial(learner, train_bn=False), 'train_bn: True in the file, False now'),
    'class weights': (with_loss(.5, .5), with_loss(.9, .1), r'loss_tensors weight: \[0.5, 0.5\] in the file, \[0.89'),
    'label smoothing': (learner, smoothed, 'loss label_smoothing: 0.0 in the file, 0.1 now'),
    'weights of an inner loss': (with_sum(), with_sum(weight=.9), r'loss_tensors ce.weight: \[0.5, 0.5\] in the file'),
    'setting of an inner loss': (with_sum(), with_sum(gamma=1.), 'loss flat.gamma: 2.0 in the file, 1.0 now'),
    'tensors in a list': (with_sum(), with_sum(factors=(2., 1.)), r'loss_tensors factors: \[1.0, 2.0\] in the file'),
    'loss in a list': (with_sum(), with_sum(smooth=.2), 'loss losses.0.eps: 0.1 in the file, 0.2 now'),
    'array in a dictionary': (with_sum(), with_sum(prior=.1), r'loss_tensors options.prior: \[0.5, 0.5\] in the'),
    'large array': (with_sum(n_prior=30), with_sum(n_prior=30, prior=.1), r'options.prior: float64 \(30,\) \w+ in'),
    'number in a dictionary': (with_sum(), with_sum(offset=1.), 'loss options.offset: 0.0 in the file, 1.0 now'),
    'function in a dictionary': (with_sum(), with_sum(f=F.l1_loss), 'loss options.f.function: .*mse'),
    'weights of a partial': (with_partial(.5, .5), with_partial(.9, .1), r'loss_tensors weight: \[0.5, 0.5\] in the'),
    'metrics swapped': (with_metrics(accuracy, F1Score()), with_metrics(F1Score(), accuracy), 'metrics: '),
    'metric added': (with_metrics(accuracy), with_metrics(accuracy, F1Score()), 'metrics: ')}

@pytest.mark.parametrize('name', CHANGED)
def test_what_changed_before_the_rerun_is_refused(tmp_path, name):
    before, after, why = CHANGED[name]
    interrupt(before(tmp_path))
    learn = after(tmp_path)
    state = frozen_state(learn)
    with pytest.raises(ValueError, match=f"'run1' belongs to a different run.*{why}"): fit(learn)
    assert frozen_state(learn) == state
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        fit(before(tmp_path))

@pytest.mark.parametrize('make', [learner, with_opt(Adam, wd=.3), torch_opt(opt=torch.optim.AdamW), frozen,
                                  with_loss(.5, .5), with_sum(n_prior=30), with_partial(.5, .5)])
def test_the_same_learner_is_the_same_run(tmp_path, make):
    learn = interrupt(make(tmp_path), error=KeyboardInterrupt)
    fit(learn)

# Names and places

@pytest.mark.parametrize('name, why', [
    ('x' * 230, 'at most 220 bytes, got 230'), ('ü' * 111, 'at most 220 bytes, got 222'),
    ('a:b', 'every file system takes'),
    ('con', 'every file system'), ('NUL.txt', 'every file system'), ('lpt1', 'every file system'),
    ('run?', 'every file system'),
    ('a\nb', 'every file system'), ('runs/a', r'without a folder.*learn\.path and learn\.model_dir say'),
    ('runs\\a', r'without a folder.*learn\.path')])
def test_names_that_are_refused_before_anything_is_touched(tmp_path, name, why):
    learn = learner(tmp_path)
    before = frozen_state(learn)
    with pytest.raises(ValueError, match=why): learn.fit_one_cycle(1, .05, checkpoint=name)
    assert frozen_state(learn) == before and not os.listdir(tmp_path)

def test_the_longest_name(tmp_path):
    learner(tmp_path).fit_one_cycle(1, .05, checkpoint='x' * 220)
    assert os.listdir(tmp_path / 'models') == ['x' * 220 + '.cycle']

def test_the_suffix_is_not_added_twice(tmp_path):
    learner(tmp_path).fit_one_cycle(1, .05, checkpoint='a.cycle')
    assert os.listdir(tmp_path / 'models') == ['a.cycle'] and CycleCheckpoint('a.cycle') == CycleCheckpoint('a')

def test_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'other').mkdir()
    fit(learner(Path('.')), At(lambda learn: os.chdir('other')))
    assert os.listdir(tmp_path / 'models') == ['run1.cycle'] and not os.listdir(tmp_path / 'other')

def test_a_link_keeps_its_target(tmp_path):
    (tmp_path / 'models').mkdir()
    (tmp_path / 'large_disk').mkdir()
    (tmp_path / CYCLE).symlink_to(tmp_path / 'large_disk/file')
    expected = calm(learner, tmp_path)
    interrupt(learner(tmp_path))
    assert_same(results(fit(learner(tmp_path))), expected)
    assert (tmp_path / CYCLE).is_symlink() and os.listdir(tmp_path / 'large_disk') == ['file']

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_a_pipe_does_not_hang(tmp_path):
    (tmp_path / 'models').mkdir()
    os.mkfifo(tmp_path / CYCLE)
    with pytest.raises(ValueError, match=r'run1\.cycle is no ordinary file. Move it away'): fit(learner(tmp_path))

# False alarms

class FakeWriter:
    "What TensorBoard's writer is for a checkpoint: it can't be pickled, and writes to files of its own."
    def __init__(self): self.lock = threading.Lock()
    def add_scalar(self, *args): pass
    def flush(self): pass
    def close(self): pass

class Logs(Callback):
    def before_fit(self): self.writer = FakeWriter()
    def after_batch(self): self.writer.add_scalar('loss', self.loss)

@pytest.mark.parametrize('make, cb', [(lambda path: learner(path), Logs),
                                      (lambda path: smooth(path, LabelSmoothingCrossEntropy), MixUp),
                                      (lambda path: smooth(path, LabelSmoothingCrossEntropyFlat), MixUp),
                                      (lambda path: smooth(path, FocalLossFlat), MixUp),
                                      (lambda path: compiled(path), Logs)],
                         ids=['writer', 'label smoothing', 'label smoothing, flat', 'focal loss', 'torch.compile'])
def test_no_false_alarm(tmp_path, make, cb):
    with warnings.catch_warnings():
        warnings.filterwarnings('error', ".*Checkpoint 'run1'")
        interrupt(make(tmp_path), [cb()])
        fit(make(tmp_path), cb())

def smooth(path, loss):
    learn = learner(path)
    learn.loss_func = loss()
    return learn

def compiled(path):
    learn = learner(path)
    learn.model = torch.compile(learn.model[:4], backend='eager')     # `Remembers` is compiled anew for each batch
    return learn

# Threads

@pytest.mark.slow
def test_two_threads_that_resume_at_once(tmp_path):
    "Each its own run; 5 times."
    paths, errors, done = [tmp_path / str(i) for i in range(2)], [], []
    for path in paths: interrupt(learner(path), at=N_BATCH * 3 + 9)
    contents = [(path / CYCLE).read_bytes() for path in paths]
    def resume(path):
        try: done.append(len(fit(learner(path)).recorder.losses))
        except BaseException as e: errors.append(e)
    for _ in range(5):
        for path, content in zip(paths, contents): (path / CYCLE).write_bytes(content)
        threads = [threading.Thread(target=resume, args=(path,)) for path in paths]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    assert not errors and done == [N_EPOCH * N_BATCH] * 10

# Where it is, and how it ends

def test_the_file_is_named_at_the_start(tmp_path, capsys):
    fit(learner(tmp_path), n_epoch=1)
    assert f"Checkpoint 'run1' is kept in {tmp_path / CYCLE}" in capsys.readouterr().out

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_says_where_it_resumes(tmp_path, error, capsys):
    with pytest.raises(error) as caught: fit(learner(tmp_path), Interrupt(30, error))
    notes = getattr(caught.value, '__notes__', []) or [capsys.readouterr().out]     # Python 3.10 has no notes
    expected = ("Checkpoint 'run1' was interrupted. The same call resumes it in epoch 2, batch 4, from "
                f'{tmp_path / CYCLE}')
    assert expected in notes[-1]

def test_a_complete_run_shows_its_table(tmp_path, capsys):
    def table(out): return [line.split()[:4] for line in out.replace('\r', '\n').splitlines() if rows(line)]
    fit(learner(tmp_path))
    first = table(capsys.readouterr().out)
    fit(learner(tmp_path))
    out = capsys.readouterr().out
    assert table(out) == first and len(first) == N_EPOCH and 'train_loss' in out
    with (learn := learner(tmp_path)).no_logging(): fit(learn)
    assert not table(capsys.readouterr().out)

# Longer or corrected, on purpose

@pytest.mark.parametrize('every, at', [(7, 30), (None, 30), (7, None)], ids=['within an epoch', 'between', 'complete'])
def test_a_longer_cycle(tmp_path, capsys, every, at):
    if at: interrupt(learner(tmp_path), at=at, every=every)
    else: fit(learner(tmp_path), every=every)
    n_done = N_EPOCH * N_BATCH if at is None else 28 if every else 24
    with pytest.raises(ValueError, match=r'different run.*: cycle_len: 4 in the file, 6 now\. .*extend=True'):
        fit(learner(tmp_path), every=every, n_epoch=6)
    capsys.readouterr()
    learn, plan = learner(tmp_path), learner(tmp_path).preview_one_cycle(6, .05)
    fit(learn, every=every, n_epoch=6, extend=True)
    old = learner(tmp_path).preview_one_cycle(N_EPOCH, .05).lrs[n_done - 1, 0]
    says = f'is extended: its LR was {old:.3g} and is {plan.lrs[n_done, 0]:.3g} now (cycle_len: 4'
    assert says in capsys.readouterr().out
    lrs = learn.recorder.hps['lr']
    assert len(lrs) == 6 * N_BATCH == len(learn.recorder.losses) and len(learn.recorder.values) == 6
    assert lrs[n_done:] == plan.lrs[n_done:, 0].tolist() and lrs[:n_done] != plan.lrs[:n_done, 0].tolist()
    fit(learner(tmp_path), every=every, n_epoch=6)     # and now it is this run

@pytest.mark.parametrize('at', [30, None], ids=['interrupted', 'complete'])
def test_a_longer_cycle_of_the_same_learner(tmp_path, at):
    def started(path):
        learn = learner(path)
        return interrupt(learn, at=at) if at else fit(learn)
    started(tmp_path)
    expected = results(fit(learner(tmp_path), n_epoch=6, extend=True))
    learn = fit(started(tmp_path / 'same'), n_epoch=6, extend=True)
    assert_same(results(learn), expected)
    assert [*learn.recorder.to_frame().epoch.value_counts(sort=False)] == [N_BATCH] * 6

@pytest.mark.parametrize('at', [30, None], ids=['interrupted', 'complete'])
@pytest.mark.parametrize('max_lr, cbs', [(.05, []), (slice(.01, .05), []), (.05, [GradientAccumulation(8)])], ids=str)
def test_the_record_of_a_longer_cycle_is_what_was_trained(tmp_path, at, max_lr, cbs):
    def make(): return learner(tmp_path, splitter=two_groups)
    if at: interrupt(make(), cbs, at, every=7, max_lr=max_lr)
    else: fit(make(), cbs, every=7, max_lr=max_lr)
    before = make().preview_one_cycle(N_EPOCH, max_lr, cbs=cbs).to_frame()
    learn = fit(make(), cbs, every=7, max_lr=max_lr, n_epoch=6, extend=True)
    frame, n_done = learn.recorder.to_frame(), 28 if at else N_EPOCH * N_BATCH
    lrs = [name for name in frame if name.startswith('lr')]
    assert np.allclose(frame[lrs][:n_done], before[lrs][:n_done], rtol=1e-12, atol=0)
    assert frame[lrs[-1]].tolist() == learn.recorder.hps['lr']
    learn.recorder.plot_lr()

def test_a_new_optimizer_hides_no_error_of_the_fit(tmp_path):
    "A Learner that had none before the fit has none again."
    learn = learner(tmp_path)
    with pytest.raises(RuntimeError, match='interrupted'):
        learn.fit_one_cycle(N_EPOCH, .05, reset_opt=True, checkpoint='run1', cbs=Interrupt(30))
    learn.fit_one_cycle(N_EPOCH, .05, reset_opt=True, checkpoint='run1')
    assert_same(results(learn), calm(learner, tmp_path))

def test_the_record_of_a_finished_fine_tune(tmp_path):
    frames = []
    for _ in range(2):
        learn = learner(tmp_path, splitter=two_groups)
        learn.fine_tune(2, .05, checkpoint='run1')
        frames.append(learn.recorder.to_frame())
    assert len(frames[0]) == 3 * N_BATCH and frames[1].equals(frames[0])

@pytest.mark.parametrize('planned', [
    dict(n_epoch=10**9), dict(n_batch=2**63), dict(n_batch=0), dict(minutes=1.), dict(schedule=dict(anneal='linear')),
    dict(schedule={}), dict(accumulation=(8, 0, 4, 4)), dict(accumulation=(8, 12, -4, 4)), dict(accumulation=()),
    dict(n_batch=2**30, accumulation=(8, 1, 4, 4))], ids=str)
def test_a_plan_that_no_cycle_had_is_refused(tmp_path, monkeypatch, planned):
    own = callback._planned_with
    def altered(plan): return own(plan) | planned
    with monkeypatch.context() as patch:
        patch.setattr(callback, '_planned_with', altered)
        interrupt(learner(tmp_path), [GradientAccumulation(8)])
    with pytest.raises(ValueError, match='run1.cycle does not fit this training'):
        fit(learner(tmp_path), GradientAccumulation(8))

def test_another_peak_and_back_to_an_interrupt(tmp_path):
    "An extended run is resumed like any other."
    interrupt(learner(tmp_path))
    interrupt(learner(tmp_path), at=40, max_lr=.02, extend=True)
    learn = fit(learner(tmp_path), max_lr=.02, extend=True)
    assert np.allclose(learn.recorder.hps['lr'][28:], learn.recorder.plan.lrs[28:, 0], atol=0)
    assert learn.recorder.plan.lrs.max() == .02

@pytest.mark.parametrize('make, kwargs, why', [
    (learner, dict(n_epoch=2), 'cycle_len must be more than the 2 epochs.*got 2'),
    (partial(learner, n_batch=11), {}, 'n_batch: 12 in the file, 11 now')])
def test_what_extend_refuses(tmp_path, make, kwargs, why):
    interrupt(learner(tmp_path))
    content = (tmp_path / CYCLE).read_bytes()
    with pytest.raises(ValueError, match=why): fit(make(tmp_path), extend=True, **kwargs)
    assert (tmp_path / CYCLE).read_bytes() == content

@pytest.mark.parametrize('length', [dict(n_epoch=N_EPOCH), dict(minutes=.01)], ids=['epochs', 'minutes'])
@pytest.mark.parametrize('extend', [False, True])
@pytest.mark.parametrize('before, after', [((), GradientAccumulation(8)), (GradientAccumulation(8), ())],
                         ids=['added', 'removed'])
def test_accumulation_that_is_added_or_removed_is_refused(tmp_path, before, after, extend, length):
    "A batch is a step, or a part of one: what was recorded doesn't go on."
    def fit(cbs, **kwargs):
        keep = CycleCheckpoint('run1', every=7, **kwargs)
        if 'minutes' in length: learner(tmp_path).fit_one_cycle(max_lr=.05, cbs=cbs, checkpoint=keep, **length)
        else: learner(tmp_path).fit_one_cycle(N_EPOCH, .05, cbs=cbs, checkpoint=keep)
    with pytest.raises(RuntimeError, match='interrupted'): fit([*L(before), Interrupt(15)])
    content = (tmp_path / CYCLE).read_bytes()
    steps = ['of each batch', 'by GradientAccumulation'][::-1 if before else 1]
    why = "'run1' belongs to a different run.*step: '{}' in the file, '{}' now".format(*steps)
    with pytest.raises(ValueError, match=why): fit(after, extend=extend)
    assert (tmp_path / CYCLE).read_bytes() == content

@pytest.mark.parametrize('before, after', [(None, False), (False, None)])
@pytest.mark.parametrize('at', [30, None], ids=['interrupted', 'complete'])
def test_momentum_that_is_added_or_removed_is_refused(tmp_path, before, after, at):
    def fit(moms, *cbs, **kwargs):
        learner(tmp_path).fit_one_cycle(N_EPOCH, .05, moms=moms, cbs=cbs, checkpoint=CycleCheckpoint('run1', **kwargs))
    if at is None: fit(before)
    else:
        with pytest.raises(RuntimeError, match='interrupted'): fit(before, Interrupt(at))
    with pytest.raises(ValueError, match="'run1' belongs to a different run.*sets: '") as error:
        fit(after, extend=True)
    assert 'extend=True' not in str(error.value)

def test_nothing_to_extend(tmp_path, capsys):
    fit(learner(tmp_path), extend=True)
    fit(learner(tmp_path), extend=True)
    assert 'is complete. It finished on' in capsys.readouterr().out
    with pytest.raises(ValueError, match='extend must be False'): CycleCheckpoint('run1', restart=True, extend=True)

def test_a_complete_run_has_the_record_of_other_schedulers_too(tmp_path):
    def wd(): return ParamScheduler(dict(wd=combined_cos(.3, 0., .1, .01)))
    expected = results(fit(learner(tmp_path), wd()))
    assert {*expected['hps']} == {'lr', 'mom', 'wd'}
    assert_same(results(fit(learner(tmp_path), wd())), expected)

def scheduling(*names):
    return [ParamScheduler({name: combined_cos(.3, 0., .1, .01) for name in names})] if names else []

@pytest.mark.filterwarnings('ignore:.*has state for ParamScheduler')
@pytest.mark.parametrize('before, after', [((), ['wd']), (['wd'], ()), (['wd'], ['eps']), (['wd'], ['eps', 'wd'])],
                         ids=str)
@pytest.mark.parametrize('every', [7, None])
def test_a_scheduler_that_comes_or_goes(tmp_path, before, after, every):
    "Batches that it didn't schedule have no value of it."
    interrupt(learner(tmp_path), scheduling(*before), every=every)
    learn = fit(learner(tmp_path), scheduling(*after), every=every)
    frame, n_saved = learn.recorder.to_frame(), 28 if every else 24
    assert len(frame) == N_EPOCH * N_BATCH and frame.lr.tolist() == learn.recorder.plan.lrs[:, 0].tolist()
    assert {'wd', 'eps'} & {*frame} == {*after}
    for name in after:
        assert frame[name].isna().tolist() == [name not in before and i < n_saved for i in range(len(frame))]
    learn.recorder.plot_sched()

class Predicts(Callback):
    "fastai's ParamScheduler starts its record anew then, as at the beginning of a fit."
    order, is_busy = 200, False     # a prediction has epochs too
    def before_epoch(self):
        if self.is_busy: return
        self.is_busy = True
        self.learn.get_preds()
        self.is_busy = False

@pytest.mark.parametrize('every, at', [(1, 20), (7, 30), (None, 30)])
def test_a_record_that_a_prediction_cuts_is_cut_alike(tmp_path, every, at):
    def record(**kwargs):
        learn = learner(tmp_path)
        learn.fit_one_cycle(N_EPOCH, .05, cbs=[*scheduling('wd'), Predicts()], **kwargs)
        assert len(learn.recorder.to_frame().wd.dropna()) == N_BATCH < len(learn.recorder.to_frame())
        return learn.recorder.hps
    expected = record()
    interrupt(learner(tmp_path), [*scheduling('wd'), Predicts()], at, every=every)
    assert_same(record(checkpoint=CycleCheckpoint('run1', every=every)), expected)

def test_a_scheduler_that_comes_in_the_second_cycle_of_a_fine_tune(tmp_path):
    def fit(*cbs):
        learn = learner(tmp_path, splitter=two_groups)
        learn.fine_tune(2, .05, cbs=cbs, checkpoint='run1')
        return learn
    class InTheSecond(Callback):
        order = 20_000
        def after_epoch(self):
            if self.n_epoch == 2: raise RuntimeError('interrupted')
    with pytest.raises(RuntimeError, match='interrupted'): fit(InTheSecond())
    learn = fit(*scheduling('wd'))
    assert {name: len(values) for name, values in learn.recorder.hps.items()} == dict.fromkeys(['lr', 'mom', 'wd'], 36)
    assert learn.recorder.to_frame().wd.isna().tolist() == [i < 24 for i in range(36)]
    learn.recorder.plot_sched()

@pytest.mark.filterwarnings('ignore:.*added during the fit')
@pytest.mark.parametrize('event, at', [('before_fit', 3), ('before_fit', 9), ('before_fit', 20), ('before_epoch', 20)])
def test_a_callback_that_a_callback_adds_is_not_there_twice(tmp_path, event, at):
    "The same Learner is the same run: what the stopped fit has added is taken off."
    class Adds(Callback):
        def act(self):
            if self.learn.epoch == 1 or event == 'before_fit': self.learn.add_cb(Clips())
    class Clips(Callback):
        def after_backward(self):
            for p in self.learn.model.parameters(): p.grad.mul_(.5)
    def make():
        learn, adds = learner(tmp_path), Adds()
        setattr(adds, event, adds.act)
        return learn, adds
    learn, adds = make()
    learn.fit_one_cycle(2, .05, cbs=adds)
    expected = results(learn)
    learn, adds = make()
    before = list(learn.cbs)
    interrupt(learn, [adds], at, n_epoch=2)
    assert list(learn.cbs) == before and not hasattr(learn, 'clips')
    fit(learn, adds, n_epoch=2)
    assert_same(results(learn)['weights'], expected['weights'])

def test_a_callback_that_a_callback_replaces_is_put_back(tmp_path):
    class Scales(Callback):
        def __init__(self, by=.5): self._by = by
        def after_backward(self):
            for p in self.learn.model.parameters(): p.grad.mul_(self._by)
    class Replaces(Callback):
        def before_epoch(self):
            if self.epoch != 2: return
            self.learn.remove_cb(self.learn.scales)
            self.learn.add_cb(Scales(.25))
    learn = learner(tmp_path, cbs=(first := Scales()))
    interrupt(learn, [Replaces()], at=30)
    assert learn.scales is first and sum(isinstance(cb, Scales) for cb in learn.cbs) == 1

@pytest.mark.parametrize('length', [dict(n_epoch=N_EPOCH), dict(minutes=1)], ids=['epochs', 'minutes'])
@pytest.mark.parametrize('act', [lambda learn: setattr(learn.dls.train, 'bs', 8),
                                 lambda learn: learn.opt.set_hyper('eps', .1)], ids=['bs', 'eps'])
def test_what_a_stopped_fit_has_changed_is_put_back(tmp_path, act, length):
    "So a run that starts over is that of a new process; and an epoch by the clock is as long as at the start."
    learn = learner(tmp_path)
    learn.create_opt()
    before = learn.dls.train.bs, learn.opt.hypers[0]['eps']
    with pytest.raises(RuntimeError, match='interrupted'):
        learn.fit_one_cycle(max_lr=.05, cbs=[At(act, 5), Interrupt(9)], checkpoint='run1', **length)
    assert (learn.dls.train.bs, learn.opt.hypers[0]['eps']) == before

class NewOptimizer(Callback):
    order = 9_000
    def __init__(self, at, splitter=None, event='after_batch'):
        self._at, self._splitter = at, splitter
        setattr(self, event, self._make)
    def _make(self):
        if not self.training or self.train_iter != self._at: return
        if self._splitter: self.learn.splitter = self._splitter
        self.learn.create_opt()

class SpyAtSteps(Spy):
    order = 10_000
    def before_step(self): super().before_batch()
    def before_batch(self): pass

@pytest.mark.parametrize('event, at', [('after_batch', 10), ('after_batch', 20), ('before_batch', 20),
                                       ('after_backward', 20), ('before_train', 26)])
def test_another_optimizer_goes_on_with_the_cycle(tmp_path, event, at):
    "The first one has its momentum back, as well as the other one at the end."
    def new(): return NewOptimizer(24 if event == 'before_train' else 15, event=event)
    learn, spy = learner(tmp_path), SpyAtSteps()
    learn.create_opt()
    first = learn.opt
    learn.fit_one_cycle(N_EPOCH, .05, cbs=[new(), spy])
    plan = learn.recorder.plan
    assert [lr for lr, in spy.seen_lrs] == learn.recorder.hps['lr'] == plan.lrs[:, 0].tolist()
    assert [mom for mom, in spy.seen_moms] == learn.recorder.hps['mom'] == plan.moms.tolist()
    assert learn.opt is not first and learn.opt.hypers[0]['mom'] == first.hypers[0]['mom'] == .9
    interrupt(learner(tmp_path), [new()], at, every=1)
    again = fit(learner(tmp_path), new(), every=1)
    assert_same(again.model.state_dict(), learn.model.state_dict())
    assert again.opt.hypers[0]['mom'] == .9

def test_an_optimizer_without_momentum_goes_on_without(tmp_path):
    def without(learn): learn.opt = OptimWrapper(learn.model.parameters(), torch.optim.Adagrad)
    learn, spy = learner(tmp_path), Spy()
    learn.fit_one_cycle(N_EPOCH, .05, cbs=[At(without), spy])
    plan, hps = learn.recorder.plan, learn.recorder.hps
    assert [lr for lr, in spy.seen_lrs] == hps['lr'] == plan.lrs[:, 0].tolist()
    assert hps['mom'][:20] == plan.moms[:20].tolist() and np.isnan(hps['mom'][20:]).all()
    assert len(learn.recorder.to_frame()) == N_EPOCH * N_BATCH
    learn.recorder.plot_lr(show_moms=True)

def test_an_optimizer_that_does_not_fit_the_cycle_ends_it(tmp_path):
    with pytest.raises(ValueError, match='learn.opt must have as many parameter groups .* as at its start, 1, got 2'):
        learner(tmp_path).fit_one_cycle(N_EPOCH, .05, cbs=NewOptimizer(15, two_groups))

@pytest.mark.parametrize('at', [1, 12])
def test_a_later_start_that_is_interrupted_in_its_first_epoch(tmp_path, at):
    "Callbacks see no epoch that was left out."
    def fit(*cbs, **kwargs):
        learn = learner(tmp_path)
        learn.fit_one_cycle(N_EPOCH, .05, start_epoch=2, cbs=[SaveModelCallback(), EarlyStoppingCallback(), *cbs],
                            **kwargs)
        return results(learn)
    expected = fit()
    with pytest.raises(RuntimeError, match='interrupted'): fit(Interrupt(at), checkpoint='run1')
    assert read_state(tmp_path / CYCLE)['epoch'] == 2
    assert_same(fit(checkpoint='run1'), expected)

def test_a_fine_tune_that_starts_over_and_is_interrupted_in_its_first_cycle(tmp_path):
    "Its second cycle starts over too, though its file was complete; a refusal says what to type."
    def fit(*cbs, base_lr=.05, **kwargs):
        learn = learner(tmp_path, splitter=two_groups)
        with torch.no_grad(): learn.model[0].bias.fill_(bias)
        learn.fine_tune(2, base_lr, cbs=cbs, checkpoint=CycleCheckpoint('run1', **kwargs))
        return learn.model.state_dict()
    bias = 1.
    fit()
    bias = 2.
    with pytest.raises(RuntimeError, match='interrupted'): fit(Interrupt(3), restart=True)
    resumed = fit()
    assert_same(resumed, fit(restart=True))
    with pytest.raises(ValueError, match="'run1_frozen' belongs.*CycleCheckpoint.'run1', restart=True. to start over"):
        fit(base_lr=.1)

class Patient(Callback):
    "A setting, a count, and a number that only a late batch changes."
    order = 9_000
    def __init__(self, patience): self.patience, self.n, self.late, self.seen = patience, 0, 0, []
    def after_batch(self):
        if not self.training: return
        self.n += 1
        self.seen.append((self.patience, self.late))
        if self.train_iter == 25: self.late = 1

def test_a_setting_that_the_user_changes_on_the_same_callback_holds(tmp_path):
    "What the fit has changed after the save, with batch 24, is undone."
    cb = Patient(3)
    learn = learner(tmp_path, cbs=cb)
    interrupt(learn, at=26)
    assert (cb.patience, cb.n, cb.late) == (3, 26, 1)
    cb.patience = 5
    fit(learn)
    assert (cb.patience, cb.n) == (5, 48)
    assert cb.seen == [(3, 0)] * 24 + [(5, 0)] + [(5, 1)] * 23
