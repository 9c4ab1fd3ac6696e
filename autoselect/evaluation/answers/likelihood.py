"""Likelihood-based answering: the candidate that the model finds likeliest, not free text.

Two ways to compare the options of a multiple-choice question: `likelihood` compares their letters,
`text_likelihood` the texts of the options by their mean log-probability per token, so that a short
option has no advantage. Yes/no questions compare the two words in both. Questions without
candidates are answered by generated text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.evaluation.scores.metrics import parse_options

GENERATION, LIKELIHOOD, TEXT_LIKELIHOOD = "generation", "likelihood", "text_likelihood"
SCORINGS = (GENERATION, LIKELIHOOD, TEXT_LIKELIHOOD)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Candidate:
    """A possible answer.

    Attributes:
        text: the continuation whose likelihood counts.
        answer: what is scored when it is the likeliest.
    """

    text: str
    answer: str


def check_scoring(scoring: str) -> None:
    """Raise ConfigError for an unknown way of answering."""
    if scoring not in SCORINGS:
        raise ConfigError(f"scoring={scoring!r} is unknown; choose one of {', '.join(SCORINGS)}")


def candidates(question: str, accepted: Sequence[str], scoring: str) -> tuple[Candidate, ...]:
    """The possible answers of a yes/no or multiple-choice question, none for any other.

    Args:
        question: its text, with options as lines `A. text`.
        accepted: accepted answers; they tell the letter case.
        scoring: one of `SCORINGS`.
    """
    if scoring == GENERATION:
        return ()
    options = parse_options(question)
    if options:
        by_text = scoring == TEXT_LIKELIHOOD
        return tuple(
            Candidate(text if by_text else letter, letter)
            for letter, text in zip(LETTERS, options, strict=False)
        )
    if accepted[0].strip().lower() in ("yes", "no"):
        words = ("Yes", "No") if accepted[0].strip()[0].isupper() else ("yes", "no")
        return tuple(Candidate(word, word) for word in words)
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
    vlm: Any, prefix: dict[str, Tensor], options: Sequence[Sequence[Candidate]]
) -> list[str | None]:
    """The answer of each row's likeliest candidate, None for a row without candidates.

    The log-probability of a candidate is divided by its tokens. Ties go to the first one.

    Args:
        vlm: a `FrozenVLM`.
        prefix: of `vlm.prefix`, one row per question.
        options: candidates of each row.
    """
    pairs = [(row, option) for row, given in enumerate(options) for option in given]
    best: list[str | None] = [None] * len(options)
    if not pairs:
        return best
    texts = [option.text for _, option in pairs]
    rows = torch.tensor([row for row, _ in pairs], device=prefix["inputs_embeds"].device)
    repeated = {name: values[rows] for name, values in prefix.items()}
    lengths = vlm.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    sums = continuation_log_likelihood(vlm, repeated, texts).tolist()
    highest = [float("-inf")] * len(options)
    for (row, option), score, tokens in zip(pairs, sums, lengths, strict=True):
        if score / len(tokens) > highest[row]:
            best[row], highest[row] = option.answer, score / len(tokens)
    return best


def answers_of(
    vlm: Any,
    prefix: dict[str, Tensor],
    options: Sequence[Sequence[Candidate]],
    max_new_tokens: int,
) -> list[str]:
    """The likeliest candidate of rows that have some, generated text for the others.

    Args:
        vlm: a `FrozenVLM`.
        prefix: of `vlm.prefix`, one row per question.
        options: candidates of each row.
        max_new_tokens: longest generated answer in tokens.
    """
    given = most_likely(vlm, prefix, options)
    free = [row for row, answer in enumerate(given) if answer is None]
    texts = [answer or "" for answer in given]
    if free:
        where = torch.tensor(free, device=prefix["inputs_embeds"].device)
        rows = {name: values[where] for name, values in prefix.items()}
        for row, text in zip(free, vlm.generate(rows, max_new_tokens), strict=True):
            texts[row] = text
    return texts
