#!/usr/bin/env bash
# All tests that a machine without GPU can run; arguments go to pytest. Sets up .venv on first use.
set -euo pipefail
trd_with_worlds=1
source "$(dirname "$0")/../examples/setup.sh"
cd "$trd_root"

# One thread a process: torch threads that outnumber the cores slow each other down many times over.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false TRD_DATA="${TRD_DATA:-$trd_root/../shared/data}"
# With it every command that a test starts would compile the package again.
unset PYTHONDONTWRITEBYTECODE
ruff format --check --quiet . && ruff check --quiet .
# Four processes for two cores, since many tests wait for other processes: a program's time limit, a kill, a launch. Files
# go to them in the order of conftest.py.
exec python -m pytest -n 4 --dist loadfile --no-loadscope-reorder "$@"
