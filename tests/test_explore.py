"""The controls of `OneCyclePlan.explore`: moved by a program, and the page compared with plans made by hand."""
import re
import subprocess
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
from hypothesis import given, settings, strategies as st

from support.helpers import learner
from onecycle_callback import OneCyclePlan, OneCycleSchedule
from onecycle_callback.clock import TimedPlan

pytestmark = pytest.mark.matrix

NAMES = ['cycle_len', 'max_lr', 'div_factor', 'pct_start', 'final_div']

def call_of(line):
    "Return the arguments of the call of `fit_one_cycle` in a line of Python, by name."
    assert re.match(r'learn\.fit_one_cycle\((cycle_len|minutes)=', line)
    learn = SimpleNamespace(fit_one_cycle=lambda **arguments: arguments)
    return eval(line, dict(learn=learn))

def ends_of(control):
    "Return the first and the last value of a slider, or of those that a field offers."
    return (control.options[0], control.options[-1]) if hasattr(control, 'options') else (control.min, control.max)

class Explorer:
    "The controls of a plan by name, and what is shown below them."
    def __init__(self, plan):
        *controls, self.page = plan.explore().children
        self.controls = {c.description: c for c in controls}

    def move(self, **values):
        for name, value in values.items(): self.controls[name].value = value

    @property
    def call(self):
        "The arguments of the call that the page shows, by name."
        return call_of(unescape(re.search('<code>(.*?)</code>', self.page.value)[1]))

    @property
    def schedule(self):
        "The schedule of the call that the page shows."
        own = {name: value for name, value in self.call.items() if name not in ('cycle_len', 'minutes')}
        return OneCycleSchedule(**own)

    @property
    def table(self):
        "The numbers of the shown table, one row per epoch; its first row of headings names the columns."
        html = self.page.value[self.page.value.index('<table'):]
        rows = [[float(cell) for cell in re.findall('<td>(.*?)</td>', row)]
                for row in re.findall('<tr.*?</tr>', html, re.S)]
        return np.array([row for row in rows if row])

    @property
    def picture(self):
        "The pixels of the shown picture."
        return plt.imread(BytesIO(b64decode(re.search('base64,(.*?)"', self.page.value)[1])))

@pytest.fixture
def drawn(monkeypatch):
    "The values of every picture that is drawn, in order, with its axes."
    seen = []
    def plot(hypers, *args, **kwargs):
        axes = real(hypers, *args, **kwargs)
        seen.append({name: np.array(v) for name, v in hypers.items()} | dict(axes=axes))
        return axes
    from onecycle_callback import clock, schedule
    real = schedule.plot_hypers
    for module in (schedule, clock): monkeypatch.setattr(module, 'plot_hypers', plot)
    return seen

# Nearly all of the time goes into the pixels: where many pages are made and only their text is read, there are none
without_pixels = patch('matplotlib.figure.Figure.savefig', lambda *args, **kwargs: None)

def first_and_last(plan):
    "Return what the table should hold, taken directly from the batches of `plan`."
    columns = (plan.lrs[:, -1].reshape(plan.n_epoch, -1), plan.moms.reshape(plan.n_epoch, -1))
    return np.stack([c[:, end] for c in columns for end in (0, -1)], axis=1)

def test_begins_at_the_plans_own_values(drawn):
    plan = OneCycleSchedule(.123, 7., .45, 33., (.9, .8), 'linear').plan(12, 9)
    explorer = Explorer(plan)
    assert list(explorer.controls) == NAMES
    assert [c.value for c in explorer.controls.values()] == [12, .123, 7., .45, '33.0']
    assert explorer.schedule == plan.schedule and explorer.call['cycle_len'] == 12
    assert (drawn[-1]['lr'] == plan.lrs).all() and (drawn[-1]['mom'] == plan.moms).all()
    assert explorer.table == pytest.approx(first_and_last(plan), rel=1e-5, abs=1e-6)

@pytest.mark.parametrize('moved, schedule, n_epoch', [
    (dict(max_lr=.15), dict(max_lr=.15), 10), (dict(div_factor=4.), dict(div_factor=4.), 10),
    (dict(pct_start=.5), dict(pct_start=.5), 10), (dict(final_div='100.0'), dict(final_div=100.), 10),
    (dict(final_div='inf'), dict(final_div=np.inf), 10), (dict(cycle_len=3), {}, 3),
    (dict(final_div='1.0', cycle_len=1, max_lr=.02, pct_start=0.), dict(final_div=1., max_lr=.02, pct_start=0.), 1)])
def test_each_control_moves_what_it_says(drawn, moved, schedule, n_epoch):
    explorer = Explorer(OneCycleSchedule(.1).plan(10, 8))
    before, n_before = explorer.picture, len(drawn)
    explorer.move(**moved)
    wanted = OneCycleSchedule(**dict(max_lr=.1) | schedule).plan(n_epoch, 8)
    assert explorer.schedule == wanted.schedule and explorer.call['cycle_len'] == n_epoch
    assert len(drawn) == n_before + len(moved)
    assert (drawn[-1]['lr'] == wanted.lrs).all() and (drawn[-1]['mom'] == wanted.moms).all()
    assert explorer.table.shape == (n_epoch, 4)
    assert explorer.table == pytest.approx(first_and_last(wanted), rel=1e-5, abs=1e-6)
    assert explorer.picture.shape == before.shape and (explorer.picture != before).any()

def test_the_end_can_be_given_and_left_to_the_start_again():
    explorer = Explorer(OneCycleSchedule(.1).plan(2, 8))
    explorer.move(final_div='inf')
    assert explorer.table[-1, 1] == 0
    explorer.move(final_div='None')
    assert explorer.table[-1, 1] == .1 / 25

def test_parameter_groups_keep_their_share_of_the_peak(drawn):
    explorer = Explorer(OneCycleSchedule(slice(.001, .1)).plan(2, 8, 3))
    assert explorer.controls['max_lr'].value == .1
    explorer.move(max_lr=.15)
    assert drawn[-1]['lr'].max(0) == pytest.approx([.0015, .015, .15], rel=1e-12) and drawn[-1]['lr'].max() == .15

def test_a_learners_own_plan():
    learn = learner(n_batch=6, lr=.03)
    explorer = Explorer(learn.preview_one_cycle(4))
    assert explorer.controls['max_lr'].value == .03 and explorer.schedule.moms == learn.moms
    assert explorer.table.shape == (4, 4)

@pytest.mark.parametrize('arguments', [
    dict(cycle_len=4), dict(cycle_len=4, max_lr=slice(.001, .1)), dict(minutes=2.5, three_phase=True),
    dict(cycle_len=2, final_div=np.inf, anneal='linear', moms=False)], ids=str)
def test_the_call_that_is_shown_has_the_same_plan(arguments):
    learn = learner(n_batch=6, n_groups=3)
    plan, called = learn.preview_one_cycle(**arguments), []
    learn.fit_one_cycle = lambda **kwargs: called.append(learn.preview_one_cycle(**kwargs))
    eval(unescape(re.search('<code>(.*?)</code>', Explorer(plan).page.value)[1]), dict(learn=learn))
    assert (called[0].lrs == plan.lrs).all() and np.array_equal(called[0].moms, plan.moms)
    assert called[0].n_epoch == plan.n_epoch

PLANS = dict(
    usual=OneCycleSchedule(.1).plan(10, 8), groups=OneCycleSchedule(slice(.2, .5), moms=False).plan(1, 8, 2),
    last_group_lowest=OneCycleSchedule((.5, .1)).plan(3, 8, 2),
    timed=TimedPlan(OneCycleSchedule(.1), 1, 8, minutes=30.))

@without_pixels
@pytest.mark.parametrize('plan', PLANS)
def test_no_move_moves_the_axes_and_nothing_leaves_them(plan, drawn):
    explorer = Explorer(PLANS[plan])
    for name, control in explorer.controls.items():
        for end in ends_of(control): explorer.move(**{name: end})
    panels = [np.ravel(each['axes']) for each in drawn[1:]]     # the first one is only there to find the limits
    limits = [[(ax.get_xlim(), ax.get_ylim()) for ax in axes] for axes in panels]
    assert len(panels) > len(explorer.controls) and all(each == limits[0] for each in limits)
    for ax in chain(*panels):
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        for line in ax.lines:
            x, y = map(np.asarray, line.get_data())
            if x[0] == x[-1] and len(x) > 1: continue     # the mark of an epoch
            assert left < x.min() and x.max() < right and low < y.min() and y.max() < high

@pytest.mark.parametrize('name, sent, taken', [
    ('max_lr', .105 + 1e-16, .105), ('max_lr', .1 - 1e-16, .1), ('pct_start', .57 + 1e-16, .57),
    ('pct_start', 1/3, 1/3)])
def test_a_number_as_a_browser_rounds_it_is_the_stop(name, sent, taken):
    explorer = Explorer(OneCycleSchedule(.1, pct_start=1/3).plan(2, 8))
    explorer.move(**{name: sent})
    assert getattr(explorer.schedule, name) == taken

def test_what_a_screen_reader_reads_is_a_number():
    "Not a position: that is what ipywidgets' sliders for a list of options give it."
    controls = Explorer(OneCycleSchedule(.1).plan(2, 8)).controls
    kinds = {name: type(control).__name__ for name, control in controls.items()}
    assert kinds == dict(cycle_len='IntSlider', max_lr='FloatSlider', div_factor='FloatSlider', pct_start='FloatSlider',
                         final_div='Combobox')

@without_pixels
@settings(max_examples=25, deadline=None)
@given(max_lr=st.floats(1e-9, 1e3), div_factor=st.floats(1, 1e6), pct_start=st.floats(0, 1),
       final_div=st.none() | st.just(np.inf) | st.floats(1, 1e9),
       n_epoch=st.integers(1, 80))
@pytest.mark.slow
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
    for control, end in zip(explorer.controls.values(), ends):
        control.value = ends_of(control)[end]
        assert ('<table' in explorer.page.value) != (' must be ' in explorer.page.value)
    assert plt.get_fignums() == []

def test_settings_that_do_not_go_together_say_why_and_recover():
    explorer = Explorer(OneCycleSchedule(.1, three_phase=True).plan(2, 4))
    explorer.move(pct_start=.7)
    assert explorer.page.value == '<p>pct_start must be at most 0.5 with three_phase, got 0.7</p>'
    explorer.move(pct_start=.4)
    assert explorer.schedule == OneCycleSchedule(.1, pct_start=.4, three_phase=True)

def test_the_controls_end_where_a_plan_does():
    controls = Explorer(OneCycleSchedule(.1).plan(2, 4)).controls
    firsts, lasts = zip(*(ends_of(controls[name]) for name in ('cycle_len', 'div_factor', 'pct_start', 'final_div')))
    assert firsts == (1, 1, 0, 'None') and lasts[2:] == (1, 'inf')

@pytest.mark.parametrize('name, value', [('max_lr', 0.), ('div_factor', .5), ('pct_start', 1.5), ('cycle_len', 0)])
def test_what_cannot_be_trained_cannot_be_reached(name, value):
    explorer = Explorer(OneCycleSchedule(.1).plan(2, 4))
    explorer.move(**{name: value})
    assert explorer.controls[name].value == min(ends_of(explorer.controls[name]), key=lambda end: abs(end - value))
    assert '<table' in explorer.page.value

@pytest.mark.parametrize('typed, final_div', [('None', None), ('inf', np.inf), ('1e5', 1e5), ('123.4', 123.4)])
def test_the_end_can_be_typed(typed, final_div):
    explorer = Explorer(OneCycleSchedule(.1).plan(2, 4))
    explorer.move(final_div='2')
    explorer.move(final_div=typed)
    assert explorer.schedule == OneCycleSchedule(.1, final_div=final_div)

@pytest.mark.parametrize('typed', ['0.5', 'x', '', 'nan'])
def test_an_end_that_cannot_be_trained_says_what_is_allowed(typed):
    explorer = Explorer(OneCycleSchedule(.1).plan(2, 4))
    explorer.move(final_div=typed)
    assert explorer.page.value.startswith('<p>final_div must be a number of at least 1, or inf to end at 0, got ')

def test_the_plan_stays_and_no_figure_is_left():
    plan = OneCycleSchedule(.1).plan(2, 4)
    explorer = Explorer(plan)
    for lr in (.02, .03, .04): explorer.move(max_lr=lr)
    assert plan == OneCyclePlan(OneCycleSchedule(.1), 2, 4) and plt.get_fignums() == []

def test_an_error_is_shown_as_text_and_not_as_markup():
    def curve(start, end, pos):
        if .04 < start < .09: raise ValueError('a < b')
        return start
    explorer = Explorer(OneCycleSchedule(.1, anneal=curve, div_factor=25).plan(1, 9))
    explorer.move(div_factor=2.)
    assert explorer.page.value == '<p>a &lt; b</p>'

def test_says_what_to_install_where_ipywidgets_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(ImportError) as error: OneCycleSchedule(.1).plan(2, 4).explore()
    assert str(error.value) == "explore needs ipywidgets: pip install 'onecycle_callback[explore]'"

@pytest.mark.slow
def test_importing_the_package_does_not_import_ipywidgets():
    code = '''import sys, onecycle_callback
assert hasattr(onecycle_callback.OneCyclePlan, "explore")
print("ipywidgets" in sys.modules)'''
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'False\n'
