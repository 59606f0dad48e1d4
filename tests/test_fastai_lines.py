"""Other people's code: training lines as fastai's docs and course write them, after `import onecycle_callback`.

Each must run the schedule that its author meant: peak, start, end, momentum and parameter groups."""
import pytest
from fastai.basics import defaults

from support.helpers import Spy, collab, language_model, tabular, text_classifier
from onecycle_callback import OneCycleSchedule

pytestmark = pytest.mark.matrix

MOMS, TEXT_MOMS = (.95, .85, .95), (.8, .7, .8)      # fastai's default, and that of its text learners
FIVE = [1e-5, 10**-4.5, 1e-4, 10**-3.5, 1e-3]

def run(learn, line):
    "Run `line` of a notebook in which `learn` is defined; return what the batches of each of its fits trained with."
    fits = []
    class Look(Spy):
        def before_fit(self):
            super().before_fit()
            fits.append((self.seen_lrs, self.seen_moms))
    learn.add_cb(Look())
    exec(f'import onecycle_callback\n{line}', dict(learn=learn))
    plan = learn.recorder.plan
    assert fits[-1] == (plan.lrs.tolist(), [[m] * plan.n_groups for m in plan.moms.tolist()])
    return fits

def is_cycle(lrs, moms, n_epoch, highs, mom=MOMS, div=25, end_div=25, pct=.3):
    "Check that this is a cycle with these peaks, up from `peak/div` over `pct` of the batches, down to `peak/end_div`."
    n, n_groups = len(lrs), len(highs)
    p = min(int(pct * n + .5), n - 1)
    assert n % n_epoch == 0 and lrs[p] == pytest.approx(highs) and max(map(max, lrs)) == max(highs)
    assert lrs[0] == pytest.approx([h / div for h in highs]) and lrs[-1] == pytest.approx([h / end_div for h in highs])
    assert (moms[0], moms[p], moms[-1]) == tuple([m] * n_groups for m in mom)
    ups = [row[-1] for row in lrs]
    assert ups[:p + 1] == sorted(ups[:p + 1]) and ups[p:] == sorted(ups[p:], reverse=True)

CYCLES = [
    (tabular, 'learn.fit_one_cycle(1)', dict(n_epoch=1, highs=[defaults.lr])),
    (collab, 'learn.fit_one_cycle(3, 3e-3)', dict(n_epoch=3, highs=[3e-3])),
    (text_classifier, 'learn.fit_one_cycle(5, slice(1e-5, 1e-3))', dict(n_epoch=5, highs=FIVE, mom=TEXT_MOMS)),
    (language_model, 'learn.fit_one_cycle(4, lr_max=slice(1e-6,1e-4), pct_start=.3, moms=(.8,.7,.8), wd=.1)',
     dict(n_epoch=4, highs=[10 ** (-6 + 2 * i / 3) for i in range(4)], mom=(.8, .7, .8)))]

@pytest.mark.parametrize('make, line, cycle', CYCLES, ids=[line for _, line, _ in CYCLES])
def test_a_cycle(make, line, cycle, tmp_path):
    learn = make(tmp_path)[0]
    (lrs, moms), = run(learn, line)
    is_cycle(lrs, moms, **cycle)
    assert len(lrs) == cycle['n_epoch'] * len(learn.dls.train)
    if 'wd=.1' in line: assert [h['wd'] for h in learn.opt.hypers] == [.1] * 4

@pytest.mark.slow
def test_fine_tune(tmp_path):
    learn = text_classifier(tmp_path)[0]
    frozen, whole = run(learn, 'learn.fine_tune(3, freeze_epochs=2)')
    assert (len(frozen[0]), len(whole[0])) == (2 * len(learn.dls.train), 3 * len(learn.dls.train))
    assert len(frozen[0]) < 50      # so that 99 % of its batches is the last one
    is_cycle(*frozen, n_epoch=2, highs=[2e-4] * 4 + [2e-3], mom=(.8, .7, .7), end_div=1, pct=.99)
    is_cycle(*whole, n_epoch=3, highs=FIVE, mom=TEXT_MOMS, div=5, end_div=1e5)
    assert all(p.requires_grad for p in learn.model.parameters())

@pytest.mark.parametrize('other', [dict(), dict(div_factor=10), dict(pct_start=.4), dict(final_div=1e5),
                                   dict(moms=(.9, .8)), dict(max_lr=2e-3), dict(three_phase=True)], ids=str)
def test_the_check_sees_another_schedule(other):
    plan = OneCycleSchedule(**dict(max_lr=3e-3) | other).plan(3, 12)
    check = lambda: is_cycle(plan.lrs.tolist(), plan.moms[:, None].tolist(), n_epoch=3, highs=[3e-3])
    if not other: return check()
    with pytest.raises(AssertionError): check()
