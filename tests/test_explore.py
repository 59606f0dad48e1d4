"""The controls of `OneCyclePlan.explore`: moved by a program, and the page compared with plans made by hand."""
import re
import sys
from html import unescape
from itertools import chain
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fastai.callback.training import GradientAccumulation
from hypothesis import given, settings, strategies as st

from support.explored import CASES, plan_of
from support.helpers import learner
from onecycle_callback import OneCycleSchedule, schedule
from onecycle_callback.explore import slider_stops
from onecycle_callback.position import TimedPlan
from onecycle_callback.schedule import table_html

pytestmark = pytest.mark.matrix

KINDS = dict(cycle_len='IntSlider', max_lr='FloatSlider', div_factor='FloatSlider', pct_start='FloatSlider',
             final_div='Combobox')     # a screen reader reads numbers from these; from a list of options, positions

class Explorer:
    "The controls of a plan by name, and what is shown below them."
    def __init__(self, plan):
        *controls, self.page = plan.explore().children
        self.controls = {c.description: c for c in controls}

    def move(self, **values):
        for name, value in values.items(): self.controls[name].value = value

    def call(self): return unescape(re.search('<code>(.*?)</code>', self.page.value)[1])

    def shows(self, plan, drawn):
        "Check that the call, the table and the picture, the last that was `drawn`, are those of `plan`."
        assert {name: type(control).__name__ for name, control in self.controls.items()} == KINDS
        assert self.call() == plan.call and '<img' in self.page.value
        assert self.page.value.endswith(table_html(plan.table, plan.peak // plan.n_batch))
        assert (drawn[-1]['lr'] == plan.lrs).all() and (drawn[-1]['mom'] == plan.moms).all()

@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    "The values of every picture that is drawn, in order, with its axes; pixels would take nearly all of the time."
    seen, real = [], schedule.plot_hypers
    def plot(hypers, *args, **kwargs):
        axes = real(hypers, *args, **kwargs)
        seen.append({name: np.array(v) for name, v in hypers.items()} | dict(axes=axes))
        return axes
    monkeypatch.setattr(schedule, 'plot_hypers', plot)
    monkeypatch.setattr('matplotlib.figure.Figure.savefig', lambda *args, **kwargs: None)
    return seen

THIRD = dict(pct_start=1/3)

@pytest.mark.parametrize('first, moved, wanted', [
    *((CASES[case], {}, {}) for case in ('first', 'other', 'peak_first', 'ends_at_0', 'flat', 'one_batch', 'tiny')),
    *(({}, moved, moved) for moved in (
        dict(max_lr=.15), dict(div_factor=4.), dict(pct_start=.5), dict(cycle_len=3),
        dict(cycle_len=1, max_lr=.02, pct_start=0.))),
    *((dict(final_div=2.), dict(final_div=str(typed)), dict(final_div=typed)) for typed in (None, np.inf, 1e5, 123.4)),
    # A browser rounds in its own way; what is meant is a stop
    (THIRD, dict(max_lr=.105 + 1e-16), dict(max_lr=.105)), (THIRD, dict(max_lr=.1 - 1e-16), {}),
    (THIRD, dict(pct_start=.57 + 1e-16), dict(pct_start=.57)), (THIRD, dict(pct_start=1/3), {}),
    # What cannot be trained cannot be reached
    ({}, dict(max_lr=0.), dict(max_lr=.005)), ({}, dict(div_factor=.5), dict(div_factor=1.)),
    ({}, dict(pct_start=1.5), dict(pct_start=1.)), ({}, dict(cycle_len=0), dict(cycle_len=1))], ids=str)
def test_a_move_shows_the_plan_of_its_arguments(drawn, first, moved, wanted):
    plan = plan_of(**first)
    explorer, n_before = Explorer(plan), len(drawn)
    explorer.move(**moved)
    explorer.shows(plan_of(**first | wanted), drawn)
    assert len(drawn) <= n_before + len(moved) and plan == plan_of(**first) and plt.get_fignums() == []

def test_parameter_groups_keep_their_fraction_of_the_peak(drawn):
    explorer = Explorer(OneCycleSchedule(slice(.001, .1)).plan(2, 8, 3))
    explorer.move(max_lr=.15)
    assert drawn[-1]['lr'].max(0) == pytest.approx([.0015, .015, .15], rel=1e-12) and drawn[-1]['lr'].max() == .15

@pytest.mark.parametrize('arguments', [
    dict(cycle_len=4), dict(cycle_len=4, max_lr=slice(.001, .1)), dict(minutes=2.5, three_phase=True),
    dict(cycle_len=2, final_div=np.inf, anneal='linear', moms=False), dict(cycle_len=4, cbs=GradientAccumulation(3))],
    ids=str)
def test_the_call_that_is_shown_has_the_same_plan(arguments):
    learn = learner(n_batch=6, n_groups=3)
    plan = learn.preview_one_cycle(**arguments)
    called = eval(Explorer(plan).call(), dict(learn=SimpleNamespace(fit_one_cycle=learn.preview_one_cycle),
                                            GradientAccumulation=GradientAccumulation))
    assert (called.lrs == plan.lrs).all() and np.array_equal(called.moms, plan.moms) and called.n_epoch == plan.n_epoch

PLANS = dict(usual=plan_of(), groups=OneCycleSchedule(slice(.2, .5), moms=False).plan(1, 8, 2),
             last_group_lowest=OneCycleSchedule((.5, .1)).plan(3, 8, 2),
             rising_momentum=OneCycleSchedule(.1, moms=(.8, .9, .95)).plan(3, 8),
             timed=TimedPlan(OneCycleSchedule(.1), 1, 8, minutes=30.),
             exp_in_three_phases=OneCycleSchedule(.1, anneal='exp', three_phase=True).plan(2, 4))

@pytest.mark.parametrize('plan', PLANS)
def test_no_move_moves_the_axes_and_nothing_leaves_them(plan, drawn):
    explorer = Explorer(PLANS[plan])
    for name, (_, stops) in slider_stops(PLANS[plan]).items():
        for end in (stops[0], stops[-1]):
            explorer.move(**{name: end})
            assert ('<table' in explorer.page.value) != (' must be ' in explorer.page.value)
    panels = [np.ravel(each['axes']) for each in drawn[1:]]     # the first one is only there to find the limits
    limits = [[(ax.get_xlim(), ax.get_ylim()) for ax in axes] for axes in panels]
    assert len(panels) > len(explorer.controls) and all(each == limits[0] for each in limits)
    for ax in chain(*panels):
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        for line in ax.lines:
            x, y = map(np.asarray, line.get_data())
            if x[0] == x[-1] and len(x) > 1: continue     # the mark of an epoch
            assert left < x.min() and x.max() < right and low < y.min() and y.max() < high

@settings(max_examples=50, deadline=None)
@given(max_lr=st.floats(1e-9, 1e3), div_factor=st.floats(1, 1e6), pct_start=st.floats(0, 1),
       final_div=st.none() | st.just(np.inf) | st.floats(1, 1e9), n_epoch=st.integers(1, 80))
def test_every_plan_stands_at_one_of_the_stops_of_each_slider(n_epoch, **arguments):
    plan = OneCycleSchedule(**arguments).plan(n_epoch, 3)
    sliders = slider_stops(plan)
    assert {name: value for name, (value, _) in sliders.items()} == arguments | dict(
        cycle_len=n_epoch, final_div=str(plan.schedule.final_div))
    for name, (value, stops) in sliders.items():
        assert value in stops and (name == 'final_div' or [*stops] == sorted(stops))

@pytest.mark.parametrize('first, moved, says', [
    (dict(three_phase=True), dict(pct_start=.7), 'pct_start must be at most 0.5 with three_phase, got 0.7'),
    *(({}, dict(final_div=typed), f'final_div must be a number of at least 1, or inf to end at 0, got {said}')
      for typed, said in {'0.5': '0.5', '<b>': '&#x27;&lt;b&gt;&#x27;'}.items())], ids=['phases', 'number', 'text'])
def test_what_cannot_be_trained_says_why_and_recovers(first, moved, says):
    explorer = Explorer(plan_of(**first))
    page, before = explorer.page.value, {name: explorer.controls[name].value for name in moved}
    explorer.move(**moved)
    assert explorer.page.value == f'<p>{says}</p>'
    explorer.move(**before)
    assert explorer.page.value == page

def test_says_what_to_install_where_ipywidgets_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(ImportError) as error: plan_of().explore()
    assert str(error.value) == "explore needs ipywidgets: pip install 'onecycle_callback[explore]'"
