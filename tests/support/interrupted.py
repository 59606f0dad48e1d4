"""A Learner as users have it, with progress bar and table; ways to interrupt it; and what must be equal in the end."""
import random
import re

import numpy as np
import torch
from fastai.basics import Adam, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, L, Learner, accuracy, set_seed
from torch import nn

import onecycle_callback  # noqa: F401

N_EPOCH, N_BATCH = 4, 12

class Remembers(nn.Module):
    "A layer whose output depends on what it has seen, which its `state_dict` leaves out."
    def __init__(self):
        super().__init__()
        self.seen, self.calls = None, 0
    def forward(self, x):
        self.calls += 1
        mean = x.detach().mean(0)
        self.seen = mean if self.seen is None else .5 * self.seen + .5 * mean
        return x + .01 * self.seen * self.calls

def items(n):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    return list(zip(x, (x.sum(1) > 0).long()))

def learner(path, n_batch=N_BATCH, opt_func=Adam, workers=0, torch_loader=False, **kwargs):
    "`n_batch` batches per epoch, the last one smaller, with shuffling, dropout, batch norm and a layer that remembers."
    set_seed(1)
    data, bs = items(4 * n_batch - 2), 4
    if torch_loader:
        train = torch.utils.data.DataLoader(data, batch_size=bs, shuffle=True,
                                            generator=torch.Generator().manual_seed(5))
    else: train = DataLoader(data, bs=bs, shuffle=True, num_workers=workers)
    dls = DataLoaders(train, DataLoader(items(20), bs=10), device='cpu')
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.3), Remembers(),
                          nn.Linear(16, 2))
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), opt_func=opt_func, metrics=accuracy, path=path,
                   **kwargs)

class Interrupt(Callback):
    "Raise `error` after batch `at`, counted over the whole cycle from 1."
    order = 20_000
    def __init__(self, at, error=RuntimeError): self.at, self.error = at, error
    def after_batch(self):
        if self.training and self.train_iter == self.at: raise self.error('interrupted')

def results(learn):
    "Return everything that must be equal in the end; this draws from the random generators."
    r = learn.recorder
    return dict(weights=learn.model.state_dict(), losses=L(r.losses).map(float), hps=r.hps,
                values=[list(v) for v in r.values],
                lrs=list(r.lrs), iters=list(r.iters), opt=list(learn.opt.hypers), seen=learn.model[4].seen,
                calls=learn.model[4].calls,
                smooth=float(r.smooth_loss.val), final=list(learn.final_record), starts=r.starts,
                frame=r.to_frame().to_dict('list'),
                draws=(random.random(), np.random.rand(), torch.rand(2)))

def assert_same(a, b, where=''):
    assert type(a) is type(b) or isinstance(a, torch.Tensor), where
    if isinstance(a, torch.Tensor): assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a: assert_same(a[k], b[k], f'{where}.{k}')
    elif isinstance(a, (list, tuple, L)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)): assert_same(x, y, f'{where}[{i}]')
    else: assert a == b, where

def bars(out):
    "Return what the bars in `out` showed of training: epoch (from 1), epochs in all, batches done, batches in all."
    found = re.findall(r'Epoch (\d+)/(\d+) :[^\r\n]*\[(\d+)/(\d+) ', out)
    return [tuple(map(int, numbers)) for numbers in found if int(numbers[3]) != 2]     # validation has 2 batches

def epochs_shown(out):
    "Return the epochs that the bars in `out` showed, each as often as it was shown."
    epochs = [f'{epoch}/{n_epoch}' for epoch, n_epoch, _, _ in bars(out)]
    return [epoch for i, epoch in enumerate(epochs) if i == 0 or epoch != epochs[i - 1]]

def rows(out):
    "The epochs of the rows of the table in `out`."
    return [int(epoch) for epoch in re.findall(r'^(?:.*\r)?(\d+) +\d+\.\d{6} ', out, re.MULTILINE)]
