"""How a plan or a record is drawn, and how it becomes a table"""

from base64 import b64encode
from io import BytesIO
from itertools import count

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter

HYPER_NAMES = dict(lr='learning rate', mom='momentum', wd='weight decay', sqr_mom='squared momentum', eps='epsilon')

MOST_POINTS = 1200   # More than a picture of the usual size has pixels
THREE_DIGITS = '{:.3g}'.format
PREVIEW = (7.6, 3.)   # Width and height in inches of a picture next to a table: its smallest type has 11 pixels

def batches_to_draw(
    n:int, # Number of batches
    keep=(), # Batches to draw in any case; those outside of 0 to `n-1` are left out
    most:int=MOST_POINTS # How many to draw apart from `keep`
) -> np.ndarray: # Batch numbers in rising order
    "Return which of `n` batches to draw: all if there are at most `most`, otherwise some at equal distances."
    if n <= most: return np.arange(n)
    keep = np.asarray(keep, int)
    # No picture shows more points than it has pixels; the curve is smooth between them, and turns at those in `keep`
    return np.union1d(np.linspace(0, n - 1, most).round().astype(int), keep[(0 <= keep) & (keep < n)])

def extremes(
    values, # A list of numbers
    most:int=MOST_POINTS # Number of stretches
) -> np.ndarray: # Places in `values`
    "Return the places of the smallest and the largest number in each of `most` stretches of `values`."
    edges = batches_to_draw(len(values) + 1, most=most + 1).tolist()
    # What another scheduler recorded needn't be smooth: a single batch may stand out
    places = []
    for start, stop in zip(edges, edges[1:]):
        stretch = np.array(values[start:stop], float)
        places += [start + stretch.argmin(), start + stretch.argmax()]
    return np.unique(places)

def _mark_step(n, most=12):
    "Return the smallest of 1, 2, 5, 10, 20, … that leaves at most `most` of `n` marks."
    return next(step for k in count() for step in (10**k, 2 * 10**k, 5 * 10**k) if n <= most * step)

def epochs_to_mark(
    epochs:dict # The batch at which each epoch begins, `{epoch: batch}`
) -> dict: # Some of them, or all if there are few
    "Return the `epochs` that a picture marks."
    return dict(list(epochs.items())[::_mark_step(len(epochs))])

def _mark_epochs(ax, epochs):
    "Draw a dotted line where each of `epochs` begins, with its number above; some of them if there are many."
    shown = epochs_to_mark(epochs)     # hundreds of lines would make a grey wall
    for x in shown.values(): ax.axvline(x, color='0.85', lw=0.8, ls=':', zorder=0)
    top = ax.secondary_xaxis('top')
    top.set_xticks(list(shown.values()), [str(e) for e in shown])
    top.tick_params(length=0, labelsize='small', labelcolor='0.45')
    top.set_xlabel('epoch', fontsize='small', color='0.45')

def _differing(values):
    "Return the numbers of the columns of `values`, shape (n, groups), without those that repeat an earlier one."
    first:dict[bytes, int] = {}
    for group, column in enumerate(values.T): first.setdefault(column.tobytes(), group)
    return list(first.values())

def _draw_lines(ax, x, values):
    "Draw a line for each column of `values`, shape (n,) or (n, groups), that differs from the others."
    values = np.asarray(values, float).reshape(len(x), -1)
    groups = np.array(_differing(values))
    # Six names fit into a legend: the first group, the last, and some between them
    named = set(groups[np.linspace(0, len(groups) - 1, min(6, len(groups))).astype(int)].tolist())
    colors = ['C0'] if len(groups) == 1 else plt.cm.viridis(np.linspace(0, 0.9, len(groups)))
    point = dict(marker='.') if len(x) < 40 else {}     # so that each of a few batches is seen
    for group, color in zip(groups.tolist(), colors):
        ax.plot(x, values[:, group], color=color, label=f'group {group}' if group in named else None, **point)
    place = 'best' if values.size < 10**5 else 'upper right'   # the best place is searched for among all points
    title = 'parameter group' if len(groups) > 6 else None
    if len(groups) > 1: ax.legend(fontsize='small', title=title, loc=place)

def _mark_peak(ax, x, values, peak, unit):
    "Mark `peak`, if it is one of `x`, with the value of the last group there."
    at = np.flatnonzero(x == peak)
    if not len(at): return
    last = np.asarray(values, float).reshape(len(x), -1)[:, -1]
    y = float(last[at[0]])
    above = y >= last[-1]     # a hill's top, not a valley's bottom
    ax.plot(peak, y, 'o', color='C3', zorder=3)
    ax.annotate(f'{y:.4g} at {unit} {round(peak, 2)}', (peak, y), xytext=(8, 6 if above else -12),
                textcoords='offset points', fontsize='small', color='C3')

def _panels(n, ax, figsize):
    "Return `n` axes, those given or new ones; raises `ValueError` if `ax` isn't `n` axes."
    if ax is not None:
        axes = np.ravel(ax).tolist()
        if len(axes) != n: raise ValueError(f'ax must be {n} axes, one for each picture, got {len(axes)}')
        return axes
    rows, cols = -(-n // 2), min(n, 2)     # two side by side
    _, axes = plt.subplots(rows, cols, figsize=figsize or (4.6 * cols, 3.2 * rows), squeeze=False, layout='constrained')
    axes = axes.ravel().tolist()
    for empty in axes[n:]: empty.remove()
    return axes[:n]

def plot_hypers(
    hypers:dict, # Values of each hyper-parameter under its fastai name (`lr`, `mom`, …), shape (n,) or (n, groups)
    batches=None, # Batch number of each value, shape (n,); default 0, 1, 2, …
    epochs:dict|None=None, # The batch at which each epoch begins, `{epoch: batch}`
    peak:float|None=None, # The batch to mark as the peak
    ax=None, # Axes to draw on, one for each hyper-parameter; default new ones
    figsize:tuple[float, float]|None=None, # Width and height of new axes in inches
    unit:str='batch' # What `batches`, `epochs` and `peak` are counted in
): # The axes: a single one, or a list
    "Draw each hyper-parameter over the batches in its own panel; raises `ValueError` for none, or if `ax` doesn't fit."
    if not hypers: raise ValueError('hypers must hold at least one hyper-parameter, got none')
    axes = _panels(len(hypers), ax, figsize)
    for panel, (name, values) in zip(axes, hypers.items()):
        x = np.arange(len(values)) if batches is None else np.asarray(batches)
        _draw_lines(panel, x, values)
        panel.set(xlabel=unit, ylabel=HYPER_NAMES.get(name, name))
        panel.margins(y=0.12)
        panel.xaxis.get_major_locator().set_params(integer=x.dtype.kind in 'iu')
        if x[-1] >= 10**6: panel.xaxis.set_major_formatter(EngFormatter(sep=''))   # 2M, not 0.2 with 1e7 in a corner
        if epochs: _mark_epochs(panel, epochs)
        if name in ('lr', 'mom'): _mark_peak(panel, x, values, peak, unit)     # what the cycle sets
    return axes[0] if len(axes) == 1 else axes

def join_pictures(
    pictures:list[dict], # Arguments of `plot_hypers`, of trainings of which each follows the one before
    lengths:list[int] # Number of batches of each
) -> dict: # Arguments of `plot_hypers`
    "Return one picture of several trainings; the epochs of all but the last have a letter: a0, a1, …"
    firsts = np.cumsum([0, *lengths])
    epochs = {f'{chr(97 + k)}{epoch}' if k + 1 < len(pictures) else epoch: first + batch
              for k, (first, picture) in enumerate(zip(firsts.tolist(), pictures))
              for epoch, batch in picture['epochs'].items()}
    hypers = {name: np.concatenate([picture['hypers'][name] for picture in pictures]) for name in pictures[0]['hypers']}
    batches = np.concatenate([first + np.asarray(picture['batches']) for first, picture in zip(firsts, pictures)])
    peak = pictures[-1].get('peak')
    return dict(hypers=hypers, batches=batches, epochs=epochs, peak=None if peak is None else int(firsts[-2] + peak))

def join_frames(
    frames:dict # Tables of one row per batch, of trainings of which each follows the one before, by name
) -> pd.DataFrame: # The same columns after `cycle`, the name
    "Return one table of several trainings, with the batches counted over all of them."
    n, shifted = 0, {}
    for name, frame in frames.items():
        shifted[name] = frame.assign(batch=frame.batch + n)
        n += len(frame)
    return pd.concat(shifted, names=['cycle']).reset_index('cycle').reset_index(drop=True)

def figure_html(
    fig, # A matplotlib figure, which is closed
    alt:str # A description, for readers who can't see it
) -> str: # An HTML image
    "Return `fig` as an image embedded in HTML, with two pixels for one of the page, of which an inch has 96."
    png, width = BytesIO(), round(96 * fig.get_figwidth())
    fig.savefig(png, format='png', dpi=2 * 96)
    plt.close(fig)
    return f'<img alt="{alt}" width="{width}" src="data:image/png;base64,{b64encode(png.getvalue()).decode()}"/>'

def batch_frame(
    places:dict, # The first columns, which say where each batch is, shape (n,)
    **columns # Values per batch by name, shape (n,) or (n, groups); `None` is left out
) -> pd.DataFrame: # A column for each name, or `name_0`, `name_1`, … where there are several groups
    "Return values per batch as a table."
    frame, n = dict(places), len(next(iter(places.values())))
    for name, values in columns.items():
        if values is None: continue
        groups = np.asarray(values, float).reshape(n, -1).T
        frame |= {name: groups[0]} if len(groups) == 1 else {f'{name}_{i}': group for i, group in enumerate(groups)}
    return pd.DataFrame(frame)

def _shown(table, row):
    "Return the first, the last and the rows around `row` of a table of many, with a row of `nan` for each gap."
    n, most = len(table), pd.options.display.max_rows
    if not most or n <= most: return table
    shown = [i for i in range(n) if i < 5 or abs(i - row) <= 2 or i >= n - 5]
    with_gaps = [label for before, i in zip([-1, *shown], shown)
                 for label in ['...'] * (i > before + 1) + [table.index[i]]]
    return table.reindex(with_gaps)

def table_html(
    table:pd.DataFrame, # One row per epoch
    row:int # A row to show in any case, with its neighbours
) -> str: # An HTML table
    "Return `table` as HTML with three digits; of many rows the first, the last and those around `row`."
    return _shown(table, row).to_html(na_rep='...', float_format=THREE_DIGITS)

def table_text(
    table:pd.DataFrame, # One row per epoch
    row:int # A row to show in any case, with its neighbours
) -> str: # Lines of text
    "Return `table` as text, as `table_html` does."
    return _shown(table, row).to_string(na_rep='...', float_format=THREE_DIGITS)
