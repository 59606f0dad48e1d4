"""`OneCycleSchedule` and `OneCyclePlan` against torch, fastai and numbers by hand, and their properties."""
import math
import pickle
import re
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from fastai.callback.schedule import combined_cos
from hypothesis import assume, given, settings, strategies as st

from onecycle_callback import OneCyclePlan, OneCycleSchedule, anneal_cos  # noqa: F401 (names that repr is read with)

def torch_run(n, pct_start, **kwargs):
    "LRs and momentums of torch's own scheduler."
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=.1, momentum=.9)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        sched = torch.optim.lr_scheduler.OneCycleLR(opt, .1, total_steps=n, pct_start=pct_start, div_factor=25.,
                                                    **kwargs)
        lrs, moms = [], []
        for i in range(n):
            lrs.append(opt.param_groups[0]['lr'])
            moms.append(opt.param_groups[0]['momentum'])
            if i < n - 1: sched.step()
    return lrs, moms

def peak_of(pct_start, n): return min(math.floor(pct_start * n + .5), n - 1)

LENGTHS = [(n, pct) for n in (1, 2, 3, 4, 5, 10, 33, 100, 1000) for pct in (0., .01, .1, .25, .3, .5, .77, .99)]
LATER, AT_ONCE = ([(n, pct) for n, pct in LENGTHS if (peak_of(pct, n) > 0) is later] for later in (True, False))

@pytest.mark.matrix
@pytest.mark.parametrize('n, pct', LATER)
@pytest.mark.parametrize('anneal', ['cos', 'linear'])
def test_equals_torch(n, pct, anneal):
    plan = OneCycleSchedule(.1, pct_start=pct, anneal=anneal).plan(1, n)
    lrs, moms = torch_run(n, (peak_of(pct, n) + 1) / n, final_div_factor=1., anneal_strategy=anneal)
    assert plan.lrs[:, 0] == pytest.approx(lrs, abs=1e-12)
    assert plan.moms == pytest.approx(moms, abs=1e-12)

@pytest.mark.parametrize('n, pct', AT_ONCE)
def test_starts_at_the_peak(n, pct):
    plan = OneCycleSchedule(.1, pct_start=pct).plan(1, n)
    assert plan.peak == 0 and plan.lrs[0, 0] == .1 and plan.moms[0] == .85

def test_defined_where_torch_divides_by_zero():
    with pytest.raises(ZeroDivisionError): torch_run(10, .1, final_div_factor=1.)
    assert OneCycleSchedule(.1, pct_start=.1).plan(1, 10).lrs[:2, 0].tolist() == [.004, .1]

def test_three_phases_equal_torch():
    plan = OneCycleSchedule(.1, pct_start=.3, three_phase=True).plan(10, 10)
    lrs, _ = torch_run(100, 31 / 100, final_div_factor=100., three_phase=True)
    assert plan.lrs[:, 0] == pytest.approx(lrs, abs=1e-12)
    assert plan.lrs[30, 0] == .1 and plan.lrs[60, 0] == .1/25 and plan.lrs[99, 0] == .1/2500
    assert plan.lrs[31:60, 0] == pytest.approx(plan.lrs[1:30, 0][::-1], abs=1e-15)
    assert (plan.moms[60:] == .95).all()

@pytest.mark.parametrize('n', [7, 10, 33, 101])
def test_peak_and_end_exact_where_fastai_misses_them(n):
    lrs = OneCycleSchedule(.1, pct_start=.25, final_div=1e5).plan(1, n).lrs[:, 0]
    theirs = [combined_cos(.25, .004, .1, 1e-6)(i / n) for i in range(n)]
    assert lrs.max() == .1 != max(theirs) and lrs[-1] == .1/1e5 != theirs[-1]
    assert np.abs(lrs - theirs).max() <= np.abs(np.diff(lrs)).max()      # never further apart than a batch

@pytest.mark.parametrize('n, pct, want', [
    (1, .3, [1.]), (2, .3, [.2, 1.]), (3, .3, [.2, 1., .2]), (4, .3, [.2, 1., .6, .2]), (3, 0., [1., .6, .2]),
    (3, 1., [.2, .6, 1.]), (9, .5, [.2, .36, .52, .68, .84, 1., .2 + .8*2/3, .2 + .8/3, .2])])
def test_by_hand(n, pct, want):
    plan = OneCycleSchedule(1., div_factor=5., pct_start=pct, anneal='linear').plan(1, n)
    assert plan.lrs[:, 0] == pytest.approx(want, abs=1e-15)

@pytest.mark.parametrize('kwargs, end', [
    ({}, .1/25), (dict(final_div=1e5), .1/1e5), (dict(final_div=math.inf), 0),
    (dict(three_phase=True), .1/2500), (dict(three_phase=True, final_div=10), .01)], ids=str)
def test_ends(kwargs, end): assert OneCycleSchedule(.1, **kwargs).plan(2, 10).lrs[-1, 0] == end

def test_after_the_last_batch_it_stays():
    plan = OneCycleSchedule(.1, final_div=1000).plan(1, 10)
    lrs, moms = plan.at([9, 10, 11, 1000])
    assert (lrs == .1/1000).all() and (moms == .95).all()

@pytest.mark.parametrize('max_lr, peaks', [(slice(1e-4, 1e-2), [1e-4, 1e-3, 1e-2]), (slice(1e-2), [1e-3, 1e-3, 1e-2]),
                                           (.1, [.1] * 3), ([.1, .3, .2], [.1, .3, .2])], ids=str)
def test_groups(max_lr, peaks):
    plan = OneCycleSchedule(max_lr).plan(3, 5, 3)
    top = plan.lrs[plan.peak]
    assert (plan.lrs <= top).all() and top == pytest.approx(peaks, rel=1e-15)
    assert top[[0, -1]].tolist() == [peaks[0], peaks[-1]]      # to the last bit
    assert plan.lrs / peaks == pytest.approx(np.repeat(plan.lrs[:, -1:] / peaks[-1], 3, axis=1))

@pytest.mark.parametrize('moms, want', [(None, [.95, .85, .95]), ((.9, .8), [.9, .8, .9]),
                                        ((.9, .8, .7), [.9, .8, .7])], ids=str)
def test_momentum_at_start_peak_and_end(moms, want):
    plan = OneCycleSchedule(.1, moms=moms).plan(1, 5)
    assert plan.moms[[0, plan.peak, -1]].tolist() == want

def test_no_momentum(): assert OneCycleSchedule(.1, moms=False).plan(1, 5).moms is None

def test_own_function_is_called_with_numbers():
    plan = OneCycleSchedule(.1, anneal=lambda s, e, p: s + (e - s) * math.sin(p * math.pi / 2)).plan(2, 10)
    assert plan.lrs[plan.peak, 0] == .1
    assert plan.lrs[3, 0] == pytest.approx(.004 + .096 * math.sin(.25 * math.pi))

def test_numbers_of_other_libraries():
    schedule = OneCycleSchedule(torch.tensor(.5), np.float32(5), np.float64(.5), moms=np.array([.9, .8]))
    values = schedule.max_lr, schedule.div_factor, schedule.pct_start, *schedule.moms
    assert values == (.5, 5., .5, .9, .8, .9) and {type(v) for v in values} == {float}

LR, DIV, MOM = st.floats(1e-6, 100), st.floats(1, 1e6), st.floats(0, .999)
NAMES = st.sampled_from(['cos', 'linear'])
MOMS = st.just(False) | st.tuples(MOM, MOM) | st.tuples(MOM, MOM, MOM)
ANY = dict(anneal=NAMES | st.tuples(NAMES, NAMES), final_div=st.none() | DIV | st.just(math.inf), moms=MOMS)
EXP = dict(anneal=st.just('exp'), final_div=st.none() | DIV, moms=st.just((.95, .85, .9)))

@st.composite
def arguments(draw, anneal, final_div, moms):
    "Arguments of a schedule that go together."
    three_phase = draw(st.booleans())
    return dict(max_lr=draw(LR), div_factor=draw(DIV), pct_start=draw(st.floats(0, .5 if three_phase else 1)),
                final_div=draw(final_div), moms=draw(moms), anneal=draw(anneal), three_phase=three_phase)

def plans(n_max, **kwargs):
    "Plans of one epoch, any schedule."
    kwargs = ANY | kwargs
    return st.builds(lambda kw, n: OneCycleSchedule(**kw).plan(1, n), arguments(**kwargs), st.integers(1, n_max))

def ends(max_lr, div_factor, final_div, three_phase, **kwargs):
    "First and last LR, as the documentation says."
    if final_div is None: final_div = 100 * div_factor if three_phase else div_factor
    return max_lr / div_factor, max_lr / final_div

@settings(max_examples=1000, deadline=None)
@given(arguments(**ANY) | arguments(**EXP), st.integers(1, 5000))
def test_every_schedule(kwargs, n):
    plan = OneCycleSchedule(**kwargs).plan(1, n)
    lrs, p, top, moms = plan.lrs[:, 0], plan.peak, kwargs['max_lr'], kwargs['moms']
    start, final = ends(**kwargs)
    assert p == peak_of(kwargs['pct_start'], n) and lrs[p] == top
    if p: assert lrs[0] == start
    if p < n - 1: assert lrs[-1] == final
    assert min(start, final) <= lrs.min() and lrs.max() <= top
    turn = 2 * p if kwargs['three_phase'] and 0 < 2 * p < n - 1 else n - 1
    assert (np.diff(lrs[:p + 1]) >= 0).all() and (np.diff(lrs[p:turn + 1]) <= 0).all()
    for a, b in zip([0, p, turn], [p, turn, n - 1]):
        if b <= a or kwargs['anneal'] == 'exp': continue      # which is steeper than half a cosine wave
        steepest = abs(lrs[b] - lrs[a]) * min(1, math.pi / 2 / (b - a))
        assert np.abs(np.diff(lrs[a:b + 1])).max() <= steepest + 1e-12 * top
    if not moms:
        assert plan.moms is None
        return
    high, low, end = moms if len(moms) == 3 else (*moms, moms[0])
    assert plan.moms[p] == low and min(moms) <= plan.moms.min() and plan.moms.max() <= max(moms)
    if p: assert plan.moms[0] == high
    if p < n - 1: assert plan.moms[-1] == end

@settings(max_examples=600, deadline=None)
@given(plans(400) | plans(5000, **EXP), st.sampled_from([1, 2, 3, 7, 64]), st.integers(0, 4999))
def test_some_batches_are_the_plan_to_the_last_bit(plan, size, first):
    step = max(size, len(plan) // 8)      # eight blocks, anywhere
    for i in range(first % step, len(plan), step):
        lrs, moms = plan.at(np.arange(i, min(i + size, len(plan))))
        assert (lrs == plan.lrs[i:i + size]).all()
        assert moms is None and plan.moms is None or (moms == plan.moms[i:i + size]).all()

@settings(max_examples=300, deadline=None)
@given(plans(400))
def test_a_fraction_of_the_cycle_agrees_at_the_batches(plan):
    schedule, n, p = plan.schedule, len(plan), plan.peak
    pct = schedule.pct_start
    knots, fractions = [0, p, n - 1], [0, pct, 1]
    if schedule.three_phase: knots[2:2], fractions[2:2] = [2 * p], [2 * pct]
    assume(knots == sorted(set(knots)) and fractions == sorted(set(fractions)))      # no phase is empty
    assert schedule(np.interp(np.arange(n), knots, fractions)) == pytest.approx(plan.lrs[:, 0], rel=1e-6,
                                                                                abs=1e-9 * schedule.max_lr)
    assert (schedule(0.), schedule(pct), schedule(1.)) == (plan.lrs[0, 0], schedule.max_lr, plan.lrs[-1, 0])

@settings(max_examples=300, deadline=None)
@given(plans(50))
def test_pickled_and_printed(plan):
    assert pickle.loads(pickle.dumps(plan)) == plan and pickle.loads(pickle.dumps(plan.schedule)) == plan.schedule
    assert eval(repr(plan)) == plan and eval(repr(plan.schedule)) == plan.schedule

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
    assert '<table' in html and 'lr_first' in html and 'src="data:image/png' in html
    assert 'alt="Learning rate and momentum' in html

def test_a_plan_of_a_million_batches_and_a_hundred_groups_is_small_until_looked_at():
    tracemalloc.start()
    OneCycleSchedule(.1).plan(1000, 1000, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6

@pytest.mark.parametrize('n_groups, moms, columns', [
    (1, None, ['lr', 'mom']), (1, False, ['lr']), (3, None, ['lr_0', 'lr_1', 'lr_2', 'mom'])])
def test_frame_has_a_row_for_each_batch(n_groups, moms, columns):
    plan = OneCycleSchedule(.1, moms=moms).plan(2, 5, n_groups)
    frame = plan.to_frame()
    assert frame.columns.tolist() == ['epoch', 'batch', *columns] and frame.index.tolist() == list(range(10))
    assert frame.epoch.tolist() == [0] * 5 + [1] * 5 and frame.batch.tolist() == list(range(10))
    lrs = frame.filter(like='lr').to_numpy()
    assert (lrs == plan.lrs).all() and (moms is False or (frame.mom == plan.moms).all())

def test_the_values_of_a_plan_take_little_more_than_they_hold():
    plan = OneCycleSchedule(.1).plan(100, 10_000, 3)
    tracemalloc.start()
    held = plan.lrs.nbytes + plan.moms.nbytes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * held

def test_a_pickled_plan_is_as_small_as_before_it_was_looked_at():
    plan = OneCycleSchedule(.1).plan(100, 1000)
    before = len(pickle.dumps(plan))
    assert plan.lrs.size == 100_000 and len(pickle.dumps(plan)) == before

def test_batches_in_any_order():
    plan = OneCycleSchedule(slice(.01, .1), pct_start=.4).plan(10, 10, 2)
    batches = np.random.default_rng(0).permutation(100)
    lrs, moms = plan.at(batches)
    assert (lrs == plan.lrs[batches]).all() and (moms == plan.moms[batches]).all()

@pytest.mark.parametrize('n_epoch', [61, 300])
@pytest.mark.parametrize('pct_start', [0, .02, .3, 1])
def test_a_long_table_is_shown_at_its_ends_and_around_the_peak(n_epoch, pct_start):
    plan = OneCycleSchedule(.1, pct_start=pct_start).plan(n_epoch, 10)
    peak = plan.peak // 10
    wanted = sorted({*range(5), *range(peak - 2, peak + 3), *range(n_epoch - 5, n_epoch)} & set(range(n_epoch)))
    rows = re.findall(r'<th>(\d+|\.\.\.)</th>', plan._repr_html_())
    assert [int(row) for row in rows if row != '...'] == wanted and len(plan.table) == n_epoch
    assert rows.count('...') == sum(after > before + 1 for before, after in zip(wanted, wanted[1:]))

def test_a_table_of_sixty_epochs_is_shown_whole():
    html = OneCycleSchedule(.1).plan(60, 1)._repr_html_()
    assert re.findall(r'<th>(\d+|\.\.\.)</th>', html) == list(map(str, range(60)))

def math_curve(start, end, pos): return start + (end - start) * math.sin(pos * math.pi / 2)
def numpy_curve(start, end, pos): return start + (end - start) * np.minimum(1, 2 * pos)
def branching(start, end, pos): return start if pos < .5 else end
def constant(start, end, pos): return end

def counted(curve):
    "Return `curve`, and a list of what it is called with."
    calls = []
    def call(*args):
        calls.append(args)
        return curve(*args)
    return call, calls

@pytest.mark.parametrize('n', [3, 1000, 10**6])
def test_own_curve_is_checked_at_no_more_than_a_thousand_batches(n):
    call, calls = counted(math_curve)
    OneCycleSchedule(.1, anneal=call, moms=False).plan(1, n)
    assert min(n - 3, 990) <= len(calls) <= 1000

@pytest.mark.parametrize('curve', [math_curve, numpy_curve, branching, constant])
@pytest.mark.parametrize('n', [10, 5000])
def test_own_curve_is_called_with_three_floats_at_a_time(curve, n):
    call, calls = counted(curve)
    plan = OneCycleSchedule(slice(.01, .1), anneal=call).plan(1, n, 2)
    calls.clear()
    lrs, p, start, peak = plan.lrs, plan.peak, plan.at([0])[0][0], plan.at([plan.peak])[0][0]
    assert {type(arg) for args in calls for arg in args} == {float} and len(calls) == 3 * (n - 3)
    assert lrs[1:p].tolist() == [[curve(s, e, i / p) for s, e in zip(start, peak)] for i in range(1, p)]

def spiky(start, end, pos): return np.where(np.abs(pos - .123456) < 1e-5, np.nan, start + (end - start) * pos)
def spiky_number(start, end, pos): return math.nan if abs(pos - .123456) < 1e-5 else start + (end - start) * pos

@pytest.mark.parametrize('curve', [spiky, spiky_number])
def test_a_bad_value_that_shows_later_names_function_position_and_value(curve):
    plan = OneCycleSchedule(.1, anneal=curve).plan(1, 10**6)
    message = rf'anneal returns, {curve.__name__}\(0.004, 0.1, 0.12344\d+\), must be a finite number, got nan'
    with pytest.raises(ValueError, match=message): plan.lrs

def test_a_schedule_asks_what_was_meant():
    with pytest.raises(TypeError, match='OneCycleSchedule has no argument lr .got 0.1.: did you mean max_lr'):
        OneCycleSchedule(lr=.1)
