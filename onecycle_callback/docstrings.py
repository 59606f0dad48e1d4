"""Docstrings with a section on the parameters and an example, for `?` and `help`"""

# The texts are the comments that stand in the signatures, where nbdev finds them too. `docments` takes 80 ms for a
# method with sixteen parameters, so the lines of this package are read here. Where there is no source, docstrings stay
# as they are.

import re
import sys
from dataclasses import is_dataclass
from inspect import cleandoc, isclass, isfunction, signature, unwrap
from linecache import getlines

_TRAILING = re.compile(r'\s+\*{0,2}(\w+)\b[^#]*# (.+)')
_END = re.compile(r'\s*(def \w+\([^#]*)?\)[^#]*:')     # of a signature
_ABOVE, _FIELD = re.compile(r'    # (.+)'), re.compile(r'    (\w+):[^#]*(?:# (.+))?')

_HEAD = '\n\nParameters\n----------\n'
EXAMPLES = {
    'fit_one_cycle': 'learn.fit_one_cycle(10, 0.1)',
    'preview_one_cycle': 'learn.preview_one_cycle(10, 0.1)',
    'preview_fine_tune': 'learn.preview_fine_tune(3)',
    'fine_tune': 'learn.fine_tune(3)',
    'compare_max_lr': 'learn.compare_max_lr([0.03, 0.1, 0.3])',
    'plot_lr': 'learn.recorder.plot_lr(show_moms=True)',
    'plot_sched': 'learn.recorder.plot_sched()',
    'to_frame': 'learn.recorder.to_frame()',
    'OneCycle': 'learn.fit(10, cbs=OneCycle(0.1))',
    'OneCycleSchedule': 'OneCycleSchedule(0.1).plan(n_epoch=10, n_batch=100)',
    'CycleCheckpoint': "learn.fit_one_cycle(10, 0.1, checkpoint=CycleCheckpoint('run1', every=200))"}

def _of_function(f):
    "Return the comment after each parameter of `f` in its source."
    lines = getlines(f.__code__.co_filename)[f.__code__.co_firstlineno - 1:]
    comments = {}
    for line in lines:
        if found := _TRAILING.match(line): comments[found[1]] = found[2]
        if _END.match(line): break
    return comments

def _of_fields(cls, path):
    "Return the comments above or after each field of the dataclass `cls` in its source."
    lines, above, comments = iter(getlines(path)), [], {}
    for line in lines:
        if line.startswith(f'class {cls.__name__}'): break
    for line in lines:
        if line.startswith(('    def ', '    @', '# %%')): break
        if found := _ABOVE.match(line): above.append(found[1])
        elif found := _FIELD.match(line): comments[found[1]], above = ' '.join(above) or found[2], []
    return comments

def _comments(obj):
    "Return what describes each parameter of a function or a class, by name; those that it takes over come last."
    inner = unwrap(obj)
    others = getattr(inner, '__delwrap__', None)
    own = _of_function(inner) if isfunction(inner) else _of_fields(obj, sys.modules[obj.__module__].__file__)
    return own if others is None else _comments(others) | own

def _described(obj, described_by):
    "Return the docstring of `obj` with what `described_by` says of its parameters, and an example."
    comments, example = _comments(described_by), EXAMPLES.get(obj.__name__)
    lines = [f'{name}\n    {comments[name]}' for name in signature(obj).parameters if name in comments]
    doc = cleandoc(obj.__doc__)
    if lines: doc += _HEAD + '\n'.join(lines)
    return doc + (f'\n\nExamples\n--------\n{example}' if example else '')

def describe(
    *objects # Functions and classes, with their docstrings
):
    "Add the parameters and an example to the docstrings of `objects`, and of the public methods of the classes."
    for obj in objects:
        if not obj.__doc__ or _HEAD in obj.__doc__: continue     # as under `python -OO`, or after a reload
        is_plain_class = isclass(obj) and not is_dataclass(obj)
        obj.__doc__ = _described(obj, obj.__init__ if is_plain_class else obj)
        if isclass(obj): describe(*[m for name, m in vars(obj).items() if isfunction(m) and name[0] != '_'])
