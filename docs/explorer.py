"The explorer on the site's pages: what its script, `static/explorer.js`, starts with, and what is there without it."
import json
from html import escape
from itertools import takewhile

import nbformat

from onecycle_callback import OneCycleSchedule
from onecycle_callback.explore import slider_stops
from onecycle_callback.schedule import MOMS

MARK = '<div class="onecycle-explorer"></div>'   # a cell of a notebook: the explorer replaces the picture before it
PLAN = OneCycleSchedule(max_lr=0.1).plan(n_epoch=10, n_batch=22)   # the forum's call, on the tutorial's data
N_BATCHES = (1, 2, 5, 10, 15, PLAN.n_batch, 30, 50, 100, 200, 500, 1000)

def start():
    "Return what the explorer starts with: the values and the stops of its sliders, those of `explore`, as text."
    sliders = slider_stops(PLAN) | dict(n_batch=(PLAN.n_batch, N_BATCHES))
    return dict(values={name: str(value) for name, (value, _) in sliders.items()},
                stops={name: list(map(str, stops)) for name, (_, stops) in sliders.items()}, moms=MOMS)

def is_picture(cell): return any('image/png' in output.get('data', {}) for output in cell.get('outputs', ()))

def in_place(cells):
    "Return `cells` with the explorer around the picture at their end, which its script, where one runs, replaces."
    n = len(list(takewhile(is_picture, reversed(cells))))
    before, picture = cells[:len(cells) - n], cells[len(cells) - n:]
    cell, data = nbformat.v4.new_markdown_cell, escape(json.dumps(start()))
    opening = MARK.replace('></div>', f' data-start="{data}"><noscript>')
    return [*before, cell(opening), *picture, cell('</noscript>\n</div>')]
