"""Links and callouts in Markdown: from nbdev's and Quarto's form to those of MyST."""
import re
from pathlib import PurePosixPath

from nbdev.config import nbpath2html
from nbdev.doclinks import NbdevLookup

def local_link(url, site, known):
    """Convert a link to this site to one between its pages: to the section of one of the `known` names, or to the page.

    nbdev links every name, but only public names have sections; a method without a section links to its class."""
    path, _, anchor = url.removeprefix(site).partition('#')
    own = url.startswith(site)
    if '://' in path or not (own or path.endswith('.ipynb')): return url
    name = anchor
    while name:
        # a page's own name would be ambiguous
        if name in known and name != PurePosixPath(path).stem: return f'#{name}'
        name = name.rpartition('.')[0]
    if own: return '/' + str(PurePosixPath(path.strip('/') or 'index.html').with_suffix('.ipynb'))
    return str(PurePosixPath(nbpath2html(PurePosixPath(path))).with_suffix('.ipynb')) + (f'#{anchor}' if anchor else '')

def callouts(lines):
    "Convert Quarto's `::: {.callout-note}`, with or without a heading as its title, to MyST's admonitions."
    lines = iter(lines)
    for line in lines:
        kind = re.fullmatch(r':::+ *\{\.callout-(note|tip|warning|caution|important)\}', line.strip())
        if not kind:
            if re.match(r':::+ *\{', line): raise ValueError(f'a ::: block must be a callout, got {line}')
            yield line
            continue
        first = next(lines, '')
        title = re.fullmatch(r'#+ (.*)', first.strip())
        with_title = [f':::{{admonition}} {title[1]}', f':class: {kind[1]}', ''] if title else []
        yield from with_title or [f':::{{{kind[1]}}}', first]

def markdown(text, site, known):
    "Convert the links and callouts in some Markdown; leave code as it is."
    parts = re.split(r'(^```.*?^```$)', text, flags=re.M | re.S)
    def prose(part):
        part = re.sub(r'\]\(([^)\s]+)\)', lambda m: f']({local_link(m[1], site, known)})', part)
        return '\n'.join(callouts(part.split('\n')))
    return ''.join(part if i % 2 else prose(part) for i, part in enumerate(parts))

def linked(text):
    "Link names in backticks, as nbdev does."
    return NbdevLookup().linkify(text) or ''
