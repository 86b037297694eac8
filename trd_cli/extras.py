"""Packages that only some uses need: they come with an extra of this package."""

from __future__ import annotations

from importlib import metadata
from shutil import which

from trd_cli.errors import InputError

# Extras of which pip compiles a package, with the programs that it needs.
_COMPILERS = {"worlds": ("gcc", "make")}


def version_of(package: str, extra: str) -> str:
    """Return the version of an installed package; raises InputError that tells how to install the extra it is of."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        missing = " and ".join(program for program in _COMPILERS.get(extra, ()) if which(program) is None)
        first = f", once pip finds {missing}, by which it compiles" if missing else ""
        raise InputError(
            f"the package {package} is not installed",
            f"the extra {extra}",
            f'pip install "trd-cli[{extra}]"{first}',
        ) from None
