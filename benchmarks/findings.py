"""What the runs of study.py say: tables and pictures, made from `benchmarks/results/study/` and nothing else."""
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import t as student

from onecycle_callback.compare import lrs_around
from runs import results
from study import AGAIN_VARIANTS, ALL_TASKS, ARGUMENT_VARIANTS, RESULTS, STARTS, best_lr

TOLERANCE = 0.01    # how far below its best a score may be where a learning rate still counts as good

@cache
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
    """Return the factor between the ends of the range of LRs that lose less than `TOLERANCE`, for each seed.

    Between the LRs that were tried, scores are interpolated over the logarithm of the LR."""
    def factor(scores):
        logs = np.log10(scores.index)
        x = np.linspace(logs[0], logs[-1], 1001)
        return 10 ** ((np.interp(x, logs, scores) > scores.max() - TOLERANCE).mean() * (x[-1] - x[0]))
    of = df[(df.variant == variant) & (df.epochs == epochs)]
    return of.pivot(index='max_lr', columns='seed', values='score').apply(factor)

def argument_table(df, epochs, variants=(*ARGUMENT_VARIANTS, *STARTS)):
    "Each variant at its own best LR: its score, what it gains over the default, and how far its range of good LRs reaches."
    default = by_seed(df, 'default', best_lr(df, 'default', epochs), epochs)
    rows = {}
    for variant in variants:
        lr = best_lr(df, variant, epochs)
        scores = by_seed(df, variant, lr, epochs)
        gain, noise = difference(scores, default)
        ranges = [np.log10(good_range(df, v, epochs)) for v in (variant, 'default')]
        wider, wider_noise = difference(*ranges)
        rows[variant] = dict(best_lr=lr, score=scores.mean(), gain=gain, noise=noise, good_range=10 ** ranges[0].mean(),
                             wider=wider, wider_noise=wider_noise)
    return pd.DataFrame(rows).T.rename_axis('variant')

def all_tasks(variants, budget=1):
    "Return the rows of `argument_table` for `variants`, of each task, at `budget` times its epochs."
    tables = {name: argument_table(study(name), budget * task.epochs, variants) for name, task in ALL_TASKS.items()}
    return pd.concat(tables, names=['task'])

def beyond_noise(budget=1, variants=(*ARGUMENT_VARIANTS, *STARTS)):
    "Return the variants that differ from the default by more than the 95 % interval, in points, one column for each task."
    table = all_tasks(variants, budget)
    return (100 * table.gain.where(table.gain.abs() > table.noise)).unstack('task').reindex(list(variants))[[*ALL_TASKS]]

def beside_the_best():
    "Return what half a decade below and above the best `max_lr` loses of the default's score, in points, for each task."
    rows = {}
    for name, task in ALL_TASKS.items():
        df, best = study(name), best_lr(study(name), 'default', task.epochs)
        scores = by_seed(df, 'default', best, task.epochs)
        i = task.lrs.index(best)
        lrs = dict(below=task.lrs[i - 1] if i else None, above=task.lrs[i + 1] if best < task.lrs[-1] else None)
        rows[name] = {k: 100 * (by_seed(df, 'default', lr, task.epochs) - scores).mean() for k, lr in lrs.items() if lr}
    return pd.DataFrame(rows).T

def longer(budget=4):
    "Return what `budget` times the epochs gain, each at its own best LR, in points, for each task."
    rows = {}
    for name, task in ALL_TASKS.items():
        df = study(name)
        short, long = (by_seed(df, 'default', best_lr(df, 'default', n), n) for n in (task.epochs, budget * task.epochs))
        rows[name] = [100 * d for d in difference(long, short)]
    return pd.DataFrame(rows, index=['gain', 'noise']).T

SHORT = dict(cnn='CNN, shifted', transformer='Transformer', noisy='CNN, wrong labels', clean='CNN, clean',
             table='MLP', text='GRU, text')
ON_A_PHONE = {'font.size': 12, 'axes.titlesize': 12, 'axes.grid': True, 'grid.alpha': .3}    # 11 px at a width of 400

def draw(ax, values, noise, labels):
    "Draw a value for each variant and task, with its 95 % interval: a band for each variant, in it a line for each task."
    for i, name in enumerate(ALL_TASKS):
        y = np.arange(len(labels)) + .8 * (i / (len(ALL_TASKS) - 1) - .5)
        ax.errorbar(values.loc[name], y, xerr=noise.loc[name], fmt='o', ms=4, lw=1.2, color=f'C{i}', label=SHORT[name])
    for y in np.arange(len(labels) - 1) + .5: ax.axhline(y, color='0.7', lw=.6)
    ax.axvline(0, color='0.3', lw=1)
    ax.set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - .5, -.5))
    ax.grid(axis='y', visible=False)

def draw_gains(ax, table, labels):
    "Draw what each variant gains, in points."
    draw(ax, 100 * table.gain, 100 * table.noise, labels)
    ax.set_xscale('symlog', linthresh=1, linscale=1)
    ticks = [-30, -10, -3, -1, 0, 1, 3, 10]
    ax.set_xticks(ticks, [f'{t:+d}' if t else '0' for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel('points gained over the default')

def draw_ranges(ax, table, labels):
    "Draw how many times as far the range of good LRs reaches as the default's."
    draw(ax, table.wider, table.wider_noise, labels)
    ax.set_xticks(np.log10([.03, .1, .3, 1, 3, 10]), ['0.03', '0.1', '0.3', '1', '3', '10'])
    ax.set_xlim(*np.log10([.02, 20]))
    ax.set_xlabel('times the range of good `max_lr`')

@plt.rc_context(ON_A_PHONE)
def plot_argument(labels):
    "Draw what each variant, a key of `labels`, does in short cycles, in long ones if it was run, and to the range of good LRs."
    panels = [('gain, cycles of 4 to 15 epochs', draw_gains, 1), ('gain, cycles 4 times as long', draw_gains, 4),
              ('range, cycles of 4 to 15 epochs', draw_ranges, 1)]
    fig, axes = plt.subplots(3, 1, figsize=(5, 3 * (.9 + .65 * len(labels)) + .9), layout='constrained')
    for ax, (title, draw_panel, budget) in zip(axes, panels):
        shown = {variant: label for variant, label in labels.items() if budget == 1 or variant not in STARTS}
        draw_panel(ax, all_tasks([*shown], budget), [*shown.values()])
        ax.set_title(title, loc='left')
    fig.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=2, frameon=False)
    return fig

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

def repeats():
    "Return the rows of `repeat_table` of each task."
    return pd.concat({name: repeat_table(study(name), task.epochs) for name, task in ALL_TASKS.items()}, names=['task'])

@plt.rc_context(ON_A_PHONE)
def plot_repeats():
    "Draw what a cycle loses that is stopped halfway, and what two cycles gain over one of the same length together."
    table, fig = repeats(), plt.figure(figsize=(5, 7.5), layout='constrained')
    top, bottom = fig.subplots(2, 1, height_ratios=(1, 5))
    draw_gains(top, table.loc[:, ['stopped at half'], :], [''])
    draw_gains(bottom, table.loc[:, AGAIN_VARIANTS, :], [name.removeprefix('again at ').replace(', from', ',\nfrom') for name in AGAIN_VARIANTS])
    top.set(xlabel='points gained over a cycle of the same epochs')
    top.set_title('stopped halfway', loc='left')
    bottom.set(xlabel='points gained over one cycle of all epochs', ylabel='second peak, as a part of the first')
    bottom.set_title('a second cycle after the first', loc='left')
    fig.legend(*top.get_legend_handles_labels(), loc='outside lower center', ncols=2, frameon=False)
    return fig

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

def best_over_minimum():
    "Return how many times `minimum` the best LR is, at least and at most, over all tasks and seeds."
    factors = []
    for name, task in ALL_TASKS.items():
        found = results(RESULTS / f'{name}_suggestions.csv').query("rule == 'minimum'").max_lr
        factors.append(best_lr(study(name), 'default', task.epochs) / found)
    return pd.concat(factors).agg(['min', 'max'])

def short_over_long(n=1):
    "Return the best LR of cycles of `n` epochs over that of cycles of full length, for each task."
    return pd.Series({name: best_lr(study(name), 'default', n) / best_lr(study(name), 'default', task.epochs)
                      for name, task in ALL_TASKS.items()})

WAYS = {'lr_find, ': ('tab:orange', 'o', 'lr_find'), 'compare_max_lr': ('tab:red', '*', 'compare_max_lr()'),
        'cycles of 1, the best 3 again with ': ('tab:green', '^', '1 epoch at 6 LRs, then 2 or 4 at the best 3'),
        'cycles of ': ('tab:blue', 's', '1, 2 or 4 epochs at 6 LRs')}

@plt.rc_context(ON_A_PHONE)
def plot_regrets(table):
    "Draw regret over cost, one point for each way to choose."
    fig, ax = plt.subplots(figsize=(5, 5.2), layout='constrained')
    for way, row in table.iterrows():
        start = next(start for start in WAYS if way.startswith(start))
        color, marker, label = WAYS[start]
        ax.plot(row.cost, 100 * row.regret, marker, color=color, ms=8, label=label)
        ax.annotate(way.removeprefix(start), (row.cost, 100 * row.regret), xytext=(7, 3), textcoords='offset points')
    ax.set_yscale('symlog', linthresh=.1)
    ax.set_yticks([0, .1, .3, 1, 3, 10, 30], ['0', '0.1', '0.3', '1', '3', '10', '30'])
    ax.minorticks_off()
    ax.set(xlabel='cost in epochs', ylabel='points lost against the best LR', xlim=(0, 27))
    handles = dict(zip(*reversed(ax.get_legend_handles_labels())))
    fig.legend(handles.values(), handles, loc='outside lower center', frameon=False)
    return fig
