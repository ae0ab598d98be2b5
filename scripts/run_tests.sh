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
    # by file, in order: tests of a file share what they trained, and files with long tests come first
    python -m pytest -m "$marker" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@" || code=$?
    case $code in
        2) return 130 ;; # interrupted
        5) return 0 ;;   # the arguments chose no test of this tier
    esac
    found=yes
    return "$code"
}

run "checks" check
run "default tier" tests "not slow" "$@"
[ -z "$all" ] || run "slow tier" tests slow "$@"
if [ -z "$found" ]; then
    echo "error: no test was chosen; with --all, slow tests can be chosen as well" >&2
    failed=1
fi
exit "$failed"
