"""What both explorers, in a notebook and on the site, are moved to, and the plan that they must show."""
from types import SimpleNamespace

import numpy as np

from onecycle_callback import OneCycleSchedule

# Argument by argument, as they differ from the first call: `fit_one_cycle(10, 0.1)` on 22 batches per epoch
CASES = dict(
    first={},
    other=dict(max_lr=.0037, div_factor=7.3, pct_start=1/3, final_div=1234.5, cycle_len=7, n_batch=31),
    peak_first=dict(pct_start=0.), peak_second=dict(pct_start=.0045), peak_last=dict(pct_start=1.),
    ends_at_0=dict(final_div=np.inf), ends_like_fastai=dict(final_div=1e5), ends_at_peak=dict(final_div=1.),
    starts_at_peak=dict(div_factor=1.), flat=dict(div_factor=1., final_div=1.),
    one_batch=dict(cycle_len=1, n_batch=1), two_batches=dict(cycle_len=1, n_batch=2), one_epoch=dict(cycle_len=1),
    one_batch_per_epoch=dict(cycle_len=3, n_batch=1), half_a_batch_is_rounded_up=dict(cycle_len=1, pct_start=.25),
    tiny=dict(max_lr=1e-7, div_factor=1e6, final_div=1e9), large=dict(max_lr=1e3),
    long=dict(cycle_len=30, n_batch=1563, pct_start=.25))

def plan_of(cycle_len=10, n_batch=22, max_lr=.1, **schedule):
    "Return the plan of a case."
    return OneCycleSchedule(max_lr, **schedule).plan(cycle_len, n_batch)

def arguments_of(call):
    "Return the arguments of a call of `fit_one_cycle` in Python code, by name."
    return eval(call, dict(learn=SimpleNamespace(fit_one_cycle=lambda **arguments: arguments)))
