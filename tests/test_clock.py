"""A cycle over a budget of time, by a clock that the tests move: a second per training batch, three per validation.

The position moves by the fraction of the work that is left, so the last batch is at the end whatever the time does."""
import re
from functools import cache

import numpy as np
import pytest
from fastai.basics import (Callback, CancelBatchException, CancelEpochException, CancelFitException,
                           CancelTrainException,
                           CancelValidException, DataLoader, DataLoaders)
from fastai.callback.schedule import ParamScheduler
from fastai.callback.training import GradientAccumulation, ShortEpochCallback

from support import interrupted
from support.helpers import At, Passes, Spy, Time, dataset, learner, throw
from support.interrupted import N_BATCH, assert_same, results, rows
from support.pairs import each, pairs
from onecycle_callback import CycleCheckpoint, OneCycleSchedule, position

pytestmark = pytest.mark.matrix

@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(position, 'perf_counter', time)
    return time

def seconds(learn): return [round(60 * m, 1) for m in learn.recorder.to_frame().minute]

def as_planned(learn, plan):
    "Check that each batch trained with the plan's values at its position, first at the start and last at the end."
    hps, positions = learn.recorder.hps, learn.recorder.cycle['columns']['position']
    lrs, moms = plan.at(positions)
    assert hps['lr'] == lrs[:, -1].tolist() and hps['mom'] == moms.tolist()
    assert positions == sorted(positions) and positions[0] == 0 and positions[-1] == plan.minutes
    assert hps['lr'][0] == plan.lrs[0, -1] and hps['lr'][-1] == plan.lrs[-1, -1]
    assert (learn.recorder.to_frame().filter(like='lr').to_numpy() == lrs).all()

@pytest.mark.parametrize('n_groups', [1, 3])
def test_every_batch_trains_with_the_plan_at_its_position(time, n_groups):
    learn, spy = learner(n_groups=n_groups), Spy()
    plan = learn.preview_one_cycle(max_lr=slice(1e-3, .1), minutes=1)
    learn.fit_one_cycle(max_lr=slice(1e-3, .1), minutes=1, cbs=[Passes(time), spy])
    as_planned(learn, plan)
    assert seconds(learn) == [*range(12), *range(15, 27), *range(30, 42), *range(45, 57)]     # and the last validation
    assert spy.seen_lrs == plan.at(learn.recorder.cycle['columns']['position'])[0].tolist()
    assert len(learn.recorder.values) == 4 and time.now == 1000 + 60

def test_a_budget_of_less_than_an_epoch(time):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=.15, cbs=Passes(time))
    assert seconds(learn) == list(range(len(seconds(learn)))) and 6 <= len(seconds(learn)) <= 9
    assert len(learn.recorder.values) == 1
    as_planned(learn, learn.recorder.plan)

@pytest.mark.parametrize('seconds, n_acc', [(4, 8), (5, 4), (6, 12), (8, 4)])     # batches of 4
def test_a_budget_of_few_batches_is_kept_and_ends_at_the_end(time, seconds, n_acc):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=seconds / 60, cbs=[Passes(time, valid=0), GradientAccumulation(n_acc)])
    as_planned(learn, learn.recorder.plan)
    assert time.now - 1000 <= seconds + n_acc // 4
    if n_acc == 4: assert max(learn.recorder.hps['lr']) > .03

@pytest.mark.parametrize('within, n_processes', each([(20, 0, 10), (0, 0, 10), (5, 5, 5)], [1, 2]), ids=str)
def test_slow_first_batches_are_no_measure_of_the_others(time, monkeypatch, within, n_processes):
    monkeypatch.setattr(position, 'world_size', lambda: n_processes)
    learn = learner(n_batch=200)
    learn.fit_one_cycle(max_lr=.1, minutes=1, cbs=[Slow(time, 0, *within), Passes(time, .05, valid=.1)])
    as_planned(learn, learn.recorder.plan)
    positions = learn.recorder.cycle['columns']['position']
    assert positions[:4] == [0] * 4 and positions[4] > 0 and max(np.diff(positions)) < .01

class SetsPlanned(Callback):
    "Set what a plan takes from the Learner, before the cycle starts."
    order = 0
    def before_epoch(self):
        if self.epoch == 0: self.learn.lr, self.learn.moms = .02, (.8, .7, .8)

def test_a_plan_is_that_of_the_start(time):
    learn = learner()
    learn.fit_one_cycle(minutes=1, cbs=[SetsPlanned(), Passes(time)])
    as_planned(learn, learn.recorder.plan)
    assert learn.recorder.plan.schedule.max_lr == .02 and max(learn.recorder.hps['lr']) > .019

def test_batches_that_are_faster_than_reckoned_take_no_time_back(time, monkeypatch):
    added, add = [], position.Pace.add
    monkeypatch.setattr(position.Pace, 'add', lambda self, n, s: (added.append(s), add(self, n, s)))
    learn = learner(n_batch=100)
    learn.fit_one_cycle(max_lr=.1, minutes=1, cbs=Passes(time, .02, stalls={40: 5., 41: 5., 42: 5.}))
    as_planned(learn, learn.recorder.plan)
    assert min(added) >= 0

def test_a_budget_of_less_than_a_batch_trains_at_the_start_and_at_the_end(time):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=.01, cbs=Passes(time))
    assert seconds(learn) == [0, 1] and learn.recorder.hps['lr'] == [.004, .004]

def largest_step(learn, anneal):
    "Return the largest step of the LR in a run, as a multiple of that in a cycle of as many batches of known number."
    lrs = learn.recorder.hps['lr']
    return abs(np.diff(lrs)).max() / abs(np.diff(OneCycleSchedule(.1, anneal=anneal).plan(1, len(lrs)).lrs[:, 0])).max()

class Slow(Callback):
    "Start slowly: so many seconds before the first batch begins, and so many more in each of the first ones."
    order = -6
    def __init__(self, time, before, *within): self.tell, self.before, self.within = lambda: time, before, within
    def before_train(self): self.tell().now += self.before if self.epoch == 0 else 0
    def after_batch(self):
        if self.training and self.train_iter <= len(self.within): self.tell().now += self.within[self.train_iter - 1]

TIMES = dict(
    plain={}, slow_start=dict(slow=(10, 0)), slow_first_batch=dict(slow=(0, 5)),
    two_that_compile=dict(slow=(0, 60, 60)), three_that_compile=dict(slow=(10, 30, 10, 20)),
    long_validations=dict(valid=12),
    half_of_the_time=dict(valid=25), pace_doubles=dict(pace=lambda now: 1 + (now > 100)),
    pace_halves=dict(pace=lambda now: 1 - .5 * (now > 100)), stall=dict(stalls={100: 30}),
    early_stall=dict(stalls={10: 30}), late_stall=dict(stalls={200: 30}),
    stall_in_a_validation=dict(valid_stalls={2: 30}),
    uneven=dict(pace=lambda now: 1 if now % 5 < 4 else .25))

@pytest.mark.parametrize('case, anneal', each(TIMES, ['linear', 'cos']))
def test_one_smooth_curve(time, case, anneal):
    what = dict(slow=(1,), pace=lambda now: 1, valid=3) | TIMES[case]
    before, pace = what.pop('slow'), what.pop('pace')
    class Varies(Passes):
        order = -5
        def after_batch(self):
            self.train_s = pace(time.now - 1000)
            super().after_batch()
    learn = learner(n_batch=25)
    learn.fit_one_cycle(max_lr=.1, minutes=5, anneal=anneal, cbs=[Slow(time, *before), Varies(time, **what)])
    as_planned(learn, learn.recorder.plan)
    assert largest_step(learn, anneal) <= 2
    assert -.03 * 300 <= time.now - 1000 - 300 <= pace(300) + what['valid']

# With accumulated gradients

class AtSteps(Spy):
    "Record the LR of each batch, and that of each step apart."
    def before_fit(self):
        super().before_fit()
        self.steps = []
    def before_step(self): self.steps.append(self.opt.hypers[-1]['lr'])

@pytest.mark.parametrize('n_acc, anneal, on_learner',     # batches of 4
                         pairs([4, 8, 32, 100], ['cos', 'linear'], [False, True]))
def test_accumulated_batches_wait_for_their_step(time, n_acc, anneal, on_learner):
    learn, spy, cb, per_step = learner(n_batch=25), AtSteps(), GradientAccumulation(n_acc), n_acc // 4
    if on_learner: learn.add_cb(cb)
    passes = Passes(time, valid=3)
    learn.fit_one_cycle(max_lr=.1, minutes=5, anneal=anneal, cbs=[passes, spy, *([] if on_learner else [cb])])
    lrs, frame, plan = [lr for lr, in spy.seen_lrs], learn.recorder.to_frame(), learn.recorder.plan
    as_planned(learn, plan)
    assert frame.lr.tolist() == lrs and frame.step.tolist() == [i // per_step for i in range(len(lrs))]
    assert len(lrs) == per_step * len(spy.steps)     # it ends with a step
    assert [lrs[i] for i in range(0, len(lrs), per_step)] == spy.steps and spy.steps[0] == spy.steps[-1] == .004
    of_known = OneCycleSchedule(.1, anneal=anneal).plan(1, len(spy.steps)).lrs[:, 0]
    assert abs(np.diff(spy.steps)).max() <= 2 * abs(np.diff(of_known)).max()
    assert -.03 * 300 <= time.now - 1000 - 300 <= per_step     # over by at most a step

@pytest.mark.parametrize('n_valid, within', [(60, 5), (350, 0)], ids=['slow first batch', 'many batches'])
def test_a_validation_is_not_expected_to_take_most_of_the_time(time, n_valid, within):
    "It takes 3 seconds, where as many training batches as it has would take longer than the budget."
    learn = learner(n_batch=25)
    learn.dls.loaders[1] = DataLoader(dataset(n_valid * 4), bs=4, device='cpu')
    learn.fit_one_cycle(max_lr=.1, minutes=5, cbs=[Slow(time, 0, within), Passes(time, valid=3)])
    as_planned(learn, learn.recorder.plan)
    assert len(learn.recorder.hps['lr']) > 225

@pytest.mark.parametrize('at', [5, 20, 40, 43])
def test_a_machine_that_stalls_still_comes_down(time, at):
    learn = learner()
    passes = Passes(time, stalls={at: 20})
    learn.fit_one_cycle(max_lr=.1, minutes=1, cbs=passes)
    as_planned(learn, learn.recorder.plan)
    assert time.now <= 1000 + 60 + 20 + 1 + 3

@pytest.mark.parametrize('epoch', [0, 1, 2])
def test_a_validation_beyond_the_budget_still_comes_down(time, epoch):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=1, cbs=Passes(time, valid_stalls={epoch: 60}))
    as_planned(learn, learn.recorder.plan)
    assert len(learn.recorder.values) == epoch + 2
    assert learn.recorder.starts[epoch + 1] == len(learn.recorder.hps['lr']) - 1

@pytest.mark.parametrize('train, valid, n_batch', [
    (1, 3, None), (1, 3, 1), (1, 3, 50), (1, 20, None), (1, 20, 1), (.7, .1, None), (7, 3, None), (7, 3, 1),
    (13, 0, 50), (40, 3, None)])
def test_ends_within_one_batch_and_one_validation_of_the_budget(time, train, valid, n_batch):
    learn, passes = learner(), Passes(time, train, valid)
    learn.fit_one_cycle(max_lr=.1, minutes=1, n_batch=n_batch, cbs=passes)
    assert time.now <= 1000 + 60 + train + valid
    as_planned(learn, learn.recorder.plan)

def test_epochs_of_so_many_batches(time):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=1, n_batch=5, cbs=Passes(time))
    as_planned(learn, learn.recorder.plan)
    assert list(learn.recorder.starts.values()) == [0, 5, 10, 15, 20, 25, 30]

def test_other_schedulers_see_the_position(time):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=1, cbs=[Passes(time), ParamScheduler({'wd': lambda pct: pct})])
    assert learn.recorder.hps['wd'] == learn.recorder.cycle['columns']['position']

def test_the_bar_shows_the_budget(time, capsys):
    learner().fit_one_cycle(max_lr=.1, minutes=1, cbs=Passes(time))
    out = capsys.readouterr().out
    assert '00:00 used, 01:00 left, 0% of the cycle :' in out and '00:56 used, 00:04 left, 100% of the cycle :' in out
    assert 'Epoch' not in out and rows(out) == [0, 1, 2, 3]

def test_the_bar_of_the_last_epoch_has_no_total_beyond_its_usual_length(time):
    learn, totals = learner(), []
    def note(): totals.append(learn.progress.pbar.total)
    learn.fit_one_cycle(max_lr=.1, minutes=.25, cbs=[Passes(time, valid=0), At(0, 11, note), At(0, 12, note)])
    assert totals == [12, None]

def test_a_cycle_that_ends_by_itself_warns_of_nothing_and_one_that_is_stopped_does(time, recwarn):
    learn = learner()
    learn.fit_one_cycle(max_lr=.1, minutes=1, cbs=Passes(time))
    assert not [w for w in recwarn if 'stopped early' in str(w.message)]
    with pytest.warns(UserWarning, match='stopped early after 0.3 of 1 minutes'):
        learn.fit_one_cycle(max_lr=.1, minutes=1, cbs=[Passes(time), At(1, 3, throw(CancelFitException()))])

class Cancels(Callback):
    "Raise `error` in an event, each time that `when` says so."
    def __init__(self, event, error, when, order=0):
        self.event, self.error, self.when, self.order = event, error, when, order
    def __call__(self, event):
        if event == self.event and self.when(self.learn): raise self.error

def is_fifth(learn): return learn.training and learn.iter == 5

CANCELLED = dict(
    validations=Cancels('before_validate', CancelValidException(), lambda learn: True, order=-50),
    some_validations=Cancels('before_validate', CancelValidException(), lambda learn: learn.epoch % 2),
    trains=Cancels('after_batch', CancelTrainException(), is_fifth),
    epochs=Cancels('after_batch', CancelEpochException(), is_fifth),
    epochs_before_a_batch=Cancels('before_batch', CancelEpochException(), is_fifth),
    batches=Cancels('before_batch', CancelBatchException(), lambda learn: learn.training and learn.iter % 3 == 2),
    pairs_of_batches=Cancels('before_batch', CancelBatchException(), lambda learn: learn.training and learn.iter % 3),
    batches_after_they_began=Cancels('after_pred', CancelBatchException(),
                                     lambda learn: learn.training and learn.iter % 3),
    short_epochs=ShortEpochCallback(.5))

@pytest.mark.parametrize('case', CANCELLED)
def test_what_is_cancelled_comes_down_to_the_end(time, case):
    learn, spy = learner(), Spy()
    learn.fit_one_cycle(max_lr=.1, minutes=2, cbs=[Passes(time), spy, CANCELLED[case]])
    assert spy.seen_lrs[0] == spy.seen_lrs[-1] == [.004] and max(spy.seen_lrs) > [.099]
    assert len(spy.seen_lrs) > 30 and time.now <= 1000 + 120 + 1 + 3

def test_preview_is_drawn_over_minutes():
    plan = learner(n_groups=2).preview_one_cycle(max_lr=[.01, .1], minutes=30)
    lr, mom = plan.plot()
    line = lr.lines[-2]      # of the last group; the last one marks the peak
    assert [ax.get_xlabel() for ax in (lr, mom)] == ['minute'] * 2
    assert line.get_xdata()[[0, -1]].tolist() == [0, 30] and line.get_ydata()[[0, -1]] == pytest.approx(.1 / 25)
    assert line.get_ydata().max() == .1 and [text.get_text() for text in lr.texts] == ['0.1 at minute 9.0']
    assert plan.table.index.tolist() == [3. * i for i in range(11)] and '<table' in plan._repr_html_()
    assert plan.to_frame().columns.tolist() == ['minute', 'lr_0', 'lr_1', 'mom']
    assert plan.to_frame().lr_1[[0, 300, 1000]].tolist() == [.004, .1, .004]

def test_explore_has_no_slider_for_epochs():
    plan = learner().preview_one_cycle(max_lr=.1, minutes=30)
    *sliders, page = plan.explore().children
    assert [slider.description for slider in sliders] == ['max_lr', 'div_factor', 'pct_start', 'final_div']
    sliders[0].value = .12
    assert 'max_lr=0.12' in page.value and '30.0' in page.value

def test_the_record_is_drawn_over_minutes_as_its_preview(time):
    learn = learner(n_groups=2)
    learn.fit_one_cycle(max_lr=[.01, .1], minutes=1, cbs=Passes(time))
    frame, ax = learn.recorder.to_frame(), learn.recorder.plot_lr()
    assert list(frame) == ['epoch', 'batch', 'minute', 'lr_0', 'lr_1', 'mom',
                           'train_loss'] and ax.get_xlabel() == 'minute'
    lines = [line for line in ax.lines if len(line.get_xdata()) == 48]
    for column, line in zip(['lr_0', 'lr_1'], lines, strict=True):
        assert line.get_ydata().tolist() == frame[column].tolist()
        assert line.get_xdata().tolist() == frame.minute.tolist()
    assert [ax.get_ylabel() for ax in learn.recorder.plot_sched()] == ['learning rate', 'momentum']
    assert frame.batch.tolist() == list(range(48)) and frame.epoch.tolist() == [0] * 12 + [1] * 12 + [2] * 12 + [3] * 12

class Idle(Callback):
    "Cancel each epoch after five seconds, before its first batch."
    def __init__(self, time): self.time, self.n = time, 0
    def before_train(self):
        self.time.now, self.n = self.time.now + 5, self.n + 1
        raise CancelEpochException if self.n < 100 else RuntimeError('without an end')

def test_epochs_that_are_all_cancelled_end_with_the_budget(time):
    idle = Idle(time)
    learner().fit_one_cycle(max_lr=.1, minutes=1, cbs=idle)
    assert (idle.n, time.now) == (12, 1060)

class NoLength:
    def __init__(self, dl): self.dl = dl
    def __iter__(self): return iter(self.dl)

def test_a_stream(time):
    learn = learner()
    learn.dls = DataLoaders(*map(NoLength, learn.dls.loaders), device='cpu')
    with pytest.raises(TypeError, match='give the number of batches of an epoch as n_batch'):
        learn.fit_one_cycle(max_lr=.1, minutes=1)
    learn.fit_one_cycle(max_lr=.1, minutes=1, n_batch=12, cbs=Passes(time))
    as_planned(learn, learn.recorder.plan)
    assert len(learn.recorder.values) == 4

# Resumed

def timed(path): return interrupted.learner(path)

@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    "What an uninterrupted cycle of a minute gives, by how much longer its second validation takes."
    @cache
    def run(stall=0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(position, 'perf_counter', time := Time())
            learn = timed(tmp_path_factory.mktemp('uninterrupted'))
            learn.fit_one_cycle(max_lr=.05, minutes=1, cbs=Passes(time, valid_stalls={1: stall}))
        return results(learn)
    return run

@pytest.mark.parametrize('every, at', [(None, 5), (None, 30), (1, 30), (24, 24), (4, 41), (46, 46)])
def test_resumes_with_the_time_that_is_left(uninterrupted, time, tmp_path, every, at):
    expected = uninterrupted()
    assert len(expected['losses']) == 48
    keep = CycleCheckpoint('run1', every=every)
    with pytest.raises(RuntimeError, match='interrupted'):
        timed(tmp_path).fit_one_cycle(max_lr=.05, minutes=1, cbs=[Passes(time), interrupted.Interrupt(at)],
                                      checkpoint=keep)
    time.now += 86400     # a day later
    learn = timed(tmp_path)
    learn.fit_one_cycle(max_lr=.05, minutes=1, cbs=Passes(time), checkpoint=keep)
    assert_same(results(learn), expected)

@pytest.mark.parametrize('at', [31, 47])
@pytest.mark.parametrize('stalls', [{25: 1 / 256}, {}], ids=['stall', ''])
def test_resumes_on_the_positions_that_were_computed_ahead(time, tmp_path, at, stalls):
    "Some tens of batches are computed at a time. To look at the clock at once would lead to others."
    def fit(path, *cbs, **kwargs):
        learn = timed(path)
        passes = Passes(time, 1 / 128, 1 / 32, stalls=stalls)     # without rounding, a day later too
        learn.fit_one_cycle(max_lr=.05, minutes=.02, cbs=[passes, *cbs], **kwargs)
        as_planned(learn, learn.recorder.plan)
        if not stalls: return results(learn)
        # From the next epoch on, both follow a pace, in which the stall has another part where batches aren't measured
        n, recorder = -(-at // N_BATCH) * N_BATCH, learn.recorder
        kept = recorder.hps | recorder.cycle['columns'] | dict(losses=list(map(float, recorder.losses)))
        return {name: values[:n] for name, values in kept.items()}
    expected, keep = fit(tmp_path / 'calm'), CycleCheckpoint('run1', every=at)
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, interrupted.Interrupt(at), checkpoint=keep)
    time.now += 86400
    assert_same(fit(tmp_path, checkpoint=keep), expected)

@pytest.mark.parametrize('at', [17, 30, 45])
def test_resumes_inside_an_accumulated_step(time, tmp_path, at):
    "Five batches of 4 make a step, and an epoch has twelve."
    def fit(path, *cbs, **kwargs):
        learn = timed(path)
        learn.fit_one_cycle(max_lr=.05, minutes=1, cbs=[Passes(time), GradientAccumulation(20), *cbs], **kwargs)
        return results(learn)
    expected, keep = fit(tmp_path / 'calm'), CycleCheckpoint('run1', every=at)
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, interrupted.Interrupt(at), checkpoint=keep)
    time.now += 86400
    assert_same(fit(tmp_path, checkpoint=keep), expected)

@pytest.mark.slow
def test_remembers_how_long_a_validation_takes(time, tmp_path):
    "Too long for a third one; by the pace of the training it would be shorter."
    calm = timed(tmp_path / 'calm')
    calm.fit_one_cycle(max_lr=.05, minutes=1, cbs=Passes(time, valid=20))
    expected = results(calm)
    assert len(expected['values']) == 2
    keep = CycleCheckpoint('run1', every=18)
    with pytest.raises(RuntimeError, match='interrupted'):
        timed(tmp_path).fit_one_cycle(max_lr=.05, minutes=1, cbs=[Passes(time, valid=20), interrupted.Interrupt(18)],
                                      checkpoint=keep)
    learn = timed(tmp_path)
    learn.fit_one_cycle(max_lr=.05, minutes=1, cbs=Passes(time, valid=20), checkpoint=keep)
    assert_same(results(learn), expected)

class FailsIn(Callback):
    "Raise an error in an event of `epoch`, before or after the checkpoint is written."
    def __init__(self, event, epoch, order): self.event, self.in_epoch, self.order = event, epoch, order
    def __call__(self, event):
        if (event, self.learn.epoch) == (self.event, self.in_epoch): raise RuntimeError('interrupted')

@pytest.mark.parametrize('event, epoch, order',
                         [('after_epoch', 1, 20_000), ('before_validate', 2, 0), ('after_epoch', 2, 20_000)])
def test_resumes_around_a_validation_beyond_the_budget(uninterrupted, time, tmp_path, event, epoch, order):
    "The second validation uses up what is left. One batch follows, also if the crash is in between, and no other."
    def passes(): return Passes(time, valid_stalls={1: 60})
    expected = uninterrupted(60)
    assert len(expected['losses']) == 25
    keep = CycleCheckpoint('run1', every=1)
    with pytest.raises(RuntimeError, match='interrupted'):
        timed(tmp_path).fit_one_cycle(max_lr=.05, minutes=1, cbs=[passes(), FailsIn(event, epoch, order)],
                                      checkpoint=keep)
    learn = timed(tmp_path)
    learn.fit_one_cycle(max_lr=.05, minutes=1, cbs=passes(), checkpoint=keep)
    assert_same(results(learn), expected)

def test_dead_time_does_not_count(time, tmp_path):
    passes = Passes(time)
    with pytest.raises(RuntimeError, match='interrupted'):
        timed(tmp_path).fit_one_cycle(max_lr=.05, minutes=1, cbs=[Passes(time), interrupted.Interrupt(30)],
                                      checkpoint='run1')
    restarted = time.now = 5000
    timed(tmp_path).fit_one_cycle(max_lr=.05, minutes=1, cbs=passes, checkpoint='run1')
    assert time.now - restarted == 60 - 30     # the file is of the end of the second epoch, 30 seconds in

def test_slow_first_batches_of_a_resumed_run_are_no_measure_of_the_others(time, tmp_path):
    "A new process starts workers and tunes again. It takes the steps that were told, and then all those that are left."
    def fit(cb, every=None):
        learn = interrupted.learner(tmp_path, n_batch=200)
        learn.fit_one_cycle(max_lr=.05, minutes=1, cbs=[cb, Passes(time, .05, valid=.1)],
                            checkpoint=CycleCheckpoint('run1', every))
        return learn
    class Tunes(Callback):
        order, n = -6, 0
        def after_batch(self):
            self.n += self.training
            if self.training and self.n <= 3: time.now += 5
    with pytest.raises(RuntimeError, match='interrupted'): fit(interrupted.Interrupt(2), every=2)
    learn = fit(Tunes())
    as_planned(learn, learn.recorder.plan)
    assert max(np.diff(learn.recorder.cycle['columns']['position'])) < .01

def test_what_time_is_left_is_extended(time, tmp_path, capsys):
    "It says the LR with which the run goes on; and where no time is left, that it can't."
    def fit(max_lr, *cbs):
        learn, keep = timed(tmp_path), CycleCheckpoint('run1', every=1, extend=True)
        learn.fit_one_cycle(max_lr=max_lr, minutes=1, cbs=[Passes(time), *cbs], checkpoint=keep)
        return learn.recorder.hps['lr']
    with pytest.raises(RuntimeError, match='interrupted'): fit(.05, interrupted.Interrupt(30))
    capsys.readouterr()
    lrs = fit(.02)
    said = re.search(r'its LR was ([\d.e-]+) and is ([\d.e-]+) now', capsys.readouterr().out)
    assert [*map(float, said.groups())] == pytest.approx([lrs[29], lrs[30]], rel=.06) and max(lrs[30:]) < .02
    with pytest.raises(ValueError, match='extend must be False for a cycle of so many minutes that is complete'):
        fit(.05)

def test_another_budget_is_another_run(time, tmp_path):
    learn = timed(tmp_path)
    learn.fit_one_cycle(max_lr=.05, minutes=1, cbs=Passes(time), checkpoint='run1')
    with pytest.raises(ValueError, match='minutes: 1.0 in the file, 2.0 now'):
        timed(tmp_path).fit_one_cycle(max_lr=.05, minutes=2, cbs=Passes(time), checkpoint='run1')
    with pytest.raises(ValueError, match='n_batch: 12 in the file, 5 now'):
        timed(tmp_path).fit_one_cycle(max_lr=.05, minutes=1, n_batch=5, cbs=Passes(time), checkpoint='run1')
    with pytest.raises(ValueError, match='cycle_len: None in the file, 1 now'):
        timed(tmp_path).fit_one_cycle(1, .05, checkpoint='run1')
    again = timed(tmp_path)
    again.fit_one_cycle(max_lr=.05, minutes=1, cbs=Passes(time), checkpoint='run1')
    assert again.recorder.hps == learn.recorder.hps
