"""Make README.md and its images from nbs/index.ipynb; nbdev's own command for this needs Quarto."""
import re
from copy import deepcopy

import nbformat
from nbconvert import MarkdownExporter
from nbdev.readme_filter import doc_link

from docs.bridge import WARNING, frontmatter, one_header, options
from docs.explorer import MARK, is_picture

IMAGES = 'docs/images'

def readable(nb):
    "Drop nbdev's first cells from `nb`, and the source of cells that only show something."
    cells = []
    for cell in deepcopy(nb.cells[1:]):
        if cell.source.strip() == WARNING: continue
        if cell.cell_type == 'code':
            opts, source = options(cell.source)
            cell.metadata.alt = opts.get('fig-alt', '')
            cell.source = source if opts.get('echo', True) else ''
        if cell.source.strip() != MARK: cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells)

def readme(nb, site):
    """Return README.md as text, and its images as `{path: bytes}`, from nbdev's index notebook; links lead to `site`.

    The first picture comes after the first cell."""
    about, nb = frontmatter(nb), readable(nb)
    first = next(filter(is_picture, nb.cells), None)
    opening = [nb.cells[0], first]
    nb.cells = sorted(nb.cells, key=lambda cell: opening.index(cell) if cell in opening else len(opening))
    alts = [cell.metadata.alt for cell in nb.cells if is_picture(cell)]
    text, resources = MarkdownExporter().from_notebook_node(nb)
    pictures = {}
    for i, (name, data) in enumerate(resources['outputs'].items()):
        path = f'{IMAGES}/readme_{i}.png'
        pictures[path] = data
        text = re.sub(rf'!\[[^\]]*\]\({re.escape(name)}\)', f'![{alts[i]}]({path})', text)
    text = re.sub(r'<style scoped>.*?</style>\s*', '', text, flags=re.S)
    text = re.sub(r'```\w*\s*```\s*', '', one_header(text))
    text = re.sub(r'(?<!\!)(\[[^]]*\])\(([^)\s]+)\)', lambda m: f'{m[1]}({doc_link(m[2], site)})', text)
    text = f'# {about["title"]}\n\n> {about["description"]}\n\n{text}'
    text = re.sub(r'\n[ \n]*\n', '\n\n', text).strip()
    return f'<!-- Made from nbs/index.ipynb by `python -m docs`: edit the notebook. -->\n\n{text}\n', pictures
