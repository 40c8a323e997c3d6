"""What libjpeg's warnings say: how often the pixels are wrong where it warns.

    python benchmarks/jpeg_warnings.py [FOLDER] [CASES]

FOLDER: JPEGs, by default those of ../shared/media beside the checkout; CASES: damaged copies of each image and kind,
by default 40. Damages: one bit flipped in the coded data; the end cut off; two stray bytes between header segments (what
`jpeg_header` mends). Every copy is decoded strictly, as `build` does it; where that warns, leniently too, and compared
with the whole image, 160 x 160 px. Printed: warnings (numbers left out) with the share of wrong images, and what is left
of them once headers are mended.
"""

import random
import re
from collections import Counter

import numpy as np
from harness import SHARED, read, say_where

from patchpack.pipeline.media import DecodeError
from patchpack.pipeline.media.image import decode as image
from patchpack.pipeline.media.image import jpeg_header

SIDE = 160


def damaged(data: bytes, kind: str, generator: random.Random) -> bytes:
    """Returns a damaged copy of a JPEG."""
    scan = data.index(b"\xff\xda") + 14
    if kind == "flipped bit":
        place = generator.randrange(scan, len(data) - 2)
        return data[:place] + bytes([data[place] ^ (1 << generator.randrange(8))]) + data[place + 1 :]
    if kind == "cut":
        return data[: generator.randrange(scan, len(data) - 2)]
    ends = [match.start() for match in re.finditer(rb"\xff[\xdb\xc4\xc0]", data[:scan])]
    place = generator.choice(ends)
    return data[:place] + bytes([0, generator.randrange(1, 255)]) + data[place:]


def main() -> None:
    """Prints the table."""
    values = read(__doc__, folder=SHARED / "media/images", cases=40)
    folder, cases = values.folder, values.cases
    say_where()
    generator = random.Random(0)
    seen: dict[str, Counter[str]] = {}
    for path in sorted(folder.glob("*.jpg")):
        whole = path.read_bytes()
        try:
            sound_THWC = image.decode(whole, SIDE, SIDE, "exact")[0]
        except DecodeError:
            continue
        for kind in ("flipped bit", "cut", "stray bytes"):
            for _ in range(cases):
                data, warned = damaged(whole, kind, generator), []
                mended = jpeg_header.cleaned(data) is not None
                try:
                    shown_THWC = image.decode(data, SIDE, SIDE, "exact", warned=warned)[0]
                except DecodeError:
                    continue
                if not warned and not (mended and kind == "stray bytes"):
                    continue
                text = re.sub(r"\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b", "N", warned[0]) if warned else "(mended header)"
                wrong = not np.array_equal(shown_THWC, sound_THWC)
                seen.setdefault(f"{kind:<12} {text}", Counter()).update(cases=1, wrong=int(wrong))
    for name, counts in sorted(seen.items(), key=lambda item: -item[1]["cases"]):
        print(f"{counts['cases']:6} cases, {counts['wrong'] / counts['cases']:7.2%} wrong  {name}")


if __name__ == "__main__":
    main()
