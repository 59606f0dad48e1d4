"""A checkpoint that was damaged is refused; what a file asks for is made only if it is on the list."""
import json
import os
import pickle
import warnings
from functools import cache
from random import Random

import numpy as np
import pytest
import torch
from fastai.basics import Callback

from support.helpers import frozen_state
from support.interrupted import N_BATCH, Interrupt, assert_same, learner, results
from onecycle_callback import CycleCheckpoint
from onecycle_callback.resume.file import read_state, write_file
from onecycle_callback.resume.objects import Standing, dump, load

pytestmark = pytest.mark.matrix

KEEP = CycleCheckpoint('run1', every=7)

@pytest.fixture(scope='module')
def content(tmp_path_factory):
    "The content of the file of an interrupted cycle."
    path = tmp_path_factory.mktemp('damage')
    with pytest.raises(RuntimeError, match='interrupted'):
        learner(path).fit_one_cycle(4, .05, cbs=Interrupt(30), checkpoint=KEEP)
    return (path / 'models/run1.cycle').read_bytes()

def flip(content, rng):
    "One bit."
    i = rng.randrange(len(content))
    return content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1:]

def zero(content, rng):
    "A block of zeros, such as a disk leaves."
    n = rng.choice([1, 8, 512, 4096])
    i = rng.randrange(len(content) - n)
    return content[:i] + bytes(n) + content[i + n:]

def truncate(content, rng): return content[:rng.randrange(len(content))]

def truncate_end(content, rng): return content[:-rng.randrange(1, 100)]

def swap(content, rng):
    "Two blocks in each other's place."
    i, j = sorted(rng.sample(range(len(content) // 512), 2))
    a, b = (slice(k * 512, (k + 1) * 512) for k in (i, j))
    return content[:a.start] + content[b] + content[a.stop:b.start] + content[a] + content[b.stop:]

def append(content, rng): return content + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 40)))

@pytest.mark.parametrize('damage', [flip, zero, truncate, truncate_end, swap, append])
def test_no_damage_is_accepted(content, tmp_path, damage):
    "2,400 damages in all, drawn from a seed."
    rng, accepted, n = Random(1), 0, 0
    while n < 400:
        damaged = damage(content, rng)
        if damaged == content: continue      # zeros over zeros
        n += 1
        try: read_state(tmp_path, damaged)
        except ValueError: continue
        accepted += 1
    assert accepted == 0
    read_state(tmp_path, content)

@pytest.mark.parametrize('damage', [flip, truncate, swap])
def test_a_damaged_file_touches_nothing(content, tmp_path, damage):
    path = tmp_path / 'models/run1.cycle'
    path.parent.mkdir()
    path.write_bytes(damage(content, Random(2)))
    learn = learner(tmp_path)
    before = frozen_state(learn)
    with pytest.raises(ValueError, match=r'run1\.cycle cannot be read, because it is damaged.*Move it away'):
        learn.fit_one_cycle(4, .05, checkpoint=KEEP)
    assert frozen_state(learn) == before

def test_a_later_format(content, tmp_path):
    path = tmp_path / 'models/run1.cycle'
    path.parent.mkdir()
    path.write_bytes(content)
    write_file(path, read_state(path, content) | dict(format='a cycle of onecycle_callback, 9'))
    with pytest.raises(ValueError, match='another version of onecycle_callback'):
        learner(tmp_path).fit_one_cycle(4, .05, checkpoint=KEEP)

def with_carried(state, change):
    "Return `state` with a change in the JSON of what the callbacks and layers hold, whose blocks stay where they are."
    content = state['processes'][0]['carried']
    begin = len(content) - 8 - int.from_bytes(content[-8:], 'little')
    node = json.loads(content[begin:-8])
    change(node)
    text = json.dumps(node).encode()
    process = state['processes'][0] | dict(carried=content[:begin] + text + len(text).to_bytes(8, 'little'))
    return state | dict(processes=[process])

def set_after(node, name, value):
    "Put `value` in the place of each number that stands after the text `name`."
    for i, each in enumerate(node):
        if type(each) is list: set_after(each, name, value)
        if i and node[i - 1] == name and type(each) is int: node[i] = value

def new(name, *args): return ['object', None, ['class', name], True, [*args], None]

WANTED = {'a class of Python': (new('subprocess.Popen', ['list', 'touch', 'it_ran']), 'Popen'),
          'a function': (['standing', 'the function shutil.copy'], 'shutil.copy'),
          'a function that is called': (new('shutil.copy', '/dev/null', 'it_ran'), 'shutil.copy'),
          'a method': (['method', 'learn', '__nothing__'], 'learn.__nothing__'),
          'a class': (['class', 'subprocess.Popen'], 'subprocess.Popen'),
          'another name': (['standing', 'subprocess'], 'subprocess')}

@pytest.mark.parametrize('wanted, name', WANTED.values(), ids=WANTED)
def test_what_a_file_may_not_ask_for(content, tmp_path, monkeypatch, wanted, name):
    "It is named before training, and the live value stays."
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'models/run1.cycle'
    path.parent.mkdir()
    write_file(path, with_carried(read_state(path, content), lambda node: set_after(node, 'calls', wanted)))
    message = rf'cannot restore model\.4\.calls.*{name}.*the cycle resumes with what is there now'
    with pytest.warns(UserWarning, match=message):
        learner(tmp_path).fit_one_cycle(4, .05, checkpoint=KEEP)
    assert not os.path.exists('it_ran')

class Asks:
    "An object that is pickled as a call."
    def __reduce__(self): return os.mkdir, ('it_ran',)

@pytest.mark.parametrize('save', [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))],
                         ids=['torch', 'pickle'])
def test_a_pickle_is_refused_and_not_read(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save(dict(evil=Asks()), path := tmp_path / 'run1.cycle')
    with pytest.raises(ValueError, match='Move it away'): read_state(path)
    assert not os.path.exists('it_ran')

class Unstorable(Callback):
    "Hold values that no file can hold, and one that it can."
    def __init__(self, name, value): self.name_, self.value, self.n = name, value, 0
    def after_batch(self):
        self.n += 1
        setattr(self, self.name_, self.value())

@cache
def deep():
    values = []
    for _ in range(100_000): values = [values]
    return values

@pytest.mark.parametrize('value', [lambda: (i for i in range(3)), lambda: lambda: 3,
                                   lambda: open(os.devnull, encoding='utf-8'), lambda: np.array([object()]), deep,
                                   lambda: type('Local', (), {})()],
                         ids=['generator', 'lambda', 'file', 'array of objects', 'too deep', 'object of a new class'])
def test_what_cannot_be_stored_is_named_and_the_rest_is_saved(tmp_path, value, request):
    keep, name = dict(checkpoint=CycleCheckpoint('run1', every=7)), request.node.callspec.id
    with warnings.catch_warnings(record=True) as caught, pytest.raises(RuntimeError, match='interrupted'):
        warnings.simplefilter('always')
        learner(tmp_path).fit_one_cycle(4, .05, cbs=[Unstorable('odd', value), Interrupt(30)], **keep)
    said = [str(w.message) for w in caught if "does not hold" in str(w.message)]
    assert len(said) == (name != 'file')     # a file never was
    assert all('does not hold Unstorable.odd, ' in text for text in said)
    again = Unstorable('odd', value)
    calm, resumed = learner(tmp_path / 'calm'), learner(tmp_path)
    calm.fit_one_cycle(4, .05)
    expected = results(calm)
    resumed.fit_one_cycle(4, .05, cbs=again, **keep)
    assert_same(results(resumed), expected)
    assert again.n == 4 * (N_BATCH + 2)

def test_state_dict_that_cannot_be_stored(tmp_path):
    class Own(Callback):
        def state_dict(self): return dict(stream=iter(()))
        def load_state_dict(self, state): raise AssertionError('nothing was stored')
    with pytest.warns(UserWarning, match=r'does not hold Own\.state_dict'), \
         pytest.raises(RuntimeError, match='interrupted'):
        learner(tmp_path).fit_one_cycle(4, .05, cbs=[Own(), Interrupt(30)], checkpoint=KEEP)
    learner(tmp_path).fit_one_cycle(4, .05, cbs=Own(), checkpoint=KEEP)

def test_a_large_constant_that_differs_is_named(tmp_path):
    "It isn't in the file, so it must be the same."
    class Teacher(Callback):
        def __init__(self, seed): self.weights = torch.randn(50_000, generator=torch.Generator().manual_seed(seed))
    with pytest.raises(RuntimeError, match='interrupted'):
        learner(tmp_path).fit_one_cycle(4, .05, cbs=[Teacher(1), Interrupt(30)], checkpoint=KEEP)
    assert (tmp_path / 'models/run1.cycle').stat().st_size < 200_000
    message = r"cannot restore Teacher\.weights \(a constant torch.float32 \(50000,\) \w+, which isn't here\)"
    with pytest.warns(UserWarning, match=message):
        learner(tmp_path).fit_one_cycle(4, .05, cbs=Teacher(2), checkpoint=KEEP)

@pytest.mark.parametrize('start', [0, 1], ids=['aligned', 'between two whole numbers'])
@pytest.mark.parametrize('write', [lambda t: t.add_(1), lambda t: t.data.add_(1), lambda t: t.numpy().__iadd__(1)],
                         ids=['torch', '.data', 'NumPy'])
def test_a_large_tensor_that_changes_is_stored(tmp_path, write, start):
    class Sums(Callback):
        def __init__(self): self.sums = torch.zeros(50_000 + start)[start:]
        def after_batch(self): write(self.sums) if self.training and self.train_iter % 10 == 0 else None
    def fit(path, *cbs, **kwargs):
        learner(path).fit_one_cycle(4, .05, cbs=cbs, **kwargs)
        return cbs[0].sums
    expected = fit(tmp_path / 'calm', Sums())
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, Sums(), Interrupt(30), checkpoint=KEEP)
    assert torch.equal(fit(tmp_path, Sums(), checkpoint=KEEP), expected)

def test_a_large_array_that_is_only_shuffled_is_stored(tmp_path):
    "Its numbers have the same sum."
    class Shuffles(Callback):
        def __init__(self): self.numbers = np.arange(20_000)
        def before_epoch(self): np.random.default_rng(self.epoch).shuffle(self.numbers)
    def fit(path, *cbs, **kwargs):
        learner(path).fit_one_cycle(4, .05, cbs=cbs, **kwargs)
        return cbs[0].numbers
    expected = fit(tmp_path / 'calm', Shuffles())
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, Shuffles(), Interrupt(30), checkpoint=KEEP)
    assert (fit(tmp_path, Shuffles(), checkpoint=KEEP) == expected).all()

def test_the_weights_in_a_file_are_read_without_a_run(content, tmp_path):
    "As How checkpoints work says."
    (tmp_path / 'run1.cycle').write_bytes(content)
    model = learner(tmp_path).model
    model.load_state_dict(read_state(tmp_path / 'run1.cycle')['model']['weights'])
    assert model[1].num_batches_tracked == 28

@pytest.mark.parametrize('value', [
    lambda: [(i, str(i)) for i in range(300_000)], lambda: {f'{i} name': [i] for i in range(200_000)},
    lambda: [torch.tensor(1.)] * 300_000], ids=['pairs', 'lists by name', 'tensors'])
def test_what_is_long_is_read_again(value):
    "However much memory it takes for its size in the file."
    value = value()
    assert_same(load(dump(value, Standing()), Standing())[0], value)
