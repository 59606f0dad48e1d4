"""fastxtend replaces the methods of `Recorder`; imported before or after, fits are recorded.

fastxtend 0.1.7 was written for fastai 2.7. It imports `dispatch` from fastcore, which has since moved it to
fasttransform; the test puts it back."""
import subprocess
import sys

import pytest
pytest.importorskip('fastxtend', reason="fastxtend is not installed: nox -s 'clients(fastxtend)' runs this")

from test_clients import FITS

MOVED = '''
import sys, types
from fasttransform.cast import cast, retain_meta
from plum import Dispatcher
sys.modules['fastcore.dispatch'] = types.SimpleNamespace(cast=cast, retain_meta=retain_meta, typedispatch=Dispatcher())
'''

@pytest.mark.parametrize('order', ['fastxtend.metrics, onecycle_callback', 'onecycle_callback, fastxtend.metrics'])
def test_import(order, tmp_path):
    replaced = 'from fastai.learner import Recorder\nassert Recorder.before_fit.__module__ == "fastxtend.metrics"\n'
    (tmp_path/'fits.py').write_text(f'{MOVED}import {order}\n{replaced}{FITS}', encoding='utf-8')
    run = subprocess.run([sys.executable, 'fits.py'], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
