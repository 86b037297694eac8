"""The fast engine: vLLM offline, token ids in and out, each completion yielded as it finishes.

A row draws from its own seed, whatever its neighbours. The logits themselves move a little with the size of the batch:
by about 1e-5 in float32, where that seldom changes a token, by far more in half precision (`--batch-invariant`, which
sets VLLM_BATCH_INVARIANT=1, rules it out on some GPUs). Extra engine arguments go to `vllm.LLM` and override the
defaults here. Those that an option of trd sets, or that would break rows in silence, are refused
(`registry.check_arguments`).

vLLM and its processes write to a log file, never to standard output, which carries the paths of shards. The file is
deleted when the engine is closed, and kept and named when the engine fails. VLLM_LOGGING_LEVEL (default WARNING) sets
how much it holds.

Not covered: a choice of GPU (set CUDA_VISIBLE_DEVICES), two `generate` at the same time, LoRA, images.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from trd_cli import keeper
from trd_cli.config.generating import EngineOptions
from trd_cli.engines.base import engine_version
from trd_cli.engines.border import with_end
from trd_cli.errors import EngineError
from trd_cli.freeing import free_unreferenced
from trd_cli.model_files import damage
from trd_cli.models import ModelRef
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Completion, Request

_QUEUED_PER_SLOT = 4
_LOWEST_TEMPERATURE = 0.01
_CPU_CACHE_GIB = "2"
_ERROR_LINE = re.compile(
    r"(?:^|[\])] )((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt): .+|Worker proc \S+ died .+)$"
)
_POINTS_ELSEWHERE = re.compile(r"root cause|stack trace")
_PYDANTIC = re.compile(r"^(Value|Assertion) error, | \[type=.*$|^\d+ validation errors? for .*$")
_REASON_LENGTH = 300


class VllmEngine:
    """See the module. `llm` is the `vllm.LLM` underneath, for benchmarks."""

    name, copies = "vllm", False

    def __init__(self, model: ModelRef, tokenizer: Tokenizer, options: EngineOptions) -> None:
        self.version = engine_version("vllm")
        self._tokenizer = tokenizer
        self._tickets = count()
        self._log = _new_log()
        self._failed = self._is_asleep = False
        _set_environment(options)
        try:
            with _output_to(self._log):
                self.llm = _start(model, options)
                _watch(self.llm)
        except (EngineError, KeyboardInterrupt):
            self._log.unlink(missing_ok=True)
            raise
        except Exception as error:
            reason = (damage(model.path) if model.path else None) or _reason(error, self._log)
            got = f"vllm cannot start with {model.name}: {reason}"
            mend = "change --model, --max-model-len, --batch-size, --engine-arg or --gpu-memory-utilization "
            mend += "(on a CPU: the variable VLLM_CPU_KVCACHE_SPACE, in GiB)"
            raise EngineError(got, "an engine", mend + _pointer(self._log)) from None
        model_config = self.llm.llm_engine.vllm_config.model_config
        self.dtype = str(model_config.dtype).removeprefix("torch.")
        self.forgets = bool(model_config.enable_sleep_mode)
        self.rows_at_once = self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        self._in_flight = _QUEUED_PER_SLOT * self.rows_at_once

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """See `Engine.generate`. A request that vLLM refuses (too long, temperature out of range) ends as an error."""
        waiting, running = iter(requests), dict[str, Request]()
        try:
            yield from self._admit(waiting, running)
            while running:
                for output in self._step():
                    if output.finished and output.request_id in running:
                        yield self._completion(running.pop(output.request_id), output.outputs[0])
                yield from self._admit(waiting, running)
        finally:
            self._abort(running)

    def close(self) -> None:
        """End vLLM's processes and free the memory. A second call is harmless."""
        if self.llm is None:
            return
        with _output_to(self._log):
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None
            free_unreferenced()
        if not self._failed:
            self._log.unlink(missing_ok=True)

    def rest(self) -> None:
        """See `Keepable.rest`. Without sleep mode, as on a CPU, the memory stays taken."""
        if self.forgets and not self._is_asleep:
            with _output_to(self._log):
                self.llm.sleep(level=2)
            self._is_asleep = True

    def wake(self) -> bool:
        """See `Keepable.wake`. Keys and values get their memory back only when the weights are there, in `reload`."""
        with _output_to(self._log):
            if self._is_asleep:
                self.llm.wake_up(tags=["weights"])
            else:
                self.llm.reset_prefix_cache()  # a new engine has none
        return not self._is_asleep

    def reload(self, model: ModelRef, tokenizer: Tokenizer) -> bool:
        """See `Keepable.reload`. vLLM may take only some of the weights and report no fault: see `kept`."""
        self._tokenizer = tokenizer
        with _output_to(self._log):
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model.path)})
            if self._is_asleep:
                self.llm.wake_up(tags=["kv_cache"])
                self._is_asleep = False
            self.llm.reset_prefix_cache()
        return True

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """See `Keepable.score`."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        with _output_to(self._log):
            output = self.llm.generate([_prompt(token_ids)], params, use_tqdm=False)[0]
        return [at[i].logprob for i, at in zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)]

    def _admit(self, waiting: Iterator[Request | None], running: dict[str, Request]) -> Iterator[Completion]:
        """Top up vLLM's queue. It is kept short: each request in it costs memory and scheduling time."""
        from vllm.v1.engine.exceptions import EngineDeadError

        while len(running) < self._in_flight and (request := next(waiting, None)) is not None:
            ticket = str(next(self._tickets))
            try:
                self.llm.llm_engine.add_request(ticket, _prompt(request.prompt_token_ids), self._params(request))
                running[ticket] = request
            except EngineDeadError as error:
                raise self._fault(error) from None
            except Exception as error:  # which types say "refused" differs between versions of vLLM
                yield Completion(request.request_id, error=f"vllm refused the request: {_first_line(error)}")

    def _step(self) -> list[Any]:
        """Wait for vLLM and return the outputs it has finished. Any exception here is a failure of the engine."""
        try:
            return self.llm.llm_engine.step()
        except Exception as error:
            raise self._fault(error) from None

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = request.sampling
        if 0 < sampling.temperature < _LOWEST_TEMPERATURE:
            # vLLM would quietly draw at 0.01, and the row would record another temperature.
            raise ValueError(f"temperature {sampling.temperature} is neither 0 nor at least {_LOWEST_TEMPERATURE}")
        # The flat form of log-probabilities saves an object a token; older versions lack it.
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
        ids, logprobs = list(output.token_ids), None
        if output.logprobs:
            logprobs = [at[i].logprob for i, at in zip(ids, output.logprobs, strict=True)]
        if output.finish_reason == "stop":
            # vLLM may stop at an end token of its own; a row that ends in "stop" must teach the student to stop.
            ids, logprobs = with_end(ids, logprobs, self._tokenizer)
        return Completion(request.request_id, self._tokenizer.decode(ids), ids, logprobs, output.finish_reason)

    def _abort(self, running: dict[str, Request]) -> None:
        """Withdraw the requests that nobody waits for; an engine that has died holds none."""
        if running and self.llm is not None:
            with contextlib.suppress(Exception):
                self.llm.llm_engine.abort_request(list(running))

    def _fault(self, error: Exception) -> EngineError:
        self._failed = True
        got = f"vllm stopped answering: {_reason(error, self._log)}"
        mend = "run again, with less --batch-size or --max-model-len if memory ran out"
        return EngineError(got, "a running engine", mend + _pointer(self._log))


def _set_environment(options: EngineOptions) -> None:
    """Set the variables that vLLM reads at import, those for its log and its cache unless the user has set them."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if options.batch_invariant:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    if "kv_cache_memory_bytes" not in options.engine_arg:  # the variable would override the argument
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
    arguments = _arguments(model, options, on_cpu=current_platform.is_cpu())
    if keeper.current() is not None and current_platform.is_sleep_mode_available():
        arguments = {"enable_sleep_mode": True} | arguments
    return LLM(**arguments)


def _watch(llm: Any) -> None:
    """Fail if a vLLM process is killed (the system ran out of memory); vLLM itself would wait forever."""
    from vllm.v1.engine.exceptions import EngineDeadError

    answers = getattr(llm.llm_engine.engine_core, "outputs_queue", None)
    children = [child for child in multiprocessing.active_children() if "EngineCore" in child.name]
    if answers is None or not children:  # vLLM runs in this process
        return

    def tell() -> None:
        multiprocessing.connection.wait([child.sentinel for child in children])
        answers.put_nowait(EngineDeadError())

    threading.Thread(target=tell, name="vllm-watch", daemon=True).start()


def _arguments(model: ModelRef, options: EngineOptions, on_cpu: bool) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`; prefix caching is on by default for every model that allows it."""
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
        # Chunked prefill rewinds a prompt's seeded generator. CPU generators cannot do that: vLLM's process dies.
        arguments |= {"enforce_eager": True, "enable_chunked_prefill": False}
    return arguments | options.engine_arg


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send the output of this process and of the children it starts to `log`.

    The children keep the file for good. A logging handler that vLLM creates meanwhile in this process writes to
    standard error.
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


def _prompt(token_ids: Sequence[int]) -> Any:
    """Return the prompt in the form that this vLLM does not render again; older versions know the plain form only."""
    import vllm.inputs

    ids = list(token_ids)
    return vllm.inputs.tokens_input(ids) if hasattr(vllm.inputs, "tokens_input") else {"prompt_token_ids": ids}


def _new_log() -> Path:
    handle, path = tempfile.mkstemp(prefix="trd-vllm-", suffix=".log")
    os.close(handle)
    return Path(path)


def _pointer(log: Path) -> str:
    """Return the end of an error's advice: the place of vLLM's log, if the log holds anything."""
    if _read(log):
        return f"; vllm's own log is {log}"
    log.unlink(missing_ok=True)
    return ""


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _first_line(error: Exception) -> str:
    """Return the first line with content, without the wrapping that pydantic puts around an error."""
    lines = (_PYDANTIC.sub("", line.strip()) for line in str(error).splitlines())
    return next((line[:_REASON_LENGTH] for line in lines if line), type(error).__name__)


def _reason(error: Exception, log: Path) -> str:
    """Return the cause in one line: the exception's own, or the first logged error if it points to another process."""
    own = _first_line(error)
    if not _POINTS_ELSEWHERE.search(own):
        return own
    for line in _read(log).splitlines():
        match = _ERROR_LINE.search(line)
        if match and not _POINTS_ELSEWHERE.search(line):
            return match[1][:_REASON_LENGTH]
    return "its process ended without a word, as when the system is out of memory"
