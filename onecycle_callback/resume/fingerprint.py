"""What tells one run from another: its arguments, its size, its model and its optimizer"""

import re
from dataclasses import fields
from functools import partial
from math import isclose, prod
from typing import Any
from zlib import crc32

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.torch_core import get_model
from fastai.learner import Learner
from fastcore.foundation import L
from torch import nn
from torch.nn.parameter import is_lazy

from ..fastai_internals import loaders_of, n_workers
from ..optimizer import OptAdapter, opt_name
from ..processes import world_size
from .objects import all_attributes

def _as_text(value):
    "Return an argument as text that differs if the argument does."
    if callable(value):
        return f'{getattr(value, "__module__", "")}.{getattr(value, "__qualname__", type(value).__name__)}'
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)): return _as_text(value.tolist())
    if isinstance(value, (list, tuple, L)): return f'[{", ".join(map(_as_text, value))}]'
    return repr(value)

def _lrs_as_text(plan):
    "Return the LR of the last parameter group at up to 101 batches of `plan`, evenly spaced."
    batches = np.linspace(0, len(plan) - 1, min(len(plan), 101)).astype(int)
    lrs = plan.curve.at(plan.positions(batches))[0][:, -1]
    return {f'at batch {i}': _as_text(lr) for i, lr in zip(batches.tolist(), lrs)}

NOT_INITIALISED = 'not initialised'     # what a lazy layer's parameters are before the first batch

def _model_as_text(model):
    "Return the type and shape of each entry of the state dict of `model`."
    def text(v):
        if is_lazy(v): return NOT_INITIALISED
        return f'{v.dtype} {tuple(v.shape)}' if isinstance(v, torch.Tensor) else type(v).__name__
    return {name: text(value) for name, value in model.state_dict().items()}

def _layers_as_text(model):
    "Return what each layer of `model` says about itself, without that of the layers in it."
    def text(layer):
        own = f'{type(layer).__name__}({layer.extra_repr()})' if len(layer._modules) else repr(layer)
        return re.sub(' at 0x[0-9a-fA-F]+', '', own)
    return {name or 'model': text(layer) for name, layer in model.named_modules()}

_MANY = 20     # more values than this are a record of calls, or aren't shown
_LARGE = 2**24     # bytes, whose checksum would take time
_NO_LOSS = type, Callback, Learner     # which can be called too
TRAINED = 'changed by training'     # what stands for what tells no runs apart

def _is_network(f): return isinstance(f, nn.Module) and next(f.parameters(), None) is not None

def _loss_attributes(loss) -> dict:
    "Return what a loss function holds, and those in it, by path; the `func` in one of fastai's has the path of that."
    held, seen = dict[str, Any](), set[int]()

    def look(f, path):
        if not isinstance(f, partial): held.setdefault(f'{path}function', f)
        own = dict(func=f.func, args=f.args) | f.keywords if isinstance(f, partial) else all_attributes(f)
        items = (own | dict(own.get('_buffers') or {}) | dict(own.get('_modules') or {})).items()
        for name, value in sorted(items, key=lambda item: item[0] == 'func'):     # last: its holder has copies
            if not name.startswith('__'): note(value, name, path)

    def note(value, name, path):
        is_new, inside = id(value) not in seen, path if name == 'func' else f'{path}{name}.'
        seen.add(id(value))
        if callable(value):
            if is_new and not isinstance(value, _NO_LOSS) and not _is_network(value): look(value, inside)
        elif isinstance(value, dict):
            items = value.items() if is_new and len(value) <= _MANY and name[:1] != '_' else ()
            for key, item in items: note(item, f'{key}', inside)
        elif isinstance(value, (list, tuple, L)):
            held[path + name] = [*value[:_MANY + 1]]
            for i, item in enumerate(held[path + name]):
                if callable(item): note(item, f'{i}', inside)
        else: held[path + name] = value

    look(loss, '')
    return held

def _are_few(values, is_one): return 0 < len(values) <= _MANY and all(map(is_one, values))

def _is_setting(value):
    if type(value) is list: return _are_few(value, lambda each: type(each) is not list and _is_setting(each))
    return type(value) in (bool, int, float, str) or callable(value)

def _is_tensor(value):
    if type(value) is list: return _are_few(value, lambda each: type(each) is not list and _is_tensor(each))
    if isinstance(value, np.ndarray): return not value.dtype.hasobject
    if not isinstance(value, torch.Tensor) or is_lazy(value) or value.layout is not torch.strided: return False
    return not (value.requires_grad and value.is_leaf) and not value.is_meta

def _tensor_as_text(value):
    "Return the values of a tensor, an array or a list of these; of a large one, a checksum."
    if type(value) is list: return f'[{", ".join(map(_tensor_as_text, value))}]'
    if isinstance(value, torch.Tensor) and not value.is_leaf: return TRAINED
    if prod(value.shape) <= _MANY: return _as_text(value)
    if value.nbytes > _LARGE: return f'{value.dtype} {tuple(value.shape)}'
    if isinstance(value, torch.Tensor): value = value.cpu().resolve_conj().contiguous().view(torch.uint8).numpy()
    return f'{value.dtype} {tuple(value.shape)} {crc32(value.tobytes()):08x}'

def _loss_as_text(loss):
    "Return the settings of a loss function, and the tensors that it holds and doesn't train, such as class weights."
    held = _loss_attributes(loss)
    shown = (path for path in held if not path.rpartition('.')[2].startswith(('_', 'training')))
    return dict(loss={path: _as_text(held[path]) for path in shown if _is_setting(held[path])},
                loss_tensors={path: _tensor_as_text(value) for path, value in held.items() if _is_tensor(value)})

def as_trained(fingerprint, loss):
    "Return a fingerprint with a mark for what training has changed in the loss function since, such as a record."
    def marked(before, now):
        return {path: now[path] if before.get(path) == now.get(path) else TRAINED for path in before | now}
    return fingerprint | {name: marked(fingerprint[name], now) for name, now in _loss_as_text(loss).items()}

def _opt_as_text(opt, wd):
    "Return the settings of each parameter group that neither the cycle nor the fit sets."
    adapter = OptAdapter(opt)
    set_by_fit = {'params', 'lr', 'initial_lr', 'mom',
                  'momentum'} | ({'wd', 'weight_decay'} if wd is not None else set())
    settings = {name: _as_text(getattr(opt, name)) for name in ('k', 'alpha') if name in vars(opt)}     # of `Lookahead`
    for i, group in enumerate(adapter.groups):
        settings |= {f'{name} of group {i}': _as_text(value[1:] if name == 'betas' else value)
                     for name, value in group.items() if name not in set_by_fit}
    return settings

def _frozen_as_text(opt):
    "Return how many parameters of each group are trained."
    return _as_text([sum(p.requires_grad for p in params) for params in opt.param_lists])

def _columns(learn):
    "Return the names of the metrics, and which losses and metrics the table shows."
    recorder = getattr(learn, 'recorder', None)
    shown = [getattr(recorder, name, None) for name in ('train_metrics', 'valid_metrics', 'add_time')]
    return _as_text([*learn.metrics.attrgot('name'), *shown])

def _size(dl):
    "Return how many items `dl` takes its batches from; `None` if it doesn't know."
    try: return len(dl.dataset)
    except (AttributeError, TypeError): return None

def layout(learn, opt) -> dict: # Text by name, and `model`, a dictionary of text
    "Return what a state must have in common with a training to be restored there."
    return dict(optimizer=opt_name(opt), groups=_as_text([len(params) for params in opt.param_lists]),
                model=_model_as_text(get_model(learn.model)))

def run_fingerprint(
    learn, # The `Learner`
    plan, # The `OneCyclePlan` of the cycle
    opt, # The optimizer that will train
    epochs:range, # The epochs of the cycle to train
    wd=None, # Weight decay; default the Learner's
    fine_tune:str|None=None # The arguments of the `fine_tune` that this cycle is a part of
) -> dict: # Text by name, and dictionaries of it: `schedule`, `model`, `layers`, `opt`, `loss`, …
    "Return everything that must be the same for a run to be resumed."
    loaders, is_whole = loaders_of(learn.dls), epochs.stop >= plan.n_epoch
    wd = learn.wd if wd is None else wd
    values = dict(cycle_len=None, minutes=None) | plan.length | dict(
        start_epoch=epochs.start, stop_epoch=None if is_whole else epochs.stop,
        **{f.name: getattr(plan.schedule, f.name) for f in fields(plan.schedule)},
        wd=wd, wd_bn_bias=learn.wd_bn_bias, train_bn=learn.train_bn, n_batch=plan.n_batch,
        step='by GradientAccumulation' if plan.accumulates else 'of each batch', sets=', '.join(plan.curve.names),
        bs=getattr(learn.dls.train, 'bs', None), processes=world_size(), n_train=_size(loaders[0]),
        n_valid=L(map(_size, loaders[1:])), workers=L(map(n_workers, loaders)))
    return dict({name: _as_text(value) for name, value in values.items()}, **layout(learn, opt),
                metrics=_columns(learn), schedule=_lrs_as_text(plan), layers=_layers_as_text(get_model(learn.model)),
                opt=_opt_as_text(opt, wd), **_loss_as_text(learn.loss_func), fine_tune=fine_tune or 'no',
                trained='by fine_tune' if fine_tune else _frozen_as_text(opt))     # which freezes by itself

def can_extend(plan, differences:dict) -> bool:
    "Return whether a run that differs so can be extended on purpose."
    length = {'cycle_len', 'start_epoch', 'stop_epoch', 'schedule'}
    return differences.keys() <= length | {f.name for f in fields(plan.schedule)}

def _is_same(a, b):
    "Return whether two texts are equal, or the same number to nine digits: another CPU rounds a power in another way."
    try: return a == b or isclose(float(a), float(b), rel_tol=1e-9)
    except ValueError: return False

def _line(name, old, new): return f'{name}: {old} in the file, {new} now'

def _inner_lines(name, old, new):
    "Return a line for each of the first three differences of two dictionaries, and how many more there are."
    is_same = _is_same if name == 'schedule' else str.__eq__
    # Each torch has others
    names = [*old, *new.keys() - old.keys()] if name != 'opt' else [*old.keys() & new.keys()]
    pairs = {each: (old.get(each, 'nothing'), new.get(each, 'nothing')) for each in names}
    pairs = {each: pair for each, pair in pairs.items() if TRAINED not in pair and not is_same(*pair)}
    lines = [_line(f'{name} {each}', *pair) for each, pair in pairs.items()]
    return lines[:3] + ([f'{len(lines) - 3} more of {name}'] if len(lines) > 3 else [])

def layout_differences(saved:dict, current:dict) -> dict: # Lines of text for each name at which they differ
    "Return what differs between two layouts or fingerprints, by name."
    lines = {}
    for name in current:
        old, new = saved.get(name, 'nothing'), current[name]
        if isinstance(old, dict) and isinstance(new, dict): lines[name] = _inner_lines(name, old, new)
        else: lines[name] = [] if old == new else [_line(name, old, new)]
    return {name: each for name, each in lines.items() if each}

def fingerprint_differences(saved:dict, current:dict) -> dict: # Lines of text for each name at which they differ
    "Return what differs between two fingerprints, by name; the LRs only if nothing else does, as they follow from it."
    differences = layout_differences(saved, {k: v for k, v in current.items() if k != 'workers'})
    others = {name: lines for name, lines in differences.items() if name != 'schedule'}
    return others or differences

def worker_note(saved:dict, current:dict) -> str|None:
    "Return what to say if the data loaders have another number of workers now."
    before, now = saved['workers'], current['workers']
    if before == now: return None
    return (f'the data loaders had {before} workers (for training, validation, …) and have {now} now. '
            'Random numbers that are drawn in them, such as those of an augmentation, will differ from those of an '
            'uninterrupted run')
