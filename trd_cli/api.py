"""Use trd as a library: `sample`, `verify`, `refine`, `distill` and `evaluate` as functions.

    from trd_cli import api

    y_o = api.sample(model="Qwen/Qwen3-1.7B", problems="train.parquet", out="runs/y_o")
    api.verify(inputs=y_o)

A function does what the command of its name does (`evaluate`: `trd eval`), makes the same rows, and goes on from what
is there when it is called again. Its options are those of the command, as keywords: named like the flag with `_` for
`-` (`max_tokens=64`), or like the field of the config class where a flag is no name in Python (`from_sets` for
`--from`). Paths may be text or `pathlib.Path`, one or a list where the command takes several. In place of keywords a
function takes a config, as `SampleConfig(...)`. It prints nothing and reads no standard input. `progress` gets counts,
remarks and the finished files; by default nobody does. Warnings go to the logger `trd_cli`.

Every function raises UserError, or one of its kinds (`trd_cli.errors`), for what a user can mend, and TooManyRowErrors
for finished work with more failed rows than `max_errors` allows. Ctrl-C raises KeyboardInterrupt; finished rows are
kept.

Not covered: two calls at the same time in threads of one process; training by several processes, for which torchrun
needs a program. A script that uses the engine vllm needs `if __name__ == "__main__":`, as vllm starts processes that
read the script again.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_origin

from trd_cli.atomic import explained
from trd_cli.config.base import Config, value_type
from trd_cli.config.commands import EvalConfig
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.grading import VerifyConfig
from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError
from trd_cli.freeing import free_unreferenced, own_launch
from trd_cli.progress import Progress, SilentProgress

__all__ = ["distill", "evaluate", "refine", "sample", "verify"]

# Without a handler, Python prints warnings to standard error.
logging.getLogger("trd_cli").addHandler(logging.NullHandler())

Place = str | os.PathLike[str]
Kind = TypeVar("Kind", bound=Config)


def sample(
    config: SampleConfig | None = None, /, *, out: Place, progress: Progress | None = None, **options: Any
) -> Path:
    """Sample rollouts y_o into the directory `out`, and return it. See `trd sample --help` for the options."""
    from trd_cli.backends import backend_for
    from trd_cli.stages import sample as stage

    made = _config(SampleConfig, config, options, out)
    with _call():
        stage.run(made, made.from_sets, backend_for(made, made.model), progress or SilentProgress())
    return Path(made.out)


def verify(
    config: VerifyConfig | None = None,
    /,
    *,
    out: Place | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Counter[str]:
    """Grade the rows of the sets `inputs`, in place or as copies in `out`; return how many have which verdict.

    See `trd verify --help` for the options.
    """
    from trd_cli.stages import verify as stage

    made = _config(VerifyConfig, config, options, out)
    with _call():
        return stage.run(made, [_sets(made.inputs)], progress or SilentProgress())


def refine(
    config: RefineConfig | None = None, /, *, out: Place, progress: Progress | None = None, **options: Any
) -> Path:
    """Refine the rollouts of the sets `inputs` into the directory `out`, and return it.

    See `trd refine --help` for the options.
    """
    from trd_cli.backends import backend_for
    from trd_cli.stages import refine as stage

    made = _config(RefineConfig, config, options, out)
    with _call():
        stage.run(made, [_sets(made.inputs)], partial(backend_for, made), progress or SilentProgress())
    return Path(made.out)


def distill(
    config: DistillConfig | None = None, /, *, out: Place, progress: Progress | None = None, **options: Any
) -> Path:
    """Train a student along the rows of the sets `inputs`; return `out`, a model directory.

    torch's own random numbers are afterwards as before. See `trd distill --help` for the options.
    """
    from trd_cli.models import resolve_model
    from trd_cli.stages import distill as stage

    made = _config(DistillConfig, config, options, out)
    with _call(), own_launch():
        stage.run(made, _sets(made.inputs), resolve_model, progress or SilentProgress())
    return Path(made.out)


def evaluate(
    config: EvalConfig | None = None,
    /,
    *,
    out: Place | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """Score `model` on benchmarks; return the results of `results.json` in `out` (default: as for `trd eval`).

    None is returned for `dry_run`, and for a `shard` of a job array before all are done. See `trd eval --help` for the
    options.
    """
    from trd_cli.backends import backend_for
    from trd_cli.stages import eval as stage

    made, told = _config(EvalConfig, config, options, out), progress or SilentProgress()
    if made.model is None and made.rescore is None:
        raise InputError("no model", "a model", "add model=NAME")
    with _call():
        is_scored_again = made.rescore is not None
        results = stage.rescore(made, told) if is_scored_again else stage.run(made, backend_for(made, made.model), told)
        if results is not None:
            stage.check_errors(results, made.max_errors)
    return results


@contextmanager
def _call() -> Iterator[None]:
    """Raise errors of the system as UserError, and leave no model in memory."""
    try:
        with explained():
            yield
    finally:
        free_unreferenced()


def _config(kind: type[Kind], config: Kind | None, options: Mapping[str, Any], out: Place | None) -> Kind:
    """Return the config of a call: the one that is given or that its options make, with `out`."""
    if config is None:
        made = kind.parse(_fields(kind, options))
    elif isinstance(config, kind) and not options:
        made = config
    else:
        got = f"{type(config).__name__} with {next(iter(options))}" if options else type(config).__name__
        raise InputError(got, f"either a {kind.__name__} or options", "give one of the two")
    return made if out is None else made.model_copy(update={"out": os.fspath(out)})


def _fields(kind: type[Config], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by the names of their fields, with texts for paths. Raises InputError for an unknown name."""
    names = {_spelt(flag): name for name in kind.model_fields for flag in kind.flags_of(name)}
    names |= {name: name for name in kind.model_fields}
    for name in options:
        if name not in names:
            from trd_cli.recipes.sections import closest

            raise InputError(f"the option {name}", "one of " + ", ".join(names), closest(name, names) or "leave it out")
    return {names[name]: _as_typed(kind, names[name], value) for name, value in options.items()}


def _spelt(flag: str) -> str:
    return flag.partition("/")[0].lstrip("-").replace("-", "_")


def _as_typed(kind: type[Config], name: str, value: Any) -> Any:
    """Return a value with text in place of paths, and one path or text as the only one where there may be several."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    several = get_origin(value_type(kind.model_fields[name].annotation)) is tuple
    if several and isinstance(value, str):
        return (value,)
    if several and isinstance(value, (list, tuple)):
        return tuple(os.fspath(each) if isinstance(each, os.PathLike) else each for each in value)
    return value


def _sets(inputs: Sequence[str]) -> Sequence[str]:
    """Return the paths of the input; raises InputError without any."""
    if not inputs or tuple(inputs) == ("-",):
        raise InputError("no input", "a trajectory set (at least one shard)", "name it by inputs=PATH")
    return inputs
