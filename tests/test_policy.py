"""The policy in words: each statement is checked on the record of a real run of ten epochs."""
import numpy as np
import pytest
from fastai.basics import SGD, partial

import onecycle_callback  # noqa: F401
from support.helpers import learner

def run(n_batch=12, **kwargs):
    learn = learner(n_batch, opt_func=partial(SGD, mom=.9))
    learn.fit_one_cycle(cycle_len=10, max_lr=0.1, div_factor=25., **kwargs)
    return learn, np.array(learn.recorder.hps['lr']), np.array(learn.recorder.hps['mom'])

def test_lr_changes_at_every_batch():
    _, lrs, _ = run()
    assert len(lrs) == 120
    assert (np.diff(lrs) != 0).all()

@pytest.mark.parametrize('n_batch', [1, 2, 3, 7, 10, 22])     # the statement is about where a batch lies
def test_peak_is_the_first_batch_of_the_fourth_epoch(n_batch):
    _, lrs, _ = run(n_batch)
    assert lrs[3 * n_batch] == 0.1
    assert (np.delete(lrs, 3 * n_batch) < 0.1).all()

def test_no_smaller_cycle_inside_an_epoch():
    _, lrs, _ = run()
    epochs, turns = np.diff(lrs.reshape(10, 12)), np.diff(np.sign(np.diff(lrs)))
    assert (turns != 0).sum() == 1      # in the whole training
    assert (epochs[:3] > 0).all() and (epochs[3:] < 0).all()

def test_each_linear_step_is_a_fraction_of_the_difference_between_two_epochs():
    _, lrs, _ = run(anneal='linear')
    first = lrs.reshape(10, 12)[:, 0]
    assert np.diff(lrs[:37]) == pytest.approx(np.repeat(np.diff(first[:4]) / 12, 12), rel=1e-12)

def test_cosine_steps_are_not_equal():
    _, lrs, _ = run()
    steps = np.diff(lrs[:37])
    assert steps.max() > 2 * steps.min()

def test_comes_back_to_where_it_started():
    _, lrs, _ = run()
    assert lrs[0] == lrs[-1] == 0.1 / 25 == lrs.min()

def test_momentum_is_the_mirror_in_the_right_picture():
    learn, lrs, moms = run()
    assert (lrs - .1/25) / (.1 - .1/25) == pytest.approx((moms - .95) / (.85 - .95), abs=1e-12)
    left, right = learn.recorder.plot_lr(show_moms=True)
    assert (left.get_ylabel(), right.get_ylabel()) == ('learning rate', 'momentum')
    assert left.get_position().x0 < right.get_position().x0
    assert left.lines[0].get_ydata().tolist() == lrs.tolist()
    assert right.lines[0].get_ydata().tolist() == moms.tolist()
