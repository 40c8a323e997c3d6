"""What people type: build, plan, report, inspect, diff, verify, train.

Results go to standard output, progress and errors to standard error. Exit 0: done; 1: it failed; 2: it was
asked for wrongly. Beam's own options come after `--`. Modules are imported by the command that needs them:
`report`, `inspect`, `diff` and `verify` run without Beam, and all but `train` without torch.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

import patchpack
from patchpack.api import needing_beam
from patchpack.options import Parser, typed_options
from patchpack.pipeline.config import BuildConfig, PlanConfig
from patchpack.pipeline.errors import TooManyRejects
from patchpack.pipeline.execution.progress import log_as_json, say
from patchpack.pipeline.settings.sections import INPUT, OUTPUT, PACKING, SECTIONS
from patchpack.pipeline.storage.files import described
from patchpack.pipeline.whatif.settings import PACKERS
from patchpack.reading import Command, add_readers, check_page, show, write, write_text
from patchpack.schemas.errors import FormatError
from patchpack.version import __version__

# the script in the repository names itself
_PROG = os.environ.get("PATCHPACK_COMMAND", "patchpack")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    split = arguments.index("--") if "--" in arguments else len(arguments)
    values, unknown = make_parser().parse_known_args(_with_compared(arguments[:split]))
    if unknown:
        _refuse(unknown, values)
    debug = getattr(values, "debug", False)
    failed = values.failed
    log_as_json(on=getattr(values, "log_json", False))
    try:
        if arguments[split + 1 :] and values.command not in ("build", "plan"):
            raise ValueError(
                f"{arguments[split + 1]}: {values.command} runs no Beam pipeline; only build and plan take options after --; leave them out"
            )
        return int(values.run(values, arguments[split + 1 :]))
    except BrokenPipeError:
        # the reader has seen enough (`| head`); what is left goes nowhere
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
        return 0
    except FormatError as error:
        return _failed(error, failed, debug)
    except ValueError as error:
        return _failed(error, 2, debug)
    except OSError as error:
        return _failed(error, failed, debug, described(error))
    except RuntimeError as error:
        return _failed(error, failed, debug)
    except KeyboardInterrupt as error:
        say(f"interrupted; {error}" if error.args else "interrupted; a build goes on with --resume")
        return 130


def make_parser() -> Parser:
    """Returns the parser of all commands but train, which has its own."""
    parser = Parser(
        prog=_PROG,
        description="Images and videos of any size in; fixed-shape packed sequences of patches out.",
        epilog=f"{_PROG} COMMAND --help gives a command's options, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"patchpack {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def add(name: str, run: Command, help: str, description: str, usage: str, *examples: str) -> Parser:
        command = commands.add_parser(
            name,
            help=help,
            usage=f"%(prog)s {usage}",
            description=description,
            epilog="\n".join(["examples:", *(f"  {_PROG} {name} {example}" for example in examples)]),
        )
        command.set_defaults(run=run, parser=command, failed=1)
        return command

    for command in (*_add_writers(add), *add_readers(add)):
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        command.add_argument("--log-json", action="store_true", help="write standard error as JSON, an object a line")
    # listed here and run by `entry`: it has a parser of its own, and needs no pipeline
    commands.add_parser("train", help="train a model on a dataset", add_help=False)
    setup = add(
        *("setup", _setup, "install what a task needs into .venv", "Installs extras into .venv."),
        "[EXTRA[,EXTRA ...]]",
        "train",
        "beam,fast,heif",
    )
    setup.add_argument(
        "extras", nargs="?", metavar="EXTRA[,EXTRA]", help="beam, aws, fast, gcp, heif, report, text, train, test"
    )
    return parser


def _add_writers(add: Callable[..., Parser]) -> tuple[Parser, ...]:
    """Adds the commands that take media."""
    build = add(
        *("build", _build, "make a dataset", "Makes a dataset. Beam's options come after --."),
        "INPUT ... --output FOLDER [OPTION ...] [-- BEAM'S OPTIONS]",
        "photos/ 'clips/**/*.mp4' --output shards/",
        "photos/ --output shards/ --labels folder --sequence-length 2048",
        "photos/ --output shards/ --recipe navit",
        "--output shards/ --resume",
        "'gs://b/raw/**' --output gs://b/shards -- --runner DataflowRunner --project P --region R",
    )
    for title in SECTIONS:
        build.section(title)
    build.section(INPUT).add_argument(
        "inputs", nargs="*", metavar="INPUT", help="folder, file, glob or URI; a folder gives its media files"
    )
    build.section(OUTPUT).add_argument(
        "--output", required=True, metavar="FOLDER", help="where the dataset goes: an empty folder or URI"
    )
    build.section(OUTPUT).add_argument(
        "--detach",
        action="store_true",
        help="hand the build to the runner behind -- and end; status says where it stands, build --resume waits for it",
    )
    build.add_options(BuildConfig)

    pool = add(
        *(
            "worker-pool",
            _worker_pool,
            "start workers on this host for a cluster",
            "Starts workers when a runner asks for them.",
        ),
        "[--port N]",
        "--port 50000",
    )
    pool.add_argument(
        "--port", type=int, default=50000, metavar="N", help="where runners ask, on every address of this host"
    )

    plan = add(
        *("plan", _plan, "predict efficiency and size; decodes nothing", "Plans a build without decoding."),
        "INPUT ... [--output FOLDER | --compare OPTIONS ...] [OPTION ...]",
        "photos/ --sequence-length 2048",
        "photos/ --compare '--sequence-length 2048' --compare '--recipe navit'",
        "--from shards/ --compare '--max-segments 16 --packer next-fit' --html what-if.html",
        "photos/ --output shards/  # then: build --output shards/ --resume",
    )
    for title in SECTIONS:
        plan.section(title)
    plan.section(INPUT).add_argument("inputs", nargs="*", metavar="INPUT", help="folder, file, glob or URI")
    plan.section(INPUT).add_argument(
        "--from",
        dest="saved",
        metavar="FOLDER",
        help="with --compare: take the examples and options of this saved plan or dataset; nothing is probed",
    )
    plan.section(PACKING).add_argument(
        "--compare",
        action="append",
        metavar="OPTIONS",
        help="also say what these options, in quotes, would give instead, by our packer and those of the field (--packer "
        f"{'|'.join(PACKERS)} in the quotes names one); may be repeated; inputs are probed once",
    )
    plan.section(PACKING).add_argument(
        "--html", metavar="FILE", help="with --compare: also write the table and its chart as one HTML page"
    )
    plan.section(OUTPUT).add_argument(
        "--output", metavar="FOLDER", help="save the plan here; build --resume goes on from it"
    )
    plan.add_options(PlanConfig)
    return build, plan, pool


def _with_compared(arguments: list[str]) -> list[str]:
    """Returns arguments with --compare and its string as one: argparse takes a string such as --flip for an option of plan."""
    joined: list[str] = []
    for word in arguments:
        if joined and joined[-1] == "--compare":
            joined[-1] = f"--compare={word}"
        else:
            joined.append(word)
    return joined


def _refuse(unknown: list[str], values: argparse.Namespace) -> NoReturn:
    """Ends with exit 2 over arguments that the command does not know."""
    parser: Parser = values.parser
    name = next((text.partition("=")[0] for text in unknown if text.startswith("--")), "")
    if name and values.command in ("build", "plan"):
        try:
            with needing_beam():
                from patchpack.pipeline.execution.beam_options import beam_options
        except RuntimeError:
            # without Beam there are no options of Beam's
            parser.refuse(unknown)
        if name in beam_options():
            parser.error(f"{name}: an option of Beam's before --; those come last; write ... -- {' '.join(unknown)}")
    parser.refuse(unknown)


def _build(values: argparse.Namespace, beam_arguments: list[str]) -> int:
    from patchpack.pipeline.recipes import with_recipe
    from patchpack.pipeline.report.text import print_report, print_reports

    _silence()
    typed = with_recipe(typed_options(BuildConfig, values))
    if values.detach:
        job = patchpack.submit(values.inputs, values.output, beam_options=beam_arguments, **typed)
        if job["endpoint"] or job["project"]:
            what = f"job {job['id']} of {job['runner']} builds {values.output}"
        else:
            what = f"{job['id']}: the job is stored, and gcloud dataflow jobs run builds {values.output} with it"
        say(f"{what}; patchpack status {values.output} says where it stands")
        show(job, values.json, lambda job, out: print(job["id"], file=out))
        return 0
    try:
        if typed.get("split") is not None and typed.get("split_name") is None:
            made = patchpack.build_splits(values.inputs, values.output, beam_options=beam_arguments, **typed)
            show(made, values.json, print_reports)
        else:
            show(
                patchpack.build(values.inputs, values.output, beam_options=beam_arguments, **typed),
                values.json,
                print_report,
            )
    except TooManyRejects as error:
        show(error.report, values.json, print_report)
        raise
    return 0


def _worker_pool(values: argparse.Namespace, _: list[str]) -> int:
    with needing_beam():
        from patchpack.pipeline.execution.worker_pool import serve

    serve(
        values.port,
        lambda port: say(f"workers of this host are started by whoever asks at port {port}; Ctrl-C ends them"),
    )
    return 0


def _plan(values: argparse.Namespace, beam_arguments: list[str]) -> int:
    from patchpack.pipeline.report.prediction import print_prediction

    _silence()
    typed = typed_options(PlanConfig, values)
    if values.compare:
        if values.output is not None:
            raise ValueError(
                f"--output {values.output}: a comparison saves nothing; plan --output saves a plan, which --from compares; leave it out"
            )
        from patchpack.pipeline.report.html import render_whatif
        from patchpack.pipeline.report.whatif import print_whatif

        check_page(values.html, "comparison")
        compared = patchpack.compare(
            values.inputs, values.compare, saved=values.saved, beam_options=beam_arguments, **typed
        )
        if values.html:
            write(values.html, lambda: write_text(values.html, render_whatif(compared)))
        show(compared, values.json, print_whatif)
        return 0
    if values.html is not None:
        raise ValueError(f"--html {values.html}: a plan has no page; a comparison has; add --compare, or leave it out")
    if values.saved is not None:
        raise ValueError(
            f"--from {values.saved}: there is nothing to compare it with; it goes with --compare; add that, or name inputs"
        )
    if not values.inputs:
        raise ValueError("no inputs; plan takes folders, files, globs or URIs; name at least one")
    made = patchpack.plan(values.inputs, values.output, beam_options=beam_arguments, **typed)
    show(made, values.json, print_prediction)
    return 0


def _setup(values: argparse.Namespace, _: list[str]) -> int:
    raise ValueError(
        f"setup: not of this program; the script in the repository makes .venv; ./run_pipeline.sh setup {values.extras or 'beam'}"
    )


def _silence() -> None:
    """Keeps Beam, the clients of the stores and gRPC from reporting every try: what matters comes as one line."""
    if "--debug" not in sys.argv:
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        for name, value in (("GRPC_VERBOSITY", "NONE"), ("PYTHONWARNINGS", "ignore")):
            os.environ.setdefault(name, value)


def _failed(error: BaseException, code: int, debug: bool, text: str = "") -> int:
    if debug:
        raise error
    say(text or str(error) or type(error).__name__, "error")
    return code
