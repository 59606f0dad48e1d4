"""Sliders over a plan, in a notebook: `OneCyclePlan.explore`"""

# What a plan is, this module knows only from the plan itself: `replace` makes another one, which draws itself, on axes
# of its own unit, and says which call trains with it. So it can stand below the plans, which have a method for it.
# (In a longer docstring, nbdev would copy this into `__init__`.)

from dataclasses import replace
from html import escape
from math import inf

import matplotlib.pyplot as plt
import numpy as np

def _with_values(plan, max_lr, cycle_len=1, **changes):
    "Return `plan` with `changes` to its schedule and `max_lr` for the last group; the ratios between groups stay."
    peaks = plan.at([plan.peak])[0][0]
    peaks = (*(peaks[:-1] * (max_lr / peaks[-1])).tolist(), max_lr)
    schedule = replace(plan.schedule, max_lr=peaks if len(peaks) > 1 else max_lr, **changes)
    return replace(plan, n_epoch=cycle_len, schedule=schedule)

def slider_stops(
    plan # A `OneCyclePlan`
) -> dict: # `{name: (value, stops)}`
    """Return the value of `plan`, and the stops of a slider, for each argument.

    The value is always one of the stops, so that moving another slider doesn't round it. `max_lr` and `cycle_len` go up
    to 1.5 times the plan's value: on axes for a rate ten times as high, nothing would be seen of the others."""
    s, peak = plan.schedule, float(plan.at([plan.peak])[0][0, -1])
    divs, ends = max(25., s.div_factor), {10. ** k for k in range(7)} | {s.final_div or 1., inf}
    def parts(whole, n, last): return {float(f'{whole * k / n:.6g}') for k in range(1, last + 1)}
    lengths = dict(cycle_len=(plan.n_epoch, range(1, max(5, 3 * plan.n_epoch // 2) + 1)))
    return dict(
        **(lengths if 'cycle_len' in plan.length else {}),
        max_lr=(peak, sorted(parts(peak, 20, 30) - {float(f'{peak:.6g}')} | {peak})),
        div_factor=(s.div_factor, sorted(parts(divs, 25, 100) | {1., s.div_factor})),
        pct_start=(s.pct_start, sorted(parts(1, 100, 100) | {0., s.pct_start})),
        final_div=(str(s.final_div), ['None', *map(str, sorted(ends))]))

def _control(widgets, name, value, stops):
    "Return an ipywidgets slider, or a text field, for the argument `name`."
    looks = dict(description=name, layout=widgets.Layout(width='32em'), style=dict(description_width='6em'))
    if name == 'final_div': return widgets.Combobox(value=value, options=stops, continuous_update=False, **looks)
    # Sliders of numbers, since a screen reader would read the position in the list from a slider of a list of stops
    ends = dict(min=stops[0], max=stops[-1])
    if name == 'cycle_len': return widgets.IntSlider(value, **ends, **looks)
    step = float(f'{stops[-1] - stops[-2]:.6g}')
    return widgets.FloatSlider(value, step=step, readout_format='.4g', **ends, **looks)

def _typed(text):
    "Return the number, or `None`, that `text` says, or `text` itself."
    try: return None if text == 'None' else float(text)
    except ValueError: return text

def _values(controls, stops):
    "Return the arguments that `controls` stand at: the stops that are closest, since a browser rounds in its own way."
    def value(name, at):
        return _typed(at) if name == 'final_div' else min(stops[name][1], key=lambda stop: abs(stop - at))
    return {name: value(name, control.value) for name, control in controls.items()}

def _limits(plan):
    "Return the limits of the axes of each panel, within which all moves from `plan` can be drawn."
    reach = {name: stops[-1] for name, (_, stops) in slider_stops(plan).items() if name in ('cycle_len', 'max_lr')}
    # A peak in the middle leaves room for all three momentums, and a millionth of it is as good as 0
    axes = np.ravel(_with_values(plan, pct_start=.5, final_div=1e6, **reach).plot())
    plt.close(axes[0].figure)
    return [dict(xlim=ax.get_xlim(), ylim=ax.get_ylim()) for ax in axes]

def _page(plan, values, limits):
    "Return `plan` with the `values` of the controls as HTML, drawn within `limits`."
    try: plan = _with_values(plan, **values)
    except (TypeError, ValueError) as e: return f'<p>{escape(str(e))}</p>'
    table, picture = plan.parts(limits)
    return f'<code>{escape(plan.call)}</code><br>{picture}{table}'

def sliders(
    plan # A `OneCyclePlan`, which stays as it is
): # An ipywidgets box, which a notebook shows
    "Return controls above the picture and the table of `plan`; raises `ImportError` if ipywidgets is missing."
    try: import ipywidgets as widgets
    except ImportError:
        raise ImportError("explore needs ipywidgets: pip install 'onecycle_callback[explore]'") from None
    stops, limits, page = slider_stops(plan), _limits(plan), widgets.HTML()
    controls = {name: _control(widgets, name, *each) for name, each in stops.items()}
    def draw(_=None): page.value = _page(plan, _values(controls, stops), limits)
    for control in controls.values(): control.observe(draw, 'value')
    draw()
    return widgets.VBox([*controls.values(), page])
