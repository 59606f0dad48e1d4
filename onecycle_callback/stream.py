"""Epochs of so many batches, whatever the length of the data loader"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from fastcore.basics import GetAttr
from fastcore.imports import noop

from .fastai_internals import OneFitCallback, show_budget, show_no_total, wrap_only

def has_length(
    dl # A data loader, or anything that can be iterated over
) -> bool:
    "Return whether `dl` knows how many batches it yields."
    try: len(dl)
    except TypeError: return False
    return True

def set_epoch(
    dl, # A data loader, or anything that can be iterated over
    n_pass:int # The number of the coming pass over it
):
    "Tell the data set and the samplers of `dl`, if they want to know, which pass comes next."
    for part in ('dataset', 'sampler', 'batch_sampler'):
        owner:Any = getattr(dl, part, None)
        if hasattr(type(owner), 'set_epoch'): owner.set_epoch(n_pass)

_END = object()

class Stream(GetAttr):
    "The batches of `dl` without an end, `n_batch` of them per loop; a loop goes on where the one before stopped."
    _default = 'dl'
    def __init__(self,
        dl, # A data loader, or anything that can be iterated over
        n_batch:int, # Number of batches per loop
        on_pass=noop # Is called, without arguments, where a pass over `dl` starts
    ):
        self.dl, self.n_batch, self.on_pass = dl, n_batch, on_pass
        self._pass:Iterator = iter(())     # the current pass over `dl`
        self.n_pass, self.n_taken = -1, 0     # its number, and how many batches it gave
        self.n_done = 0      # how many batches the next loop leaves out, since they are trained

    def __len__(self): return self.n_batch

    def start(self,
        n_pass:int # Its number
    ):
        "Start a pass over the data loader."
        set_epoch(self.dl, n_pass)
        self._pass, self.n_pass, self.n_taken = iter(self.dl), n_pass, 0

    def __iter__(self):
        first, self.n_done = self.n_done, 0
        for i in range(first, self.n_batch): yield self.take(i)

    def take(self,
        n_done:int # Number of batches that this loop took before
    ): # A batch
        "Return the next batch, if need be of a new pass."
        batch = next(self._pass, _END)
        if batch is _END: batch = self._start_over(n_done)
        self.n_taken += 1
        return batch

    def _start_over(self, n_done):
        "Start a pass over `dl` and return its first batch; `n_done` batches of this loop were yielded before."
        self.on_pass()
        self.start(self.n_pass + 1)
        batch = next(self._pass, _END)
        if batch is not _END: return batch
        raise RuntimeError(f'dls.train has no more batches, even if it is started over: {n_done} came in this epoch, '
                           f'{self.n_batch} were due')

    def place(self) -> dict: # Plain values
        "Return the place in the training data: the number of the pass, and how many batches it gave."
        return dict(n_pass=self.n_pass, n_taken=self.n_taken)

    def go_to(self,
        place:dict, # What `place` returned
        run_forward:bool=True # Whether to run the pass forward; not if `dl` itself begins it there
    ):
        "Start a pass and bring it to `place`; raises `RuntimeError` if it ends before that."
        n_taken = place['n_taken']
        self.start(place['n_pass'])
        self.n_taken = n_taken
        for i in range(n_taken if run_forward else 0):
            if next(self._pass, _END) is _END:
                raise RuntimeError(
                    f'dls.train must yield the {n_taken} batches of before the crash again, got {i}: if it '
                    'cannot be repeated, CycleCheckpoint(…, replay=False) takes its batches as they come')

class Unmeasured(GetAttr):
    "A data loader without a length, which counts its batches; until it has, it calls `on_start` in front of them."
    _default = 'dl'
    def __init__(self,
        dl, # A data loader, or anything that can be iterated over
        on_start # Takes no arguments
    ):
        self.dl, self.on_start, self.n_batch = dl, on_start, 0

    def __len__(self): return max(self.n_batch, 1)     # fastai divides by it

    def __iter__(self):
        if self.n_batch == 0: self.on_start()
        n = 0
        for n, batch in enumerate(self.dl, 1): yield batch
        self.n_batch = n

class TimedStream(Stream):
    "A stream whose loops end by the time."
    def __init__(self,
        dl, # A data loader, or anything that can be iterated over
        n_batch:int, # Batches per epoch, except for the last one
        on_pass, # Is called, without arguments, where a pass over `dl` starts
        cycle # The `TimedCycle`
    ):
        super().__init__(dl, n_batch, on_pass)
        self.cycle = cycle

    def __iter__(self):
        first, self.n_done = self.n_done, 0
        learn, position = self.cycle.learn, self.cycle.position
        for i in count(first):
            if position.is_over or i >= self.n_batch and not self._goes_on(learn, position): break
            batch = self.take(i)
            if position.advance(i == 0): show_budget(learn, position)
            learn.pct_train = position.fraction     # for other schedulers, which come before the cycle
            yield batch
        position.end_epoch()

    def _goes_on(self, learn, position):
        "Return whether this is the last epoch, which goes on until the time is up."
        if position.ends_epoch(): return False
        show_no_total(learn)
        return True

class StreamCallback(OneFitCallback):
    "Make an epoch of `n_batch` training batches; run a validation loader without a length to its end."
    order = 10     # just before `DistributedTrainer`
    def __init__(self,
        n_batch:int|None=None, # Batches per epoch; default the length of `dls.train`
        stream:Callable[..., Stream]=Stream # Returns what to train on, as `Stream` does
    ):
        self.n_batch, self.stream, self.on_pass = n_batch, stream, noop
        self.place:dict|None = None     # where to go on in the next epoch, if a fit resumes
        self._train:Any = None     # the `Stream`, once there is one, …
        self._valid:Any = None     # … and the `Unmeasured`

    def __call__(self, event_name):
        "Handle the events that have a method here, and return at once for the others."
        if hasattr(type(self), event_name): return super().__call__(event_name)

    def before_fit(self):
        "Keep `DistributedTrainer` from wrapping streams."
        trainer = getattr(self.learn, 'distributed_trainer', None)
        if trainer is not None: wrap_only(trainer, lambda dl: has_length(dl) and not isinstance(dl, Stream))

    def before_train(self):
        "Let this epoch go on where the one before stopped; a fit starts a new pass."
        learn = self.learn
        if self.n_batch is None: return
        if self._train is None or self._train.dl is not learn.dl or learn.train_iter == 0:
            self._train = self.stream(learn.dl, self.n_batch, self.on_pass)
        learn.dl = self._train

    def before_validate(self):
        "Give a loader without a length one."
        learn = self.learn
        if has_length(learn.dl): return
        if self._valid is None or self._valid.dl is not learn.dl:
            self._valid = Unmeasured(learn.dl, lambda: show_no_total(learn))
        learn.dl = self._valid

    def state_dict(self) -> dict:
        "Return the place in the training data."
        return {} if self._train is None else self._train.place()

    def load_state_dict(self,
        state:dict # From `state_dict`
    ):
        "Note the place to go to."
        self.place = state or None
