"""Likelihood-based answering: the candidate that the model finds likeliest, not free text."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoselect.evaluation.metrics import parse_options


def candidates(question: str, accepted: Sequence[str]) -> tuple[str, ...]:
    """The possible answers of a yes/no or multiple-choice question, none for any other.

    Args:
        question: its text, with options as lines `A. text`.
        accepted: accepted answers; they tell the letter case.
    """
    options = parse_options(question)
    if options:
        return tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)])
    if accepted[0].strip().lower() in ("yes", "no"):
        return ("Yes", "No") if accepted[0].strip()[0].isupper() else ("yes", "no")
    return ()


@torch.inference_mode()
def continuation_log_likelihood(
    vlm: Any, prefix: dict[str, Tensor], texts: Sequence[str]
) -> Tensor:
    """Sum of the log-probabilities of each row's continuation, [R].

    Args:
        vlm: a `FrozenVLM`.
        prefix: of `vlm.prefix`, padded on the left, [R, T, D].
        texts: one continuation per row; the end of the answer is not scored.
    """
    tokenizer = vlm.processor.tokenizer
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    ).to(vlm.device)
    ids, is_text = encoded["input_ids"], encoded["attention_mask"]
    start = prefix["position_ids"][:, -1:] + 1
    steps = torch.arange(ids.shape[1], device=ids.device)
    embeds = vlm.model.get_input_embeddings()(ids).to(prefix["inputs_embeds"].dtype)
    hidden = vlm.model.model(
        inputs_embeds=torch.cat([prefix["inputs_embeds"], embeds], dim=1),
        attention_mask=torch.cat([prefix["attention_mask"], is_text], dim=1),
        position_ids=torch.cat([prefix["position_ids"], start + steps], dim=1),
        use_cache=False,
    ).last_hidden_state
    before = hidden[:, -ids.shape[1] - 1 : -1]
    logits = vlm.model.get_output_embeddings()(before).float()
    chosen = logits.log_softmax(dim=-1).gather(-1, ids[..., None]).squeeze(-1)
    return (chosen * is_text).sum(dim=1)


def most_likely(
    vlm: Any, prefix: dict[str, Tensor], options: Sequence[Sequence[str]]
) -> list[str | None]:
    """The likeliest candidate of each row, None for a row without candidates.

    Args:
        vlm: a `FrozenVLM`.
        prefix: of `vlm.prefix`, one row per question.
        options: candidates of each row.
    """
    pairs = [(row, option) for row, given in enumerate(options) for option in given]
    best: list[str | None] = [None] * len(options)
    if not pairs:
        return best
    rows = torch.tensor([row for row, _ in pairs], device=prefix["inputs_embeds"].device)
    repeated = {name: values[rows] for name, values in prefix.items()}
    texts = [option for _, option in pairs]
    scores = continuation_log_likelihood(vlm, repeated, texts).tolist()
    highest = [float("-inf")] * len(options)
    for (row, option), score in zip(pairs, scores, strict=True):
        if score > highest[row]:
            best[row], highest[row] = option, score
    return best
