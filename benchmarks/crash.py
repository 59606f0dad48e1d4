"""Kill a cycle again and again, and check that it ends as if nothing had happened.

`python benchmarks/crash.py` trains on scikit-learn's digits with shuffling, dropout, batch norm and Adam, and `every=7`, in
child processes that get SIGKILL at random moments or in the middle of a save, until one of them finishes. Then it does the
same once each with an exception from a callback, Ctrl-C, and a disk that is full for a while. At the end, weights, losses
and `hps` are compared with those of an uninterrupted run without a checkpoint. `--cost-only` compares the time of a save
with one `torch.save` of the same state instead."""
import os
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
from fastcore.basics import noop
from fastcore.script import call_parse
from sklearn.datasets import load_digits
from torch import nn

from onecycle_callback.checkpoint import CycleCheckpoint, read_state, write_file
from onecycle_callback.state import plain

EPOCHS, EVERY, NAME = 4, 7, 'crash'

def learner(folder):
    "Make the same `Learner` at each start of the script."
    set_seed(0)
    data = load_digits()
    items = list(zip(torch.tensor(data.data, dtype=torch.float32) / 16, data.target.tolist()))
    dls = DataLoaders(DataLoader(items[:1500], bs=64, shuffle=True), DataLoader(items[1500:], bs=64), path=folder)
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), opt_func=Adam, metrics=accuracy, path=folder)
    learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else None
    learn.logger = noop
    return learn

class Disturb(Callback):
    "Raise `error` after batch `at`, and limit files to `limit` bytes from there until batch `until`."
    order = 20_000
    def __init__(self, at, error=None, limit=None, until=0): self.at, self.error, self.limit, self.until = at, error, limit, until
    def after_batch(self):
        if not self.training: return
        if self.train_iter == self.at and self.limit: resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))
        if self.train_iter == self.until: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if self.train_iter == self.at and self.error: raise self.error

def child(folder, checkpoint, disturb=None):
    "Run one process: train, and write the result to a file."
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(folder/'log', 'a', buffering=1)
    warnings.showwarning = lambda message, *_: print(message)
    learn = learner(folder)
    learn.fit_one_cycle(EPOCHS, 0.01, cbs=disturb, checkpoint=CycleCheckpoint(NAME, every=EVERY) if checkpoint else None)
    r = learn.recorder
    write_file(folder/'result', plain(dict(weights=learn.model.state_dict(), losses=r.losses, hps=r.hps, values=[list(v) for v in r.values], lrs=r.lrs)))

def start(folder, checkpoint=True, disturb=None):
    "Start a child process."
    process = get_context('fork').Process(target=child, args=(folder, checkpoint, disturb))
    process.start()
    return process

def same(a, b):
    "Check whether two results are equal in every bit."
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list): return len(a) == len(b) and all(map(same, a, b))
    return a == b

def result(folder): return torch.load(folder/'result', weights_only=True)

def is_torn(folder):
    "Check whether there is a checkpoint that cannot be read."
    path = folder/'models'/f'{NAME}.cycle'
    try: read_state(path.read_bytes(), path) if path.exists() else None
    except ValueError: return True
    return False

def kill_until_done(folder, duration, rng):
    "Start and kill children until one finishes; return the number of kills, of kills inside a save, and of torn files."
    kills = inside = torn = 0
    part = folder/'models'/f'{NAME}.cycle.part'
    while True:
        process, seen, stop = start(folder), 0, rng.uniform(0.1, 0.9) * duration
        saves = rng.randrange(1, 8) if rng.random() < .5 else None     # kill in the middle of this save, or after some time
        begin, there = time.perf_counter(), False
        while process.is_alive():
            was, there = there, part.exists()
            seen += there and not was
            if (saves and seen >= saves) or (not saves and time.perf_counter() - begin > stop):
                os.kill(process.pid, signal.SIGKILL)
                break
        process.join()
        if process.exitcode == 0: return kills, inside, torn
        if process.exitcode != -signal.SIGKILL: raise SystemExit((folder/'log').read_text()[-2000:])
        kills, inside, torn = kills + 1, inside + part.exists(), torn + is_torn(folder)

def disturbances():
    "List the other ways a run can be interrupted."
    return dict(exception=Disturb(40, RuntimeError('from a callback')), interrupt=Disturb(50, KeyboardInterrupt()), full_disk=Disturb(30, limit=10_000, until=60))

def crash(runs, seed=0, root=None):
    "Return the figures of `runs` cycles that are killed, and of one cycle per other disturbance."
    rng, root = Random(seed), Path(root or tempfile.mkdtemp())
    def fresh(name):
        (root/name).mkdir()
        return root/name
    calm = fresh('calm')
    begin = time.perf_counter()
    start(calm, checkpoint=False).join()
    start(warm := fresh('warm')).join()
    duration = time.perf_counter() - begin
    expected, figures = result(calm), dict(runs=0, kills=0, inside_a_save=0, resumes=0, resumes_inside_an_epoch=0, torn_files=0, different_runs=0)
    figures['different_runs'] += not same(result(warm), expected)
    for run in range(runs):
        folder = fresh(f'run{run}')
        kills, inside, torn = kill_until_done(folder, duration / 2, rng)
        batches = [int(b) for b in re.findall(r'in epoch \d+, batch (\d+)', (folder/'log').read_text())]
        for k, v in dict(runs=1, kills=kills, inside_a_save=inside, resumes=len(batches), resumes_inside_an_epoch=sum(b > 0 for b in batches),
                         torn_files=torn, different_runs=not same(result(folder), expected)).items(): figures[k] += v
    for name, disturb in disturbances().items():
        folder = fresh(name)
        start(folder, disturb=disturb).join()
        ended = (folder/'result').exists()
        start(folder).join()
        log = (folder/'log').read_text()
        figures[name] = dict(first_process='ended' if ended else 'died', warned='could not be saved' in log, torn=is_torn(folder), equal=same(result(folder), expected))
    return figures

def cost(n=25_000_000, rounds=9):
    "Time a save and one `torch.save` of the same state, with `n` weights and Adam: the best of `rounds`, in seconds."
    folder = Path(tempfile.mkdtemp())
    model = nn.Sequential(*[nn.Linear(1000, n // 4000) for _ in range(4)])
    x, y = torch.randn(8, 1000), torch.randn(8, n // 4000)
    class Sum(nn.Module):
        def __init__(self): super().__init__(); self.layers = model
        def forward(self, x): return sum(layer(x) for layer in self.layers)
    dl = DataLoader(list(zip(x, y)), bs=8)
    learn = Learner(DataLoaders(dl, dl), Sum(), loss_func=nn.MSELoss(), path=folder)
    times = dict(checkpoint=[], torch_save=[], torch_save_and_fsync=[])
    def timed(name, f):
        begin = time.perf_counter()
        f()
        times[name].append(time.perf_counter() - begin)
    class Time(Callback):
        order = 20_000
        def after_epoch(self):
            keep = self.learn.cycle_checkpoint
            state = torch.load(keep.path, weights_only=True)
            def plain_save(): torch.save(state, folder/'plain')
            def flushed_save():
                torch.save(state, folder/'plain')
                with open(folder/'plain', 'rb+') as f: os.fsync(f.fileno())
            timed('checkpoint', lambda: keep._save(1, 0))
            timed('torch_save', plain_save)
            timed('torch_save_and_fsync', flushed_save)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(rounds, 1e-3, checkpoint='cost', cbs=Time())
    size = (folder/'models'/'cost.cycle').stat().st_size
    return dict(megabytes=round(size / 1e6), **{k: round(min(v), 3) for k, v in times.items()},
                to_torch_save=round(min(times['checkpoint']) / min(times['torch_save']), 2), to_torch_save_and_fsync=round(min(times['checkpoint']) / min(times['torch_save_and_fsync']), 2))

@call_parse
def main(
    runs:int=12, # Number of cycles to kill
    seed:int=0, # Seed of the times of the kills
    cost_only:bool=False # Measure what a save costs instead
):
    "Kill cycles, or measure what a save costs, and print the figures."
    for k, v in (cost() if cost_only else crash(runs, seed)).items(): print(f'{k}: {v}')
