"""A cycle by the clock: the place in it is the time that is used up"""

import sys
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import numpy as np
import pandas as pd

from .callback import OneCycle
from .fastai_internals import show_epoch, show_no_total, warn_user
from .plot import batch_frame, batches_to_draw, plot_hypers
from .processes import from_rank_0, world_size
from .schedule import OneCyclePlan
from .stream import Stream, StreamCallback, has_length

N_TICKS = 2**16

@dataclass(frozen=True)
class TimedPlan(OneCyclePlan):
    """A `schedule` over a budget of time: the values at each tick of the clock, from 0 to `N_TICKS`.

    A notebook shows its `table` and its picture, over minutes."""
    minutes:float=1. # The budget

    def __len__(self): return N_TICKS + 1

    @property
    def length(self) -> dict:
        "The length of the cycle, as arguments of `fit_one_cycle`."
        return dict(minutes=self.minutes)

    def ticks(self,
        minutes # Time since the beginning, a number or an array
    ): # Whole numbers
        "Return the ticks nearest to `minutes`."
        return np.rint(np.asarray(minutes) / self.minutes * N_TICKS).astype(int)

    def to_frame(self,
        n_rows:int=1001 # Number of rows, evenly spaced in time
    ) -> pd.DataFrame: # Columns `minute`, `lr` (or `lr_0`, `lr_1`, …), `mom`
        "Return the values over time as a table."
        minutes = np.linspace(0, self.minutes, n_rows)
        lrs, moms = self.at(self.ticks(minutes))
        return batch_frame(dict(minute=minutes), lr=lrs, mom=moms)

    @property
    def table(self) -> pd.DataFrame:
        "Eleven rows: the values after each tenth of the time."
        return self.to_frame(11).set_index('minute')

    def plot(self,
        ax=None, # Axes to draw on, one per picture; default new ones
        figsize:tuple[float, float]|None=None # Width and height in inches
    ): # The axes
        "Draw LR and momentum over the minutes, with the peak marked, one line per parameter group that differs."
        ticks = batches_to_draw(len(self), keep=self._knots)
        hypers, minute = dict(zip(self._hyper_names, self.at(ticks))), self.minutes / N_TICKS
        return plot_hypers(hypers, ticks * minute, peak=self.peak * minute, ax=ax, figsize=figsize, unit='minute')

SYNC_SECONDS, SYNC_BATCHES = 0.5, 16

class Clock:
    "The place of a fit in its budget of time, the same on every rank."
    def __init__(self,
        minutes:float, # The budget
        time=perf_counter # Returns the time in seconds
    ):
        self.budget, self.time = 60 * minutes, time
        self.start()

    def start(self,
        used:float=0., # Seconds that are used up
        tick:int=0, # The tick of the last batch
        n:int=0, # Number of batches so far
        pace:float=0. # Seconds per batch
    ):
        "Start at the beginning, or where the fit that `state` is of was saved."
        self._began, self.used, self.tick, self.n, self.pace = self.time() - used, used, tick, n, pace
        self._agreed, self._n_agreed, self._n_ahead, self._is_alone = used, n, 0, world_size() == 1

    def state(self) -> dict:
        "Return what `start` takes to resume here."
        return dict(used=self.now, tick=self.tick, n=self.n, pace=self.pace)

    @property
    def now(self) -> float:
        "The seconds that are used up, by the clock of this process."
        return self.time() - self._began

    @property
    def is_up(self) -> bool:
        "Whether the last batch has begun."
        return self.tick == N_TICKS

    def count(self):
        "Note that a batch begins."
        if self._n_ahead and self.used + 2 * self.pace < self.budget:
            self.used, self._n_ahead = self.used + self.pace, self._n_ahead - 1
        else: self._agree()
        self.n += 1
        self.tick = N_TICKS if self.used + self.pace >= self.budget else int(self.used / self.budget * N_TICKS)

    def _agree(self):
        self.used, self.pace, self._n_ahead = self._read() if self._is_alone else from_rank_0(self._read)
        self._agreed, self._n_agreed = self.used, self.n

    def _read(self):
        "Return the time, the seconds per batch, and how many batches may be counted before the clock is read again."
        now, n_since, pace = max(self.now, self.used), self.n - self._n_agreed, self.pace
        if n_since: pace = min((now - self._agreed) / n_since, now / self.n)
        return now, pace, 0 if self._is_alone or pace == 0 else min(int(SYNC_SECONDS / pace), SYNC_BATCHES)

class TimedStream(Stream):
    "A stream whose loops end by the clock of `cycle`."
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
        learn, clock = self.cycle.learn, self.cycle.clock
        for i in count(first):
            if clock.is_up or i == self.n_batch and self.cycle.ends_epoch(): return
            batch = self.take(i)
            clock.count()
            learn.pct_train = clock.tick / N_TICKS     # for other schedulers, which come before the cycle
            yield batch

class TimedStreamCallback(StreamCallback):
    "Make epochs that end by the clock of `cycle`."
    def __init__(self,
        n_batch:int, # Batches per epoch, except for the last one
        cycle # The `TimedCycle`
    ):
        super().__init__(n_batch)
        self.cycle = cycle

    def stream_of(self,
        dl, # The training loader
        n_batch:int # Batches per epoch, except for the last one
    ) -> TimedStream:
        "Return the stream to train on."
        return TimedStream(dl, n_batch, self.on_pass, self.cycle)

class TimedCycle(OneCycle):
    "Train with the values of a 1cycle schedule over a budget of time."
    def __init__(self,
        minutes:float, # The budget
        **arguments # Those of `OneCycle`
    ):
        super().__init__(**arguments)
        self.minutes, self.clock = minutes, Clock(minutes)
        self._validation:float|None = None     # seconds that the last validation took
        self._epochs = range(sys.maxsize)

    def make_plan(self,
        learn, # The `Learner`, left unchanged
        n_epoch:int|None=None, # Has no effect
        opt:tuple|None=None # What `prospective_opt` returns; default for a fit that keeps the optimizer
    ) -> TimedPlan: # The values at each tick of the clock
        "Return the plan for a fit of `learn`."
        plan = super().make_plan(learn, 1, opt)
        return TimedPlan(plan.schedule, 1, plan.n_batch, plan.n_groups, self.minutes)

    def first_batch(self) -> int:
        "Return the tick of the clock."
        return self.clock.tick

    def run_epochs(self,
        epochs:range # The epochs left, without an end
    ):
        "Have the fit begin with the first of `epochs`."
        self._epochs = epochs

    @property
    def epochs(self):
        "Epochs until the last batch is trained, or the time is up and none is."
        clock, n_before = self.clock, None
        for epoch in self._epochs:
            is_idle = clock.n == n_before     # a callback cancels each epoch before its first batch
            if clock.is_up or is_idle and from_rank_0(lambda: clock.now) >= clock.budget: return
            n_before = clock.n
            show_epoch(self.learn, epoch)
            yield epoch

    def ends_epoch(self) -> bool:
        "Return whether a validation and a batch fit into the time that is left; if not, this is the last epoch."
        has_time = from_rank_0(self._has_time)
        if not has_time: show_no_total(self.learn)
        return has_time

    def _has_time(self):
        clock, seconds, valid = self.clock, self._validation, self.learn.dls.valid
        if seconds is None: seconds = clock.pace * len(valid) if has_length(valid) else 0.
        return clock.now + seconds + clock.pace < clock.budget

    def _add_stream(self):
        self._stream = TimedStreamCallback(self.make_plan(self.learn).n_batch, self)
        self.learn.add_cb(self._stream)

    def before_fit(self):
        super().before_fit()
        self.clock.start()

    def start(self):
        "Start the cycle, and a record of its places too."
        super().start()
        self._cycle.hps['minutes'] = []
        self._share_record()

    def before_batch(self): self._cycle.set_batch(self.clock.tick)

    def after_batch(self):
        cycle = self._cycle
        cycle.record()
        cycle.hps['minutes'].append(self.clock.tick / N_TICKS * self.minutes)

    def before_validate(self): self._validation_began = self.clock.now

    def after_validate(self): self._validation = self.clock.now - self._validation_began

    def after_cancel_fit(self):
        if self._cycle is None or self.clock.is_up: return
        warn_user(f'The cycle was stopped early after {self.clock.used / 60:.3g} of {self.minutes:.3g} minutes, '
                  f'at a learning rate of {self._cycle.row[0][-1]:.3g}')

    def state_dict(self) -> dict:
        "Return what a checkpoint of the running cycle must keep: the clock too."
        state = super().state_dict()
        return state and state | dict(clock=self.clock.state(), validation=self._validation)

    def load_state_dict(self,
        state:dict # From `state_dict`; empty from a cycle that hadn't started
    ):
        "Continue the record and the clock in `state`."
        super().load_state_dict(state)
        if not state: return
        self.clock.start(**state['clock'])
        self._validation = state['validation']
