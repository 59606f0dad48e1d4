"""What users see where they look: `?` and `help`, printed objects, the names that a tab offers."""
import compileall
import inspect
import shutil

import pytest
from fastai.learner import Learner
from fastcore.docments import docments

import onecycle_callback
from onecycle_callback import CycleCheckpoint, OneCycle, OneCyclePlan, OneCycleSchedule
from onecycle_callback.compare import LRComparison
from onecycle_callback.docstrings import EXAMPLES, describe
from onecycle_callback.fastai_internals import public_methods
from support import fresh
from support.helpers import ROOT, learner

METHODS = {f'{m.__qualname__}': m for m in public_methods()}
PUBLIC = METHODS | {name: getattr(onecycle_callback, name) for name in onecycle_callback.__all__} | {
    'OneCyclePlan.at': OneCyclePlan.at, 'OneCyclePlan.plot': OneCyclePlan.plot,
    'OneCycleSchedule.plan': OneCycleSchedule.plan, 'LRComparison.plot': LRComparison.plot}
public = pytest.mark.parametrize('name', PUBLIC)

def section(obj):
    "Return the parameters that the docstring of `obj` describes, each with its text."
    lines = inspect.getdoc(obj).partition('Parameters\n----------\n')[2].partition('\n\nExamples')[0].splitlines()
    return dict(zip(lines[::2], map(str.strip, lines[1::2])))

@public
def test_every_parameter_is_described_with_the_text_of_its_comment(name):
    obj = PUBLIC[name]
    source = OneCycle.__init__ if obj is OneCycle else obj
    known = {p: ' '.join(text.split()) for p, text in docments(source).items() if text}
    params = [p for p in inspect.signature(obj).parameters if p != 'self']
    assert list(section(obj)) == params
    assert section(obj) == {p: known[p] for p in params}

@pytest.mark.parametrize('name', METHODS)
def test_every_method_of_a_learner_has_an_example(name):
    assert inspect.getdoc(METHODS[name]).endswith(f'Examples\n--------\n{EXAMPLES[name.split(".")[-1]]}')

def test_examples_run():
    import matplotlib
    matplotlib.use('Agg')
    learn = learner()
    for name in ('preview_one_cycle', 'fit_one_cycle', 'plot_lr', 'plot_sched', 'to_frame', 'OneCycle',
                 'OneCycleSchedule'):
        exec(EXAMPLES[name].replace('10', '1').replace('00', ''), dict(vars(onecycle_callback), learn=learn))

def test_what_has_no_docstring_is_left_alone():
    def f(a # Something
    ): pass
    describe(f)
    assert f.__doc__ is None

@pytest.mark.slow
def test_without_docstrings_and_without_sources(tmp_path):
    "As `python -OO` compiles the package, and without the files that it was compiled from."
    package = tmp_path / 'onecycle_callback'
    shutil.copytree(ROOT / 'onecycle_callback', package, ignore=shutil.ignore_patterns('__pycache__'))
    assert compileall.compile_dir(package, legacy=True, optimize=2, quiet=1)
    for source in package.rglob('*.py'): source.unlink()
    run = fresh.python('import onecycle_callback; from fastai.learner import Learner\n'
                       'print(onecycle_callback.__file__, Learner.fit_one_cycle.__doc__)', cwd=tmp_path)
    assert run.stdout.split() == [str(package / '__init__.pyc'), 'None'], run.stderr

def test_a_call_shows_help_for_the_schedules_arguments():
    for text in ('max_lr', 'anneal', 'three_phase', 'minutes', 'checkpoint'):
        assert text in section(Learner.fit_one_cycle)

# Printed

def test_a_plan_prints_its_table():
    lines = str(OneCycleSchedule(.1).plan(3, 12)).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ['0', '0.004', '0.1', '0.95', '0.85'], ['1', '0.0996', '0.052', '0.85', '0.9'],
        ['2', '0.0457', '0.004', '0.907', '0.95']]
    lines = str(OneCycleSchedule(.1).plan(1000, 12)).splitlines()
    assert len(lines) < 30 and any('...' in line for line in lines)

def test_a_cycle_prints_its_arguments():
    assert str(OneCycle(.1)) == repr(OneCycle(max_lr=.1)) and '0.1' in str(OneCycle(.1))

def test_a_comparison_prints_its_table_and_names_the_best():
    learn = learner()
    compared = learn.compare_max_lr([1e-6, .1, slice(.01)])
    assert str(compared) == compared.table.to_string()
    assert compared.best == compared.max_lrs[compared.table.valid_loss.astype(float).idxmin()] == .1
    slices = LRComparison(compared.table.iloc[2:], compared.losses, compared.max_lrs)
    assert slices.best == slice(None, .01)
    learn.fit_one_cycle(1, slices.best)

def test_no_best_where_all_diverged():
    compared = learner().compare_max_lr([1e6])
    with pytest.raises(ValueError, match='best needs a max_lr whose cycle reached its end'): compared.best

def test_only_public_names_are_offered():
    assert set(dir(onecycle_callback)) == {*onecycle_callback.__all__, '__version__'}
    assert CycleCheckpoint.__name__ in dir(onecycle_callback)
