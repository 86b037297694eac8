"""Children of tests hear signals, however the suite itself was started."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.children import HEARD, start_child

WAITING = "import time; print('started', flush=True); time.sleep(600)"


@pytest.fixture(params=[*HEARD], ids=lambda number: number.name)
def unheard(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """Yield a signal that the suite ignores, like SIGINT in the background of a shell and SIGHUP under nohup."""
    before = signal.signal(request.param, signal.SIG_IGN)
    yield request.param
    signal.signal(request.param, before)


def ended_by(child: subprocess.Popen[str], number: signal.Signals) -> int:
    """Send a signal to a child that has started, then SIGKILL; return the exit code."""
    assert child.stdout.readline() == "started\n"
    child.send_signal(number)
    try:
        return child.wait(20)
    except subprocess.TimeoutExpired:
        return 0
    finally:
        child.kill()
        child.communicate()


def test_a_child_hears_what_the_suite_ignores(unheard: signal.Signals) -> None:
    child = start_child([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    assert ended_by(child, unheard) == -unheard


def test_a_child_that_is_to_ignore_a_signal_does_not_hear_it() -> None:
    words = [sys.executable, "-c", WAITING.replace("600", "1")]
    child = start_child(words, ignored=[signal.SIGINT], stdout=subprocess.PIPE, text=True)
    assert ended_by(child, signal.SIGINT) == 0


def test_a_child_that_can_be_sent_a_signal_is_started_in_one_place() -> None:
    found = {
        path.name: node.lineno
        for path in Path(__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("subprocess.Popen", "Popen")
    }
    assert found.keys() == {"children.py"}, found
