"""`compare_max_lr`: what it shows, and that it leaves a Learner as it was, to the last bit, however it ends."""
import itertools
import math
import random
from copy import deepcopy
from functools import partial
from types import MethodType

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import (Adam, Callback, DataLoader, DataLoaders, L, Learner, MSELossFlat, OptimWrapper, SGD, mse,
                           ranger, set_seed)
from fastai.callback.core import CancelFitException, TrainEvalCallback
from fastai.callback.fp16 import ModelToHalf
from fastai.callback.hook import ActivationStats
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.callback.schedule import ParamScheduler, SchedLin, minimum
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback, TerminateOnNaNCallback
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from support.helpers import collab, dataset, frozen_state, language_model, tabular, text_classifier, throw
from support.helpers import learner as small_learner
from support.pairs import each, pairs
from onecycle_callback import OneCycle
from onecycle_callback.compare import LRComparison

N_BATCH, LRS = 12, (.01, .03, .1)

class Averaged(Callback):
    "Keep an average of the weights, and its distance from them."
    def __init__(self): self.average, self.distances, self.largest = None, [], 0.
    def before_fit(self):
        if self.average is None:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(.9), use_buffers=True)
    def after_batch(self):
        if not self.training: return
        self.average.update_parameters(self.model)
        pairs = zip(self.average.module.parameters(), self.model.parameters())
        self.distances.append(sum((a - b).abs().sum().item() for a, b in pairs))
        self.largest = max(self.largest, self.distances[-1])

class Hurry(Callback):
    "Do `act` at a batch, counted over all fits."
    order = 200
    def __init__(self, at, act, event='after_batch'):
        n_seen = itertools.count()
        def maybe():
            if self.training and next(n_seen) == at: act()
        setattr(self, event, maybe)

OPTIMIZERS = {'Adam': Adam, 'SGD': partial(SGD, mom=.9), 'Lookahead': ranger,
              'AdamW of torch': partial(OptimWrapper, opt=torch.optim.AdamW),
              'SGD of torch': partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9))}
optimizers = pytest.mark.parametrize('opt_func', OPTIMIZERS.values(), ids=OPTIMIZERS)

def items(n): return [(x, y + 2) for x, y in dataset(n)]

def noisy(item): return item[0] + torch.rand(3) + random.random() + np.random.rand(), item[1]

def learner(path='.', opt_func=Adam, cbs=None, trained=False):
    "A Learner with batch norm and dropout, and callbacks that remember; perhaps already trained, with gradients left."
    set_seed(0)
    train = DataLoader(items(4 * N_BATCH), bs=4, shuffle=True, device='cpu')
    valid = DataLoader(items(8), bs=4, device='cpu')
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.2), nn.Linear(8, 1))
    learn = Learner(DataLoaders(train, valid, device='cpu'), model, loss_func=MSELossFlat(), opt_func=opt_func,
                    metrics=mse, path=path,
                    cbs=[Averaged(), *L(cbs)])
    if trained:
        learn.fit_one_cycle(1, .02)
        ones = next(model.parameters()).new_ones
        learn.loss_func(model(ones(2, 3)), ones(2, 1)).backward()
    return learn

# What there is of a Learner, to the last bit

def content(value, seen):
    "Return all that `value` holds, and which objects these are, in a form that can be compared."
    if isinstance(value, torch.Tensor):
        grad = content(value.grad, seen) if value.is_leaf else None
        return str(value.dtype), tuple(value.shape), value.detach().cpu().numpy().tobytes(), value.requires_grad, grad
    if isinstance(value, np.ndarray): return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, random.Random): return value.getstate()
    if isinstance(value, torch.Generator): return value.get_state().numpy().tobytes()
    if value is None or isinstance(value, (bool, int, float, str, bytes, type)): return value
    if isinstance(value, MethodType): return id(value.__self__), value.__name__
    if isinstance(value, dict) and any(isinstance(k, torch.Tensor) for k in value):     # an optimizer's, by parameter
        return {id(k): content(v, seen) for k, v in value.items() if isinstance(k, torch.Tensor) and v != {}}
    if isinstance(value, dict): return {k: content(v, seen) for k, v in value.items()}
    if isinstance(value, (list, tuple, L)): return [content(v, seen) for v in value]
    if id(value) in seen: return id(value)
    if not hasattr(value, '__dict__'): return repr(value)
    seen[id(value)] = value
    return id(value), {k: content(v, seen) for k, v in vars(value).items()}

def all_of(learn):
    "Return the content of a Learner and of the random generators, by the name of the part."
    seen = {}
    generators = dict(python=random.getstate(), numpy=content(list(np.random.get_state()), seen),
                      torch=torch.get_rng_state().numpy().tobytes())
    parts = {name: content(value, seen) for name, value in vars(learn).items()}
    return parts | generators | dict(modes=[m.training for m in learn.model.modules()])

def differences(a, b, place=''):
    "Yield the places at which two contents differ."
    if a == b: return
    if type(a) is type(b) is dict and a.keys() == b.keys():
        for name in a: yield from differences(a[name], b[name], f'{place}.{name}')
    elif type(a) is type(b) in (list, tuple) and len(a) == len(b):
        for i, pair in enumerate(zip(a, b)): yield from differences(*pair, f'{place}[{i}]')
    else: yield f'{place}: {str(a)[:60]} is now {str(b)[:60]}'

def assert_untouched(learn, before): assert [*differences(before, all_of(learn))] == []

def test_what_is_compared_is_everything():
    "A change to any of these is seen."
    learn = learner(trained=True)
    changes = [lambda: next(learn.model.parameters()).data.view(-1)[:1].mul_(1.0000001),
               lambda: learn.model.train(not learn.training), lambda: torch.rand(1),
               lambda: learn.averaged.distances.append(1.), lambda: learn.recorder.losses.pop(),
               lambda: next(iter(learn.dls.train)),
               lambda: learn.opt.state_dict()['state'][0]['grad_avg'].zero_(),
               lambda: learn.averaged.average.n_averaged.add_(1),
               lambda: learn.model[0].register_forward_hook(print), lambda: learn.model[1].running_mean.add_(1),
               lambda: next(learn.model.parameters()).grad.add_(1)]
    for change in changes:
        before = all_of(learn)
        change()
        assert all_of(learn) != before

# How it may end

def ends(learn):
    learn.compare_max_lr(LRS)

def diverges(learn):
    compared = learn.compare_max_lr((.03, 1e9, math.nextafter(1e9, 2e9)))
    assert compared.table.diverged.tolist() == [False, True, True]

def stops(learn): learn.compare_max_lr(LRS, cbs=Hurry(N_BATCH + 5, throw(CancelFitException())))

def fails(error, at=N_BATCH + 5, event='after_batch', cbs=(), **kwargs):
    def run(learn):
        with pytest.raises(error):
            learn.compare_max_lr(**dict(max_lrs=LRS) | kwargs,
                                 cbs=[Hurry(at, lambda: throw(error('interrupted'))(), event), *[cb() for cb in cbs]])
    return run

ENDS = {'end': ends, 'divergence': diverges, 'another callback cancels': stops, 'error': fails(RuntimeError),
        'error in a step': fails(RuntimeError, event='before_step'),
        'Ctrl-C': fails(KeyboardInterrupt), 'Ctrl-C in the first batch': fails(KeyboardInterrupt, 0),
        'without candidates': lambda learn: learn.compare_max_lr(),
        'Ctrl-C in lr_find': fails(KeyboardInterrupt, 30, max_lrs=None),
        'Ctrl-C after lr_find': fails(KeyboardInterrupt, 100 + N_BATCH, max_lrs=None),
        'error with hooks': fails(RuntimeError, cbs=[ActivationStats]),
        'new optimizer': lambda learn: learn.compare_max_lr(LRS, reset_opt=True),
        'error in half precision': fails(RuntimeError, event='before_batch', at=0, cbs=[ModelToHalf])}

@pytest.mark.matrix
@pytest.mark.parametrize('history_and_end, opt', each(pairs(['new', 'trained'], ENDS), OPTIMIZERS), ids=str)
def test_all_is_put_back(tmp_path, history_and_end, opt):
    history, end = history_and_end
    learn = learner(tmp_path, OPTIMIZERS[opt], trained=history == 'trained')
    before = all_of(learn)
    ENDS[end](learn)
    assert_untouched(learn, before)

@pytest.mark.matrix
@pytest.mark.parametrize('make, trained', each([tabular, collab, text_classifier, language_model], [False, True]))
def test_applications(tmp_path, recwarn, make, trained):
    learn, _ = make(tmp_path)
    if trained: learn.fit_one_cycle(1, .01)
    before = all_of(learn)
    compared = learn.compare_max_lr((.001, .01, .1))
    assert_untouched(learn, before)
    assert compared.table.train_loss.notna().all() and len(set(compared.losses.iloc[-1])) == 3
    assert not [w for w in recwarn if 'compare_max_lr' in str(w.message)]

@pytest.mark.matrix
@optimizers
def test_training_goes_on_as_if_nothing_had_been_compared(opt_func):
    learns = [learner(opt_func=opt_func, trained=True) for _ in range(2)]
    for compares, learn in enumerate(learns):
        set_seed(1)
        if compares: learn.compare_max_lr(LRS)
        learn.fit_one_cycle(2, .05)
    first, second = learns
    assert [list(v) for v in first.recorder.values] == [list(v) for v in second.recorder.values]
    assert all(map(torch.equal, first.model.state_dict().values(), second.model.state_dict().values()))
    assert first.averaged.distances == second.averaged.distances

def test_a_second_interrupt_while_it_is_put_back(monkeypatch):
    learn = learner(trained=True)
    before, load, n_loads = all_of(learn), type(learn.model).load_state_dict, itertools.count()
    def interrupted_load(*args, **kwargs):
        if next(n_loads) == 2:
            raise KeyboardInterrupt     # the third: before each of two cycles, and after the interrupt
        return load(*args, **kwargs)
    monkeypatch.setattr(type(learn.model), 'load_state_dict', interrupted_load)
    fails(KeyboardInterrupt)(learn)
    assert next(n_loads) == 4
    assert_untouched(learn, before)

def test_an_interrupt_while_it_looks_around(monkeypatch):
    learn = learner()
    before = all_of(learn)
    monkeypatch.setattr('onecycle_callback.compare.object_states', lambda *_: throw(KeyboardInterrupt())())
    with pytest.raises(KeyboardInterrupt): learn.compare_max_lr(LRS)
    assert_untouched(learn, before)

def test_what_cannot_be_restored_is_named():
    class Reading(Callback):
        def __init__(self): self.lines = iter('abc')
    with pytest.warns(UserWarning, match=r'^compare_max_lr cannot restore Reading\.lines$'):
        learner(cbs=Reading()).compare_max_lr(LRS)

# What comes out

class KeepLosses(Callback):
    "Keep the training losses where nobody restores them."
    def __init__(self, kept): self.keep = kept.append
    def after_batch(self):
        if self.training: self.keep(self.learn.loss.item())

def fresh(max_lr, cycle_len=1, opt_func=Adam, **kwargs):
    "Return the last row, and the losses, of a new Learner after a cycle."
    learn, losses = learner(opt_func=opt_func), []
    learn.fit_one_cycle(cycle_len, max_lr, cbs=KeepLosses(losses), **kwargs)
    return list(learn.recorder.values[-1]), losses

@pytest.mark.matrix
@pytest.mark.parametrize('opt, kwargs', each(
    OPTIMIZERS, [{}, dict(cycle_len=2), dict(wd=.1, anneal='linear'),
                 dict(div_factor=2., pct_start=.5, final_div=100., moms=False)]), ids=str)
def test_each_cycle_is_that_of_a_new_learner(opt, kwargs):
    opt_func = OPTIMIZERS[opt]
    if 'wd' in kwargs and 'SGD' in opt: kwargs = kwargs | dict(wd=.01)
    compared = learner(opt_func=opt_func).compare_max_lr(LRS, **kwargs)
    assert compared.table.columns.tolist() == ['train_loss', 'valid_loss', 'mse', 'diverged']
    assert not compared.table.diverged.any() and compared.table.index.tolist() == list(LRS)
    for lr in LRS:
        row, losses = fresh(lr, opt_func=opt_func, **kwargs)
        assert compared.table.loc[lr].tolist()[:3] == row
        assert compared.losses[lr].tolist() == losses

@pytest.mark.matrix
@pytest.mark.parametrize('n_workers', [0, 2])
def test_all_cycles_have_the_same_batches_and_callbacks_start_anew(n_workers):
    batches, first = [], []
    class Look(Callback):
        def before_batch(self):
            if self.training: batches.append(self.xb[0].tolist())
        def before_train(self): first.append(len(self.averaged.distances))
    learn = learner(trained=True, cbs=Look())
    learn.dls.loaders[0] = DataLoader(items(4 * N_BATCH), bs=4, shuffle=True, device='cpu', num_workers=n_workers,
                                      after_item=noisy)
    learn.compare_max_lr(LRS)
    cycles = [batches[i:i + N_BATCH] for i in range(N_BATCH, len(batches), N_BATCH)]     # those before were trained on
    assert len(cycles) == 3 and cycles[0] == cycles[1] == cycles[2] != batches[:N_BATCH]
    assert first == [0, N_BATCH, N_BATCH, N_BATCH]

@pytest.mark.parametrize('cbs', [lambda: Averaged, lambda: [Averaged()], lambda: (cb for cb in [Averaged()])],
                         ids=['class', 'list', 'generator'])
def test_callbacks_for_these_cycles(cbs):
    learn = small_learner()
    own = cbs()
    compared = learn.compare_max_lr(LRS, cbs=own)
    assert compared.losses.shape == (12, 3) and not hasattr(learn, 'averaged')
    if isinstance(own, list): assert own[0].average is None and own[0].distances == []

def test_a_scheduler_alongside():
    learn, seen = small_learner(), []
    class Look(Callback):
        order = 70
        def after_batch(self):
            if self.training: seen.append(self.opt.hypers[0]['wd'])
    learn.compare_max_lr((.01, .03), cbs=[ParamScheduler({'wd': SchedLin(0., 1.)}), Look()])
    assert seen[:12] == seen[12:] == pytest.approx([i / 12 for i in range(12)])

def test_parameter_groups():
    learn = small_learner(n_groups=2)
    compared = learn.compare_max_lr([.1, slice(.1), slice(.01, .1), (.02, .1)])
    assert compared.table.index.tolist() == [.1, 'slice(0.1)', 'slice(0.01, 0.1)', '(0.02, 0.1)']
    assert len(set(compared.losses.iloc[-1])) == 3
    assert compared.losses['slice(0.1)'].equals(compared.losses['slice(0.01, 0.1)'])

def test_fastai_names():
    learn = small_learner()
    ours, theirs = learn.compare_max_lr(LRS, cycle_len=2, div_factor=10.), learn.compare_max_lr(LRS, n_epoch=2, div=10.)
    pd.testing.assert_frame_equal(ours.losses, theirs.losses)
    assert len(ours.losses) == 24

def test_without_validation_data():
    learn = small_learner()
    learn.dls.loaders[1] = DataLoader([], bs=4, device='cpu')
    table = learn.compare_max_lr(LRS).table
    assert table.valid_loss.isna().all() and table.train_loss.notna().all()

def test_without_default_callbacks():
    "A `Recorder` is lent to a Learner that has none."
    learn = small_learner(default_cbs=False, cbs=TrainEvalCallback())
    pd.testing.assert_frame_equal(learn.compare_max_lr(LRS).table, small_learner().compare_max_lr(LRS).table)
    assert not hasattr(learn, 'recorder')

class Stream:
    "Batches without a length."
    bs, device = 4, torch.device('cpu')
    def __iter__(self): return (tuple(map(torch.stack, zip(*dataset(4)))) for _ in itertools.count())

def test_a_stream():
    learn = small_learner()
    learn.dls.loaders[0] = Stream()
    assert learn.compare_max_lr(LRS, n_batch=7).losses.shape == (7, 3)
    with pytest.raises(TypeError, match='max_lrs must be given, since dls.train has no length'):
        learn.compare_max_lr(n_batch=7)

# Candidates

@pytest.mark.matrix
@optimizers
def test_candidates_lie_around_the_suggestion_of_lr_find(opt_func):
    found = learner(opt_func=opt_func).lr_find(show_plot=False, suggest_funcs=minimum).minimum
    lrs = learner(opt_func=opt_func).compare_max_lr().table.index
    assert len(lrs) == 4 and all(f'{lr:e}'[:8] in ('1.000000', '3.000000') for lr in lrs)
    assert all(abs(math.log(lrs[1] / found)) <= abs(math.log(lr / found)) for lr in lrs) and list(lrs) == sorted(lrs)

def test_lr_find_without_a_finite_loss():
    learn = learner(cbs=Callback())
    learn.loss_func = lambda pred, y: (pred - y).sum() * math.nan
    before = all_of(learn)
    with pytest.raises(ValueError, match='^max_lrs must be given, since lr_find stopped before it found one'):
        learn.compare_max_lr()
    assert_untouched(learn, before)

REFUSED = {
    'no list': (dict(max_lrs=.1), TypeError,
                'max_lrs must be a list of learning rates, each as max_lr of fit_one_cycle, got 0.1'),
    'None inside': (dict(max_lrs=[.1, None]), TypeError,
                    r'max_lrs must be a list of learning rates.*got \[0.1, None\]'),
    'text': (dict(max_lrs='auto'), TypeError, "max_lrs must be a list of learning rates.*got 'auto'"),
    'empty': (dict(max_lrs=[]), ValueError,
              r'max_lrs must be at least one learning rate, and each a different one, got \[\]'),
    'twice': (dict(max_lrs=[.1, .1]), ValueError, 'max_lrs must be .* each a different one, got'),
    'negative': (dict(max_lrs=[.1, -1]), ValueError, 'max_lr must be a finite number above 0, got -1'),
    'groups': (dict(max_lrs=[.1, (.1, .2, .3)]), ValueError, 'max_lr must be .* got 3'),
    'cycle_len': (dict(max_lrs=LRS, cycle_len=0), ValueError, 'cycle_len must be a whole number of at least 1, got 0'),
    'pct_start': (dict(max_lrs=LRS, pct_start=2), ValueError, 'pct_start must be between 0 and 1, got 2'),
    'cbs': (dict(max_lrs=LRS, cbs=7), TypeError, 'cbs must be a Callback or several, got 7'),
    'a cycle in cbs': (dict(max_lrs=LRS, cbs=OneCycle(.1)), ValueError, 'cbs must not hold a OneCycle'),
    'checkpoint': (dict(max_lrs=LRS, checkpoint='run1'), TypeError,
                   "compare_max_lr has no argument checkpoint .got 'run1'."),
    'start_epoch': (dict(max_lrs=LRS, start_epoch=1), TypeError, 'compare_max_lr has no argument start_epoch'),
    'minutes': (dict(max_lrs=LRS, minutes=1), TypeError, 'compare_max_lr has no argument minutes'),
    'max_lr': (dict(max_lr=LRS), TypeError, 'compare_max_lr has no argument max_lr'),
    'wd': (dict(max_lrs=LRS, wd=-1), ValueError, 'wd must be a finite number of at least 0, got -1')}

@pytest.mark.parametrize('kwargs, error, message', REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_is_touched(monkeypatch, kwargs, error, message):
    learn = learner()
    before, frozen = all_of(learn), frozen_state(learn)
    monkeypatch.setattr(Learner, 'fit', lambda *_, **__: pytest.fail('it trains'))
    with pytest.raises(error, match=message): learn.compare_max_lr(**kwargs)
    assert_untouched(learn, before)
    assert frozen_state(learn) == frozen

def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr('onecycle_callback.compare.world_size', lambda: 2)
    with pytest.raises(RuntimeError, match='compare_max_lr must run in one process, got 2 processes'):
        learner().compare_max_lr(LRS)

# Divergence

@pytest.mark.parametrize('cbs', [[], [TerminateOnNaNCallback()]], ids=['', 'TerminateOnNaNCallback'])
@pytest.mark.parametrize('lr', [10., 1e20], ids=['grows', 'is infinite'])
def test_a_cycle_that_diverges_ends_early(recwarn, lr, cbs):
    learn = small_learner(n_batch=300, cbs=cbs, opt_func=SGD)
    compared = learn.compare_max_lr((.03, lr), cycle_len=2)
    assert compared.table.diverged.tolist() == [False, True]
    assert compared.table.loc[lr, ['train_loss', 'valid_loss']].isna().all() and compared.table.loc[.03].notna().all()
    assert len(compared.losses) == 600 and compared.losses[lr].notna().sum() < 300
    assert not [w for w in recwarn if 'stopped early' in str(w.message)]

def losses_of(make):
    "Compare two LRs on losses that are made up: `make(i)` is that of batch `i`."
    class MakeUp(Callback):
        def after_loss(self):
            if self.training: self.learn.loss = self.learn.loss * 0 + make(self.learn.epoch * self.n_iter + self.iter)
    return small_learner(n_batch=100, cbs=MakeUp()).compare_max_lr((.001, .003)).table.diverged.tolist()

CURVES = {'falls': (lambda i: 2. - i / 100, False), 'rises threefold': (lambda i: 1. if i < 12 else 3., False),
          'rises tenfold': (lambda i: 1. if i < 12 else 10., True),
          'falls below zero': (lambda i: -i / 10, False), 'starts below zero': (lambda i: -1. + i / 100, False),
          'explodes below zero': (lambda i: -1. if i < 12 else 9., True),
          'one outlier': (lambda i: 50. if i == 60 else 1., False),
          'lucky first batch': (lambda i: .001 if i == 0 else 1., False)}
@pytest.mark.parametrize('make, diverged', CURVES.values(), ids=CURVES)
def test_which_losses_count_as_diverged(make, diverged): assert losses_of(make) == [diverged] * 2

def test_an_explosion_within_the_first_batches_is_seen_by_comparison():
    "What the loss is at the start is known from a smaller LR."
    class MakeUp(Callback):
        def after_loss(self):
            is_large = self.training and self.opt.hypers[0]['lr'] > 1e-3
            if self.training:
                self.learn.loss = self.learn.loss * 0 + (3.5 if is_large and self.iter < 10 else 8. if is_large else 1.)
    learn = small_learner(n_batch=100, cbs=MakeUp())
    assert learn.compare_max_lr((.001, 1.)).table.diverged.tolist() == [False, True]
    assert learn.compare_max_lr((1., 2.)).table.diverged.tolist() == [False, False]

# What is not touched: files, bars, the table

def test_files_are_left_alone(tmp_path):
    learn = learner(tmp_path, cbs=[SaveModelCallback(), CSVLogger(), EarlyStoppingCallback(patience=1)])
    learn.fit_one_cycle(3, .03)
    def files(): return {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    before, names = files(), [type(cb) for cb in learn.cbs]
    assert len(before) == 2
    learn.compare_max_lr(LRS, cbs=[SaveModelCallback(fname='other'), CSVLogger('other.csv')])
    learn.compare_max_lr()
    assert files() == before and [type(cb) for cb in learn.cbs] == names

def test_one_bar_and_no_table(capsys):
    learner().compare_max_lr(LRS)
    out = capsys.readouterr().out
    assert 'valid_loss' not in out and out.count(f'[{3 * N_BATCH}/{3 * N_BATCH} ') == 1
    assert 'max_lr 0.01]' in out and 'max_lr 0.1]' in out

def test_a_bar_runs_to_its_end_over_cycles_that_diverge(capsys):
    learner().compare_max_lr((1e9, .01, 2e9))
    out = capsys.readouterr().out
    assert out.count(f'[{3 * N_BATCH}/{3 * N_BATCH} ') == 1 and f'[{3 * N_BATCH + 1}/' not in out

def test_no_bar(capsys):
    learn = learner()
    with learn.no_bar(): learn.compare_max_lr(LRS)
    assert capsys.readouterr().out == '' and isinstance(learn.progress, ProgressCallback)

# How it is shown

@pytest.fixture
def compared():
    losses = {.1: [2., 1., .5], 1.: [2., .5, .2], 10.: [2., 900., math.nan]}
    table = pd.DataFrame(dict(train_loss=[.6, .3, math.nan], valid_loss=[.5, .2, math.nan],
                              diverged=[False, False, True]), index=pd.Index(losses, name='max_lr'))
    return LRComparison(table, pd.DataFrame(losses))

def test_picture(compared):
    ax = compared.plot(figsize=(5, 3))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ['0.1', '1', '10 (diverged)', 'validation loss']
    curves = {line.get_label(): line for line in ax.lines}
    assert curves['0.1'].get_ydata().tolist() == [2., 1., .5]
    assert [curves[label].get_linestyle() for label in labels[:3]] == ['-', '-', '--']
    points = [(*line.get_xdata(), *line.get_ydata()) for line in ax.lines if line.get_marker() == 'o'
              and len(line.get_xdata())]
    assert points[:2] == [(3, .5), (3, .2)] and ax.get_ylim()[1] < 3 and ax.figure.get_size_inches().tolist() == [5, 3]

def test_picture_on_given_axes(compared):
    ax = compared.plot()
    assert compared.plot(ax=ax) is ax

def test_picture_of_many_batches():
    losses = pd.DataFrame({.1: np.linspace(2., 1., 10**5)})
    ax = LRComparison(pd.DataFrame(dict(diverged=[False]), index=[.1]), losses).plot()
    assert len(ax.lines[0].get_xdata()) <= 1200 and ax.lines[0].get_xdata()[-1] == 10**5 - 1

def test_picture_where_all_diverged(compared):
    LRComparison(compared.table.loc[[10.]], compared.losses[[10.]]).plot()

def test_shown_as_a_table_and_a_picture(compared):
    html = compared._repr_html_()
    assert html.count('<tr') == 2 + 3 and '<img alt=' in html
    assert repr(compared) == str(compared) and repr(compared).splitlines()[-1].split()[0] == '10.0'

def test_a_copy_has_the_same_table(compared):
    pd.testing.assert_frame_equal(deepcopy(compared).table, compared.table)
