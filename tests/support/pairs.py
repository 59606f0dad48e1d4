"""Which cases of a matrix to run, where all of them would take long."""
import os
from itertools import combinations, cycle, islice, product

def pairs(*axes):
    """Return cases, one value of each axis, in which each value meets each value of every other axis; few of them.

    With `ALL_CASES=1` in the environment, return all there are. `nox -s all_cases` sets it."""
    axes = [list(axis) for axis in axes]
    cases = list(product(*(range(len(axis)) for axis in axes)))
    chosen = cases if all_cases() else covering(cases)
    return [tuple(axis[i] for axis, i in zip(axes, case)) for case in chosen]

def each(*axes):
    "Return cases in which each value of each axis occurs, or all there are: the longest axis once, the others in turn."
    axes = [list(axis) for axis in axes]
    if all_cases(): return list(product(*axes))
    return list(zip(*(islice(cycle(axis), max(map(len, axes))) for axis in axes)))

def all_cases(): return os.environ.get('ALL_CASES') == '1'

def covering(cases):
    "Choose cases that hold all pairs: always the one with most new ones, the first of several."
    def met(case): return set(combinations(enumerate(case), 2))
    chosen, left = [], set().union(*map(met, cases))
    while left:
        chosen.append(max(cases, key=lambda case: len(met(case) & left)))
        left -= met(chosen[-1])
    return chosen
