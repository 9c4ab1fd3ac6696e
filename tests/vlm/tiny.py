"""The tested families: a tiny model, its prompts and pixels, and batches made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tests.vlm import tiny_large, tiny_models, tiny_newer, tiny_newest, tiny_recent
from tests.vlm import tiny_prompts as prompts
from tests.vlm.tiny_prompts import (
    BOS,
    END,
    FAKE,
    FIRST_TEXT,
    GLOBAL,
    IMAGE,
    PAD,
    START,
    TILE,
    VIDEO,
    VOCABULARY,
    WIDTH,
    Pixels,
)


@dataclass(frozen=True)
class Clip:
    """How a family's processor would write one clip.

    Attributes:
        pixels: pixel arguments.
        prompt: token ids.
        frames: as the language model sees them; 0 if they have different numbers of tokens.
    """

    pixels: Callable[[torch.Generator], dict[str, Any]]
    prompt: list[int]
    frames: int = 2


@dataclass(frozen=True)
class Tiny:
    """How a family's processor would write images; its model is in `tiny_models`, by name.

    Attributes:
        pixels: pixel arguments for the images of one row.
        prompt: token ids of one image of a size.
        clip: the same for a clip; None where the family has no video of its own.
        token_types: what the processor adds per token.
        equals_masking: whether removing tokens is the same function as masking them.
        joined: pixel arguments of a batch from those of its rows, {} for a row of text.
    """

    pixels: Pixels
    prompt: Callable[[str], list[int]]
    clip: Clip | None = None
    token_types: Callable[[torch.Tensor], dict[str, Any]] = lambda ids: {}
    equals_masking: bool = True
    joined: Callable[[list[dict[str, Any]]], dict[str, Any]] = prompts.in_one_stack

    def tokens(self, size: str) -> int:
        """Visual tokens of one image of a size."""
        return self.prompt(size).count(IMAGE)


ANY_RESOLUTION = {"s": 36, "l": 52}
TILES = {"s": 1, "l": 2}
TILE_TOKENS = {"s": 16, "l": 32}
NAMED_TILES = {"s": 1, "l": 3}
GRID_TOKENS = {"s": 8, "l": 16}
GRID_CLIP = Clip(prompts.grid_clip, [START, *[VIDEO] * 8, END])


def timed_frames(tokens: int) -> list[int]:
    """Return the prompt of two frames, each behind its time."""
    return [token for time in (50, 51) for token in (time, START, *[VIDEO] * tokens, END)]


TIMED_CLIP = Clip(prompts.grid_clip, timed_frames(4))
IMAGE_CLIP = Clip(prompts.grid_clip, [TILE, *([START, *[IMAGE] * 4, END, 50] * 2), GLOBAL])
on_grid = prompts.framed(GRID_TOKENS)
one_view = Tiny(prompts.stack(16), prompts.plain(16))
idefics = Tiny(
    prompts.tiles_per_row(32, NAMED_TILES), prompts.idefics_tiles, joined=prompts.one_line_per_row
)

TINY: dict[str, Tiny] = {
    "aya_vision": Tiny(prompts.tiles(32, TILES), prompts.aya_tiles),
    "cohere2_vision": Tiny(prompts.tiles(32, TILES), prompts.cohere_tiles),
    "deepseek_vl": one_view,
    "fast_vlm": Tiny(prompts.stack(32), prompts.plain(16)),
    "gemma3": Tiny(
        prompts.stack(32), prompts.framed(prompts.same(16)), token_types=prompts.image_types
    ),
    "glm4v": Tiny(prompts.grid, on_grid, IMAGE_CLIP, prompts.mm_types),
    "got_ocr2": Tiny(prompts.tiles(64, TILES), prompts.framed(TILE_TOKENS)),
    "idefics2": Tiny(
        prompts.tiles_per_row(32, prompts.same(1)),
        lambda size: [FAKE, *[IMAGE] * 8, FAKE],
        joined=prompts.one_line_per_row,
    ),
    "idefics3": idefics,
    "internvl": Tiny(prompts.tiles(32, TILES), prompts.framed(TILE_TOKENS)),
    "janus": one_view,
    "lfm2_vl": Tiny(prompts.patch_rows, prompts.lfm2_tiles, equals_masking=False),
    "llava": one_view,
    "llava_next": Tiny(prompts.any_resolution, prompts.bare(ANY_RESOLUTION)),
    "llava_next_video": Tiny(
        prompts.any_resolution,
        prompts.bare(ANY_RESOLUTION),
        Clip(prompts.frames(16, 2), [VIDEO] * 8),
    ),
    "llava_onevision": Tiny(
        prompts.any_resolution,
        prompts.bare(ANY_RESOLUTION),
        Clip(prompts.frames(16, 2), [VIDEO] * 9),
    ),
    "mistral3": Tiny(prompts.pixtral, prompts.pixtral_rows),
    "ovis2": Tiny(prompts.tiles(16, TILES), prompts.ovis_tiles),
    "paligemma": Tiny(prompts.stack(16), prompts.plain(16), token_types=prompts.prefix_types),
    "perception_lm": Tiny(
        prompts.perception_tiles,
        prompts.bare(TILE_TOKENS),
        Clip(prompts.frames(16, 2), [VIDEO] * 32),
    ),
    "qwen2_5_vl": Tiny(prompts.grid, on_grid, GRID_CLIP, prompts.mm_types),
    "qwen2_vl": Tiny(prompts.grid, on_grid, GRID_CLIP, prompts.mm_types),
    "qwen3_vl": Tiny(prompts.grid, on_grid, TIMED_CLIP, prompts.mm_types),
    "smolvlm": idefics,
    "video_llava": Tiny(
        prompts.stack(16), prompts.plain(16), Clip(prompts.frames(16, 8), [VIDEO] * 17 * 8, 8)
    ),
    "vipllava": one_view,
}


HUNYUAN_TOKENS = {"s": 2 * 5 + 2, "l": 4 * 5 + 2}
ROWS_WITH_NEWLINES = {"s": 2 * 5, "l": 4 * 5}
SECONDS_CLIP = Clip(prompts.grid_clip_in_seconds, [START, *[VIDEO] * 8, END])
ERNIE_CLIP = Clip(prompts.frame_grid_clip, [START, *[VIDEO] * 8, END])


"""Types that need no entry in `families`, or one of an older type; checked by docs/backbones.md."""
NEWER: dict[str, Tiny] = {
    name: Tiny(prompts.grid, on_grid, TIMED_CLIP, prompts.mm_types, equals_masking=False)
    for name in ("qwen3_5", "qwen3_5_moe", "qwen4_exp")
}
NEWER.update(
    {
        "aria": Tiny(prompts.stack(16), prompts.plain(8)),
        "chameleon": Tiny(prompts.stack(8), prompts.plain(16)),
        "cohere_compass": Tiny(prompts.grid, on_grid, TIMED_CLIP, prompts.mm_types),
        "cosmos3_edge": Tiny(
            prompts.frame_grid,
            on_grid,
            Clip(prompts.two_frame_clip, TIMED_CLIP.prompt),
            prompts.mm_types,
        ),
        "cosmos3_omni": Tiny(prompts.grid, on_grid, TIMED_CLIP, prompts.mm_types),
        "fuyu": Tiny(prompts.fuyu_patches, prompts.plain(16)),
        "gemma4": Tiny(
            prompts.placed_patches,
            prompts.framed(GRID_TOKENS),
            Clip(prompts.placed_clip, timed_frames(8)),
        ),
        "hyperclovax_vision_v2": Tiny(prompts.grid, on_grid, GRID_CLIP),
        "kimi_k25": Tiny(
            prompts.paddle_grid, on_grid, Clip(prompts.paddle_clip, [START, *[VIDEO] * 4, END], 1)
        ),
        "minimax_m3_vl": Tiny(prompts.grid, on_grid, GRID_CLIP),
        "muse_glimmer": Tiny(prompts.grid, on_grid, TIMED_CLIP),
        "muse_spark": Tiny(prompts.grid, on_grid, TIMED_CLIP),
        "lfm3_vl": Tiny(prompts.grid, on_grid, TIMED_CLIP, equals_masking=False),
        "qianfan_ocr": Tiny(prompts.tiles(32, TILES), prompts.framed(TILE_TOKENS)),
        "shieldgemma2": Tiny(
            prompts.stack(32), prompts.framed(prompts.same(16)), token_types=prompts.image_types
        ),
        "deepseek_vl_hybrid": Tiny(prompts.two_resolutions, prompts.plain(16)),
        "ernie4_5_vl_moe": Tiny(
            prompts.frame_grid, on_grid, ERNIE_CLIP, prompts.mm_types_of_experts
        ),
        "exaone4_5": Tiny(prompts.grid, on_grid, GRID_CLIP),
        "glm46v": Tiny(prompts.grid, on_grid, IMAGE_CLIP, prompts.mm_types),
        "glm4v_moe": Tiny(prompts.grid, on_grid, IMAGE_CLIP, prompts.mm_types),
        "glmga": Tiny(prompts.grid, on_grid, IMAGE_CLIP, prompts.mm_types),
        "glm_ocr": Tiny(prompts.grid, on_grid, IMAGE_CLIP, prompts.mm_types),
        "hunyuan_vl": Tiny(
            prompts.frame_grid, prompts.framed(HUNYUAN_TOKENS), token_types=prompts.mm_types
        ),
        "lighton_ocr": Tiny(prompts.pixtral, prompts.bare(GRID_TOKENS)),
        "paddleocr_vl": Tiny(prompts.paddle_grid, on_grid, token_types=prompts.mm_types),
        "pp_chart2table": Tiny(prompts.tiles(64, TILES), prompts.framed(TILE_TOKENS)),
        "qwen2_5_omni_thinker": Tiny(prompts.grid, on_grid, SECONDS_CLIP),
        "qwen3_omni_moe_thinker": Tiny(prompts.grid, on_grid, SECONDS_CLIP),
        "qwen3_vl_moe": Tiny(prompts.grid, on_grid, TIMED_CLIP, prompts.mm_types),
        "video_llama_3": Tiny(
            prompts.merged_grid,
            on_grid,
            Clip(prompts.compressed_clip, [50, *[VIDEO] * 3, 51, *[VIDEO] * 2], 0),
        ),
    }
)
QUERIES = {"s": 145, "l": 289}
LINES = {"s": 4 * 5 + 1, "l": 2 * 4 * 5 + 1}
CODES = {"s": 4 * 5, "l": 4 * 9}
PATCHES = {"s": 32, "l": 64}


def minicpm(merged: int, types: Callable[[torch.Tensor], dict[str, Any]] = lambda ids: {}) -> Tiny:
    """Return slices of one line of patches, `merged` x `merged` of which become one token."""
    return Tiny(
        prompts.patch_line(merged),
        prompts.minicpm_slices,
        Clip(prompts.patch_line_clip(merged), timed_frames(8)),
        token_types=types,
        equals_masking=False,
        joined=prompts.side_by_side,
    )


NEWER.update(
    {
        "deepseek_ocr2": Tiny(prompts.views_and_crops(64, 64), prompts.bare(QUERIES)),
        "dots3_note": Tiny(
            prompts.frame_grid, on_grid, Clip(prompts.frame_grid_clip, [*[VIDEO] * 16], 4)
        ),
        "apertus1p5": Tiny(prompts.sized_pictures, prompts.framed({"s": 4 * 4, "l": 4 * 8})),
        "emu3": Tiny(prompts.sized_pictures, prompts.framed(CODES)),
        "gemma3n": Tiny(
            prompts.stack(32), prompts.framed(prompts.same(16)), token_types=prompts.image_types
        ),
        "gemma4_unified": Tiny(
            prompts.placed_patches,
            prompts.framed(PATCHES),
            Clip(prompts.placed_clip, timed_frames(32)),
            prompts.mm_types,
        ),
        "glm5_next": Tiny(prompts.grid, on_grid, IMAGE_CLIP, equals_masking=False),
        "granite4_vision": Tiny(
            partial(prompts.any_resolution, side=32), prompts.bare(ANY_RESOLUTION)
        ),
        "granite_docling": Tiny(
            prompts.masked_tiles, prompts.docling_tiles, joined=prompts.one_line_per_row
        ),
        "minicpm_ocr": minicpm(2),
        "minicpmv4_6": minicpm(4),
        "minicpmv4_7": minicpm(4, prompts.mm_types),
        "mistral_large4": Tiny(prompts.pixtral, prompts.pixtral_rows),
        "hy_v4_vl": Tiny(
            prompts.frame_grid,
            prompts.framed(ROWS_WITH_NEWLINES),
            Clip(prompts.two_frame_clip, [START, *[VIDEO] * 12, END]),
            prompts.mm_types,
        ),
        "inkling2": Tiny(prompts.square_patches, on_grid, equals_masking=False),
        "inkling2_loop": Tiny(prompts.square_patches, on_grid, equals_masking=False),
        "inkling_mm_model": Tiny(prompts.whole_patches, on_grid, equals_masking=False),
        "nemotron_h_omni": Tiny(
            prompts.sided_grid,
            on_grid,
            Clip(prompts.tubelets, [*([50, START, *[IMAGE] * 4, END] * 2)]),
            equals_masking=False,
        ),
        "unlimited_ocr": Tiny(
            prompts.views_and_lined_crops, prompts.bare(LINES), joined=prompts.stacks_and_lists
        ),
        "llama4": Tiny(prompts.tiles(32, NAMED_TILES), prompts.llama_tiles),
        "molmo2": Tiny(
            prompts.pooled_crops,
            prompts.molmo_views,
            Clip(prompts.pooled_frames, [*([50, TILE, *[IMAGE] * 4, END] * 2)]),
            prompts.molmo_types,
            joined=prompts.pooled_in_one_stack,
        ),
        "step3p7": Tiny(prompts.views_and_crops(64, 48), prompts.step_crops),
    }
)
SEEDS = {"kimi_k25": 9}
"""Other seeds of weights, where those of seed 0 happen to look past an image."""

ALL = {**TINY, **NEWER}


def build(name: str, seed: int = 0) -> Any:
    """Build the family's tiny model with weights so large that its answers depend on everything.

    Some classes begin with zeros, ones or numbers near 1e-10, which would hide the image or make
    its tokens equal.
    """
    torch.manual_seed(seed + SEEDS.get(name, 0))
    modules = (tiny_models, tiny_newer, tiny_newest, tiny_recent, tiny_large)
    builder = next(getattr(module, name) for module in modules if hasattr(module, name))
    model = builder().eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.std() < 1e-3:
                parameter.normal_(std=0.08)
            elif parameter.ndim > 1:
                parameter.mul_(4.0)
    head = torch.randn(VOCABULARY, WIDTH)
    own = model if model.get_output_embeddings() is not None else model.get_decoder()
    own.set_output_embeddings(torch.nn.Linear(WIDTH, VOCABULARY, bias=False))
    own.get_output_embeddings().weight = torch.nn.Parameter(head, requires_grad=False)
    config = model.generation_config
    config.eos_token_id, config.pad_token_id = None, PAD
    config.suppress_tokens = list(range(FIRST_TEXT))
    return model


def batch(
    name: str, rows: list[list[str]], side: str = "left", seed: int = 0, text: int = 5
) -> dict[str, Any]:
    """Return arguments of `forward` for prompts with images of the given sizes; [] is text only.

    Row n of a batch with seed s is the row of a batch of one with seed s + n.

    Args:
        name: of the family.
        rows: sizes of the images of each row.
        side: of the padding.
        seed: of pixels and text.
        text: tokens of the question.
    """
    tiny = ALL[name]
    prompts, pixels = [], []
    for number, sizes in enumerate(rows):
        rng = torch.Generator().manual_seed(seed + number)
        ids = [BOS, *[token for size in sizes for token in (21, *tiny.prompt(size))]]
        length = text + (seed + number) % 3
        question = torch.randint(FIRST_TEXT, VOCABULARY, (length,), generator=rng)
        prompts.append(ids + question.tolist())
        pixels.append(tiny.pixels(sizes, rng) if sizes else {})
    inputs = padded(prompts, side)
    inputs.update(tiny.token_types(inputs["input_ids"]))
    if not any(rows):
        return inputs
    return {**inputs, **tiny.joined(pixels)}


def clip_batch(name: str, seed: int = 0) -> dict[str, Any]:
    """Return arguments of `forward` for one prompt with one clip."""
    tiny = ALL[name]
    assert tiny.clip is not None
    inputs = padded([[BOS, 21, *tiny.clip.prompt, 33, 44, 55]], "left")
    types = tiny.token_types(inputs["input_ids"])
    if tiny.clip is IMAGE_CLIP and types:
        types = {"mm_token_type_ids": 2 * types["mm_token_type_ids"]}
    return {**inputs, **types, **tiny.clip.pixels(torch.Generator().manual_seed(seed))}


def padded(prompts: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), PAD)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(0, len(prompt)) if side == "right" else slice(longest - len(prompt), longest)
        ids[row, place] = torch.tensor(prompt)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
