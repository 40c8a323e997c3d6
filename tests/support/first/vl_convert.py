"""The library vl_convert, but that the script of the report's page is made once a test run, not once a process: that takes 1.4 s of CPU.

Stands before it in the search path of the tests and of all processes that they start (`conftest`).
"""

import importlib
import os
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

HERE = Path(__file__).parent

sys.path[:] = [place for place in sys.path if Path(place).resolve() != HERE]
del sys.modules["vl_convert"]
library = importlib.import_module("vl_convert")
sys.path.insert(0, str(HERE))
make = library.javascript_bundle


@cache
def javascript_bundle() -> str:
    """Returns what the library makes."""
    path = Path(os.environ["PATCHPACK_TEST_SCRIPTS"], "bundle.js")
    if not path.exists():
        written = Path(mkdtemp(dir=path.parent), path.name)
        written.write_text(make(), encoding="utf-8", newline="")
        # whole, or not there: others look meanwhile
        written.replace(path)
    return path.read_text(encoding="utf-8")


library.javascript_bundle = javascript_bundle
