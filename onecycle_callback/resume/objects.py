"""The objects of a training as JSON and blocks of memory, read back without building more than the training uses"""

# A file may come from a stranger, so it is data, and no program: JSON, behind the memory of tensors and arrays, block
# by block. A number or a text stands for itself, and `["kind", …]` for everything else: one of the kinds that this
# module knows, each a function that makes an object of arguments that it checks. `["again", 7]` is the eighth object
# once more.
#
# What stands in a training when it begins has a name: it is written as this name, and where its content may change, its
# content is filled in. So a callback's list of parameters points at the live ones after a resume. An object is built
# only if another one of its class stands there, and without calling its `__init__`, unless its class says that this is
# the way.
#
# Reading changes nothing yet: `Reader.fill` does, after everything was read. And it takes no more memory than a small
# multiple of what there is to read, whatever sizes that claims.

import datetime
import gc
import inspect
import json
import random
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from functools import WRAPPER_ASSIGNMENTS, partial
from io import BytesIO
from itertools import count
from math import prod
from operator import is_
from pathlib import Path, PosixPath, WindowsPath
from sys import modules, stdlib_module_names
from types import BuiltinFunctionType, FunctionType, GeneratorType, MemberDescriptorType, MethodType, SimpleNamespace
from typing import Any, cast
from uuid import UUID
from weakref import ref
from zlib import crc32

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.optimizer import Optimizer, OptimWrapper
from fastai.torch_core import TensorBase
from fastcore.foundation import L
from numpy.lib.format import descr_to_dtype, dtype_to_descr
from torch import nn
from torch.distributions import Distribution
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

class CannotStore(TypeError): "A value that a file cannot hold."

class Refused(ValueError): "Something that no file written here holds."

class Missing:
    "Stands for something that isn't there, or that a file may not ask for."
    def __init__(self, what): self.what = what

def full_name(obj) -> str: # Such as `torch.nn.modules.linear.Linear`
    "Return the module and the qualified name of a class or a function."
    return f'{getattr(obj, "__module__", None)}.{getattr(obj, "__qualname__", type(obj).__qualname__)}'

def has_state_dict(obj) -> bool:
    "Return whether `obj` can save itself. Ask its class, since a callback also has the attributes of its `Learner`."
    return hasattr(type(obj), 'state_dict') and hasattr(type(obj), 'load_state_dict')

def slots_of(obj):
    "Return the `__slots__` of the classes of an object, by name: what gets and sets them without checks of its class."
    return {name: slot for base in reversed(type(obj).__mro__) if '__slots__' in vars(base)
            for name, slot in vars(base).items() if isinstance(slot, MemberDescriptorType)}

def all_attributes(obj):
    "Return the attributes of an object by name."
    attributes = dict(getattr(obj, '__dict__', {}))
    for name, slot in slots_of(obj).items():
        with suppress(AttributeError): attributes[name] = slot.__get__(obj)     # it may have no value
    return attributes

# Values that every training may use: how each is taken apart, and put together. What takes a number as a size is left
# out, or is given something that lies in the file already

_FUNCTIONS = FunctionType, BuiltinFunctionType, np.ufunc
_CALLABLE = type, partial, *_FUNCTIONS     # a method would be called with what the file wants
_CONSTANTS = torch.dtype, torch.layout, torch.memory_format
_PLAIN = {int, float, bool, str, bytes, tuple, list, dict, type(None), datetime.timedelta, datetime.timezone}

def _require(condition, what):
    if not condition: raise Refused(what)

def _is(cls, arg):
    "Return `arg` if its class is `cls` itself: what others define is never called here."
    _require(type(arg) is cls, f'a {type(arg).__name__} instead of a {cls.__name__}')
    return arg

def _numbers(values): return tuple(_is(int, n) for n in values)

def _callable(f):
    _require(isinstance(f, _CALLABLE), 'this instead of a function')
    return f

def _constant(name):
    found = getattr(torch, _is(str, name), None)
    _require(isinstance(found, _CONSTANTS), 'this constant')
    return found

def _name_of(constant): return str(constant).rpartition('.')[2]

def _dtype(descr):
    dtype = descr_to_dtype(descr)
    _require(not dtype.hasobject, 'an array of objects')
    return dtype

def _fraction(n, d):
    _require(n.bit_length() + d.bit_length() < 2**16, 'a fraction of this size')     # reducing it takes its square
    return Fraction(n, d)

_VALUES:dict[type, tuple[Callable, Callable]] = {
    complex: (lambda c: (c.real, c.imag), complex),
    range: (lambda r: (r.start, r.stop, r.step), range),
    slice: (lambda s: ([s.start, s.stop, s.step],), lambda ends: slice(*_is(list, ends))),
    bytearray: (lambda b: (bytes(b),), lambda b: bytearray(_is(bytes, b))),
    deque: (lambda d: (list(d), d.maxlen), lambda items, n: deque(_is(list, items), n)),
    OrderedDict: (lambda d: (dict(d),), lambda d: OrderedDict(_is(dict, d))),
    Counter: (lambda c: (dict(c),), lambda d: Counter(_is(dict, d))),
    defaultdict: (lambda d: (d.default_factory, dict(d)),
                  lambda make, d: defaultdict(make and _callable(make), _is(dict, d))),
    partial: (lambda p: (p.func, p.args, p.keywords),
              lambda f, args, keywords: partial(_callable(f), *_is(tuple, args), **_is(dict, keywords))),
    **{kind: (lambda d: d.__reduce__()[1], kind) for kind in (datetime.datetime, datetime.date, datetime.time,
                                                              datetime.timedelta, datetime.timezone)},
    Decimal: (lambda d: (str(d),), lambda text: Decimal(_is(str, text))),
    Fraction: (lambda f: (f.numerator, f.denominator), _fraction),
    UUID: (lambda u: (u.hex,), lambda text: UUID(_is(str, text))),
    **{kind: (lambda path: (str(path),), lambda text: Path(_is(str, text))) for kind in (PosixPath, WindowsPath)},
    **{kind: (lambda constant: (_name_of(constant),), _constant) for kind in _CONSTANTS},
    torch.Size: (lambda size: (tuple(size),), lambda size: torch.Size(_numbers(_is(tuple, size)))),
    torch.device: (lambda device: (str(device),), lambda text: torch.device(_is(str, text))),
    np.dtype: (lambda dtype: (dtype_to_descr(dtype),), _dtype),
    np.generic: (lambda x: (dtype_to_descr(x.dtype), x.tobytes()),
                 lambda descr, content: np.frombuffer(_is(bytes, content), _dtype(descr))[0])}
_BUILD = {full_name(cls): build for cls, (_, build) in _VALUES.items()}

def _is_argument(arg): return isinstance(arg, _CALLABLE) or type(arg) in _PLAIN

_BIT_GENERATORS = {bits.__name__: bits for bits in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937,
                                                    np.random.Philox, np.random.SFC64)}

def _bits_of(state):
    "Return a new bit generator for a state. NumPy takes the place of the next number as it is, far outside too."
    for place, end in ((state['state'].get('pos', 0), 624), (state.get('buffer_pos', 0), 4)):
        _require(0 <= _is(int, place) <= end, f'{place}, where a random state ends at {end}')
    return _BIT_GENERATORS[state['bit_generator']]()

def _set_bits(generator, state): generator.bit_generator.state = state

# The random generators: their class, how to get their state, how to set it, and how to make one for it
_GENERATORS:dict[str, tuple[type, Callable, Callable, Callable]] = dict(
    python=(random.Random, random.Random.getstate, random.Random.setstate, lambda state: random.Random()),
    torch=(torch.Generator, torch.Generator.get_state, torch.Generator.set_state, lambda state: torch.Generator()),
    numpy=(np.random.Generator, lambda g: g.bit_generator.state, _set_bits,
           lambda state: np.random.Generator(_bits_of(state))),
    legacy=(np.random.RandomState, lambda g: g.get_state(legacy=False), np.random.RandomState.set_state,
            lambda state: np.random.RandomState(_bits_of(state))))

def new_generator(kind:str, state):
    "Return a random generator in this state; raises if it isn't one."
    _, _, set_state, make = _GENERATORS[kind]
    set_state(generator := make(state), state)
    return generator

# Which classes there may be

# An object of a layer's or an optimizer's class is built without calling anything
_ALWAYS = {full_name(cls): cls for cls in (L, SimpleNamespace, AveragedModel)}
_MODULES = (('torch.nn.modules.', nn.Module), ('torch.optim.', torch.optim.Optimizer),
            ('fastai.torch_core.', torch.Tensor), ('fastai.optimizer.', (Optimizer, OptimWrapper, FunctionType)))
_CLASSES = {full_name(cls): cls for cls in (
    object, int, float, bool, str, bytes, list, dict, set, tuple, np.ndarray, torch.Tensor, TensorBase, nn.Parameter,
    Path, *_VALUES)}
_NEVER = torch.Tensor, np.ndarray, bytes, bytearray, type, Exception     # making one may take memory, or call something
_LIBRARIES = 'torch', 'fastai', 'fastcore', 'numpy'

def _says_how(cls):
    "Return whether a class defines itself how its objects are made again."
    return (cls.__reduce__, cls.__reduce_ex__) != (object.__reduce__, object.__reduce_ex__)

def _named_classes(cls):
    "Yield the classes of the module of `cls` that its methods name."
    for method in vars(cls).values():
        code = getattr(method, '__code__', None)
        for name in code.co_names if code else ():
            found = method.__globals__.get(name)
            if isinstance(found, type) and found.__module__ == cls.__module__: yield found

def _has_storage(t):
    return isinstance(t, torch.Tensor) and not is_lazy(t) and t.layout is torch.strided and t.numel() > 0

class Standing:
    "What stands in a training: its parts, and what was met at its beginning: objects, their classes, and constants."
    def __init__(self,
        parts:Callable=dict, # Returns what is stored elsewhere, or not at all, such as the model and the data, by name
        is_plain:bool=False # Whether only plain values and tensors may be written and read
    ):
        self._parts, self.is_plain = parts, is_plain
        self.objects:dict[str, Any] = {}
        self.names:dict[int, str] = {}     # by id; `objects` keeps them alive
        self.classes:dict[str, type] = {}
        self.methods:set[tuple] = set()     # by the names of their objects, and their own
        self.constants:dict[int, tuple] = {}     # by id: a weak reference, the marks and a name
        self.stacks:dict[int, list] = {}     # lists that only grow, by id: what was in them, and that as one tensor
        self.kept:list = []     # what functions had in the variables around them
        self._seen:set[type] = set()
        self.look()

    def look(self):
        "See which parts there are now, before a save or a restore."
        self.parts, self.packed = self._parts(), dict[int, tuple]()     # lists of floats and their bytes, by id
        self.part_names = {id(obj): name for name, obj in self.parts.items()}
        self.storages = {t.untyped_storage().data_ptr(): name for name, t in self.parts.items() if _has_storage(t)}
        devices = (t.device for t in self.parts.values() if isinstance(t, torch.Tensor))
        self.device = next((device for device in devices if device.type != 'cpu'), torch.device('cpu'))

    def device_for(self,
        saved:torch.device # Not the CPU
    ) -> torch.device: # Where training is now, if it is elsewhere
        "Return the device for a tensor that was saved on another."
        is_here = saved.type == self.device.type and (saved.index or 0) < torch.get_device_module(saved).device_count()
        return saved if is_here else self.device

    def name(self, obj): return self.part_names.get(id(obj)) or self.names.get(id(obj))

    def add(self, obj, name:str):
        "Note an object under `name`, if it has none."
        if id(obj) not in self.names: self.objects[name], self.names[id(obj)] = obj, name
        self.add_class(type(obj))

    def add_class(self, cls):
        "Note that an object of `cls` stands here, and which classes its code names: it may make objects of these."
        if cls in self._seen or issubclass(cls, type): return
        self._seen.add(cls)
        package = cls.__module__.partition('.')[0]
        if package in stdlib_module_names and package != '__main__': return
        self.classes[full_name(cls)] = cls
        if package not in _LIBRARIES:
            for named in _named_classes(cls): self.add_class(named)

    def find(self, name:str): # `None` if there is none
        "Return the class that a file may ask for by this name, or a function of fastai's optimizers."
        if self.is_plain: return None
        for known in (self.classes, _ALWAYS, _CLASSES):
            if name in known: return known[name]
        module, _, short = name.rpartition('.')
        found = getattr(modules.get(module), short, None)
        is_one = any(name.startswith(prefix) and issubclass(found if isinstance(found, type) else type(found), bases)
                     for prefix, bases in _MODULES)
        return found if is_one and full_name(found) == name else None

    def may_build(self, cls) -> bool:
        "Return whether reading may make an object of `cls`."
        if not isinstance(cls, type) or issubclass(cls, _NEVER) or full_name(cls) in _CLASSES: return False
        return self.find(full_name(cls)) is cls

    def may_hold(self, owner, method:tuple) -> bool:
        "Return whether reading may make this method: those of a `Learner` load and write files."
        return method in self.methods or isinstance(owner, Callback)

    def add_constant(self, value):
        """Note what a large tensor or array holds, such as a teacher's weights: it isn't written if it stays so.

        Its name has a checksum, so that a training with another teacher doesn't take it for its own."""
        if (bits := _bits(value)) is None: return
        checksum = crc32(memoryview(bits.cpu().numpy()))
        name = f'a constant {value.dtype} {tuple(value.shape)} {checksum:08x}'
        self.constants[id(value)] = ref(value), _marks(value, bits), name

    def constant(self, value) -> str|None:
        "Return the name of `value` if it holds the same bits as at the beginning."
        known, marks, name = self.constants.get(id(value), (None, None, None))
        if known is None or known() is not value or (bits := _bits(value)) is None: return None
        return name if _marks(value, bits) == marks else None

_LARGE, _WIDTH = 2**16, 1024     # bytes, and numbers

def _bits(value):
    "Return the bits of a large tensor or array as whole numbers; `None` if it is small, or isn't in one piece."
    if value.nbytes < _LARGE or value.nbytes % 8: return None
    if isinstance(value, np.ndarray):
        is_whole = value.flags.c_contiguous and value.flags.writeable and not value.dtype.hasobject
        return torch.from_numpy(value.reshape(-1).view(np.int64)) if is_whole else None
    if value.layout is not torch.strided or not value.is_contiguous(): return None
    try: return value.detach().as_subclass(torch.Tensor).reshape(-1).view(torch.int64)
    except RuntimeError: return None     # it starts between two whole numbers

def _marks(value, bits):
    """Return what changes when `value` does, even if it is only shuffled: the sums of all rows and of all columns.

    Of changes through `.data`, torch's own version knows nothing."""
    n = len(bits) // _WIDTH * _WIDTH
    rows = bits[:n].view(-1, _WIDTH)
    return getattr(value, '_version', None), torch.cat([rows.sum(0), rows.sum(1), bits[n:]]).tolist()

# Writing

ITSELF = {str, int, float, bool, type(None)}     # what is written as it is
# What of a data loader or a sampler is the data, or is made anew
_LOADERS = DataLoaders, DataLoader, torch.utils.data.DataLoader, torch.utils.data.Sampler
THE_DATA = {'dataset', 'data_source', 'it', '_iterator', '_types', '_DataLoader__idxs', 'fake_l'}

# What `functools.wraps` copies, as in some of fastai's losses, and what fastcore 1 keeps of the arguments of `__init__`
COPIES = {*WRAPPER_ASSIGNMENTS, '__wrapped__', '__stored_args__'}

class StateDict:
    "An object that stood there at the beginning, to be written as its `state_dict`."
    def __init__(self, obj): self.obj = obj

class Setting:
    "A value that training has not changed. What fills the objects in it is called only if it is restored."
    def __init__(self, value, fills=()): self.value, self.fills = value, fills

_ENTRY, _SLACK = 100, 50_000_000     # bytes that an object takes in memory; what is allowed in any case

def _memory_for(text):
    "Return how many bytes the objects in a JSON text take: a dictionary or a set as many as four others."
    return _ENTRY * (text.count(b'[') + text.count(b'{') + 3 * (text.count(b'["dict"') + text.count(b'["set"')))

def _room_for(n_bytes):
    "Return how much memory reading may take if there are `n_bytes` to read."
    return 10 * n_bytes + _SLACK

class Writer:
    "Write objects as JSON; raises `CannotStore` for what the reader wouldn't build."
    def __init__(self,
        standing:Standing, # What stands in the training
        file=None, # Open for writing; default leave out the content of tensors and arrays
        learning:str='' # Note what is met as standing there, under names that begin so
    ):
        self.standing, self.file, self.learning = standing, file, learning
        self.holds_bits = False     # whether tensors or random generators were met
        self._tells_bits = False     # in a digest, those of a distribution are settings, as the `alpha` of a `MixUp` is
        self.variables:list = []     # what functions remember, which the file leaves out
        self._functions:set[int] = set()
        self._learned, self._count, self._n_written = count(), count(), 0
        self._seen:dict[int, int] = {}     # the numbers of the objects, by id
        self._kept:list = []     # all of them, so that their ids stay theirs
        self._blocks:dict[int, list] = {}     # by address

    def write(self, value):
        "Write `value`: the blocks, the JSON and its length."
        text = json.dumps(self.node(value), separators=(',', ':')).encode()
        if _memory_for(text) > _room_for(len(text)): raise CannotStore(f'{text.count(b"["):,} small objects')
        self.file.write(text)
        self.file.write(len(text).to_bytes(8, 'little'))

    def node(self, obj):
        "Return what to write for `obj`."
        if type(obj) in ITSELF: return obj
        key = id(obj.obj if type(obj) is StateDict else obj)
        if key in self._seen: return ['again', self._seen[key]]
        n = next(self._count)
        if type(obj) in (list, dict, set): self._seen[key] = n     # what may hold itself
        self._kept.append(obj)
        node = self._node(obj, n)
        self._seen[key] = n
        return node

    def nodes(self, values): return [each if type(each) in ITSELF else self.node(each) for each in values]

    def _node(self, obj, n):
        if id(obj) in self.standing.part_names: return ['standing', self.standing.part_names[id(obj)]]
        if type(obj) is list: return self._list(obj)
        if type(obj) in (dict, set, frozenset) and _are_alike(obj): raise CannotStore('too many keys of one hash')
        if type(obj) in (tuple, set, frozenset): return [type(obj).__name__, *self.nodes(obj)]
        if type(obj) is dict: return ['dict', *self.nodes(each for item in obj.items() for each in item)]
        if type(obj) is bytes: return ['bytes', *self._block(obj)]
        if type(obj) is StateDict: return self._state_dict(obj.obj)
        if type(obj) is Setting: return ['setting', self.node(obj.value)]
        if isinstance(obj, Missing): raise CannotStore(f"{obj.what}, which isn't here")
        if isinstance(obj, (type, *_FUNCTIONS)): return self._named(obj)
        name = self._name(obj)
        if isinstance(obj, np.ndarray): return self._array(obj)
        if isinstance(obj, torch.Tensor): return self._tensor(obj, name)
        if isinstance(obj, RemovableHandle): return self._by_name(obj, 'the handle of a hook')
        if isinstance(obj, MethodType): return self._method(obj.__self__, obj.__name__)
        return self._generator(obj, name) or self._value(obj) or self._instance(obj, name, n)

    def _name(self, obj):
        if self.learning: self.standing.add(obj, f'{self.learning} {next(self._learned)} {type(obj).__name__}')
        return self.standing.names.get(id(obj))

    def _list(self, values):
        "Return the items; a long list of floats, or of tensors without dimensions, as one block or tensor."
        packed = self.standing.packed
        is_long = len(values) > 100 or id(values) in self.standing.stacks
        kinds = set(map(type, values)) if is_long and id(values) not in packed else ()
        if kinds == {float}: packed[id(values)] = values, array('d', values).tobytes()
        if id(values) in packed: return ['floats', *self._block(packed[id(values)][1])]
        if len(kinds) == 1 and (stacked := self._stacked(values)) is not None:
            return ['scalars', self.node(type(values[0])), self.node(stacked)]
        return ['list', *self.nodes(values)]

    def _stacked(self, values):
        "Return tensors without dimensions as one; `None` if they are others, or what must stay the same object."
        if not isinstance(values[0], torch.Tensor): return None
        known, stacked = self.standing.stacks.get(id(values)) or ([], None)
        if stacked is not None and not self.file: return stacked
        if len(values) < len(known) or not all(map(is_, values, known)): known, stacked = [], None
        new, first, names = values[len(known):], values[0], self.standing.part_names
        with torch._C.DisableTorchFunctionSubclass():
            if first.ndim or first.layout is not torch.strided: return None
            if not all(t.dtype is first.dtype and not t.ndim and not t.requires_grad and id(t) not in names
                       for t in new): return None
            parts = ([] if stacked is None else [stacked]) + ([torch.stack(new)] if new else [])
            stacked = torch.cat(parts).as_subclass(torch.Tensor)
        if id(values) in self.standing.stacks: self.standing.stacks[id(values)] = [values[:], stacked]
        return stacked

    def _named(self, obj):
        "Return a class or a function that may be asked for by its name."
        name, owner = full_name(obj), getattr(obj, '__self__', None)
        if isinstance(owner, (list, dict, set, deque)): self._name(obj)     # one of many of this name
        elif self.learning: self.standing.add(obj, name)
        if not self.file: self._note_variables(obj)
        if self.standing.find(name) is obj: return ['class', name]
        return self._by_name(obj, name if isinstance(obj, type) else f'the function {name}')

    def _note_variables(self, function):
        "Note what a function remembers in the variables of the function around it, as far as it can be told."
        cells = getattr(function, '__closure__', None) or ()
        if id(function) in self._functions: return
        self._functions.add(id(function))     # it may be one of them
        for cell in cells:
            writer = Writer(self.standing)     # of its own, since it may stop halfway
            writer._functions = self._functions
            with suppress(Exception):
                value = cell.cell_contents
                if self.learning: self.standing.kept.append(value)     # so that its id stays its own
                is_tensor = isinstance(value, torch.Tensor)
                self.variables += [writer.node(value), is_tensor and (id(value), value._version), *writer.variables]

    def _by_name(self, obj, what):
        if id(obj) not in self.standing.names: raise CannotStore(what)
        return ['standing', self.standing.names[id(obj)]]

    def _state_dict(self, obj):
        self.holds_bits = True
        return ['loaded', self.standing.names[id(obj)], self.node(obj.state_dict())]

    def _method(self, owner, name):
        method = self.standing.name(owner), name
        if self.learning and method[0]: self.standing.methods.add(method)
        if not (method[0] and self.standing.may_hold(owner, method)):
            raise CannotStore(f'a method of a {full_name(type(owner))}')
        return ['method', *method]

    def _generator(self, obj, name):
        for kind, (cls, get_state, _, _) in _GENERATORS.items():
            if type(obj) is cls:
                self.holds_bits = True
                return ['generator', name, kind, self.node(get_state(obj))]

    def _value(self, obj):
        cls = next((cls for cls in (np.dtype, np.generic) if isinstance(obj, cls)), type(obj))
        if cls not in _VALUES: return None
        args = _VALUES[cls][0](obj)
        if not all(map(_is_argument, args)): raise CannotStore(f'a {full_name(cls)} of other objects')
        attributes = getattr(obj, '__dict__', None) or None     # a state dict has versions there
        return ['value', full_name(cls), *self.nodes([attributes, *args])]

    def _instance(self, obj, name, n):
        "Return how to make an object of a class of the training, or how to fill it."
        if isinstance(obj, _LOADERS): return self._loader(obj, name, n)
        cls, reduced = type(obj), cast(Any, obj.__reduce_ex__(4))
        if isinstance(reduced, str): return self._by_name(obj, f'a {full_name(cls)}')
        make, args, state, items, pairs = [*reduced, None, None, None][:5]
        is_new = getattr(make, '__name__', None) == '__newobj__'
        if is_new: args = args[1:]
        can_make = not args or issubclass(cls, tuple) if is_new else make is cls and _says_how(cls)
        if not self.standing.may_build(cls) or not can_make or items is not None or pairs is not None:
            raise CannotStore(f'a {full_name(cls)}')
        if type(state) is dict and not COPIES.isdisjoint(state):
            state = {name: value for name, value in state.items() if name not in COPIES}
        how, tells_bits = ['object', name, self.node(cls), not is_new, self.nodes(args)], self._tells_bits
        self._seen[id(obj)], self._tells_bits = n, tells_bits or isinstance(obj, Distribution)
        node = [*how, self.node(state)]
        self._tells_bits = tells_bits
        return node

    def _loader(self, loader, name, n):
        if not name: raise CannotStore(f'a {full_name(type(loader))}, which holds data')
        self._seen[id(loader)] = n
        return ['loader', name, self.node({k: v for k, v in vars(loader).items() if k not in THE_DATA})]

    def _array(self, a):
        self.holds_bits = True
        if type(a) is not np.ndarray or a.dtype.hasobject or not a.dtype.itemsize:
            raise CannotStore(f'an array of {a.dtype}')
        if name := self._constant(a): return ['standing', name]
        order:Any = 'F' if a.flags.f_contiguous and not a.flags.c_contiguous else 'C'
        if not self.file: return ['array']
        return ['array', self.node(dtype_to_descr(a.dtype)), a.shape, order, self._block(a.tobytes(order))]

    def _tensor(self, t, name):
        "Return how to make a tensor, or how to fill it if it stood there at the beginning."
        held_bits, self.holds_bits = self.holds_bits, True
        with torch._C.DisableTorchFunctionSubclass():     # or a tensor of fastai's takes ten times as long
            if is_lazy(t): raise CannotStore('a parameter that is not initialised')
            if t.layout is torch.sparse_coo:
                return ['sparse', self.node(t._indices()), self.node(t._values()), tuple(t.shape), t.is_coalesced()]
            if t.layout is not torch.strided or t.is_quantized or t.is_meta:
                raise CannotStore(f'a tensor of {t.layout}')
            if constant := self._constant(t): return ['standing', constant]
            owner = self.standing.storages.get(t.untyped_storage().data_ptr()) if t.numel() else None
            if not owner and not self.file:
                if not self._tells_bits or t.nbytes > _LARGE: return ['tensor']
                self.holds_bits = held_bits
                return ['tensor', *self._memory(t)[0]]
            where, bare = (owner, t) if owner else self._memory(t)
            place = ['tensor', name, where, _name_of(t.dtype), tuple(t.shape), bare.stride(), bare.storage_offset()]
        if owner or self.standing.is_plain: return place
        return [*place, str(t.device), self.node(type(t)), t.requires_grad and t.is_leaf]

    def _constant(self, value):
        if self.learning: self.standing.add_constant(value)
        return self.standing.constant(value) if self.file else None

    def _memory(self, t):
        "Write the memory of a tensor, once if others share it, and only what is used; return its block, and a tensor."
        bare = t.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg()
        if bare.untyped_storage().nbytes() != bare.nbytes: bare = bare.contiguous().clone()
        self._kept.append(bare)
        key, storage = bare.untyped_storage().data_ptr(), bare.untyped_storage()
        if key not in self._blocks:
            content:Any = torch.empty(0, dtype=torch.uint8, device=bare.device).set_(storage).cpu().numpy()
            self._blocks[key] = self._block(content)
        return self._blocks[key], bare

    def _block(self, content):
        "Write a block; return where it begins and ends, or for a digest, what tells it from others."
        if not self.file: return [crc32(content), len(content)]
        begin, self._n_written = self._n_written, self._n_written + len(content)
        self.file.write(content)
        return [begin, self._n_written]

# Reading: what each kind stands for. The arguments come from the file, so they are checked

_KINDS:dict[str, Callable] = {}

def _kind(name):
    """Let the function stand for a kind of node. It takes the reader and what the file says, and returns an object.

    One that yields it fills it then: what it is filled with may hold it."""
    def decorate(f):
        _KINDS[name] = f
        return f
    return decorate

def _are_alike(keys):
    "Return whether more than a hundred of `keys` have one hash: each is compared with all of these before it."
    if len(keys) <= 100: return False
    hashes = (hash(key) for key in keys if type(key) is not str and not (type(key) is int and abs(key) < 2**60))
    return np.unique(np.fromiter(hashes, np.int64), return_counts=True)[1].max(initial=0) > 100

def _keys(reader, keys):
    "Return `keys` if hashing and comparing them takes no longer than their text: a tuple is hashed wherever it stands."
    def n_left(key, n):
        for item in key if isinstance(key, (tuple, frozenset)) else (): n = n_left(item, n - 1)
        _require(n > 0, 'a key of this size')
        return n
    for key in keys: reader.take(8 * (1000 - n_left(key, 1000)))
    _require(not _are_alike(keys), 'too many keys of one hash')
    return keys

@_kind('list')
def _list(reader, *items):
    new:list = []
    yield new
    new += reader.build_all(items)

@_kind('dict')
def _dict(reader, *items):
    new:dict = {}
    yield new
    parts = reader.build_all(items)
    new.update(zip(_keys(reader, parts[::2]), parts[1::2], strict=True))

@_kind('set')
def _set(reader, *items):
    yield (new := set())
    new.update(_keys(reader, reader.build_all(items)))

@_kind('frozenset')
def _frozenset(reader, *items): return frozenset(_keys(reader, reader.build_all(items)))

@_kind('tuple')
def _tuple(reader, *items): return tuple(reader.build_all(items))

@_kind('bytes')
def _bytes(reader, *block): return reader.memory(block).numpy().tobytes()

@_kind('floats')
def _floats(reader, *block): return reader.memory(block).view(torch.float64).tolist()

@_kind('scalars')
def _scalars(reader, cls, stacked):
    cls, stacked = reader.build(cls), reader.build(stacked)
    reader.take(64 * len(_is(torch.Tensor, stacked)))
    cls = type(reader.as_class(stacked, cls))
    return [t if cls is torch.Tensor else t.as_subclass(cls) for t in stacked.unbind()]

@_kind('standing')
def _standing(reader, name):
    found = reader.named(name)
    return reader.missing(name) if found is None else found

@_kind('class')
def _class(reader, name): return reader.standing.find(_is(str, name)) or reader.missing(name)

@_kind('method')
def _method(reader, owner, name):
    found = reader.named(owner)
    is_method = isinstance(inspect.getattr_static(type(found), _is(str, name), None), FunctionType)
    may_hold = is_method and reader.standing.may_hold(found, (owner, name))
    return getattr(found, name) if may_hold else reader.missing(f'{owner}.{name}')

@_kind('value')
def _value(reader, name, *args):
    attributes, *args = reader.build_all(args)
    for arg in args:
        if isinstance(arg, Missing): return arg
        _require(_is_argument(arg), f'these arguments of {name}')
    for arg in args:     # it may copy them
        if type(arg) in (bytes, str, list, tuple, dict): reader.take(len(arg) * (_ENTRY if type(arg) is dict else 8))
    value = _BUILD[name](*args)
    if attributes: vars(value).update(_is(dict, attributes))
    return value

@_kind('object')
def _object(reader, name, cls, is_called, args, state):
    cls, args = reader.build(cls), reader.build_all(args)
    old, missing = reader.standing.objects.get(name), next((arg for arg in args if isinstance(arg, Missing)), None)
    if type(old) is cls:
        yield reader.once(name, old)
        if (new := reader.build(state)) is not None: reader.fills.append(partial(_set_state, old, new))
    elif missing or not reader.standing.may_build(cls):
        yield missing or (cls if isinstance(cls, Missing) else reader.missing(full_name(cls)))
        reader.build(state)
    else:
        _require(_says_how(cls) if is_called else not args or issubclass(cls, tuple), 'arguments for this class')
        yield (new := cls(*args) if is_called else cls.__new__(cls, *args))
        if (state := reader.build(state)) is not None: _set_state(new, state)

@_kind('loader')
def _loader(reader, name, state):
    old = reader.standing.objects.get(name)
    yield reader.once(name, old) if isinstance(old, _LOADERS) else reader.missing(name)
    state = reader.build(state)
    if isinstance(old, _LOADERS): reader.fills.append(lambda: _set_state(old, state))

@_kind('setting')
def _setting(reader, node):
    others, reader.fills = reader.fills, []
    setting = Setting(reader.build(node), reader.fills)
    reader.fills = others
    return setting

@_kind('tensor')
def _tensor(reader, name, block, dtype, size, stride, offset, device='cpu', cls=None, requires_grad=False):
    "Return the tensor of this name, which will get these values, or a new one if there is none that fits."
    cls, where = torch.Tensor if cls is None else reader.build(cls), torch.device(_is(str, device))
    if type(block) is str and not isinstance(reader.named(block), torch.Tensor): return reader.missing(block)
    t = _strided(reader.memory(block), _constant(dtype), size, stride, offset)
    old = reader.standing.objects.get(name)
    if isinstance(old, torch.Tensor) and (old.shape, old.dtype, old.layout) == (t.shape, t.dtype, t.layout):
        reader.fills.append(lambda: old.detach().copy_(t))
        return reader.once(name, old)
    if type(block) is list and where.type != 'cpu': t = t.to(reader.standing.device_for(where))
    if cls is nn.Parameter: return nn.Parameter(t, requires_grad)
    return reader.as_class(t, cls).requires_grad_(requires_grad)

def _strided(memory, dtype, size, stride, offset):
    "Return a tensor in `memory`; raises `Refused` if it doesn't fit. torch would take as much memory as it claims."
    n_items, size, stride = len(memory) // _is(torch.dtype, dtype).itemsize, _numbers(size), _numbers(stride)
    end = _is(int, offset) + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    is_inside = min(0, offset, *size, *stride) == 0 and max(end * all(size), prod(size)) <= n_items
    _require(is_inside, f'a tensor of size {size} in {len(memory)} bytes')
    return torch.empty(0, dtype=dtype, device=memory.device).set_(memory.untyped_storage(), offset, size, stride)

@_kind('sparse')
def _sparse(reader, indices, values, size, is_coalesced):
    indices, values = (_is(torch.Tensor, reader.build(t)) for t in (indices, values))
    return torch.sparse_coo_tensor(indices, values, _numbers(size), is_coalesced=_is(bool, is_coalesced),
                                   check_invariants=True)

@_kind('array')
def _array(reader, descr, shape, order, block):
    flat = np.frombuffer(reader.memory(block).numpy(), _dtype(reader.build(descr)))
    _require(prod(_numbers(shape)) == len(flat), 'an array of this shape')
    return flat.reshape(shape, order=order)

@_kind('generator')
def _generator(reader, name, kind, state):
    "Return the random generator of this name, or a new one, which will be in this state."
    new, found = new_generator(kind, state := reader.build(state)), reader.named(name) if name else None
    if type(found) is not type(new): return new
    reader.fills.append(lambda: _GENERATORS[kind][2](found, state))
    return reader.once(name, found)

@_kind('loaded')
def _loaded(reader, name, state):
    "Return the object of this name, which will load its state."
    obj, state = reader.named(name), reader.build(state)
    if not has_state_dict(obj): return reader.missing(name)
    reader.fills.append(lambda: obj.load_state_dict(state))
    return reader.once(name, obj)

def _set_state(obj, state):
    "Give an object its attributes, as pickle does."
    if hasattr(type(obj), '__setstate__'): return obj.__setstate__(state)
    state, slots = state if type(state) is tuple and len(state) == 2 else (state, None)
    if state: vars(obj).update({name: value for name, value in state.items() if not isinstance(value, Missing)})
    for name, value in (slots or {}).items():
        _require(isinstance(getattr(type(obj), name, None), MemberDescriptorType), f'a slot {name}')
        setattr(obj, name, value)

class Reader:
    "Read what a `Writer` wrote. Names resolve in this object alone: two threads may read at once."
    def __init__(self, content, standing:Standing):
        self._content, self.standing = memoryview(content), standing
        self.fills, self.unknown = list[Callable](), list[str]()
        constants = ((name, known()) for known, _, name in standing.constants.values())
        self._objects = standing.objects | {name: obj for name, obj in constants if obj is not None} | standing.parts
        self._built:list = []
        self._inside, self._holders = 0, array('q')     # the number of what is being built; objects and their holders
        self._filled:set[str] = set()
        self._blocks:dict[tuple, torch.Tensor] = {}
        self._left = _room_for(len(content))

    def read(self):
        "Return the objects, with a `Missing` for each that may not be built; change nothing."
        end = len(self._content) - 8
        text = bytes(self._content[end - int.from_bytes(self._content[end:], 'little'):end])
        self.take(_memory_for(text))
        return self.build(json.loads(text.decode()))

    def fill(self):
        "Give the objects that stand in the training what was read."
        for fill in self.fills: fill()

    def build(self, node):
        "Return the object that a node stands for."
        if type(node) in ITSELF: return node
        (kind, *args), n = _is(list, node), len(self._built)
        node.clear()     # so that the text and the objects aren't both there
        if kind == 'again': n = _is(int, *args)
        self._holders.extend((n, self._inside))
        if kind == 'again': return self._built[n]
        self._built.append(None)
        outer, self._inside = self._inside, n
        made = _KINDS[kind](self, *args)
        is_filled = isinstance(made, GeneratorType)
        self._built[n] = next(made) if is_filled else made
        if is_filled: next(made, None)
        self._inside = outer
        return self._built[n]

    def build_all(self, nodes): return [each if type(each) in ITSELF else self.build(each) for each in nodes]

    def lacking(self) -> dict[int, str]:
        "Return what is missing in each object, or in what it holds, by its id."
        found = {n: f"{obj.what}, which isn't here" for n, obj in enumerate(self._built) if isinstance(obj, Missing)}
        if not found: return {}
        holders = defaultdict(list)
        for n, holder in zip(self._holders[::2], self._holders[1::2]): holders[n].append(holder)
        for n in (queue := [*found]):
            new = {holder: found[n] for holder in holders[n] if holder not in found}
            found |= new
            queue += new
        return {id(self._built[n]): what for n, what in found.items()}

    def once(self, name, obj):
        "Return an object that stands here, which will be filled; one that is filled again and again takes its time."
        _require(name not in self._filled, f'{name} twice')
        self._filled.add(name)
        return obj

    def named(self, name): return self._objects.get(_is(str, name))

    def missing(self, what):
        "Return what stands for something that isn't there."
        self.unknown.append(_is(str, what))
        return Missing(what)

    def take(self, n_bytes):
        "Refuse what would take more memory than there is to read."
        self._left -= n_bytes
        _require(self._left >= 0, 'more than it has room for')

    def memory(self, block:Any):
        "Return the bytes of a block, or those of the tensor of this name, which it shares with all who ask for them."
        if type(block) is str:
            storage = self._objects[block].untyped_storage()
            return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        block = begin, end = _numbers(block)
        _require(0 <= begin <= end <= len(self._content), 'a block of this size')
        if block not in self._blocks:
            self.take(end - begin)
            content = bytearray(self._content[begin:end])
            self._blocks[block] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0).byte()
        return self._blocks[block]

    def as_class(self, t, cls):
        "Return a tensor as one of a class of which others stand here."
        if cls is torch.Tensor: return t
        is_one = isinstance(cls, type) and issubclass(cls, torch.Tensor) and self.standing.find(full_name(cls)) is cls
        _require(is_one, 'a tensor of this class')
        return t.as_subclass(cls)

def digest(
    value, # Any objects
    standing:Standing, # What stands in the training
    learning:str='' # Note what is met as standing there, under names that begin so
) -> tuple[str, bool, str]: # What differs if `value` does, but for tensors, which it may hold; what functions remember
    "Tell whether `value` has changed; raises `CannotStore`, or what its own methods raise, if it can't be stored."
    writer = Writer(standing, learning=learning)
    return json.dumps(writer.node(value)), writer.holds_bits, json.dumps(writer.variables)

def dump(value, standing:Standing) -> bytes:
    "Return `value` as a `Writer` writes it."
    Writer(standing, file := BytesIO()).write(value)
    return file.getvalue()

def load(content, standing:Standing) -> tuple[Any, Reader]:
    "Read objects, changing nothing; raises `Refused` if `content` holds what no `dump` writes."
    was_enabled = gc.isenabled()
    gc.disable()     # among a hundred thousand new tensors, looking for garbage takes a second
    try:
        with torch.no_grad(): return (reader := Reader(content, standing)).read(), reader
    except Refused: raise
    except Exception as e: raise Refused(f'no part of a checkpoint ({type(e).__name__}: {e})') from e
    finally:
        if was_enabled: gc.enable()
