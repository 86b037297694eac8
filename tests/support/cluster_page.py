"""Read the commands of "From a laptop to a cluster" in the manual of engines, and make them small enough for a CPU."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

PAGE = Path(__file__).parents[2] / "trd_cli" / "engines" / "README.md"
SECTION = "## From a laptop to a cluster\n"
# Models and devices that a test has not; the rest of a command stays.
_SMALL = {
    r"Qwen/\S+": "scripted",
    r"--engine vllm": "--engine scripted",
    r"--replicas auto": "--replicas 2",
    r" --batch-invariant": "",
}


def lines() -> list[str]:
    """Return the lines of the section's shell blocks, without comments."""
    section = PAGE.read_text().split(SECTION)[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    return [line.partition("   #")[0].strip() for block in blocks for line in block.splitlines()]


def of_the_array() -> tuple[str, int]:
    """Return the command of each task of the job array, and the number of tasks."""
    [line] = [line for line in lines() if line.startswith("sbatch ")]
    words = shlex.split(line)
    first, last = re.search(r"--array=(\d+)-(\d+)", line).groups()
    assert first == "1"
    return words[words.index("--wrap") + 1], int(last)


def in_small(line: str) -> list[str]:
    """Return the words after `trd` of a command, with the scripted engine, no GPU and two replicas for all."""
    for wanted, small in _SMALL.items():
        line = re.sub(wanted, small, line)
    return shlex.split(line)[1:]
