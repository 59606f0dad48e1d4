"""Which cases of a matrix the tests run: few of them, in which each value still meets each other one."""
from itertools import combinations, product

import pytest

from support.pairs import each, pairs

def met(cases): return {pair for case in cases for pair in combinations(enumerate(case), 2)}

@pytest.mark.parametrize('axes, most', [(('abcde', 'xy', range(13)), 65), (('abcd', 'xy', range(4)), 16),
                                        (('ab', 'cd', 'ef', 'gh'), 6), (('abc', 'def', 'ghi', 'jkl'), 12),
                                        (('ab', dict(x=1, y=2, z=3)), 6)], ids=str)
def test_each_value_meets_each_value_of_the_other_axes(monkeypatch, axes, most):
    monkeypatch.delenv('ALL_CASES', raising=False)
    cases, chosen = list(product(*axes)), pairs(*axes)
    assert met(chosen) == met(cases) and set(chosen) <= set(cases)
    assert len(set(chosen)) == len(chosen) <= most and chosen[0] == cases[0]

def test_all_cases(monkeypatch):
    monkeypatch.setenv('ALL_CASES', '1')
    assert pairs('abc', 'de', 'fg') == list(product('abc', 'de', 'fg'))

@pytest.mark.parametrize('all_cases, n', [('0', 3), ('1', 6)])
def test_each_value_occurs_and_all_cases_are_there_to_be_had(monkeypatch, all_cases, n):
    monkeypatch.setenv('ALL_CASES', all_cases)
    cases = each('abc', [1, 2])
    assert len(cases) == len(set(cases)) == n and [{*axis} for axis in zip(*cases)] == [{*'abc'}, {1, 2}]
