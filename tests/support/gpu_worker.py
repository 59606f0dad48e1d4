"""Train a cycle in two processes for tests/test_gpu.py: whole, interrupted, resumed; results in FOLDER/JOB-RANK.pt."""
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from fastai.basics import rank_distrib

from support import interrupted
from support.helpers import Spy
from support.interrupted import Interrupt, N_EPOCH
from onecycle_callback import CycleCheckpoint
import onecycle_callback.distributed  # noqa: F401

def train(folder, cbs=(), checkpoint=None):
    learn, spy = interrupted.learner(folder), Spy()
    learn.dls.cuda()
    with learn.distrib_ctx(sync_bn=False), learn.no_bar(), learn.no_logging():
        plan = learn.preview_one_cycle(N_EPOCH, .01)
        learn.fit_one_cycle(N_EPOCH, .01, cbs=[spy, *cbs], checkpoint=checkpoint)
    return dict(lrs=learn.recorder.hps['lr'], plan=plan.lrs[:, -1].tolist(), weights=learn.model.state_dict(),
                device=next(learn.model.parameters()).device.type)

def main(folder):
    os.environ['LOCAL_RANK'] = '0'     # the number of the GPU
    PartialState(backend='gloo')
    folder = Path(folder)
    keep = dict(checkpoint=CycleCheckpoint('run1', every=1))
    results = dict(whole=train(folder))
    try: train(folder, [Interrupt(9)], **keep)
    except RuntimeError as e: assert 'interrupted' in str(e)
    results['resumed'] = train(folder, **keep)
    for job, result in results.items(): torch.save(result, folder / f'{job}-{rank_distrib()}.pt')

if __name__ == '__main__': main(sys.argv[1])
