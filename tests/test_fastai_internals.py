"""What is expected of each private name of fastai, fastprogress and torch that is used here.

If an upgrade breaks something, it shows here first."""
import copy
from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from fastai.basics import Callback, CancelFitException, DataLoader, TfmdDL
from fastai.distributed import DistributedDL, DistributedTrainer
from fastprogress.fastprogress import ConsoleMasterBar, ConsoleProgressBar

from support.helpers import learner
from onecycle_callback.fastai_internals import (
    OneFitCallback, cancelled_by, has_persistent_workers, items_of, n_workers, show_no_total, start_clock,
    wrap_only)

def bars(**kwargs): return SimpleNamespace(progress=SimpleNamespace(**kwargs), n_epoch=200)

# The loop over the epochs

class Events(Callback):
    "Record each event with its epoch."
    def __init__(self): self.seen = []
    def __call__(self, name): self.seen.append((getattr(self.learn, 'epoch', None), name))

class Own(OneFitCallback):
    "A callback with epochs and batches of its own."
    def __init__(self, epochs=None, all_batches=None, stopped=None):
        self.epochs, self.stopped = epochs, stopped or self.stopped
        if all_batches is not None: self.all_batches, self.stands_in = all_batches, ('all_batches',)

STAND_INS = {'_call_one', '_with_events', 'validation_context', '__getstate__', 'all_batches'}

def events(epochs=None):
    learn, cb = learner(2), Events()
    learn.fit(4, cbs=[cb, Own(epochs)])
    assert not STAND_INS & vars(learn).keys()
    return cb.seen

@pytest.mark.parametrize('epochs', [range(4), iter(range(4))], ids=['range', 'any'])
def test_a_fit_over_all_epochs_has_fastais_events(epochs): assert events(epochs) == events()

@pytest.mark.parametrize('epochs', [range(2, 4), range(3), range(1, 3), iter((2, 3))],
                         ids=['last', 'first', 'middle', 'any'])
def test_a_fit_over_some_epochs_has_the_events_of_these(epochs):
    wanted = [2, 3] if not isinstance(epochs, range) else epochs
    def inside(seen): return [e for e in seen if e[1] not in ('before_fit', 'after_fit')]
    seen = events(epochs)
    assert inside(seen) == [e for e in inside(events()) if e[0] in wanted] != []
    assert seen[-1] == (wanted[-1], 'after_fit')

def test_batches_of_our_own():
    learn, seen = learner(), []
    learn.fit(2, cbs=Own(all_batches=lambda: seen.append(learn.training)))
    assert seen == [True, False] * 2

def test_a_fit_that_ends_with_an_error_leaves_nothing_behind():
    learn = learner()
    with pytest.raises(ZeroDivisionError): learn.fit(2, cbs=Own(all_batches=lambda: 1 / 0))
    assert not STAND_INS & vars(learn).keys()

def test_what_the_user_put_on_the_learner_stays():
    learn, seen = learner(), []
    learn._call_one = own = lambda event: seen.append(event) or type(learn)._call_one(learn, event)
    learn.fit(1, cbs=Own())
    assert vars(learn)['_call_one'] is own and seen.count('before_batch') == 13

def test_a_fit_without_a_callback_of_ours_has_nothing_put_on():
    found = []
    class Look(Callback):
        def before_batch(self): found.extend(STAND_INS & vars(self.learn).keys())
    learner().fit(1, cbs=Look())
    assert found == []

# Who ended the fit

class Stop(Callback):
    def after_loss(self): raise CancelFitException

class Last(Callback):
    def after_cancel_fit(self): self.who, self.event = cancelled_by()

def test_the_callback_and_the_event_that_cancelled_a_fit_are_known():
    stop, last = Stop(), Last()
    learner().fit(1, cbs=[stop, last])
    assert (last.who, last.event) == (stop, 'after_loss') and cancelled_by() == (None, None)

def test_a_cancelled_fit_is_told_before_any_callback():
    seen = []
    class Cancelled(Callback):
        def after_cancel_fit(self): seen.append('callback')
    learn = learner()
    learn.fit(1, cbs=[Stop(), Cancelled(), Own(stopped=lambda: seen.append('stopped'))])
    assert seen == ['stopped', 'callback']

# The bars

def test_a_bar_that_starts_late_shows_every_epoch(capsys):
    bar = ConsoleMasterBar(range(200))
    start_clock(bars(mbar=bar))
    shown = []
    for epoch in (150, 151):
        bar.update(epoch)
        shown.append(bar.main_bar.last_v)
    assert shown == [150, 151]

def test_a_bar_counts_without_a_total(capsys):
    bar = ConsoleProgressBar(range(7))
    bar.update(0)
    show_no_total(bars(pbar=bar))
    bar.update(1)
    out = capsys.readouterr().out
    assert '[0/7' in out and '[1/?' in out

def test_a_learner_without_bars_is_left_alone():
    learn = SimpleNamespace(n_epoch=3)
    start_clock(learn)
    show_no_total(learn)
    assert vars(learn) == dict(n_epoch=3)

# Loaders, and how fastai divides them among processes

@pytest.mark.parametrize('make, n', [
    (lambda items: DataLoader(items, bs=4), 10), (lambda items: TfmdDL(items, bs=4), 10),
    (lambda items: TfmdDL(items, bs=4, n=7), 7)], ids=['all', 'TfmdDL', 'a part'])
def test_the_items_of_an_epoch(make, n): assert items_of(make(list(range(10)))) == n

@pytest.mark.parametrize('loader', [DataLoader, torch.utils.data.DataLoader], ids=['fastai', 'torch'])
def test_workers(loader):
    with_one, without = loader([1, 2], num_workers=1, persistent_workers=True), loader([1, 2])
    assert (n_workers(with_one), n_workers(without), n_workers(range(2))) == (1, 0, 0)
    assert [has_persistent_workers(dl) for dl in (with_one, without, range(2))] == [True, False, False]

@pytest.mark.parametrize('method, names', [(DistributedDL._broadcast, ['self', 't', 'rank']),
                                           (DistributedTrainer._wrap_dl, ['self', 'dl'])], ids=['order', 'wrap'])
def test_what_is_replaced_takes_what_the_replacement_takes(method, names):
    assert list(signature(method).parameters) == names

def test_only_some_loaders_are_wrapped():
    class Trainer:
        def _wrap_dl(self, dl): return [dl]
    trainer = Trainer()
    wrap_only(trainer, str.isupper)
    assert [trainer._wrap_dl(dl) for dl in 'aB'] == ['a', ['B']]

# A callback of one fit (all else about fits inside a fit is in test_nested.py)

class Count(OneFitCallback):
    def __init__(self): self.seen = []
    def before_fit(self): self.seen.append('before_fit')
    def after_epoch(self): self.seen.append('after_epoch')

class Validating(Callback):
    def after_train(self): self.learn.validate()

class Copy(Callback):
    def before_train(self): self.copied = copy.deepcopy(self.learn)

def test_a_validation_in_between_does_not_call_it():
    learn, count = learner(), Count()
    learn.fit(2, .01, cbs=[Validating(), count])
    assert count.seen == ['before_fit', 'after_epoch', 'after_epoch']
    assert (len(learn.recorder.values), len(learn.recorder.losses)) == (2, 24)

def test_a_copy_is_without_it():
    learn, cb = learner(), Copy()
    before = [type(cb) for cb in learn.cbs]
    learn.fit(1, .01, cbs=[cb, Count()])
    assert [type(cb) for cb in cb.copied.cbs] == [*before, Copy]
