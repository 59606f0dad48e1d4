"""Pictures of a plan and of a record."""
import itertools

import matplotlib.pyplot as plt
import pytest

from helpers import learner
from onecycle_callback import OneCycleSchedule

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
