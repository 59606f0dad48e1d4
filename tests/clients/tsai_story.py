"""A tsai user's day as a script: `python tsai_story.py FOLDER MODULE MODULE`, which imports the modules in that order.

Look at the plan, train, press Ctrl-C, run the same call again on a new Learner, plot, export and load."""
import sys
from importlib import import_module
from pathlib import Path

import matplotlib
matplotlib.use('Agg')
folder, order = Path(sys.argv[1]), sys.argv[2:]
for module in order: import_module(module)

import torch
from fastai.basics import Callback, load_learner
from onecycle_callback import CycleCheckpoint
from tsai_learner import X, splits, tsai_classifier

class CtrlC(Callback):
    "Interrupt in epoch 2, batch 7."
    order = 20_000   # after the checkpoint
    def after_batch(self):
        if self.training and (self.epoch, self.iter) == (2, 7): raise KeyboardInterrupt

def train(learn, cbs=None): learn.fit_one_cycle(4, 1e-2, checkpoint=CycleCheckpoint('run1', every=5), cbs=cbs)

learn = tsai_classifier(folder)
plan = learn.preview_one_cycle(4, 1e-2)
try: train(learn, CtrlC())
except KeyboardInterrupt: print('\nINTERRUPTED')

learn = tsai_classifier(folder)
train(learn)
assert learn.recorder.hps == dict(lr=plan.lrs[:, 0].tolist(), mom=plan.moms.tolist())
learn.recorder.plot_lr(show_moms=True)
learn.plot_metrics()
torch.save([p.detach() for p in learn.model.parameters()], folder/'weights.pt')

learn.export('clf.pkl')
unseen = X[splits[1]]
before, after = (l.get_X_preds(unseen, bs=len(unseen))[0] for l in (learn, load_learner(folder/'clf.pkl')))
assert torch.equal(before, after)
