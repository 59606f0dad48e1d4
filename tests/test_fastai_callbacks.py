"""fastai's callbacks beside a cycle. Each row of the table in nbs/howto/callbacks.ipynb is one of these tests, or one in another file named here."""
import ast
import csv
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from fastai.basics import Adam, Callback, CancelStepException, CrossEntropyLossFlat, DataLoader, DataLoaders, OptimWrapper, SGD, partial, set_seed
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.tracker import SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import GradientAccumulation, GradientClip

from helpers import Plain, Spy, groups_of, learner

ROOT = Path(__file__).parents[1]
WORKS, NOTE, REFUSES = 'works', 'works, with a note', 'refuses'
ROWS = {}

def row(name, verdict):
    "The row of the table that a test stands for."
    def note(test):
        ROWS[name] = (verdict, f'tests/test_callbacks.py::{test.__name__}')
        return test
    return note

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='half precision takes effect on a GPU only, and there is none')
cuda_is_missing = pytest.mark.filterwarnings('ignore:.*CUDA is not available:UserWarning')

class Steps(Callback):
    "LR and momentum of the last group when the optimizer has stepped."
    def before_fit(self): self.steps = []
    def after_step(self): self.steps.append((self.opt.hypers[-1]['lr'], self.opt.hypers[-1]['mom']))

def check(learn, cbs=None, n_epoch=3):
    "A cycle that trains every batch with what the preview said, and records it; the plan."
    spy = Spy()
    plan = learn.preview_one_cycle(n_epoch, .01)
    learn.fit_one_cycle(n_epoch, .01, cbs=[spy, *(cbs or [])])
    assert [lrs[-1] for lrs in spy.seen_lrs] == plan.lrs[:, -1].tolist() and len(plan) > 3
    assert [moms[-1] for moms in spy.seen_moms] == plan.moms.tolist()
    assert learn.recorder.hps == dict(lr=plan.lrs[:, -1].tolist(), mom=plan.moms.tolist())
    assert len(learn.recorder.values) == n_epoch and all(v == v for values in learn.recorder.values for v in values)
    learn.recorder.plot_lr(show_moms=True)
    return plan

def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]

def classifier(model=None, **kwargs):
    "Two classes of small pictures, told apart by their brightness."
    set_seed(0)
    labels = torch.arange(24) % 2
    items = list(zip(torch.rand(24, 1, 4, 4) + labels[:, None, None, None], labels))
    train = DataLoader(items, bs=4, shuffle=True, device='cpu')
    return Plain(DataLoaders(train, DataLoader(items, bs=4, device='cpu'), device='cpu'), model or nn.Sequential(nn.Flatten(), nn.Linear(16, 2)),
                 loss_func=CrossEntropyLossFlat(), **kwargs)

@row('GradientAccumulation', NOTE)
def test_accumulation_counts_batches():
    learn, steps = learner(6), Steps()
    plan = check(learn, [GradientAccumulation(8), steps])
    assert steps.steps == list(zip(plan.lrs[1::2, 0].tolist(), plan.moms[1::2].tolist()))

@row('GradientClip', WORKS)
def test_gradient_clip():
    learn, norms = learner(), []
    class Norm(Callback):
        order = GradientClip.order + 1
        def before_step(self): norms.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm().item())
    check(learn, [GradientClip(.01), Norm()])
    assert max(norms) == pytest.approx(.01, rel=1e-3)

@row('MixedPrecision, to_fp16', NOTE)
@cuda_is_missing
@pytest.mark.parametrize('opt', [Adam, partial(OptimWrapper, opt=torch.optim.AdamW)], ids=['Adam', 'AdamW'])
def test_fp16(opt):
    learn = classifier(opt_func=opt).to_fp16()
    check(learn)
    check(learn.to_fp32(), [MixedPrecision()])

@row('to_bf16', NOTE)
def test_bf16():
    learn = classifier().to_bf16()
    check(learn)
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())

@row('weights in bfloat16', WORKS)
@pytest.mark.parametrize('opt', [Adam, partial(SGD, mom=.9), partial(OptimWrapper, opt=torch.optim.AdamW)], ids=['Adam', 'SGD', 'AdamW'])
def test_weights_in_bfloat16(opt):
    class Half(Callback):
        def before_batch(self): self.learn.xb = tuple(x.bfloat16() for x in self.xb)
        def after_pred(self): self.learn.pred = self.pred.float()
    learn = classifier(opt_func=opt, cbs=Half)
    learn.model.bfloat16()
    before = weights(learn)
    check(learn)
    assert all(a.dtype == torch.bfloat16 and not torch.equal(a, b) for a, b in zip(weights(learn), before))

@row('a real autocast to bfloat16 on the CPU', WORKS)
def test_autocast_on_the_cpu():
    seen = []
    class Auto(MixedPrecision):
        def before_fit(self):
            super().before_fit()
            self.autocast = torch.autocast('cpu', torch.bfloat16)
        def after_pred(self):
            seen.append(self.pred.dtype)
            super().after_pred()
    check(classifier(cbs=Auto('bf16')))
    assert set(seen) == {torch.bfloat16}

@gpu
@pytest.mark.parametrize('to_half', ['to_fp16', 'to_bf16'])
@pytest.mark.parametrize('opt', [Adam, partial(OptimWrapper, opt=torch.optim.AdamW)], ids=['Adam', 'AdamW'])
def test_half_precision_on_a_gpu(opt, to_half):
    learn = classifier(opt_func=opt)
    learn.dls.cuda()
    learn.model.cuda()
    check(getattr(learn, to_half)())

@row('a step that fp16 skips', WORKS)
def test_a_skipped_step_keeps_the_cycle_in_place():
    "`MixedPrecision` cancels a step whose gradients overflow; the batches after it train with their own values all the same."
    before, skipped = [], (0, 3, 4)
    class Overflow(Callback):
        order = MixedPrecision.order
        def before_step(self):
            before.append(weights(self.learn))
            if self.train_iter in skipped: raise CancelStepException()
        def after_batch(self):
            if self.training: assert all(map(torch.equal, before[-1], weights(self.learn))) == (len(before) - 1 in skipped)
    check(learner(5), [Overflow()])
    assert len(before) == 15

@row('MixUp, CutMix', WORKS)
@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixup(mix):
    learn, mixed = classifier(), []
    class Mix(mix):
        def before_batch(self):
            images = self.x.clone()
            super().before_batch()
            mixed.append(not torch.equal(images, self.x))
    check(learn, [Mix()])
    assert len(mixed) == 18 and any(mixed)

@row('SaveModelCallback', WORKS)
@pytest.mark.parametrize('with_opt', [False, True])
@pytest.mark.parametrize('where', ['Learner', 'fit'])
def test_save_model(where, with_opt, tmp_path, capsys):
    save = SaveModelCallback(fname='best', with_opt=with_opt)
    learn = learner(path=tmp_path, cbs=save if where == 'Learner' else None)
    check(learn, [save] if where == 'fit' else None)
    saved = torch.load(tmp_path / 'models/best.pth', weights_only=False)
    assert capsys.readouterr().out.count('Better model found') >= 1
    for name, value in learn.model.state_dict().items(): assert torch.equal((saved['model'] if with_opt else saved)[name], value)
    assert learn.opt.hypers[0]['mom'] == .9
    check(learn)

@row('TerminateOnNaNCallback', NOTE)
def test_terminate_on_nan():
    calls = []      # 5 to train and 1 to validate make an epoch: the ninth is batch 7 of the cycle
    def loss(pred, target):
        calls.append(1)
        return nn.functional.mse_loss(pred, target) * (float('nan') if len(calls) == 9 else 1)
    learn = learner(loss_func=loss)
    plan = learn.preview_one_cycle(3, .1)
    with pytest.warns(UserWarning, match=r'broken off in epoch 1 of 3 .*after 7 batches'): learn.fit_one_cycle(3, .1, cbs=TerminateOnNaNCallback())
    assert len(calls) == 9 and learn.recorder.hps == dict(lr=plan.lrs[:7, 0].tolist(), mom=plan.moms[:7].tolist()) and len(learn.recorder.losses) == 7
    assert learn.opt.hypers[0]['mom'] == .9

@row('CSVLogger', WORKS)
def test_csv_logger(tmp_path):
    learn = learner(path=tmp_path)
    check(learn, [CSVLogger()])
    with open(tmp_path / 'history.csv') as f: lines = list(csv.reader(f))
    assert lines[0][:3] == ['epoch', 'train_loss', 'valid_loss'] and [line[0] for line in lines[1:]] == ['0', '1', '2']
    learn.fit_one_cycle(4, start_epoch=2, cbs=CSVLogger(append=True))
    with open(tmp_path / 'history.csv') as f: assert [line[0] for line in csv.reader(f)][4:] == ['epoch', '2', '3']

@row('ShowGraphCallback', WORKS)
def test_show_graph(monkeypatch):
    learn, drawn = learner(), []
    learn.add_cb(ProgressCallback())
    class Graph(ShowGraphCallback):
        def after_train(self):
            monkeypatch.setattr(self.progress.mbar, 'update_graph', lambda graphs, *bounds: drawn.append([len(y) for _, y in graphs]), raising=False)
            super().after_train()
    check(learn, [Graph()])
    assert drawn == [[5, 1], [10, 2], [15, 3]]

@row('learn.lr_find', WORKS)
@pytest.mark.parametrize('opt', [Adam, partial(OptimWrapper, opt=torch.optim.AdamW)], ids=['Adam', 'AdamW'])
def test_lr_find_before_and_between(opt, tmp_path):
    learn = learner(40, opt_func=opt, path=tmp_path)
    for _ in range(2):
        before = weights(learn)
        learn.lr_find(show_plot=False, num_it=30, suggest_funcs=None)
        assert learn.recorder.hps == {} and learn.recorder.lrs[0] == pytest.approx(1e-7)
        assert all(torch.equal(*pair) for pair in zip(before, weights(learn)))
        check(learn)
        assert learn.opt.hypers[0]['mom'] == .9

@row('learn.no_bar, learn.no_logging', WORKS)
def test_silence(capsys):
    learn = learner()
    learn.add_cb(ProgressCallback())
    learn.logger = print
    with learn.no_bar(), learn.no_logging(): check(learn)
    assert capsys.readouterr().out == '' and learn.logger is print
    check(learn)
    assert capsys.readouterr().out != ''

@row('learn.validate, learn.get_preds', NOTE)
def test_validate_and_get_preds_between():
    learn = learner()
    check(learn)
    hps, plan = learn.recorder.hps, learn.recorder.plan
    opt = [dict(g) for g in groups_of(learn.opt)]
    learn.validate()
    learn.get_preds()
    learn.get_preds(ds_idx=0, with_loss=True)
    assert learn.recorder.hps is hps and learn.recorder.plan is plan and [dict(g) for g in groups_of(learn.opt)] == opt
    learn.recorder.plot_lr(show_moms=True)
    assert learn.recorder.losses == []      # fastai forgets these, with or without a cycle
    check(learn)

# Rows whose tests were there before, in other files.
ROWS |= {
    'EarlyStoppingCallback': (NOTE, 'tests/test_record.py::test_early_stopping_names_the_lr_as_a_share_of_the_peak'),
    'ReduceLROnPlateau': (NOTE, 'tests/test_record.py::test_plateau_is_named_once'),
    'ShortEpochCallback': (NOTE, 'tests/test_record.py::test_epochs_cut_short_keep_the_later_ones_in_place'),
    'ParamScheduler of anything else': (WORKS, 'tests/test_record.py::test_beside_another_scheduler_also_when_it_dies'),
    'ParamScheduler of lr or mom': (REFUSES, 'tests/test_refusals.py::test_arguments_of_the_fit'),
    'a second OneCycle': (REFUSES, 'tests/test_refusals.py::test_two_cycles_at_once'),
    'learn.distrib_ctx': (NOTE, 'tests/test_distributed.py::test_every_process_trains_with_the_plan'),
}

def table_rows():
    "The rows of the page's table: what, verdict, note, test."
    cells = json.loads((ROOT / 'nbs/howto/callbacks.ipynb').read_text())['cells']
    lines = [line for cell in cells if cell['cell_type'] == 'markdown' for line in ''.join(cell['source']).splitlines() if line.startswith('|')]
    return [[part.strip() for part in line.strip('|').split('|')] for line in lines[2:]]

def test_the_table_is_these_tests():
    table = {name.replace('`', ''): (verdict, test.strip('`')) for name, verdict, _, test in table_rows()}
    assert table == ROWS
    assert all(bool(note) == (verdict != WORKS) for _, verdict, note, _ in table_rows())

def test_every_test_has_its_row():
    here = {f'tests/test_callbacks.py::{f.name}' for f in ast.parse(Path(__file__).read_text()).body if isinstance(f, ast.FunctionDef) and f.name.startswith('test_')}
    named = {test for _, test in ROWS.values()}
    assert here - named == {f'tests/test_callbacks.py::{name}' for name in ('test_half_precision_on_a_gpu', 'test_the_table_is_these_tests', 'test_every_test_has_its_row')}
    for test in named:
        file, name = test.split('::')
        assert name in {f.name for f in ast.parse((ROOT / file).read_text()).body if isinstance(f, ast.FunctionDef)}, test
