"""One process at a time trains a run"""

import os
import socket
from contextlib import suppress
from pathlib import Path
from time import sleep

from filelock import FileLock, Timeout

from .file import remove_parts

def _holder(path):
    "Return the process and the host that the lock file at `path` names; `None` for what it doesn't say."
    try: pid, host = path.read_text().split()[:2]
    except (OSError, ValueError): return None, None
    return pid, host

def _is_dead(pid, host):
    "Return whether `pid` was a process of this machine, and has ended."
    if os.name == 'nt' or host != socket.gethostname() or not pid.isdecimal(): return False
    try: os.kill(int(pid), 0)
    except ProcessLookupError: return True
    except OSError: pass
    return False

def _stamp(path):
    "Return something that differs after the file at `path` has been written; `None` if there is no file."
    try: stat = path.stat()
    except OSError: return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size

class RunLock:
    "The right to train the run of one checkpoint file, held by one process at a time."
    def __init__(self,
        file:Path # The checkpoint file; neither it nor its folder need exist
    ):
        self.file, self._path, self._before = file, file.with_name(f'{file.name}.lock'), _stamp(file)
        self._lock = FileLock(self._path)

    def _acquire(self):
        "Acquire the lock at once, or raise `Timeout`; wait a little for the workers of a process that was killed."
        for seconds_left in range(10, -1, -1):
            try: return self._lock.acquire(timeout=0)
            except Timeout:
                if not seconds_left or not _is_dead(*_holder(self._path)): raise
            sleep(1)

    def acquire(self):
        "Acquire the lock; raises `BlockingIOError` if another process holds it."
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except Timeout: self._refuse()
        except (OSError, NotImplementedError): return     # without a lock
        if _stamp(self.file) != self._before: self._refuse_changed()
        with suppress(OSError): self._path.write_text(f'{os.getpid()}\n{socket.gethostname()}\n')
        remove_parts(self.file)

    def _refuse(self):
        "Raise an error that names the process which holds the lock."
        pid, host = _holder(self._path)
        who = 'another process' if pid is None else f'process {pid} on {host}'
        raise BlockingIOError(f'checkpoint {self.file.stem!r} is in use: {who} trains it now, in {self.file}. '
                              'Wait until it ends, or choose another name') from None

    def _refuse_changed(self):
        "Give up a run whose file another process has written since it was read."
        self.release()
        raise BlockingIOError(f'checkpoint {self.file.stem!r} was in use: another process has just written '
                              f'{self.file}. Run the same call again')

    def release(self):
        "Release the lock, if it is held, and remove its file."
        if not self._lock.is_locked: return
        with suppress(OSError): self._path.unlink(missing_ok=True)
        self._lock.release()

    def check(self):
        "Raise `BlockingIOError` if another process holds the lock; change nothing."
        if not self._path.exists(): return
        try: self._lock.acquire(timeout=0)
        except Timeout:
            if not _is_dead(*_holder(self._path)): self._refuse()
        except (OSError, NotImplementedError): return
        else: self._lock.release()
