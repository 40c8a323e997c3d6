#!/usr/bin/env bash
# Sets up what the tests need and runs them: those that take seconds, on all cores, or what the arguments to pytest say.
#   tests/run.sh                          all but the slow ones
#   tests/run.sh -m "slow or not slow"    all
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
"$root/run_pipeline.sh" setup test
cd "$root"
# worksteal: tests take from milliseconds to seconds
[ $# -gt 0 ] || set -- -m "not slow" -n auto --dist worksteal
PYTHONSAFEPATH=1 exec "$root/.venv/bin/python" -m pytest "$@"
