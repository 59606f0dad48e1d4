"""Plant checkpoint files that a stranger might write, and watch what reading them does.

`python benchmarks/crash.py --strangers 20000` draws that many files: mutations of the pickles in genuine files, opcode by opcode; all
that a file may call, in random chains; archives that are compressed, nested deeply or claim too much; parts that are missing or wrong.
Each is read as `fit_one_cycle` reads it, and restored into a Learner. An audit hook counts code that is run or compiled, files that
are opened for writing or removed, processes, sockets and imports; what is raised must be a `ValueError` that names the file."""
import encodings.cp437  # noqa: F401 (Python and torch import these once, when they are needed first)
import io
import pickletools
import resource
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from random import Random

import torch
import torch._subclasses.schema_check_mode  # noqa: F401
from fastai.basics import Callback

from crash import learner
from onecycle_callback import CycleCheckpoint
from onecycle_callback.resume.file import _MARK, read_file, read_state
from onecycle_callback.resume.pickling import _BUILD, _in_file, Parts, Refused, load
from onecycle_callback.resume.state import loader_states, object_states, set_model_state

MODULE = 'onecycle_callback.resume.pickling'
WATCHED = ('exec', 'compile', 'subprocess.', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'os.remove', 'os.rename', 'os.mkdir',
           'os.rmdir', 'os.chmod', 'os.link', 'os.symlink', 'os.truncate', 'shutil.', 'socket.', 'import', 'ctypes.', 'pty.', 'webbrowser.')

class Watch:
    "Count what an audit hook sees while `on`."
    def __init__(self):
        self.on, self.seen = False, Counter()
        sys.addaudithook(self._note)

    def _note(self, event, args):
        if not self.on: return
        if event.startswith(WATCHED): self.seen[f'{event} {args[0] if args else ""}'[:80]] += 1
        if event == 'open' and isinstance(args[0], (str, bytes)): self.seen[f'open {args[0]}'] += 1

class Mine(Callback):
    "A callback with values of many kinds."
    def __init__(self): self.best, self.history, self.rate = None, [], torch.ones(3)
    def after_batch(self):
        self.history.append(float(self.loss))
        self.best, self.seen = min(self.history), {1: (2, 'three')}

class Stop(Callback):
    order = 20_000
    def after_batch(self):
        if self.training and self.train_iter == 30: raise KeyboardInterrupt

def genuine(folder):
    "Return the state of a genuine run, and a Learner to restore it to."
    learn = learner(folder)
    try:
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, .01, cbs=[Mine(), Stop()], checkpoint=CycleCheckpoint('run', every=7))
    except KeyboardInterrupt: pass
    return read_state(read_file(folder/'models/run.cycle'), folder), learn

# Pickles

OPCODES = [op for op in pickletools.opcodes if op.arg is None]

def split(content):
    "Return the opcodes of a pickle as pieces of bytes."
    at = [position for _, _, position in pickletools.genops(content)] + [len(content)]
    return [content[i:j] for i, j in zip(at, at[1:])]

def text(x): return b'X' + len(x.encode()).to_bytes(4, 'little') + x.encode()
def number(n): return b'J' + n.to_bytes(4, 'little', signed=True)
def tup(*xs): return b'(' + b''.join(xs) + b't'
def glob(module, name): return b'c' + module.encode() + b'\n' + name.encode() + b'\n'

NAMES = ['learn', 'dls', 'opt', 'model', 'Mine', 'Recorder', 'Recorder.values 0 L', 'subprocess.Popen', 'os.system', 'builtins.eval', f'{__name__}.Mine',
         'fastcore.foundation.L', 'torch.nn.modules.linear.Linear', 'export', 'fit', 'save', 'write_text', '__init__', '__reduce__', '/tmp/planted', 'PCG64',
         'torch', 'float32', 'uint8', '<f8', '|O', 'cpu', '1e999999999', '1/1', '__setstate__', '__dict__', *_BUILD]
GLOBALS = [('os', 'system'), ('subprocess', 'Popen'), ('builtins', 'eval'), ('builtins', 'getattr'), ('builtins', 'bytearray'), ('pathlib', 'PosixPath'),
           ('torch', 'load'), ('torch._utils', '_rebuild_tensor_v2'), ('collections', 'OrderedDict'), ('fastcore.foundation', 'L'), (MODULE, 'Reader'),
           *[(MODULE, name) for name in _in_file] * 3]

def value(rng, depth=0):
    "Return a piece of a program that makes something."
    kind = rng.randrange(13 if depth < 4 else 6)
    if kind == 0: return text(rng.choice(NAMES))
    if kind == 1: return number(rng.choice([0, 1, -1, 2, 5, 255, 2**31 - 1, -2**31, rng.randrange(1000)]))
    if kind == 2: return rng.choice([b'N', b'\x88', b'\x89', b']', b'}', b')', b'\x8f', b'G' + bytes(8)])
    if kind == 3: return b'B' + (8).to_bytes(4, 'little') + rng.randbytes(8)
    if kind == 4: return b'\x8a\xff' + rng.randbytes(255)
    if kind == 5: return glob(*rng.choice(GLOBALS))
    inner = [value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    if kind == 6: return tup(*inner)
    if kind == 7: return b'](' + b''.join(inner) + b'e'
    if kind == 8: return b'}(' + b''.join(text(rng.choice(NAMES)) + each for each in inner) + b'u'
    if kind == 9: return value(rng, depth + 1) + value(rng, depth + 1) + b'b'
    return glob(*rng.choice(GLOBALS)) + tup(*inner) + b'R'

def mutated(rng, content):
    "Return a pickle with opcodes that are removed, repeated, swapped or changed, or with something else between."
    pieces = split(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        i, j = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        kind = rng.randrange(7)
        if kind == 0: del pieces[i]
        elif kind == 1: pieces.insert(i, pieces[j])
        elif kind == 2: pieces[i], pieces[j] = pieces[j], pieces[i]
        elif kind == 3: pieces.insert(i, rng.choice(OPCODES).code.encode('latin1'))
        elif kind == 4: pieces[i] = value(rng)
        elif kind == 5: pieces.insert(i, value(rng))
        elif len(pieces[i]) > 1: pieces[i] = pieces[i][:1] + rng.randbytes(len(pieces[i]) - 1)
        if not pieces: break
    return b''.join(pieces)

def bomb(rng):
    "Return a pickle that claims much, or would take long."
    n = rng.choice([10_000, 300_000])
    return b'\x80\x04' + rng.choice([
        b']' * n + b'a' * (n - 1), b')' + b'\x85' * n, b'}' + b')' + b'\x85' * n + b'Ns', b'](' + b'\x8f' * n + b'e', b'(' * n, b'N' + b'\x94' * n,
        b'](' + (b'h\x00') * 100 + b'e', b'\x8d' + (2**50).to_bytes(8, 'little'), b'\x95' + (2**50).to_bytes(8, 'little') + b'N',
        b'K\x01' + b''.join(b'q' + bytes([i]) + b'h' + bytes([i]) + b'\x86' for i in range(60)) + b'\x85R',
        glob(MODULE, '_storage') + tup(b'B' + (100).to_bytes(4, 'little') + bytes(100)) + b'R' + glob(MODULE, '_constant') + tup(text('float32')) + b'R',
        glob('builtins', 'bytearray') + tup(number(2**31 - 1)) + b'R',
        glob(MODULE, '_value') + tup(text('Fraction'), b'\x8b' + n.to_bytes(4, 'little') + rng.randbytes(n), number(7)) + b'R']) + b'.'

# Files

def archive(pickled, records, compression=zipfile.ZIP_STORED):
    "Return the content of a file with this pickle."
    made = io.BytesIO()
    with zipfile.ZipFile(made, 'w', compression) as z:
        z.writestr('archive/data.pkl', pickled)
        for name, content in records.items(): z.writestr(f'archive/{name}', content)
    return made.getvalue() + _MARK + zlib.crc32(made.getvalue()).to_bytes(4, 'big')

def records_of(content):
    "Return the pickle of a genuine file and its other records."
    z = zipfile.ZipFile(io.BytesIO(content[:content.rindex(_MARK)]))
    records = {name.partition('/')[2]: z.read(name) for name in z.namelist()}
    return records.pop('data.pkl'), records

class Strangers:
    "Files of strangers, and what reading them does."
    def __init__(self, folder, seed):
        self.rng, self.folder, self.watch, self.figures = Random(seed), folder, Watch(), Counter()
        self.state, self.learn = genuine(folder)
        self.pickled, self.records = records_of(read_file(folder/'models/run.cycle'))
        process = self.state['processes'][0]
        self.inner = [process[name].numpy().tobytes() for name in ('carried', 'random', 'data')]
        self.learn.add_cb(Mine())
        self.objects, self.loaders = object_states(self.learn, list(self.learn.cbs)), loader_states(self.learn)
        self.longest = self.largest = 0.

    def _drawn_file(self):
        "Return the content of a file of a stranger."
        kind = self.rng.choice([0, 0, 0, 1, 1, 1, 3, 3, 4, 5] + [2] * (self.rng.random() < .2))
        if kind == 0: return archive(mutated(self.rng, self.pickled), self.records)
        if kind == 1: return archive(b'\x80\x02' + value(self.rng) + b'.', self.records)
        if kind == 2: return archive(bomb(self.rng), self.records, self.rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
        if kind == 3: return archive(self.pickled, {name: record[:self.rng.randrange(len(record) + 1)] for name, record in self.records.items()})
        if kind == 4: return archive(self.pickled, dict(self.rng.sample(list(self.records.items()), self.rng.randrange(len(self.records)))))
        return read_file(self.folder/'models/run.cycle')[:-20] + self.rng.randbytes(20)

    def _drawn_inner(self):
        "Return a pickle of a stranger for the inner part of a genuine file."
        kind = self.rng.choice([0, 0, 0, 2, 2, 2] + [3] * (self.rng.random() < .2))
        if kind < 2: return mutated(self.rng, self.rng.choice(self.inner))
        return b'\x80\x04' + value(self.rng) + b'.' if kind == 2 else bomb(self.rng)

    def _read_file(self, content):
        state = read_state(content, Path('run.cycle'))
        try: set_model_state(self.learn, state['model'])
        except Exception as e: raise ValueError('run.cycle does not fit') from e     # as `ResumableRun` says
        return 'accepted'

    def _read_inner(self, content):
        content = torch.frombuffer(bytearray(content or b'.'), dtype=torch.uint8)
        try: load(content, self.loaders.standing, Parts(self.loaders.parts()))
        except Refused: pass
        try: problems, _ = self.objects.restore(content)
        except Exception as e: raise ValueError('run.cycle does not fit') from e
        return 'not restored' if problems else 'accepted'

    def read(self, read, content):
        "Read one file, and note what it does."
        begin, memory, self.watch.on = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, True
        try: result = read(content)
        except ValueError as e: result = 'refused' if 'run.cycle' in str(e) else f'raw {e!r}'[:100]
        except BaseException as e: result = f'raw {e!r}'[:100]
        finally: self.watch.on = False
        seconds, grown = time.perf_counter() - begin, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
        self.longest, self.largest = max(self.longest, seconds), max(self.largest, grown)
        self.figures['too_long'] += seconds > 10
        self.figures['too_large'] += grown > 10 * len(content) + 100e6
        self.figures['raw_errors'] += result.startswith('raw')
        if result.startswith('raw'): print(result, file=sys.stderr)
        self.figures[result if not result.startswith('raw') else 'raw'] += 1

def strangers(n_files, seed=0):
    "Return the figures of `n_files` files of strangers."
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = Strangers(folder, seed)
        before = sorted(path.name for path in folder.rglob('*'))
        for i in range(n_files):
            if i % 2: files.read(files._read_file, files._drawn_file())
            else: files.read(files._read_inner, files._drawn_inner())
        touched = before != sorted(path.name for path in folder.rglob('*'))
    names = 'refused', 'not restored', 'accepted', 'raw_errors', 'too_long', 'too_large'
    return dict(files=n_files, **{name.replace(' ', '_'): files.figures[name] for name in names}, files_touched=int(touched),
                calls_outside=sum(files.watch.seen.values()), seen=dict(files.watch.seen.most_common(8)),
                longest_seconds=round(files.longest, 2), largest_MB=round(files.largest / 1e6, 1))
