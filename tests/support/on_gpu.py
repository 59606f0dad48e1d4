"""Put the training of every Learner on the GPU: `python -m pytest -p tests.support.on_gpu`.

The tests ask for the CPU, where they are alike on all machines. Those that need it are marked, and left out."""
from functools import wraps

import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner

def on_gpu(init):
    @wraps(init)
    def moved(self, *args, **kwargs):
        if str(kwargs.get('device')) == 'cpu': kwargs['device'] = torch.device('cuda')
        init(self, *args, **kwargs)
        # fastai moves a model when a fit begins; these compare it with what it was before
        if isinstance(self, Learner) and isinstance(self.model, torch.nn.Module): self.model.cuda()
    return moved

for kind in DataLoader, DataLoaders, Learner: kind.__init__ = on_gpu(kind.__init__)

def pytest_collection_modifyitems(items): items[:] = [item for item in items if not item.get_closest_marker('cpu')]
