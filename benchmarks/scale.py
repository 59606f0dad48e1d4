"""What it costs to look at a plan or at a record, by its length and its number of parameter groups.

`python benchmarks/scale.py` measures, writes `benchmarks/results/scale.csv` and prints it as tables; `--quick` shortens
the run, without the MB, and writes nothing. Every plan has 100 epochs. Seconds are CPU time, the best of several
interleaved rounds; MB are the most that Python had allocated at once, in a run of its own, where that takes less than
two seconds. The loop over torch's `OneCycleLR` and ignite's `simulate_values` are timed over up to 20,000 batches, and
their cost for all batches is computed from that. This project doesn't install ignite (`pip install pytorch-ignite`);
without it there is no such column. `python benchmarks/scale.py --train 1000000` trains a model of one weight for so
many batches instead: how much memory the record takes, and how long a batch takes at the beginning and at the end."""
import math
import sys
import time
import tracemalloc
from functools import cache, partial
from pathlib import Path

import matplotlib.pyplot
import numpy as np
import pandas as pd
import torch
from fastai.basics import Callback, DataLoaders, Learner, SGD, nn
from fastai.learner import Recorder
from fastcore.script import call_parse

from onecycle_callback import OneCycle, OneCycleSchedule
from runs import versions

RESULTS = Path(__file__).parent / 'results'
N_EPOCH = 100
MOST_VALUES = 10**8   # `lrs` of more values than that isn't computed: a GB
SAMPLE = 20_000       # The steps that torch and ignite are timed over

def own_curve(start, end, pos): return start + (end - start) * math.sin(pos * math.pi / 2)

def plan_of(n, n_groups, anneal='cos'):
    max_lr = slice(1e-3, .1) if n_groups > 1 else .1
    return OneCycleSchedule(max_lr, anneal=anneal).plan(N_EPOCH, n // N_EPOCH, n_groups)

@cache
def record_of(n):
    "Return what a training of `n` batches records, with the weight decay of another scheduler, which jumps once."
    plan, wds = plan_of(n, 1), [.01] * n
    wds[n // 3] = .1
    return dict(wd=wds, lr=plan.lrs[:, 0].tolist(), mom=plan.moms.tolist())

def recorder_of(n, n_groups):
    recorder = Recorder()
    recorder.hps, recorder.plan = record_of(n), plan_of(n, n_groups)
    recorder.starts = {epoch: epoch * (n // N_EPOCH) for epoch in range(N_EPOCH)}
    return recorder

def drawn(axes):
    "Draw the picture that `axes` belong to, as a notebook would."
    figure = np.ravel(axes)[0].figure
    figure.canvas.draw()
    matplotlib.pyplot.close(figure)

def move_slider(plan):
    "Return a function that moves a slider of `plan.explore()`."
    slider = plan.explore().children[2]
    def move(): slider.value = .5 if slider.value == .3 else .3
    return move

def torch_loop(n, n_groups):
    "Return a function that takes the values of `n` batches from torch's scheduler."
    weights = [dict(params=[torch.zeros(1, requires_grad=True)]) for _ in range(n_groups)]
    opt = torch.optim.SGD(weights, lr=.1, momentum=.9)
    def loop():
        scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, .1, total_steps=n + 1)
        opt.step()   # otherwise the scheduler warns at its first step
        for _ in range(n): scheduler.step()
    return loop

def ignite_values(n):
    "Return a function that simulates the LRs of `n` batches with ignite, or `None` if it is missing."
    try: from ignite.handlers import CosineAnnealingScheduler
    except ImportError: return None
    args = dict(param_name='lr', start_value=.004, end_value=.1, cycle_size=n)
    return lambda: CosineAnnealingScheduler.simulate_values(num_events=n, **args)

def cases(n, n_groups):
    "Return what is measured for `n` batches: the functions to time, by column."
    plan, own, recorder = plan_of(n, n_groups), plan_of(n, n_groups, own_curve), recorder_of(n, n_groups)
    found = {
        'show': plan._repr_html_, 'show, own curve': own._repr_html_, 'plot_lr': lambda: drawn(recorder.plot_lr()),
        'plot_sched': lambda: drawn(recorder.plot_sched()), 'slider': move_slider(plan),
        'make, own curve': lambda: plan_of(n, n_groups, own_curve)}
    def values():
        fresh = plan_of(n, n_groups)
        return fresh.lrs, fresh.moms
    if n * n_groups <= MOST_VALUES: found['lrs and moms'] = values
    few = min(n, SAMPLE // n_groups)
    found["torch's loop"] = torch_loop(few, n_groups)
    if n_groups == 1 and ignite_values(few): found["ignite's simulate_values"] = ignite_values(few)
    factor = {"torch's loop": n / few, "ignite's simulate_values": n / few}
    return found, factor

def measure(lengths, n_groups, rounds, most=2):
    "Return one row per column and length: seconds, and the MB of what takes at most so many."
    made = {n: cases(n, n_groups) for n in lengths}
    seconds:dict = {}
    for _ in range(rounds):
        for what in made[lengths[0]][0]:
            for n, (found, factor) in made.items():
                if what not in found: continue
                start = time.process_time()
                found[what]()
                taken = (time.process_time() - start) * factor.get(what, 1)
                seconds[what, n] = min(taken, seconds.get((what, n), math.inf))
    return [dict(batches=n, groups=n_groups, what=what, seconds=t,
                 mb=math.nan if t > most else _peak_mb(*made[n], what)) for (what, n), t in seconds.items()]

def _peak_mb(found, factor, what):
    if what in factor: return math.nan   # only a sample of it ran
    tracemalloc.start()
    found[what]()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6

def table(df, what='seconds'):
    "Return one row per length and number of groups, one column per thing measured."
    order = df.what.drop_duplicates().tolist()
    return df.pivot(index=['groups', 'batches'], columns='what', values=what).reindex(columns=order)

def ratios(df):
    "Return what a million batches cost in terms of a thousand, and `lrs` and `moms` in terms of torch's loop."
    seconds, mb = table(df), table(df, 'mb')
    looked_at = ['show', 'show, own curve', 'plot_lr', 'plot_sched', 'slider']
    big, small = (seconds.xs(n, level='batches')[looked_at] for n in (10**6, 10**3))
    more = (mb.xs(10**6, level='batches') - mb.xs(10**3, level='batches'))[looked_at].max(axis=1)
    values = seconds.xs(10**6, level='batches')
    return (big / small).assign(**{'MB more, at most': more, "torch's loop / lrs and moms":
                                   values["torch's loop"] / values['lrs and moms']})

def plot(df, ax=None):
    "Draw cost over length for one parameter group; returns the axes."
    ax = ax or matplotlib.pyplot.subplots(figsize=(5, 5.4), layout='constrained')[1]
    seconds = table(df).xs(1, level='groups')
    names = ["torch's loop", "ignite's simulate_values", 'lrs and moms', 'plot_sched', 'plot_lr', 'slider', 'show',
             'show, own curve', 'make, own curve']
    for name in [name for name in names if name in seconds]:
        seconds[name].plot(ax=ax, marker='.', logx=True, logy=True, ls='--' if "'s" in name else '-', label=name)
    ax.set(xlabel='batches', ylabel='seconds')
    ax.legend(loc='upper left', bbox_to_anchor=(-.1, -.15), ncols=2, frameon=False)
    return ax

PACKAGES = 'torch', 'fastai', 'numpy', 'matplotlib', 'onecycle_callback', 'pytorch-ignite'

class _Items:
    "Batches of one number."
    def __init__(self, n): self.n, self.batch = n, (torch.ones(1, 1), torch.ones(1, 1))
    def __len__(self): return self.n
    def __iter__(self): return (self.batch for _ in range(self.n))

def train_for(n):
    "Train a model of one weight for `n` batches, and print what it takes."
    dl, stamps = _Items(n // N_EPOCH), []
    class Clock(Callback):
        def before_train(self): stamps.append(time.process_time())
    model, dls, opt_func = nn.Linear(1, 1, bias=False), DataLoaders(dl, [dl.batch]), partial(SGD, mom=.9)
    learn = Learner(dls, model, loss_func=nn.MSELoss(), opt_func=opt_func)
    with learn.no_bar(), learn.no_logging(): learn.fit(N_EPOCH, cbs=[OneCycle(.01), Clock()])
    per_batch = np.diff(stamps) / len(dl) * 1e6
    hps = learn.recorder.hps
    held = sum(sys.getsizeof(v) + sum(map(sys.getsizeof, v)) for v in hps.values())
    first, last = np.median(per_batch[:10]), np.median(per_batch[-10:])
    print(f'{n:,} batches: the record of {" and ".join(hps)} takes {held / 1e6:.3g} MB; a batch takes {first:.1f} µs '
          f'in the first ten epochs, {last:.1f} µs in the last ten, ratio {last / first:.2f}')

@call_parse
def main(
    quick:bool=False, # Shorten the run, and write nothing
    train:int=0 # Train for so many batches instead
):
    "Measure what looking at a plan and at a record costs."
    matplotlib.use('Agg')
    torch.set_num_threads(1)
    if train: return train_for(train)
    lengths = [10**3, 10**6] if quick else [10**k for k in range(3, 8)]
    rounds = {1: 1} if quick else {1: 3, 5: 3, 50: 2, 1000: 1}   # by the number of groups
    df = pd.DataFrame([row for g in rounds for row in measure(lengths, g, rounds[g], most=0 if quick else 2)])
    if not quick:
        head = f'# python benchmarks/scale.py\n{versions(*PACKAGES)}\n'
        (RESULTS/'scale.csv').write_text(head + df.to_csv(index=False, float_format='%.4g'), encoding='utf-8')
    tables = {'seconds': table(df), 'MB': table(df, 'mb'), 'a million batches / a thousand': ratios(df)}
    for title, shown in tables.items():
        print(title, shown.to_string(float_format='{:.4g}'.format, na_rep=''), '', sep='\n')
