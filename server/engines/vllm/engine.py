"""Engines on vLLM's AsyncLLM, in this process, one EngineCore process each.

Knows: how an engine is started, placed on a device and stopped. Does not know: the policy, the
other engine, HTTP. `processor` and `logits` run inside vLLM's processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, Self, TypeGuard

from server.engines.vllm import build

# vLLM reads these when it is imported. What an operator has set stays, but for those that this
# file can't work with: a V2 model runner without logits processors (docs/adr/0029), a forked
# engine, which would keep the server's sockets and its clients' (docs/adr/0007), and one KV size on
# the CPU for all.
if not build.processors_in_v2(getattr(build.installed(), "version", "")):
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
_QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",  # of the engine processes, which inherit it
}
_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Whoever asks for vLLM's log gets all of it.
for _name, _value in (
    _DEFAULTS if "VLLM_LOGGING_LEVEL" in os.environ else _DEFAULTS | _QUIET
).items():
    os.environ.setdefault(_name, _value)

from pydantic import ValidationError
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from server.core import ConfigError, EngineUnavailable, SamplingParams, TokenIds
from server.engines.base import ABILITIES, Ability, EngineInfo, TurnParams, collect
from server.engines.silence import Watch
from server.engines.vllm.account import account
from server.engines.vllm.lifeline import COLLECTION, SERVER, this_process
from server.engines.vllm.processes import environment, given_up, kill, no_interrupts
from server.engines.vllm.resumable import Capacity
from server.engines.vllm.session import Core, VllmSession
from server.engines.vllm.told import PROCESSOR
from server.text.tokenizer import Tokenizer

log = logging.getLogger("nudge")

gc.set_threshold(*COLLECTION)

SIZED_SHARE = 0.05
"""``gpu_memory_utilization`` of an engine whose cache has a size of its own. It sizes nothing then,
but that much of the GPU has to be free at the start, and by default nearly all of it."""

EXIT_S = 1.0
"""How long an engine process may take to end before it is killed. It has nothing to save."""


def _says_more(record: logging.LogRecord) -> bool:
    """False for vLLM's traceback of the place in its own code where it noticed that an engine
    had died. How it died is said by `VllmEngine.check_health`."""
    return not (record.exc_info and isinstance(record.exc_info[1], EngineDeadError))


logging.getLogger("vllm.v1.engine.async_llm").addFilter(_says_more)

# On a CPU torch looks for Triton in vain, and says so in each process. It may be imported already,
# and those that are started have it from the environment.
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
os.environ.setdefault("TORCH_LOGS", "-torch._library.triton")


class VllmEngine:
    """One model on one AsyncLLM. Made by `start`."""

    def __init__(self, core: Core, processes: Sequence[BaseProcess]) -> None:
        """``processes``: those that the engine started from here."""
        self._core = core
        self._llm = core.llm
        self._processes = processes
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        name: str,
        args: Mapping[str, Any],
        *,
        device: str | None = None,
        cpu_threads: int | None = None,
        timeout_s: float = 1800.0,
        silence_s: float = 30.0,
        resumable: bool = True,
    ) -> Self:
        """Load the model; returns once it has answered a first request.

        One at a time: two engines that start together disturb each other's memory profiling,
        and were seen to hang.

        Args:
            name: the engine's name in the configuration.
            args: fields of ``AsyncEngineArgs``; ``model`` is needed.
            device: GPU index or indices as for CUDA_VISIBLE_DEVICES; None: vLLM's choice.
            cpu_threads: threads that it computes with on the CPU; None: one for each core.
            timeout_s: how long it may take.
            silence_s: how long it may write nothing (`server.engines.silence`), once it is warm.
            resumable: whether an answer's turns may go on in one request.

        Raises:
            ConfigError: an argument is wrong, or the model can't be loaded.
            EngineUnavailable: it took too long.
        """
        if (device == "cpu") != current_platform.is_cpu() and device is not None:
            build = "runs on the CPU only" if current_platform.is_cpu() else "needs a GPU"
            raise ConfigError(
                f"engine {name!r} is placed on device {device!r}, but this build of vLLM {build}"
            )
        engine_args = _engine_args(name, args, device)
        children = set(multiprocessing.active_children())
        deadline = asyncio.get_running_loop().time() + timeout_s
        late = EngineUnavailable(
            f"engine {name!r} ({engine_args.model}) did not start within {timeout_s:.0f} s; "
            "raise start_timeout_s in the config, or set VLLM_LOGGING_LEVEL=INFO to see why"
        )
        loading = asyncio.create_task(
            asyncio.to_thread(_construct, engine_args, device, cpu_threads)
        )
        # Where the start is given up or cut off, its failure is nobody's to hear.
        loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        started = False
        try:
            started = bool((await asyncio.wait({loading}, timeout=timeout_s))[0])
        finally:
            if not started:
                await given_up(loading, children)
        if not started:
            raise late
        try:
            llm = loading.result()
        except Exception as error:
            raise ConfigError(
                f"engine {name!r} ({engine_args.model}) could not be started: "
                f"{_first_line(error)} (VLLM_LOGGING_LEVEL=INFO shows vLLM's own log)"
            ) from error
        try:
            model = llm.model_config
            tokenizer = await asyncio.to_thread(
                Tokenizer.load,
                str(model.tokenizer),
                revision=model.tokenizer_revision,
                trust_remote_code=model.trust_remote_code,
            )
            info = EngineInfo(
                name=name,
                model=str(engine_args.model),
                context_length=model.max_model_len,
                tokenizer=tokenizer,
                stop_ids=stop_ids(model, tokenizer),
                abilities=_abilities(llm.vllm_config),
            )
            processes = [each for each in multiprocessing.active_children() if each not in children]
            core = Core(llm, info, Capacity.of(llm.vllm_config), Watch(silence_s))
            _count_outputs(core)
            engine = cls(core, processes)
            engine.resumable = resumable
            try:
                async with asyncio.timeout_at(deadline):
                    await engine._warm_up()
            except TimeoutError:
                raise late from None
            engine._watching = asyncio.create_task(engine._watch())
            log.info("engine %r: %s", name, account(llm.vllm_config))
        except BaseException:
            await _shut_down(llm)
            raise
        return engine

    @property
    def info(self) -> EngineInfo:
        return self._core.info

    @property
    def running(self) -> int:
        return self._core.running

    @property
    def resumable(self) -> bool:
        """Whether sessions may keep what they have read between turns. Can be set."""
        return self._core.resumable

    @resumable.setter
    def resumable(self, wanted: bool) -> None:
        self._core.resumable = wanted

    @property
    def alive(self) -> bool:
        return self._core.died is None and not self._llm.errored

    def open(self, prompt: TokenIds) -> VllmSession:
        return VllmSession(self._core, prompt)

    async def check_health(self) -> None:
        if self._core.died is not None:
            raise EngineUnavailable(self._core.died)
        try:
            await self._llm.check_health()
        except EngineDeadError as error:
            raise EngineUnavailable(f"engine {self.info.name!r} died{self._how()}") from error

    def _how(self) -> str:
        """How its process ended, where that is known. (Signal 9 that nobody sent is the kernel's,
        for want of memory.)"""
        for code in (process.exitcode for process in self._processes):
            if code is not None:
                return f" (killed by signal {-code})" if code < 0 else f" (exit code {code})"
        return ""

    async def aclose(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await _shut_down(self._llm)

    async def _watch(self) -> None:
        """Take the engine for dead when it has fallen silent."""
        watch = self._core.watch
        while not watch.look(watch.look_s):  # noqa: ASYNC110  silence is no event
            await asyncio.sleep(watch.look_s)
        self._core.died = (
            f"engine {self.info.name!r} hung: it wrote nothing for {watch.silent_s:.0f} s, and was "
            "killed"
        )
        for process in self._processes:
            if process.pid is not None:
                kill(process.pid)
        # vLLM notices a process's end by itself. One that is stuck in a driver doesn't end.
        self._llm.output_processor.propagate_error(EngineDeadError())

    async def _warm_up(self) -> None:
        """One short turn of each kind, so that the first answer is not the slow one."""
        greedy = SamplingParams(temperature=0)
        prompt = self.info.tokenizer.encode_prompt("Hello")
        for params in (
            TurnParams(greedy, max_tokens=2, stop_below=0.5),
            TurnParams(greedy, max_tokens=2, word=()),
            TurnParams(SamplingParams(temperature=1.0, top_p=0.9, seed=1), max_tokens=2),
        ):
            async with contextlib.aclosing(self.open(prompt)) as session:
                await collect(session, params)


def _count_outputs(core: Core) -> None:
    """Tell the watch of each output of the engine when it arrives, whoever reads it and when, and
    count the passes that a request's tokens took. (Sessions see outputs when somebody wants them,
    and then several may be one.)"""
    processor = core.llm.output_processor
    process = processor.process_outputs

    def heard(outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        core.watch.heard += 1
        if core.passes is not None:
            for each in outputs:
                state = processor.request_states.get(each.request_id)
                if state is not None and each.new_token_ids:
                    core.passes[state.external_req_id] += 1
        return process(outputs, *args, **kwargs)

    processor.process_outputs = heard


async def _shut_down(llm: AsyncLLM) -> None:
    """Any number of times, and of a dead engine too."""
    if llm.output_handler is not None:
        llm.output_handler.cancel()  # it would report the engine's end as a failure
    # Joining the engine process blocks; the event loop has other answers to finish. It is
    # done in a moment, and then spends seconds on ending its interpreter: not waited for.
    await asyncio.to_thread(llm.shutdown, EXIT_S)


def _engine_args(name: str, args: Mapping[str, Any], device: str | None) -> AsyncEngineArgs:
    defaults: dict[str, Any] = {
        # generation_config.json would silently change what temperature and top_p mean.
        "generation_config": "vllm",
        "enable_prefix_caching": True,
        "max_logprobs": -1,  # what a client may ask for is the API's to limit
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if current_platform.is_cpu():
        # Prefix caching works by whole blocks; 32 is the smallest the CPU backend takes.
        defaults["block_size"] = 32
    elif args.get("kv_cache_memory_bytes"):
        defaults["gpu_memory_utilization"] = SIZED_SHARE
    if _by_argument(device):
        # Indices of what the operator's own CUDA_VISIBLE_DEVICES shows.
        ids = [each.strip() for each in device.split(",")]
        defaults["device_ids"] = [int(each) if each.isdigit() else each for each in ids]
    try:
        return AsyncEngineArgs(**{**defaults, **args})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"engine {name!r}: {_first_line(error)}") from error


def _by_argument(device: str | None) -> TypeGuard[str]:
    """Whether this vLLM takes these GPUs as an argument. (Older ones see none but their own.)"""
    return device not in (None, "cpu") and "device_ids" in build.engine_args()


def _construct(args: AsyncEngineArgs, device: str | None, cpu_threads: int | None) -> AsyncLLM:
    os.environ[SERVER] = this_process()
    if current_platform.is_cpu():
        # The compiled log-probability path costs seconds at the first request and saves
        # nothing measurable on the CPU.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        # When an engine has finished a step, its threads go on spinning for milliseconds, while
        # the other engine computes on the same cores. (libgomp's count; unset, it is 300,000.)
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
        # One process an engine instead of two.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    threads = str(cpu_threads) if cpu_threads is not None and current_platform.is_cpu() else None
    with (
        environment("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", threads)),
        environment(
            "CUDA_VISIBLE_DEVICES", None if device == "cpu" or _by_argument(device) else device
        ),
        no_interrupts(),
    ):
        config = args.create_engine_config(UsageContext.ENGINE_CONTEXT)
        config.model_config.logits_processors = [
            PROCESSOR,
            *(config.model_config.logits_processors or ()),
        ]
        return AsyncLLM.from_vllm_config(
            config,
            enable_log_requests=args.enable_log_requests,
            disable_log_stats=args.disable_log_stats,
        )


def _abilities(config: VllmConfig) -> frozenset[Ability]:
    """All, but where the engine speculates: what it has written is then not known when its next
    positions are computed, and what can be drawn can't depend on it."""
    return ABILITIES - ({"adjust", "grammar"} if config.speculative_config else set())


def stop_ids(model: Any, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends this model's text: generation_config.json's, config.json's and the
    tokenizer's, in this order. One that its vocabulary lacks can't be drawn, and forcing it would
    end the engine."""
    from transformers import GenerationConfig

    sources: list[Any] = []
    # Optional, and many base models have none.
    with contextlib.suppress(OSError, ValueError):
        generation = GenerationConfig.from_pretrained(str(model.model), revision=model.revision)
        sources.append(generation.eos_token_id)
    sources += [getattr(model.hf_config, "eos_token_id", None), tokenizer.chat.eos_token_id]
    ids: list[int] = []
    for source in sources:
        ids += source if isinstance(source, list) else [] if source is None else [source]
    size = model.get_vocab_size()
    if not (known := tuple(dict.fromkeys(each for each in ids if each < size))):
        beyond = f": {ids} are beyond its vocabulary of {size} tokens" if ids else ""
        raise ConfigError(f"{model.model!r} names no end-of-text token (eos_token_id){beyond}")
    return known


def _first_line(error: BaseException) -> str:
    """What went wrong, on one line."""
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ")
            for each in error.errors(include_url=False)
        ).replace("\n", " ")
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
