"""Calls that a type checker and Python must both accept, and calls that both must refuse: test_types.py checks both."""
import numpy as np
import torch
from typing_extensions import assert_type

from onecycle_callback import CycleCheckpoint, OneCycle, OneCyclePlan, OneCycleSchedule, anneal_linear

def square(start: float, end: float, pos: float) -> float: return start + (end - start) * pos**2

def accepted() -> None:
    "Use every form in which an argument may be given, and check the types of the results."
    for make in (OneCycle, OneCycleSchedule):
        make()
        make(0.1, 25, 0.3, final_div=1e5, moms=(.95, .85, .95), anneal='cos', three_phase=False)
        make(max_lr=None, final_div=float('inf'), moms=None)
        make(slice(1e-3)), make(slice(1e-3, 1e-2))
        make([1e-3, 1e-2]), make((1e-3, 1e-2)), make(np.array([1e-3, 1e-2])), make(torch.tensor([1e-3, 1e-2]))
        make(1), make(np.float64(.1)), make(torch.tensor(.1))
        make(moms=(.95, .85)), make(moms=[.95, .85, .9]), make(moms=False)
        make(anneal=square), make(anneal=anneal_linear), make(anneal=('linear', square))
    cycle = OneCycle(0.1)
    OneCycle(0.1, n_batch=1000)
    assert_type(cycle.schedule, OneCycleSchedule)
    assert_type(cycle.schedule.pct_start, float)
    plan = cycle.schedule.plan(n_epoch=10, n_batch=100, n_groups=2)
    assert_type(plan, OneCyclePlan)
    assert_type(plan.lrs, np.ndarray)
    assert_type(plan.moms, np.ndarray | None)
    assert_type(plan.at([0, 10]), tuple[np.ndarray, np.ndarray | None])
    assert_type(plan.n_epoch + plan.n_batch + plan.n_groups + plan.peak + len(plan), int)
    assert_type(plan.schedule, OneCycleSchedule)
    plan.table.to_csv(), plan.to_frame().to_csv(), plan.plot(figsize=(10, 4)), plan.explore()
    CycleCheckpoint('run1'), CycleCheckpoint('run1', every=200, restart=True)

refused = dict(
    a_word_as_lr=lambda: OneCycle('fast'),  # type: ignore[arg-type]
    a_word_as_lr_of_a_schedule=lambda: OneCycleSchedule('fast'),  # type: ignore[arg-type]
    a_misspelt_name=lambda: OneCycle(pct_strat=0.3),  # type: ignore[call-arg]
    a_misspelt_name_of_a_schedule=lambda: OneCycleSchedule(pct_strat=0.3),  # type: ignore[call-arg]
    moms_true=lambda: OneCycle(moms=True),  # type: ignore[arg-type]
    one_mom=lambda: OneCycle(moms=0.9),  # type: ignore[arg-type]
    a_number_as_anneal=lambda: OneCycle(anneal=3),  # type: ignore[arg-type]
    a_word_as_flag=lambda: OneCycle(three_phase='yes'),  # type: ignore[arg-type]
    a_list_of_div_factors=lambda: OneCycle(div_factor=[25.]),  # type: ignore[arg-type]
    half_a_batch=lambda: OneCycle(0.1, n_batch=1.5),  # type: ignore[arg-type]
    half_an_epoch=lambda: OneCycleSchedule(0.1).plan(1.5, 100),  # type: ignore[arg-type]
    no_batches=lambda: OneCycleSchedule(0.1).plan(10),  # type: ignore[call-arg]
    a_number_as_name=lambda: CycleCheckpoint(1),  # type: ignore[arg-type]
    a_word_as_every=lambda: CycleCheckpoint('run1', every='epoch'),  # type: ignore[arg-type]
)
