"""Writes docs/backbones.md: every cell of its table is the outcome of the checks it names.

python -m tests.vlm.backbones_page
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from autoselect import attach
from autoselect.vlm.families import FAMILIES, REFUSED, family_of
from tests.vlm import checks, tiny_models
from tests.vlm.backbones_names import NAMES
from tests.vlm.loaded_models import NOT, WAYS, tested
from tests.vlm.stock import model_of, selector
from tests.vlm.tiny import ALL, padded
from tests.vlm.tiny_prompts import BOS, IMAGE

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
TEMPLATE = Path(__file__).with_name("backbones_template.md")
Check = Callable[[str], None]
Cell = Callable[[str, str], bool]


def pruning_checks(name: str) -> None:
    checks.known_places_are_kept_at_their_original_positions(name)
    checks.pruning_equals_the_reduced_sequence(name)
    if ALL[name].equals_masking:
        checks.pruning_equals_masking(name, "left")


def clip_checks(name: str) -> None:
    checks.all_tokens_of_a_clip_kept_is_the_untouched_model(name)
    checks.pruning_a_clip_equals_the_reduced_sequence(name)
    for per in ("clip", "frame") if ALL[name].clip.frames else ("clip",):
        if ALL[name].equals_masking:
            checks.pruning_a_clip_equals_masking(name, per)


def generation_checks(name: str) -> None:
    checks.all_tokens_kept_is_the_untouched_model(name)
    checks.cached_greedy_generation_equals_recomputation_step_by_step(name)


COLUMNS: dict[str, Check] = {
    "train step": checks.gradients_reach_scorer_and_denoiser_and_the_model_stays_frozen,
    "prune": pruning_checks,
    "batch": lambda name: checks.a_batch_equals_its_rows_one_by_one(name, "left"),
    "multi-image": checks.every_image_of_every_row_has_its_own_budget,
    "video": clip_checks,
    "generate": generation_checks,
}
MIXED = "linear attention or convolutions mix neighbours, so removing is not masking"
SLICES = f"the slices of an image share its budget; a frame counts as a clip; {MIXED}"
DISTANCES = f"its attention counts tokens, not positions, so those that stay move closer; {MIXED}"
CROPS = "the whole view and the crops of an image share its budget"
REMARKS = {
    "apertus1p5": "visual tokens are embeddings of discrete codes",
    "chameleon": "visual tokens are embeddings of discrete codes",
    "deepseek_ocr2": CROPS,
    "emu3": "visual tokens are embeddings of discrete codes; newline tokens count and compete like "
    "others",
    "fuyu": "visual tokens are projected patches, without a tower",
    "hunyuan_vl": "its positions number the images of the whole batch, so an answer depends "
    "on the other rows without a selector too",
    "hy_v4_vl": "M-RoPE positions; newline tokens count and compete like others",
    "inkling2": DISTANCES,
    "inkling2_loop": DISTANCES,
    "inkling_mm_model": DISTANCES,
    "kimi_k25": "the frames of a clip become one",
    "lfm3_vl": MIXED,
    "minicpm_ocr": SLICES,
    "minicpmv4_6": SLICES,
    "minicpmv4_7": f"M-RoPE positions; {SLICES}",
    "mistral_large4": "row breaks stay and do not count",
    "step3p7": CROPS,
    "nemotron_h_omni": f"clips use the image token; {MIXED}",
    "unlimited_ocr": "newline tokens count and compete like others; padded rows whose answer is "
    "longer than its window go wrong without a selector too",
    "qwen3_5": f"M-RoPE positions; {MIXED}",
    "qwen3_5_moe": f"M-RoPE positions; {MIXED}",
    "qwen4_exp": f"M-RoPE positions; {MIXED}",
    "cohere2_vision": "tiles of an image share its budget",
    "aya_vision": "tiles of an image share its budget",
    "fast_vlm": "tested with a ResNet in the place of its timm tower",
    "gemma3": "image tokens see each other; a crop counts as an image",
    "gemma3n": "inputs of every layer are pruned alongside; tested with a ResNet in the place of "
    "its timm tower",
    "gemma4": "inputs of every layer are pruned alongside",
    "gemma4_unified": "image tokens see each other; they are projected patches, without a tower",
    "glm5_next": f"clips use the image token; {MIXED}",
    "granite4_vision": "features of later layers are pruned alongside; newline tokens count and "
    "compete like others",
    "granite_docling": "tiles of an image share its budget; features of later layers are pruned "
    "alongside",
    "glm4v": "M-RoPE positions; clips use the image token",
    "idefics2": "with image splitting on, every tile counts as an image",
    "idefics3": "tiles of an image share its budget",
    "internvl": "tiles of an image share its budget; the frames of a clip are images",
    "lfm2_vl": "tiles share a budget; its convolutions mix neighbours, so removing is not masking",
    "llama4": "tiles of an image share its budget; tokens are scored as its tower returns them, "
    "before its linear projector; its own `forward` ends with an error in transformers 5.24 (5.23 "
    "works), so it is tested with that mended",
    "llava_next": "newline tokens count and compete like others",
    "llava_next_video": "newline tokens count and compete like others",
    "llava_onevision": "newline tokens count and compete like others",
    "mistral3": "Pixtral images; row breaks stay and do not count",
    "molmo2": "all images of a prompt see each other; both views of an image share its budget",
    "ovis2": "tiles of an image share its budget; indicator tokens stay",
    "paligemma": "the whole prompt is a bidirectional prefix; no second turn on a cache",
    "perception_lm": "tested with a SigLIP in the place of its timm tower; `autoselect eval` takes "
    "images with one number of tiles; images or clips side by side, without text between them, "
    "count as one",
    "qwen2_5_vl": "M-RoPE positions",
    "qwen2_vl": "M-RoPE positions",
    "qwen3_vl": "M-RoPE positions; features of later layers are pruned alongside",
    "smolvlm": "tiles of an image share its budget; the frames of a clip are images",
    "video_llama_3": "its own compression leaves frames of different sizes, so a budget holds for "
    "a whole clip",
    "video_llava": "the whole clip is one block of placeholders; clips side by side, without text "
    "between them, count as one",
}


def has_cell(name: str, column: str) -> bool:
    """Return False for a video input that a family does not have."""
    return column != "video" or ALL[name].clip is not None


def measured(name: str, column: str) -> bool:
    """Return whether the checks of a cell pass."""
    try:
        COLUMNS[column](name)
    except AssertionError:
        return False
    return True


def shown(name: str, column: str) -> bool:
    """Return whether the committed page says `yes` in a cell."""
    start = f"| {_known(name)} | `{name}` | "
    (line,) = (line for line in PAGE.read_text().splitlines() if line.startswith(start))
    return line.removeprefix(start).split(" | ")[list(COLUMNS).index(column)] == "yes"


def _known(name: str) -> str:
    title, hub = NAMES[name]
    return title if hub is None else f"{title}<br>`{hub}`"


def family_table(passes: Cell) -> str:
    """Return one row per family, by the name of its models."""
    assert set(FAMILIES) <= set(ALL), "every family of the table is tested"
    head = ["model", "family", *COLUMNS, "remarks"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in sorted(ALL, key=lambda name: NAMES[name][0].lower()):
        cells = " | ".join(
            ("yes" if passes(name, column) else "no") if has_cell(name, column) else "–"
            for column in COLUMNS
        )
        lines.append(f"| {_known(name)} | `{name}` | {cells} | {remark(name)} |")
    return "\n".join(lines)


def remark(name: str) -> str:
    """Return what there is to know about a family, and which settings of training it needs."""
    known = [REMARKS[name]] if name in REMARKS else []
    family = family_of(model_of(name).config)
    if family.convolutions:
        known.append("`autoselect train` needs `data.rounds=conversation`")
    if family.padding_mask_only:
        known.append("it does not take `gate.soft_removal`")
    return "; ".join(known)


def untrained_table() -> str:
    """Return families that are pruned but not trained on, and why."""
    reasons = {name: family_of(model_of(name).config).untrained for name in sorted(ALL)}
    rows = [f"| `{name}` | {reason} |" for name, reason in reasons.items() if reason]
    return "\n".join(["| family | reason |", "|---|---|", *rows])


def refused_table() -> str:
    """Return families that cannot be pruned, and why."""
    rows = [f"| `{name}` | {reason} |" for name, reason in sorted(REFUSED.items())]
    return "\n".join(["| family | reason |", "|---|---|", *rows])


def loaded_table() -> str:
    """Return one row per way to load or call a model; `test_loaded_models` runs their checks."""
    rows = [f"| {way} | {tested(way)} |" for way in WAYS]
    rows += [f"| {way} | {reason} |" for way, reason in NOT.items()]
    return "\n".join(["| way | works |", "|---|---|", *rows])


def raster_list() -> str:
    """Return families whose images are one raster of tokens."""
    return ", ".join(f"`{name}`" for name, own in sorted(FAMILIES.items()) if own.raster)


@torch.no_grad()
def cache_table() -> str:
    """KV cache and peak activations of the prefill of one image of 576 tokens, for several K."""
    model = tiny_models.llava(side=96).eval()
    model = attach(model, selector(), 1.0)
    inputs = padded([[BOS, *[IMAGE] * 576, *range(30, 54)]], "left")
    inputs["pixel_values"] = torch.zeros(1, 3, 96, 96)
    rows = [
        "| K | cache columns | cache bytes | of the full | peak prefill bytes | of the full |",
        "|---|---|---|---|---|---|",
    ]
    full: tuple[int, int] | None = None
    for kept in (576, 192, 128, 64, 32):
        with peak_of(model.model.language_model) as peak:
            cache = model(**inputs, visual_token_budget=kept).past_key_values
        size = sum(t.numel() * t.element_size() for x in cache.layers for t in (x.keys, x.values))
        full = full or (size, peak[0])
        shares = [f"{100 * a / b:.1f} %" for a, b in zip((size, peak[0]), full, strict=True)]
        rows.append(
            f"| {kept} | {cache.get_seq_length()} | {size:,} | {shares[0]} | {peak[0]:,} | "
            f"{shares[1]} |"
        )
    return "\n".join(rows)


@contextmanager
def peak_of(module: torch.nn.Module) -> Iterator[list[int]]:
    """Peak bytes of what a call of `module` makes, parameters left out; filled in at the call."""
    peak: list[int] = []
    forward = module.forward

    def measured(*arguments: Any, **named: Any) -> Any:
        with MemTracker() as tracker:
            result = forward(*arguments, **named)
            (found,) = tracker.get_tracker_snapshot("peak").values()
        peak.append(sum(b for kind, b in found.items() if str(kind).endswith(("ACT", "TEMP"))))
        return result

    module.forward = measured
    try:
        yield peak
    finally:
        del module.forward


def page(passes: Cell) -> str:
    """Return the text of docs/backbones.md.

    Args:
        passes: whether the checks of a family and a column pass.
    """
    text = TEMPLATE.read_text()
    for mark, table in (
        ("{families}", lambda: family_table(passes)),
        ("{untrained}", untrained_table),
        ("{refused}", refused_table),
        ("{loaded}", loaded_table),
        ("{rasters}", raster_list),
        ("{cache}", cache_table),
    ):
        assert text.count(mark) == 1
        text = text.replace(mark, table())
    return text


if __name__ == "__main__":
    PAGE.write_text(page(measured))
