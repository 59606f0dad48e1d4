"""The pictures in notebooks: in fewer colours for git, and cut in two for the screen of a phone."""
import json
import re
from base64 import b64decode, b64encode
from io import BytesIO

import numpy as np
from PIL import Image

def opened(png): return Image.open(BytesIO(b64decode(png)))

def as_png(image):
    "Return a picture in 256 colours, which a plot looks the same in and takes a third of the bytes."
    file = BytesIO()
    image.quantize(256).save(file, 'png', optimize=True)
    return b64encode(file.getvalue()).decode()

def shrink(path):
    "Save the pictures in the notebook at `path` in 256 colours; return whether that changed any."
    text = path.read_text(encoding='utf-8')
    nb = json.loads(text)
    outputs = [out.get('data', {}) for cell in nb['cells'] for out in cell.get('outputs', [])]
    for data in [data for data in outputs if 'image/png' in data]:
        image = opened(png := ''.join(data['image/png']))
        data['image/png'] = png if image.mode == 'P' else as_png(image.convert('RGB'))
    smaller = json.dumps(nb, indent=1, ensure_ascii=False) + '\n'
    if smaller != text: path.write_text(smaller, encoding='utf-8')
    return smaller != text

def shown_width(png):
    "Return the width of a picture on the page, for which two pixels are drawn for one."
    return opened(png).width // 2

def halves(png):
    """Cut a picture that is wider than a page on a phone between its two panels; return `[left, right]`.

    Return `[png]` if it is narrow, or if there is no gap near the middle."""
    if shown_width(png) <= 600: return [png]
    pixels = np.array(opened(png).convert('RGB'))
    first, last = round(.45 * pixels.shape[1]), round(.55 * pixels.shape[1])
    white = (pixels[:, first:last] == 255).all((0, 2))
    gaps = np.flatnonzero(np.diff(white, prepend=False, append=False)).reshape(-1, 2)     # where each begins and ends
    gaps = gaps[np.diff(gaps)[:, 0] >= 8]     # those between letters are narrower
    if not len(gaps): return [png]
    cut = first + gaps[0].sum() // 2     # the next ones are between the labels of the right panel
    width = max(cut, pixels.shape[1] - cut)     # of both, so that both have the same scale
    padded = (np.pad(half, ((0, 0), pad, (0, 0)), constant_values=255) for half, pad in
              ((pixels[:, :cut], (width - cut, 0)), (pixels[:, cut:], (0, width - pixels.shape[1] + cut))))
    return [as_png(Image.fromarray(half)) for half in padded]

def alts(text):
    "Return the descriptions of the two halves of a picture that is described by `text`."
    parts = re.fullmatch(r'Left: (.*?)\. Right: (.*)', text, re.S)
    if not parts: return [f'{text}, on the left', f'{text}, on the right']
    return [part[0].upper() + part[1:] for part in parts.groups()]

def with_halves(html):
    "Cut the wide pictures in some HTML."
    def cut(found):
        pictures = halves(found[1])
        if len(pictures) == 1: return found[0]
        texts = alts(re.search(r'alt="([^"]*)"', found[0])[1])
        return ''.join(f'<img class="half" src="data:image/png;base64,{png}" alt="{alt}"/>'
                       for png, alt in zip(pictures, texts))
    return re.sub(r'<img\b[^>]*?src="data:image/png;base64,([^"]+)"[^>]*>', cut, html)
