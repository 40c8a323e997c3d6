"""What a report says of single examples: sizes, aspects, frames, kept tokens, labels, captions, warnings of decoders.

Fed the segments of a shard at a time. Exact counts of integers (fractions in fixed steps), so that memory depends on how many
different values there are and not on how many examples.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchpack.pipeline.report.aspects import RATIO_STEPS, Aspects, Ints, Sides, aspect_error
from patchpack.pipeline.report.statistics import add_unique, distribution
from patchpack.schemas.figures import (
    AspectPlane,
    Captions,
    Classes,
    Clips,
    DecoderWarnings,
    ExampleDistributions,
    Frames,
)

MAX_CLASSES = 20
MAX_WARNINGS = 5
# frames a second and seconds
_TIME_STEPS = 1000

_FRAMES = (
    "num_images",
    "num_clips",
    "num_clip_frames",
    "num_repeated_clip_frames",
    "num_clips_with_repeated_frames",
    "num_repeated_image_frames",
)


class ExampleScan:
    """Sums and exact counts over the segments seen so far."""

    def __init__(self) -> None:
        """Starts without any."""
        self.num_examples = self.num_labelled = self.num_captioned = self.num_captions = self.num_dropped_tokens = 0
        # exact, so that parts add up in any order
        self._clip_duration_s = Fraction(0)
        self._counts: dict[str, Counter[int]] = defaultdict(Counter)
        self._labels, self._frames, self._warnings = Counter[int](), Counter(dict.fromkeys(_FRAMES, 0)), Counter[str]()
        self._aspects = Aspects()

    def add(self, segments: pa.StructArray, sequences_N: Ints) -> None:
        """Adds examples.

        Args:
            segments: the struct of each, as a shard holds it.
            sequences_N: the place of the sequence of each in the dataset.
        """
        self.num_examples += len(segments)
        tokens = _column(segments, "num_tokens")
        cells = _column(segments, "grid_t") * _column(segments, "grid_h") * _column(segments, "grid_w")
        self._count("tokens_per_example", tokens)
        self._count("kept_fraction", (tokens * RATIO_STEPS + cells // 2) // cells)
        self.num_dropped_tokens += int((cells - tokens).sum())
        self._add_sizes(segments, sequences_N)
        self._add_frames(segments)
        self._add_words(segments)

    def merge(self, other: "ExampleScan") -> None:
        """Adds the examples of another."""
        self.num_examples += other.num_examples
        self.num_labelled += other.num_labelled
        self.num_captioned += other.num_captioned
        self.num_captions += other.num_captions
        self.num_dropped_tokens += other.num_dropped_tokens
        self._clip_duration_s += other._clip_duration_s
        for name, counts in other._counts.items():
            self._counts[name].update(counts)
        self._labels.update(other._labels)
        self._frames.update(other._frames)
        self._warnings.update(other._warnings)
        self._aspects.merge(other._aspects)

    def distributions(self) -> ExampleDistributions:
        """Returns the finished distributions by name."""
        counts = self._counts
        # what came out stands over what was asked for, bin by bin
        sides = distribution(counts["effective_side_px"] + counts["requested_side_px"])["edges"]
        return {
            "tokens_per_example": distribution(counts["tokens_per_example"]),
            "effective_side_px": distribution(counts["effective_side_px"], edges=sides),
            "requested_side_px": distribution(counts["requested_side_px"], edges=sides),
            "aspect_error": distribution(counts["aspect_error"], RATIO_STEPS),
            "side_change": distribution(counts["side_change"], RATIO_STEPS),
            "scale": distribution(counts["scale"], RATIO_STEPS),
            "kept_fraction": distribution(counts["kept_fraction"], RATIO_STEPS, [n / 20 for n in range(21)]),
        }

    def aspect_plane(self, number_of: Callable[[int], int]) -> AspectPlane:
        """Returns source against realised aspects; `number_of` numbers a place in the dataset."""
        return self._aspects.plane(number_of)

    def frames(self) -> Frames:
        """Returns how many images, clips and frames there are."""
        frames = self._frames
        return {
            "num_images": frames["num_images"],
            "num_clips": frames["num_clips"],
            "num_clip_frames": frames["num_clip_frames"],
            "num_repeated_clip_frames": frames["num_repeated_clip_frames"],
            "num_clips_with_repeated_frames": frames["num_clips_with_repeated_frames"],
            "num_repeated_image_frames": frames["num_repeated_image_frames"],
            "clip_duration_s": round(float(self._clip_duration_s), 3),
        }

    def clips(self) -> Clips | None:
        """Returns rates and spans of clips; None where there are none."""
        if not self._frames["num_clips"]:
            return None
        return {
            "fps": distribution(self._counts["fps"], _TIME_STEPS),
            "duration_s": distribution(self._counts["duration_s"], _TIME_STEPS),
        }

    def captions(self) -> Captions:
        """Returns how many examples have captions, and how many these are."""
        return {"num_captioned": self.num_captioned, "num_captions": self.num_captions}

    def decoder_warnings(self) -> DecoderWarnings:
        """Returns how many examples are kept in spite of a warning, and the most frequent ones, numbers left out."""
        first = sorted(self._warnings.items(), key=lambda item: (-item[1], item[0]))[:MAX_WARNINGS]
        return {"num_examples": self._warnings.total(), "texts": dict(first)}

    def classes(self, names: tuple[str, ...] | None) -> Classes | None:
        """Returns how many examples each class has: the largest by name, the others summed up."""
        if names is None:
            return None
        labels = self._labels
        ordered = sorted(range(len(names)), key=lambda label: (-labels[label], label))
        first, rest = ordered[:MAX_CLASSES], ordered[MAX_CLASSES:]
        return {
            "num_classes": len(names),
            "num_labelled": self.num_labelled,
            "num_unlabelled": self.num_examples - self.num_labelled,
            "largest": [{"label": n, "name": names[n], "num_examples": labels[n]} for n in first],
            "rest": {"num_classes": len(rest), "num_examples": sum(labels[n] for n in rest)},
            "num_empty_classes": sum(not labels[n] for n in ordered),
        }

    def _count(self, name: str, values: np.ndarray) -> None:
        add_unique(self._counts[name], values)

    def _add_sizes(self, segments: pa.StructArray, sequences_N: Ints) -> None:
        # what earlier versions do not say is all of it
        is_later = segments.type.get_field_index("valid_height") >= 0
        shown, source = ("valid_", "crop_") if is_later else ("", "source_")
        sides = Sides(*(_column(segments, f"{of}{side}") for of in (shown, source) for side in ("height", "width")))
        area, source_area = sides.height * sides.width, sides.source_height * sides.source_width
        target_area = _column(segments, "target_height") * _column(segments, "target_width")
        errors = aspect_error(sides)
        self._count("effective_side_px", np.rint(np.sqrt(area)).astype(np.int64))
        self._count("requested_side_px", np.rint(np.sqrt(target_area)).astype(np.int64))
        self._count("aspect_error", errors)
        self._count("scale", np.rint(np.sqrt(area / source_area) * RATIO_STEPS).astype(np.int64))
        self._count("side_change", np.rint(abs(np.sqrt(area / target_area) - 1) * RATIO_STEPS).astype(np.int64))
        self._aspects.add(sides, errors, segments.field("source"), sequences_N)

    def _add_frames(self, segments: pa.StructArray) -> None:
        num_frames, repeated = _column(segments, "num_frames"), _column(segments, "num_repeated_frames")
        # only clips have a place in time
        is_clip = segments.field("clip_start_s").is_valid().to_numpy(zero_copy_only=False)
        values = (
            (~is_clip).sum(),
            is_clip.sum(),
            num_frames[is_clip].sum(),
            repeated[is_clip].sum(),
            (repeated[is_clip] > 0).sum(),
            repeated[~is_clip].sum(),
        )
        self._frames.update(dict(zip(_FRAMES, map(int, values), strict=True)))
        durations, rates = (segments.field(name).drop_null().to_numpy() for name in ("clip_duration_s", "fps"))
        self._clip_duration_s += sum(map(Fraction, durations.tolist()), Fraction(0))
        self._count("duration_s", np.rint(durations * _TIME_STEPS).astype(np.int64))
        self._count("fps", np.rint(rates * _TIME_STEPS).astype(np.int64))

    def _add_words(self, segments: pa.StructArray) -> None:
        """Counts labels, captions and the warnings of decoders."""
        extras = segments.field("extra").drop_null()
        for extra in extras.filter(pc.match_substring(extras, "decoder_warning")).to_pylist():
            # numbers differ from file to file, and say nothing here
            self._warnings[re.sub(r"\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b", "N", json.loads(extra)["decoder_warning"])] += 1
        labels, captions = segments.field("labels"), segments.field("captions")
        num_labels, num_captions = (
            each.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) for each in (labels, captions)
        )
        self.num_labelled += int((num_labels > 0).sum())
        self.num_captioned += int((num_captions > 0).sum())
        self.num_captions += int(num_captions.sum())
        add_unique(self._labels, labels.flatten().to_numpy(zero_copy_only=False))


def _column(segments: pa.StructArray, name: str) -> Ints:
    values: Ints = segments.field(name).to_numpy(zero_copy_only=False).astype(np.int64)
    return values
