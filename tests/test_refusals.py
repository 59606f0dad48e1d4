"""Bad calls: each a clear error, the Learner exactly as it was."""
import math
import re

import pytest
import torch
from fastai.basics import Callback, SGD
from fastai.callback.schedule import ParamScheduler
from torch.utils.data import IterableDataset

from helpers import frozen_state, learner
from onecycle_callback import OneCycle

nan, inf = math.nan, math.inf
# what is wrong, how it is called, what the message must hold beside the argument's name
SCHEDULE = [('max_lr', bad, allowed) for bad, allowed in [
    ('0.1', 'number'), (True, 'number'), (nan, 'above 0'), (inf, 'above 0'), (0, 'above 0'), (-1, 'above 0'), ([], 'one number for each'), ([.1, .2], 'got 2'), ([.1, nan, .1], 'above 0'),
    ([.1, 'x', .1], 'number'), (slice(None), 'slice(highest)'), (slice(.1, .01), 'slice(lowest, highest)'), (slice(0, .1), 'above 0'), (slice(.1, .2, .3), 'slice'), ({'a': 1}, 'number'), (1j, 'number')]]
SCHEDULE += [('div_factor', bad, 'at least 1') for bad in ('25', None, True, nan, inf, 0, .5, -25, [25])]
SCHEDULE += [('pct_start', bad, 'between 0 and 1') for bad in (-.1, 1.5, '0.3', nan, inf, True, None, [.3])]
SCHEDULE += [('final_div', bad, 'at least 1') for bad in ('1e5', nan, 0, .1, -1, -inf, False)]
SCHEDULE += [('moms', bad, allowed) for bad, allowed in [
    (.9, 'three numbers'), (True, 'three numbers'), ((.9,), 'two numbers'), ((.9, .8, .9, .8), 'two numbers'), ((.9, 1.), 'below 1'), ((.9, -.1), 'at least 0'), ((.9, nan), 'below 1'),
    (('.9', '.8'), 'below 1'), ('high', 'three numbers')]]
SCHEDULE += [('anneal', bad, "'cos', 'linear', 'exp'") for bad in ('cosine', None, 3, ('cos',), ('cos', 'cos', 'cos'), ('cos', 'poly'), ('cos', 3))]
SCHEDULE += [('anneal', lambda s, e, p: nan, 'finite number'), ('anneal', lambda s, e, p: None, 'finite number'), ('anneal', lambda s, e, p: 'x', 'finite number')]
SCHEDULE += [('three_phase', bad, 'True or False') for bad in (1, 'yes', None)]
BOTH = [('pct_start', dict(three_phase=True, pct_start=.7), 'at most 0.5'), ('final_div', dict(anneal='exp', final_div=inf), 'finite'), ('moms', dict(anneal='exp', moms=(.9, 0)), 'above 0'),
        ('max_lr', dict(max_lr=.1, lr_max=.1), 'twice'), ('div_factor', dict(div=5, div_factor=5), 'twice'), ('final_div', dict(final_div=5, div_final=5), 'twice'),
        ('div_final', dict(pct_start=1e5), 'by name'), ('lr', dict(lr=.1), 'max_lr'), ('momss', dict(momss=.1), 'moms')]
FIT = [('cycle_len', dict(cycle_len=bad), 'at least 1') for bad in (0, -1, 2.5, True, '10', None, nan)]
FIT += [('cycle_len', dict(n_epoch=3, cycle_len=3), 'twice'), ('cycle_len', dict(n_epoch=3, cyc_len=3), 'twice')]
FIT_ONLY = [('start_epoch', dict(start_epoch=bad), '0 to 2') for bad in (-1, 3, 1.5, True, None)] + [('stop_epoch', dict(stop_epoch=bad), '1 to 3') for bad in (0, 4, 1.5, False)]
FIT_ONLY += [('stop_epoch', dict(start_epoch=2, stop_epoch=2), '3 to 3'), ('reset_opt', dict(reset_opt=1), 'True or False'), ('cbs', dict(cbs='x'), 'Callback'), ('cbs', dict(cbs=[Callback(), 3]), 'Callback'),
             ('cbs', dict(cbs=OneCycle(.1)), 'OneCycle'), ('cbs', dict(cbs=OneCycle), 'OneCycle'), ('cbs', dict(cbs=ParamScheduler({'lr': lambda p: p})), 'lr')]
FIT_ONLY += [('wd', dict(wd=bad), allowed) for bad, allowed in [('x', 'at least 0'), (nan, 'at least 0'), (-1, 'at least 0'), (inf, 'at least 0'), (True, 'at least 0'), ([.1, .2], '3 parameter groups')]]

def refused(call, learn, name, allowed, value=None):
    before = frozen_state(learn)
    with pytest.raises((ValueError, TypeError)) as e: call(learn)
    text = str(e.value)
    assert re.search(rf'\b{name}\b', text) and allowed in text, text
    assert value is None or value in text, text
    after = frozen_state(learn)
    assert {k: (before[k], after[k]) for k in before if before[k] != after[k]} == {}

def shown(value):
    "What of `value` must stand in the message: of a sequence or a slice, one of its parts will do."
    return str(value) if isinstance(value, (int, float, str)) and value is not None else None

CASES = [(n, {n: v}, a, shown(v)) for n, v, a in SCHEDULE] + [(n, kw, a, None) for n, kw, a in BOTH]
CALLS = dict(fit=lambda learn, kw: learn.fit_one_cycle(**{'cycle_len': 3} | kw), preview=lambda learn, kw: learn.preview_one_cycle(**{'cycle_len': 3} | kw), callback=lambda learn, kw: learn.fit(3, cbs=OneCycle(**kw)))

def test_there_are_enough(): assert len(CASES) + len(FIT) + len(FIT_ONLY) >= 90

@pytest.mark.parametrize('trained', [False, True], ids=['new', 'trained'])
@pytest.mark.parametrize('call', CALLS)
def test_schedule_arguments(call, trained):
    learn = learner(n_groups=3)
    if trained: learn.fit_one_cycle(1, .01)
    for name, kwargs, allowed, value in CASES: refused(lambda l: CALLS[call](l, kwargs), learn, name, allowed, value)

@pytest.mark.parametrize('call', ['fit', 'preview'])
def test_length(call):
    learn = learner(n_groups=3)
    for name, kwargs, allowed in FIT:
        kwargs = {k: v for k, v in kwargs.items()}
        f = dict(fit=learn.fit_one_cycle, preview=learn.preview_one_cycle)[call]
        refused(lambda l: f(**kwargs), learn, name, allowed)

def test_arguments_of_the_fit():
    learn = learner(n_groups=3)
    for name, kwargs, allowed in FIT_ONLY: refused(lambda l: l.fit_one_cycle(3, .1, **kwargs), learn, name, allowed)

def test_the_message_word_for_word():
    with pytest.raises(ValueError, match=r'^pct_start must be between 0 and 1, got 1\.5'): learner().fit_one_cycle(1, pct_start=1.5)

def test_positions_of_fastai_2():
    learn = learner()
    refused(lambda l: l.fit_one_cycle(10, .1, 25., 1e5), learn, 'div_final', 'by name', '100000.0')
    refused(lambda l: l.fit_one_cycle(10, .1, 25., .3, 1e5), learn, 'pct_start', 'at most 4', '100000.0')

class NoLength(IterableDataset):
    def __iter__(self): yield torch.ones(3), torch.ones(1)

@pytest.mark.parametrize('call', CALLS)
def test_loaders(call):
    for loader, allowed in ((torch.utils.data.DataLoader(NoLength(), batch_size=1), 'have a length'), ([], 'at least one batch')):
        learn = learner()
        learn.dls.loaders[0] = loader
        refused(lambda l: CALLS[call](l, {}), learn, 'train', allowed)

def test_no_momentum_to_set():
    for call in CALLS:
        learn = learner(opt_func=SGD)
        refused(lambda l: CALLS[call](l, dict(moms=(.9, .8))), learn, 'moms', 'no momentum takes effect')

def test_two_cycles_at_once():
    learn = learner(cbs=OneCycle(.1))
    refused(lambda l: l.fit_one_cycle(1), learn, 'OneCycle', 'at most one')
    learn = learner()
    with pytest.raises(ValueError, match='at most one OneCycle'): learn.fit(1, cbs=[OneCycle(.1), OneCycle(.1)])
