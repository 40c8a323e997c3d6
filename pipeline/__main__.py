import os
import sys

from pipeline.cli import main

# a terminal without UTF-8 shows a mark where it cannot show a name
sys.stdout.reconfigure(errors="backslashreplace")
code = main()
sys.stdout.flush()
sys.stderr.flush()
# not sys.exit: where a worker process died, Beam's threads would wait for it for ever
os._exit(code)
