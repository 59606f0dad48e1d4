"""Nothing public goes missing: tests/data/public_names.json holds the names and signatures that users rely on.

A new name or a new argument by keyword may come without a change to the file. It was written before the modules were
rebuilt; where something is meant to go, change the file with a line in CHANGELOG.md."""
import inspect
import json
from functools import reduce
from importlib import import_module
from inspect import Parameter

import pytest
from fastai.learner import Learner, Recorder
from fastcore.docments import DocmentTbl

from support.helpers import ROOT
import onecycle_callback

KNOWN = json.loads((ROOT / 'tests/data/public_names.json').read_text(encoding='utf-8'))
OURS = ('compare', 'demo', 'distributed')     # the other public modules, by name
each_name = pytest.mark.parametrize('name', KNOWN)

def found(name):
    "Return the public object of this name: of the package, of one of its modules, or of a class of fastai's."
    first, *rest = name.split('.')
    classes = dict(Learner=Learner, Recorder=Recorder)
    if first in OURS: return reduce(getattr, rest, import_module(f'onecycle_callback.{first}'))
    return reduce(getattr, rest, classes.get(first) or getattr(onecycle_callback, first))

def parameters(obj):
    "Return the parameters of a function, a class, or the signature in a text, by name; a property has none."
    if isinstance(obj, property): return {}
    signature = inspect.signature(eval(f'lambda {obj}: None') if isinstance(obj, str) else obj)
    return {name: p for name, p in signature.parameters.items() if name != 'self'}

def missing(known, present):
    "Return the parameters in `known` that have another kind, default or position in `present`, or none at all."
    def by_position(params): return [name for name, p in params.items() if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    gone = [name for name, p in known.items()
            if name not in present or (p.kind, p.default) != (present[name].kind, present[name].default)]
    first = by_position(known)
    return gone + [a for a, b in zip(first, by_position(present)) if a != b and a not in gone]

@each_name
def test_a_public_name_has_its_parameters(name): assert missing(parameters(KNOWN[name]), parameters(found(name))) == []

@each_name
def test_its_table_describes_each_parameter(name):
    obj = found(name)
    rows = [] if isinstance(obj, property) else [row.split(' | ') for row in str(DocmentTbl(obj)).splitlines()[2:]]
    described = {row[0].strip('| ') for row in rows if row[-1].strip('| ')}
    assert {n for n, p in parameters(KNOWN[name]).items() if p.kind is not Parameter.VAR_KEYWORD} <= described

@pytest.mark.parametrize('now, gone', [
    ('a, b=1, *, c=2, d=3', []), ('a, b=1, *, d=3', ['c']), ('a, b=2, *, c=2', ['b']), ('b=1, a=0, *, c=2', ['a', 'b']),
    ('a, c=2, b=1', ['c', 'b']), ('a, *, b=1, c=2', ['b'])],
    ids=['new', 'gone', 'default', 'order', 'kind', 'by keyword'])
def test_what_goes_missing_is_seen(now, gone): assert missing(parameters('a, b=1, *, c=2'), parameters(now)) == gone

def test_all_that_is_exported_is_known(): assert set(onecycle_callback.__all__) <= set(KNOWN)
