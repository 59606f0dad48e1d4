"""The objects of a training as a pickle, whose reader builds nothing but what the training itself uses"""

# A pickle is a program: its opcodes name functions and call them. A file may come from a stranger, so the reader here
# knows few opcodes, and a single one that calls, `REDUCE`. All that it can call are the functions of this module marked
# `@in_file`: a name in a file leads to one of them or to nothing. The writer turns every object into calls of these
# functions.
#
# What stands in a training when it begins has a name: it is written as this name, and where its content may change, its
# content is filled in. So a list of the model's parameters is a list of the live ones again. An object is built only if
# another one of its class stands there, and without calling its `__init__`, unless its class says that this is the way.
#
# Reading changes nothing yet: `Reader.fill` does, after everything was read. And it takes no more memory than a small
# multiple of what there is to read, whatever sizes that claims.

import datetime
import gc
import pickle
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from functools import partial
from io import BytesIO
from itertools import count
from math import prod
from operator import is_
from pathlib import Path, PosixPath, WindowsPath
from sys import modules, stdlib_module_names
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, SimpleNamespace
from typing import Any, cast
from uuid import UUID
from weakref import ref
from zlib import crc32

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.torch_core import TensorBase
from fastcore.foundation import L
from numpy.lib.format import descr_to_dtype, dtype_to_descr
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

class CannotStore(pickle.PicklingError): "A value that a file cannot hold."

class Refused(pickle.UnpicklingError): "Something that no file written here holds."

class Missing:
    "Stands for something that isn't there, or that a file may not ask for."
    def __init__(self, what): self.what = what

def full_name(
    obj # A class or a function
) -> str: # Such as `torch.nn.modules.linear.Linear`
    "Return the module and the qualified name of a class or a function."
    return f'{getattr(obj, "__module__", None)}.{getattr(obj, "__qualname__", type(obj).__qualname__)}'

# What a file may call. Each function takes the reader, and arguments that are checked: they come from the file

_in_file:dict[str, Callable] = {}

def in_file(f):
    "Let a file call `f`."
    _in_file[f.__name__] = f
    return f

def _require(condition, what):
    if not condition: raise Refused(what)

def _is(cls, arg):
    "Return `arg` if its class is `cls` itself: what others define is never called here."
    _require(type(arg) is cls, f'a {type(arg).__name__} instead of a {cls.__name__}')
    return arg

def _numbers(values): return tuple(_is(int, n) for n in _is(tuple, values))

@in_file
def _standing(reader, name):
    "Return the object of this name."
    return reader.objects[name] if _is(str, name) in reader.objects else reader.missing(name)

@in_file
def _method(reader, owner, name):
    "Return a method of the object that is called `owner`."
    found = reader.objects.get(_is(str, owner))
    is_method = isinstance(getattr(type(found), _is(str, name), None), FunctionType)
    return getattr(found, name) if is_method else reader.missing(f'{owner}.{name}')

@in_file
def _class(reader, name): return reader.standing.find(_is(str, name)) or reader.missing(name)

@in_file
def _new(reader, name, cls, *args):
    "Return the object of this name, or a new one without calling its `__init__`; only a tuple has arguments."
    if type(found := reader.objects.get(name and _is(str, name))) is cls: return found
    _require(not args or issubclass(cls, tuple), 'arguments for this class')
    return reader.made(cls.__new__(cls, *args)) if reader.standing.may_build(cls) else reader.missing(full_name(cls))

@in_file
def _called(reader, name, cls, *args):
    "Return the object of this name, or a new one, whose class says by an own `__reduce__` that a call makes it."
    if type(found := reader.objects.get(name and _is(str, name))) is cls: return found
    can_call = reader.standing.may_build(cls) and _says_how(cls)
    return reader.made(cls(*args)) if can_call else reader.missing(full_name(cls))

@in_file
def _value(reader, name, *args):
    "Return a value of one of the types that every training may use."
    _require(all(type(arg) in _PLAIN for arg in args), f'these arguments of {name}')
    return _BUILD[name](*args)

@in_file
def _default_dict(reader, factory, items):
    _require(factory is None or isinstance(factory, (type, *_FUNCTIONS)), 'this default')
    return defaultdict(factory, _is(dict, items))

@in_file
def _partial(reader, function, args, keywords):
    _require(isinstance(function, (type, MethodType, partial, *_FUNCTIONS)), 'a partial of this')
    return partial(function, *_is(tuple, args), **_is(dict, keywords))

@in_file
def _constant(reader, name):
    "Return a constant of torch, such as a dtype."
    found = getattr(torch, _is(str, name), None)
    _require(isinstance(found, _CONSTANTS), 'this constant')
    return found

@in_file
def _storage(reader, content):
    "Return the memory of tensors, which may share it."
    return memory_of(_is(bytes, content))

def memory_of(
    content # Bytes
) -> torch.Tensor:
    "Return a copy of `content` in the memory of a tensor of bytes."
    return torch.frombuffer(bytearray(content),
                            dtype=torch.uint8) if len(content) else torch.empty(0, dtype=torch.uint8)

@in_file
def _tensor(reader, storage, dtype, size, stride, offset, device, cls=torch.Tensor, requires_grad=False):
    "Return a tensor that lies in `storage`."
    t, where = strided(_is(torch.Tensor, storage), dtype, size, stride, offset), torch.device(_is(str, device))
    if where.type != 'cpu' and torch.get_device_module(where).is_available(): t = t.to(where)
    _require(reader.standing.is_tensor_class(cls), 'a tensor of this class')
    if cls is nn.Parameter: return nn.Parameter(t, requires_grad)
    if cls is not torch.Tensor: t = t.as_subclass(cls)
    return t.requires_grad_() if requires_grad else t

@in_file
def sparse(reader, indices, values, size, is_coalesced):
    return torch.sparse_coo_tensor(_is(torch.Tensor, indices), _is(torch.Tensor, values), _numbers(size),
                                   is_coalesced=_is(bool, is_coalesced), check_invariants=True)

@in_file
def _scalars(reader, cls, stacked):
    "Return a list of tensors without dimensions."
    _require(reader.standing.is_tensor_class(cls), 'a tensor of this class')
    items = _is(torch.Tensor, stacked).unbind()
    return list(items) if cls is torch.Tensor else [t.as_subclass(cls) for t in items]

@in_file
def _view(reader, name, size, stride, offset):
    "Return a tensor that shares the memory of the one of this name."
    owner = reader.objects.get(_is(str, name))
    if not isinstance(owner, torch.Tensor): return reader.missing(name)
    _require(prod(_numbers(size)) <= owner.untyped_storage().nbytes(), 'a view of this size')
    return owner.detach().as_strided(size, stride, offset)

@in_file
def _filled(reader, name, t):
    "Return the tensor of this name, which will get the values of `t`; `t` itself if there is none that fits."
    old, t = reader.objects.get(_is(str, name)), _is(torch.Tensor, t)
    if not isinstance(old, torch.Tensor) or (old.shape, old.dtype, old.layout) != (t.shape, t.dtype, t.layout): return t
    reader.fills.append(lambda: old.detach().copy_(t))
    return old

@in_file
def _loaded(reader, name, state):
    "Return the object of this name, which will load its state."
    obj = reader.objects.get(_is(str, name))
    if not has_state_dict(obj): return reader.missing(name)
    reader.fills.append(lambda: obj.load_state_dict(state))
    return obj

@in_file
def _generator(reader, name, kind, state):
    "Return the random generator of this name, which will be set, or a new one."
    generator = reader.objects.get(name)
    if not isinstance(generator, _GENERATORS):
        if kind == 'torch': generator = torch.Generator()
        else: generator = _NUMPY_KINDS[kind](_BIT_GENERATORS[state['bit_generator']]())
    reader.fills.append(lambda: _set_generator(generator, state))
    return generator

@in_file
def _array(reader, descr, shape, is_fortran, content):
    "Return an array of NumPy, or one value of it if it has no shape."
    flat = np.frombuffer(_is(bytes, content), _dtype(descr))
    if shape is None: return flat[0]
    _require(prod(_numbers(shape)) == len(flat), 'an array of this shape')
    return flat.reshape(shape, order='F' if is_fortran else 'C').copy(order='K')

def _dtype(descr):
    dtype = descr_to_dtype(descr)
    _require(not dtype.hasobject, 'an array of objects')
    return dtype

def strided(
    memory:torch.Tensor, # Bytes
    dtype, size, stride, offset # As the methods of a tensor give them
) -> torch.Tensor:
    "Return a tensor in `memory`; raises `Refused` if it doesn't fit. torch would take as much memory as it claims."
    n_items = len(memory) // _is(torch.dtype, dtype).itemsize
    end = _is(int, offset) + sum((n - 1) * step for n, step in zip(_numbers(size), _numbers(stride), strict=True)) + 1
    is_inside = min(0, offset, *size, *stride) == 0 and max(end * all(size), prod(size)) <= n_items
    _require(is_inside, f'a tensor of size {tuple(size)} in {len(memory)} bytes')
    return torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), offset, size, stride)

_FUNCTIONS = FunctionType, BuiltinFunctionType, np.ufunc
_CONSTANTS = torch.dtype, torch.layout, torch.memory_format
_GENERATORS = torch.Generator, np.random.Generator, np.random.RandomState
_WITH_BITS = torch.Tensor, np.ndarray, random.Random, *_GENERATORS
_NUMPY_KINDS = {'Generator': np.random.Generator, 'RandomState': np.random.RandomState}
_BIT_GENERATORS = {bits.__name__: bits for bits in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937,
                                                    np.random.Philox, np.random.SFC64)}

def _generator_state(generator):
    "Return the kind of a random generator, and its state."
    if isinstance(generator, torch.Generator): return 'torch', generator.get_state()
    if isinstance(generator, np.random.Generator): return 'Generator', generator.bit_generator.state
    return 'RandomState', generator.get_state(legacy=False)

def _set_generator(generator, state):
    if isinstance(generator, np.random.Generator): generator.bit_generator.state = state
    else: generator.set_state(state)

def _fraction(n, d):
    _require(n.bit_length() + d.bit_length() < 2**16, 'a fraction of this size')     # reducing it takes its square
    return Fraction(n, d)

def _python_generator(state):
    generator = random.Random()
    generator.setstate(state)
    return generator

# The values that every training may use: how each is taken apart, and put together. What takes a number as a size is
# left out, or is given something that lies in the file already
_PLAIN = {int, float, bool, str, bytes, tuple, list, dict, type(None), datetime.timedelta, datetime.timezone}
_VALUES:dict[type, tuple[Callable, Callable]] = {
    complex: (lambda c: (c.real, c.imag), complex),
    range: (lambda r: (r.start, r.stop, r.step), range),
    slice: (lambda s: (s.start, s.stop, s.step), slice),
    deque: (lambda d: (list(d), d.maxlen), deque),
    OrderedDict: (lambda d: (dict(d),), OrderedDict),
    Counter: (lambda c: (dict(c),), Counter),
    **{kind: (lambda d: d.__reduce__()[1], kind) for kind in (datetime.datetime, datetime.date, datetime.time,
                                                              datetime.timedelta, datetime.timezone)},
    Decimal: (lambda d: (str(d),), Decimal),
    Fraction: (lambda f: (f.numerator, f.denominator), _fraction),
    UUID: (lambda u: (u.int,), lambda n: UUID(int=n)),
    random.Random: (lambda r: (r.getstate(),), _python_generator),
    **{kind: (lambda path: (str(path),), Path) for kind in (PosixPath, WindowsPath)},
    torch.Size: (lambda size: (tuple(size),), lambda size: torch.Size(_numbers(size))),
    torch.device: (lambda device: (str(device),), torch.device)}
_BUILD = {cls.__name__: build for cls, (_, build) in _VALUES.items()} | dict(dtype=_dtype)

# What else every training may use. An object of a layer's or an optimizer's class is built without calling anything
_ALWAYS = {full_name(cls): cls for cls in (L, SimpleNamespace, AveragedModel)}
_MODULES = (('torch.nn.modules.', nn.Module), ('torch.optim.', torch.optim.Optimizer),
            ('fastai.torch_core.', torch.Tensor))
_CLASSES = {full_name(cls): cls for cls in (
    object, int, float, bool, str, bytes, list, dict, set, tuple, frozenset, defaultdict, partial, np.ndarray,
    torch.Tensor, TensorBase, nn.Parameter, Path, *_VALUES)}
_NEVER = torch.Tensor, np.ndarray, bytes, bytearray, type, Exception     # making one may take memory, or call something

def _says_how(cls):
    "Return whether a class defines itself how its objects are made again."
    return (cls.__reduce__, cls.__reduce_ex__) != (object.__reduce__, object.__reduce_ex__)

def has_state_dict(
    obj # Any object
) -> bool:
    "Return whether `obj` can save itself. Ask its class, since a callback also has the attributes of its `Learner`."
    return hasattr(type(obj), 'state_dict') and hasattr(type(obj), 'load_state_dict')

# What stands in a training

def _has_storage(t):
    return isinstance(t, torch.Tensor) and not is_lazy(t) and t.layout is torch.strided and t.numel() > 0

class Parts:
    "Objects that are stored elsewhere, or not at all, such as the model and the data, by name."
    def __init__(self,
        objects:dict # The objects by name
    ):
        self.objects, self.names = objects, {id(obj): name for name, obj in objects.items()}
        self.storages = {t.untyped_storage().data_ptr(): name for name, t in objects.items() if _has_storage(t)}

_LIBRARIES = 'torch', 'fastai', 'fastcore', 'numpy'

def _named_classes(cls):
    "Yield the classes of the module of `cls` that its methods name."
    for method in vars(cls).values():
        code = getattr(method, '__code__', None)
        for name in code.co_names if code else ():
            found = method.__globals__.get(name)
            if isinstance(found, type) and found.__module__ == cls.__module__: yield found

class Standing:
    "What was met in a training at its beginning: objects by name, the classes of objects, and constants."
    def __init__(self):
        self.objects:dict[str, Any] = {}
        self.names:dict[int, str] = {}     # by id; `objects` keeps them alive
        self.classes:dict[str, type] = {}
        self.constants:dict[int, Constant] = {}     # by id
        self._seen:set[type] = set()

    def add(self,
        obj, # Any object
        name:str # What to call it
    ):
        "Note an object under `name`, if it has none."
        if id(obj) not in self.names: self.objects[name], self.names[id(obj)] = obj, name
        self.add_class(type(obj))

    def add_class(self,
        cls # The class of an object
    ):
        "Note that an object of `cls` stands here, and which classes its code names: it may make objects of these."
        if cls in self._seen or issubclass(cls, type): return
        self._seen.add(cls)
        package = cls.__module__.partition('.')[0]
        if package in stdlib_module_names and package != '__main__': return
        self.classes[full_name(cls)] = cls
        if package not in _LIBRARIES:
            for named in _named_classes(cls): self.add_class(named)

    def find(self,
        name:str # A module and a qualified name
    ): # `None` if there is none
        "Return the class that a file may call by this name."
        if name in self.classes: return self.classes[name]
        if name in _ALWAYS: return _ALWAYS[name]
        if name in _CLASSES: return _CLASSES[name]
        module, _, short = name.rpartition('.')
        found = getattr(modules.get(module), short, None)
        is_one = any(module.startswith(prefix) and isinstance(found, type) and issubclass(found, base)
                     for prefix, base in _MODULES)
        return found if is_one and full_name(found) == name else None

    def may_build(self,
        cls # What a file gave as a class
    ) -> bool:
        "Return whether reading may make an object of `cls`."
        if not isinstance(cls, type) or issubclass(cls, _NEVER) or full_name(cls) in _CLASSES: return False
        return self.find(full_name(cls)) is cls

    def is_tensor_class(self,
        cls # What a file gave as a class
    ) -> bool:
        "Return whether tensors of `cls` stand here."
        return isinstance(cls, type) and issubclass(cls, torch.Tensor) and self.find(full_name(cls)) is cls

# What of a data loader or a sampler is the data, or is made anew
_LOADERS = DataLoaders, DataLoader, torch.utils.data.DataLoader, torch.utils.data.Sampler
THE_DATA = {'dataset', 'data_source', 'it', '_iterator', '_types', '_DataLoader__idxs'}

_LARGE = 2**16     # bytes

def _bits(value):
    "Return the bits of a large tensor or array as whole numbers; `None` if it is small, or isn't in one piece."
    if value.nbytes < _LARGE or value.nbytes % 8: return None
    if isinstance(value, np.ndarray):
        is_whole = value.flags.c_contiguous and value.flags.writeable and not value.dtype.hasobject
        return torch.from_numpy(value.reshape(-1).view(np.int64)) if is_whole else None
    if value.layout is not torch.strided or not value.is_contiguous(): return None
    try: return value.detach().as_subclass(torch.Tensor).reshape(-1).view(torch.int64)
    except RuntimeError: return None     # it starts between two whole numbers

class Constant:
    """A large tensor or array as it is at the beginning, such as a teacher's weights: it isn't written if it stays so.

    Its name ends with a checksum, so that a training with another teacher doesn't take it for its own."""
    def __init__(self,
        value, # The tensor or array
        bits # Its bits as whole numbers
    ):
        self.ref, self.mark = ref(value), self.mark_of(value, bits)
        checksum = crc32(memoryview(bits.cpu().numpy()))
        self.name = f'a constant {value.dtype} {tuple(value.shape)} {checksum:08x}'

    @staticmethod
    def mark_of(value, bits):
        "Return what changes when `value` does: of changes through `.data`, torch knows nothing."
        return getattr(value, '_version', None), int(bits.sum())

    def is_still(self,
        value # A tensor or an array
    ) -> bool:
        "Return whether `value` is the same object and holds the same bits."
        bits = _bits(value) if self.ref() is value else None
        return bits is not None and self.mark_of(value, bits) == self.mark

# Writing

class Scalars:
    """A list of tensors without dimensions, such as the losses of all batches, to be written as one tensor.

    The list grows from save to save, so what was stacked in the last one is stacked no more."""
    def __init__(self, values, begin=None):
        self.items, self.kind, self._begin = list(values), type(values[0]), begin
        self._stacked:Any = None

    @classmethod
    def of(cls, values, parts, last=None):
        "Return a list as `Scalars`; `None` if it is another list, or holds what must stay the same object."
        if type(values) is not list or not values or not isinstance(values[0], torch.Tensor): return None
        with torch._C.DisableTorchFunctionSubclass():     # or a tensor of fastai's takes ten times as long
            first, begin = values[0], last if last is not None and last._begins(values) else None
            new = values[len(begin.items) if begin else 0:]
            is_alike = all(type(t) is type(first) and t.dtype is first.dtype and not t.requires_grad for t in new)
            if first.ndim or first.layout is not torch.strided or not is_alike: return None
            return None if any(id(t) in parts.names for t in new) else cls(values, begin)

    def _begins(self, values):
        "Return whether a list begins with these tensors, as they were when they were stacked."
        is_same = self._stacked is not None and len(values) >= len(self.items) and all(map(is_, self.items, values))
        return is_same and self._version == sum(t._version for t in self.items)

    def stacked(self):
        "Return all of them as one tensor."
        if self._stacked is None:
            with torch._C.DisableTorchFunctionSubclass():
                new = self.items[len(self._begin.items) if self._begin else 0:]
                tensors = ([self._begin.stacked()] if self._begin else []) + ([torch.stack(new)] if new else [])
                self._stacked, self._begin = torch.cat(tensors).as_subclass(torch.Tensor), None
                self._version = sum(t._version for t in self.items)
        return self._stacked

class StateDict:
    "An object that stood there at the beginning, to be written as its `state_dict`."
    def __init__(self, obj): self.obj = obj

class _Made:
    "Something to be written as a call."
    def __init__(self, *call): self.call = call

class Writer(pickle.Pickler):
    "Write objects as calls of the functions above; raises `CannotStore` for what the reader wouldn't build."
    holds_bits = False     # whether tensors or random generators were met
    def __init__(self,
        file, # Open for writing
        standing:Standing, # What stood in the training at its beginning
        parts:Parts, # What is stored elsewhere
        learning:str='', # Note what is met as standing there, under names that begin so
        is_digest:bool=False # Leave out the content of tensors and arrays
    ):
        super().__init__(file, 4)
        self.standing, self.parts, self.learning, self.is_digest = standing, parts, learning, is_digest
        self.numbers, self.storages = count(), dict[int, tuple]()

    def reducer_override(self, obj):
        "Return the function to call for `obj`, and its arguments."
        if id(obj) in self.parts.names: return _standing, (self.parts.names[id(obj)],)
        if isinstance(obj, type): return self._class(obj)
        if isinstance(obj, _FUNCTIONS): return self._function(obj)
        if isinstance(obj, Missing): raise CannotStore(f"{obj.what}, which isn't here")
        if type(obj) is _Made: return obj.call
        if type(obj) in (Scalars, StateDict): return self._form(obj)
        if self.learning: self.standing.add(obj, f'{self.learning} {next(self.numbers)} {type(obj).__name__}')
        self.holds_bits = self.holds_bits or isinstance(obj, _WITH_BITS)
        return self._object(obj, self.standing.names.get(id(obj)))

    def _form(self, form):
        self.holds_bits = True
        if type(form) is StateDict: return _loaded, (self.standing.names[id(form.obj)], form.obj.state_dict())
        return _scalars, (form.kind, None if self.is_digest else form.stacked())

    def _class(self, cls):
        name = full_name(cls)
        if self.learning: self.standing.add(cls, name)
        if self.standing.find(name) is cls: return _class, (name,)
        return self._by_name(cls, name)

    def _function(self, f):
        name = full_name(f)
        if _in_file.get(f.__name__) is f: return NotImplemented
        if self.learning: self.standing.add(f, name)
        return self._by_name(f, f'the function {name}')

    def _by_name(self, obj, what):
        if id(obj) not in self.standing.names: raise CannotStore(what)
        return _standing, (self.standing.names[id(obj)],)

    def _object(self, obj, name):
        if isinstance(obj, (torch.Tensor, np.ndarray)): return self._tensor_or_array(obj, name)
        if isinstance(obj, _GENERATORS): return _generator, (name, *_generator_state(obj))
        if isinstance(obj, _CONSTANTS): return _constant, (str(obj).rpartition('.')[2],)
        if isinstance(obj, np.dtype): return _value, ('dtype', dtype_to_descr(obj))
        if isinstance(obj, np.generic): return _array, (dtype_to_descr(obj.dtype), None, False, obj.tobytes())
        if isinstance(obj, RemovableHandle): return self._by_name(obj, 'the handle of a hook')
        if isinstance(obj, MethodType): return _method, (self._name_of(obj.__self__), obj.__name__)
        if type(obj) is defaultdict: return _default_dict, (obj.default_factory, dict(obj))
        if type(obj) is partial: return _partial, (obj.func, obj.args, obj.keywords)
        if type(obj) in _VALUES: return _value, (type(obj).__name__, *_VALUES[type(obj)][0](obj))
        return self._instance(obj, name)

    def _name_of(self, owner):
        name = self.parts.names.get(id(owner)) or self.standing.names.get(id(owner))
        if name is None: raise CannotStore(f'a method of a {full_name(type(owner))}')
        return name

    def _instance(self, obj, name):
        "Return how to make an object of a class of the training, or how to fill it."
        if isinstance(obj, _LOADERS): return self._loader(obj, name)
        cls, reduced = type(obj), cast(Any, obj.__reduce_ex__(4))
        if isinstance(reduced, str): return self._by_name(obj, f'a {full_name(cls)}')
        if not self.standing.may_build(cls): raise CannotStore(f'a {full_name(cls)}')
        make, args, state, items, pairs = [*reduced, None, None, None][:5]
        is_new = getattr(make, '__name__', None) == '__newobj__'
        if is_new: args = args[1:]
        can_make = is_new and (not args or issubclass(cls, tuple)) or make is cls and _says_how(cls)
        if not can_make or items is not None or pairs is not None: raise CannotStore(f'a {full_name(cls)}')
        return _new if is_new else _called, (name, cls, *args), state

    def _loader(self, loader, name):
        if not name: raise CannotStore(f'a {full_name(type(loader))}, which holds data')
        return _standing, (name,), {name: value for name, value in vars(loader).items() if name not in THE_DATA}

    def _tensor_or_array(self, t, name):
        "Return how to make a tensor or an array, or how to fill it if it stood there at the beginning."
        if isinstance(t, torch.Tensor) and is_lazy(t): raise CannotStore('a parameter that is not initialised')
        bits = _bits(t) if self.learning or id(t) in self.standing.constants else None
        if self.learning and bits is not None: self.standing.constants[id(t)] = Constant(t, bits)
        constant = self.standing.constants.get(id(t))
        if constant is not None and constant.is_still(t): return _standing, (constant.name,)
        return self._array(t) if isinstance(t, np.ndarray) else self._tensor(t, name)

    def _array(self, a):
        if type(a) is not np.ndarray or a.dtype.hasobject or not a.dtype.itemsize:
            raise CannotStore(f'an array of {a.dtype}')
        if self.is_digest: return _standing, ('',)
        is_fortran = a.flags.f_contiguous and not a.flags.c_contiguous
        return _array, (dtype_to_descr(a.dtype), a.shape, is_fortran, a.tobytes('F' if is_fortran else 'C'))

    def _tensor(self, t, name):
        if t.layout is torch.sparse_coo: return sparse, (t._indices(), t._values(), tuple(t.shape), t.is_coalesced())
        if t.layout is not torch.strided or t.is_quantized or t.is_meta: raise CannotStore(f'a tensor of {t.layout}')
        owner = self.parts.storages.get(t.untyped_storage().data_ptr()) if t.numel() else None
        if owner: return _view, (owner, tuple(t.shape), t.stride(), t.storage_offset())
        if self.is_digest: return _standing, ('',)
        with torch._C.DisableTorchFunctionSubclass(): made = self._content(t)
        return (_filled, (name, _Made(made[0], made[1][:-2]))) if name else made

    def _content(self, t):
        "Return how to make a tensor. Its memory is written once if others share it, and only the part that is used."
        bare = t.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg()
        if bare.untyped_storage().nbytes() != bare.nbytes: bare = bare.contiguous().clone()
        key, storage = bare.untyped_storage().data_ptr(), bare.untyped_storage()
        if key not in self.storages:
            content = torch.empty(0, dtype=torch.uint8).set_(storage).cpu().numpy().tobytes()
            self.storages[key] = _Made(_storage, (content,)), bare     # which keeps the memory from being used again
        place = bare.dtype, tuple(bare.shape), bare.stride(), bare.storage_offset(), str(bare.device)
        return _tensor, (self.storages[key][0], *place, type(t), t.requires_grad and t.is_leaf)

# Reading

class _Call:
    "What a file may call: only `Reader.find_class` makes one."
    def __init__(self, f): self.f = f

def _check_key(key, left=1000):
    "Refuse a key whose hash would take long: that of a tuple is computed anew at each of its places."
    for item in key if isinstance(key, (tuple, frozenset)) else ():
        left = _check_key(item, left - 1)
    _require(left > 0, 'a key of this size')
    return left

_ENTRY, _SLACK = 240, 2**25     # bytes that an opcode may take in memory; what is allowed in any case

class Reader(pickle._Unpickler):
    """Read what a `Writer` wrote. Python's own unpickler in C can't be told what to call, so this is the one in Python.

    Names resolve in this object alone: two threads may read at once."""
    def __init__(self,
        content, # Bytes
        standing:Standing, # What stood in the training at its beginning
        parts:Parts # What is stored elsewhere
    ):
        super().__init__(BytesIO(content))
        self.standing, self.fills, self.unknown = standing, list[Callable](), list[str]()
        constants = {constant.name: constant.ref() for constant in standing.constants.values()}
        self.objects = standing.objects | {name: obj for name,
                                           obj in constants.items() if obj is not None} | parts.objects
        self._fillable = {id(obj) for obj in standing.objects.values() if not isinstance(obj, (type, *_FUNCTIONS))}
        self._made:dict[int, Any] = {}     # by id, which stays theirs
        self._left = 10 * len(content) + _SLACK

    def fill(self):
        "Give the objects that stand in the training what was read."
        for fill in self.fills: fill()

    def missing(self, what):
        "Return what stands for something that isn't there."
        self.unknown.append(what)
        return Missing(what)

    def made(self, obj):
        "Note an object that was made here, so that it may be given a state."
        self._made[id(obj)] = obj
        return obj

    def take(self, n_bytes):
        "Refuse what would take more memory than there is to read."
        self._left -= n_bytes
        _require(self._left >= 0, 'more than it has room for')

    def call(self, f): return _Call(f)

    def find_class(self, module, name):
        "Return what a file may call by this name; nothing is imported."
        f = _in_file.get(name) if module == __name__ else bytearray if (module,
                                                                        name) == ('builtins', 'bytearray') else None
        if f is bytearray: return _Call(lambda reader, content: bytearray(memoryview(content)))     # not of a number
        return self.missing(f'{module}.{name}') if f is None else _Call(f)

    def _reduce(self):
        args, call = self.stack.pop(), self.stack[-1]
        missing = [each for each in (call, *args) if isinstance(each, Missing)]
        if missing:
            self.stack[-1] = missing[0]
            return
        _require(type(call) is _Call and type(args) is tuple, 'a call of something else')
        self.take(sum(len(arg) for arg in args if isinstance(arg, (bytes, str, list, tuple, dict))) + _ENTRY)
        self.stack[-1] = call.f(self, *args)

    def _build(self):
        state, obj = self.stack.pop(), self.stack[-1]
        if isinstance(obj, Missing): return
        _require(id(obj) in self._made or id(obj) in self._fillable, 'a state of this object')
        if id(obj) in self._made: _set_state(obj, state)
        else: self.fills.append(lambda: _set_state(obj, state))

    def _append_items(self, items):
        _require(type(self.stack[-1]) is list, 'items of something else')
        self.stack[-1].extend(items)

    def _set_items(self, items):
        _require(type(self.stack[-1]) in (dict, OrderedDict), 'entries of something else')
        for key, value in zip(items[::2], items[1::2], strict=True):
            _check_key(key)
            self.stack[-1][key] = value

    def _add_items(self):
        items = self.pop_mark()
        _require(type(self.stack[-1]) is set, 'members of something else')
        for item in items: _check_key(item)
        self.stack[-1].update(items)

    def _frozen_set(self):
        items = self.pop_mark()
        for item in items: _check_key(item)
        self.append(frozenset(items))

    def _append(self): self._append_items([self.stack.pop()])

    def _appends(self): self._append_items(self.pop_mark())

    def _set_item(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _set_all(self): self._set_items(self.pop_mark())

    def _floats(self):
        "Read all numbers that follow one another, as in a list: a hundred thousand take a moment instead of a second."
        self.load_binfloat()
        frame = self._unframer.current_frame
        if frame is None: return
        rest = np.frombuffer(frame.getbuffer(), np.uint8)[frame.tell():]
        cells = rest[:len(rest) // 9 * 9].reshape(-1, 9)
        n = int(np.argmin(np.append(cells[:, 0] == pickle.BINFLOAT[0], False)))
        self.stack.extend(np.ascontiguousarray(cells[:n, 1:]).view('>f8').ravel().tolist())
        frame.seek(9 * n, 1)

def _set_state(obj, state):
    "Give an object its attributes, as pickle does."
    if hasattr(type(obj), '__setstate__'): return obj.__setstate__(state)
    state, slots = state if type(state) is tuple and len(state) == 2 else (state, None)
    if state: vars(obj).update({name: value for name, value in state.items() if not isinstance(value, Missing)})
    for name, value in (slots or {}).items():
        _require(isinstance(getattr(type(obj), name, None), MemberDescriptorType), f'a slot {name}')
        setattr(obj, name, value)

def _taking(load):
    "Return `load` as a method that counts the memory which it takes."
    def method(self):
        self.take(_ENTRY)
        load(self)
    return method

def _opcodes(own, names):
    "Return what to do at each opcode: those of `names` are read as pickle does."
    known = pickle._Unpickler.dispatch
    taking = {'EMPTY_LIST', 'EMPTY_DICT', 'EMPTY_SET', 'MARK', 'TUPLE1', 'MEMOIZE', 'BINPUT', 'LONG_BINPUT'}
    opcodes = {getattr(pickle, name)[0]: name for name in names.split()}
    return own | {code: _taking(known[code]) if name in taking else known[code] for code, name in opcodes.items()}

Reader.dispatch = _opcodes(
    {code[0]: getattr(Reader, name) for code, name in {
        pickle.REDUCE: '_reduce', pickle.BUILD: '_build', pickle.APPEND: '_append', pickle.APPENDS: '_appends',
        pickle.SETITEM: '_set_item', pickle.SETITEMS: '_set_all', pickle.ADDITEMS: '_add_items',
        pickle.FROZENSET: '_frozen_set', pickle.BINFLOAT: '_floats'}.items()},
    """PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST
    EMPTY_DICT EMPTY_SET BINGET LONG_BINGET MEMOIZE STACK_GLOBAL
    BINPUT LONG_BINPUT GLOBAL BINPERSID""" )

def digest(
    value, # Any objects
    standing:Standing, # What stood in the training at its beginning
    parts:Parts, # What is stored elsewhere
    learning:str='' # Note what is met as standing there, under names that begin so
) -> tuple[bytes, bool]: # Bytes that differ if `value` does, but for tensors; whether it holds tensors or generators
    "Tell whether `value` has changed; raises `CannotStore`, or what pickling raises, if it can't be stored."
    writer = Writer(file := BytesIO(), standing, parts, learning, is_digest=True)
    writer.dump(value)
    return file.getvalue(), writer.holds_bits

def dump(
    value, # Any objects
    standing:Standing, # What stood in the training at its beginning
    parts:Parts # What is stored elsewhere
) -> torch.Tensor: # Bytes
    "Return `value` as a pickle."
    Writer(file := BytesIO(), standing, parts).dump(value)
    return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)

@contextmanager
def _uncollected():
    "Let Python look for no garbage during this context: among a hundred thousand new tensors it takes a second."
    was_enabled = gc.isenabled()
    gc.disable()
    try: yield
    finally:
        if was_enabled: gc.enable()

def load(
    content:torch.Tensor, # What `dump` returned, perhaps in an earlier process
    standing:Standing, # What stood in this training at its beginning
    parts:Parts # What is stored elsewhere
) -> tuple[Any, Reader]: # The objects, with a `Missing` for each that may not be built; the reader, which can `fill`
    "Read a pickle, changing nothing; raises `Refused` if it holds what no `dump` writes."
    reader = Reader(content.numpy().tobytes(), standing, parts)
    try:
        with _uncollected(), torch.no_grad(): return reader.load(), reader
    except Refused: raise
    except Exception as e: raise Refused(f'no part of a checkpoint ({type(e).__name__}: {e})') from e
