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
VARIANTS = (*ARGUMENT_VARIANTS[1:], *STARTS)
SHORT = dict(cnn='CNN, shifted', transformer='Transformer', noisy='CNN, wrong labels', clean='CNN, clean',
             table='MLP', text='GRU, text', mean='mean of the six')

@cache
def study(name):
    "Read the runs of a task."
    return results(RESULTS / f'{name}.csv')

def by_seed(df, variant, max_lr, epochs):
    "Return the score of each seed."
    of = df[(df.variant == variant) & (df.max_lr == max_lr) & (df.epochs == epochs)]
    return of.set_index('seed').score.sort_index()

def interval(differences):
    "Return the mean of differences, one for each seed, and half of its 95 % confidence interval."
    d = differences.dropna()
    return d.mean(), student.ppf(.975, len(d) - 1) * d.std() / np.sqrt(len(d))

def with_intervals(changes):
    "Return mean and half interval of each column by task, and of the tasks' mean, from a frame by task and seed."
    mean = changes.groupby('seed').mean()[changes.groupby('seed').size() == len(ALL_TASKS)]
    of = pd.concat([changes, pd.concat({'mean': mean}, names=['task'])]).groupby('task', sort=False)
    return pd.concat({column: of[column].apply(lambda d: pd.Series(interval(d), ['mean', 'noise'])).unstack()
                      for column in changes}, axis=1)

def of_all_tasks(one_task, *args):
    "Return what `one_task` says of each task and seed."
    return with_intervals(pd.concat({name: one_task(name, *args) for name in ALL_TASKS}, names=['task']))

# What each argument buys

def good_range(df, variant, epochs):
    """Return the factor between the ends of the range of LRs that lose less than `TOLERANCE`, for each seed.

    Between the LRs that were tried, scores are interpolated over the logarithm of the LR."""
    def factor(scores):
        logs = np.log10(scores.index)
        x = np.linspace(logs[0], logs[-1], 1001)
        return 10 ** ((np.interp(x, logs, scores) > scores.max() - TOLERANCE).mean() * (x[-1] - x[0]))
    of = df[(df.variant == variant) & (df.epochs == epochs)]
    return of.pivot(index='max_lr', columns='seed', values='score').apply(factor)

@cache
def change(name, variant, budget=1):
    """Return what a variant changes against the default, each at its own best LR, for each seed.

    `gain` is in points, `wider` the logarithm (base 10) of how many times as far its good LRs reach."""
    df, epochs = study(name), budget * ALL_TASKS[name].epochs
    (scores, reach), (default, default_reach) = (
        (by_seed(df, v, best_lr(df, v, epochs), epochs), good_range(df, v, epochs)) for v in (variant, 'default'))
    return pd.DataFrame(dict(gain=100 * (scores - default), wider=np.log10(reach / default_reach)))

def changes(variants=VARIANTS, budget=1):
    "Return the mean change and its interval, by variant and task."
    return pd.concat({v: of_all_tasks(change, v, budget) for v in variants}, names=['variant'])

LABELS = {'moms .9': 'moms=(0.9, 0.9)', 'moms .95': 'moms=(0.95, 0.95)', 'moms 0': 'no momentum',
          'linear': "anneal='linear'", 'three_phase': 'three_phase=True', 'constant': 'constant LR',
          'constant, averaged weights': 'constant LR, averaged weights'}

def summary():
    "Return a row per change: the points gained on average over the tasks, and how wide the range of good `max_lr` is."
    mean = changes().xs('mean', level='task')
    gained = [f'{gain:+.1f} ± {noise:.1f}' for gain, noise in mean.gain.itertuples(index=False)]
    wide = [f'{10**factor:.2f} ×' for factor in mean.wider['mean']]
    table = pd.DataFrame({'points gained': gained, 'range of max_lr': wide}, mean.index)
    return table.rename(LABELS).rename_axis('change')

def beside_the_best(name):
    "Return how many points a third of the best `max_lr` and three times it gain, for each seed; `nan` if not tried."
    df, task = study(name), ALL_TASKS[name]
    lrs = pd.Series(task.lrs)
    i = int(lrs.searchsorted(best_lr(df, 'default', task.epochs)))
    below, best, above = (by_seed(df, 'default', lr, task.epochs) for lr in lrs.reindex([i - 1, i, i + 1]))
    return 100 * pd.DataFrame(dict(below=below - best, above=above - best))

def longer(name, budget=4):
    "Return what `budget` times the epochs gain, each at its own best LR, in points, for each seed."
    df, task = study(name), ALL_TASKS[name]
    short, long = (by_seed(df, 'default', best_lr(df, 'default', n), n) for n in (task.epochs, budget * task.epochs))
    return 100 * pd.DataFrame(dict(gain=long - short))

def repeat(name, variant):
    """Return what a stopped cycle gains over one as long, or two cycles over one as long as both, for each seed.

    All at the best LR of one cycle, in points."""
    df, epochs = study(name), ALL_TASKS[name].epochs
    lr, n = best_lr(df, 'default', epochs), epochs if variant == 'stopped at half' else 2 * epochs
    return 100 * pd.DataFrame(dict(gain=by_seed(df, variant, lr, n) - by_seed(df, 'default', lr, n)))

def repeats(variants=('stopped at half', *AGAIN_VARIANTS)):
    "Return what stopped and repeated cycles gain and its interval, by variant and task."
    return pd.concat({v: of_all_tasks(repeat, v) for v in variants}, names=['variant'])

# Pictures, readable on a phone

ON_A_PHONE = {'font.size': 12, 'axes.titlesize': 12, 'axes.grid': True, 'grid.alpha': .3}    # 11 px at a width of 400

def draw(ax, values, labels):
    "Draw a mean and its interval for each variant and task: a band for each variant, in it a line for each task."
    names = [*SHORT]
    for i, name in enumerate(names):
        of, y = values.xs(name, level='task').loc[[*labels]], np.arange(len(labels)) + .8 * (i / (len(names) - 1) - .5)
        style = dict(fmt='D', color='black', lw=2) if name == 'mean' else dict(fmt='o', color=f'C{i}', lw=1.2)
        ax.errorbar(of['mean'], y, xerr=of['noise'], ms=4, label=SHORT[name], **style)
    for y in np.arange(len(labels) - 1) + .5: ax.axhline(y, color='0.7', lw=.6)
    ax.axvline(0, color='0.3', lw=1)
    ax.set(yticks=range(len(labels)), yticklabels=labels.values(), ylim=(len(labels) - .5, -.5))
    ax.grid(axis='y', visible=False)

def draw_gains(ax, table, labels, xlabel='points gained over the default'):
    "Draw what each variant gains: in equal steps up to a point, in decades beyond."
    draw(ax, table.gain, labels)
    ax.set_xscale('symlog', linthresh=1, linscale=1)
    ticks = [-30, -10, -3, -1, 0, 1, 3, 10]
    ax.set_xticks(ticks, [f'{t:+d}' if t else '0' for t in ticks])
    ax.minorticks_off()
    ax.set(xlim=(-32, 12), xlabel=xlabel)

def draw_ranges(ax, table, labels):
    "Draw how many times as far as the default's the range of good LRs reaches."
    draw(ax, table.wider, labels)
    ax.set_xticks(np.log10([.03, .1, .3, 1, 3, 10]), ['0.03', '0.1', '0.3', '1', '3', '10'])
    ax.set(xlim=np.log10([.02, 20]), xlabel='range of good LRs, times the default\'s')

def add_legend(fig, ax):
    fig.legend(*ax.get_legend_handles_labels(), loc='outside lower center', ncols=2, frameon=False)

@plt.rc_context(ON_A_PHONE)
def plot_argument(labels):
    "Draw what each variant, a key of `labels`, does in short cycles, in long ones, and to the range of good LRs."
    panels = [('cycles of 4 to 15 epochs: gain', draw_gains, 1), ('4 times as long: gain', draw_gains, 4),
              ('cycles of 4 to 15 epochs: range', draw_ranges, 1)]
    fig, axes = plt.subplots(3, 1, figsize=(5, 3 * (.9 + .7 * len(labels)) + 1), layout='constrained')
    for ax, (title, draw_panel, budget) in zip(axes, panels):
        shown = {variant: label for variant, label in labels.items() if budget == 1 or variant not in STARTS}
        draw_panel(ax, changes([*shown], budget), shown)
        ax.set_title(title, loc='left')
    add_legend(fig, axes[0])
    return fig

@plt.rc_context(ON_A_PHONE)
def plot_repeats():
    "Draw what a cycle loses that is stopped halfway, and what two cycles gain over one of the same length together."
    table, again = repeats(), {v: v.removeprefix('again at ').replace(', from', ',\nfrom') for v in AGAIN_VARIANTS}
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(5, 8), height_ratios=(1, 5), layout='constrained')
    draw_gains(top, table, {'stopped at half': ''}, 'points gained over a planned cycle')
    top.set_title('stopped halfway', loc='left')
    draw_gains(bottom, table, again, 'points gained over one long cycle')
    bottom.set(ylabel='second peak, as a part of the first')
    bottom.set_title('a second cycle after the first', loc='left')
    add_legend(fig, top)
    return fig

# How good a suggested `max_lr` is

def chosen(df, seed, lrs, epochs, n=1):
    "Return the `n` of `lrs` with the lowest test loss after a short cycle of `epochs`."
    of = df[(df.variant == 'default') & (df.epochs == epochs) & (df.seed == seed) & df.max_lr.isin(lrs)]
    return of.set_index('max_lr').loss.nsmallest(n).index.tolist()

def short_cycles(df, task, seed):
    "Yield each way to choose by short cycles, its cost in epochs, and the LR that it chooses."
    lrs = list(task.lrs)
    for n in (1, 2, 4): yield f'cycles of {n}', n * len(lrs), chosen(df, seed, lrs, n)[0]
    three = chosen(df, seed, lrs, 1, 3)
    yield 'cycles of 1, the best 3 again with 2', len(lrs) + 6, chosen(df, seed, three, 2)[0]
    yield 'cycles of 1, the best 3 again with 4', len(lrs) + 12, chosen(df, seed, three, 4)[0]

def suggestions(name):
    "Read what `lr_find` suggested for a task, and what a cycle at that LR gave."
    return results(RESULTS / f'{name}_suggestions.csv')

@cache
def regrets(name):
    "Return one row per way to choose and seed: its cost in epochs, and the points lost against the best LR tried."
    df, task, suggested, rows = study(name), ALL_TASKS[name], suggestions(name), []
    at = df[(df.variant == 'default') & (df.epochs == task.epochs)].set_index(['max_lr', 'seed']).score
    best = at[best_lr(df, 'default', task.epochs)]
    def add(way, seed, cost, score): rows.append(dict(way=way, seed=seed, cost=cost, regret=100 * (best[seed] - score)))
    for s in suggested.itertuples(): add(f'lr_find, {s.rule}', s.seed, s.cost, 0 if np.isnan(s.score) else s.score)
    for s in suggested[suggested.rule == 'minimum'].itertuples():
        lrs = lrs_around(s.max_lr)
        for n in (1, 2, 4):
            lr, = chosen(df, s.seed, lrs, n)
            add(f'compare_max_lr, {n}', s.seed, s.cost + n * len(lrs), at[lr, s.seed])
    for seed in df.seed.unique():
        for way, cost, lr in short_cycles(df, task, seed): add(way, seed, cost, at[lr, seed])
    return pd.DataFrame(rows).assign(task=name)

def regret_table():
    "Mean and worst regret of each way to choose, in points, over tasks and seeds, and its cost in epochs."
    ways = pd.concat(map(regrets, ALL_TASKS)).groupby('way', sort=False)
    return ways.agg(cost=('cost', 'mean'), regret=('regret', 'mean'), worst=('regret', 'max'))

def gain_over_minimum(way):
    "Return how many points less a way to choose loses than the suggestion `minimum`, and half of the 95 % interval."
    runs = pd.concat(map(regrets, ALL_TASKS)).pivot_table('regret', ['task', 'seed'], 'way')
    return interval((runs['lr_find, minimum'] - runs[way]).groupby('seed').mean())

def best_over_minimum():
    "Return how many times the suggestion `minimum` the best LR is, for each task and seed."
    def found(name): return suggestions(name).query("rule == 'minimum'").max_lr
    return pd.concat({name: best_lr(study(name), 'default', task.epochs) / found(name)
                      for name, task in ALL_TASKS.items()})

def short_over_long(n=1):
    "Return the best LR of cycles of `n` epochs over that of cycles of full length, for each task."
    return pd.Series({name: best_lr(study(name), 'default', n) / best_lr(study(name), 'default', task.epochs)
                      for name, task in ALL_TASKS.items()})

WAYS = {'lr_find, ': ('tab:orange', 'o', 'lr_find'),
        'compare_max_lr, ': ('tab:red', '*', 'compare_max_lr(), 1, 2 or 4 epochs'),
        'cycles of 1, the best 3 again with ': ('tab:green', '^', '1 epoch at 6 LRs, then 2 or 4 at the best 3'),
        'cycles of ': ('tab:blue', 's', '1, 2 or 4 epochs at 6 LRs')}
LEFT = 'lr_find, valley', 'lr_find, minimum'    # ways whose labels stand on the left, since others are in the way

@plt.rc_context(ON_A_PHONE)
def plot_regrets(table):
    "Draw regret over cost, one point for each way to choose."
    fig, ax = plt.subplots(figsize=(5, 5.2), layout='constrained')
    for way, row in table.iterrows():
        start = next(start for start in WAYS if way.startswith(start))
        color, marker, label = WAYS[start]
        ax.plot(row.cost, row.regret, marker, color=color, ms=8, label=label)
        side = dict(xytext=(-7, 3), ha='right') if way in LEFT else dict(xytext=(7, 3), ha='left')
        ax.annotate(way.removeprefix(start), (row.cost, row.regret), textcoords='offset points', **side)
    ax.set_yscale('symlog', linthresh=.1)
    ax.set_yticks([0, .1, .3, 1, 3, 10, 30], ['0', '0.1', '0.3', '1', '3', '10', '30'])
    ax.minorticks_off()
    ax.set(xlabel='cost in epochs', ylabel='points lost against the best LR', xlim=(-2, 27))
    handles = dict(zip(*reversed(ax.get_legend_handles_labels())))
    fig.legend(handles.values(), handles, loc='outside lower center', frameon=False)
    return fig
