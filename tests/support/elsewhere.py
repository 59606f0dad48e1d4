"""Take away what Linux has and other systems lack: `python -m pytest -p tests.support.elsewhere`.

A simulation by absence. It shows that no test needs these means unless its marker says so, and not how another system
would behave: its paths, its locks on open files, its clocks."""
import multiprocessing
import os
import signal
import subprocess
from multiprocessing import context

SIGKILL = signal.SIGKILL

def kill(self):
    "End a process, as Windows can without a signal: pytest's own workers are ended so."
    self.send_signal(SIGKILL)

subprocess.Popen.kill = kill
for name in ('fork', 'forkpty', 'mkfifo'): delattr(os, name)     # torch for Linux needs `register_at_fork`
del signal.SIGKILL
multiprocessing.set_start_method('spawn', force=True)
for name in ('fork', 'forkserver'): del context._concrete_contexts[name]
multiprocessing.get_all_start_methods = lambda: ['spawn']
