"""Argument validation and fastai's aliases"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial, wraps
from inspect import Parameter, signature
from math import inf
from numbers import Integral, Real
from typing import Any, Concatenate, ParamSpec, TypeVar

_WORDS = dict(ge='at least', gt='above', le='at most', lt='below')

@dataclass(frozen=True)
class Bounds:
    "An interval of numbers. `x in bounds` is false for `nan`, since every comparison with it is."
    ge:float|None = None # The smallest number allowed
    gt:float|None = None # Numbers must be above this one
    le:float|None = None # The largest number allowed
    lt:float|None = None # Numbers must be below this one; `inf`: they must be finite

    @property
    def limits(self) -> dict:
        "The limits that are set, by name."
        return {name: getattr(self, name) for name in _WORDS if getattr(self, name) is not None}

    def __contains__(self, x): return all(getattr(operator, name)(x, limit) for name, limit in self.limits.items())

    def describe(self,
        noun:str # What is limited, with its article: `a number`
    ) -> str: # `a number above 0`
        "Return the interval in words; with two limits, the `noun` is left out."
        if self.ge is not None and self.le is not None: return f'between {self.ge} and {self.le}'
        parts = [f'{_WORDS[name]} {limit}' for name, limit in self.limits.items() if abs(limit) != inf]
        if len(parts) == 2: return ' and '.join(parts)
        if self.lt == inf: noun = noun.replace('a ', 'a finite ', 1)
        return ' '.join([noun, *parts]).replace(' at ', ' of at ')

POSITIVE = Bounds(gt=0, lt=inf)
NOT_NEGATIVE = Bounds(ge=0, lt=inf)
FINITE = Bounds(gt=-inf, lt=inf)
COUNT = Bounds(ge=1)

def _as_float(number):
    "Return `number` as a float, an infinite one if it is a whole number beyond a float's range."
    try: return float(number)
    except OverflowError: return inf if number > 0 else -inf

def check_number(
    name:str, # Name of the argument, for the message
    value, # What the user gave: a Python or NumPy number, or a tensor without dimensions
    bounds:Bounds, # The numbers allowed
    hint:str='' # What to add to the description of `bounds`
) -> float: # The same number as a Python float
    "Return `value` as a float; raises `TypeError` if it isn't a number, `ValueError` if it isn't within `bounds`."
    allowed = bounds.describe('a number') + hint
    number = value.item() if getattr(value, 'ndim', None) == 0 else value
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f'{name} must be {allowed}, got {value!r}')
    if (x := _as_float(number)) not in bounds: raise ValueError(f'{name} must be {allowed}, got {number}')
    return x

def check_whole(
    name:str, # Name of the argument, for the message
    value, # What the user gave
    bounds:Bounds=COUNT, # The numbers allowed
    hint:str='' # What to add to the description of `bounds`
) -> int: # The same number as a Python int
    "Return `value` as an int; raises `TypeError` if it isn't a whole number, `ValueError` if it isn't within `bounds`."
    allowed = bounds.describe('a whole number')
    allowed = (allowed if allowed.startswith('a ') else f'a whole number {allowed}') + hint
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{name} must be {allowed}, got {value!r}')
    if value not in bounds: raise ValueError(f'{name} must be {allowed}, got {value}')
    return int(value)

def check_flag(
    name:str, # Name of the argument, for the message
    value # What the user gave
) -> bool: # The same flag
    "Return `value` if it is `True` or `False`; raises `TypeError` if it isn't."
    if not isinstance(value, bool): raise TypeError(f'{name} must be True or False, got {value!r}')
    return value

def as_list(
    value # What the user gave
) -> list|None: # Its elements
    "Return the elements of a list, a tuple, an `L`, an array or a tensor with one dimension, `None` for anything else."
    if isinstance(value, (str, bytes, dict, set)) or getattr(value, 'ndim', 1) != 1: return None
    try: return list(value)
    except TypeError: return None

_Fields = ParamSpec('_Fields')
_Result = TypeVar('_Result')

def takes_fields_of(
    cls:Callable[_Fields, Any], # A dataclass
    n_positional:int # How many of its fields may be positional arguments
) -> Callable[[Callable[..., _Result]], Callable[Concatenate[Any, _Fields], _Result]]: # A decorator
    "Replace `**schedule` in the signature of a method with the fields of `cls`."
    def decorate(f):
        sig = signature(f)
        own = [p for p in sig.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        first, last = ([p for p in own if (p.kind is Parameter.KEYWORD_ONLY) == by_name] for by_name in (False, True))
        fields = list(signature(cls).parameters.values())
        rest = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in fields[n_positional:]]
        f.__signature__ = sig.replace(parameters=[*first, *fields[:n_positional], *rest, *last])
        f.__delwrap__ = cls
        return f
    return decorate

_NEAR = dict(lr='max_lr', learning_rate='max_lr', epochs='cycle_len', callbacks='cbs', weight_decay='wd',
             restart='checkpoint=CycleCheckpoint(…, restart=True)', every='checkpoint=CycleCheckpoint(…, every=…)')

def _hint(name, known):
    "Return a question for the argument that was perhaps meant by `name`, out of those that are `known`."
    meant = _NEAR.get(name, '')
    if meant.partition('=')[0] not in known: meant = next(iter(get_close_matches(name, known, 1)), '')
    return meant and f': did you mean {meant}?'

FASTAI_NAMES = dict(n_epoch='cycle_len', cyc_len='cycle_len', lr_max='max_lr', div='div_factor', div_final='final_div')

# fastai 2's `fit_one_cycle`; a call with more positional arguments than ours takes can only mean these
_FASTAI_ORDER = 'n_epoch', 'lr_max', 'div', 'div_final', 'pct_start', 'wd', 'moms', 'cbs', 'reset_opt', 'start_epoch'

def _positional_names(params, n, aliases):
    "Return the names of `n` positional arguments in a call of a method with `params`."
    ours = [p.name for p in params if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    theirs = [aliases.get(name, name) for name in _FASTAI_ORDER]
    is_theirs = len(ours) < n <= len(theirs) and {*theirs} <= {p.name for p in params}
    return theirs if is_theirs else ours

def resolve_names(
    f, # A method
    args:tuple, # Positional arguments
    kwargs:dict, # Keyword arguments, `FASTAI_NAMES` among them
    takes=None # `takes(name)` returns whether `f` takes a name that isn't in its signature; default none
) -> dict: # All of them under the names that `f` has for them
    """Return the arguments of a call of the method `f` by name.

    Raises `TypeError` for an argument that is given twice, a name that `f` doesn't know, or too many arguments."""
    params = list(signature(f).parameters.values())[1:]
    own = [p.name for p in params if p.kind is not Parameter.VAR_KEYWORD]
    aliases = {alias: name for alias, name in FASTAI_NAMES.items() if name in own and alias not in own}
    positional = _positional_names(params, len(args), aliases)
    who = f.__qualname__.removesuffix('.__init__')
    if len(args) > len(positional):
        raise TypeError(f'{who} takes at most {len(positional)} positional arguments ({", ".join(positional)}), '
                        f'got {len(args)}: give {args[len(positional)]!r} and what follows by keyword')
    given = dict(zip(positional, args))
    for name, value in kwargs.items():
        arg = aliases.get(name, name)
        if arg not in own and not (takes and takes(arg)):
            raise TypeError(f'{who} has no argument {name} (got {value!r}){_hint(name, own)}; '
                            f'it takes {", ".join(own)}')
        if arg in given:
            raise TypeError(f'{arg} was given twice, as {given[arg]!r} and as {name}={value!r}; give it once')
        given[arg] = value
    return given

def fastai_names(
    kwargs:dict # Keyword arguments by this package's names
) -> dict: # The same by the names that an overridden `fit_one_cycle` may know
    "Return the arguments by fastai 2's names."
    theirs = {name: alias for alias, name in FASTAI_NAMES.items() if alias != 'cyc_len'}
    return {theirs.get(name, name): value for name, value in kwargs.items()}

_Method = TypeVar('_Method', bound=Callable[..., Any])

def accept_fastai_names(
    f:_Method, # A method that takes this package's names, or a class of which `__init__` does
    takes=None # `takes(self, name)` returns whether the method takes a name that isn't in its signature; default none
) -> _Method:
    "Make the method `f` accept `FASTAI_NAMES` by keyword too, as `resolve_names` does."
    if isinstance(f, type):
        f.__init__ = accept_fastai_names(f.__init__)   # type: ignore[misc]
        return f
    @wraps(f)
    def call(self, *args, **kwargs): return f(self, **resolve_names(f, args, kwargs, takes and partial(takes, self)))
    return call   # type: ignore[return-value]

def as_code(
    value # A number, a tuple, a function, …
) -> str:
    "Return `value` as Python code: a function by its name, and infinity as Python can read it."
    if isinstance(value, tuple): return f'({", ".join(map(as_code, value))}{"," * (len(value) == 1)})'
    return "float('inf')" if value == inf else getattr(value, '__qualname__', repr(value))

def as_arguments(
    values:dict # By name
) -> str: # `name=value, …`
    "Return `values` as the arguments of a call in Python code."
    return ', '.join(f'{name}={as_code(value)}' for name, value in values.items())
