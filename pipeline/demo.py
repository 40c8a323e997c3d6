"""Draws the sample media of the first run: 44 images and 4 clips in four class folders, nothing downloaded.

Classes differ by what is drawn (circles, stripes, triangles, checks) and share colours, so that a small classifier
has to look at shapes. Sizes, aspect ratios, formats, colour modes and orientation tags cycle with coprime periods,
so that every class meets a mixture of all of them. Takes about two seconds; a second call only looks for the names.
"""

import io
import math
import os
import random
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import av
from PIL import Image, ImageDraw, ImageFont

from patchpack.options import Parser
from patchpack.pipeline.storage import files

NUM_IMAGES = 44

# (height, width) ratios, both ends of what the demo promises among them; 17 of them, coprime to the other periods
_ASPECTS = (
    *((1, 1), (1, 6), (3, 2), (2, 3), (4, 1), (3, 4), (9, 16), (1, 2), (5, 4)),
    *((6, 1), (2, 1), (4, 3), (1, 3), (16, 9), (4, 5), (1, 4), (3, 1)),
)
# (suffix, mode); 11 of them
_STYLES = (
    *(("jpg", "RGB"), ("png", "RGBA"), ("jpg", "RGB"), ("webp", "RGB"), ("jpg", "L"), ("png", "P")),
    *(("jpg", "RGB"), ("png", "RGB"), ("webp", "RGBA"), ("jpg", "RGB"), ("png", "L")),
)
# EXIF orientation tags, 1 = none written; 15 of them
_ORIENTATIONS = (1, 6, 1, 3, 1, 8, 1, 2, 1, 4, 1, 5, 1, 7, 1)
# what turns an upright image into the one that a camera would store under the tag
_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# (background top, background bottom, shapes...)
_PALETTES = (
    ("#fdf6e3", "#f4e3c1", "#d1495b", "#edae49", "#00798c", "#30638e"),
    ("#14213d", "#1f3a5f", "#fca311", "#e5e5e5", "#8ecae6", "#ff6b6b"),
    ("#eaf4f4", "#cce3de", "#6b9080", "#2f4858", "#f28482", "#f6bd60"),
    ("#2b2d42", "#53354a", "#ef8354", "#f7ede2", "#84a59d", "#f5cac3"),
    ("#fff1e6", "#ffd7ba", "#7b2cbf", "#3a86ff", "#ff006e", "#fb5607"),
)
# images are drawn this many times larger and reduced, which smooths their edges
_OVERSAMPLING = 2


class Clip(NamedTuple):
    """One video to draw."""

    name: str
    rate: Fraction
    num_frames: int
    height: int
    width: int


_CLIPS = (
    Clip("circles/bouncing.mp4", Fraction(24), 72, 180, 320),
    Clip("stripes/drifting.mkv", Fraction(10), 24, 240, 160),
    Clip("triangles/turning.mov", Fraction(30), 75, 176, 176),
    Clip("checks/sliding.mp4", Fraction(25, 2), 42, 128, 288),
)


def draw_media(folder: str) -> int:
    """Draws the files that are not there yet, and returns how many there are in all.

    Args:
        folder: where to; class folders are made below it.

    Raises:
        OSError: it cannot be written.
    """
    makers: dict[str, Callable[[], bytes]] = {}
    for number in range(NUM_IMAGES):
        makers[_image_name(number)] = partial(_image, number)
    for number, clip in enumerate(_CLIPS):
        makers[clip.name] = partial(_video, clip, number)
    for name, make in makers.items():
        path = files.join(folder, name)
        if not files.exists(path):
            files.make_folder(os.path.dirname(path))
            files.write(path, make())
    return len(makers)


def main(arguments: list[str] | None = None) -> int:
    """Draws into the folder named on the command line; returns the exit status."""
    parser = Parser(
        prog="python -m patchpack.pipeline.demo", description="Draws sample images and videos into class folders."
    )
    parser.add_argument("folder", help="where to; what is there already is kept")
    folder = parser.parse_args(arguments).folder
    try:
        count = draw_media(folder)
    except OSError as error:
        print(
            f"{folder}: {error.strerror or error}; sample media are drawn there; name another folder", file=sys.stderr
        )
        return 1
    print(f"{folder}: {count} files")
    return 0


def _image_name(number: int) -> str:
    height, width = _aspect(number)
    suffix, _ = _STYLES[number % len(_STYLES)]
    return f"{_class_name(number)}/{number:02}_{height}x{width}.{suffix}"


def _class_name(number: int) -> str:
    return list(_SHAPES)[number % len(_SHAPES)]


def _aspect(number: int) -> tuple[int, int]:
    return _ASPECTS[number % len(_ASPECTS)]


def _image(number: int) -> bytes:
    """Returns the file of one image."""
    rows, columns = _aspect(number)
    suffix, mode = _STYLES[number % len(_STYLES)]
    orientation = _ORIENTATIONS[number % len(_ORIENTATIONS)]
    side = (120 + number * 37 % 260) * (2 if number % len(_STYLES) == 0 else 1)
    # whole multiples keep the aspect exact, the ends 1:6 and 6:1 above all
    unit = max(1, round(side / math.sqrt(rows * columns)))
    image = _drawn(_class_name(number), rows * unit, columns * unit, seed=number, time=0.0, clear=mode == "RGBA")
    image = image.convert("RGB").quantize(48) if mode == "P" else image.convert(mode)
    options: dict[str, int | Image.Exif] = {}
    options |= {"jpg": {"quality": 88}, "png": {}, "webp": {"quality": 85, "method": 2}}[suffix]
    if orientation != 1:
        image = image.transpose(_STORED[orientation])
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix], **options)
    return buffer.getvalue()


def _video(clip: Clip, number: int) -> bytes:
    """Returns the file of one clip."""
    class_name, _, name = clip.name.partition("/")
    buffer = io.BytesIO()
    container_format = {"mp4": "mp4", "mkv": "matroska", "mov": "mov"}[name.rpartition(".")[2]]
    has_x264 = "libx264" in av.codecs_available
    # bitexact: Matroska would otherwise draw an identity by chance
    with av.open(buffer, "w", format=container_format, options={"fflags": "+bitexact"}) as container:
        # one thread: the bytes then do not depend on the machine's cores; and no macroblock tree, whose AVX-512 code
        # gives other bytes at every call
        x264 = {"preset": "veryfast", "crf": "26", "x264-params": "mbtree=0"}
        options = {"threads": "1", **(x264 if has_x264 else {"qscale": "5"})}
        stream = container.add_stream("libx264" if has_x264 else "mpeg4", rate=clip.rate, options=options)
        stream.height, stream.width, stream.pix_fmt = clip.height, clip.width, "yuv420p"
        for index in range(clip.num_frames):
            time = float(index / clip.rate)
            image = _drawn(class_name, clip.height, clip.width, seed=100 + number, time=time, clear=False)
            container.mux(stream.encode(av.VideoFrame.from_image(image.convert("RGB"))))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _drawn(class_name: str, height: int, width: int, *, seed: int, time: float, clear: bool) -> Image.Image:
    """Returns one upright image in mode RGBA; `time` in seconds moves what is drawn, `clear` leaves out the ground."""
    chance = random.Random(seed)  # noqa: S311 (drawings)
    top, bottom, *colours = _PALETTES[chance.randrange(len(_PALETTES))]
    size = width * _OVERSAMPLING, height * _OVERSAMPLING
    if clear:
        canvas = Image.new("RGBA", size)
    else:
        shade = Image.linear_gradient("L").resize(size)
        canvas = Image.composite(Image.new("RGBA", size, bottom), Image.new("RGBA", size, top), shade)
    _SHAPES[class_name](ImageDraw.Draw(canvas), *size, chance, colours, time)
    canvas = canvas.reduce(_OVERSAMPLING)
    _write_label(canvas, f"{class_name} {height} x {width}")
    return canvas


def _write_label(canvas: Image.Image, text: str) -> None:
    """Writes a small label into a corner, where there is room for it."""
    font = ImageFont.load_default(max(9, min(canvas.size) // 16))
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = (round(edge) for edge in draw.textbbox((6, 5), text, font=font))
    if right + 6 <= canvas.width and bottom * 4 <= canvas.height:
        draw.rectangle((left - 4, top - 3, right + 4, bottom + 3), fill="#ffffff")
        draw.text((6, 5), text, font=font, fill="#333333")


def _circles(
    draw: ImageDraw.ImageDraw, width: int, height: int, chance: random.Random, colours: list[str], time: float
) -> None:
    short = min(width, height)
    # long strips get more of them
    for number in range(round(4 + 2 * max(width, height) / short)):
        radius = short * chance.uniform(0.1, 0.24)
        x = _bounced(chance.uniform(0, width) + time * short * chance.uniform(-0.7, 0.7), radius, width)
        y = _bounced(chance.uniform(0, height) + time * short * chance.uniform(-0.7, 0.7), radius, height)
        box = (x - radius, y - radius, x + radius, y + radius)
        colour = colours[number % len(colours)]
        if number % 3 == 2:
            draw.ellipse(box, outline=colour, width=max(2, round(radius / 4)))
        else:
            draw.ellipse(box, fill=colour)


def _bounced(position: float, radius: float, length: float) -> float:
    """Returns where a ball is that would be at `place` if there were no walls at 0 and `length`."""
    span = length - 2 * radius
    there = (position - radius) % (2 * span)
    return radius + min(there, 2 * span - there)


def _stripes(
    draw: ImageDraw.ImageDraw, width: int, height: int, chance: random.Random, colours: list[str], time: float
) -> None:
    short, reach = min(width, height), math.hypot(width, height)
    angle = chance.uniform(0.2, math.pi - 0.2)
    step = short * chance.uniform(0.16, 0.3)
    (along_x, along_y), (across_x, across_y) = _direction(angle), _direction(angle + math.pi / 2)
    # moving by a whole number of steps in the list keeps each stripe's colour
    shift = time * step * 0.8 % (step * len(colours))
    for number in range(-len(colours), math.ceil(reach / step)):
        offset = number * step + shift - reach / 2
        x, y = width / 2 + across_x * offset, height / 2 + across_y * offset
        ends = (x - along_x * reach, y - along_y * reach, x + along_x * reach, y + along_y * reach)
        draw.line(ends, fill=colours[number % len(colours)], width=round(step * 0.55))


def _triangles(
    draw: ImageDraw.ImageDraw, width: int, height: int, chance: random.Random, colours: list[str], time: float
) -> None:
    short = min(width, height)
    for number in range(round(4 + 2 * max(width, height) / short)):
        radius = short * chance.uniform(0.16, 0.34)
        x, y = chance.uniform(radius, width - radius), chance.uniform(radius, height - radius)
        turn = chance.uniform(0, 2 * math.pi) + time * chance.choice((-1.2, 0.9, 1.5))
        corners = [_direction(turn + corner * 2 * math.pi / 3) for corner in range(3)]
        draw.polygon([(x + radius * dx, y + radius * dy) for dx, dy in corners], fill=colours[number % len(colours)])


def _checks(
    draw: ImageDraw.ImageDraw, width: int, height: int, chance: random.Random, colours: list[str], time: float
) -> None:
    cell = min(width, height) / chance.choice((3, 4, 5))
    one, two = chance.sample(colours, 2)
    shift = time * cell * 0.7 % (2 * cell)
    for row in range(math.ceil(height / cell)):
        for column in range(-2, math.ceil(width / cell)):
            x, y = column * cell + shift, row * cell
            if (row + column) % 2 == 0:
                draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=one if row % 2 else two)


def _direction(angle: float) -> tuple[float, float]:
    return math.cos(angle), math.sin(angle)


_SHAPES = {"circles": _circles, "stripes": _stripes, "triangles": _triangles, "checks": _checks}


if __name__ == "__main__":
    sys.exit(main())
