"""Whole stories, as users live them: in a Jupyter kernel, in a script that is killed, and line by line of README."""
import asyncio
import re
import signal
import subprocess
import sys
import time
import warnings

import nbformat
import pytest
import torch
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from support.helpers import ROOT, fork, run_as_main
from support.interrupted import bars, epochs_shown, rows

pytestmark = [pytest.mark.slow, pytest.mark.sigkill]

@pytest.fixture(scope='module', autouse=True)
def without_torchs_own_warning():
    "torch 2.15 warns of what fastai compiles while it is imported."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONWARNINGS', 'ignore:`torch.jit.script` is deprecated:FutureWarning')
        yield

# What both stories begin with. The test interrupts in a batch that takes a minute, in the first process only.
LEARNER = '''
import os, time
from pathlib import Path
from fastai.basics import *
from fastai.callback.progress import ShowGraphCallback
import onecycle_callback
from onecycle_callback import CycleCheckpoint

class LongBatch(Callback):
    "After batch `at` of the cycle, once, wait for what comes."
    order = 20_000
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.train_iter == self.at and not Path(f'reached_{self.at}').exists():
            Path(f'reached_{self.at}').touch()
            time.sleep(60)

data = torch.randn(118, 6, generator=torch.Generator().manual_seed(0))
def get_x(i): return data[i]
def get_y(i): return (data[i].sum() > 0).long()

def new_learner():
    set_seed(0)
    datasets = Datasets(range(118), [get_x, get_y], splits=(range(118), range(20)))
    dls = datasets.dataloaders(bs=4, drop_last=False, device='cpu', num_workers=0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.3), nn.Linear(16, 2))
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy)
'''

FIT = """learn.fit_one_cycle(4, .1, cbs=[LongBatch(41), ShowGraphCallback()],
                    checkpoint=CycleCheckpoint('run1', every=7))"""

class Recording(NotebookClient):
    "A client that keeps everything a cell has shown, even if only for a while, as a progress bar is."
    def process_message(self, msg, cell, index):
        data = msg['content'].get('data', {})
        of_cell = vars(self).setdefault('shown', {}).setdefault(index, [])
        of_cell.append(data.get('text/html') or data.get('text/markdown', ''))
        return super().process_message(msg, cell, index)

CELLS = [LEARNER,
         'learn = new_learner()',
         'learn.preview_one_cycle(4, .1)',
         FIT,
         FIT,
         'learn.recorder.plot_lr(show_moms=True);',
         """calm = new_learner()
calm.fit_one_cycle(4, .1)
all(torch.equal(a, b) for a, b in zip(learn.model.state_dict().values(), calm.model.state_dict().values()))""",
         """learn.export('model.pkl')
loaded = load_learner('model.pkl')
dl = learn.dls.test_dl(range(50))
torch.equal(learn.get_preds(dl=dl)[0], loaded.get_preds(dl=dl)[0])"""]

async def run_notebook(folder, cells, interrupted, reached):
    "Run cells in a kernel of this interpreter, interrupt the cell `interrupted` once the file `reached` is there."
    nb = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    client = Recording(nb, kernel_name='this', timeout=300, resources=dict(metadata=dict(path=str(folder))))
    async with client.async_setup_kernel():
        for i, cell in enumerate(nb.cells):
            task = asyncio.ensure_future(client.async_execute_cell(cell, i))
            if i == interrupted:
                while not reached.exists() and not task.done(): await asyncio.sleep(.05)
                await client.km.interrupt_kernel()
                with pytest.raises(CellExecutionError, match='KeyboardInterrupt'): await task
            else: await task
    return nb.cells, client.shown

@pytest.fixture(scope='module')
def notebook(tmp_path_factory):
    folder = tmp_path_factory.mktemp('notebook')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JUPYTER_PATH', str(folder / 'jupyter'))
        write_kernel_spec(folder / 'jupyter/kernels/this')
        return asyncio.run(run_notebook(folder, CELLS, interrupted=CELLS.index(FIT), reached=folder / 'reached_41'))

def html(cell): return ''.join(out.get('data', {}).get('text/html', '') for out in cell.outputs)
def pictures(cell): return sum('image/png' in out.get('data', {}) for out in cell.outputs)
def table(text): return list(map(int, re.findall(r'<tr><td>(\d+)</td><td>\d+\.\d', text)))
def without_times(text): return re.sub(r'\d\d:\d\d', '', text)
def done(text): return [tuple(map(int, numbers)) for numbers in re.findall(r'\[(\d+)/(\d+) ', text)]

def progress(shown):
    "Return, from all that a cell has shown, the epochs done of how many, and the training batches done of how many."
    states = [done(text) for text in shown]
    return [state for state in states if len(state) == 2 and state[1][1] == 30]

def test_notebook_preview(notebook):
    cells, _ = notebook
    assert html(cells[2]).count('<tr>') == 5 and html(cells[2]).count('data:image/png') == 1

def test_notebook_interrupted(notebook):
    cells, shown = notebook
    assert [out.ename for out in cells[3].outputs if out.output_type == 'error'] == ['KeyboardInterrupt']
    assert table(html(cells[3])) == [0] and done(html(cells[3]))[0] == (1, 4)
    assert progress(shown[3])[0] == [(0, 4), (0, 30)]

def test_notebook_resumed(notebook):
    "The same cell again, with the same Learner: 35 batches were saved, 5 of them of the second epoch."
    cells, shown = notebook
    assert re.search(r"'run1' .* epoch 1, batch 5", cells[4].outputs[0].text)
    states = progress(shown[4])
    assert states[:2] == [[(1, 4), (0, 30)], [(1, 4), (6, 30)]]
    assert sorted({epochs for epochs, _ in states}) == [(1, 4), (2, 4), (3, 4)]
    assert table(html(cells[4])) == [0, 1, 2, 3] and pictures(cells[4]) == 1
    assert without_times(html(cells[4])) == without_times(html(cells[6]))     # the table of the uninterrupted run

@pytest.mark.parametrize('cell, says', [(5, None), (6, 'True'), (7, 'True')],
                         ids=['picture', 'same weights', 'same predictions of what was exported'])
def test_notebook_afterwards(notebook, cell, says):
    cells, _ = notebook
    results = [out.data['text/plain'] for out in cells[cell].outputs if out.output_type == 'execute_result']
    assert results == [says] if says else pictures(cells[cell]) == 1

def test_notebook_warns_of_nothing(notebook):
    cells, _ = notebook
    interrupt, pickles = [out.get('text', out.get('ename')) for cell in cells for out in cell.outputs
                          if out.output_type == 'error' or out.get('name') == 'stderr']
    assert interrupt == 'KeyboardInterrupt'
    assert pickles.count('Warning') == 1 and "Python's insecure pickle module" in pickles     # fastai's load_learner

SCRIPT = LEARNER + """
learn = new_learner()
print(learn.preview_one_cycle(4, .1).table)
learn.fit_one_cycle(4, .1, cbs=[LongBatch(41), LongBatch(75), ShowGraphCallback()],
                    checkpoint=CycleCheckpoint('run1', every=7))
learn.recorder.plot_lr(show_moms=True)
plt.savefig('lr.png')
learn.export('model.pkl')
dl = learn.dls.test_dl(range(50))
assert torch.equal(learn.get_preds(dl=dl)[0], load_learner('model.pkl').get_preds(dl=dl)[0])
torch.save(learn.model.state_dict(), 'weights.pt')
"""

def epochs_of_rows(out): return rows(out.partition('train_loss')[2])     # the table of the plan comes before

def run_script(folder, signal=None, at=None):
    "Run the script in an interpreter of its own, send it `signal` at batch `at`, and return its exit code and output."
    process = subprocess.Popen([sys.executable, 'train.py'], cwd=folder, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    if signal:
        while not (folder / f'reached_{at}').exists() and process.poll() is None: time.sleep(.05)
        process.send_signal(signal)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err

@pytest.mark.fork
def test_script(tmp_path):
    "Killed in the second epoch, in a forked process, interrupted by Ctrl-C in the third, and run to its end."
    (tmp_path / 'train.py').write_text(SCRIPT, encoding='utf-8')
    process = fork(run_as_main, tmp_path / 'train.py', (), tmp_path, out=tmp_path / 'out')
    while not (tmp_path / 'reached_41').exists() and process.is_alive(): time.sleep(.05)
    process.kill()
    process.join()
    out = (tmp_path / 'out').read_text(encoding='utf-8')
    assert process.exitcode == -signal.SIGKILL and epochs_shown(out) == ['1/4', '2/4']
    code, out, err = run_script(tmp_path, signal.SIGINT, 75)
    assert code == -signal.SIGINT
    note = r"\n.*'run1' was interrupted\. The same call resumes it in epoch 2, batch 10, from .*\n$"
    if hasattr(KeyboardInterrupt, 'add_note'): assert re.search(f'KeyboardInterrupt{note}', err)
    else: assert re.search(note, out)     # Python 3.10 has no notes
    assert epochs_shown(out) == ['2/4', '3/4'] and epochs_of_rows(out) == [0, 1]
    assert bars(out)[:2] == [(2, 4, 0, 30), (2, 4, 6, 30)]
    code, out, err = run_script(tmp_path)
    assert code == 0, err
    assert epochs_shown(out) == ['3/4', '4/4'] and epochs_of_rows(out) == [0, 1, 2, 3]
    assert bars(out)[:2] == [(3, 4, 0, 30), (3, 4, 11, 30)]
    assert err.count('Warning') == 1 and "Python's insecure pickle module" in err
    assert (tmp_path / 'lr.png').stat().st_size > 10_000
    names = {}
    exec(LEARNER, names)
    calm = names['new_learner']()
    calm.fit_one_cycle(4, .1)
    weights = torch.load(tmp_path / 'weights.pt')
    assert all(torch.equal(weights[name], value) for name, value in calm.model.state_dict().items())

def test_readme(tmp_path, capsys, monkeypatch):
    "Its lines as they stand; then again, which finds the run complete."
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    lines, = re.findall(r'^```python\n(.*?)^```', readme, re.MULTILINE | re.DOTALL)
    assert "learn.fit_one_cycle(cycle_len=10, max_lr=0.1, div_factor=25., checkpoint=" in lines
    for again in False, True:
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            exec(compile(lines, 'README.md', 'exec'), {})
        out, err = capsys.readouterr()
        assert 'The cycle' not in err     # where a warning about a fit goes instead of ending it
        assert epochs_shown(out) == ([] if again else [f'{epoch}/10' for epoch in range(1, 11)])
        assert rows(out)[-10:] == list(range(10)) and ('is complete' in out) == again
