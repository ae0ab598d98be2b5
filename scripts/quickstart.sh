#!/usr/bin/env bash
# Install into .venv, then train the demo. Arguments go to scripts/train.py: bash scripts/quickstart.sh training.seed=1
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh demo
cores=$(nproc)
if nvidia-smi -L >/dev/null 2>&1 || [ "$cores" -lt 2 ]; then
    exec .venv/bin/python scripts/train.py --config configs/demo.yaml "$@"
fi
# On CPU the demo's matrices are too small for threads: ranks of one thread each are quicker than threads of one rank.
# The run is the same; six tasks a step keep at most six ranks busy.
export OMP_NUM_THREADS=1
exec .venv/bin/torchrun --standalone --nproc_per_node "$((cores < 6 ? cores : 6))" \
    scripts/train.py --config configs/demo.yaml "$@"
