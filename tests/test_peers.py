"""Where a peer falls short: each row of the list, as a test that shows the peer's fault and that it is not here."""
import gc
import tracemalloc

import numpy as np
import pytest
import torch
from fastai.basics import SGD, partial
from fastai.callback.schedule import combined_cos

from helpers import Spy, learner
from onecycle_callback import OneCycle, OneCycleSchedule

def fastai_lrs(n, pct=.25): return [combined_cos(pct, .004, .1, 1e-6)(i / n) for i in range(n)]

def test_peak_and_end_exact_where_fastai_misses_them():
    for n in (7, 10, 33, 101):
        lrs = OneCycleSchedule(.1, pct_start=.25, final_div=1e5).plan(1, n).lrs[:, 0]
        assert lrs.max() == .1 and lrs[-1] == .1/1e5
        assert max(fastai_lrs(n)) != .1 and fastai_lrs(n)[-1] != 1e-6

def test_pct_times_n_of_one_where_torch_divides_by_zero():
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=.1, momentum=.9)
    with pytest.raises(ZeroDivisionError): torch.optim.lr_scheduler.OneCycleLR(opt, .1, total_steps=10, pct_start=.1).step()
    assert OneCycleSchedule(.1, pct_start=.1).plan(1, 10).lrs[:2, 0].tolist() == [.004, .1]

def test_short_cycles_are_defined():
    assert [OneCycleSchedule(1.).plan(1, n).lrs[:, 0].tolist() for n in (1, 2, 3)] == [[1.], [.04, 1.], [.04, 1., .04]]

def test_momentum_off_pair_and_an_optimizer_without():
    assert OneCycleSchedule(.1, moms=False).plan(1, 5).moms is None
    assert OneCycleSchedule(.1, moms=(.9, .8)).plan(1, 5).moms[[0, 2, 4]].tolist() == [.9, .8, .9]
    learn = learner(opt_func=SGD)
    learn.fit_one_cycle(1)
    assert list(learn.recorder.hps) == ['lr']

def test_no_numpy_in_the_optimizer():
    learn = learner(opt_func=partial(SGD, mom=.9))
    learn.fit_one_cycle(1)
    assert {type(v) for h in learn.opt.hypers for v in (h['lr'], h['mom'])} == {float} == {type(v) for v in learn.recorder.hps['lr'] + learn.recorder.hps['mom']}

def test_bad_numbers_train_nothing():
    for bad in (float('nan'), -1, 0):
        with pytest.raises(ValueError): OneCycle(bad)

def test_memory_of_the_record_does_not_grow_with_groups():
    def used(n_groups, n=20000):
        plan = OneCycleSchedule(.1).plan(1, n, n_groups)
        from onecycle_callback.callback import _BatchWriter
        opt = learner(n_groups=n_groups)
        opt.create_opt()
        writer = _BatchWriter(plan, opt.opt, 'mom')
        gc.collect()
        tracemalloc.start()
        for i in range(n): writer.write(i); writer.record()
        writer.rows.clear()
        writer.row = None
        gc.collect()
        now = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return now / n
    one, many = used(1), used(50)
    assert one <= 72 and many <= 72 and abs(one - many) < 2

def test_a_plan_of_a_million_batches_and_a_hundred_groups_is_small_until_looked_at():
    tracemalloc.start()
    OneCycleSchedule(.1).plan(1000, 1000, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6

def test_events_without_a_method_are_answered_at_once():
    spy, learn = Spy(), learner()
    calls = []
    class Counted(OneCycle):
        def before_step(self): calls.append(self.learn.iter)
    learn.fit(1, cbs=[Counted(.1), spy])
    assert calls == [0, 1, 2, 3, 4] and spy.seen_lrs == np.array(learn.recorder.plan.lrs).tolist()
