"""The tasks of the studies: data that packages ship, small models, and what a training run is judged by.

A seed sets the weights, the order of the batches, and whatever is random about the training data."""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pydoc_data import topics

import numpy as np
import torch
from sklearn.datasets import load_digits, make_friedman1
from torch import nn

# Data: batches for training, and inputs and targets for testing

class Batches:
    "Shuffled batches of `x`, shape (positions, items, …), each item at a random one of its positions."
    def __init__(self, x, y, bs=50): self.x, self.y, self.bs = x, y, bs
    def __len__(self): return len(self.y) // self.bs
    def __iter__(self):
        for items in torch.randperm(len(self.y)).split(self.bs)[:len(self)]:
            yield self.x[torch.randint(len(self.x), items.shape), items], self.y[items]

def digits(seed, shift=False, noise=0.):
    "Make 1,000 of scikit-learn's digits for training and 797 for testing; a share `noise` of the labels is random."
    data, order = load_digits(), np.random.default_rng(0).permutation(1797)
    x, y = torch.tensor(data.images[order], dtype=torch.float32)[:, None] / 16, torch.tensor(data.target[order])
    train_x, train_y = x[:1000], y[:1000].clone()
    wrong = torch.rand(1000, generator=torch.Generator().manual_seed(seed)) < noise
    train_y[wrong] = torch.randint(10, (int(wrong.sum()),), generator=torch.Generator().manual_seed(seed))
    padded = nn.functional.pad(train_x, (1, 1, 1, 1))
    places = list(product(range(3), range(3))) if shift else [(1, 1)]
    return Batches(torch.stack([padded[..., i:i + 8, j:j + 8] for i, j in places]), train_y), x[1000:], y[1000:]

def friedman(seed):
    "Make 1,000 rows of scikit-learn's first Friedman problem for training and 1,000 for testing, standardized."
    x, y = make_friedman1(2000, noise=1., random_state=0)
    x, y = (torch.tensor((a - a.mean(0)) / a.std(0), dtype=torch.float32) for a in (x, y))
    return Batches(x[None, :1000], y[:1000]), x[1000:], y[1000:]

def text(seed, n_chars=65_536, length=32):
    "Make pieces of the help text that ships with Python, as character numbers, each with the one that follows."
    chars = '\n'.join(topics.topics.values())[:n_chars]
    numbers = {c: i for i, c in enumerate(sorted(set(chars)))}
    ids = torch.tensor([numbers[c] for c in chars])
    x, y = ids[:-1], ids[1:]
    x, y = (t[:len(t) // length * length].view(-1, length) for t in (x, y))
    n_train = len(x) * 4 // 5
    return Batches(x[None, :n_train], y[:n_train], bs=32), x[n_train:], y[n_train:]

# Models

def cnn():
    def block(n_in, n_out): return nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
    return nn.Sequential(*block(1, 8), *block(8, 16), nn.MaxPool2d(2), *block(16, 32), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(32, 10))

class Transformer(nn.Module):
    "An encoder that reads the 8 rows of an image as tokens."
    def __init__(self, width=64):
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(torch.zeros(8, width))
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=128, dropout=0.1, batch_first=True,
                                           norm_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(width, 10)

    def forward(self, x): return self.head(self.encoder(self.embed(x[:, 0]) + self.place).mean(1))

def mlp():
    return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))

class CharacterModel(nn.Module):
    "A recurrent network that reads characters and predicts the next one."
    def __init__(self, n_chars=128, width=64):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(n_chars, 32), nn.GRU(32, width, batch_first=True)
        self.head = nn.Linear(width, n_chars)

    def forward(self, x): return self.head(self.rnn(self.embed(x))[0]).flatten(0, 1)

# Losses and scores

def cross_entropy(out, y): return nn.functional.cross_entropy(out, y.flatten())

def accuracy(out, y): return (out.argmax(1) == y.flatten()).float().mean().item()

def explained(out, y): return max(0., 1 - ((out - y)**2).mean().item() / y.var().item())

# The tasks

SGD = partial(torch.optim.SGD, momentum=0.9)
SGD_LRS, ADAM_LRS = (0.01, 0.03, 0.1, 0.3, 1., 3.), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
HIGH_ADAM_LRS = 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3

@dataclass(frozen=True)
class Task:
    title: str
    model: Callable
    opt: Callable
    lrs: tuple
    epochs: int
    data: Callable
    loss: Callable = cross_entropy
    score: Callable = accuracy
    score_name: str = 'accuracy'
    long_lrs: int = 3    # LRs tried in the longest runs, an odd number

TASKS = dict(
    cnn=Task('CNN, shifted digits, SGD', cnn, SGD, SGD_LRS, 12, partial(digits, shift=True)),
    transformer=Task('Transformer, AdamW', Transformer, torch.optim.AdamW, ADAM_LRS, 15, digits, long_lrs=1),
    noisy=Task('CNN, shifted digits, 20 % random labels, SGD', cnn, SGD, SGD_LRS, 12,
               partial(digits, shift=True, noise=0.2)),
    clean=Task('CNN, clean digits, SGD', cnn, SGD, SGD_LRS, 12, digits))

MORE_TASKS = dict(
    table=Task('MLP, Friedman regression, Adam', mlp, torch.optim.Adam, HIGH_ADAM_LRS, 15, friedman,
               nn.functional.mse_loss, explained, 'variance explained'),
    text=Task('GRU, characters of Python\'s help, AdamW', CharacterModel, torch.optim.AdamW, HIGH_ADAM_LRS, 4, text,
              score_name='next-character accuracy', long_lrs=1))

def evaluate(task, model, x, y):
    "Return the score and the loss of `model` on `x` and `y`."
    with torch.no_grad(): out = model.eval()(x)
    return task.score(out, y), task.loss(out, y).item()
