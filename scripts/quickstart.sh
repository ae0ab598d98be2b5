#!/usr/bin/env bash
# Install into .venv, then train the demo. Arguments are passed to scripts/train.py, for example training.seed=1.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh demo
cores=$(nproc)
if nvidia-smi -L >/dev/null 2>&1 || [ "$cores" -lt 2 ]; then
    exec .venv/bin/python scripts/train.py --config configs/demo.yaml "$@"
fi
# On CPU, the matrices of the demo are too small for threads: several ranks with one thread each are faster than one
# rank with several threads, and compute the same result. A step has six tasks, so use at most six ranks.
export OMP_NUM_THREADS=1
exec .venv/bin/torchrun --standalone --nproc_per_node "$((cores < 6 ? cores : 6))" \
    scripts/train.py --config configs/demo.yaml "$@"
