"""The code on the tutorial and the how-tos runs as it is shown: no visible block needs a hidden cell."""
import re
import subprocess
import sys
from itertools import count

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

from docs.bridge import options
from support.helpers import ROOT, fork_script
from support.interrupted import learner
from onecycle_callback import position

pytestmark = pytest.mark.slow

PAGES = [page for folder in ('tutorials', 'howto') for page in sorted((ROOT / 'nbs' / folder).glob('*.ipynb'))]
# For where these, or two GPUs, are
ELSEWHERE = re.compile('google.colab|/kaggle/|import wandb|import mlflow|tensorboard|notebook_launcher')

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

def run_forked(command, cwd='.', **kwargs):
    """Run the script in `command` without starting an interpreter: importing fastai took most of the time.

    test_notebooks.py starts the scripts as users do."""
    i = next(i for i, part in enumerate(command) if str(part).endswith('.py'))
    return fork_script(command[i], *command[i + 1:], cwd=cwd, n_proc=2 if '--nproc_per_node=2' in command else 1)

def run(blocks, name):
    "Run `blocks` one after another, as a reader does who has a Learner, and has imported fastai and this package."
    names = dict(__name__='page', learn=learner('.'), learner=learner('.'))
    exec('from fastai.basics import *\nimport onecycle_callback', names)
    for block in blocks:
        if not ELSEWHERE.search(block): exec(compile(block, name, 'exec'), names)
        plt.close('all')

@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_the_visible_code_of_a_page_runs_alone(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])     # to which pages add
    monkeypatch.setattr(subprocess, 'run', run_forked)
    seconds = count(step=10)     # half an hour is 180 looks at the clock
    monkeypatch.setattr(position, 'perf_counter', lambda: next(seconds))
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        with plt.rc_context(): run(shown(page), page.name)
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
