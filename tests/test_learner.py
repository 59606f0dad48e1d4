"""`fit_one_cycle`, `preview_one_cycle` and `fine_tune` of a `Learner`."""
import re

import numpy as np
import pytest
import torch
from fastai.basics import SGD, Adam, Callback, OptimWrapper, partial

import onecycle_callback  # noqa: F401
from support.helpers import Spy, frozen_state, learner

pytestmark = pytest.mark.matrix

OPTS = dict(sgd=partial(SGD, mom=.9), adam=Adam, torch_sgd=partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9),
            adamw=partial(OptimWrapper, opt=torch.optim.AdamW))
LRS = dict(number=.1, slice_high=slice(.1), slice_both=slice(1e-3, .1), each=[.01, .03, .1], default=None)

@pytest.mark.parametrize('opt', OPTS)
@pytest.mark.parametrize('max_lr', LRS)
@pytest.mark.parametrize('n_groups', [1, 3])
def test_plan_equals_run(opt, max_lr, n_groups):
    max_lr = [.1] if max_lr == 'each' and n_groups == 1 else LRS[max_lr]
    learn, spy = learner(n_groups=n_groups, opt_func=OPTS[opt]), Spy()
    plan = learn.preview_one_cycle(3, max_lr, pct_start=.4)
    learn.fit_one_cycle(3, max_lr, pct_start=.4, cbs=spy)
    assert plan.lrs.shape == (36, n_groups)
    assert spy.seen_lrs == plan.lrs.tolist()
    assert spy.seen_moms == [[m] * n_groups for m in plan.moms.tolist()]
    assert learn.recorder.hps == dict(lr=plan.lrs[:, -1].tolist(), mom=plan.moms.tolist())
    assert learn.recorder.plan == plan

class Both(Spy):
    "Record what both fits of `fine_tune` used."
    def before_fit(self):
        if not hasattr(self, 'seen_lrs'): super().before_fit()

def test_fine_tune_is_two_cycles():
    learn, spy = learner(n_groups=3), Both()
    learn.fine_tune(2, 1e-2, freeze_epochs=1, cbs=spy)
    frozen = learn.preview_one_cycle(1, slice(1e-2), pct_start=.99, final_div=1e5)
    whole = learn.preview_one_cycle(2, slice(5e-5, 5e-3), div=5, final_div=1e5)
    assert spy.seen_lrs == frozen.lrs.tolist() + whole.lrs.tolist() and learn.recorder.plan == whole
    assert learn.recorder.hps['lr'][12] == 1e-3 and max(learn.recorder.hps['lr'][12:]) == 5e-3
    assert learn.recorder.hps['lr'][-1] == pytest.approx(5e-3 / 1e5, rel=1e-12)
    assert all(p.requires_grad for p in learn.model.parameters())

def test_fine_tune_without_freezing_is_one_cycle():
    learn, spy = learner(n_groups=3), Both()
    learn.fine_tune(3, 1e-2, freeze_epochs=0, stop_epoch=2, three_phase=True, cbs=spy)
    whole = learn.preview_one_cycle(3, slice(5e-5, 5e-3), div=5, final_div=1e5, three_phase=True)
    assert spy.seen_lrs == whole.lrs[:24].tolist()      # neither argument would fit the other cycle

PARTS = dict(first=dict(stop_epoch=2), last=dict(start_epoch=2), middle=dict(start_epoch=1, stop_epoch=3))

@pytest.mark.parametrize('part', PARTS.values(), ids=PARTS)
def test_a_part_of_a_cycle(part):
    learn, spy = learner(), Spy()
    plan, epochs = learn.preview_one_cycle(4, .1), range(4)[part.get('start_epoch'):part.get('stop_epoch')]
    learn.fit_one_cycle(4, .1, cbs=spy, **part)
    batches = range(12 * epochs[0], 12 * epochs[-1] + 12)
    assert learn.recorder.hps['lr'] == [lr for lr, in spy.seen_lrs] == plan.lrs[batches, 0].tolist()
    assert spy.places == [(e, i) for e in epochs for i in range(12)] and len(learn.recorder.values) == 2
    assert learn.recorder.plot_lr().lines[0].get_xdata().tolist() == list(batches)

def test_two_parts_train_as_the_whole():
    weights = []
    for parts in ([{}], [dict(stop_epoch=1), dict(start_epoch=1)]):
        learn = learner()
        for part in parts: learn.fit_one_cycle(3, .1, **part)
        weights.append([p.tolist() for p in learn.model.parameters()])
    assert weights[0] == weights[1]

def test_a_whole_cycle_after_a_part():
    learn, spy = learner(), Spy()
    learn.fit_one_cycle(4, .1, start_epoch=2)
    learn.fit_one_cycle(4, .1, cbs=spy)
    assert spy.places == [(e, i) for e in range(4) for i in range(12)]

def bar_and_table(out):
    "Return the epochs `(number, total)` that a terminal's bar showed one after the other, and those of its table."
    shown = [tuple(map(int, each)) for each in re.findall(r'Epoch (\d+)/(\d+) :', out)]
    lines = [re.split(r'[\r█]', line)[-1].split() for line in out.split('\n')]
    assert sum(line[:1] == ['epoch'] for line in lines) >= 1
    rows = [int(line[0]) for line in lines if len(line) == 4 and line[0].isdigit()]
    return [e for e, before in zip(shown, [None, *shown]) if e != before], rows

@pytest.mark.parametrize('call, bar, table', [
    (lambda l: l.fit_one_cycle(4, .1), [(1, 4), (2, 4), (3, 4), (4, 4)], [0, 1, 2, 3]),
    (lambda l: l.fit_one_cycle(4, .1, start_epoch=2), [(3, 4), (4, 4)], [2, 3]),
    (lambda l: l.fit_one_cycle(4, .1, stop_epoch=2), [(1, 4), (2, 4)], [0, 1]),
    (lambda l: l.fit_one_cycle(4, .1, start_epoch=1, stop_epoch=3), [(2, 4), (3, 4)], [1, 2]),
    (lambda l: l.fit_one_cycle(12, .1, start_epoch=8), [(9, 12), (10, 12), (11, 12), (12, 12)], [8, 9, 10, 11]),
    (lambda l: l.fine_tune(2), [(1, 1), (1, 2), (2, 2)], [0, 0, 1])],
    ids=['whole', 'start_epoch', 'stop_epoch', 'both', 'late', 'fine_tune'])
def test_the_bar_and_the_table_show_epoch_and_total(call, bar, table, capsys):
    learn = learner(n_groups=2)
    call(learn)
    assert bar_and_table(capsys.readouterr().out) == (bar, table)
    call(learn)      # and again, since nothing of the first is left
    assert bar_and_table(capsys.readouterr().out) == (bar, table)

@pytest.mark.parametrize('fitted', [False, True], ids=['new', 'trained'])
def test_preview_changes_nothing(fitted):
    learn = learner(n_groups=2)
    if fitted: learn.fit_one_cycle(1)
    before = frozen_state(learn)
    plan = learn.preview_one_cycle(3, slice(.1), moms=(.9, .8), three_phase=True)
    plan.table, plan.plot(), plan._repr_html_()
    assert frozen_state(learn) == before

def test_preview_leaves_an_optimizer_that_was_given_ready_made():
    weights = learner().model.parameters()
    ready = OptimWrapper(opt=torch.optim.SGD(weights, lr=.1, momentum=.9))
    ready.opt.state['kept'] = 1
    learn = learner(opt_func=ready)
    learn.preview_one_cycle(1)
    assert ready.opt.state['kept'] == 1 and learn.opt is None

@pytest.mark.parametrize('kwargs, peaks', [(dict(lr=.3), [.3]), (dict(lr=slice(.1, .3), n_groups=2), [.1, .3]),
                                           (dict(opt_func=partial(SGD, lr=.7, mom=.9)), [.7])],
                         ids=['number', 'slice', "the optimizer's"])
def test_default_lr_is_the_one_that_fastai_would_use(kwargs, peaks):
    learn, spy = learner(**kwargs), Spy()
    assert learn.preview_one_cycle(1).lrs.max(0).tolist() == peaks
    learn.fit_one_cycle(1, cbs=spy)
    assert [max(lrs) for lrs in zip(*spy.seen_lrs)] == peaks

@pytest.mark.parametrize('wd, used', [(.5, [.5, .5]), ([.1, .2], [.1, .2]), (torch.tensor([.25, .5]), [.25, .5]),
                                      (torch.tensor(.5), [.5, .5]),
                                      (np.float64(.5), [.5, .5]), (slice(.1), [.01, .1]), (slice(.1, .2), [.1, .2])],
                                      ids=str)
def test_wd(wd, used):
    learn = learner(n_groups=2)
    learn.fit_one_cycle(1)
    old = learn.opt
    learn.fit_one_cycle(1, wd=wd)
    assert learn.opt is old and [h['wd'] for h in learn.opt.hypers] == used

def test_reset_opt():
    learn = learner()
    learn.fit_one_cycle(1)
    old = learn.opt
    learn.fit_one_cycle(1, reset_opt=True)
    assert learn.opt is not old

def test_reset_opt_looks_at_the_new_optimizer():
    learn = learner()
    learn.fit_one_cycle(1)
    learn.splitter = lambda m: [[m[0].weight], [m[0].bias]]
    learn.fit_one_cycle(1, [.01, .1], reset_opt=True)
    assert learn.recorder.plan.n_groups == 2

@pytest.mark.parametrize('moms, want', [(None, [.8, .7, .6]), ((.9, .8), [.9, .8, .9])], ids=["the Learner's", 'given'])
def test_moms_are_put_back_after(moms, want):
    learn = learner(moms=(.8, .7, .6))
    learn.fit_one_cycle(2, moms=moms)
    mom = learn.recorder.hps['mom']
    assert [mom[0], mom[learn.recorder.plan.peak], mom[-1]] == want and learn.opt.hypers[0]['mom'] == .9

def test_moms_left_alone():
    learn, spy = learner(moms=(.8, .7, .6)), Spy()
    learn.create_opt()
    learn.opt.set_hyper('mom', .5)
    learn.fit_one_cycle(2, moms=False, cbs=spy)
    assert list(learn.recorder.hps) == ['lr'] and spy.seen_moms == [[.5]] * 24 and learn.opt.hypers[0]['mom'] == .5

@pytest.mark.parametrize('train, n_epoch', [(lambda learn, cbs: learn.fit_one_cycle(2, cbs=cbs), 2),
                                            (lambda learn, cbs: learn.fine_tune(2, cbs=cbs), 3)],
                         ids=['fit_one_cycle', 'fine_tune'])
def test_callbacks_out_of_a_generator(train, n_epoch):
    epochs = []
    class Note(Callback):
        def after_epoch(self): epochs.append(self.epoch)
    train(learner(n_groups=3), (cb for cb in [Note()]))
    assert len(epochs) == n_epoch
