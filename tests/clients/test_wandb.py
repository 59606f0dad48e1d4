"""TensorBoard and wandb log what a cycle trains with, and Optuna prunes it.

fastai 2.8.12's `WandbCallback` fails with `vars() argument must have __dict__ attribute` where it formats the settings
of a Learner, with or without this package. That step is left out; what it would be given is tested."""
import pytest
pytest.importorskip('wandb', reason="wandb is not installed: nox -s 'clients(wandb)' runs this")

import optuna
import wandb
from fastai.callback.tensorboard import TensorBoardCallback
from fastai.callback.wandb import WandbCallback
from optuna_integration import FastAIPruningCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import onecycle_callback  # noqa: F401
from support.helpers import Spy, learner

def test_tensorboard(tmp_path):
    learn, spy = learner(n_groups=2), Spy()
    learn.fit_one_cycle(2, .1, cbs=[TensorBoardCallback(tmp_path, trace_model=False, log_preds=False), spy])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for group in range(2):
        logged = [event.value for event in events.Scalars(f'lr_{group}')]
        assert len(logged) >= 24
    train = [event.value for event in events.Scalars('lr_1')]
    wanted = [lrs[1] for lrs in spy.seen_lrs]
    assert [lr for lr in wanted if pytest.approx(lr, rel=1e-6) in train] == wanted

def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setattr('fastai.callback.wandb._format_config', lambda config: config.clear())
    learn, logged = learner(path=tmp_path), []
    with wandb.init(dir=tmp_path, project='test') as run:
        log = wandb.log
        monkeypatch.setattr(wandb, 'log', lambda values, **kwargs: logged.append(values) or log(values, **kwargs))
        learn.fit_one_cycle(2, .1, pct_start=.4, cbs=WandbCallback(log=None, log_preds=False, log_model=False))
        assert run is wandb.run
    lrs = [values['lr_0'] for values in logged if 'lr_0' in values]
    assert lrs == learn.recorder.plan.lrs[:, 0].tolist()

def test_what_wandb_stores_of_a_fit():
    from fastai.basics import Callback
    found = []
    class Gather(Callback):
        def before_fit(self): found.append(self.learn.gather_args())
    learner().fit_one_cycle(1, .1, pct_start=.4, cbs=Gather())
    assert found[0]['OneCycle']['max_lr'] == .1 and found[0]['OneCycle']['pct_start'] == .4

def test_optuna_prunes():
    learn = learner()
    class Pruner(optuna.pruners.BasePruner):
        def prune(self, study, trial): return trial.last_step == 1
    def objective(trial):
        max_lr = trial.suggest_float('max_lr', 1e-3, 1e-1, log=True)
        learn.fit_one_cycle(4, max_lr, cbs=FastAIPruningCallback(trial))
        return learn.recorder.values[-1][1]
    study = optuna.create_study(pruner=Pruner())
    with pytest.warns(UserWarning, match='The cycle was stopped early in epoch 1 of 4'):
        study.optimize(objective, n_trials=2)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.PRUNED] * 2
    assert len(learn.recorder.hps['lr']) == 24 and learn.opt.hypers[0]['mom'] == .9
    assert not hasattr(learn, 'param_scheduler')
