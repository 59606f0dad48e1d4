"""`OneCycle` in a fit: the values of each batch, the record and the momentum however the fit ends, and its warnings."""
import gc
import pickle
import tracemalloc
import warnings

import pytest
import torch
from torch import nn
from fastai.basics import Adam, Callback, CancelFitException, OptimWrapper, TrainEvalCallback, partial
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau
from fastai.callback.training import GradientAccumulation, ShortEpochCallback

from support.helpers import At, Spy, groups_of, learner, momentum, throw
from onecycle_callback import OneCycle, OneCyclePlan, OneCycleSchedule

pytestmark = pytest.mark.matrix

def recorded(learn, n):
    "Check that the record holds the first `n` batches, that they can be drawn, and that momentum is restored."
    plan = learn.recorder.plan
    assert learn.recorder.hps == dict(lr=plan.lrs[:n, 0].tolist(), mom=plan.moms[:n].tolist())
    assert momentum(groups_of(learn.opt)[0]) == .9
    assert len(learn.recorder.lrs) == n and not hasattr(learn, 'param_scheduler')
    learn.recorder.plot_sched()

OPTS = dict(Adam=Adam, AdamW=partial(OptimWrapper, opt=torch.optim.AdamW))
FITS = dict(fit_one_cycle=lambda learn, cbs: learn.fit_one_cycle(3, .1, cbs=cbs),
            fit=lambda learn, cbs: learn.fit(3, cbs=[OneCycle(.1), *cbs]))
opt_and_fit = lambda test: pytest.mark.parametrize('opt', OPTS)(pytest.mark.parametrize('fit', FITS)(test))

@opt_and_fit
def test_a_whole_fit(opt, fit):
    learn = learner(opt_func=OPTS[opt])
    FITS[fit](learn, [])
    recorded(learn, 36)

@opt_and_fit
@pytest.mark.parametrize('error, event, done', [(KeyboardInterrupt(), 'after_batch', 15),
                                                (RuntimeError('boom'), 'before_batch', 14),
                                                (MemoryError('none left'), 'after_batch', 15)], ids=repr)
def test_a_fit_that_fails_and_one_after_it(opt, fit, error, event, done):
    learn = learner(opt_func=OPTS[opt])
    with pytest.raises(type(error)): FITS[fit](learn, [At(1, 2, throw(error), event)])
    recorded(learn, done)
    FITS[fit](learn, [])
    recorded(learn, 36)

@opt_and_fit
def test_a_fit_that_is_cancelled_and_one_after_it(opt, fit):
    learn = learner(opt_func=OPTS[opt])
    with pytest.warns(UserWarning, match=r'epoch 1 of 3 .*after 15 batches, .* of its peak'):
        FITS[fit](learn, [At(1, 2, throw(CancelFitException()))])
    recorded(learn, 15)
    FITS[fit](learn, [])
    recorded(learn, 36)

def test_a_first_fit_that_is_cancelled_before_anything():
    def cancel(self): raise CancelFitException
    first = type('First', (Callback,), dict(before_fit=cancel, order=TrainEvalCallback.order - 1))
    learn = learner()
    learn.fit_one_cycle(3, .1, cbs=first())
    assert not hasattr(learn, 'epoch')      # fastai's own callbacks haven't set it yet
    assert learn.opt.hypers[0]['mom'] == .9 and not hasattr(learn, 'param_scheduler')

def test_error_in_the_loss():
    calls = []
    def loss(pred, target):
        calls.append(1)
        if len(calls) == 4: raise RuntimeError('no loss')
        return nn.functional.mse_loss(pred, target)
    learn = learner(loss_func=loss)
    with pytest.raises(RuntimeError, match='no loss'): learn.fit_one_cycle(3, .1)
    recorded(learn, 3)

def test_early_stopping_names_the_lr_as_a_fraction_of_the_peak():
    learn = learner()
    with pytest.warns(UserWarning, match=r'learning rate of 0\.\d+, \d+% of its peak'):
        learn.fit_one_cycle(5, .1, cbs=EarlyStoppingCallback(min_delta=1e9, patience=1))
    assert len(learn.recorder.values) == 2
    recorded(learn, 2 * 12)

@pytest.mark.parametrize('n_epoch, kwargs', [(2, dict(cbs=EarlyStoppingCallback(min_delta=1e9, patience=2))),
                                             (4, dict(stop_epoch=2))], ids=['stopped at the end', 'a part'])
def test_no_warning_where_all_was_trained(n_epoch, kwargs):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        learner().fit_one_cycle(n_epoch, **kwargs)
    assert not [w for w in seen if 'The cycle' in str(w.message)]

def test_plateau_is_named_once():
    with pytest.warns(UserWarning, match='ReduceLROnPlateau has no effect') as seen:
        learner().fit_one_cycle(3, cbs=ReduceLROnPlateau(min_delta=1e9))
    assert sum('ReduceLROnPlateau' in str(w.message) for w in seen) == 1

def test_epochs_cut_short_keep_the_later_ones_in_place():
    learn, spy = learner(), Spy()
    learn.fit_one_cycle(4, .1, cbs=[ShortEpochCallback(pct=.5), spy])
    plan, done = learn.recorder.plan, len(learn.recorder.hps['lr']) // 4
    assert 0 < done < 12
    assert [lr for lr, in spy.seen_lrs] == [plan.lrs[e * 12 + i, 0] for e, i in spy.places]
    batches = [e * 12 + i for e in range(4)
               for i in range(done)]      # also the one after which the epoch was cut short
    assert learn.recorder.hps['lr'] == plan.lrs[batches, 0].tolist() and len(spy.seen_lrs) == len(batches)
    assert learn.recorder.plot_lr().lines[0].get_xdata().tolist() == batches

@pytest.mark.parametrize('real', [7, 18])
def test_loader_of_another_length_than_it_says(real):
    class Says(list):
        def __len__(self): return 12
    learn, spy = learner(), Spy()
    learn.dls.loaders[0] = Says([(torch.ones(2, 3), torch.ones(2, 1))] * real)
    learn.fit_one_cycle(2, .1, cbs=spy)
    batches = [min(e * 12 + i, 23) for e in range(2) for i in range(real)]
    lrs = [lr for lr, in spy.seen_lrs]
    assert learn.recorder.hps['lr'] == lrs == learn.recorder.plan.lrs[batches, 0].tolist()
    assert lrs[-1] == .1/25 or real < 12
    learn.recorder.plot_lr(show_moms=True)

@pytest.mark.parametrize('opt', OPTS)
def test_the_optimizer_holds_the_first_value_before_the_first_batch(opt):
    class Early(Spy):
        order, first = 100, None
        def before_train(self):
            group = groups_of(self.opt)[0]
            self.first = self.first or (group['lr'], momentum(group))
    spy = Early()
    learner(opt_func=OPTS[opt]).fit_one_cycle(1, .1, cbs=spy)
    assert spy.first == (.1/25, .95)

def test_on_the_learner_for_good(tmp_path):
    learn, plan = learner(cbs=OneCycle(.1), path=tmp_path), OneCycleSchedule(.1).plan(1, 12)
    for _ in range(2):
        learn.fit(1)
        hps = learn.recorder.hps
        assert hps == dict(lr=plan.lrs[:, 0].tolist(), mom=plan.moms.tolist())
        learn.validate()
        learn.get_preds()
        assert learn.recorder.hps == hps and learn.opt.hypers[0]['mom'] == .9
        learn.lr_find(show_plot=False, num_it=30)
        lrs = learn.recorder.lrs
        assert lrs[0] == pytest.approx(1e-7) and lrs == sorted(lrs) and len(lrs) > 20      # its own ramp

def test_pickled_after_a_fit():
    cb = OneCycle(.1)
    learner().fit(1, cbs=cb)
    assert pickle.loads(pickle.dumps(cb)).plan == cb.plan

def bytes_per_batch(n_groups, n=2000):
    "Return the bytes per batch that the events of a fit of `n` batches leave behind."
    learn, cycle = learner(n_groups=n_groups), OneCycle(.1)
    learn.dls.loaders[0] = range(n)
    learn.create_opt()
    learn.add_cb(cycle)
    learn.n_epoch, learn.epoch, learn.iter, learn.training = 1, 0, 0, True
    gc.collect()
    tracemalloc.start()
    for event in ('before_fit', 'before_train'): cycle(event)
    for learn.iter in range(n):
        for event in ('before_batch', 'after_batch'): cycle(event)
    cycle('after_fit')
    cycle.fit_ended()
    gc.collect()
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(learn.recorder.hps['lr']) == n
    return left / n

@pytest.mark.slow
def test_memory_of_the_record_does_not_grow_with_groups():
    one, many = bytes_per_batch(1), bytes_per_batch(50)
    assert 64 <= one <= 72 and abs(many - one) < 2      # two numbers and their places in two lists

UNUSED = ['after_pred', 'after_loss', 'before_backward', 'after_backward']      # events of each batch without a method

def test_events_without_a_method_look_nothing_up():
    asked = []
    class Counted(OneCycle):
        def __getattr__(self, name):      # fastai's, asked for what the callback itself has not
            asked.append(name)
            return super().__getattr__(name)
    learn, spy, cycle = learner(), Spy(), Counted(.1)
    learn.fit(1, cbs=[cycle, spy])
    assert [lr for lr, in spy.seen_lrs] == learn.recorder.plan.lrs[:, 0].tolist()
    assert not hasattr(cycle, 'nothing') and 'nothing' in asked and not {*UNUSED, 'training'} & set(asked)

@pytest.mark.parametrize('event', UNUSED)
def test_events_to_which_a_subclass_gives_a_method(event):
    calls, spy, learn = [], Spy(), learner()
    cycle = type('Counted', (OneCycle,), {event: lambda self: calls.append(self.learn.iter)})
    learn.fit(1, cbs=[cycle(.1), spy])
    assert calls == list(range(12)) and [lr for lr, in spy.seen_lrs] == learn.recorder.plan.lrs[:, 0].tolist()

@pytest.mark.parametrize('kwargs', [dict(cycle_len=2), dict(cycle_len=2, cbs=GradientAccumulation(8)),
                                    dict(minutes=.001), dict(cycle_len=2, checkpoint='run1')], ids=str)
def test_a_call_makes_its_plan_once(kwargs, monkeypatch, tmp_path):
    made, check = [], OneCyclePlan.__post_init__
    monkeypatch.setattr(OneCyclePlan, '__post_init__', lambda plan: made.append(plan) or check(plan))
    learn = learner(path=tmp_path)
    learn.fit_one_cycle(max_lr=.1, **kwargs)
    assert made == [learn.recorder.plan]

def test_a_cycle_that_finds_another_number_of_batches_makes_another_plan():
    learn, cycle = learner(), OneCycle(.1)
    plans = []
    for n_epoch in (2, 2, 3):
        learn.fit(n_epoch, cbs=cycle)
        plans.append(cycle.plan)
    assert list(map(len, plans)) == [24, 24, 36]
