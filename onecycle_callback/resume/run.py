"""One run of a cycle and its file: what was found there, and how far it got"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from warnings import warn

from fastai.callback.core import CancelFitException
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, TerminateOnNaNCallback
from fastai.learner import Recorder

from ..fastai_internals import OneFitCallback, cancelled_by
from .file import FILE_FORMAT, date_of, write_file
from .lock import RunLock
from .model import in_memory, model_state, set_model_state
from .place import data_place
from ..processes import from_rank_0, gather, rank, world_size
from .sigterm import HeldSigterm
from .state import loader_states, object_states, random_states, set_random_states

class ResumableRun(OneFitCallback):
    "One fit that resumes the cycle in `file`, and saves its progress there."
    order, run_valid = 10_000, False     # after every other callback
    stands_in = 'all_batches',
    def __init__(self,
        learn, # The `Learner`
        file:Path, # Where the cycle is kept
        fingerprint:dict, # The fingerprint of this run
        plan, # The `OneCyclePlan` of the cycle
        epochs:range, # The epochs of the cycle to train
        every:int|None=None, # Also save every so many batches
        saved:dict|None=None, # The state in the file, if the cycle resumes
        lock:RunLock|None=None, # Its lock; default a new one
        replay:bool=True # Whether to run a stream forward to its place
    ):
        self.file, self.fingerprint, self.plan, self.every, self.replay = file, fingerprint, plan, every, replay
        self.saved:Any = saved
        self.epochs = epochs if saved is None else range(saved['epoch'], epochs.stop)
        self.is_complete = saved is not None and saved['status'] != 'running'
        self._rows:list = []
        self._objects:Any = None
        self._loaders:Any = None
        self._warned:set[str] = set()
        self._data:Any = None     # the place in the training data
        self._status:str|None = 'complete'     # what the file says after the fit; `None` leaves the last one
        self._place:tuple|None = None
        self._is_stopping = False
        self._thread = ThreadPoolExecutor(1)
        self._pending:tuple|None = None     # the place of the save that goes on in the thread, and how to wait for it
        self._lock, self._sigterm = lock or RunLock(file), None
        self.learn = learn

    def _say(self, text):
        "Print `text` about this checkpoint, once for all processes."
        if rank() == 0: print(f'Checkpoint {self.file.stem!r} {text}')

    def _say_place(self, what):
        "Print that `what` happened to this run, and where it will resume."
        if self._place is None: return
        epoch, n_done = self._place
        self._say(f'{what}. The same call resumes it in epoch {epoch}, batch {n_done}.')

    def _write(self, place, write, must_succeed=False):
        "Write the file by calling `write`, and note that it leads to `place`."
        try:
            write()
            self._place = place
        except (OSError, RuntimeError) as e:
            if must_succeed:
                raise OSError(f'checkpoint {self.file.stem!r} cannot be written to {self.file}: {e}') from e
            warn(f'Checkpoint {self.file.stem!r} could not be saved at epoch {place[0]}, batch {place[1]}: {e}. '
                 'Training continues; the last file that was saved is kept')

    def _settle(self):
        "Wait for the save that goes on in the background, if there is one."
        pending, self._pending = self._pending, None
        if pending is not None: self._write(*pending)

    @contextmanager
    def held(self):
        "Keep other processes from training this run during this context; raises `BlockingIOError` if one does."
        if self.is_complete:
            yield
            return
        from_rank_0(self._lock.acquire)
        try:
            with HeldSigterm() if world_size() == 1 else nullcontext() as self._sigterm, self._thread:
                try: yield
                finally: self._settle()
        finally:
            self._sigterm = None
            self._lock.release()

    @property
    def _is_terminated(self):
        "Whether a SIGTERM waits."
        return self._sigterm is not None and self._sigterm.is_pending

    def _terminate(self):
        "Say where the run will resume, and let SIGTERM take its course."
        self._say_place('got SIGTERM')
        self._sigterm.let_go()

    def _look_around(self, callbacks):
        "Look at all that this fit may change, as it is at the beginning."
        learn = self.learn
        self._objects, self._loaders = object_states(learn, callbacks), loader_states(learn)
        self._data = data_place(learn, self._loaders, self.replay)

    def _warn_of_lost(self):
        "Warn once of what cannot be saved."
        new = sorted((self._objects.lost | self._loaders.lost) - self._warned)
        self._warned.update(new)
        if new:
            warn(f'Checkpoint {self.file.stem!r} does not hold {", ".join(new)}, which cannot be '
                 f'stored: {"it starts" if len(new) == 1 else "they start"} over after a crash')

    @property
    def _logs(self):
        "Return the open files of the callbacks that append rows to them."
        return [cb.file for cb in self.learn.cbs if isinstance(cb, CSVLogger) and cb.append
                and not vars(cb)['file'].closed]

    def _log_sizes(self):
        "Return the length of each of these files."
        for log in self._logs: log.flush()
        return [os.fstat(log.fileno()).st_size for log in self._logs]

    def _cut_logs(self):
        "Cut off what was written to these files since the saved state."
        for log, size, now in zip(self._logs, self.saved.get('logs', []), self._log_sizes()):
            if now > size: log.truncate(size)

    def _save(self, epoch, n_done, status='running', must_succeed=False, in_background=False):
        "Save the training as it is after `n_done` batches of `epoch`."
        self._settle()
        learn = self.learn
        place = self._data.state(n_done)
        processes = gather(dict(random=random_states(self._loaders), carried=self._objects.save(), **place))
        self._warn_of_lost()
        if processes is None: return     # rank 0 writes
        model = in_memory(model_state(learn)) if in_background else model_state(learn)
        state = dict(format=FILE_FORMAT, work=self.fingerprint, status=status, epoch=epoch, done=n_done,
                     logs=self._log_sizes(), train_iter=learn.train_iter, pct_train=learn.pct_train,
                     rows=list(self._rows), processes=processes, **model)
        if in_background: self._pending = (epoch, n_done), self._thread.submit(write_file, self.file, state).result
        else: self._write((epoch, n_done), partial(write_file, self.file, state), must_succeed)

    def before_fit(self):
        "Write the first file, or resume between two epochs."
        self._look_around([cb for cb in self.learn.cbs if cb is not self])
        if self.saved is None: return self._save(self.learn.epoch, 0, must_succeed=True)
        self._show_saved_rows()
        if self._data.loses_workers(self._saved_here):
            warn(f'Checkpoint {self.file.stem!r} does not restore random states inside the workers of a data loader '
                 'that tells its own place: random draws there, such as those of an augmentation, will differ in this '
                 'epoch')
        if self.saved['done'] == 0:
            self._restore()
            self.saved = None

    def after_batch(self):
        "Save every so many batches, counted over the whole fit, and where the fit stops."
        learn = self.learn
        is_due = self.every is not None and learn.train_iter % self.every == 0
        is_last = self._is_stopping or self._is_terminated
        if is_due or is_last: self._save(learn.epoch, learn.iter + 1, in_background=not is_last)
        if self._is_terminated: self._terminate()

    def after_epoch(self):
        "Save at the end of an epoch."
        if hasattr(self.learn, 'recorder'): self._rows.append(list(self.learn.recorder.log))
        self._save(self.learn.epoch + 1, 0)
        if self._is_terminated: self._terminate()

    def _see_out(self, cb, event):
        "Call the callbacks that `event` hasn't reached, since `cb` ended the fit in it; return those that end it too."
        callbacks, stopped = list(self.learn.cbs.sorted('order')), []
        unseen = callbacks[1 + callbacks.index(cb):]
        for other in unseen:
            try: other(event)
            except CancelFitException: stopped.append(other)
        if self not in unseen and event == 'after_batch': self.after_batch()     # save, since the fit stops here
        return stopped

    def stopped(self):
        "Save where a callback stopped the cycle; note that it is complete if that was for good, or nothing is left."
        learn, (cb, event) = self.learn, cancelled_by()
        is_last = learn.epoch + 1 == self.epochs.stop
        is_in_order = event == 'after_epoch' or event == 'after_batch' and learn.training
        self._is_stopping = True
        stoppers = [cb] if isinstance(cb, _FOR_GOOD) or not is_in_order else [cb, *self._see_out(cb, event)]
        if any(isinstance(stopper, _FOR_GOOD) for stopper in stoppers):
            self._status = f'complete, ended early in epoch {learn.epoch}'
        elif event != 'after_epoch' or not is_last:
            self._status = None
            self._say_place('was stopped early')

    def after_cancel_fit(self):
        "Leave the last file as it is if the fit was stopped before its first epoch."
        if not self._is_stopping: self._status = None

    def after_fit(self):
        "Mark the cycle as complete, unless it was stopped early."
        if self._status is not None: self._save(self.learn.epoch + 1, 0, status=self._status)

    @property
    def _saved_here(self):
        "What was saved by the process of this rank."
        return self.saved['processes'][rank()]

    def _restore_position(self):
        "Restore the position in the cycle, the random states and the loaders; return what could not be restored."
        learn, saved = self.learn, self.saved
        learn.epoch, learn.train_iter, learn.pct_train = saved['epoch'], saved['train_iter'], saved['pct_train']
        return set_random_states(self._loaders, self._saved_here['random'])

    def _restore(self):
        "Restore the training; warn of state that no object here uses."
        problems, unused = self._objects.restore(self._saved_here['carried'])
        if unused: warn(f"Checkpoint {self.file.stem!r} has state for {', '.join(unused)}, which this fit doesn't use")
        set_model_state(self.learn, self.saved)
        self._data.restore(self._saved_here)
        problems += self._restore_position()
        if problems:
            warn(f'Checkpoint {self.file.stem!r} cannot restore {", ".join(problems)}: '
                 'the cycle resumes with what is there now')

    def _show_saved_rows(self):
        "Print where the cycle resumes, and show the rows of its table again."
        way = self._data.way(self._saved_here, self.file.stem)
        self._say(f'resumes in epoch {self.saved["epoch"]}, batch {self.saved["done"]}. {way}'.rstrip())
        self._rows = self.saved['rows']
        for row in self._rows: self.learn.logger(row)
        self._cut_logs()

    def before_train(self):
        "Resume inside an epoch, or begin one."
        n_done = 0 if self.saved is None else self.saved['done']
        if self.saved is not None: self._restore()
        self._data.enter_epoch(n_done)

    def all_batches(self):
        "Run the `Learner`'s loop over the batches; in a resumed epoch, over those that are left."
        learn = self.learn
        if self.saved is None or not learn.training: return type(learn).all_batches(learn)
        n_done, now = self.saved['done'], self._saved_here['random']
        self.saved = None
        learn.n_iter = len(learn.dl)
        for i, batch in enumerate(self._data.batches_left(n_done, now), n_done): learn.one_batch(i, batch)

    def finish(self):
        "Load a complete cycle into the `Learner`, which has an optimizer, without training."
        learn = self.learn
        recorders = [cb for cb in learn.cbs if isinstance(cb, Recorder)]
        self._look_around(recorders)
        set_model_state(learn, self.saved)
        self._restore_position()
        self._objects.restore(self._saved_here['carried'])
        for recorder in recorders:
            recorder.plan = self.plan
            if recorder.values: learn.final_record = recorder.values[-1]
        learn.model.eval()
        self._say(f'is {self.saved["status"]}, since {date_of(self.file)}: its weights are loaded and nothing is '
                  f'trained. CycleCheckpoint({self.file.stem!r}, restart=True) starts over.')

_FOR_GOOD = EarlyStoppingCallback, TerminateOnNaNCallback
