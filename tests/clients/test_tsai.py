"""tsai trains on the planned schedule, resumes to the bit, plots, exports and loads, whichever is imported first."""
import subprocess
import sys
from pathlib import Path

import pytest
pytest.importorskip('tsai', reason="tsai is not installed: nox -s 'clients(tsai)' runs this")

import nbformat
import torch
from fastai.basics import tensor
from nbclient import NotebookClient
from tsai.basics import SaveModel, load_all
from tsai.data.mixed_augmentation import MixUp1d

import onecycle_callback  # noqa: F401
from support.helpers import Spy
from tsai_learner import X, tsai_classifier

HERE = Path(__file__).parent

def weights(learn): return [p.detach() for p in learn.model.parameters()]

ORDERS = [('tsai.basics', 'onecycle_callback'), ('onecycle_callback', 'tsai.basics')]

@pytest.mark.parametrize('order', ORDERS, ids=' then '.join)
def test_interrupted_and_run_again_with_its_bar_on(order, tmp_path):
    whole = tsai_classifier(tmp_path)
    whole.fit_one_cycle(4, 1e-2)
    run = subprocess.run([sys.executable, HERE/'tsai_story.py', tmp_path, *order], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr
    assert all(map(torch.equal, torch.load(tmp_path/'weights.pt'), weights(whole)))
    before, after = (part.replace('\r', '\n').splitlines() for part in run.stdout.split('INTERRUPTED'))
    def epochs(lines): return [int(line.split()[0]) for line in lines if line[:1].isdigit()]
    def bars(lines): return {line.split(' :')[0] for line in lines if line.startswith('Epoch ')}
    assert epochs(before) == [0, 1] and bars(before) == {'Epoch 1/4', 'Epoch 2/4', 'Epoch 3/4'}
    assert "Checkpoint 'run1' resumes in epoch 2, batch 5." in after
    assert epochs(after) == [0, 1, 2, 3] and bars(after) == {'Epoch 3/4', 'Epoch 4/4'}

def test_its_callbacks_and_load_all(tmp_path):
    learn, spy = tsai_classifier(tmp_path), Spy()
    learn.lr_find()
    learn.fit_one_cycle(2, 1e-2, cbs=[MixUp1d(), SaveModel(with_opt=True), spy])
    assert spy.seen_lrs == learn.recorder.plan.lrs.tolist()
    learn.save_all(tmp_path/'all')
    loaded = load_all(tmp_path/'all')
    assert all(map(torch.equal, weights(loaded), weights(learn)))
    loaded.fit_one_cycle(2, 1e-2, cbs=spy)
    assert spy.seen_lrs == loaded.recorder.plan.lrs.tolist() and spy.seen_moms[-1] == [.95]
    assert tensor(loaded.get_X_preds(X[:40])[0]).shape == (40, 2)

CELLS = ['''
from onecycle_callback import CycleCheckpoint
from tsai_learner import *
from tsai.basics import Callback, ShowGraph
interrupted = []     # not an attribute of the callback, which the resume would set back
class CtrlC(Callback):
    order, run_valid = 20_000, False
    def after_batch(self):
        if (self.epoch, self.iter) == (1, 7) and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
stop = CtrlC()
learn = tsai_classifier('.', cbs=ShowGraph())''',
"learn.fit_one_cycle(3, 1e-2, checkpoint='run1', cbs=stop)",
"learn.fit_one_cycle(3, 1e-2, checkpoint='run1', cbs=stop)",
"assert len(learn.recorder.losses) == 60 and len(learn.recorder.values) == 3\nlearn.recorder.plot_sched()"]

def test_its_graph_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(HERE))
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    cells[1].metadata.tags = ['raises-exception']
    nb = NotebookClient(nbformat.v4.new_notebook(cells=cells), resources=dict(metadata=dict(path=tmp_path))).execute()
    def text(cell): return ''.join(o.get('text', '') + str(o.get('data', '')) for o in cell.outputs)
    assert [o.ename for o in nb.cells[1].outputs if o.output_type == 'error'] == ['KeyboardInterrupt']
    assert "Checkpoint 'run1' resumes in epoch 1, batch 0." in text(nb.cells[2])
    assert any('image/png' in o.get('data', {}) for o in nb.cells[2].outputs)
    assert 'image/png' in text(nb.cells[3])
