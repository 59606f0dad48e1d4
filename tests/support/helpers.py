"""Small Learners with all their default callbacks, one for each of fastai's applications too, and ways to inspect them.

This package is not imported here, so that fastai alone can train the same Learners."""
import os
import random
import runpy
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from socket import socket
from threading import Thread

import numpy as np
import torch
from torch import nn
from fastai.basics import Adam, Callback, DataLoader, DataLoaders, L, Learner, OptimWrapper, set_seed
from fastai.callback.progress import ProgressCallback  # noqa: F401 (what fastai's applications give each Learner)
from fastai.optimizer import Lookahead

ROOT = Path(__file__).parents[2]
KEPT = ('nbs', 'onecycle_callback', 'docs', 'tests', 'benchmarks', 'pyproject.toml', 'setup.cfg', 'README.md')

class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@contextmanager
def serve(folder):
    "Serve the pages in `folder`; yields their address."
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Silent, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()

def copy_tree(to):
    "Copy the project into the folder `to`, where a test may change it."
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '*.egg-info')
    for name in KEPT:
        if (ROOT / name).is_dir(): shutil.copytree(ROOT / name, to / name, ignore=ignore)
        else: shutil.copy(ROOT / name, to / name)
    subprocess.run(['git', 'init', '-q'], cwd=to, check=True)
    return to

def fork(target, *args, out):
    "Start a process that runs `target`, with its output in the file `out`. It has imported what this one has."
    def run():
        sys.stdout = sys.stderr = open(out, 'a', buffering=1, encoding='utf-8')
        target(*args)
    process = get_context('fork').Process(target=run)
    process.start()
    return process

def free_port():
    with socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def fork_ranks(target, *args, outs):
    "Start a process for each of the files `outs`, as `fork` does; they find each other as those of `torchrun` do."
    import torch._dynamo  # noqa: F401 (DistributedDataParallel needs it: not in each process anew)
    where = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()), WORLD_SIZE=str(len(outs)))
    def run(rank):
        rank = str(rank)
        os.environ |= where | dict(RANK=rank, LOCAL_RANK=rank, ACCELERATE_USE_CPU='true', CUDA_VISIBLE_DEVICES='')
        target(*args)
    return [fork(run, rank, out=out) for rank, out in enumerate(outs)]

def run_as_main(script, args, cwd):
    os.chdir(cwd)
    sys.argv, sys.path[:] = [str(script), *map(str, args)], [str(Path(script).resolve().parent), *sys.path]
    runpy.run_path(str(script), run_name='__main__')

def fork_script(script, *args, cwd='.', n_proc=1):
    "Run a script as `subprocess.run` does, by `fork`; with several processes, return what the first one printed."
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(i) for i in range(n_proc)]
        what = run_as_main, script, args, cwd
        processes = [fork(*what, out=outs[0])] if n_proc == 1 else fork_ranks(*what, outs=outs)
        for process in processes: process.join()
        code = next((process.exitcode for process in processes if process.exitcode), 0)
        printed = outs[0].read_text(encoding='utf-8')
        return subprocess.CompletedProcess(script, code, printed, printed)

def run_forked(command, cwd='.', _run=subprocess.run, **kwargs):
    "Run a command as `subprocess.run` does, but fork the script that Python or `torchrun` would start, if it has one."
    i = next((i for i, part in enumerate(command) if str(part).endswith('.py')), None)
    if i is None: return _run(command, cwd=cwd, **kwargs)
    return fork_script(command[i], *command[i + 1:], cwd=cwd, n_proc=2 if '--nproc_per_node=2' in command else 1)

def dataset(n):
    x = torch.linspace(-1, 1, 3 * n).reshape(n, 3)
    return list(zip(x, x.sum(1, keepdim=True)))

def layers(model):
    "A parameter group for each layer."
    return [list(layer.parameters()) for layer in model]

def learner(n_batch=12, n_groups=1, bs=4, **kwargs):
    "Return the same Learner every time: `n_batch` batches per epoch, and `n_groups` layers, each a parameter group."
    set_seed(0)
    train = DataLoader(dataset(n_batch * bs), bs=bs, shuffle=True, device='cpu')
    valid = DataLoader(dataset(bs), bs=bs, device='cpu')
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(n_groups - 1)], nn.Linear(3, 1))
    kwargs = dict(loss_func=nn.MSELoss(), opt_func=Adam, splitter=layers) | kwargs
    return Learner(DataLoaders(train, valid, device='cpu'), model, **kwargs)

def groups_of(opt):
    "Return the parameter groups of a torch optimizer, or fastai's dictionaries, without using this package."
    if isinstance(opt, Lookahead): opt = opt.opt
    return opt.opt.param_groups if isinstance(opt, OptimWrapper) else list(opt.hypers)

def momentum(group):
    "Return the momentum that the optimizer itself will use."
    for key in ('mom', 'momentum'):
        if key in group: return group[key]
    return group['betas'][0] if 'betas' in group else None

class Spy(Callback):
    "Record LR and momentum of every group just before the optimizer steps, and the position of the batch."
    order = 1000
    def before_fit(self): self.seen_lrs, self.seen_moms, self.places = [], [], []
    def before_batch(self):
        if not self.training: return
        groups = groups_of(self.opt)
        self.seen_lrs.append([float(g['lr']) for g in groups])
        self.seen_moms.append([momentum(g) for g in groups])
        self.places.append((self.epoch, self.iter))

class At(Callback):
    "Do something in an event of one batch."
    order = 200
    def __init__(self, epoch, batch, act, event='after_batch'):
        self.when, self.act, self.event = (epoch, batch), act, event
    def _maybe(self, event):
        if event == self.event and self.training and (self.epoch, self.iter) == self.when: self.act()
    def before_batch(self): self._maybe('before_batch')
    def after_batch(self): self._maybe('after_batch')

class Time:
    "The time in seconds. It has slots, so that no checkpoint turns it back."
    __slots__ = 'now',
    def __init__(self): self.now = 1000.
    def __call__(self): return self.now

class Passes(Callback):
    "Let seconds pass with each training batch and validation; stalls are extra ones after some of them."
    order = -5
    def __init__(self, time, train=1, valid=3, stalls=None, valid_stalls=None):
        self.tell, self.train_s, self.valid_s = lambda: time, train, valid
        self.stalls, self.valid_stalls, self.began = stalls or {}, valid_stalls or {}, []
    def before_batch(self):
        if self.training: self.began.append(self.tell().now - 1000)
    def after_batch(self):
        if self.training: self.tell().now += self.train_s + self.stalls.get(self.train_iter, 0)
    def after_validate(self): self.tell().now += self.valid_s + self.valid_stalls.get(self.epoch, 0)

def throw(error):
    def act(): raise error
    return act

def frozen_state(learn):
    "Return everything that a refused call must leave alone, in a form that can be compared."
    def plain(v):
        if isinstance(v, (torch.Tensor, np.ndarray)): return v.tolist()
        if isinstance(v, dict): return {id(k) if isinstance(k, torch.Tensor) else k: plain(x) for k, x in v.items()}
        if isinstance(v, (list, tuple, L)): return [plain(x) for x in v]
        return v
    opt, recorded = learn.opt, ('lrs', 'losses', 'iters', 'values', 'hps', 'starts')
    return dict(
        weights=plain(learn.model.state_dict()), training=learn.model.training,
        grads=[p.requires_grad for p in learn.model.parameters()],
        opt=None if opt is None else (id(opt), plain(opt.state_dict())),
        cbs=[id(cb) for cb in learn.cbs], logger=id(learn.logger), attributes=sorted(vars(learn)),
        lr=plain(learn.lr), wd=plain(learn.wd),
        recorder={k: plain(v) for k, v in vars(learn.recorder).items() if k in recorded},
        python=random.getstate(), numpy=plain(np.random.get_state()), torch=torch.get_rng_state().numpy().tobytes())

# Learners of fastai's applications, on data that is made here or ships with scikit-learn, each with some items to
# predict. Their imports are slow, so each has its own.

def tabular(path):
    "Return a Learner that tells scikit-learn's wines apart by 13 numbers and a category."
    from fastai.tabular.all import (Categorify, CategoryBlock, FillMissing, Normalize, TabularDataLoaders, accuracy,
                                    tabular_learner)
    from sklearn.datasets import load_wine
    df = load_wine(as_frame=True).frame
    df['strong'] = np.where(df.alcohol > 13, 'yes', 'no')
    set_seed(0)
    dls = TabularDataLoaders.from_df(
        df, path, procs=[Categorify, FillMissing, Normalize], cat_names=['strong'], cont_names=list(df.columns[:13]),
        y_names='target', y_block=CategoryBlock(), bs=12, device='cpu')
    return tabular_learner(dls, layers=[8], metrics=accuracy, path=path), df[:20]

def collab(path):
    "Return a Learner on made-up ratings by users with one of two tastes."
    import pandas as pd
    from fastai.collab import CollabDataLoaders, collab_learner
    set_seed(0)
    df = pd.DataFrame([dict(user=u, item=i, rating=1 + 4. * ((u + i) % 2)) for u in range(12) for i in range(10)])
    dls = CollabDataLoaders.from_df(df, path=path, bs=8, device='cpu')
    return collab_learner(dls, n_factors=4, y_range=(0, 5.5), path=path), df[:20]

def reviews():
    import pandas as pd
    words = dict(good='pos', fine='pos', bad='neg', poor='neg')
    return pd.DataFrame([dict(text=f'the {thing} was {word} and the {other} {word} too', label=label)
                         for thing in ('film', 'book', 'play', 'song') for other in ('end', 'start')
                         for word, label in words.items()] * 2)

def text_dls(path, bs, **kwargs):
    from fastai.text.all import BaseTokenizer, TextDataLoaders
    set_seed(0)
    return TextDataLoaders.from_df(reviews(), path, text_col='text', tok_tfm=BaseTokenizer(), bs=bs, device='cpu',
                                   **kwargs)

def text_classifier(path):
    from fastai.text.all import AWD_LSTM, accuracy, awd_lstm_clas_config, text_classifier_learner
    config = awd_lstm_clas_config | dict(emb_sz=6, n_hid=8)
    dls = text_dls(path, 4, label_col='label')
    learn = text_classifier_learner(dls, AWD_LSTM, pretrained=False, config=config, metrics=accuracy, path=path)
    return learn, reviews()[:20]

def language_model(path):
    from fastai.text.all import AWD_LSTM, awd_lstm_lm_config, language_model_learner
    config = awd_lstm_lm_config | dict(emb_sz=6, n_hid=8)
    dls = text_dls(path, 8, is_lm=True, seq_len=5)
    return language_model_learner(dls, AWD_LSTM, pretrained=False, config=config, path=path), None

def vision(path):
    "scikit-learn's digits as picture files of 32 by 32 pixels."
    from fastai.vision.all import ImageDataLoaders, PILImageBW, Resize, accuracy, resnet18, vision_learner
    from sklearn.datasets import load_digits
    set_seed(0)
    digits = load_digits()
    labels = {path/f'{i}.png': kind for i, kind in enumerate(digits.target[:60].tolist())}
    for file, image in zip(labels, digits.images): PILImageBW.create(np.uint8(image * 15)).save(file)
    dls = ImageDataLoaders.from_lists(path, list(labels), list(labels.values()), img_cls=PILImageBW,
                                      item_tfms=Resize(32), bs=4, device='cpu')
    return vision_learner(dls, resnet18, pretrained=False, metrics=accuracy, n_in=1, path=path), list(labels)[:20]
