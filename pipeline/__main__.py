import os
import sys

from pipeline.cli import main

code = main()
sys.stdout.flush()
sys.stderr.flush()
# not sys.exit: where a worker process died, Beam's threads would wait for it for ever
os._exit(code)
