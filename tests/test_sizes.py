"""What planning did to sizes is reported exactly, and what it advises holds."""

from collections import Counter
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st
from support.planned import make_example, policy
from support.plans import table_of

from patchpack.options import output_affecting
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.report.sizes import count_sizes, merge_sizes, size_facts
from patchpack.pipeline.stages.records import Example, Reference
from patchpack.pipeline.stages.sample import sample

LAYOUTS = policy().layouts
CONFIG = output_affecting(PlanConfig())


def sampled(examples: list[Example], cap: int, rule: str = "native") -> list[Reference]:
    """Returns the examples as sampling would make them."""
    made = [sample(example, 0, policy(rule, cap=cap)) for example in examples]
    return [reference for reference in made if isinstance(reference, Reference)]


def told(references: list[Reference]) -> dict[str, object]:
    """Returns the figures of references that are all one group."""
    sizes = merge_sizes([count_sizes(table_of(references), LAYOUTS, 16)])
    assert sizes is not None
    return sizes


@st.composite
def sets(draw: st.DrawFn) -> list[Example]:
    """Draws images and clips."""
    sides = st.integers(1, 900)
    shapes = draw(st.lists(st.tuples(sides, sides, st.integers(0, 16)), min_size=1, max_size=40))
    return [
        make_example(f"{n}", height=height, width=width, frame_pts=tuple(t // (1 + n % 2) for t in range(frames)))
        for n, (height, width, frames) in enumerate(shapes)
    ]


@settings(max_examples=60, deadline=None)
@given(examples=sets(), cap=st.integers(16, 2000), rule=st.sampled_from(["native", "side:64-256"]))
def test_the_length_told_is_the_least_that_shrinks_none(examples: list[Example], cap: int, rule: str) -> None:
    sizes = told(sampled(examples, cap, rule))
    free = [reference.num_tokens for reference in sampled(examples, 10**9, rule)]
    assert sizes["num_shrunk"] == sum(tokens > cap for tokens in free)
    if not sizes["num_shrunk"]:
        assert sizes["cap_for_all"] is None
        return
    assert told(sampled(examples, sizes["cap_for_all"], rule))["num_shrunk"] == 0
    assert told(sampled(examples, sizes["cap_for_all"] - 1, rule))["num_shrunk"] > 0
    left = told(sampled(examples, sizes["cap_for_95_percent"], rule))["num_shrunk"]
    assert left * 20 <= sizes["num_shrunk"]


@settings(max_examples=60, deadline=None)
@given(examples=sets(), cap=st.integers(16, 2000))
def test_the_figures_are_those_of_a_slow_count(examples: list[Example], cap: int) -> None:
    references, expected = sampled(examples, cap), Counter()
    for reference in references:
        example, (t, h, w) = reference.example, reference.grid
        clip = len(example.frame_pts) > 0
        larger = Fraction(16 * h * 16 * w, example.source_height * example.source_width) > 1
        expected["num_examples"] += 1
        expected["num_clips"] += clip
        expected["num_upscaled"] += larger
        expected["num_upscaled_clips"] += clip and larger
        expected["num_short_clips"] += clip and t < 16
        expected["num_slow_clips"] += any(
            a == b for a, b in zip(example.frame_pts, example.frame_pts[1:], strict=False)
        )
        expected["num_slow_frames"] += sum(
            a == b for a, b in zip(example.frame_pts, example.frame_pts[1:], strict=False)
        )
    sizes = told(references)
    assert {name: sizes[name] for name in expected} == dict(expected)


@settings(max_examples=30, deadline=None)
@given(examples=sets(), cut=st.integers(0, 40))
def test_groups_add_up(examples: list[Example], cut: int) -> None:
    references = sampled(examples, 100)
    groups = [count_sizes(table_of(part), LAYOUTS, 16) for part in (references[:cut], references[cut:])]
    assert merge_sizes(groups) == told(references)


def test_sides_are_told_as_realised_over_drawn() -> None:
    # 20 x 20 tokens requested in each of 4 frames, 400 allowed for all: 10 x 10 remain
    clips = [make_example(f"{n}", height=320, width=320, frame_pts=(0, 1, 2, 3)) for n in range(2)]
    small = make_example("small", height=8, width=8)
    sizes = told(sampled([*clips, small], 400))
    assert (sizes["shrunk_side_median"], sizes["shrunk_side_min"], sizes["cap_for_all"]) == (0.5, 0.5, 1600)
    assert (sizes["upscaled_side_median"], sizes["upscaled_side_max"]) == (2.0, 2.0)


def test_what_is_told_is_plain_and_names_the_way_out() -> None:
    frames = (0, 0, 1, 2)
    clips = [make_example(f"{n}", height=320, width=320, frame_pts=frames) for n in range(30)]
    large = make_example("large", height=640, width=320, frame_pts=frames)
    picture = make_example("small", height=8, width=8)
    sizes = told(sampled([*clips, large, picture], 400))
    assert size_facts(sizes, CONFIG | {"sequence_length": 400}) == [
        (
            "shrunk to the cap",
            "31 of 31 clips",
            [
                "to 0.50 of the side drawn, the worst to 0.35",
                "--sequence-length 3200 shrinks none, 1600 fits 95 %",
            ],
        ),
        ("enlarged", "1 of 1 image", ["to 2.00 of the source's side, at most 2.00"]),
        ("cut short", "31 of 31 clips", ["their video ends before --clip-frames 16"]),
        ("repeated frames", "31 in 31 of 31 clips", ["their source is slower than --fps 8"]),
    ]
    assert size_facts(told(sampled([make_example("a", height=64, width=64)], 400)), CONFIG) == [
        ("shrunk to the cap", "none", [])
    ]


def test_the_way_out_is_the_option_that_holds_the_cap() -> None:
    sizes = told(sampled([make_example("a", height=320, width=320)], 100))

    def way_out(sizes: dict[str, object], **options: object) -> str:
        return size_facts(sizes, CONFIG | options)[0][2][1]

    assert way_out(sizes, max_tokens_per_example=100) == "--max-tokens-per-example 400 shrinks none"
    both = way_out(sizes, max_tokens_per_example=100, sequence_length=200)
    assert both == "--sequence-length 400 --max-tokens-per-example 400 shrinks none"
    # a sequence of so many bytes cannot be stored
    huge = sizes | {"cap_for_all": 10**7}
    assert way_out(huge) == "--sequence-length 400 fits 95 %, a lower --resolution or --clip-frames shrinks none"
    assert way_out(huge | {"cap_for_95_percent": 10**7}) == "a lower --resolution or --clip-frames shrinks none"
