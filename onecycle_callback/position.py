"""How far a cycle is for the coming batch: by batches, by the optimizer's steps, or by the time that is left"""

# A cycle is a curve over a position, from 0 at the first batch to the plan's `end` at the last. A plan knows which
# batch it expects where; a position tells where the batch that comes really is.

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property, partial
from itertools import repeat
from math import exp, inf
from time import perf_counter

import numpy as np
import pandas as pd

from .fastai_internals import warn_user
from .plot import MOST_POINTS
from .processes import from_rank_0, world_size
from .schedule import OneCyclePlan

BLOCK_SIZE = 65536   # LRs computed at a time: 2 MB of Python floats

def rows_at(
    plan:OneCyclePlan, # The plan
    positions:np.ndarray # Positions on its curve, shape (n,)
) -> list[tuple]: # The LRs and the momentum, or `None`, of each
    "Return what batches at `positions` train with."
    lrs, moms = plan.follow(positions)
    return list(zip(lrs.tolist(), repeat(None) if moms is None else moms.tolist()))

def positions_of(
    plan:OneCyclePlan, # The plan
    numbers:np.ndarray, # Batches of a cycle whose epochs are all as long as theirs, shape (n,)
    n_batch # The lengths of these epochs, a number or shape (n,)
) -> np.ndarray: # Positions on the curve of `plan`, shape (n,)
    "Return where batches of epochs of any length are: exactly as planned if it is the planned one."
    last = plan.n_epoch * n_batch - 1
    return np.where(n_batch == plan.n_batch, numbers, numbers * plan.end / np.maximum(last, 1))

# fastai's GradientAccumulation counts samples: once there are `n_acc` of them, the optimizer steps, and the count
# starts at 0 again. It continues from epoch to epoch, so a step may take batches of two.

@dataclass(frozen=True)
class Accumulation:
    "How batches become steps."
    n_acc:int # Number of samples that make a step
    n_batch:int # Batches per epoch
    bs:int # Samples per batch
    last:int # Samples in the last batch of an epoch

class BatchPosition:
    """Count batches: each epoch takes an equal part of the cycle, however many batches it has.

    An epoch is passed as if all were as long as this one, so an epoch of the planned length is exactly where
    the plan has it. The last batch of the last epoch is at the end; epochs skipped or cut short leave a gap."""
    def __init__(self,
        plan:OneCyclePlan # The plan to follow
    ):
        self.plan = plan
        self.lengths:dict[int, int] = {}     # the epochs whose length isn't the planned one
        self.columns:dict[str, list] = {}    # what the record says of each batch beside its number
        self._n_batch = plan.n_batch
        self._rows:list[tuple] = []
        self._first = self._before = 0       # number of the first of these rows, and of the first batch of this epoch

    def enter_epoch(self,
        epoch:int, # Its number
        n_batch:int, # Its length
        accumulation:Accumulation|None=None # How its batches become steps; `None` if each is one
    ):
        "Move to the first batch of an epoch."
        plan = self.plan
        if n_batch != plan.n_batch:
            if not self.lengths:
                warn_user(f'Epoch {epoch} has {n_batch} batches where {plan.n_batch} were planned: it takes the same '
                          'part of the cycle, in steps of another size')
            self.lengths[epoch] = n_batch
        if n_batch != self._n_batch: self._n_batch, self._rows = n_batch, []
        self._before = epoch * n_batch

    def _compute(self, first):
        "Compute a block of rows starting at batch `first` of a cycle whose epochs are all as long as this one."
        stop = min(first + BLOCK_SIZE // self.plan.n_groups + 1, self.plan.n_epoch * self._n_batch)
        numbers = np.arange(first, max(first + 1, stop))
        self._first, self._rows = first, rows_at(self.plan, positions_of(self.plan, numbers, self._n_batch))

    def row(self,
        i:int # The number of the batch in its epoch
    ) -> tuple: # Its LRs and its momentum
        "Return what batch `i` of this epoch trains with."
        k = self._before + i - self._first
        if not 0 <= k < len(self._rows):
            self._compute(self._before + i)
            k = 0
        return self._rows[k]

    def drop_rows(self):
        "Drop the rows to come."
        self._rows = []

    def note(self):
        "Note the position of the batch that is recorded, in `columns`."

    def state_dict(self) -> dict: # Plain values
        "Return what leads back to this position."
        return dict(lengths=self.lengths, columns=self.columns)

    def load_state_dict(self,
        state:dict # From `state_dict`
    ):
        "Go to the position of `state`, in the epoch that was entered."
        self.lengths.update(state['lengths'])
        for name, values in state['columns'].items(): self.columns[name][:] = values

class Steps:
    "The steps of `n_epoch` epochs."
    def __init__(self,
        accumulation:Accumulation, # How batches become steps
        n_epoch:int, # Number of epochs
        left_out:int=0 # Batches of the first epoch that are left out
    ):
        n_acc, self.n_batch, bs, last = (getattr(accumulation, f.name) for f in fields(accumulation))
        full, self._per_step = self.n_batch - 1, max(-(-n_acc // bs), 1)
        steps, firsts, counted = [0], [], -left_out * bs
        for _ in range(n_epoch):
            first = max(-((counted - n_acc) // bs), 1)     # the first step comes after so many batches of this epoch
            n = max((full - first) // self._per_step + 1, 0)
            counted = last + (counted + full * bs if n == 0 else (full - first) % self._per_step * bs)
            if counted >= n_acc: n, counted = n + 1, 0
            steps.append(steps[-1] + n)
            firsts.append(first)
        self.total = steps[-1]
        self._steps, self._firsts = np.array(steps), np.array(firsts)

    def before(self,
        batches # Batch numbers, an array or a number
    ): # As many whole numbers
        "Return how many steps come before each of `batches`."
        epoch = np.minimum(np.asarray(batches, int) // self.n_batch, len(self._firsts) - 1)
        i = batches - epoch * self.n_batch
        return self._steps[epoch] + np.maximum((i - self._firsts[epoch]) // self._per_step + 1, 0).astype(int)

    def first_batch(self,
        step:int # Its number
    ) -> int: # A batch number
        "Return the first batch that is accumulated for `step`."
        if step == 0: return 0
        epoch = int(np.searchsorted(self._steps, step)) - 1     # in which the step before is taken
        taken = self._firsts[epoch] + (step - self._steps[epoch] - 1) * self._per_step
        return epoch * self.n_batch + int(min(taken, self.n_batch))

@dataclass(frozen=True)
class SteppedPlan(OneCyclePlan):
    """A `schedule` whose values change from step to step of the optimizer, for which several batches are accumulated.

    The first step trains with the values of the start, one with those of the peak, the last with those of the end. Each
    batch has the values of the step that it is accumulated for; batches that are left over have those of the end."""
    accumulation:Accumulation=Accumulation(1, 1, 1, 1) # How batches become steps

    @cached_property
    def steps(self) -> Steps:
        "The steps of the cycle."
        return Steps(self.accumulation, self.n_epoch)

    @property
    def n_steps(self): return max(self.steps.total, 1)

    def batch_of(self, position): return self.steps.first_batch(int(position))

    def positions(self, batches): return self.steps.before(batches)

    def columns(self, batches): return super().columns(batches) | dict(step=self.positions(batches))

    @property
    def table(self) -> pd.DataFrame:
        "One row per epoch: the steps and values at its first and last batch, for the last parameter group."
        firsts = np.arange(0, len(self), self.n_batch)
        steps = dict(step_first=self.positions(firsts), step_last=self.positions(firsts + self.n_batch - 1))
        return pd.DataFrame(steps).rename_axis('epoch').join(super().table)

class StepPosition(BatchPosition):
    """Count steps: the batches between two steps have the position of the step that they are accumulated for.

    Which step it is, of how many, follows from the samples in the batches of this epoch, as if all epochs were like it.
    Where the steps come otherwise, for example after an epoch that was cut short, those that are left are counted from
    here, so the last one is at the end."""
    def __init__(self,
        plan:SteppedPlan, # The plan to follow
        accumulating # The fastai `GradientAccumulation`, which counts samples
    ):
        super().__init__(plan)
        self.accumulating, self.columns = accumulating, dict(step=[], position=[])
        self._accumulation, self._steps = plan.accumulation, plan.steps
        self.step, self.position = 0, 0.
        self._row:tuple|None = None

    def enter_epoch(self, epoch, n_batch, accumulation=None):
        "Move to the first batch of an epoch."
        super().enter_epoch(epoch, n_batch)
        if accumulation != self._accumulation:
            self._accumulation, self._steps = accumulation, Steps(accumulation, self.plan.n_epoch)

    def _locate(self, batch):
        "Find the step that is accumulated for from `batch` on."
        steps, plan = self._steps, self.plan
        self.step = int(steps.before(batch))
        if batch == 0 or steps.before(batch - 1) < self.step: n_left = steps.total - self.step
        else:
            epoch, i = divmod(batch, steps.n_batch)
            n_left = Steps(self._accumulation, plan.n_epoch - epoch, i).total
        last = max(self.step + n_left, self.step + 1) - 1
        self.position = self.step if last == plan.end else self.step * plan.end / max(last, 1)

    def row(self, i):
        "Return what batch `i` of this epoch trains with: the same as the one before it, unless a step came in between."
        if self._row is None or self.accumulating.count == 0:
            self._locate(self._before + i)
            self._row = rows_at(self.plan, np.array([self.position]))[0]
        return self._row

    def note(self):
        "Note the step and the position of the batch that is recorded."
        self.columns['step'].append(self.step)
        self.columns['position'].append(self.position)

    def state_dict(self) -> dict:
        "Return what leads back to this position, in the middle of a step too."
        return super().state_dict() | dict(step=self.step, position=self.position)

    def load_state_dict(self, state):
        "Go to the position of `state`."
        super().load_state_dict(state)
        self.step, self.position = state['step'], state['position']
        self._row = rows_at(self.plan, np.array([self.position]))[0]

N_ROWS = 1001   # of a table over time

@dataclass(frozen=True)
class TimedPlan(OneCyclePlan):
    """A `schedule` over a budget of time: `lrs`, `moms` and `to_frame` have `N_ROWS` rows, evenly spaced in time.

    A notebook shows its `table` and its picture, over minutes."""
    minutes:float=1. # The budget

    unit = 'minute'

    def __len__(self): return N_ROWS

    @property
    def length(self): return dict(minutes=self.minutes)

    @property
    def n_steps(self): return self.minutes     # of one minute

    @property
    def end(self): return self.minutes

    @property
    def top(self): return self.schedule.pct_start * self.minutes

    def batch_of(self, position): return position     # the unit is the minute

    def positions(self, batches): return batches / (N_ROWS - 1) * self.minutes

    def sample(self, most, keep=()): return np.union1d(np.linspace(0, self.minutes, most), keep)

    def at(self,
        minutes:Iterable # Minutes since the beginning, shape (n,)
    ) -> tuple[np.ndarray, np.ndarray|None]: # LRs, shape (n, `n_groups`), and momentums, shape (n,), or `None`
        "Return the LR and momentum at `minutes`; after the end, its values stay."
        return self.follow(minutes)

    def columns(self, batches): return dict(minute=self.positions(batches))

    @property
    def table(self) -> pd.DataFrame:
        "Eleven rows: the values after each tenth of the time."
        return self.to_frame()[::N_ROWS // 10].set_index('minute')

    def picture(self):
        "Return the arguments with which `plot_hypers` draws this plan."
        minutes = self.sample(MOST_POINTS, self.knots)
        return dict(hypers=dict(zip(self._hyper_names, self.at(minutes))), batches=minutes, peak=self.peak,
                    unit=self.unit)

class Pace:
    "How long a batch takes: the mean over those of the last `memory` seconds, which a single stall barely moves."
    def __init__(self,
        memory:float # Seconds
    ):
        self.memory, self.n, self.seconds = memory, 0., 0.

    def add(self,
        n:int, # Number of batches
        seconds:float # What they took together
    ):
        "Take `n` batches into the mean, which becomes longer by a fifth at most."
        if self.seconds: seconds = min(seconds, 1.2 * self.mean * (self.n + n) - self.seconds)
        kept = exp(-seconds / self.memory)
        self.n, self.seconds = kept * self.n + n, kept * self.seconds + seconds

    @property
    def mean(self) -> float:
        "Seconds per batch; 0 if no batch was measured yet."
        return self.seconds / self.n if self.n else 0.

SYNC_SECONDS, SYNC_BATCHES, MOST_AHEAD = 0.5, 16, 512

class TimePosition:
    """Move by the fraction of the work that is left: a batch is one of as many as fit into the rest of the budget.

    The rest is what isn't used up, without the validations to come. So a slow start, a stall or another pace changes
    the size of the steps, and never the position itself, and the last batch is at the end. Rank 0 says how much is
    left. Until it is asked again, all processes move in equal steps."""
    _STATE = ('n', 'n_in_epoch', 'n_batch', 'used', 'seconds', 'is_last', 'is_set', 'ended', 'gaps', 'fractions', 'k',
              'n_at_end')

    def __init__(self,
        plan:TimedPlan, # The plan to follow
        n_valid:int # Number of validation batches, 0 if it is unknown
    ):
        self.plan, self.n_valid, self.budget = plan, n_valid, 60 * plan.minutes
        self.lengths:dict = {}
        self.columns:dict[str, list] = dict(minute=[], position=[])
        self.pace = Pace(self.budget / 10)
        self.gaps:list[float] = []            # seconds between epochs
        self.n = self.n_in_epoch = 0          # batches that have begun
        self.n_batch:float = plan.n_batch     # expected in an epoch
        self.used = self.seconds = 0.         # when rank 0 was asked: the time that was used up, and seconds per batch
        self.fractions, self.k = [0.], -1     # positions of the batches from there on, of which the `k`th has begun
        self.is_last, self.is_set, self.n_at_end = False, False, 0     # `is_set`: whether a batch trains at the end
        self.ended:float|None = None     # when the loop over the last epoch ended by itself
        self._began, self._is_alone, self._deadline = perf_counter(), world_size() == 1, 0.
        self._compute()

    @property
    def now(self) -> float:
        "The seconds that are used up, by the clock of this process."
        return perf_counter() - self._began

    @property
    def fraction(self) -> float:
        "How far the cycle is: 0 at the first batch, 1 at the last one."
        return self.fractions[self.k]

    @property
    def is_over(self) -> bool:
        "Whether a batch trains with the values of the end, or an epoch's worth of them were cancelled before."
        return self.is_set or self.n_at_end > self.plan.n_batch

    def is_up(self) -> bool:
        "Return whether the time is up."
        return from_rank_0(lambda: self.now >= self.budget)

    def advance(self,
        starts_epoch:bool # Whether the coming batch is the first of an epoch
    ) -> bool: # Whether rank 0 was asked
        "Move to the coming batch."
        self.k += 1
        asks = starts_epoch or self.k == len(self.fractions) or self._is_alone and self.now > self._deadline
        if asks: self._ask(starts_epoch)
        self.n, self.n_in_epoch = self.n + 1, self.n_in_epoch + 1
        self.n_at_end += self.fraction == 1
        return asks

    def _ask(self, starts_epoch):
        "Compute the positions of the coming batches from what is left now."
        before = self.fractions[self.k - 1]
        self.used, self.seconds, left, n_ahead, self.is_last = from_rank_0(partial(self._estimate, starts_epoch))
        if starts_epoch: self.n_in_epoch, self.ended = 0, None
        if left < 1.5 and self.n: self.fractions = [1.]
        else: self.fractions = (before + (1 - before) * np.arange(1, n_ahead + 1) / left).tolist()
        self.k, self._deadline = 0, self.used + SYNC_SECONDS
        self._compute()

    def _compute(self): self._rows = rows_at(self.plan, np.array(self.fractions) * self.plan.minutes)

    def _estimate(self, starts_epoch):
        "Return time used, seconds per batch, number of batches left, how many to compute, if this epoch is the last."
        now = max(self.now, self.used + (self.k - 1) * self.seconds)
        if self.n: self._measure(now, starts_epoch)
        pace = self.pace.mean or now - self.used     # of the first batch, which is no measure of the others
        if not self.n or not pace: return now, pace, inf, 1, False
        n_in_epoch = 0 if starts_epoch else self.n_in_epoch
        is_last = self._is_last(now, pace, 0) if starts_epoch else self.is_last
        left = self._left(now, pace, n_in_epoch, is_last)
        if self.n == 1 and left > 1.5: left = inf
        n_ahead = min(SYNC_SECONDS / pace, left / 4, MOST_AHEAD if self._is_alone else SYNC_BATCHES)
        return now, pace, left, max(int(n_ahead), 1), is_last

    def _measure(self, now, starts_epoch):
        "Take the batches since rank 0 was asked into the pace, and a gap between two epochs out of it."
        ended = now
        if starts_epoch:
            ended = self.ended
            if ended is None: ended, self.n_batch = self._cancelled(now), (self.n_batch + self.n_in_epoch) / 2
            else: self.n_batch = self.plan.n_batch
            self.gaps = [*self.gaps[-2:], now - ended]
        if self.n > 1: self.pace.add(self.k, ended - self.used)

    def _cancelled(self, now):
        "Return when the last batch of an epoch that was cancelled may have ended."
        return min(now, self.used + self.k * self.pace.mean) if self.pace.n else now

    def _gap(self, pace, is_last):
        "Return how long a validation will take: the median of three, as one may be a stall; with care at the end."
        known, guess = sorted(self.gaps), pace * self.n_valid
        if len(known) == 1 and not is_last: return min(known[0], max(2 * guess, self.budget / 20))
        return known[(len(known) - 1) // 2] if known else guess

    def _n_more(self, now, pace, n_in_epoch, gap):
        "Return how many epochs follow this one; the last one has at least half of the usual batches."
        epoch = pace * self.n_batch
        rest = max(epoch - pace * n_in_epoch, 0)
        return max((self.budget - now - gap - rest + epoch / 2) // (gap + epoch), 0)

    def _is_last(self, now, pace, n_in_epoch):
        "Return whether no epoch follows this one."
        return self._n_more(now, pace, n_in_epoch, self._gap(pace, True)) == 0

    def _left(self, now, pace, n_in_epoch, is_last):
        "Return how many batches fit into the time that validations leave."
        gap = self._gap(pace, is_last)
        n_more = 0 if is_last else self._n_more(now, pace, n_in_epoch, gap)
        return (self.budget - now - (n_more + 1) * gap) / pace

    def ends_epoch(self) -> bool:
        "Return whether another epoch fits in; if not, this one goes on until the time is up."
        def is_last():
            return self._is_last(self.now, self.pace.mean or (self.now - self.used) / (self.k + 1), self.n_in_epoch)
        if not self.is_last: self.is_last = from_rank_0(is_last)
        return not self.is_last

    def end_epoch(self):
        "Note that the loop over an epoch has ended."
        self.ended = self.now

    def enter_epoch(self, epoch, n_batch, accumulation=None): "Leave it to `advance`."

    def row(self,
        i:int # The number of the batch in its epoch
    ) -> tuple: # Its LRs and its momentum
        "Return what the coming batch trains with."
        self.is_set = self.fraction == 1
        return self._rows[self.k]

    def drop_rows(self): self._rows = []

    def note(self):
        "Note the time and the position of the batch that is recorded."
        self.columns['minute'].append((self.used + self.k * self.seconds) / 60)
        self.columns['position'].append(self.fraction * self.plan.minutes)

    def state_dict(self) -> dict: # Plain values
        "Return what leads back to this position, with the time that is left."
        state = {name: getattr(self, name) for name in self._STATE}
        return state | dict(columns=self.columns, now=self.now, pace=(self.pace.n, self.pace.seconds))

    def load_state_dict(self,
        state:dict # From `state_dict`
    ):
        "Go to the position of `state`."
        for name in self._STATE: setattr(self, name, state[name])
        for name, values in state['columns'].items(): self.columns[name][:] = values
        self.pace.n, self.pace.seconds = state['pace']
        self._began, self._deadline = perf_counter() - state['now'], inf
        self._compute()
