"""Stage 4: how large each view of an example becomes, which part of it is shown, and how many tokens it has.

One draw a view, a pure function of (seed, example_id, view), decides everything: patch size, crop, flip, resolution and how
many tokens are dropped, by the rules in `patchpack.pipeline.sampling`. What follows is integer arithmetic, so that
planning gives the same answer on every machine. Costs 20 microseconds a view (benchmarks/sampling.py).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import pyarrow as pa

from patchpack.pipeline.inputs.text import tokens_of
from patchpack.pipeline.sampling.draws import integer, words
from patchpack.pipeline.sampling.dropping import Dropping, most_tokens, num_kept
from patchpack.pipeline.sampling.framing import Crop
from patchpack.pipeline.sampling.grids import candidate_grids, nearest_grid
from patchpack.pipeline.sampling.resolution import Resolution
from patchpack.pipeline.stages.records import Example, Reference, Reject, reject
from patchpack.pipeline.stages.tables import examples_of, reference_table
from patchpack.schemas.geometry import MAX_GRID, Grid, Layout, ceil_div

# of a view's random words: size, patch size, dropping, flip, four of the crop, and the caption
_NUM_WORDS = 9


@dataclass(frozen=True)
class Policy:
    """What decides the views of an example.

    Attributes:
        layouts: one a patch size, each as likely.
        resolution: rule of --resolution.
        cap: most tokens of a sequence that one example takes up.
        oversize: "shrink" takes a smaller grid of the same aspect, "reject" rejects.
        seed: of the build.
        dropping: rule of --drop-tokens.
        crop: rule of --crop.
        flips: whether every other view is mirrored.
        drops_remainder: whether frames that do not fill a tubelet are left out; else the last one is repeated.
        num_views: of the build.
        captions: of --captions; "none": no text.
        max_text_tokens: of one caption.
    """

    layouts: tuple[Layout, ...]
    resolution: Resolution
    cap: int
    oversize: str = "shrink"
    seed: int = 0
    dropping: Dropping = field(default_factory=Dropping)
    crop: Crop = field(default_factory=Crop)
    flips: bool = False
    drops_remainder: bool = False
    num_views: int = 1
    captions: str = "none"
    max_text_tokens: int = 64


def sample(example: Example, view: int, policy: Policy) -> Reference | Reject:
    """Returns one view of an example with its size drawn and its grid chosen, or a reject if it cannot fit."""
    example, rule = example.of_view(view), policy.resolution
    size_word, patch_word, drop_word, flip_word, *crop_words, caption_word = words(
        _NUM_WORDS, policy.seed, example.example_id, view
    )
    number = integer(patch_word, 0, len(policy.layouts) - 1)
    layout = policy.layouts[number]
    frames, cell, multiple = layout.stride[0], layout.cell, layout.grid_multiple
    if policy.drops_remainder and len(example.frame_pts) > frames:
        example = example._replace(frame_pts=example.frame_pts[: len(example.frame_pts) // frames * frames])
    steps = ceil_div(max(1, len(example.frame_pts)), frames)
    box = policy.crop.box(example.source_height, example.source_width, crop_words)
    requested = rule.request(box.height, box.width, steps * multiple**2, cell, size_word)
    target, is_drawn = requested.target, requested.is_drawn
    h, w = requested.grid[0] * multiple, requested.grid[1] * multiple
    if requested.budget is not None and steps * h * w > requested.budget:
        detail = f"{steps * h * w} tokens at least; --resolution gives it {requested.budget}; raise that or lower --clip-frames"
        return reject(example.source.key, "sample", "oversize", detail)
    rate = 0.0
    if policy.dropping.drops:
        side, span = math.sqrt(target[0] * target[1]), rule.span if rule.is_drawn else (0, 0)
        rate = policy.dropping.rate(drop_word, policy.seed, example.example_id, view, policy.num_views, side, span)
    most_kept = policy.cap // layout.align_tokens * layout.align_tokens
    kept, uncapped = num_kept(steps * h * w, rate), 0
    if kept > most_kept:
        step_cap = most_tokens(most_kept, rate) // steps // multiple**2
        if policy.oversize == "reject" or step_cap < 1:
            return reject(example.source.key, "sample", "oversize", _oversize(steps, h * w, kept, most_kept, policy))
        is_drawn, uncapped = False, kept
        shown = target if rule.kind == "square" else (box.height, box.width)
        limits = rule.limits(box.height, box.width, cell)
        h, w = (cells * multiple for cells in nearest_grid(*shown, Fraction(step_cap), step_cap, cell, limits))
        kept = min(most_kept, num_kept(steps * h * w, rate))
    if max(steps, h, w) > MAX_GRID:
        detail = f"grid {steps}x{h}x{w}; positions are int16, so at most {MAX_GRID} a side; use a larger --tubelet"
        return reject(example.source.key, "sample", "oversize", detail)
    flip, said = policy.flips and flip_word < 2**63, _caption(example, policy, caption_word)
    # in the order of its fields: by their names it takes twice as long
    return Reference(example, view, number, *target, Grid(steps, h, w), kept, is_drawn, uncapped, box, flip, *said)


def _caption(example: Example, policy: Policy, word: int) -> tuple[int, int]:
    """Returns which caption of an example a view takes, and its tokens; (-1, 0) where it has none or none are packed."""
    captions = example.source.facts.captions
    if policy.captions == "none" or not captions:
        return -1, 0
    number = integer(word, 0, len(captions) - 1)
    return number, len(tokens_of(captions[number], policy.captions, policy.max_text_tokens))


def sample_views(example: Example, policy: Policy) -> Iterable[Reference | Reject]:
    """Yields every view of an example."""
    return (sample(example, view, policy) for view in range(policy.num_views))


def sample_table(examples: pa.Table, policy: Policy) -> tuple[pa.Table, list[Reject]]:
    """Returns every view of examples, and the rejects of those that cannot fit, equal ones once.

    Args:
        examples: rows of `tables.EXAMPLE_SCHEMA`.
        policy: of the build.

    Returns:
        Rows of `tables.REFERENCE_SCHEMA`, and rejects, sorted.
    """
    references: list[Reference] = []
    places: list[int] = []
    rejects: set[Reject] = set()
    for place, example in enumerate(examples_of(examples)):
        for row in sample_views(example, policy):
            if isinstance(row, Reference):
                references.append(row)
                places.append(place)
            else:
                rejects.add(row)
    return reference_table(examples, places, references), sorted(rejects)


def candidate_lengths(
    grid: Grid, size: tuple[int, int], slack: Fraction, layout: Layout, rule: Resolution, cap: int
) -> dict[int, tuple[int, Grid]]:
    """Returns the token counts that a drawn example may have, each with its cost in tokens and its grid, by rising count.

    Args:
        grid: the requested one.
        size: (height, width) in px of the part of the source that is shown.
        slack: most change of the side, as a fraction.
        layout: of its view.
        rule: of --resolution.
        cap: most tokens of one example.
    """
    steps, multiple, cell = grid.t, layout.grid_multiple, layout.cell
    a_cell = steps * multiple**2
    of_step = grid.h // multiple, grid.w // multiple
    grids = candidate_grids(*size, of_step, slack, cap // a_cell, cell, rule.limits(*size, cell))
    return {
        a_cell * count: (a_cell * cost, Grid(steps, h * multiple, w * multiple))
        for count, (cost, (h, w)) in grids.items()
    }


def _oversize(steps: int, step_tokens: int, kept: int, cap: int, policy: Policy) -> str:
    if steps > cap:
        return f"{steps} time steps; --max-tokens-per-example is {cap}; raise it or lower --clip-frames"
    if kept < steps * step_tokens:
        what = f"{kept} tokens that are kept"
    elif step_tokens > cap:
        what = f"{step_tokens} tokens in one frame step"
    else:
        what = f"{steps * step_tokens} tokens in {steps} frame steps"
    if policy.oversize == "shrink":
        return f"{what}, and no smaller grid; --max-tokens-per-example is {cap}; raise it or lower --grid-multiple"
    return f"{what}; --max-tokens-per-example is {cap} and --oversize is reject; raise it or use --oversize shrink"
