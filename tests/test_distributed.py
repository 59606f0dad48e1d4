"""Several processes: real ones, connected by gloo on the loopback, and the number of batches that each of them sees."""
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import notebook_launcher
from hypothesis import HealthCheck, given, settings, strategies as st
from fastai.basics import DataLoader, DataLoaders, Learner, TfmdDL, nn, noop
from fastai.callback.data import PartialDL, WeightedDL
from fastai.distributed import DistributedDL, DistributedTrainer

import onecycle_callback.distributed
from support import distributed_worker, fresh
from support.helpers import dataset, fork, fork_ranks, free_port
from support.interrupted import bars, epochs_shown, rows
from onecycle_callback.callback import batches_per_epoch
from onecycle_callback.resume.file import RunLock

WORKER = Path(distributed_worker.__file__)
ENV = os.environ | dict(PYTHONPATH=str(Path(__file__).parent), OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true',
                        CUDA_VISIBLE_DEVICES='')
LAUNCH = [sys.executable, '-m', 'accelerate.commands.launch', '--num_processes=2']     # `accelerate launch`

def launch(*args):
    "Run two processes by `accelerate launch`; return what they print on stdout and stderr."
    command = [*LAUNCH, f'--main_process_port={free_port()}', *map(str, args)]
    return subprocess.run(command, env=ENV, text=True, capture_output=True, timeout=300)

def in_two(target, *args, folder):
    """Run `target` in two processes that are forked, and find each other as those of `torchrun` do.

    Return the exit code of each and what it printed. `until_killed` starts two as users do."""
    outs = [folder / f'{rank}.out' for rank in range(2)]
    for out in outs: out.unlink(missing_ok=True)
    processes = fork_ranks(target, *args, outs=outs)
    for process in processes: process.join(300)
    return [process.exitcode for process in processes], [out.read_text(encoding='utf-8') for out in outs]

def until_killed(folder, job):
    "Run a job of distributed_worker.py in two processes until one of them is killed; return what they printed."
    run = launch('--multi_gpu', WORKER, job, folder)
    assert 'Signal 9' in run.stderr and not list(folder.glob('*.pt')), run.stdout + run.stderr
    return run.stdout

def until_all_killed(folder, job):
    "Run a job in two processes until each got SIGKILL; return what rank 0 printed."
    codes, outs = in_two(getattr(distributed_worker, job), folder, folder=folder)
    # 1 if it misses the other one first
    assert -signal.SIGKILL in codes and {*codes} <= {-signal.SIGKILL, 1}, outs
    return outs[0]

JOBS = ('cycles', 'refused', 'after', 'uninterrupted', 'streams', 'refused_stream', 'stream_uninterrupted', 'timed',
        'stream_resumed', 'timed_resumed', 'in_use', 'resumed', 'complete')

@pytest.fixture(scope='module')
def runs(tmp_path_factory, fork):
    """Kill three cycles, one of them twice; then run all other jobs, one after the other.

    `accelerate launch` starts the first.

    Return what each printed, and the results of each of its processes."""
    folder = tmp_path_factory.mktemp('jobs')
    printed = dict(one_killed=until_killed(folder, 'one_killed'))
    for job in ('all_killed', 'stream_killed', 'timed_killed'): printed[job] = until_all_killed(folder, job)
    lock = RunLock(folder / 'in_use/models/run1.cycle')
    lock.acquire()
    try: codes, (out, err) = in_two(distributed_worker.run, JOBS, folder, folder=folder)
    finally: lock.release()
    assert codes == [0, 0], out + err
    results = {job: [torch.load(folder / f'{job}-{rank}.pt') for rank in range(2)] for job in JOBS}
    return printed | dict(zip(JOBS, re.split(r'job \w+\n', out)[1:])), results

@pytest.fixture(scope='module')
def jobs(runs): return runs[1]

@pytest.fixture(scope='module')
def printed(runs): return runs[0]

N_BATCH = {'SGD': 5, 'Adam': 5, 'AdamW': 5, 'a batch less than fastai says': 2, 'a smaller last batch': 3,
           'accumulated': 4}

@pytest.mark.slow
@pytest.mark.parametrize('name', N_BATCH)
def test_every_process_trains_with_the_plan(jobs, name):
    first, second = (run[name] for run in jobs['cycles'])
    assert first['n_batch'] == N_BATCH[name]
    for key in ('lrs', 'moms', 'hps', 'weights', 'n_batch', 'plan_lrs', 'mom_after'):
        assert first[key] == second[key], key
    assert first['lrs'] == first['plan_lrs'] and len(first['lrs']) == len(first['hps']['lr']) > 0
    assert [moms[-1] for moms in first['moms']] == first['plan_moms'] == first['hps']['mom']
    assert first['mom_after'] == [.9] * len(first['mom_after'])
    assert first['values'][-1][1:] == second['values'][-1][1:]

@pytest.mark.slow
def test_every_item_is_dealt_out_once_an_epoch(jobs):
    runs, orders = [run['SGD'] for run in jobs['cycles']], []
    for epoch in range(3):
        shares = [[item for e, items in run['items'] if e == epoch for item in items] for run in runs]
        assert sorted(shares[0] + shares[1]) == sorted(x[0].item() for x, _ in dataset(40))
        orders.append(shares)
    assert orders[0] != orders[1]

@pytest.mark.slow
def test_a_notebook_launches_two_processes(jobs, tmp_path):
    "`notebook_launcher` forks them, from a process that has imported fastai."
    arguments = distributed_worker.run, (['cycles'], tmp_path), 2, 'no', str(free_port())
    process = fork(notebook_launcher, *arguments, out=tmp_path / 'out')
    process.join()
    assert process.exitcode == 0, (tmp_path / 'out').read_text(encoding='utf-8')
    first, second = (torch.load(tmp_path / f'cycles-{rank}.pt') for rank in range(2))
    for name, run in jobs['cycles'][0].items():
        assert first[name]['lrs'] == second[name]['lrs'] == run['lrs'] and first[name]['n_batch'] == N_BATCH[name]
        assert first[name]['weights'] == second[name]['weights']

@pytest.mark.slow
def test_accelerate_on_cpus_launches_one_process_unless_told_multi_gpu(tmp_path):
    (tmp_path / 'train.py').write_text('import os; print(os.environ.get("WORLD_SIZE", 1))', encoding='utf-8')
    printed = {option: launch(option, tmp_path / 'train.py').stdout.split() for option in ('--cpu', '--multi_gpu')}
    assert printed == {'--cpu': ['1'], '--multi_gpu': ['2', '2']}

@pytest.mark.slow
def test_torchrun_launches_two_processes(tmp_path):
    "As the page about several processes starts it, where its script is forked."
    (tmp_path / 'train.py').write_text('import os; print(os.environ.get("WORLD_SIZE", 1))', encoding='utf-8')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    run = subprocess.run([*command, tmp_path / 'train.py'], env=ENV, text=True, capture_output=True, timeout=300)
    assert run.stdout.split() == ['2', '2']

@pytest.mark.slow
def test_a_share_without_a_batch_is_refused_everywhere(jobs):
    for message, untouched in jobs['refused']:
        assert 'dls.train must have at least one batch, got 0' in message and untouched

@pytest.mark.slow
def test_alone_again_afterwards(jobs):
    for together, alone, loaders, model in jobs['after']:
        assert (len(together['lr']), len(alone['lr'])) == (5, 10)
        assert loaders == ['DataLoader'] * 2 and model == 'Sequential'

@pytest.mark.slow
@pytest.mark.parametrize('name', ['fastai', 'torch', 'torchdata', 'indexed'])
def test_epochs_of_so_many_batches(jobs, name):
    first, second = (run[name] for run in jobs['streams'])
    for key in ('lrs', 'moms', 'hps', 'weights', 'n_batch', 'plan_lrs', 'values'): assert first[key] == second[key], key
    assert first['lrs'] == first['plan_lrs'] and len(first['lrs']) == 15 and first['n_batch'] == 5

@pytest.mark.slow
@pytest.mark.parametrize('name', ['fastai', 'torch', 'torchdata'])
def test_each_process_trains_on_a_stream_of_its_own(jobs, name):
    for rank, run in enumerate(jobs['streams']):
        seen = [round(100 * x) for _, items in run[name]['items'] for x in items]
        assert seen == list(range(rank, 120, 2))

@pytest.mark.slow
def test_a_loader_with_an_index_is_dealt_out_in_each_pass(jobs):
    items = [[items for _, items in run['indexed']['items']] for run in jobs['streams']]
    for first in (0, 7):
        dealt = sum(items[0][first:first + 7] + items[1][first:first + 7], [])
        assert sorted(dealt) == sorted(x[0].item() for x, _ in dataset(56))

@pytest.mark.slow
def test_a_validation_stream_is_refused_everywhere(jobs):
    for message, untouched in jobs['refused_stream']:
        assert 'dls.valid must have a length where several processes train' in message and untouched

@pytest.mark.slow
def test_streams_resume_in_each_process(jobs):
    "The items that each process trained on are compared too."
    assert jobs['stream_resumed'] == jobs['stream_uninterrupted']

def assert_timed(runs, seconds):
    "Check a cycle of 1.2 s of which rank 0 trained so many `seconds`, and rank 1 what rank 0 trained."
    first, second = runs
    for key in ('lrs', 'hps', 'where', 'weights', 'plan_lrs'): assert first[key] == second[key], key
    valid, other_valid = ([values[1:] for values in run['values']] for run in runs)     # the training losses differ
    assert valid == other_valid
    assert first['lrs'] == first['plan_lrs'] and first['lrs'][-1] == first['end'] == [.01 / 25]
    assert seconds - .03 <= first['seconds'] <= seconds + .01 + .03
    assert second['seconds'] == pytest.approx(2 * first['seconds'])

@pytest.mark.slow
def test_all_processes_use_the_clock_of_rank_0(jobs):
    assert_timed(jobs['timed'], 1.2)

@pytest.mark.slow
def test_the_clock_is_not_read_at_every_batch(jobs):
    first, second = jobs['timed']
    assert second['reads'] == [] and 100 / 16 < len(first['reads']) < len(first['lrs']) / 3

@pytest.mark.slow
def test_processes_resume_with_the_time_that_is_left(jobs):
    assert 45 <= jobs['timed_resumed'][0]['reads'][0] < 45 + 16     # where the steps that rank 0 had told are used up
    assert_timed(jobs['timed_resumed'], 1.2 - .45 - 3 * .03)

@pytest.mark.slow
@pytest.mark.parametrize('job', ['resumed', 'complete'])
def test_a_killed_cycle_ends_with_the_same_bits(jobs, job):
    "Each process has its own losses and random numbers."
    assert jobs[job] == jobs['uninterrupted']
    first, second = jobs['uninterrupted']
    assert first['draw'] != second['draw'] and len(first['losses']) == 4 * 12

@pytest.mark.slow
def test_a_run_in_use_is_refused_everywhere(jobs):
    "Rank 0 finds the lock taken, here by this process."
    for message in jobs['in_use']: assert f'is in use: process {os.getpid()} on ' in message

@pytest.mark.slow
def test_bar_and_table_of_a_killed_cycle(printed):
    "Only rank 0 shows them: 15 batches were saved, then 30."
    first, second, last = printed['one_killed'], printed['all_killed'], printed['resumed'] + printed['complete']
    assert epochs_shown(first) == ['1/4', '2/4'] and rows(first) == [0]
    assert epochs_shown(second) == ['2/4', '3/4'] and rows(second) == [0, 1]
    assert bars(second)[:2] == [(2, 4, 0, 12), (2, 4, 4, 12)]
    assert epochs_shown(last) == ['3/4', '4/4'] and rows(last) == [0, 1, 2, 3] * 2     # the finished run shows it again
    assert bars(last)[:2] == [(3, 4, 0, 12), (3, 4, 7, 12)]
    assert last.count('is complete') == 1

def main_job(folder, *args):
    "What `python -m onecycle_callback` does in a process."
    os.chdir(folder)
    sys.argv[1:] = args
    runpy.run_module('onecycle_callback', run_name='__main__')

@pytest.mark.slow
@pytest.mark.fork
def test_main_job(tmp_path):
    (tmp_path / 'run').mkdir()
    codes, (out, other) = in_two(main_job, tmp_path / 'run', '--cycle_len', '2', folder=tmp_path)
    assert codes == [0, 0] and 'epoch' not in other, out + other
    lines = out.replace('\r', '\n').splitlines()
    once = ['The plan: 2 epochs of 11 batches', 'lr_first', 'epoch     train_loss', 'validation accuracy',
            'recorded values equal the plan: yes, 22 of 22 batches', 'picture: onecycle.png']
    assert [sum(text in line for line in lines) for text in once] == [1] * len(once), out
    assert [p.name for p in (tmp_path / 'run').iterdir()] == ['onecycle.png']

@pytest.mark.slow
@pytest.mark.fork
def test_main_job_refuses_once(tmp_path):
    "`torchrun` ends rank 1, which waits for that, once rank 0 has ended."
    outs = [tmp_path / f'{rank}.out' for rank in range(2)]
    first, second = fork_ranks(main_job, tmp_path, '--pct_start', '1.5', outs=outs)
    first.join()
    second.terminate()
    out, other = (out.read_text(encoding='utf-8') for out in outs)
    assert first.exitcode == 2 and other == ''
    assert out.startswith('onecycle-demo: pct_start must be between 0 and 1, got 1.5') and out.count('\n') == 1

@pytest.mark.skipif(torch.cuda.is_available(), reason='fastai\'s own way is kept where there is a GPU')
def test_work_around_is_active_without_a_gpu():
    assert DistributedDL._broadcast is onecycle_callback.distributed.broadcast_on_cpu

CODE = """import sys, torch
sys.modules['accelerate'] = None
import onecycle_callback, onecycle_callback.demo
try: import onecycle_callback.distributed
except ModuleNotFoundError as e: print(e)
del sys.modules['accelerate']
from fastai.distributed import DistributedDL
own = DistributedDL._broadcast
try: own(None, [1], 0)
except Exception as e: print(type(e).__name__, e)
torch.cuda.is_available = lambda: True
import onecycle_callback.distributed
print(DistributedDL._broadcast is own)"""

@pytest.fixture(scope='module')
def in_an_interpreter():
    "Return what a new interpreter prints: without accelerate, by fastai's own broadcast without a GPU, and with one."
    run = fresh.python(CODE)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()

@pytest.mark.slow
def test_accelerate_is_asked_for_by_name(in_an_interpreter):
    command = "pip install 'onecycle_callback[distributed]'"
    assert in_an_interpreter[0] == f'training in several processes needs accelerate: {command}'

@pytest.mark.slow
def test_fastai_still_needs_a_gpu(in_an_interpreter):
    "When it doesn't, distributed.py can go. torch without CUDA says CUDA; with CUDA and no driver it says NVIDIA."
    assert 'CUDA' in in_an_interpreter[1] or 'NVIDIA' in in_an_interpreter[1]

@pytest.mark.slow
def test_work_around_leaves_a_gpu_alone(in_an_interpreter): assert in_an_interpreter[2:] == ['True']

@pytest.fixture
def group():
    "A group of this process alone: enough for `DistributedDL` to divide its items."
    # Not longer: what is forked meanwhile, in another order of the tests, would wait for threads that it lacks
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()

class InCtx(DistributedTrainer):
    "The callback that `distrib_ctx` adds, without the processes that it would join."
    name = 'distributed_trainer'
    def __init__(self): pass

LOADERS = dict(fastai=DataLoader, tfmd=TfmdDL, weighted=WeightedDL,
               partial=lambda items, **kwargs: PartialDL(items, partial_n=max(1, len(items) // 2), **kwargs),
               torch=lambda items, bs, **kwargs: torch.utils.data.DataLoader(items, batch_size=bs, **kwargs))

@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(LOADERS)), n=st.integers(1, 60), bs=st.integers(1, 9), n_proc=st.integers(1, 4),
       drop_last=st.booleans())
def test_batches_are_those_that_a_process_sees(group, kind, n, bs, n_proc, drop_last):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('WORLD_SIZE', str(n_proc))
        items = [torch.tensor(i) for i in range(n)]
        learn = Learner(DataLoaders(LOADERS[kind](items, bs=bs, drop_last=drop_last, shuffle=True)), nn.Linear(1, 1),
                        loss_func=noop, cbs=InCtx())
        before = batches_per_epoch(learn)
        wrapped = [DistributedDL(learn.dls.train, rank=rank, world_size=n_proc, device='cpu') for rank in range(n_proc)]
        assert [len(list(dl)) for dl in wrapped] == [before] * n_proc
        learn.dls.loaders[0] = wrapped[0]
        assert batches_per_epoch(learn) == before
