"""The file of a checkpoint: written in one step, read without running code"""

import os
import re
import shutil
import zlib
from contextlib import contextmanager, suppress
from datetime import datetime
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from threading import current_thread, main_thread
from typing import Any
from uuid import uuid4

import torch

from .earlier import from_format_1
from .graph import Graph

def _flush_folder(folder):
    "Flush the names in `folder` to the disk, if that is possible: a renamed file then survives a power cut."
    if os.name == 'nt': return     # Windows has no such call
    with suppress(OSError):        # some network file systems refuse it
        descriptor = os.open(folder, os.O_RDONLY)
        try: os.fsync(descriptor)
        finally: os.close(descriptor)

def _part_of(path):
    "Return a new temporary name for the file at `path`."
    return path.with_name(f'{path.name}.{uuid4().hex[:8]}.part')

def remove_parts(
    path:Path # A checkpoint file that no other process writes
):
    "Remove what saves of `path` left behind when their processes were killed."
    name = re.compile(re.escape(path.name) + r'(\.[0-9a-f]{8})?\.part')
    for part in path.parent.iterdir():
        if name.fullmatch(part.name):
            with suppress(OSError): part.unlink()

_MARK = b'1cycle, checksum: '

class _Checksummed:
    "A file to write to that adds up a checksum."
    def __init__(self, file): self.file, self.crc = file, 0

    def write(self, content):
        "Write `content` and add it to the checksum."
        self.crc = zlib.crc32(content, self.crc)
        return self.file.write(content)

    def flush(self): self.file.flush()

def _end_of(crc): return _MARK + crc.to_bytes(4, 'big')

def _is_whole(content):
    "Return whether `content` ends with its checksum."
    end = len(content) - len(_end_of(0))
    return end > 0 and content[end:] == _end_of(zlib.crc32(memoryview(content)[:end]))

@contextmanager
def _without_torch_checksums():
    "Keep `torch.save` from computing checksums of its own; in a thread, leave alone what is the whole process's."
    if current_thread() is not main_thread():
        yield
        return
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try: yield
    finally: torch.serialization.set_crc32_options(before)

def write_file(
    path:Path, # The file to replace; its folder is made if it doesn't exist
    state # Tensors and values that `Graph` can write
):
    "Replace the file at `path` with one that holds `state`, or leave it unchanged and raise what went wrong."
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path)
    try:
        with open(part, 'xb') as f:
            checksummed = _Checksummed(f)
            with _without_torch_checksums(): Graph().dump(state, checksummed)
            f.write(_end_of(checksummed.crc))
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)

def read_file(
    path:Path # The file, which may not exist
) -> bytes|None:
    "Return the content of the file at `path`, `None` if there is none; raises `ValueError` if it is a folder."
    if path.is_dir(): raise ValueError(f'checkpoint: {path} is a folder. Move it away, or choose another name')
    return path.read_bytes() if path.exists() else None

def date_of(
    path:Path # The file
) -> str: # Such as `2026-01-31 14:05`
    "Return when the file at `path` was written, in local time."
    return datetime.fromtimestamp(path.stat().st_mtime).strftime('%Y-%m-%d %H:%M')

_FORMAT = 'a cycle of onecycle_callback, '
FILE_FORMAT = _FORMAT + '2'     # what a file says about itself under 'format'

def _refused(path, why):
    "Return the error that refuses the file at `path`."
    return ValueError(f'checkpoint: {path} {why}. It was left unchanged. Move it away, or choose another name')

def read_state(
    content:bytes, # Content of a file that `write_file` wrote
    path:Path # Where the file is, for messages
) -> dict: # The state, on the CPU
    "Return the state in a checkpoint file without running code; raises `ValueError` if it isn't a checkpoint."
    has_checksum = _MARK in content[-len(_end_of(0)):]
    if has_checksum and not _is_whole(content): raise _refused(path, 'cannot be read, because it is damaged')
    file, graph = BytesIO(content), Graph()
    try:
        unknown = graph.unknown(file)
        state:Any = None if unknown else graph.load(file, map_location='cpu')
    except Exception as e:
        what = 'damaged or was made by something else' if content else 'empty'
        raise _refused(path, f'cannot be read, because it is {what}') from e
    if unknown: raise _refused(path, f'holds {", ".join(unknown)}, which no checkpoint does. None of its code was run')
    found = state.get('format') if isinstance(state, dict) else None
    if found == FILE_FORMAT and has_checksum: return state
    if found == FILE_FORMAT: raise _refused(path, 'cannot be read, because its end is missing')
    if found == _FORMAT + '1': return _first_format(state, path)
    if str(found).startswith(_FORMAT): raise _refused(path, 'was written by another version of onecycle_callback')
    raise _refused(path, 'is not a checkpoint of a cycle')

def _first_format(state, path):
    "Return the state of a file of the first format in the present one."
    try: return from_format_1(state)
    except (KeyError, TypeError, AttributeError) as e: raise _refused(path, 'lacks a part of a checkpoint') from e

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
