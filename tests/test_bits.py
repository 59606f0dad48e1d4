"""The values of a plan, whether they are computed alone, in blocks or as a whole, and whatever instructions NumPy may use."""
import os
import subprocess
import sys

import numpy as np
import pytest

from onecycle_callback import OneCycleSchedule, schedule

def instructions():
    "What NumPy found on this CPU beyond its baseline, as `NPY_DISABLE_CPU_FEATURES` takes it."
    return ' '.join(np.show_config(mode='dicts')['SIMD Extensions'].get('found', []))

def differing(plan, sizes=(1, 2, 3, 5, 8, 64)):
    "How many values of `plan` differ when so many batches are computed at a time."
    whole = np.column_stack(plan.at(np.arange(len(plan))))
    def blocks(size): return [np.column_stack(plan.at(np.arange(i, min(i + size, len(plan))))) for i in range(0, len(plan), size)]
    return sum(int((np.concatenate(blocks(size)) != whole).sum()) for size in sizes)

def plans(anneal):
    "Cycles of several lengths, peaks and groups; the first of them is the one where a power came out differently."
    yield OneCycleSchedule(.1, pct_start=0., moms=(.95, .85, .9), anneal=anneal).plan(1, 305)
    for n, pct_start, n_groups in ((7, .3, 1), (305, .3, 3), (1000, 0., 1), (1000, 1., 2)):
        yield OneCycleSchedule(slice(1e-3, .1), pct_start=pct_start, moms=(.95, .85, .9), anneal=anneal, final_div=1e5).plan(1, n, n_groups)

@pytest.mark.parametrize('anneal', schedule.ANNEALS)
def test_alone_in_blocks_and_whole(anneal):
    assert [differing(plan) for plan in plans(anneal)] == [0] * 5

@pytest.mark.parametrize('anneal', schedule.ANNEALS)
def test_the_same_without_the_cpus_wider_instructions(anneal):
    "NumPy takes other paths on another CPU; what it does there is tried here by switching off what this one has."
    code = f"import test_bits; assert test_bits.instructions() == ''; print([test_bits.differing(plan) for plan in test_bits.plans({anneal!r})])"
    env = os.environ | dict(NPY_DISABLE_CPU_FEATURES=instructions(), PYTHONPATH=os.pathsep.join([os.path.dirname(__file__), *sys.path]))
    run = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert run.stdout.strip() == str([0] * 5), run.stderr

def test_values_that_depend_on_the_block_are_seen(monkeypatch):
    "On any CPU: a curve whose last bit depends on how many positions it gets."
    def off(start, end, pos): return np.nextafter(schedule.anneal_linear(start, end, pos), 0. if len(pos) == 1 else 1.)
    monkeypatch.setitem(schedule.ANNEALS, 'linear', off)
    assert all(differing(plan) > 0 for plan in plans('linear'))
