"""A look ahead leaves the model's parameters alone, and what stands in for a fastai optimizer trains as there."""
import pytest
import torch
from torch import nn
from fastai.basics import Adam, GetAttr, L, Optimizer, OptimWrapper, SGD, partial
from fastai.callback.all import Callback

from support.helpers import Spy, frozen_state, layers, learner
from onecycle_callback import OneCycle

class Hooked:
    "Make optimizers that count how often a gradient reaches a parameter that they were made for."
    def __init__(self): self.n_calls = self.n_made = 0
    def count(self, p): self.n_calls += 1
    def __call__(self, groups, lr, **kwargs):
        self.n_made += 1
        for p in L(groups).concat(): p.register_post_accumulate_grad_hook(self.count)
        return Adam(groups, lr=lr)

LOOKS = {'none': lambda learn: None, 'preview_one_cycle': lambda learn: learn.preview_one_cycle(1, .1),
         'compare_max_lr': lambda learn: learn.compare_max_lr([.01, .1]),
         'refused': lambda learn: pytest.raises(ValueError, learn.fit_one_cycle, 1, -1)}
FITS = {'fit_one_cycle': lambda learn: learn.fit_one_cycle(1, .1),
        'reset_opt': lambda learn: learn.fit_one_cycle(1, .1, reset_opt=True),
        'callback': lambda learn: learn.fit(1, cbs=OneCycle(.1))}

@pytest.mark.parametrize('look', LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize('fit', FITS.values(), ids=FITS)
def test_an_optimizer_with_hooks_is_called_once_a_batch(look, fit):
    opt_func = Hooked()
    learn = learner(opt_func=opt_func)
    look(learn)
    opt_func.n_calls = 0
    fit(learn)
    assert opt_func.n_calls == 12 * 2

def test_stand_ins_look_like_the_parameters():
    seen = []
    def opt_func(groups, lr):
        seen.append([[(p.shape, p.dtype, p.requires_grad, type(p)) for p in group] for group in groups])
        return SGD(groups, lr=lr, mom=.9)
    learn = learner(n_groups=3, opt_func=opt_func)
    learn.model[0].half().requires_grad_(False)
    learn.preview_one_cycle(1)
    learn.create_opt()
    assert seen[0] == seen[1] and len(seen[0]) == 3

class Wrapper(GetAttr):
    "An optimizer around another one, as other libraries write them."
    _default = 'opt'
    def __init__(self, opt): self.opt = opt
    def step(self): self.opt.step()

class Two(Optimizer):
    "Two optimizers behind the interface of one."
    def __init__(self, *opts): self.opts, self.state, self.defaults, self.train_bn = opts, opts[0].state, {}, True
    hypers = property(lambda self: L(h for o in self.opts for h in o.hypers), lambda self, v: None)
    param_lists = property(lambda self: L(p for o in self.opts for p in o.param_lists), lambda self, v: None)
    def step(self, closure=None): [o.step() for o in self.opts]
    def zero_grad(self): [o.zero_grad() for o in self.opts]

class Mixed(torch.optim.Optimizer):
    "A torch optimizer whose groups have different settings."
    def __init__(self, groups):
        super().__init__([dict(params=params, **own) for params, own in
                          zip(groups, [dict(momentum=.9), dict(betas=(.9, .95))])], dict(lr=1e-3))
    def step(self, closure=None): pass

class Noted(Optimizer):
    "An optimizer that does something of its own where a hyper-parameter is set."
    def set_hyper(self, k, v):
        self.__dict__.setdefault('sets', []).append((k, v))
        super().set_hyper(k, v)

def wrapped(groups, lr, **kwargs): return Wrapper(OptimWrapper(groups, opt=torch.optim.AdamW, lr=lr))
def two(groups, lr, **kwargs): return Two(Adam(L(groups)[:1], lr=lr), SGD(L(groups)[1:], lr=lr, mom=.9))
def noted(groups, lr, **kwargs): return Noted(groups, SGD(groups, lr=lr, mom=.9).cbs, lr=lr, mom=.9)

LOOK_ALIKES = dict(wrapped=wrapped, two=two, noted=noted)

class Hypers(Callback):
    "Record what fastai's interface says of each batch."
    order, run_valid = 1000, False
    def before_fit(self): self.seen = []
    def before_batch(self): self.seen.append([(h['lr'], h['mom']) for h in self.opt.hypers])

@pytest.mark.parametrize('opt_func', LOOK_ALIKES.values(), ids=LOOK_ALIKES)
def test_look_alikes_train_with_the_plan(opt_func):
    learn, hypers = learner(n_groups=2, opt_func=opt_func), Hypers()
    plan = learn.preview_one_cycle(2, slice(.01, .1))
    learn.fit_one_cycle(2, slice(.01, .1), cbs=hypers)
    assert hypers.seen == [[(lr, mom) for lr in lrs] for lrs, mom in zip(plan.lrs.tolist(), plan.moms.tolist())]
    assert [h['mom'] for h in learn.opt.hypers] == [.9, .9]
    assert learn.recorder.hps == dict(lr=plan.lrs[:, -1].tolist(), mom=plan.moms.tolist())

def test_every_value_goes_through_a_set_hyper_of_its_own():
    learn = learner(opt_func=noted)
    learn.fit_one_cycle(1, .1)
    lrs = [v for k, v in learn.opt.sets if k == 'lr']
    assert [v[0] for v in lrs if isinstance(v, list)][-12:] == learn.recorder.plan.lrs[:, 0].tolist()

def test_one_that_was_set_on_the_optimizer_itself():
    learn, calls = learner(), []
    learn.create_opt()
    inner = learn.opt.set_hyper
    learn.opt.set_hyper = lambda k, v: calls.append(k) or inner(k, v)
    learn.fit_one_cycle(1, .1)
    assert calls.count('mom') >= 12

def test_groups_with_different_settings():
    learn, seen = learner(n_groups=2), []
    learn.opt_func = OptimWrapper(opt=Mixed(layers(learn.model)))
    class Look(Callback):
        def after_step(self):
            groups = self.opt.opt.param_groups
            seen.append([g['lr'] for g in groups] + [groups[0]['momentum']])
    learn.fit_one_cycle(1, .1, cbs=Look())
    plan = learn.recorder.plan
    assert seen == [[*lrs, mom] for lrs, mom in zip(plan.lrs.tolist(), plan.moms.tolist())]
    assert learn.opt.opt.param_groups[0]['momentum'] == .9 and learn.opt.opt.param_groups[1]['betas'] == (.9, .95)

def test_a_step_that_takes_momentum_from_its_keyword_arguments():
    learn, seen = learner(), []
    def step(p, lr, **kwargs): seen.append(kwargs['mom'])
    learn.opt_func = partial(Optimizer, cbs=[step], mom=.9)
    learn.fit_one_cycle(1, .01)
    assert seen[::2] == learn.recorder.plan.moms.tolist()

# An own `create_opt`

def own(learn):
    def create_opt(): learn.opt = SGD(list(learn.model.parameters()), lr=learn.lr, mom=.8)
    learn.create_opt = create_opt
    return learn

def test_create_opt_replaced_on_the_learner():
    learn, spy = own(learner(n_groups=2)), Spy()
    learn.fit_one_cycle(1, .1, cbs=spy)
    assert len(spy.seen_lrs[0]) == 1 and learn.opt.hypers[0]['mom'] == .8

def test_a_preview_does_not_call_it():
    learn = own(learner(n_groups=2))
    before = frozen_state(learn)
    with pytest.raises(ValueError, match='learn.opt must be there, since .* own create_opt'): learn.preview_one_cycle(1)
    assert frozen_state(learn) == before
    learn.create_opt()
    assert learn.preview_one_cycle(1).n_groups == 1

def test_with_the_callback_on_its_own():
    learn, spy = own(learner(n_groups=2)), Spy()
    learn.fit(1, cbs=[OneCycle(.1), spy])
    assert spy.seen_lrs == learn.recorder.plan.lrs.tolist()

# Loaders and bars

class Duck:
    "What a `Learner` needs of its data, and no more."
    def __init__(self, train, valid): self.train, self.valid, self.device, self.path = train, valid, 'cpu', '.'
    def __getitem__(self, i): return (self.train, self.valid)[i]

def test_loaders_that_are_no_dataloaders():
    from fastai.basics import Learner
    train, valid = learner().dls.loaders
    learn, spy = Learner(Duck(train, valid), nn.Linear(3, 1), loss_func=nn.MSELoss()), Spy()
    learn.fit_one_cycle(2, cbs=spy)
    assert [lr for lr, in spy.seen_lrs] == learn.recorder.plan.lrs[:, 0].tolist() and len(spy.seen_lrs) == 24

@pytest.mark.parametrize('kwargs', [{}, dict(start_epoch=1), dict(stop_epoch=1)], ids=str)
def test_a_bar_of_its_own(kwargs):
    class progress(Callback):
        def before_fit(self): self.mbar = type('Bar', (), dict(update=lambda self, n: None))()
    learn = learner()
    learn.remove_cb(learn.progress)
    learn.add_cb(progress())
    learn.fit_one_cycle(2, **kwargs)
    assert len(learn.recorder.values) == 2 - len(kwargs)
