"""Every private name of fastai that is used here, each with its reason and a contract test"""

import sys
from contextlib import contextmanager
from functools import partial, wraps
from traceback import walk_tb
from typing import Any
from weakref import WeakKeyDictionary

from fastai.callback.core import Callback, CancelEpochException, CancelFitException
from fastai.learner import Learner
from fastcore.foundation import L

def _fit_epochs(learn, epochs, stopped):
    "Do what `Learner._do_fit` does, over `epochs`; call `stopped` if a callback ends the fit."
    start_clock(learn)
    try:
        for learn.epoch in epochs: learn._with_events(learn._do_epoch, 'epoch', CancelEpochException)
    except CancelFitException:
        if stopped is not None: stopped()
        raise

class OwnLoop:
    "A loop of one fit, in place of the Learner's method of the same name."
    def __init__(self,
        run # What to call
    ):
        self.run = run

    def __call__(self): return self.run()

@contextmanager
def fit_over(
    learn, # The `Learner`
    epochs:range, # The epochs to run
    all_batches=None, # What to call instead of `Learner.all_batches`; default that method
    stopped=None # What to call when a callback ends the fit, before any callback is told
):
    "Make the outermost fit of `learn` within this context run over `epochs`."
    loops = dict(_do_fit=OwnLoop(partial(_fit_epochs, learn, epochs, stopped)))
    if all_batches is not None: loops['all_batches'] = OwnLoop(all_batches)
    vars(learn).update(loops)
    try: yield
    finally:
        for name in loops: delattr(learn, name)

def _bar(learn, name):
    "Return the progress bar of `learn` over the epochs (`'mbar'`) or the batches (`'pbar'`); `None` if it has none."
    return getattr(getattr(learn, 'progress', None), name, None)

def start_clock(
    learn # The `Learner`
):
    "Prepare the progress bar over the epochs to start with any epoch."
    bar = _bar(learn, 'mbar')
    if not bar: return
    bar.update(0)
    bar.main_bar.first_its = learn.n_epoch

def show_no_total(
    learn # The `Learner`
):
    "Let the progress bar over the batches count without a total."
    bar = _bar(learn, 'pbar')
    if bar is not None: bar.total = None

def show_epoch(
    learn, # The `Learner`
    epoch:int # The coming epoch
):
    "Make `epoch` the last one, of the fit and of the bar over the epochs."
    learn.n_epoch = epoch + 1
    bar = _bar(learn, 'mbar')
    if bar: bar.main_bar.total = bar.main_bar.first_its = epoch + 1     # up to `first_its`, it shows each epoch

def cancelled_by() -> tuple: # The callback and the name of the event; `None` for both if it wasn't a callback
    "Return the callback that raised the exception that is being handled, and in which event of the fit."
    for frame, _ in walk_tb(sys.exc_info()[2]):
        if frame.f_code is Learner._call_one.__code__: return frame.f_locals['cb'], frame.f_locals['event_name']
    return None, None

def items_of(
    dl # A fastai `DataLoader`
) -> int:
    "Return how many items one epoch of `dl` yields."
    return getattr(dl, 'partial_n', None) or dl.n

def _worker_settings(loader):
    "Return the object that holds the settings of the workers of `loader`."
    return getattr(loader, '__dict__', {}).get('fake_l', loader)

def n_workers(
    loader # A `DataLoader` of fastai or torch, or any other iterable
) -> int:
    "Return how many workers `loader` has."
    return getattr(_worker_settings(loader), 'num_workers', 0)

def has_persistent_workers(
    loader # A `DataLoader` of fastai or torch, or any other iterable
) -> bool:
    "Return whether the workers of `loader` live on after an epoch."
    return bool(getattr(_worker_settings(loader), 'persistent_workers', False))

def replace_broadcast(
    broadcast # `broadcast(dl, items, rank)` returns the `items` of `rank` on every rank
):
    "Make fastai's `DistributedDL` send the order of the items through `broadcast`; needs Accelerate."
    from fastai.distributed import DistributedDL
    DistributedDL._broadcast = broadcast

def wrap_only(
    trainer, # fastai's `DistributedTrainer`
    should_wrap # `should_wrap(dl)` returns whether to wrap the data loader `dl`
):
    "Let `trainer` leave all other data loaders as they are."
    wrap = type(trainer)._wrap_dl
    vars(trainer)['_wrap_dl'] = lambda dl: wrap(trainer, dl) if should_wrap(dl) else dl

# Which fit a cycle belongs to: validations, fits and copies that callbacks make in between have no part in it

class OneFitCallback(Callback):
    "A callback that has a part in the fit that it was added to, and in none that takes place inside it."

_POSITION = ('epoch', 'iter', 'n_iter', 'n_epoch', 'train_iter', 'pct_train', 'training', 'dl', 'xb', 'yb', 'pred',
             'loss', 'loss_grad', 'smooth_loss')

def _counting(learn):
    "Return what counts and shows the batches and epochs of a fit: the recorder, the metrics and the progress bar."
    recorder, progress = vars(learn).get('recorder'), vars(learn).get('progress')
    counting = [recorder, progress] if recorder is None else [recorder, recorder.loss, recorder.smooth_loss, progress]
    return [obj for obj in [*counting, *learn.metrics] if obj is not None]

@contextmanager
def _outer_restored(learn):
    "Restore the position, the record, the bar and the modes of the layers at the end of this context."
    position = {name: vars(learn)[name] for name in _POSITION if name in vars(learn)}
    kept, modes = [(obj, dict(vars(obj))) for obj in _counting(learn)], [(m, m.training) for m in learn.model.modules()]
    for obj, values in kept:
        vars(obj).pop('mbar', None)                                # the nested fit would end this bar
        if 'log' in values: vars(obj)['log'] = values['log'].copy()   # and add its losses to this row
    try: yield
    finally:
        vars(learn).update(position)
        for obj, values in kept:
            vars(obj).clear()
            vars(obj).update(values)
        for module, mode in modes: module.training = mode

@contextmanager
def _outer_hidden(learn):
    "Take the `OneFitCallback`s and the loops of the outer fit off `learn` during this context."
    hidden = [(i, cb) for i, cb in enumerate(learn.cbs) if isinstance(cb, OneFitCallback)]
    loops = {name: value for name, value in vars(learn).items() if isinstance(value, OwnLoop)}
    learn.cbs = L(cb for cb in learn.cbs if not isinstance(cb, OneFitCallback))
    for name in loops: delattr(learn, name)
    try: yield
    finally:
        for i, cb in hidden: learn.cbs.insert(i, cb)
        vars(learn).update(loops)

_fits: Any = WeakKeyDictionary()     # each `Learner` in a fit, with the callbacks that it had before

@contextmanager
def _set_aside(learn):
    "Keep the fit that is running, if it is one with a `OneFitCallback`, out of what happens in this context."
    if learn not in _fits or not any(isinstance(cb, OneFitCallback) for cb in learn.cbs): yield
    else:
        with _outer_restored(learn), _outer_hidden(learn): yield

def _own_or_nested(fit):
    "Return `Learner.fit` as one that tells a fit inside another from the outermost."
    @wraps(fit)
    def wrapped(self, *args, **kwargs):
        if self in _fits:
            with _set_aside(self): return fit(self, *args, **kwargs)
        _fits[self] = list(self.cbs)
        try: return fit(self, *args, **kwargs)
        finally: _fits.pop(self, None)
    return wrapped

def _set_aside_during(validation_context):
    "Return `Learner.validation_context`, which fastai's validations enter, as one that begins with `_set_aside`."
    @wraps(validation_context)
    def wrapped(self, *args, **kwargs):
        contexts = validation_context(self, *args, **kwargs)
        contexts.insert(0, _set_aside(self))
        return contexts
    return wrapped

Learner.fit = _own_or_nested(Learner.fit)
Learner.validation_context = _set_aside_during(Learner.validation_context)

def _without_running_fit(getstate):
    "Return `Learner.__getstate__` as one that leaves out what belongs to a running fit."
    @wraps(getstate)
    def wrapped(self):
        before = _fits.get(self, self.cbs)
        def was_before(v): return any(v is cb for cb in before)
        def is_of_the_fit(v): return isinstance(v, OwnLoop) or isinstance(v, OneFitCallback) and not was_before(v)
        state = {name: value for name, value in getstate(self).items() if not is_of_the_fit(value)}
        return state | dict(cbs=L(cb for cb in self.cbs if not is_of_the_fit(cb)))
    return wrapped

Learner.__getstate__ = _without_running_fit(Learner.__getstate__)
