"""The fast engine: vLLM offline, token ids in and out, each completion handed on as it finishes.

A row's tokens follow from its own seed. They do not depend on its neighbours as long as the logits do not: that holds in
float32 on the CPU; in half precision, and on a GPU, a neighbour can change the last bits of a logit (vLLM's own
VLLM_BATCH_INVARIANT=1 rules that out on some GPUs). Extra engine arguments go to `vllm.LLM` and win over the
defaults here.

vLLM and its processes write to a log file, never to standard output, which carries the paths of shards. The file is deleted
when the engine is closed, and kept and named when the engine fails. VLLM_LOGGING_LEVEL (default WARNING) says how much
it holds.

Not covered: a choice of GPU (set CUDA_VISIBLE_DEVICES), LoRA, images, more than one sample a request.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from trd_cli.config import EngineOptions
from trd_cli.engines.registry import engine_version
from trd_cli.errors import EngineError
from trd_cli.models import ModelRef
from trd_cli.records import Completion, Request
from trd_cli.tokens import Tokenizer

_QUEUED_PER_SLOT = 4
_LOWEST_TEMPERATURE = 0.01
_CPU_CACHE_GIB = "2"
_ERROR_LINE = re.compile(r"(?:^|[\])] )((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt): .+)$")
_SAYS_NOTHING = re.compile(r"root cause|stack trace|validation errors? for|WorkerProc initialization failed")


class VllmEngine:
    """See the module. `llm` is the `vllm.LLM` underneath, for benchmarks."""

    name = "vllm"

    def __init__(self, model: ModelRef, tokenizer: Tokenizer, options: EngineOptions) -> None:
        self.version = engine_version("vllm")
        self._tokenizer = tokenizer
        self._tickets = count()
        handle, path = tempfile.mkstemp(prefix="trd-vllm-", suffix=".log")
        os.close(handle)
        self._log = Path(path)
        _set_environment(options)
        try:
            with _output_to(self._log):
                self.llm = _start(model, options)
        except EngineError:
            self._log.unlink()
            raise
        except Exception as error:
            mend = "change --model, --max-model-len, --gpu-memory-utilization, --batch-size or --engine-arg"
            raise EngineError(
                f"vllm cannot start with {model.name}: {_reason(error, self._log)}",
                "an engine",
                f"{mend}; vllm's own log is {self._log}",
            ) from None
        self._in_flight = _QUEUED_PER_SLOT * self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """See `Engine.generate`. A request vLLM refuses (too long, temperature out of range) is an error completion."""
        waiting, running = deque(requests), dict[str, Request]()
        try:
            while waiting or running:
                yield from self._admit(waiting, running)
                with self._faults_attributed():
                    outputs = self.llm.llm_engine.step() if running else []
                for output in outputs:
                    if output.finished and output.request_id in running:
                        yield self._completion(running.pop(output.request_id), output.outputs[0])
        finally:
            self._abort(running)

    def close(self) -> None:
        """End vLLM's processes and give back the memory. Closing twice is harmless."""
        if self.llm is None:
            return
        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        gc.collect()
        self._log.unlink(missing_ok=True)

    def _admit(self, waiting: deque[Request], running: dict[str, Request]) -> Iterator[Completion]:
        """Top up vLLM's queue. It is kept short: each request in it costs memory and scheduling time."""
        while waiting and len(running) < self._in_flight:
            request, ticket = waiting.popleft(), str(next(self._tickets))
            try:
                with self._faults_attributed(but=(ValueError, TypeError, OverflowError)):
                    self.llm.llm_engine.add_request(ticket, _prompt(request), self._params(request))
            except (ValueError, TypeError, OverflowError) as error:
                yield Completion(request.request_id, error=f"vllm refused the request: {_first_line(error)}")
            else:
                running[ticket] = request

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling
        if 0 < sampling.temperature < _LOWEST_TEMPERATURE:
            # vLLM would quietly draw at 0.01, and the row would record what was not done.
            raise ValueError(
                f"temperature {sampling.temperature} is neither 0 nor at least {_LOWEST_TEMPERATURE}"
            )
        # Older versions have no flat form of the log-probabilities, which spares an object a token.
        flat = {"flat_logprobs": True} if hasattr(SamplingParams, "flat_logprobs") else {}
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=request.seed,
            logprobs=0,
            stop_token_ids=sorted(self._tokenizer.eos_ids),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **flat,
        )

    def _completion(self, request: Request, output: Any) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            return Completion(request.request_id, error=f"vllm ended the request: {output.finish_reason}")
        ids = list(output.token_ids)
        logprobs = (
            [at[i].logprob for i, at in zip(ids, output.logprobs, strict=True)] if output.logprobs else None
        )
        exact = output.finish_reason == "length" or ids[-1] in self._tokenizer.eos_ids
        if (
            not exact
        ):  # vLLM knew an end of its own; a row that ends in "stop" must teach the student to stop.
            ids, logprobs = [*ids, self._tokenizer.end_of_turn_id], None
        return Completion(
            request.request_id,
            self._tokenizer.decode(ids),
            ids,
            logprobs,
            output.finish_reason,
            ids_exact=exact,
        )

    def _abort(self, running: dict[str, Request]) -> None:
        """Take back what nobody waits for any more; nothing to take back from an engine that has died."""
        if running and self.llm is not None:
            with contextlib.suppress(Exception):
                self.llm.llm_engine.abort_request(list(running))

    @contextlib.contextmanager
    def _faults_attributed(self, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Any exception of vLLM, `but` these, is a failure of the engine."""
        try:
            yield
        except but:
            raise
        except Exception as error:
            raise EngineError(
                f"vllm stopped answering: {_reason(error, self._log)}",
                "a running engine",
                f"run again, with less --batch-size or --max-model-len if memory ran out; vllm's own log is {self._log}",
            ) from None


def _set_environment(options: EngineOptions) -> None:
    """What vLLM reads at import, unless the user has set it."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if "kv_cache_memory_bytes" not in options.engine_arg:  # the variable would win over the argument
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)


def _start(model: ModelRef, options: EngineOptions) -> Any:
    from vllm import LLM
    from vllm.platforms import current_platform

    if options.device not in ("auto", current_platform.device_type):
        raise EngineError(
            f"--device {options.device} with a vllm built for {current_platform.device_type}",
            f"auto or {current_platform.device_type}",
            "choose GPUs by CUDA_VISIBLE_DEVICES, or use --engine transformers",
        )
    return LLM(**_arguments(model, options, on_cpu=current_platform.is_cpu()))


def _arguments(model: ModelRef, options: EngineOptions, on_cpu: bool) -> dict[str, Any]:
    """Arguments of `vllm.LLM`. Prefix caching is left to vLLM, which has it on for every model that allows it."""
    arguments = {
        "model": str(model.path),
        "dtype": options.dtype,
        "tensor_parallel_size": options.tensor_parallel_size,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "max_model_len": options.max_model_len,
        "logprobs_mode": "raw_logprobs",
        "use_tqdm_on_load": False,
    }
    if options.batch_size is not None:
        arguments["max_num_seqs"] = options.batch_size
    if on_cpu:
        # A prompt prefilled in pieces rewinds its seeded generator, which CPU generators cannot do: vLLM's process dies.
        arguments |= {"enforce_eager": True, "enable_chunked_prefill": False}
    return arguments | options.engine_arg


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send what this process and the children it starts write to `log`.

    The children keep the file for good. A logging handler of vLLM made meanwhile in this process writes to standard error.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stderr.flush()
        for descriptor, original in zip((1, 2), kept, strict=True):
            os.dup2(original, descriptor)
            os.close(original)


def _prompt(request: Request) -> Any:
    """The prompt in the form this vLLM takes without rendering it again; older versions have the plain form only."""
    import vllm.inputs

    ids = list(request.prompt_token_ids)
    return (
        vllm.inputs.tokens_input(ids) if hasattr(vllm.inputs, "tokens_input") else {"prompt_token_ids": ids}
    )


def _first_line(error: BaseException) -> str:
    lines = [
        line.strip() for line in str(error).splitlines() if line.strip() and not _SAYS_NOTHING.search(line)
    ]
    return lines[0] if lines else type(error).__name__


def _reason(error: Exception, log: Path) -> str:
    """One line: the exception's own, or, where it only points to another process, the first error that one logged."""
    if str(error).strip() and not _SAYS_NOTHING.search(str(error).splitlines()[0]):
        return _first_line(error)
    found = [
        match.group(1)
        for line in log.read_text(errors="replace").splitlines()
        if (match := _ERROR_LINE.search(line))
    ]
    telling = [line for line in found if not _SAYS_NOTHING.search(line)]
    return telling[0] if telling else _first_line(error)
