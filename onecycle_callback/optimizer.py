"""Read and write LR and momentum on any optimizer that fastai trains with"""

from inspect import signature
from operator import attrgetter

import torch
from fastai.optimizer import Lookahead, OptimWrapper

class OptAdapter:
    """LR and momentum of the parameter groups of `opt`.

    `mom_path` says where a group keeps its momentum: `mom`, `momentum`, or `betas__0` for the first of a tuple. It is
    `None` if the optimizer has no momentum: Adagrad has none, and fastai's `SGD(mom=0)` never reads its own."""
    def __init__(self,
        opt # A fastai `Optimizer`, an `OptimWrapper`, or a `Lookahead` around one
    ):
        self.name = opt_name(opt)
        if isinstance(opt, Lookahead): opt = opt.opt
        if isinstance(opt, OptimWrapper):
            self._holder, self._groups = opt.opt, attrgetter('param_groups')
            self.mom_path:str|None = opt.bwd_map.get('mom')
        else:
            self._holder, self._groups = opt, attrgetter('hypers.items')
            self.mom_path = 'mom' if _reads_mom(opt) else None
        self._mom_key, _, index = (self.mom_path or '').partition('__')
        self._mom_index = int(index) if index else None

    @property
    def has_momentum(self) -> bool:
        "Whether the optimizer has momentum."
        return self.mom_path is not None

    @property
    def groups(self) -> list:
        "The dictionary of each parameter group. It is looked up each time: loading a state replaces it."
        return self._groups(self._holder)

    @property
    def lrs(self) -> list:
        "The LR of each group: a float, or the tensor that holds it."
        return [g['lr'] for g in self.groups]

    @property
    def moms(self) -> list:
        "The momentum of each group."
        if self._mom_index is None: return [g[self._mom_key] for g in self.groups]
        return [g[self._mom_key][self._mom_index] for g in self.groups]

    def set_moms(self,
        moms:list # One momentum per group
    ):
        "Set the momentum of each group; the other numbers of a tuple stay."
        for g, mom in zip(self.groups, moms):
            if self._mom_index is None: g[self._mom_key] = mom
            else: g[self._mom_key] = tuple(mom if i == self._mom_index else b for i, b in enumerate(g[self._mom_key]))

    def writer(self,
        with_mom:bool # Whether to set momentum too
    ): # `write(lrs, mom)`
        "Return the function that sets the LR of each group, and one momentum for all."
        holder, groups, key = self._holder, self._groups, self._mom_key

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
                if isinstance(g['lr'], torch.Tensor): g['lr'].fill_(lr)
                else: g['lr'] = lr
            if with_mom: self.set_moms([mom] * len(lrs))

        if any(isinstance(lr, torch.Tensor) for lr in self.lrs): return general
        if not with_mom: return lr_only
        if self._mom_index is None: return plain
        return pair if self._mom_index == 0 and len(self.groups[0][key]) == 2 else general

    def restore_lr_tensors(self,
        lrs:list # The LR of each group before the fit
    ):
        "Put back the LRs that were tensors, a separate tensor for each group."
        for g, lr in zip(self.groups, lrs):
            if isinstance(lr, torch.Tensor): g['lr'] = lr
        seen = set()
        for g in self.groups:
            if not isinstance(g['lr'], torch.Tensor): continue
            if id(g['lr']) in seen: g['lr'] = g['lr'].clone()
            seen.add(id(g['lr']))

    def add_momentum_buffers(self):
        "Give an `RMSprop` that has stepped without momentum the buffers that momentum needs."
        if not isinstance(self._holder, torch.optim.RMSprop): return
        for p, state in self._holder.state.items(): state.setdefault('momentum_buffer', torch.zeros_like(p))

def _reads_mom(opt):
    "Return whether a step of the fastai optimizer `opt` reads `mom`."
    return any('mom' in signature(step).parameters for step in opt.cbs)

def opt_name(
    opt # A fastai `Optimizer`, an `OptimWrapper`, or a `Lookahead` around one
) -> str:
    "Return what users call `opt`: the class of a torch optimizer, or the steps of a fastai one."
    if isinstance(opt, Lookahead): return f'Lookahead({opt_name(opt.opt)})'
    if isinstance(opt, OptimWrapper): return type(opt.opt).__name__
    steps = [getattr(step, 'func', step).__name__ for step in opt.cbs]
    return f'this {type(opt).__name__} (steps: {", ".join(steps)})'
