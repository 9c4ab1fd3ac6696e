"""Loads on vLLM engines that take turns: concurrent requests, or arrivals at a rate."""

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

SIDE, PATCH = 336, 14
WORDS = 19
MANY = 32
SIDE_BY_SIDE = 4
"""Engines have at most this part of a GPU each, because all of them stay loaded."""


@dataclass(frozen=True)
class Answer:
    """Seconds until the first token, and between later ones; tokens of the prompt."""

    first: float
    between: list[float]
    prompt: int


@dataclass(frozen=True)
class Level:
    """A load: a number of requests at a time, or a mean number that arrive per second."""

    kind: str
    value: float

    def count(self, arguments: argparse.Namespace) -> int:
        """Return the requests of one turn."""
        if self.kind == "rate":
            return int(arguments.arrivals)
        return max(int(arguments.requests), int(self.value))

    def turns(self, arguments: argparse.Namespace) -> int:
        """Return how often each engine has its turn; large levels hold enough requests in one."""
        return max(1, min(int(arguments.turns), MANY // self.count(arguments)))


@dataclass(frozen=True)
class Turn:
    """What one engine did with some images.

    Attributes:
        engine: name of the engine.
        images: `fresh`, or `repeated` if the engine has just seen them.
        seconds: wall time of all requests.
        encoder_seconds: time in the encoder, the selector included.
        cache_peak: largest share of the KV cache in use.
        answers: one per request.
    """

    engine: str
    images: str
    seconds: float
    encoder_seconds: float
    cache_peak: float
    answers: list[Answer]

    @property
    def first(self) -> float:
        return statistics.median(answer.first for answer in self.answers)


class CacheUse(StatLoggerBase):
    """Remembers the largest share of the KV cache that was in use."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.peak = 0.0

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
        if scheduler_stats is not None:
            self.peak = max(self.peak, scheduler_stats.kv_cache_usage)

    def log_engine_initialized(self) -> None:
        """Do nothing: the number is read, not logged."""


@dataclass(frozen=True)
class Engine:
    """A running engine and what it tells of its cache."""

    running: Any
    cache: CacheUse


def start(model: str, overrides: dict[str, Any], arguments: argparse.Namespace) -> Engine:
    given: dict[str, Any] = {
        "model": model,
        "dtype": "bfloat16",
        "hf_overrides": overrides,
        "max_model_len": 2048,
        "max_num_seqs": 64,
        "enforce_eager": arguments.eager,
        "limit_mm_per_prompt": {"image": 1},
        "enable_mm_processor_stats": True,
    }
    if arguments.kv_cache_gib:
        given["kv_cache_memory_bytes"] = int(arguments.kv_cache_gib * 2**30)
    if torch.cuda.is_available():
        given["gpu_memory_utilization"] = 1 / SIDE_BY_SIDE
    if arguments.random_weights:
        given["load_format"] = "dummy"
    caches: list[CacheUse] = []

    def cache_use(vllm_config: Any, engine_index: int = 0) -> CacheUse:
        caches.append(CacheUse(vllm_config, engine_index))
        return caches[-1]

    running = AsyncLLM.from_engine_args(AsyncEngineArgs(**given), stat_loggers=[cache_use])
    return Engine(running, caches[0])


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


async def ask(engine: Engine, image: Image.Image, name: str, new: int) -> Answer:
    prompt = {
        "prompt": "<s><user><image>" + " ".join(["what"] * WORDS),
        "multi_modal_data": {"image": image},
    }
    sampling = SamplingParams(
        max_tokens=new, temperature=0.0, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    begin, times, length = time.perf_counter(), [], 0
    async for output in engine.running.generate(prompt, sampling, request_id=name):
        times.append(time.perf_counter())
        length = len(output.prompt_token_ids)
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    return Answer(times[0] - begin, gaps, length)


async def load(
    engine: Engine, images: list[Image.Image], level: Level, name: str, new: int
) -> tuple[float, list[Answer]]:
    """Return the seconds for all images, and the answers."""
    gate = asyncio.Semaphore(int(level.value) if level.kind == "concurrency" else len(images))
    delays = np.zeros(len(images))
    if level.kind == "rate":
        delays = np.random.default_rng(0).exponential(1 / level.value, len(images)).cumsum()

    async def one(place: int, image: Image.Image) -> Answer:
        await asyncio.sleep(delays[place])
        async with gate:
            return await ask(engine, image, f"{name}-{place}", new)

    begin = time.perf_counter()
    answers = await asyncio.gather(*(one(place, own) for place, own in enumerate(images)))
    return time.perf_counter() - begin, answers


async def encoder_seconds(engine: Engine) -> float:
    """Return the seconds in the encoder since the last call."""
    (found,) = await engine.running.collective_rpc("get_encoder_timing_stats")
    return sum(own["encoder_forward_secs"] for own in found.values())


async def take_turns(
    engines: dict[str, Engine], level: Level, first: int, arguments: argparse.Namespace
) -> list[Turn]:
    """Give each engine its turns with fresh images; in the first one it sees them again.

    The order of the engines is reversed from turn to turn. Images have the numbers from `first` on.
    """
    found = []
    count = level.count(arguments)
    for number in range(level.turns(arguments)):
        images = [picture(first + number * count + place) for place in range(count)]
        again = number == 0 and level.kind == "concurrency"
        for name in list(engines)[:: -1 if number % 2 else 1]:
            engine = engines[name]
            for kind in ("fresh", "repeated") if again else ("fresh",):
                await encoder_seconds(engine)
                engine.cache.peak = 0.0
                label = f"{name}-{level.kind}-{level.value}-{number}-{kind}"
                seconds, answers = await load(engine, images, level, label, arguments.new)
                encoder = await encoder_seconds(engine)
                found.append(Turn(name, kind, seconds, encoder, engine.cache.peak, answers))
    return found
