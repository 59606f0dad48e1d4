"""Python code in a process where fastai is imported, and this package is not: like a new interpreter after that import.

To import fastai takes four seconds. A server does it once and is forked for each process, where there is `fork`.
This module is imported in those processes, and imports nothing of the tests."""
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

def _run(code, args, cwd, out, err):
    for number, path in (1, out), (2, err): os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    sys.path.insert(0, '')
    sys.argv[:] = ['-c', *map(str, args)]
    sys.modules['__main__'] = main = ModuleType('__main__')
    exec(compile(code, '<string>', 'exec'), vars(main))

def python(code, *args, cwd='.'):
    "Run code as `python -c` does, in a process that has imported fastai; return what it printed, and its exit code."
    name = 'forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn'
    context = multiprocessing.get_context(name)
    if name == 'forkserver': context.set_forkserver_preload(['fastai.basics'])
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / 'out', Path(folder) / 'err'
        process = context.Process(target=_run, args=(code, args, str(cwd), out, err))
        process.start()
        process.join()
        return CompletedProcess(code, process.exitcode, *(path.read_text(encoding='utf-8') for path in (out, err)))

def module(name, *args, cwd='.'):
    "Run a module as `python -m` does."
    return python(f'import runpy; runpy.run_module({name!r}, run_name="__main__", alter_sys=True)', *args, cwd=cwd)
