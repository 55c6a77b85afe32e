"""What the first picture of each kind would wait for."""

from __future__ import annotations

import io

from PIL import Image

from mate_edge.images import Preprocessing, crop, decode

KINDS = ("JPEG", "PNG")


def load_decoders(preprocessing: Preprocessing) -> None:
    """Decode and scale a small picture of each of `KINDS`: Pillow's first takes 20 ms.

    The first of any other kind would wait 50 ms until Pillow has imported them all.
    """
    Image.init()
    for kind in KINDS:
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64)).save(buffer, kind)
        crop(decode(buffer.getvalue(), kind, preprocessing), preprocessing, kind)
