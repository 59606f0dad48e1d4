"""Arguments: a bad one is a clear error that leaves the Learner as it was; fastai's names mean the same as ours."""
import inspect
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fastai.basics import Callback, L
from fastai.callback.schedule import ParamScheduler
from fastai.callback.tracker import TerminateOnNaNCallback
from torch.utils.data import IterableDataset

from support.helpers import frozen_state, learner
from onecycle_callback import CycleCheckpoint, OneCycle, OneCycleSchedule
from onecycle_callback.arguments import (
    POSITIVE, Bounds, accept_fastai_names, as_arguments, as_list, check_flag, check_number, check_whole,
    takes_fields_of)

nan, inf = math.nan, math.inf

def case(name, allowed, got=None, **kwargs):
    "Make a case of a call with `kwargs`: the message must hold `name`, what is `allowed`, and what it `got`."
    text = ', '.join(f'{k}={v.__name__ if inspect.isfunction(v) else v!r}' for k, v in kwargs.items())
    return pytest.param(kwargs, name, allowed, parts(kwargs[name]) if got is None else [got], id=text)

def parts(value):
    "Return the parts of `value` that may be in the message."
    if isinstance(value, slice): value = [value, value.start, value.stop, value.step]
    elif isinstance(value, (list, tuple)): value = [value, *value]
    else: value = [value]
    return [repr(v) for v in value]

def each(name, allowed, *values): return [case(name, allowed, **{name: v}) for v in values]

def returns_nan(start, end, pos): return nan
def returns_none(start, end, pos): return None
def returns_text(start, end, pos): return 'x'

SCHEDULE = [
    *each('max_lr', 'number', '0.1', True, [.1, 'x', .1], {'a': 1}, 1j),
    *each('max_lr', 'above 0', nan, inf, 0, -1, [0], [0, 0, 0]),
    *each('max_lr', 'at least 0', [.1, nan, .1], [.1, -.1, .1], slice(-1, .1)),
    *each('max_lr', 'one number for each', [], [.1, .2]),
    *each('max_lr', 'slice(last)', slice(None), slice(.1, .2, .3)),
    *each('div_factor', 'at least 1', '25', None, True, nan, inf, 0, .5, -25, [25]),
    *each('pct_start', 'between 0 and 1', -.1, 1.5, '0.3', nan, inf, True, None, [.3]),
    *each('final_div', 'at least 1', '1e5', nan, 0, .1, -1, -inf, False),
    *each('moms', 'three numbers', .9, True, 'high', (.9, .8, .9, .8)),
    *each('moms', 'two numbers', (.9,)),
    *each('moms', 'below 1', (.9, 1.), (.9, nan), ('.9', '.8')),
    *each('moms', 'at least 0', (.9, -.1)),
    *each('anneal', "'cos', 'linear', 'exp'", 'cosine', None, 3, ('cos',), ('cos',) * 3, ('cos', 'poly'), ('cos', 3)),
    *[case('anneal', 'finite number', got, anneal=f)
      for f, got in ((returns_nan, 'nan'), (returns_none, 'None'), (returns_text, "'x'"))],
    *each('three_phase', 'True or False', 1, 'yes', None),
    *each('n_batch', 'at least 1', 0, -1, 2.5, True, '1000', nan),
    case('pct_start', 'at most 0.5', three_phase=True, pct_start=.7),
    case('final_div', 'finite', anneal='exp', final_div=inf),
    case('moms', 'above 0', anneal='exp', moms=(.9, 0)),
    case('max_lr', 'above 0 for each group', anneal='exp', max_lr=[0, .1, .1]),
    case('max_lr', 'twice', max_lr=.1, lr_max=.2),
    case('div_factor', 'twice', div=5, div_factor=6),
    case('final_div', 'twice', final_div=5, div_final=6),
    case('pct_start', 'div_final', pct_start=1e5),      # where fastai 2 has its div_final
    case('pct_start', '0.3 for 30 %', pct_start=30),
    case('lr', 'did you mean max_lr?', lr=.1),
    case('momss', 'did you mean moms?', momss=.1)]

LENGTH = [*each('cycle_len', 'at least 1,', 0, -1, 2.5, True, '10', nan),
          *each('cycle_len', 'at least 1 unless minutes are given', None),
          case('cycle_len', 'twice', n_epoch=3, cycle_len=4),
          case('cycle_len', 'twice', got='4', n_epoch=3, cyc_len=4)]

MINUTES = [*each('minutes', 'above 0', 0, -1, nan, inf, '30', True),
           case('cycle_len', 'left out with minutes', minutes=30, cycle_len=3),
           case('cycle_len', 'left out with minutes', got='3', minutes=30, n_epoch=3)]

FIT = [case('callbacks', 'did you mean cbs?', got='', callbacks=[]),
       case('epochs', 'did you mean cycle_len?', epochs=3),
       case('restart', 'did you mean checkpoint=CycleCheckpoint(…, restart=True)?', restart=True),
       *each('start_epoch', 'between 0 and 3', -1, 4, 1.5, True, None),
       *each('stop_epoch', 'between 1 and 3', 0, 4, 1.5, False),
       case('stop_epoch', 'between 3 and 3', start_epoch=2, stop_epoch=2),
       *each('reset_opt', 'True or False', 1),
       *each('cbs', 'Callback', 'x', [Callback(), 3]),
       case('cbs', 'OneCycle', got='', cbs=OneCycle(.1)),
       case('cbs', 'OneCycle', got='', cbs=OneCycle),
       case('cbs', 'lr', got='ParamScheduler', cbs=ParamScheduler({'lr': lambda p: p})),
       case('cbs', 'mom', got='ParamScheduler',
            cbs=[Callback(), ParamScheduler({'wd': lambda p: p, 'mom': lambda p: p})]),
       *each('wd', 'at least 0', 'x', nan, -1, inf, 10**400, True),
       *each('wd', '3 parameter groups', [.1, .2])]

FINE_TUNE = [*each('pct_start', 'between 0 and 1', 1.5),
             case('div', 'at least 1', got='0', div=0),
             case('div_factor', 'freeze_epochs, lr_mult, pct_start, div,', div_factor=3.),
             *each('base_lr', 'above 0', -1, nan),
             *each('lr_mult', 'at least 1', 0, .5),
             *each('final_div', 'at least 1', 0),
             *each('freeze_epochs', 'at least 0', -1, 1.5),
             *each('epochs', 'at least 0', -1, 2.5),
             *each('wd', 'at least 0', 'much'),
             *each('n_batch', 'at least 1', 0, 2.5),
             case('minutes', 'it takes epochs', got='30', minutes=30),
             case('three_phase', 'with freeze_epochs', three_phase=True),
             case('nonsense', 'freeze_epochs', nonsense=1)]

CALLS = dict(fit=lambda learn, kw: learn.fit_one_cycle(**{'cycle_len': 3} | kw),
             preview=lambda learn, kw: learn.preview_one_cycle(**{'cycle_len': 3} | kw),
             callback=lambda learn, kw: learn.fit(3, cbs=OneCycle(**kw)))

@pytest.fixture(scope='module', params=['new', 'trained'])
def learn(request):
    "A Learner for all refused calls, since each leaves it as it was."
    learn = learner(n_groups=3)
    if request.param == 'trained': learn.fit_one_cycle(1, .01)
    return learn

def refused(learn, call, name, allowed, got=('',)):
    "Check that `call` raises an error that says why, and leaves `learn` unchanged."
    before = frozen_state(learn)
    with pytest.raises((ValueError, TypeError)) as e: call()
    text, after = str(e.value), frozen_state(learn)
    assert re.search(rf'\b{name}\b', text) and allowed in text and any(g in text for g in got), text
    assert {k: (before[k], after[k]) for k in before if before[k] != after[k]} == {}

@pytest.mark.parametrize('kwargs, name, allowed, got', SCHEDULE)
@pytest.mark.parametrize('call', CALLS)
def test_schedule(learn, call, kwargs, name, allowed, got):
    refused(learn, lambda: CALLS[call](learn, kwargs), name, allowed, got)

@pytest.mark.parametrize('kwargs, name, allowed, got', LENGTH)
@pytest.mark.parametrize('method', ['fit_one_cycle', 'preview_one_cycle'])
def test_length(learn, method, kwargs, name, allowed, got):
    refused(learn, lambda: getattr(learn, method)(**kwargs), name, allowed, got)

@pytest.mark.parametrize('kwargs, name, allowed, got', MINUTES)
@pytest.mark.parametrize('method', ['fit_one_cycle', 'preview_one_cycle'])
def test_minutes(learn, method, kwargs, name, allowed, got):
    refused(learn, lambda: getattr(learn, method)(**kwargs), name, allowed, got)

@pytest.mark.parametrize('kwargs', [dict(start_epoch=1), dict(stop_epoch=1)], ids=str)
def test_parts_of_a_cycle_by_the_clock(learn, kwargs):
    [(name, value)] = kwargs.items()
    refused(learn, lambda: learn.fit_one_cycle(minutes=30, **kwargs), name, 'left out with minutes', [str(value)])

@pytest.mark.parametrize('kwargs, name, allowed, got', FIT)
def test_arguments_of_the_fit(learn, kwargs, name, allowed, got):
    refused(learn, lambda: learn.fit_one_cycle(3, .1, **kwargs), name, allowed, got)

@pytest.mark.parametrize('kwargs, name, allowed, got', FINE_TUNE)
def test_fine_tune_before_it_freezes(learn, kwargs, name, allowed, got):
    refused(learn, lambda: learn.fine_tune(**{'epochs': 2} | kwargs), name, allowed, got)

def test_a_message_word_for_word(learn):
    with pytest.raises(ValueError, match=r'^pct_start must be between 0 and 1, got 1\.5'):
        learn.fit_one_cycle(1, pct_start=1.5)

@pytest.mark.parametrize('args, name, allowed', [((10, .1, 25., 1e5), 'div_final', 'by keyword'),
                                                 ((10, .1, 25., .3, .25), 'final_div', 'at least 1'),
                                                 ((10,) * 11, 'fit_one_cycle', 'at most 4')])
def test_positions_of_fastai_2(learn, args, name, allowed):
    refused(learn, lambda: learn.fit_one_cycle(*args), name, allowed)

class NoLength(IterableDataset):
    def __iter__(self): yield torch.ones(3), torch.ones(1)

@pytest.mark.parametrize('loader, kwargs, allowed', [
    (torch.utils.data.DataLoader(NoLength(), batch_size=1), {}, 'give the number of batches of an epoch as n_batch'),
    ([], {}, 'at least one batch'), ([], dict(n_batch=3), 'at least one batch')],
    ids=['no length', 'empty', 'empty with n_batch'])
@pytest.mark.parametrize('call', CALLS)
def test_loaders(call, loader, kwargs, allowed):
    learn = learner()
    learn.dls.loaders[0] = loader
    refused(learn, lambda: CALLS[call](learn, kwargs), 'train', allowed)

def test_two_cycles_at_once():
    learn = learner(cbs=OneCycle(.1))
    refused(learn, lambda: learn.fit_one_cycle(1), 'OneCycle', 'at most one')

@pytest.mark.parametrize('make, name, allowed', [
    (lambda: [OneCycle(.1), OneCycle(.1)], 'cbs', 'at most one OneCycle'),
    (lambda: [TerminateOnNaNCallback, OneCycle([.1, .1])], 'max_lr', 'each of the 3 parameter groups'),
    (lambda: [OneCycle(.1), CycleCheckpoint('run')], 'cbs', 'fit_one_cycle(…, checkpoint=…)')],
    ids=['two cycles', 'a cycle that does not fit', 'a checkpoint'])
def test_the_last_of_several_callbacks(learn, make, name, allowed):
    "Those before it have been added by then."
    refused(learn, lambda: learn.fit(1, cbs=make()), name, allowed)

def trained(call):
    "Train a Learner with `call`; return what it recorded, and its weights."
    learn = learner()
    call(learn)
    return learn.recorder.hps, [p.tolist() for p in learn.model.parameters()]

@pytest.mark.parametrize('call', [
    lambda l: l.fit_one_cycle(2, .2, 10., .5),
    lambda l: l.fit_one_cycle(n_epoch=2, lr_max=.2, div=10., pct_start=.5),
    lambda l: l.fit_one_cycle(cyc_len=2, max_lr=.2, div_factor=10, pct_start=.5),
    lambda l: l.fit(2, cbs=OneCycle(.2, 10., .5)),
    lambda l: l.fit(2, cbs=OneCycle(lr_max=.2, div=10., pct_start=.5))],
    ids=['positional', "fastai 2's names", "fastai 1's names", 'the callback', "the callback by fastai 2's names"])
def test_other_ways_to_say_the_same(call):
    hps, weights = trained(lambda l: l.fit_one_cycle(cycle_len=2, max_lr=.2, div_factor=10., pct_start=.5))
    assert trained(call) == (hps, weights) and hps['lr'][12] == max(hps['lr']) == .2

def test_signature():
    params = inspect.signature(learner().fit_one_cycle).parameters
    kinds = {kind: [name for name, p in params.items() if p.kind is kind] for kind in {p.kind for p in params.values()}}
    positional, by_name = kinds.pop(inspect.Parameter.POSITIONAL_OR_KEYWORD), kinds.pop(inspect.Parameter.KEYWORD_ONLY)
    assert positional == ['cycle_len', 'max_lr', 'div_factor', 'pct_start']
    assert {'final_div', 'moms', 'wd', 'cbs', 'start_epoch'} <= set(by_name) and not kinds

@pytest.mark.parametrize('name', ['fit_one_cycle', 'preview_one_cycle', 'OneCycle'])
def test_defaults_are_the_schedules(name):
    f = OneCycle if name == 'OneCycle' else getattr(learner(), name)
    fields = inspect.signature(OneCycleSchedule).parameters
    params = inspect.signature(f).parameters
    assert {k: params[k].default for k in fields} == {k: p.default for k, p in fields.items()}

# The checks by themselves

@pytest.mark.parametrize('bounds, noun, words', [
    (dict(ge=0, le=1), 'a number', 'between 0 and 1'), (dict(ge=0, lt=1), 'a number', 'at least 0 and below 1'),
    (dict(gt=0, lt=inf), 'a number', 'a finite number above 0'), (dict(gt=-inf, lt=inf), 'a number', 'a finite number'),
    (dict(ge=1), 'a whole number', 'a whole number of at least 1')], ids=lambda v: str(v))
def test_bounds_in_words(bounds, noun, words): assert Bounds(**bounds).describe(noun) == words

def test_numbers_within_bounds():
    assert [x in Bounds(ge=0, lt=1) for x in (0, .5, 1, -1, nan)] == [True, True, False, False, False]

@pytest.mark.parametrize('value', [3, 3., np.float32(3), np.int64(3), np.array(3), torch.tensor(3.)], ids=repr)
def test_a_number_of_any_library_becomes_a_float(value):
    assert type(number := check_number('x', value, POSITIVE)) is float and number == 3.

def test_a_number_beyond_the_range_of_floats():
    with pytest.raises(ValueError, match='max_lr must be a finite number above 0, got 1000'):
        check_number('max_lr', 10**400, POSITIVE)

@pytest.mark.parametrize('check, error, message', [
    (lambda: check_whole('n', 2.5), TypeError, 'n must be a whole number of at least 1, got 2.5'),
    (lambda: check_whole('n', 10, Bounds(ge=0, le=9)), ValueError, 'n must be a whole number between 0 and 9, got 10'),
    (lambda: check_flag('on', 1), TypeError, 'on must be True or False, got 1')], ids=['whole', 'bounds', 'flag'])
def test_what_a_check_says(check, error, message):
    with pytest.raises(error, match=f'^{re.escape(message)}$'): check()

def test_whole_numbers_become_ints(): assert type(check_whole('n', np.int64(3))) is int

@pytest.mark.parametrize('value, elements', [
    ((1, 2), [1, 2]), (L(1, 2), [1, 2]), (np.array([1, 2]), [1, 2]), (torch.tensor([1, 2]), [1, 2]),
    (iter([1, 2]), [1, 2]), (.1, None), ('cos', None), ({1, 2}, None), ({1: 2}, None), (np.array(1), None),
    (np.eye(2), None)], ids=lambda value: type(value).__name__)
def test_what_counts_as_a_list(value, elements): assert as_list(value) == elements

# Arguments that are the fields of a dataclass, and fastai's names

@dataclass
class Shape:
    high:float = 1.
    length:int = 10

class Toy:
    @accept_fastai_names
    @takes_fields_of(Shape, n_positional=1)
    def fit(self, max_lr, *, width=1, **schedule): return max_lr, width, Shape(**schedule)

def test_fields_stand_in_the_signature_by_position_or_by_keyword():
    assert str(inspect.signature(Toy.fit)) == '(self, max_lr, high: float = 1.0, *, length: int = 10, width=1)'

@pytest.mark.parametrize('call', [lambda: Toy().fit(.1, 2., length=3), lambda: Toy().fit(lr_max=.1, high=2., length=3),
                                  lambda: Toy().fit(length=3, high=2., max_lr=.1)], ids=['positions', 'alias', 'names'])
def test_arguments_by_position_by_name_and_by_alias(call): assert call() == (.1, 1, Shape(2., 3))

@pytest.mark.parametrize('call, message', [
    (lambda: Toy().fit(.1, lr_max=.2), 'max_lr was given twice, as 0.1 and as lr_max=0.2'),
    (lambda: Toy().fit(.1, 2., high=3.), 'high was given twice, as 2.0 and as high=3.0'),
    (lambda: Toy().fit(.1, 2., 3), r'Toy.fit takes at most 2 positional arguments \(max_lr, high\), got 3'),
    (lambda: Toy().fit(.1, size=7), r'Toy.fit has no argument size \(got 7\); it takes max_lr, high, length, width'),
    (lambda: Toy().fit(.1, div=7), r'Toy.fit has no argument div')],
    ids=['by its alias', 'by its name', 'too many', 'unknown', 'alias of what it lacks'])
def test_arguments_that_do_not_fit(call, message):
    with pytest.raises(TypeError, match=message): call()

def test_arguments_as_code():
    values = dict(max_lr=(.1,), final_div=inf, moms=(.9, .8), anneal=returns_nan, three_phase=False)
    text = as_arguments(values)
    assert text == "max_lr=(0.1,), final_div=float('inf'), moms=(0.9, 0.8), anneal=returns_nan, three_phase=False"
    assert eval(f'dict({text})') == values
