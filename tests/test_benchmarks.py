"""The benchmark runs and its columns make sense. No time is asserted."""
import json
import subprocess
import warnings
from contextlib import redirect_stdout
from io import StringIO

import pandas as pd
import pytest
from scipy.stats import ttest_rel

from support.helpers import ROOT, fork_script

def run_benchmark(name, *args, cwd='.'):
    "Run a script of benchmarks/, where a warning is an error; return what it prints."
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)     # which the process inherits
        run = fork_script(ROOT / 'benchmarks' / name, *args, cwd=cwd)
    assert run.returncode == 0, run.stderr
    return run.stdout

def run_here(command, **kwargs):
    "Run the code of `python -c` in this process, which has imported what the code imports."
    with redirect_stdout(StringIO()) as out: exec(command[-1], {})
    return subprocess.CompletedProcess(command, 0, out.getvalue())

@pytest.mark.slow
@pytest.mark.fork
def test_overhead(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, 'run', run_here)
    printed = run_benchmark('overhead.py', '--quick', '--json', 'o.json', cwd=tmp_path)
    found = json.loads((tmp_path / 'o.json').read_text(encoding='utf-8'))
    rows = found['us_per_batch']
    assert set(rows) == {f'{opt}, {n} groups' for opt in ('Adam', 'AdamW') for n in (1, 10, 100)}
    columns = {'OneCycle own', 'OneCycle whole', 'fastai own', 'empty whole', 'OneCycleLR own', 'floor own'}
    for row in rows.values(): assert columns <= set(row)
    assert set(found['loop']) == {'fastai fit_one_cycle', 'fit_one_cycle', 'fit'}
    assert set(found['preview']) == {'plan', 'OneCycleLR loop'}
    assert set(found['imports']) == {'fastai', 'onecycle_callback'}
    assert 'own / OneCycleLR' in printed

@pytest.mark.slow
@pytest.mark.fork
@pytest.mark.parametrize('args, shown', [
    (['--quick'], ['show, own curve', 'plot_sched', "torch's loop", 'a million batches / a thousand']),
    (['--train', '1000'], ['1,000 batches: the record', 'ratio'])], ids=str)
def test_scale(args, shown):
    printed = run_benchmark('scale.py', *args)
    assert all(words in printed for words in shown)

@pytest.mark.slow
def test_saves(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    from saves import measure
    found = measure(2, n_recorded=10)
    assert list(found) == ['save', 'torch.save', 'flushed', 'stands still', 'copy', 'MB', 'torch.save MB']
    assert min(found.values()) > 0

@pytest.fixture(scope='module')
def findings():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'benchmarks')
        import findings
    return findings

@pytest.fixture(scope='module')
def measured(findings):
    "The figures of the study that pages other than its own quote, in points."
    lost, longer = findings.regret_table().regret, findings.of_all_tasks(findings.longer).gain['mean']
    lower = findings.changes(['final_div=1e5']).gain['mean'].droplevel('variant')
    repeated = findings.repeats(['again at 1/10', 'stopped at half']).gain['mean'].xs('mean', level='task')
    reach = 10 ** -findings.changes(['constant']).wider['mean']['constant', 'mean']
    return dict(reach={3: 'three'}[round(reach)], valley=lost['lr_find, valley'], minimum=lost['lr_find, minimum'],
                compared=lost['compare_max_lr, 2'],
                below=-findings.of_all_tasks(findings.beside_the_best).below['mean']['mean'],
                longer=longer.max(), wrong=-longer['noisy'], lower=lower['mean'], lowest=lower.max(),
                again=-repeated['again at 1/10'], stopped=-repeated['stopped at half'])

def test_a_mean_difference_has_the_interval_of_a_paired_t_test(findings):
    scores, other = (pd.Series(v, index=range(5)) for v in ([.9, .8, .95, .7, .85], [.88, .83, .9, .72, .8]))
    low, high = ttest_rel(scores, other).confidence_interval(.95)
    assert findings.interval(scores - other) == pytest.approx(((low + high) / 2, (high - low) / 2))

def test_the_good_range_ends_between_the_lrs(findings):
    "Seed 0: all but the ends. Seed 1: nothing is lost from 0.1 to 1, two points on both sides, so one point halfway."
    scores = {0: [.5, .9, .9, .9, .5], 1: [.88, .88, .9, .9, .88]}
    rows = [('default', lr, 12, seed, score) for seed in scores
            for lr, score in zip([.001, .01, .1, 1., 10.], scores[seed])]
    frame = pd.DataFrame(rows, columns=['variant', 'max_lr', 'epochs', 'seed', 'score'])
    factors = findings.good_range(frame, 'default', 12)
    assert factors[0] == pytest.approx(100 * 10**(2 * .01 / .4), rel=.02) and factors[1] == pytest.approx(100, rel=.02)

TUTORIAL = 'tutorials/understanding_the_1cycle_policy'

@pytest.mark.parametrize('page, says', [
    (TUTORIAL, 'what `lr_find` suggests by default [lost {valley:.1f} points]'),
    (TUTORIAL, 'a third of the best LR [lost {below:.1f} points]'),
    (TUTORIAL, '[gained up to {longer:.1f} points]'),
    (TUTORIAL, 'but lost {wrong:.1f} where labels are wrong'),
    (TUTORIAL, '[{lower:.1f} points](../benchmarks/what_each_argument_buys.ipynb#final_div-how-low-the-cycle-ends)'
               ' on average, {lowest:.1f} at most'),
    (TUTORIAL, 'it ended [{again:.1f} points]'),
    (TUTORIAL, 'that [lost {stopped:.1f} points]'),
    ('benchmarks/what_each_argument_buys', 'a range of good `max_lr` that is {reach} times as wide'),
    ('howto/faq', 'stopped halfway, ended [{stopped:.1f} points]'),
    ('howto/faq', 'gained up to {longer:.1f} points in the study, and lost {wrong:.1f} where labels are wrong'),
    ('howto/faq', 'Two cycles ended [{again:.1f} points]'),
    ('06_compare', "the best of `lr_find`'s suggestions lost {minimum:.1f} points"),
    ('06_compare', 'the choice of this method lost {compared:.1f} after cycles of two epochs')])
def test_pages_say_what_was_measured(measured, page, says):
    "The pages on the study check their own figures, in hidden cells."
    cells = json.loads((ROOT / f'nbs/{page}.ipynb').read_text(encoding='utf-8'))['cells']
    assert says.format(**measured) in ' '.join(' '.join(''.join(cell['source']) for cell in cells).split())
