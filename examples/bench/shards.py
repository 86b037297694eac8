"""Measure the cost of a shard's checksums: time to write and to read, memory to read, and bytes, with and without them.

One shard of 2,000 rows with 2,000 response tokens each: ids, log-probabilities and text, as a reasoning model leaves
them. With: `write_table` and `read_table` of `trd_cli.trajectories.shards`, that is page checksums, those of columns
and footer, and their verification. Without: `pyarrow.parquet` with the same compression, and the same way to the disk.
Read are all columns, the token ids alone, and the ids of rows alone, as when a command resumes. Both ways take turns,
now one first and now the other, on files in the page cache. Time is processor time of all threads. Of each way the
fastest turn counts, because other work on the machine can only make a turn slower. Memory is the growth of a new
process's peak while it reads all columns (Linux).

    python examples/bench/shards.py [--quick]

`--quick` takes four turns in place of twelve.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trd_cli.atomic import replacing
from trd_cli.trajectories.shards import SCHEMA, SCHEMAS, read_table, write_table

ROWS, TOKENS, VOCABULARY = 2000, 2000, 150_000
# Shares of the time to write a shard once and to read it once.
GOAL = 1.2
COLUMNS = {"read all": None, "read token ids": ["response_token_ids"], "read row ids": ["trajectory_id"]}


def realistic(rows: int = ROWS, tokens: int = TOKENS) -> pa.Table:
    """Make rows of rollouts: token ids by Zipf's law, exponential log-probabilities, four characters a token."""
    chance = np.random.default_rng(0)
    ids = np.minimum(chance.zipf(1.2, rows * tokens), VOCABULARY - 1).astype(np.int32)
    words = np.array(["".join(map(chr, chance.integers(97, 123, 3))) + " " for _ in range(20_000)])
    text = words[np.minimum(ids, 19_999)].reshape(rows, tokens)
    problems = ["".join(words[chance.integers(0, 20_000, 60)]) for _ in range(rows)]
    values = {
        "trajectory_id": [chance.bytes(16).hex() for _ in range(rows)],
        "problem_id": [f"problem-{n // 4}" for n in range(rows)],
        "sample_index": [n % 4 for n in range(rows)],
        "problem": [problems[n // 4] for n in range(rows)],
        "messages": [[{"role": "user", "content": problems[n // 4]}] for n in range(rows)],
        "prompt_token_ids": lists(ids[: rows * (tokens // 10)], rows),
        "response": ["".join(row) for row in text],
        "response_token_ids": lists(ids, rows),
        "logprobs": lists(-chance.exponential(0.3, rows * tokens).astype(np.float32), rows),
        "seed": chance.integers(0, 2**62, rows),
    }
    constants = {"round": 0, "stage": "rollout", "source": "bench", "task": "math", "prompt_template": "student"}
    constants |= {"prompt_sha256": "ab" * 32, "model": "m", "model_revision": "r", "engine": "vllm"}
    constants |= {"engine_version": "1", "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 4096}
    filled = {name: [constants.get(name)] * rows for name in SCHEMA.names} | values
    return pa.table({name: pa.array(filled[name], SCHEMA.field(name).type) for name in SCHEMA.names}, SCHEMA)


def lists(values: np.ndarray, count: int) -> pa.Array:
    """Cut values into so many lists of one length."""
    ends = np.arange(count + 1, dtype=np.int32) * (len(values) // count)
    return pa.ListArray.from_arrays(ends, pa.array(values))


def write_plainly(path: Path, table: pa.Table) -> None:
    table = table.replace_schema_metadata({"trd.schema_version": [*SCHEMAS][-1]})
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd", dictionary_pagesize_limit=64 << 20)


def read_plainly(path: Path, columns: list[str] | None) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read(columns=columns)


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Return the processor seconds of the work, the mean of so many times."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def measure(turns: int, plain: Path, ours: Path) -> dict[str, tuple[float, float]]:
    """Measure the processor seconds with and without checksums."""
    table = realistic()
    ways: dict[str, tuple[Callable[[], object], Callable[[], object], int]] = {
        "write": (partial(write_table, ours, table), partial(write_plainly, plain, table), 1)
    }
    for name, columns in COLUMNS.items():
        times = 5 if columns is None else 20
        ways[name] = (partial(read_table, ours, columns), partial(read_plainly, plain, columns), times)
    found: dict[str, tuple[float, float]] = {}
    for name, (*pair, times) in ways.items():
        taken: tuple[list[float], list[float]] = ([], [])
        for turn in range(turns):
            for which in (0, 1) if turn % 2 else (1, 0):
                taken[which].append(seconds(pair[which], times))
        found[name] = (min(taken[0]), min(taken[1]))
    return found


def growth(reader: str, path: Path) -> float:
    """Measure the MiB by which the peak memory of a new process grows while it reads a file."""
    words = [sys.executable, __file__, "--reader", reader, str(path)]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def peak() -> float:
    """Return the peak of this process's resident memory, in MiB."""
    # Not by getrusage, where a new process begins with the peak of the one that started it.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    return int(line.split()[1]) / 1024


def read_once(reader: str, path: Path) -> None:
    (read_table if reader == "ours" else read_plainly)(path, ["trajectory_id"])  # imports and first uses
    before = peak()
    table = read_table(path) if reader == "ours" else read_plainly(path, None)
    print(peak() - before)
    assert table.num_rows == ROWS


def main(turns: int) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        plain, ours = Path(directory, "plain.parquet"), Path(directory, "shard-00000.parquet")
        found = measure(turns, plain, ours)
        memory = {name: growth(name, path) for name, path in (("ours", ours), ("plain", plain))}
        sizes = ours.stat().st_size, plain.stat().st_size
    ratios = {name: a / b for name, (a, b) in found.items()}
    print(f"{'':<16}{'with, ms':>12}{'without, ms':>14}{'ratio':>8}")
    for name, (a, b) in found.items():
        print(f"{name:<16}{1000 * a:>12.1f}{1000 * b:>14.1f}{ratios[name]:>8.2f}")
    print(f"memory to read all: {memory['ours']:.0f} MiB with, {memory['plain']:.0f} MiB without")
    print(f"bytes: {sizes[0]} with, {sizes[1]} without ({sizes[0] / sizes[1] - 1:+.3%})")
    (w, v), (r, s) = found["write"], found["read all"]
    both = (w + r) / (v + s)
    result = {
        "name": "shards",
        "value": round(both, 3),
        "goal": GOAL,
        "ok": both <= GOAL,
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "memory_mib": {name: round(value) for name, value in memory.items()},
        "bytes": list(sizes),
    }
    print(json.dumps(result))
    return result["ok"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="four turns in place of twelve")
    parser.add_argument("--reader", help=argparse.SUPPRESS)
    parser.add_argument("path", nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        read_once(options.reader, Path(options.path))
    else:
        sys.exit(0 if main(4 if options.quick else 12) else 1)
