"""The objects of a training as a pickle: what stands there is a name, and reading builds only what is on a list"""

import datetime
import pickle
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from io import BytesIO
from itertools import count
from pathlib import PosixPath, WindowsPath
from sys import modules, stdlib_module_names
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace
from uuid import UUID
from weakref import ref
from zlib import crc32

import numpy as np
import torch
from fastai.torch_core import TensorBase
from fastcore.foundation import L
from torch import nn
from torch.nn.parameter import is_lazy
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from torch.utils.hooks import RemovableHandle

_standing:dict = {}     # the objects that stand in the training, by name, while a pickle is read

class Missing:
    "Stands for an object that can't be built here."
    what = 'what reading refuses to call'
    def __new__(cls, *_): return super().__new__(cls)
    def __setstate__(self, state): pass

def _missing(name):
    "Return what stands for the object of this name."
    missing = Missing()
    missing.what = name
    return missing

def _named(name): return _standing[name] if name in _standing else _missing(name)

def _method(owner, name):
    "Return a method of `owner`."
    is_method = isinstance(getattr(type(owner), name, None), FunctionType)
    return getattr(owner, name) if is_method else Missing()

def _loaded(name, state_dict):
    "Return the object of this name, which has loaded its state."
    if name not in _standing: return _missing(name)
    _standing[name].load_state_dict(state_dict)
    return _standing[name]

def _filled(name, t):
    "Return the tensor of this name with the values of `t`; `t` itself if there is none that fits."
    old = _standing.get(name)
    if old is None or (old.shape, old.dtype, old.layout) != (t.shape, t.dtype, t.layout): return t
    old.detach().copy_(t)
    return old

def _view(name, size, stride, offset):
    "Return a tensor that shares the memory of the one of this name."
    if name not in _standing: return _missing(name)
    return _standing[name].detach().as_strided(size, stride, offset)

def _as_class(cls, t): return t.as_subclass(cls) if issubclass(cls, torch.Tensor) else Missing()

def _items_of(cls, t):
    "Return the items of `t` as a list of tensors without dimensions."
    return [_as_class(cls, item) for item in t.unbind()]

def _detached(t): return t.detach()

_TORCH_CONSTANTS = torch.dtype, torch.layout, torch.memory_format

def _of_torch(name):
    "Return a constant of torch, such as a dtype."
    value = getattr(torch, name, None)
    return value if isinstance(value, _TORCH_CONSTANTS) else Missing()

_GENERATORS = torch.Generator, np.random.Generator, np.random.RandomState

def _generator_state(generator):
    "Return the state of a random generator of torch or NumPy."
    if isinstance(generator, torch.Generator): return generator.get_state()
    if isinstance(generator, np.random.Generator): return generator.bit_generator.state
    return generator.get_state(legacy=False)

def _set_generator(name, state):
    "Return the random generator of this name in this state."
    generator = _standing.get(name)
    if isinstance(generator, np.random.Generator): generator.bit_generator.state = state
    elif isinstance(generator, _GENERATORS): generator.set_state(state)
    else: return _missing(name)
    return generator

def _torch_generator(state):
    "Return a generator of torch."
    generator = torch.Generator()
    generator.set_state(state)
    return generator

def _numpy_generator(kind, state):
    "Return a generator of NumPy."
    kinds = np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64
    bits = {bits.__name__: bits for bits in kinds}[state['bit_generator']]()
    bits.state = state
    return kind(bits)

_OWN = (_named, _method, _loaded, _filled, _view, _as_class, _items_of, _detached, _of_torch, _set_generator,
        _torch_generator, _numpy_generator)
_ARRAYS = [f'numpy.{core}.multiarray.{name}' for core in ('core', '_core') for name in ('_reconstruct', 'scalar')]
_REBUILDERS = ('torch._utils._rebuild_', 'torch._tensor._rebuild_from_type_v2', 'torch.serialization._get_layout',
               '_codecs.encode', 'copyreg.__newobj__', *_ARRAYS)
_VALUES = (
    set, frozenset, bytearray, complex, range, slice, int, float, str, bool, list, dict, tuple, bytes, deque,
    defaultdict, OrderedDict, Counter, partial, SimpleNamespace, datetime.datetime, datetime.date, datetime.time,
    datetime.timedelta, datetime.timezone, Decimal, Fraction, UUID, random.Random, PosixPath, WindowsPath, L,
    TensorBase, torch.Tensor, nn.Parameter, torch.Size, torch.device, np.ndarray, np.dtype, np.random.Generator,
    np.random.RandomState, *(getattr(np.dtypes, name) for name in np.dtypes.__all__))

def full_name(
    obj # A class or a function
) -> str: # Such as `torch.nn.modules.linear.Linear`
    "Return the module and the qualified name of a class or a function."
    return f'{getattr(obj, "__module__", None)}.{getattr(obj, "__qualname__", type(obj).__qualname__)}'

def _has_storage(t):
    return isinstance(t, torch.Tensor) and not is_lazy(t) and t.layout is torch.strided and t.numel() > 0

class Names:
    "The objects that stand in every such training, such as its model, by name."
    def __init__(self,
        objects:dict # The objects by name
    ):
        self.objects, self.ids = objects, {id(obj): name for name, obj in objects.items()}
        self.storages = {t.untyped_storage().data_ptr(): name for name, t in objects.items() if _has_storage(t)}

_LARGE = 2**16     # bytes

def _is_large(value): return value.nbytes >= _LARGE and value.nbytes % 8 == 0

def _bits(value):
    "Return the bits of a large tensor or array as whole numbers; `None` if it is small, or isn't in one piece."
    if isinstance(value, np.ndarray):
        is_whole = value.flags.c_contiguous and value.flags.writeable and not value.dtype.hasobject
        return torch.from_numpy(value.reshape(-1).view(np.int64)) if is_whole and _is_large(value) else None
    if value.layout is not torch.strided or not value.is_contiguous() or not _is_large(value): return None
    try: return value.detach().as_subclass(torch.Tensor).reshape(-1).view(torch.int64)
    except RuntimeError: return None     # it starts between two whole numbers

class Constant:
    "A large tensor or array as it is at the beginning."
    def __init__(self,
        value, # The tensor or array
        bits # Its bits as whole numbers
    ):
        self.ref, self.mark = ref(value), self.mark_of(value, bits)
        checksum = crc32(memoryview(bits.cpu().numpy()))
        self.name = f'a constant {value.dtype} {tuple(value.shape)} {checksum:08x}'

    @staticmethod
    def mark_of(value, bits):
        "Return what changes when `value` does."
        return getattr(value, '_version', None), int(bits.sum())

    def is_still(self,
        value # A tensor or an array
    ) -> bool:
        "Return whether `value` is the same object and holds the same bits."
        bits = _bits(value) if self.ref() is value else None
        return bits is not None and self.mark_of(value, bits) == self.mark

class CannotStore(pickle.PicklingError): "A value that a file cannot hold."

class Scalars:
    "A list of tensors without dimensions, of one class, as a single tensor."
    def __init__(self,
        cls, # The class of each of them
        tensor # All of them, stacked
    ):
        self.cls, self.tensor = cls, tensor

class StateDict:
    "An object that stood there at the beginning, by its `state_dict`."
    def __init__(self,
        obj # An object with a `state_dict`
    ):
        self.obj = obj

def has_state_dict(
    obj # Any object
) -> bool:
    "Return whether `obj` can save itself. Ask its class, since a callback also has the attributes of its `Learner`."
    return hasattr(type(obj), 'state_dict') and hasattr(type(obj), 'load_state_dict')

_REDUCE:dict[type, Callable] = {     # how these are written, since reading refuses what pickle itself would write
    deque: lambda d: (deque, (list(d), d.maxlen)),
    frozenset: lambda s: (frozenset, (list(s),)),
    defaultdict: lambda d: (defaultdict, (d.default_factory, dict(d))),
    MethodType: lambda m: (_method, (m.__self__, m.__name__)),
    Scalars: lambda s: (_items_of, (s.cls, s.tensor)),
    torch.Generator: lambda g: (_torch_generator, (_generator_state(g),)),
    np.random.Generator: lambda g: (_numpy_generator, (np.random.Generator, _generator_state(g))),
    np.random.RandomState: lambda g: (_numpy_generator, (np.random.RandomState, _generator_state(g))),
    **{kind: lambda c: (_of_torch, (str(c).rpartition('.')[2],)) for kind in _TORCH_CONSTANTS}}

class Graph:
    "Write the objects of a training, and read them in another one, where those that stood at the beginning are filled."
    def __init__(self):
        self.classes:dict[str, type] = {full_name(cls): cls for cls in _VALUES}
        self.modules:set[str] = set()                       # of which every class may be built
        self.functions:dict[str, object] = {}
        self.constants:dict[int, Constant] = {}             # by id
        self.filled:dict[int, tuple[str, object]] = {}      # by id

    def add_class(self,
        cls # A class of an object that the training uses
    ):
        "Note a class that the training uses: it may be built, and so may others of its module if that is the user's."
        package = cls.__module__.partition('.')[0]
        if package in stdlib_module_names and package != '__main__': return
        self.classes.setdefault(full_name(cls), cls)
        if package not in ('torch', 'fastai', 'fastcore', 'numpy'): self.modules.add(cls.__module__)

    def find(self,
        name # A module and a qualified name
    ): # A class, a function, or `None`
        "Return the class or the function that reading may call by this name, `None` if there is none."
        if name in self.classes: return self.classes[name]
        module, _, short = name.rpartition('.')
        found = getattr(modules.get(module), short, None)
        if found in _OWN or name.startswith(_REBUILDERS): return found
        if not isinstance(found, type): return None
        is_layer = module.startswith(('torch.nn.', 'torch.optim.swa_utils')) and issubclass(found, nn.Module)
        return found if is_layer or module in self.modules else None

    def _reduce_class(self, cls, learning):
        "Refuse a class that reading would not know."
        if learning: self.add_class(cls)
        is_storage = cls.__module__ == 'torch' and cls.__name__.endswith('Storage')
        if not is_storage and self.find(full_name(cls)) is not cls: raise CannotStore(f'a {full_name(cls)}')
        return NotImplemented

    def _reduce_function(self, f, learning):
        "Return how to find a function that stood somewhere at the beginning."
        name = full_name(f)
        if self.find(name) is f: return NotImplemented
        if learning: self.functions[name] = f
        if self.functions.get(name) is not f: raise CannotStore(f'the function {name}')
        return _named, (name,)

    def _reduce_tensor(self, t, names, learning, is_digest):
        "Return how to make a tensor or an array, or how to fill it if it stood there at the beginning."
        if isinstance(t, torch.Tensor) and is_lazy(t): raise CannotStore('a parameter that is not initialised')
        bits = _bits(t)
        if learning and bits is not None: self.constants[id(t)] = Constant(t, bits)
        constant = self.constants.get(id(t))
        if constant is not None and constant.is_still(t): return _named, (constant.name,)
        if is_digest and bits is not None: return _named, (id(t), *Constant.mark_of(t, bits))
        return NotImplemented if isinstance(t, np.ndarray) else self._reduce_content(t, names, is_digest)

    def _reduce_content(self, t, names, is_digest):
        "Return how to make a tensor with its content, or how to fill it."
        is_dense, (name, _) = t.layout is torch.strided, self.filled.get(id(t), (None, None))
        owner = names.storages.get(t.untyped_storage().data_ptr()) if is_dense and t.numel() else None
        if owner: return _view, (owner, tuple(t.shape), t.stride(), t.storage_offset())
        bare = t.detach()
        if type(bare) is not torch.Tensor: bare = bare.as_subclass(torch.Tensor)
        is_part = is_dense and t.untyped_storage().nbytes() > t.nbytes
        if is_part: bare = bare.clone()
        if is_digest and is_dense: return _named, (name, str(t.dtype), tuple(t.shape), bare.tolist())
        if name: return _filled, (name, bare)
        if type(t) not in (torch.Tensor, nn.Parameter): return _as_class, (type(t), bare)
        return (_detached, (bare,)) if is_part or not t.is_leaf else NotImplemented

    def _learn(self, obj, name):
        "Note an object that stands there at the beginning."
        self.add_class(type(obj))
        if isinstance(obj, (torch.Tensor, *_GENERATORS)) or hasattr(obj, '__dict__'):
            self.filled[id(obj)] = name, obj

    def _reduce_object(self, obj):
        "Return how to make any other object, or how to fill it."
        name, _ = self.filled.get(id(obj), (None, None))
        if type(obj) is StateDict: return _loaded, (self.filled[id(obj.obj)][0], obj.obj.state_dict())
        if name and type(obj) in _GENERATORS: return _set_generator, (name, _generator_state(obj))
        if type(obj) in _REDUCE: return _REDUCE[type(obj)](obj)
        reduced = obj.__reduce_ex__(2)
        if not isinstance(reduced, tuple): return NotImplemented
        if not self._can_read(type(obj), *reduced): raise CannotStore(f'a {full_name(type(obj))}')
        if not name or len(reduced) < 3 or not reduced[2]: return reduced
        self._reduce_class(type(obj), False)
        return _named, (name,), reduced[2]

    def _can_read(self, cls, make, args, state=None, items=None, pairs=None, *_):
        "Return whether an object of class `cls` can be read that pickle makes in this way."
        is_listed = isinstance(make, type) or self.find(full_name(make)) is make
        return is_listed and items is None and (pairs is None or cls in (OrderedDict, Counter))

    def _pickler(self, names, learning='', is_digest=False):
        "Return a class of picklers."
        numbers, graph = count(), self
        class Pickler(pickle.Pickler):
            holds_bits = False     # whether tensors or random generators were met
            def reducer_override(self, obj):
                if id(obj) in names.ids: return _named, (names.ids[id(obj)],)
                if isinstance(obj, _FUNCTIONS): return graph._reduce_function(obj, learning)
                if isinstance(obj, type): return graph._reduce_class(obj, learning)
                if isinstance(obj, RemovableHandle): raise CannotStore('the handle of a hook')
                if isinstance(obj, Missing): raise CannotStore(f"{obj.what}, which isn't here")
                if learning and id(obj) not in graph.filled:
                    graph._learn(obj, f'{learning} {next(numbers)} {type(obj).__name__}')
                self.holds_bits |= isinstance(obj, _WITH_BITS)
                if isinstance(obj, (torch.Tensor, np.ndarray)):
                    return graph._reduce_tensor(obj, names, learning, is_digest)
                if is_digest and type(obj) is Scalars: return _named, (len(obj.tensor),)
                return graph._reduce_object(obj)
        return Pickler

    def digester(self,
        names:Names, # What stands in the training
        learning:str='' # Note what is met as standing there, under names that begin so
    ) -> Callable: # `digest(value)`; raises `CannotStore`, or what pickling raises, if `value` can't be stored
        "Return a function that returns bytes which differ if `value` does, and whether it holds tensors or generators."
        kind = self._pickler(names, learning, is_digest=True)
        def digest(value):
            pickler = kind(buffer := BytesIO(), 2)
            pickler.dump(value)
            return buffer.getvalue(), pickler.holds_bits
        return digest

    def dump(self,
        value, # Any objects
        file, # Open for writing
        names:Names|None=None # What stands in the training
    ):
        "Write `value` to `file`."
        module = SimpleNamespace(Pickler=self._pickler(names or Names({})), __name__='pickle')
        torch.save(value, file, pickle_module=module)

    def unknown(self,
        file # Open for reading
    ) -> list[str]: # Their names
        "Return the classes and functions that `file` wants to call and that aren't listed."
        found = get_unsafe_globals_in_checkpoint(file)
        file.seek(0)
        return [name for name in found if self.find(name) is None]

    def load(self,
        file, # Open for reading
        names:Names|None=None, # What stands in the training that reads
        map_location=None # As in `torch.load`
    ): # The objects, with a `Missing` for each that may not be built
        "Read what `dump` wrote, calling only what is listed."
        def called(name): return self.find(name) or type('Missing', (Missing,), dict(what=name))
        wanted = [(called(name), name) for name in get_unsafe_globals_in_checkpoint(file)]
        file.seek(0)
        _standing.update({constant.name: constant.ref() for constant in self.constants.values()})
        _standing.update(self.functions | dict(self.filled.values()) | (names.objects if names else {}))
        try:
            with safe_globals([Missing, *self.classes.values(), *wanted]):
                return torch.load(file, map_location=map_location, weights_only=True)
        finally: _standing.clear()

_FUNCTIONS = FunctionType, BuiltinFunctionType, np.ufunc
_WITH_BITS = torch.Tensor, np.ndarray, random.Random, *_GENERATORS
