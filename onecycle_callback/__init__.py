"""The 1cycle policy for fastai: preview the schedule, train with exactly those values, then check what was used"""

__version__ = "0.1.0"

from onecycle_callback.callback import OneCycle
from onecycle_callback.resume.checkpoint import CycleCheckpoint
from onecycle_callback.schedule import OneCyclePlan, OneCycleSchedule, anneal_cos, anneal_exp, anneal_linear
from onecycle_callback import compare, learner, recorder   # patch `Learner` and `Recorder`

from onecycle_callback.docstrings import describe
from onecycle_callback.fastai_internals import public_methods

__all__ = ['CycleCheckpoint', 'OneCycle', 'OneCyclePlan', 'OneCycleSchedule', 'anneal_cos', 'anneal_exp', 'anneal_linear']

def __dir__(): return [*__all__, '__version__']

describe(*[globals()[name] for name in __all__], *public_methods(), compare.LRComparison)
