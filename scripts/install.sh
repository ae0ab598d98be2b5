#!/usr/bin/env bash
# Create .venv and install pico_ds with an extra (demo or dev). Running the script again is fast and changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
extra="${1:-demo}"
torch_version=2.13.0

find_python() {
    for candidate in python3 python3.12 python3.13 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11, 3.12 or 3.13 on PATH; install one of them" >&2
    exit 1
}

if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    "$python" -m venv .venv || {
        echo "error: $python cannot create a virtual environment; on Debian and Ubuntu, run: apt install python3-venv" >&2
        exit 1
    }
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"; }

stamp=".venv/.installed-$extra"
if [ -f "$stamp" ] && [ "$stamp" -nt setup.py ]; then
    exit 0
fi
echo "installing into .venv (2 to 5 minutes the first time)" >&2
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    # On Linux, the PyPI build of torch includes several GB of CUDA. Without a GPU, the CPU build is enough.
    if ! nvidia-smi -L >/dev/null 2>&1 && [ "$(uname -sm)" = "Linux x86_64" ] && [ -z "${CI:-}" ]; then
        pip install --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu \
            "torch==$torch_version" 2>/dev/null || true
    fi
    pip install "torch==$torch_version"
fi
pip install --editable ".[$extra]"
touch "$stamp"
echo "installed; to use this environment, run: source .venv/bin/activate" >&2
