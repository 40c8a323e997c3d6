"""Resolution rules: each against numbers worked out by hand or by the published formula, and what holds for all of them."""

import itertools
import math
import random
import statistics
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.planned import make_example, policy

from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.sampling.draws import draw, fraction, truncated_normal, words
from patchpack.pipeline.sampling.grids import budget_grid
from patchpack.pipeline.sampling.resolution import Requested, Resolution
from patchpack.pipeline.stages.records import Reference
from patchpack.pipeline.stages.sample import sample

CELL = (16, 16)


def asked(
    rule: str, height: int, width: int, *, word: int = 0, cell: tuple[int, int] = CELL, **more: object
) -> Requested:
    """Returns what a rule asks for of one image."""
    return Resolution.parse(rule, **more).request(height, width, 1, cell, word)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "size", "target", "grid"),
    [
        # to the nearest cell: 480 / 16 = 30, 650 / 16 = 40.6
        ("native", (480, 650), (480, 650), (30, 41)),
        ("native", (5, 24), (5, 24), (1, 2)),
        # side 128 of a square is 8 x 8 patches of 16; of aspect 1:4 it is 64 x 256
        ("side:128-128", (500, 500), (128, 128), (8, 8)),
        ("side:128-128", (300, 1200), (64, 256), (4, 16)),
        # the same as an area: 128 x 128 = 16,384
        ("area:16384-16384", (300, 1200), (64, 256), (4, 16)),
        # SigLIP 2: a square of 256 patches is 16 x 16, of 3:4 14 x 18 = 252 (13.86 x 18.48 exactly)
        ("tokens:256", (600, 600), (256, 256), (16, 16)),
        ("tokens:256", (600, 800), (222, 296), (13, 17)),
        ("tokens:1", (900, 30), (88, 3), (1, 1)),
        # Pix2Struct, section 2: scale = sqrt(2048 (16/600) (16/800)) = 1.0451; floor(1.0451 x 600 / 16) = 39, x 800: 52
        ("pix2struct:2048", (600, 800), (627, 836), (39, 52)),
        # a small image grows: sqrt(64 / (2 x 4)) = 2.83, so 5 x 11
        ("pix2struct:64", (32, 64), (91, 181), (5, 11)),
        ("pix2struct:20", (31, 6390), (5, 1027), (1, 20)),
        ("square:224", (100, 4000), (224, 224), (14, 14)),
        ("square:240", (31, 31), (240, 240), (15, 15)),
        # within the limits: to the nearest patch
        ("pixels:1024-65536", (100, 200), (100, 200), (6, 12)),
        # above: both sides by sqrt(65536 / 480000) = 0.36950, rounded down: 221.7 and 295.6 px
        ("pixels:1024-65536", (600, 800), (222, 296), (13, 18)),
        # below: by sqrt(65536 / 2048) = 5.6569, rounded up
        ("pixels:65536-99999", (32, 64), (181, 362), (12, 23)),
    ],
)
def test_a_rule_gives_the_size_worked_out_by_hand(
    rule: str, size: tuple[int, int], target: tuple[int, int], grid: tuple[int, int]
) -> None:
    found = asked(rule, *size)
    assert (found.target, found.grid) == (target, grid)


def published(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """Returns the rows and columns of Qwen2-VL's smart resize, as its authors published it."""
    rows, columns = (max(factor, round(size / factor) * factor) for size in (height, width))
    if rows * columns > most:
        beta = math.sqrt(height * width / most)
        rows, columns = (max(factor, math.floor(size / beta / factor) * factor) for size in (height, width))
    elif rows * columns < least:
        beta = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(size * beta / factor) * factor for size in (height, width))
    return rows // factor, columns // factor


def test_pixels_are_those_of_qwen_wherever_those_keep_their_own_limits() -> None:
    drawn, compared = random.Random(1), 0
    for _ in range(4000):
        height, width = drawn.randint(1, 3000), drawn.randint(1, 3000)
        theirs = published(height, width, 28, 3136, 1003520)
        ours = asked("pixels:3136-1003520", height, width, cell=(28, 28)).grid
        if theirs[0] * theirs[1] * 28 * 28 <= 1003520:
            assert ours == theirs
            compared += 1
        assert ours[0] * ours[1] * 28 * 28 <= 1003520
    assert compared > 3900


@pytest.mark.parametrize(("size", "tokens"), [((31, 639), 20), ((100, 8000), 64), ((1, 9999), 5), ((9999, 1), 5)])
@pytest.mark.parametrize("factor", [14, 16, 28, 32])
def test_pixels_never_give_an_empty_side_or_more_than_asked(size: tuple[int, int], tokens: int, factor: int) -> None:
    for least in (1, tokens * factor * factor):
        grid = asked(f"pixels:{least}-{tokens * factor * factor}", *size, cell=(factor, factor)).grid
        assert min(grid) >= 1 and grid[0] * grid[1] <= tokens


def slow_budget_grid(height: int, width: int, budget: int, limits: tuple[int, int]) -> tuple[int, int]:
    """Returns the grid of least aspect error of 0.8 N to N tokens by looking at every grid within the limits.

    Where there is none of so many tokens: of as many as there are.
    """
    grids = [(h, w) for h in range(1, budget + 1) for w in range(1, budget // h + 1)]
    within = [grid for grid in grids if grid[0] <= limits[0] and grid[1] <= limits[1]]
    fewest = min(math.ceil(Fraction(80 * budget, 100)), max(h * w for h, w in within))
    near = [(h, w) for h, w in within if h * w >= fewest]

    def key(grid: tuple[int, int]) -> tuple[Fraction, int, int]:
        ratio = Fraction(grid[0] * width, grid[1] * height)
        return max(ratio, 1 / ratio), budget - grid[0] * grid[1], grid[0]

    return min(near, key=key)


sides = st.integers(1, 900)


@settings(max_examples=150, deadline=None)
@given(height=sides, width=sides, budget=st.integers(1, 120), limits=st.tuples(st.integers(1, 12), st.integers(1, 12)))
@example(height=1, width=900, budget=97, limits=(12, 12))
@example(height=1, width=1, budget=8, limits=(3, 3))
def test_no_grid_of_a_budget_is_nearer(height: int, width: int, budget: int, limits: tuple[int, int]) -> None:
    for given_limits in (limits, (10**9, 10**9)):
        found = budget_grid(height, width, budget, CELL, given_limits)
        assert found == slow_budget_grid(height, width, budget, given_limits)


RULES = [
    "native",
    "side:8-300",
    "area:64-90000~normal(0.2,0.4)",
    "tokens:16,64,200",
    "pix2struct:64",
    "pixels:256-40000",
]


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    frames=st.integers(0, 5),
    rule=st.sampled_from(RULES),
    multiple=st.sampled_from([1, 2, 3]),
    upsample=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_grid_is_within_budget_and_cap_of_the_multiple_and_never_empty(
    height: int, width: int, frames: int, rule: str, multiple: int, upsample: bool, seed: int
) -> None:
    clip = make_example("a", 0, height, width, frame_pts=tuple(range(frames)))
    how = policy(rule, cap=200, upsample=upsample, cut={"grid_multiple": multiple}, seed=seed)
    found = sample(clip, 0, how)
    if not isinstance(found, Reference):
        assert found.reason == "oversize" and max(1, frames) * multiple**2 > 15
        return
    t, h, w = found.grid
    assert 1 <= found.num_tokens == t * h * w <= 200
    assert h % multiple == w % multiple == 0 and t == max(1, frames)
    if rule.startswith("tokens"):
        assert found.num_tokens <= max(how.resolution.numbers)
    if not upsample:
        # no side is enlarged, but where one cell is
        assert h * 16 <= max(height, 16 * multiple) and w * 16 <= max(width, 16 * multiple)
    assert sample(clip, 0, how) == found


def test_views_draw_anew_and_depend_on_nothing_else() -> None:
    how = policy("tokens:16,32,64,128", num_views=3)
    keys = [f"{number}.jpg" for number in range(60)]
    first = {key: [sample(make_example(key), view, how) for view in range(3)] for key in keys}
    assert {key: [sample(make_example(key), view, how) for view in range(3)] for key in reversed(keys)} == first
    drawn = {tuple(one.num_tokens for one in views if isinstance(one, Reference)) for views in first.values()}
    assert len(drawn) > 20


NUM_DRAWS = 20_000


def drawn_sides(rule: str) -> list[int]:
    """Returns the sides that 20,000 square images are drawn at."""
    parsed = Resolution.parse(rule)
    return [parsed.request(500, 500, 1, CELL, draw(3, f"{number}", 0)).target[0] for number in range(NUM_DRAWS)]


def test_sides_are_uniform() -> None:
    sides = drawn_sides("side:64-384")
    assert (min(sides), max(sides)) == (64, 384)
    assert statistics.fmean(sides) == pytest.approx(224, abs=2.5)
    assert statistics.pstdev(sides) == pytest.approx(math.sqrt((321**2 - 1) / 12), rel=0.02)


def test_areas_are_uniform() -> None:
    parsed = Resolution.parse("area:4096-147456")
    areas = [math.prod(parsed.request(500, 500, 1, CELL, draw(3, f"{number}")).target) for number in range(NUM_DRAWS)]
    assert min(areas) >= 4096 and max(areas) <= 147456
    assert statistics.fmean(areas) == pytest.approx((4096 + 147456) / 2, rel=0.02)


def truncated_moments(mean: float, sigma: float) -> tuple[float, float]:
    """Returns mean and deviation of a normal distribution cut off at -1 and 1, by a sum over ten thousand points."""
    points = [(2 * n + 1) / 10_000 - 1 for n in range(10_000)]
    weights = [math.exp(-(((x - mean) / sigma) ** 2) / 2) for x in points]
    middle = math.fsum(map(float.__mul__, points, weights)) / math.fsum(weights)
    spread = math.fsum(w * (x - middle) ** 2 for x, w in zip(points, weights, strict=True)) / math.fsum(weights)
    return middle, math.sqrt(spread)


@pytest.mark.parametrize(("mean", "sigma"), [(-0.5, 1.0), (0.0, 0.3), (0.8, 0.5)])
def test_sides_of_a_truncated_normal_have_its_mean_and_spread(mean: float, sigma: float) -> None:
    # NaViT, appendix B.6: -1 stands for 64 px, 1 for 384
    sides = drawn_sides(f"side:64-384~normal({mean},{sigma})")
    middle, spread = truncated_moments(mean, sigma)
    assert min(sides) >= 64 and max(sides) <= 384
    assert statistics.fmean(sides) == pytest.approx(224 + 160 * middle, abs=3)
    assert statistics.pstdev(sides) == pytest.approx(160 * spread, rel=0.03)


def test_a_truncated_normal_far_from_its_mean_lies_at_the_nearest_end() -> None:
    for word in (0, 2**63, 2**64 - 1):
        assert truncated_normal(word, -50.0, 0.1, -1.0, 1.0) == pytest.approx(-1.0)
        assert -1.0 <= truncated_normal(word, 0.9, 0.01, -1.0, 1.0) <= 1.0
    assert 0 < fraction(0) < fraction(2**64 - 1) < 1


def test_words_are_the_same_however_many_are_asked_for() -> None:
    assert words(9, 1, "a", 2)[:3] == words(3, 1, "a", 2) == words(4, 1, "a", 2)[:3]
    assert words(3, 1, "a", 2) != words(3, 1, "a", 3)


def test_budgets_are_drawn_alike_and_are_of_all_frames_together() -> None:
    how = policy("tokens:64,128,256")
    counts = [sample(make_example(f"{number}"), 0, how) for number in range(3000)]
    nearest = [min((64, 128, 256), key=lambda n, one=one: abs(n - one.num_tokens)) for one in counts]  # type: ignore[misc, union-attr]
    for budget in (64, 128, 256):
        assert nearest.count(budget) == pytest.approx(1000, abs=120)
    clip = make_example("a", 0, 500, 500, frame_pts=tuple(range(8)))
    found = sample(clip, 0, policy("tokens:128"))
    assert isinstance(found, Reference) and found.grid == (8, 4, 4)
    long = make_example("a.mp4", 0, 500, 500, frame_pts=tuple(range(129)))
    assert sample(long, 0, policy("tokens:128"))[:3] == ("a.mp4", "sample", "oversize")


def test_patch_sizes_are_drawn_alike() -> None:
    config = PlanConfig(patch_sizes=(8, 16, 32), sequence_length=4096)
    numbers = [sample(make_example(f"{n}"), 0, config.policy).layout for n in range(3000)]  # type: ignore[union-attr]
    for number in range(3):
        assert numbers.count(number) == pytest.approx(1000, abs=120)


def test_frames_of_a_remainder_are_repeated_or_dropped() -> None:
    clip = make_example("a", 0, 64, 64, frame_pts=tuple(range(7)))
    for drops, frames, steps in ((False, 7, 4), (True, 6, 3)):
        found = sample(clip, 0, policy("native", tubelet=(2, 16, 16), drops_remainder=drops))
        assert isinstance(found, Reference)
        assert (len(found.example.frame_pts), found.grid.t) == (frames, steps)
    one = make_example("a", 0, 64, 64, frame_pts=(5,))
    found = sample(one, 0, policy("native", tubelet=(2, 16, 16), drops_remainder=True))
    assert isinstance(found, Reference) and found.grid.t == 1


def test_aspect_is_kept_at_256_tokens_and_the_budget_used() -> None:
    chance, errors, used = random.Random(0), [], []
    while len(errors) < 3000:
        height, width = chance.randint(200, 2000), chance.randint(200, 2000)
        if 4 * height < width or 4 * width < height:
            continue
        h, w = budget_grid(height, width, 256, CELL)
        ratio = h * width / (w * height)
        errors.append(max(ratio, 1 / ratio) - 1)
        used.append(h * w / 256)
    assert statistics.fmean(errors) <= 0.013 and max(errors) <= 0.035 and min(used) >= 0.8


@pytest.mark.parametrize(
    "text",
    [
        *(
            "tokens:",
            "tokens:0",
            "tokens:9,",
            "tokens:1-2",
            "pix2struct:1,2",
            "square:2,3",
            "square:",
            "native:3",
            "pixels:9-3",
        ),
        *(
            "side:1-2~normal(0,0)",
            "side:1-2~normal(0)",
            "side:1-2~uniform",
            "native~normal(0,1)",
            "area:5-4",
            "side:1-2~normal(nan,1)",
        ),
    ],
)
def test_what_is_no_rule_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"no such rule; .*; leave it out for side:64-256$"):
        Resolution.parse(text)


def test_every_refused_combination_names_both_options_and_why() -> None:
    cases = {
        "--resolution square:100": {"resolution": "square:100"},
        "--upsample never": {"resolution": "square:224", "upsample": "never"},
        "2000 tokens do not fit": {"resolution": "tokens:2000"},
        "the least grid has 64 tokens": {"resolution": "tokens:32", "grid_multiple": 8},
        "needs all of them": {"drop_tokens": "constant:0.5", "grid_multiple": 2},
        "the side that is drawn": {"drop_tokens": "resolution:0-0.5", "resolution": "native"},
        "give more --views": {"drop_tokens": "schedule:0.5->0.1"},
        "one stride for several": {"patch_sizes": (8, 16), "stride": (1, 8, 8)},
        "both say how high": {"patch_sizes": (8, 16), "tubelet": (1, 8, 8)},
        "stands there once": {"patch_sizes": (8, 8)},
        "pixels would belong to no token": {"stride": (1, 17, 16)},
        "no multiple of it": {"align_tokens": 100},
        "it is their room": {"text_length": 5},
        "sequence to sequence": {"captions": "bytes", "balance_step": 4},
        "0 < LO <= HI <= 1": {"crop": "inception:0-1"},
    }
    for words_of, options in cases.items():
        with pytest.raises(ValueError) as refused:
            PlanConfig(**options)  # type: ignore[arg-type]
        assert words_of in str(refused.value), (options, str(refused.value))
    for one, two in itertools.pairwise(["8,16", "8,16,32"]):
        assert len(PlanConfig(patch_sizes=one).layouts) + 1 == len(PlanConfig(patch_sizes=two).layouts)  # type: ignore[arg-type]
