"""Answering by likelihood: the candidate that the model finds most likely, not free text.

Options of a multiple-choice question are compared in one of two ways: `likelihood` compares their
letters, `text_likelihood` their texts by mean log-probability per token, so that short options have
no advantage. For yes/no questions both compare the two words. Questions without candidates are
answered by generated text.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor

from autoselect.evaluation.asking.choices import GENERATION, GREEDY, TEXT_LIKELIHOOD
from autoselect.evaluation.asking.replies import Generated
from autoselect.evaluation.scores.metrics import parse_options
from autoselect.pruning.attachment import keeping
from autoselect.vlm.adapter import FILL_PER_TOKEN


@dataclass(frozen=True)
class Candidate:
    """A possible answer.

    Attributes:
        text: the continuation whose likelihood is computed.
        answer: the answer that is scored if this candidate is the most likely.
    """

    text: str
    answer: str


def candidates(question: str, accepted: Sequence[str], scoring: str) -> tuple[Candidate, ...]:
    """Return the possible answers of a yes/no or multiple-choice question, none for any other.

    Args:
        question: text of the question, with options as lines `A. text`.
        accepted: accepted answers, which show whether Yes and No are capitalised.
        scoring: one of `SCORINGS` in `choices`.
    """
    if scoring == GENERATION:
        return ()
    options = parse_options(question)
    if options:
        by_text = scoring == TEXT_LIKELIHOOD
        return tuple(
            Candidate(text if by_text else letter, letter)
            for letter, text in zip(ascii_uppercase, options, strict=False)
        )
    if accepted[0].strip().lower() in ("yes", "no"):
        words = ("Yes", "No") if accepted[0].strip()[0].isupper() else ("yes", "no")
        return tuple(Candidate(word, word) for word in words)
    return ()


@dataclass(frozen=True)
class Scored:
    """Sums of log-probabilities, [R], and whether greedy decoding gives the continuation, [R]."""

    sums: Tensor
    greedy: Tensor


@torch.inference_mode()
def continuation_log_likelihood(
    model: Any, call: Mapping[str, Any], kept: Sequence[Tensor] | None, texts: Sequence[list[int]]
) -> Scored:
    """Score one continuation per row.

    Args:
        model: the model; a selector attached to it prunes the prompts.
        call: arguments of `forward` with encoded images, padded on the left, [R, T].
        kept: positions that stay of every image, [K] each; None to keep what the model itself
            keeps.
        texts: token ids of one continuation per row; the end of the answer is not scored.
    """
    longer, starts = _continued(call, texts)
    attached = getattr(model, "autoselect", None)
    limit = last_logits(model, longer["input_ids"].shape[1] - min(starts) + 1)
    with nullcontext(attached) if kept is None else keeping(model, kept) as attachment:
        logits = model(**longer, **limit).logits
        columns = None
        if attachment is not None and attachment.adapter.has_images(longer):
            selection = attachment.last
            columns = None if selection is None else selection.columns
        places = _places(starts, texts, columns)
        missing = (longer["input_ids"] if columns is None else columns).shape[1] - logits.shape[1]
        if min(int(own.min()) for own in places) < missing:  # more was removed from some rows
            logits, missing = model(**longer).logits, 0
    sums, greedy = [], []
    for row, (own, text) in enumerate(zip(places, texts, strict=True)):
        ids = torch.tensor(text, device=logits.device)
        given = logits[row, own.to(logits.device) - missing].float()
        sums.append(given.log_softmax(dim=-1).gather(1, ids[:, None]).sum())
        greedy.append((given.argmax(dim=-1) == ids).all())
    return Scored(torch.stack(sums), torch.stack(greedy))


def last_logits(model: Any, count: int) -> dict[str, int]:
    """Return the argument of `forward` for the last `count` logits alone, if the model has it."""
    known = inspect.signature(type(model).forward).parameters
    return {"logits_to_keep": count} if "logits_to_keep" in known else {}


def _places(
    starts: Sequence[int], texts: Sequence[list[int]], columns: Tensor | None
) -> list[Tensor]:
    """Return where the logits of each row's continuation stand in the call, one per token.

    `columns` [R, S] are the columns of the full call that stay; None if nothing was removed.
    """
    found = []
    for row, (start, text) in enumerate(zip(starts, texts, strict=True)):
        places = torch.arange(start - 1, start - 1 + len(text))
        if columns is not None:
            places = places.to(columns.device)
            places = (columns[row][None] == places[:, None]).int().argmax(dim=1)
        found.append(places)
    return found


def _continued(
    call: Mapping[str, Any], texts: Sequence[list[int]]
) -> tuple[dict[str, Any], list[int]]:
    """Append each row's continuation to its prompt, padded on the right.

    Returns:
        the call, and the column at which each continuation begins.
    """
    mask = call["attention_mask"]
    starts = mask.sum(dim=1).tolist()
    length = max(start + len(text) for start, text in zip(starts, texts, strict=True))
    longer = {name: value for name, value in call.items() if name not in FILL_PER_TOKEN}
    for name in set(FILL_PER_TOKEN) & set(call) | {"input_ids"}:
        filled = call[name].new_zeros(len(texts), length)
        for row, (start, text) in enumerate(zip(starts, texts, strict=True)):
            filled[row, :start] = call[name][row, mask[row].bool()]
            added = {"input_ids": torch.tensor(text), "attention_mask": torch.ones(len(text))}
            if name in added:
                filled[row, start : start + len(text)] = added[name].to(filled)
        longer[name] = filled
    return longer, starts


def most_likely(
    asked: Any,
    call: Mapping[str, Any],
    kept: Sequence[Tensor] | None,
    options: Sequence[Sequence[Candidate]],
) -> list[str | None]:
    """Return the answer of each row's most likely candidate, None for a row without candidates.

    The log-probability of a candidate is divided by its number of tokens. Ties go to the first.
    `call` has one question per row; `kept` holds the positions that stay of every image, [K] each.
    """
    tokenizer = asked.vlm.processor.tokenizer
    most = max((len(own) for own in options), default=0)
    best: list[str | None] = [None] * len(options)
    highest = [float("-inf")] * len(options)
    for place in range(most):
        candidates = [own[min(place, len(own) - 1)] if own else None for own in options]
        texts = [
            tokenizer(c.text if c else ".", add_special_tokens=False)["input_ids"]
            for c in candidates
        ]
        sums = continuation_log_likelihood(asked.vlm.model, call, kept, texts).sums.tolist()
        for row, (candidate, text, total) in enumerate(zip(candidates, texts, sums, strict=True)):
            if candidate is not None and total / len(text) > highest[row]:
                best[row], highest[row] = candidate.answer, total / len(text)
    return best


def answers_of(
    asked: Any,
    call: Mapping[str, Any],
    kept: Sequence[Tensor] | None,
    options: Sequence[Sequence[Candidate]],
    max_new_tokens: int,
) -> list[Generated]:
    """Return the most likely candidate of rows that have some, generated text for the others.

    Args:
        asked: an `AskedVLM`.
        call: arguments of `generate`, one question per row.
        kept: positions that stay of every image, [K] each; None for the untouched model.
        options: candidates of each row.
        max_new_tokens: longest generated answer in tokens.
    """
    given = most_likely(asked, call, kept, options) if any(options) else [None] * len(options)
    if all(answer is not None for answer in given):
        return [Generated(answer or "", [], True) for answer in given]
    settings = {"max_new_tokens": max_new_tokens, **GREEDY}
    rows = asked.generated(call, kept, settings, likelihood=True)
    return [
        row if answer is None else Generated(answer, [], True)
        for answer, row in zip(given, rows, strict=True)
    ]


def mean_losses(logits: Sequence[Tensor], rows: Sequence[list[int]]) -> list[float]:
    """Return the mean negative log-likelihood of each row's tokens, given `logits` [R, V] each."""
    losses = []
    for row, ids in enumerate(rows):
        steps = torch.stack([step[row].float() for step in logits[: len(ids)]])
        given = torch.tensor(ids, device=steps.device)
        losses.append(float(torch.nn.functional.cross_entropy(steps, given)))
    return losses
