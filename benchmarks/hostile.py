"""Attack runs of a checkpoint in all ways at once, and check that each ends as if nothing had happened.

`python benchmarks/crash.py --hostile 200` draws one run after another: a data loader, some callbacks, how often to
save. It trains the run without a checkpoint first. Then it starts processes that are killed at a batch or in a save,
get SIGTERM or Ctrl-C, or stop at a limit, until one of them finishes; now and then two start at once on one name. After
each process the file has to be whole, and copies of it, each damaged at a place that is drawn, have to be refused. At
the end, weights, losses, `hps` and what the callbacks remember are compared with the first training. It goes on until
so many processes were killed, and the same seed draws the same again."""
import os
import signal
import sys
import tempfile
import warnings
from collections import Counter, deque
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch
from fastai.basics import (Adam, Callback, CancelFitException, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner,
                           OptimWrapper, accuracy, partial, set_seed)
from fastai.callback.mixup import MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.schedule import ParamScheduler, combined_cos
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import GradientAccumulation
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Sampler

from kills import NAME, Kill, checkpoint_file, is_torn, resumes, same, unfinished_save
from onecycle_callback import CycleCheckpoint
from onecycle_callback.resume.file import read_state

EPOCHS, BS, N_ITEMS = 3, 32, 384
N_BATCH = N_ITEMS // BS

# Loaders

class ByEpoch(Sampler):
    "Shuffle by the number of the epoch, which it counts."
    def __init__(self, n): self.n, self.epoch = n, 0
    def __len__(self): return self.n
    def __iter__(self):
        self.epoch += 1
        return iter(torch.randperm(self.n, generator=torch.Generator().manual_seed(self.epoch)).tolist())

class InPlace(DataLoader):
    "Shuffle the order of the last epoch, as fastai's loader for language models does."
    def __init__(self, items, **kwargs):
        super().__init__(items, **kwargs)
        self.order = list(range(len(items)))
    def get_idxs(self):
        self.rng.shuffle(self.order)
        return self.order

class TellsItsPlace:
    "Tell the place in the epoch, and begin there."
    def __init__(self, items, bs):
        self.items, self.bs, self.begin, self.generator = items, bs, 0, torch.Generator().manual_seed(3)
    def __len__(self): return len(self.items) // self.bs
    def __iter__(self):
        begin, self.begin = self.begin, 0
        if begin == 0: self.order = torch.randperm(len(self.items), generator=self.generator)
        for self.at in range(begin, len(self)):
            batch = [self.items[i] for i in self.order[self.at * self.bs:][:self.bs]]
            yield torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch])
    def state_dict(self): return dict(begin=self.at + 1, order=self.order)
    def load_state_dict(self, state): self.begin, self.order = state['begin'], state['order']

def of_torch(items, **kwargs): return torch.utils.data.DataLoader(items, batch_size=BS, **kwargs)

LOADERS = {'fastai': lambda items: DataLoader(items, bs=BS, shuffle=True),
           'two workers': lambda items: DataLoader(items, bs=BS, shuffle=True, num_workers=2),
           'in place': lambda items: InPlace(items, bs=BS, shuffle=True),
           'generator': lambda items: of_torch(items, shuffle=True, generator=torch.Generator().manual_seed(5)),
           'sampler': lambda items: of_torch(items, sampler=ByEpoch(len(items))),
           'place': lambda items: TellsItsPlace(items, BS)}

# Callbacks

class Looking(Callback):
    "Predict, or validate, in the middle of the fit."
    order, is_busy = 200, False     # for all of them: fastai's lock would wait for itself
    def __init__(self, event, inner):
        self.inner = inner
        setattr(self, event, self.look)
    def look(self):
        if Looking.is_busy or 'after_batch' in vars(self) and (not self.training or self.iter != 5): return
        Looking.is_busy = True
        if self.inner is None: self.learn.validate()
        else: self.learn.get_preds(inner=self.inner)
        Looking.is_busy = False

class Average(Callback):
    "Keep an average of the weights, in a model that is made on the way."
    model_average = None
    def after_batch(self):
        if not self.training: return
        if self.model_average is None: self.model_average = AveragedModel(self.learn.model)
        self.model_average.update_parameters(self.learn.model)

class Clamp(Callback):
    "Clamp the weights, by a list of them."
    def before_fit(self): self.params = list(self.learn.model.parameters())
    def after_step(self):
        with torch.no_grad():
            for p in self.params: p.clamp_(-.2, .2)

class Window(Callback):
    "Remember the last losses, and let them scale the next."
    def before_fit(self): self.last = deque(maxlen=5)
    def after_loss(self):
        if not self.training: return
        if self.last: self.learn.loss_grad = self.loss_grad * (1 + torch.stack(list(self.last)).mean())
        self.last.append(self.loss_grad.detach())

class Exports(Callback):
    "Copy the Learner at the end of each epoch."
    def after_epoch(self):
        with self.learn.removed_cbs(self) as learn: twin = deepcopy(learn)
        assert not any('Cycle' in type(cb).__name__ for cb in twin.cbs)

CALLBACKS = {'predict': lambda: Looking('before_epoch', False), 'predict inside': lambda: Looking('after_batch', True),
             'validate': lambda: Looking('after_epoch', None), 'average': Average, 'clamp': Clamp, 'window': Window,
             'accumulation': lambda: GradientAccumulation(3 * BS), 'mixup': MixUp,
             'log': lambda: CSVLogger(append=True),
             'schedule': lambda: ParamScheduler(dict(wd=combined_cos(.3, 0., .1, .01))), 'best': SaveModelCallback,
             'copy': Exports}

OPTS = {'Adam': Adam, 'AdamW': partial(OptimWrapper, opt=torch.optim.AdamW)}

class Case:
    "A run that is drawn: its Learner, its callbacks and how often it is saved."
    def __init__(self, rng):
        self.loader, self.opt = rng.choice(list(LOADERS)), rng.choice(list(OPTS))
        self.cbs = rng.sample(list(CALLBACKS), rng.randint(0, 4))
        if 'validate' in self.cbs:     # fastai's validation would close the log, and load the best weights
            self.cbs = [name for name in self.cbs if name not in ('log', 'best')]
        # An open file cannot be copied
        if 'copy' in self.cbs: self.cbs = [name for name in self.cbs if name != 'log']
        self.every, self.tied, self.seed = rng.choice([None, 1, 3, 7]), rng.random() < .3, rng.randrange(1000)

    def __repr__(self):
        cbs = ', '.join(self.cbs) or 'no callbacks'
        return f'{self.loader}, {self.opt}, every={self.every}, tied={self.tied}: {cbs}'

    def learner(self, folder):
        set_seed(self.seed)
        data = load_digits()
        items = list(zip(torch.tensor(data.data, dtype=torch.float32) / 16, data.target.tolist()))
        dls = DataLoaders(LOADERS[self.loader](items[:N_ITEMS]), DataLoader(items[1500:1628], bs=64), path=folder,
                          device='cpu')
        model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(.3), nn.Linear(32, 32),
                              nn.Linear(32, 10))
        if self.tied: model[4].weight = nn.Parameter(model[4].weight @ model[4].weight.T)
        return Learner(dls, model, loss_func=CrossEntropyLossFlat(), opt_func=OPTS[self.opt], metrics=accuracy,
                       path=folder)

# What is done to a process

class Stop(Callback):
    "Stop this fit after batch `at`: by SIGTERM, Ctrl-C or a limit."
    order = 0
    def __init__(self, how, at): self.how, self.at = how, at
    def after_batch(self):
        if not self.training or self.train_iter != self.at: return
        if self.how == 'SIGTERM': os.kill(os.getpid(), signal.SIGTERM)
        if self.how == 'Ctrl-C': raise KeyboardInterrupt
        if self.how == 'limit': raise CancelFitException

def drawn_attack(case, rng):
    "Draw what to do to a process: twice out of three times, kill it."
    if rng.random() < 2 / 3:
        place = rng.choice(Kill.places)
        return Kill(place, rng.randint(1, 14 if place == 'batch' else 3))
    # At the end of a fit fastai loads the best weights, if there are any or not
    first = N_BATCH + 1 if 'best' in case.cbs else 1
    return Stop(rng.choice(['SIGTERM', 'Ctrl-C', 'limit']), rng.randint(first, EPOCHS * N_BATCH))

class Trains(Callback):
    "Note that this process trains, and doesn't only load a complete cycle."
    n = 0
    def before_fit(self): self.n += 1

REFUSED, INTERRUPTED, STOPPED = 3, 4, 5     # exit codes of a child

def child(folder, case, checkpoint, attack):
    "Train in a process of its own, and write the result to a file if the cycle is complete."
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(folder/'log', 'a', buffering=1, encoding='utf-8')
    warnings.showwarning = lambda message, *_: print(message)
    learn, cbs, trains = case.learner(folder), [CALLBACKS[name]() for name in case.cbs], Trains()
    checkpoint = CycleCheckpoint(NAME, every=case.every) if checkpoint else None
    try: learn.fit_one_cycle(EPOCHS, .01, cbs=[*cbs, trains, *([attack] if attack else [])], checkpoint=checkpoint)
    except BlockingIOError: sys.exit(REFUSED)
    except KeyboardInterrupt: sys.exit(INTERRUPTED)
    if len(learn.recorder.values) < EPOCHS: sys.exit(STOPPED)     # at the last batch too
    r = learn.recorder
    result = dict(weights=learn.model.state_dict(), losses=[float(loss) for loss in r.losses], hps=r.hps,
                  starts=r.starts, values=[[float(v) for v in row] for row in r.values])
    torch.save(result, folder/'loaded')
    if not trains.n: return
    averages = [cb.model_average.state_dict() for cb in cbs if isinstance(cb, Average)]
    torch.save(result | dict(averages=averages), folder/'result')

def start(folder, case, checkpoint=True, attack=None):
    process = get_context('fork').Process(target=child, args=(folder, case, checkpoint, attack))
    process.start()
    return process

def damaged(content, rng):
    "Return the bytes of a file after a damage that is drawn: some flipped bits, a block of zeros, or a missing end."
    kind, content = rng.choice(['bits', 'zeros', 'end']), bytearray(content)
    i = rng.randrange(len(content))
    if kind == 'end': return bytes(content[:i])
    if kind == 'zeros': content[i:i + 512] = bytes(len(content[i:i + 512]))
    else:
        for _ in range(rng.randint(1, 3)): content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)

def n_accepted(path, rng, n):
    "Return how many of `n` damages of the file at `path` are tried, and how many are accepted."
    tried = accepted = 0
    content = path.read_bytes() if path.exists() else b''
    for _ in range(n if content else 0):
        bad = damaged(content, rng)
        if bad == content: continue
        tried += 1
        try: read_state(path, bad)
        except ValueError: continue
        accepted += 1
    return tried, accepted

def rows_of(folder):
    "Return the epochs of the rows in a log that is appended to."
    path = folder/'history.csv'
    return [line.split(',')[0] for line in path.read_text(encoding='utf-8').splitlines()] if path.exists() else []

def attack_run(folder, case, rng, figures, max_kills, n_damages):
    "Attack one run until a process finishes it."
    kills = 0
    while True:
        attack = drawn_attack(case, rng) if kills < max_kills and rng.random() < .9 else None
        before, is_pair = unfinished_save(folder), rng.random() < .2
        processes = [start(folder, case, attack=drawn) for drawn in ([attack, None] if is_pair else [attack])]
        for process in processes: process.join(300)
        if any(process.is_alive() for process in processes): raise SystemExit(f'{case} hangs')
        codes = [process.exitcode for process in processes]
        if set(codes) - {0, REFUSED, INTERRUPTED, STOPPED, -signal.SIGKILL, -signal.SIGTERM}:
            raise SystemExit(f'{case}\n' + (folder/'log').read_text(encoding='utf-8')[-3000:])
        kills += codes.count(-signal.SIGKILL)
        figures.update(processes=len(codes), kills=codes.count(-signal.SIGKILL), sigterms=codes.count(-signal.SIGTERM),
                       interrupts=codes.count(INTERRUPTED), limits=codes.count(STOPPED), pairs=is_pair,
                       refused=codes.count(REFUSED), torn_files=is_torn(folder),
                       kills_inside_a_save=unfinished_save(folder) not in (None, before))
        tried, accepted = n_accepted(checkpoint_file(folder), rng, n_damages)
        figures.update(damages=tried, damages_accepted=accepted)
        if 0 in codes: return

def hostile(n_kills, seed=0, root=None, max_kills=8, n_damages=10):
    "Return the figures of runs that are attacked until `n_kills` processes were killed."
    rng, root, figures = Random(seed), Path(root or tempfile.mkdtemp()), Counter()
    names = ['runs', 'processes', 'kills', 'kills_inside_a_save', 'sigterms', 'interrupts', 'limits', 'pairs',
             'refused', 'resumes', 'damages', 'damages_accepted', 'torn_files', 'different_runs', 'different_logs']
    while figures['kills'] < n_kills:
        case = Case(rng)
        calm, folder = root/f"calm{figures['runs']}", root/f"run{figures['runs']}"
        for f in (calm, folder): f.mkdir()
        start(calm, case, checkpoint=False).join()
        attack_run(folder, case, rng, figures, min(max_kills, n_kills - figures['kills']), n_damages)
        is_same = all(same(*(torch.load(f/name, weights_only=True) for f in (calm, folder)))
                      for name in ('loaded', 'result'))
        is_same_log = rows_of(calm) == rows_of(folder)
        figures.update(runs=1, resumes=len(resumes(folder)), different_runs=not is_same, different_logs=not is_same_log)
        if not (is_same and is_same_log): print(f'different: {case} ({folder})', file=sys.stderr)
        print({name: figures[name] for name in names}, file=sys.stderr, flush=True)
    return {name: figures[name] for name in names}
