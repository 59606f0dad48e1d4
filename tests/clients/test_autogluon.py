"""AutoGluon's fastai network trains on the planned schedule, and stopping early gives the warning."""
import subprocess
import sys
import warnings

import pytest
pytest.importorskip('autogluon.tabular', reason="AutoGluon is not installed: nox -s 'clients(autogluon)' runs this")

from autogluon.tabular import TabularPredictor
from fastai.learner import Learner
from sklearn.datasets import load_wine

import onecycle_callback  # noqa: F401
from support.helpers import Spy

wines = load_wine(as_frame=True).frame

@pytest.fixture
def fits(monkeypatch):
    "Collect each Learner that AutoGluon trains, with the callback that watched it."
    found, fit = [], Learner.fit_one_cycle
    def watched(learn, *args, cbs):
        found.append((learn, Spy()))
        fit(learn, *args, cbs=[*cbs, found[-1][1]])
    monkeypatch.setattr(Learner, 'fit_one_cycle', watched)
    return found

def train(path, **options):
    predictor = TabularPredictor('target', path=path, verbosity=0)
    return predictor.fit(wines, hyperparameters=dict(FASTAI=options), fit_weighted_ensemble=False)

def as_planned(learn, spy):
    "Check that each batch trained with the plan of the fit; return the plan, and the number of batches trained."
    plan, n = learn.recorder.plan, len(spy.seen_lrs)
    assert spy.seen_lrs == plan.lrs[:n].tolist() and learn.recorder.hps['lr'] == plan.lrs[:n, -1].tolist()
    return plan, n

def test_a_whole_cycle(fits, tmp_path):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        train(tmp_path, epochs=10)
    assert not [w for w in seen if 'The cycle was' in str(w.message)]
    plan, n = as_planned(*fits[0])
    assert (plan.n_epoch, plan.schedule.max_lr, plan.schedule.pct_start, n) == (10, 1e-2, .3, len(plan)) and n >= 40

def test_stopped_early(fits, tmp_path):
    with pytest.warns(UserWarning, match=r'The cycle was .* in epoch \d+ of 30 .* of its peak'):
        train(tmp_path, epochs=30, **{'early.stopping.patience': 2})
    plan, n = as_planned(*fits[0])
    assert 0 < n < len(plan)

def test_a_refit_stops_at_the_best_epoch(fits, tmp_path):
    predictor = train(tmp_path, epochs=10)
    predictor.refit_full()
    plan, n = as_planned(*fits[1])
    assert plan.n_epoch == 10 and n % plan.n_batch == 0

def test_loaded_where_this_package_is_not(tmp_path):
    predictor = train(tmp_path/'model', epochs=10)
    wines.to_csv(tmp_path/'wines.csv', index=False)
    code = ("import sys; sys.modules['onecycle_callback'] = None\nfrom autogluon.tabular import TabularPredictor\n"
            "print(*TabularPredictor.load('model').predict('wines.csv'))")
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(p) for p in predictor.predict(wines)]
