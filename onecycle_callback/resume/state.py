"""What a training remembers: weights, optimizer, what objects hold besides a `state_dict`, and random states"""

# Weights alone resume nothing as if nothing had happened: the order of the next shuffle, the next dropout mask, the
# best loss that a callback has seen lie elsewhere. An attribute that a training hasn't changed is a *setting*, such as
# a `patience`: if it is another one when the run resumes, that is what the user wants. Everything else is restored.

import inspect
import io
import random
import weakref
from collections.abc import Callable
from contextlib import suppress
from copy import copy, deepcopy
from functools import partial
from operator import methodcaller
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, TrainEvalCallback, event
from fastai.callback.hook import Hook, Hooks
from fastai.callback.progress import ProgressCallback
from fastai.data.core import Pipeline, Transform
from fastai.learner import CastToTensor, Recorder
from fastai.optimizer import OptimWrapper
from fastai.torch_core import get_model
from fastcore.foundation import L
from fastcore.imports import noop
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from ..fastai_internals import OneFitCallback, StandIn, loaders_of
from .objects import (COPIES, THE_DATA, Reader, Refused, Setting, Standing, StateDict, all_attributes, digest, dump,
                      has_state_dict, load, slots_of)

# The tensors that training changes: weights, gradients and the state of the optimizer

def _gradient_to_save(p):
    "Return the gradient of `p`, which may wait for a later batch; `False` if it is all zeros, `None` if there is none."
    if p.grad is None or p.grad.layout is not torch.strided: return p.grad
    return p.grad if p.grad.any() else False

def other_parameters(learn) -> list:
    "Return the parameters that the optimizer trains and that are not the model's."
    own, groups = {*map(id, learn.model.parameters())}, [] if learn.opt is None else learn.opt.param_lists
    return [p for params in groups for p in params if id(p) not in own]

def _parameters(learn): return [*get_model(learn.model).parameters(), *other_parameters(learn)]

def _with_tensors(f, value):
    "Return a copy of `value` with what `f` returns for each tensor in its dictionaries and lists, and Python's lists."
    if isinstance(value, torch.Tensor): return f(value)
    if isinstance(value, (list, L)): return [_with_tensors(f, item) for item in value]
    if not isinstance(value, dict): return deepcopy(value)
    new = copy(value)     # which keeps its class, and the versions that a state dict has as an attribute
    for name, item in value.items(): new[name] = _with_tensors(f, item)
    return new

def model_state(learn) -> dict:
    "Return the weights, the gradients, the optimizer's state, and the loss scale of mixed precision."
    weights, parameters = get_model(learn.model).state_dict(), _parameters(learn)
    scaler, opt = getattr(learn, 'scaler', None), _with_tensors(noop, learn.opt.state_dict())
    lazy = [name for name, value in weights.items() if is_lazy(value)]     # the first batch will make them
    for name in lazy: del weights[name]
    return dict(weights=weights, others=[p.data for p in other_parameters(learn)], opt=opt,
                scaler=None if scaler is None else scaler.state_dict(), trained=[p.requires_grad for p in parameters],
                grads=[_gradient_to_save(p) for p in parameters])

def in_memory(value): # The same in the CPU's memory: a GPU may have no room for it
    "Return a copy of a state that training leaves alone."
    copies:dict = {}
    def copied(t):
        key = (t.data_ptr(), t.shape, t.stride(), t.dtype) if t.layout is torch.strided else id(t)
        if key not in copies: copies[key] = t.detach().to('cpu', copy=True)     # once if weights are tied
        return copies[key]
    return _with_tensors(copied, value)

def _load_optimizer(opt, state):
    "Load the state of an optimizer; torch's move it to the parameters' device themselves."
    if not isinstance(opt, OptimWrapper):
        if not all(now.keys() <= new.keys() for now, new in zip(opt.hypers, state['hypers'], strict=True)):
            raise ValueError('a hyper-parameter is missing')
        state['hypers'] = L(state['hypers'])
        pairs = zip(state['state'], opt.all_params())
        state['state'] = [_with_tensors(methodcaller('to', p.device), s) for s, (p, *_) in pairs]
    opt.load_state_dict(state)

def set_model_state(learn, state:dict):
    "Restore the weights, the gradients and the optimizer's state."
    model, scaler, others = get_model(learn.model), getattr(learn, 'scaler', None), other_parameters(learn)
    model.load_state_dict(state['weights'], strict=not any(map(is_lazy, model.parameters())))
    for p, value in zip(others, state['others']): p.data.copy_(value)
    for p, trained, grad in zip(_parameters(learn), state['trained'], state['grads']):
        if p.requires_grad != trained:
            p.requires_grad_(trained)     # which a layer that isn't initialised doesn't allow
        p.grad = None if grad is None else torch.zeros_like(p) if grad is False else grad.to(p.device)
    _load_optimizer(learn.opt, deepcopy(state['opt']))     # an optimizer keeps what it is given
    if state['scaler'] is not None and scaler is not None: scaler.load_state_dict(state['scaler'])

# What objects remember besides their `state_dict`

_LAYER_ATTRIBUTES = {*vars(nn.Module()), 'forward', 'get_compiler_config'}     # the last two are `torch.compile`'s

def _layer_attributes(layer):
    "Return the attributes of a layer that its `state_dict` leaves out, by name."
    buffers = dict(layer.named_buffers(recurse=False, remove_duplicate=False))
    saved = layer.state_dict() if buffers else {}
    own = {name: value for name, value in vars(layer).items() if name not in _LAYER_ATTRIBUTES}
    return own | {name: value for name, value in buffers.items() if name not in saved}

_CODE = type, FunctionType, MethodType, BuiltinFunctionType, partial
_STATELESS = ModuleType, io.IOBase, torch.autocast, Hook, Hooks, RemovableHandle, Pipeline, Transform, weakref.ref

def _remembers(value, before):
    "Return whether an attribute may be state; `before` is what stood in its place at the beginning."
    values = value if type(value) is list else [value]     # a recurrent layer has a list of references to its weights
    is_still = value is before and isinstance(value, _CODE)
    return not is_still and not all(isinstance(each, _STATELESS) or _is_output(each) for each in values)

def _is_output(value):
    "Return whether `value` is written to, such as TensorBoard's writer: what it remembers lies in its own files."
    return all(hasattr(type(value), name) for name in ('flush', 'close'))

def refill(
    old, # What stands in a training
    new, # What was read
    done:dict # What was read, and what holds it now, by the ids of both: each once
): # `old` with the content of `new`, or `new` if `old` can't hold it
    "Fill a list, a dictionary, a set or an array, so that others who hold it see it restored."
    if id(new) not in done:
        is_filled = type(old) is type(new) and id(old) not in done and _can_hold(old, new)
        result = old if is_filled else new
        done[id(new)], done[id(result)] = (new, result), (result, result)
        if is_filled: _fill(old, new, done)
    return done[id(new)][1]

def keep(old, new, done):
    "Have a container stay as it is, in place of what was read, whoever else holds it."
    if type(old) is not type(new) or not isinstance(old, (list, dict, set, np.ndarray)): return
    done[id(old)], done[id(new)] = (old, old), (new, old)
    if isinstance(old, dict):
        for key in old.keys() & new.keys(): keep(old[key], new[key], done)

def _can_hold(old, new):
    if not isinstance(old, np.ndarray): return isinstance(old, (list, dict, set))
    return (old.shape, old.dtype) == (new.shape, new.dtype) and old.flags.writeable

def _fill(old, new, done):
    if isinstance(old, list): old[:] = new
    elif isinstance(old, dict):
        entries = {key: refill(old.get(key), value, done) for key, value in new.items()}
        old.clear()
        old.update(entries)
    elif isinstance(old, set): old ^= old ^ new
    else: old[...] = new

def _memory(memory): "Mark a memory, as what `weakref.finalize` calls at the end of its object: nothing else changes."

def memory_of(obj) -> dict|None: # `None` if it took part in no run
    "Return what is remembered of `obj` since it took part in a run of this process."
    found = (getattr(each.__callback__, 'peek', lambda: None)() for each in weakref.getweakrefs(obj))
    return next((peek[2][0] for peek in found if peek and peek[1] is _memory), None)

def note_part(obj):
    "Note that `obj` takes part in a run: what changes in it from now on is no one's wish."
    if memory_of(obj) is not None: return
    with suppress(TypeError): weakref.finalize(obj, _memory, {}).atexit = False     # some allow no weak reference

# A fit may change by itself what tells runs apart: a factor of the loss, the rate of a dropout, how often it was called

_OF_THE_LOSS = 'loss', 'loss_tensors'

def _compared(learn, fingerprint):
    "Yield each name in a fingerprint, with its text and the memory of what it tells of: others may train with it."
    owners = dict.fromkeys(_OF_THE_LOSS, learn.loss_func) | dict(layers=get_model(learn.model))
    for name, text in fingerprint.items():
        memory = memory_of(owners.get(name, learn))
        yield name, text, memory_of(learn) if memory is None else memory

def note_changes(
    learn, # The `Learner`
    file, # The file of the run
    before:dict, # The fingerprint before the fit
    after:dict # The fingerprint now
):
    "Remember what a fit has changed, so that it isn't taken for a change by the user when the same call comes again."
    for name, text, memory in _compared(learn, after):
        if memory is None: continue
        memory.pop((file, name), None)
        if text != before[name]: memory[file, name] = before[name], text

def without_changes(learn, file, now:dict) -> tuple[dict, list[str]]: # And the names of what a resume sets back
    "Return a fingerprint as it was before the fits of this run in this process."
    set_back:list[str] = []
    def text_before(name, text, memory):
        before, after = (memory or {}).get((file, name), (text, text))
        if text == after: return before
        if name not in _OF_THE_LOSS: return text
        # What a fit has changed in it is state, such as a count of its calls
        state = {key: value for key, value in before.items() if value != after.get(key)}
        set_back.extend(f'{name} {key}' for key in state if text.get(key) != after.get(key))
        return state | {key: value for key, value in text.items() if before.get(key) == after.get(key)}
    return {name: text_before(name, text, memory) for name, text, memory in _compared(learn, now)}, set_back

_ABSENT, _KEPT = object(), object()
_METHODS = FunctionType, staticmethod, classmethod
_FASTAIS = {'learn', '_learn'}     # a callback that was taken off has none, and would keep none

class ObjectStates:
    "Save and restore what objects remember: their `state_dict`, or their attributes."
    def __init__(self,
        objects:dict, # The objects, by the names that warnings use
        parts:Callable=dict, # Returns the objects that are stored elsewhere, by name
        skip=None, # The attributes to leave out, by the name of the object
        by_attributes=False # Whether to leave the objects' own `state_dict` alone
    ):
        self.objects, self.by_attributes = objects, by_attributes
        self._skip = {label: COPIES.union((skip or {}).get(label, ()), _FASTAIS if isinstance(obj, Callback) else ())
                      for label, obj in objects.items()}
        self.standing, self.lost = Standing(parts), set[str]()
        self._initial:dict[str, dict[str, Any]] = {}   # each attribute and its digest at the beginning
        for obj in self.standing.parts.values(): self.standing.add_class(type(obj))
        for label in objects: self._begin(label)

    def _saves_itself(self, obj):
        "Return whether the `state_dict` of `obj` is all that it remembers; a layer's is part of the model's."
        return has_state_dict(obj) and not isinstance(obj, nn.Module) and not self.by_attributes

    def _attributes(self, label):
        "Return the attributes of an object that may be state, by name."
        obj = self.objects[label]
        if self._saves_itself(obj): return {}
        is_layer = isinstance(obj, nn.Module) and label.partition('.')[0] == 'model'
        attributes = _layer_attributes(obj) if is_layer else all_attributes(obj)
        return {name: value for name, value in attributes.items()
                if name not in self._skip[label] and not isinstance(value, StandIn)}     # which is the fit's

    def _begin(self, label):
        "Look at an object as it is at the beginning."
        obj, self._initial[label] = self.objects[label], {}
        self.standing.add_class(type(obj))
        if isinstance(obj, Recorder): self.standing.stacks[id(getattr(obj, 'losses', None))] = []
        for name, value in self._attributes(label).items():
            try: now = digest(value, self.standing, learning=f'{label}.{name}')
            except Exception: now = None
            self._initial[label][name] = value, now

    def _form(self, value, before=None):
        "Return the form in which `value` can be stored, and its digest; `None` for both if it can't."
        for form in [value, StateDict(value)] if value is before and has_state_dict(value) else [value]:
            with suppress(Exception): return form, digest(form, self.standing)     # whatever others' objects raise
        return None, None

    def _save_object(self, label):
        "Return what to store of an object: its attributes, and the names of those that are lost."
        if self._saves_itself(self.objects[label]):
            state, now = self._form(self.objects[label].state_dict())
            if now is None: self.lost.add(f'{label}.state_dict')
            return {} if now is None else dict(whole=state)
        current, attributes, lost = self._attributes(label), dict[str, Any](), []
        for name, value in current.items():
            before, initial = self._initial[label].get(name, (_ABSENT, None))
            form, now = self._form(value, before) if self._may_set(label, name) else (None, None)
            if now is None: lost.append(name)
            else: attributes[name] = Setting(form) if self._is_setting(label, name, now) else form
            if now is None and _remembers(value, before): self.lost.add(f'{label}.{name}')
            if now and initial and now[2] != initial[2]: self.lost.add(f'what functions in {label}.{name} remember')
        made = {name for name, value in current.items() if self._was_made(label, name, value)}
        if any(f'{label}.{name}' in self.lost for name in made & {*lost}):
            # with half of them, such as a head without its optimizer, no training goes on, so all start over
            attributes = {name: value for name, value in attributes.items() if name not in made}
            self.lost.update(f'{label}.{name}' for name in made)
            lost += made
        return dict(attributes=attributes, lost=lost)

    def _is_setting(self, label, name, now):
        "Return whether no fit of this process has changed an attribute whose digest is `now`."
        initial = self._initial[label].get(name, (None, None))[1]
        return now is not None and now == initial and not now[1] and name not in self._changed(label)

    def _was_made(self, label, name, value):
        "Return whether an attribute is an object that was made on the way."
        is_new = self._initial[label].get(name, (None,))[0] is None
        return is_new and hasattr(value, '__dict__') and not isinstance(value, _CODE)

    def save(self) -> bytes:
        "Return the states of all objects; what cannot be stored is noted in `lost`."
        self.standing.look()
        return dump({label: self._save_object(label) for label in self.objects}, self.standing)

    def read(self,
        content:bytes # What `save` returned, perhaps in an earlier process
    ) -> tuple[dict, Reader]: # The state of each object by its name, and what can fill the objects that stand here
        "Read a state, changing nothing; raises `Refused` if `content` holds what no `save` writes."
        self.standing.look()
        states, reader = load(content, self.standing)
        missing = {'Recorder', 'Learner'} & self.objects.keys() - {*states}     # which every training has
        if missing or not all(map(_is_state, states.values())): raise Refused(f'a part is missing: {missing}')
        hiding = [f'{label}.{name}' for label in filter(states.__contains__, self.objects)
                  for name in states[label].get('attributes', {}) if not self._may_set(label, name)]
        if hiding: raise Refused(f'{", ".join(hiding)}, which is no state')
        return states, reader

    def restore(self,
        content:bytes, # What `save` returned, perhaps in an earlier process
        with_settings:bool=False # Whether to restore settings too, since nobody changed them on purpose
    ) -> tuple[list[str], list[str]]: # The names of what could not be restored, and of the objects that aren't here
        "Restore all objects; raises what `read` raises, and then restores nothing."
        (states, reader), done = self.read(content), dict[int, tuple]()
        for label in filter(states.__contains__, self.objects):
            attributes, current = states[label].get('attributes', {}), self._attributes(label)
            for name, value in attributes.items():
                if type(value) is not Setting: continue
                is_kept = not with_settings and name in current and self._is_unchanged(label, name, current[name])
                attributes[name] = _KEPT if is_kept else value.value
                if is_kept: keep(current[name], value.value, done)
                else: reader.fills += value.fills
        reader.fill()
        lacking, problems = reader.lacking(), list[str]()
        for label in filter(states.__contains__, self.objects):
            made = {*self._attributes(label)} if with_settings else self._changed(label)
            problems += self._restore_object(label, states[label], lacking, done, made)
        return problems, [label for label, state in states.items() if label not in self.objects and _is_changed(state)]

    def note_left(self):
        "Remember which attributes a fit has changed: what they are at the next one is no one's wish."
        for label, obj in self.objects.items():
            if (memory := memory_of(obj)) is None: continue
            now = self._attributes(label).items()
            memory['changed'] = {name for name, value in now if not self._is_unchanged(label, name, value)}

    def _changed(self, label):
        "Return the names of the attributes that fits of this process have changed."
        return (memory_of(self.objects[label]) or {}).get('changed', ())

    def _is_unchanged(self, label, name, value):
        "Return whether an attribute that is `value` now is as the user gave it."
        return self._is_setting(label, name, self._form(value, self._initial[label].get(name, (_ABSENT,))[0])[1])

    def _restore_object(self, label, state, lacking, done, made):
        """Restore one object; return the names of what could not be restored.

        Of the attributes that the file doesn't know, those that a fit has `made` are removed."""
        obj, current, problems = self.objects[label], self._attributes(label), []
        if 'whole' in state:
            if why := lacking.get(id(state['whole'])): return [f'{label}.state_dict ({why})']
            obj.load_state_dict(state['whole'])
            return []
        slots = slots_of(obj)
        for name, value in state.get('attributes', {}).items():
            if value is _KEPT: continue
            if why := lacking.get(id(value)): problems.append(f'{label}.{name} ({why})')
            elif name in slots: slots[name].__set__(obj, refill(current.get(name), value, done))
            elif isinstance(obj, nn.Module): setattr(obj, name, refill(current.get(name), value, done))
            else: vars(obj)[name] = refill(current.get(name), value, done)     # without checks of its class
        for name in current.keys() - state.get('attributes', {}).keys() - {*state.get('lost', ())}:
            was_made_later = name in made or name not in self._initial[label]
            if was_made_later and name in slots: slots[name].__delete__(obj)
            elif was_made_later: vars(obj).pop(name, None)
        return problems

    def _may_set(self, label, name):
        "Return whether `name` is an attribute for state: hiding a method or an event, it would be called in its place."
        obj = self.objects[label]
        if name in self._initial[label]: return True
        if name in self._skip[label] or isinstance(obj, Callback) and hasattr(event, name): return False
        return not isinstance(inspect.getattr_static(type(obj), name, None), _METHODS)

def _is_state(state):
    "Return whether `state` is made up as that of an object."
    if type(state) is not dict or type(attributes := state.get('attributes', {})) is not dict: return False
    names = [state.get('lost', []), [*attributes]]
    return all(type(each) is list and {*map(type, each)} <= {str} for each in names)

def _is_changed(state):
    "Return whether a state holds more than settings."
    return bool(state.get('whole')) or not {*map(type, state.get('attributes', {}).values())} <= {Setting}

# Which objects a training has

def _is_stateless(cb, learn):
    "Return whether `cb` is one of fastai's callbacks that have nothing to remember."
    is_one = isinstance(cb, (TrainEvalCallback, ProgressCallback, CastToTensor))
    return is_one or cb is getattr(learn, 'distributed_trainer', None)

def callback_name(cb) -> str:
    "Return what to call a callback: a scheduler also by what it schedules, since another may stand there next time."
    scheds = vars(cb).get('scheds')
    return f'{type(cb).__name__}({",".join(map(str, scheds))})' if isinstance(scheds, dict) else type(cb).__name__

def numbered(objects) -> dict:
    "Return the pairs of name and object as a dictionary, a second object of one name as `name 2`."
    by_name:dict = {}
    for name, obj in objects:
        n = sum(known.partition(' ')[0] == name for known in by_name)
        by_name[f'{name} {n + 1}' if n else name] = obj
    return by_name

_FIT_SETS = {*"""_do_fit _metrics cbs create_mbar default_cbs dl dls epoch iter lock logger loss loss_grad
    lr model model_dir moms n_epoch n_iter opt opt_func path pct_train pred scaler splitter train_bn train_iter
    training wd wd_bn_bias x xb y yb""".split()}

def _named_objects(learn, objects, loaders):
    "Return the objects that stand in every such training, by name: those stored elsewhere, or not at all."
    model, opt = get_model(learn.model), learn.opt
    named = {'learn': learn, 'dls': learn.dls, 'opt': opt, 'opt.opt': getattr(opt, 'opt', opt)}
    named |= {'model': learn.model} | objects
    parts = [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]
    named |= {f'model.{name}': part for name, part in parts}
    for i, p in enumerate(other_parameters(learn)): named[f'opt.{i}'] = p
    for cb in learn.cbs: named.setdefault(callback_name(cb), cb)
    return named | _with_datasets(loaders)

def _with_datasets(loaders):
    "Return data loaders by name, and the data that each has."
    datasets = {f'{name}.dataset': getattr(loader, '__dict__', {}).get('dataset') for name, loader in loaders.items()}
    return loaders | {name: dataset for name, dataset in datasets.items() if dataset is not None}

def _loaders(learn):
    "Return the data loaders of `learn` by name, the one inside a `DistributedDL` too."
    loaders = {}
    for i, loader in enumerate(loaders_of(learn.dls)):
        name = f'dls.{i}'
        while loader is not None:
            loaders[name] = loader
            name, loader = f'{name}.dl', getattr(loader, '__dict__', {}).get('dl')
    return loaders

def data_of(learn) -> list:
    "Return the data loaders of `learn`, and the data that each has."
    return [*_with_datasets(_loaders(learn)).values()]

def object_states(learn, callbacks) -> ObjectStates:
    "Return the states of `callbacks`, and of the metrics, the layers, the loss function and the attributes of `learn`."
    callbacks = [cb for cb in callbacks if not _is_stateless(cb, learn)]
    callbacks.sort(key=lambda cb: not isinstance(cb, OneFitCallback))     # a cycle starts the record others look at
    recorder = getattr(learn, 'recorder', None)
    metrics = [] if recorder is None else [recorder.loss, recorder.smooth_loss, *recorder.metrics]
    modules = get_model(learn.model).named_modules()
    objects = numbered([(callback_name(cb), cb) for cb in callbacks] +
                        [(type(metric).__name__, metric) for metric in metrics] +
                        [(f'model.{name}'.rstrip('.'), module) for name, module in modules] +
                        [('loss_func', learn.loss_func), ('Learner', learn)])
    skip = dict(Learner=_FIT_SETS | {cb.name for cb in learn.cbs}, Recorder={'start_epoch', 'plan', 'parts'})
    return ObjectStates(objects, lambda: _named_objects(learn, objects, _loaders(learn)), skip)

def loader_states(learn) -> ObjectStates:
    """Return the states of the data loaders of `learn`, with all that they hold except the data.

    The `state_dict` of a loader is left alone: it tells a position within an epoch, and some begin one to tell it."""
    loaders = _loaders(learn)
    def parts(): return _named_objects(learn, {}, loaders)
    return ObjectStates(loaders, parts, dict.fromkeys(loaders, THE_DATA), by_attributes=True)

# Random states

def random_states(loaders:ObjectStates) -> dict:
    "Return the states of all random generators that training draws from, in this process, and of the data loaders."
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    return dict(python=random.getstate(), numpy=np.random.get_state(legacy=False), torch=torch.get_rng_state(),
                cuda=cuda, mps=mps, loaders=loaders.save())

def set_global_random_states(states:dict):
    "Restore the random generators that belong to no data loader."
    random.setstate(states['python'])
    np.random.set_state(states['numpy'])
    torch.set_rng_state(states['torch'])
    # A run may go on elsewhere
    for i, state in zip(range(torch.cuda.device_count()), states['cuda']): torch.cuda.set_rng_state(state, i)
    if states['mps'] is not None and torch.backends.mps.is_available(): torch.mps.set_rng_state(states['mps'])

def set_random_states(loaders:ObjectStates, states:dict) -> list[str]:
    "Restore all random generators and the data loaders."
    set_global_random_states(states)
    return loaders.restore(states['loaders'])[0]
