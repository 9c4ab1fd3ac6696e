"""What a selector costs and saves on LLaVA-1.5-7B and Qwen2.5-VL-7B with random weights.

    python benchmarks/flagship.py --json FILE [--device cuda] [--budget-s 300] [--toy]

Parts run in order of value. Each is written as soon as it ends; one that fails, or for which no
time is left, is named with the reason. Times are medians in milliseconds of interleaved rounds, see
`autoselect.evaluation.latency`:

    full, prefill@K                one forward on encoded images, without and with a selector
    vision                         encoder and projector
    selection@K                    scores, choice and gathering alone
    full_first_token, first_token@K  `generate` of one token from pixels
    graph_full, graph@K            the language model on the full and the pruned prompt, as a CUDA
                                   graph; graph_selection@K is the selection as one
    micro_batch, micro_batch_plain   forward and backward of a training row, with the selector and
                                   without it; micro_batch_coverage has coverage as in the recipes
    images_64@K                    prefill of one prompt with 64 images
    calls, calls@K                 how often `generate` of one token from pixels calls each function
                                   of CUDA's driver and runtime: launches, copies, waits

`--toy` uses the same classes with few layers and channels, to rehearse the parts on a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_ops import graph_of
from flagship_models import CONFIGS, build, prompt, visual_tokens
from torch import profiler
from torch.profiler import ProfilerActivity, profile

from autoselect.config import DenoiserConfig, GateConfig, ScorerConfig, TrainConfig
from autoselect.evaluation.latency.calls import attached, bound
from autoselect.evaluation.latency.environment import environment
from autoselect.evaluation.latency.timing import Call, measure
from autoselect.files.atomic import write_text
from autoselect.method.gating import GateSetting
from autoselect.method.model import AutoSelect
from autoselect.method.scorer import Scorer
from autoselect.method.statistics import calibrate
from autoselect.pruning.selector import Selector
from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import TrainBatch
from autoselect.vlm.batches.rows import PREFIX_SEGMENT
from autoselect.vlm.forward import answer_loss
from autoselect.vlm.text.tokens import IGNORED_LABEL

BUDGETS, BATCHES, IMAGES = (192, 128, 64, 32), (1, 8), 64
LEAST_S = 5.0


class BareVLM(FrozenVLM):
    """A frozen model without a processor: its prompts are written token by token."""

    def __init__(self, model: Any) -> None:
        self.model, self.name = model, type(model).__name__
        self.adapter = VisualAdapter(model)


@dataclass
class Bench:
    """One model on a device, with a selector of the recipes' size and random weights."""

    name: str
    toy: bool
    device: str

    def __post_init__(self) -> None:
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        self.model, self.sizes = build(self.name, self.toy, self.device, dtype)
        self.tokens = visual_tokens(self.name, self.sizes)
        self.adapter = VisualAdapter(self.model)
        hidden = 16 if self.toy else 256
        self.scorer = ScorerConfig(hidden_size=hidden, num_layers=2, num_heads=4)
        scorer = Scorer(self.adapter.width, self.scorer).to(self.device)
        self.selector = Selector(scorer).eval()
        self.budgets = [k for k in BUDGETS if k < self.tokens] or [self.tokens // 4]
        self.repeats, self.warmup = (2, 1) if self.toy else (30, 5)

    def encoded(self, inputs: dict[str, Any]) -> dict[str, Any]:
        call = self.adapter.with_outputs(inputs, self.adapter.encode(inputs))
        return {**call, "use_cache": True, "logits_to_keep": 1}

    def medians(self, calls: dict[str, Call], repeats: int | None = None) -> dict[str, Any]:
        timings = measure(calls, repeats or self.repeats, self.warmup, self.device)
        return {name: timing.summary() for name, timing in timings.items()}

    @torch.inference_mode()
    def prefill(self, rows: int) -> dict[str, Any]:
        """Time full and attached prefill, the selector's own part, and the encoder."""
        inputs = prompt(self.name, self.model, self.sizes, rows)
        call = self.encoded(inputs)
        features = self.adapter.features(call["mm_encoder_outputs"])
        tokens = features.view(rows, self.tokens, -1)
        calls = {
            "full": Call(lambda: self.model(**call)),
            "vision": Call(lambda: self.adapter.encode(inputs)),
        }
        for k in self.budgets:
            around = attached(self.model, self.selector, k)
            calls[f"prefill@{k}"] = Call(lambda: self.model(**call), around)
            calls[f"selection@{k}"] = Call(bound(self.selector.select, tokens, k))
        return self.medians(calls) | {"peak_bytes": self.peaks(calls)}

    def peaks(self, calls: dict[str, Call]) -> dict[str, int]:
        """Return the most bytes of the device during a prefill, weights included."""
        found: dict[str, int] = {}
        if self.device == "cpu":
            return found
        for name, call in calls.items():
            torch.cuda.reset_peak_memory_stats()
            with call.around():
                call.run()
            torch.cuda.synchronize()
            found[name] = torch.cuda.max_memory_allocated()
        return found

    def generate_one(self, rows: int) -> Callable[[], Any]:
        """Return a call of `generate` for one token from pixels."""
        inputs = prompt(self.name, self.model, self.sizes, rows)
        return lambda: self.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, pad_token_id=0, eos_token_id=2
        )

    @torch.inference_mode()
    def first_token(self, rows: int) -> dict[str, Any]:
        """Time `generate` of one token from pixels, full and attached."""
        generate = self.generate_one(rows)
        calls = {"full_first_token": Call(generate)}
        for k in self.budgets:
            calls[f"first_token@{k}"] = Call(generate, attached(self.model, self.selector, k))
        return self.medians(calls, max(2, self.repeats // 2))

    @torch.inference_mode()
    def device_calls(self) -> dict[str, Any]:
        """Count calls of CUDA's functions in `generate` of one token, full and attached."""
        generate = self.generate_one(1)
        found = {"calls": cuda_calls(generate)}
        for k in self.budgets:
            with attached(self.model, self.selector, k)():
                found[f"calls@{k}"] = cuda_calls(generate)
        return found

    @torch.inference_mode()
    def graphs(self, rows: int) -> dict[str, Any]:
        """Time the language model and the selection as CUDA graphs, where no host time counts."""
        inputs = prompt(self.name, self.model, self.sizes, rows)
        features = self.adapter.features(self.adapter.encode(inputs))
        tokens = features.view(rows, self.tokens, -1)
        length = inputs["input_ids"].shape[1]
        calls = {"graph_full": Call(self.captured(self.language(rows, length)))}
        for k in self.budgets:
            left = self.language(rows, length - self.tokens + k)
            calls[f"graph@{k}"] = Call(self.captured(left))
            selection = bound(self.selector.select, tokens, k)
            calls[f"graph_selection@{k}"] = Call(self.captured(selection))
        return self.medians(calls)

    def language(self, rows: int, columns: int) -> Callable[[], Any]:
        """Return a prefill of the language model alone; its time does not depend on positions.

        No mask is given, because transformers reads a mask on the host.
        """
        model, width = self.model.model.language_model, self.sizes.text["hidden_size"]
        embedded = torch.randn(rows, columns, width, device=self.device).to(self.model.dtype)

        def run() -> Any:
            hidden = model(inputs_embeds=embedded, use_cache=True).last_hidden_state
            return self.model.lm_head(hidden[:, -1:])

        return run

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Return the replay of a call; on a CPU the call itself."""
        return run if self.device == "cpu" else graph_of(run)

    def micro_batch(self, rows: int) -> dict[str, Any]:
        """Time forward and backward of training rows, with the selector and without it."""
        inputs = prompt(self.name, self.model, self.sizes, rows)
        vlm, batch = BareVLM(self.model), self.train_batch(inputs, rows)
        with torch.no_grad():
            outputs = self.adapter.encode(batch.pixels)
            features = self.adapter.features(outputs)
            statistics = calibrate([features.float()], min(64, self.adapter.width))
        setting = GateSetting(self.budgets[0], temperature=0.1, seed=0, step=0)

        def with_selector(coverage: float) -> Call:
            settings = TrainConfig(
                scorer=self.scorer,
                denoiser=DenoiserConfig(hidden_size=16 if self.toy else 512),
                gate=GateConfig(token_budget=self.budgets[0], coverage=coverage),
            )
            model = AutoSelect(vlm, settings, statistics.to(torch.device(self.device)))
            model = model.to(self.device).train()

            def step() -> None:
                model(batch, setting).loss_sum.backward()
                model.zero_grad()

            return Call(step)

        def plain() -> None:
            with torch.no_grad():
                found = self.adapter.encode(batch.pixels)
                blocks = self.adapter.blocks(batch.on_host.input_ids.numpy(), found)
                tokens, _ = self.adapter.tokens(blocks, found)
            leaf = tokens.detach().requires_grad_()
            answer_loss(self.adapter, batch, self.adapter.replace(found, blocks, leaf)).backward()

        calls = {"micro_batch": with_selector(0.0), "micro_batch_coverage": with_selector(0.5)}
        return self.medians({**calls, "micro_batch_plain": Call(plain)})

    def train_batch(self, inputs: dict[str, Any], rows: int) -> TrainBatch:
        """Return rows whose last half of the text is the answer."""
        ids = inputs["input_ids"].cpu()
        labels = ids.roll(-1, 1)
        labels[:, : -(ids.shape[1] - self.tokens) // 2] = IGNORED_LABEL
        labels[:, -1] = IGNORED_LABEL
        pixels = {n: v.cpu() for n, v in inputs.items() if n in ("pixel_values", "image_grid_thw")}
        return TrainBatch(
            ids,
            labels,
            torch.arange(ids.shape[1]).expand_as(ids).contiguous(),
            torch.full_like(ids, PREFIX_SEGMENT),
            pixels,
            [self.tokens] * rows,
            torch.arange(rows),
        ).to(torch.device(self.device))

    @torch.inference_mode()
    def many_images(self) -> dict[str, Any]:
        """Time the prefill of one prompt with many images; each keeps an eighth of its tokens."""
        images = 4 if self.toy else IMAGES
        inputs = prompt(self.name, self.model, self.sizes, 1, images)
        around = attached(self.model, self.selector, self.tokens // 8)
        call = self.encoded(inputs)
        name = f"images_{images}@{self.tokens // 8}"
        return self.medians({name: Call(lambda: self.model(**call), around)}, 3)


def cuda_calls(call: Callable[[], Any]) -> dict[str, int]:
    """Return how often each function of CUDA is called, by name; nothing without a GPU."""
    call()
    chosen = {ProfilerActivity.CPU, ProfilerActivity.CUDA}
    with profile(activities=chosen & profiler.supported_activities()) as recorded:
        call()
    names = (event.name() for event in recorded.profiler.kineto_results.events())
    return dict(Counter(name for name in names if name.startswith(("cuda", "cuLaunch", "cuMem"))))


def parts(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    yield "prefill, batch 1", bound(bench.prefill, 1)
    yield "first token, batch 1", bound(bench.first_token, 1)
    yield "device calls", bench.device_calls
    yield "prefill, batch 8", bound(bench.prefill, 8)
    yield "micro-batch", bound(bench.micro_batch, 1 if bench.toy else 4)
    yield "graphs, batch 1", bound(bench.graphs, 1)
    yield "graphs, batch 8", bound(bench.graphs, 8)
    yield "first token, batch 8", bound(bench.first_token, 8)
    if bench.name.startswith("qwen"):
        yield "many images", bench.many_images


def run(path: Path, device: str, toy: bool, budget_s: float) -> dict[str, Any]:
    """Run all parts within the time budget; the file holds what ran so far."""
    begin = time.monotonic()
    result: dict[str, Any] = {"toy": toy, "environment": environment(device), "models": {}}
    for number, name in enumerate(CONFIGS):
        share = budget_s * (number + 1) / len(CONFIGS)
        found = result["models"][name] = {}
        try:
            bench = Bench(name, toy, device)
        except Exception as error:  # the other models are still measured
            found["model"] = failure(error)
            write_text(path, json.dumps(result, indent=1) + "\n")
            print(f"{name}: {shown(found['model'])}", flush=True)
            continue
        for part, call in parts(bench):
            if share - (time.monotonic() - begin) < LEAST_S:
                found[part] = {"not_run": "no time was left"}
            else:
                try:
                    found[part] = call()
                except Exception as error:  # the other parts still run
                    found[part] = failure(error)
            write_text(path, json.dumps(result, indent=1) + "\n")
            print(f"{name}, {part}: {shown(found[part])}", flush=True)
        del bench
        if device == "cuda":
            torch.cuda.empty_cache()
    return result


def failure(error: Exception) -> dict[str, Any]:
    return {"failed": f"{type(error).__name__}: {error}"[:500]}


def shown(found: dict[str, Any]) -> str:
    if "failed" in found or "not_run" in found:
        return str(found)
    rows = {n: v for n, v in found.items() if isinstance(v, dict) and "median_ms" in v}
    if not rows:
        return str(found)
    return ", ".join(f"{name} {row['median_ms']:.2f}" for name, row in rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--budget-s", type=float, default=300.0, help="seconds for all parts")
    parser.add_argument("--toy", action="store_true", help="few layers and channels")
    options = parser.parse_args()
    run(options.json, options.device, options.toy, options.budget_s)


if __name__ == "__main__":
    main()
