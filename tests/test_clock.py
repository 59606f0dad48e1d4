"""A cycle over a budget of time, by a clock that moves as the tests say: a second per training batch, three per validation.

The last batch is the one during which the budget runs out; its place is the end."""
from functools import partial

import pytest
from fastai.basics import CancelFitException
from fastai.callback.schedule import ParamScheduler

import interrupted
from helpers import At, Passes, Spy, Time, learner, throw
from interrupted import assert_same, epochs_shown, results, rows
from onecycle_callback import CycleCheckpoint, clock
from onecycle_callback.clock import N_TICKS, Clock

@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(clock, 'Clock', partial(Clock, time=time))
    return time

def seconds(learn): return [round(60 * m, 1) for m in learn.recorder.hps['minutes']]

def as_planned(learn, plan):
    "Check that each batch trained with the values of the plan at its time, and that the last one trained with those of the end."
    hps = learn.recorder.hps
    lrs, moms = plan.at(plan.ticks(hps['minutes']))
    assert hps['lr'] == lrs[:, -1].tolist() and hps['mom'] == moms.tolist()
    assert hps['lr'][-1] == plan.at([N_TICKS])[0][0, -1] and hps['minutes'][-1] == plan.minutes
    frame = learn.recorder.to_frame()
    assert (frame.filter(like='lr').to_numpy() == lrs).all() and (frame.minutes == hps['minutes']).all()

@pytest.mark.parametrize('n_groups', [1, 3])
def test_every_batch_trains_with_the_plan_at_its_time(time, n_groups):
    learn, spy = learner(n_groups=n_groups), Spy()
    plan = learn.preview_one_cycle(max_lr=slice(1e-3, .1), minutes=1)
    learn.fit_one_cycle(max_lr=slice(1e-3, .1), minutes=1, cbs=[Passes(time), spy])
    as_planned(learn, plan)
    assert seconds(learn) == [*range(12), *range(15, 27), *range(30, 42), *range(45, 59), 60]     # not enough was left for a fifth epoch
    assert spy.seen_lrs == plan.at(plan.ticks(learn.recorder.hps['minutes']))[0].tolist()
    assert len(learn.recorder.values) == 4 and time.now == 1000 + 60 + 3

def test_a_budget_of_less_than_an_epoch(time):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=.1, cbs=Passes(time))
    assert seconds(learn) == [0, 1, 2, 3, 4, 6] and len(learn.recorder.values) == 1
    as_planned(learn, learn.recorder.plan)

def test_a_budget_of_less_than_a_batch_trains_at_the_start_and_at_the_end(time):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=.01, cbs=Passes(time))
    assert seconds(learn) == [0, .6] and learn.recorder.hps['lr'] == [.004, .004]

@pytest.mark.parametrize('at', [5, 20, 44, 45])
def test_a_machine_that_stalls_still_comes_down(time, at):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=1, cbs=Passes(time, stalls={at: 20}))
    as_planned(learn, learn.recorder.plan)

@pytest.mark.parametrize('epoch', [0, 1, 2])
def test_a_validation_beyond_the_budget_still_comes_down(time, epoch):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=1, cbs=Passes(time, valid_stalls={epoch: 60}))
    as_planned(learn, learn.recorder.plan)
    assert len(learn.recorder.values) == epoch + 2 and learn.recorder.starts[epoch + 1] == len(learn.recorder.hps['lr']) - 1

@pytest.mark.parametrize('train, valid, n_batch', [
    (1, 3, None), (1, 3, 1), (1, 3, 50), (1, 20, None), (1, 20, 1), (.7, .1, None), (7, 3, None), (7, 3, 1), (13, 0, 50), (40, 3, None)])
def test_ends_within_one_batch_and_one_validation_of_the_budget(time, train, valid, n_batch):
    learn, passes = learner(), Passes(time, train, valid)
    learn.fit_one_cycle(max_lr=.1, minutes=1, n_batch=n_batch, cbs=passes)
    assert 60 <= passes.began[-1] + train <= 60 + train      # the budget runs out during the last batch
    assert time.now == pytest.approx(1000 + passes.began[-1] + train + valid)     # and its epoch is validated
    as_planned(learn, learn.recorder.plan)

def test_epochs_of_so_many_batches(time):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=1, n_batch=5, cbs=Passes(time))
    as_planned(learn, learn.recorder.plan)
    assert list(learn.recorder.starts.values()) == [0, 5, 10, 15, 20, 25, 30, 35]

def test_other_schedulers_see_the_time(time):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=1, cbs=[Passes(time), ParamScheduler({'wd': lambda pct: pct})])
    assert learn.recorder.hps['wd'] == [m for m in learn.recorder.hps['minutes']]

def test_progress(time, capsys):
    learner().fit_one_cycle(max_lr=.1, minutes=1, cbs=Passes(time))
    out = capsys.readouterr().out
    assert epochs_shown(out) == ['1/1', '2/2', '3/3', '4/4'] and rows(out) == [0, 1, 2, 3]

def test_a_cycle_that_ends_by_itself_warns_of_nothing_and_one_that_is_stopped_does(time, recwarn):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=1, cbs=Passes(time))
    assert not [w for w in recwarn if 'stopped early' in str(w.message)]
    with pytest.warns(UserWarning, match='stopped early after 0.3 of 1 minutes'):
        learn.fit_one_cycle(max_lr=.1, minutes=1, cbs=[Passes(time), At(1, 3, throw(CancelFitException()))])

def test_plots(time):
    learn = learner(n_groups=2)
    plan = learn.preview_one_cycle(max_lr=[.01, .1], minutes=30)
    assert [ax.get_xlabel() for ax in plan.plot()] == ['minute'] * 2 and plan.plot()[0].lines[1].get_ydata().max() == .1
    assert plan.table.index.tolist() == [3. * i for i in range(11)] and '<table' in plan._repr_html_()
    learn.fit_one_cycle(max_lr=[.01, .1], minutes=1, cbs=Passes(time))
    learn.recorder.plot_lr(), learn.recorder.plot_sched()

# Resumed

def timed(path): return interrupted.learner(path)

@pytest.mark.parametrize('every, at', [(None, 5), (None, 30), (1, 30), (1, 24), (4, 41), (1, 47)])
def test_resumes_with_the_time_that_is_left(time, tmp_path, every, at):
    calm = timed(tmp_path / 'calm')
    calm.fit_one_cycle(max_lr=.05, minutes=1, cbs=Passes(time))
    expected = results(calm)
    assert len(expected['losses']) == 51
    keep = CycleCheckpoint('run1', every=every)
    with pytest.raises(RuntimeError, match='interrupted'):
        timed(tmp_path).fit_one_cycle(max_lr=.05, minutes=1, cbs=[Passes(time), interrupted.Interrupt(at)], checkpoint=keep)
    time.now += 86400     # a day later
    learn = timed(tmp_path)
    learn.fit_one_cycle(max_lr=.05, minutes=1, cbs=Passes(time), checkpoint=keep)
    assert_same(results(learn), expected)

def test_another_budget_is_another_run(time, tmp_path):
    learn = timed(tmp_path)
    learn.fit_one_cycle(max_lr=.05, minutes=1, cbs=Passes(time), checkpoint='run1')
    with pytest.raises(ValueError, match='minutes: 1.0 in the file, 2.0 now'):
        timed(tmp_path).fit_one_cycle(max_lr=.05, minutes=2, cbs=Passes(time), checkpoint='run1')
    again = timed(tmp_path)
    again.fit_one_cycle(max_lr=.05, minutes=1, cbs=Passes(time), checkpoint='run1')
    assert again.recorder.hps == learn.recorder.hps
