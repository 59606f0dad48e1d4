"""Learners of fastai's applications: a cycle and `fine_tune` as planned, drawn, exported and loaded again."""
import subprocess
import sys

import pytest
import torch
from fastai.learner import load_learner

from helpers import Spy, collab, language_model, tabular, text_classifier, vision

def why_no_vision():
    try: import fastai.vision.all  # noqa: F401
    except (ImportError, RuntimeError) as e: return f'{type(e).__name__}: {e}'

NO_VISION = why_no_vision()
APPLICATIONS = [tabular, collab, text_classifier, language_model,
                pytest.param(vision, marks=pytest.mark.skipif(NO_VISION is not None, reason=f'torchvision does not load beside this torch ({NO_VISION})'))]
every = pytest.mark.parametrize('make', APPLICATIONS)
unsafe = pytest.mark.filterwarnings('ignore:load_learner` uses Python:UserWarning')

class Both(Spy):
    "What both of `fine_tune`'s fits used."
    def before_fit(self):
        if not hasattr(self, 'seen_lrs'): super().before_fit()

def check(learn, spy, plan):
    "That `learn` trained its last batches with `plan`, to the last bit, in every group, and can draw it."
    n = len(plan)
    assert n > 3 and spy.seen_lrs[-n:] == plan.lrs.tolist()
    assert spy.seen_moms[-n:] == [[m] * plan.n_groups for m in plan.moms.tolist()]
    assert learn.recorder.hps == dict(lr=plan.lrs[:, -1].tolist(), mom=plan.moms.tolist())
    lr, mom = learn.recorder.plot_lr(show_moms=True)
    for ax, values in ((lr, plan.lrs[:, -1]), (mom, plan.moms)): assert any(line.get_ydata().tolist() == values.tolist() for line in ax.lines if len(line.get_ydata()) == n)
    learn.recorder.plot_sched()

@every
def test_a_cycle(make, tmp_path):
    (learn, _), spy = make(tmp_path), Spy()
    before = [p.clone() for p in learn.model.parameters()]
    plan = learn.preview_one_cycle(3, slice(1e-3, 1e-2))
    learn.fit_one_cycle(3, slice(1e-3, 1e-2), cbs=spy)
    check(learn, spy, plan)
    assert plan.n_groups == {text_classifier: 5, language_model: 4, vision: 3}.get(make, 1)
    assert any(not torch.equal(*pair) for pair in zip(before, learn.model.parameters())) and len(learn.recorder.values) == 3

@every
@unsafe
def test_fine_tune_and_export(make, tmp_path):
    (learn, items), spy = make(tmp_path), Both()
    frozen = learn.preview_one_cycle(2, slice(2e-3), pct_start=.99, final_div=1e5)
    whole = learn.preview_one_cycle(3, slice(1e-5, 1e-3), div=5., final_div=1e5)
    learn.fine_tune(3, freeze_epochs=2, cbs=spy)
    assert spy.seen_lrs[:len(frozen)] == frozen.lrs.tolist() and len(spy.seen_lrs) == len(frozen) + len(whole)
    check(learn, spy, whole)
    learn.export(tmp_path / 'export.pkl')
    loaded = load_learner(tmp_path / 'export.pkl')
    assert loaded.recorder.hps == learn.recorder.hps
    loaded.recorder.plot_lr()
    batch = learn.dls.valid.one_batch()[:learn.dls.n_inp]
    for model in (learn.model, loaded.model): model.eval(), getattr(model, 'reset', lambda: None)()
    outputs = [model(*batch) for model in (learn.model, loaded.model)]
    assert all(torch.equal(*pair) for pair in zip(*([o] if isinstance(o, torch.Tensor) else o[:1] for o in outputs)))
    if items is not None: assert torch.equal(*(each.get_preds(dl=each.dls.test_dl(items))[0] for each in (learn, loaded)))

def test_loaded_where_this_package_is_not_installed(tmp_path):
    learn = collab(tmp_path)[0]
    learn.fit_one_cycle(1)
    learn.export()
    code = "import sys; sys.modules['onecycle_callback'] = None; from fastai.learner import load_learner; print(load_learner('export.pkl').recorder.hps['lr'][-1])"
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == str(learn.recorder.hps['lr'][-1]), run.stderr
