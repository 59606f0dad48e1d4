"""What a user sets between an interrupt and the rerun holds, and what a fit has left is put back."""
import sys

import numpy as np
import pytest
import torch
from fastai.basics import Callback, SimpleNamespace, nn
from fastai.callback.mixup import MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import ParamScheduler, combined_cos
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.distributed import ParallelTrainer
from torch.nn import functional as F

from support.interrupted import N_EPOCH, Interrupt, assert_same, learner, results, rows
from onecycle_callback import CycleCheckpoint
from onecycle_callback.resume.file import read_state

def fit(learn, *cbs, every=7, n_epoch=N_EPOCH, **kwargs):
    learn.fit_one_cycle(n_epoch, .05, cbs=cbs, checkpoint=CycleCheckpoint('run1', every=every), **kwargs)
    return learn

def interrupt(learn, *cbs, at=30, **kwargs):
    with pytest.raises(KeyboardInterrupt): fit(learn, *cbs, Interrupt(at, KeyboardInterrupt), **kwargs)
    return learn

PLACES = pytest.mark.parametrize('at, every', [(30, 7), (30, None), (5, None)])
PROCESSES = pytest.mark.parametrize('is_new', [True, False], ids=['new process', 'same notebook'])

# Settings

class Holder(Callback):
    "A callback that has settings of each kind, and counts."
    def __init__(self, n=1):
        self.number, self.tuple, self.list, self.dict = n, (n, n), [n, 2], dict(n=n)
        self.object = SimpleNamespace(n=n)
        self.count, self.object_with_count = 0, SimpleNamespace(count=0)

    def settings(self): return self.number, self.tuple, self.list, self.dict, self.object.n

    def after_batch(self):
        if not self.training: return
        self.count += 1
        self.object_with_count.count += 1

@PROCESSES
@PLACES
def test_settings_of_each_kind_hold(tmp_path, at, every, is_new):
    learn, cb = learner(tmp_path), Holder()
    interrupt(learn, cb, at=at, every=every)
    new = Holder(5)
    if is_new: learn, cb = learner(tmp_path), new
    else: cb.number, cb.tuple, cb.list, cb.dict, cb.object = new.number, new.tuple, new.list, new.dict, new.object
    fit(learn, cb, every=every)
    assert cb.settings() == new.settings() and cb.count == cb.object_with_count.count == N_EPOCH * 12

@PROCESSES
@PLACES
def test_a_setting_is_changed_in_its_object(tmp_path, at, every, is_new):
    learn, cb = learner(tmp_path), Holder()
    interrupt(learn, cb, at=at, every=every)
    if is_new: learn, cb = learner(tmp_path), Holder()
    cb.list[0] = cb.dict['n'] = cb.object.n = 5
    fit(learn, cb, every=every)
    assert (cb.list, cb.dict, cb.object.n, cb.count) == ([5, 2], dict(n=5), 5, N_EPOCH * 12)

@PROCESSES
def test_another_alpha(tmp_path, is_new):
    learn = interrupt(learner(tmp_path, cbs=MixUp(.4)))
    if is_new: learn = learner(tmp_path, cbs=MixUp(.9))
    else: learn.mix_up.distrib = MixUp(.9).distrib
    fit(learn)
    assert float(learn.mix_up.distrib.concentration0) == pytest.approx(.9)

@PROCESSES
@PLACES
def test_settings_of_loaders_hold(tmp_path, at, every, is_new):
    learn = interrupt(learner(tmp_path), at=at, every=every)
    if is_new: learn = learner(tmp_path)
    learn.dls.valid.bs, learn.dls.train.shuffle = 5, False
    fit(learn, every=every)
    assert (learn.dls.valid.bs, learn.dls.train.shuffle) == (5, False)

@pytest.mark.skipif(sys.platform == 'darwin', reason='fastai starts no workers there')
@PROCESSES
def test_the_number_of_workers_holds(tmp_path, is_new):
    learn = interrupt(learner(tmp_path, workers=1))
    if is_new: learn = learner(tmp_path)
    else: learn.dls.train.fake_l.num_workers = 0
    with pytest.warns(UserWarning, match=r'had \[1, 0\] workers .* and have \[0, 0\] now'): fit(learn)
    assert learn.dls.train.fake_l.num_workers == 0

def test_what_a_user_adds_stays(tmp_path):
    learn, cb = learner(tmp_path), Holder()
    interrupt(learn, cb)
    learn.notes = cb.notes = 'mine'
    fit(learn, cb)
    assert learn.notes == cb.notes == 'mine'

@pytest.mark.parametrize('between', [
    lambda learn: learn.validate(), lambda learn: learn.get_preds(), lambda learn: learn.lr_find(show_plot=False),
    lambda learn: learn.fit(1), lambda learn: learn.model(learn.dls.valid.one_batch()[0])],
    ids=['validate', 'get_preds', 'lr_find', 'fit', 'forward'])
@PLACES
def test_what_is_done_in_between_is_no_wish(tmp_path, between, at, every):
    "The model has a layer that remembers what it has seen."
    calm = learner(tmp_path / 'calm', cbs=Holder())
    calm.fit_one_cycle(N_EPOCH, .05)
    expected, learn = results(calm), learner(tmp_path, cbs=Holder())
    interrupt(learn, at=at, every=every)
    between(learn)
    fit(learn, every=every)
    assert_same(results(learn), expected)
    assert learn.holder.count == calm.holder.count

class Early(Callback):
    "A callback with state of each kind that changes in the first batches only."
    def __init__(self): self.factor, self.list, self.object = 1., [], SimpleNamespace(n=0)

    def after_batch(self):
        if not self.training or self.train_iter > 6: return
        self.factor *= .8
        self.list.append(self.train_iter)
        self.object.n += 1

    def after_loss(self):
        if self.training: self.learn.loss_grad = self.learn.loss_grad * (self.factor + len(self.list) + self.object.n)

@pytest.mark.parametrize('ends', ['sp', 'ss', 'ps', 'psp', 'spsp'])
def test_state_stays_state_however_often_a_run_resumes(tmp_path, ends):
    "In the same notebook (s) or in a new process (p)."
    calm = learner(tmp_path / 'calm', cbs=Early())
    calm.fit_one_cycle(N_EPOCH, .05)
    learn = interrupt(learner(tmp_path, cbs=Early()), at=9)
    for i, end in enumerate(ends):
        if end == 'p': learn = learner(tmp_path, cbs=Early())
        if i < len(ends) - 1: interrupt(learn, at=16 + 9 * i)
    fit(learn)
    assert_same(learn.model.state_dict(), calm.model.state_dict())
    assert (learn.early.factor, learn.early.list, learn.early.object.n) == (
        calm.early.factor, calm.early.list, calm.early.object.n)

class Recording:
    "A loss that records its parts, as numbers and as tensors, also in an inner one, and knows its Learner."
    def __init__(self, learn=None):
        self.learn, self.inner, self.parts = learn, None if learn is None else Recording(), dict()
    def __call__(self, pred, y):
        self.last = F.cross_entropy(pred, y)
        self.parts['ce'], self.parts['tensor'], self.number = float(self.last), self.last, float(pred[0, 0])
        return self.last + (0 if self.inner is None else self.inner(pred, y))

def recording(path, **kwargs):
    learn = learner(path, splitter=lambda model: [[*model[:4].parameters()], [*model[4:].parameters()]], **kwargs)
    learn.loss_func = Recording(learn)
    return learn

BETWEEN = pytest.mark.parametrize('between', [lambda learn: None, lambda learn: learn.validate(),
                                              lambda learn: learn.lr_find(show_plot=False)],
                                  ids=['nothing', 'validate', 'lr_find'])

@BETWEEN
@PROCESSES
@PLACES
def test_a_loss_that_records_its_parts(tmp_path, between, at, every, is_new):
    calm = recording(tmp_path / 'calm')
    calm.fit_one_cycle(N_EPOCH, .05)
    learn = interrupt(recording(tmp_path), at=at, every=every)
    if is_new: learn = recording(tmp_path)
    else: between(learn)
    fit(learn, every=every)
    assert_same(learn.model.state_dict(), calm.model.state_dict())

def test_a_loss_that_has_recorded_other_parts_before(tmp_path):
    "An `lr_find` without a seed, as notebooks have it."
    def noted(seed):
        learn = recording(tmp_path)
        torch.manual_seed(seed)
        learn.loss_func(torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))
        return learn
    interrupt(noted(1))
    fit(noted(2))
    fit(noted(3))

def test_a_loss_that_records_in_the_first_cycle_of_a_fine_tune(tmp_path):
    def fine_tune(path, *cbs, **kwargs):
        learn = recording(path)
        learn.fine_tune(2, .05, freeze_epochs=2, cbs=cbs, **kwargs)
        return learn
    calm = fine_tune(tmp_path / 'calm')
    with pytest.raises(KeyboardInterrupt): fine_tune(tmp_path, InSecond(), checkpoint='run1')
    assert_same(fine_tune(tmp_path, checkpoint='run1').model.state_dict(), calm.model.state_dict())

class Odd(nn.Module):
    "A loss that holds what few losses hold."
    def __init__(self):
        super().__init__()
        self.scripted, self.itself = torch.jit.script(nn.MSELoss()), []
        self.itself.append(self.itself)
        self.tensors = dict(conj=torch.ones(30, dtype=torch.complex64).conj(), sparse=torch.eye(3).to_sparse_csr(),
                            meta=torch.empty(3, device='meta'), half=torch.ones(30, dtype=torch.bfloat16))
        self.noted, self.many = {'': dict(a=1)}, np.ones(3_000_000)
        self.functions = [torch.relu, len, nn.MSELoss, lambda x: x]
    def forward(self, pred, y): return F.cross_entropy(pred, y)

@pytest.mark.filterwarnings("ignore:.*Checkpoint 'run1'", 'ignore:Sparse CSR', 'ignore:.torch.jit.script')
def test_an_odd_loss(tmp_path):
    def odd():
        learn = learner(tmp_path)
        learn.loss_func = Odd()
        return learn
    interrupt(odd())
    fit(odd())

class Shifts(Callback):
    "A distribution whose parameters change."
    def __init__(self):
        base, shift = torch.distributions.Normal(0., 1.), torch.distributions.AffineTransform(torch.zeros(1), 1.)
        self.shifted = torch.distributions.TransformedDistribution(base, [shift])
    def after_batch(self): self.shifted.transforms[0].loc.add_(1.)

def test_a_distribution_that_changes_is_state(tmp_path):
    interrupt(learner(tmp_path), Shifts())
    fit(learner(tmp_path), again := Shifts())
    assert again.shifted.transforms[0].loc == N_EPOCH * (12 + 2)

# What a fit puts back

@pytest.mark.parametrize('append', [False, True])
@pytest.mark.parametrize('on_learner', [False, True])
def test_the_logger_is_put_back(tmp_path, append, on_learner):
    learn, log = learner(tmp_path), CSVLogger(append=append)
    learn.recorder.add_time = False
    if on_learner: learn.add_cb(log)
    cbs = [] if on_learner else [log]
    with learn.no_bar():
        interrupt(learn, *cbs)
        fit(learn, *cbs)
    calm = learner(tmp_path / 'calm')
    calm.path.mkdir()
    calm.recorder.add_time = False
    with calm.no_bar(): calm.fit_one_cycle(N_EPOCH, .05, cbs=CSVLogger())
    assert (tmp_path / 'history.csv').read_bytes() == (tmp_path / 'calm/history.csv').read_bytes()

class Wraps(Callback):
    "A callback that trains with another model, as one for several devices does."
    def before_fit(self): self.learn.model = nn.Sequential(self.learn.model)
    def after_fit(self): self.learn.model = self.learn.model[0]

@pytest.mark.parametrize('wrap', [Wraps, pytest.param(lambda: ParallelTrainer(device_ids=[]), marks=pytest.mark.skipif(
    torch.cuda.is_available(), reason='it wants the model on a GPU then'))], ids=['own', "fastai's"])
@PLACES
def test_the_model_is_put_back(tmp_path, wrap, at, every):
    learn = learner(tmp_path)
    model = learn.model
    interrupt(learn, wrap(), at=at, every=every)
    assert learn.model is model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('warnings.warn', lambda *_, **__: None)     # what `Wraps` takes off at the end isn't saved
        fit(learn, wrap(), every=every)
    calm = learner(tmp_path / 'calm')
    calm.fit_one_cycle(N_EPOCH, .05, cbs=wrap())
    assert learn.model is model
    assert_same(learn.model.state_dict(), calm.model.state_dict())

class Validates(Callback):
    "Validate at the end of each epoch, with which fastai begins the record of another scheduler anew."
    order, is_busy = 200, False
    def after_epoch(self):
        if self.is_busy: return
        self.is_busy = True
        self.learn.validate()
        self.is_busy = False

class EndsAfter(Callback):
    order = 20_000
    def __init__(self, *epochs): self.epochs = epochs
    def after_epoch(self):
        if self.epoch in self.epochs and not self.learn.validates.is_busy: raise KeyboardInterrupt

@pytest.mark.parametrize('epochs', [(N_EPOCH - 1,), (1, N_EPOCH - 1), (1,)])
def test_a_record_that_is_no_state_is_left_alone(tmp_path, epochs):
    "It lies in the record of the cycle too, which is state."
    def fit_with(path, *cbs, **kwargs):
        learn = learner(path)
        other = ParamScheduler(dict(wd=combined_cos(.3, 0., .1, .01)))
        learn.fit_one_cycle(N_EPOCH, .05, cbs=[Validates(), other, *cbs], **kwargs)
        return learn.recorder.hps
    expected = fit_with(tmp_path / 'calm')
    for epoch in epochs:
        with pytest.raises(KeyboardInterrupt): fit_with(tmp_path, EndsAfter(epoch), checkpoint='run1')
    assert fit_with(tmp_path, checkpoint='run1') == expected

def test_a_container_in_two_places_is_one(tmp_path):
    "One of them is a setting, and one is state."
    class Two(Callback):
        def __init__(self): self.list, self.state = [], dict(n=0)
        def before_fit(self): self.state['list'] = self.list
        def after_batch(self):
            self.state['n'] += 1
            if self.train_iter == 40: self.list.append(self.train_iter)
    interrupt(learner(tmp_path), Two())
    fit(learner(tmp_path), again := Two())
    assert again.state['list'] is again.list and 40 in again.list

# The end of a run

class Ends(Callback):
    order = 20_000
    def after_epoch(self):
        if self.epoch == N_EPOCH - 1: raise KeyboardInterrupt

def test_no_epoch_is_left(tmp_path):
    "Where the run ended between its last epoch and its end, the model is as the last validation has left it."
    with pytest.raises(KeyboardInterrupt): fit(learner(tmp_path), Ends())
    learn = fit(learner(tmp_path))
    assert not learn.model.training

def test_a_run_that_ended_early_shows_all_its_rows(tmp_path, capsys):
    stop = EarlyStoppingCallback(patience=1, min_delta=100.)
    with pytest.warns(UserWarning, match='stopped early'): learn = fit(learner(tmp_path), stop)
    assert [row[0] for row in read_state(tmp_path / 'models/run1.cycle')['rows']] == [0, 1]
    capsys.readouterr()
    fit(learner(tmp_path), stop)
    assert rows(capsys.readouterr().out) == [0, 1] and len(learn.recorder.values) == 2

class Total(Callback):
    "A callback that goes on from one fit to the next; with two groups, it changes only while the first one is frozen."
    def __init__(self): self.total = 0.

    def after_batch(self):
        is_changing = len(self.opt.param_lists) == 1 or self.opt.frozen_idx
        if self.training and is_changing: self.total = .9 * self.total + float(self.loss)

    def after_loss(self): self.learn.loss_grad = self.learn.loss_grad * (1 + self.total)

def test_a_complete_run_hands_its_callbacks_on(tmp_path):
    first = Total()
    fit(learner(tmp_path), first)
    again = Total()
    fit(learner(tmp_path), again)
    assert again.total == first.total

class Late(Callback):
    "A callback whose state has a place only once a fit begins."
    def before_fit(self): self.seen = dict(n=0)
    def after_batch(self): self.seen['n'] += 1
    def state_dict(self): return dict(self.seen)
    def load_state_dict(self, state): self.seen.update(state)

def test_a_complete_run_whose_callback_cannot_load_its_state(tmp_path):
    learn = fit(learner(tmp_path), Late())
    again = learner(tmp_path)
    with pytest.warns(UserWarning, match='callbacks are left as they are, since one cannot load its state'):
        fit(again, Late())
    assert_same(again.model.state_dict(), learn.model.state_dict())
    assert_same(again.recorder.values, learn.recorder.values)

def fine_tune(path, *cbs, **kwargs):
    learn = learner(path, splitter=lambda model: [[*model[:4].parameters()], [*model[4:].parameters()]])
    total = Total()
    learn.fine_tune(2, .05, freeze_epochs=2, cbs=[total, *cbs], **kwargs)
    return learn, total

class InSecond(Callback):
    "Interrupt the second cycle."
    order = 20_000
    def after_batch(self):
        if self.training and self.train_iter == 17 and self.opt.frozen_idx == 0: raise KeyboardInterrupt

def test_a_callback_goes_on_from_one_cycle_to_the_next(tmp_path):
    calm, expected = fine_tune(tmp_path / 'calm')
    with pytest.raises(KeyboardInterrupt): fine_tune(tmp_path, InSecond(), checkpoint='run1')
    learn, total = fine_tune(tmp_path, checkpoint='run1')
    assert total.total == expected.total
    assert_same(learn.model.state_dict(), calm.model.state_dict())
