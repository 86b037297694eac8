"""What stands for models, files and options in the digests of a graph: their content, not their names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_cli.config.base import Config
from trd_cli.config.commands import EvalConfig, ImportConfig
from trd_cli.datasets.benchmarks import split_benchmarks
from trd_cli.errors import InputError
from trd_cli.models import EMA, fingerprint
from trd_cli.prompting.rendering import templates_for
from trd_cli.recipes.nodes import Node


@dataclass(frozen=True)
class Model:
    """A model as a command names it, and the node that makes it, if any."""

    words: str
    node: Node | None = None


class Contents:
    """Digests of local files and model directories, each read once for a graph."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def file(self, path: str) -> str:
        if path not in self._known:
            try:
                with open(path, "rb") as file:
                    self._known[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise InputError(f"{path}: {error.strerror}", "a file that can be read", "check the path") from None
        return self._known[path]

    def benchmark(self, name: str) -> str:
        """A benchmark's name; of one that is a file, its digest with what follows the file's name."""
        file, colon, options = name.partition(":")
        return f"{self.file(file)}{colon}{options}" if Path(file).is_file() else name

    def model(self, model: Model) -> str | None:
        """What stands for a model in a digest:

        weights in a local directory, else its name; None for one of a node's.
        """
        if model.node is not None:
            return EMA if model.words.endswith(f"/{EMA}") else None
        if not Path(model.words).is_dir():
            return model.words
        if model.words not in self._known:
            self._known[model.words] = fingerprint(Path(model.words))
        return self._known[model.words]

    def deciding(self, config: Config, setting: str) -> dict[str, Any]:
        """The options that decide a node's result;

        templates, built in or not, count by their text, an imported file by its content.
        """
        chosen = config.deciding()
        if "prompt" in chosen:
            chosen["prompt"] = [template.sha256 for template in templates_for(config, setting).values()]
        if isinstance(config, EvalConfig):
            chosen["bench"] = [self.benchmark(name) for name in split_benchmarks(config.bench or "")]
        if isinstance(config, ImportConfig) and Path(config.file).is_file():
            chosen["file"] = self.file(config.file)
        return chosen
