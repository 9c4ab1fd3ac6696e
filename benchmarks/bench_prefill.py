"""How much faster is the prefill of a 7B language model on selected visual tokens?

    python benchmarks/bench_prefill.py --json FILE [--device cuda] [--tiny]

LLaVA-1.5-7B shapes with random weights, which take the same time as trained ones: a CLIP
ViT-L/14-336 tower, a Scorer at the width of the language model, `select_tokens`, a stock
LlamaModel. Each part is timed apart; budgets take turns within a round, so that a disturbance meets
all of them. Every part runs eagerly and, on a GPU, as a CUDA graph: at batch 1 an eager prefill
waits for kernel launches.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, LlamaConfig, LlamaModel

from autoselect.config import ScorerConfig
from autoselect.ops import build_info
from autoselect.ops.hard_top_k import select_tokens
from autoselect.scorer import Scorer

TEXT_TOKENS = 64
WARM_UP = 20


def language_model(tiny: bool) -> LlamaModel:
    """LLaMA-2-7B's shapes, the language model of LLaVA-1.5."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    sizes |= {"num_hidden_layers": 32, "vocab_size": 32064}
    if tiny:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
        sizes |= {"num_hidden_layers": 2, "vocab_size": 100}
    return LlamaModel(LlamaConfig(**sizes, attn_implementation="sdpa")).eval()


def vision_tower(tiny: bool) -> CLIPVisionModel:
    """CLIP ViT-L/14 at 336 pixels: 576 patches."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    sizes |= {"num_attention_heads": 16, "image_size": 336, "patch_size": 14}
    if tiny:
        sizes |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 2}
    return CLIPVisionModel(CLIPVisionConfig(**sizes, attn_implementation="sdpa")).eval()


class Pipeline:
    """The parts of an inference up to the first token, on fixed inputs of one batch size.

    Args:
        batch: images.
        device: where everything lies.
        models: tower, projector, scorer and language model.
    """

    def __init__(self, batch: int, device: torch.device, models: dict[str, nn.Module]) -> None:
        self.models = models
        tower, language = models["tower"].config, models["language"].config
        pixels = torch.randn(batch, 3, tower.image_size, tower.image_size, device=device)
        self.pixels = pixels.to(next(models["tower"].parameters()).dtype)
        self.count = (tower.image_size // tower.patch_size) ** 2
        self.features = self.encode()
        self.scores = self.score()
        shape = (batch, TEXT_TOKENS, language.hidden_size)
        self.text = torch.randn(shape, device=device).to(self.features.dtype)
        self.text_positions = torch.arange(TEXT_TOKENS, device=device).expand(batch, -1)

    def encode(self) -> Tensor:
        """Vision tower and projector, [B, N, D]."""
        hidden = self.models["tower"](self.pixels, output_hidden_states=True).hidden_states[-2]
        return self.models["projector"](hidden[:, 1:])

    def score(self) -> Tensor:
        """Scores [B, N]."""
        return self.models["scorer"](self.features)

    def select(self, k: int) -> tuple[Tensor, Tensor]:
        """The k best tokens and their positions."""
        return select_tokens(self.features, self.scores, k)

    def prefill(self, k: int) -> Callable[[], Tensor]:
        """A prefill over k visual tokens, which keep their positions, and then the text."""
        kept, positions = self.select(k)
        embeddings = torch.cat((kept, self.text), dim=1)
        position_ids = torch.cat((positions, self.count + self.text_positions), dim=1)
        language = self.models["language"]

        def run() -> Tensor:
            # The empty cache keeps transformers from reading gaps in positions as packed texts.
            output = language(
                inputs_embeds=embeddings,
                position_ids=position_ids,
                past_key_values=DynamicCache(),
                use_cache=True,
            )
            return output.last_hidden_state[:, -1]

        return run

    def parts(self, budgets: list[int]) -> dict[str, Callable[[], object]]:
        """Every part by name; budgets are part of the name."""
        calls: dict[str, Callable[[], object]] = {"vision": self.encode, "scorer": self.score}
        for k in budgets:
            if k < self.count:
                calls[f"select {k}"] = lambda k=k: self.select(k)
            calls[f"prefill {k}"] = self.prefill(k)
        return calls


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The call as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Time of one call, from an idle device until its result is there."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e3


def measure(calls: dict[str, Callable[[], object]], device, rounds: int) -> dict[str, dict]:
    """Median, 5th and 95th percentile of every call; the calls take turns."""
    for _ in range(min(WARM_UP, rounds)):
        for call in calls.values():
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(milliseconds(call, device))
    return {
        name: {
            "median_ms": median(values),
            "p5_ms": quantiles(values, n=20)[0],
            "p95_ms": quantiles(values, n=20)[-1],
        }
        for name, values in samples.items()
    }


def build_models(device: torch.device, dtype: torch.dtype, tiny: bool) -> dict[str, nn.Module]:
    """All models with random weights, made where they stay."""
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        tower, language = vision_tower(tiny), language_model(tiny)
        width, hidden = tower.config.hidden_size, language.config.hidden_size
        projector = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        scorer = Scorer(hidden, ScorerConfig())
    torch.set_default_dtype(previous)
    models = {"tower": tower, "projector": projector, "scorer": scorer, "language": language}
    for model in models.values():
        model.to(device=device, dtype=dtype).requires_grad_(False)
    return models


def rows_of(batch: int, mode: str, figures: dict[str, dict], budgets: list[int]) -> list[dict]:
    """One row per budget; `speedup` compares prefills, `speedup_all` adds tower and selector."""
    full = max(budgets)
    rows = []
    for k in budgets:
        parts = {"vision": figures["vision"], "prefill": figures[f"prefill {k}"]}
        if k < full:
            parts |= {"scorer": figures["scorer"], "select": figures[f"select {k}"]}
        total = sum(part["median_ms"] for part in parts.values())
        row = {"batch": batch, "mode": mode, "visual_tokens": k, "text_tokens": TEXT_TOKENS}
        rows.append({**row, "parts": parts, "total_ms": total})
    whole = rows[budgets.index(full)]
    for row in rows:
        prefills = (whole["parts"]["prefill"]["median_ms"], row["parts"]["prefill"]["median_ms"])
        row["speedup_prefill"] = prefills[0] / prefills[1]
        row["speedup_all"] = whole["total_ms"] / row["total_ms"]
    return rows


def table_line(row: dict) -> str:
    """One row of the printed table."""
    prefill = row["parts"]["prefill"]["median_ms"]
    return (
        f"batch {row['batch']} {row['mode']}, {row['visual_tokens']} visual tokens: "
        f"prefill {prefill:.3f} ms ({row['speedup_prefill']:.2f}x), "
        f"all {row['total_ms']:.3f} ms ({row['speedup_all']:.2f}x)"
    )


def run(device: torch.device, batches: list[int], rounds: int, tiny: bool) -> list[dict]:
    """All rows: batch sizes, eager and (on a GPU) captured."""
    models = build_models(device, torch.bfloat16 if device.type == "cuda" else torch.float32, tiny)
    rows: list[dict] = []
    with torch.no_grad():
        for batch in batches:
            pipeline = Pipeline(batch, device, models)
            budgets = [pipeline.count, 192, 128, 64, 32]
            calls = pipeline.parts(budgets)
            rows += rows_of(batch, "eager", measure(calls, device, rounds), budgets)
            if device.type == "cuda":
                calls = {name: captured(call) for name, call in calls.items()}
                rows += rows_of(batch, "cuda graph", measure(calls, device, rounds), budgets)
            for row in rows:
                if row["batch"] == batch:
                    print(table_line(row), flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--tiny", action="store_true", help="small models: does it run?")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU on this machine; its figures stay not measured")
    rows = run(device, options.batches, options.rounds, options.tiny)
    if options.json:
        gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
        facts = {"gpu": gpu, "torch": torch.__version__, "build": build_info()}
        facts |= {"tiny": options.tiny, "rounds": options.rounds}
        options.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
