"""Files of the first format, as the present one would have written them"""

import random
from collections import deque
from pathlib import Path

import numpy as np
import torch
from fastcore.foundation import L

_KIND = '__kind__'     # the key under which a dictionary says what it stands for
_MAKE = dict(L=L, set=set, deque=deque, Path=Path, ndarray=lambda t: t.numpy(), floats=torch.Tensor.tolist,
             scalars=lambda t: [x.clone() for x in t])

def _unplain(value):
    "Return what plain values of the first format stand for."
    if isinstance(value, (list, tuple)): return type(value)(map(_unplain, value))
    if not isinstance(value, dict): return value
    return _MAKE[value[_KIND]](_unplain(value['of'])) if _KIND in value else {k: _unplain(v) for k, v in value.items()}

def _rewrite_object(state):
    "Return what an object remembered, in the present format."
    if 'whole' in state: return dict(whole=_unplain(state['whole']))
    return dict(attributes=_unplain(state['attrs']), state_dicts=_unplain(state['dicts']), lost=list(state['dicts']))

def from_format_1(
    state:dict # What a file of the first format holds
) -> dict: # What a file of the present one would hold
    "Return the state of a cycle in the present format."
    def rewrite_process(p):
        carried = {name: _rewrite_object(state) for name, state in p['carried'].items()}
        return dict(random=_unplain(p['random']), random_epoch=_unplain(p['random_epoch']), carried=carried)
    processes = [rewrite_process(p) for p in state['processes']]
    model = {name: _unplain(state[name]) for name in ('weights', 'opt', 'scaler', 'grads', 'rows')}
    return state | model | dict(processes=processes, others=[])

def _generators(loaders):
    "Yield the random generators of data loaders, and of their samplers."
    for loader in loaders:
        attrs = getattr(loader, '__dict__', {})
        batches = attrs.get('batch_sampler')
        for owner in (loader, attrs.get('sampler'), batches, getattr(batches, 'sampler', None)):
            for value in getattr(owner, '__dict__', {}).values():
                if isinstance(value, (random.Random, torch.Generator, np.random.Generator)): yield value

def set_loader_generators(
    loaders, # The data loaders
    states:list # The states of their generators
):
    "Restore the random generators of data loaders from a file of the first format."
    for generator, state in zip(_generators(loaders), states):
        if isinstance(generator, random.Random): generator.setstate(state)
        elif isinstance(generator, torch.Generator): generator.set_state(state)
        else: generator.bit_generator.state = state
