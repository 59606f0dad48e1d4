"""Kill a cycle again and again, and check that it ends as if nothing had happened.

`python benchmarks/crash.py` trains on scikit-learn's digits with shuffling, dropout, batch norm and Adam, and
`every=7`, in child processes that get SIGKILL at random moments or in the middle of a save, until one of them finishes.
Each has its progress bar and its table, in a log. Then it disturbs three more cycles: one by an exception from a
callback, one by Ctrl-C, and one by a disk that is full for a while. At the end, weights, losses and `hps` are compared
with those of an uninterrupted run without a checkpoint. `--kills 6` kills each cycle six times, at batches and in saves
drawn from the seed: the same ones each time.
`--hostile 200` does worse things to other Learners, see benchmarks/hostile.py, until so many processes were killed.
`--strangers 20000` reads files that a stranger might plant, see benchmarks/strangers.py.
`--cost-only` shows what a save costs instead, see benchmarks/saves.py."""
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch
from fastai.basics import Adam, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, accuracy, set_seed
from fastcore.script import call_parse
from sklearn.datasets import load_digits
from torch import nn

from hostile import hostile as attack
from kills import NAME, Kill, is_torn, resumes, same, unfinished_save
from onecycle_callback import CycleCheckpoint
from saves import costs

EPOCHS, EVERY = 4, 7

def learner(folder):
    "Make the same `Learner` at each start of the script, with all its default callbacks."
    set_seed(0)
    data = load_digits()
    items = list(zip(torch.tensor(data.data, dtype=torch.float32) / 16, data.target.tolist()))
    dls = DataLoaders(DataLoader(items[:1500], bs=64, shuffle=True), DataLoader(items[1500:], bs=64), path=folder)
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), opt_func=Adam, metrics=accuracy, path=folder)

def limit_files(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

class Disturb(Callback):
    "Raise `error` after batch `at`, and limit files to `limit` bytes from there until batch `until`."
    order = 20_000
    def __init__(self, at, error=None, limit=None, until=0):
        self.at, self.error, self.limit, self.until = at, error, limit, until
    def after_batch(self):
        if not self.training: return
        if self.train_iter == self.at and self.limit: limit_files(self.limit)
        if self.train_iter == self.until: limit_files(resource.RLIM_INFINITY)
        if self.train_iter == self.at and self.error: raise self.error

def child(folder, checkpoint, disturb=None):
    "Run one process: train, and write the result to a file."
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(folder/'log', 'a', buffering=1, encoding='utf-8')
    warnings.showwarning = lambda message, *_: print(message)
    learn = learner(folder)
    checkpoint = CycleCheckpoint(NAME, every=EVERY) if checkpoint else None
    learn.fit_one_cycle(EPOCHS, 0.01, cbs=disturb, checkpoint=checkpoint)
    r = learn.recorder
    torch.save(dict(weights=learn.model.state_dict(), losses=[float(loss) for loss in r.losses], hps=r.hps,
                    lrs=list(r.lrs), values=[[float(v) for v in row] for row in r.values]), folder/'result')

def start(folder, checkpoint=True, disturb=None):
    "Start a child process."
    process = get_context('fork').Process(target=child, args=(folder, checkpoint, disturb))
    process.start()
    return process

def result(folder): return torch.load(folder/'result', weights_only=True)

def kill_soon(process, folder, duration, rng):
    "Kill a child at a random moment or in the middle of a save, unless it ends first."
    moment, n_saves = rng.uniform(0.1, 0.9) * duration, rng.randrange(1, 8) if rng.random() < .5 else None
    begin, seen, now = time.perf_counter(), 0, unfinished_save(folder)
    while process.is_alive():
        before, now = now, unfinished_save(folder)
        seen += before is None and now is not None
        is_due = seen >= n_saves if n_saves else time.perf_counter() - begin > moment
        if is_due: return os.kill(process.pid, signal.SIGKILL)

def drawn_kills(n, rng):
    "Draw `n` kills after a few batches or saves, at each place in turn."
    for i in range(n):
        place = Kill.places[i % len(Kill.places)]
        yield Kill(place, rng.randint(1, 12 if place == 'batch' else 2))

def kill_until_done(folder, rng, duration, n_kills=None):
    "Start and kill children until one finishes; return the number of kills, of kills inside a save, and of torn files."
    kills = inside = torn = 0
    drawn = iter(() if n_kills is None else drawn_kills(n_kills, rng))
    while True:
        before = unfinished_save(folder)
        process = start(folder, disturb=next(drawn, None))
        if n_kills is None: kill_soon(process, folder, duration, rng)
        process.join()
        if process.exitcode == 0: return kills, inside, torn
        if process.exitcode != -signal.SIGKILL: raise SystemExit((folder/'log').read_text(encoding='utf-8')[-2000:])
        kills, torn = kills + 1, torn + is_torn(folder)
        inside += unfinished_save(folder) not in (None, before)

def disturbances():
    "List the other ways a run can be interrupted."
    return dict(exception=Disturb(40, RuntimeError('from a callback')), interrupt=Disturb(50, KeyboardInterrupt()),
                full_disk=Disturb(30, limit=60_000, until=60))     # enough for the log, not for a checkpoint

NAMES = 'runs kills inside_a_save resumes resumes_inside_an_epoch torn_files different_runs'.split()

def crash(runs, seed=0, root=None, n_kills=None):
    "Return the figures of `runs` cycles that are killed, and of one cycle per other disturbance."
    rng, root = Random(seed), Path(root or tempfile.mkdtemp())
    def fresh(name):
        (root/name).mkdir()
        return root/name
    calm = fresh('calm')
    begin = time.perf_counter()
    start(calm, checkpoint=False).join()
    start(warm := fresh('warm')).join()
    duration = (time.perf_counter() - begin) / 2
    expected, figures = result(calm), Counter(dict.fromkeys(NAMES, 0))
    figures.update(different_runs=not same(result(warm), expected))
    for run in range(runs):
        folder = fresh(f'run{run}')
        kills, inside, torn = kill_until_done(folder, rng, duration, n_kills)
        found = resumes(folder)
        figures.update(runs=1, kills=kills, inside_a_save=inside, resumes=len(found), torn_files=torn,
                       resumes_inside_an_epoch=sum(batch > 0 for _, batch in found),
                       different_runs=not same(result(folder), expected))
    for name, disturb in disturbances().items():
        folder = fresh(name)
        start(folder, disturb=disturb).join()
        ended = (folder/'result').exists()
        start(folder).join()
        log = (folder/'log').read_text(encoding='utf-8')
        figures[name] = dict(first_process='ended' if ended else 'died', warned='could not be saved' in log,
                             torn=is_torn(folder), equal=same(result(folder), expected))
    return dict(figures)

@call_parse
def main(
    runs:int=12, # Number of cycles to kill
    seed:int=0, # Seed of the kills
    kills:int=None, # Number of kills per cycle, at drawn batches and saves; default at random moments until it ends
    hostile:int=None, # Number of kills of the hostile mode
    strangers:int=None, # Number of files of strangers to read
    cost_only:bool=False # Only measure the cost of a save
):
    "Kill cycles, or measure the cost of a save, and print the figures."
    if cost_only: return print(costs().round(2).to_string())
    if strangers is not None:
        from strangers import strangers as plant     # which imports this
        figures = plant(strangers, seed)
    else: figures = crash(runs, seed, n_kills=kills) if hostile is None else attack(hostile, seed)
    for k, v in figures.items(): print(f'{k}: {v}')
