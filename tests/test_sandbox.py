"""The promises of each level of the sandbox, the messages between its two sides, and the remains of a closed one."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, OrderedDict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import Result
from support.children import start_child

from trd_cli.graders.inside import codec, nodes
from trd_cli.graders.sandbox import (
    LEVELS,
    Ended,
    Level,
    Limits,
    OutOfTime,
    Sandbox,
    SandboxError,
    choose_level,
    refusal,
)

Trd = Callable[..., Result]
LIMITS = Limits(1 << 30, 20)
HAS_BWRAP = shutil.which("bwrap") is not None


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Level:
    reason = refusal(request.param)
    if reason is not None:
        pytest.skip(f"--sandbox {request.param}: {reason}")
    return request.param


@pytest.fixture
def closed(level: Level) -> Level:
    """Return a level that closes the file system and the network."""
    if level == "limits":
        pytest.skip("limits leaves files and the network in reach")
    return level


@dataclass
class Program:
    """A program loaded in a sandbox."""

    sandbox: Sandbox

    def __call__(self, name: str, *args: Any, seconds: float = 10.0) -> Any:
        return self.sandbox.call(name, args, {}, seconds)


def loaded(sandbox: Sandbox, source: str) -> Program:
    reply = sandbox.ask({"load": source, "prelude": False}, 10.0)
    assert reply == {"ok": True}, reply
    return Program(sandbox)


def answer(level: Level, source: str, *args: Any) -> Any:
    """Return the result of a program's `f`."""
    with Sandbox(level, LIMITS) as sandbox:
        return loaded(sandbox, source)("f", *args)


# The reach of a program


def test_only_the_installation_and_an_empty_directory_can_be_read(closed: Level, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    source = "import os\ndef f(paths): return [os.path.exists(p) for p in paths], os.listdir('.'), os.getcwd(), sorted(os.listdir('/tmp'))"
    root = Path(__file__).parent.parent
    hidden = [
        str(tmp_path / "secret"),
        str(root / "README.md"),
        str(root / "tests"),
        "/etc/passwd",
        "/root/.ssh",
        "/sys",
    ]
    below = {Path(path).parts[2] for path in (sys.prefix, sys.base_prefix) if path.startswith("/tmp/")}
    expected = ("/tmp/work", sorted(below | {"work"})) if below else ("/tmp", [])
    assert answer(closed, source, hidden) == ([False] * len(hidden), [], *expected)


@pytest.fixture
def below_tmp() -> Iterator[Path]:
    """Yield the interpreter of an environment below `/tmp` that has the packages of this one."""
    import tempfile
    import venv

    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        venv.create(directory, with_pip=False, symlinks=True)
        (packages,) = Path(directory).glob("lib/python*/site-packages")
        here = [str(Path(__file__).parent.parent), *(path for path in sys.path if path.endswith("-packages"))]
        (packages / "here.pth").write_text("\n".join(here) + "\n")
        yield Path(directory) / "bin" / "python"


def test_an_environment_below_tmp_keeps_its_sandbox(closed: Level, below_tmp: Path) -> None:
    program = "import os, sys, tempfile, numpy\ndef f(x):\n    open('left', 'w').close()\n    return os.listdir('.'), os.path.exists(sys.prefix), tempfile.gettempdir() == os.getcwd(), os.path.exists(x)"
    script = f"""
import sys
from trd_cli.graders.sandbox import Limits, Sandbox, described
assert sys.prefix.startswith("/tmp/"), sys.prefix
with Sandbox({closed!r}, Limits(1 << 30, 20)) as sandbox:
    assert sandbox.ask({{"load": {program!r}, "prelude": False}}, 20) == {{"ok": True}}
    print(sandbox.call("f", ({str(Path(__file__).parent)!r},), {{}}, 20))
print(described("auto"))
"""
    done = subprocess.run([below_tmp, "-c", script], capture_output=True, text=True, cwd="/")
    assert done.stdout.splitlines() == ["(['left'], True, True, False)", choose_level("auto")], done.stderr


def test_what_can_be_read_cannot_be_written(closed: Level) -> None:
    source = """
import os
def f(paths):
    found = []
    for path in paths:
        try: open(os.path.join(path, 'trd-was-here'), 'w').close()
        except OSError as error: found.append(type(error).__name__)
        else: found.append('written')
    return found
"""
    found = answer(closed, source, ["/usr", "/", sys.prefix, os.path.dirname(os.__file__), "/tmp"])
    assert "written" not in found[:-1]
    assert found[-1] == "written"


def test_packages_can_be_imported(level: Level) -> None:
    assert answer(level, "def f(x):\n    import numpy\n    return numpy.float64(x) + 1", 1.5) == 2.5


def test_each_sandbox_starts_with_an_empty_directory_of_its_own(level: Level) -> None:
    source = "import os\ndef f(x):\n    open('left', 'w').close()\n    return sorted(os.listdir('.'))"
    assert [answer(level, source, 0) for _ in range(2)] == [["left"], ["left"]]


def test_temporary_files_go_into_that_directory(level: Level) -> None:
    source = "import os, tempfile\ndef f(x): return os.path.samefile(tempfile.gettempdir(), os.getcwd())"
    assert answer(level, source, 0) is True


def test_the_network_is_another_one(closed: Level) -> None:
    import socket

    source = "import socket\ndef f(port):\n    try: socket.create_connection(('127.0.0.1', port), 2)\n    except OSError: return 'closed'\n    return 'open'"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert answer(closed, source, listener.getsockname()[1]) == "closed"


def test_the_user_s_variables_are_absent(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRD_TEST_SECRET", "hush")
    source = "import os\ndef f(x): return sorted(os.environ), 'hush' in str(dict(os.environ))"
    names, there = answer(level, source, 0)
    assert not there
    assert set(names) <= {
        "PATH",
        "HOME",
        "TMPDIR",
        "LANG",
        "LC_CTYPE",
        "PWD",
        "PYTHONHASHSEED",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
    }


def test_other_processes_cannot_be_seen(closed: Level) -> None:
    source = "import os\ndef f(x): return sorted(int(n) for n in os.listdir('/proc') if n.isdigit())"
    assert len(answer(closed, source, 0)) < 6


def test_root_becomes_nobody_without_capabilities() -> None:
    if refusal("namespaces") is not None:
        pytest.skip(str(refusal("namespaces")))
    if os.geteuid() != 0:
        pytest.skip("not run as root")
    source = "import os, re\ndef f(x): return os.getresuid(), re.findall(r'Cap(?:Eff|Prm|Bnd):\\s*(\\w+)', open('/proc/self/status').read())"
    with Sandbox("namespaces", LIMITS) as sandbox:
        program = loaded(sandbox, source)
        users, capabilities = program("f", 0)
        assert (set(users), {int(c, 16) for c in capabilities}) == ({1}, {0})
        assert {65534} in [set(process.uids()) for process in family()]


# The process that sandboxes are forked from


def test_a_sandbox_has_its_pipes_and_nothing_of_its_parent_s(level: Level) -> None:
    source = """
import os, stat
def f(x):
    kinds = {}
    for n in range(256):
        try: mode = os.fstat(n).st_mode
        except OSError: continue
        kinds[n] = 'pipe' if stat.S_ISFIFO(mode) else 'device' if stat.S_ISCHR(mode) else 'other'
    return sorted(kinds.values())
"""
    assert answer(level, source, 0) == ["device"] * 3 + ["pipe"] * 2


def test_random_numbers_differ_from_one_sandbox_to_the_next(level: Level) -> None:
    source = "import random\ndef f(x): return random.random(), random.getrandbits(64)"
    assert len({answer(level, source, 0) for _ in range(3)}) == 3


def test_what_one_program_leaves_another_does_not_find(level: Level) -> None:
    leaving = "import builtins, os, random, sys\ndef f(x):\n    sys.modules['left'] = builtins.left = os.left = 1\n    os.environ['LEFT'] = '1'\n    random.seed(7)"
    finding = "import builtins, os, random, sys\ndef f(x):\n    first = random.random()\n    random.seed(7)\n    return 'left' in sys.modules, hasattr(builtins, 'left'), hasattr(os, 'left'), 'LEFT' in os.environ, first == random.random()"
    answer(level, leaving, 0)
    assert answer(level, finding, 0) == (False,) * 5


def test_no_module_flag_or_argument_of_the_runner_is_seen(level: Level) -> None:
    source = "import sys\ndef f(x: Nothing): return x"
    with Sandbox(level, LIMITS) as sandbox:
        assert "NameError" in sandbox.ask({"load": source, "prelude": True}, 10.0)["raised"]
    source = "import sys\ndef f(x: int):\n    ours = {'jail', 'runner', 'codec', 'objects', 'stand_ins', 'exceptions', 'containers', 'names', 'nodes', 'forgeries', 'checking'} & set(sys.modules)\n    return ours, f.__annotations__['x'] is int, sys.argv, [n for n in globals() if not n.startswith('__')]"
    assert answer(level, source, 0) == (set(), True, ["solution.py"], ["sys", "f"])


def test_a_parent_that_was_ended_is_started_again(level: Level) -> None:
    if level == "bwrap":
        pytest.skip("bwrap starts each sandbox as a program of its own")
    answer(level, "def f(x): return x", 1)
    for process in psutil.Process().children():
        if is_of_a_sandbox(process):
            process.kill()
            process.wait(5)
    assert answer(level, "def f(x): return x", 2) == 2


def test_many_calls_travel_together_and_each_has_its_own_limit(level: Level) -> None:
    source = "import time\ndef f(x):\n    if x == 9:\n        while True: pass\n    time.sleep(x)\n    return [x] * 3"
    with Sandbox(level, LIMITS) as sandbox:
        loaded(sandbox, source)
        naps = [0, 0, 0.2, 0, 0.2, 0, 0.2]
        assert list(sandbox.calls("f", [(n,) for n in naps], [0.5] * 7)) == [[n] * 3 for n in naps]
        with pytest.raises(OutOfTime):
            list(sandbox.calls("f", [(0,), (9,), (0,)], [0.3] * 3))


# Limits


LIMIT = "import resource\ndef f(name): return resource.getrlimit(getattr(resource, name))"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RLIMIT_AS", 1 << 30),
        ("RLIMIT_CPU", 20),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", 256 << 20),
        ("RLIMIT_NOFILE", 256),
    ],
)
def test_limits_are_set_below_and_above(level: Level, name: str, value: int) -> None:
    assert answer(level, LIMIT, name) == (value, value)


def test_limits_are_inherited(level: Level) -> None:
    source = "import subprocess, sys\ndef f(x): return subprocess.run([sys.executable, '-S', '-c', 'import resource; print(resource.getrlimit(resource.RLIMIT_AS)[1])'], capture_output=True, text=True).stdout"
    assert int(answer(level, source, 0)) == 1 << 30


def test_memory_beyond_the_limit_is_an_exception_of_the_program(level: Level) -> None:
    with Sandbox(level, LIMITS) as sandbox:
        program = loaded(sandbox, "def f(x): return len(bytearray(x))")
        with pytest.raises(RuntimeError, match="MemoryError"):
            program("f", 2 << 30)
        assert program("f", 1000) == 1000


def test_the_time_of_the_processor_is_limited(level: Level) -> None:
    with Sandbox(level, Limits(1 << 30, 1)) as sandbox:
        program = loaded(sandbox, "def f(x):\n    while True: pass")
        with pytest.raises(Ended):
            program("f", 0, seconds=30.0)


def test_temporary_files_are_bounded_together(closed: Level) -> None:
    source = """
def f(count):
    written = 0
    try:
        for n in range(count):
            with open(f'/tmp/{n}', 'wb') as file:
                for _ in range(100): written += file.write(bytes(1 << 20))
    except OSError: pass
    return written
"""
    assert answer(closed, source, 4) <= 256 << 20


# Leftovers


def family(of: int | None = None) -> list[psutil.Process]:
    """Return the processes of all sandboxes of this process, or of another, without the parent that forks them."""
    below = psutil.Process(of).children(recursive=True)
    parents = [p for p in psutil.Process(of).children() if is_of_a_sandbox(p)]
    return [p for p in below if alive(p) and is_of_a_sandbox(p) and p not in parents]


def is_of_a_sandbox(process: psutil.Process) -> bool:
    try:
        return any(word.endswith("jail.py") for word in process.cmdline())
    except psutil.Error:
        return False


def ended(processes: list[psutil.Process], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(p) for p in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(alive(p) for p in processes)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


DAEMON = """
import os, time
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for n in range(3): os.close(n)
            time.sleep(600)
        os._exit(0)
    time.sleep(0.2)
    if x: os._exit(0)
    return 0
"""


@pytest.mark.parametrize("ends_itself", [0, 1], ids=["the runner stays", "the runner ends"])
def test_descendants_end_with_the_sandbox(level: Level, ends_itself: int) -> None:
    with Sandbox(level, LIMITS) as sandbox:
        program = loaded(sandbox, DAEMON)
        if ends_itself:
            # The daemon may hold the pipe open, so that its end is not seen.
            with pytest.raises((Ended, OutOfTime)):
                program("f", 1, seconds=1.0)
        else:
            program("f", 0)
        processes = family()
    assert ended(processes)


def test_a_script_that_ends_its_runner_ends_with_the_sandbox(level: Level) -> None:
    with Sandbox(level, LIMITS) as sandbox:
        sandbox.ask({"script": "import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(600)"}, 10.0)
        with pytest.raises((Ended, OutOfTime)):
            sandbox.ask({"stdin": "", "limit": 1.0}, 1.0)
        processes = family()
    assert ended(processes)


def test_a_grader_that_is_killed_takes_its_sandbox_along(level: Level) -> None:
    source = f"""
import time
from trd_cli.graders.sandbox import Limits, Sandbox
with Sandbox({level!r}, Limits(1 << 30, 20)) as sandbox:
    print("ready", flush=True)
    sandbox.ask({{"load": "import time\\ntime.sleep(600)", "prelude": False}}, 600)
"""
    with start_child([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) as grader:
        assert grader.stdout.readline() == "ready\n"
        processes = family(grader.pid)
        assert len(processes) > 1
        grader.send_signal(signal.SIGKILL)
    assert ended(processes)


def test_the_directory_of_a_sandbox_is_removed(level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer(level, "def f(x):\n    open('left', 'w').close()", 0)
    assert list(tmp_path.iterdir()) == []


# Replies


def test_what_a_program_raises_is_told(level: Level) -> None:
    with Sandbox(level, LIMITS) as sandbox:
        program = loaded(sandbox, "def f(x): raise KeyError(x)")
        with pytest.raises(RuntimeError, match="KeyError: 'k'"):
            program("f", "k")


def test_no_reply_in_time_is_told_from_an_end(level: Level) -> None:
    with Sandbox(level, LIMITS) as sandbox:
        program = loaded(sandbox, "import os\ndef f(x):\n    while x: pass\n    os._exit(0)")
        began = time.monotonic()
        with pytest.raises(OutOfTime):
            program("f", 1, seconds=0.3)
        assert time.monotonic() - began < 3
    with Sandbox(level, LIMITS) as sandbox, pytest.raises(Ended):
        loaded(sandbox, "import os\ndef f(x): os._exit(0)")("f", 1)


def test_a_test_program_asks_the_tested_one_in_another_sandbox(level: Level) -> None:
    check = "assert Solution().add(2, b=[3]) == (2, [3])\ntry: Solution().fail()\nexcept ValueError as error: assert str(error) == 'no'\nelse: raise AssertionError"
    source = "class Solution:\n    def add(self, a, b): return a, b\n    def fail(self): raise ValueError('no')"
    with Sandbox(level, LIMITS) as tested:
        loaded(tested, source)
        with Sandbox(level, LIMITS, asked=tested) as judge:
            assert judge.ask({"check": check, "names": [], "limit": 5.0}, 20.0) == {"ok": True}


def test_a_test_program_that_fails_says_why(level: Level) -> None:
    with Sandbox(level, LIMITS) as tested:
        loaded(tested, "class Solution:\n    def f(self): return 1")
        with Sandbox(level, LIMITS, asked=tested) as judge:
            reply = judge.ask({"check": "assert Solution().f() == 2, 'not 2'", "names": [], "limit": 5.0}, 20.0)
    assert reply == {"raised": "AssertionError: not 2"}


# The command line


def test_a_level_that_is_not_installed_is_one_line_and_exit_code_1(trd: Trd, code_set: Path) -> None:
    if HAS_BWRAP and refusal("bwrap") is None:
        pytest.skip("bubblewrap is installed")
    result = trd("verify", code_set, "--sandbox", "bwrap")
    assert result.exit_code == 1
    said = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(said) == 1
    assert "--sandbox bwrap" in said[0]
    assert "Traceback" not in result.stderr


def test_a_level_of_another_name_is_a_usage_error(trd: Trd, code_set: Path) -> None:
    assert trd("verify", code_set, "--sandbox", "none").exit_code in (1, 2)


def test_verify_says_in_which_sandbox_programs_run(ok: Trd, code_set: Path, level: Level) -> None:
    result = ok("verify", code_set, "--sandbox", level, "--workers", 1, "--max-errors", 1000)
    assert f"programs run in the sandbox: {level}" in result.stderr


def test_auto_says_why_it_takes_no_stronger_level(tmp_path: Path) -> None:
    script = "import os, trd_cli.graders.sandbox as s\nprint(s.described('auto'))"
    # No room for another process's user namespace, as in a container that forbids them.
    limited = f"import ctypes, os, sys\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.unshare(0x10000000) == 0\nopen('/proc/sys/user/max_user_namespaces', 'w').write('0')\nexec({script!r})"
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, cwd=tmp_path)
    if "AssertionError" in done.stderr or "Error" in done.stderr:
        pytest.skip(f"user namespaces cannot be forbidden here: {done.stderr[-200:]}")
    level, *reasons = done.stdout.strip().split("; ")
    assert (level, len(reasons)) == ("limits", 2)
    assert all(" is unavailable: " in reason for reason in reasons)


def test_auto_takes_the_strongest_level_there_is() -> None:
    assert choose_level("auto") == next(level for level in LEVELS if refusal(level) is None)


@pytest.fixture
def code_set(rollouts: Path) -> Path:
    """Return a set with one row of code among rows of mathematics."""
    from dataclasses import replace

    from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

    shard = list_shards(rollouts)[0]
    first, *rest = read_rows(shard)
    tests = json.dumps({"kind": "stdin", "inputs": [""], "outputs": ["1\n"]})
    write_shard(shard, [replace(first, task="code", response="```\nprint(1)\n```", tests=tests), *rest])
    return rollouts


# Messages


Point = namedtuple("Point", "x y")
SENT = {
    "None": None,
    "bool": True,
    "int": -7,
    "a long int": 10**6000,
    "float": 0.1,
    "infinity": math.inf,
    "negative zero": -0.0,
    "complex": 1 - 2j,
    "str": "a\u00e9\U0001f642\0\ud800",
    "bytes": b"\0\xff",
    "list": [1, [2.0, "3"]],
    "tuple": (1, (2,)),
    "set": {1, 2},
    "frozenset": frozenset({(1, 2)}),
    "dict": {1: "a", "b": [None], (1, 2): {3}},
    "range": range(3, 9, 2),
    "Fraction": Fraction(-3, 7),
    "Decimal": Decimal("1.50"),
    "bytearray": bytearray(b"\0\xff"),
    "deque": deque([1, [2]]),
    "Counter": Counter("aab"),
    "OrderedDict": OrderedDict(b=1, a=2),
    "keys of a dict": {1: 2}.keys(),
    "items of a dict": {1: 2}.items(),
    "a date": date(2024, 2, 29),
    "a time": datetime(2024, 2, 29, 12, 30),
    "a span of time": timedelta(days=2, seconds=3),
}


def sent(value: Any, refer: Callable[..., Any] | None = None, resolve: Callable[..., Any] | None = None) -> Any:
    return codec.loads(bytes(codec.dumps(value, refer))[codec.HEADER :], resolve)


@pytest.mark.parametrize("name", SENT)
def test_plain_values_keep_their_type(name: str) -> None:
    value = SENT[name]
    assert (sent(value), type(sent(value)), repr(sent(value)) if name != "a long int" else "") == (
        value,
        type(value),
        repr(value) if name != "a long int" else "",
    )


@pytest.mark.parametrize("name", SENT)
def test_plain_values_keep_their_type_on_the_way_through_a_sandbox(name: str, shared: Program) -> None:
    value = SENT[name]
    assert (shared("f", value), type(shared("f", value))) == (value, type(value))


@pytest.fixture(scope="module")
def shared() -> Iterator[Program]:
    with Sandbox("limits", LIMITS) as sandbox:
        yield loaded(sandbox, "def f(x): return x")


def test_nan_stays_nan() -> None:
    assert math.isnan(sent(math.nan))


def test_scalars_of_numpy_keep_their_type() -> None:
    numpy = pytest.importorskip("numpy")
    for value in (numpy.float32(0.5), numpy.int64(-3), numpy.bool_(True)):
        assert (sent(value), type(sent(value))) == (value, type(value))


def test_a_named_tuple_keeps_its_names() -> None:
    found = sent(Point(1, [2]))
    assert found == (1, [2])
    assert (found.x, found.y, type(found).__name__) == (1, [2], "Point")


def test_arrays_of_numbers_keep_their_shape_and_type() -> None:
    numpy = pytest.importorskip("numpy")
    found = sent(numpy.array([[1, 2], [3, 4]], dtype="float32").T)
    assert (found.dtype.name, found.tolist()) == ("float32", [[1.0, 3.0], [2.0, 4.0]])


class Lines(str): ...


class Pairs(dict): ...


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize(
    ("value", "plain"),
    [(Liar(7), 7), (Lines("ab"), "ab"), (Pairs(a=[1]), {"a": [1]})],
    ids=["int", "str", "dict"],
)
def test_what_is_derived_from_a_plain_type_is_sent_as_that(value: Any, plain: Any) -> None:
    assert sent(value) == plain
    assert type(sent(value)) is type(plain)
    assert sent(Liar(7)) != 8


@pytest.mark.parametrize("value", [object(), len, int, lambda: 0, (n for n in ())])
def test_anything_else_is_equal_to_nothing(value: Any) -> None:
    arrived = sent([value])[0]
    assert isinstance(arrived, codec.Opaque)
    assert arrived != value


def test_nodes_of_lists_and_trees_arrive_whole() -> None:
    assert nodes.list_values(sent(nodes.list_node([1, 2, 3]))) == [1, 2, 3]
    tree = [1, None, 2, 3]
    assert nodes.tree_values(sent(nodes.tree_node(tree))) == tree
    assert (nodes.list_node([]), nodes.tree_node([])) == (None, None)


def test_nodes_in_a_circle_and_nodes_of_two_lists_arrive_as_such() -> None:
    node, shared = nodes.ListNode(1), nodes.ListNode(3)
    node.next = node
    found = sent([node, nodes.ListNode(1, shared), nodes.ListNode(2, shared)])
    assert found[0].next is found[0]
    assert found[1].next is found[2].next
    assert found[1].next.val == 3


def test_a_message_may_hold_each_node_of_a_long_list() -> None:
    chain = [nodes.ListNode(str(value % 10)) for value in range(5000)]
    for node, after in pairwise(chain):
        node.next = after
    found = sent(chain)
    assert all(node.next is after for node, after in pairwise(found))


def test_values_may_be_held_often_by_what_is_compared_by_identity() -> None:
    stand_ins = sent(
        [len] * 10_000, refer=lambda value: ("mine", 0, "f", ("__call__",) * 6000, ()), resolve=lambda *parts: parts[2]
    )
    assert stand_ins == ["f"] * 10_000


def test_nodes_in_a_circle_have_no_list_of_values() -> None:
    node = nodes.ListNode(1)
    node.next = node
    with pytest.raises(ValueError, match="circle"):
        nodes.list_values(node)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trd-was-run",)


def test_a_message_that_would_run_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a message with posix"):
        codec.loads(pickle.dumps(Runs()))
    assert list(tmp_path.iterdir()) == []


def named(module: str, name: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"


FORGED = {
    "no message": b"{}",
    "nothing": b"",
    "cut off": pickle.dumps([1, 2])[:-2],
    "another name": b"\x80\x04" + named("builtins", "eval") + b".",
    "a method": b"\x80\x04" + named("builtins", "int.from_bytes") + b".",
    "a module's own names": b"\x80\x04" + named("codec", "_MAKERS") + b".",
    "an attribute of a class": b"\x80\x04"
    + named("codec", "Opaque")
    + b"N}\x8c\x06__eq__"
    + named("builtins", "str")
    + b"s\x86b.",
    "an attribute of Fraction": b"\x80\x04"
    + named("fractions", "Fraction")
    + b"N}\x8c\x06__eq__"
    + named("builtins", "str")
    + b"s\x86b.",
    "a function's namespace": b"\x80\x04" + named("codec", "list_node") + b"}\x8c\x01a\x88sb.",
    "an integer in digits": b"\x80\x04" + named("builtins", "int") + b"\x8c\x0599999\x85R.",
    "a fraction in digits": b"\x80\x04" + named("fractions", "Fraction") + b"\x8c\x0c1e3000000000\x85R.",
    "a list of a range": b"\x80\x04"
    + named("builtins", "list")
    + named("builtins", "range")
    + b"K\0K\x09K\x01\x87R\x85R.",
    "bytes of a length": b"\x80\x04" + named("builtins", "bytes") + b"J\0\0\0\x7f\x85R.",
    "an array": b"\x80\x04" + named("codec", "numpy_scalar") + b"\x8c\x07float64](K\x01K\x02e\x86R.",
    "another scalar": b"\x80\x04" + named("codec", "numpy_scalar") + b"\x8c\x05dtypeK\x01\x86R.",
    "an array of objects": b"\x80\x04"
    + named("codec", "numpy_array")
    + b"\x8c\x06objectK\x01\x85C\x08\0\0\0\0\0\0\0\0\x87R.",
    "a name that is none": b"\x80\x04" + named("codec", "named_tuple") + b"\x8c\x03a;b)\x87R.",
    "a reference": b"\x80\x04" + named("codec", "reference") + b"\x8c\x04mineK\0\x8c\0)))t\x85R.",
    "a graph of one node that leads to another": b"\x80\x04"
    + named("codec", "graph")
    + b"\x8c\x08ListNode](K\0K\x05\x86e\x86R.",
    "a graph of another class": b"\x80\x04" + named("codec", "graph") + b"\x8c\x03int](K\0K\0\x86e\x86R.",
    "a dict with any type for its factory": b"\x80\x04" + named("codec", "default_dict") + b"\x8c\x04typeN}\x87R.",
    "values doubled on the stack": b"\x80\x04K\x01" + b"2\x86" * 60 + b".",
    "values doubled by their places": b"\x80\x04)\x94"
    + b"".join(b"g%d\ng%d\n\x86\x94" % (i, i) for i in range(60))
    + b".",
    "a persistent id": b"\x80\x04\x8c\x01aQ.",
    "an extension": b"\x80\x04\x82\x01.",
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_message_is_refused_and_changes_nothing(name: str) -> None:
    with pytest.raises(ValueError, match="not a message"):
        codec.loads(FORGED[name])
    assert codec.Opaque() != 1
    assert Fraction(1, 2) != 1


def test_a_forged_message_ends_the_program_it_comes_from(level: Level) -> None:
    source = """
import os, struct
def f(data):
    for n in os.listdir('/proc/self/fd'):
        try: os.write(int(n), struct.pack('>Q', len(data)) + data)
        except OSError: pass
"""
    with Sandbox(level, LIMITS) as sandbox, pytest.raises(Ended, match="wrote into the grader's pipe"):
        loaded(sandbox, source)("f", b"{}")


def test_a_sandbox_that_cannot_be_closed_is_no_failure_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = refusal("bwrap") if HAS_BWRAP else None
    if reason is None:
        pytest.skip("no level is refused by the kernel here")
    with pytest.raises(SandboxError):
        Sandbox("bwrap", LIMITS).__enter__()
