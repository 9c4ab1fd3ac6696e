"""`autoselect plan`: estimates memory and time of a run from the model's configuration alone.

It prints the numbers of `estimates`, and every assumption with its value.
"""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

from autoselect.config import ConfigError, TrainConfig
from autoselect.config.deepspeed import BatchSizes, DeepSpeedConfig
from autoselect.config.files import load_config
from autoselect.config.flags import add_setting_flags, check_counts
from autoselect.config.programs import DEFAULT_DEEPSPEED
from autoselect.preflight.estimates import BYTES, GIB, STAGES, Assumptions, Estimate


@dataclass(frozen=True)
class Hardware:
    """One device: usable memory in GiB, and peak TFLOP/s of dense bfloat16."""

    memory_gib: float
    tflops: float


GPUS = {
    "a6000": Hardware(47.4, 154.8),
    "a100-40": Hardware(39.4, 312.0),
    "a100-80": Hardware(79.1, 312.0),
    "l40s": Hardware(44.4, 362.0),
    "h100": Hardware(79.1, 989.0),
    "h200": Hardware(139.8, 989.0),
    "b200": Hardware(178.4, 2250.0),
}


SETTINGS = (
    "Settings of the training, such as --model NAME, are given as to `autoselect train`, "
    "whose help lists them."
)
ASSUMED = "h100"
"""The kind of a plan without `--gpu` on a machine without a GPU."""


def visible_gpu() -> tuple[str, float] | None:
    """Return name and memory in GiB of the first visible GPU, or None."""
    import torch  # takes seconds, and the parser needs the kinds alone

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return found.name, found.total_memory / GIB


def stage_advice(path: str | Path, stage: str) -> str:
    """Return which DeepSpeed file to use for another stage: the sibling file that has it.

    A sibling with other batch sizes would need other memory than was estimated.

    Args:
        path: DeepSpeed file, such as `public_zero2.json` with its sibling `public_zero3.json`.
        stage: one of `STAGES`.
    """
    path = Path(path)
    beside = path.with_name(re.sub(r"zero\d\w*$", f"zero{stage}", path.stem) + path.suffix)
    if beside == path and f"zero{stage}" in path.stem:
        return str(path)
    if beside == path or not beside.is_file() or _batches(beside) != _batches(path):
        return f"a copy of {path} at stage {stage}, as in configs/deepspeed/zero{stage}.json"
    return str(beside)


def _batches(path: Path) -> tuple[int, int]:
    config = DeepSpeedConfig.load(path)
    return config.total_batch, config.micro_batch


def report(arguments: argparse.Namespace) -> str:
    """Return the plan as text.

    Raises:
        ConfigError: a number is out of range, or the model or the DeepSpeed file cannot be read.
    """
    from autoselect.reference.resources import resolve_model
    from autoselect.vlm.shape import read_shape

    config = run_config(arguments)
    counts = ("gpus", "visual_tokens", "text_tokens", "answer_tokens", "rows_per_image")
    check_counts(**{name: getattr(arguments, name) for name in counts})
    (hardware, device), have = _hardware(arguments), _assumptions(arguments, config)
    sizes, note = _batch(arguments)
    shape = read_shape(resolve_model(config.model), arguments.visual_tokens)
    estimate = Estimate(shape, config, have)
    trained, flops = estimate.trained_parameters, estimate.step_flops(sizes.total)
    seconds = flops / (arguments.gpus * hardware.tflops * 1e12 * have.utilisation)
    return "\n".join(
        [
            f"model      {config.model} ({shape.name}): {_count(shape.parameters)} frozen "
            f"parameters, {_count(trained)} trained; {shape.visual_tokens} visual tokens of width "
            f"{shape.width}",
            f"device     {device}: {hardware.memory_gib:.1f} GiB, {hardware.tflops:g} TFLOP/s",
            f"batch      {sizes.total} images = {sizes.micro} x {arguments.gpus} devices x "
            f"{sizes.accumulation} accumulation steps, by {arguments.deepspeed}{note}",
            *_memory_lines(arguments, estimate, sizes.micro, hardware.memory_gib),
            f"time       {flops / 1e12:.2f} TFLOP per step of typical rows: {seconds:.3g} s per "
            f"step, {seconds * config.steps / 3600:.3g} h for {config.steps} steps",
            "assumed    "
            f"{have.text_tokens} text and {have.answer_tokens} answer tokens per image in a "
            f"typical row; weights and activations of {have.weight_bytes} bytes; "
            f"{have.utilisation:.0%} of {hardware.tflops:g} TFLOP/s per device; "
            f"{have.overhead_gib:g} GiB for context and fragmentation; "
            f"{have.bucket_bytes / GIB:.2f} GiB of communication buffers; ZeRO-3 holds "
            f"{have.prefetched_layers} gathered layers; activation checkpointing "
            f"{'on' if config.activation_checkpointing else 'off'}; data loading and communication "
            "hidden behind compute",
        ]
    )


def _memory_lines(
    arguments: argparse.Namespace, estimate: Estimate, micro: int, gib: float
) -> list[str]:
    """Return lines with typical and worst memory per stage, and the smallest stage that fits."""
    typical, worst = estimate.typical_batch(micro), estimate.worst_batch(micro)
    lines = [
        "memory per device, GiB, by the activations of a typical and of the worst micro-batch:",
        "  stage       frozen  trained  buffers  typical   total    worst   total",
    ]
    for stage in STAGES if arguments.stage == "auto" else (arguments.stage,):
        usual, most = (estimate.memory(stage, arguments.gpus, batch) for batch in (typical, worst))
        fits = "fits" if most.total <= gib * GIB else "does not fit"
        lines.append(
            f"  {stage:<10}{most.frozen / GIB:8.2f}{most.trained / GIB:9.2f}"
            f"{most.buffers / GIB:9.2f}{usual.activations / GIB:9.2f}{usual.total / GIB:8.2f}"
            f"{most.activations / GIB:9.2f}{most.total / GIB:8.2f}  {fits} in {gib:.1f}"
        )
    fitting = estimate.smallest_stage(arguments.gpus, micro, gib)
    if fitting is None:
        advice = (
            "none fits; use a smaller micro batch, --activation_checkpointing=true, a smaller "
            "data.max_text_tokens or more devices"
        )
    else:
        advice = f"{fitting} ({stage_advice(arguments.deepspeed, fitting)})"
    return [
        *lines,
        f"  typical: {typical.rows} x {typical.length} tokens, {typical.answer_tokens} of each row "
        f"are answers; worst: {worst.rows} x {worst.length}, data.max_text_tokens="
        f"{estimate.config.data.max_text_tokens}, all but the image are answers; the worst decides",
        f"smallest stage that fits: {advice}",
    ]


def run_config(arguments: argparse.Namespace) -> TrainConfig:
    """Return the settings of `--config`, or of the reference run, changed by the flags."""
    return load_config(TrainConfig, arguments.config, arguments.settings)


def _batch(arguments: argparse.Namespace) -> tuple[BatchSizes, str]:
    """Split the file's global batch, lowering its micro batch if needed; return a note on that.

    Raises:
        ConfigError: the global batch is not a multiple of the number of devices.
    """
    config = DeepSpeedConfig.load(arguments.deepspeed)
    total, micro = config.total_batch, config.micro_batch
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
    return config.with_batch(total, fitting).split(arguments.gpus), note


def _assumptions(arguments: argparse.Namespace, config: TrainConfig) -> Assumptions:
    if arguments.answer_tokens > arguments.text_tokens:
        raise ConfigError(
            f"text_tokens={arguments.text_tokens} count a question with its answer, which alone "
            f"has answer_tokens={arguments.answer_tokens}; give fewer --answer-tokens"
        )
    return Assumptions(
        text_tokens=arguments.text_tokens * arguments.rows_per_image,
        answer_tokens=arguments.answer_tokens * arguments.rows_per_image,
        weight_bytes=BYTES[config.dtype],
        utilisation=arguments.utilisation,
        overhead_gib=arguments.overhead_gib,
    )


def _hardware(arguments: argparse.Namespace) -> tuple[Hardware, str]:
    """Return the device to plan for, and what it is: `--gpu`, else a visible GPU, else assumed."""
    known, device = _kind(arguments)
    gib = known.memory_gib if arguments.gpu_memory is None else arguments.gpu_memory
    tflops = known.tflops if arguments.tflops is None else arguments.tflops
    if not (0 < gib < math.inf and 0 < tflops < math.inf and 0 < arguments.utilisation <= 1):
        raise ConfigError(
            f"gpu_memory={gib} and tflops={tflops} must be above 0 and finite, and "
            f"utilisation={arguments.utilisation} in (0, 1]; correct these flags"
        )
    if not 0 <= arguments.overhead_gib < math.inf:
        raise ConfigError(
            f"overhead_gib={arguments.overhead_gib} must be finite and not below 0; give 0 or more"
        )
    return Hardware(gib, tflops), device


def _kind(arguments: argparse.Namespace) -> tuple[Hardware, str]:
    if arguments.gpu is not None:
        return GPUS[arguments.gpu], arguments.gpu
    visible = visible_gpu()
    if visible is None:
        return GPUS[ASSUMED], f"{ASSUMED}, assumed as no GPU is visible (--gpu names another)"
    name, gib = visible
    same = [kind for kind in GPUS if all(part in name.lower() for part in kind.split("-"))]
    if same:
        return Hardware(gib, GPUS[same[0]].tflops), f"{name}, visible here"
    device = f"{name}, visible here"
    if arguments.tflops is None:
        device += f", at the rate of {ASSUMED}, as its own is not known (--tflops gives it)"
    return Hardware(gib, GPUS[ASSUMED].tflops), device


def _count(number: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return str(number)


def run(arguments: argparse.Namespace) -> int:
    print(report(arguments))
    return 0


def add_plan_command(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="estimate memory and time of a training run",
        epilog=SETTINGS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="YAML", help="settings of the training run")
    parser.add_argument("--gpus", type=int, default=8, help="number of devices, all nodes together")
    kind = f"the visible one, else {ASSUMED}"
    parser.add_argument("--gpu", choices=sorted(GPUS), help=f"kind of device (default {kind})")
    own = "(default that of the kind)"
    parser.add_argument("--gpu-memory", type=float, help=f"usable GiB per device {own}")
    parser.add_argument("--tflops", type=float, help=f"peak TFLOP/s per device {own}")
    parser.add_argument(
        "--stage",
        choices=("auto", *STAGES),
        default="auto",
        help="ZeRO stage to estimate; auto is all",
    )
    parser.add_argument("--deepspeed", default=DEFAULT_DEEPSPEED, help="file with the batch sizes")
    parser.add_argument("--visual-tokens", type=int, help="per image, if the model varies them")
    assumed = ("text_tokens", "answer_tokens", "utilisation", "overhead_gib")
    add_setting_flags(parser, Assumptions, assumed)
    parser.add_argument("--rows-per-image", type=int, default=1, help="questions per image")
    parser.set_defaults(run=run, takes_settings=True)
