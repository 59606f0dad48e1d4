"""The controls of `OneCyclePlan.explore`: moved by a program, and the page compared with plans made by hand."""
import re
import sys
from base64 import b64decode
from html import unescape
from io import BytesIO
from itertools import chain
from types import SimpleNamespace
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fastai.callback.training import GradientAccumulation
from hypothesis import given, settings, strategies as st

from support import fresh
from support.explored import CASES, arguments_of, plan_of
from support.helpers import learner
from onecycle_callback import OneCycleSchedule
from onecycle_callback.position import TimedPlan

pytestmark = pytest.mark.matrix

# Nearly all of the time goes into the pixels: where only the text of the page is read, there are none
without_pixels = patch('matplotlib.figure.Figure.savefig', lambda *args, **kwargs: None)

class Explorer:
    "The controls of a plan by name, what is shown below them, and the last values that were drawn."
    def __init__(self, plan):
        *controls, self.page = plan.explore().children
        self.controls = {c.description: c for c in controls}

    def move(self, **values):
        for name, value in values.items(): self.controls[name].value = value

    @property
    def ends(self):
        "The first and the last value of each slider, or of those that a field offers."
        return {name: (c.options[0], c.options[-1]) if hasattr(c, 'options') else (c.min, c.max)
                for name, c in self.controls.items()}

    @property
    def call(self): return unescape(re.search('<code>(.*?)</code>', self.page.value)[1])

    @property
    def schedule(self):
        own = {k: v for k, v in arguments_of(self.call).items() if k not in ('cycle_len', 'minutes')}
        return OneCycleSchedule(**own)

    @property
    def table(self):
        "The numbers of the shown table, one row per epoch."
        rows = [re.findall('<td>(.*?)</td>', row) for row in re.findall('<tr.*?</tr>', self.page.value, re.S)]
        return np.array([row for row in rows if row], float)

    @property
    def pixels(self): return plt.imread(BytesIO(b64decode(re.search('base64,(.*?)"', self.page.value)[1])))

@pytest.fixture
def drawn(monkeypatch):
    "The values of every picture that is drawn, in order, with its axes."
    from onecycle_callback import schedule
    seen, real = [], schedule.plot_hypers
    def plot(hypers, *args, **kwargs):
        axes = real(hypers, *args, **kwargs)
        seen.append({name: np.array(v) for name, v in hypers.items()} | dict(axes=axes))
        return axes
    monkeypatch.setattr(schedule, 'plot_hypers', plot)
    return seen

@without_pixels
@pytest.mark.parametrize('case', [name for name in CASES if name != 'long'])
def test_begins_at_the_plans_own_values(drawn, case):
    plan = plan_of(**CASES[case])
    explorer, columns = Explorer(plan), [v.reshape(plan.n_epoch, -1) for v in (plan.lrs, plan.moms)]
    assert list(explorer.controls) == ['cycle_len', 'max_lr', 'div_factor', 'pct_start', 'final_div']
    assert explorer.schedule == plan.schedule and arguments_of(explorer.call)['cycle_len'] == plan.n_epoch
    assert (drawn[-1]['lr'] == plan.lrs).all() and (drawn[-1]['mom'] == plan.moms).all()
    wanted = np.stack([column[:, end] for column in columns for end in (0, -1)], axis=1)
    assert explorer.table.tolist() == [[float(f'{value:.3g}') for value in row] for row in wanted]

@pytest.mark.parametrize('moved', [
    dict(max_lr=.15), dict(div_factor=4.), dict(pct_start=.5), dict(final_div=100.), dict(final_div=np.inf),
    dict(cycle_len=3), dict(final_div=1., cycle_len=1, max_lr=.02, pct_start=0.)], ids=str)
def test_each_control_moves_what_it_says(drawn, moved):
    explorer, wanted = Explorer(plan_of()), plan_of(**moved)
    before, n_before = explorer.pixels, len(drawn)
    explorer.move(**{name: str(value) if name == 'final_div' else value for name, value in moved.items()})
    assert explorer.schedule == wanted.schedule and arguments_of(explorer.call)['cycle_len'] == wanted.n_epoch
    assert len(drawn) == n_before + len(moved)
    assert (drawn[-1]['lr'] == wanted.lrs).all() and (drawn[-1]['mom'] == wanted.moms).all()
    assert explorer.pixels.shape == before.shape and (explorer.pixels != before).any()

def test_parameter_groups_keep_their_fraction_of_the_peak(drawn):
    explorer = Explorer(OneCycleSchedule(slice(.001, .1)).plan(2, 8, 3))
    assert explorer.controls['max_lr'].value == .1
    explorer.move(max_lr=.15)
    assert drawn[-1]['lr'].max(0) == pytest.approx([.0015, .015, .15], rel=1e-12) and drawn[-1]['lr'].max() == .15

@without_pixels
@pytest.mark.parametrize('arguments', [
    dict(cycle_len=4), dict(cycle_len=4, max_lr=slice(.001, .1)), dict(minutes=2.5, three_phase=True),
    dict(cycle_len=2, final_div=np.inf, anneal='linear', moms=False)], ids=str)
def test_the_call_that_is_shown_has_the_same_plan(arguments):
    learn = learner(n_batch=6, n_groups=3)
    plan = learn.preview_one_cycle(**arguments)
    called = learn.preview_one_cycle(**arguments_of(Explorer(plan).call))
    assert (called.lrs == plan.lrs).all() and np.array_equal(called.moms, plan.moms) and called.n_epoch == plan.n_epoch

@without_pixels
def test_the_call_of_a_plan_of_steps_has_its_callback():
    plan = learner(n_batch=6).preview_one_cycle(4, .1, cbs=GradientAccumulation(3))
    call = Explorer(plan).call
    called = eval(call, dict(learn=SimpleNamespace(fit_one_cycle=learner(n_batch=6).preview_one_cycle),
                             GradientAccumulation=GradientAccumulation))
    assert 'GradientAccumulation(3)' in call and called == plan

PLANS = dict(usual=plan_of(), groups=OneCycleSchedule(slice(.2, .5), moms=False).plan(1, 8, 2),
             last_group_lowest=OneCycleSchedule((.5, .1)).plan(3, 8, 2),
             rising_momentum=OneCycleSchedule(.1, moms=(.8, .9, .95)).plan(3, 8),
             timed=TimedPlan(OneCycleSchedule(.1), 1, 8, minutes=30.))

@without_pixels
@pytest.mark.parametrize('plan', PLANS)
def test_no_move_moves_the_axes_and_nothing_leaves_them(plan, drawn):
    explorer = Explorer(PLANS[plan])
    for name, ends in explorer.ends.items():
        for end in ends: explorer.move(**{name: end})
    panels = [np.ravel(each['axes']) for each in drawn[1:]]     # the first one is only there to find the limits
    limits = [[(ax.get_xlim(), ax.get_ylim()) for ax in axes] for axes in panels]
    assert len(panels) > len(explorer.controls) and all(each == limits[0] for each in limits)
    for ax in chain(*panels):
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        for line in ax.lines:
            x, y = map(np.asarray, line.get_data())
            if x[0] == x[-1] and len(x) > 1: continue     # the mark of an epoch
            assert left < x.min() and x.max() < right and low < y.min() and y.max() < high

@without_pixels
@pytest.mark.parametrize('name, sent, taken', [
    ('max_lr', .105 + 1e-16, .105), ('max_lr', .1 - 1e-16, .1), ('pct_start', .57 + 1e-16, .57),
    ('pct_start', 1/3, 1/3)])
def test_a_number_as_a_browser_rounds_it_is_the_stop(name, sent, taken):
    explorer = Explorer(OneCycleSchedule(.1, pct_start=1/3).plan(2, 8))
    explorer.move(**{name: sent})
    assert getattr(explorer.schedule, name) == taken

def test_what_a_screen_reader_reads_is_a_number():
    "Not a position: that is what ipywidgets' sliders for a list of options give it."
    kinds = [type(control).__name__ for control in Explorer(plan_of()).controls.values()]
    assert kinds == ['IntSlider', 'FloatSlider', 'FloatSlider', 'FloatSlider', 'Combobox']

@pytest.mark.slow
@without_pixels
@settings(max_examples=25, deadline=None)
@given(max_lr=st.floats(1e-9, 1e3), div_factor=st.floats(1, 1e6), pct_start=st.floats(0, 1),
       final_div=st.none() | st.just(np.inf) | st.floats(1, 1e9), n_epoch=st.integers(1, 80))
def test_every_plan_fits_between_the_ends_of_its_controls(max_lr, div_factor, pct_start, final_div, n_epoch):
    plan = OneCycleSchedule(max_lr, div_factor, pct_start, final_div).plan(n_epoch, 3)
    explorer = Explorer(plan)
    assert explorer.schedule == plan.schedule and explorer.controls['cycle_len'].value == n_epoch

@pytest.mark.slow
@without_pixels
@settings(max_examples=15, deadline=None)
@given(ends=st.tuples(*[st.sampled_from([0, -1])] * 5), anneal=st.sampled_from(['cos', 'linear', 'exp']),
       three_phase=st.booleans())
def test_no_corner_of_the_controls_is_a_traceback(ends, anneal, three_phase):
    explorer = Explorer(OneCycleSchedule(.1, anneal=anneal, three_phase=three_phase).plan(2, 4))
    for end, (name, both) in zip(ends, explorer.ends.items()):
        explorer.move(**{name: both[end]})
        assert ('<table' in explorer.page.value) != (' must be ' in explorer.page.value)
    assert plt.get_fignums() == []

@without_pixels
@pytest.mark.parametrize('name, value', [('max_lr', 0.), ('div_factor', .5), ('pct_start', 1.5), ('cycle_len', 0)])
def test_what_cannot_be_trained_cannot_be_reached(name, value):
    explorer = Explorer(plan_of())
    explorer.move(**{name: value})
    assert explorer.controls[name].value == min(explorer.ends[name], key=lambda end: abs(end - value))
    assert '<table' in explorer.page.value

def fails(start, end, pos):
    if .04 < start < .09: raise ValueError('a < b')
    return start

END = 'final_div must be a number of at least 1, or inf to end at 0, got '

@pytest.mark.parametrize('schedule, moved, says', [
    (dict(three_phase=True), dict(pct_start=.7), 'pct_start must be at most 0.5 with three_phase, got 0.7'),
    (dict(anneal=fails), dict(div_factor=2.), 'a &lt; b'), ({}, dict(final_div='0.5'), END + '0.5'),
    ({}, dict(final_div='x'), END + '&#x27;x&#x27;'), ({}, dict(final_div=''), END + '&#x27;&#x27;'),
    ({}, dict(final_div='nan'), END + 'nan')],
    ids=lambda value: value if isinstance(value, str) else ' '.join(value))
def test_what_cannot_be_trained_says_why_and_recovers(schedule, moved, says):
    explorer = Explorer(plan_of(**schedule))
    first, before = explorer.page.value, {name: explorer.controls[name].value for name in moved}
    explorer.move(**moved)
    assert explorer.page.value == f'<p>{says}</p>'
    explorer.move(**before)
    assert explorer.page.value == first

@without_pixels
@pytest.mark.parametrize('typed, final_div', [('None', None), ('inf', np.inf), ('1e5', 1e5), ('123.4', 123.4)])
def test_the_end_can_be_typed(typed, final_div):
    plan = plan_of()
    explorer = Explorer(plan)
    explorer.move(final_div='2')
    explorer.move(final_div=typed)
    assert explorer.schedule == OneCycleSchedule(.1, final_div=final_div)
    assert plan == plan_of() and plt.get_fignums() == []

def test_says_what_to_install_where_ipywidgets_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(ImportError) as error: plan_of().explore()
    assert str(error.value) == "explore needs ipywidgets: pip install 'onecycle_callback[explore]'"

@pytest.mark.slow
def test_importing_the_package_does_not_import_ipywidgets():
    code = 'import sys, onecycle_callback; print("ipywidgets" in sys.modules)'
    assert fresh.python(code).stdout == 'False\n'
