"""`python fuzz/run.py TARGET [libFuzzer's options and corpora]`: fuzzes one target, guided by what of patchpack its tries reach."""

import sys

import atheris

with atheris.instrument_imports(include=["patchpack"]):
    from targets import TARGETS


def main() -> None:
    """Runs until libFuzzer's own limits end the process."""
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
