"""Runs of a checkpoint: what interrupts them, what they lock, and what they say about the file that they find."""
import os
import signal
import sys
import threading
import time
from functools import cache, partial
from itertools import product
from pathlib import Path

import pytest
import torch
from fastai.basics import Callback, CancelFitException, CrossEntropyLossFlat, DataLoader
from fastai.callback.mixup import MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import EarlyStoppingCallback, TerminateOnNaNCallback
from torch import nn

from support import fresh
from support.helpers import fork
from support.interrupted import N_BATCH, N_EPOCH, Interrupt, assert_same, items, learner, results
from support.pairs import each, pairs
from onecycle_callback import CycleCheckpoint
from onecycle_callback.resume.file import RunLock, read_state, write_file
from onecycle_callback.resume.objects import Standing, load

pytestmark = pytest.mark.matrix

CYCLE, TESTS = 'models/run1.cycle', Path(__file__).parent

def fit(path, every=None, cbs=None, make=learner, **kwargs):
    learn = make(path)
    learn.fit_one_cycle(N_EPOCH, .05, cbs=cbs, checkpoint=CycleCheckpoint('run1', every=every), **kwargs)
    return learn

@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    learn = learner(tmp_path_factory.mktemp('uninterrupted'))
    learn.fit_one_cycle(N_EPOCH, .05)
    return results(learn)

def saved(path): return read_state(path / CYCLE)

# What ends a fit early

class Limit(Callback):
    "End the fit in `event`, after `at` batches, as a limit of time does: once."
    def __init__(self, event, at, order=0):
        self.at, self.order = at, order
        setattr(self, event, self._end)
    def _end(self):
        if self.training and self.train_iter >= self.at or self.train_iter > self.at: raise CancelFitException

early = pytest.mark.filterwarnings('ignore:The cycle was stopped early')

STOPS = [('after_batch', 14, (1, 2)), ('after_batch', 24, (1, 12)), ('after_epoch', 20, (2, 0)),
         ('after_batch', 40, (3, 4))]

@early
@pytest.mark.parametrize('every, order, stop', pairs([None, 7], [-20, 0, 100, 20_000], STOPS), ids=str)
def test_a_limit_of_time_is_resumed_where_it_stopped(uninterrupted, tmp_path, capsys, every, order, stop):
    event, at, place = stop
    if order < -10: at -= 1      # such a callback sees the count of the batch before
    fit(tmp_path, every, Limit(event, at, order))
    epoch, n_done = place
    assert f'was stopped early. The same call resumes it in epoch {epoch}, batch {n_done}' in capsys.readouterr().out
    assert (saved(tmp_path)['status'], saved(tmp_path)['epoch'], saved(tmp_path)['done']) == ('running', *place)
    again = fit(tmp_path, every)
    assert f'resumes in epoch {epoch}, batch {n_done}' in capsys.readouterr().out
    assert_same(results(again), uninterrupted)

@early
def test_jobs_of_one_epoch_each(uninterrupted, tmp_path, capsys):
    "A job that is queued again and again makes progress each time."
    for n in range(1, N_EPOCH + 1): fit(tmp_path, cbs=Limit('after_epoch', N_BATCH * n - 1))
    assert 'is complete' not in capsys.readouterr().out and saved(tmp_path)['status'] == 'complete'
    assert_same(results(fit(tmp_path)), uninterrupted)

@early
@pytest.mark.parametrize('event', ['before_batch', 'after_loss', 'after_train', 'before_validate', 'after_validate',
                                   'before_epoch', 'before_train'])
def test_a_limit_in_another_event_keeps_the_last_file(uninterrupted, tmp_path, event):
    fit(tmp_path, 7, Limit(event, 20))
    assert saved(tmp_path)['status'] == 'running'
    assert_same(results(fit(tmp_path, 7)), uninterrupted)

@pytest.mark.parametrize('order', [0, 20_000])
def test_a_limit_before_the_first_batch(uninterrupted, tmp_path, order):
    class Closed(Callback):
        def before_fit(self): raise CancelFitException
    cb = Closed()
    cb.order = order
    fit(tmp_path, cbs=cb)
    assert not (tmp_path / CYCLE).exists() or saved(tmp_path)['status'] == 'running'
    assert_same(results(fit(tmp_path)), uninterrupted)

@early
@pytest.mark.parametrize('also', [None, 'limit'])
def test_early_stopping_is_for_good(tmp_path, capsys, also):
    def cbs():
        return [EarlyStoppingCallback(min_delta=10., patience=1)] + [Limit('after_epoch', 23)] * (also == 'limit')
    n = len(fit(tmp_path, cbs=cbs()).recorder.losses)
    assert n == 2 * N_BATCH and saved(tmp_path)['status'] == 'complete, ended early in epoch 1'
    assert len(fit(tmp_path, cbs=cbs()).recorder.losses) == n

@early
@pytest.mark.filterwarnings('ignore:.*invalid value')
def test_a_loss_that_is_nan_is_for_good(tmp_path):
    class Poison(Callback):
        def after_loss(self):
            if self.training and self.train_iter == 15: self.learn.loss = self.loss * float('nan')
    fit(tmp_path, cbs=[TerminateOnNaNCallback(), Poison()])
    assert saved(tmp_path)['status'].startswith('complete, ended early in epoch 1')

@early
@pytest.mark.parametrize('event, at', [('after_batch', 20), ('after_epoch', 20)])
def test_a_callback_that_puts_back_what_it_changed_when_a_fit_is_stopped(tmp_path, event, at):
    "`MixUp` trains with another loss function."
    calm = learner(tmp_path)
    calm.fit_one_cycle(N_EPOCH, .05, cbs=MixUp())
    expected = results(calm)
    fit(tmp_path, cbs=[MixUp(), Limit(event, at)])
    assert_same(results(fit(tmp_path, cbs=MixUp())), expected)

@early
def test_the_same_learner_after_a_limit(uninterrupted, tmp_path):
    learn, limit = learner(tmp_path), Limit('after_batch', 20)
    for cbs in (limit, None): learn.fit_one_cycle(N_EPOCH, .05, cbs=cbs, checkpoint='run1')
    assert_same(results(learn), uninterrupted)

def test_the_same_learner_before_the_second_save(uninterrupted, tmp_path):
    "What layers remember without a `state_dict` is that of the beginning again."
    learn = learner(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(N_EPOCH, .05, cbs=Interrupt(5, KeyboardInterrupt), checkpoint='run1')
    learn.fit_one_cycle(N_EPOCH, .05, checkpoint='run1')
    assert_same(results(learn), uninterrupted)

# SIGTERM, in processes that are really sent one

class Term(Callback):
    "Send SIGTERM to this process after batch `at`, or in the middle of the validation that follows."
    def __init__(self, at, where): self.at, self.where = at, where
    def _term(self): os.kill(os.getpid(), signal.SIGTERM)
    def after_batch(self):
        if self.training and self.train_iter == self.at and self.where != 'validation': self._term()
    def after_pred(self):
        if not self.training and self.train_iter == self.at and self.iter == 0 and self.where == 'validation':
            self._term()

def with_workers(where): return partial(learner, workers=2 * (where == 'workers'))

def train_and_term(path, at, where):
    if where == 'handler': signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    train = partial(fit, path, 100, Term(at, where), with_workers(where))
    if where != 'thread': return train()
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()

SCRIPT = f"""import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {str(TESTS)!r})
from test_runs import Path, train_and_term
train_and_term(Path(sys.argv[1]), int(sys.argv[2]), 'batch')"""

def exit_code(path, at, where):
    "Run `train_and_term` in a process of its own, a script in one case; return its exit code, and what it printed."
    if where == 'script':
        run = fresh.python(SCRIPT, path, at)
        return run.returncode, run.stdout + run.stderr
    process = fork(train_and_term, path, at, where, out=path / 'out')
    process.join(300)
    return process.exitcode, (path / 'out').read_text(encoding='utf-8')

@pytest.mark.slow
@pytest.mark.fork
@pytest.mark.sigkill
@pytest.mark.parametrize('where, at, status, place', [
    ('script', 14, -signal.SIGTERM, (1, 2)), ('workers', 14, -signal.SIGTERM, (1, 2)),
    ('validation', 24, -signal.SIGTERM, (2, 0)),
    ('handler', 14, 7, (1, 2)), ('thread', 14, -signal.SIGTERM, None)])
def test_sigterm_waits_for_the_file(uninterrupted, tmp_path, where, at, status, place):
    code, printed = exit_code(tmp_path, at, where)
    assert code == status, printed
    if place: assert 'got SIGTERM. The same call resumes it in epoch {}, batch {}'.format(*place) in printed
    found = saved(tmp_path)
    assert found['status'] == 'running' and place in (None, (found['epoch'], found['done']))
    resumed = results(fit(tmp_path, 100, make=with_workers(where)))
    if where != 'workers': assert_same(resumed, uninterrupted)

def test_the_handler_of_before_is_back(tmp_path):
    seen, before = [], signal.getsignal(signal.SIGTERM)
    class Look(Callback):
        def before_epoch(self): seen.append(signal.getsignal(signal.SIGTERM))
    fit(tmp_path, cbs=Look())
    learner(tmp_path).fit_one_cycle(1, .05, cbs=Look())
    assert all(handler != before for handler in seen[:-1]) and seen[-1] == before == signal.getsignal(signal.SIGTERM)

# One run at a time

class Hold(Callback):
    "Say that batch 14 is reached, and wait there."
    def __init__(self, said): self.said = said
    def after_batch(self):
        if self.training and self.train_iter == 14:
            self.said.touch()
            time.sleep(600)

def start_holding(path, workers=0):
    "Start a process that trains the run for ten minutes, unless it is killed."
    said = path / 'held'
    process = fork(fit, path, None, Hold(said), partial(learner, workers=workers), out=path / 'out')
    while not said.exists():
        assert process.is_alive(), (path / 'out').read_text(encoding='utf-8')
        time.sleep(.01)
    return process

@pytest.mark.slow
@pytest.mark.fork
@pytest.mark.sigkill
@pytest.mark.parametrize('workers', [0, 2])
def test_a_second_process_is_refused_until_the_first_is_killed(uninterrupted, tmp_path, workers):
    process = start_holding(tmp_path, workers)
    try:
        before = (tmp_path / CYCLE).read_bytes()
        learn = learner(tmp_path)
        with pytest.raises(BlockingIOError,
                           match=f"checkpoint 'run1' is in use: process {process.pid} on .* trains it now"):
            learn.fit_one_cycle(N_EPOCH, .05, checkpoint='run1')
        assert learn.opt is None and (tmp_path / CYCLE).read_bytes() == before
        with pytest.raises(BlockingIOError):
            learner(tmp_path).fit_one_cycle(1, .1, checkpoint=CycleCheckpoint('run1', restart=True))
        learner(tmp_path).fit_one_cycle(1, .1, checkpoint='run2')
    finally:
        process.kill()
        process.join()
    fit(tmp_path) if workers else assert_same(results(fit(tmp_path)), uninterrupted)
    assert sorted(os.listdir(tmp_path / 'models')) == ['run1.cycle', 'run2.cycle']

def test_two_learners_of_one_process(tmp_path):
    class Second(Callback):
        def after_batch(self):
            if self.training and self.train_iter == 2:
                with pytest.raises(BlockingIOError, match=f'process {os.getpid()} on'):
                    learner(tmp_path).fit_one_cycle(N_EPOCH, .05, checkpoint='run1')
    fit(tmp_path, cbs=Second())

def test_a_file_that_changes_before_the_lock(tmp_path, monkeypatch):
    "Another process took the run, trained it and left, between the comparison and the lock."
    fit(tmp_path)
    check = RunLock.check
    def check_and_write(self):
        check(self)
        os.utime(self.file, (1, 1))
    monkeypatch.setattr(RunLock, 'check', check_and_write)
    learn = learner(tmp_path)
    with pytest.raises(BlockingIOError, match='has just written .*run1.cycle. Run the same call again'):
        learn.fit_one_cycle(1, .05, checkpoint=CycleCheckpoint('run1', restart=True))
    assert learn.opt is None and os.listdir(tmp_path / 'models') == ['run1.cycle']

@pytest.mark.parametrize('error', [OSError(37, 'No locks available'), NotImplementedError('no flock'),
                                   PermissionError(13, 'denied')], ids=repr)
def test_without_locks(uninterrupted, tmp_path, monkeypatch, error):
    def refuse(self, *args, **kwargs): raise error
    monkeypatch.setattr('filelock.FileLock.acquire', refuse)
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, cbs=Interrupt(30))
    assert_same(results(fit(tmp_path)), uninterrupted)

def test_a_complete_run_in_a_folder_that_is_only_read(uninterrupted, tmp_path, monkeypatch):
    fit(tmp_path)
    def refuse(*args, **kwargs): raise PermissionError(13, 'denied')
    for name in ('mkdir', 'touch', 'write_text', 'unlink'): monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr('filelock.FileLock.acquire', refuse)
    assert_same(results(fit(tmp_path)), uninterrupted)

def test_parts_of_killed_processes_are_removed(tmp_path):
    folder = tmp_path / 'models'
    folder.mkdir()
    theirs = ['run1.cycle.part', 'run1.cycle.0123abcd.part']
    others = ['run1.cycle.cycle.0123abcd.part', 'run12.cycle.0123abcd.part', 'run1.cycle.notes.part']
    for name in theirs + others: (folder / name).write_text('half a file', encoding='utf-8')
    fit(tmp_path)
    assert sorted(os.listdir(folder)) == sorted(['run1.cycle', *others])

def test_saves_of_two_writers_are_never_mixed(tmp_path):
    "Both write to one name all the time, as they did before there was a lock; every file that is seen is whole."
    path, stop, seen = tmp_path / 'file', threading.Event(), []
    def write(value):
        while not stop.is_set(): write_file(path, torch.full((20_000,), value))
    writers = [threading.Thread(target=write, args=(value,)) for value in (1., 2.)]
    for writer in writers: writer.start()
    while len(seen) < 60:
        if path.exists(): seen.append(load(path.read_bytes()[:-22], Standing())[0].unique().tolist())
        time.sleep(.001)
    stop.set()
    for writer in writers: writer.join()
    assert {len(values) for values in seen} == {1}

# What the file system does

def path_of(descriptor): return Path(os.readlink(f'/proc/self/fd/{descriptor}'))

@pytest.mark.proc
def test_a_file_is_on_the_disk_before_it_takes_the_place_of_the_last(uninterrupted, tmp_path, monkeypatch):
    "After a power cut, the name leads to one of the two, whole."
    steps, replace, file = [], os.replace, Path(os.path.realpath(tmp_path / 'models/run1.cycle'))
    def noted_replace(part, path):
        if path == file: steps.append(('replace', part))
        replace(part, path)
    monkeypatch.setattr(os, 'replace', noted_replace)
    monkeypatch.setattr(os, 'fsync', lambda descriptor: steps.append(('flush', path_of(descriptor))))
    assert_same(results(fit(tmp_path)), uninterrupted)
    for flush, replace, last in zip(*[iter(steps)] * 3, strict=True):
        assert (flush, last) == (('flush', replace[1]), ('flush', file.parent)) and replace[0] == 'replace'
    assert len(steps) >= 3 * N_EPOCH

@pytest.mark.proc
def test_a_folder_that_cannot_be_flushed(uninterrupted, tmp_path, monkeypatch, recwarn):
    def refuse(descriptor):
        if path_of(descriptor).is_dir(): raise OSError(22, 'Invalid argument')
    monkeypatch.setattr(os, 'fsync', refuse)
    assert_same(results(fit(tmp_path)), uninterrupted)
    assert not [w for w in recwarn if 'could not be saved' in str(w.message)]

def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    "Not even under the temporary name, if somebody guesses it."
    (tmp_path / 'models').mkdir()
    precious = tmp_path / 'precious'
    precious.write_text('my notes', encoding='utf-8')
    class Known: hex = '0123abcd' * 4
    monkeypatch.setattr('onecycle_callback.resume.file.uuid4', Known)
    for name in ('run1.cycle.part', 'run1.cycle.lock'): (tmp_path / 'models' / name).symlink_to(precious)
    learner(tmp_path).fit_one_cycle(1, .05, checkpoint='run1')
    (tmp_path / 'models/run1.cycle.0123abcd.part').symlink_to(precious)
    with pytest.raises(FileExistsError): write_file(tmp_path / CYCLE, dict(a=1))
    assert precious.read_text(encoding='utf-8') == 'my notes'

def test_a_name_that_is_a_folder(tmp_path):
    (tmp_path / CYCLE).mkdir(parents=True)
    with pytest.raises(ValueError, match=r'run1\.cycle is a folder. Move it away'): fit(tmp_path)

# What a file belongs to

CALL = dict(cycle_len=2, max_lr=.05, checkpoint='run1')

def layers(p=.3, **kwargs):
    def make(path):
        learn = learner(path, **kwargs)
        learn.model[3].p = p
        return learn
    return make

def with_loss(loss):
    def make(path):
        learn = learner(path)
        learn.loss_func = loss
        return learn
    return make

def with_items(n, loader):
    def make(path):
        learn = learner(path)
        learn.dls.loaders[loader] = DataLoader(items(n), bs=4 if loader == 0 else 10, shuffle=loader == 0)
        return learn
    return make

@pytest.fixture(scope='module')
def complete(tmp_path_factory):
    path = tmp_path_factory.mktemp('complete')
    learner(path).fit_one_cycle(**CALL)
    os.utime(path / CYCLE, (0, time.mktime((2026, 1, 31, 14, 5, 0, 0, 0, -1))))
    return path

@pytest.mark.parametrize('make, why', [
    (layers(p=.5), r'layers 3: Dropout\(p=0.3.*\) in the file, Dropout\(p=0.5.*\) now'),
    (with_loss(CrossEntropyLossFlat(label_smoothing=.1)), 'loss label_smoothing: 0.0 in the file, 0.1 now'),
    (with_loss(partial(nn.functional.cross_entropy, label_smoothing=.1)), 'loss function: .* now'),
    (with_items(47, 0), 'n_train: 46 in the file, 47 now'),
    (with_items(22, 1), r'n_valid: \[20\] in the file, \[22\] now')],
    ids=['dropout', 'loss', 'loss function', 'training set', 'validation set'])
def test_another_run_is_refused(complete, make, why):
    with pytest.raises(ValueError, match=f"'run1' belongs to a different run, saved 2026-01-31 14:05: .*{why}"):
        make(complete).fit_one_cycle(**CALL)

def test_a_complete_run_says_since_when(complete, capsys):
    learner(complete).fit_one_cycle(**CALL)
    out = capsys.readouterr().out
    assert 'is complete. It finished on 2026-01-31 14:05. Loaded its weights; nothing was trained.' in out

@pytest.mark.parametrize('first, second, why', [
    (dict(freeze_epochs=1), dict(freeze_epochs=0),
     "'run1' .*fine_tune: .*freeze_epochs=1.* in the file, .*freeze_epochs=0.* now"),
    (dict(epochs=2), dict(epochs=3), "'run1_frozen' .*fine_tune: epochs=2, .* in the file, epochs=3, .* now")])
def test_the_cycles_of_fine_tune_know_each_other(tmp_path, first, second, why):
    args = dict(epochs=2, base_lr=.05, checkpoint='run1')
    learner(tmp_path).fine_tune(**args | first)
    with pytest.raises(ValueError, match=why): learner(tmp_path).fine_tune(**args | second)

def rewrite(path, **changes):
    "Change what the fingerprint in a file says."
    state = read_state(path)
    state['work'] |= {name: change(state['work'][name]) for name, change in changes.items()}
    write_file(path, state)

def test_the_last_bit_of_a_learning_rate_is_no_difference(uninterrupted, tmp_path):
    "Another CPU rounds a power in another way."
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, cbs=Interrupt(30))
    rewrite(tmp_path / CYCLE, schedule=lambda lrs: {name: repr(float(lr) * (1 + 4e-16)) for name, lr in lrs.items()})
    assert_same(results(fit(tmp_path)), uninterrupted)

@pytest.mark.parametrize('changes, why',
                         [(dict(schedule=lambda lrs: lrs | {'at batch 9': repr(float(lrs['at batch 9']) * (1 + 1e-8))}),
                           'schedule at batch 9'),
                                          (dict(max_lr=lambda lr: repr(float(lr) * (1 + 4e-16))), 'max_lr')],
                                          ids=['learning rate', 'argument'])
def test_other_differences_are(tmp_path, changes, why):
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, cbs=Interrupt(30))
    rewrite(tmp_path / CYCLE, **changes)
    with pytest.raises(ValueError, match=f'different run, .*{why}'): fit(tmp_path)

def test_another_number_of_workers_is_noted_before_training(tmp_path):
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, cbs=Interrupt(30))
    seen = []
    class Look(Callback):
        def before_fit(self): seen.append(len(caught))
    message = r"'run1': the data loaders had \[0, 0\] workers .* and have \[1, 0\] now. Random numbers"
    with pytest.warns(UserWarning, match=message) as caught:
        fit(tmp_path, cbs=Look(), make=partial(learner, workers=1))
    assert seen[0] >= 1

def test_the_same_number_of_workers_is_not(tmp_path, recwarn):
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, cbs=Interrupt(30))
    fit(tmp_path)
    assert not [w for w in recwarn if 'workers' in str(w.message)]

# A log that is appended to

@pytest.mark.parametrize('every, at, order', [(None, 30, 20_000), (7, 30, 20_000), (None, 24, 9_000)])
def test_a_log_that_is_appended_to_gets_no_row_twice(tmp_path, every, at, order):
    "Interrupted in an epoch, or between the row of an epoch and the save."
    def read(path):
        return [line.split(',')[:4] for line in (path / 'history.csv').read_text(encoding='utf-8').splitlines()]
    def log(): return CSVLogger(append=True)
    calm = tmp_path / 'calm'
    calm.mkdir()
    for path in (calm, tmp_path): (path / 'history.csv').write_text('epoch,old,rows,here\n0,1,2,3\n', encoding='utf-8')
    fit(calm, every, log())
    class Die(Callback):
        def after_epoch(self):
            if self.train_iter == at: raise RuntimeError('interrupted')
    stop = Interrupt(at) if order > 10_000 else Die()
    stop.order = order
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, every, [log(), stop])
    fit(tmp_path, every, log())
    assert read(tmp_path) == read(calm) and len(read(calm)) == 2 + 1 + N_EPOCH

# A loader that tells its own place

LOADED: list = []     # the batches that were loaded, in any process so far

class TellsItsPlace:
    "A loader that shuffles with a generator of its own, and can begin anywhere in an epoch."
    def __init__(self, data, bs, workers=0):
        self.data, self.bs, self.num_workers, self.generator = data, bs, workers, torch.Generator().manual_seed(3)
        self.begin, self.order = 0, None
    def __len__(self): return -(-len(self.data) // self.bs)
    def __iter__(self):
        begin, self.begin = self.begin, 0
        if begin == 0: self.order = torch.randperm(len(self.data), generator=self.generator)
        for self.at in range(begin, len(self)):
            LOADED.append(self.at)
            batch = [self.data[i] for i in self.order[self.at * self.bs:(self.at + 1) * self.bs]]
            yield tuple(map(torch.stack, zip(*batch)))
    def state_dict(self): return dict(begin=self.at + 1, order=self.order)
    def load_state_dict(self, state): self.begin, self.order = state['begin'], state['order']

def tells_its_place(path, **kwargs):
    learn = learner(path)
    learn.dls.loaders[0] = TellsItsPlace(items(46), 4, **kwargs)
    return learn

def torchdata_loader(path, workers=0, generator=None):
    from torchdata.stateful_dataloader import StatefulDataLoader
    learn = learner(path)
    learn.dls.loaders[0] = StatefulDataLoader(items(46), batch_size=4, shuffle=True, num_workers=workers,
                                              generator=generator and generator())
    return learn

def new_generator(): return torch.Generator().manual_seed(3)
LOADERS = {'own': tells_its_place, 'torchdata': torchdata_loader,
           'torchdata, a generator': partial(torchdata_loader, generator=new_generator),
           'torchdata, two workers': partial(torchdata_loader, workers=2)}

PLACES = [(7, 30), (7, 36), (12, 12), (None, 30)]

@pytest.fixture(scope='module')
def uninterrupted_with(tmp_path_factory):
    @cache
    def run(name):
        learn = LOADERS[name](tmp_path_factory.mktemp('uninterrupted'))
        learn.fit_one_cycle(N_EPOCH, .05)
        return results(learn)
    return run

@pytest.mark.filterwarnings('ignore:.*random states inside the workers')
@pytest.mark.parametrize('place, name', [*product(PLACES, ['own']), *each(PLACES, [*LOADERS][1:])], ids=str)
def test_a_loader_with_a_state_is_asked_for_its_place(uninterrupted_with, tmp_path, name, place):
    every, at = place
    if 'torchdata' in name: pytest.importorskip('torchdata')
    make, expected = LOADERS[name], uninterrupted_with(name)
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, every, Interrupt(at), make)
    n_left = N_EPOCH * N_BATCH - at // (every or N_BATCH) * (every or N_BATCH)
    LOADED.clear()
    assert_same(results(fit(tmp_path, every, make=make)), expected)
    if name == 'own': assert len(LOADED) == n_left

def test_workers_of_such_a_loader_are_noted(tmp_path):
    make = partial(tells_its_place, workers=2)
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, 7, Interrupt(30), make)
    with pytest.warns(UserWarning, match="'run1' does not restore random states inside the workers"):
        fit(tmp_path, 7, make=make)
