"""The code on the tutorial and the how-tos runs as it is shown: no visible block needs a hidden cell.

What a block needs that isn't here, a package, a hosted notebook's disk or two GPUs, has a stand-in."""
import re
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path
from unittest.mock import ANY, MagicMock, call

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from sklearn.utils import Bunch

from docs.bridge import options
from support.helpers import ROOT, fork, run_forked
from support.interrupted import learner
from onecycle_callback import demo, position

pytestmark = [pytest.mark.slow, pytest.mark.fork, pytest.mark.sigkill]

PAGES = [page for folder in ('tutorials', 'howto') for page in sorted((ROOT / 'nbs' / folder).glob('*.ipynb'))]
PACKAGES = ('wandb', 'mlflow', 'torch.utils.tensorboard', 'google', 'google.colab')     # no test imports these

def fenced(text): return re.findall(r'^```python\n(.*?)^```$', text, re.M | re.S)

def shown(page):
    "Return the code that readers of `page` see, block by block: cells, and what stands in the text."
    blocks = []
    for cell in nbformat.read(page, 4).cells:
        if cell.cell_type == 'markdown': blocks += fenced(cell.source)
        elif cell.cell_type == 'code':
            opts, source = options(cell.source)
            if 'hide' not in opts and opts.get('echo', True): blocks.append(source)
    return blocks

def launch_one(function, num_processes):
    "What `notebook_launcher` does, with one process: more would need GPUs, since they normalize batches together."
    process = fork(function, out='launched.txt')
    process.join()
    assert process.exitcode == 0, Path('launched.txt').read_text(encoding='utf-8')

def reader():
    "Return the names of a reader who has a Learner, and has imported fastai and this package."
    names = dict(__name__='page', learn=learner('.'), learner=learner('.'))
    exec('from fastai.basics import *\nimport onecycle_callback', names)
    return names

def run(blocks, names, page):
    "Run `blocks` one after another, with the root of a hosted notebook's disk in this folder, and short epochs."
    for block in blocks:
        if '/kaggle/input/' in block: shutil.copytree('kaggle/working', 'kaggle/input/my-notebook')     # the input
        here = re.sub("(?<=')/(?=content/|kaggle/)", '', block)
        here = re.sub(r'^(learn\.fi.*n_batch=)1000', r'\g<1>10', here, flags=re.M)
        exec(compile(here, page.name, 'exec'), names)
        plt.close('all')

@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "Stand-ins for what blocks need, by name; small batches, and a clock that advances by a minute at each look."
    monkeypatch.chdir(tmp_path)
    digits = demo.load_digits()
    few = Bunch(images=digits.images[::8], target=digits.target[::8])
    monkeypatch.setattr(demo, 'load_digits', lambda: few)
    monkeypatch.setattr(demo.digits_learner, '__defaults__', (8, 42))     # still 22 batches per epoch
    monkeypatch.setattr(sys, 'path', [*sys.path])     # to which pages add
    monkeypatch.setattr(subprocess, 'run', run_forked)
    monkeypatch.setattr('accelerate.notebook_launcher', launch_one)
    monkeypatch.setattr('fastai.distributed.setup_distrib', lambda gpu: None)     # which chooses a GPU
    seconds = count(step=60)
    monkeypatch.setattr(position, 'perf_counter', lambda: next(seconds))
    packages = {name: MagicMock() for name in PACKAGES}
    for name, package in packages.items(): monkeypatch.setitem(sys.modules, name, package)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    with plt.rc_context(): yield packages
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)

@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_the_visible_code_of_a_page_runs_alone(page, elsewhere): run(shown(page), reader(), page)

# By the name of its package: the function that `log` calls, and the arguments of these calls for the values of a batch
TOOLS = {'torch.utils.tensorboard': (lambda package: package.SummaryWriter.return_value.add_scalar,
                                     lambda values, step: [call(name, value, step) for name, value in values.items()]),
         'wandb': (lambda package: package.log, lambda values, step: [call(values, step=step)]),
         'mlflow': (lambda package: package.log_metrics, lambda values, step: [call(values, step=step)])}

@pytest.mark.parametrize('tool', TOOLS)
def test_a_tool_is_told_what_each_batch_trained_with(tool, elsewhere):
    page, (function, calls) = ROOT / 'nbs/howto/log_the_lr.ipynb', TOOLS[tool]
    blocks, names = shown(page), reader()
    set_up = next(i for i, block in enumerate(blocks) if re.search(f'(from|import) {tool}', block))
    run([*blocks[:set_up + 1], 'learn.fit_one_cycle(2, 0.1, cbs=LogCycle())'], names, page)
    record = names['learn'].recorder
    wanted = [dict(lr=lr, mom=mom, loss=ANY) for lr, mom in zip(record.hps['lr'], record.hps['mom'], strict=True)]
    assert len(wanted) == 44 and function(elsewhere[tool]).call_args_list == [
        each for step, values in enumerate(wanted) for each in calls(values, step)]
