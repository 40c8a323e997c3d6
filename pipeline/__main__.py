"""The offline side: media in, packed shards out. `build.py` is the place to start reading."""

import os
import sys

# a terminal without UTF-8 shows a mark where it cannot show a name
sys.stdout.reconfigure(errors="backslashreplace")
try:
    from pipeline.cli import main

    code = main()
except KeyboardInterrupt:
    # before there was anything to interrupt
    code = 130
sys.stdout.flush()
sys.stderr.flush()
# not sys.exit: where a worker process died, Beam's threads would wait for it for ever
os._exit(code)
