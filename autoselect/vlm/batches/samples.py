"""Check samples before they become rows of a batch, and name those that cannot be used."""

import re

from autoselect.data.faults import BadSample, Fault, FaultKind, RecordError
from autoselect.data.record import check_conversation, check_placeholders
from autoselect.data.shards import Sample
from autoselect.data.turns import IMAGE_PLACEHOLDER

MOST_ELONGATED = 400
"""Largest ratio of long to short side; processors scaling the short side would need gigabytes."""


def refusal(sample: Sample, kind: FaultKind, detail: str) -> BadSample:
    """Build the `BadSample` error for a sample the model cannot be trained on."""
    return BadSample(Fault(kind, sample.shard, sample.key, sample.offset, detail))


def any_of(*texts: str | None) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(text) for text in dict.fromkeys(texts) if text))


def check_sample(sample: Sample, reserved: re.Pattern[str]) -> None:
    """Refuse a sample that cannot be used, before its images are processed.

    Args:
        reserved: pattern of texts that stand for visual tokens.

    Raises:
        BadSample: its turns or image marks are broken, an image is extremely thin, or its text
            reads as a placeholder.
    """
    try:
        check_conversation(sample.record)
        check_placeholders(sample.record, len(sample.pictures))
    except RecordError as error:
        raise refusal(sample, error.kind, str(error)) from error
    for picture in sample.pictures:
        if max(picture.size) > MOST_ELONGATED * min(picture.size):
            raise refusal(
                sample,
                "unprocessable",
                f"its image of {picture.width} x {picture.height} pixels is too thin: one side "
                f"is more than {MOST_ELONGATED} times the other; leave the sample out",
            )
    for number, turn in enumerate(sample.record["conversations"]):
        text = turn["value"]
        if turn["from"] == "human":
            text = text.replace(IMAGE_PLACEHOLDER, "\n")
        if found := reserved.search(text):
            raise refusal(
                sample,
                "placeholder_text",
                f"turn {number} holds {found[0]!r}, which stands for visual tokens; reword it",
            )
