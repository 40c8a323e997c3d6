"""The commands that read a dataset: report, inspect, diff, verify; and how all commands show and write what they made.

Modules are imported by the command that needs them: none of these needs Beam or torch.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import TextIO, TypeVar

import patchpack
from patchpack.options import Parser
from patchpack.schemas.errors import without_secrets

# a parsed command and what stands behind --, to its exit code
Command = Callable[[argparse.Namespace, list[str]], int]
Shown = TypeVar("Shown")


def add_readers(add: Callable[..., Parser]) -> tuple[Parser, ...]:
    """Adds the commands that take a dataset, and returns them."""
    report = add(
        *("report", _report, "how well a dataset is packed", "Prints how well a dataset is packed."),
        "SHARDS [--html FILE [--gallery N]] [--figures FOLDER] [--recipe] [--json]",
        "shards/",
        "shards/ --html report.html",
        "shards/ --html report.html --gallery 40",
        "shards/ --figures figures/",
        "shards/ --recipe  # options as a file for build --recipe",
        "shards/ --json",
    )
    report.add_argument("shards", metavar="SHARDS", help="a dataset")
    report.add_argument("--html", metavar="FILE", help="also write the report as one HTML page")
    report.add_argument(
        "--gallery",
        type=int,
        metavar="N",
        help="packed sequences that the page shows, put back together: 0 to 100 (default 12)",
    )
    report.add_argument("--figures", metavar="FOLDER", help="also write each chart as SVG, PNG and CSV, for a paper")
    report.add_argument(
        "--recipe", action="store_true", help="print its options instead, as a TOML file that build --recipe takes"
    )

    inspect = add(
        *(
            "inspect",
            _inspect,
            "look into one sequence, or find an input",
            "Shows what one sequence holds, or where an input went.",
        ),
        "SHARDS N | --example ID|KEY [--image FILE] [--json]",
        "shards/ 17",
        "shards/ 17 --image out.png",
        "shards/ --example photos/cats/tom.jpg",
    )
    inspect.add_argument("shards", metavar="SHARDS", help="a dataset")
    inspect.add_argument("number", type=int, nargs="?", metavar="N", help="number of the sequence, from 0")
    inspect.add_argument(
        "--example",
        "--reject",
        dest="example",
        metavar="ID|KEY",
        help="say which sequences hold an input, and why it or a part of it was rejected; --image then draws the first of them",
    )
    inspect.add_argument("--image", metavar="FILE", help="draw the segments, put back together, into this image")

    diff = add(
        *("diff", _diff, "how two datasets differ"),
        "Says how two datasets differ. Exit 0: they are equal; 1: they differ; 2: they cannot be compared.",
        "A B [--html FILE] [--json]",
        "shards-a/ shards-b/",
        "shards-a/ shards-b/ --html diff.html",
    )
    # 1 says that they differ
    diff.set_defaults(failed=2)
    diff.add_argument("a", metavar="A", help="a dataset")
    diff.add_argument("b", metavar="B", help="another; changes are from A to B")
    diff.add_argument("--html", metavar="FILE", help="also write both side by side as one HTML page")

    status = add(
        *("status", _status, "where a build stands", "Says where the build of an output stands, and how to go on."),
        "OUTPUT [--json]",
        "shards/",
        "gs://b/shards",
    )
    status.add_argument("output", metavar="OUTPUT", help="the --output of a build, finished or not")

    verify = add(
        *("verify", _verify, "re-read everything and check it", "Re-reads a dataset and checks every rule."),
        "SHARDS [--json]",
        "shards/",
    )
    verify.add_argument("shards", metavar="SHARDS", help="a dataset")
    return report, inspect, diff, status, verify


def _status(values: argparse.Namespace, _: list[str]) -> int:
    from patchpack.pipeline.execution.status import status_lines

    status = patchpack.status(values.output)
    show(status, values.json, lambda status, out: print("\n".join(status_lines(status)), file=out))
    return 0 if status["state"] in ("running", "finished") else 1


def _report(values: argparse.Namespace, _: list[str]) -> int:
    from patchpack.pipeline.recipes import recipe_of
    from patchpack.pipeline.report.charted import charts_of
    from patchpack.pipeline.report.counted import DEFAULT_SEQUENCES
    from patchpack.pipeline.report.figures import write_figures
    from patchpack.pipeline.report.gallery import check_num_sequences, read_gallery
    from patchpack.pipeline.report.page import page_of
    from patchpack.pipeline.report.text import print_report
    from patchpack.schemas.manifest import read_manifest

    check_page(values.html, "report")
    if values.gallery is not None:
        if not values.html:
            raise ValueError(
                f"--gallery {values.gallery}: there is no page to show it in; it goes with --html; add that"
            )
        check_num_sequences(values.gallery)
    num_sequences = DEFAULT_SEQUENCES if values.gallery is None else values.gallery
    if values.recipe:
        print(recipe_of(read_manifest(values.shards)), end="")
        return 0
    made = patchpack.report(values.shards)
    if values.figures:
        write(values.figures, lambda: write_figures(charts_of(made), values.figures))
    if values.html:
        manifest = read_manifest(values.shards)
        gallery = read_gallery(values.shards, manifest, num_sequences) if num_sequences else None
        page = page_of(values.shards, made, gallery)
        write(values.html, lambda: write_text(values.html, page))
    show(made, values.json, print_report)
    return 0


def _inspect(values: argparse.Namespace, _: list[str]) -> int:
    from patchpack.pipeline.inspection import finding
    from patchpack.pipeline.inspection import sequence as inspection

    if (values.number is None) == (values.example is None):
        values.parser.error("N or --example ID|KEY: give one of them")
    if values.image:
        inspection.check_image_name(values.image)
    if values.example is None:
        description = inspection.describe(values.shards, values.number)
        _draw(values, values.number)
        show(description, values.json, inspection.print_description)
        return 0
    fate = finding.find(values.shards, values.example)
    _draw(values, next((place["sequence"] for place in fate["places"]), None))
    show(fate, values.json, finding.print_fate)
    return 0


def _draw(values: argparse.Namespace, number: int | None) -> None:
    """Draws a sequence where that was asked for, before the words, whose reader may leave early."""
    from patchpack.pipeline.inspection import sequence as inspection

    if values.image is None:
        return
    if number is None:
        raise ValueError(
            f"--image {values.image}: {values.example} is in no sequence; an image shows one; leave it out"
        )
    image = inspection.draw(values.shards, number)
    write(values.image, lambda: image.save(values.image))


def _diff(values: argparse.Namespace, _: list[str]) -> int:
    from patchpack.pipeline.comparison.html import render_html
    from patchpack.pipeline.comparison.text import print_comparison

    check_page(values.html, "diff")
    made = patchpack.diff(values.a, values.b)
    if values.html:
        write(values.html, lambda: write_text(values.html, render_html(made)))
    show(made, values.json, print_comparison)
    return 0 if made["equal"] else 1


def _verify(values: argparse.Namespace, _: list[str]) -> int:
    from patchpack.pipeline.execution.progress import bar
    from patchpack.pipeline.verification.dataset import verify
    from patchpack.schemas.manifest import read_manifest, read_shard_table

    read_manifest(values.shards)  # says so in one line where the dataset is unfinished
    total = sum(read_shard_table(values.shards)["num_sequences"].to_pylist())
    with bar("verifying", total, "sequences") as advance:
        problems = [without_secrets(problem) for problem in verify(values.shards, advance)]
    if values.json:
        print(json.dumps({"num_sequences": total, "problems": problems}, indent=2))
    elif not problems:
        print(f"{without_secrets(values.shards)}: {total} sequences verified, no problem found")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def show(result: Shown, as_json: bool, printed: Callable[[Shown, TextIO], None]) -> None:
    """Prints a result, as JSON or as its words."""
    from patchpack.pipeline.report.text import to_json

    if as_json:
        print(to_json(result))
    else:
        printed(result, sys.stdout)


def check_page(path: str | None, what: str) -> None:
    """Checks that a page may be written there.

    Raises:
        ValueError: it is a folder.
    """
    if path and os.path.isdir(path):
        raise ValueError(f"--html {path}: a folder; the {what} is one page; name a file in it, such as {what}.html")


def write(path: str, writing: Callable[[], None]) -> None:
    """Writes a file that the user named, and names it where that fails."""
    try:
        writing()
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written ({error.strerror or error}); check the path and its permissions"
        ) from error


def write_text(path: str, text: str) -> None:
    """Writes a file of text."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
