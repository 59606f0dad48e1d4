"""fastai's callbacks alongside a cycle: each row of the table in nbs/howto/callbacks.ipynb is here, with its test."""
import ast
import csv
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from fastai.basics import (Adam, Callback, CancelStepException, CrossEntropyLossFlat, DataLoader, DataLoaders, Learner,
                           OptimWrapper, SGD, partial, set_seed)
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.tracker import SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import GradientAccumulation, GradientClip

import onecycle_callback  # noqa: F401
from support.helpers import ROOT, Spy, groups_of, learner
from onecycle_callback import OneCycleSchedule

pytestmark = pytest.mark.matrix

WORKS, NOTE, REFUSES = 'works', 'works, with a note', 'refuses'
ROWS, HERE = {}, f'tests/{Path(__file__).name}'

def row(name, verdict):
    "Name the row of the table that a test proves."
    def note(test):
        ROWS[name] = (verdict, f'{HERE}::{test.__name__}')
        return test
    return note

gpu = pytest.mark.skipif(not torch.cuda.is_available(),
                         reason='half precision takes effect on a GPU, and there is none')
OPTS = dict(Adam=Adam, SGD=partial(SGD, mom=.9), AdamW=partial(OptimWrapper, opt=torch.optim.AdamW))
opts = pytest.mark.parametrize('opt', OPTS.values(), ids=OPTS)
cuda_is_missing = pytest.mark.filterwarnings('ignore:.*CUDA is not available:UserWarning')

class AtSteps(Callback):
    "Record LR and momentum of the last group after each step of the optimizer."
    def before_fit(self): self.at_steps = []
    def after_step(self): self.at_steps.append((self.opt.hypers[-1]['lr'], self.opt.hypers[-1]['mom']))

def check(learn, cbs=None, n_epoch=3):
    "Check that a cycle trains every batch as previewed, and records it; return the plan."
    spy = Spy()
    plan = learn.preview_one_cycle(n_epoch, .01, cbs=cbs)
    learn.fit_one_cycle(n_epoch, .01, cbs=[spy, *(cbs or [])])
    assert [lrs[-1] for lrs in spy.seen_lrs] == plan.lrs[:, -1].tolist() and len(plan) > 3
    assert [moms[-1] for moms in spy.seen_moms] == plan.moms.tolist()
    assert learn.recorder.hps == dict(lr=plan.lrs[:, -1].tolist(), mom=plan.moms.tolist())
    assert len(learn.recorder.values) == n_epoch and all(v == v for values in learn.recorder.values for v in values)
    learn.recorder.plot_lr(show_moms=True)
    return plan

def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]

def classifier(**kwargs):
    "Two classes of small pictures, told apart by their brightness; 12 batches per epoch."
    set_seed(0)
    labels = torch.arange(48) % 2
    items = list(zip(torch.rand(48, 1, 4, 4) + labels[:, None, None, None], labels))
    dls = DataLoaders(DataLoader(items, bs=4, shuffle=True, device='cpu'), DataLoader(items[:8], bs=4, device='cpu'),
                      device='cpu')
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), **kwargs)

@row('GradientAccumulation', NOTE)
def test_accumulation_counts_steps():
    learn, steps = learner(), AtSteps()
    plan = check(learn, [GradientAccumulation(8), steps])
    assert steps.at_steps == list(zip(plan.lrs[::2, 0].tolist(), plan.moms[::2].tolist()))
    lrs, moms = OneCycleSchedule(.01).plan(1, 18).at(range(18))     # as if each step were a batch
    assert steps.at_steps == list(zip(lrs[:, 0].tolist(), moms.tolist()))

@row('GradientClip', WORKS)
def test_gradient_clip():
    learn, norms = learner(), []
    class Norm(Callback):
        order = GradientClip.order + 1
        def before_step(self): norms.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm())
    check(learn, [GradientClip(.01), Norm()])
    assert len(norms) == 36 and max(norms).item() == pytest.approx(.01, rel=1e-3)

@row('MixedPrecision, to_fp16', NOTE)
@cuda_is_missing
@opts
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
@opts
def test_weights_in_bfloat16(opt):
    class Half(Callback):
        def before_batch(self): self.learn.xb = tuple(x.bfloat16() for x in self.xb)
        def after_pred(self): self.learn.pred = self.pred.float()
    learn = classifier(opt_func=opt, cbs=Half)
    learn.model.bfloat16()
    before = weights(learn)
    check(learn)
    assert all(a.dtype == torch.bfloat16 and not torch.equal(a, b) for a, b in zip(weights(learn), before))

@row('autocast to bfloat16 on the CPU', WORKS)
@pytest.mark.cpu
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
@opts
def test_half_precision_on_a_gpu(opt, to_half):
    learn = classifier(opt_func=opt)
    learn.dls.cuda()
    learn.model.cuda()
    check(getattr(learn, to_half)())

@row('fp16 gradient overflow (skipped step)', WORKS)
def test_a_skipped_step_keeps_the_cycle_in_place():
    "`MixedPrecision` cancels a step whose gradients overflow; the batches after it train with their own values."
    before, skipped = [], (0, 13, 14)
    class Overflow(Callback):
        order = MixedPrecision.order
        def before_step(self):
            before.append(weights(self.learn))
            if self.train_iter in skipped: raise CancelStepException()
        def after_batch(self):
            if not self.training: return
            assert all(map(torch.equal, before[-1], weights(self.learn))) == (len(before) - 1 in skipped)
    check(learner(), [Overflow()])
    assert len(before) == 36

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
    assert len(mixed) == 36 and any(mixed)

@row('SaveModelCallback', WORKS)
@pytest.mark.parametrize('with_opt', [False, True])
@pytest.mark.parametrize('where', ['Learner', 'fit'])
def test_save_model(where, with_opt, tmp_path, capsys):
    save = SaveModelCallback(fname='best', with_opt=with_opt)
    learn = learner(path=tmp_path, cbs=save if where == 'Learner' else None)
    check(learn, [save] if where == 'fit' else None)
    saved = torch.load(tmp_path/'models/best.pth', weights_only=False)
    assert capsys.readouterr().out.count('Better model found') >= 1
    if with_opt: saved = saved['model']
    for name, value in learn.model.state_dict().items(): assert torch.equal(saved[name], value)
    assert learn.opt.hypers[0]['mom'] == .9
    check(learn)

@row('TerminateOnNaNCallback', NOTE)
def test_terminate_on_nan():
    calls = []      # 12 to train and 1 to validate make an epoch: the 17th is batch 15 of the cycle
    def loss(pred, target):
        calls.append(1)
        return nn.functional.mse_loss(pred, target) * (float('nan') if len(calls) == 17 else 1)
    learn = learner(loss_func=loss)
    plan = learn.preview_one_cycle(3, .1)
    with pytest.warns(UserWarning, match=r'epoch 1 of 3 .*after 16 batches'):
        learn.fit_one_cycle(3, .1, cbs=TerminateOnNaNCallback())
    assert len(calls) == 17 and len(learn.recorder.losses) == 15
    assert learn.recorder.hps == dict(lr=plan.lrs[:16, 0].tolist(), mom=plan.moms[:16].tolist())
    assert learn.recorder.to_frame().train_loss.isna().tolist() == 15 * [False] + [True]
    assert learn.opt.hypers[0]['mom'] == .9

@row('CSVLogger', WORKS)
def test_csv_logger(tmp_path):
    learn = learner(path=tmp_path)
    check(learn, [CSVLogger()])
    with open(tmp_path/'history.csv', encoding='utf-8') as f: lines = list(csv.reader(f))
    assert lines[0][:3] == ['epoch', 'train_loss', 'valid_loss'] and [line[0] for line in lines[1:]] == ['0', '1', '2']
    learn.fit_one_cycle(4, start_epoch=2, cbs=CSVLogger(append=True))
    with open(tmp_path/'history.csv', encoding='utf-8') as f: lines = list(csv.reader(f))
    assert [line[0] for line in lines][4:] == ['epoch', '2', '3']

@row('ShowGraphCallback', WORKS)
def test_show_graph(monkeypatch):
    drawn = []
    class Graph(ShowGraphCallback):
        def after_train(self):      # a terminal's bar draws nothing
            monkeypatch.setattr(self.progress.mbar, 'update_graph',
                                lambda graphs, *bounds: drawn.append([len(y) for _, y in graphs]), raising=False)
            super().after_train()
    check(learner(), [Graph()])
    assert drawn == [[12, 1], [24, 2], [36, 3]]

@row('learn.lr_find', WORKS)
@opts
def test_lr_find_before_and_between(opt, tmp_path):
    learn = learner(opt_func=opt, path=tmp_path)
    for _ in range(2):
        before, record = weights(learn), vars(learn.recorder).get('hps')
        learn.lr_find(show_plot=False, num_it=30, suggest_funcs=None)
        assert vars(learn.recorder).get('hps') is record and learn.recorder.lrs[0] == pytest.approx(1e-7)
        assert all(torch.equal(*pair) for pair in zip(before, weights(learn)))
        check(learn)
        assert learn.opt.hypers[0]['mom'] == .9

@row('learn.no_bar, learn.no_logging', WORKS)
def test_silence(capsys):
    learn = learner()
    with learn.no_bar(), learn.no_logging(): check(learn)
    assert capsys.readouterr().out == '' and learn.logger is print
    check(learn)
    out = capsys.readouterr().out
    assert 'Epoch 3/3' in out and 'train_loss' in out

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

# Rows whose tests are in the file of what they are about.
ROWS |= {
    'EarlyStoppingCallback':
        (NOTE, 'tests/test_callback.py::test_early_stopping_names_the_lr_as_a_fraction_of_the_peak'),
    'ReduceLROnPlateau': (NOTE, 'tests/test_callback.py::test_plateau_is_named_once'),
    'ShortEpochCallback': (NOTE, 'tests/test_callback.py::test_epochs_cut_short_keep_the_later_ones_in_place'),
    'ParamScheduler of other hyper-parameters': (WORKS, 'tests/test_recorder.py::test_alongside_another_scheduler'),
    'ParamScheduler of lr or mom': (REFUSES, 'tests/test_arguments.py::test_arguments_of_the_fit'),
    'a second OneCycle': (REFUSES, 'tests/test_arguments.py::test_two_cycles_at_once'),
    'a callback that sets the LR after the cycle':
        (NOTE, 'tests/test_as_fastai_has_it.py::test_a_value_that_a_later_callback_sets_stays_for_this_batch'),
    'loggers that look for a ParamScheduler': (WORKS,
                                               'tests/test_as_fastai_has_it.py::test_a_logger_finds_the_schedule'),
    'learn.summary, with learn:': (WORKS,
                                   'tests/test_as_fastai_has_it.py::test_the_learner_may_be_entered_in_the_middle'),
    'learn.distrib_ctx': (NOTE, 'tests/test_distributed.py::test_every_process_trains_with_the_plan'),
}

def table_rows():
    "The rows of the page's table: what, verdict, note."
    cells = json.loads((ROOT/'nbs/howto/callbacks.ipynb').read_text(encoding='utf-8'))['cells']
    lines = [line for cell in cells if cell['cell_type'] == 'markdown'
             for line in ''.join(cell['source']).splitlines() if line.startswith('|')]
    return [[part.strip() for part in line.strip('|').split('|')] for line in lines[2:]]

def names_in(file):
    "The names of the tests in `file`."
    return {f.name for f in ast.parse((ROOT/file).read_text(encoding='utf-8')).body
            if isinstance(f, ast.FunctionDef) and f.name.startswith('test_')}

def test_the_table_is_these_tests():
    table = {name.replace('`', ''): verdict for name, verdict, _ in table_rows()}
    assert table == {name: verdict for name, (verdict, _) in ROWS.items()}
    assert all(bool(note) == (verdict != WORKS) for _, verdict, note in table_rows())

def test_every_test_has_its_row():
    named = {test for _, test in ROWS.values()}
    without = {'test_half_precision_on_a_gpu', 'test_the_table_is_these_tests',
               'test_every_test_has_its_row', 'test_every_row_has_its_test'}
    assert names_in(HERE) - {test.split('::')[1] for test in named if test.startswith(f'{HERE}::')} == without

@pytest.mark.parametrize('test', [test for _, test in ROWS.values()])
def test_every_row_has_its_test(test):
    file, name = test.split('::')
    assert name in names_in(file)
