#!/bin/sh
# Make .venvs/peers for benchmarks/stream.py and print its python; nothing is done where it is there already.
set -eu
repo=$(cd "$(dirname "$0")/.." && pwd)
pins="$repo/benchmarks/peers-requirements.txt"
shared="$repo/tests/conformance/environments/energon.txt"
env="$repo/.venvs/peers"
if ! cat "$pins" "$shared" | cmp -s - "$env/installed.txt"; then
    rm -rf "$env"
    "${PYTHON:-python3}" -m venv "$env"
    # torch first: resolved together with the rest, pip may fetch another build of it.
    "$env/bin/pip" install -q -c "$shared" torch >&2
    "$env/bin/pip" install -q -r "$pins" >&2
    cat "$pins" "$shared" > "$env/installed.txt"
fi
echo "$env/bin/python"
