"""Compare the time of a save with one `torch.save` of the same content.

`python benchmarks/saves.py` trains on a tiny batch with everything a checkpoint holds as large as the table says: thousands of recorded
batches, 300 MB of weights, a constant of 200 MB in a callback. What is compared is the same Learner's content: the model's and the optimizer's
state dicts, all that its recorder holds and the constant, written by one `torch.save` to a file. `flushed` is `torch.save` with the flush to the disk that
keeps a file over a power cut. Each figure is the best of `rounds`, in seconds."""
import gc
import os
import tempfile
import time
from pathlib import Path

import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, SGD, set_seed
from fastcore.script import call_parse
from torch import nn

import onecycle_callback  # noqa: F401

SITUATIONS = {'1,000 recorded batches': dict(n_recorded=1_000), '10,000 recorded batches': dict(n_recorded=10_000),
              '100,000 recorded batches': dict(n_recorded=100_000), '300 MB of weights': dict(megabytes=300),
              'a constant of 200 MB': dict(constant=200), 'both, and 100,000 batches': dict(n_recorded=100_000, megabytes=300, constant=200)}

class Wide(nn.Module):
    "A model with many weights of which one batch needs few."
    def __init__(self, megabytes):
        super().__init__()
        self.used, self.rest = nn.Linear(8, 1), nn.ParameterList([nn.Parameter(torch.randn(250_000)) for _ in range(megabytes)])
    def forward(self, x): return self.used(x)

class Teacher(Callback):
    "Hold a tensor that never changes."
    def __init__(self, megabytes): self.weights = torch.randn(megabytes * 250_000)

class Pretend(Callback):
    "Give the recorder as many batches as if they had been trained."
    def __init__(self, n): self.n = n
    def after_epoch(self):
        recorder, missing = self.recorder, self.n - len(self.recorder.losses)
        recorder.losses += [loss.clone() for loss in recorder.losses[-1].repeat(max(missing, 0)).unbind()]
        recorder.lrs += [.1 + i / 7 for i in range(missing)]
        for values in recorder.hps.values(): values += [.1 + i / 7 for i in range(missing)]

class Clock(Callback):
    "Run `f` after each epoch."
    def __init__(self, order, f): self.order, self.f = order, f
    def after_epoch(self): self.f()

def learner(folder, megabytes):
    set_seed(0)
    dl = DataLoader(list(zip(torch.randn(8, 8), torch.randn(8, 1))), bs=8)
    return Learner(DataLoaders(dl, dl, device='cpu'), Wide(megabytes), loss_func=nn.MSELoss(), opt_func=SGD, path=folder)

def content(learn, teacher):
    "Return what a checkpoint has to hold, as it stands in the Learner."
    r = learn.recorder
    return dict(weights=learn.model.state_dict(), opt=learn.opt.state_dict(), losses=r.losses, lrs=r.lrs, hps=r.hps, values=r.values, constant=teacher.weights)

def timed(f):
    begin = time.perf_counter()
    f()
    return time.perf_counter() - begin

def measure(n_recorded=10, megabytes=0, constant=0, rounds=5):
    "Return the best times of a save and of `torch.save`, and the sizes of their files in bytes."
    folder = Path(tempfile.mkdtemp())
    learn, teacher, begin = learner(folder, megabytes), Teacher(constant), 0.
    file, plain = folder/'models'/'cost.cycle', folder/'plain'
    times = dict(save=[], torch_save=[], flushed=[], copy=[])

    def start():
        nonlocal begin
        gc.collect()
        begin = time.perf_counter()

    def compare():
        times['save'].append(time.perf_counter() - begin)
        now = content(learn, teacher)
        def save(flush):
            with open(plain, 'wb') as f:
                torch.save(now, f)
                if flush: os.fsync(f.fileno())
        times['torch_save'].append(timed(lambda: save(False)))
        times['flushed'].append(timed(lambda: save(True)))
        times['copy'].append(timed(lambda: [t.clone() for t in now['weights'].values()]))

    cbs = [teacher, Pretend(n_recorded), Clock(9_000, start), Clock(20_000, compare)]      # a checkpoint is saved between these two
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(rounds, 1e-3, checkpoint='cost', cbs=cbs)
    best = {name: min(values[1:]) for name, values in times.items()}
    sizes = file.stat().st_size, plain.stat().st_size
    for path in (file, plain): path.unlink()
    return best, sizes

@call_parse
def main(
    rounds:int=6 # Number of saves
):
    "Print the table."
    torch.set_num_threads(1)
    print(f'{"":28}{"save":>9}{"torch.save":>12}{"flushed":>9}{"ratio":>7}{"to flushed":>12}{"MB":>8}{"torch.save MB":>15}')
    for name, situation in SITUATIONS.items():
        best, sizes = measure(**situation, rounds=rounds)
        print(f'{name:28}{best["save"]:9.4f}{best["torch_save"]:12.4f}{best["flushed"]:9.4f}{best["save"] / best["torch_save"]:7.2f}'
              f'{best["save"] / best["flushed"]:12.2f}{sizes[0] / 1e6:8.1f}{sizes[1] / 1e6:15.1f}')
