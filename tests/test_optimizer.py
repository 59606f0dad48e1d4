"""Every optimizer of fastai and torch: train, and read LR and momentum back from the optimizer itself at each batch."""
import inspect
from copy import deepcopy

import pytest
import torch
from torch import nn
from fastai.basics import Adam, Callback, DataLoader, DataLoaders, Learner, OptimWrapper, SGD, partial
from fastai.optimizer import Lamb, Larc, Lookahead, QHAdam, RAdam, RMSProp, ranger

import onecycle_callback  # noqa: F401
from support.helpers import Spy, groups_of, learner
from onecycle_callback.optimizer import OptAdapter

pytestmark = pytest.mark.matrix

FASTAI = dict(SGD_mom=(partial(SGD, mom=.9), True), SGD=(SGD, False), RMSProp_mom=(partial(RMSProp, mom=.9), True),
              RMSProp=(RMSProp, False), Adam=(Adam, True), RAdam=(RAdam, True), QHAdam=(QHAdam, True),
              Larc=(Larc, True), Larc_no_mom=(partial(Larc, mom=0.), False), Lamb=(Lamb, True), ranger=(ranger, True),
              Lookahead=(lambda p, lr: Lookahead(SGD(p, lr=lr, mom=.9)), True))
# LBFGS needs a closure, to evaluate the model again inside a step. The base class is no optimizer.
LEFT_OUT = {'LBFGS', 'Optimizer'}
TORCH = {name: c for name, c in vars(torch.optim).items()
         if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer) and name not in LEFT_OUT}
HIGHS = slice(1e-4, 1e-3)

def test_the_list_is_the_modules():
    assert {'SGD', 'AdamW', 'NAdam', 'Adagrad', 'RMSprop', 'SparseAdam'} <= set(TORCH) and len(TORCH) >= 13

def others(learn):
    "Return all that each group holds except its weights and LR, including Adam's second beta."
    return [{k: v for k, v in g.items() if k not in ('lr', 'params')} for g in groups_of(learn.opt)]

def check(learn, has_momentum, n_groups):
    "Check that a cycle trains as planned and leaves the optimizer as it was."
    spy = Spy()
    learn.create_opt()
    before = others(learn)
    plan = learn.preview_one_cycle(1, HIGHS)
    assert (plan.moms is not None) == has_momentum
    learn.fit_one_cycle(1, HIGHS, cbs=spy)
    assert spy.seen_lrs == plan.lrs.tolist() and len(spy.seen_lrs) == 12
    assert {type(g['lr']) for g in groups_of(learn.opt)} | {type(v) for v in learn.recorder.hps['lr']} == {float}
    if has_momentum:
        assert spy.seen_moms == [[m] * n_groups for m in plan.moms.tolist()]
        assert learn.recorder.hps['mom'] == plan.moms.tolist()
        assert {type(m) for m in sum(spy.seen_moms, learn.recorder.hps['mom'])} == {float}
    else:
        assert list(learn.recorder.hps) == ['lr']
        assert not isinstance(learn.recorder.plot_lr(show_moms=True), list)
    assert others(learn) == before

n_groups_1_and_3 = pytest.mark.parametrize('n_groups', [1, 3])

@n_groups_1_and_3
@pytest.mark.parametrize('name', FASTAI)
def test_fastai(name, n_groups):
    opt_func, has_momentum = FASTAI[name]
    check(learner(n_groups=n_groups, opt_func=opt_func), has_momentum, n_groups)

class Bag(nn.Module):
    "A model with weights that the optimizer can step: with sparse gradients, or matrices, which all of them can."
    def __init__(self, n_groups, sparse):
        super().__init__()
        self.parts = nn.ModuleList(nn.Embedding(5, 4, sparse=True) if sparse else nn.Linear(4, 4, bias=False)
                                   for _ in range(n_groups))
        self.sparse = sparse
    def forward(self, i):
        x = i if self.sparse else torch.nn.functional.one_hot(i, 4).float()
        return sum(part(x) for part in self.parts).sum(-1, keepdim=True)

def parts(model): return [list(part.parameters()) for part in model.parts]

def torch_learner(name, n_groups, **kwargs):
    items = [(torch.tensor(i % 4), torch.ones(1)) for i in range(24)]
    dl = DataLoader(items, bs=2, device='cpu')
    return Learner(DataLoaders(dl, dl, device='cpu'), Bag(n_groups, name == 'SparseAdam'), loss_func=nn.MSELoss(),
                   opt_func=partial(OptimWrapper, opt=TORCH[name]), splitter=parts, **kwargs)

@n_groups_1_and_3
@pytest.mark.parametrize('name', TORCH)
def test_torch(name, n_groups, tmp_path):
    learn = torch_learner(name, n_groups, path=tmp_path)
    defaults = inspect.signature(TORCH[name]).parameters
    check(learn, 'momentum' in defaults or 'betas' in defaults, n_groups)
    weights = [p.tolist() for p in learn.model.parameters()]
    torch.load(learn.save('run'), weights_only=True)
    with torch.no_grad():
        for p in learn.model.parameters(): p += 1
    learn.load('run', weights_only=True)
    assert [p.tolist() for p in learn.model.parameters()] == weights

OPTS = dict(Adam=Adam, SGD=partial(SGD, mom=.9), AdamW=partial(OptimWrapper, opt=torch.optim.AdamW))
opts = pytest.mark.parametrize('opt', OPTS.values(), ids=OPTS)

@opts
def test_saved_and_loaded_without_an_allowlist_of_ours(opt, tmp_path):
    learn = learner(n_groups=2, opt_func=opt, path=tmp_path)
    learn.fit_one_cycle(1, HIGHS)
    state = str(learn.opt.state_dict())
    learn.save('run')
    learn.opt.set_hyper('lr', .5)
    learn.load('run', weights_only=True)
    types = {type(v) for g in groups_of(learn.opt) for k, v in g.items() if k in ('lr', 'mom', 'betas')}
    assert types <= {float, tuple} and str(learn.opt.state_dict()) == state

@pytest.mark.parametrize('name', ['Adam', 'AdamW', 'NAdam', 'RAdam'])
@pytest.mark.parametrize('n_groups', [1, 2])
def test_a_tensor_lr_is_filled_in_place(name, n_groups):
    learn = torch_learner(name, n_groups)
    learn.create_opt()
    tensors = [torch.tensor(.5) for _ in range(n_groups)]
    for g, t in zip(learn.opt.opt.param_groups, tensors): g['lr'] = t
    seen = []
    class Look(Spy):
        def before_step(self): seen.append([(id(g['lr']), g['lr'].item()) for g in self.opt.opt.param_groups])
    learn.fit_one_cycle(1, HIGHS, cbs=Look())
    assert [[i for i, _ in row] for row in seen] == [[id(t) for t in tensors]] * 12
    assert [[v for _, v in row] for row in seen] == learn.recorder.plan.lrs.astype('float32').tolist()

def test_a_tensor_lr_that_two_groups_share():
    learn, spy = torch_learner('AdamW', 2), Spy()
    learn.create_opt()
    shared = torch.tensor(.5)
    for g in learn.opt.opt.param_groups: g['lr'] = shared
    learn.fit_one_cycle(1, HIGHS, cbs=spy)
    assert spy.seen_lrs == learn.recorder.plan.lrs.astype('float32').tolist()

@pytest.mark.parametrize('n_groups', [1, 2])
@pytest.mark.parametrize('name', ['Adam', 'AdamW'])
def test_a_compiled_step_is_compiled_once(name, n_groups):
    "What changes per batch lies in tensors: those of the LR, and of the momentum that a cycle moves too."
    learn = torch_learner(name, n_groups)
    learn.create_opt()
    for g in learn.opt.opt.param_groups: g.update(lr=torch.tensor(.5), betas=(torch.tensor(.8), torch.tensor(.99)))
    opt, seen, n_graphs = learn.opt.opt, [], []
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    opt.step = torch.compile(opt.step, backend='eager')
    class Look(Callback):
        def after_step(self):
            n_graphs.append(counters['stats']['unique_graphs'])
            seen.append(([g['lr'].item() for g in opt.param_groups], [g['betas'][0].item() for g in opt.param_groups]))
    learn.fit_one_cycle(2, HIGHS, cbs=Look())
    plan = learn.recorder.plan
    lrs, moms = plan.lrs.astype('float32').tolist(), plan.moms.astype('float32').tolist()
    assert n_graphs == [1] * 24 and seen == [(lr, [mom] * n_groups) for lr, mom in zip(lrs, moms)]
    assert learn.recorder.hps['mom'] == plan.moms.tolist()
    for g in opt.param_groups: assert [*map(float, g['betas'])] == pytest.approx([.8, .99])

def test_frozen_groups_and_groups_of_their_own_decay():
    learn, spy = learner(n_groups=3), Spy()
    learn.freeze()
    learn.opt.set_hyper('wd', [.1, .2, .3])
    first = learn.model[0].weight.clone()
    learn.fit_one_cycle(1, slice(1e-3, 1e-1), cbs=spy)
    assert spy.seen_lrs == learn.recorder.plan.lrs.tolist() and torch.equal(first, learn.model[0].weight)
    assert [h['wd'] for h in learn.opt.hypers] == [.1, .2, .3]
    assert [p.requires_grad for p in learn.model[0].parameters()] == [False, False]

@opts
def test_state_loaded_in_the_middle_of_a_fit(opt):
    class Reload(Spy):
        def before_epoch(self): self.opt.load_state_dict(deepcopy(self.opt.state_dict()))
    learn, spy = learner(n_groups=2, opt_func=opt), Reload()
    learn.fit_one_cycle(3, cbs=spy)
    assert spy.seen_lrs == learn.recorder.plan.lrs.tolist()
    assert spy.seen_moms == [[m, m] for m in learn.recorder.plan.moms.tolist()]

@pytest.mark.parametrize('name', TORCH)
def test_a_plain_fit_before_and_after_the_cycle(name):
    learn, spies = torch_learner(name, 1), [Spy(), Spy(), Spy()]
    for fit, spy in zip((learn.fit, learn.fit_one_cycle, learn.fit), spies): fit(1, cbs=spy)
    before, cycle, after = spies
    assert before.seen_lrs == after.seen_lrs == [[learn.lr]] * 12 and before.seen_moms == after.seen_moms
    assert cycle.seen_lrs == learn.preview_one_cycle(1).lrs.tolist()

def test_three_betas():
    class Three(torch.optim.Adam):
        def __init__(self, params, lr=.1):
            super().__init__(params, lr=lr)
            for g in self.param_groups: g['betas'] = (*g['betas'], .5)
        def step(self, closure=None): pass
    learn, spy = learner(opt_func=partial(OptimWrapper, opt=Three)), Spy()
    learn.fit_one_cycle(1, cbs=spy)
    assert [m for m, in spy.seen_moms] == learn.recorder.plan.moms.tolist()
    assert learn.opt.opt.param_groups[0]['betas'] == (.9, .999, .5)

# The adapter by itself

def weights(): return [nn.Parameter(torch.zeros(2, 2))]
def wrapped(opt, **kwargs): return OptimWrapper(weights(), opt, **kwargs)

@pytest.mark.parametrize('make, name, mom_path', [
    (lambda: SGD(weights(), lr=.1, mom=.9), 'this Optimizer (steps: weight_decay, average_grad, momentum_step)', 'mom'),
    (lambda: SGD(weights(), lr=.1), 'this Optimizer (steps: weight_decay, sgd_step)', None),
    (lambda: Lookahead(wrapped(torch.optim.AdamW)), 'Lookahead(AdamW)', 'betas__0'),
    (lambda: wrapped(torch.optim.RMSprop), 'RMSprop', 'momentum'),
    (lambda: wrapped(torch.optim.Adagrad), 'Adagrad', None)],
    ids=['SGD with momentum', 'SGD', 'Lookahead', 'RMSprop', 'Adagrad'])
def test_its_name_and_where_it_keeps_momentum(make, name, mom_path):
    opt = OptAdapter(make())
    assert (opt.name, opt.mom_path, opt.has_momentum, len(opt.groups)) == (name, mom_path, mom_path is not None, 1)

@pytest.mark.parametrize('tensor_lr', [False, True], ids=['float', 'tensor'])
@pytest.mark.parametrize('with_mom', [False, True], ids=['', 'mom'])
@pytest.mark.parametrize('make', [lambda: Adam(weights(), lr=.1, mom=.9), lambda: wrapped(torch.optim.AdamW)],
                         ids=['fastai', 'torch'])
def test_each_way_to_write(make, with_mom, tensor_lr):
    opt = OptAdapter(make())
    [before], group = opt.moms, opt.groups[0]
    if tensor_lr: group['lr'] = torch.tensor(.1)
    lr = group['lr']
    opt.writer(with_mom)([.25], .5)
    assert opt.lrs == [.25] and opt.moms == [.5 if with_mom else before]
    assert (group['lr'] is lr) == tensor_lr and group.get('betas', (0, .999))[1] == .999

@pytest.mark.parametrize('momentum', [0, .9])
def test_a_torch_rmsprop_gets_the_buffers_that_momentum_needs(momentum):
    opt = wrapped(torch.optim.RMSprop, momentum=momentum)
    [p], = opt.param_lists
    def step():
        p.grad = torch.ones(2, 2)
        opt.step()
        return opt.opt.state[p].get('momentum_buffer')
    buffer = step()
    OptAdapter(opt).add_momentum_buffers()
    OptAdapter(opt).set_moms([.9])
    assert step() is not None and (buffer is None) == (momentum == 0)
    if momentum: assert opt.opt.state[p]['momentum_buffer'] is buffer
