"""All that the import changes of fastai stands in one table, and on one page."""
import json

import pytest

from support import fresh
from support.helpers import ROOT
from onecycle_callback.fastai_internals import ADDED, REPLACED

CHANGES = '''
import json, sys
from fastai.basics import *
from fastai.callback.all import *
from fastai.distributed import *
OTHERS = 'fastai', 'fastcore', 'fastprogress'
def is_theirs(module): return module.split('.')[0] in OTHERS
modules = [m for name, m in sorted(sys.modules.items()) if is_theirs(name)]
classes = {c for m in modules for c in vars(m).values() if isinstance(c, type) and is_theirs(c.__module__)}
before = {part: dict(vars(part)) for part in [*modules, *classes]}
import onecycle_callback
changes = {'replaced': [], 'added': []}
for part, names in before.items():
    for name, value in vars(part).items():
        if names.get(name, before) is value or name.startswith(('_orig_', '_start_epoch_record')): continue
        if name in ('__builtins__', '__warningregistry__', 'callback', 'defaults'): continue
        if type(value).__name__ == 'module': continue
        inherited = name not in names and hasattr(part, '__mro__') and any(name in vars(c) for c in part.__mro__[1:])
        changes['replaced' if name in names or inherited else 'added'].append(f'{part.__name__}.{name}')
print(json.dumps(changes))
'''

@pytest.fixture(scope='module')
def changes():
    "What differs in fastai's modules and classes after the import, seen in a separate process."
    run = fresh.python(CHANGES)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])

@pytest.mark.slow
def test_what_it_replaces(changes): assert sorted(changes['replaced']) == sorted(REPLACED)

@pytest.mark.slow
def test_what_it_adds(changes): assert sorted(changes['added']) == sorted(ADDED)

def test_a_page_says_so():
    cells = json.loads((ROOT / 'nbs/compared_with_fastai.ipynb').read_text(encoding='utf-8'))['cells']
    text = ''.join(line for cell in cells for line in cell['source'])
    section = text.partition('## What the import changes')[2].partition('\n## ')[0]
    rows = [line for line in section.splitlines() if line.startswith('- ')]
    assert rows == [f'- `{name}` {what}.' for name, what in REPLACED.items()]
    assert all(f'`{name}`' in section for name in ADDED)
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    readme = text.partition('## What the import changes')[2].partition('\n## ')[0]
    of_learner = [name.removeprefix('Learner.') for name in REPLACED if name.startswith('Learner.')]
    assert all(name in readme for name in of_learner) and len(REPLACED) == len(of_learner) + 3
