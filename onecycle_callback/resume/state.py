"""What a training run remembers, and how it gets it back"""

import random
from warnings import warn

import numpy as np
import torch
from fastai.callback.core import TrainEvalCallback
from fastai.callback.progress import ProgressCallback
from fastai.learner import CastToTensor
from fastai.torch_core import get_model

from ..callback import OneCycle
from ..fastai_internals import has_persistent_workers
from .earlier import set_loader_generators
from .model import other_parameters
from .objects import ObjectStates

def _is_stateless(cb, learn):
    "Return whether `cb` is one of fastai's callbacks that have nothing to remember."
    is_one = isinstance(cb, (TrainEvalCallback, ProgressCallback, CastToTensor))
    return is_one or cb is getattr(learn, 'distributed_trainer', None)

def _numbered(objects):
    "Return the pairs of name and object as a dictionary, a second object of one name as `name 2`."
    by_name:dict = {}
    for name, obj in objects:
        n = sum(known.partition(' ')[0] == name for known in by_name)
        by_name[f'{name} {n + 1}' if n else name] = obj
    return by_name

_FIT_SETS = {*"""_do_fit _metrics all_batches cbs create_mbar default_cbs dl dls epoch iter lock logger loss loss_grad
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
    for cb in learn.cbs: named.setdefault(type(cb).__name__, cb)
    for label, loader in loaders.items():
        named[label] = loader
        if (dataset := getattr(loader, '__dict__', {}).get('dataset')) is not None: named[f'{label}.dataset'] = dataset
    return named

def _loaders(learn):
    "Return the data loaders of `learn` by name, the one inside a `DistributedDL` too."
    loaders = {}
    for i, loader in enumerate(learn.dls.loaders):
        name = f'dls.{i}'
        while loader is not None:
            loaders[name] = loader
            name, loader = f'{name}.dl', getattr(loader, '__dict__', {}).get('dl')
    return loaders

def object_states(
    learn, # The `Learner`, with an optimizer
    callbacks # The callbacks to include
) -> ObjectStates:
    "Return the states of `callbacks`, and of the metrics, the layers, the loss function and the attributes of `learn`."
    callbacks = [cb for cb in callbacks if not _is_stateless(cb, learn)]
    callbacks = sorted(callbacks, key=lambda cb: not isinstance(cb, OneCycle))
    recorder = getattr(learn, 'recorder', None)
    metrics = [] if recorder is None else [recorder.loss, recorder.smooth_loss, *recorder.metrics]
    modules = get_model(learn.model).named_modules()
    objects = _numbered([(type(obj).__name__, obj) for obj in [*callbacks, *metrics]] +
                        [(f'model.{name}'.rstrip('.'), module) for name, module in modules] +
                        [('loss_func', learn.loss_func), ('Learner', learn)])
    skip = dict(Learner=_FIT_SETS | {cb.name for cb in learn.cbs}, Recorder={'start_epoch', 'plan'})
    return ObjectStates(objects, lambda: _named_objects(learn, objects, _loaders(learn)), skip)

_NOT_STORED = {'dataset', 'it', '_iterator', '_types', '_DataLoader__idxs'}     # the data, and what is made anew

def loader_states(
    learn # The `Learner`, with an optimizer
) -> ObjectStates:
    """Return the states of the data loaders of `learn`, with all that they hold except the data.

    The `state_dict` of a loader is left alone: it tells a place within an epoch, and some begin one to tell it."""
    loaders = _loaders(learn)
    def names(): return _named_objects(learn, {}, loaders)
    return ObjectStates(loaders, names, dict.fromkeys(loaders, _NOT_STORED), by_attributes=True)

def random_states(
    loaders:ObjectStates # The data loaders
) -> dict:
    "Return the states of all random generators that training draws from, in this process, and of the data loaders."
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    kind, keys, *rest = np.random.get_state()
    return dict(python=random.getstate(), numpy=(kind, keys.tolist(), *rest), torch=torch.get_rng_state(), cuda=cuda,
                mps=mps, loaders=loaders.save())

def set_global_random_states(
    states:dict # What `random_states` returned
):
    "Restore the random generators that belong to no data loader."
    random.setstate(states['python'])
    np.random.set_state(states['numpy'])
    torch.set_rng_state(states['torch'])
    if states['cuda']: torch.cuda.set_rng_state_all(states['cuda'])
    if states.get('mps') is not None: torch.mps.set_rng_state(states['mps'])

def set_random_states(
    loaders:ObjectStates, # The data loaders
    states:dict # What `random_states` returned
) -> list[str]: # The names of what could not be restored
    "Restore all random generators and the data loaders."
    set_global_random_states(states)
    if isinstance(states['loaders'], torch.Tensor): return loaders.restore(states['loaders'])[0]
    set_loader_generators(loaders.objects.values(), states['loaders'])     # of the first format
    return []

def warn_of_persistent_workers(
    learn # The `Learner`
):
    "Warn if a data loader of `learn` has workers whose random states cannot be saved."
    if any(map(has_persistent_workers, learn.dls.loaders)):
        warn('A checkpoint cannot restore the random states inside the workers of a DataLoader with '
             'persistent_workers=True: their random draws differ after a crash')
