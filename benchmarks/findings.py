"""What the runs of study.py say: tables and pictures, made from `benchmarks/results/study/` and nothing else."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import t as student

from onecycle_callback.compare import lrs_around
from runs import results
from study import AGAIN_VARIANTS, ALL_TASKS, ARGUMENT_VARIANTS, RESULTS, RULES, best_lr

TOLERANCE = 0.01    # how far below its best a score may be where a learning rate still counts as good

def study(name):
    "Read the runs of a task."
    return results(RESULTS / f'{name}.csv')

# What each argument buys

def by_seed(df, variant, max_lr, epochs):
    "Return the score of each seed."
    of = df[(df.variant == variant) & (df.max_lr == max_lr) & (df.epochs == epochs)]
    return of.set_index('seed').score.sort_index()

def difference(scores, other):
    "Return the mean difference of two scores of the same seeds, and half of its 95 % confidence interval."
    d = (scores - other).dropna()
    return d.mean(), student.ppf(.975, len(d) - 1) * d.std() / np.sqrt(len(d))

def good_range(df, variant, epochs):
    "Return the factor between the ends of the range of LRs that lose less than `TOLERANCE`, read between the LRs tried."
    means = df[(df.variant == variant) & (df.epochs == epochs)].groupby('max_lr').score.mean()
    x = np.linspace(*np.log10(means.index[[0, -1]]), 1001)
    good = np.interp(x, np.log10(means.index), means) > means.max() - TOLERANCE
    return 10 ** (good.mean() * (x[-1] - x[0]))

def argument_table(df, epochs):
    "Each variant at its own best LR: its score, what it gains over the default, and how wide its range of good LRs is."
    default = by_seed(df, 'default', best_lr(df, 'default', epochs), epochs)
    rows = {}
    for variant in ARGUMENT_VARIANTS:
        lr = best_lr(df, variant, epochs)
        scores = by_seed(df, variant, lr, epochs)
        gain, noise = difference(scores, default)
        rows[variant] = dict(best_lr=lr, score=scores.mean(), gain=gain, noise=noise, good_range=good_range(df, variant, epochs))
    return pd.DataFrame(rows).T.rename_axis('variant')

# How much a stopped or repeated cycle loses

def repeat_table(df, epochs):
    "A cycle stopped at half, and two cycles against one long cycle, at the best LR of one cycle."
    lr = best_lr(df, 'default', epochs)
    planned, long = (by_seed(df, 'default', lr, n) for n in (epochs, 2 * epochs))
    compared = [('stopped at half', epochs, planned)] + [(variant, 2 * epochs, long) for variant in AGAIN_VARIANTS]
    rows = {}
    for variant, n, other in compared:
        scores = by_seed(df, variant, lr, n)
        gain, noise = difference(scores, other)
        rows[variant] = dict(epochs=n, score=scores.mean(), planned=other.mean(), gain=gain, noise=noise)
    return pd.DataFrame(rows).T.rename_axis('variant')

# How good a suggested `max_lr` is

def score_at(df, epochs, seed, lrs):
    "Return the score of a cycle of `epochs` at the best of the LRs that were tried, and at each of `lrs`, for one seed."
    return by_seed(df, 'default', best_lr(df, 'default', epochs), epochs)[seed], [by_seed(df, 'default', lr, epochs)[seed] for lr in lrs]

def chosen(df, seed, lrs, epochs, n=1):
    "Return the `n` of `lrs` with the lowest test loss after a short cycle of `epochs`."
    of = df[(df.variant == 'default') & (df.epochs == epochs) & (df.seed == seed) & df.max_lr.isin(lrs)]
    return of.set_index('max_lr').loss.nsmallest(n).index.tolist()

def short_cycles(df, task, epochs, seed):
    "Yield each way to choose by short cycles, its cost in epochs, and the LR that it chooses."
    lrs = list(task.lrs)
    for n in (1, 2, 4): yield f'cycles of {n}', n * len(lrs), chosen(df, seed, lrs, n)[0]
    three = chosen(df, seed, lrs, 1, 3)
    yield 'cycles of 1, the best 3 again with 2', len(lrs) + 6, chosen(df, seed, three, 2)[0]
    yield 'cycles of 1, the best 3 again with 4', len(lrs) + 12, chosen(df, seed, three, 4)[0]

def regrets(name, epochs):
    "Return one row per way to choose and seed: its cost in epochs, and how much score is lost against the best LR tried."
    df, task, suggested, rows = study(name), ALL_TASKS[name], results(RESULTS / f'{name}_suggestions.csv'), []
    for _, s in suggested[suggested.epochs == epochs].iterrows():
        best, _ = score_at(df, epochs, s.seed, [])
        rows.append(dict(way=f'lr_find, {s.rule}', seed=s.seed, cost=s.cost, max_lr=s.max_lr, regret=best - (s.score if s.score == s.score else 0)))
    for _, s in suggested[(suggested.epochs == epochs) & (suggested.rule == 'minimum')].iterrows():
        lrs = lrs_around(s.max_lr)
        best, (score,) = score_at(df, epochs, s.seed, chosen(df, s.seed, lrs, 1))
        rows.append(dict(way='compare_max_lr', seed=s.seed, cost=s.cost + len(lrs), max_lr=s.max_lr, regret=best - score))
    for seed in df.seed.unique():
        for way, cost, lr in short_cycles(df, task, epochs, seed):
            best, (score,) = score_at(df, epochs, seed, [lr])
            rows.append(dict(way=way, seed=seed, cost=cost, max_lr=lr, regret=best - score))
    return pd.DataFrame(rows).assign(task=name)

def regret_table(names=tuple(ALL_TASKS)):
    "Mean and worst regret of each way to choose, over tasks and seeds, and its cost."
    all_ = pd.concat([regrets(name, ALL_TASKS[name].epochs) for name in names])
    return all_.groupby('way', sort=False).agg(cost=('cost', 'mean'), regret=('regret', 'mean'), worst=('regret', 'max'), runs=('seed', 'count'))

def plot_regrets(table, ax=None):
    "Draw regret over cost, one point for each way to choose."
    ax = ax or plt.subplots(figsize=(8, 5), layout='constrained')[1]
    for way, row in table.iterrows():
        ax.plot(row.cost, row.regret, 'o', color='tab:orange' if way.startswith('lr_find') else 'tab:blue')
        ax.annotate(way, (row.cost, row.regret), xytext=(6, 4), textcoords='offset points')
    ax.set(xlabel='cost in epochs', ylabel='score lost against the best LR', ylim=(0, None))
    ax.grid(alpha=.3)
    return ax

__all__ = ['study', 'argument_table', 'repeat_table', 'regret_table', 'plot_regrets', 'regrets', 'RULES']
