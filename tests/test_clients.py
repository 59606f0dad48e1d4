"""Other libraries' ways to train through fastai, each on a Learner with all its default callbacks.

Libraries that can be installed alongside this package are tested in tests/clients. Here are the calls of others, as
their own code and docs write them, and a package that replaces parts of `Recorder`."""
import pytest
import torch
from fastai.basics import Adam, Callback, DataLoader, DataLoaders, Learner, params, partial, set_seed, trainable_params
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import ShortEpochCallback
from torch import nn

import onecycle_callback  # noqa: F401
from support import fresh
from support.helpers import Spy, groups_of, momentum

def data(n_batch=12, bs=8):
    x = torch.linspace(-1, 1, 3 * n_batch * bs).reshape(-1, 3)
    return list(zip(x, x.sum(1, keepdim=True)))

def trained_as_planned(learn, spy, n, frozen=()):
    """Check that the last fit's first `n` batches trained with the values of its plan, and that momentum is restored.

    The record begins with the LRs of the `frozen` cycle of a `fine_tune`."""
    plan = learn.recorder.plan
    assert spy.seen_lrs == plan.lrs[:n].tolist() and learn.recorder.hps['lr'] == [*frozen, *plan.lrs[:n, -1].tolist()]
    assert {momentum(g) for g in groups_of(learn.opt)} == {.9}
    return plan

# autogluon.tabular 1.6.3, models/fastainn/tabular_nn_fastai.py

@pytest.mark.slow
def test_autogluon(tmp_path):
    set_seed(0)
    dls = DataLoaders.from_dsets(data(), data(), bs=8, device='cpu')
    learn, spy = Learner(dls, nn.Linear(3, 1), loss_func=nn.MSELoss(), path=tmp_path), Spy()
    callbacks = [SaveModelCallback(with_opt=True), EarlyStoppingCallback(min_delta=1e9, patience=2), spy]
    with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match='in epoch 2 of 30'):
        learn.fit_one_cycle(30, 1e-2, cbs=callbacks)
    plan = trained_as_planned(learn, spy, 36)
    assert (plan.n_epoch, plan.schedule.max_lr) == (30, 1e-2)

# ohmeow-blurr 1.0.5: README (in its METADATA) and text/modeling/core.py

class Output(dict): "What a transformer returns."

class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 1)
    def forward(self, x): return Output(logits=self.head(self.body(x['inputs'])), attentions=x['inputs'])

class BaseModelCallback(Callback):
    def after_pred(self): self.learn.pred = self.pred['logits']

def blurr_learner():
    set_seed(0)
    ds = [(dict(inputs=x), y) for x, y in data()]
    dls = DataLoaders.from_dsets(ds, ds, bs=8, device='cpu')
    return Learner(dls, Transformer(), opt_func=partial(Adam, decouple_wd=True), loss_func=nn.MSELoss(),
                   cbs=[BaseModelCallback], splitter=lambda m: [params(m.body), params(m.head)])

def test_blurr_frozen():
    learn, spy = blurr_learner(), Spy()
    before = [p.detach().clone() for p in learn.model.body.parameters()]
    learn.freeze()
    learn.fit_one_cycle(3, lr_max=1e-3, cbs=spy)
    assert trained_as_planned(learn, spy, 36).schedule.max_lr == 1e-3
    assert all(map(torch.equal, before, learn.model.body.parameters()))

@pytest.mark.slow
def test_blurr_unfrozen_with_callbacks_of_this_fit():
    learn, spy = blurr_learner(), Spy()
    learn.unfreeze()
    learn.lr_find(suggest_funcs=None)
    learn.fit_one_cycle(2, lr_max=slice(1e-5, 1e-3), cbs=[ShortEpochCallback(pct=.5, short_valid=True), spy])
    plan = learn.recorder.plan
    assert plan.lrs.max(0).tolist() == [1e-5, 1e-3]
    assert spy.seen_lrs == [plan.lrs[12 * epoch + i].tolist() for epoch, i in spy.places]
    assert spy.places == [(epoch, i) for epoch in range(2) for i in range(7)]   # half of 12, and one

# icevision 0.12.0: engines/fastai (loaders, frozen Learner), models/fastai/unet/fastai/callbacks.py, its tests and docs

class Converted(DataLoader):
    "A batch with one input, which holds the target too, and records alongside it."
    def create_batch(self, b):
        x, y = map(torch.stack, zip(*b))
        return (x, y), ['a record'] * len(b)

class DetectorCallback(Callback):
    def before_batch(self):
        self.learn.records, (x, y) = self.yb[0], self.xb[0]
        self.learn.xb, self.learn.yb = (x,), (y,)

def icevision_learner(path, **kwargs):
    set_seed(0)
    dls = DataLoaders(*[Converted(data(), bs=8, shuffle=shuffle) for shuffle in (True, False)], device='cpu')
    learn = Learner(dls, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), loss_func=nn.MSELoss(), cbs=DetectorCallback,
                    path=path, **kwargs)
    learn.freeze()
    return learn

def layers(m): return [params(layer) for layer in m]

@pytest.mark.parametrize('splitter', [layers, trainable_params], ids=['groups', 'one group'])
def test_icevision(splitter, tmp_path):
    learn, spy = icevision_learner(tmp_path, splitter=splitter), Spy()
    learn.lr_find()
    frozen = learn.preview_fine_tune(2, 1e-3, freeze_epochs=1).frozen
    learn.fine_tune(2, 1e-3, freeze_epochs=1, cbs=[SaveModelCallback(), spy])
    plan = trained_as_planned(learn, spy, 24, frozen.lrs[:, -1].tolist())
    assert plan.n_groups == len(learn.opt.param_lists) and plan.lrs.max() == 5e-4
    assert all(p.requires_grad for p in learn.model.parameters())

# fastxtend 0.1.7, metrics.py: it replaces these methods of `Recorder`, which then lacks what fastai's own need

OTHER_RECORDER = '''
from fastai.learner import Recorder, AvgLoss, AvgSmoothLoss, L, _maybe_item
from fastcore.basics import patch

@patch
def __init__(self:Recorder):
    self.add_time, self.loss, self.smooth_loss = False, AvgLoss(), AvgSmoothLoss()

@patch
def before_fit(self:Recorder):
    self.lrs, self.iters, self.losses, self.values, self.begun = [], [], [], [], []
    self.metric_names = L('epoch', 'train_loss', 'valid_loss')
    self.smooth_loss.reset()

@patch
def before_train(self:Recorder): self.begun.append(self.epoch)

@patch
def after_train(self:Recorder): self.log += L(self.smooth_loss).map(_maybe_item)

@patch
def before_validate(self:Recorder): self.loss.reset()

@patch
def after_validate(self:Recorder): self.log += L(self.loss).map(_maybe_item)

@patch
def after_batch(self:Recorder):
    (self.smooth_loss if self.training else self.loss).accumulate(self.learn)
    if self.training: self.lrs.append(self.opt.hypers[-1]['lr'])
'''

FITS = '''
import matplotlib
matplotlib.use('Agg')
import torch
from fastai.basics import DataLoaders, Learner, nn
ds = [(torch.ones(3), torch.ones(1))] * 96
dls = DataLoaders.from_dsets(ds, ds, bs=8, num_workers=0, device='cpu')
learn = Learner(dls, nn.Linear(3, 1), loss_func=nn.MSELoss())
rec = learn.recorder
for n in (2, 3):
    learn.fit_one_cycle(n, .1)
    assert rec.hps == dict(lr=rec.plan.lrs[:, 0].tolist(), mom=rec.plan.moms.tolist())
    assert rec.starts == {epoch: 12 * epoch for epoch in range(n)}
    rec.plot_lr()
learn.fit(2)
assert not hasattr(rec, 'hps') and rec.plan is None
learn.fit_flat_cos(2, .1)
rec.plot_sched()
'''

IMPORTS = dict(
    before='import other, onecycle_callback',
    after='import onecycle_callback, other',
    reloaded='import onecycle_callback, other\nfrom importlib import reload\n'
             'for _ in range(3): reload(other), reload(onecycle_callback.recorder)')

@pytest.mark.slow
@pytest.mark.parametrize('imports', IMPORTS.values(), ids=IMPORTS.keys())
def test_a_package_that_replaces_the_recorder(imports, tmp_path):
    (tmp_path/'other.py').write_text(OTHER_RECORDER, encoding='utf-8')
    (tmp_path/'fits.py').write_text(imports + FITS, encoding='utf-8')
    run = fresh.python('import runpy; runpy.run_path("fits.py", run_name="__main__")', cwd=tmp_path)
    assert run.returncode == 0, run.stderr
