"""Read and write LR and momentum on any optimizer that fastai trains with"""

from inspect import Parameter, signature
from operator import attrgetter, itemgetter

import torch
from fastai.optimizer import Lookahead, OptimWrapper, Optimizer
from fastcore.foundation import L
from torch.nn.parameter import UninitializedParameter, is_lazy

def _direct(opt):
    """Return whose dictionaries hold the hyper-parameters of `opt`, and how to get at these.

    `None` for both unless this is certain: fastai's own classes as they are, with groups that are all alike."""
    if 'set_hyper' in getattr(opt, '__dict__', ()): return None, None
    if type(opt) is Lookahead: return _direct(opt.opt)
    if type(opt) is Optimizer: return opt, attrgetter('hypers.items')
    if type(opt) is not OptimWrapper: return None, None
    first, *others = opt.opt.param_groups
    is_alike = all(group.keys() == first.keys() for group in others)
    return (opt.opt, attrgetter('param_groups')) if is_alike else (None, None)

def _into(old, new):
    "Return `new`, in the tensor `old` if that is one: a compiled step reads the tensor that it has seen."
    return old.fill_(new) if isinstance(old, torch.Tensor) else new

class OptAdapter:
    """LR and momentum of the parameter groups of `opt`.

    The dictionaries of fastai's own classes are written to directly, all else by `set_hyper`, as fastai does.
    `mom_path` says where a group keeps its momentum: `mom`, `momentum`, or `betas__0` for the first of a tuple. It is
    `None` if the optimizer has no momentum: Adagrad has none, and fastai's `SGD(mom=0)` never reads its own."""
    def __init__(self,
        opt # Whatever fastai trains with: an `Optimizer`, an `OptimWrapper`, or what behaves as one
    ):
        self.opt, self.name = opt, opt_name(opt)
        self._holder, self._groups = _direct(opt)
        self.mom_path:str|None = 'mom' if _has_mom(opt) else None
        if self.mom_path and isinstance(self._holder, torch.optim.Optimizer):
            self.mom_path = (opt.opt if type(opt) is Lookahead else opt).bwd_map['mom']
        self._mom_key, _, index = (self.mom_path or '').partition('__')
        self._mom_index = int(index) if index else None

    @property
    def has_momentum(self) -> bool:
        "Whether the optimizer has momentum."
        return self.mom_path is not None

    @property
    def groups(self) -> list:
        """The dictionary of each parameter group: the optimizer's own if these are certain, or else what it shows.

        It is looked up each time: loading a state replaces it."""
        return list(self.opt.hypers) if self._holder is None else self._groups(self._holder)

    @property
    def lrs(self) -> list:
        "The LR of each group: a float, or the tensor that holds it."
        return [g['lr'] for g in self.groups]

    def _held_moms(self):
        if self._mom_index is None: return [g.get(self._mom_key) for g in self.groups]
        return [g[self._mom_key][self._mom_index] for g in self.groups]

    @property
    def moms(self) -> list:
        "The momentum of each group, `None` where a group has none."
        return [mom.item() if isinstance(mom, torch.Tensor) else mom for mom in self._held_moms()]

    @property
    def has_tensors(self) -> bool:
        "Whether tensors hold LRs or momentums, as compiled steps need them."
        return any(isinstance(value, torch.Tensor) for value in (*self.lrs, *self._held_moms()))

    def set_moms(self,
        moms:list # One momentum per group, `None` where it had none
    ):
        "Set the momentum of each group; the other numbers of a tuple stay."
        if self._holder is None:
            some = next(mom for mom in moms if mom is not None)
            return self.opt.set_hyper('mom', [some if mom is None else mom for mom in moms])
        for g, mom in zip(self.groups, moms):
            key, index = self._mom_key, self._mom_index
            if index is None: g[key] = _into(g.get(key), mom)
            else: g[key] = tuple(_into(old, mom) if i == index else old for i, old in enumerate(g[key]))

    def writer(self,
        with_mom:bool # Whether to set momentum too
    ): # `write(lrs, mom)`
        "Return the function that sets the LR of each group, and one momentum for all."
        opt, holder, groups, key = self.opt, self._holder, self._groups, self._mom_key

        def as_fastai(lrs, mom):
            opt.set_hyper('lr', lrs)
            if with_mom: opt.set_hyper('mom', mom)

        def lr_only(lrs, mom):
            for g, lr in zip(groups(holder), lrs): g['lr'] = lr

        def plain(lrs, mom):
            for g, lr in zip(groups(holder), lrs):
                g['lr'] = lr
                g[key] = mom

        def pair(lrs, mom):
            for g, lr in zip(groups(holder), lrs):
                g['lr'] = lr
                g[key] = (mom, g[key][1])

        def general(lrs, mom):
            for g, lr in zip(groups(holder), lrs):
                g['lr'] = _into(g['lr'], lr)
            if with_mom: self.set_moms([mom] * len(lrs))

        if holder is None: return as_fastai
        if self.has_tensors: return general
        if not with_mom: return lr_only
        if self._mom_index is None: return plain
        return pair if self._mom_index == 0 and len(self.groups[0][key]) == 2 else general

    def reader(self,
        with_mom:bool # Whether to read momentum too
    ): # `read()` returns the LR of each group and the momentum of the last; `None` for tensors
        "Return the function that reads what `writer` writes."
        opt, holder, groups, key, index = self.opt, self._holder, self._groups, self._mom_key, self._mom_index
        lr = itemgetter('lr')

        def as_fastai():
            now = list(opt.hypers)
            return [float(g['lr']) for g in now], now[-1].get('mom') if with_mom else None

        def direct():
            now = groups(holder)
            return [*map(lr, now)], mom(now[-1])

        if holder is None: return as_fastai
        if self.has_tensors: return None     # on a GPU, to read one is to wait
        mom = itemgetter(key) if with_mom and index is None else lambda g: g[key][index] if with_mom else None
        return direct

    def restore_lr_tensors(self,
        lrs:list # The LR of each group before the fit
    ):
        "Put back the LRs that were tensors, a separate tensor for each group."
        # `Learner.fit` sets floats in their place. A compiled step reads the tensors, and shared ones hold a single LR
        if self._holder is None: return
        for g, lr in zip(self.groups, lrs):
            if isinstance(lr, torch.Tensor): g['lr'] = lr
        seen = set()
        for g in self.groups:
            if not isinstance(g['lr'], torch.Tensor): continue
            if id(g['lr']) in seen: g['lr'] = g['lr'].clone()
            seen.add(id(g['lr']))

    def add_momentum_buffers(self):
        "Give an `RMSprop` that has stepped without momentum the buffers that momentum needs."
        if not isinstance(self._holder, torch.optim.RMSprop): return     # which makes them at its first step only
        for p, state in self._holder.state.items(): state.setdefault('momentum_buffer', torch.zeros_like(p))

def _may_read_mom(step, has_mom):
    "Return whether `step` of a fastai optimizer reads `mom`: by name, or perhaps from `**kwargs` if there is one."
    params = signature(step).parameters
    if 'mom' in params: return True
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in params.values())
    return has_mom and takes_any and getattr(step, 'func', step).__module__ != Optimizer.__module__

def _has_mom(opt):
    "Return whether `opt` has a momentum that takes effect."
    has_mom = any('mom' in h for h in opt.hypers)
    if type(opt) is Lookahead: return _has_mom(opt.opt)
    if not isinstance(opt, Optimizer) or not hasattr(opt, 'cbs'): return has_mom
    return any(_may_read_mom(step, has_mom) for step in opt.cbs)

def opt_name(
    opt # Whatever fastai trains with
) -> str:
    "Return what users call `opt`: the class of a torch optimizer, the steps of a fastai one, or else its own class."
    if type(opt) is Lookahead: return f'Lookahead({opt_name(opt.opt)})'
    if isinstance(opt, OptimWrapper): return type(opt.opt).__name__
    if not isinstance(opt, Optimizer) or not hasattr(opt, 'cbs'): return type(opt).__name__
    steps = [getattr(step, 'func', step).__name__ for step in opt.cbs]
    return f'this {type(opt).__name__} (steps: {", ".join(steps)})'

def _stand_in(p):
    "Return a parameter as `p` looks, without memory of its own."
    if is_lazy(p): return UninitializedParameter(p.requires_grad, p.device, p.dtype)   # type: ignore[call-arg,arg-type]
    return torch.nn.Parameter(torch.zeros((), dtype=p.dtype, device=p.device).expand(p.shape), p.requires_grad)

def stand_ins(
    groups # What a `splitter` returns
): # The same with other parameters
    "Return `groups` with stand-ins for their parameters, so that a look at an optimizer leaves the model's alone."
    known:dict = {}
    def stand_in(value):
        if isinstance(value, torch.Tensor):
            if value not in known: known[value] = _stand_in(value)
            return known[value]
        if isinstance(value, dict): return {name: stand_in(item) for name, item in value.items()}
        if isinstance(value, (list, tuple, L)): return type(value)(stand_in(item) for item in value)
        return value
    return stand_in(groups)
