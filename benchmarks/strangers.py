"""Plant checkpoint files that a stranger might write, and watch what reading them does.

`python benchmarks/crash.py --strangers 20000` draws that many files: mutations of the JSON in genuine files, node by
node and letter by letter; all the kinds of nodes that a file may hold, in random chains; files that are nested deeply
or claim too much; parts that are missing or wrong. Each is read as `fit_one_cycle` reads it, and restored into a
Learner. An audit hook counts code that is run or compiled, files that are opened for writing or removed, processes,
sockets and imports; what is raised must be a `ValueError` that names the file."""
import json
import resource
import sys
import tempfile
import time
import zlib
from collections import Counter
from copy import deepcopy
from pathlib import Path
from random import Random

import torch._subclasses.schema_check_mode  # noqa: F401 (torch imports it once, when it is needed first)
import torch
from fastai.basics import Callback

from crash import learner
from onecycle_callback import CycleCheckpoint
from onecycle_callback.resume.file import _MARK, read_state
from onecycle_callback.resume.objects import _BUILD, _GENERATORS, _KINDS, Refused, load
from onecycle_callback.resume.state import loader_states, object_states, set_model_state

WATCHED = ('exec', 'compile', 'subprocess.', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'os.remove',
           'os.rename', 'os.mkdir', 'os.rmdir', 'os.chmod', 'os.link', 'os.symlink', 'os.truncate', 'shutil.',
           'socket.', 'import', 'ctypes.', 'pty.', 'webbrowser.')

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
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(2, .01, cbs=[Mine(), Stop()], checkpoint=CycleCheckpoint('run', every=7))
    except KeyboardInterrupt: pass
    return read_state(folder/'models/run.cycle'), learn

# What a file says

NAMES = ['learn', 'dls', 'opt', 'model', 'Mine', 'Recorder', 'Recorder.values 0 L', 'subprocess.Popen', 'os.system',
         'builtins.eval', f'{__name__}.Mine', 'fastcore.foundation.L', 'torch.nn.modules.linear.Linear', 'export',
         'fit', 'save', 'write_text', '__init__', '__reduce__', '/tmp/planted', 'PCG64', 'torch', 'float32', 'uint8',
         '<f8', '|O', 'cpu', '1e999999999', '1/1', '__setstate__', '__dict__', 'attributes', 'again', *_BUILD,
         *_GENERATORS]
NUMBERS = [0, 1, -1, 2, 5, 8, 255, 2**31 - 1, -2**31, 2**70, .5, float('nan'), True, False, None]

def drawn_node(rng, depth=0):
    "Return a node that makes something, or doesn't."
    kind = rng.randrange(8 if depth < 5 else 3)
    if kind == 0: return rng.choice(NAMES)
    if kind == 1: return rng.choice([*NUMBERS, rng.randrange(1000)])
    if kind == 2: return ['again', rng.randrange(30)]
    inner = [drawn_node(rng, depth + 1) for _ in range(rng.randint(0, 5))]
    if kind == 3: return rng.choice([inner, ['list', *inner], {name: name for name in rng.sample(NAMES, 2)}])
    if kind == 4: return ['dict', *(part for node in inner for part in (rng.choice(NAMES), node))]
    if kind == 5: return ['class', rng.choice(NAMES)]
    if kind == 6:
        where = rng.choice(['model.0.weight', [0, 8], [8, 999], [-1, 2**50]])
        return ['tensor', None, where, rng.choice(['uint8', 'float32', 'save']), [2, 1], [1, 1], 0]
    return [rng.choice([*_KINDS, 'eval', '__class__']), *inner]

def places(node):
    "Yield each list in a node, and each place in it."
    for key in range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from places(node[key])

def mutated(rng, text):
    "Return JSON with nodes that are removed, repeated, swapped or changed, or with other letters."
    if rng.random() < .2:
        letters = list(text)
        for _ in range(rng.choice([1, 3, 10])): letters[rng.randrange(len(letters))] = rng.choice('[]{},:"0127aeN-.\\ ')
        return ''.join(letters)
    node = json.loads(text)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        found = list(places(node))
        if not found: break
        (owner, key), (other, name) = rng.choice(found), rng.choice(found)
        kind = rng.randrange(6)
        if kind == 0: del owner[key]
        elif kind == 1: owner[key] = deepcopy(other[name])
        elif kind == 2: owner[key], other[name] = deepcopy(other[name]), deepcopy(owner[key])
        elif kind == 3 and isinstance(owner, list): owner.insert(key, drawn_node(rng))
        elif kind == 4: owner[0] = rng.choice([*_KINDS])
        else: owner[key] = drawn_node(rng)
    return json.dumps(node)

def bomb(rng):
    "Return JSON that claims much, or would take long."
    n = rng.choice([10_000, 300_000])
    doubled = '1'
    for i in range(60): doubled = f'["tuple",{doubled},["again",{60 - i}]]'
    return rng.choice([
        '[' * n + ']' * n, '["tuple",' * n + '1' + ']' * n, '[' + '[],' * n + '[]]', '["list",' + '["set"],' * n + '1]',
        '["list",' + '["list"],' * n + '1]', '9' * n, f'["dict",{doubled},1]', '["floats",0,1125899906842624]',
        '["value","builtins.bytearray",null,2147483647]', '["list"' + ',{}' * n + ']',
        '["list",["dict",' + ','.join(f'"{i}",1' for i in range(n // 10)) + '],'
        + '["value","collections.OrderedDict",null,["again",1]],' * (n // 10) + '1]',
        '["value","fractions.Fraction",null,' + '7' * 4000 + ',3]', '["list",' + '["again",0],' * n + '1]',
        '"' + 'x' * n])

# Files

def said(content):
    "Return the blocks and the JSON of a genuine file, or of a part."
    begin = len(content) - 8 - int.from_bytes(content[-8:], 'little')
    return content[:begin], content[begin:-8].decode()

def content_of(blocks, text):
    text = text.encode('utf8', 'replace')
    return blocks + text + len(text).to_bytes(8, 'little')

def checkpoint(content): return content + _MARK + zlib.crc32(content).to_bytes(4, 'big')

class Strangers:
    "Files of strangers, and what reading them does."
    def __init__(self, folder, seed):
        self.rng, self.folder, self.watch, self.figures = Random(seed), folder, Watch(), Counter()
        self.state, self.learn = genuine(folder)
        self.outer = said((folder/'models/run.cycle').read_bytes()[:-len(checkpoint(b''))])
        process = self.state['processes'][0]
        self.inner = [*map(said, [process['carried'], process['random']['loaders']])]
        self.learn.add_cb(Mine())
        self.objects, self.loaders = object_states(self.learn, list(self.learn.cbs)), loader_states(self.learn)
        self.longest = self.largest = 0.

    def _drawn_file(self):
        "Return the content of a file of a stranger."
        (blocks, text), kind = self.outer, self.rng.choice([0, 0, 0, 1, 1, 1, 3, 4] + [2] * (self.rng.random() < .2))
        if kind == 0: return checkpoint(content_of(blocks, mutated(self.rng, text)))
        if kind == 1: return checkpoint(content_of(blocks, json.dumps(drawn_node(self.rng))))
        if kind == 2: return checkpoint(content_of(blocks, bomb(self.rng)))
        if kind == 3: return checkpoint(content_of(blocks[:self.rng.randrange(len(blocks))], text))
        return checkpoint(content_of(blocks, text)[:-20] + self.rng.randbytes(20))

    def _drawn_inner(self):
        "Return what a stranger might put into the inner part of a genuine file."
        blocks, text = self.rng.choice(self.inner)
        kind = self.rng.choice([0, 0, 0, 1, 1, 1] + [2] * (self.rng.random() < .2))
        if kind == 0: return content_of(blocks, mutated(self.rng, text))
        return content_of(blocks, json.dumps(drawn_node(self.rng)) if kind == 1 else bomb(self.rng))

    def _read_file(self, content):
        state = read_state('run.cycle', content)
        try: set_model_state(self.learn, state['model'])
        except Exception as e: raise ValueError('run.cycle does not fit') from e     # as `ResumableRun` says
        return 'accepted'

    def _read_inner(self, content):
        try: load(content, self.loaders.standing)
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
        seconds = time.perf_counter() - begin
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
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
    figures = {name.replace(' ', '_'): files.figures[name] for name in names}
    return dict(files=n_files, **figures, files_touched=int(touched),
                calls_outside=sum(files.watch.seen.values()), seen=dict(files.watch.seen.most_common(8)),
                longest_seconds=round(files.longest, 2), largest_MB=round(files.largest / 1e6, 1))
