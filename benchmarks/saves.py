"""Compare the time of a save with one `torch.save` of the same content, and with a copy of it.

`python benchmarks/crash.py --cost-only` trains on a tiny batch with everything a checkpoint holds as large as the table
says: thousands of recorded batches, 300 MB of weights, a constant of 200 MB in a callback. `save` is one at the end of
an epoch, `torch.save` of the state dicts, of all that the recorder holds, with its losses as one tensor, and of the
constant; `flushed` is that with the flush to the disk which keeps a file over a power cut. `stands still` is how long a
save within an epoch (`every=`) holds up training, `copy` how long a `deepcopy` of that content takes. Each is the best
of `rounds`, in milliseconds."""
import gc
import os
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import pandas as pd
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, SGD, set_seed
from torch import nn

from onecycle_callback import CycleCheckpoint

SITUATIONS = {'1,000 recorded batches': dict(n_recorded=1_000), '10,000 recorded batches': dict(n_recorded=10_000),
              '100,000 recorded batches': dict(n_recorded=100_000), '300 MB of weights': dict(megabytes=300),
              'a constant of 200 MB': dict(constant=200),
               'all of it': dict(n_recorded=100_000, megabytes=300, constant=200)}

# 2 GB, where there is a GPU
ON_A_GPU = {'2 GB of weights on the GPU': dict(megabytes=2000, device='cuda')} if torch.cuda.is_available() else {}

class Wide(nn.Module):
    "A model with many weights of which one batch needs few."
    def __init__(self, megabytes):
        super().__init__()
        self.used = nn.Linear(8, 1)
        self.rest = nn.ParameterList([nn.Parameter(torch.randn(250_000)) for _ in range(megabytes)])
    def forward(self, x): return self.used(x)

class Teacher(Callback):
    "Hold a tensor that never changes."
    def __init__(self, megabytes): self.weights = torch.randn(megabytes * 250_000)

class Pretend(Callback):
    "Give the recorder as many batches as if they had been trained."
    order = 8_000
    def __init__(self, n): self.n = n
    def after_batch(self):
        if not self.training: return
        recorder, missing = self.recorder, self.n - len(self.recorder.losses)
        recorder.losses += [loss.clone() for loss in recorder.losses[-1].repeat(max(missing, 0)).unbind()]
        recorder.lrs += [.1 + i / 7 for i in range(missing)]
        for values in recorder.hps.values(): values += [.1 + i / 7 for i in range(missing)]

class After(Callback):
    "Run `f` after each training batch or epoch."
    def __init__(self, order, event, f): self.order, self.event, self.f = order, event, f
    def after_batch(self):
        if self.training and self.event == 'batch': self.f()
    def after_epoch(self):
        if self.event == 'epoch': self.f()

def learner(folder, megabytes, device):
    set_seed(0)
    dl = DataLoader(list(zip(torch.randn(8, 8), torch.randn(8, 1))), bs=8)
    return Learner(DataLoaders(dl, dl, device=device), Wide(megabytes), loss_func=nn.MSELoss(), opt_func=SGD,
                   path=folder)

def timed(f):
    begin = time.perf_counter()
    f()
    return time.perf_counter() - begin

def train(times, name, event, every, folder, sizes, rounds, after=None):
    "Train a cycle of `rounds` epochs of one batch, and note under `name` how long its saves after each `event` take."
    learn = learner(folder, sizes.get('megabytes', 0), sizes.get('device', 'cpu'))
    teacher, begin = Teacher(sizes.get('constant', 0)), 0.
    def start():
        nonlocal begin
        gc.collect()
        if torch.cuda.is_available(): torch.cuda.synchronize()
        begin = time.perf_counter()
    def stop():
        times[name].append(time.perf_counter() - begin)
        if after: after(learn, teacher)
    # A checkpoint is saved between the last two
    cbs = [teacher, Pretend(sizes.get('n_recorded', 0)), After(9_000, event, start), After(20_000, event, stop)]
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(rounds, 1e-3, checkpoint=CycleCheckpoint('cost', every=every, restart=True), cbs=cbs)

def measure(rounds, **sizes):
    "Return the best times in milliseconds, and the sizes of both files in megabytes."
    times = {name: [] for name in ('save', 'torch.save', 'flushed', 'stands still', 'copy')}
    with tempfile.TemporaryDirectory() as name:
        folder, plain = Path(name), Path(name)/'plain'
        def save(content, flush):
            with open(plain, 'wb') as f:
                torch.save(content, f)
                if flush: os.fsync(f.fileno())
        def compare(learn, teacher):
            r = learn.recorder
            content = dict(weights=learn.model.state_dict(), opt=learn.opt.state_dict(),
                           losses=torch.stack(r.losses), lrs=r.lrs, hps=r.hps, values=r.values,
                           constant=teacher.weights)
            times['torch.save'].append(timed(lambda: save(content, False)))
            times['flushed'].append(timed(lambda: save(content, True)))
            times['copy'].append(timed(lambda: deepcopy(content)))
        train(times, 'save', 'epoch', None, folder, sizes, rounds, compare)
        megabytes = {'MB': (folder/'models/cost.cycle').stat().st_size / 1e6,
                     'torch.save MB': plain.stat().st_size / 1e6}
        train(times, 'stands still', 'batch', 1, folder, sizes, rounds)
    return {name: 1e3 * min(values[1:]) for name, values in times.items()} | megabytes

def costs(rounds=6):
    "Return the table."
    torch.set_num_threads(1)
    table = pd.DataFrame({name: measure(rounds, **sizes) for name, sizes in (SITUATIONS | ON_A_GPU).items()}).T
    table.insert(3, 'save / torch.save', table['save'] / table['torch.save'])
    table.insert(4, 'save / flushed', table['save'] / table['flushed'])
    table.insert(7, 'stands still / copy', table['stands still'] / table['copy'])
    return table
