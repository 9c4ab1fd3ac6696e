"""Calls of a model whose prompt is pruned, from the first turn to the last decoded token.

A call counts columns of the whole conversation, but the cache holds fewer. These functions
translate between the two. Arguments are those of the stock `forward`.

Dimension letters: B rows, T new columns of a call, L columns of the conversation before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.vlm.adapter import FILL_PER_TOKEN, VisualAdapter
from autoselect.vlm.blocks import Block
from autoselect.vlm.cache_layout import CacheLayout
from autoselect.vlm.columns import PrunePlan
from autoselect.vlm.host import HostPrompt, send
from autoselect.vlm.pruned_cache import (
    cached_length,
    check_kind,
    count_columns,
    forget_prompt_length,
    layout_of,
)
from autoselect.vlm.release import CACHE

IN_CHUNKS = (
    "prefill_chunk_size cannot be used with a selector, which has to see whole images; leave it "
    "out: the pruned prompt is short"
)


def layout_before(adapter: VisualAdapter, cache: Any, input_ids: Tensor) -> CacheLayout:
    """Return what a cache holds, pruned or not; an empty layout without a cache.

    Raises:
        ConfigError: cache and call have different numbers of rows, or the cache is of a kind that
            cannot hold a pruned prompt.
    """
    check_kind(cache)
    known = layout_of(cache, counted=True)
    if known is not None:
        known.check_rows(len(input_ids))
        return known
    layout = CacheLayout.unpruned(len(input_ids), cached_length(cache), input_ids.device)
    if not layout.full_length:
        forget_prompt_length(cache)
    if layout.full_length and adapter.positions.on_grid:
        return replace(layout, rope_deltas=adapter.base.rope_deltas)
    return layout


def new_columns(call: Mapping[str, Any], length: int) -> tuple[dict[str, Any], Tensor | None]:
    """Cut the per-token arguments of a call to its last `length` columns.

    Returns:
        the call, and the attention mask of the columns before them, [B, L], or None.
    """
    cut = {
        name: value[..., -length:]
        for name in ("input_ids", *FILL_PER_TOKEN)
        if isinstance(value := call.get(name), Tensor)
        and value.ndim <= 3
        and value.shape[-1] > length
    }
    mask = call.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] > length:
        return {**call, **cut}, mask[:, :-length]
    return {**call, **cut}, None


def with_text_types(call: Mapping[str, Any]) -> dict[str, Any]:
    """Extend `mm_token_type_ids` to the length of `input_ids`, with zeros (text).

    Assisted decoding appends candidates to the ids only.
    """
    name = "mm_token_type_ids"
    if (types := call.get(name)) is None:
        return dict(call)
    missing = call["input_ids"].shape[1] - types.shape[1]
    if missing <= 0:
        return dict(call)
    return {**call, name: torch.nn.functional.pad(types, (0, missing))}


def types_by_place(
    adapter: VisualAdapter, call: Mapping[str, Any], layout: CacheLayout, new: int
) -> dict[str, Tensor]:
    """Return the token types of a call that a mask may look up by place in the cache.

    `layout` is that of the cache; `new` columns follow it.
    """
    names = ["token_type_ids"]
    if adapter.family.images_see_themselves:
        names.append("mm_token_type_ids")  # of Gemma 4 and Molmo 2; elsewhere for positions
    given = {name: call[name] for name in names if call.get(name) is not None}
    return {name: layout.token_types(types, new) for name, types in given.items()}


def prune_call(
    adapter: VisualAdapter,
    call: Mapping[str, Any],
    outputs: Mapping[str, Any],
    plan: PrunePlan,
    kept: Tensor,
    layout: CacheLayout,
) -> tuple[dict[str, Any], Tensor, CacheLayout]:
    """Return a call without its removed visual tokens.

    Per-token arguments of `call` may span the whole conversation; `plan` covers its new columns.
    `kept` is as in `PrunePlan.spread`.

    Returns:
        the new call, the new columns that stay [B, S] (-1 at padding), and what the cache will
        hold.
    """
    length = plan.prompt.ids.shape[1]
    given = call.get("attention_mask")
    if isinstance(given, Tensor) and given.ndim == 2 and given.shape[1] > length:
        layout.check_mask(given, length)
    call, past_mask = new_columns(call, length)
    positions, deltas = adapter.positions, None
    if positions.on_grid:
        if call.get("position_ids") is None:
            call["position_ids"] = positions.of_call(call, layout, past_mask)
        deltas = positions.rope_deltas(call["position_ids"], plan.prompt, layout, past_mask)
    pruned, columns = adapter.prune(call, outputs, plan, kept)
    if pruned.get("position_ids") is None:
        pruned["position_ids"] = columns.positions(layout.full_length + positions.first)
    if layout.cached:
        cached = layout.cached_mask(past_mask).to(pruned["attention_mask"].dtype)
        pruned["attention_mask"] = torch.cat([cached, pruned["attention_mask"]], dim=1)
        pruned.update(types_by_place(adapter, pruned, layout, columns.size))
    if "flash" in str(adapter.text_config._attn_implementation):
        full = not (plan.padded or layout.padded or plan.prompt.hides_before)
        if len(plan.texts) == 1 and full:
            total = layout.cached + columns.size
            pruned.update(one_sequence(columns.size, total, columns.index.device))
    return pruned, columns.numbers, layout.followed_by(columns.numbers, plan, deltas)


def whole_call(
    adapter: VisualAdapter,
    call: dict[str, Any],
    prompt: HostPrompt,
    blocks: Sequence[Block],
    layout: CacheLayout,
) -> tuple[dict[str, Any], CacheLayout | None]:
    """Return a call that keeps all columns, and what its cache will hold if its layout is needed.

    On a grid it is: transformers keeps on the model what later positions add to the number of
    columns, where the next call, of any conversation, replaces it.
    """
    positions, (rows, length) = adapter.positions, prompt.ids.shape
    if not positions.on_grid:
        return call, None
    part, past_mask = new_columns(call, length)
    found = part.get("position_ids")
    if found is None:
        found = positions.of_call(part, layout, past_mask)
        if layout.full_length:
            call = {**call, "position_ids": found}
    after = CacheLayout.unpruned(rows, layout.full_length + length, call["input_ids"].device)
    deltas = positions.rope_deltas(found, prompt, layout, past_mask)
    end = layout.full_length + 1 + max(int(block.columns[-1]) for block in blocks)
    return call, replace(after, rope_deltas=deltas, images_end=end)


def one_sequence(new: int, total: int, device: torch.device) -> dict[str, Any]:
    """Return arguments that tell flash attention that one row without padding is one sequence.

    For a batch of one, transformers mistakes gaps in the positions for the borders of packed
    sequences (`_is_packed_sequence`), and expects each sequence to start at position 0.

    Args:
        new: columns of the call.
        total: cached and new columns.
        device: device of the call.
    """
    (ends,) = send([np.array([[0, new], [0, total]])], device)
    return {
        "cu_seq_lens_q": ends[0].int(),
        "cu_seq_lens_k": ends[1].int(),
        "max_length_q": new,
        "max_length_k": total,
    }


def continue_call(
    adapter: VisualAdapter, call: dict[str, Any], layout: CacheLayout
) -> dict[str, Any]:
    """Return a call of `forward` without images that continues from a pruned cache.

    `input_ids` or `inputs_embeds` hold the new columns only.

    Raises:
        ConfigError: the attention mask does not cover the whole conversation, or cache and call
            have different numbers of rows.
    """
    ids = call.get("input_ids")
    given = ids if ids is not None else call["inputs_embeds"]
    length = given.shape[1]
    layout.check_rows(len(given))
    mask = call.get("attention_mask")
    layout.check_mask(mask, length)
    fitted = {**call, "attention_mask": layout.mask(mask, length)}
    fitted.update(types_by_place(adapter, call, layout, length))
    if call.get("position_ids") is None:
        numbered = {"input_ids": given[..., 0] if ids is None else ids}
        past_mask = None if mask is None else mask[:, : layout.full_length]
        fitted["position_ids"] = adapter.positions.of_call(numbered, layout, past_mask)
    count_columns(call[CACHE], length)
    return fitted


def continued_prompt(
    adapter: VisualAdapter, input_ids: Tensor | None, call: Mapping[str, Any], layout: CacheLayout
) -> dict[str, Tensor]:
    """Return mask and positions for `generate` on a conversation with pruned earlier turns.

    `generate` would count the columns of the cache instead of those of the conversation.
    `input_ids` hold the whole conversation, or its new columns.

    Raises:
        ConfigError: the new columns are embeddings, or are to be read in chunks.
    """
    if input_ids is None or call.get("inputs_embeds") is not None:
        raise ConfigError(
            f"inputs_embeds cannot go on from the {CACHE} of a pruned prompt in generate; "
            "give input_ids"
        )
    config = call.get("generation_config") or adapter.model.generation_config
    if call.get("prefill_chunk_size", config.prefill_chunk_size) is not None:
        raise ConfigError(IN_CHUNKS)
    mask = call.get("attention_mask")
    if mask is None:
        known = 0 if input_ids.shape[1] > layout.full_length else layout.full_length
        mask = input_ids.new_ones(len(input_ids), input_ids.shape[1] + known)
    added: dict[str, Tensor] = {"attention_mask": mask}
    if adapter.positions.on_grid and call.get("position_ids") is None:
        length = mask.shape[1] - layout.full_length
        named = {**call, "attention_mask": mask, "input_ids": input_ids}
        part, past_mask = new_columns(named, length)
        new = adapter.positions.of_call(part, layout, past_mask)
        old = new.new_zeros(*new.shape[:-1], layout.full_length)
        added["position_ids"] = torch.cat([old, new], dim=-1)
    return added
