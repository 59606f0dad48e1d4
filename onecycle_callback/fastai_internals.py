"""Every private name of fastai that is used here, each with a contract test, and every change to its classes"""

import sys
import time
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial, wraps
from inspect import unwrap
from traceback import walk_tb
from typing import Any
from warnings import warn

from fastai.callback.core import Callback, CancelEpochException, CancelFitException
from fastai.learner import Learner, Recorder
from fastcore.foundation import L
from fastprogress.fastprogress import format_time   # type: ignore[import-untyped]

# What the import changes for good; what else a cycle needs is on its own `Learner` while it trains

REPLACED = {
    'Learner.fit_one_cycle': 'trains on the schedule of this package',
    'Learner.fine_tune': 'trains two such cycles',
    'Learner.fit': 'keeps a cycle apart from what callbacks do with its Learner in between: validate, fit, copy; '
                   'a fit without a cycle is unchanged',
    'Learner.add_cbs': 'adds all callbacks or, if one refuses, none',
    'Recorder.plot_sched': 'draws whatever was recorded, over the batches of the cycle',
    'Recorder.__call__': 'drops the record of an earlier fit when a new one trains',
    'Recorder.__getstate__': 'leaves the plan out of an export, which loads without this package'}
ADDED = ('Learner.preview_one_cycle', 'Learner.preview_fine_tune', 'Learner.compare_max_lr', 'Recorder.plot_lr',
         'Recorder.to_frame')

def public_methods() -> list:
    "Return the public methods of `Learner` and `Recorder` that were written here."
    classes = dict(Learner=Learner, Recorder=Recorder)
    methods = [getattr(classes[cls], name) for cls, name in (full.split('.') for full in [*REPLACED, *ADDED])]
    return [m for m in methods if unwrap(m).__module__.startswith(f'{__package__}.') and m.__name__[0] != '_']

def _bar(learn, name):
    "Return the progress bar of `learn` over the epochs (`'mbar'`) or the batches (`'pbar'`); `None` if it has none."
    return getattr(getattr(learn, 'progress', None), name, None)

def _main_bar(learn):
    "Return the part of the bar over the epochs that counts; `None` if there is none, or another kind of bar."
    return getattr(_bar(learn, 'mbar'), 'main_bar', None)

def start_clock(
    learn, # The `Learner`
    first:int=0 # The epoch that it starts with
):
    "Prepare the progress bar over the epochs to start with any epoch."
    bar = _main_bar(learn)
    if bar is None: return
    learn.progress.mbar.update(0)
    bar.first_its = learn.n_epoch
    if first: _count_from(bar, first)

def start_in_epoch(
    learn, # The `Learner`
    n_done:int # Number of batches that aren't trained again
):
    "Prepare the progress bar over the batches to start after the first `n_done`."
    bar = _bar(learn, 'pbar')
    if bar is not None: _count_from(bar, n_done)

def _count_from(bar, first):
    "Let the time left that `bar` shows follow from what comes after `first`: the rest took this process no time."
    began, update = time.time(), bar.update
    def update_from_first(val):
        if val > first:
            now = time.time()
            bar.start_t = now - (now - began) * val / (val - first)
            return update(val)
        bar.start_t = bar.last_t = began
        bar.pred_t, bar.last_v, bar.wait_for = None, val, 1
        bar.update_bar(val)
    bar.update = update_from_first

def show_no_total(
    learn # The `Learner`
):
    "Let the progress bar over the batches count without a total."
    bar = _bar(learn, 'pbar')
    if bar is not None: bar.total = None

def show_budget(
    learn, # The `Learner`
    position # Its `TimePosition`
):
    "Let the progress bar over the epochs show a budget of time instead: what is used, what is left, and the position."
    if _main_bar(learn) is None: return
    bar = _bar(learn, 'mbar')
    bar.main_bar.total = position.budget
    bar.main_bar.update = bar.add_child = partial(_update_budget, bar,
                                                  position)     # in place of the number of the epoch
    _update_budget(bar, position)

def _update_budget(bar, position, event=None):
    "Show the budget; `event` is the number of an epoch, or the bar of its batches, which begins."
    if hasattr(event, 'update'): type(bar).add_child(bar, event)
    used = min(position.used, position.budget)
    text = f'{format_time(used)} used, {format_time(position.budget - used)} left, {position.fraction:.0%} of the cycle'
    bar.main_bar.on_update(used, text)
    child = getattr(bar, 'child', None)
    if child is not None: child.prefix = f'{text} :'     # in a terminal, all is in front of the bar of the batches

def show_table(
    learn, # The `Learner`, whose recorder knows the names of the columns
    rows:list, # One list of cells per epoch
    n_epoch:int # Number of epochs
):
    "Show the table of a fit that is over, where the fit would show it."
    learn.n_epoch, progress = n_epoch, getattr(learn, 'progress', None)
    if progress is not None: progress.before_fit()     # which prints the names
    if (bar := _bar(learn, 'mbar')) is not None: bar.on_iter_begin()     # which shows a notebook's table
    for row in rows: learn.logger(row)
    if progress is not None: progress.after_fit()

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

def loaders_of(
    dls # A `DataLoaders`, or anything that behaves as one
) -> list:
    "Return the data loaders of `dls`, the one for training first."
    return getattr(dls, 'loaders', None) or [dls.train, dls[1]]     # as `Learner` gets at the one for validation

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

_LIBRARIES = 'onecycle_callback', 'fastai', 'fastcore', 'contextlib'

def warn_user(
    message:str # What to say
):
    "Warn at the line of the user that led here; where warnings are errors, print it, since no fit should end for it."
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get('__name__', '').split('.')[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    try: warn(message, stacklevel=level)
    except UserWarning: print(message, file=sys.stderr)

# Which fit a cycle belongs to: validations, fits and copies that callbacks make in between have no part in it

class OneFitCallback(Callback):
    "A callback that has a part in the fit that it was added to, and in none that takes place inside it."
    epochs:Any = None     # the epochs of the fit to run, a range or anything that yields them; `None` for all
    stands_in:tuple = ()     # names of the Learner's methods for which its own stand in while the fit runs

    def stopped(self):
        "Note that a callback ends the fit, before any callback is told."

    def fit_ended(self):
        "Note that the fit is over, however it ended; all callbacks have been told."

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
    "Take the `OneFitCallback`s off `learn` during this context."
    hidden = [(i, cb) for i, cb in enumerate(learn.cbs) if isinstance(cb, OneFitCallback)]
    learn.cbs = L(cb for cb in learn.cbs if not isinstance(cb, OneFitCallback))
    try: yield
    finally:
        for i, cb in hidden: learn.cbs.insert(i, cb)

class StandIn(partial):
    "A function that stands in for a method of one `Learner` while a fit runs."

@contextmanager
def _standing_in(learn, **functions):
    "Have `functions` stand in for the methods of `learn` of these names during this context."
    before = {name: vars(learn)[name] for name in functions if name in vars(learn)}
    vars(learn).update({name: StandIn(function) for name, function in functions.items()})
    try: yield
    finally:
        for name in functions: vars(learn).pop(name, None)
        vars(learn).update(before)

class _Fit:
    "A fit with `OneFitCallback`s: it runs their epochs, and has no part in what callbacks do with the `Learner`."
    def __init__(self,
        learn, # The `Learner`
        before:list # The callbacks that it had before the fit
    ):
        self.learn, self.before = learn, before
        self.own = [cb for cb in learn.cbs if isinstance(cb, OneFitCallback)]
        self.epochs = next((cb.epochs for cb in self.own if cb.epochs is not None), None)
        # The first `before_fit` is this fit's own. Any other comes from a `with learn:` that a callback has entered
        self.has_begun = self.is_aside = False
        self._entered, self._depth = ExitStack(), 0     # of a `with learn:` in between
        self._call_one, self._validation_context, self._getstate = (
            learn._call_one, learn.validation_context, learn.__getstate__)

    @property
    def stand_ins(self):
        "What stands in for which methods of the `Learner`."
        own = {name: partial(self._own_or, getattr(cb, name), getattr(self.learn, name))
               for cb in self.own for name in cb.stands_in}
        return own | dict(_call_one=self.call_one, validation_context=self.validation_context,
                          __getstate__=self.getstate)

    def _own_or(self, own, other, *args, **kwargs):
        "Call `own`, or `other` in between."
        return (other if self.is_aside else own)(*args, **kwargs)

    def run(self, loop):
        "Run the `loop` over the epochs."
        learn, epochs = self.learn, self.epochs
        if epochs is not None: start_clock(learn, getattr(epochs, 'start', 0))
        if epochs is not None and not isinstance(epochs, range): loop = partial(run_epochs, learn, epochs)
        try: loop()
        except CancelFitException:
            for cb in self.own: cb.stopped()
            raise

    def _is_left_out(self, event_name):
        "Return whether the event is one of an epoch that isn't among `epochs`, which is skipped."
        if event_name not in _EPOCH_EVENTS or not isinstance(self.epochs, range): return False
        if self.learn.epoch in self.epochs: return False
        if event_name == 'before_epoch': raise CancelEpochException
        if event_name == 'after_epoch': self.learn.epoch = min(self.learn.epoch, self.epochs.stop - 1)   # it ends there
        return True

    def call_one(self, event_name):
        "Call the callbacks, as `Learner._call_one` does."
        if self.is_aside: return self._call_in_between(event_name)
        if event_name == 'before_fit' and self.has_begun:     # `with learn:`
            self._entered.enter_context(self.aside())
            return self._call_in_between(event_name)
        self.has_begun = True
        if not self._is_left_out(event_name): self._call_one(event_name)

    def _call_in_between(self, event_name):
        "Call the callbacks, and note where a `with learn:` ends."
        try: self._call_one(event_name)
        except BaseException:
            if event_name == 'before_fit' and self._depth == 0: self._entered.close()     # it wasn't entered
            raise
        self._depth += dict(before_fit=1, after_fit=-1).get(event_name, 0)
        if self._depth == 0: self._entered.close()

    @contextmanager
    def aside(self):
        "Keep this fit out of what happens in this context."
        depth = self._depth
        if self.is_aside:
            try: yield
            finally: self._depth = depth     # a fit that fails fires no `after_fit`
            return
        self.is_aside = True
        try:
            # Without its callbacks, what happens in between neither trains on the cycle nor is recorded in it
            with _outer_restored(self.learn), _outer_hidden(self.learn): yield
        finally: self.is_aside, self._depth = False, 0

    def validation_context(self, *args, **kwargs):
        "Return `Learner.validation_context`, which fastai's validations enter, as one that begins with `aside`."
        contexts = self._validation_context(*args, **kwargs)
        contexts.insert(0, self.aside())
        return contexts

    def getstate(self):
        "Return the state of the `Learner` without what belongs to this fit."
        def is_of_the_fit(v):
            return isinstance(v, StandIn) or isinstance(v, OneFitCallback) and not any(v is cb for cb in self.before)
        state = {name: value for name, value in self._getstate().items() if not is_of_the_fit(value)}
        return state | dict(cbs=L(cb for cb in self.learn.cbs if not is_of_the_fit(cb)))

_EPOCH_EVENTS = {'before_epoch', 'after_cancel_epoch', 'after_epoch'}

def run_epochs(
    learn, # The `Learner`
    epochs # Yields numbers of epochs
):
    "Do what `Learner._do_fit` does, over `epochs`."
    for learn.epoch in epochs: learn._with_events(learn._do_epoch, 'epoch', CancelEpochException)

def aside(
    learn # The `Learner`
):
    "Return the context in which the fit of `learn` that is running, if it has `OneFitCallback`s, has no part."
    running = vars(learn).get('_call_one')
    if not isinstance(running, StandIn): return nullcontext()
    return running.func.__self__.aside()   # type: ignore[attr-defined]

def _run_fit(learn, before, loop, *events):
    "Run a fit of `learn`, as `learn._with_events(loop, *events)` does; `before` are the callbacks that it had before."
    fit = _Fit(learn, before)
    if not fit.own: return learn._with_events(loop, *events)
    try:
        # On the instance and for the duration of the fit, so that no other fit pays for it or is changed by it
        with _standing_in(learn, **fit.stand_ins): learn._with_events(partial(fit.run, loop), *events)
    finally:
        for cb in fit.own: cb.fit_ended()

def _own_or_nested(fit):
    """Return `Learner.fit` as one that tells a fit inside another from the outermost, and its end from an error.

    Its callbacks are all there when it calls `_with_events` for the first time."""
    @wraps(fit)
    def wrapped(self, *args, **kwargs):
        with aside(self), ExitStack() as until_it_begins:
            before = list(self.cbs)
            def begin(*events):
                until_it_begins.close()     # an own `fit` may call `_with_events` again, for a fit inside
                return _run_fit(self, before, *events)
            until_it_begins.enter_context(_standing_in(self, _with_events=begin))
            return fit(self, *args, **kwargs)
    return wrapped

def _all_or_none(add_cbs):
    "Return `Learner.add_cbs` as one that adds no callback if it can't add all: fastai keeps those before for good."
    @wraps(add_cbs)
    def wrapped(self, cbs):
        n_before = len(self.cbs)
        try: return add_cbs(self, cbs)
        except BaseException:
            self.remove_cbs(self.cbs[n_before:])
            raise
    return wrapped

Learner.fit = _own_or_nested(Learner.fit)
Learner.add_cbs = _all_or_none(Learner.add_cbs)
