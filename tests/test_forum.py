"""The forum's statements F1 to F6, read off what a real run recorded."""
import numpy as np
import pytest
from fastai.basics import SGD, partial

from helpers import learner

def run(n_batch, **kwargs):
    learn = learner(n_batch, opt_func=partial(SGD, mom=.9))
    learn.fit_one_cycle(cycle_len=10, max_lr=0.1, div_factor=25., **kwargs)
    return learn, np.array(learn.recorder.hps['lr']), np.array(learn.recorder.hps['mom'])

def test_f1_changes_at_every_batch():
    _, lrs, _ = run(7)
    assert len(lrs) == 70
    assert (np.diff(lrs) != 0).all()

@pytest.mark.parametrize('n_batch', [1, 2, 3, 7, 10, 22])
def test_f2_peak_is_the_first_batch_of_the_fourth_epoch(n_batch):
    _, lrs, _ = run(n_batch)
    assert lrs[3 * n_batch] == 0.1
    assert (np.delete(lrs, 3 * n_batch) < 0.1).all()

def test_f3_no_smaller_cycle_inside_an_epoch():
    _, lrs, _ = run(8)
    ups = np.sign(np.diff(lrs))
    assert (np.diff(ups) != 0).sum() == 1      # one turn in the whole training
    for epoch in lrs.reshape(10, 8)[:3]: assert (np.diff(epoch) > 0).all()
    for epoch in lrs.reshape(10, 8)[3:]: assert (np.diff(epoch) < 0).all()

def test_f4_linear_steps_are_a_share_of_the_epochs_difference():
    _, lrs, _ = run(6, anneal='linear')
    first = lrs.reshape(10, 6)[:, 0]
    for epoch in range(3):
        added = (first[epoch + 1] - first[epoch]) / 6
        assert np.diff(lrs[6 * epoch:6 * epoch + 7]) == pytest.approx(added, rel=1e-12)
    _, cosine, _ = run(6)
    steps = np.diff(cosine[:19])
    assert steps.max() > 2 * steps.min()

def test_f5_comes_back_to_where_it_started():
    _, lrs, _ = run(5)
    assert lrs[0] == lrs[-1] == 0.1 / 25 == lrs.min()

def test_f6_momentum_is_the_mirror_in_the_right_picture():
    learn, lrs, moms = run(5)
    assert (lrs - .1/25) / (.1 - .1/25) == pytest.approx((moms - .95) / (.85 - .95), abs=1e-12)
    left, right = learn.recorder.plot_lr(show_moms=True)
    assert (left.get_ylabel(), right.get_ylabel()) == ('learning rate', 'momentum')
    assert left.get_position().x0 < right.get_position().x0
    assert left.lines[0].get_ydata() == pytest.approx(lrs, abs=0) and right.lines[0].get_ydata() == pytest.approx(moms, abs=0)
