"""Load on vLLM: a stock engine, one that keeps K tokens of each image, and one that keeps all.

    .venv-vllm/bin/python benchmarks/bench_serving.py --json benchmarks/results/serving_cpu.json

Without --model it makes a LLaVA with random weights and 576 visual tokens per image: 150 million
weights, or those of --size. Engines take turns, so a busy machine slows all of them; compare
ratios, not times. Levels are numbers of requests at a time (--concurrency) and of requests that
arrive per second (--rates).
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from flagship_models import LLAVA, Sizes, llava_config
from serving_load import (
    PATCH,
    SIDE,
    Engine,
    Level,
    Turn,
    ask,
    picture,
    start,
    take_turns,
)

from autoselect.config import ScorerConfig
from autoselect.evaluation.latency.environment import environment
from autoselect.files.atomic import write_text
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from autoselect.serving.plugin import installed_version

STOCK = "stock"


SMALL = Sizes(
    {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": 512,
    },
    SIDE,
    PATCH,
)
"""Some 150 million weights; the tower is small, so the language model takes most of the time."""

SIZES = {"150m": SMALL, "llava-1.5-7b": LLAVA}


def random_llava(folder: Path, sizes: Sizes) -> None:
    """Write the configuration and the processor of a LLaVA; vLLM makes up its weights."""
    import transformers as hf

    from autoselect.reference.vlm import build_tokenizer

    tokenizer = build_tokenizer()
    config = llava_config(sizes)
    config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}


def summary(level: Level, turns: list[Turn]) -> dict[str, Any]:
    """Return the row of one engine and one kind of images, with its samples."""
    answers = [answer for turn in turns for answer in turn.answers]
    seconds = sum(turn.seconds for turn in turns)
    return {
        level.kind: level.value,
        "engine": turns[0].engine,
        "images": turns[0].images,
        "requests": len(answers),
        "requests_per_second": len(answers) / seconds,
        "ttft_seconds": percentiles([answer.first for answer in answers]),
        "inter_token_seconds": percentiles([gap for own in answers for gap in own.between]),
        "encoder_share": sum(turn.encoder_seconds for turn in turns) / seconds,
        "kv_cache_peak": max(turn.cache_peak for turn in turns),
        "prompt_tokens": answers[0].prompt,
        "samples": [
            {
                "seconds": round(turn.seconds, 4),
                "ttft_seconds": [round(own.first, 4) for own in turn.answers],
                "inter_token_seconds": [
                    [round(gap, 4) for gap in own.between] for own in turn.answers
                ],
            }
            for turn in turns
        ],
    }


def compared(level: Level, turns: list[Turn], kind: str) -> dict[str, Any]:
    """Return how much each engine is better than the stock one: medians of the turns' ratios."""
    found: dict[str, Any] = {level.kind: level.value, "images": kind}
    by_engine: dict[str, list[Turn]] = {}
    for turn in turns:
        if turn.images == kind:
            by_engine.setdefault(turn.engine, []).append(turn)
    for name in by_engine.keys() - {STOCK}:
        pairs = list(zip(by_engine[STOCK], by_engine[name], strict=True))
        found[name] = {
            "ttft_p50": statistics.median(stock.first / own.first for stock, own in pairs),
            "requests_per_second": statistics.median(
                stock.seconds / own.seconds for stock, own in pairs
            ),
        }
    return found


async def measure(engines: dict[str, Engine], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return rows by level, engine and kind of images, and ratios to the stock engine."""
    rows: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    fresh = len(engines)
    levels = [Level("concurrency", value) for value in arguments.concurrency]
    levels += [Level("rate", value) for value in arguments.rates]
    for level in levels:
        turns = await take_turns(engines, level, fresh, arguments)
        fresh += level.count(arguments) * level.turns(arguments)
        for kind in sorted({turn.images for turn in turns}):
            for name in engines:
                own = [turn for turn in turns if (turn.engine, turn.images) == (name, kind)]
                rows.append(summary(level, own))
                print(line(level, rows[-1]), flush=True)
            ratios.append(compared(level, turns, kind))
    return {"ratios_to_stock": ratios, "rows": rows}


def line(level: Level, row: dict[str, Any]) -> str:
    return (
        f"{level.kind} {level.value:g} {row['images']:>8} {row['engine']:>6}: "
        f"{row['requests_per_second']:6.2f} requests/s, TTFT p50 {row['ttft_seconds']['p50']:6.2f} "
        f"s, between tokens p50 {1000 * row['inter_token_seconds']['p50']:6.0f} ms, "
        f"encoder {row['encoder_share']:4.0%}, KV cache {row['kv_cache_peak']:4.0%}"
    )


async def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = arguments.model
    if model is None:
        model = str(folder / "model")
        random_llava(folder / "model", SIZES[arguments.size])
        arguments.random_weights = True
    selector = arguments.selector
    if selector is None:
        selector = str(folder / "selector")
        from transformers import AutoConfig

        width = AutoConfig.from_pretrained(model).get_text_config().hidden_size
        Selector(Scorer(width, ScorerConfig()), {"model": model}).save_pretrained(selector)
    kept: dict[str, Any] = {STOCK: None, f"K={arguments.budget}": arguments.budget, "all": 1.0}
    engines = {}
    for number, (name, budget) in enumerate(kept.items()):
        block = {} if budget is None else {"autoselect": {"selector": selector, "budget": budget}}
        engines[name] = start(model, block, arguments)
        await ask(engines[name], picture(number), f"warm-{name}", arguments.new)
    begin = os.getloadavg()[0]
    found = await measure(engines, arguments)
    for engine in engines.values():
        engine.running.shutdown()
    engines.clear()
    gc.collect()  # an engine that Python's own end collects fails in its __del__
    return {
        "environment": environment() | {"vllm": installed_version()},
        "load_average_before_and_after": [begin, os.getloadavg()[0]],
        "model": arguments.model or f"random LLaVA ({arguments.size})",
        "budget": arguments.budget,
        "new_tokens": arguments.new,
        "compiled": not arguments.eager,
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or org/name; by default random weights")
    parser.add_argument("--size", choices=SIZES, default="150m", help="of a model without --model")
    parser.add_argument("--selector", help="by default one with random weights")
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--rates", type=float, nargs="*", default=[0.5, 2.0])
    parser.add_argument("--requests", type=int, default=4, help="at least so many in a turn")
    parser.add_argument("--arrivals", type=int, default=10, help="requests of a rate's turn")
    parser.add_argument("--turns", type=int, default=2, help="of each engine, at most")
    parser.add_argument("--new", type=int, default=8, help="generated tokens")
    parser.add_argument("--kv-cache-gib", type=float, default=2.0)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.random_weights = False
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(run(arguments, Path(folder)))
    if arguments.json:
        write_text(arguments.json, json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
