"""A cycle that is broken off and run again ends with the same bits; a file that does not belong to it is refused and left alone."""
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.basics import (Adam, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, L, Learner, OptimWrapper, SGD, accuracy, noop, set_seed)
from fastai.callback.schedule import ParamScheduler, combined_cos
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import Lookahead
from torch import nn

from onecycle_callback import CycleCheckpoint
from tests.helpers import frozen_state

sys.path.insert(0, str(Path(__file__).parents[1] / 'benchmarks'))
from crash import crash  # noqa: E402

ROOT = Path(__file__).parents[1]
N_BATCH = 9

class Remembers(nn.Module):
    "A layer that mixes in what it has seen, without telling its `state_dict`."
    def __init__(self):
        super().__init__()
        self.seen, self.calls = None, 0
    def forward(self, x):
        self.calls += 1
        mean = x.detach().mean(0)
        self.seen = mean if self.seen is None else .5 * self.seen + .5 * mean
        return x + .1 * self.seen * self.calls

def items(n=70):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    return list(zip(x, (x.sum(1) > 0).long()))

def learner(path, opt_func=Adam, workers=0, torch_loader=False, lines=None, bs=8):
    set_seed(1)
    if torch_loader: train = torch.utils.data.DataLoader(items(), batch_size=bs, shuffle=True, generator=torch.Generator().manual_seed(5))
    else: train = DataLoader(items(), bs=bs, shuffle=True, num_workers=workers)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.3), Remembers(), nn.Linear(16, 2))
    learn = Learner(DataLoaders(train, DataLoader(items()[:20], bs=10), device='cpu'), model, loss_func=CrossEntropyLossFlat(), opt_func=opt_func, metrics=accuracy, path=path)
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = noop if lines is None else lambda row: lines.append(list(row))
    return learn

class Die(Callback):
    order = 20_000
    def __init__(self, at, error=RuntimeError): self.at, self.error = at, error
    def after_batch(self):
        if self.training and self.train_iter == self.at: raise self.error('broken off')

class Count(Callback):
    "What the other callbacks are shown."
    def __init__(self): self.places, self.per_epoch = [], 0
    def before_epoch(self): self.per_epoch = 0
    def after_batch(self):
        if self.training: self.places.append((self.epoch, self.iter)); self.per_epoch += 1

def bits(learn):
    "All that must be equal in the end."
    r = learn.recorder
    return dict(weights=learn.model.state_dict(), losses=L(r.losses).map(float), hps=r.hps, values=[list(v) for v in r.values], lrs=list(r.lrs), iters=list(r.iters),
                opt=[h for h in learn.opt.hypers], seen=learn.model[4].seen, calls=learn.model[4].calls, smooth=float(r.smooth_loss.val),
                final=list(learn.final_record), starts=r.starts, draws=(random.random(), np.random.rand(), torch.rand(2)))

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

def broken_off(tmp_path, at, every=None, cbs=lambda: None, epochs=4, **kwargs):
    "A Learner whose cycle was broken off after batch `at` and run again, and one that was left alone."
    calm = learner(tmp_path / 'calm', **kwargs)
    calm.fit_one_cycle(epochs, .05, cbs=cbs())
    expected = bits(calm)
    first = learner(tmp_path / 'hit', **kwargs)
    with pytest.raises(RuntimeError, match='broken off'):
        first.fit_one_cycle(epochs, .05, cbs=L(cbs()) + Die(at), checkpoint=CycleCheckpoint('run1', every=every))
    again = learner(tmp_path / 'hit', **kwargs)
    random.random(), torch.rand(3)
    again.fit_one_cycle(epochs, .05, cbs=cbs(), checkpoint=CycleCheckpoint('run1', every=every))
    return again, expected

@pytest.mark.parametrize('every, at', [(None, 1), (None, 9), (None, 20), (None, 36), (1, 1), (1, 9), (1, 17), (4, 3), (4, 22), (4, 35), (5, 36)])
def test_ends_with_the_same_bits(tmp_path, every, at):
    again, expected = broken_off(tmp_path, at, every)
    assert_same(bits(again), expected)

@pytest.mark.parametrize('opt_func', [partial(SGD, mom=.9), partial(OptimWrapper, opt=torch.optim.AdamW), partial(OptimWrapper, opt=torch.optim.RMSprop),
                                      lambda ps, **kw: Lookahead(Adam(ps, **kw), k=3)])
def test_every_optimizer(tmp_path, opt_func):
    again, expected = broken_off(tmp_path, 15, 4, opt_func=opt_func)
    assert_same(bits(again), expected)

@pytest.mark.parametrize('kwargs', [dict(workers=2), dict(torch_loader=True)])
def test_other_loaders(tmp_path, kwargs):
    again, expected = broken_off(tmp_path, 15, 4, **kwargs)
    assert_same(bits(again), expected)

def test_callbacks_carry_their_state(tmp_path):
    "Gradients that wait, the best loss, the patience used up, another schedule's record."
    cbs = lambda: [GradientAccumulation(20), SaveModelCallback(fname='best'), EarlyStoppingCallback(patience=30), ParamScheduler(dict(wd=combined_cos(.3, 0., .1, .01)))]
    again, expected = broken_off(tmp_path, 24, 4, cbs)
    assert_same(bits(again), expected)
    assert len(again.recorder.hps['wd']) == 4 * N_BATCH

def test_early_stop_is_an_end(tmp_path, capsys):
    cbs = lambda: EarlyStoppingCallback(monitor='accuracy', comp=np.less, patience=2)
    calm = learner(tmp_path)
    calm.fit_one_cycle(8, .05, cbs=cbs())
    n = len(calm.recorder.losses)
    assert n < 8 * N_BATCH
    for _ in range(2):
        learn = learner(tmp_path)
        learn.fit_one_cycle(8, .05, cbs=cbs(), checkpoint='run1')
        assert len(learn.recorder.losses) == n
    assert 'ended early' in capsys.readouterr().out

def test_trained_batches_are_shown_to_nobody(tmp_path):
    counts = []
    broken_off(tmp_path, 15, 4, cbs=lambda: [counts.append(Count()) or counts[-1]])
    calm, first, again = counts
    assert len(first.places) == 15
    assert again.places == calm.places and again.per_epoch == N_BATCH    # 12 places carried along, each of the others seen once
    seen = []
    class See(Callback):
        def after_pred(self): seen.append((self.epoch, self.iter)) if self.training else None
    broken_off(tmp_path / 'see', 15, 4, cbs=lambda: [See()])
    assert seen[4 * N_BATCH + 15:] == calm.places[12:]

def test_rows_are_shown_once(tmp_path):
    lines = []
    first = learner(tmp_path, lines=lines)
    with pytest.raises(RuntimeError): first.fit_one_cycle(4, .05, cbs=Die(23), checkpoint=CycleCheckpoint('run1', every=4))
    shown, lines = lines, []
    learner(tmp_path, lines=lines).fit_one_cycle(4, .05, checkpoint=CycleCheckpoint('run1', every=4))
    assert [row[0] for row in lines] == [0, 1, 2, 3] and lines[:2] == shown

def test_the_starting_point_is_kept_too(tmp_path):
    "Without a seed, a crash in the first epoch does not lose the first weights."
    first = learner(tmp_path)
    weights = [p.clone() for p in first.model.parameters()]
    with pytest.raises(RuntimeError): first.fit_one_cycle(2, .05, cbs=Die(3), checkpoint='run1')
    class Look(Callback):
        order = 20_000
        def before_epoch(self):
            if self.epoch == 0: self.weights = [p.clone() for p in self.model.parameters()]
    look, again = Look(), learner(tmp_path)
    again.model[0].reset_parameters()
    again.fit_one_cycle(2, .05, cbs=look, checkpoint='run1')
    assert all(map(torch.equal, weights, look.weights))

def test_complete_and_restart(tmp_path, capsys):
    learn = learner(tmp_path)
    learn.fit_one_cycle(2, .05, checkpoint='run1')
    expected, modified = bits(learn), (tmp_path / 'models/run1.cycle').stat().st_mtime_ns
    again = learner(tmp_path)
    again.fit_one_cycle(2, .05, checkpoint='run1')
    assert 'is complete' in capsys.readouterr().out
    assert_same(bits(again), expected)
    assert (tmp_path / 'models/run1.cycle').stat().st_mtime_ns == modified
    again.recorder.plot_lr()
    count = Count()
    learner(tmp_path).fit_one_cycle(2, .05, cbs=count, checkpoint=CycleCheckpoint('run1', restart=True))
    assert len(count.places) == 2 * N_BATCH

def test_learner_is_as_before(tmp_path):
    learn = learner(tmp_path)
    learn.fit_one_cycle(1, .05, checkpoint='run1')
    assert not {'_do_fit', 'all_batches', 'cycle_checkpoint'} & set(vars(learn))
    learn.fit_one_cycle(1, .05)
    assert os.listdir(tmp_path / 'models') == ['run1.cycle']

@pytest.mark.parametrize('name, call, kwargs', [
    ('max_lr', dict(max_lr=.06), {}), ('cycle_len', dict(cycle_len=3), {}), ('pct_start', dict(pct_start=.4), {}), ('wd', dict(wd=.1), {}),
    ('stop_epoch', dict(stop_epoch=1), {}), ('anneal', dict(anneal='linear'), {}), ('n_batch', {}, dict(bs=7)), ('optimizer', {}, dict(opt_func=SGD))])
def test_other_work_is_refused(tmp_path, name, call, kwargs):
    learner(tmp_path).fit_one_cycle(2, .05, checkpoint='run1')
    content = (tmp_path / 'models/run1.cycle').read_bytes()
    learn = learner(tmp_path, **kwargs)
    before = frozen_state(learn)
    with pytest.raises(ValueError, match=rf"checkpoint 'run1' is of another cycle.*{name}.*in the file.*now"):
        learn.fit_one_cycle(**dict(cycle_len=2, max_lr=.05, checkpoint='run1') | call)
    assert frozen_state(learn) == before and (tmp_path / 'models/run1.cycle').read_bytes() == content

def test_another_model_is_refused(tmp_path):
    learner(tmp_path).fit_one_cycle(2, .05, checkpoint='run1')
    learn = learner(tmp_path)
    learn.model[0] = nn.Linear(6, 16, bias=False)
    with pytest.raises(ValueError, match=r'model 0\.bias: torch.float32 \(16,\) in the file, nothing now'): learn.fit_one_cycle(2, .05, checkpoint='run1')

class Evil:
    def __reduce__(self): return os.mkdir, ('evil_code_ran',)

def evil(path): torch.save(dict(format=Evil()), path)
def truncated(path): path.write_bytes(path.read_bytes()[:-300])
def empty(path): path.write_bytes(b'')
def foreign(path): torch.save(dict(model=torch.ones(3)), path)
def text(path): path.write_text('my notes')

@pytest.mark.parametrize('spoil, why', [(evil, 'nothing of it was run'), (truncated, 'is damaged'), (empty, 'it is empty'), (foreign, 'is not a checkpoint of a cycle'), (text, 'is damaged')])
@pytest.mark.parametrize('restart', [False, True])
def test_a_file_that_is_no_checkpoint(tmp_path, monkeypatch, spoil, why, restart):
    monkeypatch.chdir(tmp_path)
    learner(tmp_path).fit_one_cycle(1, .05, checkpoint='run1')
    path = tmp_path / 'models/run1.cycle'
    spoil(path)
    content, learn = path.read_bytes(), learner(tmp_path)
    before = frozen_state(learn)
    with pytest.raises(ValueError, match=rf'run1\.cycle.*{why}.*Move it away'): learn.fit_one_cycle(1, .05, checkpoint=CycleCheckpoint('run1', restart=restart))
    assert path.read_bytes() == content and not Path('evil_code_ran').exists() and frozen_state(learn) == before

def test_the_evil_file_is_evil(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil(tmp_path / 'file')
    torch.load(tmp_path / 'file', weights_only=False)
    assert Path('evil_code_ran').exists()

def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'models').write_text('a file where the folder should be')
    learn = learner(tmp_path)
    before = frozen_state(learn)
    with pytest.raises(OSError, match="checkpoint 'run1' cannot be written in .*models"): learn.fit_one_cycle(1, .05, checkpoint='run1')
    assert frozen_state(learn) == before

def test_a_disk_without_room(tmp_path, monkeypatch):
    usage = type('Usage', (), dict(free=10))
    monkeypatch.setattr('onecycle_callback.checkpoint.shutil.disk_usage', lambda _: usage)
    with pytest.raises(OSError, match='10 bytes are free and the weights alone take'): learner(tmp_path).fit_one_cycle(1, .05, checkpoint='run1')

@pytest.mark.parametrize('bad, error, why', [(7, TypeError, 'a name or a CycleCheckpoint, got 7'), ('', ValueError, 'a name without folder'), ('a/b', ValueError, "got 'a/b'"), ('..', ValueError, 'name')])
def test_bad_names(tmp_path, bad, error, why):
    with pytest.raises(error, match=f'checkpoint must .*{why}'): learner(tmp_path).fit_one_cycle(1, .05, checkpoint=bad)

def test_only_through_fit_one_cycle(tmp_path):
    with pytest.raises(ValueError, match='give it as checkpoint'): learner(tmp_path).fit_one_cycle(1, .05, cbs=CycleCheckpoint('run1'))
    with pytest.raises(ValueError, match='works through fit_one_cycle'): learner(tmp_path).fit(1, cbs=CycleCheckpoint('run1'))

def test_what_cannot_be_carried_is_named_once(tmp_path):
    class Odd(Callback):
        def before_fit(self): self.stream = (i for i in range(100))
        def after_batch(self): next(self.stream, None)
    with pytest.warns(UserWarning, match=r'does not hold Odd\.stream') as caught: learner(tmp_path).fit_one_cycle(3, .05, cbs=Odd(), checkpoint='run1')
    assert sum('Odd.stream' in str(w.message) for w in caught) == 1

def test_persistent_workers_are_named(tmp_path):
    learn = learner(tmp_path)
    learn.dls.loaders[0] = DataLoader(items(), bs=8, num_workers=1, persistent_workers=True)
    with pytest.warns(UserWarning, match='persistent_workers'): learn.fit_one_cycle(1, .05, checkpoint='run1')

@pytest.mark.parametrize('at', [4, 13, 22])
def test_fine_tune(tmp_path, at):
    "Broken off while the groups are frozen, between the epochs of the whole model, and inside one."
    splitter = lambda m: [list(m[:4].parameters()), list(m[4:].parameters())]
    def make(path):
        learn = learner(tmp_path / path)
        learn.splitter = splitter
        return learn
    class DieOnce(Callback):
        order, n = 20_000, 0
        def after_batch(self):
            self.n += self.training
            if self.n == at: raise RuntimeError('broken off')
    calm = make('calm')
    calm.fine_tune(2, .05)
    expected = bits(calm)
    die = DieOnce()
    with pytest.raises(RuntimeError): make('hit').fine_tune(2, .05, cbs=die, checkpoint=CycleCheckpoint('run1', every=4))
    again = make('hit')
    again.fine_tune(2, .05, checkpoint=CycleCheckpoint('run1', every=4))
    assert_same(bits(again), expected)
    assert sorted(os.listdir(tmp_path / 'hit/models')) == ['run1.cycle', 'run1_frozen.cycle']

def test_killed_again_and_again(tmp_path):
    figures = crash(1, seed=1, root=tmp_path)
    assert figures['kills'] > 0 and figures['torn_files'] == 0 and figures['different_runs'] == 0
    for name in ('exception', 'interrupt', 'full_disk'): assert figures[name]['equal'] and not figures[name]['torn']
    assert figures['full_disk'] == dict(first_process='ended', warned=True, torn=False, equal=True)

SCRIPT = """
import os, signal, sys
from fastai.basics import Callback
from tests.test_checkpoint import learner, bits
from onecycle_callback import CycleCheckpoint
from onecycle_callback.state import plain
import torch
class Kill(Callback):
    order = 20_000
    def after_batch(self):
        if self.training and self.train_iter == int(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)
learn = learner(sys.argv[2])
learn.fit_one_cycle(3, .05, cbs=Kill(), checkpoint=CycleCheckpoint('run1', every=5))
b = bits(learn)
b.pop('opt')
torch.save(plain(b), sys.argv[3])
"""

def test_the_same_script_in_a_new_interpreter(tmp_path):
    def run(at, folder, out):
        return subprocess.run([sys.executable, '-c', SCRIPT, str(at), tmp_path / folder, tmp_path / out], cwd=ROOT, env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    assert run(0, 'calm', 'calm.pt').returncode == 0
    assert run(17, 'hit', 'hit.pt').returncode == -9
    again = run(0, 'hit', 'hit.pt')
    assert again.returncode == 0 and 'goes on in epoch 1, batch 6' in again.stdout
    assert_same(torch.load(tmp_path / 'hit.pt'), torch.load(tmp_path / 'calm.pt'))
