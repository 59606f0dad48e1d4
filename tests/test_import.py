"""What importing does, each case in a separate process: any order of imports, Learners loaded without this package."""
import json
import subprocess
import sys

import numpy as np
import pytest

from support import fresh
from support.helpers import Spy, collab, learner

pytestmark = pytest.mark.slow

def printed(run):
    "Return what a process printed last, read as JSON."
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])

OURS = """import sys
before = set(sys.modules)
import onecycle_callback, onecycle_callback.demo
new = set(sys.modules) - before"""
BASICS, SCHEDULE = 'from fastai.basics import *', 'import fastai.callback.schedule'
REST = ['from fastai.callback.all import *', 'from fastai.tabular.all import *', 'from fastai.text.all import *',
        'from fastai.collab import *']
def python(code): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)

ORDERS = {'first': [OURS, BASICS, *REST], 'last': [BASICS, *REST, OURS], 'after basics': [BASICS, OURS, *REST],
          'after schedule': [SCHEDULE, OURS, REST[1]]}

@pytest.mark.parametrize('order', ORDERS)
def test_any_order(order):
    code = '\n'.join([*ORDERS[order], """
import inspect, json
from fastai.learner import Learner, Recorder
patched = [Learner.fit_one_cycle, Learner.preview_one_cycle, Learner.fine_tune, Recorder.plot_sched, Recorder.plot_lr]
print(json.dumps([[inspect.unwrap(f).__module__ for f in patched],
                  [*inspect.signature(Learner.fit_one_cycle).parameters],
                  [m for m in new if m.startswith(('fastai.vision', 'torchvision'))]]))"""])
    owners, params, vision = printed(python(code) if order == 'first' else fresh.python(code))
    assert owners == ['onecycle_callback.learner'] * 3 + ['onecycle_callback.recorder'] * 2
    assert params[:5] == ['self', 'cycle_len', 'max_lr', 'div_factor', 'pct_start']
    assert vision == []      # slow to load, and not there with every torch

def fine_tuned(learn):
    "LRs and momentums of each batch of a `fine_tune`, for both of its fits."
    fits = []
    class Each(Spy):
        def after_fit(self): fits.append([self.seen_lrs, self.seen_moms])
    learn.fine_tune(3, 1e-2, cbs=Each())
    return fits

@pytest.fixture(scope='module')
def apart(tmp_path_factory):
    "Export a Learner; return it, and its record and what fastai's `fine_tune` uses where this package isn't installed."
    path = tmp_path_factory.mktemp('exported')
    learn = collab(path)[0]
    learn.fit_one_cycle(1)
    learn.export()
    return learn, *printed(fresh.python("""
import json, sys, warnings
sys.modules['onecycle_callback'] = None      # importing it is an error
warnings.simplefilter('ignore')
from fastai.learner import load_learner
from support.helpers import learner
from test_import import fine_tuned
loaded, fits = load_learner(sys.argv[1]), fine_tuned(learner(n_groups=3))
print()      # the bar leaves no line of its own
print(json.dumps([loaded.recorder.hps, fits]))""", path/'export.pkl'))

def test_loaded_where_this_package_is_not_installed(apart):
    learn, hps, _ = apart
    assert hps == learn.recorder.hps and len(hps['lr']) == 12

def test_each_value_of_fastais_fine_tune_lies_among_ours_of_the_batches_around_it(apart):
    "They cannot be equal: fastai's cycles miss their own peak and end by a fraction of a batch."
    for ours, theirs in zip(fine_tuned(learner(n_groups=3)), apart[2], strict=True):
        for mine, other in zip(map(np.array, ours), map(np.array, theirs)):
            assert mine.shape == other.shape and mine[0] == pytest.approx(other[0], rel=1e-12)
            padded = np.pad(mine, ((1, 1), (0, 0)), mode='edge')
            around = np.sort([padded[:-2], mine, padded[2:]], axis=0)
            assert (around[0] * (1 - 1e-12) <= other).all() and (other <= around[2] * (1 + 1e-12)).all()
