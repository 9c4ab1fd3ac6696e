"""`attach` a selector to an unmodified transformers model, and `detach` it again.

    model = attach(vlm, selector, budget=64)
    model.generate(**inputs, visual_token_budget=32)      another budget for one call
    model.autoselect.last.images[0].kept                  positions that were kept
    detach(model)

The prompt keeps its full length for the user: `generate` returns the original ids and the new ones.
Only the language model sees fewer tokens, each kept one at its original position. Methods are
replaced on this one object, also its own ones, and restored later; class and weights are untouched.

Dimension letters: B rows, T prompt tokens, S tokens that stay.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.pruning.budget import Budget, OnSmallImage, check_choices, check_settings
from autoselect.pruning.calls import CallOfThread, CallSettings
from autoselect.pruning.hub import other_model
from autoselect.pruning.overlay import selection_overlay, shown_image, token_grid
from autoselect.pruning.plans import plan_call, plan_columns
from autoselect.pruning.selection import (
    Selection,
    block_budgets,
    check_width,
    given_selection,
    select,
)
from autoselect.pruning.selector import Selector
from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.cache_layout import CacheLayout
from autoselect.vlm.conversation import (
    IN_CHUNKS,
    continue_call,
    continued_prompt,
    layout_before,
    prune_call,
    types_by_place,
    whole_call,
    with_text_types,
)
from autoselect.vlm.copies import check_copies
from autoselect.vlm.host import HostPrompt
from autoselect.vlm.pruned_cache import (
    LAYOUT,
    count_columns,
    layout_of,
    mark_call,
    note_contents,
    undo_call,
    write_layout,
)
from autoselect.vlm.release import CACHE, named_as_now
from autoselect.vlm.sites import SITES, AfterProjector

logger = logging.getLogger(__name__)
BUDGET_ARGUMENT = "visual_token_budget"
REPLACED = ("generate", "prepare_inputs_for_generation")
PREPARED, PRUNED = "autoselect_prepared", "autoselect_pruned"


def attach(
    model: Any,
    selector: Selector,
    budget: Budget,
    video_budget_per: Literal["clip", "frame"] = "clip",
    on_small_image: OnSmallImage = "keep",
) -> Any:
    """Let a selector remove visual tokens in every call of `model`.

    Args:
        model: an unmodified transformers model of a family in docs/backbones.md.
        selector: selector trained for the width of the model's visual tokens.
        budget: tokens per image (an integer), the share that stays (a float), text ("25%"), or a
            function of an image's visual tokens; a list gives one per image of the call.
        video_budget_per: whether the budget of a video holds for a clip or for each of its frames.
        on_small_image: whether an image with fewer tokens than its budget keeps all or is an error.

    Returns:
        The same object, with its `Attachment` as `model.autoselect`.

    Raises:
        ConfigError: unsupported family, selector that does not fit, or budget without a meaning.
    """
    _check_free(model)
    check_selector(selector)
    check_settings(budget, video_budget_per, on_small_image)
    adapter = VisualAdapter(model, keep_alive=False)
    check_width(adapter, selector)
    if warning := other_model(selector.metadata, model.config.name_or_path):
        _warn_once(warning)
    model.autoselect = Attachment(
        adapter, selector.eval(), budget, video_budget_per, on_small_image=on_small_image
    )
    return model


@lru_cache
def _warn_once(text: str) -> None:
    """Log a warning; the evaluator attaches one selector for every timed call."""
    logger.warning(text)


def detach(model: Any) -> Any:
    """Remove the selector and return `model` as it was before `attach`.

    Raises:
        ConfigError: no selector is attached.
    """
    if not isinstance(getattr(model, "autoselect", None), Attachment):
        raise ConfigError("model has no selector; attach(model, selector, budget) first")
    model.autoselect.remove()
    del model.autoselect
    return model


def check_selector(selector: Any) -> None:
    if not isinstance(selector, Selector):
        given = repr(selector) if isinstance(selector, str) else f"a {type(selector).__name__}"
        raise ConfigError(
            f"selector={given} is not a Selector; give Selector.from_pretrained(FOLDER)"
        )


def _check_free(model: Any) -> None:
    """Raise ConfigError if calls of the model are pruned already."""
    if getattr(model, "autoselect", None) is not None:
        raise ConfigError(
            "model has a selector already; call detach(model) first, or change "
            "model.autoselect.budget"
        )
    if isinstance(getattr(model, REPLACED[0], None), _Replacement):
        raise ConfigError("model is inside a block of keeping(model, ...); leave the block first")


@contextmanager
def keeping(model: Any, kept: Sequence[Tensor]) -> Iterator["Attachment"]:
    """Make calls of an untouched model inside the block see given visual tokens only.

    Args:
        model: a model as for `attach`; no selector is attached to it.
        kept: for each image or clip of the call's prompts, images first, in order of appearance:
            the positions that stay among its N tokens, ascending, int64, [K]; K may be 0.

    Raises:
        ConfigError: unsupported family, or calls of the model are pruned already.
    """
    _check_free(model)
    attachment = Attachment(VisualAdapter(model, keep_alive=False), None, 1.0, "clip", kept)
    try:
        yield attachment
    finally:
        attachment.remove()


class Attachment:
    """The object that `attach` puts on a model, as `model.autoselect`; it does not keep the model.

    Attributes:
        budget, on_small_image: as in `attach`; may be changed at any time.
        last: what was chosen in the last call that had images, in any thread.

    Args:
        video_budget_per: `clip` or `frame`.
        kept: positions that stay, see `keeping`; selector and budget are then unused.
    """

    def __init__(
        self,
        adapter: VisualAdapter,
        selector: Selector | None,
        budget: Budget,
        video_budget_per: str,
        kept: Sequence[Tensor] | None = None,
        on_small_image: OnSmallImage = "keep",
    ) -> None:
        self.adapter = adapter
        self.kept = kept
        self._selector = selector
        self.budget = budget
        self.on_small_image = on_small_image
        self.video_budget_per = video_budget_per
        self.last: Selection | None = None
        self._call = CallOfThread()
        model = adapter.model
        self._hooks = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
        ]
        self._own: dict[str, Callable[..., Any]] = {
            name: vars(model)[name] for name in REPLACED if name in vars(model)
        }
        for name in REPLACED:
            setattr(model, name, _Replacement(self, name))

    @property
    def selector(self) -> Selector | None:
        """Ranks visual tokens; may be replaced between calls. None inside `keeping`."""
        return self._selector

    @selector.setter
    def selector(self, value: Selector) -> None:
        check_selector(value)
        self._selector = value

    @property
    def site(self) -> AfterProjector:
        """Return the place where the selector scores tokens."""
        return SITES["after_projector" if self.selector is None else self.selector.site]

    def replaced(self, name: str) -> Callable[..., Any]:
        """Return what the attachment calls in turn: the object's own method, or its class's."""
        if name in self._own:
            return self._own[name]
        model = self.adapter.model
        return MethodType(getattr(type(model), name), model)

    def remove(self) -> None:
        model = self.adapter.model
        for hook in self._hooks:
            hook.remove()
        for name in REPLACED:
            delattr(model, name)
        vars(model).update(self._own)

    def overlay(self, image: Any, number: int = 0, grid: tuple[int, int] | None = None) -> Any:
        """Return the picture with the removed parts darkened, see `selection_overlay`.

        Args:
            image: the PIL image as the model saw it, after any crop or padding by the processor.
            number: index of the image in the last call.
            grid: rows and columns of its tokens; by default the raster of its family.

        Raises:
            ConfigError: no call had such an image, it is not a PIL image, or no grid is given and
                the tokens are not one raster.
        """
        if self.last is None:
            raise ConfigError("overlay needs a call with an image first")
        selection = shown_image(self.last.images, number, image)
        grid = grid or token_grid(selection, self.adapter.family.raster, image.size)
        return selection_overlay(image, selection, grid)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        inputs = args[0] if args else kwargs.get("inputs")
        ids = kwargs.get("input_ids") if inputs is None else inputs
        rows = None if ids is None else len(ids)
        frames = self.adapter.clip_frames(kwargs)
        given = kwargs.pop(BUDGET_ARGUMENT, None)
        # As transformers does, a configuration of the call goes before that of the model.
        own = args[1] if len(args) > 1 else kwargs.get("generation_config")
        for config in (own, self.adapter.model.generation_config):
            given = getattr(config, BUDGET_ARGUMENT, None) if given is None else given
        # Without a cache each step prunes again, though the attachment's budget may have changed.
        settings = CallSettings(self.budget if given is None else given, frames, rows)
        kwargs = self.site.given(self.adapter, named_as_now(kwargs))
        layout = layout_of(kwargs.get(CACHE), counted=True)
        if layout is not None:
            kwargs.update(continued_prompt(self.adapter, ids, kwargs, layout))
        outer, self._call.settings = self._call.settings, settings
        try:
            return self.replaced("generate")(*args, **kwargs)
        finally:
            self._call.settings = outer

    def _prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Run the model's own `prepare_inputs_for_generation` on the pruned prompt."""
        kwargs = named_as_now(kwargs)
        kwargs.pop("labels", None)  # PaliGemma's processor returns them; `generate` ignores them
        pruned: CacheLayout | None = None
        first = kwargs.get("is_first_iteration") or not kwargs.get("use_cache", True)
        layout = layout_of(kwargs.get(CACHE))
        if layout is not None and first and kwargs.get("next_sequence_length") is not None:
            kwargs["next_sequence_length"] = input_ids.shape[1] - layout.full_length
        if first and self.adapter.has_images(kwargs):
            length = kwargs.get("next_sequence_length") or input_ids.shape[1]
            call = with_text_types({**kwargs, "input_ids": input_ids})
            kwargs, pruned = self._prune(call, length, self._call.settings)
            input_ids = kwargs.pop("input_ids")
            if pruned is not None and pruned.is_pruned:
                kwargs["next_sequence_length"] = None
        elif layout is not None:
            new = kwargs.get("next_sequence_length") or input_ids.shape[1]
            layout.check_rows(len(input_ids))
            layout.check_mask(kwargs.get("attention_mask"), new)
            count_columns(kwargs[CACHE], new)
            kwargs["attention_mask"] = layout.mask(kwargs.get("attention_mask"), new)
            kwargs.update(types_by_place(self.adapter, kwargs, layout, new))
        own = self.replaced("prepare_inputs_for_generation")
        prepared: dict[str, Any] = own(input_ids, **kwargs)
        if (ids := prepared.get("input_ids")) is not None:
            known = kwargs.get("position_ids")
            if (pruned or layout) and known is not None and prepared.get("position_ids") is None:
                prepared["position_ids"] = known[..., -ids.shape[1] :]
            setattr(ids, PREPARED, prepared.get("mm_encoder_outputs"))
            setattr(ids, PRUNED, pruned)
        return prepared

    def _before_forward(
        self, model: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Prune a call that brings images; fit one that continues from a pruned cache."""
        self.adapter.check_own(model)
        if self._is_prepared(kwargs):
            mark_call(kwargs.get(CACHE), True)
            return None
        call = self.adapter.bind(args, kwargs)
        settings = CallSettings(call.pop(BUDGET_ARGUMENT, None), self.adapter.clip_frames(call))
        if self.adapter.has_images(call) or getattr(call.get(CACHE), LAYOUT, None) is not None:
            call = self._fit(call, settings)
        mark_call(call.get(CACHE), True)
        return (), call

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _fit(self, call: dict[str, Any], settings: CallSettings) -> dict[str, Any]:
        """Return a call of `forward` that brings images, or continues from a pruned cache."""
        if not self.adapter.has_images(call):
            layout = layout_of(call[CACHE])
            return call if layout is None else continue_call(self.adapter, call, layout)
        ids = call.get("input_ids")
        length = 0 if ids is None else ids.shape[1]
        call, pruned = self._prune(call, length, settings)
        if pruned is not None:
            own = call["input_ids"].view_as(call["input_ids"])  # the caller's stays as it is
            setattr(own, PRUNED, pruned)
            call["input_ids"] = own
        return call

    def _is_prepared(self, kwargs: Mapping[str, Any]) -> bool:
        """Return True if `generate` makes this call, on inputs that are pruned already."""
        ids = kwargs.get("input_ids")
        if not hasattr(ids, PREPARED):
            return False
        outputs = kwargs.get("mm_encoder_outputs")
        if self.adapter.has_images(kwargs) and outputs is not getattr(ids, PREPARED):
            raise ConfigError(IN_CHUNKS)
        return True

    def _after_forward(
        self, _model: Any, _args: Any, kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Note what the caches of a call hold; `output` is None if the call failed."""
        ids, cache = kwargs.get("input_ids"), kwargs.get(CACHE)
        mark_call(cache, False)
        if torch.compiler.is_compiling() and hasattr(ids, PREPARED):
            return  # decoding by `generate`, whose columns are counted already
        if hasattr(ids, PRUNED) or getattr(cache, LAYOUT, None) is not None:
            self._note(ids, cache, output)

    @staticmethod
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _note(ids: Tensor | None, cache: Any, output: Any) -> None:
        layout = getattr(ids, PRUNED, None)
        if output is None:
            undo_call(cache, layout)
            return
        values = output.values() if isinstance(output, Mapping) else output
        # An earlier hook of the user may have put a single tensor in the place of the output.
        given = (cache, *(() if isinstance(values, Tensor) else values))
        for value in {id(value): value for value in given}.values():
            if hasattr(value, "get_seq_length"):
                write_layout(value, layout) if layout is not None else note_contents(value)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _prune(
        self, call: dict[str, Any], length: int, settings: CallSettings
    ) -> tuple[dict[str, Any], CacheLayout | None]:
        """Return a call (`length` new columns) with its best tokens, and its cache's layout."""
        check_choices(self.video_budget_per, self.on_small_image)
        adapter = self.adapter
        per_frame = self.video_budget_per == "frame"
        prompt = HostPrompt.of(call, length, settings.frames if per_frame else None)
        site = self.site
        features = site.encode(adapter, call)
        copies = 1 if settings.rows is None else len(prompt.ids) // settings.rows
        if copies > 1:
            entries = adapter.entries(features)
            check_copies(adapter.model, prompt.ids, adapter.token_ids, entries, copies)
        plan = plan_call(adapter, prompt, features, copies, per_frame)
        budget = self.budget if settings.budget is None else settings.budget
        budgets = block_budgets(plan.blocks, budget, copies, self.on_small_image)
        if self.kept is not None:
            chosen = given_selection(plan.blocks, self.kept, copies)
        else:
            assert self.selector is not None
            chosen = select(adapter, self.selector, plan, features, budgets)
        layout = layout_before(adapter, call.get(CACHE), call["input_ids"])
        outputs = site.pruned(adapter, features, chosen.kept, chosen.counts)
        if chosen.removes_nothing and not layout.is_pruned:
            self.last = Selection(chosen, copies, layout.full_length, budgets)
            whole = adapter.with_outputs(call, outputs)
            return whole_call(adapter, whole, prompt, plan.blocks, layout)
        left = chosen.unhidden(prompt) if plan.hides_tokens else chosen
        columns = plan_columns(plan, left.counts)
        pruned, kept_columns, after = prune_call(adapter, call, outputs, columns, left.kept, layout)
        if layout.full_length:
            write_layout(call[CACHE], layout)  # true still if the call fails
        self.last = Selection(chosen, copies, layout.full_length, budgets, kept_columns)
        return pruned, after


class _Replacement:
    """Called in the place of a method of the model; `generate` reads the method's signature."""

    def __init__(self, attachment: Attachment, name: str) -> None:
        self._attachment, self._name = attachment, name
        self._read: Any = None

    @property
    def __signature__(self) -> inspect.Signature:
        """Read the signature once: `generate` asks for it in every call."""
        own = self._attachment.replaced(self._name)
        function = getattr(own, "__func__", own)  # without the model, which it must not keep
        if function is not self._read:
            self._signature, self._read = inspect.signature(own), function
        return self._signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._attachment, f"_{self._name}")(*args, **kwargs)
