"""Text files are read and written as UTF-8, whatever the system's own encoding is."""
import ast

import pytest

from support.helpers import ROOT

SOURCES = [path for folder in ('onecycle_callback', 'docs', 'tests', 'benchmarks')
           for path in sorted((ROOT / folder).rglob('*.py'))] + [ROOT / 'noxfile.py']

def is_text(call):
    "Return whether a call opens a text file, reads or writes it."
    if isinstance(call.func, ast.Attribute): return call.func.attr in ('read_text', 'write_text')
    if getattr(call.func, 'id', '') not in ('open', 'fdopen'): return False
    mode = next((each for each in [*call.args[1:2], *(k.value for k in call.keywords if k.arg == 'mode')]), None)
    return 'b' not in getattr(mode, 'value', '')

def without_encoding(source):
    "Return the lines on which `source` leaves the encoding of a text file to the system."
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and is_text(node)]
    return [call.lineno for call in calls if 'encoding' not in [keyword.arg for keyword in call.keywords]]

def test_every_text_file_has_an_encoding():
    found = {str(path): without_encoding(path.read_text(encoding='utf-8')) for path in SOURCES}
    assert len(found) > 50 and {path: lines for path, lines in found.items() if lines} == {}

@pytest.mark.parametrize('source, is_seen', [
    ('path.read_text()', True), ('path.write_text(text)', True), ('open(path)', True), ("open(path, 'w')", True),
    ("open(path, mode='a', buffering=1)", True), ("path.read_text(encoding='utf-8')", False),
    ("open(path, 'rb')", False), ("open(path, mode='wb')", False), ("driver.open(path)", False)])
def test_a_missing_encoding_is_seen(source, is_seen): assert bool(without_encoding(source)) == is_seen
