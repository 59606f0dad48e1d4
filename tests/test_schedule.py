"""The schedule against torch, against numbers worked out by hand, and its properties."""
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from onecycle_callback import OneCycleSchedule, anneal_cos, anneal_linear  # noqa: F401 (names that repr is read with)

def torch_run(n, pct_start, **kwargs):
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=.1, momentum=.9)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        sched = torch.optim.lr_scheduler.OneCycleLR(opt, .1, total_steps=n, pct_start=pct_start, div_factor=25., **kwargs)
        lrs, moms = [], []
        for i in range(n):
            lrs.append(opt.param_groups[0]['lr'])
            moms.append(opt.param_groups[0]['momentum'])
            if i < n - 1: sched.step()
    return lrs, moms

@pytest.mark.parametrize('n', [1, 2, 3, 4, 5, 10, 33, 100, 1000])
@pytest.mark.parametrize('pct', [0.01, .1, .25, .3, .5, .77, .99])
@pytest.mark.parametrize('anneal', ['cos', 'linear'])
def test_equals_torch(n, pct, anneal):
    plan = OneCycleSchedule(.1, pct_start=pct, anneal=anneal).plan(1, n)
    p = plan.peak
    if n == 1 or p == 0: return test_starts_at_the_peak(n)     # torch divides by zero there
    lrs, moms = torch_run(n, (p + 1) / n, final_div_factor=1., anneal_strategy=anneal)
    assert plan.lrs[:, 0] == pytest.approx(lrs, abs=1e-12)
    assert plan.moms == pytest.approx(moms, abs=1e-12)

def test_starts_at_the_peak(n=3):
    plan = OneCycleSchedule(.1, pct_start=0.).plan(1, n)
    assert plan.peak == 0 and plan.lrs[0, 0] == .1

def test_three_phases_equal_torch():
    plan = OneCycleSchedule(.1, pct_start=.3, three_phase=True).plan(10, 10)
    lrs, _ = torch_run(100, 31 / 100, final_div_factor=100., three_phase=True)
    assert plan.lrs[:, 0] == pytest.approx(lrs, abs=1e-12)
    assert plan.lrs[30, 0] == .1 and plan.lrs[60, 0] == .1/25 and plan.lrs[99, 0] == .1/2500
    assert plan.lrs[31:60, 0] == pytest.approx(plan.lrs[1:30, 0][::-1], abs=1e-15)
    assert (plan.moms[60:] == .95).all()

@pytest.mark.parametrize('n, pct, want', [
    (1, .3, [1.]), (2, .3, [.2, 1.]), (3, .3, [.2, 1., .2]), (4, .3, [.2, 1., .6, .2]), (3, 0., [1., .6, .2]), (3, 1., [.2, .6, 1.]),
    (9, .5, [.2, .36, .52, .68, .84, 1., .2 + .8*2/3, .2 + .8/3, .2])])
def test_by_hand(n, pct, want):
    plan = OneCycleSchedule(1., div_factor=5., pct_start=pct, anneal='linear').plan(1, n)
    assert plan.lrs[:, 0] == pytest.approx(want, abs=1e-15)

def test_ends():
    end = lambda **kw: OneCycleSchedule(.1, **kw).plan(2, 10).lrs[-1, 0]
    assert end() == .1/25 and end(final_div=1e5) == .1/1e5 and end(final_div=math.inf) == 0
    assert end(three_phase=True) == .1/2500 and end(three_phase=True, final_div=10) == .01

def test_after_the_last_batch_it_stays():
    plan = OneCycleSchedule(.1, final_div=1000).plan(1, 10)
    lrs, moms = plan.at([9, 10, 11, 1000])
    assert (lrs == .1/1000).all() and (moms == .95).all()

def test_groups():
    assert OneCycleSchedule(slice(1e-4, 1e-2)).plan(1, 5, 3).lrs.max(0) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert OneCycleSchedule(slice(1e-4, 1e-2)).plan(1, 5, 3).lrs.max(0)[[0, 2]].tolist() == [1e-4, 1e-2]
    assert OneCycleSchedule(slice(1e-2)).plan(1, 5, 3).lrs.max(0).tolist() == [1e-3, 1e-3, 1e-2]
    lrs = OneCycleSchedule([.01, .1]).plan(3, 5, 2).lrs
    assert lrs[:, 0] * 10 == pytest.approx(lrs[:, 1])

def test_own_function_is_called_with_numbers():
    plan = OneCycleSchedule(.1, anneal=lambda s, e, p: s + (e - s) * math.sin(p * math.pi / 2)).plan(2, 10)
    assert plan.lrs[plan.peak, 0] == .1
    assert plan.lrs[3, 0] == pytest.approx(.004 + .096 * math.sin(.25 * math.pi))

def test_numbers_of_other_libraries():
    schedule = OneCycleSchedule(torch.tensor(.5), div_factor=np.float32(5), pct_start=np.float64(.5), moms=np.array([.9, .8]))
    assert (schedule.max_lr, schedule.div_factor, schedule.pct_start, schedule.moms) == (.5, 5., .5, (.9, .8, .9))
    assert all(type(v) is float for v in (schedule.max_lr, schedule.div_factor, schedule.pct_start, *schedule.moms))

lr = st.floats(1e-6, 100)
div = st.floats(1, 1e6)
mom = st.floats(0, .999)
@st.composite
def schedules(draw, n_max=5000):
    three = draw(st.booleans())
    anneal = st.sampled_from(['cos', 'linear'])
    schedule = OneCycleSchedule(draw(lr), draw(div), draw(st.floats(0, .5 if three else 1)), draw(st.none() | div | st.just(math.inf)),
                                draw(st.just(False) | st.tuples(mom, mom) | st.tuples(mom, mom, mom)), draw(anneal | st.tuples(anneal, anneal)), three)
    return schedule, schedule.plan(1, draw(st.integers(1, n_max)))

@settings(max_examples=1500, deadline=None)
@given(schedules())
def test_every_schedule(case):
    schedule, plan = case
    lrs, n, p = plan.lrs[:, 0], len(plan), plan.peak
    top, start = schedule.max_lr, schedule.max_lr / schedule.div_factor
    final = top / schedule._last_div
    assert p == min(math.floor(schedule.pct_start * n + .5), n - 1)
    assert lrs[p] == top
    if p: assert lrs[0] == start
    if p < n - 1: assert lrs[-1] == final
    assert min(start, final) <= lrs.min() and lrs.max() <= top
    assert (np.diff(lrs[:p + 1]) >= 0).all()
    turn = 2 * p if schedule.three_phase and 0 < p and 2 * p < n - 1 else n - 1
    assert (np.diff(lrs[p:turn + 1]) <= 0).all()
    knots = [k for k in (0, p, turn, n - 1)]
    for a, b in zip(knots, knots[1:]):
        if b > a: assert np.abs(np.diff(lrs[a:b + 1])).max() <= abs(lrs[b] - lrs[a]) * min(1, math.pi / 2 / (b - a)) + 1e-12 * top
    if schedule.moms:
        assert plan.moms[p] == schedule.moms[1]
        assert min(schedule.moms) <= plan.moms.min() and plan.moms.max() <= max(schedule.moms)
        if p: assert plan.moms[0] == schedule.moms[0]
        if p < n - 1: assert plan.moms[-1] == schedule.moms[2]
    else: assert plan.moms is None

@settings(max_examples=600, deadline=None)
@given(schedules(400), st.sampled_from([1, 2, 3, 7, 64]))
def test_batch_by_batch_is_the_plan_to_the_last_bit(case, block):
    _, plan = case
    for i in range(0, len(plan), block):
        some, moms = plan.at(np.arange(i, min(i + block, len(plan))))
        assert (some == plan.lrs[i:i + block]).all()
        assert moms is None or (moms == plan.moms[i:i + block]).all()

@settings(max_examples=600, deadline=None)
@given(schedules(400))
def test_a_share_of_the_cycle_agrees_at_the_batches(case):
    schedule, plan = case
    n, p, pct = len(plan), plan.peak, schedule.pct_start
    third = schedule.three_phase and 0 < p and 2 * p < n - 1
    if p in (0, n - 1) or pct in (0., 1.) or schedule.three_phase and not (third and pct < .5): return
    knots, shares = ([0, p, 2 * p, n - 1], [0, pct, 2 * pct, 1]) if third else ([0, p, n - 1], [0, pct, 1])
    assert schedule(np.interp(np.arange(n), knots, shares)) == pytest.approx(plan.lrs[:, 0], rel=1e-6, abs=1e-9 * schedule.max_lr)
    assert schedule(0.) == plan.lrs[0, 0] and schedule(pct) == schedule.max_lr and schedule(1.) == plan.lrs[-1, 0]

@settings(max_examples=1000, deadline=None)
@given(schedules(50))
def test_pickled_and_printed(case):
    for one in case:
        assert pickle.loads(pickle.dumps(one)) == one
    assert eval(repr(case[0])) == case[0]

def test_a_function_prints_under_its_name():
    schedule = OneCycleSchedule(slice(.1), anneal=(anneal_cos, 'linear'), final_div=math.inf)
    assert eval(repr(schedule)) == schedule

def test_table():
    table = OneCycleSchedule(.1).plan(10, 22).table
    assert table.index.tolist() == list(range(10)) and table.index.name == 'epoch'
    assert table.columns.tolist() == ['lr_first', 'lr_last', 'mom_first', 'mom_last']
    assert table.lr_first[3] == .1 and table.lr_first[0] == table.lr_last[9] == .004
    assert OneCycleSchedule(.1, moms=False).plan(1, 2).table.columns.tolist() == ['lr_first', 'lr_last']

def test_a_plan_in_a_notebook_is_table_and_picture():
    html = OneCycleSchedule(.1).plan(10, 22)._repr_html_()
    assert '<table' in html and 'lr_first' in html and 'alt="Learning rate and momentum' in html and 'src="data:image/png' in html

@settings(max_examples=500, deadline=None)
@given(lr, div, st.floats(0, .5), st.none() | div, st.booleans(), st.integers(1, 5000), st.integers(0, 4999), st.sampled_from([1, 2, 7, 64]))
def test_every_exponential_schedule(max_lr, div_factor, pct, final_div, three, n, first, block):
    plan = OneCycleSchedule(max_lr, div_factor, pct, final_div, (.95, .85, .9), 'exp', three).plan(1, n)
    lrs, p = plan.lrs[:, 0], plan.peak
    assert lrs[p] == lrs.max() == max_lr and (np.diff(lrs[:p + 1]) >= 0).all()
    if p: assert lrs[0] == max_lr / div_factor
    if p < n - 1: assert lrs[-1] == max_lr / plan.schedule._last_div
    if not three: assert (np.diff(lrs[p:]) <= 0).all()
    some, moms = plan.at(np.arange(min(first, n - 1), min(first + block, n)))
    assert (some[:, 0] == lrs[min(first, n - 1):min(first + block, n)]).all() and (moms == plan.moms[min(first, n - 1):min(first + block, n)]).all()
