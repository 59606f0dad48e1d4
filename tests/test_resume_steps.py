"""A cycle that is resumed inside a step of accumulated gradients trains as an uninterrupted one, to the last bit."""
from functools import cache

import pytest
import torch
from fastai.basics import SGD, Adam, Callback, partial
from fastai.callback.training import GradientAccumulation

from support import interrupted
from support.interrupted import assert_same, results
from support.pairs import each
from onecycle_callback import CycleCheckpoint

pytestmark = pytest.mark.matrix

class Gradients(Callback):
    "Keep a copy of the gradients after each batch, by its number: the sum of those of the step so far."
    order, run_valid = 100, False
    def before_fit(self): self.after = {}
    def after_cancel_batch(self): self.note()
    def before_step(self): self.note()
    def note(self):
        self.after[self.train_iter] = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]

OPTS = dict(adam=Adam, sgd=partial(SGD, mom=.9))

def fit(path, n_acc, opt, *cbs, **kwargs):
    "Train four epochs of twelve batches of 4, the last one of 2; return the results and the gradients."
    learn, seen = interrupted.learner(path, opt_func=OPTS[opt]), Gradients()
    learn.fit_one_cycle(4, .05, cbs=[GradientAccumulation(n_acc), seen, *cbs], **kwargs)
    return results(learn), seen.after, learn.recorder.to_frame()

@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    "What an uninterrupted fit gives."
    return cache(lambda n_acc, opt: fit(tmp_path_factory.mktemp('calm'), n_acc, opt))

# Steps of three batches, of five, of more than an epoch; saved in the first, in a step over two epochs, at its end
@pytest.mark.parametrize('case, opt', each(
    [(12, 2), (12, 4), (20, 13), (20, 26), (20, 30), (70, 14), (70, 37)], OPTS), ids=str)
def test_resumes_inside_a_step(uninterrupted, tmp_path, case, opt):
    n_acc, at = case
    expected, gradients, frame = uninterrupted(n_acc, opt)
    assert len(frame) == 48 and frame.step.nunique() < 20
    keep = CycleCheckpoint('run1', every=at)
    with pytest.raises(RuntimeError, match='interrupted'):
        fit(tmp_path, n_acc, opt, interrupted.Interrupt(at), checkpoint=keep)
    resumed, seen, again = fit(tmp_path, n_acc, opt, checkpoint=keep)
    assert_same(resumed, expected)
    assert again.equals(frame) and sorted(seen) == list(range(48))     # the first of them from the file
    for batch, grads in seen.items():
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(grads, gradients[batch], strict=True)), batch

class Sizes(Callback):
    "Train each epoch with batches of another size."
    order = -20
    def before_epoch(self): self.learn.dls.train.bs = [4, 8, 4, 2][self.epoch]

@pytest.mark.filterwarnings('ignore:Epoch . has')
@pytest.mark.parametrize('at, n_acc', each([9, 14, 20, 33], [1, 8, 20]))
def test_resumes_in_an_epoch_of_another_length_than_the_first(tmp_path, n_acc, at):
    (tmp_path / 'calm').mkdir()
    expected, _, frame = fit(tmp_path / 'calm', n_acc, 'adam', Sizes())
    keep = CycleCheckpoint('run1', every=1)
    with pytest.raises(RuntimeError, match='interrupted'):
        fit(tmp_path, n_acc, 'adam', Sizes(), interrupted.Interrupt(at), checkpoint=keep)
    resumed, _, again = fit(tmp_path, n_acc, 'adam', Sizes(), checkpoint=keep)
    assert_same(resumed, expected)
    assert again.equals(frame)
