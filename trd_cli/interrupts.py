"""The signals that ask a command to stop: Ctrl-C, a scheduler's SIGTERM, the SIGHUP of a terminal that is closed."""

from __future__ import annotations

import signal


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return SIGINT, SIGTERM and SIGHUP; the last not where it is ignored, as nohup has it."""
    hang_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    return signal.SIGINT, signal.SIGTERM, *hang_up


def raise_when_told() -> None:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, as SIGINT does."""
    for number in stop_signals():
        if number != signal.SIGINT:
            signal.signal(number, _interrupt)


def _interrupt(*_: object) -> None:
    # A closed terminal sends several, some schedulers one after SIGTERM: they must not break into the writing of what is finished.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise KeyboardInterrupt
