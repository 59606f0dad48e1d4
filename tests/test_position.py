"""Where a cycle is: epochs that change their length, accumulated gradients, and a record that holds every batch."""
import numpy as np
import pytest
from fastai.basics import (Callback, CancelEpochException, CancelFitException, CancelTrainException, DataLoader)
from fastai.callback.training import GradientAccumulation
from torch.utils.data import DataLoader as TorchLoader

from support.helpers import Spy, dataset, groups_of, learner
from support.pairs import pairs
from onecycle_callback import OneCycleSchedule
from onecycle_callback.position import Accumulation, Steps

pytestmark = pytest.mark.matrix

# Epochs that change their length

class Sizes(Callback):
    "Train each epoch with batches of another size."
    order = -20
    def __init__(self, *sizes): self.sizes = sizes
    def before_epoch(self): self.learn.dls.train.bs = self.sizes[self.epoch]

changing = pytest.mark.filterwarnings('ignore:Epoch . has')

@changing
@pytest.mark.parametrize('sizes', [(8, 4, 2), (2, 4, 8), (4, 8, 4), (1, 16, 1), (4, 4, 3)], ids=str)
@pytest.mark.parametrize('anneal', ['cos', 'linear'])
def test_epochs_that_change_their_length_make_one_smooth_curve(sizes, anneal):
    learn, spy = learner(n_groups=2), Spy()
    learn.fit_one_cycle(3, [.01, .1], anneal=anneal, cbs=[Sizes(*sizes), spy])
    lrs, n = np.array(spy.seen_lrs), [-(-48 // size) for size in sizes]
    peak = lrs[:, 1].argmax()
    assert (np.diff(lrs[:peak + 1, 1]) > 0).all() and (np.diff(lrs[peak:, 1]) < 0).all()
    assert lrs[[0, -1], 1].tolist() == [.004, .004] and sum(n) == len(lrs)
    shortest = OneCycleSchedule(.1, anneal=anneal).plan(3, min(n)).lrs[:, 0]
    assert abs(np.diff(lrs[:, 1])).max() <= 1.5 * abs(np.diff(shortest)).max()
    frame = learn.recorder.to_frame()
    assert frame.batch.tolist() == list(range(sum(n))) and (frame[['lr_0', 'lr_1']] == lrs).all(axis=None)
    assert learn.recorder.plot_lr().lines[-1].get_xdata().tolist() in ([peak], list(range(sum(n))))

def test_lengths_that_differ_are_named_once():
    with pytest.warns(UserWarning, match='Epoch 1 has 12 batches where 6 were planned') as seen:
        learner().fit_one_cycle(3, .1, cbs=Sizes(8, 4, 2))
    assert sum('planned' in str(w.message) for w in seen) == 1

@changing
def test_an_epoch_of_the_planned_length_is_where_the_plan_has_it():
    learn = learner()
    learn.fit_one_cycle(3, .1, cbs=Sizes(4, 8, 4))
    lrs = learn.recorder.plan.lrs[:, 0].tolist()
    assert learn.recorder.hps['lr'][:12] == lrs[:12] and learn.recorder.hps['lr'][-12:] == lrs[-12:]

# Accumulated gradients

@pytest.mark.parametrize('seed', range(300))
def test_steps_are_those_that_fastai_takes(seed):
    draw = np.random.default_rng(seed).integers
    n_epoch, n_batch, bs, n_acc = int(draw(1, 6)), int(draw(1, 9)), int(draw(1, 9)), int(draw(1, 60))
    last, left_out, n = int(draw(1, bs + 1)), int(draw(0, n_batch)), int(draw(n_batch, n_epoch * n_batch + 1))
    steps, counted, before = 0, 0, []
    for batch in range(left_out, n):
        before.append(steps)
        counted += last if batch % n_batch == n_batch - 1 else bs
        if counted >= n_acc: steps, counted = steps + 1, 0
    planned = Steps(Accumulation(n_acc, n_batch, bs, last), n, left_out)
    assert planned.total == steps and planned.before(np.arange(left_out, n)).tolist() == before
    if left_out == 0: assert [planned.first_batch(step) for step in set(before)] == list(map(before.index, set(before)))

class AtSteps(Spy):
    "Record the values of each step instead."
    def before_step(self): super().before_batch()
    def before_batch(self): pass

def accumulated(n_acc, n_batch=22, drop_last=True, on_learner=False, **kwargs):
    "Train ten epochs of batches of four; return the Learner, its preview, and the LR of each step."
    learn, spy, cb = learner(n_batch), AtSteps(), GradientAccumulation(n_acc)
    learn.dls.loaders[0] = DataLoader(dataset(n_batch * 4 - 1), bs=4, shuffle=True, drop_last=drop_last, device='cpu')
    cbs = [] if on_learner else [cb]
    if on_learner: learn.add_cb(cb)
    plan = learn.preview_one_cycle(10, .1, final_div=1e5, cbs=cbs)
    learn.fit_one_cycle(10, .1, final_div=1e5, cbs=[spy, *cbs], **kwargs)
    return learn, plan, [lr for lr, in spy.seen_lrs]

@pytest.mark.matrix
@pytest.mark.parametrize('n_acc, drop_last, on_learner', pairs([1, 8, 10, 32, 64, 1000], [True, False], [True, False]))
def test_each_step_trains_with_its_own_values(n_acc, drop_last, on_learner):
    learn, plan, lrs = accumulated(n_acc, drop_last=drop_last, on_learner=on_learner)
    assert lrs == OneCycleSchedule(.1, final_div=1e5).plan(1, max(len(lrs), 1)).lrs[:len(lrs), 0].tolist()
    frame, planned = learn.recorder.to_frame(), plan.to_frame()
    assert (frame[list(planned)] == planned).all(axis=None) and learn.recorder.hps['lr'] == plan.lrs[:, 0].tolist()
    assert plan.curve.end == max(len(lrs), 1) - 1 and plan.lrs[int(plan.peak), 0] == .1
    if n_acc > 4: assert frame.step.nunique() >= len(lrs) and plan.table.step_last.iloc[-1] == frame.step.iloc[-1]

@pytest.mark.parametrize('n_acc, n_batch', [(20, 5), (8, 5), (20, 7), (13, 3), (64, 30)])
def test_steps_of_a_stream_whose_passes_end_with_a_smaller_batch(n_acc, n_batch):
    "A pass has seven batches of eight samples, the last of two."
    learn, cb, spy = learner(), GradientAccumulation(n_acc), AtSteps()
    learn.dls.loaders[0] = DataLoader(dataset(50), bs=8, shuffle=True, device='cpu')
    plan = learn.preview_one_cycle(4, .1, n_batch=n_batch, cbs=cb)
    learn.fit_one_cycle(4, .1, n_batch=n_batch, cbs=[cb, spy])
    frame, planned = learn.recorder.to_frame(), plan.to_frame()
    assert (frame[list(planned)] == planned).all(axis=None) and len(spy.seen_lrs) == plan.span

def test_a_part_of_a_cycle_ends_with_the_last_step():
    learn, plan, lrs = accumulated(32, start_epoch=5)
    assert lrs[-1] == 1e-6 and abs(np.diff(lrs)).max() < .02 and len(lrs) == 5 * 21 // 8

class CutShort(Callback):
    "End some epochs after a batch, `{epoch: batch}`."
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.at.get(self.epoch) == self.iter: raise CancelTrainException

class OfEachStep(Callback):
    "Keep the LRs of the batches of each step, the coming one in the last list."
    order, run_valid = 1000, False
    def before_fit(self): self.lrs = [[]]
    def before_batch(self): self.lrs[-1].append(self.opt.hypers[-1]['lr'])
    def after_step(self): self.lrs.append([])

@pytest.mark.parametrize('n_acc', [24, 28, 100])
@pytest.mark.parametrize('at', [{2: 6, 5: 6}, {0: 2, 1: 3, 8: 10}, {9: 11}, {epoch: epoch for epoch in range(10)}],
                         ids=str)
def test_a_step_has_one_value_and_the_last_that_of_the_end_where_epochs_are_cut_short(n_acc, at):
    learn, seen = learner(20), OfEachStep()
    learn.fit_one_cycle(10, .1, final_div=1e5, cbs=[CutShort(at), GradientAccumulation(n_acc), seen])
    *steps, left_over = seen.lrs
    assert all(len(set(lrs)) == 1 for lrs in steps) and steps[0][0] == .004
    if 9 not in at: assert steps[-1][0] == 1e-6 and set(left_over) <= {1e-6}
    if n_acc < 100: assert max(map(max, steps)) > .09

@pytest.mark.filterwarnings('ignore:Epoch . has')
def test_steps_go_on_where_epochs_are_cut_short_or_change():
    learn, spy = learner(20), AtSteps()
    cbs = [spy, CutShort({2: 6, 5: 6}), GradientAccumulation(24), Sizes(*[4] * 7, 2, 2, 2)]
    learn.fit_one_cycle(10, .1, final_div=1e5, cbs=cbs)
    lrs = [lr for lr, in spy.seen_lrs]
    assert lrs[0] == .004 and lrs[-1] == 1e-6
    peak = int(np.argmax(lrs))
    assert sorted(lrs[:peak]) == lrs[:peak] and sorted(lrs[peak:], reverse=True) == lrs[peak:]

@changing
@pytest.mark.parametrize('sizes', [(8, 4, 2), (2, 4, 8), (4, 8, 4), (1, 16, 1), (4, 4, 3)], ids=str)
@pytest.mark.parametrize('n_acc', [8, 10, 24])
def test_the_record_counts_the_steps_that_were_made(n_acc, sizes):
    learn, seen = learner(), OfEachStep()
    learn.fit_one_cycle(3, .1, cbs=[Sizes(*sizes), CutShort({1: 2}), GradientAccumulation(n_acc), seen])
    steps = [step for step, lrs in enumerate(seen.lrs) for _ in lrs]
    assert learn.recorder.to_frame().step.tolist() == steps and steps[-1] > 1

@changing
@pytest.mark.parametrize('n_acc', [1, 10])
def test_batches_whose_size_is_unknown_from_an_epoch_on_come_down_to_the_end(n_acc):
    class Swap(Callback):
        order = -20
        def before_epoch(self):
            if self.epoch != 1: return
            batches = [list(range(i, i + 8)) for i in range(0, 48, 8)]
            self.learn.dls.loaders[0] = TorchLoader(dataset(48), batch_sampler=batches)
    learn, spy = learner(), AtSteps()
    learn.fit_one_cycle(3, .1, cbs=[Swap(), GradientAccumulation(n_acc), spy])
    lrs = [lr for lr, in spy.seen_lrs]
    peak = int(np.argmax(lrs))
    assert lrs[0] == lrs[-1] == .004 and sorted(lrs[peak:], reverse=True) == lrs[peak:]

# The record holds every batch that was trained

class Stops(Callback):
    "Raise `error` in an event of a batch, before the events reach the cycle."
    order = -60
    def __init__(self, error, event, epoch=1, batch=3): self.error, self.event, self.when = error, event, (epoch, batch)
    def __call__(self, event):
        if event == self.event and self.training and (self.epoch, self.iter) == self.when: raise self.error

@pytest.mark.filterwarnings('ignore:The cycle was stopped early')
@pytest.mark.parametrize('event', ['after_step', 'after_batch'])
@pytest.mark.parametrize('error, batches', [
    (CancelFitException(), range(16)), (CancelTrainException(), [*range(16), *range(24, 36)]),
    (CancelEpochException(), [*range(16), *range(24, 36)]), (KeyboardInterrupt(), range(16)),
    (RuntimeError('boom'), range(16))], ids=repr)
@pytest.mark.parametrize('n_acc', [1, 12])
def test_a_batch_is_recorded_if_it_was_trained(error, batches, event, n_acc):
    if n_acc > 1 and event == 'after_step': pytest.skip('this batch makes no step')
    learn, spy = learner(n_groups=2), Spy()
    cbs = [spy, Stops(error, event), GradientAccumulation(n_acc)]
    try: learn.fit_one_cycle(3, [.01, .1], cbs=cbs)
    except type(error): pass
    frame = learn.recorder.to_frame()
    assert frame.batch.tolist() == list(batches) and frame[['lr_0', 'lr_1']].to_numpy().tolist() == spy.seen_lrs
    assert frame.train_loss.isna().tolist() == [batch == 15 for batch in batches]
    known = frame.train_loss.dropna().tolist()
    assert known == [loss.item() for loss in learn.recorder.batch_losses]
    learn.recorder.plot_lr()

class Scales(Callback):
    "Halve the LR of one group in some batches, after the schedule."
    order = 70
    def __init__(self, group): self.group = group
    def before_batch(self):
        if self.training and self.iter % 5 == 0: groups_of(self.opt)[self.group]['lr'] *= .5

@pytest.mark.parametrize('group', [0, 1, 2])
def test_values_that_another_callback_sets_are_recorded(group):
    learn, spy = learner(n_groups=3), Spy()
    learn.fit_one_cycle(2, [.01, .03, .1], cbs=[spy, Scales(group)])
    frame = learn.recorder.to_frame()
    assert frame[['lr_0', 'lr_1', 'lr_2']].to_numpy().tolist() == spy.seen_lrs
    assert frame.lr_2.tolist() == learn.recorder.hps['lr']
    assert (frame.filter(like='lr') != learn.recorder.plan.lrs).sum().tolist() == [6 * (i == group) for i in range(3)]

def test_lr_find_keeps_the_record(tmp_path):
    learn = learner(path=tmp_path)
    learn.fit_one_cycle(2, .1)
    before = learn.recorder.to_frame()
    learn.lr_find(show_plot=False, num_it=30)
    assert learn.recorder.to_frame().equals(before) and len(before) == 24
    learn.recorder.plot_sched()

# Both cycles of fine_tune

def fine_tuned(*args, start_epoch=0, **kwargs):
    "Return the Learner, its preview and what each batch of both cycles trained with."
    learn, lrs = learner(n_groups=3), []
    class Both(Callback):
        order = 1000
        def before_batch(self):
            if self.training: lrs.append([g['lr'] for g in groups_of(self.opt)])
    plan = learn.preview_fine_tune(*args, **kwargs)
    assert learn.opt is None
    learn.fine_tune(*args, cbs=Both(), start_epoch=start_epoch, **kwargs)
    return learn, plan, lrs

@pytest.mark.parametrize('args, kwargs, n', [
    ((2,), {}, (12, 24)), ((2, .01), dict(freeze_epochs=3, div=10.), (36, 24)), ((2,), dict(freeze_epochs=0), (24,)),
    ((0,), {}, (12,)), ((0,), dict(freeze_epochs=3), (36,))], ids=str)
def test_fine_tune_is_as_previewed(args, kwargs, n):
    learn, plan, lrs = fine_tuned(*args, **kwargs)
    assert len(plan) == sum(n) and plan.lrs.tolist() == lrs
    assert str(plan) == plan.table.to_string(float_format='{:.3g}'.format)
    assert learn.recorder.hps == dict(lr=[lr[-1] for lr in lrs], mom=plan.moms.tolist())
    frame = learn.recorder.to_frame()
    assert frame[['lr_0', 'lr_1', 'lr_2']].to_numpy().tolist() == lrs and frame.train_loss.notna().all()
    if len(n) == 2:
        planned = plan.to_frame()
        assert (frame[list(planned)] == planned).all(axis=None) and frame.batch.tolist() == list(range(sum(n)))
        assert frame.cycle.tolist() == ['frozen'] * n[0] + ['whole'] * n[1]
        assert len(plan.table) == sum(n) // 12 and '<table' in plan._repr_html_()
    drawn = learn.recorder.plot_lr().lines
    assert len(lrs) in {len(line.get_xdata()) for line in drawn}

def test_a_part_of_fine_tune_trains_with_the_values_of_the_whole():
    learn, plan, lrs = fine_tuned(4, start_epoch=2)     # beyond the frozen cycle
    assert lrs == plan.whole.lrs[24:].tolist() == learn.recorder.to_frame().filter(like='lr').to_numpy().tolist()
    with pytest.raises(TypeError, match='preview_fine_tune has no argument start_epoch'):
        learn.preview_fine_tune(4, start_epoch=2)

def test_fine_tune_of_nothing_trains_nothing():
    learn = learner(n_groups=3)
    learn.fine_tune(0, freeze_epochs=0)
    learn.fine_tune(2, start_epoch=5)
    assert not learn.recorder.__dict__.get('lrs') and all(p.requires_grad for p in learn.model.parameters())
    with pytest.raises(ValueError, match='must be above 0, since there is nothing to train'):
        learn.preview_fine_tune(0, freeze_epochs=0)

def test_a_fine_tune_that_is_interrupted_is_recorded_from_its_start():
    learn = learner(n_groups=3)
    class Interrupt(Callback):
        def after_batch(self):
            if self.training and self.n_epoch == 2 and self.train_iter == 5: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learn.fine_tune(2, cbs=Interrupt())
    assert len(learn.recorder.hps['lr']) == len(learn.recorder.to_frame()) == 12 + 5
    learn.fit_one_cycle(1)
    assert len(learn.recorder.hps['lr']) == len(learn.recorder.to_frame()) == 12
    assert 'cycle' not in learn.recorder.to_frame()
