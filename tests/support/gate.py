"""Execute the notebooks of a project and save their outputs, as `nbdev-test --save` does: `support.fresh` runs `main`.

Each has a process of its own, forked from one that has imported what they all need, two at a time. Scripts that a page
starts are forked too: test_stories.py and test_distributed.py start some as users do."""
import subprocess
import sys
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path

from nbdev.test import test_nb as execute

import onecycle_callback  # noqa: F401
from support.helpers import run_forked

def execute_and_save(path):
    subprocess.run = run_forked
    is_executed, _ = execute(path, save=True)
    sys.exit(not is_executed)

def in_a_process(path):
    "Execute the notebook at `path`; return whether that went well."
    process = get_context('fork').Process(target=execute_and_save, args=(path,))
    process.start()
    process.join()
    return process.exitcode == 0

def main():
    paths = sorted(path for path in Path('nbs').resolve().rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts)
    with ThreadPool(2) as pool: sys.exit(not all(pool.map(in_a_process, paths)))
