"""Text of a chat template to token ids: one rule for training, evaluation and attached models.

A text is always tokenised as a whole, because tokens follow from what stands beside them; which of
them belong to an answer is told by the characters that they stand for.
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
    """A processor whose chat template writes all text of a prompt, itself where that is so already.

    Janus's own call may write a system prompt before the text of its template.
    """
    if not getattr(processor, "use_default_system_prompt", False):
        return processor
    changed = copy.copy(processor)
    changed.use_default_system_prompt = False
    system = json.dumps(DEFAULT_SYSTEM_PROMPT)
    changed.chat_template = f"{{{{ {system} }}}}{processor.chat_template}"
    return changed


def adds_special_tokens(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer has to add what the chat template does not write itself, such as BOS.

    Args:
        tokenizer: of the model.
        text: beginning of a conversation in the model's chat template.
    """
    return not text.startswith(tokenizer.bos_token or "\0")


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text.

    Attributes:
        ids: token ids, [T].
        spans: characters that each stands for, first and one past the last; nothing for tokens that
            the tokenizer added, [T].
    """

    ids: list[int]
    spans: list[Span]

    def __len__(self) -> int:
        return len(self.ids)

    def behind(self, place: int) -> "Tokens":
        """The tokens from a place on."""
        return Tokens(self.ids[place:], self.spans[place:])


def tokenise(tokenizer: Any, text: str, special: bool) -> Tokens:
    """Tokens of a text.

    Args:
        tokenizer: a fast one.
        text: all of it.
        special: with what the tokenizer adds, see `adds_special_tokens`.
    """
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return Tokens(list(encoded["input_ids"]), _covered(encoded["offset_mapping"]))


def _covered(offsets: Sequence[Span]) -> list[Span]:
    """Offsets without gaps: some tokenizers leave spaces out of the offsets of their tokens."""
    spans = []
    reached = 0
    for start, end in offsets:
        spans.append((min(start, reached), end))
        reached = max(reached, end)
    return spans


def answer_labels(tokens: Tokens, text: str, answers: Sequence[Span]) -> list[int]:
    """The id of every token with characters of an answer, -100 for the others, [T].

    A token that begins before an answer and reaches into it counts, since it is what the model has
    to say there. One that reaches past the end counts only if it is more than white space of the
    answer.

    Args:
        tokens: of `text`.
        text: a conversation.
        answers: characters of each answer, ascending and apart.
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
