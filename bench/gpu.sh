#!/usr/bin/env bash
# bench/gpu.sh OUTDIR [MINUTES]: the one command for a machine with a GPU. See bench/README.md.
# Builds the extension for the present card, checks and measures it, runs the tests on it, and leaves
# gpu.json, table.md and logs in OUTDIR. Ends within MINUTES (9), with whatever it has by then.
set -euo pipefail

usage="usage: bench/gpu.sh OUTDIR [MINUTES]"
case "${1:-}" in
  '')
    echo "$usage" >&2
    exit 2
    ;;
  -h | --help)
    echo "$usage"
    exit 0
    ;;
esac
mkdir -p "$1"
out=$(cd "$1" && pwd)
minutes=${2:-9}
python=${PYTHON:-python3}
# Relative paths are the caller's. A link is kept: behind it may stand another environment.
if [[ $python == */* && $python != /* ]]; then python=$PWD/$python; fi
wheelhouse=${RAPKERNELS_WHEELS:-}
if [[ -n $wheelhouse && $wheelhouse != /* ]]; then wheelhouse=$PWD/$wheelhouse; fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RAPKERNELS_GPU_STARTED=$(date +%s)
export RAPKERNELS_GPU_STARTED PYTHONUNBUFFERED=1
if ! "$python" -c 'import sys; from importlib.util import find_spec
sys.exit(not (find_spec("torch") and find_spec("click")))'; then
  echo "bench/gpu.sh: $python has no torch or no click; set PYTHON to one that has both" >&2
  exit 2
fi

# Packages that the machine lacks, carried along as wheels; nothing that is installed there changes.
if [[ -n $wheelhouse ]]; then
  shopt -s nullglob
  wheels=("$wheelhouse"/*.whl)
  if ((${#wheels[@]})); then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    if "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
      --disable-pip-version-check --target "$site" "${wheels[@]}"; then
      export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
      echo "bench/gpu.sh: ${#wheels[@]} wheels installed from $wheelhouse"
    else
      echo "bench/gpu.sh: the wheels in $wheelhouse could not be installed; going on without" >&2
    fi
  else
    echo "bench/gpu.sh: no wheels in $wheelhouse" >&2
  fi
fi

device=${RAPKERNELS_GPU_DEVICE:-cuda}
options=(--device "$device" --stages "${RAPKERNELS_GPU_STAGES:-}")
# On the CPU the script can only be tried.
if [[ $device == cpu ]]; then options+=(--tiny); fi

"$python" -m bench.gpu "$out" "$minutes" "${options[@]}" &
driver=$!
trap 'kill -TERM "$driver" 2>/dev/null' TERM INT
# A signal ends the first wait; the driver then ends by itself and leaves what it has.
status=0
wait "$driver" || status=$?
if kill -0 "$driver" 2>/dev/null; then
  status=0
  wait "$driver" || status=$?
fi
exit "$status"
