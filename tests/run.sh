#!/usr/bin/env bash
# Sets up what the tests need and runs them: all of them, or what the arguments to pytest say.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
"$root/run_pipeline.sh" setup test
cd "$root"
PYTHONSAFEPATH=1 exec "$root/.venv/bin/python" -m pytest "$@"
