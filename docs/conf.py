"""Sphinx's settings for the pages that `python -m docs` makes."""
import re

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

from onecycle_callback import __version__

project = 'onecycle_callback'
version = release = __version__
html_title = f'{project} {version}'
extensions = ['myst_nb', 'sphinx_copybutton']
copybutton_selector = 'div.cell_input pre, div.highlight-python pre, div.highlight-sh pre'   # code, not its output
smartquotes_action = 'qe'   # as by default, but two hyphens stay what they are, as in `--cycle_len`
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'   # outputs too may hold tables
nb_ipywidgets_js = {}   # would come from the network, and do nothing without a kernel
myst_heading_anchors = 3
myst_enable_extensions = ['attrs_block', 'attrs_inline', 'colon_fence', 'deflist', 'dollarmath']
html_theme = 'furo'
html_static_path = ['static']
html_css_files = ['site.css']
html_copy_source = False
html_use_index = False   # the pages list every name
html_show_copyright = False
html_math_renderer = 'mathml'

def draw(as_block):
    "Write a formula as MathML, which browsers render without a script from the network."
    def visit(self, node):
        self.body.append(tex2mathml(node.astext(), as_block=as_block))
        raise SkipNode
    return visit, None

def add_explorer(app, page, template, context, doctree):
    "Load the explorer's files on the pages that have one."
    if 'class="onecycle-explorer"' not in context.get('body', ''): return
    app.add_css_file('explorer.css')
    app.add_js_file('explorer.js', loading_method='defer')

def breakable(html):
    """Let a line of a table break between the words of a name, as in `three_phase` and `MixUp`, and nowhere else in it.

    Only on a phone: elsewhere site.css hides these breaks."""
    between_words = r'(?<=\w[_.=/(,:])(?=[^\W\d])|(?<=[a-zA-Z])(?=[A-Z][a-z])'
    def with_breaks(found): return re.sub(between_words, '<wbr/>', found[0])
    def in_code(found): return re.sub(r'(?<=<span class="pre">)[^<]+', with_breaks, found[0])
    return re.sub(r'<table.*?</table>', in_code, html, flags=re.S)

def let_names_break(app, page, template, context, doctree):
    if 'body' in context: context['body'] = breakable(context['body'])

def setup(app):
    app.add_html_math_renderer('mathml', draw(as_block=False), draw(as_block=True))
    app.connect('html-page-context', add_explorer)
    app.connect('html-page-context', let_names_break)
