"""What the 1cycle policy buys you: several schedules, each at its own best learning rate, on scikit-learn's digits.

`python benchmarks/convergence.py` runs whatever is missing in `benchmarks/results/` (one to two hours on 2 cores; it
can be stopped and started again), prints two tables per task and draws two plots. `--tasks cnn,transformer` runs only
those two, and `--quick` gives a first look in under two minutes. 1,000 digits are used for training and 797 for
testing. A seed sets the weights, the order of the batches, the shifts and the random labels; every schedule gets the
same seeds."""
from functools import partial
from itertools import product
from pathlib import Path

import fastai.callback.schedule  # noqa: F401
import matplotlib.pyplot as plt
import pandas as pd
import torch
from fastai.callback.core import TrainEvalCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastcore.script import call_parse
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

fastai_fit_one_cycle = Learner.fit_one_cycle
from onecycle_callback import OneCycleSchedule  # noqa: E402
from runs import results, run_missing  # noqa: E402
from tasks import TASKS, evaluate  # noqa: E402

RESULTS = Path(__file__).parent / 'results'
BUDGETS = 1, 2, 4, 8    # the constant LR gets this many times the budget of 1cycle
KEY = ['schedule', 'max_lr', 'epochs', 'seed']

# The schedules

def plain(scheduler, model, task, batches, lr, epochs):
    "Train in a bare torch loop; `scheduler(opt, lr, n)` may be `None`."
    opt = task.opt(model.parameters(), lr=lr)
    sched = scheduler and scheduler(opt, lr, epochs * len(batches))
    for _ in range(epochs):
        for x, y in batches:
            task.loss(model(x), y).backward()
            opt.step()
            opt.zero_grad()
            if sched: sched.step()

def torch_one_cycle(opt, lr, n):
    "Make torch's schedule with this project's defaults; `pct_start` makes up for a peak that is one batch early."
    peak = OneCycleSchedule(lr).plan(1, n).peak
    return OneCycleLR(opt, lr, total_steps=n + 1, pct_start=(peak + 1) / (n + 1), final_div_factor=1)

def by_learner(fit, model, task, batches, lr, epochs):
    "Train a fastai `Learner` that has no recorder and no validation."
    learn = Learner(DataLoaders(batches, []), model, loss_func=task.loss, opt_func=partial(OptimWrapper, opt=task.opt),
                    default_cbs=False, cbs=TrainEvalCallback())
    fit(learn, epochs, lr)

SCHEDULES = {
    'constant': partial(plain, None),
    'torch CosineAnnealingLR': partial(plain, lambda opt, lr, n: CosineAnnealingLR(opt, n)),
    'torch OneCycleLR': partial(plain, torch_one_cycle),
    'fastai fit_flat_cos': partial(by_learner, Learner.fit_flat_cos),
    'fastai fit_one_cycle': partial(by_learner, fastai_fit_one_cycle),
    'onecycle': partial(by_learner, Learner.fit_one_cycle),
    'onecycle, final_div=1e5': partial(by_learner, partial(Learner.fit_one_cycle, final_div=1e5)),
    'onecycle, three_phase': partial(by_learner, partial(Learner.fit_one_cycle, three_phase=True))}

def run_one(task, schedule, max_lr, epochs, seed):
    "Return test accuracy and loss after one training run."
    torch.manual_seed(seed)
    model = task.model()
    batches, x, y = task.data(seed)
    SCHEDULES[schedule](model.train(), task, batches, max_lr, epochs)
    return evaluate(task, model, x, y)

# The results

def jobs(seeds, lrs, epochs):
    "List what there is to run, starting with the first seed of everything."
    for seed in range(seeds):
        for schedule, lr in product(SCHEDULES, lrs):
            for k in BUDGETS if schedule == 'constant' else (1,): yield schedule, lr, k * epochs, seed

def summary(df):
    "Average over the seeds: one row per schedule, LR and number of epochs."
    return df.groupby(KEY[:-1]).agg(accuracy=('accuracy', 'mean'), sd=('accuracy', 'std'), loss=('loss', 'mean'),
                                    loss_sd=('loss', 'std'), seeds=('seed', 'count')).reset_index()

def best_of(df, by):
    "Pick the row of `summary` with the best LR for each value of `by`."
    s = summary(df)
    others = [c for c in ('schedule', 'epochs') if c != by]
    return s.loc[s.groupby(by).accuracy.idxmax()].set_index(by).drop(columns=others)

def schedules_table(df):
    "Each schedule at its own best LR, within the budget."
    return best_of(df[df.epochs == df.epochs.min()], 'schedule').sort_values('accuracy', ascending=False)

def epochs_table(df):
    "1cycle within its budget, then the constant LR at its best with more and more epochs."
    ours = best_of(df[df.schedule == 'onecycle'], 'epochs').assign(schedule='onecycle')
    return pd.concat([ours, best_of(df[df.schedule == 'constant'], 'epochs').assign(schedule='constant')])

def in_pairs(n):
    "Make axes for `n` plots of the test accuracy, two in each row, so that each is readable on a phone."
    rows = (n + 1) // 2
    fig, axes = plt.subplots(rows, 2, figsize=(10.4, 4.2 * rows), layout='constrained', squeeze=False)
    for ax in axes[:, 0]: ax.set_ylabel('test accuracy')
    for ax in axes.flat[n:]: ax.axis('off')
    return fig, axes

def plot_lrs(dfs):
    "Plot accuracy against maximum LR within the budget, one plot per task."
    fig, axes = in_pairs(len(dfs))
    for ax, (name, df) in zip(axes.flat, dfs.items()):
        s = summary(df[df.epochs == df.epochs.min()])
        for schedule in SCHEDULES:
            of = s[s.schedule == schedule]
            ours = schedule == 'onecycle'
            ax.errorbar(of.max_lr, of.accuracy, of.sd, label=schedule, lw=2.5 if ours else 1.2, capsize=2,
                        color='black' if schedule == 'constant' else None, zorder=3 if ours else 2)
        best = s.accuracy.max()
        ax.set(xscale='log', xlabel='maximum learning rate', title=f'{TASKS[name].title}\n{df.epochs.min()} epochs',
               ylim=(max(0, best - .25), min(1, best + .01)))
        ax.grid(alpha=.3)
    for ax in axes[-1]:
        ax.legend(*axes[0, 0].get_legend_handles_labels(), loc='upper center', bbox_to_anchor=(.5, -.24))
    return fig

def plot_epochs(dfs):
    "Plot the best accuracy of the constant LR against epochs, and that of 1cycle within its budget, task by task."
    fig, axes = in_pairs(len(dfs))
    for ax, (name, df) in zip(axes.flat, dfs.items()):
        t = epochs_table(df)
        ours, constant = t[t.schedule == 'onecycle'].iloc[0], t[t.schedule == 'constant']
        ax.errorbar(constant.index, constant.accuracy, constant.sd, marker='o', capsize=3, color='black',
                    label='constant LR, the best of each')
        ax.errorbar([t.index.min()], [ours.accuracy], [ours.sd], marker='s', capsize=3, color='tab:red',
                    label='onecycle')
        ax.axhline(ours.accuracy, color='tab:red', ls=':', lw=1)
        ax.set(xscale='log', xlabel='epochs', title=TASKS[name].title)
        ax.set_xticks(constant.index, constant.index)
        ax.minorticks_off()
        ax.grid(alpha=.3)
        ax.legend(loc='lower left' if constant.accuracy.iloc[-1] < constant.accuracy.iloc[0] else 'lower right')
    return fig

@call_parse
def main(
    tasks:str=','.join(TASKS), # Names of tasks, separated by commas
    seeds:int=5, # Number of seeds
    quick:bool=False # Run one seed, two LRs and a sixth of the epochs, in a folder of their own
):
    "Run what is missing, print the tables and draw the plots."
    torch.set_num_threads(1)
    folder = RESULTS / 'quick' if quick else RESULTS
    folder.mkdir(exist_ok=True)
    unknown = set(tasks.split(',')) - set(TASKS)
    if unknown: raise SystemExit(f'tasks must be among {", ".join(TASKS)}, got {", ".join(sorted(unknown))}')
    dfs = {}
    for name in tasks.split(','):
        task, path = TASKS[name], folder / f'{name}.csv'
        print(f'\n{task.title}', flush=True)
        todo = jobs(*((1, task.lrs[2:4], task.epochs // 6) if quick else (seeds, task.lrs, task.epochs)))
        command = f'python benchmarks/convergence.py --tasks {name}'
        run_missing(path, command, KEY, ['accuracy', 'loss'], todo, partial(run_one, task))
        dfs[name] = results(path)
        for table in (schedules_table, epochs_table):
            print(f'\n{table.__doc__}', table(dfs[name]).round(4).to_string(), sep='\n')
    plot_lrs(dfs).savefig(folder / 'lrs.png', dpi=80)
    plot_epochs(dfs).savefig(folder / 'epochs.png', dpi=80)
