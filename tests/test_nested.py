"""What callbacks do with the Learner in a cycle: validate, predict, train, copy, export. Only its own fit counts."""
import copy
import pickle
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cloudpickle
import pytest
import torch
from fastai.basics import Callback, Datasets, Learner
from torch import nn

from support import fresh, interrupted
from support.helpers import Spy, learner, tabular
from support.interrupted import N_EPOCH, Interrupt, assert_same, epochs_shown, results, rows
from support.pairs import each, pairs
from onecycle_callback import CycleCheckpoint, OneCycle

pytestmark = pytest.mark.matrix

def quiet_fit(learn):
    with learn.no_logging(), learn.no_mbar(): learn.fit(1, 0.)

NESTED = {'get_preds': lambda learn: learn.get_preds(), 'get_preds inner': lambda learn: learn.get_preds(inner=True),
          'get_preds train': lambda learn: learn.get_preds(0, inner=True), 'validate': lambda learn: learn.validate(),
          'fit': quiet_fit}
EVENTS = ['before_epoch', 'before_train', 'after_batch', 'after_train', 'after_epoch']

class Nested(Callback):
    "Do `act` once in each `event` of the fit's own training, at the fourth batch if it is one of a batch."
    order = 200
    def __init__(self, event, act):
        self.act, self.is_busy = act, False
        setattr(self, event, self._maybe)
    def _maybe(self):
        learn = self.learn
        if self.is_busy or (learn.training and getattr(learn, 'iter', 0) != 3 and 'after_batch' in vars(self)): return
        if 'after_batch' in vars(self) and not learn.training: return
        self.is_busy = True
        try: self.act(learn)
        finally: self.is_busy = False

FITS = {'fit_one_cycle': lambda learn, cbs: learn.fit_one_cycle(3, .1, cbs=cbs),
        'OneCycle': lambda learn, cbs: learn.fit(3, cbs=[OneCycle(.1), *cbs])}

class Own(Spy):
    "Record the batches of the outer fit only."
    def __init__(self, nested): self.nested = nested
    def before_fit(self):
        if not self.nested.is_busy: super().before_fit()
    def before_batch(self):
        if not self.nested.is_busy: super().before_batch()

@pytest.mark.parametrize('fit, event, act', pairs(FITS, EVENTS, NESTED))
def test_the_cycle_trains_and_records_every_batch(capsys, fit, event, act):
    learn, cb = learner(), Nested(event, NESTED[act])
    spy = Own(cb)
    plan = learn.preview_one_cycle(3, .1)
    FITS[fit](learn, [cb, spy])
    assert spy.places == [(epoch, i) for epoch in range(3) for i in range(12)]
    assert [lr for lr, in spy.seen_lrs] == plan.lrs[:, 0].tolist()
    assert [mom for mom, in spy.seen_moms] == plan.moms.tolist()
    assert learn.recorder.hps == dict(lr=plan.lrs[:, 0].tolist(), mom=plan.moms.tolist())
    assert learn.recorder.plan == plan and learn.recorder.starts == {0: 0, 1: 12, 2: 24}
    assert learn.opt.hypers[0]['mom'] == .9 and learn.train_iter == 36
    assert len(learn.recorder.losses) == 36 and learn.recorder.iters == [12, 24, 36]
    values = learn.recorder.values
    learn.fit_one_cycle(1, .1)
    out = capsys.readouterr().out
    assert rows(out) == [0, 1, 2, 0] and all(len(v) == 2 for v in [*values, *learn.recorder.values])
    assert [epoch for epoch in epochs_shown(out) if epoch.endswith('/3')] == ['1/3', '2/3', '3/3']

CYCLES = {'fit_one_cycle': lambda learn: learn.fit_one_cycle(1, .001), 'fine_tune': lambda learn: learn.fine_tune(1),
          'fit': lambda learn: learn.fit(1, cbs=OneCycle(.001)),
          'compare_max_lr': lambda learn: learn.compare_max_lr([.01])}

@pytest.mark.parametrize('event, cycle', [*each(EVENTS, CYCLES), ('after_batch', 'fine_tune')])
def test_a_cycle_within_a_cycle(event, cycle):
    learn, cb = learner(), Nested(event, CYCLES[cycle])
    spy = Own(cb)
    learn.fit_one_cycle(3, .1, cbs=[cb, spy])
    plan = learn.recorder.plan
    assert plan.n_epoch == 3 and [lr for lr, in spy.seen_lrs] == plan.lrs[:, 0].tolist() == learn.recorder.hps['lr']
    assert learn.recorder.to_frame().lr.tolist() == plan.lrs[:, 0].tolist()

@pytest.mark.parametrize('every_and_event, act', each(pairs([None, 7], EVENTS), NESTED), ids=str)
def test_a_resumed_cycle_ends_with_the_same_bits(tmp_path, every_and_event, act):
    every, event = every_and_event
    def fit(cbs=(), folder=tmp_path, **kwargs):
        learn = interrupted.learner(folder)
        learn.fit_one_cycle(N_EPOCH, .05, cbs=[Nested(event, NESTED[act]), *cbs], **kwargs)
        return results(learn)
    keep = dict(checkpoint=CycleCheckpoint('run1', every=every))
    expected = fit(folder=tmp_path / 'calm')
    with pytest.raises(RuntimeError, match='interrupted'): fit([Interrupt(30)], **keep)
    assert_same(fit(**keep), expected)

@pytest.mark.parametrize('act', [lambda learn, row: learn.predict(row), lambda learn, row: learn.show_results()],
                         ids=['predict', 'show_results'])
@pytest.mark.parametrize('event', ['before_epoch', 'after_epoch'])
def test_predictions_of_an_application(tmp_path, event, act):
    learn, rows = tabular(tmp_path)
    plan = learn.preview_one_cycle(2, .01)
    learn.fit_one_cycle(2, .01, cbs=Nested(event, lambda learn: act(learn, rows.iloc[0])))
    assert learn.recorder.hps['lr'] == plan.lrs[:, 0].tolist()

@pytest.mark.parametrize('act', NESTED.values(), ids=NESTED)
def test_the_learner_is_as_the_fit_left_it(act):
    "Nothing of the position or of the mode changes, not even inside a batch."
    before, after, learn = [], [], learner()
    def state(learn): return {name: vars(learn).get(name) for name in
                              ('epoch', 'iter', 'n_iter', 'n_epoch', 'train_iter', 'pct_train', 'training', 'dl', 'xb',
                               'yb', 'pred', 'loss')}
    def look(learn):
        before.append([state(learn), [m.training for m in learn.model.modules()], list(learn.cbs)])
        act(learn)
        after.append([state(learn), [m.training for m in learn.model.modules()], list(learn.cbs)])
    learn.fit_one_cycle(2, .1, cbs=Nested('after_batch', look))
    assert len(before) == 2
    for old, new in zip(before, after):
        for name in old[0]: assert old[0][name] is new[0][name], name
        assert old[1:] == new[1:]

def test_other_fits_are_left_as_fastai_has_them():
    "Without a cycle nothing is restored: `validate` leaves the model in validation mode."
    seen = []
    def act(learn):
        learn.validate()
        seen.append(learn.training)
    learner().fit(1, cbs=Nested('after_batch', act))
    assert seen == [False]

class Copy(Callback):
    "Copy the Learner at the end of its first epoch; this callback is no part of the copy."
    order = 200
    def __init__(self, make): self._make, self._copies = make, []
    def after_epoch(self):
        if self._copies: return
        with self.learn.removed_cbs(self) as learn: self._copies.append(self._make(learn))

def copied(fit, make, **kwargs):
    "Return what `make` made of a Learner in the middle of `fit`, and the Learner."
    learn, cb = from_datasets(**kwargs), Copy(make)
    fit(learn, [cb])
    return cb._copies[0], learn

def from_datasets(**kwargs):
    "A Learner that can be exported: 12 batches per epoch."
    dls = Datasets(range(52), [partial(torch.mul, torch.ones(n) / 48) for n in (3, 1)],
                   splits=(range(48), range(48, 52))).dataloaders(bs=4, device='cpu', num_workers=0)
    return Learner(dls, nn.Linear(3, 1), loss_func=nn.MSELoss(), **kwargs)

COPIES = {'copy': copy.copy, 'deepcopy': copy.deepcopy,
          'pickle': lambda learn: pickle.loads(cloudpickle.dumps(learn, 2))}
copies = pytest.mark.parametrize('make', COPIES.values(), ids=COPIES)
def with_checkpoint(learn, cbs):
    with TemporaryDirectory() as folder:
        learn.path = Path(folder)
        learn.fit_one_cycle(3, .1, cbs=cbs, checkpoint='run1')
EXPORTED = {'fit_one_cycle': lambda learn, cbs: learn.fit_one_cycle(3, .1, cbs=cbs), 'checkpoint': with_checkpoint,
            'part': lambda learn, cbs: learn.fit_one_cycle(5, .1, cbs=cbs, stop_epoch=3),
            'OneCycle': lambda learn, cbs: learn.fit(3, cbs=[OneCycle(.1), *cbs])}
exported = pytest.mark.parametrize('fit', EXPORTED.values(), ids=EXPORTED)

@copies
@exported
def test_a_copy_holds_nothing_of_the_running_cycle(fit, make):
    twin, learn = copied(fit, make)
    assert [type(cb) for cb in twin.cbs] == [type(cb) for cb in learner().cbs] == [type(cb) for cb in learn.cbs]
    assert not {'_do_fit', 'all_batches', 'param_scheduler', 'resumable_run'} & {*vars(twin), *vars(learn)}
    if make is copy.copy: return          # its callbacks and its optimizer are those of the original
    weights, spy = [p.clone() for p in learn.model.parameters()], Spy()
    twin.fit(1, cbs=spy)
    assert spy.places == [(0, i) for i in range(12)] and not hasattr(twin.recorder, 'hps')
    plan = twin.preview_one_cycle(2, .1)
    twin.fit_one_cycle(2, .1)
    assert twin.recorder.hps['lr'] == plan.lrs[:, 0].tolist()
    assert all(map(torch.equal, weights, learn.model.parameters()))

def test_a_copy_keeps_a_cycle_that_is_on_the_learner_for_good():
    twin, learn = copied(lambda learn, cbs: learn.fit(2, cbs=cbs), copy.deepcopy, cbs=OneCycle(.1))
    weights, spy = [p.clone() for p in learn.model.parameters()], Spy()
    twin.fit(1, cbs=spy)
    assert [lr for lr, in spy.seen_lrs] == OneCycle(.1).schedule.plan(1, 12).lrs[:, 0].tolist()
    assert all(map(torch.equal, weights, learn.model.parameters()))

WITHOUT_US = """import sys, warnings
from importlib.abc import MetaPathFinder
class Blocked(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split('.')[0] == 'onecycle_callback': raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
from fastai.basics import *
from fastai.callback.schedule import *
dl = DataLoader([(torch.ones(3), torch.ones(1))] * 8, bs=4)
for path in sys.argv[1:]:
    learn = load_learner(path)
    n = len(learn.get_preds(dl=dl)[0])
    learn.dls = DataLoaders(dl, dl)
    learn.fit_one_cycle(2)
    n_trained, is_here = len(learn.recorder.hps['lr']), 'onecycle_callback' in sys.modules
    print(f"\\n{Path(path).name}: predicted {n}, trained {n_trained}, {'with' if is_here else 'without'}")"""

@pytest.fixture(scope='module')
def without_us(tmp_path_factory):
    "What an interpreter without this package prints when it loads and trains the Learners that were exported in fits."
    folder = tmp_path_factory.mktemp('exports')
    for name, fit in EXPORTED.items():
        def export(learn):
            path, learn.path = learn.path, folder
            learn.export(name)
            learn.path = path
        copied(fit, export)
    run = fresh.python(WITHOUT_US, *(folder / name for name in EXPORTED))
    assert run.returncode == 0, run.stderr
    return run.stdout.replace('\r', '\n').splitlines()

@pytest.mark.slow
@pytest.mark.parametrize('name', EXPORTED)
def test_an_export_loads_where_this_package_is_not_installed(without_us, name):
    assert f'{name}: predicted 8, trained 4, without' in without_us
