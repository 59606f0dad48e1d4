"""Sphinx's settings for the pages that `python -m docs` makes."""
from docutils.utils.math.latex2mathml import tex2mathml

from onecycle_callback import __version__

project = 'onecycle_callback'
html_title = f'{project} {__version__}'
extensions = ['myst_nb']
nb_execution_mode = 'off'
nb_ipywidgets_js = {}
myst_heading_anchors = 3
myst_enable_extensions = ['attrs_inline', 'colon_fence', 'deflist', 'dollarmath']
html_theme = 'furo'
html_static_path = ['static']
html_css_files = ['site.css']
html_copy_source = False
html_show_copyright = False
html_math_renderer = 'mathml'

def setup(app):
    "Formulas as MathML, which browsers draw themselves: no script out of the network."
    def visit(block):
        def f(self, node):
            self.body.append(tex2mathml(node.astext(), as_block=block))
            raise SkipNode
        return f
    from docutils.nodes import SkipNode
    app.add_html_math_renderer('mathml', (visit(False), None), (visit(True), None))
