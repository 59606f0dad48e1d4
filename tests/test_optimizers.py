"""Every optimizer: train three batches and read LR and momentum back from the optimizer itself at each."""
import inspect

import pytest
import torch
from torch import nn
from fastai.basics import Adam, DataLoader, DataLoaders, OptimWrapper, SGD, partial
from fastai.optimizer import Lamb, Larc, Lookahead, QHAdam, RAdam, RMSProp, ranger

from helpers import Plain, Spy, groups_of, learner

FASTAI = dict(SGD_mom=(partial(SGD, mom=.9), True), SGD=(SGD, False), RMSProp_mom=(partial(RMSProp, mom=.9), True), RMSProp=(RMSProp, False), Adam=(Adam, True),
              RAdam=(RAdam, True), QHAdam=(QHAdam, True), Larc=(Larc, True), Larc_no_mom=(partial(Larc, mom=0.), False), Lamb=(Lamb, True), ranger=(ranger, True),
              Lookahead=(lambda p, lr: Lookahead(SGD(p, lr=lr, mom=.9)), True))
# need a closure: LBFGS evaluates the model again inside a step. The base class is no optimizer.
LEFT_OUT = {'LBFGS', 'Optimizer'}
TORCH = {n: c for n, c in vars(torch.optim).items() if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer) and n not in LEFT_OUT}

def test_the_list_is_the_modules():
    assert {'SGD', 'AdamW', 'NAdam', 'Adagrad', 'RMSprop', 'SparseAdam', 'Muon'} <= set(TORCH) and len(TORCH) >= 13

def check(learn, has_momentum, n_groups):
    spy, before = Spy(), None
    learn.create_opt()
    before = [dict(g) for g in groups_of(learn.opt)]
    plan = learn.preview_one_cycle(1, slice(1e-4, 1e-3))
    assert (plan.moms is not None) == has_momentum
    learn.fit_one_cycle(1, slice(1e-4, 1e-3), cbs=spy)
    assert spy.seen_lrs == plan.lrs.tolist() and len(spy.seen_lrs) == 3
    assert all(type(g['lr']) is float for g in groups_of(learn.opt))
    if has_momentum:
        assert spy.seen_moms == [[m] * n_groups for m in plan.moms.tolist()]
        assert learn.recorder.hps['mom'] == plan.moms.tolist()
    else:
        assert list(learn.recorder.hps) == ['lr']
        assert not isinstance(learn.recorder.plot_lr(show_moms=True), list)
        with pytest.raises(ValueError, match='moms must be left out or False, since no momentum takes effect'): learn.fit_one_cycle(1, moms=(.9, .8))
    for old, new in zip(before, groups_of(learn.opt)):      # everything but the LR is what it was, Adam's second beta among it
        assert {k: v for k, v in old.items() if k not in ('lr', 'params')} == {k: v for k, v in new.items() if k not in ('lr', 'params')}

@pytest.mark.parametrize('n_groups', [1, 3])
@pytest.mark.parametrize('name', FASTAI)
def test_fastai(name, n_groups):
    opt_func, has_momentum = FASTAI[name]
    check(learner(3, n_groups, opt_func=opt_func), has_momentum, n_groups)

class Bag(nn.Module):
    "A model with the kind of weights that `opt` steps: sparse gradients, matrices only, or any."
    def __init__(self, n_groups, sparse):
        super().__init__()
        self.parts = nn.ModuleList(nn.Embedding(5, 4, sparse=True) if sparse else nn.Linear(4, 4, bias=False) for _ in range(n_groups))
        self.sparse = sparse
    def forward(self, i):
        x = i if self.sparse else torch.nn.functional.one_hot(i, 4).float()
        return sum(part(x) for part in self.parts).sum(-1, keepdim=True)

def torch_learner(name, n_groups, **kwargs):
    items = [(torch.tensor(i % 4), torch.ones(1)) for i in range(6)]
    dl = DataLoader(items, bs=2, device='cpu')
    return Plain(DataLoaders(dl, dl, device='cpu'), Bag(n_groups, name == 'SparseAdam'), loss_func=nn.MSELoss(),
                 opt_func=partial(OptimWrapper, opt=partial(TORCH[name], **kwargs)), splitter=lambda m: [list(p.parameters()) for p in m.parts])

@pytest.mark.parametrize('n_groups', [1, 3])
@pytest.mark.parametrize('name', TORCH)
def test_torch(name, n_groups, tmp_path):
    learn = torch_learner(name, n_groups)
    learn.path = tmp_path
    defaults = inspect.signature(TORCH[name]).parameters
    check(learn, 'momentum' in defaults or 'betas' in defaults, n_groups)
    weights = [p.tolist() for p in learn.model.parameters()]
    file = learn.save('run')
    torch.load(file, weights_only=True)
    learn.load('run', weights_only=True)
    assert [p.tolist() for p in learn.model.parameters()] == weights

@pytest.mark.parametrize('opt', [Adam, partial(SGD, mom=.9), partial(OptimWrapper, opt=torch.optim.AdamW)], ids=['Adam', 'SGD', 'AdamW'])
def test_saved_and_loaded_without_an_allowlist_of_ours(opt, tmp_path):
    learn = learner(3, 2, opt_func=opt, path=tmp_path)
    learn.fit_one_cycle(1, slice(1e-4, 1e-3))
    state = learn.opt.state_dict()
    file = learn.save('run')
    learn.load('run', weights_only=True)
    types = {type(v) for g in groups_of(learn.opt) for k, v in g.items() if k in ('lr', 'mom', 'betas')}
    assert types <= {float, tuple} and str(learn.opt.state_dict()) == str(state) and file.exists()

@pytest.mark.parametrize('name', ['Adam', 'AdamW', 'NAdam', 'RAdam'])
@pytest.mark.parametrize('n_groups', [1, 2])
def test_a_tensor_lr_is_filled_in_place(name, n_groups):
    learn = torch_learner(name, n_groups, capturable=False)
    learn.create_opt()
    tensors = [torch.tensor(.5) for _ in range(n_groups)]
    for g, t in zip(learn.opt.opt.param_groups, tensors): g['lr'] = t
    seen = []
    class Look(Spy):
        def before_step(self): seen.append([(id(g['lr']), g['lr'].item()) for g in self.opt.opt.param_groups])
    learn.fit_one_cycle(1, slice(1e-4, 1e-3), cbs=Look())
    assert [[i for i, _ in row] for row in seen] == [[id(t) for t in tensors]] * 3
    assert [[v for _, v in row] for row in seen] == pytest.approx(learn.recorder.plan.lrs.astype('float32'))

def test_frozen_groups_and_groups_of_their_own_decay():
    learn, spy = learner(3, 3), Spy()
    learn.freeze()
    learn.opt.set_hyper('wd', [.1, .2, .3])
    first = learn.model[0].weight.clone()
    learn.fit_one_cycle(1, slice(1e-3, 1e-1), cbs=spy)
    assert spy.seen_lrs == learn.recorder.plan.lrs.tolist() and torch.equal(first, learn.model[0].weight)
    assert [h['wd'] for h in learn.opt.hypers] == [.1, .2, .3] and [p.requires_grad for p in learn.model[0].parameters()] == [False, False]

def test_state_loaded_in_the_middle_of_a_fit():
    class Reload(Spy):
        def before_epoch(self): self.opt.load_state_dict(self.opt.state_dict())
    for opt in (Adam, partial(OptimWrapper, opt=torch.optim.AdamW)):
        learn, spy = learner(3, 2, opt_func=opt), Reload()
        learn.fit_one_cycle(3, cbs=spy)
        assert spy.seen_lrs == learn.recorder.plan.lrs.tolist()

@pytest.mark.parametrize('name', TORCH)
def test_a_plain_fit_before_and_after_the_cycle(name):
    learn = torch_learner(name, 1)
    for fit in (learn.fit, learn.fit_one_cycle, learn.fit): fit(1)

def test_three_betas():
    class Three(torch.optim.Adam):
        def __init__(self, params, lr=.1):
            super().__init__(params, lr=lr)
            for g in self.param_groups: g['betas'] = (*g['betas'], .5)
        def step(self, closure=None): pass
    learn, spy = learner(3, 1, opt_func=partial(OptimWrapper, opt=Three)), Spy()
    learn.fit_one_cycle(1, cbs=spy)
    assert [m for m, in spy.seen_moms] == learn.recorder.plan.moms.tolist() and learn.opt.opt.param_groups[0]['betas'] == (.9, .999, .5)
