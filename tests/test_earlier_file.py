"""A checkpoint that version 0.1.0 wrote is resumed, and ends with the bits of an uninterrupted run.

The file was written on another machine, so the training is exact arithmetic on any: sums of short binary fractions,
never rounded."""
import random
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from fastai.basics import Callback, DataLoader, DataLoaders, Learner, SGD, set_seed
from torch import nn

from onecycle_callback import CycleCheckpoint

DATA = Path(__file__).parent / 'data'
EPOCHS, N_BATCH, STOP_AT = 3, 3, 5

class Noisy(nn.Module):
    "A layer that draws from Python's random numbers and from torch's, and counts its calls outside its `state_dict`."
    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.tensor([1., -2., 3.])), 0
    def forward(self, x):
        self.calls += 1
        return (x * self.weight).sum(1) * random.choice([1, 2]) * torch.randint(1, 3, ())

def learner(path):
    "The gradient is the same at any weights: a loss that is linear in them."
    set_seed(1)
    x = torch.tensor([[1., 2., 3.], [-1., 0., 2.], [2., -3., 1.], [0., 1., -2.], [3., 1., 0.], [-2., 2., 1.]])
    train, valid = (DataLoader(list(zip(x, x)), bs=2, shuffle=shuffle) for shuffle in (True, False))
    return Learner(DataLoaders(train, valid, device='cpu'), Noisy(), loss_func=lambda pred, y: pred.sum(),
                   opt_func=partial(SGD, mom=.5), path=path)

def train(learn, **kwargs):
    "LRs of eighths: the peak is at batch 4, four batches after the first and four before the last."
    learn.fit_one_cycle(EPOCHS, 1., div_factor=2., pct_start=4 / 9, moms=(.5, .5, .5), anneal='linear', **kwargs)

def bits(learn):
    "Return what must be equal in the end."
    momentum = [state['grad_avg'] for state in learn.opt.state.values()]
    return dict(weight=learn.model.weight.tolist(), calls=learn.model.calls, momentum=[m.tolist() for m in momentum],
                hps=learn.recorder.hps,
                n_losses=len(learn.recorder.losses), frame=learn.recorder.to_frame().to_dict('list'),
                valid_losses=[row[1] for row in learn.recorder.values],
                draws=(random.random(), torch.rand(2).tolist()))

class Stop(Callback):
    order = 20_000
    def after_batch(self):
        if self.training and self.train_iter == STOP_AT: raise KeyboardInterrupt

def write(path):
    "Write the files in the folder data, as was done with the package's version of that time."
    with pytest.raises(KeyboardInterrupt): train(learner(path), cbs=Stop(), checkpoint=CycleCheckpoint('run1', every=2))

@pytest.mark.parametrize('file', [pytest.param(path, id=path.stem) for path in sorted(DATA.glob('*.cycle'))])
def test_is_resumed_with_the_same_bits(tmp_path, capsys, file):
    calm = learner(tmp_path / 'calm')
    train(calm)
    expected = bits(calm)
    (tmp_path / 'models').mkdir()
    shutil.copy(file, tmp_path / 'models/run1.cycle')
    resumed = learner(tmp_path)
    train(resumed, checkpoint=CycleCheckpoint('run1', every=2))
    assert 'epoch 1, batch 1' in capsys.readouterr().out
    assert bits(resumed) == expected

def test_there_is_a_file_to_resume(): assert (DATA / '0.1.0.cycle').exists()
