"""Keep pandas out of the commands, which do not use it.

pyarrow loads pandas, where it is installed, when it makes its first array: an array may be made of a Series. That is a
third of the start of a short command.
"""

from __future__ import annotations

import sys

import pyarrow as pa


class _Absent:
    """Let imports fail as if pandas were not installed."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not looked for", name=name)


def keep_out_pandas() -> None:
    """Let pyarrow find no pandas now, the one time that it looks; later imports of pandas find it."""
    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, _Absent)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(_Absent)
