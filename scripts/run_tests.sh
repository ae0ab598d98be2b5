#!/usr/bin/env bash
# Install what the tests need, check the code, and run the tests. docs/testing.md says how tests are laid out.
#   bash scripts/run_tests.sh               the default tier, under 10 minutes on 2 cores
#   bash scripts/run_tests.sh --all         then the slow tier as well
#   bash scripts/run_tests.sh tests/unit    arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
all=
if [ "${1:-}" = --all ]; then
    all=yes
    shift
fi
bash scripts/install.sh dev
export PATH="$PWD/.venv/bin:$PATH"

failed=0
run() { # NAME COMMAND...: run a command, and say how long it took
    local name=$1 started=$SECONDS
    shift
    "$@" || failed=1
    printf '%s: %d min %02d s\n' "$name" $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60))
}

check() {
    ruff check . && ruff format --check --quiet . && mypy && lint-imports --no-logo
}

tests() { # MARKER ARGUMENTS...
    local marker=$1 code=0
    shift
    # by file, in order: tests of a file share what they trained, and files with long tests come first
    python -m pytest -m "$marker" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@" || code=$?
    # 5: there is no such test, which is no failure if the arguments chose the tests
    [ "$code" = 0 ] || { [ "$code" = 5 ] && [ $# -gt 0 ]; }
}

run "checks" check
run "default tier" tests "not slow" "$@"
[ -z "$all" ] || run "slow tier" tests slow "$@"
exit "$failed"
