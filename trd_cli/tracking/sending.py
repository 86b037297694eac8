"""Send the figures of stages that are done to a tracker, in a process of its own.

    python -m trd_cli.tracking.sending

`trd run` starts it, gives it one Order by a pipe, and gets one Answer, after what `Tell` describes.
The process ends with its run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection

from trd_cli.atomic import make_directory
from trd_cli.children import end_group, pipe_to_parent
from trd_cli.errors import ResumeRefused, UserError, first_line
from trd_cli.locks import awaited
from trd_cli.report.run_directory import read_run
from trd_cli.tracking.base import Answer, Batch, Order, Place, Point, Tracked, Tracker
from trd_cli.tracking.figures import Figures, Steps
from trd_cli.tracking.state import DIRECTORY, Sent, State

# Seconds for a process of a run that was killed to end.
_PATIENCE = 60.0
_NICE = 10
# The points of stages, by the stages' digests.
Made = dict[str, list[Point]]
# Called with True when the tracker has its turn, and with False before figures are computed.
Tell = Callable[[bool], None]


def send(order: Order, tell: Tell) -> Answer:
    """Send the figures of all stages that are done and not sent. Raises any exception of the tracker's."""
    figures = Figures(read_run(order.directory))
    make_directory(order.directory / DIRECTORY)
    with awaited(order.directory / DIRECTORY / ".lock", _PATIENCE):
        state = State(order.directory, order.tracker, order.project)
        waiting = [each for each in order.tracked if _is_waiting(each, state.of(each.name, each.digest)[1], figures)]
        if not waiting:
            return Answer()
        tell(True)
        tracker, failures = TRACKERS[order.tracker](), []
        if not tracker.is_late or order.is_last:
            for tracked in waiting:
                tell(False)
                made, unread = _made(tracked, state.of(tracked.name, tracked.digest)[1], figures)
                failures += unread
                tell(True)
                if made:
                    _send_one(order, tracked, state, tracker, made)
    return Answer(failures[0] if failures else None, tracker.is_late)


def _send_one(order: Order, tracked: Tracked, state: State, tracker: Tracker, made: Made) -> None:
    """Send what is new of one arm and seed."""
    id, sent = state.of(tracked.name, tracked.digest)
    batch = _numbered(made, sent)
    state.save()
    place = Place(order.project, state.group, sent.name, id, tracked.config, order.directory, sent.files)
    sent.files = list(tracker.log(place, batch))
    sent.sent += sent.unsure
    sent.unsure = {}
    state.save()


def _is_waiting(tracked: Tracked, sent: Sent, figures: Figures) -> bool:
    """Return True if a stage's figures are there and not sent."""
    nodes, unsent = figures.run.nodes, (name for name, digest in tracked.nodes.items() if digest not in sent.sent)
    return any(figures.is_ready(nodes[name]) for name in unsent if name in nodes)


def _made(tracked: Tracked, sent: Sent, figures: Figures) -> tuple[Made, list[str]]:
    """Return the points of the stages to send by their digests, and why some cannot be read.

    Those that may have been sent before are first.
    """
    nodes = [figures.run.nodes[name] for name in tracked.nodes if name in figures.run.nodes]
    done = [node for node in nodes if figures.is_ready(node)]
    steps = Steps([node for node in done if node.stage == "distill"])
    by_digest = {tracked.nodes[node.name]: node for node in done}
    again = [digest for digest in sent.unsure if digest in by_digest]
    new = [digest for digest in by_digest if digest not in sent.sent and digest not in sent.unsure]
    made: Made = {}
    failures: list[str] = []
    for digest in (*again, *new):
        node = by_digest[digest]
        try:
            made[digest] = figures.points(node, steps)
        except (UserError, OSError, ValueError, KeyError) as error:
            failures.append(f"{node.name}: {first_line(error)}")
    return made, failures


def _numbered(made: Made, sent: Sent) -> Batch:
    """Number the points and note in `sent` that they are being sent."""
    numbered: list[tuple[int, Point]] = []
    doubtful, earlier, sent.unsure = 0, sent.unsure, {}
    for digest, points in made.items():
        first = earlier.get(digest, sent.next)
        numbered += enumerate(points, first)
        doubtful += len(points) if digest in earlier else 0
        sent.next = max(sent.next, first + len(points))
        sent.unsure[digest] = first
    return Batch(numbered, doubtful)


def _wandb() -> Tracker:
    from trd_cli.tracking.by_wandb import Wandb

    return Wandb()


def _trackio() -> Tracker:
    from trd_cli.tracking.by_trackio import Trackio

    return Trackio()


TRACKERS: Mapping[str, Callable[[], Tracker]] = {"wandb": _wandb, "trackio": _trackio}


def _end_with(pipe: Connection) -> None:
    """End this process and all below it when the run has ended."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        end_group()


def main() -> None:
    """Carry out the order of the run at the other end of the pipe, whose descriptor is the only argument."""
    pipe = pipe_to_parent()
    os.nice(_NICE)
    order: Order = pipe.recv()
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    try:
        answer = send(order, pipe.send)
    except ResumeRefused as error:
        answer = Answer(str(error))
    except ImportError as error:
        answer = Answer(f"{first_line(error)} (pip install {order.tracker})")
    except Exception as error:
        answer = Answer(first_line(error))
    pipe.send(answer)


if __name__ == "__main__":
    main()
