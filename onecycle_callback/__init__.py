"""The 1cycle policy for fastai: `Learner` gets `fit_one_cycle`, `preview_one_cycle` and `fine_tune` on import."""

__version__ = "0.1.0"

from onecycle_callback.callback import OneCycle
from onecycle_callback.resume.checkpoint import CycleCheckpoint
from onecycle_callback.schedule import OneCyclePlan, OneCycleSchedule, anneal_cos, anneal_exp, anneal_linear
from onecycle_callback import compare, learner, recorder   # patch `Learner` and `Recorder`

__all__ = ['CycleCheckpoint', 'OneCycle', 'OneCyclePlan', 'OneCycleSchedule', 'anneal_cos', 'anneal_exp', 'anneal_linear']
