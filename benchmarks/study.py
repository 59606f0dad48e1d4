"""What each argument of a cycle buys, how much a stopped or repeated cycle loses, and how good a suggested `max_lr` is.

`python benchmarks/study.py` runs whatever is missing in `benchmarks/results/study/` (about three hours on 2 cores with
`--tasks` split over two processes; it can be stopped and started again). `--quick` prints a first look in under three
minutes. Six tasks, five seeds; a seed sets the weights, the order of the batches and the random labels."""
from dataclasses import replace
from functools import partial
from itertools import product
from math import isnan
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.callback.schedule import minimum, slide, steep, valley
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastcore.script import call_parse
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import onecycle_callback  # noqa: F401
from runs import results, run_missing
from tasks import MORE_TASKS, TASKS, evaluate

RESULTS = Path(__file__).parent / 'results/study'
ALL_TASKS = TASKS | MORE_TASKS
KEY, VALUES = ['variant', 'max_lr', 'epochs', 'seed'], ['score', 'loss', 'train_loss']

# What is compared

ARGUMENTS = {
    'default': {},
    **{f'final_div={d}': dict(final_div=float(d)) for d in ('1', '5', '100', '1e5', 'inf')},
    'moms .9': dict(moms=(.9, .9, .9)), 'moms .95': dict(moms=(.95, .95, .95)), 'moms 0': dict(moms=(0., 0., 0.)),
    **{f'pct_start={p}': dict(pct_start=p) for p in (0., .1, .5)},
    **{f'div_factor={d}': dict(div_factor=d) for d in (2, 1000)},
    'linear': dict(anneal='linear'), 'three_phase': dict(three_phase=True)}
STARTS = {f'div_factor={d}, final_div=25': dict(div_factor=d, final_div=25.) for d in (2, 1000)}    # the default's end
AGAIN = {'1': 1, '1/3': 1 / 3, '1/10': 1 / 10}    # the second peak, as a part of the first

class Averaged(Callback):
    "Train an average of the weights along, the last 50 batches weighing most, and take it at the end."
    def before_fit(self):
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(.98), use_buffers=True)
    def after_batch(self): self.average.update_parameters(self.model)
    def after_fit(self): self.model.load_state_dict(self.average.module.state_dict())

class LastLosses(Callback):
    "Keep the training losses."
    def before_fit(self): self.losses = []
    def after_batch(self): self.losses.append(self.learn.loss.detach().clone())
    def mean(self): return torch.stack(self.losses[-20:]).mean().item()

def again(learn, max_lr, epochs, part, halfway=False):
    "Train a cycle in half of `epochs`, and a second one from its last weights, or from those halfway through it."
    half = epochs // 2
    learn.fit_one_cycle(half, max_lr, stop_epoch=half // 2 if halfway else None)
    learn.fit_one_cycle(half, max_lr * part)

VARIANTS = {
    **{name: partial(lambda learn, lr, n, kwargs: learn.fit_one_cycle(n, lr, **kwargs), kwargs=kwargs)
       for name, kwargs in (ARGUMENTS | STARTS).items()},
    'averaged weights': lambda learn, lr, n: learn.fit_one_cycle(n, lr, cbs=Averaged()),
    'constant': lambda learn, lr, n: learn.fit(n, lr),
    'constant, averaged weights': lambda learn, lr, n: learn.fit(n, lr, cbs=Averaged()),
    'stopped at half': lambda learn, lr, n: learn.fit_one_cycle(2 * n, lr, stop_epoch=n),
    **{f'again at {name}': partial(again, part=part) for name, part in AGAIN.items()},
    **{f'again at {name}, from halfway': partial(again, part=part, halfway=True) for name, part in AGAIN.items()}}
ARGUMENT_VARIANTS = [*ARGUMENTS, 'averaged weights', 'constant', 'constant, averaged weights']
AGAIN_VARIANTS = [name for name in VARIANTS if name.startswith('again')]

# How it is trained

def learner(task, seed, **kwargs):
    "Return a new Learner, and inputs and targets for testing."
    torch.manual_seed(seed)
    model, (batches, x, y) = task.model(), task.data(seed)
    opt_func = partial(OptimWrapper, opt=task.opt)
    return Learner(DataLoaders(batches, []), model, loss_func=task.loss, opt_func=opt_func, **kwargs), x, y

def train(task, variant, max_lr, epochs, seed):
    "Return the score and the loss on the test data, and the training loss over the last 20 batches."
    losses = LastLosses()
    learn, x, y = learner(task, seed, default_cbs=False, cbs=[TrainEvalCallback(), losses])
    VARIANTS[variant](learn, max_lr, epochs)
    return *evaluate(task, learn.model, x, y), losses.mean()

RULES = dict(valley=valley, steep=steep, minimum=minimum, slide=slide)

def suggest(task, rule, seed):
    "Return what `lr_find` suggests by a rule, `nan` if it finds nothing, and the number of epochs that it takes."
    learn, *_ = learner(task, seed)
    try:
        with learn.no_bar(), learn.no_logging():
            lr = float(learn.lr_find(show_plot=False, suggest_funcs=RULES[rule])[0])
    except (IndexError, RuntimeError, TypeError): lr = float('nan')
    return lr, len(learn.recorder.lrs) / len(learn.dls.train)

# What there is to run, in the order in which it is run

def best_lr(df, variant, epochs):
    "Return the LR with the best mean score over the seeds."
    of = df[(df.variant == variant) & (df.epochs == epochs)]
    return of.groupby('max_lr').score.mean().idxmax()

def around(lrs, lr, n):
    "Return `lr` and its neighbours, at most `n` in all."
    i = lrs.index(lr)
    return lrs[max(0, i - n // 2):i + n // 2 + 1]

def jobs_of_arguments(task, seeds):
    "Every argument at every LR, the first seed of everything first."
    for seed, variant, lr in product(range(seeds), [*ARGUMENT_VARIANTS, *STARTS], task.lrs):
        yield variant, lr, task.epochs, seed

def jobs_of_short_cycles(task, seeds):
    "Short cycles, as a user would compare LRs."
    for epochs, seed, lr in product((1, 2, 4), range(seeds), task.lrs): yield 'default', lr, epochs, seed

def jobs_of_repeats(task, seeds, df):
    "Cycles stopped and repeated, at the best LR of one cycle."
    lr = best_lr(df, 'default', task.epochs)
    for seed in range(seeds):
        yield 'stopped at half', lr, task.epochs, seed
        for variant in ['default', *AGAIN_VARIANTS]: yield variant, lr, 2 * task.epochs, seed

def jobs_of_long_cycles(task, seeds, df):
    "Every argument at 4 times the budget, at the LRs around its best."
    for seed, variant in product(range(seeds), ARGUMENT_VARIANTS):
        for lr in around(task.lrs, best_lr(df, variant, task.epochs), task.long_lrs):
            yield variant, lr, 4 * task.epochs, seed

STAGES = [lambda task, seeds, df: jobs_of_arguments(task, seeds),
          lambda task, seeds, df: jobs_of_short_cycles(task, seeds),
          jobs_of_repeats, jobs_of_long_cycles]

def run_suggestions(task, path, command, seeds, epochs):
    "Add the suggestions of the range test, and what training at them gives, to the file at `path`."
    def run(rule, n, seed):
        lr, cost = suggest(task, rule, seed)
        score, loss, _ = (float('nan'),) * 3 if isnan(lr) else train(task, 'default', lr, n, seed)
        return lr, cost, score, loss
    jobs = [(rule, n, seed) for n, seed, rule in product(epochs, range(seeds), RULES)]
    run_missing(path, command, ['rule', 'epochs', 'seed'], ['max_lr', 'cost', 'score', 'loss'], jobs, run)

def run_stage(stage, name, task, folder, seeds):
    "Run what one stage of a task lacks."
    path, command = folder / f'{name}.csv', f'python benchmarks/study.py --tasks {name}'
    df = results(path) if path.exists() else pd.DataFrame(columns=KEY)
    print(f'{task.title}: stage {stage + 1} of {len(STAGES)}', flush=True)
    run_missing(path, command, KEY, VALUES, STAGES[stage](task, seeds, df), partial(train, task))
    if stage == 1: run_suggestions(task, folder / f'{name}_suggestions.csv', command, seeds, (task.epochs,))

def first_look(name='table', seeds=2):
    "Print the scores of every argument and the suggestions for the cheapest task, at four of its LRs; keep nothing."
    task = ALL_TASKS[name]
    task = replace(task, lrs=task.lrs[1:5])
    with TemporaryDirectory() as folder:
        for stage in range(2): run_stage(stage, name, task, Path(folder), seeds)
        df, suggested = (results(Path(folder) / f'{file}.csv') for file in (name, f'{name}_suggestions'))
    print(f'{task.title}, {task.epochs} epochs, {task.score_name} by max_lr, mean of {seeds} seeds:')
    print(df[df.epochs == task.epochs].pivot_table('score', 'variant', 'max_lr', sort=False).round(4).to_string())
    print('\nA cycle at what lr_find suggests:')
    print(suggested.drop(columns='epochs').round(4).to_string(index=False))

@call_parse
def main(
    tasks:str=','.join(ALL_TASKS), # Names of tasks, separated by commas
    seeds:int=5, # Number of seeds
    stages:int=len(STAGES), # How many of the four stages to run: arguments, short cycles, repeats, long cycles
    quick:bool=False, # Print a first look at one task, with two seeds and four LRs, and keep nothing
):
    "Run what is missing."
    torch.set_num_threads(1)
    if quick: return first_look()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for stage, name in product(range(stages), tasks.split(',')): run_stage(stage, name, ALL_TASKS[name], RESULTS, seeds)
