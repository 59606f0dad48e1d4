"""Pictures of a plan and of a record."""
import itertools
import math
from base64 import b64decode
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from support.helpers import learner
from onecycle_callback import OneCycleSchedule
from onecycle_callback.plot import (
    MOST_POINTS, PREVIEW, batch_frame, batches_to_draw, epochs_to_mark, extremes, figure_html, plot_hypers)

pytestmark = pytest.mark.matrix

@pytest.mark.parametrize('n_epoch, n_batch', list(itertools.product([1, 3, 10, 300], [1, 4])))
def test_any_number_of_epochs(n_epoch, n_batch):
    plan = OneCycleSchedule([.01, .1]).plan(n_epoch, n_batch, 2)
    left, right = plan.plot(figsize=(9, 3))
    assert left.figure.get_size_inches().tolist() == [9, 3]
    assert left.get_xlabel() == right.get_xlabel() == 'batch'
    left.figure.canvas.draw()
    marks = [line.get_xdata()[0] for line in left.lines if line.get_linestyle() == ':']
    assert 1 <= len(marks) <= 12 and marks[0] == 0 and {x % n_batch for x in marks} == {0}

def test_groups_have_a_legend_and_momentum_has_none():
    left, right = OneCycleSchedule([.01, .1]).plan(3, 4, 2).plot()
    assert [t.get_text() for t in left.get_legend().get_texts()] == ['group 0', 'group 1']
    assert right.get_legend() is None

def drawn(ax, n):
    "The lines of `n` values."
    return [line.get_ydata().tolist() for line in ax.lines if len(line.get_ydata()) == n]

def test_a_plan_draws_each_batch_of_each_group():
    plan = OneCycleSchedule([.01, .1]).plan(3, 4, 2)
    left, right = plan.plot()
    assert drawn(left, 12) == plan.lrs.T.tolist() and drawn(right, 12) == [plan.moms.tolist()]

def test_a_record_draws_each_batch_of_each_group():
    learn = learner(n_groups=3)
    learn.fit_one_cycle(2, slice(1e-3, 1e-1))
    assert drawn(learn.recorder.plot_lr(), 24) == learn.recorder.plan.lrs.T.tolist()

def test_a_plan_on_axes_of_ones_own():
    _, ax = plt.subplots()
    assert OneCycleSchedule(.1, moms=False).plan(1, 5).plot(ax=ax) is ax

def test_a_record_on_axes_of_ones_own():
    learn = learner()
    learn.fit_one_cycle(1)
    _, ax = plt.subplots()
    assert learn.recorder.plot_lr(ax=ax) is ax
    with pytest.raises(ValueError, match='ax must be 2 axes'): learn.recorder.plot_lr(show_moms=True, ax=ax)

def test_up_to_as_many_batches_as_pixels_are_all_drawn():
    plan = OneCycleSchedule(.1, moms=False).plan(1, MOST_POINTS)
    assert plan.plot().lines[0].get_xdata().tolist() == list(range(MOST_POINTS))

def sine(start, end, pos): return start + (end - start) * math.sin(pos * math.pi / 2)

@pytest.mark.parametrize('n_batch', [1234, 10**5])
@pytest.mark.parametrize('kwargs', [{}, dict(pct_start=.123), dict(three_phase=True), dict(anneal=sine)], ids=' '.join)
def test_a_long_plan_is_drawn_at_its_knots_epochs_and_some_more_batches(kwargs, n_batch):
    plan = OneCycleSchedule([.01, .1], **kwargs).plan(100, n_batch, 2)
    left, right = plan.plot()
    marks = [line.get_xdata()[0] for line in left.lines if line.get_linestyle() == ':']
    x = left.lines[0].get_xdata()
    knots = [0, plan.peak, len(plan) - 1] + [2 * plan.peak] * plan.schedule.three_phase
    assert {*knots, *marks} <= set(x.tolist()) and MOST_POINTS <= len(x) < MOST_POINTS + 20
    lrs, moms = plan.at(x)
    assert drawn(left, len(x)) == lrs.T.tolist() and drawn(right, len(x)) == [moms.tolist()]
    assert np.diff(x).max() <= len(plan) / (MOST_POINTS - 1) + 1
    assert left.texts[0].get_text() == f'0.1 at batch {plan.peak}'

# The pieces by themselves

def test_batches_to_draw():
    assert batches_to_draw(5, keep=[3]).tolist() == [0, 1, 2, 3, 4]
    assert batches_to_draw(1000, keep=[300, 2000], most=5).tolist() == [0, 250, 300, 500, 749, 999]

def test_a_batch_that_stands_out_is_drawn():
    values = [1.] * 100
    values[41], values[73] = 5., -5.
    assert {41, 73} < set(extremes(values, most=4).tolist()) and extremes([1., 2., 3.]).tolist() == [0, 1, 2]

@pytest.mark.parametrize('n, step', [(1, 1), (12, 1), (13, 2), (60, 5), (100, 10), (300, 50)])
def test_some_of_many_epochs_are_marked(n, step):
    assert epochs_to_mark({epoch: 7 * epoch for epoch in range(n)}) == {e: 7 * e for e in range(0, n, step)}

def test_groups_with_the_same_values_share_a_line():
    ax = plot_hypers(dict(lr=[[1, 1, 2], [2, 2, 4], [1, 1, 2]]))
    assert [line.get_label() for line in ax.lines] == ['group 0', 'group 2'] and drawn(ax, 3) == [[1, 2, 1], [2, 4, 2]]

def test_few_batches_are_points_and_the_peak_is_labelled():
    ax = plot_hypers(dict(lr=[1, 2, 1]), peak=1)
    assert [line.get_marker() for line in ax.lines] == ['.', 'o'] and ax.texts[0].get_text() == '2 at batch 1'

@pytest.mark.parametrize('n', [1, 2, 3])
def test_a_panel_for_each_hyper_parameter(n):
    axes = plot_hypers({name: [1, 2] for name in ('lr', 'mom', 'wd')[:n]})
    labels = [ax.get_ylabel() for ax in np.ravel(axes)]
    assert labels == ['learning rate', 'momentum', 'weight decay'][:n] and len(plt.gcf().axes) == n

def test_nothing_to_draw():
    with pytest.raises(ValueError, match='at least one hyper-parameter'): plot_hypers({})

def test_a_figure_in_a_page_is_closed():
    html = figure_html(plt.subplots()[0], 'Nothing yet')
    assert html.startswith('<img alt="Nothing yet" width="614" src="data:image/png;base64,iVBOR')
    png = b64decode(html.partition('base64,')[2].partition('"')[0])
    assert plt.imread(BytesIO(png)).shape[1] == 2 * 614 and plt.get_fignums() == []

def test_the_type_of_a_preview_can_be_read():
    "In pixels of the page, of which an inch has 96."
    figure = OneCycleSchedule(.1).plan(10, 100).plot(figsize=PREVIEW)[0].figure
    sizes = [text.get_fontsize() * 96 / 72 for text in figure.findobj(Text) if text.get_text()]
    assert len(sizes) > 20 and min(sizes) >= 11 and PREVIEW[0] * 96 <= 730

def test_only_what_the_cycle_sets_has_a_peak():
    panels = plot_hypers(dict(lr=[.1, .2, .1], mom=[.9, .8, .9], wd=[.3, .2, .1]), peak=1)
    assert [[text.get_text() for text in panel.texts] for panel in panels] == [['0.2 at batch 1'], ['0.8 at batch 1'],
                                                                               []]

def test_a_table_has_a_column_for_each_group():
    frame = batch_frame(dict(epoch=[0, 0], batch=[0, 1]), lr=[[.01, .1], [.02, .2]], mom=None, wd=[.01, .02])
    assert frame.to_dict('list') == dict(epoch=[0, 0], batch=[0, 1], lr_0=[.01, .02], lr_1=[.1, .2], wd=[.01, .02])
    assert list(batch_frame(dict(batch=[0]), lr=[[.1]])) == ['batch', 'lr']

def test_the_mark_of_a_peak_stands_above_it_after_a_higher_one_too():
    "As in the record of `fine_tune`; that of a valley stands below it."
    lr, mom = plot_hypers(dict(lr=[.1, 1., .1, .4, .1], mom=[.95, .8, .95, .85, .95]), peak=3)
    assert [ax.texts[0].get_position()[1] > 0 for ax in (lr, mom)] == [True, False]
