"""`fit_one_cycle` and its neighbours on a `Learner`."""
import inspect
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastai.basics import SGD, Adam, OptimWrapper, partial
from fastai.callback.schedule import ParamScheduler

from helpers import Spy, frozen_state, groups_of, learner, momentum
from onecycle_callback import OneCycle, OneCycleSchedule

OPTS = dict(sgd=partial(SGD, mom=.9), adam=Adam, torch_sgd=partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9), adamw=partial(OptimWrapper, opt=torch.optim.AdamW))
LRS = dict(number=.1, slice_high=slice(.1), slice_both=slice(1e-3, .1), each=[.01, .03, .1], default=None)

@pytest.mark.parametrize('opt', OPTS)
@pytest.mark.parametrize('max_lr', LRS)
@pytest.mark.parametrize('n_groups', [1, 3])
def test_plan_equals_run(opt, max_lr, n_groups):
    if max_lr == 'each' and n_groups == 1: max_lr = [.1]
    else: max_lr = LRS[max_lr]
    learn, spy = learner(5, n_groups, opt_func=OPTS[opt]), Spy()
    plan = learn.preview_one_cycle(3, max_lr, pct_start=.4)
    learn.fit_one_cycle(3, max_lr, pct_start=.4, cbs=spy)
    assert plan.lrs.shape == (15, n_groups)
    assert spy.seen_lrs == plan.lrs.tolist()
    assert spy.seen_moms == [[m] * n_groups for m in plan.moms.tolist()]
    assert learn.recorder.hps == dict(lr=plan.lrs[:, -1].tolist(), mom=plan.moms.tolist())
    assert learn.recorder.plan == plan

def test_positional_and_by_name_and_the_callback_by_itself():
    runs = []
    for call in (lambda l: l.fit_one_cycle(2, .2, 10., .5), lambda l: l.fit_one_cycle(cycle_len=2, max_lr=.2, div_factor=10., pct_start=.5),
                 lambda l: l.fit_one_cycle(n_epoch=2, lr_max=.2, div=10., pct_start=.5), lambda l: l.fit_one_cycle(cyc_len=2, max_lr=.2, div_factor=10, pct_start=.5),
                 lambda l: l.fit(2, cbs=OneCycle(.2, 10., .5)), lambda l: l.fit(2, cbs=OneCycle(lr_max=.2, div=10., pct_start=.5))):
        learn = learner()
        call(learn)
        runs.append((learn.recorder.hps, [p.tolist() for p in learn.model.parameters()]))
    assert all(run[0] == runs[0][0] for run in runs)
    assert all(run[0]['lr'][5] == .2 for run in runs)

IMPORTS = ['import onecycle_callback', 'from fastai.basics import *', 'from fastai.callback.all import *', 'import fastai.callback.schedule',
           'from fastai.tabular.all import *', 'from fastai.text.all import *', 'from fastai.collab import *']
@pytest.mark.parametrize('lines', [[IMPORTS[0], *IMPORTS[1:]], [*IMPORTS[1:], IMPORTS[0]], [IMPORTS[1], IMPORTS[0], *IMPORTS[2:]], [IMPORTS[3], IMPORTS[0], IMPORTS[4]]],
                         ids=['first', 'last', 'after basics', 'after schedule'])
def test_any_order_of_imports(lines):
    code = '\n'.join(lines) + '\nfrom fastai.learner import Learner\nimport inspect\nprint(*inspect.signature(Learner.fit_one_cycle).parameters)\n' \
        'from fastai.learner import Recorder\nprint(Recorder.plot_sched.__module__, Learner.fine_tune.__module__)'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0].split()[:5] == ['self', 'cycle_len', 'max_lr', 'div_factor', 'pct_start']
    assert out[1] == 'onecycle_callback.recorder onecycle_callback.learner'

def test_vision_is_not_imported():
    code = "import sys, onecycle_callback, onecycle_callback.demo; print([m for m in sys.modules if m.startswith('fastai.vision')])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'

def test_signature():
    signature = inspect.signature(learner().fit_one_cycle)
    assert str(signature).startswith('(cycle_len: int, max_lr=None, div_factor: float = 25.0, pct_start: float = 0.3, *, final_div')
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in signature.parameters.values())
    fields = inspect.signature(OneCycleSchedule).parameters
    for f in (learner().fit_one_cycle, learner().preview_one_cycle, OneCycle):
        shared = {k: p.default for k, p in inspect.signature(f).parameters.items() if k in fields}
        assert shared == {k: p.default for k, p in fields.items()}

def test_fine_tune_ends_where_fastai_does():
    ours, theirs = learner(n_groups=3), learner(n_groups=3)
    ours.fine_tune(2, 1e-2, freeze_epochs=1)
    theirs.freeze(); theirs.unfreeze()
    assert ours.recorder.hps['lr'][-1] == pytest.approx(5e-3 / 1e5, rel=1e-12)
    assert ours.recorder.hps['lr'][3] == 5e-3 and ours.recorder.hps['lr'][0] == 1e-3
    assert ours.recorder.plan.lrs.max(0) == pytest.approx([5e-5, 5e-4, 5e-3])
    assert all(p.requires_grad for p in ours.model.parameters())

def test_fine_tune_refuses_before_it_freezes():
    for bad in (dict(pct_start=1.5), dict(div=0), dict(div_factor=3.), dict(base_lr=-1), dict(lr_mult=0), dict(final_div=0), dict(nonsense=1), dict(freeze_epochs=-1), dict(freeze_epochs=1.5), dict(wd='much')):
        learn = learner(n_groups=3)
        before = frozen_state(learn)
        with pytest.raises((ValueError, TypeError), match=next(iter(bad))): learn.fine_tune(2, **bad)
        assert frozen_state(learn) == before

def test_a_part_of_a_cycle():
    learn, plan = learner(), learner().preview_one_cycle(4, .1)
    learn.fit_one_cycle(4, .1, stop_epoch=2)
    assert learn.recorder.hps['lr'] == plan.lrs[:10, 0].tolist()
    assert len(learn.recorder.values) == 2
    learn.fit_one_cycle(4, .1, start_epoch=2)
    assert learn.recorder.hps['lr'] == plan.lrs[10:, 0].tolist()
    assert len(learn.recorder.values) == 2
    learn.fit_one_cycle(4, .1, start_epoch=1, stop_epoch=3)
    assert learn.recorder.hps['lr'] == plan.lrs[5:15, 0].tolist()
    assert learn.recorder.plot_lr().lines[0].get_xdata().tolist() == list(range(5, 15))
    assert '_do_fit' not in vars(learn)

def test_preview_changes_nothing():
    learn = learner(n_groups=2)
    before = frozen_state(learn)
    plan = learn.preview_one_cycle(3, slice(.1), moms=(.9, .8), three_phase=True)
    plan.table, plan.plot(), plan._repr_html_()
    assert frozen_state(learn) == before
    learn.fit_one_cycle(1)
    before = frozen_state(learn)
    learn.preview_one_cycle(3)
    assert frozen_state(learn) == before
    ready = OptimWrapper(opt=torch.optim.SGD(learn.model.parameters(), lr=.1, momentum=.9))
    ready.opt.state['kept'] = 1
    learn = learner(opt_func=ready)
    learn.preview_one_cycle(1)
    assert ready.opt.state['kept'] == 1 and learn.opt is None

def test_default_lr_is_the_one_that_fastai_would_use():
    assert learner(lr=.3).preview_one_cycle(1).lrs.max() == .3
    assert learner(lr=slice(.1, .3), n_groups=2).preview_one_cycle(1).lrs.max(0).tolist() == [.1, .3]
    learn = learner(opt_func=partial(SGD, lr=.7, mom=.9))
    assert learn.preview_one_cycle(1).lrs.max() == .7 and learn.lr != .7
    learn.fit_one_cycle(1)
    assert max(learn.recorder.hps['lr']) == .7

def test_wd_and_reset_opt():
    learn = learner(n_groups=2)
    learn.fit_one_cycle(1, wd=.5)
    assert [h['wd'] for h in learn.opt.hypers] == [.5, .5]
    old = learn.opt
    learn.fit_one_cycle(1, wd=[.1, .2])
    assert learn.opt is old and [h['wd'] for h in learn.opt.hypers] == [.1, .2]
    learn.fit_one_cycle(1, reset_opt=True)
    assert learn.opt is not old

def test_reset_opt_looks_at_the_new_optimizer():
    learn = learner(n_groups=1)
    learn.fit_one_cycle(1)
    learn.splitter = lambda m: [[m[0].weight], [m[0].bias]]
    learn.fit_one_cycle(1, [.01, .1], reset_opt=True)
    assert learn.recorder.plan.n_groups == 2

def test_moms_default_to_the_learners_and_are_put_back():
    learn = learner(moms=(.8, .7, .6))
    learn.fit_one_cycle(2)
    assert (learn.recorder.hps['mom'][0], learn.recorder.hps['mom'][3], learn.recorder.hps['mom'][-1]) == (.8, .7, .6)
    assert learn.opt.hypers[0]['mom'] == .9
    learn.fit_one_cycle(2, moms=(.8, .7))
    assert (learn.recorder.hps['mom'][3], learn.recorder.hps['mom'][-1]) == (.7, .8)
    learn.fit_one_cycle(2, moms=False)
    assert list(learn.recorder.hps) == ['lr'] and learn.opt.hypers[0]['mom'] == .9

def test_the_optimizer_holds_the_first_value_before_the_first_batch():
    class Early(Spy):
        order = 100
        def before_train(self): self.first = getattr(self, 'first', None) or (groups_of(self.opt)[0]['lr'], momentum(groups_of(self.opt)[0]))
        def before_batch(self): pass
    spy = Early()
    learner().fit_one_cycle(1, .1, cbs=spy)
    assert spy.first == (.1/25, .95)

def test_lr_find_before_and_between_with_the_callback_always_there():
    learn = learner(40, cbs=OneCycle(.1))
    learn.fit(1)
    hps = learn.recorder.hps
    assert hps['lr'] == OneCycleSchedule(.1).plan(1, 40).lrs[:, 0].tolist()
    learn.validate()
    learn.get_preds()
    assert learn.recorder.hps == hps and learn.opt.hypers[0]['mom'] == .9
    learn.lr_find(show_plot=False, num_it=30)
    assert learn.recorder.lrs[0] == pytest.approx(1e-7) and learn.recorder.lrs[-1] > 1e-7
    learn.fit(1)
    assert learn.recorder.hps == hps

def test_callback_can_be_pickled_after_a_fit():
    cb = OneCycle(.1)
    learner().fit(1, cbs=cb)
    assert pickle.loads(pickle.dumps(cb)).plan == cb.plan

def test_second_scheduler():
    learn = learner()
    learn.fit_one_cycle(2, cbs=ParamScheduler({'wd': lambda pct: pct}))
    assert list(learn.recorder.hps) == ['wd', 'lr', 'mom'] and {len(v) for v in learn.recorder.hps.values()} == {10}
    axes = learn.recorder.plot_sched()
    assert [a.get_ylabel() for a in axes] == ['weight decay', 'learning rate', 'momentum'] and len(axes[0].figure.axes) == 3

@pytest.mark.parametrize('n_epoch, n_batch', list(itertools.product([1, 3, 10, 300], [1, 4])))
def test_pictures(n_epoch, n_batch):
    plan = OneCycleSchedule([.01, .1]).plan(n_epoch, n_batch, 2)
    left, right = plan.plot(figsize=(9, 3))
    assert left.figure.get_size_inches().tolist() == [9, 3]
    marks = [line for line in left.lines if line.get_linestyle() == ':']
    assert 1 <= len(marks) <= 12
    assert [t.get_text() for t in left.get_legend().get_texts()] == (['group 0', 'group 1']) and right.get_legend() is None
    assert left.get_xlabel() == right.get_xlabel() == 'batch'
    left.figure.canvas.draw()

def test_axes_of_ones_own():
    import matplotlib.pyplot as plt
    learn = learner()
    learn.fit_one_cycle(1)
    _, ax = plt.subplots()
    assert learn.recorder.plot_lr(ax=ax) is ax
    assert OneCycleSchedule(.1, moms=False).plan(1, 5).plot(ax=ax) is ax
    with pytest.raises(ValueError, match='ax must be 2 axes'): learn.recorder.plot_lr(show_moms=True, ax=ax)

def test_nothing_to_draw():
    learn = learner()
    for draw in (learn.recorder.plot_lr, learn.recorder.plot_sched):
        with pytest.raises(ValueError, match='nothing to draw'): draw()
    learn.fit_one_cycle(1)
    with pytest.raises(ValueError, match="keys must be out of lr, mom"): learn.recorder.plot_sched('wd')
    learn.fit(1)
    for draw in (learn.recorder.plot_lr, learn.recorder.plot_sched):
        with pytest.raises(ValueError, match='nothing to draw'): draw()

def test_groups_of_a_run_are_drawn():
    learn = learner(n_groups=3)
    learn.fit_one_cycle(2, slice(1e-3, 1e-1))
    ax = learn.recorder.plot_lr()
    drawn = np.array([line.get_ydata() for line in ax.lines if line.get_linestyle() == '-' and len(line.get_xdata()) == 10])
    assert (drawn.T == learn.recorder.plan.lrs).all()
