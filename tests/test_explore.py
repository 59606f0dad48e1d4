"""The sliders of `OneCyclePlan.explore`: moved by a program, the page read back and compared with plans made by hand."""
import re
import subprocess
import sys
from base64 import b64decode
from io import BytesIO
from unittest.mock import patch

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from traitlets import TraitError

from helpers import learner
from onecycle_callback import OneCyclePlan, OneCycleSchedule

pytestmark = pytest.mark.matrix

NAMES = ['max_lr', 'div_factor', 'pct_start', 'final_div', 'n_epoch']

class Explorer:
    "The sliders of a plan by name, and what is shown below them."
    def __init__(self, plan):
        *sliders, self.page = plan.explore().children
        self.sliders = {s.description: s for s in sliders}

    def move(self, **values):
        for name, value in values.items(): self.sliders[name].value = value

    @property
    def schedule(self):
        "The schedule that the page shows, read as Python."
        return eval(re.search('<code>(.*?)</code>', self.page.value)[1].replace('&#x27;', "'"))

    @property
    def table(self):
        "The numbers of the shown table, one row per epoch; its first row of headings names the columns."
        html = self.page.value[self.page.value.index('<table'):]
        rows = [[float(cell) for cell in re.findall('<td>(.*?)</td>', row)] for row in re.findall('<tr.*?</tr>', html, re.S)]
        return np.array([row for row in rows if row])

    @property
    def picture(self):
        "The pixels of the shown picture."
        return plt.imread(BytesIO(b64decode(re.search('base64,(.*?)"', self.page.value)[1])))

@pytest.fixture
def drawn(monkeypatch):
    "The values of every picture that is drawn, in order."
    seen = []
    def plot(hypers, **kwargs):
        seen.append({name: np.array(v) for name, v in hypers.items()})
        return real(hypers, **kwargs)
    from onecycle_callback import schedule
    real = schedule.plot_hypers
    monkeypatch.setattr(schedule, 'plot_hypers', plot)
    return seen

def first_and_last(plan):
    "Return what the table should hold, taken directly from the batches of `plan`."
    columns = (plan.lrs[:, -1].reshape(plan.n_epoch, -1), plan.moms.reshape(plan.n_epoch, -1))
    return np.stack([c[:, end] for c in columns for end in (0, -1)], axis=1)

def test_begins_at_the_plans_own_values(drawn):
    plan = OneCycleSchedule(.123, 7., .45, 33., (.9, .8), 'linear').plan(12, 9)
    explorer = Explorer(plan)
    assert list(explorer.sliders) == NAMES
    assert [s.value for s in explorer.sliders.values()] == [.123, 7., .45, '33.0', 12]
    assert explorer.schedule == plan.schedule
    assert len(drawn) == 1 and (drawn[0]['lr'] == plan.lrs).all() and (drawn[0]['mom'] == plan.moms).all()
    assert explorer.table == pytest.approx(first_and_last(plan), rel=1e-5, abs=1e-6)

@pytest.mark.parametrize('moved, schedule, n_epoch', [
    (dict(max_lr=.5), dict(max_lr=.5), 10), (dict(div_factor=4.), dict(div_factor=4.), 10), (dict(pct_start=.5), dict(pct_start=.5), 10),
    (dict(final_div='100.0'), dict(final_div=100.), 10), (dict(final_div='inf'), dict(final_div=np.inf), 10), (dict(n_epoch=3), {}, 3),
    (dict(final_div='1.0', n_epoch=1, max_lr=.02, pct_start=0.), dict(final_div=1., max_lr=.02, pct_start=0.), 1)])
def test_each_slider_moves_what_it_says(drawn, moved, schedule, n_epoch):
    explorer = Explorer(OneCycleSchedule(.1).plan(10, 8))
    before = explorer.picture
    explorer.move(**moved)
    wanted = OneCycleSchedule(**dict(max_lr=.1) | schedule).plan(n_epoch, 8)
    assert explorer.schedule == wanted.schedule
    assert len(drawn) == 1 + len(moved) and (drawn[-1]['lr'] == wanted.lrs).all() and (drawn[-1]['mom'] == wanted.moms).all()
    assert explorer.table.shape == (n_epoch, 4) and explorer.table == pytest.approx(first_and_last(wanted), rel=1e-5, abs=1e-6)
    assert explorer.picture.shape == before.shape and (explorer.picture != before).any()

def test_the_end_can_be_given_and_left_to_the_start_again():
    explorer = Explorer(OneCycleSchedule(.1).plan(2, 8))
    explorer.move(final_div='inf')
    assert explorer.table[-1, 1] == 0
    explorer.move(final_div='None')
    assert explorer.table[-1, 1] == .1 / 25

def test_parameter_groups_keep_their_share_of_the_peak(drawn):
    explorer = Explorer(OneCycleSchedule(slice(.001, .1)).plan(2, 8, 3))
    assert explorer.sliders['max_lr'].value == .1
    explorer.move(max_lr=.2)
    assert drawn[-1]['lr'].max(0) == pytest.approx([.002, .02, .2], rel=1e-12) and drawn[-1]['lr'].max() == .2

def test_a_learners_own_plan():
    learn = learner(n_batch=6, lr=.03)
    explorer = Explorer(learn.preview_one_cycle(4))
    assert explorer.sliders['max_lr'].value == .03 and explorer.schedule.moms == learn.moms and explorer.table.shape == (4, 4)

# Nearly all of the time goes into the pixels: where many pages are made and only their text is read, there are none
without_pixels = patch('matplotlib.figure.Figure.savefig', lambda *args, **kwargs: None)

@without_pixels
@settings(max_examples=25, deadline=None)
@given(max_lr=st.floats(1e-9, 1e3), div_factor=st.floats(1, 1e6), pct_start=st.floats(0, 1), final_div=st.none() | st.just(np.inf) | st.floats(1, 1e9),
       n_epoch=st.integers(1, 80))
@pytest.mark.slow
def test_every_plan_fits_between_the_ends_of_its_sliders(max_lr, div_factor, pct_start, final_div, n_epoch):
    plan = OneCycleSchedule(max_lr, div_factor, pct_start, final_div).plan(n_epoch, 3)
    explorer = Explorer(plan)
    assert explorer.schedule == plan.schedule and explorer.sliders['n_epoch'].value == n_epoch
    for s in explorer.sliders.values():      # a stop is known by the label next to it, so that a front end has nothing to round
        assert isinstance(s, ipywidgets.SelectionSlider) and len(s.options) == len({str(o) for o in s.options})

@pytest.mark.slow
@without_pixels
@settings(max_examples=15, deadline=None)
@given(ends=st.tuples(*[st.sampled_from([0, -1])] * 5), anneal=st.sampled_from(['cos', 'linear', 'exp']), three_phase=st.booleans())
def test_no_corner_of_the_sliders_is_a_traceback(ends, anneal, three_phase):
    explorer = Explorer(OneCycleSchedule(.1, anneal=anneal, three_phase=three_phase).plan(2, 4))
    for slider, end in zip(explorer.sliders.values(), ends):
        slider.value = slider.options[end]
        assert ('<table' in explorer.page.value) != (' must be ' in explorer.page.value)
    assert plt.get_fignums() == []

def test_settings_that_do_not_go_together_say_why_and_recover():
    explorer = Explorer(OneCycleSchedule(.1, three_phase=True).plan(2, 4))
    explorer.move(pct_start=.7)
    assert explorer.page.value == '<p>pct_start must be at most 0.5 with three_phase, got 0.7</p>'
    explorer.move(pct_start=.4)
    assert explorer.schedule == OneCycleSchedule(.1, pct_start=.4, three_phase=True)

def test_the_sliders_end_where_a_plan_does():
    sliders = Explorer(OneCycleSchedule(.1).plan(2, 4)).sliders
    assert [sliders[name].options[0] for name in ('div_factor', 'pct_start', 'n_epoch')] == [1, 0, 1]
    assert sliders['pct_start'].options[-1] == 1

@pytest.mark.parametrize('name, value', [('max_lr', 0.), ('div_factor', .5), ('pct_start', 1.5), ('n_epoch', 0), ('final_div', '0.5')])
def test_what_cannot_be_trained_cannot_be_reached(name, value):
    explorer = Explorer(OneCycleSchedule(.1).plan(2, 4))
    with pytest.raises(TraitError): explorer.move(**{name: value})

def test_the_plan_stays_and_no_figure_is_left():
    plan = OneCycleSchedule(.1).plan(2, 4)
    explorer = Explorer(plan)
    for lr in (.2, .3, .4): explorer.move(max_lr=lr)
    assert plan == OneCyclePlan(OneCycleSchedule(.1), 2, 4) and plt.get_fignums() == []

def test_an_error_is_shown_as_text_and_not_as_markup():
    def curve(start, end, pos):
        if .05 < start < .09: raise ValueError('a < b')
        return start
    explorer = Explorer(OneCycleSchedule(.1, anneal=curve, div_factor=25).plan(1, 9))
    explorer.move(div_factor=next(stop for stop in explorer.sliders['div_factor'].options if 1.2 < stop < 1.9))
    assert explorer.page.value == '<p>a &lt; b</p>'

def test_says_what_to_install_where_ipywidgets_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(ImportError) as error: OneCycleSchedule(.1).plan(2, 4).explore()
    assert str(error.value) == "explore needs ipywidgets: pip install 'onecycle_callback[explore]'"

@pytest.mark.slow
def test_importing_the_package_does_not_import_ipywidgets():
    code = 'import sys, onecycle_callback; assert hasattr(onecycle_callback.OneCyclePlan, "explore"); print("ipywidgets" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'False\n'
