#!/usr/bin/env bash
# Install into .venv, then train the demo. Arguments go to scripts/train.py: bash scripts/quickstart.sh training.seed=1
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh demo
exec .venv/bin/python scripts/train.py --config configs/demo.yaml "$@"
