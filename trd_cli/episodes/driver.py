"""Play planned episodes with an engine and environments, and write the finished rows.

The turns of all open episodes are requests of one `generate` call: an episode asks again as soon as its environment has
answered, and the engine goes on with the others meanwhile. What happens in an episode is a `Play` (see `moves`). Here
are only the ways between plays, engine and environments.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from trd_cli.config.base import OutputOptions
from trd_cli.config.generating import EpisodeOptions
from trd_cli.episodes.moves import Ask, AskOracle, Move, Play, Reset, Step
from trd_cli.errors import ModelError, counted
from trd_cli.generation import ShardFiller
from trd_cli.planned import Backend, with_completion
from trd_cli.progress import Progress
from trd_cli.records import ENDED, Completion, Request, StopReason, Trajectory, well_formed
from trd_cli.redaction import one_line
from trd_cli.trajectories.stage_dir import StageDir
from trd_cli.worlds.base import Failure, Result
from trd_cli.worlds.workers import Limits, Workers

# Episodes that are open at a time: for each row that the engine computes side by side, and at least. While some wait
# for their environments, the engine has others.
_OPEN_PER_ROW, _LEAST_OPEN = 2, 16
_LONGEST_REASON = 2000


def workers_of(options: EpisodeOptions) -> Workers:
    """Return the workers of environments, with the limits that the options set."""
    return Workers(options.env_workers, Limits(options.env_timeout, int(options.env_memory * 2**30)))


@dataclass
class _Episode:
    row: Trajectory
    play: Play


class Episodes:
    """Play episodes; see the module. `play` may be called once."""

    def __init__(
        self,
        workers: Workers,
        play_of: Callable[[Trajectory], Play],
        failed: Callable[[Trajectory, str], Trajectory],
        at_once: Callable[[], int],
        ended: Callable[[Trajectory], None],
    ) -> None:
        """`failed` makes the error row of a planned row; `at_once` tells how many episodes may be open.

        `ended` gets each finished row at once, also while the engine waits for environments.
        """
        self._workers, self._play_of, self._failed, self._at_once = workers, play_of, failed, at_once
        self._ended = ended
        self._open: dict[str, _Episode] = {}
        self._asked: dict[str, str] = {}
        self._requests: deque[Request] = deque()

    def play(
        self, rows: Iterable[Trajectory], answers: Callable[[Iterable[Request | None]], Iterable[Completion]]
    ) -> Iterator[Completion]:
        """Play the planned rows, and yield the completion of each turn; `answers` is the engine's part."""
        for completion in answers(self._turns(iter(rows))):
            name = self._asked.pop(completion.request_id)
            if completion.error is not None:
                self._fail(name, completion.error)
            else:
                yield completion
                self._go_on(name, completion)

    def _turns(self, rows: Iterator[Trajectory]) -> Iterator[Request | None]:
        """Yield the requests of open episodes as they become ready, None while the engine has others to go on with."""
        while True:
            for row in islice(rows, max(0, self._at_once() - len(self._open))):
                self._open[row.trajectory_id] = _Episode(row, self._play_of(row))
                self._go_on(row.trajectory_id, None)
            is_idle = bool(self._open) and not self._requests and not self._asked
            for name, result in self._workers.ready(None if is_idle else 0):
                self._hear(name, result)
            if self._requests:
                yield self._requests.popleft()
            elif self._asked:
                yield None
            elif not self._open:
                return

    def _hear(self, name: str, result: Result) -> None:
        if isinstance(result, Failure):
            self._fail(name, result.message)
        else:
            self._go_on(name, result)

    def _go_on(self, name: str, answer: Completion | Result | None) -> None:
        """Send an answer to a play, None at its beginning, and make its next move."""
        try:
            move = self._open[name].play.send(answer)
        except StopIteration as end:
            self._end(name, end.value)
        except ModelError as error:  # of a chat template, about this conversation
            self._fail(name, str(error))
        else:
            self._make(name, move)

    def _make(self, name: str, move: Move) -> None:
        match move:
            case Ask(request):
                self._asked[request.request_id] = name
                self._requests.append(request)
            case Reset():
                self._workers.start(name, self._open[name].row.environment)
            case Step(action):
                self._workers.step(name, action)
            case AskOracle():
                self._workers.oracle(name)

    def _fail(self, name: str, reason: str) -> None:
        self._open[name].play.close()
        self._end(name, self._failed(self._open[name].row, one_line(well_formed(reason), _LONGEST_REASON)))

    def _end(self, name: str, row: Trajectory) -> None:
        del self._open[name]
        self._workers.end(name)
        self._ended(row)


class EpisodeFiller(ShardFiller):
    """Fill a directory with episodes. `play_of` makes the play of a planned row."""

    def __init__(
        self,
        stage_dir: StageDir,
        backend: Backend,
        options: OutputOptions,
        progress: Progress,
        total: int | None,
        workers: Workers,
        play_of: Callable[[Trajectory], Play],
    ) -> None:
        super().__init__(stage_dir, backend, options, progress, total)
        self._workers, self._play_of = workers, play_of
        self._ends: Counter[StopReason | None] = Counter()
        self._turns = 0

    def summary(self) -> str | None:
        """Return how the episodes that were played now have ended."""
        if not self._ends:
            return None
        ends = ", ".join(
            f"{count} {ENDED[reason]}" if reason else counted(count, "error")
            for reason, count in sorted(self._ends.items(), key=lambda each: each[0] or "error")
        )
        return f"{counted(self._turns, 'turn')}; episodes: {ends}"

    def _make(self, rows: Iterable[Trajectory]) -> None:
        episodes = Episodes(self._workers, self._play_of, self._failed, self._at_once, self._end)
        for completion in episodes.play(rows, self._answers):
            self._count(0, len(completion.token_ids))

    def _end(self, row: Trajectory) -> None:
        turns = len(row.turns or ())
        self._turns += turns
        self._count(0, 0, turns)
        self._ends[row.stop_reason] += 1
        self._add(row, 0)

    def _at_once(self) -> int:
        return max(_LEAST_OPEN, _OPEN_PER_ROW * self._engine.rows_at_once)

    def _failed(self, row: Trajectory, reason: str) -> Trajectory:
        return with_completion(row, Completion(row.trajectory_id, error=reason), self._backend.tokenizer)
