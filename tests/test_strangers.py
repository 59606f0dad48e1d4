"""A planted checkpoint file runs no code, touches no file and takes no memory that it only claims."""
import json
import os
import pickle
import sys
import time
import tracemalloc
import zlib
from copy import copy
from subprocess import Popen  # noqa: F401 (what a training script may import: a file asks for it)

import numpy as np
import pytest
import torch
from fastai.basics import Callback

from support.helpers import frozen_state
from support.interrupted import N_EPOCH, Interrupt, learner
from onecycle_callback import CycleCheckpoint
from onecycle_callback.resume.file import _MARK, read_state, write_file
from onecycle_callback.resume.objects import CannotStore, Refused, Standing, dump, load
from onecycle_callback.resume.state import ObjectStates

pytestmark = pytest.mark.matrix

# What a file says, written by hand

def program(node, blocks=b''):
    "Return what a `Writer` would write for a node, which may be text already."
    text = (node if isinstance(node, str) else json.dumps(node)).encode()
    return blocks + text + len(text).to_bytes(8, 'little')

def checkpoint(content): return content + _MARK + zlib.crc32(content).to_bytes(4, 'big')

def cls(name): return ['class', name]
def new(name, *args, is_called=True, state=None): return ['object', None, cls(name), is_called, [*args], state]
def value(name, *args): return ['value', name, None, *args]
def items(**named): return ['dict', *(each for item in named.items() for each in item)]
def tup(*values): return ['tuple', *values]

def attacks(path):
    "What would write `path`, if it were called."
    command, code = ['touch', str(path)], f'open({str(path)!r}, "w")'
    method = ['method', 'learn', 'export']
    yield 'Popen', new('subprocess.Popen', ['list', *command])
    yield 'os.system', new('os.system', ' '.join(command))
    yield 'eval', new('builtins.eval', code)
    yield 'a kind', ['eval', code]
    yield 'another kind', ['os.system', ' '.join(command)]
    yield 'a kind of ours', ['read_state', str(path)]
    yield 'an attribute of a kind', ['__class__']
    yield 'a value', value('builtins.eval', code)
    yield 'a standing function', ['standing', 'the function builtins.eval']
    yield 'a partial', value('functools.partial', ['standing', 'eval'], tup(code), items())
    call = value('functools.partial', cls('pathlib.Path'), tup(), items())
    yield 'a partial that is called', ['object', None, call, True, [str(path)], None]
    yield 'a method that is called', ['object', None, method, True, [str(path)], None]
    yield 'a default', value('collections.defaultdict', method, items())
    yield 'new', new('subprocess.Popen', is_called=False)
    yield 'a number as a class', ['object', None, 7, True, [], None]
    yield 'an object of JSON', dict(eval=[code])
    yield 'a state of the Learner', ['object', 'learn', cls('fastai.learner.Learner'), False, [], items(fit=code)]
    yield 'a state of a class', ['object', None, cls('fastai.learner.Learner'), False, [], items(fit=code)]
    yield 'a state that is loaded', ['loaded', 'learn', code]
    yield 'a loader', ['loader', 'learn', items(fit=code)]
    yield 'a loader without a name', ['loader', 7, items(fit=code)]
    yield 'a file', ['floats', str(path), 8]
    yield 'pickled', pickle.dumps(Writes(str(path)), 0).decode()

class Writes:
    "What a pickle of it does when it is read: write a file."
    def __init__(self, path): self.path = path
    def __reduce__(self): return exec, (f'open({self.path!r}, "w")',)

NAMES = [name for name, _ in attacks('')]

@pytest.mark.parametrize('name', NAMES)
def test_the_outer_level_runs_nothing(tmp_path, name):
    (tmp_path / 'models').mkdir()
    path = tmp_path / 'models/run1.cycle'
    path.write_bytes(checkpoint(program(dict(attacks(tmp_path / 'written'))[name])))
    learn = learner(tmp_path)
    before = frozen_state(learn)
    with pytest.raises(ValueError, match=r'run1\.cycle (cannot be read|is not a checkpoint).*Move it away'):
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
    return read_state(path / 'models/run1.cycle')

def planted(path, state, **changes):
    "Write a file of a genuine run with these changes, and return a Learner beside it."
    write_file(path / 'models/run1.cycle', state | changes)
    return learner(path)

def with_inner(state, content, part):
    process = state['processes'][0]
    if part == 'carried': return dict(processes=[process | dict(carried=content)])
    owner, name = ('random', 'loaders') if part == 'loaders' else ('data', 'told')
    return dict(processes=[process | {owner: process[owner] | {name: content}}])

def helpers(path):
    yield 'an imported class', new(f'{__name__}.Popen', ['list', 'touch', str(path)])
    yield 'a class of the script', new(f'{__name__}.Helper', str(path))
    yield 'a class of the script, without its __init__', new(f'{__name__}.Helper', is_called=False)
    yield 'its own class, called', new(f'{__name__}.Mine', str(path))

INNER = [*NAMES, *(name for name, _ in helpers(''))]

class Tells(torch.utils.data.DataLoader):
    "A loader that tells its place."
    bs = 4
    def state_dict(self): return dict(n=1)
    def load_state_dict(self, state): assert state == dict(n=1), 'of a stranger'

@pytest.mark.filterwarnings('ignore:.*cannot restore')
@pytest.mark.parametrize('part', ['carried', 'loaders', 'told'])
@pytest.mark.parametrize('name', INNER)
def test_the_inner_part_runs_nothing(tmp_path, genuine, name, part):
    "It is refused in words, or the values that are there stay."
    node = dict([*attacks(tmp_path / 'written'), *helpers(tmp_path / 'written')])[name]
    node = node if name == 'pickled' else items(Mine=items(attributes=items(n=node)))
    learn = planted(tmp_path, genuine, **with_inner(genuine, program(node), part))
    if part == 'told': learn.dls.loaders[0] = Tells(learn.dls.train.dataset, batch_size=4)
    try: learn.fit_one_cycle(2, .05, cbs=Mine(), checkpoint='run1')
    except ValueError as e: assert 'run1.cycle' in str(e) and 'Move it away' in str(e)
    assert os.listdir(tmp_path) == ['models']

# What a file only claims

HUGE = 2**31 - 1

def claims():
    yield 'a tensor', program(['tensor', None, [0, 4], 'float32', [HUGE], [1], 0], b'abcd')
    yield 'a stride of 0', program(['tensor', None, [0, 4], 'float32', [HUGE], [0], 0], b'abcd')
    yield 'a block', program(['bytes', 0, 2**50])
    yield 'a block before the file', program(['bytes', -2**50, 4])
    yield 'an array', program(['array', '<f8', [HUGE], 'C', [0, 8]], bytes(8))
    yield 'a text', (2**40).to_bytes(8, 'little')
    yield 'bytes', program(value('builtins.bytearray', HUGE))
    yield 'a queue', program(value('collections.deque', value('builtins.range', 0, HUGE, 1), None))
    yield 'a fraction', program(value('fractions.Fraction', '1e999999999', 1))
    yield 'a number', program('[' + '9' * 1_000_000 + ']')
    many = items(**{str(i): i for i in range(10_000)})
    yield 'copies', program(['list', many, *[value('collections.OrderedDict', ['again', 1])] * 10_000])
    blocks = (['tensor', None, [i, 1_000_000], 'uint8', [1], [1], 0] for i in range(1000))
    yield 'blocks', program(['list', *blocks], bytes(1_000_000))
    yield 'tensors', program(['list', ['tensor', None, [0, 10**6], 'uint8', [10**6], [1], 0],
                              *[['scalars', cls('torch.Tensor'), ['again', 1]]] * 1000], bytes(10**6))
    yield 'lists', program('[' + '[],' * 3_000_000 + '[]]')
    yield 'sets', program('["list",' + '["set"],' * 300_000 + '1]')
    yield 'deep', program('[' * 200_000 + ']' * 200_000)
    yield 'deep tuples', program('["tuple",' * 200_000 + '1' + ']' * 200_000)
    yield 'a key that takes for ever', program(['dict', doubled(60), 1])
    yield 'itself', program(tup(['again', 0]))

def doubled(n):
    "Return a tuple of twice the same, and so on, of which only the innermost has items."
    node = tup(1)
    for i in range(n): node = tup(node, ['again', n - i + 1])
    return node

@pytest.mark.parametrize('name', [name for name, _ in claims()])
def test_what_a_file_claims_takes_no_memory_and_no_time(name):
    content, begin = dict(claims())[name], time.perf_counter()
    tracemalloc.start()
    try: load(content, Standing())
    except Refused: pass
    finally: (_, peak), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
    assert peak < 10 * len(content) + 100e6 and time.perf_counter() - begin < 60

# What would take the square of its length

PRIME = 2**61 - 1     # a whole number and its rest by this one have the same hash

def alike(kind, n=200):
    "Return `n` keys of one hash."
    if kind == 'whole numbers': return [i * PRIME for i in range(n)]
    if kind == 'numbers': return [2. ** (61 * i) for i in range(10)] * (n // 10)
    return [tup(i * PRIME, 1) for i in range(n)]

@pytest.mark.parametrize('holder', ['dict', 'set', 'frozenset'])
@pytest.mark.parametrize('kind', ['whole numbers', 'numbers', 'tuples'])
def test_keys_of_one_hash_are_refused(kind, holder):
    keys = [part for key in alike(kind) for part in ([key, 1] if holder == 'dict' else [key])]
    with pytest.raises(Refused, match='keys of one hash'): load(program([holder, *keys]), Standing())

def test_keys_of_one_hash_are_not_written():
    class Same:
        def __hash__(self): return 1
    standing = Standing()
    standing.add_class(Same)
    assert len(load(dump({Same(): 1 for _ in range(90)}, standing), standing)[0]) == 90
    for value in ({Same(): 1 for _ in range(110)}, {Same() for _ in range(110)}):
        with pytest.raises(CannotStore, match='keys of one hash'): dump(value, standing)

def restored(states, content):
    "Restore `content`; return how many calls of functions that took, which no other work of the machine changes."
    n_calls = 0
    def count(*_):
        nonlocal n_calls
        n_calls += 1
    before = sys.getprofile()
    sys.setprofile(count)
    try: problems, _ = states.restore(content)
    finally: sys.setprofile(before)
    return n_calls, len(problems)

def calls_to_restore(missing, n_attributes):
    "Return how many calls restore many attributes that hold one list, and perhaps an object of an unknown class."
    shared = ['list', *range(2_000)]     # object 4, after three dictionaries and a list
    inner = new('nothing.Nothing') if missing else 7
    others = {f'a{i}': ['list', ['again', 4], inner] for i in range(n_attributes)}
    attributes = items(a=['list', shared, inner], **others)
    n_calls, found = restored(ObjectStates(dict(mine=Mine())), program(items(mine=items(attributes=attributes))))
    assert found == (n_attributes + 1) * missing
    return n_calls

def test_what_is_missing_is_looked_for_once():
    assert calls_to_restore(True, 400) < 10 * calls_to_restore(False, 400)

def test_what_is_missing_in_one_list_many_times_is_looked_for_once():
    def calls(inner):
        many = ['list', inner, *[['again', 4]] * 2_000]     # holds itself
        attributes = items(a=many, b=['list', *[['again', 4]] * 2_000], c=['list', *[['again', 6]] * 2_000])
        return restored(ObjectStates(dict(mine=Mine())), program(items(mine=items(attributes=attributes))))
    (plain, none), (missing, found) = calls(tup(7)), calls(new('nothing.Nothing'))
    assert (none, found) == (0, 3) and missing < 10 * plain

def test_a_missing_object_is_found_wherever_it_is():
    "Also where it was met before, and in what holds itself."
    gone = new('nothing.Nothing')
    inner = ['list', gone, ['again', 4]]
    made = new('types.SimpleNamespace', is_called=False, state=items(x=['again', 4]))
    attributes = items(a=inner, b=['list', ['again', 4]], c=['tuple', 1], d=made)
    states = ObjectStates(dict(mine=(mine := Mine())))
    problems, _ = states.restore(program(items(mine=items(attributes=attributes))))
    assert sorted(problems) == [f"mine.{name} (nothing.Nothing, which isn't here)" for name in 'abd']
    assert mine.c == (1,) and not {*'abd'} & vars(mine).keys()

def test_nothing_is_filled_twice():
    mine = Mine()
    mine.sums = torch.zeros(4)
    states = ObjectStates(dict(mine=mine))
    node = ['tensor', 'mine.sums 0 Tensor', [0, 16], 'float32', [4], [1], 0]
    assert states.standing.objects[node[1]] is mine.sums
    with pytest.raises(Refused, match='mine.sums 0 Tensor twice'):
        load(program(['list', node, node], bytes(16)), states.standing)

# Parts that are wrong

WRONG = [('epoch', -5), ('epoch', 1.5), ('done', -1), ('status', 'evil'), ('status', None), ('train_iter', 'x'),
         ('rows', 7), ('processes', []), ('processes', [dict(random=7)]),
         ('processes', [dict(random={}, carried=b'', data={}, removed=[])]), ('model', None), ('work', []),
         ('logs', [-1]), ('lost', 7), ('pct_train', None)]

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
    with pytest.raises(ValueError, match="run1.cycle (does not fit this training|has an unusable 'model')"):
        learn.fit_one_cycle(2, .05, cbs=Mine(), checkpoint='run1')

def parts_of(state, path=()):
    "Yield where each part of a state lies."
    for name, part in state.items() if isinstance(state, dict) else enumerate(state[:2]):
        yield (*path, name)
        is_open = isinstance(part, (dict, list, tuple)) and len(path) < 4
        if is_open and (path[:2] != ('model', 'opt') or len(path) < 3): yield from parts_of(part, (*path, name))

def with_part(state, path, value):
    "Return a copy of `state` with another value there; without it, if that is `...`."
    name, new = path[0], copy(state) if isinstance(state, dict) else list(state)
    if len(path) > 1: new[name] = with_part(state[name], path[1:], value)
    elif value is ...: del new[name]
    else: new[name] = value
    return tuple(new) if isinstance(state, tuple) else new

VALUES = [..., None, 7, -7, .5, 'x', [], {}, [7], dict(x=7), [[]], b'x', (7,), torch.ones(3), False]

@pytest.mark.slow
@pytest.mark.parametrize('loader', [None, Tells], ids=['', 'that tells its place'])
@pytest.mark.filterwarnings('ignore')
def test_each_part_is_checked_before_anything_is_announced(tmp_path, capsys, loader):
    "Inside an epoch. A part that is missing, or of another kind, is refused in words, or the run goes on with it."
    def fit(*cbs):
        learn = learner(tmp_path)
        if loader: learn.dls.loaders[0] = loader(learn.dls.train.dataset, batch_size=4)
        learn.fit_one_cycle(2, .05, cbs=[Mine(), *cbs], checkpoint=CycleCheckpoint('run1', every=7))
    with pytest.raises(RuntimeError, match='interrupted'): fit(Interrupt(15))
    genuine = read_state(path := tmp_path / 'models/run1.cycle')
    assert genuine['done'] == 2 and genuine['processes'][0]['data']['began']
    n_refused, accepted = 0, {}
    for where in parts_of(genuine):
        if loader and where[2:3] != ('data',): continue     # all else is as it is without it
        for value in VALUES:
            content = checkpoint(dump(with_part(genuine, where, value), Standing(is_plain=True)))
            try: read_state(path, content)
            except ValueError as e:
                assert 'run1.cycle' in str(e) and 'Move it away' in str(e)
                n_refused += 1
            else: accepted[(where[:-1] or where) + (type(value),)] = where, value
    assert n_refused > (100 if loader else 1500)
    for where, value in accepted.values():     # what only this training can judge
        write_file(path, with_part(genuine, where, value))
        capsys.readouterr()
        try: fit()
        except ValueError as e:
            assert 'run1.cycle' in str(e) and 'Move it away' in str(e) or 'belongs to a different run' in str(e), where
            assert where[0] == 'model' or 'resumes in epoch' not in capsys.readouterr().out, where

def states_out_of_bounds():
    "States of NumPy's generators that would have it read far outside of them: it looks at them no further."
    for place in (10**9, -10**9, 625, -1, 'x'):
        legacy, twister, philox = np.random.get_state(legacy=False), np.random.MT19937().state, np.random.Philox().state
        for kind, state in dict(legacy=legacy, numpy=twister).items(): state['state']['pos'] = place; yield kind, state
        yield 'numpy', philox | dict(buffer_pos=place)

@pytest.mark.parametrize('n', range(15))
def test_a_random_state_that_points_elsewhere_is_refused(tmp_path, genuine, n):
    kind, state = list(states_out_of_bounds())[n]
    node = ['generator', None, kind, None]
    content = dump(state, Standing())
    begin = len(content) - 8 - int.from_bytes(content[-8:], 'little')
    node[-1] = json.loads(content[begin:-8])
    with pytest.raises(Refused, match='where a random state ends|instead of a int'):
        load(program(node, content[:begin]), Standing())
    if kind != 'legacy': return
    process = genuine['processes'][0]
    learn = planted(tmp_path, genuine, processes=[process | dict(random=process['random'] | dict(numpy=state))])
    with pytest.raises(ValueError, match="run1.cycle has an unusable 'processes'.*Move it away"):
        learn.fit_one_cycle(2, .05, checkpoint='run1')

# Reading names nothing that all threads share

def test_objects_are_named_in_their_own_reader():
    standing, other, objects = Standing(), Standing(), [Mine(), Mine()]
    for each, obj in zip((standing, other), objects): each.add(obj, 'mine')
    content = dump([objects[0]], standing)
    assert load(content, standing)[0][0] is objects[0] and load(content, other)[0][0] is objects[1]

def test_the_attacks_are_attacks(tmp_path):
    "Python's own reader does what they ask for; and what is asked for properly is built."
    pickle.loads(dict(attacks(tmp_path / 'written'))['pickled'].encode())
    assert (tmp_path / 'written').exists()
    standing = Standing()
    standing.add_class(Mine)
    assert type(load(program(new(f'{__name__}.Mine', is_called=False)), standing)[0]) is Mine

# What a file may put into the objects of a training

def rewritten(path, attribute, node):
    "Add an attribute of the Learner to the file at `path`."
    state = read_state(path)
    carried = state['processes'][0]['carried']
    begin = len(carried) - 8 - int.from_bytes(carried[-8:], 'little')
    root = json.loads(carried[begin:-8])
    root[-1][root[-1].index('attributes') + 1] += [attribute, node]     # the Learner is the last object
    text = json.dumps(root).encode()
    state['processes'][0]['carried'] = carried[:begin] + text + len(text).to_bytes(8, 'little')
    write_file(path, state)

LOAD = ['method', 'learn', 'load']

@pytest.mark.parametrize('attribute, node, said', [
    ('_do_epoch_validate', 1, 'Learner._do_epoch_validate, which is no state'),
    ('logger', 1, 'Learner.logger, which is no state'),
    ('new', LOAD, None), ('new', ['value', 'functools.partial', None, LOAD, ['tuple', 'best'], ['dict']], None)],
    ids=['method', 'logger', 'of the Learner', 'partial'])
def test_nothing_of_a_file_is_called_later(tmp_path, attribute, node, said):
    learn = learner(tmp_path)
    with pytest.raises(RuntimeError, match='interrupted'):
        learn.fit_one_cycle(N_EPOCH, .05, cbs=Interrupt(14), checkpoint='run1')
    rewritten(tmp_path / 'models/run1.cycle', attribute, node)
    learn = learner(tmp_path)
    if said:
        with pytest.raises(ValueError, match=said): learn.fit_one_cycle(N_EPOCH, .05, checkpoint='run1')
    else:
        with pytest.warns(UserWarning, match='cannot restore Learner.new .learn.load, which isn.t here'):
            learn.fit_one_cycle(N_EPOCH, .05, checkpoint='run1')
    assert attribute not in vars(learn) or attribute == 'logger'

def test_a_list_that_is_many_times_in_another_is_refused_at_once(tmp_path):
    inner = 'x'
    for _ in range(60): inner = [inner, inner]     # its text would have 2**60 characters
    for name in ('format', 'work'):
        state = dict(format='a cycle of onecycle_callback, 1') | {name: inner}
        write_file(tmp_path / 'file', state)
        with pytest.raises(ValueError, match='is not a checkpoint|an unusable .work.: a list'):
            read_state(tmp_path / 'file')
