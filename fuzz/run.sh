#!/usr/bin/env bash
# Fuzzes every target of fuzz/targets.py, or those named, for SECONDS of work in all; a find is kept, named and fails.
#   fuzz/run.sh 300             as CI does
#   fuzz/run.sh 600 archive     one target for ten minutes
# To see a find again: .venv/bin/python fuzz/run.py TARGET FILE. Mended ones go to fuzz/corpus/TARGET/, which the tests replay.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
seconds=${1:?SECONDS, in all}
shift
export PYTHONSAFEPATH=1 PYTHONHASHSEED=0 PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-$here/../.venv/bin/python}
[ $# -gt 0 ] || set -- $("$python" -c 'import targets; print(*targets.TARGETS)')
# targets write a file each try: into memory, where that can be had
work=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
export TMPDIR=$work
trap 'rm -rf "$work"' EXIT
mkdir -p "$here/found"
each=$((seconds / $#))

# fuzz TARGET
fuzz() {
    local target=$1 find corpora=("$here/corpus/$1")
    mkdir "$work/$target"
    # pixels are those of the files whose headers the others look at
    [ "$target" = pixels ] && corpora=("$here"/corpus/{image,video}_header)
    # the same seed: a run that is as long tries the same, so that CI is red for what a change has done.
    # memory and time of one try: a hundred times what a sound file of the corpus takes
    if "$python" "$here/run.py" "$target" -seed=1 -max_total_time=$((each > 0 ? each : 1)) -max_len=65536 -rss_limit_mb=2048 -timeout=10 \
        -artifact_prefix="$here/found/$target-" "$work/$target" "${corpora[@]}" >"$work/$target.log" 2>&1; then
        echo "$target: nothing found, $(grep -E '^Done' "$work/$target.log" || tail -n 1 "$work/$target.log")"
        return
    fi
    find=$(sed -n 's/.*Test unit written to //p' "$work/$target.log")
    { echo "$target: ${find:+a find; it is kept as }${find:-cannot be run}" && tail -n 30 "$work/$target.log"; } >&2
    return 1
}

status=0
for target; do
    # as many at once as there are processors
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || status=1; done
    fuzz "$target" &
done
for job in $(jobs -p); do wait "$job" || status=1; done
exit $status
