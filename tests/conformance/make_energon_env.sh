#!/bin/sh
# Make .venvs/energon for the conformance test and print its python; nothing is done where it is there already.
#   export VILA_DATA_ENERGON_PYTHON="$(tests/conformance/make_energon_env.sh)" && pytest -m slow tests/conformance
set -eu
repo=$(cd "$(dirname "$0")/../.." && pwd)
pins="$repo/tests/conformance/energon-requirements.txt"
env="$repo/.venvs/energon"
if ! cmp -s "$pins" "$env/installed.txt"; then
    rm -rf "$env"
    "${PYTHON:-python3}" -m venv "$env"
    # torch first: resolved together with the rest, pip may fetch another build of it.
    "$env/bin/pip" install -q -c "$pins" torch >&2
    "$env/bin/pip" install -q -r "$pins" >&2
    cp "$pins" "$env/installed.txt"
fi
echo "$env/bin/python"
