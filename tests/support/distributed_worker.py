"""Run jobs in each process of tests/test_distributed.py: `torchrun --nproc_per_node=2 THIS_FILE JOB... FOLDER`.

A job is a function of this file. What it returns in each process is saved as FOLDER/JOB-RANK.pt."""
import itertools
import os
import signal
import sys
from pathlib import Path
from time import sleep

import torch
from torch import nn
from fastai.basics import (Adam, Callback, DataLoader, DataLoaders, L, Learner, OptimWrapper, SGD, num_distrib, partial,
                           rank_distrib, set_seed)
from fastai.callback.training import GradientAccumulation
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from support.helpers import Passes, Spy, Time, dataset, learner
from onecycle_callback import CycleCheckpoint, callback, position
from onecycle_callback.resume.file import read_state
import onecycle_callback.distributed  # noqa: F401

CPU = dict(sync_bn=False, cpu=True)

class Seen(Spy):
    "Also record the items of each training batch."
    def before_fit(self):
        super().before_fit()
        self.items = []
    def before_batch(self):
        super().before_batch()
        if self.training: self.items.append((self.epoch, self.x[:, 0].tolist()))

def state(learn): return [t.tolist() for t in learn.model.state_dict().values()]

def seen(learn, spy, plan):
    return dict(plan_lrs=plan.lrs.tolist(), plan_moms=plan.moms.tolist(), n_batch=plan.n_batch, lrs=spy.seen_lrs,
                moms=spy.seen_moms, items=spy.items, hps=learn.recorder.hps, weights=state(learn),
                values=[list(v) for v in learn.recorder.values], mom_after=[h['mom'] for h in learn.opt.hypers])

def trained(learn, *args):
    "Train a cycle in `distrib_ctx`, each process starting from other weights; return it with its preview."
    spy = Seen()
    with torch.no_grad():
        for p in learn.model.parameters(): p += rank_distrib()
    with learn.distrib_ctx(**CPU):
        plan = learn.preview_one_cycle(*args)
        learn.fit_one_cycle(*args, cbs=spy)
    return seen(learn, spy, plan)

def bn_learner(n_items, opt_func, drop_last=True):
    "Two groups, batch norm, batches of 4."
    train = DataLoader(dataset(n_items), bs=4, shuffle=True, drop_last=drop_last, device='cpu')
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return Learner(DataLoaders(train, DataLoader(dataset(8), bs=4, device='cpu'), device='cpu'), model,
                   loss_func=nn.MSELoss(), opt_func=opt_func,
                 splitter=lambda m: [[*m[0].parameters(), *m[1].parameters()], list(m[2].parameters())])

def cycles(folder):
    "Cycles with several optimizers and loaders."
    opts = dict(SGD=partial(SGD, mom=.9), Adam=Adam, AdamW=partial(OptimWrapper, opt=torch.optim.AdamW))
    runs = {name: trained(bn_learner(40, opt), 3, [1e-3, 1e-2]) for name, opt in opts.items()}
    runs['a batch less than fastai says'] = trained(bn_learner(20, Adam), 3, 1e-2)
    runs['a smaller last batch'] = trained(bn_learner(20, Adam, drop_last=False), 2, 1e-2)
    runs['accumulated'] = trained(learner(8, cbs=GradientAccumulation(8)), 2, 1e-2)
    return runs

def refused(folder):
    "Train on a part that holds no whole batch; return the error of each process, and whether it trained."
    learn = bn_learner(5, Adam)
    with learn.distrib_ctx(**CPU):
        try: learn.fit_one_cycle(1, .1)
        except ValueError as e: return str(e), learn.opt is None

def after(folder):
    "Train a cycle in a single process after one in several."
    learn = bn_learner(40, Adam)
    with learn.distrib_ctx(**CPU): learn.fit_one_cycle(1, .1)
    together = learn.recorder.hps
    learn.fit_one_cycle(1, .1)
    return together, learn.recorder.hps, [type(dl).__name__ for dl in learn.dls], type(learn.model).__name__

class Share(IterableDataset):
    "Every `num_distrib()`-th example of a stream, beginning with that of this process."
    def __iter__(self):
        for i in itertools.count(rank_distrib(), num_distrib() or 1):
            x = torch.tensor([i, 1., -i]) / 100
            yield x, x.sum(0, keepdim=True)

def stream_learner(train, valid=None, **kwargs):
    valid = DataLoader(dataset(16), bs=4) if valid is None else valid
    return Learner(DataLoaders(train, valid), nn.Linear(3, 1), loss_func=nn.MSELoss(), **kwargs)

def trained_on_stream(train, **kwargs):
    learn, spy = stream_learner(train), Seen()
    with torch.no_grad():
        for p in learn.model.parameters(): p += rank_distrib()
    with learn.distrib_ctx(**CPU):
        plan = learn.preview_one_cycle(3, 1e-2, n_batch=5)
        learn.fit_one_cycle(3, 1e-2, n_batch=5, cbs=spy)
    return seen(learn, spy, plan)

def streams(folder):
    "Cycles with epochs of five batches, on streams and on loaders with a length."
    loaders = dict(fastai=DataLoader(Share(), bs=4), torch=torch.utils.data.DataLoader(Share(), batch_size=4),
                   torchdata=StatefulDataLoader(Share(), batch_size=4),
                   indexed=DataLoader(dataset(56), bs=4, shuffle=True))     # 7 batches per pass in each process
    return {name: trained_on_stream(loader) for name, loader in loaders.items()}

def refused_stream(folder):
    "Validate on a loader without a length; return the error of each process, and whether it trained."
    learn = stream_learner(DataLoader(Share(), bs=4), DataLoader(Share(), bs=4))
    with learn.distrib_ctx(**CPU):
        try: learn.fit_one_cycle(1, .1, n_batch=5)
        except TypeError as e: return str(e), learn.opt is None

def stream_cycle(folder, cbs=None, **kwargs):
    set_seed(0)
    learn = stream_learner(torch.utils.data.DataLoader(Share(), batch_size=4), path=folder)
    spy = Seen()
    with learn.distrib_ctx(**CPU): learn.fit_one_cycle(3, 1e-2, n_batch=5, cbs=[spy, *L(cbs)], **kwargs)
    return dict(weights=state(learn), hps=learn.recorder.hps, losses=[float(x) for x in learn.recorder.losses],
                values=[list(v) for v in learn.recorder.values]), spy.items

def stream_uninterrupted(folder): return stream_cycle(folder)
def stream_killed(folder): return stream_cycle(folder, cbs=Kill(9), checkpoint=CycleCheckpoint('run2', every=4))
def stream_resumed(folder): return stream_cycle(folder, checkpoint=CycleCheckpoint('run2', every=4))

class Kill(Callback):
    "Send SIGKILL to this process after batch `at`, once the last save, which a thread of rank 0 writes, is there."
    order = 20_000
    def __init__(self, at): self.at = at
    def after_batch(self):
        if not self.training or self.train_iter != self.at: return
        run = self.learn.resumable_run
        while read_state(run.file)['train_iter'] < self.at - self.at % run.checkpoint.every:
            sleep(.01)
        os.kill(os.getpid(), signal.SIGKILL)

def long_cycle(folder, checkpoint=None, cbs=None):
    "Train with shuffling and dropout, 12 batches per epoch in each process; return all that must be equal in the end."
    set_seed(rank_distrib())
    train = DataLoader(dataset(96), bs=4, shuffle=True, drop_last=True, device='cpu')
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(.3), nn.Linear(8, 1))
    learn = Learner(DataLoaders(train, DataLoader(dataset(16), bs=4, device='cpu'), device='cpu'), model,
                    loss_func=nn.MSELoss(), opt_func=Adam, path=folder)
    with learn.distrib_ctx(**CPU): learn.fit_one_cycle(4, 1e-2, checkpoint=checkpoint, cbs=cbs)
    return dict(weights=state(learn), losses=[float(x) for x in learn.recorder.losses], hps=learn.recorder.hps,
                values=[list(v) for v in learn.recorder.values], draw=torch.rand(3).tolist())

KEEP = dict(checkpoint=CycleCheckpoint('run1', every=5))

def uninterrupted(folder): return long_cycle(folder)
def one_killed(folder): return long_cycle(folder, **KEEP, cbs=Kill(19) if rank_distrib() else None)
def all_killed(folder): return long_cycle(folder, **KEEP, cbs=Kill(33))
def resumed(folder): return long_cycle(folder, **KEEP)
def complete(folder): return long_cycle(folder, **KEEP)

class CountsReads(position.TimePosition):
    "Also note before which batches the clock is read."
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.reads = []
    def _estimate(self, *args):
        self.reads.append(self.n)
        return super()._estimate(*args)

def timed_cycle(folder, cbs=None, **kwargs):
    "Train 1.2 s by clocks that differ: 10 ms per batch and 30 ms per validation on rank 0, twice as much on rank 1."
    set_seed(0)
    time, spy, factor = Time(), Seen(), 1 + rank_distrib()
    made:list = []
    position.perf_counter = time
    callback.TimePosition = lambda *args: made.append(CountsReads(*args)) or made[-1]
    learn = stream_learner(DataLoader(dataset(96), bs=4, shuffle=True), path=folder)
    with learn.distrib_ctx(**CPU):
        learn.fit_one_cycle(max_lr=1e-2, minutes=.02, cbs=[spy, Passes(time, .01 * factor, .03 * factor), *L(cbs)],
                            **kwargs)
    hps, plan, where = learn.recorder.hps, learn.recorder.plan, learn.recorder.cycle['columns']
    return dict(lrs=spy.seen_lrs, plan_lrs=plan.at(where['position'])[0].tolist(), hps=hps, where=where,
                weights=state(learn), seconds=time.now - 1000,
                reads=made[-1].reads, values=[list(v) for v in learn.recorder.values],
                end=plan.at([plan.minutes])[0][0].tolist())

def timed(folder): return timed_cycle(folder)
def timed_killed(folder): return timed_cycle(folder, cbs=Kill(47), checkpoint=CycleCheckpoint('run3', every=5))
def timed_resumed(folder): return timed_cycle(folder, checkpoint=CycleCheckpoint('run3', every=5))

def in_use(folder):
    "Train the run in the folder `in_use`; return the error of each process."
    try: long_cycle(folder / 'in_use', **KEEP)
    except BlockingIOError as e: return str(e)

def run(jobs, folder):
    "Run `jobs`, and save what they return in this process."
    torch.manual_seed(rank_distrib())
    for job in jobs:
        if rank_distrib() == 0: print(f'job {job}', flush=True)
        torch.save(globals()[job](Path(folder)), Path(folder) / f'{job}-{rank_distrib()}.pt')

if __name__ == '__main__': run(sys.argv[1:-1], sys.argv[-1])
