"""Load on vLLM: a stock engine, one that keeps K tokens of each image, and one that keeps all.

    .venv-vllm/bin/python benchmarks/bench_serving.py --json benchmarks/results/serving_cpu.json

Without --model it makes a LLaVA of some 150 million random weights with 576 visual tokens per
image. Engines take turns, so a busy machine slows all of them; compare ratios, not times.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from autoselect.config import ScorerConfig
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from autoselect.serving.plugin import installed_version

SIDE, PATCH = 336, 14
WORDS = 19


@dataclass(frozen=True)
class Answer:
    """Seconds until the first token, and between later ones; tokens of the prompt."""

    first: float
    between: list[float]
    prompt: int


def random_llava(folder: Path) -> None:
    """Write a LLaVA with a small CLIP tower, so that the language model takes most of the time."""
    import transformers as hf

    from autoselect.reference.vlm import build_tokenizer

    tokenizer = build_tokenizer()
    vision = hf.CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = hf.LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
    )
    config = hf.LlavaConfig(
        text_config=text,
        vision_config=vision,
        vision_feature_layer=-1,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    hf.LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def start(model: str, overrides: dict[str, Any], arguments: argparse.Namespace) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    given: dict[str, Any] = {
        "model": model,
        "dtype": "bfloat16",
        "hf_overrides": overrides,
        "max_model_len": 2048,
        "max_num_seqs": 64,
        "enforce_eager": arguments.eager,
        "limit_mm_per_prompt": {"image": 1},
    }
    if arguments.kv_cache_gib:
        given["kv_cache_memory_bytes"] = int(arguments.kv_cache_gib * 2**30)
    if arguments.random_weights:
        given["load_format"] = "dummy"
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**given))


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


async def ask(engine: Any, number: int, name: str, new: int) -> Answer:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    prompt = {
        "prompt": "<s><user><image>" + " ".join(["what"] * WORDS),
        "multi_modal_data": {"image": picture(number)},
    }
    sampling = SamplingParams(
        max_tokens=new, temperature=0.0, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    begin, times, length = time.perf_counter(), [], 0
    async for output in engine.generate(prompt, sampling, request_id=name):
        times.append(time.perf_counter())
        length = len(output.prompt_token_ids)
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    return Answer(times[0] - begin, gaps, length)


async def load(
    engine: Any, numbers: list[int], concurrency: int, name: str, new: int
) -> tuple[float, list[Answer]]:
    """Return the seconds for all images with so many requests at a time, and the answers."""
    gate = asyncio.Semaphore(concurrency)

    async def one(place: int, number: int) -> Answer:
        async with gate:
            return await ask(engine, number, f"{name}-{place}", new)

    begin = time.perf_counter()
    answers = await asyncio.gather(*(one(place, own) for place, own in enumerate(numbers)))
    return time.perf_counter() - begin, answers


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}


async def measure(engines: dict[str, Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each engine, concurrency and kind of images, fresh or seen before."""
    found: list[dict[str, Any]] = []
    fresh = 0
    for concurrency in arguments.concurrency:
        count = arguments.requests or max(6, concurrency)
        seconds: dict[tuple[str, str], list[float]] = {}
        answers: dict[tuple[str, str], list[Answer]] = {}
        for turn in range(arguments.rounds):
            numbers = list(range(fresh, fresh + count))
            fresh += count
            for name, engine in engines.items():
                for kind in ("fresh", "repeated"):
                    label = f"{name}-{concurrency}-{turn}-{kind}"
                    took, own = await load(engine, numbers, concurrency, label, arguments.new)
                    seconds.setdefault((name, kind), []).append(took)
                    answers.setdefault((name, kind), []).extend(own)
        for (name, kind), times in seconds.items():
            own = answers[name, kind]
            row = {
                "engine": name,
                "images": kind,
                "concurrency": concurrency,
                "requests": len(own),
                "requests_per_second": count / statistics.median(times),
                "ttft_seconds": percentiles([answer.first for answer in own]),
                "inter_token_seconds": percentiles([gap for a in own for gap in a.between]),
                "prompt_tokens": own[0].prompt,
            }
            found.append(row)
            print(
                f"{name:>8} {kind:>8} concurrency {concurrency:>3}: "
                f"{row['requests_per_second']:6.2f} requests/s, "
                f"TTFT p50 {row['ttft_seconds']['p50']:6.2f} s, {own[0].prompt} tokens",
                flush=True,
            )
    return found


async def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = arguments.model
    if model is None:
        model = str(folder / "model")
        random_llava(folder / "model")
        arguments.random_weights = True
    selector = arguments.selector
    if selector is None:
        selector = str(folder / "selector")
        from transformers import AutoConfig

        width = AutoConfig.from_pretrained(model).get_text_config().hidden_size
        Selector(Scorer(width, ScorerConfig()), {"model": model}).save_pretrained(selector)
    kept: dict[str, Any] = {"stock": None, f"K={arguments.budget}": arguments.budget, "all": 1.0}
    engines = {}
    for name, budget in kept.items():
        block = {} if budget is None else {"autoselect": {"selector": selector, "budget": budget}}
        engines[name] = start(model, block, arguments)
    for number, (name, engine) in enumerate(engines.items()):
        await ask(engine, -number - 1 & 0xFFFF, f"warm-{name}", arguments.new)
    rows = await measure(engines, arguments)
    for engine in engines.values():
        engine.shutdown()
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "load_average": os.getloadavg()[0],
        },
        "versions": {
            "vllm": installed_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
        "model": arguments.model or "random LLaVA",
        "budget": arguments.budget,
        "new_tokens": arguments.new,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or org/name; by default random weights")
    parser.add_argument("--selector", help="by default one with random weights")
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, help="of a round; by default the concurrency")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each engine")
    parser.add_argument("--new", type=int, default=8, help="generated tokens")
    parser.add_argument("--kv-cache-gib", type=float, default=2.0)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.random_weights = False
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(run(arguments, Path(folder)))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
