"""A checkpoint that was damaged is refused; what a file asks for is made only if it is on the list."""
import os
import pickle
import pickletools
import shutil
import subprocess
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
from onecycle_callback.resume.file import read_file, read_state, write_file
from onecycle_callback.resume.pickling import _in_file

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
        try: read_state(damaged, tmp_path)
        except ValueError: continue
        accepted += 1
    assert accepted == 0
    read_state(content, tmp_path)

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
    write_file(path, read_state(content, path) | dict(format='a cycle of onecycle_callback, 9'))
    with pytest.raises(ValueError, match='another version of onecycle_callback'):
        learner(tmp_path).fit_one_cycle(4, .05, checkpoint=KEEP)

class Asks:
    "An object that is read by calling `function`."
    def __init__(self, function, *args): self.how = function, args
    def __reduce__(self): return self.how

def with_value(content, name, value):
    "Return a pickle in which `value` stands after the text `name`, in a number's place."
    found = list(pickletools.genops(content))
    pieces = [content[i:j] for (_, _, i), (_, _, j) in zip(found, [*found[1:], (None, None, len(content))])]
    at = next(i for i, (_, arg, _) in enumerate(found) if arg == name) + 2     # after `MEMOIZE`
    assert found[at][0].name.startswith('BININT')
    pieces[at] = pickletools.optimize(pickle.dumps(value, 2))[2:-1]     # which leaves the memo alone
    return b''.join(piece for piece, (op, _, _) in zip(pieces, found) if op.name != 'FRAME')

WANTED = {'a class of Python': (Asks(subprocess.Popen, ['touch', 'it_ran']), 'Popen'),
          'a function': (Asks(shutil.copy, '/dev/null', 'it_ran'), 'shutil.copy'),
          'a function of torch': (Asks(torch.save, 1, 'it_ran'), 'torch.serialization.save'),
          'a method': (Asks(_in_file['_method'], 'learn', '__nothing__'), 'learn.__nothing__'),
          'a class': (Asks(_in_file['_class'], 'subprocess.Popen'), 'subprocess.Popen'),
          'another name': (Asks(_in_file['_standing'], 'subprocess'), 'subprocess')}

@pytest.mark.parametrize('wanted, name', WANTED.values(), ids=WANTED)
def test_what_a_file_may_not_ask_for(content, tmp_path, monkeypatch, wanted, name):
    "It is named before training, and the live value stays."
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'models/run1.cycle'
    state = read_state(content, path)
    evil = with_value(state['processes'][0]['carried'].numpy().tobytes(), 'calls', wanted)
    state['processes'][0]['carried'] = torch.frombuffer(bytearray(evil), dtype=torch.uint8)
    path.parent.mkdir()
    write_file(path, state)
    message = rf'cannot restore model\.4\.calls.*{name}.*the cycle resumes with what is there now'
    with pytest.warns(UserWarning, match=message):
        learner(tmp_path).fit_one_cycle(4, .05, checkpoint=KEEP)
    assert not os.path.exists('it_ran')

def test_what_runs_a_command_is_refused(tmp_path):
    "torch blocks the modules that could."
    path = tmp_path / 'run1.cycle'
    torch.save(dict(evil=Asks(os.system, 'touch it_ran')), path)
    with pytest.raises(ValueError, match='Move it away'): read_state(path.read_bytes(), path)

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

@pytest.mark.parametrize('write', [lambda t: t.add_(1), lambda t: t.data.add_(1), lambda t: t.numpy().__iadd__(1)],
                         ids=['torch', '.data', 'NumPy'])
def test_a_large_tensor_that_changes_is_stored(tmp_path, write):
    class Sums(Callback):
        def __init__(self): self.sums = torch.zeros(50_000)
        def after_batch(self): write(self.sums) if self.training and self.train_iter % 10 == 0 else None
    def fit(path, *cbs, **kwargs):
        learner(path).fit_one_cycle(4, .05, cbs=cbs, **kwargs)
        return cbs[0].sums
    expected = fit(tmp_path / 'calm', Sums())
    with pytest.raises(RuntimeError, match='interrupted'): fit(tmp_path, Sums(), Interrupt(30), checkpoint=KEEP)
    assert torch.equal(fit(tmp_path, Sums(), checkpoint=KEEP), expected)

def test_file_is_read_by_torch(content, tmp_path):
    (tmp_path / 'file').write_bytes(content)
    stored = torch.load(tmp_path / 'file', weights_only=True)
    assert stored.keys() == read_state(read_file(tmp_path / 'file'), tmp_path).keys()
