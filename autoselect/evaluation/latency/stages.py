"""The stages of one answer as calls that can be timed apart.

    tower -> projector -> scorer -> select -> prefill (splice, LLM) -> decode
    `--- vision -----'    `--- selector --'
    `------------------- first token ------------------'

`full` has no selector and prefills all N tokens. Inputs of every stage are computed once, so that a
stage does only its own work; `first token` does all of them, from pixels to logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoselect.vlm.backbone import PROJECTORS

Call = Callable[[], object]
Inputs = dict[str, Tensor]
TOWERS = ("vision_tower", "vision_model", "visual")


@dataclass(frozen=True)
class Prompt:
    """One batch of the measurement.

    Attributes:
        pixels: of `vlm.pixel_inputs`, on the model's device.
        text: of `vlm.prompt`.
        tokens: visual tokens, [B, N, D].
        mask: true at real ones, [B, N], or None.
    """

    pixels: Inputs
    text: Inputs
    tokens: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, vlm: Any, images: Sequence[Any], questions: Sequence[str]) -> "Prompt":
        """Encode the images once."""
        pixels = vlm.to_device(vlm.pixel_inputs(list(images)))
        visual = vlm.encode(pixels)
        return cls(pixels, vlm.prompt(list(questions)), visual.tokens, visual.mask)


def named(stage: str, budget: int | None) -> str:
    """Name of a stage's call: `full_prefill`, `prefill@16`."""
    return f"full_{stage}" if budget is None else f"{stage}@{budget}"


def vision_calls(vlm: Any, prompt: Prompt) -> dict[str, Call]:
    """`vision` (all of `encode`), and `tower` and `projector` where the model has such modules."""
    calls: dict[str, Call] = {"vision": lambda: vlm.encode(prompt.pixels)}
    for name, candidates in (("tower", TOWERS), ("projector", PROJECTORS)):
        replay = _replayed(vlm, prompt, candidates)
        if replay is not None:
            calls[name] = replay
    return calls


def _replayed(vlm: Any, prompt: Prompt, names: Sequence[str]) -> Call | None:
    """The submodule's own call during `encode`, with the same arguments."""
    module = next((m for n in names if (m := getattr(vlm.model.model, n, None)) is not None), None)
    if module is None:
        return None
    seen: list[tuple[Any, Any]] = []
    hook = module.register_forward_pre_hook(
        lambda _, arguments, named: seen.append((arguments, named)), with_kwargs=True
    )
    try:
        vlm.encode(prompt.pixels)
    finally:
        hook.remove()
    arguments, named = seen[0]
    return lambda: module(*arguments, **named)


def selector_calls(selector: Any, prompt: Prompt, budgets: Sequence[int]) -> dict[str, Call]:
    """`scorer`, and by budget `select` (choice and gather alone) and `selector` (both)."""
    tokens, mask = prompt.tokens, prompt.mask
    scores = selector.score(tokens, mask)
    calls: dict[str, Call] = {"scorer": lambda: selector.score(tokens, mask)}
    for budget in budgets:
        calls[f"select@{budget}"] = bound(selector.take, scores, tokens, budget, mask)
        calls[f"selector@{budget}"] = bound(selector.select, tokens, budget, mask)
    return calls


def language_calls(
    vlm: Any,
    selector: Any,
    prompt: Prompt,
    budgets: Sequence[int],
    forward: Callable[[Inputs], Tensor],
) -> dict[str, Call]:
    """`prefill` (splice and LLM) and `llm` (alone), by budget and for all tokens.

    Args:
        vlm: a `FrozenVLM`.
        selector: a `Selector`.
        prompt: the batch.
        budgets: tokens kept.
        forward: inputs of `vlm.prefix` to the logits of the first answer token.
    """
    calls: dict[str, Call] = {}
    for budget, tokens, positions in kept_sequences(selector, prompt, budgets):
        prefix = vlm.prefix(prompt.text, tokens, positions)
        calls[named("llm", budget)] = bound(forward, prefix)

        def prefill(tokens: Tensor = tokens, positions: Tensor | None = positions) -> object:
            return forward(vlm.prefix(prompt.text, tokens, positions))

        calls[named("prefill", budget)] = prefill
    return calls


def answer_calls(
    vlm: Any, selector: Any, prompt: Prompt, budgets: Sequence[int]
) -> dict[str, Call]:
    """`first_token` from pixels to logits, and `decode` of one more token behind a cache."""
    calls: dict[str, Call] = {}
    for budget, tokens, positions in kept_sequences(selector, prompt, budgets):
        prefix = vlm.prefix(prompt.text, tokens, positions)
        calls[named("decode", budget)] = decode_call(vlm, prefix)

    def full() -> object:
        return vlm.prefill(vlm.prefix(prompt.text, vlm.encode(prompt.pixels).tokens, None))

    def pruned(budget: int) -> object:
        visual = vlm.encode(prompt.pixels)
        kept, positions = selector.select(visual.tokens, budget, visual.mask)
        return vlm.prefill(vlm.prefix(prompt.text, kept, positions))

    calls[named("first_token", None)] = full
    return calls | {named("first_token", budget): bound(pruned, budget) for budget in budgets}


def kept_sequences(
    selector: Any, prompt: Prompt, budgets: Sequence[int]
) -> list[tuple[int | None, Tensor, Tensor | None]]:
    """(budget, tokens, positions) of the full sequence, whose budget is None, and of every K."""
    found: list[tuple[int | None, Tensor, Tensor | None]] = [(None, prompt.tokens, None)]
    for budget in budgets:
        found.append((budget, *selector.select(prompt.tokens, budget, prompt.mask)))
    return found


def decode_call(vlm: Any, prefix: Inputs) -> Callable[[], Tensor]:
    """One decoding step behind the cache of `prefix`, repeatable: the cache is cut back each time.

    The token that is fed is the pad token: which one it is does not change the work.
    """
    cache = vlm.model.model(**prefix, use_cache=True).past_key_values
    batch = len(prefix["inputs_embeds"])
    token = torch.zeros(batch, 1, dtype=torch.long, device=vlm.device)
    ones = prefix["attention_mask"].new_ones(batch, 1)
    step = {
        "inputs_embeds": vlm.model.get_input_embeddings()(token),
        "attention_mask": torch.cat([prefix["attention_mask"], ones], dim=1),
        "position_ids": prefix["position_ids"][:, -1:] + 1,
    }

    def decode() -> Tensor:
        hidden = vlm.model.model(**step, past_key_values=cache, use_cache=True).last_hidden_state
        logits = vlm.model.get_output_embeddings()(hidden[:, -1])
        cache.crop(-1)
        return logits

    return decode


def bound(function: Callable[..., object], *arguments: Any) -> Call:
    """A call of `function` with fixed arguments."""
    return lambda: function(*arguments)
