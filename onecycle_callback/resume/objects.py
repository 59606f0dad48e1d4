"""What objects remember besides their `state_dict`, and how they get it back"""

import io
import weakref
from contextlib import suppress
from functools import partial
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from fastai.callback.hook import Hook, Hooks
from fastai.data.core import Pipeline, Transform
from torch import nn
from torch.utils.hooks import RemovableHandle

from .graph import Graph, Names, Scalars, StateDict, has_state_dict

_LAYER_ATTRIBUTES = {*vars(nn.Module())}

def _layer_attributes(layer):
    "Return the attributes of a layer that its `state_dict` leaves out, by name."
    buffers = dict(layer.named_buffers(recurse=False, remove_duplicate=False))
    saved = layer.state_dict() if buffers else {}
    own = {name: value for name, value in vars(layer).items() if name not in _LAYER_ATTRIBUTES}
    return own | {name: value for name, value in buffers.items() if name not in saved}

_STATELESS = ModuleType, io.IOBase, torch.autocast, Hook, Hooks, RemovableHandle, Pipeline, Transform, weakref.ref

def _remembers(value, before):
    "Return whether an attribute may be state; `before` is what stood in its place at the beginning."
    is_still = value is before and isinstance(value, (type, FunctionType, MethodType, BuiltinFunctionType, partial))
    values = value if type(value) is list else [value]     # a recurrent layer has a list of references to its weights
    return not is_still and not all(isinstance(each, _STATELESS) for each in values)

def _stack(
    values:list, # Perhaps of tensors without dimensions
    seen, # Those that `stacked` holds already
    stacked # `Scalars`, or `None`
): # The values, and all of them as `Scalars`; `None` if they differ in class, type or device
    "Add the new tensors of a list to those that are stacked."
    if len(seen) > len(values) or not all(map(is_, seen, values)): seen, stacked = (), None
    first, new = values[0], values[len(seen):]
    def kind(t): return type(t), t.ndim, t.dtype, t.device
    def is_like_first(t): return isinstance(t, torch.Tensor) and t.ndim == 0 and kind(t) == kind(first)
    if not all(map(is_like_first, new)): return values, None
    if not new: return list(values), stacked
    tensor = torch.stack([t.detach() for t in new]).as_subclass(torch.Tensor)
    return list(values), Scalars(type(first), tensor if stacked is None else torch.cat([stacked.tensor, tensor]))

class Graft:
    "Fill the lists, dictionaries, sets and arrays of a training with those that were read; each once."
    def __init__(self): self.grown:dict[int, tuple] = {}

    def __call__(self, old, new):
        "Return `old` with the content of `new`, or `new` if `old` can't hold it."
        if id(new) not in self.grown:
            is_taken = any(old is grown for _, grown in self.grown.values())
            self.grown[id(new)] = new, new if is_taken or type(old) is not type(new) else self._fill(old, new)
        return self.grown[id(new)][1]

    def _fill(self, old, new):
        if isinstance(old, list): old[:] = new
        elif isinstance(old, dict):
            filled = {key: self(old.get(key), value) for key, value in new.items()}
            old.clear()
            old.update(filled)
        elif isinstance(old, set): old ^= old ^ new
        elif isinstance(old, np.ndarray) and (old.shape, old.dtype) == (new.shape, new.dtype) and old.flags.writeable:
            old[...] = new
        else: return new
        return old

_seen:weakref.WeakValueDictionary = weakref.WeakValueDictionary()     # the objects of all fits of this process, by id
_ABSENT = object()

class ObjectStates:
    "Save and restore what objects remember: their `state_dict`, or their attributes."
    def __init__(self,
        objects:dict, # The objects, by the names that warnings use
        names=dict, # Returns the objects that stand in every such training, by name
        skip=None, # The attributes to leave out, by the name of the object
        by_attributes=False # Whether to leave the objects' own `state_dict` alone
    ):
        self.objects, self.names, self.skip, self.by_attributes = objects, names, skip or {}, by_attributes
        self.graph, self.lost = Graph(), set[str]()
        self._again = {label for label, obj in objects.items() if _seen.get(id(obj)) is obj}
        self._stacked:dict[int, tuple] = {}            # the lists of tensors at the last save, by id
        self._initial:dict[str, dict[str, Any]] = {}   # each attribute and its digest at the beginning
        for label in objects: self._begin(label)

    def _saves_itself(self, obj):
        "Return whether the `state_dict` of `obj` is all that it remembers; a layer's is part of the model's."
        return has_state_dict(obj) and not isinstance(obj, nn.Module) and not self.by_attributes

    def _attributes(self, label):
        "Return the attributes of an object that may be state, by name."
        obj = self.objects[label]
        if self._saves_itself(obj): return {}
        is_layer = isinstance(obj, nn.Module) and label.partition('.')[0] == 'model'
        attributes = _layer_attributes(obj) if is_layer else getattr(obj, '__dict__', {})
        return {name: value for name, value in attributes.items() if name not in self.skip.get(label, ())}

    def _begin(self, label):
        "Look at an object as it is at the beginning."
        obj, names = self.objects[label], Names(self.names())
        self.graph.add_class(type(obj))
        with suppress(TypeError): _seen[id(obj)] = obj     # some objects allow no weak reference
        initial = self._initial[label] = {}
        for name, value in self._attributes(label).items():
            try: digest = self.graph.digester(names, learning=f'{label}.{name}')(value)
            except Exception: digest = None
            initial[name] = value, digest

    def _forms(self, value, before, stacked):
        "Yield the forms in which `value` may be stored; `before` is what stood in its place at the beginning."
        if type(value) is list and value and isinstance(value[0], torch.Tensor):
            if id(value) not in stacked:
                stacked[id(value)] = _stack(value, *self._stacked.get(id(value), ((), None)))
            if stacked[id(value)][1] is not None: yield stacked[id(value)][1]
        yield value
        if value is before and has_state_dict(value): yield StateDict(value)

    def _digested(self, forms, digest):
        "Return the first of `forms` that can be stored, and its digest; `None` for both if none can."
        for form in forms:
            try: return form, digest(form)
            except Exception: pass      # whatever the objects of others raise
        return None, None

    def _save_whole(self, label, digest):
        "Return the `state_dict` of an object, if that can be stored."
        form, now = self._digested([self.objects[label].state_dict()], digest)
        if now is not None: return dict(whole=form)
        self.lost.add(f'{label}.state_dict')
        return {}

    def _save_object(self, label, digest, stacked):
        "Return what to store of an object: its attributes, which of them are settings, and which are lost."
        if self._saves_itself(self.objects[label]): return self._save_whole(label, digest)
        attributes, settings, lost = {}, [], []
        for name, value in self._attributes(label).items():
            before, initial = self._initial[label].get(name, (_ABSENT, None))
            form, now = self._digested(self._forms(value, before, stacked), digest)
            if now is None:
                lost.append(name)
                if _remembers(value, before): self.lost.add(f'{label}.{name}')
                continue
            attributes[name] = form
            if now == initial and not now[1]: settings.append(name)
        return dict(attributes=attributes, settings=settings, lost=lost)

    def save(self) -> torch.Tensor: # Bytes
        "Return the states of all objects; what cannot be stored is noted in `lost`."
        names = Names(self.names())
        digest, stacked = self.graph.digester(names), dict[int, tuple]()
        states = {label: self._save_object(label, digest, stacked) for label in self.objects}
        self._stacked = stacked
        self.graph.dump(states, file := io.BytesIO(), names)
        return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)

    def _load_whole(self, label, state, digest):
        "Restore an object that saves itself; return what could not be restored."
        try: digest(state)
        except Exception as e: return [f'{label}.state_dict ({e})']
        self.objects[label].load_state_dict(state)
        return []

    def _restore_object(self, label, state, digest, graft, with_settings):
        "Restore one object; return the names of what could not be restored."
        obj, current, problems = self.objects[label], self._attributes(label), []
        with_settings = with_settings or label in self._again
        if 'whole' in state: return self._load_whole(label, state['whole'], digest)
        stored, settings = state.get('attributes', {}), state.get('settings', ())
        for name, value in stored.items():
            if name in settings and name in current and not with_settings: continue
            try: digest(value)
            except Exception as e: problems.append(f'{label}.{name} ({e})')     # a part of it is missing
            else: self._set(obj, name, graft(current.get(name), value))
        for name, value in state.get('state_dicts', {}).items():     # of the first format
            current[name].load_state_dict(value)
        for name in current.keys() - stored.keys() - {*state.get('lost', ())}:
            was_made_later = with_settings or name not in self._initial[label]
            if was_made_later: vars(obj).pop(name, None)
        return problems

    def _set(self, obj, name, value):
        "Set an attribute; of an object that is no layer, without its own checks of who may set what."
        if isinstance(obj, nn.Module): setattr(obj, name, value)
        else: vars(obj)[name] = value

    def _read(self, content, names):
        "Return the states in `content`; in a file of the first format, it holds them as they are."
        if isinstance(content, dict): return content
        file = io.BytesIO(content.numpy().tobytes())
        return self.graph.load(file, names, map_location=None if torch.cuda.is_available() else 'cpu')

    def restore(self,
        content:torch.Tensor|dict, # What `save` returned, perhaps in an earlier process
        with_settings:bool=False # Whether to restore settings too, since nobody changed them on purpose
    ) -> tuple[list[str], list[str]]: # The names of what could not be restored, and of the objects that aren't here
        "Restore all objects."
        names, graft, problems = Names(self.names()), Graft(), []
        states, digest = self._read(content, names), self.graph.digester(names)
        for label in self.objects:
            if label in states: problems += self._restore_object(label, states[label], digest, graft, with_settings)
        return problems, [label for label, state in states.items() if label not in self.objects and _is_changed(state)]

def _is_changed(state):
    "Return whether a state holds more than settings."
    return bool(state.get('whole') or state.get('attributes', {}).keys() - {*state.get('settings', ())})
