"""`python -m patchpack COMMAND`: see `python -m patchpack --help`."""

from patchpack.entry import run

if __name__ == "__main__":
    run()
