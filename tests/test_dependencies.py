"""What the package imports is what its metadata declare, and nothing else."""
import ast
import sys
from importlib.metadata import distribution, requires

import pytest
from packaging.requirements import Requirement

from support.helpers import ROOT

NAME = 'onecycle_callback'
SOURCES = {path.relative_to(ROOT): path.read_text(encoding='utf-8') for path in (ROOT / NAME).rglob('*.py')}

def declared(extra=''):
    "Return the names of the packages that are required, or those that `extra` adds."
    found = [Requirement(text) for text in requires(NAME)]
    return {r.name.lower() for r in found if (r.marker is None) == (not extra)
            and (r.marker is None or r.marker.evaluate(dict(extra=extra)))}

def imported(source):
    "Return the packages that some code imports, anywhere in it, by the names under which they are installed."
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    modules = {name.partition('.')[0] for name in names} - sys.stdlib_module_names - {NAME}
    return {PACKAGES.get(module, module) for module in modules}

OPTIONAL = declared('distributed') | declared('explore')
PACKAGES = {file.parts[0].removesuffix('.py'): name
            for name in declared() | OPTIONAL for file in distribution(name).files}     # by the modules that they hold

def test_what_is_imported_is_declared():
    assert set().union(*map(imported, SOURCES.values())) - OPTIONAL == declared()

@pytest.mark.parametrize('path', SOURCES, ids=str)
def test_what_is_optional_is_imported_only_where_it_is_needed(path):
    "Inside a function, or in the module that is all about it."
    tree = ast.parse(SOURCES[path])
    at_import = '\n'.join(ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)))
    assert not imported(at_import) & OPTIONAL or path.stem == 'distributed'

def test_an_import_is_found_wherever_it_stands():
    code = 'import numpy.linalg, os\nfrom . import x\ndef f():\n    from sklearn.datasets import load_digits'
    assert imported(code) == {'numpy', 'scikit-learn'}
