"""The `Recorder`: `hps`, `plan`, `plot_lr` and `plot_sched`, and its events outside a fit."""
import pytest
from fastai.callback.schedule import ParamScheduler

from helpers import At, learner, throw

def test_there_from_the_first_batch_on():
    seen, learn = [], learner()
    learn.fit_one_cycle(1, .1, cbs=At(0, 0, lambda: seen.append(learn.recorder.hps['lr'].copy())))
    assert seen == [[.1/25]]

def test_a_plain_fit_has_none():
    learn = learner()
    learn.fit_one_cycle(1)
    learn.fit(1)
    assert learn.recorder.hps == {} and learn.recorder.plan is None

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
