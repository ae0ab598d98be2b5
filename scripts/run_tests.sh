#!/usr/bin/env bash
# Install what the tests need and run them all. Arguments go to pytest: bash scripts/run_tests.sh tests/unit
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh dev
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check --quiet .
mypy
lint-imports --no-logo
# by file: the tests of one share what they trained
python -m pytest -n logical --maxprocesses 4 --dist loadfile "$@"
