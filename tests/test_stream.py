"""Epochs of `n_batch` batches: loaders without a length and with one, among them those of datasets and torchdata."""
import itertools
import random
from collections import Counter
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from fastai.basics import Callback, CancelTrainException, DataLoader, DataLoaders, Learner, set_seed
from fastai.callback import progress
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.schedule import ParamScheduler
from torch import nn
from torch.utils.data import IterableDataset

from support import interrupted
from support.helpers import At, Spy, frozen_state, throw
from support.interrupted import bars, epochs_shown, rows
from support.pairs import pairs
from onecycle_callback import CycleCheckpoint, OneCycle

pytestmark = pytest.mark.matrix

def example(i):
    x = torch.tensor([i, i + 1., 1.]) / 100
    return x, x.sum(0, keepdim=True)

class Numbers(IterableDataset):
    "The examples 0, 1, 2, … up to `n`, or without an end."
    def __init__(self, n=None): self.n = n
    def __iter__(self): return map(example, itertools.count() if self.n is None else range(self.n))

def batches_of_generator(bs=4, n=None):
    "Yield batches, once."
    for i in itertools.count() if n is None else range(n):
        yield [torch.stack(t) for t in zip(*map(example, range(i * bs, (i + 1) * bs)))]

def hugging_face(n=400):
    import datasets
    stream = datasets.Dataset.from_dict({'i': list(range(n))}).to_iterable_dataset(num_shards=4)
    return stream.map(lambda row: dict(zip('xy', example(row['i']))), remove_columns='i').with_format('torch')

def as_tuples(rows): return torch.stack([row['x'] for row in rows]), torch.stack([row['y'] for row in rows])

def stateful(dataset, bs=4, **kwargs):
    from torchdata.stateful_dataloader import StatefulDataLoader
    return StatefulDataLoader(dataset, batch_size=bs, **kwargs)

LOADERS = {'fastai': lambda: DataLoader(Numbers(), bs=4),
           'fastai, two workers': lambda: DataLoader(Numbers(), bs=4, num_workers=2),
           'torch': lambda: torch.utils.data.DataLoader(Numbers(), batch_size=4),
           'generator': batches_of_generator,
           'datasets': lambda: torch.utils.data.DataLoader(hugging_face(), batch_size=4, collate_fn=as_tuples),
           'torchdata': lambda: stateful(Numbers()),
           'datasets and torchdata': lambda: stateful(hugging_face(), collate_fn=as_tuples),
           'with a length': lambda: DataLoader([example(i) for i in range(400)], bs=4)}

def learner(train='fastai', valid=None, path=None, **kwargs):
    set_seed(0)
    train = LOADERS[train]() if isinstance(train, str) else train
    valid = DataLoader(Numbers(10), bs=4) if valid is None else valid
    return Learner(DataLoaders(train, valid), nn.Linear(3, 1), loss_func=nn.MSELoss(), path=path, **kwargs)

class Seen(Spy):
    "Also record the first item of each training batch."
    def before_fit(self):
        super().before_fit()
        self.items = []
    def before_batch(self):
        super().before_batch()
        if self.training: self.items.append(round(self.x[0, 0].item() * 100))

@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize('name', LOADERS)
def test_every_loader_trains_with_the_plan(name):
    learn, seen = learner(name), Seen()
    plan = learn.preview_one_cycle(3, .1, n_batch=5)
    assert (plan.n_epoch, plan.n_batch) == (3, 5)
    learn.fit_one_cycle(3, .1, n_batch=5, cbs=seen)
    assert seen.seen_lrs == plan.lrs.tolist() and learn.recorder.plan == plan
    assert learn.recorder.hps == dict(lr=plan.lrs[:, 0].tolist(), mom=plan.moms.tolist())
    assert seen.places == [(epoch, i) for epoch in range(3) for i in range(5)]
    frame = learn.recorder.to_frame()
    assert frame.lr.tolist() == plan.lrs[:, 0].tolist() and frame.train_loss.notna().all()
    if 'workers' not in name: assert seen.items == list(range(0, 60, 4))     # in the next epoch it goes on where it was

@pytest.mark.parametrize('train', [DataLoader(Numbers(28), bs=4), DataLoader([example(i) for i in range(28)], bs=4)],
                         ids=['stream', 'with a length'])
@pytest.mark.parametrize('n_epoch, n_batch', [(5, 3), (1, 15), (15, 1), (2, 7)])
def test_an_exhausted_loader_starts_over(train, n_epoch, n_batch):
    learn, seen = learner(train), Seen()
    learn.fit_one_cycle(n_epoch, .1, n_batch=n_batch, cbs=seen)
    assert seen.items == [i % 28 for i in range(0, 4 * n_epoch * n_batch, 4)]
    assert len(learn.recorder.values) == n_epoch

def test_each_fit_starts_a_new_pass():
    learn, seen = learner(), Seen()
    for _ in range(2):
        learn.fit_one_cycle(2, .1, n_batch=3, cbs=seen)
        assert seen.items == list(range(0, 24, 4))

def test_as_a_callback_of_a_fit():
    learn, seen = learner(), Seen()
    cycle = OneCycle(.1, n_batch=5)
    learn.fit(3, cbs=[cycle, seen])
    assert seen.seen_lrs == learner().preview_one_cycle(3, .1, n_batch=5).lrs.tolist()
    assert len(learn.recorder.values) == 3

def test_as_a_callback_of_the_learner():
    learn, seen = learner(cbs=OneCycle(.1, n_batch=5)), Seen()
    for _ in range(2):
        learn.fit(2, cbs=seen)
        assert seen.seen_lrs == learn.recorder.plan.lrs.tolist() and seen.items == list(range(0, 40, 4))
    assert learn.validate()[0] > 0
    learn.remove_cb(OneCycle)
    assert not hasattr(learn, 'stream') and len(learn.cbs) == len(learner().cbs)

def test_fine_tune():
    learn, seen, epochs = learner(splitter=lambda m: [[m.bias], [m.weight]]), Seen(), []
    learn.fine_tune(2, 1e-2, n_batch=5, cbs=[seen, Each(lambda cb: epochs.append(cb.learn.recorder.plan.n_batch))])
    assert epochs == [5] * 3 and len(seen.seen_lrs) == 10

class Each(Callback):
    def __init__(self, act): self.act = act
    def after_epoch(self): self.act(self)

def test_the_learner_is_as_before():
    learn = learner()
    learn.fit_one_cycle(1, .1, n_batch=3)
    before = frozen_state(learn)
    learn.fit_one_cycle(2, .1, n_batch=3)
    after = frozen_state(learn)
    assert [k for k in ('attributes', 'cbs', 'logger', 'training') if before[k] != after[k]] == []
    with pytest.raises(RuntimeError, match='boom'):
        learn.fit_one_cycle(1, .1, n_batch=3, cbs=At(0, 1, throw(RuntimeError('boom'))))
    after = frozen_state(learn)
    assert after['cbs'] == before['cbs']

def test_other_schedulers_see_the_fraction_of_the_cycle():
    learn = learner()
    learn.fit_one_cycle(3, .1, n_batch=5, cbs=ParamScheduler({'wd': lambda pct: pct}))
    assert learn.recorder.hps['wd'] == pytest.approx([i / 15 for i in range(15)])

def test_an_epoch_that_is_cut_short_leaves_its_batches_to_the_next():
    learn, seen = learner(), Seen()
    learn.fit_one_cycle(3, .1, n_batch=5, cbs=[seen, At(1, 1, throw(CancelTrainException()))])
    assert seen.items == list(range(0, 48, 4)) and seen.places[5:8] == [(1, 0), (1, 1), (2, 0)]
    assert learn.recorder.to_frame().batch.tolist() == [*range(7), *range(10, 15)]

@pytest.mark.filterwarnings('ignore:Checkpoint .* does not hold')
@pytest.mark.parametrize('train', [DataLoader(Numbers(0), bs=4), batches_of_generator(n=8)], ids=['empty', 'once'])
def test_a_stream_that_yields_nothing_more(tmp_path, train):
    learn = learner(train, path=tmp_path)
    came = 0 if isinstance(train, DataLoader) else 3
    with pytest.raises(RuntimeError, match=f'dls.train has no more batches.* {came} came in this epoch, 5 were due'):
        learn.fit_one_cycle(3, .1, n_batch=5, checkpoint=CycleCheckpoint('run1', every=1))
    plan = learn.preview_one_cycle(3, .1, n_batch=5)
    n_done = 0 if isinstance(train, DataLoader) else 8
    assert learn.recorder.hps['lr'] == plan.lrs[:n_done, 0].tolist()
    assert (tmp_path / 'models/run1.cycle').exists()

@pytest.mark.parametrize('n_batch', [None, 5])
@pytest.mark.parametrize('valid', [DataLoader(Numbers(10), bs=4),
                                   torch.utils.data.DataLoader(Numbers(10), batch_size=4)], ids=['fastai', 'torch'])
def test_a_validation_loader_without_a_length_is_run_to_its_end(valid, n_batch):
    same = [DataLoader([example(i) for i in range(n)], bs=4) for n in (20, 10)]
    learn, other = learner(same[0], valid), learner(*same)
    for run in (learn, other): run.fit_one_cycle(3, .1, n_batch=n_batch)
    assert learn.recorder.values == other.recorder.values

def test_progress(capsys):
    learner().fit_one_cycle(3, .1, n_batch=5)
    out = capsys.readouterr().out
    assert epochs_shown(out) == ['1/3', '2/3', '3/3'] and rows(out) == [0, 1, 2]
    assert bars(out)[:2] == [(1, 3, 0, 5), (1, 3, 1, 5)] and (3, 3, 5, 5) in bars(out)
    assert '[1/? ' in out and '[3/3 ' in out      # the length of the validation is known after the first epoch

def test_graph(monkeypatch):
    bounds = []
    monkeypatch.setattr(progress.master_bar, 'update_graph',
                        lambda self, lines, x_bounds, y_bounds: bounds.append(x_bounds))
    learner().fit_one_cycle(3, .1, n_batch=5, cbs=ShowGraphCallback())
    assert bounds == [(0, 15)] * 3

def test_csv_logger(tmp_path):
    log = CSVLogger()
    learn = learner(path=tmp_path, cbs=log)
    learn.fit_one_cycle(3, .1, n_batch=5)
    assert log.read_log().epoch.tolist() == [0, 1, 2] and log.read_log().valid_loss.notna().all()

@pytest.mark.parametrize('part', [dict(start_epoch=1), dict(stop_epoch=2)], ids=str)
def test_part_of_a_cycle(part):
    learn, seen = learner(), Seen()
    plan = learn.preview_one_cycle(3, .1, n_batch=5)
    learn.fit_one_cycle(3, .1, n_batch=5, cbs=seen, **part)
    assert seen.seen_lrs == (plan.lrs[5:] if 'start_epoch' in part else plan.lrs[:10]).tolist()
    assert seen.items == list(range(0, 40, 4))

# Resumed after a crash, with the Learner of interrupted.py, whose epochs have a length of their own here.

class RandomItems(IterableDataset):
    "Examples with noise, drawn from Python's, NumPy's and torch's random generators while they are read."
    def __init__(self, n): self.items = interrupted.items(n)
    def __iter__(self):
        for x, y in self.items: yield x + random.random() + np.random.rand() + torch.rand(1), y

class Counted(IterableDataset):
    "A data set that keeps its place, and counts how often each of its examples is loaded."
    def __init__(self, n): self.items, self.i, self.loaded = interrupted.items(n), 0, Counter()
    def __iter__(self):
        while self.i < len(self.items):
            self.loaded[self.i] += 1
            self.i += 1
            yield self.items[self.i - 1]
        self.i = 0
    def state_dict(self): return dict(i=self.i)
    def load_state_dict(self, state): self.i = state['i']

def shuffled(n): return torch.utils.data.DataLoader(interrupted.items(n), batch_size=4, shuffle=True, drop_last=True)

def hugging_face_items():
    import datasets
    x, y = zip(*interrupted.items(62))
    stream = datasets.Dataset.from_dict({'x': [t.tolist() for t in x],
                                         'y': [int(t) for t in y]}).to_iterable_dataset(num_shards=3)
    return stream.with_format('torch')

def hugging_face_shuffled():
    "A shuffle buffer isn't part of a stream's state, so this loader is run forward."
    return torch.utils.data.DataLoader(hugging_face_items().shuffle(seed=3, buffer_size=10), batch_size=4,
                                       collate_fn=as_tuples)

class NotTold(torch.utils.data.DataLoader):
    "A loader whose position no file can hold, so it is run forward."
    def state_dict(self): return dict(i=iter(()))
    def load_state_dict(self, state): raise AssertionError('nothing was stored')

STREAMS = {'fastai, shuffled': lambda: DataLoader(interrupted.items(62), bs=4, shuffle=True),
           'fastai, shuffled by two workers': lambda: DataLoader(interrupted.items(62), bs=4, shuffle=True,
                                                                 num_workers=2),
           'random stream': lambda: DataLoader(RandomItems(62), bs=4),
           'random stream of torch': lambda: torch.utils.data.DataLoader(RandomItems(62), batch_size=4),
           'torch, shuffled': lambda: shuffled(62),
           'torch, not told': lambda: NotTold(RandomItems(62), batch_size=4),
           'torchdata, shuffled': lambda: stateful(interrupted.items(62), shuffle=True),
           'torchdata': lambda: stateful(Counted(62)),
           'torchdata, two workers': lambda: stateful(Counted(62), num_workers=2),
           'datasets, shuffled': hugging_face_shuffled,
           'datasets and torchdata': lambda: stateful(hugging_face_items(), collate_fn=as_tuples)}

def streaming(path, name):
    learn = interrupted.learner(path)
    learn.dls.loaders[0] = STREAMS[name]()
    return learn

KWARGS = dict(n_batch=10)     # a pass has 16 batches, the last of two examples

@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    @cache
    def run(name):
        learn = streaming(tmp_path_factory.mktemp('uninterrupted'), name)
        learn.fit_one_cycle(4, .05, **KWARGS)
        return interrupted.results(learn)
    return run

def interrupt(learn, at, every, **kwargs):
    keep = CycleCheckpoint('run1', every=every, **kwargs)
    with pytest.raises(RuntimeError, match='interrupted'):
        learn.fit_one_cycle(4, .05, **KWARGS, cbs=interrupted.Interrupt(at), checkpoint=keep)

@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize('every, name, at', pairs([None, 1, 7], [name for name in STREAMS if 'worker' not in name],
                                                  [20, 32, 36]))
def test_resumes_with_the_same_bits(uninterrupted, tmp_path, every, name, at):
    "Interrupted at the end of an epoch, at the end of a pass, and within both, in the third pass."
    interrupt(streaming(tmp_path, name), at, every)
    torch.rand(3), random.random()
    learn = streaming(tmp_path, name)
    learn.fit_one_cycle(4, .05, **KWARGS, checkpoint=CycleCheckpoint('run1', every=every))
    interrupted.assert_same(interrupted.results(learn), uninterrupted(name))

@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize('name', [name for name in STREAMS if 'worker' in name])
def test_resumes_with_workers(uninterrupted, tmp_path, name):
    interrupt(streaming(tmp_path, name), 23, 3)
    learn = streaming(tmp_path, name)
    learn.fit_one_cycle(4, .05, **KWARGS, checkpoint=CycleCheckpoint('run1', every=3))
    interrupted.assert_same(interrupted.results(learn), uninterrupted(name))

@pytest.mark.parametrize('every, at, n_saved', [(None, 25, 20), (1, 25, 25), (1, 32, 32)])
def test_a_loader_that_keeps_its_place_loads_nothing_twice(tmp_path, capsys, every, at, n_saved):
    interrupt(streaming(tmp_path, 'torchdata'), at, every)
    learn = streaming(tmp_path, 'torchdata')
    loaded = learn.dls.train.dataset.loaded
    capsys.readouterr()
    learn.fit_one_cycle(4, .05, **KWARGS, checkpoint=CycleCheckpoint('run1', every=every))
    n_examples = 2 * 62 + 4 * 8 - sum(min(4, 62 - 4 * (i % 16)) for i in range(n_saved))
    assert loaded.total() == n_examples
    assert 'fast-forwarded' not in capsys.readouterr().out

def test_a_stream_that_cannot_be_repeated_is_taken_as_it_comes(tmp_path, capsys):
    learn = learner('generator', path=tmp_path)
    keep = CycleCheckpoint('run1', every=1)
    with pytest.raises(RuntimeError, match='interrupted'):
        learn.fit_one_cycle(3, .1, n_batch=5, checkpoint=keep, cbs=interrupted.Interrupt(7))
    again, seen = learner(batches_of_generator(n=8), path=tmp_path), Seen()
    capsys.readouterr()
    again.fit_one_cycle(3, .1, n_batch=5, checkpoint=replace(keep, replay=False), cbs=seen)
    assert 'resumes in epoch 1, batch 2. The batches of dls.train are taken as they come.' in capsys.readouterr().out
    assert seen.items == list(range(0, 32, 4)) and seen.places == [(1, 2), (1, 3), (1, 4), *[(2, i) for i in range(5)]]
    assert again.recorder.hps['lr'] == again.recorder.plan.lrs[:, 0].tolist()

def test_how_a_stream_resumes_is_said(tmp_path, capsys):
    learn = learner('generator', path=tmp_path)
    keep = CycleCheckpoint('run1', every=1)
    with pytest.raises(RuntimeError, match='interrupted'):
        learn.fit_one_cycle(3, .1, n_batch=5, checkpoint=keep, cbs=interrupted.Interrupt(7))
    capsys.readouterr()
    with pytest.raises(RuntimeError, match=r'must yield the 7 batches of before the crash again, got 2.*replay=False'):
        learner(batches_of_generator(n=2), path=tmp_path).fit_one_cycle(3, .1, n_batch=5, checkpoint=keep)
    assert 'fast-forwarded past the 7 batches already trained on; if it cannot be replayed' in capsys.readouterr().out
    seen = Seen()
    learner('generator', path=tmp_path).fit_one_cycle(3, .1, n_batch=5, checkpoint=keep, cbs=seen)
    assert seen.items == list(range(28, 60, 4))

class Passes(IterableDataset):
    "Note the numbers of the passes, as datasets that shuffle differently in each want to know them."
    def __init__(self): self.passes = []
    def set_epoch(self, n): self.passes.append(n)
    def __iter__(self): return map(example, range(28))

@pytest.mark.parametrize('loader', [partial(DataLoader, bs=4), partial(torch.utils.data.DataLoader, batch_size=4)],
                         ids=['fastai', 'torch'])
def test_a_data_set_is_told_the_number_of_the_pass(tmp_path, loader):
    keep = dict(n_batch=5, checkpoint=CycleCheckpoint('run1', every=1))
    dataset = Passes()
    with pytest.raises(RuntimeError, match='interrupted'):
        learner(loader(dataset), path=tmp_path).fit_one_cycle(4, .1, cbs=interrupted.Interrupt(10), **keep)
    assert dataset.passes == [0, 1]
    dataset = Passes()
    learner(loader(dataset), path=tmp_path).fit_one_cycle(4, .1, **keep)
    assert dataset.passes == [1, 2]

def test_another_n_batch_is_another_run(tmp_path):
    learn = learner(path=tmp_path)
    learn.fit_one_cycle(3, .1, n_batch=5, checkpoint='run1')
    with pytest.raises(ValueError, match='n_batch: 5 in the file, 6 now'):
        learn.fit_one_cycle(3, .1, n_batch=6, checkpoint='run1')

class CountedItems:
    "Examples with an index, which count how often each is loaded."
    def __init__(self, n): self.items, self.loaded = interrupted.items(n), Counter()
    def __len__(self): return len(self.items)
    def __getitem__(self, i):
        self.loaded[i] += 1
        return self.items[i]

def with_place(path):
    learn = interrupted.learner(path)
    learn.dls.loaders[0] = stateful(CountedItems(46), shuffle=True, generator=torch.Generator().manual_seed(7))
    return learn

@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize('every, at, n_left', [(None, 30, 24), (1, 30, 18), (1, 36, 12)])
def test_ordinary_epochs_of_a_loader_that_keeps_its_place(tmp_path, every, at, n_left):
    calm = with_place(tmp_path / 'calm')
    calm.fit_one_cycle(4, .05)
    expected = interrupted.results(calm)
    with pytest.raises(RuntimeError, match='interrupted'):
        with_place(tmp_path).fit_one_cycle(4, .05, cbs=interrupted.Interrupt(at),
                                           checkpoint=CycleCheckpoint('run1', every=every))
    learn = with_place(tmp_path)
    learn.fit_one_cycle(4, .05, checkpoint=CycleCheckpoint('run1', every=every))
    interrupted.assert_same(interrupted.results(learn), expected)
    assert learn.dls.train.dataset.loaded.total() <= 4 * n_left

class PassSampler(torch.utils.data.SequentialSampler):
    "Note the numbers of the passes, as torch's `DistributedSampler` does."
    def __init__(self, items):
        super().__init__(items)
        self.passes = []
    def set_epoch(self, n): self.passes.append(n)

def test_a_sampler_is_told_the_number_of_the_pass():
    items = [example(i) for i in range(28)]
    sampler = PassSampler(items)
    learner(torch.utils.data.DataLoader(items, batch_size=4, sampler=sampler)).fit_one_cycle(4, .1, n_batch=5)
    assert sampler.passes == [0, 1, 2]
