"""How crash.py and hostile.py kill a training, and what they find afterwards."""
import os
import re
import signal

import torch
from fastai.basics import Callback

from onecycle_callback.resume.file import read_state

NAME = 'crash'     # of the checkpoint

def die(): os.kill(os.getpid(), signal.SIGKILL)

class Kill(Callback):
    """Kill this process after its `n`th batch, or in its `n`th save.

    In a save, half of the file is written then, or all of it under its temporary name."""
    order, places = 20_000, ('batch', 'half a file', 'whole file')
    def __init__(self, place, n): self.place, self.n = place, n

    def before_fit(self):
        left, replace = self.n, os.replace
        def is_reached(place):
            nonlocal left
            left -= place == self.place
            return left == 0
        def replace_or_die(part, path):
            if is_reached('half a file'):
                os.truncate(part, os.path.getsize(part) // 2)
                die()
            if is_reached('whole file'): die()
            replace(part, path)
        os.replace, self.is_reached = replace_or_die, is_reached

    def after_batch(self):
        if self.training and self.is_reached('batch'): die()

def same(a, b):
    "Check whether two results are equal in every bit."
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list): return len(a) == len(b) and all(map(same, a, b))
    return a == b

def checkpoint_file(folder): return folder/'models'/f'{NAME}.cycle'

def unfinished_save(folder):
    "Return when the file of a save that was not finished was written, `None` if there is none."
    for part in (folder/'models').glob(f'{NAME}.cycle.*.part'):
        try: return part.stat().st_mtime_ns
        except FileNotFoundError: pass
    return None

def is_torn(folder):
    "Check whether there is a checkpoint that cannot be read."
    path = checkpoint_file(folder)
    try: read_state(path) if path.exists() else None
    except ValueError: return True
    return False

def resumes(folder):
    "Return the epoch and the batch of each resume in the log."
    log = (folder/'log').read_text(encoding='utf-8')
    found = re.findall(rf"Checkpoint '{NAME}' [^\r\n]*in epoch (\d+), batch (\d+)", log)
    return [(int(epoch), int(batch)) for epoch, batch in found]
