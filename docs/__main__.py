"""Build the site into _docs/html, and write README.md.

`python -m docs readme` only does the latter. `python -m docs pictures` saves the pictures in notebooks in fewer
colours: run it after `nbdev-test --save`."""
import argparse
import os
import shutil
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]

def processed(only=''):
    "Return the notebooks (or those named `only`) as nbdev processes them for its site, `{path within nbs: notebook}`."
    import nbformat
    from nbdev.serve import proc_nbs
    with warnings.catch_warnings():
        # nbdev runs such cells, including their other lines
        warnings.filterwarnings('error', 'Found cells containing imports')
        folder = proc_nbs(force=True, file_glob=only, n_workers=0)     # fastai is imported once, not once per worker
    return {path.relative_to(folder): nbformat.v4.reads(path.read_text(encoding='utf-8'))
            for path in sorted(folder.rglob('*.ipynb'))}

def write_readme(notebooks, cfg):
    from docs.readme import readme
    text, pictures = readme(notebooks[Path('index.ipynb')], cfg.doc_url)
    (ROOT / 'README.md').write_text(text, encoding='utf-8')
    for path, data in pictures.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_bytes(data)

def write_pages(notebooks, cfg, folder):
    "Write the pages for Sphinx."
    import nbformat
    import yaml
    from nbdev.config import nbpath2html
    from docs.bridge import api_sections, page, toctree
    site, lib = cfg.doc_url, cfg.lib_path.name
    known = {name.lower() for nb in notebooks.values() for shown in api_sections(nb, lib).values() for name in shown}
    for path, nb in notebooks.items():
        out = page(nb, lib, site, known)
        if path.name == 'index.ipynb':
            sidebar = yaml.safe_load((cfg.nbs_path / 'sidebar.yml').read_text(encoding='utf-8'))
            out.cells.append(nbformat.v4.new_markdown_cell(toctree(sidebar, cfg.nbs_path)))
        target = folder / nbpath2html(path).with_suffix('.ipynb')
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(out, target)

def main():
    parser = argparse.ArgumentParser(prog='python -m docs', description=__doc__)
    parser.add_argument('what', nargs='?', choices=['readme', 'pictures'], help='what to do instead of all that')
    what = parser.parse_args().what
    os.chdir(ROOT)
    if what == 'pictures':
        from docs.pictures import shrink
        for path in sorted((ROOT / 'nbs').rglob('*.ipynb')): shrink(path)
        return 0
    from nbdev.config import get_config
    cfg = get_config()
    print('Processing the notebooks with nbdev')
    notebooks = processed('index.ipynb' if what else '')
    print('Writing README.md')
    write_readme(notebooks, cfg)
    if what: return 0
    from sphinx.cmd.build import main as sphinx
    source, out = ROOT / '_site_src', ROOT / '_docs'
    for folder in (source, out): shutil.rmtree(folder, ignore_errors=True)
    print(f'Building {len(notebooks)} pages with Sphinx')
    write_pages(notebooks, cfg, source)
    failed = sphinx([*'-W --keep-going -n -q -E -b html'.split(), '-c', str(ROOT / 'docs'), '-d', str(out / 'doctrees'),
                     str(source), str(out / 'html')])
    print('Failed: see the warnings above' if failed else f'The site is at {out / "html/index.html"}')
    return failed

if __name__ == '__main__': sys.exit(main())
