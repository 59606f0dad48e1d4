"""What a Learner holds besides weights survives a crash: loaders with state, loss functions, aliases, lazy models."""
import datetime
import operator
import random
import threading
import warnings
from collections import OrderedDict, defaultdict, deque
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.basics import (Adam, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, L, Learner, MSELossFlat,
                           accuracy, set_seed)
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import OptimWrapper
from fastai.text.data import LMDataLoader
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from support.interrupted import N_BATCH, N_EPOCH, Interrupt, assert_same, items, learner
from support.pairs import each
from onecycle_callback import CycleCheckpoint
from onecycle_callback.resume.objects import CannotStore, Standing, dump

pytestmark = pytest.mark.matrix

def fit(learn, cbs=None, checkpoint=None, n_epoch=N_EPOCH):
    learn.fit_one_cycle(n_epoch, .05, cbs=cbs, checkpoint=checkpoint)

def outcome(learn, seen=lambda learn: None):
    "Return the weights, the losses, the record, and whatever else `seen` finds, of a Learner of any kind."
    r = learn.recorder
    return dict(seen=seen(learn), weights=learn.model.state_dict(), losses=L(r.losses).map(float), hps=r.hps,
                values=[list(v) for v in r.values],
                draws=(random.random(), np.random.rand(), torch.rand(2)))

def check(make, path, cbs=lambda: [], at=30, every=7, seen=lambda learn: None, n_epoch=N_EPOCH,
          in_the_same_learner=False):
    "Check that a cycle interrupted after batch `at` ends with the bits of an uninterrupted one; return its Learner."
    calm = make(path)
    fit(calm, cbs(), n_epoch=n_epoch)
    expected = outcome(calm, seen)
    keep = CycleCheckpoint('run1', every=every)
    first = make(path)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', "(?s).*Checkpoint 'run1'")
        with pytest.raises(RuntimeError, match='interrupted'): fit(first, [*cbs(), Interrupt(at)], keep, n_epoch)
        torch.rand(3)
        again = first if in_the_same_learner else make(path)
        fit(again, cbs(), keep, n_epoch)
    assert_same(outcome(again, seen), expected)
    return again

# At the end of an epoch, within one, at the batch that was saved last
PLACES = [(None, 30), (7, 30), (13, 13)]
at_places = pytest.mark.parametrize('every, at', PLACES)

# Loaders

def language_model(path, seed=1):
    "45 texts of several lengths, in 60 batches per epoch: what an epoch reads depends on all shuffles before it."
    set_seed(seed)
    rng = random.Random(0)
    texts = [torch.tensor([rng.randrange(20) for _ in range(rng.randrange(20, 60))]) for _ in range(45)]
    train, valid = (LMDataLoader([(t,) for t in texts], bs=2, seq_len=14, shuffle=shuffle) for shuffle in (True, False))
    model = nn.Sequential(nn.Embedding(20, 8), nn.Dropout(.1), nn.Linear(8, 20))
    return Learner(DataLoaders(train, valid, device='cpu'), model, loss_func=CrossEntropyLossFlat(), path=path)

@pytest.mark.parametrize('every, at', [(None, 150), (49, 150), (20, 61), (59, 59)])
def test_language_model(tmp_path, every, at):
    assert len(language_model(tmp_path).dls.train) > 50
    check(language_model, tmp_path, at=at, every=every, n_epoch=3)

class Rotating(torch.utils.data.Sampler):
    "A sampler whose order depends on how many epochs it has seen."
    def __init__(self, data): self.data, self.epoch, self.order = data, 0, list(range(len(data)))
    def __len__(self): return len(self.data)
    def __iter__(self):
        self.epoch += 1
        self.order[:] = self.order[self.epoch:] + self.order[:self.epoch]
        return iter(self.order)

class Batches(torch.utils.data.BatchSampler):
    "A batch sampler that remembers how many batches it has made, and starts with another batch each time."
    def __init__(self, *args):
        super().__init__(*args)
        self.n = 0
    def __iter__(self):
        batches = list(super().__iter__())
        for i in range(len(batches)):
            yield batches[(i + self.n) % len(batches)]
        self.n += 5

def with_sampler(path, batch_sampler=False, workers=0):
    learn, data = learner(path), items(4 * N_BATCH - 2)
    sampler = Rotating(data)
    kwargs = dict(batch_sampler=Batches(sampler, 4, False)) if batch_sampler else dict(sampler=sampler, batch_size=4)
    learn.dls.loaders[0] = torch.utils.data.DataLoader(data, num_workers=workers, **kwargs)
    return learn

@pytest.mark.parametrize('place, batch_sampler', each(PLACES, [False, True]), ids=str)
def test_sampler_with_a_memory(tmp_path, batch_sampler, place):
    every, at = place
    check(partial(with_sampler, batch_sampler=batch_sampler), tmp_path, every=every, at=at)

@pytest.mark.slow
def test_sampler_with_a_memory_and_workers(tmp_path): check(partial(with_sampler, workers=2), tmp_path)

class Counting(DataLoader):
    "A loader whose order depends on how often it was used."
    n_used = 0
    def shuffle_fn(self, idxs):
        self.n_used += 1
        return idxs[self.n_used:] + idxs[:self.n_used]

@at_places
def test_loader_with_a_memory(tmp_path, every, at):
    def make(path):
        learn = learner(path)
        learn.dls.loaders[0] = Counting(items(4 * N_BATCH - 2), bs=4, shuffle=True)
        return learn
    check(make, tmp_path, every=every, at=at)

# What callbacks hold

class Clamp(Callback):
    "Keep the parameters within a bound."
    def before_fit(self): self.params = list(self.model.parameters())
    def after_step(self):
        for p in self.params: p.data.clamp_(-.2, .2)

class ClampMade(Clamp):
    "Note the parameters, and a view of the first, in the midst of the training."
    def before_fit(self): self.params = []
    def after_batch(self):
        self.params, self.first = self.params or list(self.model.parameters()), next(self.model.parameters()).data[:2]

@pytest.mark.parametrize('place, clamp', each(PLACES, [ClampMade, Clamp]))
def test_list_of_parameters(tmp_path, clamp, place):
    (every, at), kept = place, clamp()
    again = check(learner, tmp_path, lambda: [clamp()], every=every, at=at)
    assert max(p.abs().max() for p in again.model.parameters()) <= .2 and kept is not None

class Tied(nn.Module):
    "A layer that uses the weight of another one, which it keeps in a list."
    def __init__(self, layer): super().__init__(); self.tied, self.bias = [layer.weight], nn.Parameter(torch.zeros(2))
    def forward(self, x): return F.linear(x, self.tied[0], self.bias)

@at_places
def test_tied_weights_in_a_list(tmp_path, every, at):
    def make(path):
        learn = learner(path)
        learn.model[5] = nn.Sequential(hidden := nn.Linear(16, 2), nn.Linear(2, 16), Tied(hidden))
        learn.model = learn.model
        return learn
    again = check(make, tmp_path, every=every, at=at)
    assert again.model[5][2].tied[0] is again.model[5][0].weight

class Averages(Callback):
    "Make a second model when it is needed, and average the weights in it."
    def __init__(self): self.swa = None
    def after_batch(self):
        if not self.training: return
        if self.swa is None: self.swa = AveragedModel(self.model)
        self.swa.update_parameters(self.model)

class Own(Averages):
    "The same with a copy of the model."
    def after_batch(self):
        if not self.training: return
        if self.swa is None:
            from copy import deepcopy
            self.swa = deepcopy(self.model).requires_grad_(False)
        for a, b in zip(self.swa.parameters(), self.model.parameters()): a.data.lerp_(b.data, .1)

def averaged(learn): return None

@pytest.mark.parametrize('place, average', each(PLACES, [Averages, Own]))
def test_averaged_model_made_on_the_way(tmp_path, average, place):
    (every, at), made = place, []
    def cbs():
        made.append(average())
        return [made[-1]]
    check(learner, tmp_path, cbs, every=every, at=at)
    calm, _, again = made
    assert_same(again.swa.state_dict(), calm.swa.state_dict())
    assert all(a.requires_grad == b.requires_grad for a, b in zip(again.swa.parameters(), calm.swa.parameters()))

class Color(Enum): RED, BLUE = 1, 2

class Point:
    def __init__(self, x): self.x, self.trace = x, [x]

class Slotted:
    __slots__ = 'x', 'y'

class Odds(Callback):
    "Change values of many types, and draw from generators."
    def __init__(self):
        self.last, self.both = deque(maxlen=5), []
        self.alias, self.itself, self.point = self.both, [], Point(0)
        self.itself.append(self.itself)
        self.generators = [random.Random(1), torch.Generator().manual_seed(1), np.random.default_rng(1),
                           np.random.RandomState(1)]
        self.n, self.op, self.loop = defaultdict(int), partial(operator.add, 0), {}
        self.loop['itself'] = self.loop
    def after_batch(self):
        if not self.training: return
        n = self.train_iter
        rng, gen, npg, legacy = self.generators
        self.floats = [n / 7 + i for i in range(12)]
        self.drawn = [rng.random(), torch.rand(1, generator=gen), npg.random(), legacy.rand()]
        self.last.append(n)
        self.alias.append(n)
        self.n[n % 3] += 1
        self.point.x, self.point.trace = n, self.point.trace + [n]
        self.itself.append(n)
        self.loop['n'] = n
        self.made = Point(n)
        self.slotted = Slotted()
        self.slotted.x, self.slotted.y = n, [n]
        self.by_parameter = {p: i for i, p in enumerate(self.model.parameters())}
        self.when = datetime.datetime(2026, 1, 1, 0, 0, n % 60)
        self.color, self.exact = Color(1 + n % 2), Decimal(n) / 7
        self.dtype, self.np_dtype = torch.float16, np.dtype('>f4')
        self.path, self.where = Path(str(n)), torch.device('cpu')
        self.big, self.long, self.swapped = 3 ** (700 + n), np.longdouble(n) / 3, np.array([n], '>i2')
        self.days, self.text, self.single = np.array(['2026-01-01'], 'M8[D]'), np.array(['a', 'bc']), np.float32(n) / 3
        self.ordered, self.frozen, self.sparse = OrderedDict(b=n, a=1), frozenset([n]), torch.eye(3).to_sparse() * n
        self.op, self.cut = partial(operator.add, n), (slice(np.int64(n), None), slice([n], torch.tensor(n)))

def odd_values(odds):
    left_out = ('_learn', 'learn', 'generators', 'by_parameter')
    return {k: v for k, v in vars(odds).items() if k not in left_out} | dict(
        loop=odds.loop['n'], point=vars(odds.point), made=vars(odds.made), slotted=(odds.slotted.x, odds.slotted.y),
        itself=odds.itself[1:], last=(odds.last.maxlen, list(odds.last)), n=dict(odds.n), op=odds.op(1),
        when=odds.when.isoformat(), sparse=odds.sparse.to_dense(), swapped=odds.swapped.tolist(),
        days=str(odds.days), text=odds.text.tolist(), long=repr(odds.long))

@at_places
def test_values_of_many_types(tmp_path, every, at):
    made = []
    def cbs():
        made.append(Odds())
        return [made[-1]]
    check(learner, tmp_path, cbs, every=every, at=at)
    calm, _, again = made
    assert_same(odd_values(again), odd_values(calm))
    assert again.alias is again.both and again.itself[0] is again.itself[0][0] and isinstance(again.n, defaultdict)
    assert again.loop['itself'] is again.loop
    assert [*again.by_parameter] == [*again.model.parameters()] if again.learn else True
    for name in ('swapped', 'days', 'text'): assert getattr(again, name).dtype == getattr(calm, name).dtype, name

class Zone(datetime.tzinfo): pass

@pytest.mark.parametrize('value, what', [
    (partial(nn.MSELoss(), torch.ones(1)), 'functools.partial of other objects'),
    (datetime.datetime(2026, 1, 1, tzinfo=Zone()), 'datetime.datetime of other objects'),
    ([{} for _ in range(200_000)], '200,001 small objects')],
    ids=['partial', 'zone', 'many'])
def test_what_the_reader_would_refuse_is_not_written(value, what):
    with pytest.raises(CannotStore, match=what): dump(value, Standing())

def test_an_object_of_a_class_that_is_met_too_late_is_named(tmp_path):
    "A file may come from a stranger: built are objects of classes that stand there, or that their code names."
    late = [Point]
    class Late(Callback):
        point = None
        def after_batch(self): self.point = late[0](self.iter)
    with pytest.warns(UserWarning, match=r"does not hold Late\.point, which cannot be stored: it starts over"):
        with pytest.raises(RuntimeError, match='interrupted'): fit(learner(tmp_path), [Late(), Interrupt(30)], 'run1')

def counter():
    n = 0
    def count():
        nonlocal n
        n += 1
        return n
    return count

def mean():
    total = torch.zeros(())
    def add(x):
        nonlocal total
        total = total + x
        return total
    return add

def recursive(n=0):
    def calls_itself(depth=2): return calls_itself(depth - 1) if depth else len(threads)
    threads = [threading.Lock()]
    return calls_itself

@pytest.mark.parametrize('make, is_lost', [
    (counter, True), (lambda: partial(counter()), True), (lambda: [counter()], True), (lambda: dict(f=counter()), True),
    (lambda: mean(), True), (recursive, False), (lambda: (lambda loss=nn.MSELoss(): loss), False)],
    ids=['counter', 'partial', 'list', 'dictionary', 'tensor', 'constant', 'default'])
def test_what_a_function_remembers_is_named(tmp_path, make, is_lost):
    "In variables of the function around it, which no file holds; a function that only reads them is no alarm."
    class Calls(Callback):
        def __init__(self): self.f = make()
        def after_batch(self):
            f = self.f['f'] if isinstance(self.f, dict) else self.f[0] if isinstance(self.f, list) else self.f
            if self.training: f(1) if make.__code__.co_names == ('mean',) else f()
    with warnings.catch_warnings(record=True) as caught, pytest.raises(RuntimeError, match='interrupted'):
        warnings.simplefilter('always')
        fit(learner(tmp_path), [Calls(), Interrupt(30)], CycleCheckpoint('run1', every=7))
    said = [str(w.message) for w in caught if 'does not hold' in str(w.message)]
    assert len(said) == is_lost and all('hold what functions in Calls.f remember,' in text for text in said)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        fit(learner(tmp_path), [Calls()], CycleCheckpoint('run1', every=7))
    assert any('saved without what functions in Calls.f remember' in str(w.message) for w in caught) == is_lost

def test_parameters_as_keys(tmp_path):
    class Keys(Callback):
        order = 20_000
        def after_batch(self):
            if self.train_iter < 20: self.keys = {p: i for i, p in enumerate(self.model.parameters())}
            assert [*map(id, self.keys)] == [*map(id, self.model.parameters())]
    check(learner, tmp_path, lambda: [Keys()])

class Guarded:
    "What can save itself, and holds a lock, which can't be stored."
    def __init__(self): self.lock, self.n = threading.Lock(), 0
    def state_dict(self): return dict(n=self.n)
    def load_state_dict(self, state): self.n = state['n']

def test_an_object_that_stands_there_and_can_save_itself(tmp_path):
    class Counts(Callback):
        def __init__(self): self.guarded = self.same = Guarded()
        def after_batch(self): self.guarded.n += 1
    made = []
    check(learner, tmp_path, lambda: [made.append(Counts()) or made[-1]])
    calm, _, again = made
    assert again.guarded.n == calm.guarded.n == N_EPOCH * (N_BATCH + 2)

def test_a_list_that_someone_else_holds(tmp_path):
    "It is filled, not replaced."
    held = []
    class Notes(Callback):
        def __init__(self): self.notes = held
        def after_batch(self): self.notes.append((self.epoch, self.iter)) if self.training else None
    fit(learner(tmp_path), Notes())
    expected = held[:]
    held.clear()
    keep = CycleCheckpoint('run1', every=7)
    with pytest.raises(RuntimeError, match='interrupted'): fit(learner(tmp_path), [Notes(), Interrupt(30)], keep)
    held.clear()
    fit(learner(tmp_path), Notes(), keep)
    assert held == expected

# The loss function

class Weighted(nn.Module):
    "A loss with a buffer and a weight that the optimizer trains."
    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.tensor(0.))
        self.scale, self.n = nn.Parameter(torch.tensor(1.)), 0
    def forward(self, pred, y):
        loss = F.cross_entropy(pred, y)
        if self.training: self.mean.lerp_(loss.detach(), .1)
        self.n += 1
        return loss * (1 + self.mean) * self.scale.exp() + self.scale ** 2 + .001 * self.n % 3

def with_loss(path, opt_func=Adam, **kwargs):
    learn = learner(path, opt_func=opt_func, **kwargs)
    loss = learn.loss_func = Weighted()
    learn.splitter = lambda model: [list(model.parameters()), list(loss.parameters())]
    return learn

def loss_state(learn): return dict(learn.loss_func.state_dict(), n=learn.loss_func.n)

@pytest.mark.parametrize('place, opt_func', each(PLACES, [Adam, partial(OptimWrapper, opt=torch.optim.AdamW)]))
def test_loss_with_a_state(tmp_path, opt_func, place):
    every, at = place
    check(partial(with_loss, opt_func=opt_func), tmp_path, lambda: [GradientAccumulation(10)], every=every, at=at,
          seen=loss_state)

class SlottedLoss:
    "A loss that has no `__dict__`."
    __slots__ = 'n', 'mean', 'first'     # the last isn't there at the beginning
    def __init__(self): self.n, self.mean = 0, torch.tensor(0.)
    def __call__(self, pred, y):
        self.n += 1
        if not hasattr(self, 'first'): self.first = float(pred.detach().mean())
        loss = F.cross_entropy(pred, y)
        self.mean = .9 * self.mean + .1 * loss.detach()
        return loss * (1 + self.mean) + self.n % 3

class Careful(SlottedLoss):
    "One that nobody may set, with a property over a slot."
    __slots__ = ()
    def __setattr__(self, name, value): raise AttributeError(f'{name} is read-only')
    def __init__(self): SlottedLoss.n.__set__(self, 0), SlottedLoss.mean.__set__(self, torch.tensor(0.))
    def __call__(self, pred, y):
        SlottedLoss.n.__set__(self, SlottedLoss.n.__get__(self) + 1)
        return F.cross_entropy(pred, y) * (1 + self.n % 3)
    @property
    def first(self): raise RuntimeError('not yet')

@pytest.mark.parametrize('place, loss', each(PLACES, [SlottedLoss, Careful]))
def test_loss_with_slots(tmp_path, place, loss):
    every, at = place
    def slotted(path):
        learn = learner(path)
        learn.loss_func = loss()
        return learn
    check(slotted, tmp_path, every=every, at=at, in_the_same_learner=every is None,
          seen=lambda learn: [learn.loss_func.n, learn.loss_func.mean])

class Curriculum(Callback):
    "Train with another loss from epoch 1 on; a new object, or one that stands there."
    def __init__(self, new): self.other = new
    def before_epoch(self):
        if self.epoch == 1: self.learn.loss_func = self.other or Weighted().requires_grad_(False).to(self.dls.device)

# A new object, a function, and an object that stands there
@pytest.mark.parametrize('place, other', each(PLACES, [None, F.cross_entropy, MSELossFlat]))
def test_loss_that_changes(tmp_path, other, place):
    every, at = place
    if other is MSELossFlat: other = CrossEntropyLossFlat(weight=torch.tensor([.2, .8]))
    check(learner, tmp_path, lambda: [Curriculum(other)], every=every, at=at)

def test_attribute_of_the_learner(tmp_path):
    class Notes(Callback):
        def before_fit(self):
            if not hasattr(self.learn, 'best_loss'): self.learn.best_loss = 100.
        def after_batch(self):
            self.learn.best_loss = min(self.learn.best_loss,
                                       float(self.loss)) if self.training else self.learn.best_loss
    check(learner, tmp_path, lambda: [Notes()], seen=lambda learn: learn.best_loss)

# Layers

class Versioned(nn.Linear):
    "A layer that refuses weights of another version."
    _version = 2
    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get('version') != 2: raise ValueError('weights of an old version')
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

@at_places
def test_layer_that_reads_its_version(tmp_path, every, at):
    def make(path):
        learn = learner(path)
        learn.model[0] = Versioned(6, 16)
        return learn
    check(make, tmp_path, every=every, at=at)

def test_private_attribute_of_a_layer(tmp_path):
    class Warm(nn.Module):
        def __init__(self): super().__init__(); self._n = 0
        def forward(self, x):
            self._n += self.training
            return x * (1 + .1 * self._n)
    def make(path):
        learn = learner(path)
        learn.model[3] = Warm()
        return learn
    check(make, tmp_path, seen=lambda learn: learn.model[3]._n)

@pytest.mark.cpu     # a GPU adds up the rows of sparse gradients in any order
def test_sparse_gradients_that_wait(tmp_path):
    def make(path):
        set_seed(1)
        data = [(torch.tensor([i % 7, i % 5]), i % 2) for i in range(40)]
        dls = DataLoaders(DataLoader(data, bs=4, shuffle=True), DataLoader(data[:8], bs=4), device='cpu')
        model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(8, 2))
        return Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=path,
                       opt_func=partial(OptimWrapper, opt=torch.optim.SGD))
    def cbs(): return [Waits()]
    class Waits(Callback):
        "Step with the gradients of 10 batches; fastai's own divides them, which sparse ones don't allow."
        def before_step(self):
            if self.train_iter % 3 != 2: from_fastai_skip()
    def from_fastai_skip():
        from fastai.callback.core import CancelBatchException
        raise CancelBatchException
    check(make, tmp_path, cbs, at=17, every=4)

@pytest.mark.slow
def test_lazy_layer(tmp_path):
    "Its weights are made by the first batch."
    def make(path):
        learn = learner(path)
        learn.model[0] = nn.LazyLinear(16)
        return learn
    for every, at in [(None, 3), (None, 30), (7, 30)]:
        (tmp_path / 'models/run1.cycle').unlink(missing_ok=True)
        check(make, tmp_path, every=every, at=at)

# The same Learner again

@pytest.mark.parametrize('every, at', [(None, 30), (7, 30), (5, 3)])
def test_the_same_learner_again(tmp_path, every, at):
    "What the interrupted fit has changed goes back to the file's values, also what the file says was never changed."
    check(learner, tmp_path, every=every, at=at, in_the_same_learner=True, seen=lambda learn: learn.model[4].calls)
