"""`python tests/support/lock.py`: writes requirements.lock, each package of a build with the hash of the one file that pip takes of it.

Asks the package index; versions are those of constraints.txt, files those for the Python and the machine that it runs on (3.11, Linux on
x86-64). Nothing is installed, and no address is written.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LOCK = ROOT / "requirements.lock"
# what reads and writes datasets, on this machine or as a worker
EXTRAS = "beam"

_HEAD = f"""\
# patchpack[{EXTRAS}] without itself, each file by its hash, for Python 3.11 on Linux x86-64: pip install --require-hashes -r requirements.lock
# Written by tests/support/lock.py from constraints.txt.
"""


def lines() -> list[str]:
    """Returns the lines of the file, by name."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-input",
        "--quiet",
        "--report",
        "-",
    ]
    report = subprocess.run(
        [*command, "-c", str(ROOT / "constraints.txt"), f"{ROOT}[{EXTRAS}]"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found = [item for item in json.loads(report.stdout)["install"] if item["metadata"]["name"] != "patchpack"]
    hashes = [item["download_info"]["archive_info"]["hashes"]["sha256"] for item in found]
    pins = [f"{item['metadata']['name'].lower()}=={item['metadata']['version']}" for item in found]
    return sorted(f"{pin} --hash=sha256:{digest}" for pin, digest in zip(pins, hashes, strict=True))


if __name__ == "__main__":
    LOCK.write_text(_HEAD + "\n".join(lines()) + "\n")
