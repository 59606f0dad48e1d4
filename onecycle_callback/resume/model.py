"""The tensors that training changes: weights, gradients and the state of the optimizer"""

from copy import copy, deepcopy
from operator import methodcaller

import torch
from fastai.optimizer import OptimWrapper
from fastai.torch_core import get_model
from fastcore.foundation import L
from torch.nn.parameter import is_lazy

def _gradient_to_save(p):
    "Return the gradient of `p`; `False` if it is all zeros, `None` if there is none."
    if p.grad is None or p.grad.layout is not torch.strided: return p.grad
    return p.grad if p.grad.any() else False

def other_parameters(
    learn # The `Learner`, with an optimizer
) -> list: # Parameters
    "Return the parameters that the optimizer trains and that are not the model's."
    own = {*map(id, learn.model.parameters())}
    return [p for params in learn.opt.param_lists for p in params if id(p) not in own]

def _parameters(learn):
    "Return all parameters: the model's, and any others that the optimizer trains."
    return [*get_model(learn.model).parameters(), *other_parameters(learn)]

def _model_parts(learn):
    "Return the parts of the training that save themselves, by name."
    weights, scaler = get_model(learn.model).state_dict(), getattr(learn, 'scaler', None)
    lazy = [name for name, value in weights.items() if is_lazy(value)]     # the first batch will make them
    for name in lazy: del weights[name]
    opt = {name: list(value) if isinstance(value, L) else value for name, value in learn.opt.state_dict().items()}
    return dict(weights=weights, others=[p.data for p in other_parameters(learn)], opt=opt,
                scaler=None if scaler is None else scaler.state_dict())

def model_state(
    learn # The `Learner`, with an optimizer
) -> dict:
    "Return the weights, the gradients and the optimizer's state."
    parameters = _parameters(learn)
    return dict(**_model_parts(learn), trained=[p.requires_grad for p in parameters],
                grads=[_gradient_to_save(p) for p in parameters])

def _with_tensors(f, value):
    "Return a copy of `value` with what `f` returns for each tensor in its dictionaries and lists."
    if isinstance(value, torch.Tensor): return f(value)
    if isinstance(value, list): return [_with_tensors(f, item) for item in value]
    if not isinstance(value, dict): return deepcopy(value)
    new = copy(value)     # which keeps its class, and the versions that a state dict has as an attribute
    for name, item in value.items(): new[name] = _with_tensors(f, item)
    return new

def in_memory(
    value # Tensors, dictionaries, lists and plain values
): # The same in the CPU's memory
    "Return a copy of a state that training leaves alone."
    copies:dict = {}
    def copied(t):
        key = (t.data_ptr(), t.shape, t.stride(), t.dtype) if t.layout is torch.strided else id(t)
        if key not in copies: copies[key] = t.detach().to('cpu', copy=True)
        return copies[key]
    return _with_tensors(copied, value)

def _restore_parameter(p, trained, grad):
    "Restore whether `p` is trained, and its gradient."
    if p.requires_grad != trained: p.requires_grad_(trained)     # which a layer that isn't initialised doesn't allow
    p.grad = None if grad is None else torch.zeros_like(p) if grad is False else grad.to(p.device)

def _load_optimizer(opt, state):
    "Load the state of an optimizer; torch's move it to the parameters' device themselves."
    if not isinstance(opt, OptimWrapper):
        state['hypers'] = L(state['hypers'])
        pairs = zip(state['state'], opt.all_params())
        state['state'] = [_with_tensors(methodcaller('to', p.device), s) for s, (p, *_) in pairs]
    opt.load_state_dict(state)

def set_model_state(
    learn, # The `Learner`, with an optimizer
    state:dict # What `model_state` returned
):
    "Restore the weights, the gradients and the optimizer's state."
    model, scaler, others = get_model(learn.model), getattr(learn, 'scaler', None), other_parameters(learn)
    model.load_state_dict(state['weights'], strict=not any(map(is_lazy, model.parameters())))
    for p, value in zip(others, state['others']): p.data.copy_(value)
    for p, trained, grad in zip(_parameters(learn), state['trained'], state['grads']):
        _restore_parameter(p, trained, grad)
    _load_optimizer(learn.opt, deepcopy(state['opt']))     # an optimizer keeps what it is given
    if state['scaler'] is not None and scaler is not None: scaler.load_state_dict(state['scaler'])
