"""Learners of fastai's applications: a cycle and `fine_tune` as planned, drawn, exported and loaded again."""
import numpy as np
import pytest
import torch
from fastai.learner import load_learner

import onecycle_callback  # noqa: F401
from support.helpers import Spy, collab, language_model, tabular, text_classifier, vision

pytestmark = pytest.mark.matrix

def why_no_vision():
    try: import fastai.vision.all  # noqa: F401
    except (ImportError, RuntimeError) as e: return f'{type(e).__name__}: {e}'

NO_VISION = why_no_vision()
needs_torchvision = pytest.mark.skipif(NO_VISION is not None,
                                       reason=f'torchvision does not load with this torch ({NO_VISION})')
every = pytest.mark.parametrize('make', [tabular, collab, text_classifier, language_model,
                                         pytest.param(vision, marks=needs_torchvision)])
unsafe = pytest.mark.filterwarnings('ignore:load_learner` uses Python:UserWarning')

class Both(Spy):
    "Record what both fits of `fine_tune` used."
    def before_fit(self):
        if not hasattr(self, 'seen_lrs'): super().before_fit()

def check(learn, spy, *plans):
    "Check that `learn` trained its last batches with the last of `plans`, in every group, and can draw all of them."
    plan, n = plans[-1], len(plans[-1])
    assert n > 30 and spy.seen_lrs[-n:] == plan.lrs.tolist()
    assert spy.seen_moms[-n:] == [[m] * plan.n_groups for m in plan.moms.tolist()]
    lrs, moms = (np.concatenate(values).tolist() for values in zip(*[(p.lrs[:, -1], p.moms) for p in plans]))
    assert learn.recorder.hps == dict(lr=lrs, mom=moms)
    for ax, values in zip(learn.recorder.plot_lr(show_moms=True), (lrs, moms)):
        assert values in [line.get_ydata().tolist() for line in ax.lines if len(line.get_ydata()) == len(values)]
    learn.recorder.plot_sched()

@every
def test_a_cycle(make, tmp_path):
    (learn, _), spy = make(tmp_path), Spy()
    before = [p.clone() for p in learn.model.parameters()]
    plan = learn.preview_one_cycle(3, slice(1e-3, 1e-2))
    learn.fit_one_cycle(3, slice(1e-3, 1e-2), cbs=spy)
    check(learn, spy, plan)
    assert plan.n_groups == {text_classifier: 5, language_model: 4, vision: 3}.get(make, 1)
    assert any(not torch.equal(*pair) for pair in zip(before, learn.model.parameters()))
    assert len(learn.recorder.values) == 3

@every
@unsafe
@pytest.mark.cpu     # where `load_learner` puts it
def test_fine_tune_and_export(make, tmp_path):
    (learn, items), spy = make(tmp_path), Both()
    frozen = learn.preview_one_cycle(2, slice(2e-3), pct_start=.99, final_div=1e5)
    whole = learn.preview_one_cycle(3, slice(1e-5, 1e-3), div=5., final_div=1e5)
    learn.fine_tune(3, freeze_epochs=2, cbs=spy)
    assert spy.seen_lrs[:len(frozen)] == frozen.lrs.tolist() and len(spy.seen_lrs) == len(frozen) + len(whole)
    check(learn, spy, frozen, whole)
    learn.export(tmp_path/'export.pkl')
    loaded = load_learner(tmp_path/'export.pkl')
    for event in ('before_fit', 'before_epoch', 'before_train'): loaded.recorder(event)      # outside a fit
    assert loaded.recorder.hps == learn.recorder.hps
    loaded.recorder.plot_lr()
    batch = learn.dls.valid.one_batch()[:learn.dls.n_inp]
    for model in (learn.model, loaded.model): model.eval(), getattr(model, 'reset', lambda: None)()
    outputs = [model(*batch) for model in (learn.model, loaded.model)]
    first = [o if isinstance(o, torch.Tensor) else o[0] for o in outputs]      # of a recurrent model, the predictions
    assert torch.equal(*first)
    if items is not None:
        assert torch.equal(*(each.get_preds(dl=each.dls.test_dl(items))[0] for each in (learn, loaded)))
