"""The timed calls: those that users make, full and with a selector attached.

    full_prefill, prefill@K         one `forward` of the stock model on encoded images
    full_first_token, first_token@K `generate` of one token, from pixels to its id
    full_decode, decode@K           one `forward` of one token after the cache of such a prefill
    vision, tower, projector        the image encoder alone
    scorer, selector@K              the selector's own part, which `prefill@K` contains
    patches, vision@K               embeddings, and the encoder on K patches (before the encoder)

`prefill@K` contains all our work: planning on the host, scores, choice, the rewriting of the call,
and the language model on the remaining tokens. With a selector before the encoder it is the
language model alone; encoder and selection stand beside it, and `first_token@K` holds all.

Dimension letters: B equal rows, T prompt tokens, N visual tokens, K that stay, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from autoselect.config import GateSite
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.asking.likelihood import last_logits
from autoselect.evaluation.latency.timing import Call
from autoselect.evaluation.methods.context import PATCHES
from autoselect.pruning.attachment import attach, detach
from autoselect.vlm import FrozenVLM
from autoselect.vlm.patches import read_patches, run_tower, tower_of
from autoselect.vlm.sites import SITES


@dataclass(frozen=True)
class Prompt:
    """The timed batch.

    Attributes:
        inputs: arguments of `generate`, pixels included, [B, T].
        encoded: arguments of `forward` with encoded images, for the logits of the last position.
        tokens: projector outputs, [B, N, D].
        attached: the same arguments with features at the selector's site.
        scored: those features, [B, N, C].
    """

    inputs: dict[str, Any]
    encoded: dict[str, Any]
    tokens: Tensor
    attached: dict[str, Any]
    scored: Tensor

    @classmethod
    def of(
        cls,
        vlm: FrozenVLM,
        image: Image.Image,
        question: str,
        batch_size: int,
        site: GateSite = "after_projector",
    ) -> "Prompt":
        """Write a prompt of one image `batch_size` times and encode its images, also at a site."""
        text = AskedVLM(vlm).prompt(1, question)
        inputs = vlm.inputs([[image]] * batch_size, [text] * batch_size)
        outputs = vlm.adapter.encode(inputs)
        blocks = vlm.adapter.blocks(inputs["input_ids"], outputs)
        tokens, _ = vlm.adapter.tokens(blocks, outputs)
        features = outputs
        if site != "after_projector":
            features = SITES[site].encode(vlm.adapter, inputs)
        scored, _ = vlm.adapter.tokens(blocks, features)
        more = {**last_logits(vlm.model, 1), "use_cache": True}
        encoded, attached = (
            {**vlm.adapter.with_outputs(inputs, own), **more} for own in (outputs, features)
        )
        return cls(inputs, encoded, tokens, attached, scored)


def full_calls(vlm: FrozenVLM, prompt: Prompt) -> dict[str, Call]:
    """Return `full_prefill` and `full_first_token`."""
    return {
        "full_prefill": Call(lambda: vlm.model(**prompt.encoded)),
        "full_first_token": Call(lambda: first_token(vlm, prompt)),
    }


def _attached_calls(
    vlm: FrozenVLM, selector: Any, prompt: Prompt, budgets: Sequence[int]
) -> dict[str, Call]:
    """Return `prefill@K` and `first_token@K`."""
    model, calls = vlm.model, {}
    for budget in budgets:
        around = attached(model, selector, budget)
        if selector.site == PATCHES:
            alone = _on_pruned(vlm, selector, prompt, budget, model.forward)
            calls[f"prefill@{budget}"] = Call(alone)
        else:
            calls[f"prefill@{budget}"] = Call(lambda: model(**prompt.attached), around)
        calls[f"first_token@{budget}"] = Call(lambda: first_token(vlm, prompt), around)
    return calls


def pruned_calls(
    vlm: FrozenVLM, selector: Any, prompt: Prompt, budgets: Sequence[int]
) -> dict[str, Call]:
    """Return all calls whose time depends on which selector prunes."""
    return {
        **_attached_calls(vlm, selector, prompt, budgets),
        **_selector_calls(selector, prompt, budgets),
        **_kept_vision_calls(vlm, selector, prompt, budgets),
    }


def _selector_calls(selector: Any, prompt: Prompt, budgets: Sequence[int]) -> dict[str, Call]:
    """Return `scorer`, and `selector@K`: scores, choice and the gathering of the kept tokens."""
    calls = {"scorer": Call(lambda: selector.score(prompt.scored))}
    for budget in budgets:
        calls[f"selector@{budget}"] = Call(bound(selector.select, prompt.scored, budget))
    return calls


def _kept_vision_calls(
    vlm: FrozenVLM, selector: Any, prompt: Prompt, budgets: Sequence[int]
) -> dict[str, Call]:
    """Return `patches` and `vision@K` for a selector before the encoder; empty for others."""
    if selector.site != PATCHES:
        return {}
    adapter = vlm.adapter
    calls = {"patches": Call(lambda: read_patches(adapter, prompt.inputs))}
    extra = prompt.attached["mm_encoder_outputs"]["image"].extra
    for budget in budgets:
        kept = prompt.scored[:, :budget]  # which ones does not change the work
        calls[f"vision@{budget}"] = Call(bound(run_tower, adapter, kept, extra))
    return calls


def vision_calls(vlm: FrozenVLM, prompt: Prompt) -> dict[str, Call]:
    """Return `vision` (all of `encode`), and `tower` and `projector` if the model has them."""
    adapter = vlm.adapter
    calls = {"vision": Call(lambda: adapter.encode(prompt.inputs))}
    for name, module in (("tower", tower_of(adapter)), ("projector", adapter.projector)):
        if module is not None:
            calls[name] = Call(_replayed(vlm, prompt, module))
    return calls


def _replayed(vlm: FrozenVLM, prompt: Prompt, module: torch.nn.Module) -> Callable[[], Any]:
    """Return all calls of a submodule inside `encode`, with the same arguments.

    Some families call it once for each image, tile or view.
    """
    seen: list[tuple[Any, Any]] = []
    with module.register_forward_pre_hook(
        lambda _, arguments, named: seen.append((arguments, named)), with_kwargs=True
    ):
        vlm.adapter.encode(prompt.inputs)
    return lambda: [module(*arguments, **named) for arguments, named in seen]


def compiled_calls(
    vlm: FrozenVLM, selector: Any, prompt: Prompt, budgets: Sequence[int]
) -> dict[str, Call]:
    """Return the language model and the selector, compiled separately: fixed K, fixed shapes."""
    mode = "reduce-overhead" if vlm.device.type == "cuda" else "default"

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, mode=mode, dynamic=False)

    forward, select = compiled(vlm.model.forward), compiled(selector.select)
    calls = {"full_prefill": Call(lambda: forward(**prompt.encoded))}
    for budget in budgets:
        calls[f"prefill@{budget}"] = Call(_on_pruned(vlm, selector, prompt, budget, forward))
        calls[f"selector@{budget}"] = Call(bound(select, prompt.scored, budget))
    return calls


def _on_pruned(
    vlm: FrozenVLM, selector: Any, prompt: Prompt, budget: int, forward: Callable[..., Any]
) -> Callable[[], Any]:
    """Return a call of `forward` on the prompt as an attached selector rewrites it."""
    seen: list[dict[str, Any]] = []
    with (
        attached(vlm.model, selector, budget)(),
        vlm.model.register_forward_pre_hook(
            lambda _, arguments, named: seen.append(named), with_kwargs=True
        ),
    ):
        vlm.model(**prompt.attached)
    pruned = seen[0]
    return lambda: forward(**pruned)


def first_token(vlm: FrozenVLM, prompt: Prompt) -> Tensor:
    return vlm.model.generate(
        **prompt.inputs,
        max_new_tokens=1,
        do_sample=False,
        pad_token_id=vlm.processor.tokenizer.eos_token_id,
    )


def attached(model: Any, selector: Any, budget: int) -> Callable[[], AbstractContextManager]:
    @contextmanager
    def around() -> Iterator[None]:
        attach(model, selector, budget)
        try:
            yield
        finally:
            detach(model)

    return around


def bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)
