"""Cycles of benchmarks/crash.py in separate processes: killed at batches and in saves drawn by a seed, or disturbed."""
import pytest

from crash import crash
from hostile import hostile
from support.pairs import all_cases

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.sigkill]

N_KILLED = 8 if all_cases() else 4

@pytest.fixture(scope='module')
def figures(tmp_path_factory): return crash(1, seed=1, root=tmp_path_factory.mktemp('crash'), n_kills=6)

def test_killed_again_and_again(figures):
    counts = {k: v for k, v in figures.items() if isinstance(v, int)}
    inside = counts.pop('resumes_inside_an_epoch')
    assert counts == dict(runs=1, kills=6, inside_a_save=4, resumes=6, torn_files=0, different_runs=0)
    assert 0 < inside <= 6

@pytest.mark.parametrize('name', ['exception', 'interrupt'])
def test_interrupted(figures, name):
    assert figures[name] == dict(first_process='died', warned=False, torn=False, equal=True)

def test_a_disk_that_is_full_for_a_while(figures):
    assert figures['full_disk'] == dict(first_process='ended', warned=True, torn=False, equal=True)

@pytest.fixture(scope='module')
def attacked(tmp_path_factory): return hostile(N_KILLED, seed=2, root=tmp_path_factory.mktemp('hostile'), n_damages=24)

@pytest.mark.parametrize('name', ['damages_accepted', 'torn_files', 'different_runs', 'different_logs'])
def test_nothing_comes_through(attacked, name): assert attacked[name] == 0

def test_the_attacks_took_place(attacked):
    assert attacked['kills'] >= N_KILLED and attacked['resumes'] > 0 and attacked['damages'] > 100
