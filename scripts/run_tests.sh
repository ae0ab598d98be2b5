#!/usr/bin/env bash
# Install the test dependencies, check the code, and run the tests. docs/testing.md describes the tests.
#   bash scripts/run_tests.sh               the default tier, under 10 minutes on 2 cores
#   bash scripts/run_tests.sh --all         also the slow tier
#   bash scripts/run_tests.sh tests/unit    pass arguments to pytest
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
run() { # NAME COMMAND...: run a command and print its duration
    local name=$1 started=$SECONDS code=0
    shift
    "$@" || code=$?
    printf '%s: %d min %02d s\n' "$name" $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60))
    [ "$code" != 130 ] || exit 130
    [ "$code" = 0 ] || failed=1
}

check() {
    ruff check . && ruff format --check --quiet . && mypy && lint-imports --no-logo
}

found=
tests() { # MARKER ARGUMENTS...
    local marker=$1 code=0
    shift
    # distribute whole files, because the tests of a file share trained runs; keep the order, which starts with the
    # files with the longest tests
    python -m pytest -m "$marker" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@" || code=$?
    case $code in
        2) return 130 ;; # interrupted
        5) return 0 ;;   # the arguments select no test of this tier
    esac
    found=yes
    return "$code"
}

run "checks" check
run "default tier" tests "not slow" "$@"
[ -z "$all" ] || run "slow tier" tests slow "$@"
if [ -z "$found" ]; then
    echo "error: no test was selected; to include slow tests, use --all" >&2
    failed=1
fi
exit "$failed"
