"""KV caches that hold a pruned prompt: their layout follows whatever is done to their rows.

transformers repeats, selects, reorders, crops and empties caches by methods of `Cache`. A cache
becomes a `PrunedCache` of its own class when a pruned prompt fills it, and each of these methods
then changes the layout too. What these methods cannot follow is refused: a change that only some
layers know how to make, and one made behind the cache's back, layer by layer.

Nothing here waits for the device: lengths of static caches, which are tensors, are counted along.
"""

import weakref
from collections.abc import Callable
from functools import cache as remember_result
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    QuantizedLayer,
    StaticLayer,
)

from autoselect.config import ConfigError
from autoselect.vlm.cache_layout import CacheLayout
from autoselect.vlm.release import CACHE

LAYOUT, CONTENTS, BEFORE = "autoselect_layout", "autoselect_contents", "autoselect_before"
HOLDING_MORE = (
    getattr(cache_utils, "BaseQuantizedLayer", QuantizedLayer),
    LinearAttentionCacheLayerMixin,
)
PROMPT_LENGTH = "prefill_length"
"""Attribute of layers that hold their prompt apart from later columns (Unlimited-OCR)."""


class PrunedCache:
    """Mixed into the class of a cache that holds a pruned prompt.

    Attributes:
        autoselect_layout: which columns it holds; None when it was emptied.
        autoselect_contents: the tensors of its first attention layer after the last call, as weak
            references, with their version (the number of changes in place); None while the cache
            is being changed.
        autoselect_before: layout and contents before the columns of a call were counted ahead;
            None when the call has ended.
        autoselect_in_call: whether a model with a selector is being called, which fits the call.
    """

    autoselect_layout: CacheLayout | None
    autoselect_contents: "list[tuple[weakref.ref, int | None]] | None"
    autoselect_before: "tuple[CacheLayout, list[tuple[weakref.ref, int | None]]] | None" = None
    autoselect_in_call: bool = False

    def update(self, *args: Any, **kwargs: Any) -> Any:
        layout = self.autoselect_layout
        if not self.autoselect_in_call and layout is not None and layout.is_pruned:
            raise ConfigError(
                f"{CACHE}: that of a pruned prompt was given to a call that no selector fits to it "
                "(of a detached model, another model, or model.forward), which would count removed "
                "columns wrongly; call the model with its selector, as model(...), or start a new "
                "cache"
            )
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._change("reorder_cache", beam_idx, lambda layout: layout.of_rows(beam_idx))

    def batch_select_indices(self, indices: Tensor) -> None:
        rows = torch.as_tensor(indices)
        self._change("batch_select_indices", indices, lambda layout: layout.of_rows(rows))

    def batch_repeat_interleave(self, repeats: int) -> None:
        def repeated(layout: CacheLayout) -> CacheLayout:
            rows = torch.arange(len(layout.columns), device=layout.columns.device)
            return layout.of_rows(rows.repeat_interleave(repeats))

        self._change("batch_repeat_interleave", repeats, repeated)

    def crop(self, tokens_to_remove: int) -> None:
        def cropped(layout: CacheLayout) -> CacheLayout | None:
            length = layout.cached - abs(tokens_to_remove)
            return layout.cut_to(length) if length > 0 else None

        self._change("crop", tokens_to_remove, cropped)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.autoselect_layout = None

    def __iter__(self) -> Any:
        if self.autoselect_layout is not None and self.autoselect_layout.is_pruned:
            raise ConfigError(
                f"{CACHE} of a pruned prompt cannot be taken apart and put together again, "
                "because keys and values do not tell which columns were removed; hand on the cache "
                "itself or copy.deepcopy(cache), or read its tensors from cache.layers"
            )
        return super().__iter__()  # type: ignore[misc]

    def __reduce__(self) -> tuple:
        check_contents(self)
        state = {n: value for n, value in vars(self).items() if n not in (CONTENTS, BEFORE)}
        return _restored, (type(self).__mro__[2],), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        note_contents(self)

    def _change(
        self, method: str, argument: Any, change: Callable[[CacheLayout], CacheLayout | None]
    ) -> None:
        """Call a method of the cache's own class and change the layout alike.

        Raises:
            ConfigError: a layer would be changed in part.
        """
        layout = layout_of(self)
        if layout is not None:
            check_layers(self, method)
            layout = change(layout)
        self.autoselect_contents = None
        getattr(super(), method)(argument)
        self.autoselect_layout = layout
        note_contents(self)


@remember_result
def pruned_class(base: Any) -> type:
    """Return the class of a pruned cache whose own class is `base`."""
    return type(base.__name__, (PrunedCache, base), {"__doc__": base.__doc__})


def _restored(base: type) -> Any:
    return object.__new__(pruned_class(base))


def empty_cache(model: Any) -> Cache:
    """Return the cache that `generate` gives to a model which makes none of its own."""
    return DynamicCache(config=model.config.get_text_config())


def cached_length(cache: Any) -> int:
    """Return the number of columns in a cache, 0 without one; waits for the device if static."""
    return 0 if cache is None else int(cache.get_seq_length())


def layout_of(cache: Any, counted: bool = False) -> CacheLayout | None:
    """Return the layout of a cache filled by a pruned prompt, brought up to date; else None.

    Args:
        cache: a cache, or None.
        counted: whether to read the length of a static cache from the device.

    Raises:
        ConfigError: the cache was changed in a way that its layout could not follow.
    """
    layout = getattr(cache, LAYOUT, None)
    if layout is None:
        return None
    check_contents(cache)
    length = cache.get_seq_length()
    if isinstance(length, Tensor):
        if not counted:
            return layout
        length, cache.autoselect_before = int(length), None
    if length == 0:
        cache.autoselect_layout = None
        return None
    return layout.grown_to(length)


def write_layout(cache: Any, layout: CacheLayout) -> None:
    """Make `layout` that of a cache which a call has filled.

    Raises:
        ConfigError: the cache is not one of transformers with its own layers.
    """
    check_kind(cache)
    if not isinstance(cache, PrunedCache):
        own: Any = type(cache)
        cache.__class__ = pruned_class(own)
    cache.autoselect_layout = layout  # type: ignore[attr-defined]
    note_contents(cache)


def check_kind(cache: Any) -> None:
    """Check that a cache, if there is one, is able to hold a pruned prompt.

    Caches of drafting heads count their columns from another place than the model does.

    Raises:
        ConfigError: it is not a cache of transformers with layers of its own, or one for a draft.
    """
    if cache is None:
        return
    own = isinstance(cache, Cache) and hasattr(cache, "layers")
    if not own or type(cache).get_query_offset is not Cache.get_query_offset:
        raise ConfigError(
            f"{CACHE}={type(cache).__name__} cannot hold a pruned prompt, because it is "
            "not the list of a model's own cache layers; give a DynamicCache, StaticCache or "
            "QuantizedCache of transformers, or none"
        )


def count_columns(cache: Any, new: int) -> None:
    """Count the columns that a call is about to add to a static cache.

    A compiled call cannot note afterwards what it changed in place.
    """
    layout = getattr(cache, LAYOUT, None)
    if layout is not None and any(isinstance(layer, StaticLayer) for layer in cache.layers):
        cache.autoselect_before = layout, cache.autoselect_contents
        cache.autoselect_layout = layout.grown_to(layout.cached + new)
        cache.autoselect_contents = [(tensor, None) for tensor, _ in cache.autoselect_contents]


def mark_call(cache: Any, begins: bool) -> None:
    """Note in a pruned cache that a call of a model with a selector begins, or has ended."""
    if getattr(cache, LAYOUT, None) is not None:
        cache.autoselect_in_call = begins


def undo_call(cache: Any, pruned: CacheLayout | None) -> None:
    """Take back what was counted for a call that failed, and refuse a cache that it filled in part.

    `pruned` is what the cache would hold after a call whose prompt was pruned; None after others.
    """
    if (before := getattr(cache, BEFORE, None)) is not None:
        cache.autoselect_layout, cache.autoselect_contents = before
        cache.autoselect_before = None
    elif pruned is not None and getattr(cache, LAYOUT, None) is None and cached_length(cache):
        write_layout(cache, pruned)
        cache.autoselect_contents = None


def forget_prompt_length(cache: Any) -> None:
    """Let the layers of an empty cache measure the prompt when it comes, because it is pruned then.

    `generate` of Unlimited-OCR tells them the length of the full prompt before the call.
    """
    for layer in getattr(cache, "layers", ()):
        if hasattr(layer, PROMPT_LENGTH):
            layer.prefill_length = None


def note_contents(cache: Any) -> None:
    """Note the tensors that a cache holds after a call, so that other changes are noticed."""
    if getattr(cache, LAYOUT, None) is not None:
        cache.autoselect_contents = [(weakref.ref(t), _version(t)) for t in _contents(cache)]
        cache.autoselect_before = None


def check_contents(cache: Any) -> None:
    """Check that a pruned cache holds what it held after the last call.

    Raises:
        ConfigError: its layers were changed in another way than by the methods of the cache.
    """
    if getattr(cache, LAYOUT, None) is None:
        return
    noted, now = cache.autoselect_contents, _contents(cache)
    same = noted is not None and len(noted) == len(now)
    if not same or not all(
        known() is tensor and version in (None, _version(tensor))
        for (known, version), tensor in zip(noted, now, strict=True)
    ):
        raise ConfigError(
            f"{CACHE}: that of a pruned prompt was changed layer by layer, by a call or a method "
            "that failed, or by a call of another model, so it is not known which columns it "
            "holds; use the methods of the cache itself, or start a new cache"
        )


def check_layers(cache: Any, method: str) -> None:
    """Check that a method changes all that each layer holds, before it changes anything.

    Quantised and hybrid layers inherit methods that change their keys and values but not what else
    they hold.

    Raises:
        ConfigError: a layer lacks the method, or its method leaves a part unchanged.
    """
    for number, layer in enumerate(cache.layers):
        own = getattr(type(layer), method, None)
        holds_more = isinstance(layer, HOLDING_MORE) or hasattr(layer, PROMPT_LENGTH)
        if own is None or (holds_more and own is getattr(DynamicLayer, method)):
            raise ConfigError(
                f"{CACHE}.{method} cannot change layer {number} of a pruned prompt's cache "
                f"({type(layer).__name__} of transformers changes it in part or not at all); "
                + (
                    "start a new cache"
                    if method == "crop"
                    else f"call {CACHE}.reorder_cache with the numbers of the wanted rows"
                )
            )


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _contents(cache: Any) -> list[Tensor]:
    """Return the tensors of the first attention layer."""
    layer = next((own for own in cache.layers if isinstance(own, CacheLayerMixin)), None)
    found: list[Tensor] = []
    for value in vars(layer).values() if layer is not None else ():
        parts = value if isinstance(value, tuple) else (value,)
        found += [part for part in parts if isinstance(part, Tensor)]
    return found
