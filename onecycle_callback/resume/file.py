"""The file of a checkpoint: written in one step, read without running code, and locked by the process that trains"""

# The new file is written beside the old one, flushed to the disk, and renamed, which is one step for the file system:
# whoever opens the file sees the old one or the new one. A checksum of all bytes ends it.

import os
import re
import shutil
import socket
import zlib
from collections import OrderedDict
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from time import sleep
from uuid import uuid4

import torch
from filelock import FileLock, Timeout

from .objects import ITSELF, Refused, Standing, Writer, load, new_generator

try: from fcntl import F_FULLFSYNC, fcntl     # type: ignore[attr-defined]     # macOS
except ImportError: F_FULLFSYNC = None

# Writing

def _flush(descriptor):
    "Flush a file to the disk. On macOS, `fsync` leaves it in the memory of the drive."
    if F_FULLFSYNC is None: return os.fsync(descriptor)
    try: fcntl(descriptor, F_FULLFSYNC)
    except OSError: os.fsync(descriptor)     # a file system that doesn't know the other call

def _flush_folder(folder):
    "Flush the names in `folder` to the disk, if that is possible: a renamed file then survives a power cut."
    if os.name == 'nt': return     # Windows has no such call
    with suppress(OSError):        # some network file systems refuse it
        descriptor = os.open(folder, os.O_RDONLY)
        try: _flush(descriptor)
        finally: os.close(descriptor)

def _replace(part, path):
    "Rename a file onto another, which a scanner of Windows may hold open for a moment."
    for seconds in (.05, .2, .5):
        try: return os.replace(part, path)
        except PermissionError: sleep(seconds)
    os.replace(part, path)

def _part_of(path):
    "Return a new temporary name for the file at `path`, drawn from no generator that training draws from."
    return path.with_name(f'{path.name}.{uuid4().hex[:8]}.part')

def remove_parts(path:Path):
    "Remove what saves of `path` left behind when their processes were killed."
    name = re.compile(re.escape(path.name) + r'(\.[0-9a-f]{8})?\.part')
    for part in path.parent.iterdir():
        if name.fullmatch(part.name):
            with suppress(OSError): part.unlink()

class _Checksummed:
    "A file to write to that adds up a checksum."
    def __init__(self, file): self.file, self.crc = file, 0

    def write(self, content):
        self.crc = zlib.crc32(content, self.crc)
        return self.file.write(content)

_MARK = b'1cycle, checksum: '

def _end_of(crc): return _MARK + crc.to_bytes(4, 'big')

def write_file(path:Path, state):
    "Replace the file at `path` with one that holds `state`, or leave it unchanged and raise what went wrong."
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path)
    try:
        with open(part, 'xb') as f:     # so that nobody can plant a link
            checksummed = _Checksummed(f)
            Writer(Standing(is_plain=True), checksummed).write(state)
            f.write(_end_of(checksummed.crc))
            f.flush()
            _flush(f.fileno())
        _replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)

def check_writable(
    path:Path, # The file that will be written; neither it nor its folder need exist
    n_bytes:int # Its size, at least
):
    "Raise an `OSError` that says why if a file of `n_bytes` cannot be written at `path`; leave no trace."
    message = f'checkpoint {path.stem!r} cannot be written in {path.parent}'
    try:
        nearest = next(folder for folder in path.parents if os.path.lexists(folder))
        with TemporaryFile(dir=nearest) as f: f.write(b'x')
        free = shutil.disk_usage(nearest).free
    except OSError as e:
        raise OSError(f'{message}: {e.strerror}. Make it writable, or set learn.path or learn.model_dir') from e
    if free < n_bytes: raise OSError(f'{message}: {free:,} bytes are free and the weights alone take {n_bytes:,}')

# Reading

def read_file(path:Path) -> bytes|None:
    "Return the content of the file at `path`, `None` if there is none; raises `ValueError` if it is a folder."
    if path.is_dir(): raise ValueError(f'checkpoint: {path} is a folder. Move it away, or choose another name')
    if path.exists() and not path.is_file():     # reading a pipe would wait for ever
        raise ValueError(f'checkpoint: {path} is no ordinary file. Move it away, or choose another name')
    return path.read_bytes() if path.exists() else None

def date_of(path:Path) -> str: # Such as `2026-01-31 14:05`
    "Return when the file at `path` was written, in local time."
    return datetime.fromtimestamp(path.stat().st_mtime).strftime('%Y-%m-%d %H:%M')

_FORMAT = 'a cycle of onecycle_callback, '
FILE_FORMAT = _FORMAT + '1'     # what a file says about itself under 'format'

def refused(path:Path, why) -> ValueError:
    "Return the error that refuses the file at `path`."
    return ValueError(f'checkpoint: {path} {why}. It was left unchanged. Move it away, or choose another name')

def read_state(path, content:bytes|None=None) -> dict:
    "Return the state in a checkpoint file, which runs no code; raises `ValueError` if it isn't a checkpoint."
    content = Path(path).read_bytes() if content is None else content
    end = len(content) - len(_end_of(0))
    if content[end:] != _end_of(zlib.crc32(memoryview(content)[:max(end, 0)])):
        what = 'damaged or was made by something else' if content else 'empty'
        raise refused(path, f'cannot be read, because it is {what}')
    try: state, reader = load(memoryview(content)[:end], Standing(is_plain=True))
    except Refused as e: raise refused(path, f'cannot be read: it holds {e}, which no checkpoint does') from e
    if reader.unknown:
        unknown = ', '.join(dict.fromkeys(reader.unknown))
        raise refused(path, f'cannot be read: it holds {unknown}, which no checkpoint does')
    found = state.get('format') if type(state) is dict else None
    if found == FILE_FORMAT: return _checked(state, path)
    if type(found) is str and found.startswith(_FORMAT):
        raise refused(path, 'was written by another version of onecycle_callback')
    raise refused(path, 'is not a checkpoint of a cycle')

# What a state holds: a class or a value, a list of one kind, a dictionary of parts, several kinds, or what tells

_DICT = dict, OrderedDict
_STATUS = re.compile(r'running|complete(, ended early in epoch \d+)?')

def _is_count(n): return type(n) is int and n >= 0

def _is_status(status): return type(status) is str and _STATUS.fullmatch(status)

def _is_work(work):
    texts = [text for value in work.values() for text in (value.values() if type(value) is dict else [value])]
    return 'workers' in work and _is_made_of([str], [*work, *texts])

def _is_opt(opt):
    "Return whether `opt` is made up as the state of an optimizer of fastai or torch; what is in it, each one knows."
    state, groups = opt.get('state', []), opt.get('hypers', opt.get('param_groups', []))
    return _is_made_of([_DICT], [*(state.values() if isinstance(state, dict) else state), *groups])

_RANDOM = dict(python=partial(new_generator, 'python'), numpy=partial(new_generator, 'legacy'),
               torch=partial(new_generator, 'torch'), cuda=[torch.Tensor], mps=(None, torch.Tensor), loaders=bytes)
_DATA = dict(n_taken=_is_count, began=(None, _RANDOM), told=(None, bytes))
_PROCESS = dict(random=_RANDOM, carried=bytes, data=_DATA, removed=[str])
_MODEL = dict(weights=_DICT, others=[torch.Tensor], opt=_is_opt, scaler=(None, *_DICT), trained=[bool],
              grads=[(None, False, torch.Tensor)])
_STATE = dict(format=str, work=_is_work, status=_is_status, epoch=_is_count, done=_is_count, train_iter=_is_count,
              pct_train=float, lost=[str], logs=[_is_count], rows=[[(*ITSELF,)]], processes=[_PROCESS], model=_MODEL)

def _is_made_of(kind, value):
    "Return whether `value` is of a kind of the table."
    if isinstance(kind, type): return type(value) is kind
    if isinstance(kind, tuple): return any(_is_made_of(each, value) for each in kind)
    if isinstance(kind, list): return type(value) is list and all(_is_made_of(kind[0], item) for item in value)
    if isinstance(kind, dict):
        is_like = type(value) is dict and value.keys() == kind.keys()
        return is_like and all(_is_made_of(each, value[name]) for name, each in kind.items())
    if not callable(kind): return value is kind
    try: return bool(kind(value))
    except Exception: return False     # whatever a generator says of a state that isn't one

def _checked(state, path):
    "Return `state`; raises `ValueError` if a part of it is missing or isn't such a part."
    for name, kind in _STATE.items():
        if name not in state: raise refused(path, f'lacks {name!r}, a part of each checkpoint')
        if not _is_made_of(kind, value := state[name]):
            shown = str(value)[:60] if type(value) in ITSELF else f'a {type(value).__name__}'
            raise refused(path, f'has an unusable {name!r}: {shown}')
    return state

# One process at a time trains a run

def _holder(path):
    "Return the process and the host that the file at `path` names; `None` for what it doesn't say."
    try: pid, host = path.read_text(encoding='utf-8').split()[:2]
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
    """The right to train the run of one checkpoint file, held by one process at a time.

    The operating system releases the lock when the process ends, however that happens. Who holds it is written to a
    file beside it, since Windows lets nobody read a locked one. Where there are no locks, a run trains without one."""
    def __init__(self, file:Path):
        self.file, self._before = file, _stamp(file)
        self._path, self._holder = file.with_name(f'{file.name}.lock'), file.with_name(f'{file.name}.lock.holder')
        self._lock = FileLock(self._path)

    def _acquire(self):
        "Acquire the lock at once, or raise `Timeout`; wait a little for the workers of a process that was killed."
        for seconds_left in range(10, -1, -1):
            try: return self._lock.acquire(timeout=0)
            except Timeout:
                if not seconds_left or not _is_dead(*_holder(self._holder)): raise
            sleep(1)

    def acquire(self):
        "Acquire the lock; raises `BlockingIOError` if another process holds it."
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except Timeout: self._refuse()
        except (OSError, NotImplementedError): return     # without a lock
        if _stamp(self.file) != self._before: self._refuse_changed()
        with suppress(OSError): self._sign()
        remove_parts(self.file)

    def _sign(self):
        part = _part_of(self.file)     # replaced as a whole, so that no link is followed
        part.write_text(f'{os.getpid()}\n{socket.gethostname()}\n', encoding='utf-8')
        _replace(part, self._holder)

    def _refuse(self):
        "Raise an error that names the process which holds the lock."
        pid, host = _holder(self._holder)
        who = 'another process' if pid is None else f'process {pid} on {host}'
        raise BlockingIOError(f'checkpoint {self.file.stem!r} is in use: {who} trains it now, in {self.file}. '
                              'Wait until it ends, or choose another name') from None

    def _refuse_changed(self):
        "Give up a run whose file another process has written since it was read: the comparison says nothing now."
        self.release()
        raise BlockingIOError(f'checkpoint {self.file.stem!r} was in use: another process has just written '
                              f'{self.file}. Run the same call again')

    def release(self):
        "Release the lock, if it is held, and remove its files."
        if not self._lock.is_locked: return
        for path in (self._holder, self._path):
            with suppress(OSError): path.unlink(missing_ok=True)
        self._lock.release()

    def check(self):
        "Raise `BlockingIOError` if another process holds the lock; change nothing."
        if not self._path.exists(): return
        try: self._lock.acquire(timeout=0)
        except Timeout:
            if not _is_dead(*_holder(self._holder)): self._refuse()
        except (OSError, NotImplementedError): return
        else: self._lock.release()
