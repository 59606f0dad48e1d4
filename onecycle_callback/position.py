"""How far a cycle is for the coming batch: by batches, by the optimizer's steps, or by the time that is left"""

# A cycle is a curve over a position, from 0 at the first batch to its `end` at the last. A plan knows which batch it
# expects where; a position tells where the batch that comes really is.

from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property, partial
from itertools import repeat
from math import exp, inf
from time import perf_counter

import numpy as np
import pandas as pd

from .fastai_internals import warn_user
from .processes import from_rank_0, world_size
from .schedule import Curve, OneCyclePlan

BLOCK_SIZE = 65536   # LRs computed at a time: 2 MB of Python floats

# fastai's GradientAccumulation counts samples: once there are `n_acc` of them, the optimizer steps, and the count
# starts at 0 again. It continues from pass to pass over the data, so a step may take batches of two.

@dataclass(frozen=True)
class Accumulation:
    "How batches become steps."
    n_acc:int # Number of samples that make a step
    n_batch:int # Batches in a pass over the data, which is an epoch unless the data are a stream
    bs:int # Samples per batch
    last:int # Samples in the last batch of a pass

    @property
    def per_step(self) -> int:
        "Batches of the usual size that make a step."
        return max(-(-self.n_acc // self.bs), 1)

class Steps:
    "The steps of the first `n` batches."
    def __init__(self,
        accumulation:Accumulation, # How batches become steps
        n:int, # Number of batches
        left_out:int=0 # The first of them, which are left out
    ):
        n_acc, self.n_batch, bs, last = astuple(accumulation)
        full, self._per_step = self.n_batch - 1, accumulation.per_step
        # A million batches are too many to count one by one. Within a pass, steps come at equal distances; only the
        # samples that are `counted` towards the next one where it begins, and its last batch, make them differ
        steps, firsts, counted = [0], [], -left_out * bs
        for _ in range(0, n, self.n_batch):
            first = max(-((counted - n_acc) // bs), 1)     # the first step comes after so many batches of this pass
            n_steps = max((full - first) // self._per_step + 1, 0)
            counted = last + (counted + full * bs if n_steps == 0 else (full - first) % self._per_step * bs)
            if counted >= n_acc: n_steps, counted = n_steps + 1, 0
            steps.append(steps[-1] + n_steps)
            firsts.append(first)
        self._steps, self._firsts = np.array(steps), np.array(firsts)
        self.total = int(self.before(n)) if n % self.n_batch else steps[-1]     # the last pass may end before its end

    def before(self,
        batches # Batch numbers, an array or a number
    ): # As many whole numbers
        "Return how many steps come before each of `batches`."
        passes = np.minimum(np.asarray(batches, int) // self.n_batch, len(self._firsts) - 1)
        i = batches - passes * self.n_batch
        return self._steps[passes] + np.maximum((i - self._firsts[passes]) // self._per_step + 1, 0).astype(int)

    def first_batch(self,
        step:int # Its number
    ) -> int: # A batch number
        "Return the first batch that is accumulated for `step`."
        if step == 0: return 0
        i = int(np.searchsorted(self._steps, step)) - 1     # the pass in which the step before is taken
        taken = self._firsts[i] + (step - self._steps[i] - 1) * self._per_step
        return i * self.n_batch + int(min(taken, self.n_batch))

# Plans whose batches aren't at 0, 1, 2, … on the curve

@dataclass(frozen=True)
class SteppedPlan(OneCyclePlan):
    """A `schedule` whose values change from step to step of the optimizer, for which several batches are accumulated.

    The first step trains with the values of the start, one with those of the peak, the last with those of the end. Each
    batch has the values of the step that it is accumulated for; batches that are left over have those of the end."""
    accumulation:Accumulation=Accumulation(1, 1, 1, 1) # How batches become steps

    accumulates = True

    @property
    def _cbs(self): return f', cbs=GradientAccumulation({self.accumulation.n_acc})'

    @cached_property
    def steps(self) -> Steps:
        "The steps of the cycle."
        return Steps(self.accumulation, len(self))

    @property
    def span(self): return max(self.steps.total, 1)

    def positions(self, batches, n_batch=None): return self.steps.before(batches)

    def _batch_of(self, position): return self.steps.first_batch(int(position))

    def _where(self, batches): return super()._where(batches) | dict(step=self.positions(batches))

    @property
    def table(self) -> pd.DataFrame:
        "One row per epoch: the steps and values at its first and last batch, for the last parameter group."
        firsts = np.arange(0, len(self), self.n_batch)
        steps = dict(step_first=self.positions(firsts), step_last=self.positions(firsts + self.n_batch - 1))
        return pd.DataFrame(steps).rename_axis('epoch').join(super().table)

N_ROWS = 1001   # of a table over time

@dataclass(frozen=True)
class TimedPlan(OneCyclePlan):
    """A `schedule` over a budget of time: `lrs`, `moms` and `to_frame` have `N_ROWS` rows, evenly spaced in time.

    A notebook shows its `table` and its picture, over minutes."""
    minutes:float=1. # The budget
    accumulates:bool=field(default=False, repr=False) # Whether the gradients of several batches may be added up

    unit = 'minute'

    def __len__(self): return N_ROWS

    @property
    def length(self): return dict(minutes=self.minutes)

    @property
    def span(self): return self.minutes

    @cached_property
    def curve(self): return Curve(self.schedule, self.n_groups, self.schedule.pct_start * self.minutes, self.minutes)

    def positions(self, rows, n_batch=None): return rows / (N_ROWS - 1) * self.minutes

    def _batch_of(self, position): return position     # the peak is at a minute

    def at(self,
        minutes:Iterable # Minutes since the beginning, shape (n,)
    ) -> tuple[np.ndarray, np.ndarray|None]: # LRs, shape (n, `n_groups`), and momentums, shape (n,), or `None`
        "Return the LR and momentum at `minutes`; after the end, its values stay."
        return self.curve.at(minutes)

    def _where(self, rows): return dict(minute=self.positions(rows))

    @property
    def table(self) -> pd.DataFrame:
        "Eleven rows: the values after each tenth of the time."
        return self.to_frame()[::N_ROWS // 10].set_index('minute')

    def picture(self):
        "Return the arguments with which `plot_hypers` draws this plan."
        return self._drawn(np.union1d(self.positions(np.arange(N_ROWS)), self.curve.knots))

# Positions of a fit in its plan

class Position:
    "Where the coming batch is in a plan, and what it trains with."
    def __init__(self,
        plan:OneCyclePlan, # The plan to follow
        accumulating=None # The fastai `GradientAccumulation` of the fit, if it has one
    ):
        self.plan, self.accumulating = plan, accumulating
        self.lengths:dict[int, int] = {}     # the epochs whose length isn't the planned one
        self.columns:dict[str, list] = {}    # what the record says of each batch beside its number
        self.step, self.position = 0, 0.     # of the coming batch: the number of its step, where it is on the curve

    def enter_epoch(self,
        epoch:int, # Its number
        n_batch:int, # Its length
        accumulation:Accumulation|None=None # How its batches become steps; `None` if each is one
    ):
        "Move to the first batch of an epoch."

    def row(self,
        i:int # The number of the batch in its epoch
    ) -> tuple: # Its LRs and its momentum
        "Return what batch `i` of this epoch trains with."
        raise NotImplementedError

    def note(self,
        is_step:bool # Whether the optimizer has made a step with it
    ):
        "Add a row to `columns` for the batch that is recorded."
        self.columns['position'].append(self.position)
        if 'step' in self.columns: self.columns['step'].append(self.step)
        self.step += is_step

    def _rows_at(self, positions):
        "Return what batches at `positions` on the curve train with, as Python floats."
        lrs, moms = self.plan.curve.at(positions)
        return list(zip(lrs.tolist(), repeat(None) if moms is None else moms.tolist()))

    def state_dict(self) -> dict: # Plain values
        "Return what leads back to this position."
        return dict(lengths=self.lengths, columns=self.columns, step=self.step, position=self.position)

    def load_state_dict(self,
        state:dict # From `state_dict`
    ):
        "Go to the position of `state`, in the epoch that was entered."
        self.lengths.update(state['lengths'])
        for name, values in state['columns'].items(): self.columns[name][:] = values
        self.step, self.position = state['step'], state['position']

class BatchPosition(Position):
    """Count batches: each epoch takes an equal part of the cycle, however many batches it has.

    An epoch is passed as if all were as long as this one, so an epoch of the planned length is exactly where the plan
    has it. The last batch of the last epoch is at the end; epochs skipped or cut short leave a gap."""
    def __init__(self, plan, accumulating=None):
        super().__init__(plan, accumulating)
        self._n_batch = plan.n_batch
        self._rows:list[tuple] = []
        self._first = self._before = 0       # number of the first of these rows, and of the first batch of this epoch

    def enter_epoch(self, epoch, n_batch, accumulation=None):
        planned = self.plan.n_batch
        if n_batch == planned: self.lengths.pop(epoch, None)     # it may be entered again with another length
        else:
            if not self.lengths:
                warn_user(f'Epoch {epoch} has {n_batch} batches where {planned} were planned: it takes the same part '
                          'of the cycle, in steps of another size')
            self.lengths[epoch] = n_batch
        if n_batch != self._n_batch: self._n_batch, self._rows = n_batch, []     # which lie elsewhere now
        self._before = epoch * n_batch

    def row(self, i):
        k = self._before + i - self._first
        if 0 <= k < len(self._rows): return self._rows[k]
        self._first = first = self._before + i
        # One call of NumPy per batch would cost more than all else that happens at a batch
        stop = min(first + BLOCK_SIZE // self.plan.n_groups + 1, self.plan.n_epoch * self._n_batch)
        numbers = np.arange(first, max(first + 1, stop))
        self._rows = self._rows_at(self.plan.positions(numbers, self._n_batch))
        return self._rows[0]

class StepPosition(BatchPosition):
    """Count steps: the batches between two steps have the position of the step that they are accumulated for.

    Which step it is, of how many, follows from the samples in the batches of this epoch, as if all epochs were like it,
    or from those in a pass over the data, if they are a stream.
    Where the steps come otherwise, for example after an epoch that was cut short, those that are left are counted from
    here, so the last one is at the end."""
    def __init__(self, plan, accumulating):
        super().__init__(plan, accumulating)
        self.columns = dict(step=[], position=[])
        self._accumulation, self._steps = plan.accumulation, plan.steps
        self._row:tuple|None = None

    def enter_epoch(self, epoch, n_batch, accumulation=None):
        super().enter_epoch(epoch, n_batch)
        accumulation = accumulation or replace(self._accumulation, n_batch=n_batch)     # of batches of any size
        if accumulation != self._accumulation:
            self._accumulation, self._steps = accumulation, Steps(accumulation, self._n_in_all)
        if not self.columns['step']: self.step = int(self._steps.before(self._before))     # a fit may start later

    @property
    def _n_in_all(self): return self.plan.n_epoch * self._n_batch     # if all epochs are like this one

    def row(self, i):
        if self._row is None or self.accumulating.count == 0:
            self._locate(self._before + i)
            self._row, = self._rows_at([self.position])
        return self._row

    def _locate(self, batch):
        "Find the step that is accumulated for from `batch` on."
        steps, end = self._steps, self.plan.curve.end
        step = int(steps.before(batch))
        if batch == 0 or steps.before(batch - 1) < step: n_left = steps.total - step     # as expected
        else:
            i = batch % steps.n_batch
            n_left = Steps(self._accumulation, self._n_in_all - batch + i, i).total
        # Measured by all the steps that there will be, so that the last one is at the end
        last = step + max(n_left, 1) - 1
        self.position = step if last == end else step * end / max(last, 1)

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._row, = self._rows_at([self.position])     # the resumed batch may be one of a step that has begun

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
N_SLOW = 3     # batches of a process that start workers, compile and tune, and say little of the others

class TimePosition(Position):
    """Move by the fraction of the work that is left: a batch is one of as many as fit into the rest of the budget.

    The rest is what isn't used up, without the validations to come. So a slow start, a stall or another pace changes
    the size of the steps, and never the position itself, and the last batch is at the end. If gradients are
    accumulated, the batches of a step stay where its first one is. Rank 0 says how much is left. Until it is asked
    again, all processes move in equal steps."""
    plan:TimedPlan
    _STATE = ('n', 'n_in_epoch', 'n_batch', 'used', 'seconds', 'is_last', 'is_set', 'ended', 'gaps', 'fractions', 'k',
              'n_at_end', 'fraction')

    def __init__(self,
        plan:TimedPlan, # The plan to follow
        n_valid:int, # Number of validation batches, 0 if it is unknown
        accumulating=None, # The fastai `GradientAccumulation` of the fit, if it has one
        per_step:int=1 # Number of batches that make a step of the optimizer
    ):
        super().__init__(plan, accumulating)
        self.n_valid, self.per_step, self.budget = n_valid, per_step, 60 * plan.minutes
        self.columns = dict(minute=[], position=[]) | ({} if accumulating is None else dict(step=[]))
        self.pace = Pace(self.budget / 10)
        self.gaps:list[float] = []            # seconds between epochs
        # Batches that had begun when rank 0 was asked, and those of them in this epoch
        self.n = self.n_in_epoch = 0
        self._n_slow = N_SLOW                 # the number of the first batch that tells the pace
        self.n_batch:float = plan.n_batch     # expected in an epoch
        self.used = self.seconds = 0.         # when rank 0 was asked: the time that was used up, and seconds per batch
        self.fractions, self.k = [0.], -1     # positions of the batches from there on, of which the `k`th has begun
        self.fraction = 0.                    # of this batch: 0 is the start of the cycle, 1 the end
        # Whether this is the last epoch, whether a step trains at the end, and how many batches could have
        self.is_last, self.is_set, self.n_at_end = False, False, 0
        self.ended:float|None = None     # when the loop over the last epoch ended by itself
        self._began, self._is_alone = perf_counter(), world_size() == 1
        self._look_at = 0.     # when the clock says so, a process that is alone asks itself
        self._row:tuple|None = None     # of this step
        self._compute()

    @property
    def now(self) -> float:
        "The seconds that are used up, by the clock of this process."
        return perf_counter() - self._began

    @property
    def n_begun(self) -> int:
        "The number of batches that have begun."
        return self.n + self.k + 1

    @property
    def is_over(self) -> bool:
        "Whether a step was made with the values of the end, or an epoch's worth of batches were cancelled before."
        if self.fraction < 1: return False
        is_made = self.is_set and (self.accumulating is None or self.accumulating.count == 0)
        return is_made or self.n_at_end > max(self.plan.n_batch, 2 * self.per_step)

    def is_up(self) -> bool:
        "Return whether the time is up."
        return from_rank_0(lambda: self.now >= self.budget)

    def advance(self,
        starts_epoch:bool # Whether the coming batch is the first of an epoch
    ) -> bool: # Whether rank 0 was asked
        "Move to the coming batch."
        self.k += 1
        is_due = starts_epoch or self.k == len(self.fractions) or self._is_alone and perf_counter() > self._look_at
        if is_due: self._ask(starts_epoch)
        self.fraction = self.fractions[self.k]
        return is_due

    def _ask(self, starts_epoch):
        "Compute the positions of the coming batches from what is left now."
        self.n, self.n_in_epoch = self.n + self.k, self.n_in_epoch + self.k
        self.used, self.seconds, left, n_ahead, self.is_last = from_rank_0(partial(self._estimate, starts_epoch))
        if starts_epoch: self.n_in_epoch, self.ended = 0, None
        # As many batches as come closest to the budget
        if left < 1.5 and self.n: self.fractions, self.n_at_end = [1.], self.n_at_end + 1
        else: self.fractions = (self.fraction + (1 - self.fraction) * np.arange(1, n_ahead + 1) / left).tolist()
        self._compute()
        self.k, self._look_at = 0, self._began + self.used + SYNC_SECONDS

    def follow(self,
        plan:TimedPlan # With another schedule
    ):
        "Go on in the same position of another plan."
        self.plan = plan
        self._compute()

    def _compute(self): self._rows = self._rows_at(np.array(self.fractions) * self.plan.minutes)

    def _estimate(self, starts_epoch):
        "Return time used, seconds per batch, number of batches left, how many to compute, if this epoch is the last."
        now = max(self.now, self.used + (self.k - 1) * self.seconds)
        if not self.n: return now, 0., inf, 1, False
        latest = self._measure(now, starts_epoch)
        pace = self.pace.mean or min(latest, self.seconds or latest)     # the fastest of the first few
        if not pace: return now, pace, inf, 1, False
        n_in_epoch = 0 if starts_epoch else self.n_in_epoch
        is_last = self._is_last(now, pace, 0) if starts_epoch else self.is_last
        left = self._left(now, pace, n_in_epoch, is_last)
        if not self.pace.n:
            if (self.budget - now) / pace - self.per_step + 1 > self.n + .5: left = inf     # more than there were
            return now, pace, left, 1, is_last
        n_ahead = min(SYNC_SECONDS / pace, left / 4, MOST_AHEAD if self._is_alone else SYNC_BATCHES)
        return now, pace, left, max(int(n_ahead), 1), is_last

    def _measure(self, now, starts_epoch):
        "Take the batches since rank 0 was asked into the pace, without a gap between epochs; return seconds per batch."
        ended = now
        if starts_epoch:
            ended = self.ended
            # An epoch that was cancelled once may be cancelled again, so fewer batches are expected
            if ended is None: ended, self.n_batch = self._cancelled(now), (self.n_batch + self.n_in_epoch) / 2
            else: self.n_batch = self.plan.n_batch
            self.gaps = [*self.gaps[-2:], now - ended]
        seconds = max(ended - self.used, 0)     # as a batch is reckoned, it may end before it began
        if self.n - self.k >= self._n_slow: self.pace.add(self.k, seconds)
        return seconds / max(self.k, 1)

    def _cancelled(self, now):
        "Return when the last batch of an epoch that was cancelled may have ended."
        return min(now, self.used + self.k * self.pace.mean) if self.pace.n else now

    def _gap(self, now, pace, is_last):
        "Return how long a validation will take: the median of three, as one may be a stall; with care at the end."
        known, guess = sorted(self.gaps), min(pace * self.n_valid, max(self.budget - now, 0) / 4)
        if len(known) == 1 and not is_last: return min(known[0], max(2 * guess, self.budget / 20))
        return known[(len(known) - 1) // 2] if known else guess

    def _n_more(self, now, pace, n_in_epoch, gap):
        "Return how many epochs follow this one; the last one has at least half of the usual batches."
        epoch = pace * self.n_batch
        rest = max(epoch - pace * n_in_epoch, 0)
        return max((self.budget - now - gap - rest + epoch / 2) // (gap + epoch), 0)

    def _is_last(self, now, pace, n_in_epoch):
        "Return whether no epoch follows this one."
        return self._n_more(now, pace, n_in_epoch, self._gap(now, pace, True)) == 0

    def _left(self, now, pace, n_in_epoch, is_last):
        "Return how many batches there are until the end is reached: at the first batch of the last step."
        gap = self._gap(now, pace, is_last)
        n_more = 0 if is_last else self._n_more(now, pace, n_in_epoch, gap)
        return (self.budget - now - (n_more + 1) * gap) / pace - (self.per_step - 1)

    def ends_epoch(self) -> bool:
        "Return whether another epoch fits in; if not, this one goes on until the time is up."
        def is_last():
            n = self.k + 1     # batches since rank 0 was asked
            return self._is_last(self.now, self.pace.mean or (self.now - self.used) / n, self.n_in_epoch + n)
        if not self.is_last: self.is_last = from_rank_0(is_last)
        return not self.is_last

    def end_epoch(self):
        "Note that the loop over an epoch has ended."
        self.ended = self.now

    def row(self, i):
        if self.accumulating is None or self._row is None or self.accumulating.count == 0:
            self._row, self.is_set = self._rows[self.k], self.fraction == 1
            self.position = self.fraction * self.plan.minutes
        return self._row

    def note(self, is_step):
        self.columns['minute'].append((self.used + self.k * self.seconds) / 60)     # by the reckoning of all processes
        super().note(is_step)

    def state_dict(self):
        state = super().state_dict() | {name: getattr(self, name) for name in self._STATE}
        return state | dict(now=self.now, pace=(self.pace.n, self.pace.seconds))

    def load_state_dict(self, state):
        super().load_state_dict(state)
        for name in self._STATE: setattr(self, name, state[name])
        self.pace.n, self.pace.seconds = state['pace']
        # The steps that rank 0 had told are used up first, as in an uninterrupted run
        self._began, self._look_at, self._n_slow = perf_counter() - state['now'], inf, self.n_begun + N_SLOW
        self._compute()
        self._row, = self._rows_at([self.position])
