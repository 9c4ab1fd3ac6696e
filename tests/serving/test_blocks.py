"""Blocks keep text in order, positions of the full prompt, and offsets exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoselect.serving.batches import ENTRY, SHARED, some_images, sub_batches
from autoselect.serving.blocks import (
    Block,
    full_prompt,
    inflated_columns,
    visual_span,
    with_offsets,
    without_offsets,
)

IMAGE, MARK = 9, 5


def block(pattern: str, kept: int) -> Block:
    """Return a block of visual tokens `v` and marks `m`."""
    ids = torch.tensor([IMAGE if own == "v" else MARK for own in pattern])
    return Block(ids, ids == IMAGE, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("coordinates", [1, 3])
def test_offsets_survive_the_dtype_of_embeddings(dtype, coordinates):
    offsets = torch.tensor([0, 1, 127, 128, 255, 257, 16383, 16384, 2_097_151])
    offsets = offsets.expand(coordinates, -1)
    rows = torch.randn(offsets.shape[1], 6).to(dtype)
    found, read = without_offsets(with_offsets(rows, offsets), coordinates)
    assert torch.equal(found, rows)
    assert torch.equal(read, offsets)


def test_text_between_visual_tokens_stays_in_its_place():
    own = block("vvmvvmvv", 3)
    assert own.slots == 5
    assert own.places(torch.tensor([1, 2, 5])).tolist() == [1, 2, 3, 5, 7]


def test_a_block_survives_its_journey():
    own = block("vvmv", 2)
    other = Block.unpacked(own.packed())
    assert torch.equal(other.ids, own.ids)
    assert torch.equal(other.visual, own.visual)
    assert other.kept == own.kept


def test_the_span_reaches_from_the_first_visual_token_to_the_last():
    assert visual_span([False, True, False, True, False]) == (1, 4)


images = st.tuples(
    st.integers(0, 3),
    st.text("vm", min_size=0, max_size=6).map(lambda own: f"v{own}v"),
    st.integers(1, 4),
)


@given(st.lists(images, max_size=4), st.integers(0, 3))
def test_columns_of_a_pruned_prompt_are_those_of_its_tokens_in_the_full_one(parts, tail):
    full, pruned, truth, blocks = [], [], [], []
    for text, pattern, kept in parts:
        own = block(pattern, min(kept, pattern.count("v")))
        for _ in range(text):
            truth.append(len(full))
            full.append(100 + len(full))
            pruned.append(full[-1])
        blocks.append((len(pruned), own))
        truth += [len(full)] * own.slots
        pruned += [IMAGE] * own.slots
        full += own.ids.tolist()
    for _ in range(tail):
        truth.append(len(full))
        full.append(100 + len(full))
        pruned.append(full[-1])
    assert full_prompt(pruned, blocks) == full
    assert inflated_columns(len(pruned), blocks).tolist() == truth


def batch(counts):
    """Return batched arguments of images with `counts` patches: flat, one entry each, shared."""
    total = sum(counts)
    arguments = {
        "grid": torch.arange(len(counts)),
        "patches": torch.arange(2 * total).view(total, 2),
        "sides": torch.arange(2 * total).view(2, total),
        "version": torch.tensor(7),
    }
    rows = [torch.tensor([[ENTRY, 0], [count, 0], [count, 1], [SHARED, 0]]) for count in counts]
    return arguments, rows


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 9))
def test_parts_of_a_batch_are_bounded_and_lose_nothing(counts, most):
    arguments, rows = batch(counts)
    parts = list(sub_batches(arguments, rows, counts, most))
    numbers = [number for part, _ in parts for number in range(len(counts))[part]]
    assert numbers == list(range(len(counts)))
    for part, own in parts:
        assert sum(counts[part]) <= most or len(counts[part]) == 1
        assert own["version"] == 7
    for name, dim in (("grid", 0), ("patches", 0), ("sides", 1)):
        whole = torch.cat([own[name] for _, own in parts], dim=dim)
        assert torch.equal(whole, arguments[name])


def test_lists_of_a_batch_are_divided_too():
    rows = [torch.tensor([[ENTRY, 0], [2, 0]]), torch.tensor([[ENTRY, 0], [1, 0]])]
    found = some_images({"a": ["x", "y"], "b": [1, 2, 3]}, rows, slice(1, 2))
    assert found == {"a": ["y"], "b": [3]}
