"""The `Recorder`: `hps`, `plan`, `plot_lr`, `plot_sched` and `to_frame`, and its events outside a fit."""
import pytest
import torch
from fastai.basics import CancelFitException, CancelTrainException, partial
from fastai.callback.schedule import ParamScheduler
from fastai.optimizer import SGD
from fastai.torch_core import trainable_params
from torch import nn

from support.helpers import At, learner, throw
from onecycle_callback import OneCycleSchedule
from onecycle_callback.plot import MOST_POINTS

pytestmark = pytest.mark.matrix

def test_there_from_the_first_batch_on():
    seen, learn = [], learner()
    learn.fit_one_cycle(1, .1, cbs=At(0, 0, lambda: seen.append(learn.recorder.hps['lr'].copy())))
    assert seen == [[.1/25]]

def test_a_plain_fit_has_none():
    learn = learner()
    learn.fit_one_cycle(1)
    learn.fit(1)
    assert not hasattr(learn.recorder, 'hps') and learn.recorder.plan is None

def test_alongside_another_scheduler():
    learn = learner()
    learn.fit_one_cycle(2, cbs=ParamScheduler({'wd': lambda pct: pct}))
    assert {k: len(v) for k, v in learn.recorder.hps.items()} == dict(wd=24, lr=24, mom=24)
    axes = learn.recorder.plot_sched()
    assert [ax.get_ylabel() for ax in axes] == ['weight decay', 'learning rate', 'momentum']
    assert len(axes[0].figure.axes) == 3

def test_alongside_another_scheduler_when_the_fit_fails():
    learn = learner()
    with pytest.raises(RuntimeError, match='boom'):
        learn.fit_one_cycle(2, .1, cbs=[ParamScheduler({'wd': lambda pct: pct}), At(1, 0, throw(RuntimeError('boom')))])
    assert {k: len(v) for k, v in learn.recorder.hps.items()} == dict(wd=13, lr=13, mom=13)

@pytest.mark.parametrize('draw', ['plot_lr', 'plot_sched'])
@pytest.mark.parametrize('fits', [[], ['fit'], ['fit_one_cycle', 'fit']], ids=str)
def test_nothing_to_draw(fits, draw):
    learn = learner()
    for fit in fits: getattr(learn, fit)(1)
    with pytest.raises(ValueError, match='nothing to draw'): getattr(learn.recorder, draw)()

def test_keys_that_were_not_recorded():
    learn = learner()
    learn.fit_one_cycle(1)
    with pytest.raises(ValueError, match='keys must be .*lr, mom.* got wd'): learn.recorder.plot_sched('wd')

# The second is what the notebook of fastai's Learner does.
EVENTS = [['before_train'], ['before_fit', 'before_epoch', 'before_train']]
no_fit = pytest.mark.parametrize('events', EVENTS, ids=' '.join)

def call(learn, events):
    for event in events: learn.recorder(event)

def cycle_works(learn):
    plan = learn.preview_one_cycle(3, .1)
    learn.fit_one_cycle(3, .1)
    assert learn.recorder.hps == dict(lr=plan.lrs[:, 0].tolist(), mom=plan.moms.tolist())
    assert learn.recorder.plan == plan and len(learn.recorder.losses) == len(plan) and len(learn.recorder.values) == 3
    assert learn.recorder.plot_lr().lines[0].get_xdata().tolist() == list(range(36))

@no_fit
def test_events_before_any_fit(events):
    learn = learner()
    call(learn, events)
    with pytest.raises(ValueError, match='nothing to draw'): learn.recorder.plot_lr()
    cycle_works(learn)

@no_fit
@pytest.mark.parametrize('part', [{}, dict(start_epoch=1), dict(stop_epoch=2)], ids=str)
def test_events_after_a_cycle_lose_no_record(part, events):
    learn = learner()
    learn.fit_one_cycle(3, .1, **part)
    def record():
        ax = learn.recorder.plot_lr()
        return learn.recorder.hps, learn.recorder.plan, ax.lines[0].get_xydata().tolist()
    before = record()
    call(learn, events)
    assert record() == before and len(before[0]['lr']) == 36 - 12 * len(part)
    cycle_works(learn)

def same_as_plan(learn, plan, batches):
    "Check that the record as a table has these `batches` of `plan`, in this order."
    frame = learn.recorder.to_frame()
    assert frame.batch.tolist() == batches and frame.epoch.tolist() == [i // plan.n_batch for i in batches]
    planned = plan.to_frame().loc[batches].reset_index(drop=True)
    assert (frame[list(planned)] == planned).all(axis=None)
    assert frame.train_loss.tolist() == [loss.item() for loss in learn.recorder.batch_losses[:len(batches)]]
    return frame

@pytest.mark.parametrize('n_groups', [1, 3])
@pytest.mark.parametrize('kwargs, batches', [
    ({}, range(36)), (dict(start_epoch=1), range(12, 36)), (dict(stop_epoch=2), range(24)),
    (dict(cbs=At(1, 3, throw(CancelTrainException()))), [*range(16), *range(24, 36)]),
    (dict(cbs=At(1, 3, throw(CancelFitException()))), range(16))], ids=str)
@pytest.mark.filterwarnings('ignore:The cycle was stopped early')
def test_frame_is_that_of_the_plan(n_groups, kwargs, batches):
    learn = learner(n_groups=n_groups)
    plan = learn.preview_one_cycle(3, slice(1e-3, .1))
    learn.fit_one_cycle(3, slice(1e-3, .1), **kwargs)
    same_as_plan(learn, plan, list(batches))

@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('event, n', [('before_batch', 15), ('after_batch', 16)])
def test_frame_after_a_failure(error, event, n):
    learn = learner()
    with pytest.raises(error): learn.fit_one_cycle(3, .1, cbs=At(1, 3, throw(error('boom')), event))
    same_as_plan(learn, learn.recorder.plan, list(range(n)))

def test_frame_with_another_scheduler():
    learn = learner()
    learn.fit_one_cycle(2, .1, cbs=ParamScheduler({'wd': lambda pct: pct}))
    frame = same_as_plan(learn, learn.recorder.plan, list(range(24)))
    assert list(frame) == ['epoch', 'batch', 'lr', 'mom', 'train_loss', 'wd']
    assert frame.wd.tolist() == learn.recorder.hps['wd']

def test_frame_without_momentum():
    learn = learner(opt_func=partial(SGD, mom=0))
    learn.fit_one_cycle(1, .1)
    assert list(learn.recorder.to_frame()) == ['epoch', 'batch', 'lr', 'train_loss']

def test_frame_ends_each_epoch_with_the_loss_of_the_table():
    learn = learner()
    learn.fit_one_cycle(3, .1)
    last = learn.recorder.to_frame().groupby('epoch').train_loss.last()
    assert last.tolist() == [v[0] for v in learn.recorder.values]

@pytest.mark.parametrize('after', ['validate', 'get_preds'])
def test_frame_is_kept_by(after):
    learn = learner()
    learn.fit_one_cycle(2, .1)
    before = learn.recorder.to_frame()
    getattr(learn, after)()
    assert learn.recorder.to_frame().equals(before) and len(before) == 24

def test_frame_of_data_without_targets_has_no_loss():
    learn = learner(n_batch=3, splitter=trainable_params)
    learn.dls.n_inp, learn.model = 2, TwoInputs()
    learn.fit_one_cycle(2, .1)
    assert list(learn.recorder.to_frame()) == ['epoch', 'batch', 'lr', 'mom'] and len(learn.recorder.to_frame()) == 6

class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
    def forward(self, x, y): return self.layer(x) - y

def test_frame_of_a_plain_fit():
    learn = learner()
    learn.fit(2, lr=.01, cbs=ParamScheduler({'wd': lambda pct: pct}))
    frame = learn.recorder.to_frame()
    assert list(frame) == ['epoch', 'batch', 'lr', 'train_loss', 'wd'] and set(frame.lr) == {.01}
    assert frame.epoch.tolist() == [0] * 12 + [1] * 12 and frame.batch.tolist() == list(range(24))

@pytest.mark.parametrize('fit', ['fit_flat_cos', 'fit_sgdr'])
def test_frame_of_other_schedules(fit):
    learn = learner()
    getattr(learn, fit)(*([2] if fit == 'fit_flat_cos' else [1, 2]))
    frame = learn.recorder.to_frame()
    assert frame.lr.tolist() == learn.recorder.hps['lr'] and len(frame) > 20
    assert torch.tensor(frame.train_loss).isfinite().all()

def test_frame_before_any_batch():
    with pytest.raises(ValueError, match='recorder holds no batch yet'): learner().recorder.to_frame()

def test_frame_of_a_fit_that_was_stopped_before_its_first_batch():
    learn = learner()
    with pytest.raises(RuntimeError):
        learn.fit_one_cycle(1, .1, cbs=At(0, 0, throw(RuntimeError('boom')), 'before_batch'))
    with pytest.raises(ValueError, match='recorder holds no batch yet'): learn.recorder.to_frame()

def long_record(plan=None, n=10**5, **hps):
    "A Learner's recorder as a training of `n` batches in 10 epochs leaves it."
    recorder = learner().recorder
    recorder.hps, recorder.plan = hps, plan
    recorder.starts = {epoch: epoch * n // 10 for epoch in range(10)}
    return recorder

def points(ax): return dict(zip(*(data.tolist() for data in ax.lines[0].get_data())))

@pytest.mark.parametrize('spike', [1., -1.])
@pytest.mark.parametrize('place', [1, 33_333, 99_998])
@pytest.mark.parametrize('with_cycle', [False, True], ids=['alone', 'alongside a cycle'])
def test_a_single_batch_that_stands_out_in_a_long_record_is_drawn(with_cycle, place, spike):
    plan = OneCycleSchedule(.1).plan(10, 10**4) if with_cycle else None
    cycle = dict(lr=plan.lrs[:, 0].tolist(), mom=plan.moms.tolist()) if with_cycle else {}
    wds = [.01] * 10**5
    wds[place] = spike
    drawn = points(long_record(plan, wd=wds, **cycle).plot_sched('wd'))
    assert drawn[place] == spike and set(drawn.values()) == {.01, spike}
    assert {0, 99_999} <= set(drawn) and len(drawn) < 4 * MOST_POINTS

def test_a_long_record_of_a_cycle_is_drawn_at_its_knots_and_some_more_batches():
    plan = OneCycleSchedule(slice(.01, .1), pct_start=.12345).plan(10, 10**4, 2)
    recorder = long_record(plan, lr=plan.lrs[:, -1].tolist(), mom=plan.moms.tolist())
    left, right = recorder.plot_lr(show_moms=True)
    drawn = points(left)
    assert {*range(0, 10**5, 10**4), plan.peak, 99_999} <= set(drawn) and len(drawn) < MOST_POINTS + 20
    x = list(drawn)
    assert [drawn[i] for i in x] == plan.lrs[x, 0].tolist() and [points(right)[i] for i in x] == plan.moms[x].tolist()

def test_a_long_record_with_an_epoch_cut_short_keeps_the_batches_of_the_cycle():
    plan = OneCycleSchedule(.1).plan(10, 10**4)
    record = [*range(20_000), *range(30_000, 35_000), *range(40_000, 100_000)]
    recorder = long_record(plan, lr=plan.lrs[record, 0].tolist(), mom=plan.moms[record].tolist())
    recorder.starts = {0: 0, 1: 10_000, 3: 20_000} | {epoch: 25_000 + 10_000 * (epoch - 4) for epoch in range(4, 10)}
    ax = recorder.plot_lr()
    x = ax.lines[0].get_xdata().tolist()
    assert set(x) <= set(record) and {0, plan.peak, 40_000, 99_999} <= set(x)
    assert not [i for i in x if 20_000 <= i < 30_000 or 35_000 <= i < 40_000]
    assert ax.lines[0].get_ydata().tolist() == plan.lrs[x, 0].tolist()
