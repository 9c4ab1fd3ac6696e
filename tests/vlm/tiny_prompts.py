"""What processors write: placeholders with the tokens around them, and pixels of the right shape.

Sizes of images are `s`, one tile (or a small image), and `l`, a larger one where the family knows
several. Tokens from FIRST_TEXT on are text.
"""

from collections.abc import Callable
from typing import Any

import torch

WIDTH, VOCABULARY = 32, 96
PAD, BOS, EOS, IMAGE, VIDEO, START, END, BREAK, GLOBAL, TILE, FAKE = range(11)
FIRST_TEXT = 22
Pixels = Callable[[list[str], torch.Generator], dict[str, Any]]


def plain(count: int) -> Callable[[str], list[int]]:
    """Return placeholders with nothing around them, equally many for every image."""
    return lambda size: [IMAGE] * count


def bare(counts: dict[str, int]) -> Callable[[str], list[int]]:
    """Return placeholders with nothing around them."""
    return lambda size: [IMAGE] * counts[size]


def stack(side: int) -> Pixels:
    """Return one square picture per image."""

    def pixels(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
        return {"pixel_values": torch.randn(len(sizes), 3, side, side, generator=rng)}

    return pixels


def tiles(side: int, per_size: dict[str, int]) -> Pixels:
    """Several square tiles per image, all in one stack."""

    def pixels(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
        count = sum(per_size[size] for size in sizes)
        return {"pixel_values": torch.randn(count, 3, side, side, generator=rng)}

    return pixels


def tiles_per_row(side: int, per_size: dict[str, int]) -> Pixels:
    """Return tiles of all images of one row; a batch pads rows with black ones."""

    def pixels(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
        count = sum(per_size[size] for size in sizes)
        return {"pixel_values": torch.randn(1, count, 3, side, side, generator=rng)}

    return pixels


def any_resolution(sizes: list[str], rng: torch.Generator, side: int = 16) -> dict[str, Any]:
    """LLaVA-NeXT: a base view and tiles; images of one or two tiles, padded to three views."""
    shapes = [[side, side] if size == "s" else [side, 2 * side] for size in sizes]
    return {
        "pixel_values": torch.randn(len(sizes), 3, 3, side, side, generator=rng),
        "image_sizes": torch.tensor(shapes),
    }


def in_one_stack(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the pixels of all rows one after the other; without those that no row has."""
    real = [row for row in rows if row]
    found = {name: torch.cat([row[name] for row in real]) for name in real[0]}
    return {name: values for name, values in found.items() if values.numel()}


def side_by_side(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """MiniCPM-V: one picture of all patches, as wide as they are."""
    real = [row for row in rows if row]
    line = torch.cat([row["pixel_values"] for row in real], dim=-1)
    return {"pixel_values": line, "target_sizes": torch.cat([row["target_sizes"] for row in real])}


def one_line_per_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return tiles of each row, [B, tiles, 3, side, side], black where a row has fewer.

    The same for other values per tile: zero where a row has fewer.
    """
    found = {}
    for name, first in next(row for row in rows if row).items():
        none = torch.zeros(0, *first.shape[2:], dtype=first.dtype)
        lines = [row[name][0] if row else none for row in rows]
        found[name] = torch.nn.utils.rnn.pad_sequence(lines, batch_first=True)
    return found


def pooled_in_one_stack(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Molmo 2: the patches that become a token are numbered through the batch."""
    real, before, pools = [row for row in rows if row], 0, []
    for row in real:
        pools.append(row["image_token_pooling"] + before)
        before += row["pixel_values"].shape[:2].numel()
    return {**in_one_stack(rows), "image_token_pooling": torch.cat(pools)}


def pools_of(crops: int) -> torch.Tensor:
    """Return the patches of each token, [4 crops, 4], if a crop has 4 x 4 patches."""
    windows = torch.arange(16).view(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
    return (windows + 16 * torch.arange(crops)[:, None, None]).flatten(0, 1)


def pooled_crops(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """Molmo 2: patches of the small view and of one or two crops of each image."""
    grids = torch.tensor([[2, 2, 2, 2] if size == "s" else [2, 2, 2, 4] for size in sizes])
    crops = 1 + grids[:, 3] // 2
    return {
        "pixel_values": torch.randn(int(crops.sum()), 16, 3 * 16, generator=rng),
        "image_token_pooling": pools_of(int(crops.sum())),
        "image_grids": grids,
        "image_num_crops": crops,
    }


def pooled_frames(rng: torch.Generator) -> dict[str, Any]:
    return {
        "pixel_values_videos": torch.randn(2, 16, 3 * 16, generator=rng),
        "video_token_pooling": pools_of(2),
        "video_grids": torch.tensor([[2, 2, 2]]),
    }


def frames(side: int, count: int) -> Callable[[torch.Generator], dict[str, Any]]:
    return lambda rng: {"pixel_values_videos": torch.randn(1, count, 3, side, side, generator=rng)}


def grid(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """Qwen-VL: flattened patches of 4 x 4 pixels, and rows and columns of patches."""
    shapes = [[1, 4, 8] if size == "s" else [1, 8, 8] for size in sizes]
    count = sum(t * h * w for t, h, w in shapes)
    values = torch.randn(count, 3 * 2 * 16, generator=rng)
    return {"pixel_values": values, "image_grid_thw": torch.tensor(shapes)}


def frame_grid(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """Return patches of one frame each."""
    inputs = grid(sizes, rng)
    return {**inputs, "pixel_values": inputs["pixel_values"][:, : 3 * 16]}


def fuyu_patches(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """Fuyu: patches of all images, without a tower."""
    return {"pixel_values": torch.randn(len(sizes), 16, 3 * 16, generator=rng)}


def placed_patches(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """Gemma 4: every image a padded row of patches, with their columns and rows."""
    places = torch.full((len(sizes), 64, 2), -1)
    for number, size in enumerate(sizes):
        height = 4 if size == "s" else 8
        grid = torch.cartesian_prod(torch.arange(height), torch.arange(8)).flip(1)
        places[number, : len(grid)] = grid
    values = torch.rand(len(sizes), 64, 3 * 16, generator=rng)
    return {"pixel_values": values, "image_position_ids": places}


def paddle_grid(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """PaddleOCR-VL: patches as small pictures."""
    inputs = frame_grid(sizes, rng)
    return {**inputs, "pixel_values": inputs["pixel_values"].reshape(-1, 3, 4, 4)}


def paddle_clip(rng: torch.Generator) -> dict[str, Any]:
    """Kimi: two frames, whose tokens become those of one."""
    values = torch.randn(2 * 4 * 4, 3, 4, 4, generator=rng)
    return {"pixel_values_videos": values, "video_grid_thw": torch.tensor([[2, 4, 4]])}


def tubelets(rng: torch.Generator) -> dict[str, Any]:
    """Nemotron Omni: a clip of two times two frames, which are stacked as channels."""
    return {"pixel_values_videos": torch.randn(1, 2, 2 * 3, 16, 16, generator=rng)}


def two_frame_clip(rng: torch.Generator) -> dict[str, Any]:
    """Cosmos 3 Edge: two frames, patches of one frame each."""
    values = torch.randn(2 * 4 * 4, 3 * 16, generator=rng)
    return {"pixel_values_videos": values, "video_grid_thw": torch.tensor([[2, 4, 4]])}


def compressed_clip(rng: torch.Generator) -> dict[str, Any]:
    """VideoLLaMA 3: three of its eight tokens are too much like those of the frame before."""
    kept = torch.tensor([1, 0, 1, 1, 1, 0, 0, 1]).bool()
    sides = torch.tensor([2])
    return {**two_frame_clip(rng), "video_merge_sizes": sides, "video_compression_mask": kept}


def placed_clip(rng: torch.Generator) -> dict[str, Any]:
    """Gemma 4: every frame a padded row of patches, with their columns and rows."""
    inputs = placed_patches(["s", "s"], rng)
    return {
        "pixel_values_videos": inputs["pixel_values"],
        "video_position_ids": inputs["image_position_ids"],
        "num_frames_per_video": torch.tensor([2]),
    }


def patch_line_clip(merged: int) -> Callable[[torch.Generator], dict[str, Any]]:
    """MiniCPM-V: patches of two frames side by side, every frame 2 x 4 tokens."""

    def pixels(rng: torch.Generator) -> dict[str, Any]:
        inputs = patch_line(merged)(["s", "s"], rng)
        return {
            "pixel_values_videos": inputs["pixel_values"],
            "target_sizes_videos": inputs["target_sizes"],
        }

    return pixels


def frame_grid_clip(rng: torch.Generator) -> dict[str, Any]:
    """ERNIE: two frames become one."""
    values = torch.randn(4 * 4 * 4, 3 * 16, generator=rng)
    return {"pixel_values_videos": values, "video_grid_thw": torch.tensor([[4, 4, 4]])}


def grid_clip_in_seconds(rng: torch.Generator) -> dict[str, Any]:
    """Qwen Omni: a clip with the seconds between its frames."""
    return {**grid_clip(rng), "video_second_per_grid": torch.tensor([1.0])}


def mm_types_of_experts(ids: torch.Tensor) -> dict[str, Any]:
    """ERNIE: the same types once more, for its experts."""
    types = mm_types(ids)["mm_token_type_ids"]
    return {"mm_token_type_ids": types, "moe_mm_token_type_ids": (types > 0).int()}


def merged_grid(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """VideoLLaMA 3: patches of one frame, with the side of the squares that become one token."""
    inputs = grid(sizes, rng)
    values = inputs["pixel_values"][:, : 3 * 16]
    return {**inputs, "pixel_values": values, "image_merge_sizes": torch.tensor([2] * len(sizes))}


def sided_grid(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """Nemotron Omni: patches of one frame, and rows and columns of patches."""
    inputs = frame_grid(sizes, rng)
    return {
        "pixel_values": inputs["pixel_values"],
        "image_grid_hw": inputs["image_grid_thw"][:, 1:],
    }


def whole_patches(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """Inkling: one patch of two frames per token, without a grid."""
    count = sum(8 if size == "s" else 16 for size in sizes)
    return {"pixel_values": torch.randn(count, 2, 4, 4, 3, generator=rng)}


def square_patches(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """Inkling 2: one patch per token, and rows and columns of tokens."""
    shapes = [[1, 2, 4] if size == "s" else [1, 4, 4] for size in sizes]
    count = sum(height * width for _, height, width in shapes)
    values = torch.randn(count, 4, 4, 3, generator=rng)
    return {"pixel_values": values, "image_grid_thw": torch.tensor(shapes)}


def two_resolutions(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """DeepSeek-VL 7B: every picture small and large."""
    large = torch.randn(len(sizes), 3, 64, 64, generator=rng)
    return {**stack(16)(sizes, rng), "high_res_pixel_values": large}


def grid_clip(rng: torch.Generator) -> dict[str, Any]:
    values = torch.randn(2 * 4 * 4, 3 * 2 * 16, generator=rng)
    return {"pixel_values_videos": values, "video_grid_thw": torch.tensor([[2, 4, 4]])}


def mm_types(ids: torch.Tensor) -> dict[str, Any]:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def pixtral(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    shapes = [[32, 16] if size == "s" else [32, 32] for size in sizes]
    values = torch.randn(len(shapes), 3, 32, 32, generator=rng)
    return {"pixel_values": values, "image_sizes": torch.tensor(shapes)}


def patch_rows(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """LFM2-VL: every tile a padded row of patches."""
    shapes = []
    for size in sizes:
        shapes += [[4, 8]] if size == "s" else [[8, 8], [8, 8], [4, 8]]
    mask = torch.zeros(len(shapes), 64, dtype=torch.long)
    for tile, (height, width) in enumerate(shapes):
        mask[tile, : height * width] = 1
    return {
        "pixel_values": torch.randn(len(shapes), 64, 3 * 16, generator=rng),
        "spatial_shapes": torch.tensor(shapes),
        "pixel_attention_mask": mask,
    }


def patch_line(merged: int) -> Pixels:
    """MiniCPM-V: patches of all slices side by side, every slice 2 x 4 tokens."""

    def pixels(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
        count = sum({"s": 1, "l": 3}[size] for size in sizes)
        shapes = torch.tensor([[2 * merged, 4 * merged]] * count)
        line = torch.randn(1, 3, 4, 4 * int(shapes.prod(-1).sum()), generator=rng)
        return {"pixel_values": line, "target_sizes": shapes}

    return pixels


def views_and_crops(side: int, crop: int) -> Pixels:
    """DeepSeek-OCR 2 and Step: one view of each image, and crops of the large ones apart."""

    def pixels(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
        crops = torch.tensor([{"s": 0, "l": 1}[size] for size in sizes])
        return {
            **stack(side)(sizes, rng),
            "pixel_values_local": torch.randn(int(crops.sum()), 3, crop, crop, generator=rng),
            "num_local_patches": crops,
        }

    return pixels


def views_and_lined_crops(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """Unlimited-OCR: views and crops; their numbers and the columns and rows of crops are lists."""
    inputs = views_and_crops(64, 64)(sizes, rng)
    crops = inputs["num_local_patches"].tolist()
    return {**inputs, "num_local_patches": crops, "patches_grid": [[own, own] for own in crops]}


def stacks_and_lists(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the pixels and lists of all rows one after the other."""
    lists = {
        name: [value for row in rows if row for value in row[name]]
        for name in ("num_local_patches", "patches_grid")
    }
    stacks = [{n: v for n, v in row.items() if n not in lists} for row in rows]
    return {**in_one_stack(stacks), **lists}


def sized_pictures(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """Emu 3: pictures padded to one size, with their own sizes."""
    shapes = [[8, 8] if size == "s" else [8, 16] for size in sizes]
    values = torch.randn(len(sizes), 3, 8, 16, generator=rng)
    return {"pixel_values": values, "image_sizes": torch.tensor(shapes)}


def masked_tiles(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """Granite Docling: tiles of all images of one row, and which are real."""
    inputs = tiles_per_row(32, {"s": 1, "l": 3})(sizes, rng)
    shape = inputs["pixel_values"].shape[:2]
    return {**inputs, "pixel_attention_mask": torch.ones(shape, dtype=torch.bool)}


def perception_tiles(sizes: list[str], rng: torch.Generator) -> dict[str, Any]:
    """PerceptionLM: tiles one by one."""
    count = sum({"s": 1, "l": 2}[size] for size in sizes)
    return {"pixel_values": torch.randn(count, 1, 3, 16, 16, generator=rng)}


def framed(counts: dict[str, int]) -> Callable[[str], list[int]]:
    """Return a start and an end token around the placeholders."""
    return lambda size: [START, *[IMAGE] * counts[size], END]


def idefics_tiles(size: str) -> list[int]:
    """Return tiles with their names, the global view last."""
    names = [GLOBAL] if size == "s" else [TILE, TILE + 11, GLOBAL]
    return [token for name in names for token in [FAKE, name, *[IMAGE] * 16]] + [FAKE]


def docling_tiles(size: str) -> list[int]:
    """Return tiles with their names; the first has the same name in every image."""
    first = [FAKE, TILE, *[IMAGE] * 16]
    if size == "s":
        return [*first, BREAK]
    others = [token for name in (TILE + 11, GLOBAL) for token in [FAKE, name, *[IMAGE] * 16]]
    return [*first, *others, FAKE]


def llama_tiles(size: str) -> list[int]:
    """Return tiles with tokens between them, the global view last behind its own token."""
    others = [] if size == "s" else [*[IMAGE] * 16, BREAK, *[IMAGE] * 16, TILE]
    return [START, *others, GLOBAL, *[IMAGE] * 16, END]


def molmo_views(size: str) -> list[int]:
    """Return the small view, and rows of the large one with a token behind each."""
    columns = 2 if size == "s" else 4
    rows = [*[IMAGE] * columns, BREAK] * 2
    return [GLOBAL, *[IMAGE] * 4, END, START, *rows, END]


def molmo_types(ids: torch.Tensor) -> dict[str, Any]:
    """Molmo 2: all tokens of images, those between them too."""
    own = torch.tensor([IMAGE, START, END, BREAK, GLOBAL, TILE])
    return {"mm_token_type_ids": torch.isin(ids, own).int()}


def aya_tiles(size: str) -> list[int]:
    names = [GLOBAL] if size == "s" else [TILE, GLOBAL]
    return [START, *[token for name in names for token in [name, *[IMAGE] * 16]], END]


def cohere_tiles(size: str) -> list[int]:
    return [START, *([*[IMAGE] * 16, BREAK] * (1 if size == "s" else 2)), END]


def lfm2_tiles(size: str) -> list[int]:
    if size == "s":
        return [START, *[IMAGE] * 8, END]
    return [START, TILE, *[IMAGE] * 16, TILE + 11, *[IMAGE] * 16, GLOBAL, *[IMAGE] * 8, END]


def minicpm_slices(size: str) -> list[int]:
    whole = [START, *[IMAGE] * 8, END]
    return whole if size == "s" else [*whole, *([TILE, *[IMAGE] * 8, GLOBAL] * 2)]


def step_crops(size: str) -> list[int]:
    whole = [START, *[IMAGE] * 16, END]
    return whole if size == "s" else [TILE, *[IMAGE] * 9, GLOBAL, *whole]


def ovis_tiles(size: str) -> list[int]:
    first = [START, *[IMAGE] * 16, GLOBAL]
    return [*first, END] if size == "s" else [*first, *[IMAGE] * 16, BREAK, END]


def pixtral_rows(size: str) -> list[int]:
    columns = 2 if size == "s" else 4
    return [*([*[IMAGE] * columns, BREAK] * 3), *[IMAGE] * columns, END]


def image_types(ids: torch.Tensor) -> dict[str, Any]:
    """Gemma 3: the tokens of an image see each other."""
    return {"token_type_ids": (ids == IMAGE).int()}


def prefix_types(ids: torch.Tensor) -> dict[str, Any]:
    """PaliGemma: all tokens of the prompt see each other."""
    return {"token_type_ids": torch.zeros_like(ids)}


def same(count: int) -> dict[str, int]:
    return {"s": count, "l": count}
