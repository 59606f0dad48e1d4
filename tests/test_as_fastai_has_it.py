"""In fastai's place: found and ordered as its scheduler, with methods that users override, and its arguments.

Each test trains a Learner as others do who know nothing of this package."""
import inspect
import warnings

import numpy as np
import pytest
from fastai.basics import Adam, Callback, Learner, Optimizer, SGD, partial
from fastai.callback.schedule import ParamScheduler, SuggestionMethod
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.optimizer import sgd_step

from support import fresh
from support.helpers import Spy, learner
from onecycle_callback import OneCycle
from onecycle_callback import fastai_internals

# Found and ordered as the scheduler

class AtOrder(Callback):
    "Note the LR that a callback of some order sees before a batch, and multiply it."
    run_valid = False
    def __init__(self, order, factor=1.): self.order, self.factor, self.read = order, factor, []
    def before_batch(self):
        self.read.append(self.opt.hypers[-1]['lr'])
        self.opt.hypers[-1]['lr'] *= self.factor

@pytest.mark.parametrize('order', range(60, 64))
def test_callbacks_after_the_scheduler_see_the_value_of_this_batch(order):
    learn, look = learner(), AtOrder(order)
    learn.fit_one_cycle(1, .1, cbs=look)
    assert look.read == learn.recorder.plan.lrs[:, 0].tolist()

@pytest.mark.parametrize('order', range(60, 64))
def test_a_value_that_a_later_callback_sets_stays_for_this_batch(order):
    learn, spy = learner(), Spy()
    learn.fit_one_cycle(1, .1, cbs=[AtOrder(order, .5), spy])
    assert [lr for lr, in spy.seen_lrs] == [lr / 2 for lr in learn.recorder.plan.lrs[:, 0].tolist()]

class Logger(Callback):
    "Look for the schedule as loggers do, in some event."
    def __init__(self, event): setattr(self, event, self.look); self.found = []
    def look(self):
        if self.found: return
        self.found = [cb for cb in self.learn.cbs if isinstance(cb, ParamScheduler)]
        assert self.learn.param_scheduler is self.found[0]
        pcts = np.linspace(0, 1, 12, endpoint=False)
        self.values = {name: [f(pct) for pct in pcts] for name, f in self.found[0].scheds.items()}

FITS = {'fit_one_cycle': lambda learn, cbs: learn.fit_one_cycle(1, .1, cbs=cbs),
        'OneCycle': lambda learn, cbs: learn.fit(1, cbs=[OneCycle(.1), *cbs])}
fits = pytest.mark.parametrize('fit', FITS.values(), ids=FITS)

@fits
@pytest.mark.parametrize('event', ['before_fit', 'before_batch', 'after_epoch', 'after_fit'])
def test_a_logger_finds_the_schedule(fit, event):
    learn, logger = learner(n_groups=2), Logger(event)
    fit(learn, [logger])
    plan = learn.recorder.plan
    assert len(logger.found) == 1 and list(logger.values) == ['lr', 'mom']
    np.testing.assert_allclose(logger.values['lr'], plan.lrs, rtol=1e-12)
    np.testing.assert_allclose(logger.values['mom'], plan.moms, rtol=1e-12)
    assert not hasattr(learn, 'param_scheduler')

def test_loggers_find_what_it_was_made_with():
    "wandb's `gather_args` asks for these, by one way or the other depending on fastcore's version."
    cb, wanted = OneCycle(.1, pct_start=.4), dict(max_lr=.1, div_factor=25., pct_start=.4, final_div=None, moms=None,
                                                  anneal='cos', three_phase=False, n_batch=None)
    assert cb.__stored_args__ == wanted and f'{cb}' == 'OneCycle'
    params = inspect.signature(type(cb).__init__).parameters
    assert {p: vars(cb)[p] for p in params if p in vars(cb)} == wanted

def test_its_repr_is_the_call():
    assert repr(OneCycle(.1)).startswith('OneCycle(max_lr=0.1, div_factor=25.0, pct_start=0.3')

@pytest.mark.parametrize('opt_func', [Adam, partial(SGD, mom=.9)], ids=['Adam', 'SGD'])
@fits
def test_momentum_is_restored_after_the_best_model_is_loaded(fit, opt_func, tmp_path):
    learn = learner(opt_func=opt_func, path=tmp_path)
    fit(learn, [SaveModelCallback(with_opt=True)])
    assert learn.opt.hypers[0]['mom'] == .9

def test_a_cycle_for_good_restores_it_too(tmp_path):
    learn = learner(cbs=[OneCycle(.1), SaveModelCallback(with_opt=True)], path=tmp_path)
    learn.fit(2)
    assert learn.opt.hypers[0]['mom'] == .9
    learn.opt.set_hyper('mom', .7)
    learn.fit(1)
    assert learn.opt.hypers[0]['mom'] == .7

def test_a_second_scheduler_keeps_its_record_in_any_place():
    for first in True, False:
        learn, wd = learner(), ParamScheduler({'wd': lambda pct: .1 * pct})
        learn.fit(2, cbs=[wd, OneCycle(.1)] if first else [OneCycle(.1), wd])
        assert list(map(len, learn.recorder.hps.values())) == [24] * 3 and {*learn.recorder.hps} == {'lr', 'mom', 'wd'}

# Methods that users override

class Own(Learner):
    "With fastai's signature."
    def fit_one_cycle(self, n_epoch, lr_max=None, div=25., div_final=1e5, pct_start=.25, wd=None, moms=None, cbs=None,
                      reset_opt=False, start_epoch=0):
        self.called = [*getattr(self, 'called', []), (n_epoch, lr_max, div, div_final, pct_start)]
        super().fit_one_cycle(n_epoch, lr_max, div=div, div_final=div_final, pct_start=pct_start, wd=wd, moms=moms,
                              cbs=cbs, reset_opt=reset_opt, start_epoch=start_epoch)

class Short(Learner):
    "Without most of it."
    def fit_one_cycle(self, n_epoch, lr_max=None, pct_start=.25, div=25.):
        super().fit_one_cycle(n_epoch, lr_max, div=div)

def of(cls, **kwargs):
    "Return the Learner of the tests as one of `cls`."
    learn = learner(**kwargs)
    learn.__class__ = cls
    return learn

def test_fine_tune_calls_an_own_fit_one_cycle_as_fastai_does():
    learn = of(Own, n_groups=2)
    learn.fine_tune(2, 1e-2)
    assert learn.called == [(1, slice(1e-2), 25., 1e5, .99), (2, slice(5e-5, 5e-3), 5., 1e5, .3)]
    assert learn.recorder.plan.lrs[-1, -1] == pytest.approx(5e-8)

def test_fine_tune_with_a_shorter_one():
    learn = of(Short, n_groups=2)
    learn.fine_tune(2)
    assert len(learn.recorder.lrs) == 24

def test_fine_tune_freezes_nothing_for_an_own_one_that_cannot_be_called():
    learn = of(Short, n_groups=2)
    for fine_tune in learn.preview_fine_tune, learn.fine_tune:
        with pytest.raises(TypeError, match='wd'): fine_tune(2, wd=.1)
    assert learn.opt is None and all(p.requires_grad for p in learn.model.parameters())

class More(Learner):
    "With an argument more than fastai's, by name or not."
    def fit_one_cycle(self, n_epoch, lr_max=None, pct_start=.25, div=25., note=None, **kwargs):
        self.notes = [*getattr(self, 'notes', []), (note, kwargs.pop('mark', None))]
        super().fit_one_cycle(n_epoch, lr_max, pct_start=pct_start, div=div, **kwargs)

def test_what_only_an_own_one_takes_reaches_it_through_fine_tune():
    learn = of(More, n_groups=2)
    assert len(learn.preview_fine_tune(1, note='a', mark=2)) == 24
    learn.fine_tune(1, note='a', mark=2)
    assert learn.notes == [('a', 2)] * 2 and learn.recorder.plan.lrs[-1, -1] == pytest.approx(1e-8)

def test_a_name_that_nobody_takes_is_refused_by_fine_tune():
    learn = of(Own, n_groups=2)
    with pytest.raises(TypeError, match='fine_tune has no argument note'): learn.fine_tune(1, note='a')
    with pytest.raises(TypeError, match='fine_tune has no argument div_factor'): of(More).fine_tune(1, div_factor=3.)

def test_compare_max_lr_calls_it_too():
    learn = of(Own)
    assert list(learn.compare_max_lr([.01, .1], div_factor=10.).table.index) == [.01, .1]

class Warm(Learner):
    def fit(self, n_epoch, *args, **kwargs):
        super().fit(1, lr=1e-5)
        self.warm = list(self.recorder.lrs)
        super().fit(n_epoch, *args, **kwargs)

@pytest.mark.parametrize('part', [dict(), dict(start_epoch=1), dict(stop_epoch=2)], ids=str)
def test_an_own_fit_that_warms_up_first(part):
    learn, spy = of(Warm), Spy()
    learn.fit_one_cycle(3, .1, cbs=spy, **part)
    assert learn.warm == [1e-5] * 12
    first = 12 * part.get('start_epoch', 0)
    assert [lr for lr, in spy.seen_lrs] == learn.recorder.plan.lrs[first:12 * part.get('stop_epoch', 3), 0].tolist()

class Passed(Learner):
    def fit(self, n_epoch, lr=None, wd=None, cbs=None, reset_opt=False, start_epoch=0):
        self.passed = dict(n_epoch=n_epoch, lr=lr, wd=wd, reset_opt=reset_opt, start_epoch=start_epoch)
        super().fit(n_epoch, lr, wd, cbs, reset_opt, start_epoch)

class Looks(Learner):
    def fit(self, *args, **kwargs):
        self.found = [h['lr'] for h in self.opt.hypers]
        super().fit(*args, **kwargs)

def test_an_own_fit_finds_the_peak_on_the_optimizer():
    learn = of(Looks, n_groups=2)
    learn.fit_one_cycle(1, slice(.01, .1))
    assert learn.found == pytest.approx([.01, .1])

def test_what_an_own_fit_gets():
    learn, n_made = of(Passed), []
    learn.opt_func = lambda params, lr: n_made.append(1) or Adam(params, lr=lr)
    learn.fit_one_cycle(4, .1, wd=.2, reset_opt=True, start_epoch=2)
    assert learn.passed == dict(n_epoch=4, lr=None, wd=.2, reset_opt=True, start_epoch=2)
    assert len(n_made) == 2      # the look ahead, on stand-ins, and the one that trains

class Loop(Learner):
    def _do_fit(self):
        self.loops = getattr(self, 'loops', 0) + 1
        super()._do_fit()

@pytest.mark.parametrize('kwargs', [dict(), dict(start_epoch=1), dict(stop_epoch=1), dict(checkpoint='run1')], ids=str)
def test_an_own_loop_over_the_epochs(kwargs, tmp_path):
    learn = of(Loop, path=tmp_path)
    learn.fit_one_cycle(2, .1, **kwargs)
    assert learn.loops == 1

def test_a_preview_leaves_nothing_on_a_learner_with_methods_of_its_own():
    learn = learner()
    before = dict(vars(learn))
    learn.preview_one_cycle(1)
    assert vars(learn) == before

# Arguments

def peaks(n_groups, max_lr, **kwargs):
    "Return the highest LR of each group that a cycle really trains with."
    learn, spy = learner(n_groups=n_groups), Spy()
    learn.fit_one_cycle(1, max_lr, cbs=spy, **kwargs)
    return [max(lrs) for lrs in zip(*spy.seen_lrs)]

@pytest.mark.parametrize('max_lr, wanted', [
    ([1e-3], [1e-3] * 3), ((1e-3,), [1e-3] * 3), (np.array([1e-3]), [1e-3] * 3), ([0, 1e-4, 1e-3], [0, 1e-4, 1e-3]),
    ([1e-3, 0, 0], [1e-3, 0, 0]), (slice(1e-2, 1e-4), [1e-2, 1e-3, 1e-4]), (slice(0, 1e-3), [1e-4, 1e-4, 1e-3])],
    ids=str)
def test_lrs_as_fastai_reads_them(max_lr, wanted): assert peaks(3, max_lr) == pytest.approx(wanted)

def test_what_lr_find_returns():
    learn = learner(n_groups=3)
    found = learn.lr_find(show_plot=False, suggest_funcs=SuggestionMethod.Valley)
    learn.fit_one_cycle(1, found)
    assert learn.recorder.plan.lrs.max(0).tolist() == [found.valley] * 3

def test_a_group_that_is_held_still():
    learn = learner(n_groups=2)
    before = [p.tolist() for p in learn.model[0].parameters()]
    learn.fit_one_cycle(1, [0, .1])
    assert [p.tolist() for p in learn.model[0].parameters()] == before

@pytest.mark.parametrize('fit', [lambda learn, moms: learn.fit_one_cycle(1, .03, moms=moms),
                                 lambda learn, moms: learn.fit(1, cbs=OneCycle(.03, moms=moms)),
                                 lambda learn, moms: learn.preview_one_cycle(1, .03, moms=moms)],
                         ids=['fit_one_cycle', 'OneCycle', 'preview_one_cycle'])
def test_momentum_without_effect_is_noted_once_unless_it_is_zero(fit):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        fit(learner(opt_func=SGD), (0, 0, 0))
        assert not [w for w in seen if 'moms' in str(w.message)]
        fit(learner(opt_func=SGD), (.9, .8, .9))
    w, = [w for w in seen if 'moms' in str(w.message)]
    assert str(w.message) == ('moms=(0.9, 0.8, 0.9) has no effect, since this Optimizer (steps: weight_decay, '
                              'sgd_step) has no momentum')
    assert w.filename == __file__

def test_weight_decay_without_effect_is_noted_once_unless_it_is_zero():
    plain = partial(Optimizer, cbs=[sgd_step])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        learner(opt_func=plain).fit_one_cycle(1, .03, wd=0.)
        assert not [w for w in seen if 'wd' in str(w.message)]
        learner(opt_func=plain).fit_one_cycle(1, .03, wd=.1)
    assert [str(w.message) for w in seen if 'wd' in str(w.message)] == [
        'wd=0.1 has no effect, since the optimizer has no weight decay']

@pytest.mark.parametrize('call, n_batches', [
    (lambda learn: learn.fine_tune(0), 12), (lambda learn: learn.fine_tune(4, start_epoch=2), 24),
    (lambda learn: learn.fine_tune(2, freeze_epochs=3, start_epoch=2), 12),
    (lambda learn: learn.fine_tune(0, freeze_epochs=0), 0),
    (lambda learn: learn.fit_one_cycle(3, start_epoch=3), 0)],
    ids=['no epochs', 'from an epoch on', 'from a frozen epoch on', 'nothing', 'from the end on'])
def test_parts_as_fastai_reads_them(call, n_batches):
    learn, spy = learner(n_groups=3), Spy()
    spy.before_fit = lambda: None
    spy.seen_lrs, spy.seen_moms, spy.places = [], [], []
    learn.add_cb(spy)
    call(learn)
    assert len(spy.places) == n_batches and all(p.requires_grad for p in learn.model.parameters())

def test_positional_arguments_of_fastai():
    learn = learner()
    learn.fit_one_cycle(2, None, 20., 1e5, .25, None, (.9, .8, .9), None, False, 1)
    schedule = learn.recorder.plan.schedule
    assert (schedule.div_factor, schedule.final_div, schedule.pct_start, schedule.moms) == (20., 1e5, .25, (.9, .8, .9))
    assert len(learn.recorder.lrs) == 12

# In the middle, and warnings

class Once(Callback):
    "Do something once, before the second epoch trains."
    order, done = 70, False
    def __init__(self, act): self.act = act
    def before_train(self):
        if self.epoch == 1 and not self.done:
            self.done = True
            self.act(self.learn)

def entered(learn):
    with learn: learn.validate()

def entered_and_failed(learn):
    with learn, pytest.raises(ZeroDivisionError): learn.fit(1, cbs=Callback(before_batch=lambda self: 1 / 0))

IN_BETWEEN = {'summary': lambda learn: learn.summary(), 'with': entered,
              'with, and a fit that fails': entered_and_failed}

@pytest.mark.parametrize('act', IN_BETWEEN.values(), ids=IN_BETWEEN)
def test_the_learner_may_be_entered_in_the_middle(act):
    learn, spy = learner(), Spy()
    once = Once(act)
    learn.fit_one_cycle(3, .1, cbs=once)
    plan = learn.recorder.plan
    assert once.done and learn.recorder.hps['lr'] == plan.lrs[:, 0].tolist()
    assert learn.recorder.lrs == plan.lrs[:, 0].tolist() and learn.opt.hypers[0]['mom'] == .9
    learn.fit_one_cycle(1, .1, cbs=spy)
    assert len(spy.seen_lrs) == 12

EARLY = """import warnings, sys
sys.path.insert(0, {tests!r})
from support.helpers import learner
import onecycle_callback
from fastai.callback.tracker import EarlyStoppingCallback
learn = learner()
learn.fit_one_cycle(4, .1, cbs=EarlyStoppingCallback(min_delta=1e9, patience=1))
print('\\ndone')"""

@pytest.mark.slow
@pytest.mark.parametrize('option', ['"error", "The cycle"', '"default"'], ids=['error', 'default'])
def test_a_warning_about_a_fit_points_at_the_line_and_never_ends_it(option, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(EARLY.format(tests=__file__.rpartition('/')[0]), encoding='utf-8')
    run = fresh.python(f'import runpy, warnings; warnings.filterwarnings({option}); '
                       f'runpy.run_path({str(script)!r}, run_name="__main__")')
    assert run.returncode == 0 and run.stdout.endswith('done\n'), run.stderr
    assert 'The cycle was stopped early in epoch 1 of 4' in run.stderr
    assert (f'{script}:7: UserWarning: The cycle' in run.stderr) == ('default' in option)

def test_the_line_is_that_of_the_user(monkeypatch):
    with pytest.warns(UserWarning, match='The cycle was stopped') as seen:
        learner().fit_one_cycle(4, .1, cbs=EarlyStoppingCallback(min_delta=1e9, patience=1))
    assert [w.filename for w in seen if 'The cycle' in str(w.message)] == [__file__]
    monkeypatch.setattr(fastai_internals, '_LIBRARIES', ())
    with pytest.warns(UserWarning, match='The cycle was stopped') as seen:
        learner().fit_one_cycle(4, .1, cbs=EarlyStoppingCallback(min_delta=1e9, patience=1))
    assert [w.filename for w in seen if 'The cycle' in str(w.message)] != [__file__]
