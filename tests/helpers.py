"""Small learners, one of each of fastai's applications too, and a callback that reads back what an optimizer really holds."""
import copy
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import nn
from fastai.basics import Callback, DataLoaders, DataLoader, Learner, OptimWrapper, Adam, L, noop, set_seed
from fastai.optimizer import Lookahead

import onecycle_callback  # noqa: F401

ROOT = Path(__file__).parents[1]
KEPT = ('nbs', 'onecycle_callback', 'docs', 'tests', 'benchmarks', 'pyproject.toml', 'setup.cfg', 'README.md')

def copy_tree(to):
    "A copy of the project in the folder `to`, to be changed freely."
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '*.egg-info')
    for name in KEPT:
        if (ROOT / name).is_dir(): shutil.copytree(ROOT / name, to / name, ignore=ignore)
        else: shutil.copy(ROOT / name, to / name)
    subprocess.run(['git', 'init', '-q'], cwd=to, check=True)
    return to

class Plain(Learner):
    "A Learner without bars and lines on the screen."
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if hasattr(self, 'progress'): self.remove_cb(self.progress)
        self.logger = noop

def dataset(n):
    x = torch.linspace(-1, 1, 3 * n).reshape(n, 3)
    return list(zip(x, x.sum(1, keepdim=True)))

def learner(n_batch=5, n_groups=1, bs=4, **kwargs):
    "`n_batch` batches an epoch, a model of `n_groups` layers and parameter groups."
    torch.manual_seed(0)
    train = DataLoader(dataset(n_batch * bs), bs=bs, shuffle=True, device='cpu')
    valid = DataLoader(dataset(bs), bs=bs, device='cpu')
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(n_groups - 1)], nn.Linear(3, 1))
    kwargs.setdefault('splitter', lambda m: [list(layer.parameters()) for layer in m])
    kwargs.setdefault('opt_func', Adam)
    kwargs.setdefault('loss_func', nn.MSELoss())
    return Plain(DataLoaders(train, valid, device='cpu'), model, **kwargs)

def groups_of(opt):
    "The parameter groups of a torch optimizer, or fastai's dictionaries, without this package's help."
    if isinstance(opt, Lookahead): opt = opt.opt
    return opt.opt.param_groups if isinstance(opt, OptimWrapper) else list(opt.hypers)

def momentum(group):
    "What the optimizer itself will use as momentum."
    for key in ('mom', 'momentum'):
        if key in group: return group[key]
    return group['betas'][0] if 'betas' in group else None

class Spy(Callback):
    "LR and momentum of every group, read from the optimizer when it is about to step, and the place of the batch."
    order = 1000
    def before_fit(self): self.seen_lrs, self.seen_moms, self.places = [], [], []
    def before_batch(self):
        if not self.training: return
        groups = groups_of(self.opt)
        self.seen_lrs.append([float(g['lr']) for g in groups])
        self.seen_moms.append([momentum(g) for g in groups])
        self.places.append((self.epoch, self.iter))

def frozen_state(learn):
    "Everything that a refused call must leave alone, in a form that can be compared."
    def plain(v):
        if isinstance(v, torch.Tensor): return v.detach().clone().tolist()
        if isinstance(v, dict): return {str(k) if not isinstance(k, torch.Tensor) else id(k): plain(x) for k, x in v.items()}
        if isinstance(v, (list, tuple, L)): return [plain(x) for x in v]
        return v
    opt = learn.opt
    return copy.deepcopy(dict(
        weights=plain(learn.model.state_dict()), grads=[p.requires_grad for p in learn.model.parameters()], training=learn.model.training,
        opt=None if opt is None else (id(opt), plain(opt.state_dict())),
        cbs=[id(cb) for cb in learn.cbs], attributes=sorted(vars(learn)), lr=learn.lr, wd=learn.wd,
        recorder={k: plain(v) for k, v in vars(learn.recorder).items() if k in ('lrs', 'losses', 'iters', 'values', 'hps', 'starts')},
        python=random.getstate(), numpy=str(np.random.get_state()), torch=torch.get_rng_state().tolist()))

# Learners of fastai's applications, on data that is made here or ships with scikit-learn, each with some items to predict. Their imports are slow, so each has its own.

def quiet(learn):
    learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn

def tabular(path):
    "scikit-learn's wines: 13 numbers and a category tell the kind."
    from fastai.tabular.all import Categorify, CategoryBlock, FillMissing, Normalize, TabularDataLoaders, accuracy, tabular_learner
    from sklearn.datasets import load_wine
    df = load_wine(as_frame=True).frame
    df['strong'] = np.where(df.alcohol > 13, 'yes', 'no')
    set_seed(0)
    dls = TabularDataLoaders.from_df(df, path, procs=[Categorify, FillMissing, Normalize], cat_names=['strong'], cont_names=list(df.columns[:13]),
                                     y_names='target', y_block=CategoryBlock(), bs=32, device='cpu')
    return quiet(tabular_learner(dls, layers=[8], metrics=accuracy, path=path)), df[:20]

def collab(path):
    "Ratings of users of one taste or the other, made here."
    import pandas as pd
    from fastai.collab import CollabDataLoaders, collab_learner
    set_seed(0)
    df = pd.DataFrame([dict(user=u, item=i, rating=1 + 4. * ((u + i) % 2)) for u in range(12) for i in range(10)])
    return quiet(collab_learner(CollabDataLoaders.from_df(df, path=path, bs=16, device='cpu'), n_factors=4, y_range=(0, 5.5), path=path)), df[:20]

def reviews():
    import pandas as pd
    return pd.DataFrame([dict(text=f'the {thing} was {word} and the {other} {word} too', label=label) for thing in ('film', 'book', 'play', 'song') for other in ('end', 'start')
                         for word, label in (('good', 'pos'), ('fine', 'pos'), ('bad', 'neg'), ('poor', 'neg'))] * 2)

def text_dls(path, **kwargs):
    from fastai.text.all import TextDataLoaders, Tokenizer, BaseTokenizer
    set_seed(0)
    return TextDataLoaders.from_df(reviews(), path, text_col='text', bs=8, device='cpu', tok_tfm=Tokenizer.from_df('text', tok=BaseTokenizer()), **kwargs)

def text_classifier(path):
    from fastai.text.all import AWD_LSTM, accuracy, awd_lstm_clas_config, text_classifier_learner
    config = awd_lstm_clas_config | dict(emb_sz=6, n_hid=8)
    return quiet(text_classifier_learner(text_dls(path, label_col='label'), AWD_LSTM, pretrained=False, config=config, metrics=accuracy, path=path)), reviews()[:20]

def language_model(path):
    from fastai.text.all import AWD_LSTM, awd_lstm_lm_config, language_model_learner
    config = awd_lstm_lm_config | dict(emb_sz=6, n_hid=8)
    return quiet(language_model_learner(text_dls(path, is_lm=True, seq_len=5), AWD_LSTM, pretrained=False, config=config, path=path)), None

def vision(path):
    "scikit-learn's digits as pictures of 32 by 32 pixels."
    from fastai.vision.all import ImageDataLoaders, PILImageBW, Resize, accuracy, resnet18, vision_learner
    from sklearn.datasets import load_digits
    set_seed(0)
    digits = load_digits()
    images = [PILImageBW.create(np.uint8(image * 15)) for image in digits.images[:60]]
    labels = dict(enumerate(digits.target[:60].tolist()))
    dls = ImageDataLoaders.from_lists(path, list(labels), list(labels.values()), item_tfms=[images.__getitem__, Resize(32)], bs=16, device='cpu')
    return quiet(vision_learner(dls, resnet18, pretrained=False, metrics=accuracy, n_in=1, path=path)), list(labels)[:20]
