"""Options of what is taken: inputs, labels."""

from dataclasses import dataclass

from patchpack.options import option
from patchpack.pipeline.settings.sections import INPUT
from patchpack.pipeline.stages.labels import read_class_names


@dataclass(frozen=True)
class InputOptions:
    """Which inputs are taken, and what is known of them."""

    # what is taken
    labels: str = option(
        "none",
        "where labels come from: the name of the parent folder, or nowhere",
        section=INPUT,
        common=True,
        choices=("none", "folder"),
    )
    # not part of the manifest's options, which are listed one by one: the names stand there as its classes
    classes: tuple[str, ...] | None = option(
        None,
        "with --labels folder: the class names and their order, from a text file of one name a line or another "
        "dataset, so that a split has the numbers of its training dataset",
        section=INPUT,
        common=True,
        parse=read_class_names,
        metavar="FILE|DATASET",
        affects_output=False,
    )
    exclude: tuple[str, ...] = option(
        (),
        "leave out inputs whose key matches; may be repeated",
        section=INPUT,
        common=True,
        metavar="GLOB",
        repeat=True,
    )
    limit: int | None = option(None, "take a seeded sample of N inputs", section=INPUT, common=True)
    any_suffix: bool = option(
        False,
        "try every file of a folder that is not hidden, whatever its suffix: its content decides; globs always do",
        section=INPUT,
    )
    dedupe: str = option(
        "none",
        "digest: of inputs with the same bytes keep the least key, and reject the others; reads every file once more",
        section=INPUT,
        choices=("none", "digest"),
    )
    # what most readers do, and what a folder of photos means
    animated: str = option(
        "first",
        "what an animated GIF, WebP, PNG or AVIF is: its first image, or clips as a video is",
        section=INPUT,
        choices=("first", "clip"),
    )
