"""Other people's code: training lines as fastai's docs and course write them, unchanged, after `import onecycle_callback`.

Each must run the schedule that its author meant: peak, start, end, momentum and parameter groups."""
import pytest
from fastai.basics import defaults

from helpers import Spy, collab, language_model, tabular, text_classifier
from onecycle_callback import OneCycleSchedule

MOMS, TEXT_MOMS = (.95, .85, .95), (.8, .7, .8)      # fastai's default, and what its text learners have of their own

def run(learn, line):
    "Run `line` of a notebook in which `learn` is defined; the plan of its last fit, which is what each batch trained with."
    spies = []
    class Look(Spy):
        def before_fit(self):
            super().before_fit()
            spies.append((self.seen_lrs, self.seen_moms))
    learn.add_cb(Look())
    exec(f'import onecycle_callback\n{line}', dict(learn=learn))
    plan = learn.recorder.plan
    assert spies[-1] == (plan.lrs.tolist(), [[m] * plan.n_groups for m in plan.moms.tolist()])
    return plan, spies

def is_cycle(lrs, moms, highs, div, end_div, mom, pct, n_epoch):
    "That the lists hold a cycle of `n_epoch` epochs with these peaks, up from `peak/div` over `pct` of the batches and down to `peak/end_div`."
    n, n_groups = len(lrs), len(highs)
    p = min(int(pct * n + .5), n - 1)
    assert n % n_epoch == 0 and lrs[p] == pytest.approx(highs) and max(map(max, lrs)) == max(highs)
    assert lrs[0] == pytest.approx([h / div for h in highs]) and lrs[-1] == pytest.approx([h / end_div for h in highs])
    assert (moms[0], moms[p], moms[-1]) == tuple([m] * n_groups for m in mom)
    ups = [row[-1] for row in lrs]
    assert ups[:p + 1] == sorted(ups[:p + 1]) and ups[p:] == sorted(ups[p:], reverse=True)

CASES = [
    (tabular, 'learn.fit_one_cycle(1)', dict(highs=[defaults.lr], div=25, end_div=25, mom=MOMS, pct=.3, n_epoch=1), None),
    (collab, 'learn.fit_one_cycle(3, 3e-3)', dict(highs=[3e-3], div=25, end_div=25, mom=MOMS, pct=.3, n_epoch=3), None),
    (text_classifier, 'learn.fit_one_cycle(5, slice(1e-5, 1e-3))', dict(highs=[1e-5, 10**-4.5, 1e-4, 10**-3.5, 1e-3], div=25, end_div=25, mom=TEXT_MOMS, pct=.3, n_epoch=5), None),
    (language_model, 'learn.fit_one_cycle(4, lr_max=slice(1e-6,1e-4), pct_start=.3, moms=(.8,.7,.8), wd=.1)',
     dict(highs=[10 ** (-6 + 2 * i / 3) for i in range(4)], div=25, end_div=25, mom=(.8, .7, .8), pct=.3, n_epoch=4), .1),
    (text_classifier, 'learn.fine_tune(3, freeze_epochs=2)', dict(highs=[1e-5, 10**-4.5, 1e-4, 10**-3.5, 1e-3], div=5, end_div=1e5, mom=TEXT_MOMS, pct=.3, n_epoch=3), None)]

@pytest.mark.parametrize('make, line, schedule, wd', CASES, ids=[case[1] for case in CASES])
def test_line(make, line, schedule, wd, tmp_path):
    learn = make(tmp_path)[0]
    _, spies = run(learn, line)
    is_cycle(*spies[-1], **schedule)
    assert len(spies[-1][0]) == schedule['n_epoch'] * len(learn.dls.train)
    if wd is not None: assert [h['wd'] for h in learn.opt.hypers] == [wd] * len(schedule['highs'])
    if 'fine_tune' not in line: return
    frozen, whole = spies
    is_cycle(*frozen, [2e-4] * 4 + [2e-3], div=25, end_div=1, mom=(.8, .7, .7), pct=.99, n_epoch=2)     # in 12 batches 99 % is the last one
    assert len(frozen[0]) == 2 * len(learn.dls.train) and all(p.requires_grad for p in learn.model.parameters())

def test_the_check_sees_another_schedule():
    plan = OneCycleSchedule(3e-3).plan(3, 6)
    is_cycle(plan.lrs.tolist(), plan.moms[:, None].tolist(), **CASES[1][2])
    for other in (OneCycleSchedule(3e-3, 10), OneCycleSchedule(3e-3, pct_start=.4), OneCycleSchedule(3e-3, final_div=1e5), OneCycleSchedule(3e-3, moms=(.9, .8)), OneCycleSchedule(2e-3)):
        wrong = other.plan(3, 6)
        with pytest.raises(AssertionError): is_cycle(wrong.lrs.tolist(), wrong.moms[:, None].tolist(), **CASES[1][2])
