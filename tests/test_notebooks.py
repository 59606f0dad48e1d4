"""The gates: every notebook executes, is exported, is clean and current, and README.md comes from its notebook. Each gate is seen to catch a break."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fastcore.nbio import mk_cell, new_nb, write_nb
from nbdev.config import nbpath2html

from support.helpers import KEPT, ROOT, copy_tree

@pytest.fixture
def copy(tmp_path): return copy_tree(tmp_path)

def content(path):
    "The bytes of a file. How matplotlib smooths a picture depends on what was drawn before, so a notebook's are left out."
    return re.sub(rb'("image/png": )"[^"]*"', rb'\1""',
                  path.read_bytes()) if path.suffix == '.ipynb' else path.read_bytes()

def files(root):
    found = [p for name in KEPT for p in ([root / name] if (root / name).is_file() else (root / name).rglob('*'))]
    return {str(p.relative_to(root)): content(p) for p in found if p.is_file()
            and not {'__pycache__', '.ipynb_checkpoints'} & {*p.parts}}

def changed(before, after):
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))

def run(root, command):
    run = subprocess.run([sys.executable, '-W', 'error::UserWarning', *command], cwd=root, capture_output=True,
                         text=True)
    return run.returncode, run.stdout + run.stderr

def restored(root, *commands):
    "Return which broken files of `root` the `commands` restored to those of the project; all others must be unchanged."
    before = files(root)
    for command in commands:
        code, output = run(root, command)
        assert code == 0, output
    assert changed(files(ROOT), files(root)) == []
    return changed(before, files(root))

def nbdev(name, *flags):
    "How the console script `name` of this environment is started. Called as a function it would not look at its flags."
    return str(Path(sys.executable).with_name(name)), *flags

QUARTO = '-c', 'from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml; refresh_quarto_yml(); nbdev_sidebar()'
EXPORT, CLEAN, TEST, README = nbdev('nbdev-export'), nbdev('nbdev-clean'), nbdev('nbdev-test', '--save', '--n-workers', '0'), ('-m', 'docs', 'readme')

def add_line(path, text='# added by hand'): path.write_text(f'{path.read_text()}{text}\n')

def rewrite(path, change):
    "Apply `change` to the cells of the notebook at `path`, and touch nothing else in it."
    nb = json.loads(path.read_text())
    change(nb['cells'])
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n')

def test_exported(copy):
    add_line(copy / 'onecycle_callback/schedule.py')
    assert restored(copy, EXPORT) == ['onecycle_callback/schedule.py']

def exported_to(notebook):
    "The module that `notebook` says it is exported to, as a path within the package, or `None`."
    source = '\n'.join(''.join(cell['source']) for cell in json.loads(notebook.read_text())['cells']
                       if cell['cell_type'] == 'code')
    module = re.search(r'^#\| default_exp (\S+)', source, re.M)
    return module and Path(module[1].replace('.', '/') + '.py')

def stale_modules(root):
    "Return the modules without a notebook, and the notebooks whose name is not their module's."
    modules = {path: module for path in (root / 'nbs').rglob('*.ipynb') if (module := exported_to(path))}
    by_hand = {Path('__main__.py'), Path('_modidx.py')} | {folder / '__init__.py' for module in modules.values()
                                                           for folder in module.parents}
    stale = {p.relative_to(root / 'onecycle_callback')
             for p in (root / 'onecycle_callback').rglob('*.py')} - {*modules.values()} - by_hand
    misnamed = [path.name for path, module in modules.items()
                if nbpath2html(path).stem != '.'.join(module.with_suffix('').parts)]
    return sorted(map(str, stale)) + sorted(misnamed)

def test_no_stale_module(copy):
    assert stale_modules(copy) == []
    nb = copy / 'nbs/rooms/resume.file.ipynb'
    nb.parent.mkdir(exist_ok=True)
    nb.write_text(json.dumps(dict(cells=[dict(cell_type='code', source=['#| default_exp resume.file\n', 'x = 1'])])))
    (copy / 'onecycle_callback/resume').mkdir(exist_ok=True)
    for name in ('__init__', 'file', 'old'): (copy / f'onecycle_callback/resume/{name}.py').touch()
    (copy / 'onecycle_callback/gone').mkdir()
    (copy / 'onecycle_callback/gone/__init__.py').touch()
    assert stale_modules(copy) == ['gone/__init__.py', 'resume/old.py']
    nb.rename(nb.with_name('file.ipynb'))
    assert stale_modules(copy) == ['gone/__init__.py', 'resume/old.py', 'file.ipynb']

def test_clean(copy):
    def number(cells): next(c for c in cells if c['cell_type'] == 'code')['execution_count'] = 7
    rewrite(copy / 'nbs/index.ipynb', number)
    assert restored(copy, CLEAN) == ['nbs/index.ipynb']

def test_a_notebook_that_is_none_is_not_clean(copy):
    (copy / 'nbs/none.ipynb').write_text('{')
    code, output = run(copy, CLEAN)
    assert code and 'UserWarning: Failed to clean notebook' in output

@pytest.mark.slow
def test_executes_with_current_outputs(copy):
    def forget(cells): next(c for c in cells if c.get('outputs'))['outputs'] = []
    rewrite(copy / 'nbs/index.ipynb', forget)
    assert restored(copy, TEST, CLEAN) == ['nbs/index.ipynb']

@pytest.mark.slow
def test_a_cell_that_fails_is_seen(copy):
    for path in (copy / 'nbs').rglob('*.ipynb'): path.unlink()
    write_nb(new_nb([mk_cell('assert 1 == 2')]), copy / 'nbs/fails.ipynb')
    code, output = run(copy, TEST)
    assert code and 'fails.ipynb' in output and 'AssertionError' in output

@pytest.mark.slow
def test_readme_comes_from_its_notebook(copy):
    add_line(copy / 'README.md')
    assert restored(copy, README) == ['README.md']

def test_quarto_files_are_current(copy):
    path = copy / 'nbs/nbdev.yml'
    path.write_text(path.read_text().replace('repo-branch: main', 'repo-branch: other'))
    assert restored(copy, QUARTO) == ['nbs/nbdev.yml']

def unwanted(out):
    "Return what no output may hold: a traceback, a warning, a path of the machine."
    if out['output_type'] == 'error' or out.get('name') == 'stderr': return out['output_type']
    data = {'text/plain': out.get('text', ''), **out.get('data', {})}
    text = '\n'.join(''.join(v) for k, v in data.items() if k.startswith('text/'))
    text = re.sub(r'data:image/[^"]*', '', text)
    found = re.search(r'Traceback \(most recent|\w*Warning\b|/site-packages/|<ipython-input|(?<![\w.])/(?:home|root|tmp|Users|work|var)/|[A-Z]:\\\\', text)
    return found and found[0]

def test_outputs_hold_no_warning_path_or_traceback():
    for p in (ROOT / 'nbs').rglob('*.ipynb'):
        for cell in json.loads(p.read_text())['cells']:
            for out in cell.get('outputs', []): assert not unwanted(out), p.name

@pytest.mark.parametrize('text', ['Traceback (most recent call last):', 'x.py:3: UserWarning: no',
                                  'saved to /home/me/a.pth', "Path('/tmp/x')", 'lib/site-packages/a.py'])
def test_unwanted_output_is_seen(text):
    for out in (dict(output_type='stream', name='stdout', text=[text]),
                dict(output_type='display_data', data={'text/html': ['<p>', text]})): assert unwanted(out)
    assert unwanted(dict(output_type='error')) and unwanted(dict(output_type='stream', name='stderr', text=''))
    assert not unwanted(dict(output_type='display_data',
                             data={'text/html': '<img src="data:image/png;base64,a/tmp/b"/> models/run1.pth'}))

def test_a_line_of_the_package_fits_into_120_columns():
    "Except for `__all__`, which nbdev writes."
    lines = [(path.name, line) for path in (ROOT / 'onecycle_callback').rglob('*.py')
             for line in path.read_text().splitlines()]
    assert len(lines) > 1000 and [each for each in lines if len(each[1]) > 120 and not each[1].startswith('__all__')
                                  and each[0] != '_modidx.py'] == []

def test_flake8():
    run = subprocess.run([sys.executable, '-m', 'flake8', 'onecycle_callback', 'docs', 'tests', 'benchmarks'], cwd=ROOT,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
