"""What `show_doc` says about a public name, as a section of a page."""
import inspect
import re
from functools import cached_property
from importlib import import_module
from textwrap import wrap

import nbformat
from fastai.callback.core import event
from fastcore.docments import DocmentTbl
from nbdev.doclinks import NbdevLookup
from nbdev.showdoc import show_doc

from docs.links import linked, markdown

def is_public(name):
    "Return whether users call `name` or `Class.name`: private names and fastai's events don't count."
    cls, _, member = name.rpartition('.')
    return '_' not in (cls[:1], member[0]) and not (cls and hasattr(event, member))

def as_property(obj):
    "Return a property that keeps its value as an ordinary one, which `show_doc` knows."
    return property(obj.func) if isinstance(obj, cached_property) else obj

def members(cls):
    "List the documented public methods and properties of `cls`, including those that are patched in."
    def is_documented(value):
        value = as_property(value)
        function = value.fget if isinstance(value, property) else value
        return inspect.isfunction(function) and function.__doc__
    return [name for name, value in vars(cls).items() if is_public(f'{cls.__name__}.{name}') and is_documented(value)]

def signature(name, obj, shown):
    "Write the signature of `obj`, without the comments, which the table shows."
    text = re.sub(r' # .*$', '', str(shown.dm), flags=re.M).replace(':NoneType', '')
    text = re.sub(r'(?<=\S)\|(?=\S)', ' | ', re.sub(r'\b(?:[a-z_]\w*\.)+(?=[A-Z])', '', text))
    inside, returns = re.fullmatch(r'\w+ \w+\((.*)\)(?:->(.*))?:', ' '.join(text.split())).groups()
    returns = '' if returns in (None, 'None') else returns
    if isinstance(obj, property): return f'{name}: {returns}' if returns else name
    call = f'{name}({inside.strip().rstrip(",")})'
    if len(call + returns) > 84:
        each = re.split(r'(?<=,) (?![^[(]*[])])', inside.strip())     # not at a comma within brackets
        call = '\n    '.join([f'{name}(', *each]).rstrip(',') + '\n)'
    return call + (f' -> {returns}' if returns else '')

def parameter_table(obj):
    "Write fastcore's table of the parameters of `obj`, with short types, and each comment on one line."
    table = str(DocmentTbl(obj)).replace('NoneType', '').replace('<br>', ' ')
    def short(row):
        name, types, rest = re.fullmatch(r'(\| [^|]* \| )((?:\\\||[^|])*)(\|.*)', row).groups()
        types = re.sub(r'\b(?:[a-z_]\w*\.)+(?=[A-Z])', '', types)
        return name + re.sub(r'(?<! )\\\|(?! )', r' \| ', types) + rest
    head, rows = table.splitlines()[:2], table.splitlines()[2:]
    return '\n'.join([*head, *map(short, rows)])

def api_section(name, obj, site, known, level):
    "Make a section from what `show_doc` says about `obj`: source, signature, description and parameters."
    obj = as_property(obj)
    shown, source = show_doc(obj), NbdevLookup().code(name)
    link = f'[source]({source}){{.source-link}}' if source else ''
    table = '' if isinstance(obj, property) else linked(parameter_table(obj))
    table = re.sub(r'^\| (\w+) \|', r'| `\1` |', table, flags=re.M)
    said, *_ = re.split(r'\n\n(?:Parameters|Examples)\n-+\n', inspect.cleandoc(shown.docs or ''))   # the rest: below
    text = linked(said) + (f'\n\n{{.parameters}}\n{table}' if table else '')
    anchor = name.lower()
    as_nbdev = '' if anchor.isalnum() else f'<div id="{anchor}"></div>'   # Sphinx's own id only has hyphens
    parts = [as_nbdev, f'({anchor})=', f'{"#" * level} {name}', link, f'```python\n{signature(name, obj, shown)}\n```',
             markdown(text, site, known)]
    return nbformat.v4.new_markdown_cell('\n\n'.join(p for p in parts if p))

def import_lines(names, module, lib):
    """Return the code that imports `names` from the package or from `module`.

    What is patched into another package's class comes with the package."""
    root, tops = import_module(lib), dict.fromkeys(name.partition('.')[0] for name in names)
    own = [name for name in tops if getattr(vars(module).get(name), '__module__', '') == module.__name__]
    public = [name for name in own if getattr(root, name, None) is vars(module)[name]]
    inner = [name for name in own if name not in public]
    sources = ((lib, public), (module.__name__, inner))
    lines = [f'from {where} import {", ".join(some)}' for where, some in sources if some]
    if len(own) < len(tops): lines.insert(0, f'import {lib}')
    def wrapped(line): return wrap(line.replace('import ', 'import (') + ')', 88, subsequent_indent='    ')
    return '\n'.join(line if len(line) < 90 else '\n'.join(wrapped(line)) for line in lines)
