"""`autoselect plan`: will it fit, and how long will it take? From the model's configuration alone.

The estimates follow from counts: bytes of weights, of the trained part's state and of the
activations that the backward pass keeps, and floating-point operations per step. Every assumption
is printed with its value.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoselect.config import ConfigError, TrainConfig
from autoselect.config_files import load_config
from autoselect.deepspeed_config import BatchSizes, batch_sizes, load_deepspeed_config

if TYPE_CHECKING:  # transformers takes seconds to import
    from autoselect.vlm.shape import VLMShape

GIB = 2**30
STAGES = ("1", "2", "3", "3_offload")


@dataclass(frozen=True)
class Hardware:
    """One device: usable memory in GiB, peak dense bfloat16 (CPU: measured float32) TFLOP/s."""

    memory_gib: float
    tflops: float


GPUS = {
    "a100-40": Hardware(39.4, 312.0),
    "a100-80": Hardware(79.1, 312.0),
    "l40s": Hardware(44.4, 362.0),
    "h100": Hardware(79.1, 989.0),
    "h200": Hardware(139.8, 989.0),
    "b200": Hardware(178.4, 2250.0),
}


@dataclass(frozen=True)
class Assumptions:
    """What the configuration does not say.

    Attributes:
        text_tokens: per row beside the visual ones.
        answer_tokens: per row; logits exist for them only.
        weight_bytes: per frozen weight and activation value: 2 bfloat16, 4 float32.
        utilisation: share of the peak rate that a step reaches.
        overhead_gib: CUDA context, libraries, fragmentation, per device.
        bucket_bytes: communication buffers of DeepSpeed, per device.
        prefetched_layers: whole layers that ZeRO-3 holds at once.
    """

    text_tokens: int = 128
    answer_tokens: int = 32
    weight_bytes: int = 2
    utilisation: float = 0.35
    overhead_gib: float = 1.5
    bucket_bytes: int = 2 * 4 * 20_000_000
    prefetched_layers: int = 3


@dataclass(frozen=True)
class Memory:
    """Bytes per device."""

    frozen: float
    trained: float
    activations: float
    buffers: float

    @property
    def total(self) -> float:
        return self.frozen + self.trained + self.activations + self.buffers


def trained_parameters(shape: VLMShape, config: TrainConfig) -> int:
    """Parameters of Scorer and Denoiser, counted on modules without memory.

    Raises:
        ConfigError: the gate's site does not go with the model.
    """
    import torch

    from autoselect.denoiser import Denoiser
    from autoselect.scorer import Scorer

    with torch.device("meta"):
        scorer = Scorer(shape.width, config.scorer)
        denoiser = Denoiser(shape.width_at(config.gate.site), config.denoiser)
    return sum(p.numel() for module in (scorer, denoiser) for p in module.parameters())


def activation_bytes(shape: VLMShape, rows: int, config: TrainConfig, have: Assumptions) -> float:
    """Bytes that the forward pass keeps for the backward pass, for one micro-batch.

    Frozen linear layers keep no input (only weights get no gradient), so per language-model layer
    and token there remain: two norms in float32, queries, keys, values and attention output, and
    three MLP products. With activation checkpointing one layer is alive at a time and every layer
    keeps its input.
    """
    b, d = have.weight_bytes, shape.width
    tokens = rows * (shape.visual_tokens + have.text_tokens)
    layer = 8 * d + b * (2 * d + 2 * shape.key_value_width) + b * 3 * shape.mlp_width
    kept = (
        (layer + shape.layers * b * d)
        if config.activation_checkpointing
        else (shape.layers * layer)
    )
    logits = rows * have.answer_tokens * shape.vocabulary * (b + 8)
    visual = rows * shape.visual_tokens
    inner, gated = config.denoiser.hidden_size, shape.width_at(config.gate.site)
    denoiser = config.denoiser.num_layers * 4 * (5 * gated + 4 * inner)
    gate = 4 * 3 * gated
    scorer = 4 * (d + 16 * config.scorer.hidden_size * max(1, config.scorer.num_layers))
    vision = rows * shape.patches * shape.vision_width * (4 * b + 8)
    return float(tokens * kept + logits + visual * (denoiser + gate + scorer) + vision)


def memory(
    shape: VLMShape, stage: str, gpus: int, rows: int, config: TrainConfig, have: Assumptions
) -> Memory:
    """Bytes per device at one ZeRO stage.

    The trained part is float32: weights and gradients 4 bytes each, two moments 8; stages 1 and 2
    keep a partitioned float32 copy beside the weights, stage 3 partitions everything.
    """
    count, frozen = trained_parameters(shape, config), shape.parameters * have.weight_bytes
    if stage == "3_offload":
        share = 1.0 * shape.largest_layer_parameters * have.weight_bytes * have.prefetched_layers
        trained = 4.0 * count
    elif stage == "3":
        gathered = shape.largest_layer_parameters * have.weight_bytes * have.prefetched_layers
        share = frozen / gpus + (gathered if gpus > 1 else 0)
        trained = 20.0 * count / gpus
    else:
        share = frozen
        trained = {"1": 8.0, "2": 4.0 + 4.0 / gpus}[stage] * count + 12.0 * count / gpus
    return Memory(
        frozen=share,
        trained=trained,
        activations=activation_bytes(shape, rows, config, have),
        buffers=have.overhead_gib * GIB + have.bucket_bytes,
    )


def step_flops(shape: VLMShape, rows: int, config: TrainConfig, have: Assumptions) -> float:
    """Floating-point operations of one optimiser step over `rows` rows, all devices together.

    A frozen weight costs 2 operations per token forward and 2 backward (4NT, against 6NT when it is
    trained), 6NT with recomputation; a vision weight 2; a trained weight 6. Attention adds
    `4 T^2 D` per layer and direction of work.
    """
    length = shape.visual_tokens + have.text_tokens
    passes = 3 if config.activation_checkpointing else 2
    linear = 2.0 * passes * shape.language_parameters * length
    # The backward of attention costs twice its forward, frozen or not.
    attention = (passes + 1) * 4.0 * length**2 * shape.width * shape.layers
    head = 4.0 * shape.vocabulary * shape.width * have.answer_tokens
    vision = 2.0 * shape.vision_parameters * shape.patches
    vision += 4.0 * shape.patches**2 * shape.vision_width * shape.vision_layers
    trained = 6.0 * trained_parameters(shape, config) * shape.visual_tokens
    return rows * (linear + attention + head + vision + trained)


def smallest_stage(
    shape: VLMShape, gpus: int, rows: int, config: TrainConfig, have: Assumptions, gib: float
) -> str | None:
    """The first of stages 1, 2, 3, 3 with offload whose memory fits, or None."""
    for stage in STAGES:
        if memory(shape, stage, gpus, rows, config, have).total <= gib * GIB:
            return stage
    return None


def stage_advice(path: str | Path, stage: str) -> str:
    """How to come from one DeepSpeed file to a stage: the file beside it that differs in that.

    Args:
        path: such as `public_zero2.json`, whose neighbour of stage 3 is `public_zero3.json`.
        stage: one of `STAGES`.
    """
    path = Path(path)
    beside = path.with_name(re.sub(r"zero\d\w*$", f"zero{stage}", path.stem) + path.suffix)
    same = beside.name == path.name and f"zero{stage}" not in path.stem
    if same or not beside.is_file():
        return f"a copy of {path} at stage {stage}, as in configs/deepspeed/zero{stage}.json"
    return str(beside)


def report(arguments: argparse.Namespace) -> str:
    """The plan as text.

    Raises:
        ConfigError: a number is out of range, the model or the DeepSpeed file cannot be read.
    """
    from autoselect.vlm.shape import read_shape

    config = run_config(arguments)
    arguments = argparse.Namespace(**vars(arguments))
    arguments.model, arguments.steps = config.model, config.steps
    hardware = _hardware(arguments)
    for name in ("gpus", "text_tokens", "answer_tokens", "rows_per_image", "steps"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"{name}={getattr(arguments, name)} is below 1; give 1 or more")
    have = Assumptions(
        text_tokens=arguments.text_tokens * arguments.rows_per_image,
        answer_tokens=arguments.answer_tokens * arguments.rows_per_image,
        weight_bytes=4 if arguments.dtype == "float32" else 2,
        utilisation=arguments.utilisation,
        overhead_gib=arguments.overhead_gib,
    )
    sizes, note = _batch(arguments)
    shape = read_shape(_model_folder(arguments.model), arguments.visual_tokens)
    fitting = smallest_stage(shape, arguments.gpus, sizes.micro, config, have, hardware.memory_gib)
    asked = STAGES if arguments.stage == "auto" else (arguments.stage,)
    flops = step_flops(shape, sizes.total, config, have)
    seconds = flops / (arguments.gpus * hardware.tflops * 1e12 * have.utilisation)
    trained = trained_parameters(shape, config)
    lines = [
        f"model      {arguments.model} ({shape.name}): {_count(shape.parameters)} frozen "
        f"parameters, {_count(trained)} trained; {shape.visual_tokens} visual tokens of width "
        f"{shape.width}",
        f"batch      {sizes.total} images = {sizes.micro} x {arguments.gpus} devices x "
        f"{sizes.accumulation} accumulation steps, by {arguments.deepspeed}{note}",
        "memory per device, GiB:",
        "  stage       frozen  trained  activations  buffers   total",
    ]
    for stage in asked:
        need = memory(shape, stage, arguments.gpus, sizes.micro, config, have)
        fits = "fits" if need.total <= hardware.memory_gib * GIB else "does not fit"
        lines.append(
            f"  {stage:<10}{need.frozen / GIB:8.2f}{need.trained / GIB:9.2f}"
            f"{need.activations / GIB:13.2f}{need.buffers / GIB:9.2f}{need.total / GIB:8.2f}  "
            f"{fits} in {hardware.memory_gib:g}"
        )
    if fitting is None:
        advice = "none fits; use a smaller micro batch, --checkpointing or more devices"
    else:
        advice = f"{fitting} ({stage_advice(arguments.deepspeed, fitting)})"
    lines += [
        f"smallest stage that fits: {advice}",
        f"time       {flops / 1e12:.2f} TFLOP per step: {seconds:.3g} s per step, "
        f"{seconds * arguments.steps / 3600:.3g} h for {arguments.steps} steps",
        "assumed    "
        f"{have.text_tokens} text and {have.answer_tokens} answer tokens per image; weights and "
        f"activations of {have.weight_bytes} bytes; {have.utilisation:.0%} of "
        f"{hardware.tflops:g} TFLOP/s per device; {have.overhead_gib:g} GiB for context and "
        f"fragmentation; {have.bucket_bytes / GIB:.2f} GiB of communication buffers; ZeRO-3 holds "
        f"{have.prefetched_layers} gathered layers; activation checkpointing "
        f"{'on' if config.activation_checkpointing else 'off'}; data loading and communication "
        "hidden behind compute",
    ]
    return "\n".join(lines)


def run_config(arguments: argparse.Namespace) -> TrainConfig:
    """The run that is planned: `--config`, or the reference run, with what the flags change."""
    config = load_config(TrainConfig, arguments.config, [])
    named = {name: getattr(arguments, name) for name in ("model", "steps")}
    changes: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if arguments.checkpointing:
        changes["activation_checkpointing"] = True
    return replace(config, **changes)


def _batch(arguments: argparse.Namespace) -> tuple[BatchSizes, str]:
    """The file's global batch on these devices, with the largest micro batch up to the file's.

    Raises:
        ConfigError: the global batch is no multiple of the devices.
    """
    config = load_deepspeed_config(arguments.deepspeed)
    total, micro = config["train_batch_size"], config["train_micro_batch_size_per_gpu"]
    if total % arguments.gpus:
        raise ConfigError(
            f"train_batch_size={total} cannot be split over gpus={arguments.gpus}; choose a number "
            "of devices that divides it, or another --deepspeed file"
        )
    share = total // arguments.gpus
    fitting = max(m for m in range(1, min(micro, share) + 1) if share % m == 0)
    note = ""
    if fitting != micro:
        note = f" (lower its micro batch of {micro} to {fitting})"
    split = config | {"train_micro_batch_size_per_gpu": fitting}
    return batch_sizes(split, arguments.gpus), note


def _model_folder(name: str) -> str:
    from autoselect.reference.resources import resolve_model

    return resolve_model(name)


def _hardware(arguments: argparse.Namespace) -> Hardware:
    known = GPUS[arguments.gpu]
    gib = arguments.gpu_memory or known.memory_gib
    tflops = arguments.tflops or known.tflops
    if gib <= 0 or tflops <= 0 or not 0 < arguments.utilisation <= 1:
        raise ConfigError(
            f"gpu_memory={gib} and tflops={tflops} must be above 0 and "
            f"utilisation={arguments.utilisation} in (0, 1]"
        )
    return Hardware(gib, tflops)


def _count(number: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return str(number)


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan."""
    print(report(arguments))
    return 0


def add_plan_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `autoselect plan`."""
    parser = subparsers.add_parser("plan", help="memory and time of a training run, estimated")
    parser.add_argument("--config", metavar="YAML", help="of the run, as training takes it")
    parser.add_argument("--model", help="folder, hub name or 'reference'; that of the run")
    parser.add_argument("--gpus", type=int, default=8, help="devices of all nodes together")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h100", help="kind of device")
    parser.add_argument("--gpu-memory", type=float, help="usable GiB per device")
    parser.add_argument("--tflops", type=float, help="peak TFLOP/s per device")
    parser.add_argument("--stage", choices=("auto", *STAGES), default="auto", help="ZeRO stage")
    parser.add_argument("--deepspeed", default="configs/deepspeed/zero2.json", help="batch sizes")
    parser.add_argument("--steps", type=int, help="those of the run")
    parser.add_argument("--visual-tokens", type=int, help="per image, where the model varies it")
    parser.add_argument("--text-tokens", type=int, default=128, help="per question and answer")
    parser.add_argument("--answer-tokens", type=int, default=32, help="per answer")
    parser.add_argument("--rows-per-image", type=int, default=1, help="questions per image")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--utilisation", type=float, default=0.35, help="share of the peak rate")
    parser.add_argument("--overhead-gib", type=float, default=1.5, help="context, fragmentation")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.set_defaults(run=run)
