"""The gates: every notebook executes, is exported, is clean and current, and README.md comes from its notebook.

Each gate is seen to catch a break."""
import json
import re
import subprocess
import sys
from operator import eq
from pathlib import Path

import numpy as np
import pytest
from fastcore.nbio import mk_cell, new_nb, write_nb
from nbdev.config import nbpath2html

from support import fresh
from support.helpers import KEPT, ROOT, copy_tree

@pytest.fixture
def copy(tmp_path): return copy_tree(tmp_path)

PICTURE = re.compile(rb'("image/png": "|data:image/png;base64,)([\w+/=]|\\n)*')

def content(path):
    "The bytes of a file without a notebook's pictures: how matplotlib smooths them depends on what was drawn before."
    found = path.read_bytes()
    return PICTURE.sub(rb'\1', found) if path.suffix == '.ipynb' else found

def files(root):
    found = [p for name in KEPT for p in ([root / name] if (root / name).is_file() else (root / name).rglob('*'))]
    return {str(p.relative_to(root)): content(p) for p in found
            if p.is_file() and not {'__pycache__', '.ipynb_checkpoints'} & {*p.parts}}

def changed(before, after, same=eq):
    return sorted(name for name in before.keys() | after.keys() if not same(before.get(name), after.get(name)))

# Processors round sums differently, and training makes more of it: by a 6,000th at the end of one page's three epochs,
# between one with AVX-512 and one without AVX. A page that shows a number which differs by more is to show less of it.
TOLERANCE = 1e-3
NUMBER = re.compile(r'(?<![\w.])-?\d+\.\d+(?:e[-+]?\d+)?(?!\w|\.\d)')     # any other, a count or a version, is a word

def words_and_numbers(content):
    "Split a notebook into all that must be equal and the decimal numbers of its outputs."
    nb = json.loads(content)
    outputs = json.dumps([cell.pop('outputs', None) for cell in nb['cells']]).replace(r'\n', '\n').replace(r'\t', '\t')
    return (nb, NUMBER.sub('', outputs)), [float(number) for number in NUMBER.findall(outputs)]

def agree(a, b):
    "Return whether two files are equal, apart from the last digits of the numbers that notebooks have computed."
    if a == b or not all(content and content.startswith(b'{\n "cells"') for content in (a, b)): return a == b
    (words_a, numbers_a), (words_b, numbers_b) = words_and_numbers(a), words_and_numbers(b)
    return words_a == words_b and np.allclose(numbers_a, numbers_b, rtol=TOLERANCE, atol=0)

def with_one_changed(content, pattern, new):
    "Yield copies of a notebook, for each cell one in which the first match of `pattern` in its outputs is replaced."
    for i, cell in enumerate(json.loads(content)['cells']):
        outputs = json.dumps(cell.get('outputs'))
        if (other := re.sub(pattern, new, outputs, count=1)) == outputs: continue
        nb = json.loads(content)
        nb['cells'][i]['outputs'] = json.loads(other)
        yield json.dumps(nb, indent=1, ensure_ascii=False).encode()

def run(root, command):
    run = subprocess.run([sys.executable, '-W', 'error::UserWarning', *command], cwd=root, capture_output=True,
                         text=True)
    return run.returncode, run.stdout + run.stderr

def execute(root):
    "Execute all notebooks of `root`; return the exit code, and what was printed."
    run = fresh.python('from support.gate import main; main()', cwd=root)
    return run.returncode, run.stdout + run.stderr

def write_readme(root):
    run = fresh.module('docs', 'readme', cwd=root)
    return run.returncode, run.stdout + run.stderr

def restored(root, *commands, same=eq):
    """Return which broken files of `root` the `commands` restored to those of the project; others must be as before.

    A command is one of Python, or a function of `root`."""
    before = files(root)
    for command in commands:
        code, output = command(root) if callable(command) else run(root, command)
        assert code == 0, output
    assert changed(files(ROOT), files(root), same) == []
    return changed(before, files(root), same)

def nbdev(name):
    "How the console script `name` of this environment is started. Called as a function it would not look at its flags."
    return str(Path(sys.executable).with_name(name)),

QUARTO = '-c', 'from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml; refresh_quarto_yml(); nbdev_sidebar()'
EXPORT, CLEAN = nbdev('nbdev-export'), nbdev('nbdev-clean')

def add_line(path, text='# added by hand'):
    with path.open('a', encoding='utf-8') as file: file.write(f'{text}\n')

def rewrite(path, change):
    "Apply `change` to the cells of the notebook at `path`, and touch nothing else in it."
    nb = json.loads(path.read_text(encoding='utf-8'))
    change(nb['cells'])
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')

def test_exported(copy):
    add_line(copy / 'onecycle_callback/schedule.py')
    assert restored(copy, EXPORT) == ['onecycle_callback/schedule.py']

def exported_to(notebook):
    "The module that `notebook` says it is exported to, as a path within the package, or `None`."
    source = '\n'.join(''.join(cell['source']) for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']
                       if cell['cell_type'] == 'code')
    module = re.search(r'^#\| default_exp (\S+)', source, re.M)
    return module and Path(module[1].replace('.', '/') + '.py')

def stale_modules(root):
    "Return the exported modules that no notebook exports any more, and the notebooks whose name is not their module's."
    package = root / 'onecycle_callback'
    modules = {path: module for path in (root / 'nbs').rglob('*.ipynb') if (module := exported_to(path))}
    exported = {path.relative_to(package) for path in package.rglob('*.py')
                if '# AUTOGENERATED!' in path.read_text(encoding='utf-8')}
    misnamed = [path.name for path, module in modules.items()
                if nbpath2html(path).stem != '.'.join(module.with_suffix('').parts)]
    return sorted(map(str, exported - {*modules.values()})) + sorted(misnamed)

def test_no_stale_module(copy):
    assert stale_modules(copy) == []
    nb = copy / 'nbs/resume.file.ipynb'
    cells = [dict(cell_type='code', source=['#| default_exp resume.file\n', 'x = 1'])]
    nb.write_text(json.dumps(dict(cells=cells)), encoding='utf-8')
    for name in ('file', 'old'):
        (copy / f'onecycle_callback/resume/{name}.py').write_text('# AUTOGENERATED! DO NOT EDIT!\n', encoding='utf-8')
    assert stale_modules(copy) == ['resume/old.py']
    nb.rename(nb.with_name('file.ipynb'))
    assert stale_modules(copy) == ['resume/old.py', 'file.ipynb']

def test_clean(copy):
    def number(cells): next(c for c in cells if c['cell_type'] == 'code')['execution_count'] = 7
    rewrite(copy / 'nbs/index.ipynb', number)
    assert restored(copy, CLEAN) == ['nbs/index.ipynb']

def test_a_notebook_that_is_none_is_not_clean(copy):
    (copy / 'nbs/none.ipynb').write_text('{', encoding='utf-8')
    code, output = run(copy, CLEAN)
    assert code and 'UserWarning: Failed to clean notebook' in output

@pytest.mark.slow
@pytest.mark.fork
def test_executes_with_current_outputs(copy):
    def forget(cells): next(c for c in cells if c.get('outputs'))['outputs'] = []
    rewrite(copy / 'nbs/index.ipynb', forget)
    assert restored(copy, execute, CLEAN, same=agree) == ['nbs/index.ipynb']
    wrong = copy / 'nbs/03_resume.checkpoint.ipynb'
    wrong.write_bytes(next(with_one_changed(content(wrong), NUMBER, lambda number: f'{1.002 * float(number[0]):.9f}')))
    assert changed(files(ROOT), files(copy), agree) == ['nbs/03_resume.checkpoint.ipynb']

def test_a_wrong_number_or_word_is_seen():
    n_seen = 0
    for path in (ROOT / 'nbs').rglob('*.ipynb'):
        page = content(path)
        for pattern, factor in ((NUMBER, 1.002), (r'(?<![\w.])[1-9]\d*(?![\w.])', 2)):     # the latter is a count
            for wrong in with_one_changed(page, pattern, lambda number: f'{factor * float(number[0]):.9g}'):
                assert not agree(page, wrong), path.name
                n_seen += 1
        for wrong in with_one_changed(page, r'(?<=[a-z] )[a-z]{4,}', 'wrong'): assert not agree(page, wrong), path.name
    assert n_seen > 100

@pytest.mark.parametrize('printed, same', [
    ('epoch 3: 0.6016', True), ('epoch 3: 0.6015', True), ('epoch 3: 0.6116', False), ('epoch 3: -0.6016', False),
    ('epoch 4: 0.6016', False), ('epoch 3: 0.6016 0.5', False), ('epoch 3: nan', False), ('epoch 3: 0.6016.0', False)])
def test_numbers_may_differ_in_their_last_digits(printed, same):
    def page(text, source='x = 0.6016'):
        cell = dict(source=source, outputs=[dict(output_type='stream', name='stdout', text=['loss\n', text])])
        return json.dumps(dict(cells=[cell]), indent=1).encode()
    assert agree(page('epoch 3: 0.6016'), page(printed)) == same
    assert not agree(page('epoch 3: 0.6016'), page('epoch 3: 0.6016', 'x = 0.6015'))

@pytest.mark.slow
@pytest.mark.fork
def test_a_cell_that_fails_is_seen(copy):
    for path in (copy / 'nbs').rglob('*.ipynb'): path.unlink()
    write_nb(new_nb([mk_cell('assert 1 == 2')]), copy / 'nbs/fails.ipynb')
    code, output = execute(copy)
    assert code and 'fails.ipynb' in output and 'AssertionError' in output

@pytest.mark.slow
def test_readme_comes_from_its_notebook(copy):
    add_line(copy / 'README.md')
    assert restored(copy, write_readme) == ['README.md']

def test_quarto_files_are_current(copy):
    path = copy / 'nbs/nbdev.yml'
    text = path.read_text(encoding='utf-8')
    path.write_text(text.replace('repo-branch: main', 'repo-branch: other'), encoding='utf-8')
    assert restored(copy, QUARTO) == ['nbs/nbdev.yml']

def unwanted(out):
    "Return what no output may hold: a traceback, a warning, a path of the machine."
    if out['output_type'] == 'error' or out.get('name') == 'stderr': return out['output_type']
    data = {'text/plain': out.get('text', ''), **out.get('data', {})}
    text = '\n'.join(''.join(v) for k, v in data.items() if k.startswith('text/'))
    text = re.sub(r'data:image/[^"]*', '', text)
    found = re.search(r'Traceback \(most recent|\w*Warning\b|/site-packages/|<ipython-input'
                      r'|(?<![\w.])/(?:home|root|tmp|Users|work|var)/|[A-Z]:\\\\', text)
    return found and found[0]

def test_outputs_hold_no_warning_path_or_traceback():
    for p in (ROOT / 'nbs').rglob('*.ipynb'):
        for cell in json.loads(p.read_text(encoding='utf-8'))['cells']:
            for out in cell.get('outputs', []): assert not unwanted(out), p.name

@pytest.mark.parametrize('text', ['Traceback (most recent call last):', 'x.py:3: UserWarning: no',
                                  'saved to /home/me/a.pth', "Path('/tmp/x')", 'lib/site-packages/a.py'])
def test_unwanted_output_is_seen(text):
    for out in (dict(output_type='stream', name='stdout', text=[text]),
                dict(output_type='display_data', data={'text/html': ['<p>', text]})): assert unwanted(out)
    assert unwanted(dict(output_type='error')) and unwanted(dict(output_type='stream', name='stderr', text=''))
    assert not unwanted(dict(output_type='display_data',
                             data={'text/html': '<img src="data:image/png;base64,a/tmp/b"/> models/run1.pth'}))

@pytest.mark.parametrize('folder', ['onecycle_callback', 'docs', 'tests', 'benchmarks'])
def test_a_line_fits_into_120_columns(folder):
    "Except for `__all__` and `_modidx.py`, which nbdev writes."
    lines = [(path.name, line) for path in (ROOT / folder).rglob('*.py') if path.name != '_modidx.py'
             for line in path.read_text(encoding='utf-8').splitlines() if not line.startswith('__all__')]
    assert len(lines) > 500 and [each for each in lines if len(each[1]) > 120] == []

def test_notebooks_are_small_and_hold_no_picture_twice():
    texts = [path.read_bytes() for path in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts]
    pictures = [png for text in texts for png in re.findall(rb'"image/png": "([^"]*)"', text)]
    assert len(pictures) > 20 and len(set(pictures)) == len(pictures)
    assert sum(map(len, texts)) < 5e6, 'python -m docs pictures makes the pictures smaller'

def test_flake8():
    run = subprocess.run([sys.executable, '-m', 'flake8', 'onecycle_callback', 'docs', 'tests', 'benchmarks'], cwd=ROOT,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
