"""Options of what is taken: inputs, labels."""

import os
from dataclasses import dataclass, field

from patchpack.options import option
from patchpack.pipeline.inputs.facts import BOX_FORMATS
from patchpack.pipeline.settings.sections import INPUT
from patchpack.pipeline.stages.labels import read_class_names


def _without_folder(labels: str) -> str:
    """Returns what the manifest says of --labels: equal builds have it equal, wherever they are made."""
    return labels if labels in ("none", "folder") else os.path.basename(labels)


@dataclass(frozen=True)
class InputOptions:
    """Which inputs are taken, and what is known of them."""

    # what is taken
    labels: str = option(
        "none",
        "where labels come from: the name of the parent folder (folder), a CSV file of keys and labels, of which a key may have "
        "several, or nowhere (none)",
        section=INPUT,
        common=True,
        metavar="none|folder|FILE.csv",
        record=_without_folder,
    )
    label_column: str | None = option(
        None,
        "column of a table, or member or JSON key of a tar's samples, that holds labels: a text, a number or a list of them",
        section=INPUT,
        common=True,
        metavar="NAME",
    )
    # not part of the manifest's options, which are listed one by one: the names stand there as its classes
    classes: tuple[str, ...] | None = option(
        None,
        "the class names and their order, from a text file of one name a line or another dataset, so that a split has the "
        "numbers of its training dataset",
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
    path_column: str | None = option(
        None,
        "column of a table that names a file, below the table's folder or --media-root; left out: path, file_name, url and the "
        "like",
        section=INPUT,
        metavar="NAME",
    )
    image_column: str | None = option(
        None,
        "column of a Parquet table that holds files as bytes, or as a struct of bytes and path; left out: image and the like",
        section=INPUT,
        metavar="NAME",
    )
    id_column: str | None = option(
        None, "column of a table that holds keys; left out: key or id, or else the path", section=INPUT, metavar="NAME"
    )
    media_root: str | None = option(
        None,
        "folder or URI that files which tables name lie below; left out: the table's folder",
        section=INPUT,
        metavar="FOLDER",
        affects_output=False,
    )
    prefix_keys: bool = option(
        False,
        "put the name of a table or tar before the keys of what it holds, where those repeat from one to the next",
        section=INPUT,
    )
    caption_column: tuple[str, ...] = option(
        (),
        "column, member or JSON key that holds captions, a text or a list; may be repeated",
        section=INPUT,
        metavar="NAME",
        repeat=True,
    )
    weight_column: str | None = option(
        None, "column, member or JSON key that holds an example's weight, 0 or more", section=INPUT, metavar="NAME"
    )
    box_column: str | None = option(
        None,
        "column or JSON key that holds boxes, a list of four numbers each: in px of the stored image, or fractions of it; they move "
        "with every crop, resize, flip and turn",
        section=INPUT,
        metavar="NAME",
    )
    # left, top, right, bottom, as torchvision has them
    box_format: str = option("xyxy", "what the four numbers of a box are", section=INPUT, choices=BOX_FORMATS)
    split: str | None = option(
        None,
        "NAME:FRACTION,... makes a dataset of each, in a folder of its name, of one list of classes; each key belongs to one by its "
        "hash, whatever is added later",
        section=INPUT,
        common=True,
        metavar="SPLITS",
    )
    split_column: str | None = option(
        None,
        "column, member or JSON key whose value decides the split, so that inputs that belong together stay together",
        section=INPUT,
        metavar="NAME",
    )
    # which of them this is; a build of --split makes one after the other
    split_name: str | None = field(default=None, metadata={"affects_output": True, "record": None, "lasting": True})
    keep_column: tuple[str, ...] = option(
        (),
        "column or JSON key that is kept with each example, as JSON in extra; may be repeated",
        section=INPUT,
        metavar="NAME",
        repeat=True,
    )
