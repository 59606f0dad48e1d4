"The explorer on the site's pages: what its script, `static/explorer.js`, starts with, and what is there without it."
import json
from base64 import b64encode
from html import escape
from io import BytesIO

import matplotlib.pyplot as plt
import nbformat

from onecycle_callback import OneCycleSchedule
from onecycle_callback.explore import slider_stops
from onecycle_callback.schedule import MOMS

MARK = '<div class="onecycle-explorer"></div>'   # in a notebook's Markdown: the place of the explorer on the page
PLAN = OneCycleSchedule(max_lr=0.1).plan(n_epoch=10, n_batch=22)   # the forum's call, on the tutorial's data
ALT = 'The learning rate rises from 0.004 to 0.1 at batch 66 of 220, and falls to 0.004; momentum mirrors it'
N_BATCHES = (1, 2, 5, 10, 15, PLAN.n_batch, 30, 50, 100, 200, 500, 1000)

def start():
    "Return what the explorer starts with: the values and the stops of its sliders, those of `explore`, as text."
    sliders = slider_stops(PLAN) | dict(n_batch=(PLAN.n_batch, N_BATCHES))
    return dict(values={name: str(value) for name, (value, _) in sliders.items()},
                stops={name: list(map(str, stops)) for name, (_, stops) in sliders.items()}, moms=MOMS)

def picture():
    "Return a cell that shows the plan."
    png = BytesIO()
    figure, panels = plt.subplots(2, figsize=(6, 5.4), layout='constrained')
    PLAN.plot(panels)
    figure.savefig(png, format='png', dpi=144)
    plt.close(figure)
    data = {'image/png': b64encode(png.getvalue()).decode()}
    metadata = dict(tags=['remove-input'], mystnb=dict(image=dict(alt=ALT, width='432px')))
    output = nbformat.v4.new_output('display_data', data)
    return nbformat.v4.new_code_cell('plan.plot()', outputs=[output], metadata=metadata)

def cells():
    "Return the cells of the explorer. Its script, where one runs, replaces what is between the first and the last."
    cell, data = nbformat.v4.new_markdown_cell, escape(json.dumps(start()))
    opening = MARK.replace('></div>', f' data-start="{data}"><noscript>')
    return [cell(opening), picture(), cell('</noscript>\n</div>')]
