"""MLflow's autolog finds the schedule of a cycle, where it would find fastai's."""
import pytest
pytest.importorskip('mlflow.fastai', reason="MLflow is not installed: nox -s 'clients(mlflow)' runs this")

import mlflow
from fastai.basics import DataLoaders, Learner, nn, set_seed

import onecycle_callback  # noqa: F401
from support.helpers import Spy, dataset

def of_datasets(path):
    "A Learner that MLflow can look at and store."
    set_seed(0)
    dls = DataLoaders.from_dsets(dataset(48), dataset(8), bs=4, device='cpu', num_workers=0, path=path)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    return Learner(dls, model, loss_func=nn.MSELoss(), path=path,
                   splitter=lambda m: [list(layer.parameters()) for layer in m])

@pytest.fixture
def run(tmp_path, monkeypatch):
    "Return a function that trains a Learner under autolog and returns it with what was logged."
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri((tmp_path / 'runs').as_uri())
    mlflow.fastai.autolog(log_models=False)
    def train(fit):
        learn, spy = of_datasets(tmp_path), Spy()
        learn.logger = lambda row: None
        with mlflow.start_run() as active: fit(learn, spy)
        return learn, spy, mlflow.get_run(active.info.run_id).data
    yield train
    mlflow.fastai.autolog(disable=True)

def numbers(text): return [float(number) for number in text.strip('[]').replace(',', ' ').split()]

def test_a_cycle(run):
    learn, spy, logged = run(lambda learn, spy: learn.fit_one_cycle(4, slice(1e-2, 1e-1), cbs=spy))
    plan = learn.recorder.plan
    assert spy.seen_lrs == plan.lrs.tolist() and len(spy.seen_lrs) == 48
    assert numbers(logged.params['lr_init']) == pytest.approx(plan.lrs[0], rel=1e-6)
    assert numbers(logged.params['lr_max']) == pytest.approx([1e-2, 1e-1], rel=1e-2)
    assert numbers(logged.params['mom_init']) == [.95]
    assert numbers(logged.params['mom_min'])[0] == pytest.approx(.85, abs=1e-3)
    assert logged.metrics['train_loss'] == pytest.approx(learn.recorder.values[-1][0], rel=1e-6)

def test_fine_tune(run):
    "MLflow refuses to log a second value of a setting, so it has those of the frozen cycle only, as with fastai alone."
    learn, spy, logged = run(lambda learn, spy: learn.fine_tune(2, 1e-2, cbs=spy))
    for name in ('freeze_lr', 'freeze_lr_max', 'freeze_lr_final', 'lr_max'):
        assert numbers(logged.params[name]) == pytest.approx([1e-3, 1e-2], rel=2e-2), name
    assert learn.recorder.plan.lrs.max(0) == pytest.approx([5e-5, 5e-3])
