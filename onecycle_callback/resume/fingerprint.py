"""What tells one run from another: its arguments, its size, its model and its optimizer"""

import re
from dataclasses import fields
from functools import partial
from math import isclose

import numpy as np
import torch
from fastai.torch_core import get_model
from fastcore.foundation import L
from torch.nn.parameter import is_lazy

from ..fastai_internals import n_workers
from ..optimizer import opt_name
from ..processes import world_size

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
    lrs = plan.at(batches)[0][:, -1]
    return {f'at batch {i}': _as_text(lr) for i, lr in zip(batches.tolist(), lrs)}

def _model_as_text(model):
    "Return the type and shape of each entry of the state dict of `model`."
    def text(v):
        if is_lazy(v): return 'not initialised'
        return f'{v.dtype} {tuple(v.shape)}' if isinstance(v, torch.Tensor) else type(v).__name__
    return {name: text(value) for name, value in model.state_dict().items()}

def _layers_as_text(model):
    "Return what each layer of `model` says about itself, without that of the layers in it."
    def text(layer):
        own = f'{type(layer).__name__}({layer.extra_repr()})' if len(layer._modules) else repr(layer)
        return re.sub(' at 0x[0-9a-fA-F]+', '', own)
    return {name or 'model': text(layer) for name, layer in model.named_modules()}

def _loss_as_text(loss):
    "Return the name of a loss function and the settings that it has."
    if isinstance(loss, partial):
        keywords = sorted((name, _as_text(value)) for name, value in loss.keywords.items())
        return f'{_loss_as_text(loss.func)} with {_as_text(loss.args)}, {keywords}'
    settings:dict = {}
    for obj in (getattr(loss, 'func', None), loss):     # fastai's losses hold one of torch as `func`
        settings |= {name: value for name, value in getattr(obj, '__dict__', {}).items()
                     if name[0] != '_' and name != 'training' and type(value) in (bool, int, float, str)}
    return f'{_as_text(loss)} {settings}' if settings else _as_text(loss)

def _size(dl):
    "Return how many items `dl` takes its batches from; `None` if it doesn't know."
    try: return len(dl.dataset)
    except (AttributeError, TypeError): return None

def run_fingerprint(
    learn, # The `Learner`
    plan, # The `OneCyclePlan` of the cycle
    opt, # The optimizer that will train
    epochs:range, # The epochs of the cycle to train
    wd, # Weight decay
    fine_tune:str|None=None # The arguments of the `fine_tune` that this cycle is a part of
) -> dict: # Text by name, and dictionaries of text: `schedule`, `model` and `layers`
    "Return everything that must be the same for a run to be resumed."
    schedule = plan.schedule
    values = dict(
        cycle_len=plan.n_epoch, start_epoch=epochs.start, stop_epoch=epochs.stop,
        **{f.name: getattr(schedule, f.name) for f in fields(schedule)},
        wd=wd, n_batch=plan.n_batch, bs=getattr(learn.dls.train, 'bs', None),
        processes=world_size(), groups=[len(params) for params in opt.param_lists])
    if hasattr(plan, 'minutes'): values |= dict(cycle_len=None, stop_epoch=None, minutes=plan.minutes)
    model, loaders = get_model(learn.model), list(learn.dls.loaders)
    return dict({name: _as_text(value) for name, value in values.items()}, optimizer=opt_name(opt),
                schedule=_lrs_as_text(plan), model=_model_as_text(model), layers=_layers_as_text(model),
                loss=_loss_as_text(learn.loss_func), n_train=_as_text(_size(loaders[0])),
                n_valid=_as_text(L(map(_size, loaders[1:]))),
                fine_tune=fine_tune or 'no', workers=_as_text(L(map(n_workers, loaders))))

def _is_same(a, b):
    "Return whether two texts are equal, or the same number to nine digits."
    try: return a == b or isclose(float(a), float(b), rel_tol=1e-9)
    except ValueError: return False

def _differing_lines(saved, current, is_same=str.__eq__):
    "Return a line of text for each name at which the dictionaries `saved` and `current` differ."
    lines = []
    for name in saved | current:
        old, new = saved.get(name, 'nothing'), current.get(name, 'nothing')
        if isinstance(old, dict) and isinstance(new, dict):
            is_same_in_it = _is_same if name == 'schedule' else str.__eq__
            inner = [f'{name} {line}' for line in _differing_lines(old, new, is_same_in_it)]
            lines += inner[:3] + ([f'{len(inner) - 3} more of {name}'] if len(inner) > 3 else [])
        elif not is_same(old, new): lines.append(f'{name}: {old} in the file, {new} now')
    return lines

def fingerprint_differences(
    saved:dict, # The fingerprint in the file
    current:dict # The fingerprint of the run that wants to resume
) -> list: # One line of text for each difference
    "Return what differs between two fingerprints, of what both know: a file of an earlier version knows less."
    known = saved.keys() & current.keys() - {'workers'}
    saved, current = ({name: text for name, text in f.items() if name in known} for f in (saved, current))
    without_lrs = [{name: text for name, text in f.items() if name != 'schedule'} for f in (saved, current)]
    return _differing_lines(*without_lrs) or _differing_lines(saved, current)

def worker_note(
    saved:dict, # The fingerprint in the file
    current:dict # The fingerprint of the run that resumes
) -> str|None:
    "Return what to say if the data loaders have another number of workers now."
    before, now = saved.get('workers', current['workers']), current['workers']
    if before == now: return None
    return (f'the data loaders had {before} workers (for training, validation, …) and have {now} now. '
            'Random numbers that are drawn in them, such as those of an augmentation, will differ from those of an '
            'uninterrupted run')
