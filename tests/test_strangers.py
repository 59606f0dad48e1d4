"""A planted checkpoint file runs no code, touches no file and takes no memory that it only claims."""
import io
import os
import pickle
import sys
import time
import tracemalloc
import zipfile
import zlib
from subprocess import Popen  # noqa: F401 (what a training script may import: a file asks for it)

import pytest
import torch
from fastai.basics import Callback

from support.helpers import frozen_state
from support.interrupted import Interrupt, learner
from onecycle_callback.resume.file import _MARK, read_file, read_state, write_file
from onecycle_callback.resume.pickling import Parts, Refused, Standing, dump, load

pytestmark = pytest.mark.matrix

# A pickle, opcode by opcode

OWN = 'onecycle_callback.resume.pickling'

def glob(module, name): return b'c' + module.encode() + b'\n' + name.encode() + b'\n'
def text(x): return b'X' + len(x.encode()).to_bytes(4, 'little') + x.encode()
def whole(n): return b'K' + bytes([n])
def tup(*xs): return b'(' + b''.join(xs) + b't'
def call(f, *args): return f + tup(*args) + b'R'
def items(*xs): return b']' + b''.join(x + b'a' for x in xs)
def own(name, *args): return call(glob(OWN, name), *args)
def via_torch(f, cls, *args): return call(glob('torch._tensor', '_rebuild_from_type_v2'), f, cls, tup(*args), b'}')
def program(expression): return b'\x80\x02' + expression + b'.'

def archive(pickled):
    "Return an archive as `torch.save` makes it, with this pickle and the checksum of a checkpoint."
    torch.save({}, plain := io.BytesIO())
    made, old = io.BytesIO(), zipfile.ZipFile(plain)
    with zipfile.ZipFile(made, 'w', zipfile.ZIP_STORED) as z:
        for name in old.namelist(): z.writestr(name, pickled if name.endswith('data.pkl') else old.read(name))
    return made.getvalue() + _MARK + zlib.crc32(made.getvalue()).to_bytes(4, 'big')

def method(owner, name): return own('_method', owner, text(name))

def attacks(path):
    "Programs that write `path`, or would if something that they make were called."
    file, code = call(glob('pathlib', 'PosixPath'), text(str(path))), text(f'open({str(path)!r}, "w").write("evil")')
    many, eval_ = glob('fastcore.foundation', 'L'), glob('builtins', 'eval')
    yield 'a method of what the file made', via_torch(method(file, 'write_text'), glob('builtins', 'int'), text('evil'))
    yield 'eval', call(eval_, code)
    yield 'a partial', call(call(glob('functools', 'partial'), eval_, code))
    yield 'a default', call(glob('collections', 'defaultdict'), call(glob('functools', 'partial'), eval_, code))
    yield 'L', via_torch(method(call(many, items(eval_)), 'map'), many, eval_)
    yield 'a class', call(glob('subprocess', 'Popen'), items(text('touch'), text(str(path))))
    yield 'os.system', call(glob('os', 'system'), text(f'touch {path}'))
    yield 'our partial', call(own('_partial', eval_, tup(code), b'}'))
    yield 'our method', call(own('_method', text('learn'), text('export')), text(str(path)))
    yield 'a standing object', call(own('_standing', text('learn')), text('fit'))
    yield 'new', own('_new', b'N', own('_class', text('subprocess.Popen')))
    yield 'called', own('_called', b'N', own('_class', text('subprocess.Popen')), items(text('touch'), text(str(path))))
    yield 'a state', own('_standing', text('learn')) + b'}' + text('fit') + code + b'sb'
    yield 'an instance', b'(' + text(f'touch {path}') + b'ios\nsystem\n'
    yield 'an object', b'(' + glob('os', 'system') + text(f'touch {path}') + b'o'

NAMES = [name for name, _ in attacks('')]

@pytest.mark.parametrize('name', NAMES)
def test_the_outer_level_runs_nothing(tmp_path, name):
    (tmp_path / 'models').mkdir()
    path = tmp_path / 'models/run1.cycle'
    path.write_bytes(archive(program(dict(attacks(tmp_path / 'written'))[name])))
    learn = learner(tmp_path)
    before = frozen_state(learn)
    with pytest.raises(ValueError, match=r'run1\.cycle (cannot be read|holds).*Move it away'):
        learn.fit_one_cycle(1, .05, checkpoint='run1')
    assert frozen_state(learn) == before and os.listdir(tmp_path) == ['models']
    assert os.listdir(path.parent) == ['run1.cycle']

class Mine(Callback):
    "An ordinary callback of the script."
    n = 0
    def after_batch(self): self.n += 1

class Helper:
    "A class of the script that the training doesn't use."
    def __init__(self, path): open(path, 'w', encoding='utf-8').write('evil')

@pytest.fixture(scope='module')
def genuine(tmp_path_factory):
    "The state in the file of a genuine run."
    path = tmp_path_factory.mktemp('genuine')
    with pytest.raises(RuntimeError, match='interrupted'):
        learner(path).fit_one_cycle(2, .05, cbs=[Mine(), Interrupt(15)], checkpoint='run1')
    return read_state(read_file(path / 'models/run1.cycle'), path)

def planted(path, state, **changes):
    "Write a file of a genuine run with these changes, and return a Learner beside it."
    write_file(path / 'models/run1.cycle', state | changes)
    return learner(path)

def with_inner(state, pickled, part='carried'):
    process = state['processes'][0] | {part: torch.frombuffer(bytearray(pickled), dtype=torch.uint8)}
    return dict(processes=[process])

def helpers(path):
    here = text(f'{__name__}.Helper')
    yield 'an imported class', call(glob(__name__, 'Popen'), items(text('touch'), text(str(path))))
    yield 'a class of the script', call(glob(__name__, 'Helper'), text(str(path)))
    yield 'a class of the script, by our function', own('_called', b'N', own('_class', here), text(str(path)))
    yield 'a class of the script, without its __init__', own('_new', b'N', own('_class', here))
    yield 'its own class, called', own('_called', b'N', own('_class', text(f'{__name__}.Mine')), text(str(path)))

INNER = [*NAMES, *(name for name, _ in helpers(''))]

@pytest.mark.filterwarnings('ignore:.*cannot restore')
@pytest.mark.parametrize('part', ['carried', 'random', 'data'])
@pytest.mark.parametrize('name', INNER)
def test_the_inner_part_runs_nothing(tmp_path, genuine, name, part):
    "It is refused in words, or the values that are there stay."
    expression = dict([*attacks(tmp_path / 'written'), *helpers(tmp_path / 'written')])[name]
    attribute = b'}' + text('Mine') + b'}' + text('attributes') + b'}' + text('n') + expression + b'sss'
    learn = planted(tmp_path, genuine, **with_inner(genuine, program(attribute), part))
    try: learn.fit_one_cycle(2, .05, cbs=Mine(), checkpoint='run1')
    except ValueError as e: assert 'run1.cycle' in str(e) and 'Move it away' in str(e)
    assert os.listdir(tmp_path) == ['models']

# What a file only claims

def claims():
    size = own('_tensor', own('_storage', b'C\x04abcd'), own('_constant', text('float32')), tup(b'J\xff\xff\xff\x7f'),
               tup(whole(1)), whole(0), text('cpu'))
    yield 'a tensor', size
    yield 'a stride of 0', size.replace(tup(whole(1)), tup(whole(0)))
    yield 'an array', own('_array', text('<f8'), tup(b'J\xff\xff\xff\x7f'), b'\x89', b'C\x08abcdefgh')
    yield 'bytes', call(glob('builtins', 'bytearray'), b'J\xff\xff\xff\x7f')
    yield 'a queue', own('_value', text('deque'),
                         own('_value', text('range'), whole(0), b'J\xff\xff\xff\x7f', whole(1)), b'N')
    yield 'a text', b'\x8d' + (2**40).to_bytes(8, 'little')
    yield 'a fraction', own('_value', text('Fraction'), text('1e999999999'), whole(1))
    yield 'copies', (b'C\xff' + bytes(255) + b'q\x01' + b']' + b'('
                     + b'(h\x01tR'.join([glob(OWN, '_storage')] * 10) + b'e')
    yield 'empty sets', b'](' + b'\x8f' * 300_000 + b'e'
    yield 'deep', b']' * 200_000 + b'a' * 199_999
    yield 'a key that takes for ever', b'K\x01' + b''.join(b'q' + bytes([i]) + b'h' + bytes([i]) + b'\x86'
                                                           for i in range(60)) \
        + b'}' + b'q\xff' + b'0' + b'h\xff' + b'h\x3b' + b'K\x01s'
    yield 'a deep key', b'}' + b')' + b'\x85' * 200_000 + b'K\x01s'

@pytest.mark.parametrize('name', [name for name, _ in claims()])
def test_what_a_file_claims_takes_no_memory_and_no_time(name):
    content, begin = torch.frombuffer(bytearray(program(dict(claims())[name])), dtype=torch.uint8), time.perf_counter()
    tracemalloc.start()
    try: load(content, Standing(), Parts({}))
    except Refused: pass
    finally: (_, peak), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
    assert peak < 10 * len(content) + 100e6 and time.perf_counter() - begin < 60

def test_a_compressed_archive_is_refused(tmp_path):
    torch.save(dict(a=torch.zeros(1_000_000)), plain := io.BytesIO())
    made, old = io.BytesIO(), zipfile.ZipFile(plain)
    with zipfile.ZipFile(made, 'w', zipfile.ZIP_DEFLATED) as z:
        for name in old.namelist(): z.writestr(name, old.read(name))
    assert len(made.getvalue()) < 10_000
    with pytest.raises(ValueError, match='cannot be read'): read_state(made.getvalue(), tmp_path)

# Parts that are wrong

WRONG = [('epoch', -5), ('epoch', 1.5), ('done', -1), ('status', 'evil'), ('status', None), ('train_iter', 'x'),
         ('rows', 7),
         ('processes', []), ('processes', [dict(random=7)]), ('model', None), ('work', []), ('logs', [-1]),
         ('pct_train', None)]

@pytest.mark.parametrize('name, value', WRONG)
def test_a_wrong_part_is_named(tmp_path, genuine, name, value):
    learn = planted(tmp_path, genuine, **{name: value})
    with pytest.raises(ValueError, match=f"run1.cycle has an unusable '{name}'.*Move it away"):
        learn.fit_one_cycle(2, .05, checkpoint='run1')

@pytest.mark.parametrize('name', ['work', 'status', 'epoch', 'done', 'lost', 'logs', 'train_iter', 'pct_train', 'rows',
                                  'processes', 'model'])
def test_a_missing_part_is_named(tmp_path, genuine, name):
    write_file(tmp_path / 'models/run1.cycle', {key: value for key, value in genuine.items() if key != name})
    with pytest.raises(ValueError, match=f"run1.cycle lacks '{name}'.*Move it away"):
        learner(tmp_path).fit_one_cycle(2, .05, checkpoint='run1')

@pytest.mark.parametrize('change', [lambda m: m.pop('weights'), lambda m: m['weights'].popitem(),
                                    lambda m: m.update(opt={}),
                                    lambda m: m.update(grads=7), lambda m: m['opt'].update(hypers=[7])])
def test_wrong_weights_are_refused_in_words(tmp_path, genuine, change):
    model = {name: part.copy() if isinstance(part, dict) else part for name, part in genuine['model'].items()}
    change(model)
    learn = planted(tmp_path, genuine, model=model)
    with pytest.raises(ValueError, match="run1.cycle does not fit this training"):
        learn.fit_one_cycle(2, .05, cbs=Mine(), checkpoint='run1')

# Reading names nothing that all threads share

def test_objects_are_named_in_their_own_reader():
    standing, other, objects = Standing(), Standing(), [Mine(), Mine()]
    for each, obj in zip((standing, other), objects): each.add(obj, 'mine')
    content = dump([objects[0]], standing, Parts({}))
    assert load(content, standing, Parts({}))[0][0] is objects[0] and load(content, other,
                                                                           Parts({}))[0][0] is objects[1]

def test_the_attacks_are_attacks(tmp_path):
    "Python's own reader does what they ask for."
    attack = program(dict(attacks(tmp_path / 'written'))['eval'])
    pickle.loads(attack)
    assert (tmp_path / 'written').exists() and sys.modules['subprocess']
