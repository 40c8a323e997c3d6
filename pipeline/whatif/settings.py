"""What a setting of `--compare` says: options of `plan` in one string, which change those of the base; and what they may not change."""

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Any, NoReturn

from patchpack.options import Parser, flag, shown, typed_options
from patchpack.pipeline.config import PlanConfig
from patchpack.pipeline.packing.field import FIELD_PACKERS
from patchpack.pipeline.recipes import with_recipe
from patchpack.pipeline.settings.inputs import InputOptions

OURS = "ours"
PACKERS = (OURS, *FIELD_PACKERS)

# what listing and probing go by
_LISTED = (*(field.name for field in dataclasses.fields(InputOptions)), "max_pixels", "max_bytes")
_CLIPS = ("clips_per_video", "clip_frames", "fps", "frame_stride", "slow_source", "clip_placement")


@dataclass(frozen=True)
class Setting:
    """Options to compare, as typed and in full, and the packers to ask."""

    options: str
    config: PlanConfig
    packers: tuple[str, ...] = PACKERS


class _Parser(Parser):
    """One whose errors are exceptions: what is wrong is in a string, and not on the command line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_setting(text: str, base: PlanConfig) -> Setting:
    """Returns the setting that a string stands for: its options, those of its recipe among them, win over the base's.

    Raises:
        ValueError: it has no options, one that is none, or a value that cannot be; the message names the string and the part.
    """
    parser = _Parser(prog="plan", add_help=False)
    parser.add_options(PlanConfig)
    parser.add_argument("--packer", choices=PACKERS)
    try:
        words = shlex.split(text)
        if not words:
            raise ValueError("no options")
        values = parser.read(words)
        changes = with_recipe(typed_options(PlanConfig, values))
        config = dataclasses.replace(base, **changes)
    except ValueError as error:
        raise ValueError(
            f"--compare {text!r}: {error}; it takes options of plan, such as '--sequence-length 2048'"
        ) from error
    return Setting(text, config, PACKERS if values.packer is None else (values.packer,))


def check_examples(setting: Setting, base: PlanConfig, *, clips: bool, of_plan: bool) -> None:
    """Checks that the examples are those that a build with these options would list and probe.

    Args:
        setting: to check.
        base: by which they were probed.
        clips: whether some are clips, or would be.
        of_plan: whether they come from a saved plan, which keeps only the frames that fill tubelets.

    Raises:
        ValueError: they are not; the message names the option.
    """
    fixed, why = [*_LISTED, *(["seed"] if base.limit is not None else [])], "decides which inputs are listed"
    _check_equal(setting, base, fixed, why)
    if not clips:
        return
    drawn = ["seed", "views"] if base.clip_placement == "random" else []
    _check_equal(setting, base, [*_CLIPS, *drawn], "decides which frames a clip takes")
    if of_plan and base.temporal_remainder == "drop":
        why = "decides which frames a saved plan keeps"
        _check_equal(setting, base, ["temporal_remainder"], why)
        if setting.config.layouts[0].stride[0] != base.layouts[0].stride[0]:
            _check_equal(setting, base, ["tubelet", "stride"], why)


def _check_equal(setting: Setting, base: PlanConfig, names: list[str], why: str) -> None:
    for name in names:
        now, before = (getattr(config, name) for config in (setting.config, base))
        if now != before:
            raise ValueError(
                f"--compare {setting.options!r}: {flag(name)}: {_shown(now)} here, {_shown(before)} of the base; it {why}, "
                "and inputs are probed once; leave it out, or compare with another base"
            )


def _shown(value: Any) -> str:
    return "left out" if value is None or value == () else shown(value)
