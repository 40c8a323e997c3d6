"""What people type: build, plan, report, inspect, verify.

Results go to standard output, progress and errors to standard error. Exit 0: done; 1: it failed; 2: it was
asked for wrongly. Beam's own options come after `--`. Modules are imported by the command that needs them:
`report`, `inspect` and `verify` run without Beam.
"""

import argparse
import json
import logging
import os
import sys
from typing import Any

from pipeline.config import BuildConfig, PlanConfig
from pipeline.options import Parser, add_options, from_namespace
from schemas.errors import FormatError

_EXAMPLES = """examples:
  run_pipeline.sh build photos/ 'clips/**/*.mp4' --output shards/
  run_pipeline.sh build photos/ --output shards/ --resume
  run_pipeline.sh build 'gs://b/raw/**' --output gs://b/shards -- --runner DataflowRunner --project P --region R
  run_pipeline.sh plan photos/ --sequence-length 2048
  run_pipeline.sh report shards/
  run_pipeline.sh inspect shards/ 17 --image out.png
  run_pipeline.sh verify shards/"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    split = arguments.index("--") if "--" in arguments else len(arguments)
    values = _parser().parse_args(arguments[:split])
    try:
        if arguments[split + 1 :] and values.command not in ("build", "plan"):
            raise ValueError(
                f"{arguments[split + 1]}: {values.command} runs no Beam pipeline; only build and plan take options after --; leave them out"
            )
        return values.run(values, arguments[split + 1 :])
    except BrokenPipeError:
        # the reader has seen enough (`| head`); what is left goes nowhere
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
        return 0
    except FormatError as error:
        return _failed(error, 1, values.debug)
    except ValueError as error:
        return _failed(error, 2, values.debug)
    except (OSError, RuntimeError) as error:
        return _failed(error, 1, values.debug)
    except KeyboardInterrupt:
        print("interrupted; a build goes on with --resume", file=sys.stderr)
        return 130


def _parser() -> Parser:
    parser = Parser(
        prog="run_pipeline.sh",
        description="Images and videos of any size in; fixed-shape packed sequences of patches out.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    build = commands.add_parser(
        "build", help="make a packed set", description="Makes a packed set. Beam's options come after --."
    )
    build.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="folder, file, glob or URI; a folder gives its media files"
    )
    build.add_argument("--output", required=True, metavar="FOLDER", help="where the set goes: an empty folder or URI")
    add_options(build, BuildConfig)
    build.set_defaults(run=_build)

    plan = commands.add_parser(
        "plan", help="predict efficiency and size; decodes nothing", description="Plans a build without decoding."
    )
    plan.add_argument("inputs", nargs="+", metavar="INPUT", help="folder, file, glob or URI")
    plan.add_argument("--output", metavar="FOLDER", help="keep the plan here; build --resume goes on from it")
    add_options(plan, PlanConfig)
    plan.set_defaults(run=_plan)

    report = commands.add_parser(
        "report", help="how well a set is packed", description="Prints how well a set is packed."
    )
    report.add_argument("shards", metavar="SHARDS", help="a packed set")
    report.add_argument("--html", metavar="FILE", help="also write the report as one HTML page")
    report.set_defaults(run=_report)

    inspect = commands.add_parser(
        "inspect", help="look into one sequence", description="Shows what one sequence holds."
    )
    inspect.add_argument("shards", metavar="SHARDS", help="a packed set")
    inspect.add_argument("number", type=int, metavar="N", help="number of the sequence, from 0")
    inspect.add_argument("--image", metavar="FILE", help="draw the segments, put back together, into this picture")
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser(
        "verify", help="re-read everything and check it", description="Re-reads a set and checks every rule."
    )
    verify.add_argument("shards", metavar="SHARDS", help="a packed set")
    verify.set_defaults(run=_verify)

    for command in (build, plan, report, inspect, verify):
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _build(values: argparse.Namespace, beam_arguments: list[str]) -> int:
    config = from_namespace(BuildConfig, values)
    config.check()
    launch, runner, report = _import_pipeline()
    made = launch.build(values.inputs, values.output, config, runner.parse_beam_options(beam_arguments))
    _show(made, values.json, report.print_report)
    launch.check_rejects(made, config, values.output)
    return 0


def _plan(values: argparse.Namespace, beam_arguments: list[str]) -> int:
    config = from_namespace(PlanConfig, values)
    config.check()
    from pipeline.prediction import print_prediction

    launch, runner, _ = _import_pipeline()
    _show(
        launch.predict(values.inputs, values.output, config, runner.parse_beam_options(beam_arguments)),
        values.json,
        print_prediction,
    )
    return 0


def _report(values: argparse.Namespace, _: list[str]) -> int:
    from pipeline import report, report_html
    from schemas.manifest import REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA, read_manifest, read_shard_table, read_table

    manifest = read_manifest(values.shards)
    rejects = read_table(values.shards, REJECT_TABLE_NAME, REJECT_TABLE_SCHEMA)
    made = report.make_report(values.shards, manifest, read_shard_table(values.shards), rejects)
    if values.html:
        _write_text(values.html, report_html.render_html(made))
    _show(made, values.json, report.print_report)
    return 0


def _inspect(values: argparse.Namespace, _: list[str]) -> int:
    from pipeline import inspection

    _show(inspection.describe(values.shards, values.number), values.json, inspection.print_description)
    if values.image:
        inspection.draw(values.shards, values.number).save(values.image)
    return 0


def _verify(values: argparse.Namespace, _: list[str]) -> int:
    from pipeline.progress import bar
    from pipeline.verify import verify
    from schemas.manifest import read_manifest, read_shard_table

    read_manifest(values.shards)  # says so in one line where the set is unfinished
    total = sum(read_shard_table(values.shards)["num_sequences"].to_pylist())
    with bar("verifying", total, "sequences") as tell:
        problems = verify(values.shards, tell)
    if values.json:
        print(json.dumps({"num_sequences": total, "problems": problems}, indent=2))
    elif not problems:
        print(f"{values.shards}: {total} sequences verified, no problem found")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _import_pipeline() -> tuple[Any, Any, Any]:
    # Beam logs at import that it lacks the cloud libraries nobody asked for
    logging.getLogger().setLevel(logging.ERROR)
    try:
        from pipeline import launch, report, runner
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{error.name}: not installed; build and plan need the beam extra; ./run_pipeline.sh setup beam"
        ) from error
    return launch, runner, report


def _show(result: dict[str, Any], as_json: bool, show: Any) -> None:
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        show(result, sys.stdout)


def _write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _failed(error: BaseException, code: int, debug: bool) -> int:
    if debug:
        raise error
    # names may hold anything, line breaks included; an error is one line
    text = " ".join(str(error).splitlines()) or type(error).__name__
    # and commands to the terminal
    shown = (c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    print("".join(shown), file=sys.stderr)
    return code
