"""One run of a cycle and its file: what was found there, and how far it got"""

# `CycleCheckpoint` is what a user configures; each fit opens it and gets a `ResumableRun`, a callback that resumes from
# the file and saves how far training gets. It acts after every other callback, so it saves the state that they leave
# behind.

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from fastai.callback.core import CancelFitException
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, TerminateOnNaNCallback
from fastai.learner import Recorder

from ..fastai_internals import OneFitCallback, cancelled_by, show_table, start_in_epoch
from ..optimizer import OptAdapter
from ..processes import from_rank_0, gather, rank, world_size
from .data import data_position
from .file import FILE_FORMAT, RunLock, check_writable, date_of, read_file, read_state, refused, write_file
from .fingerprint import (NOT_INITIALISED, as_trained, can_extend, fingerprint_differences, layout, layout_differences,
                          run_fingerprint, worker_note)
from .objects import ITSELF, CannotStore
from .sigterm import HeldSigterm
from .state import (callback_name, data_of, in_memory, loader_states, model_state, note_changes, note_part, numbered,
                    object_states, random_states, set_model_state, set_random_states, without_changes)

# Of a `Learner`
_PUT_BACK = 'model', 'loss_func', 'dls', 'opt', 'lr', 'moms', 'wd', 'wd_bn_bias', 'train_bn', 'logger'
_COMPLETE_THE_CYCLE = EarlyStoppingCallback, TerminateOnNaNCallback     # more training would be pointless

# How far a run is: the fit goes on; a callback is ending it, and the next save is the last; it was stopped, so that the
# file stays as it is; it is complete
TRAINING, STOPPING, STOPPED, COMPLETE = 'training', 'stopping', 'stopped', 'complete'

def _without(objects, others):
    "Return those of `objects` that aren't among `others`."
    return [obj for obj in objects if all(obj is not other for other in others)]

class ResumableRun(OneFitCallback):
    "One fit that resumes the cycle in `file`, and saves its progress there."
    order, run_valid = 10_000, False     # after every other callback
    stands_in = 'all_batches',
    def __init__(self,
        learn, # The `Learner`
        checkpoint, # The `CycleCheckpoint`
        cycle, # The `OneCycle` that will train, with its plan
        opt, # The optimizer that will train
        epochs:range, # The epochs of the cycle to train
        wd=None # Weight decay; default the Learner's
    ):
        self.learn, self.checkpoint, self.cycle, self.plan = learn, checkpoint, cycle, cycle.plan
        file = learn.path/learn.model_dir/f'{checkpoint.name}.cycle'
        self.file = Path(os.path.realpath(file))     # of a link, the target
        self._lock, fine_tune = RunLock(self.file), getattr(checkpoint, 'fine_tune', None)
        self._look = partial(run_fingerprint, learn, epochs=epochs, wd=wd, fine_tune=fine_tune)
        self.fingerprint = self._look(self.plan, opt)
        self._loss = learn.loss_func     # while training, a callback's may stand in its place
        self.changes:list[str] = []     # what differs from the run in the file, which is extended on purpose
        self._set_back:list[str] = []     # what differs from what the last fit left, which was no setting any more
        self.saved:Any = self._found()     # the state in the file, if the cycle resumes
        self._own:dict = {}     # what of it was saved by the process of this rank
        self._position:Any = None     # of the file
        self.epochs, self.is_complete = epochs, False
        if self.saved is not None: self._begin_from(self.saved)
        if not self.is_complete: self._check()
        self.state, self._status = TRAINING, 'complete'
        self._rows:list = []
        self._warned:set[str] = set()
        self._thread = ThreadPoolExecutor(1)
        # The position of the save that goes on in the thread, and how to wait for it
        self._pending:tuple|None = None
        self._objects:Any = None
        self._loaders:Any = None
        self._data:Any = None     # the position in the training data
        self._callbacks:dict = {}
        self._layout:dict = {}
        self._sigterm:Any = None

    # Opening the file

    def _found(self):
        "Return the state in the file, `None` to start a new cycle; raises `ValueError` if it is a different run's."
        keep, content = self.checkpoint, from_rank_0(lambda: read_file(self.file))
        saved = None if content is None else read_state(self.file, content)
        if saved is None or keep.restart: return None
        self.fingerprint, self._set_back = without_changes(self.learn, self.file, self.fingerprint)
        differences = fingerprint_differences(saved['work'], self.fingerprint)
        self.changes, is_extendable = sum(differences.values(), []), can_extend(self.plan, differences)
        self.cycle.is_extended = bool(differences)
        if not differences or keep.extend and is_extendable: return saved
        date = from_rank_0(lambda: date_of(self.file))
        extend = f', {keep.with_option("extend=True")} to go on with the new ones' if is_extendable else ''
        raise ValueError(f'checkpoint {keep.name!r} belongs to a different run, saved {date}: '
                         f'{"; ".join(self.changes)}. Use the original arguments, another name{extend}, '
                         f'or {keep.with_option("restart=True")} to start over')

    def _begin_from(self, saved):
        "Note where the run resumes; raises `ValueError` if it can't."
        if self.changes and saved['epoch'] >= self.epochs.stop:
            raise ValueError(f'cycle_len must be more than the {saved["epoch"]} epochs that checkpoint '
                             f'{self.checkpoint.name!r} has trained, got {self.epochs.stop}')
        if self.changes and saved['status'] != 'running' and 'minutes' in self.plan.length:
            raise ValueError(f'extend must be False for a cycle of so many minutes that is complete, as checkpoint '
                             f'{self.checkpoint.name!r} is')
        if rank() >= len(saved['processes']): raise refused(self.file, 'has an unusable \'processes\': too few')
        self._own, self._position = saved['processes'][rank()], (saved['epoch'], saved['done'])
        self.epochs = range(saved['epoch'], self.epochs.stop)
        self.is_complete = saved['status'] != 'running' and not self.changes

    def _check(self):
        "Raise an `OSError` if the run can't be trained and saved; warn of another number of workers."
        from_rank_0(self._lock.check)
        n_bytes = sum(p.nbytes for p in self.learn.model.parameters())
        from_rank_0(lambda: check_writable(self.file, n_bytes))
        note = self.saved and worker_note(self.saved['work'], self.fingerprint)
        if note: warn(f'Checkpoint {self.checkpoint.name!r}: {note}')

    # The way in, and what surrounds the fit

    def train(self,
        fit, # Trains with this callback; takes no arguments
        cbs, # The other callbacks of the fit
        reset_opt:bool # Whether it begins with a new optimizer
    ):
        "Train the run, or load it if it is complete; raises `BlockingIOError` if another process trains it."
        if self._set_back: self._say(f'sets {", ".join(self._set_back)} back to what training made of it')
        if self.is_complete:
            with self.learn.added_cbs(cbs): return self._load_complete(reset_opt)
        with self._locked(), self._kept(reset_opt): fit()

    @contextmanager
    def _locked(self):
        "Keep other processes from training this run during this context, and SIGTERM from ending it inside a batch."
        from_rank_0(self._lock.acquire)
        try:
            # several processes wouldn't agree on that batch, so there each ends at once
            with HeldSigterm() if world_size() == 1 else nullcontext() as self._sigterm, self._thread:
                try: yield
                except BaseException as e:
                    self._wait_for_write()
                    self._report('was interrupted', getattr(e, 'add_note', print))     # a note ends the traceback
                    raise
                finally: self._wait_for_write()
        finally:
            self._sigterm = None
            self._lock.release()

    @contextmanager
    def _kept(self, reset_opt):
        "Put back what the fit has put in another's place, unless it is complete: the same call must find the same run."
        learn = self.learn
        if learn.opt is None and not reset_opt: learn.create_opt()
        attributes, callbacks = {name: vars(learn)[name] for name in _PUT_BACK}, list(learn.cbs)
        settings = [] if learn.opt is None else [_settings(group) for group in OptAdapter(learn.opt).groups]
        trained = [(p, p.requires_grad) for p in learn.model.parameters()]
        loaders = loader_states(learn)
        position = loaders.save()
        try: yield
        finally:
            opt = learn.opt
            if self.state != COMPLETE:
                if self._is_only_here(learn, attributes['model']): del attributes['model']
                vars(learn).update(attributes)
                for p, value in trained: p.requires_grad_(value)
                for group, values in zip(OptAdapter(learn.opt).groups if settings else [], settings):
                    group.update(values)
                loaders.restore(position, with_settings=True)
                self._put_back(learn, callbacks)
            if self._objects is not None: self._note_left(learn, opt if learn.opt is None else learn.opt)

    def _is_only_here(self, learn, before):
        "Return whether the model is another than `before`, and its weights are neither there nor in the file."
        if any(part is before for part in learn.model.modules()): return False     # it wraps that one
        return bool(layout_differences(self._layout, layout(learn, learn.opt)))

    def _put_back(self, learn, callbacks):
        "Take off the callbacks that the fit has added, and put back those that they replaced."
        added, replaced = _without(learn.cbs, callbacks), _without(callbacks, learn.cbs)
        for cb in added: learn.remove_cb(cb)
        for cb in replaced:     # but none that has only taken itself off
            if cb.name in {new.name for new in added}: learn.add_cb(cb)

    def _note_left(self, learn, opt):
        "Note what the fit leaves, so that a change by the user is told from one of its own."
        self._objects.note_left()
        with suppress(TypeError, ValueError):     # which the same call will raise too
            plan = self.cycle.make_plan(learn, self.plan.n_epoch, (opt, learn.lr), self._callbacks.values())
            note_changes(learn, self.file, self.fingerprint, self._look(plan, opt))

    def _say(self, text, say=print):
        "Print `text` about this checkpoint, once for all processes."
        if rank() == 0: say(f'Checkpoint {self.checkpoint.name!r} {text}')

    def _warn(self, text): warn(f'Checkpoint {self.checkpoint.name!r} {text}')

    def _report(self, what, say=print):
        "Print that `what` happened to this run, and where it will resume."
        if self._position is None: return
        epoch, n_done = self._position
        self._say(f'{what}. The same call resumes it in epoch {epoch}, batch {n_done}, from {self.file}', say)

    # Saving

    def _note_start(self, callbacks):
        "Note how all that this fit may change is at the beginning."
        self._objects, self._loaders = object_states(self.learn, callbacks), loader_states(self.learn)
        for obj in (*self._objects.objects.values(), *self._loaders.objects.values()): note_part(obj)
        self._data = data_position(self.learn, self._loaders, self.checkpoint.replay)
        self._callbacks = numbered([(callback_name(cb), cb) for cb in callbacks])
        self._datasets, self._layout = data_of(self.learn), layout(self.learn, self.learn.opt)

    def _replaced(self):
        "Yield the names of what the fit has added, or put in another's place, so that a new process won't have it."
        if _without(data_of(self.learn), self._datasets): yield 'Learner.dls'
        for cb in _without(self.learn.cbs, [self, *self._callbacks.values()]):
            yield f'{type(cb).__name__} (added during the fit)'

    def _warn_of_lost(self):
        "Warn once of what cannot be saved."
        new = sorted((self._objects.lost | self._loaders.lost | {*self._replaced()}) - self._warned)
        self._warned.update(new)
        if new:
            self._warn(f'does not hold {", ".join(new)}, which cannot be stored: '
                       f'{"it starts" if len(new) == 1 else "they start"} over after a crash')

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
        "Cut off what was written to these files since the saved state: the resumed run writes it again."
        for log, size, now in zip(self._logs, self.saved['logs'], self._log_sizes()):
            if now > size: log.truncate(size)

    def _process_state(self, n_done):
        "Return what each process has of its own: weights and optimizer are the same everywhere."
        return dict(random=random_states(self._loaders), carried=self._objects.save(), data=self._data.state(n_done),
                    removed=[name for name, cb in self._callbacks.items() if _without([cb], self.learn.cbs)])

    def _fits(self):
        "Return whether a new training can load this one's weights and optimizer; warn once if not."
        now = layout(self.learn, self.learn.opt)
        made = {name: text for name, text in now['model'].items() if self._layout['model'].get(name) == NOT_INITIALISED}
        differences = layout_differences(self._layout | dict(model=self._layout['model'] | made), now)
        if differences and 'layout' not in self._warned:
            self._warned.add('layout')
            lines = '; '.join(line for lines in differences.values() for line in lines)
            lines = lines.replace('in the file', 'at the beginning')
            epoch, batch = self._position
            self._warn(f'cannot be saved from here on, since a new Learner could not load it ({lines}). '
                       f'Training continues; the same call resumes it in epoch {epoch}, batch {batch}')
        return not differences

    def _save(self, epoch, n_done, status='running', must_succeed=False, in_background=False):
        "Save the training as it is after `n_done` batches of `epoch`; in the background, from a copy."
        self._wait_for_write()
        if not self._fits(): return
        processes = gather(self._process_state(n_done))
        self._warn_of_lost()
        if processes is None: return     # rank 0 writes
        learn, model = self.learn, model_state(self.learn)
        work = as_trained(self.fingerprint, self._loss)
        state = dict(format=FILE_FORMAT, work=work, status=status, epoch=epoch, done=n_done,
                     lost=sorted(self._warned), logs=self._log_sizes(), train_iter=learn.train_iter,
                     pct_train=float(learn.pct_train), rows=list(self._rows), processes=processes,
                     model=in_memory(model) if in_background else model)
        if in_background: self._pending = (epoch, n_done), self._thread.submit(write_file, self.file, state).result
        else: self._write((epoch, n_done), partial(write_file, self.file, state), must_succeed)

    def _write(self, position, write, must_succeed=False):
        "Write the file by calling `write`, and note that it leads to `position`."
        try:
            write()
            self._position = position
        except (OSError, RuntimeError, CannotStore) as e:
            if must_succeed:
                raise OSError(f'checkpoint {self.checkpoint.name!r} cannot be written to {self.file}: {e}') from e
            self._warn(f'could not be saved at epoch {position[0]}, batch {position[1]}: {e}. '
                       'Training continues; the last file that was saved is kept')

    def _wait_for_write(self):
        "Wait for the save that goes on in the background, if there is one."
        pending, self._pending = self._pending, None
        if pending is not None: self._write(*pending)

    @property
    def _is_terminated(self):
        "Whether a SIGTERM waits."
        return self._sigterm is not None and self._sigterm.is_pending

    def _terminate(self):
        "Say where the run will resume, and let SIGTERM take its course."
        self._report('got SIGTERM')
        self._sigterm.let_go()

    def after_batch(self):
        "Save every so many batches, counted over the whole fit, and where the fit stops."
        learn = self.learn
        is_due = self.checkpoint.every is not None and learn.train_iter % self.checkpoint.every == 0
        is_last = self.state == STOPPING or self._is_terminated
        if is_due or is_last: self._save(learn.epoch, learn.iter + 1, in_background=not is_last)
        if self._is_terminated: self._terminate()

    def _note_row(self):
        "Note the row of the table of this epoch."
        if hasattr(self.learn, 'recorder'):
            self._rows.append([cell if type(cell) in ITSELF else str(cell) for cell in self.learn.recorder.log])

    def after_epoch(self):
        "Save at the end of an epoch."
        self._note_row()
        self._save(self.learn.epoch + 1, 0)
        if self._is_terminated: self._terminate()

    # The end

    def _finish_event(self, cb, event):
        "Call the callbacks that `event` hasn't reached, since `cb` ended the fit in it; return those that end it too."
        callbacks, stopped = list(self.learn.cbs.sorted('order')), []
        unseen = callbacks[1 + callbacks.index(cb):]
        for other in unseen:
            try: other(event)
            except CancelFitException: stopped.append(other)
        if self not in unseen and event == 'after_batch': self.after_batch()     # save, since the fit stops here
        return stopped

    def stopped(self):
        "Save where a callback stops the cycle; note that it is complete if that was for good, or nothing is left."
        learn, (cb, event) = self.learn, cancelled_by()
        is_last = learn.epoch + 1 == self.epochs.stop
        is_in_order = event == 'after_epoch' or event == 'after_batch' and learn.training
        self.state = STOPPING
        is_for_good = isinstance(cb, _COMPLETE_THE_CYCLE)
        stoppers = [cb] if is_for_good or not is_in_order else [cb, *self._finish_event(cb, event)]
        if is_for_good and event == 'after_epoch' and cb.order > Recorder.order: self._note_row()
        self.state = COMPLETE
        if any(isinstance(stopper, _COMPLETE_THE_CYCLE) for stopper in stoppers):
            self._status = f'complete, ended early in epoch {learn.epoch}'
        elif event != 'after_epoch' or not is_last:
            self.state = STOPPED
            self._report('was stopped early')

    def after_cancel_fit(self):
        "Leave the last file as it is if the fit was stopped before its first epoch."
        if self.state == TRAINING: self.state = STOPPED

    def after_fit(self):
        "Note that the cycle is complete, unless it was stopped early."
        if not self.epochs: self.learn.model.eval()     # as the last validation has left it
        if self.state != STOPPED: self.state = COMPLETE

    def fit_ended(self):
        "Mark the cycle as complete; by now, all callbacks have put what they recorded on the recorder."
        if self.state == COMPLETE: self._save(self.learn.epoch + 1, 0, status=self._status)

    # Resuming

    def before_fit(self):
        "Write the first file, or resume between two epochs."
        self._note_start([cb for cb in self.learn.cbs if cb is not self])
        if self.saved is None:
            self._data.warn_of_workers(None, self.checkpoint.name)
            self._say(f'is kept in {self.file}')
            self._save(self.epochs.start, 0, must_succeed=True)
            return self._forget_the_next()
        with self._refusing():
            self._objects.read(self._own['carried'])
            for states in filter(None, (self._own['random'], self._own['data']['began'])):
                self._loaders.read(states['loaders'])
            self._data.go_to(self._own['data'], self.saved['done'], self.saved['train_iter'])
        self._show_saved_rows(self._data.note(self._own['data'], self.checkpoint))
        self._data.warn_of_workers(self._own['data'], self.checkpoint.name)
        if self.saved['done'] == 0:
            self._restore()
            self.saved = None

    def _forget_the_next(self):
        "Remove the file of the second cycle of a `fine_tune`, if this is the first and starts over: so does that one."
        keep = self.checkpoint
        if not keep.restart or keep.given == keep.name: return
        from_rank_0(lambda: self.file.with_name(f'{keep.given}.cycle').unlink(missing_ok=True))

    def before_train(self):
        "Resume inside an epoch, or begin one."
        n_done = 0 if self.saved is None else self.saved['done']
        if self.saved is not None: self._restore()
        self._data.enter_epoch(n_done)

    def all_batches(self):
        "Run the `Learner`'s loop over the batches; in a resumed epoch, over those that are left."
        learn = self.learn
        if self.saved is None or not learn.training: return type(learn).all_batches(learn)
        n_done, now = self.saved['done'], self._own['random']
        self.saved = None
        learn.n_iter = len(learn.dl)
        start_in_epoch(learn, n_done)
        for i, batch in enumerate(self._data.batches_left(n_done, now), n_done): learn.one_batch(i, batch)

    def _restore_position(self):
        "Restore the position in the cycle, the random states and the loaders; return what could not be restored."
        learn, saved = self.learn, self.saved
        learn.epoch, learn.train_iter, learn.pct_train = saved['epoch'], saved['train_iter'], saved['pct_train']
        if self.changes: learn.pct_train = self._fraction
        if self._data.began: set_random_states(self._loaders, self._data.began)     # refused now, or never
        return set_random_states(self._loaders, self._own['random'])

    def _restore_objects(self):
        "Restore what objects remember, and which callbacks there are; return what `ObjectStates.restore` returns."
        found = self._objects.restore(self._own['carried'])
        for name, cb in self._callbacks.items():
            if name in self._own['removed']: self.learn.remove_cb(cb)     # as the fit had done
        return found

    def _restore(self):
        "Restore the training; warn of state that no object here uses."
        with self._refusing():
            problems, unused = self._restore_objects()
            if unused: self._warn(f"has state for {', '.join(unused)}, which this fit doesn't use")
            set_model_state(self.learn, self.saved['model'])
            problems += self._restore_position()
            self.cycle.enter_epoch()     # as long as its loader makes it now
            if self.changes: self._continue_record()
            self.cycle.share_record()     # of the schedulers that are here now
        for what, names in {'was saved without': self.saved['lost'], 'cannot restore': problems}.items():
            if names: self._warn(f'{what} {", ".join(names)}: the cycle resumes with what is there now')

    @contextmanager
    def _refusing(self):
        "Refuse the file if what it holds can't be restored, whatever error that is."
        try: yield
        except Exception as e:
            raise refused(self.file, f'does not fit this training: {type(e).__name__}: {e}') from e

    def _show_saved_rows(self, note):
        "Print where the cycle resumes, and show the rows of its table again."
        self._say(f'resumes in epoch {self.saved["epoch"]}, batch {self.saved["done"]}. {note}'.rstrip())
        if self.changes: self._say_what_changes()
        self._rows = self.saved['rows']
        for row in self._rows: self.learn.logger(row)
        self._cut_logs()

    # Extending a run on purpose

    @property
    def _fraction(self):
        "How much of the new plan is trained."
        if 'cycle_len' not in self.plan.length: return self.saved['pct_train']
        return (self.saved['epoch'] * self.plan.n_batch + self.saved['done']) / len(self.plan)

    def _say_what_changes(self):
        "Print the LR that the run had, and the one with which it goes on."
        opt = self.saved['model']['opt']
        before = opt.get('hypers', opt.get('param_groups'))[-1]['lr']
        now = self.plan.curve.at([self._fraction * self.plan.span])[0][0, -1]
        self._say(f'is extended: its LR was {float(before):.3g} and is {now:.3g} now ({"; ".join(self.changes)})')

    def _continue_record(self):
        "Let the record go on, which says what the batches until now were trained with."
        cycle, recorder = self.cycle, vars(getattr(self.learn, 'recorder', self))
        if 'hps' not in recorder: return
        hps, record = recorder['hps'], recorder['cycle']
        if not cycle.state_dict():     # it was complete
            cycle.start()     # which begins a record of its own
            state = cycle.state_dict()
            where = dict(hps={name: hps[name] for name in state['hps']},
                         position=state['position'] | {name: record[name] for name in ('lengths', 'columns')})
            cycle.load_state_dict(state | record | where)
        cycle.keep_record(record['planned']['schedule']['max_lr'])

    def _load_complete(self, reset_opt):
        "Load a complete cycle into the `Learner`, without training."
        learn = self.learn
        if learn.opt is None or reset_opt: learn.create_opt()
        recorders = [cb for cb in learn.cbs if isinstance(cb, Recorder)]
        self._note_start(list(learn.cbs))
        with self._refusing():
            self._objects.read(self._own['carried'])
            set_model_state(learn, self.saved['model'])
            self._restore_position()
            try: self._restore_objects()
            except Exception as e:     # a callback may be able to load its state only after its `before_fit`
                self._note_start(recorders)
                self._restore_objects()
                self._warn(f'is complete. Its callbacks are left as they are, since one cannot load its state: {e}')
            for recorder in recorders:
                record = vars(recorder).get('cycle')     # none if no batch was trained
                recorder.plan = self.cycle.as_planned(record['planned']) if record else self.plan
                if recorder.values: learn.final_record = recorder.values[-1]
        learn.model.eval()
        if recorders: show_table(learn, self.saved['rows'], self.plan.n_epoch)
        self._say(f'is {self.saved["status"]}. It finished on {date_of(self.file)}. Loaded its weights; nothing was '
                  f'trained. To start over: {self.checkpoint.with_option("restart=True")}')

def _settings(group):
    "Return what a parameter group holds besides its tensors."
    return {name: value for name, value in group.items() if name != 'params' and not isinstance(value, torch.Tensor)}
