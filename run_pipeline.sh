#!/usr/bin/env bash
# Everything starts here. Without arguments: sets up .venv, draws sample media, builds shards, prints the report.
#   ./run_pipeline.sh                     the first run, in demo/
#   ./run_pipeline.sh COMMAND ...         build, plan, report, inspect, verify, train; see ./run_pipeline.sh --help
#   ./run_pipeline.sh setup EXTRA[,...]   only sets up .venv, with these extras (beam, adapters, aws, fast, gcp, heif, report, train, test)
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv
# no module in the user's folder may win; and this is how the command is typed
export PYTHONSAFEPATH=1 PATCHPACK_COMMAND=./run_pipeline.sh

find_python() {
    local candidate found=
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        found="$found$candidate is $("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo broken), "
    done
    echo "python: ${found:-none found, }patchpack needs 3.11 to 3.13; install one or name it: PYTHON=/path/to/python3.12 $0" >&2
    exit 1
}

# is_set_up EXTRAS CONTENT: whether these extras are installed, alone or with others, as the files of this content ask for
is_set_up() {
    local stamp extra
    for stamp in "$venv"/.installed-*; do
        [ "$(cat "$stamp" 2>/dev/null)" = "$2" ] || continue
        for extra in ${1//,/ }; do
            [[ -${stamp##*/.installed-}- == *-$extra-* ]] || continue 2
        done
        return 0
    done
    return 1
}

# setup EXTRAS: makes .venv and installs the project with these extras, unless that is done already
setup() {
    local extras=$1 python requested
    requested=$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum)
    is_set_up "$extras" "$requested" && return
    if [ ! -x "$venv/bin/pip" ]; then
        python=$(find_python)
        echo "setting up $venv with $("$python" --version)" >&2
        rm -rf "$venv"
        "$python" -m venv "$venv" || { echo "$venv: cannot be made; python's venv module is needed; on Debian: apt install python3-venv" >&2; exit 1; }
    fi
    echo "installing patchpack[$extras] (a minute or two, once)" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "$root[$extras]"
    echo "$requested" >"$venv/.installed-${extras//,/-}"
}

demo() {
    cd "$root"
    setup beam
    "$venv/bin/python" -m patchpack.pipeline.demo demo/media
    "$venv/bin/python" -m patchpack build demo/media --output demo/shards --labels folder --resume
    cat <<'NEXT'

The shards are in demo/shards, the report is in demo/shards/report.html. What comes next:

  ./run_pipeline.sh setup train
  ./run_pipeline.sh train demo/shards --steps 50
  ./run_pipeline.sh inspect demo/shards 0 --image sequence.png
  ./run_pipeline.sh build PATH/TO/YOUR/MEDIA --output shards
NEXT
}

case "${1-}" in
    "") demo ;;
    setup) setup "${2:-beam}" ;;
    *)
        # any installed set of extras will do: report, inspect and verify need no Beam
        compgen -G "$venv/.installed-*" >/dev/null || setup beam
        exec "$venv/bin/python" -m patchpack "$@"
        ;;
esac
