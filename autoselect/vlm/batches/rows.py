"""Turn a conversation into a row of a training batch: token ids, labels, positions, segments.

A row holds the same tokens that inference makes of the same text. If rounds share an image prefix,
each is tokenised after the last placeholder, like a conversation of its own.

Dimension letters: T tokens of the row.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from autoselect.config import ConfigError
from autoselect.data.faults import RecordError
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.dialogue import DialogueWriter, WrittenRound, rounds_of
from autoselect.vlm.text.placeholders import fill_marks
from autoselect.vlm.text.tokens import (
    IGNORED_LABEL,
    Tokens,
    adds_special_tokens,
    answer_labels,
    tokenise,
)

PREFIX_SEGMENT, PADDING_SEGMENT = -1, -2
"""Codes in `segments` of tokens that belong to no round."""


@dataclass(frozen=True)
class TextRow:
    """One row of a batch, without padding.

    Attributes:
        ids: token ids with all placeholders, [T].
        labels: the next token if it is part of an answer, else -100, [T].
        positions: position ids, [T].
        segments: round that a token belongs to, or PREFIX_SEGMENT, [T].
        num_images: number of images whose placeholders are in the row, the first of the sample.
        dropped: number of rounds that did not fit.
    """

    ids: list[int]
    labels: list[int]
    positions: list[int]
    segments: list[int]
    num_images: int
    dropped: int

    @property
    def has_answer(self) -> bool:
        return any(label != IGNORED_LABEL for label in self.labels)


class RowWriter:
    """Build rows. It holds only the processor.

    Args:
        mark: text that its chat template writes for an image.
        max_text_tokens: longest row in tokens, placeholders included.

    Raises:
        ConfigError: the tokenizer does not report which characters a token stands for.
    """

    def __init__(self, vlm: FrozenVLM, mark: str, max_text_tokens: int) -> None:
        self.tokenizer = vlm.processor.tokenizer
        if not self.tokenizer.is_fast:
            raise ConfigError(
                f"model={vlm.name}: its {type(self.tokenizer).__name__} does not report which "
                "characters a token stands for, so answers cannot be located; save the model with "
                "a fast tokenizer (tokenizer.json)"
            )
        self.dialogue = DialogueWriter(vlm, mark)
        self.mark = mark
        self.max_text_tokens = max_text_tokens
        self.placeholder_id = vlm.adapter.image_token_id
        added = self.tokenizer.added_tokens_decoder.items()
        special = (number for number, token in added if token.special)
        self.splitting_ids = {self.placeholder_id, *special}

    def conversation(self, record: dict[str, Any], images: Sequence[str]) -> TextRow:
        """Build one sequence of all rounds, up to the first round that does not fit.

        Args:
            record: a record with alternating turns, and with one mark per image or none.
            images: placeholder text of each image.

        Raises:
            RecordError: the text holds placeholders that belong to no image.
        """
        written = self.dialogue.conversation(rounds_of(record), len(images))
        counts = [one.asked.count(self.mark) for one in written]
        _check_marks(sum(counts), len(images), self.mark)
        rest = iter(images)
        text, answers, ends = "", [], []
        for one, count in zip(written, counts, strict=True):
            text += fill_marks(one.asked, self.mark, list(islice(rest, count)))
            answers.append((len(text), len(text) + len(one.answer)))
            text += one.answer
            ends.append(len(text))
        kept, tokens = self._fitting(text, ends)
        text = text[: ends[kept - 1]] if kept else ""
        shown = sum(counts[:kept])
        self._check_placeholders(tokens.ids, images[:shown])
        return TextRow(
            ids=tokens.ids,
            labels=_next_labels(answer_labels(tokens, text, answers[:kept])),
            positions=list(range(len(tokens))),
            segments=[0] * len(tokens),
            num_images=shown,
            dropped=len(ends) - kept,
        )

    def _fitting(self, text: str, ends: Sequence[int]) -> tuple[int, Tokens]:
        """Return how many rounds fit, and their tokens; `ends` are the ends of rounds in `text`."""
        special = adds_special_tokens(self.tokenizer, text)
        kept, tokens = len(ends), tokenise(self.tokenizer, text, special)
        while kept and len(tokens) > self.max_text_tokens:
            reached = tokens.spans[self.max_text_tokens - 1][1]
            kept = min(kept - 1, bisect_right(ends, reached))
            tokens = tokenise(self.tokenizer, text[: ends[kept - 1]], special)
        return (kept, tokens) if kept else (0, Tokens([], []))

    def independent(self, record: dict[str, Any], images: Sequence[str]) -> TextRow:
        """Build independent rounds after one image prefix, without the rounds that do not fit.

        Arguments and errors are those of `conversation`; at least one image is needed.
        """
        written = self.dialogue.independent(rounds_of(record), len(images))
        for one in written:
            _check_marks(one.asked.count(self.mark), len(images), self.mark)
        prefix, rounds = split_prefix(written, self.mark)
        shared, last, rest = self._prefix(fill_marks(prefix, self.mark, images))
        row = TextRow(
            ids=list(shared.ids),
            labels=[IGNORED_LABEL] * len(shared),
            positions=list(range(len(shared))),
            segments=[PREFIX_SEGMENT] * len(shared),
            num_images=len(images),
            dropped=0,
        )
        kept = 0
        for one in rounds:
            tokens, labels = self._behind(last, WrittenRound(rest + one.asked, one.answer))
            if len(row.ids) + len(tokens) > self.max_text_tokens:
                continue
            row.ids.extend(tokens.ids)
            row.labels.extend(labels)
            row.positions.extend(range(len(shared), len(shared) + len(tokens)))
            row.segments.extend([kept] * len(tokens))
            kept += 1
        self._check_placeholders(row.ids, images)
        return replace(row, dropped=len(rounds) - kept)

    def _prefix(self, text: str) -> tuple[Tokens, str, str]:
        """Return the tokens up to the last special one, its text, and the text after it.

        Tokens after a special token do not depend on the text before it. The text after the last
        one is not tokenised here, because it joins the text of each round: for example, Gemma's
        processor ends an image with line breaks.
        """
        tokens = tokenise(self.tokenizer, text, adds_special_tokens(self.tokenizer, text))
        place = max(
            place
            for place, (token, (start, end)) in enumerate(
                zip(tokens.ids, tokens.spans, strict=True)
            )
            if token in self.splitting_ids and end > start
        )
        start, end = tokens.spans[place]
        shared = Tokens(tokens.ids[: place + 1], tokens.spans[: place + 1])
        return shared, text[start:end], text[end:]

    def _behind(self, last: str, one: WrittenRound) -> tuple[Tokens, list[int]]:
        """Return the tokens and labels of a round that follows the last token of a prefix."""
        text = last + one.asked + one.answer
        tokens = tokenise(self.tokenizer, text, special=False)
        labels = answer_labels(tokens, text, [(len(last) + len(one.asked), len(text))])
        first = next(i for i, token in enumerate(tokens.ids) if token in self.splitting_ids) + 1
        return tokens.behind(first), _next_labels(labels[first:])

    def _check_placeholders(self, ids: list[int], images: Sequence[str]) -> None:
        placeholder = self.tokenizer.convert_ids_to_tokens(self.placeholder_id)
        wanted = sum(text.count(placeholder) for text in images)
        if (found := ids.count(self.placeholder_id)) != wanted:
            raise RecordError(
                "placeholder_text",
                f"{found} tokens {placeholder!r} for {wanted} visual tokens of its images",
            )


def split_prefix(written: Sequence[WrittenRound], mark: str) -> tuple[str, list[WrittenRound]]:
    """Split rounds into the shared text up to the last image, and the rest of each round."""
    end = written[0].asked.rindex(mark) + len(mark)
    prefix = written[0].asked[:end]
    assert all(one.asked.startswith(prefix) for one in written)
    return prefix, [WrittenRound(one.asked[end:], one.answer) for one in written]


def _next_labels(labels: list[int]) -> list[int]:
    """Shift labels to the next token; the last token of a round has no label."""
    return [*labels[1:], IGNORED_LABEL] if labels else []


def _check_marks(found: int, wanted: int, mark: str) -> None:
    if found != wanted:
        raise RecordError(
            "unprocessable",
            f"the chat template of the model writes {found} {mark!r} for {wanted} images",
        )
