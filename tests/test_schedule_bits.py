"""A plan's values are the same bits, computed alone, in blocks or as a whole, whatever instructions NumPy uses."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from onecycle_callback import OneCycleSchedule

ANNEALS, SIZES = ('cos', 'linear', 'exp'), (1, 2, 3, 5, 8, 64)

def instructions():
    "Return what NumPy found on this CPU beyond its baseline, as a value for `NPY_DISABLE_CPU_FEATURES`."
    return ' '.join(np.show_config(mode='dicts')['SIMD Extensions'].get('found', []))

def differing(plan):
    "Return how many values of `plan` differ if this many batches are computed at a time."
    whole, at = np.column_stack(plan.at(np.arange(len(plan)))), range(len(plan))
    blocks = {size: [np.column_stack(plan.at(np.array(at[i:i + size]))) for i in at[::size]] for size in SIZES}
    return {size: int((np.concatenate(rows) != whole).sum()) for size, rows in blocks.items()}

def plans(anneal):
    "Cycles of several lengths, peaks and groups; the first is the one where a power once came out differently."
    yield OneCycleSchedule(.1, pct_start=0., moms=(.95, .85, .9), anneal=anneal).plan(1, 305)
    for n, pct_start, n_groups in ((7, .3, 1), (305, .3, 3), (1000, 0., 1), (1000, 1., 2)):
        schedule = OneCycleSchedule(slice(1e-3, .1), 25., pct_start, 1e5, (.95, .85, .9), anneal)
        yield schedule.plan(1, n, n_groups)

SAME = [dict.fromkeys(SIZES, 0)] * 5

@pytest.mark.parametrize('anneal', ANNEALS)
def test_alone_in_blocks_and_whole(anneal):
    assert [differing(plan) for plan in plans(anneal)] == SAME

@pytest.mark.slow
def test_the_same_without_the_cpus_wider_instructions():
    "NumPy takes other paths on another CPU; what it does there is tried here by switching off what this one has."
    code = ('import json; from test_schedule_bits import ANNEALS, differing, instructions, plans\n'
            'print(json.dumps([instructions(), [list(map(differing, plans(anneal))) for anneal in ANNEALS]]))')
    env = os.environ | dict(NPY_DISABLE_CPU_FEATURES=instructions(),
                            PYTHONPATH=os.pathsep.join([os.path.dirname(__file__), *sys.path]))
    run = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == json.loads(json.dumps(['', [SAME] * len(ANNEALS)]))

def test_values_that_depend_on_the_block_are_seen():
    "The test catches it, on any CPU, if the last bit depends on how many batches are computed at once."
    class Off:
        def __len__(self): return 100
        def at(self, batches): return np.nextafter(batches[:, None] * 1., float(len(batches))), np.zeros(len(batches))
    assert all(differing(Off()).values())
