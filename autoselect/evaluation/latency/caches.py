"""The cache that a model fills with a prompt: its bytes, and one decoding step after it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from autoselect.evaluation.latency.calls import Prompt, attached
from autoselect.evaluation.latency.timing import Call
from autoselect.vlm import FrozenVLM
from autoselect.vlm.pruned_cache import empty_cache
from autoselect.vlm.release import CACHE


def filled_cache(
    vlm: FrozenVLM, prompt: Prompt, around: Callable[[], AbstractContextManager] = nullcontext
) -> Any:
    """Return the cache after a prefill of the prompt.

    A model that makes none without being asked to, such as Granite 4 Vision, is given one, as
    `generate` does.

    Args:
        vlm: the model.
        prompt: the timed batch.
        around: attaches a selector; nothing by default.
    """
    call = prompt.encoded if around is nullcontext else prompt.attached
    with around():
        cache = vlm.model(**call).get(CACHE)
        if cache is None:
            cache = empty_cache(vlm.model)
            vlm.model(**call, **{CACHE: cache})
    return cache


def held_bytes(
    vlm: FrozenVLM, selector: Any, prompt: Prompt, budgets: Sequence[int]
) -> dict[int, int]:
    """Return the bytes of the cache after the prompt by budget; 0 is the full model."""
    found = {0: cache_bytes(filled_cache(vlm, prompt))}
    for budget in budgets:
        around = attached(vlm.model, selector, budget)
        found[budget] = cache_bytes(filled_cache(vlm, prompt, around))
    return found


def cache_bytes(cache: Any) -> int:
    """Return the bytes that the layers of a cache hold: keys and values, or states instead."""
    found = {id(own): own for layer in cache.layers for own in _tensors(vars(layer).values())}
    return sum(own.nbytes for own in found.values() if own.is_floating_point())


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def decode_calls(
    vlm: FrozenVLM, selector: Any, prompt: Prompt, budgets: Sequence[int]
) -> dict[str, Call]:
    """Return one decoding step by name; the cache is cropped to its prompt after each.

    Empty if layers mix neighbouring columns (convolutions): their state cannot be cropped.
    """
    if vlm.family.convolutions:
        return {}
    calls = {"full_decode": decode_call(vlm, prompt, nullcontext)}
    for budget in budgets:
        around = attached(vlm.model, selector, budget)
        calls[f"decode@{budget}"] = decode_call(vlm, prompt, around)
    return calls


def decode_call(
    vlm: FrozenVLM, prompt: Prompt, around: Callable[[], AbstractContextManager]
) -> Call:
    """Return one decoding step after the prompt; which token is fed does not change the work."""
    cache = filled_cache(vlm, prompt, around)
    cache.activate_past_recording()  # a full sliding window cannot be cropped without it
    token = torch.zeros(len(prompt.inputs["input_ids"]), 1, dtype=torch.long, device=vlm.device)

    def decode() -> Tensor:
        logits = vlm.model(**{"input_ids": token, CACHE: cache, "use_cache": True}).logits
        cache.crop(-1)
        return logits

    return Call(decode, around)
