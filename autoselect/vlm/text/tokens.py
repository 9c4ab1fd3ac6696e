"""Tokenise chat-template text in the same way for training, evaluation and attached models.

A text is always tokenised as a whole, because tokens depend on neighbouring text. The characters
that a token stands for decide if it belongs to an answer.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

Span = tuple[int, int]
IGNORED_LABEL = -100


def with_whole_template(processor: Any) -> Any:
    """Return a processor whose chat template writes the whole prompt, a copy if necessary.

    Janus's processor may write a system prompt before the text of its template.
    """
    if not getattr(processor, "use_default_system_prompt", False):
        return processor
    changed = copy.copy(processor)
    changed.use_default_system_prompt = False
    system = json.dumps(DEFAULT_SYSTEM_PROMPT)
    changed.chat_template = f"{{{{ {system} }}}}{processor.chat_template}"
    return changed


def adds_special_tokens(tokenizer: Any, text: str) -> bool:
    """Return True if the chat template's `text` lacks what the tokenizer adds, such as BOS."""
    return not text.startswith(tokenizer.bos_token or "\0")


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids at which `generate` of a model stops; the tokenizer's own end goes first."""
    named = getattr(model.generation_config, "eos_token_id", None)
    named = [] if named is None else [named] if isinstance(named, int) else list(named)
    own = tokenizer.eos_token_id
    return sorted(named, key=lambda token: token != own) or ([] if own is None else [own])


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text.

    Attributes:
        ids: token ids, [T].
        spans: characters that each token stands for, as (first, one past last), [T]; empty for
            tokens that the tokenizer added.
    """

    ids: list[int]
    spans: list[Span]

    def __len__(self) -> int:
        return len(self.ids)

    def behind(self, place: int) -> "Tokens":
        return Tokens(self.ids[place:], self.spans[place:])


def tokenise(tokenizer: Any, text: str, special: bool) -> Tokens:
    """Tokenise a whole text; with `special` the tokenizer adds its special tokens."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return Tokens(list(encoded["input_ids"]), _covered(encoded["offset_mapping"]))


def _covered(offsets: Sequence[Span]) -> list[Span]:
    """Close gaps between offsets, because some tokenizers leave out spaces."""
    spans = []
    reached = 0
    for start, end in offsets:
        spans.append((min(start, reached), end))
        reached = max(reached, end)
    return spans


def answer_labels(tokens: Tokens, text: str, answers: Sequence[Span]) -> list[int]:
    """Return the id of every token that holds characters of an answer, -100 for others, [T].

    A token that begins before an answer and reaches into it counts, because the model has to
    predict it there. A token that reaches past the end counts only if it holds more of the answer
    than white space.

    Args:
        answers: character spans of the answers, ascending and disjoint.
    """
    labels = [IGNORED_LABEL] * len(tokens)
    rest = iter([*answers, (len(text) + 1, len(text) + 1)])
    start, end = next(rest)
    for place, (first, last) in enumerate(tokens.spans):
        while first >= end and last > end:
            start, end = next(rest)
        inside = text[max(first, start) : min(last, end)]
        if inside and (last <= end or inside.strip()):
            labels[place] = tokens.ids[place]
    return labels
