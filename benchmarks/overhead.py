"""The cost of a training batch with each scheduler, in microseconds, with all columns measured in one run.

`python benchmarks/overhead.py` prints the tables; `--json FILE` writes the figures, `--quick` shortens the run. *own*:
the scheduler's own work per batch (`before_batch` and `after_batch`, or `step`), called directly. *whole*: all eight
events of the batch loop, called as the Learner calls them. *TimedCycle* is a cycle by the clock; looking at it, and
counting the batches that a loader yields, are its own work too. Columns are interleaved on one thread; the best of
several rounds counts. At the end, the whole training loop on a model of one weight: fastai's own `fit_one_cycle`, this
project's, and a plain `fit`, interleaved too."""
import subprocess
import sys
import time
from functools import partial
from itertools import repeat
from json import dumps
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.basics import Adam, Callback, DataLoader, DataLoaders, Learner, OptimWrapper, nn
from fastai.callback.schedule import ParamScheduler, combined_cos
from fastcore.imports import noop
from fastcore.script import call_parse

fastai_fit_one_cycle = Learner.fit_one_cycle
from onecycle_callback import OneCycle, OneCycleSchedule  # noqa: E402
from onecycle_callback.callback import TimedCycle  # noqa: E402
from onecycle_callback.optimizer import OptAdapter  # noqa: E402
from onecycle_callback.position import BLOCK_SIZE  # noqa: E402
from onecycle_callback.stream import TimedStream  # noqa: E402

EVENTS = 'before_batch after_pred after_loss before_backward after_backward before_step after_step after_batch'.split()
OPTS = dict(Adam=Adam, AdamW=partial(OptimWrapper, opt=torch.optim.AdamW))
N = 1_000_000

def make_learner(opt, n_groups):
    "Make a Learner that is in the middle of a fit of a million batches."
    model = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(n_groups)])
    dl = DataLoader([(torch.zeros(1), torch.zeros(1))] * 1000, bs=1, device='cpu')
    learn = Learner(DataLoaders(dl, dl, device='cpu'), model, loss_func=nn.MSELoss(), opt_func=OPTS[opt],
                    splitter=lambda m: [[p] for p in m])
    learn.create_opt()
    learn.n_epoch, learn.epoch, learn.iter, learn.train_iter, learn.pct_train = N // 1000, 0, 0, 0, 0.
    learn.training = True
    learn.recorder.before_fit()
    learn.recorder.before_train()
    return learn

def columns(opt, n_groups):
    "Return the functions to time, by column; each takes a batch number."
    cols = {}
    def add(name, cb, own=True, take=None):
        learn = make_learner(opt, n_groups)
        learn.add_cb(cb)
        if own: cb.before_fit()
        if isinstance(cb, OneCycle): cb.before_train()
        attrs, events = vars(learn), [getattr(cb, e) for e in EVENTS if hasattr(type(cb), e)]
        n = 10 * N if isinstance(cb, OneCycle) else 1000     # entering an epoch isn't part of a batch
        def at(i): attrs['epoch'], attrs['iter'] = divmod(i, n); attrs['pct_train'] = i / N
        def own_work(i):
            at(i)
            for work in events: work()
        def whole(i):
            at(i)
            for e in EVENTS: cb(e)
        def taking(work):
            def taken(i): take(); work(i)
            return work if take is None else taken
        if own: cols[f'{name} own'] = taking(own_work)
        cols[f'{name} whole'] = taking(whole)
        cols['at'] = at                          # what the two above spend on moving to the batch, subtracted later
    lr = np.full(n_groups, .1)
    add('OneCycle', OneCycle(.1))
    timed = TimedCycle(10, max_lr=.1)
    add('TimedCycle', timed, take=iter(TimedStream(repeat(None), N, noop, timed)).__next__)
    add('fastai', ParamScheduler(dict(lr=combined_cos(.3, lr / 25, lr, lr / 25), mom=combined_cos(.3, .95, .85, .95))))
    add('empty', Callback(), own=False)
    torch_opt = torch.optim.AdamW([dict(params=[torch.zeros(1, requires_grad=True)]) for _ in range(n_groups)], lr=.1)
    torch_sched = torch.optim.lr_scheduler.OneCycleLR(torch_opt, .1, total_steps=10 * N)
    torch_opt.step()      # otherwise the scheduler warns at its first step
    cols['OneCycleLR own'] = lambda i: torch_sched.step()
    try:
        from ignite.handlers import CosineAnnealingScheduler
        ignite_opt = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=.1)
        ignite = CosineAnnealingScheduler(ignite_opt, 'lr', .004, .1, N)
        if n_groups == 1: cols['ignite own'] = lambda i: ignite(None)      # LR only, and one group at a time
    except ImportError: pass
    groups = OptAdapter(make_learner(opt, n_groups).opt).groups
    lrs = [.1] * n_groups
    def floor_pair(i):
        for g, v in zip(groups, lrs): g['lr'] = v; g['betas'] = (v, .99)
    def floor_plain(i):
        for g, v in zip(groups, lrs): g['lr'] = v; g['mom'] = v
    cols['floor own'] = floor_pair if 'betas' in groups[0] else floor_plain
    return cols

def best_times(cols, rounds, calls):
    "Time each column over interleaved `rounds` of `calls` calls: the best round, in µs per call."
    best = dict.fromkeys(cols, float('inf'))
    place = dict.fromkeys(cols, 0)
    for _ in range(rounds):
        for name, f in cols.items():
            n, first = calls[name.split()[0]] if name.split()[0] in calls else calls['any'], place[name]
            start = time.perf_counter()
            for i in range(first, first + n): f(i)
            best[name] = min(best[name], (time.perf_counter() - start) / n * 1e6)
            place[name] += n
    at = best.pop('at')
    callbacks = 'OneCycle', 'TimedCycle', 'fastai', 'empty'
    return {name: t - at if name.split()[0] in callbacks else t for name, t in best.items()}

def preview(n, rounds):
    "Time a plan of `n` batches and a loop over `OneCycleLR`, in µs per batch."
    plan = lambda: OneCycleSchedule(.1).plan(1, n).lrs
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=.1, momentum=.9)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, .1, total_steps=10 * N)
    opt.step()            # otherwise the scheduler warns at its first step
    def loop():
        for _ in range(n // 100): sched.step()
    times = {}
    for name, f, k in (('plan', plan, n), ('OneCycleLR loop', loop, n // 100)):
        best = float('inf')
        for _ in range(rounds):
            start = time.perf_counter()
            f()
            best = min(best, (time.perf_counter() - start) / k * 1e6)
        times[name] = best
    return times

def whole_loop(n, rounds):
    "Time an epoch of `n` batches on a model of one weight with three ways to fit, in µs per batch: the best round."
    batches = [(torch.ones(1, 1), torch.ones(1, 1))] * n
    learn = Learner(DataLoaders(batches, batches[:1]), nn.Linear(1, 1, bias=False), loss_func=nn.MSELoss())
    ways = {'fastai fit_one_cycle': lambda: fastai_fit_one_cycle(learn, 1, .001),
            'fit_one_cycle': lambda: learn.fit_one_cycle(1, .001), 'fit': lambda: learn.fit(1, .001)}
    best = dict.fromkeys(ways, float('inf'))
    with learn.no_bar(), learn.no_logging():
        for _ in range(rounds):
            for name, fit in ways.items():
                start = time.process_time()
                fit()
                best[name] = min(best[name], (time.process_time() - start) / n * 1e6)
    return best

def import_time(rounds):
    "Time what fastai users import anyway, and this package on top of it: the best of several runs, in seconds."
    base = 'from fastai.basics import *; import fastai.callback.schedule'
    on_top = f'{base}; t = time.perf_counter(); import onecycle_callback'
    def once(code):
        code = f'import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)'
        run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
        return float(run.stdout)
    return dict(fastai=min(once(base) for _ in range(rounds)),
                onecycle_callback=min(once(on_top) for _ in range(rounds)))

@call_parse
def main(
    json:str='', # File to write the figures to
    quick:bool=False # Shorten the run
):
    "Measure what a training batch costs with each scheduler."
    torch.set_num_threads(1)
    rounds, some = (2, 200) if quick else (9, 4000)
    rows = {}
    for opt in OPTS:
        for n_groups in (1, 10, 100) if quick else (1, 10, 100, 1000):
            calls = max(40, some // n_groups)
            # OneCycle computes its values a block at a time: a round as long as a block pays for exactly one
            of_cycle = calls if quick else BLOCK_SIZE // n_groups + 1
            per_round = dict(OneCycle=of_cycle, TimedCycle=calls, fastai=max(20, calls // 40), any=calls)
            rows[f'{opt}, {n_groups} groups'] = best_times(columns(opt, n_groups), rounds, per_round)
    table = pd.DataFrame(rows).T
    own = table['OneCycle own']
    ratios = pd.DataFrame({'own / OneCycleLR': own / table['OneCycleLR own'],
                           'own / fastai own': own / table['fastai own'], 'own / floor': own / table['floor own'],
                           'TimedCycle own / own': table['TimedCycle own'] / own,
                           'whole / empty callback': table['OneCycle whole'] / table['empty whole']})
    print('µs per batch', table.round(2).to_string(), '', 'ratios', ratios.round(4).to_string(), '', sep='\n')
    previews = preview(10_000 if quick else N, rounds)
    loop = whole_loop(200 if quick else 2000, 2 if quick else 15)
    imports = import_time(1 if quick else 5)
    print('preview, µs per batch:', {k: round(v, 4) for k, v in previews.items()},
          f'ratio 1/{previews["OneCycleLR loop"] / previews["plan"]:.0f}')
    print('whole loop, µs per batch:', {k: round(v, 1) for k, v in loop.items()},
          'ratios to fit:', {k: round(v / loop['fit'], 3) for k, v in loop.items()})
    print('import, s:', {k: round(v, 4) for k, v in imports.items()},
          f'ratio {imports["onecycle_callback"] / imports["fastai"]:.1%}')
    if not json: return
    figures = dict(us_per_batch=rows, ratios=ratios.T.to_dict(), preview=previews, loop=loop, imports=imports)
    Path(json).write_text(dumps(figures, indent=1), encoding='utf-8')
