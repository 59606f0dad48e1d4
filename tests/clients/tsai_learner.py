"""The Learner that the tests of tsai train: InceptionTime, on waves that are slow or fast."""
import numpy as np
from fastai.basics import accuracy, set_seed
from tsai.basics import TSClassification, TSClassifier, TSStandardize, get_splits

noise = np.random.default_rng(0)
y = np.arange(400) % 2
X = np.sin(np.outer(1 + y, np.linspace(0, 6, 40)) + noise.uniform(0, 6, (400, 1))) + noise.normal(0, .5, (400, 40))
X = X[:, None].astype(np.float32)
splits = get_splits(y, valid_size=.2, stratify=True, random_state=0, show_plot=False)

def tsai_classifier(path, **kwargs):
    "Return the same Learner every time, with 20 batches per epoch and all its default callbacks."
    set_seed(0)
    return TSClassifier(X, y, splits=splits, arch='InceptionTime', arch_config=dict(nf=4), bs=16, metrics=accuracy,
                        tfms=[None, TSClassification()], batch_tfms=TSStandardize(), path=path, **kwargs)
