"""What only a GPU shows: a real `GradScaler`, its random states, what it is asked to do, compiled steps.

`nox -s gpu` runs these tests, and the quick ones with the training of each Learner on the GPU."""
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from fastai.basics import Adam, Callback, OptimWrapper, partial
from fastai.callback.fp16 import MixedPrecision
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from support import gpu_worker, interrupted
from support.helpers import Spy, learner
from support.interrupted import Interrupt, N_BATCH, N_EPOCH, assert_same, results
from onecycle_callback import CycleCheckpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
ADAMW = partial(OptimWrapper, opt=torch.optim.AdamW)
HALVES = dict(fp32=(), fp16=('fp16',), bf16=('bf16',))

def on_gpu(learn):
    learn.dls.cuda()
    learn.model.cuda()
    return learn

# Half precision

class Steps(Callback):
    "Note which batches step, and the scale of the loss after each."
    order = MixedPrecision.order + 1
    def before_fit(self): self.stepped, self.scales = [], []
    def before_step(self): self.stepped.append(self.train_iter)
    def after_batch(self):
        if self.training: self.scales.append(self.learn.scaler.get_scale())

@pytest.mark.parametrize('opt', [Adam, ADAMW], ids=['Adam', 'AdamW'])
def test_steps_that_the_scaler_skips_keep_the_cycle_in_place(opt):
    learn, spy, steps = on_gpu(learner(opt_func=opt)), Spy(), Steps()
    plan = learn.preview_one_cycle(3, .01)
    learn.fit_one_cycle(3, .01, cbs=[spy, steps, MixedPrecision(init_scale=2. ** 32, growth_interval=5)])
    n_skipped = 36 - len(steps.stepped)
    assert 5 < n_skipped < 32 and any(b > a for a, b in pairwise(steps.scales))     # it shrank and grew
    assert spy.seen_lrs == plan.lrs.tolist() and [mom for mom, in spy.seen_moms] == plan.moms.tolist()
    assert learn.recorder.hps == dict(lr=plan.lrs[:, -1].tolist(), mom=plan.moms.tolist())

# A resume

class GpuNoise(Callback):
    "Add noise that is drawn on the GPU."
    def before_batch(self):
        if self.training: self.learn.xb = tuple(x + .01 * torch.randn_like(x) for x in self.xb)

def run(folder, half, opt=Adam, interrupt=None, checkpoint=None):
    learn = on_gpu(interrupted.learner(folder, opt_func=opt, cbs=[GpuNoise()]))
    if half: learn.add_cb(MixedPrecision(*half, init_scale=2. ** 30, growth_interval=7))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(N_EPOCH, .01, cbs=interrupt, checkpoint=checkpoint)
    assert next(learn.model.parameters()).is_cuda
    return results(learn) | dict(drawn=torch.rand(2, device='cuda'))

@pytest.mark.parametrize('opt', [Adam, ADAMW], ids=['Adam', 'AdamW'])
@pytest.mark.parametrize('half', HALVES.values(), ids=HALVES)
@pytest.mark.parametrize('at', [N_BATCH, 2 * N_BATCH + 5], ids=['after an epoch', 'in an epoch'])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, at, half, opt):
    "Dropout and noise drawn on the GPU, and the scale of the loss, too."
    whole = run(tmp_path, half, opt)
    with pytest.raises(RuntimeError, match='interrupted'):
        run(tmp_path, half, opt, Interrupt(at), CycleCheckpoint('run1', every=1))
    assert_same(run(tmp_path, half, opt, checkpoint=CycleCheckpoint('run1', every=1)), whole)

def test_a_run_of_the_gpu_is_resumed_on_the_cpu(tmp_path):
    keep = dict(checkpoint=CycleCheckpoint('run1', every=1))
    learn = on_gpu(interrupted.learner(tmp_path))
    with pytest.raises(RuntimeError, match='interrupted'): learn.fit_one_cycle(N_EPOCH, .01, cbs=Interrupt(17), **keep)
    learn = interrupted.learner(tmp_path)
    learn.fit_one_cycle(N_EPOCH, .01, **keep)
    assert not next(learn.model.parameters()).is_cuda
    assert learn.recorder.hps['lr'] == learn.recorder.plan.lrs[:, -1].tolist()

# What the GPU is asked to do

SYNCHRONIZE = 'cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize', 'cudaMemcpyAsync'

def trace(train, half):
    "Return how often each kernel ran and each call that waits was made, from the 4th to the 20th batch of `train`."
    learn = on_gpu(learner(n_batch=24, n_groups=3, opt_func=ADAMW))
    if half: learn.add_cb(MixedPrecision(*half))
    prof = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
    class Window(Callback):
        order = 5_000
        def after_batch(self):
            if self.training and self.iter == 3: prof.start()
            if self.training and self.iter == 19: prof.stop()
    with learn.no_bar(), learn.no_logging(): train(learn, Window())
    return Counter(event.name for event in prof.events()
                   if event.device_type == DeviceType.CUDA or event.name in SYNCHRONIZE)

@pytest.mark.parametrize('half', HALVES.values(), ids=HALVES)
def test_a_batch_asks_nothing_more_of_the_gpu_than_a_plain_fit(half):
    plain = trace(lambda learn, cb: learn.fit(1, 1e-3, cbs=cb), half)
    cycle = trace(lambda learn, cb: learn.fit_one_cycle(1, 1e-3, cbs=cb), half)
    assert sum(plain.values()) > 16 * 10
    assert cycle == plain

@pytest.mark.parametrize('n_groups', [1, 3])
def test_a_compiled_step_is_compiled_once(n_groups):
    "What changes from batch to batch lies in tensors on the GPU."
    learn = on_gpu(learner(n_groups=n_groups, opt_func=partial(ADAMW, capturable=True)))
    learn.create_opt()
    as_tensor = partial(torch.tensor, device='cuda')
    for g in learn.opt.opt.param_groups: g.update(lr=as_tensor(.5), betas=(as_tensor(.8), as_tensor(.99)))
    torch._dynamo.reset()
    counters, n_graphs = torch._dynamo.utils.counters, []
    counters.clear()
    learn.opt.opt.step = torch.compile(learn.opt.opt.step)
    class Look(Callback):
        def after_step(self): n_graphs.append(counters['stats']['unique_graphs'])
    learn.fit_one_cycle(2, .01, cbs=Look())
    assert n_graphs == [1] * 24
    assert learn.recorder.hps['lr'] == learn.recorder.plan.lrs[:, -1].tolist()

def test_a_compiled_model():
    learn = on_gpu(learner(opt_func=ADAMW))
    learn.model = torch.compile(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).cuda())
    learn.splitter = lambda model: [list(model.parameters())]
    spy = Spy()
    learn.fit_one_cycle(2, .01, cbs=spy)
    assert spy.seen_lrs == learn.recorder.plan.lrs.tolist()

# Two processes

def test_two_processes_on_one_gpu(tmp_path):
    "By gloo: nccl wants a GPU for each."
    env = os.environ | dict(PYTHONPATH=str(Path(__file__).parent), OMP_NUM_THREADS='1')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
               gpu_worker.__file__, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    whole, resumed = ([torch.load(tmp_path / f'{job}-{rank}.pt') for rank in range(2)] for job in ('whole', 'resumed'))
    assert_same(resumed, whole)
    assert all(result['lrs'] == result['plan'] and result['device'] == 'cuda' for result in whole)
    assert len(whole[0]['lrs']) == N_EPOCH * N_BATCH // 2
