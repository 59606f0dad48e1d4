"""`python docs/readme.py` writes README.md and its picture from nbs/index.ipynb; nbdev's own command for it needs Quarto."""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
IMAGES = 'docs/images'

def readable(nb):
    "`nb` without hidden cells and without the source of cells that only show something."
    cells = []
    for cell in nb.cells:
        if cell.cell_type == 'code':
            if re.search(r'^#\|\s*hide\b', cell.source, re.M): continue
            alt = re.search(r"^#\|\s*fig-alt:\s*'(.*)'", cell.source, re.M)
            cell.metadata.alt = alt[1] if alt else ''
            if re.search(r'^#\|\s*echo:\s*false', cell.source, re.M): cell.source = ''
        cells.append(cell)
    nb.cells = cells
    return nb

def readme(root=ROOT):
    "README.md as text, and its pictures as `{path: bytes}`."
    nb = readable(nbformat.read(root / 'nbs/index.ipynb', as_version=4))
    alts = [c.metadata.alt for c in nb.cells if c.cell_type == 'code' and any('image/png' in o.get('data', {}) for o in c.outputs)]
    text, resources = MarkdownExporter().from_notebook_node(nb)
    pictures = {}
    for i, (name, data) in enumerate(resources['outputs'].items()):
        path = f'{IMAGES}/readme_{i}.png'
        pictures[path] = data
        text = re.sub(rf'!\[[^\]]*\]\({re.escape(name)}\)', f'![{alts[i]}]({path})', text)
    text = re.sub(r'<style scoped>.*?</style>\s*', '', text, flags=re.S)
    text = re.sub(r'```\w*\s*```\s*', '', text)
    text = '<!-- Made from nbs/index.ipynb by docs/readme.py: edit the notebook. -->\n\n' + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    return text, pictures

if __name__ == '__main__':
    text, pictures = readme()
    (ROOT / 'README.md').write_text(text)
    (ROOT / IMAGES).mkdir(parents=True, exist_ok=True)
    for path, data in pictures.items(): (ROOT / path).write_bytes(data)
