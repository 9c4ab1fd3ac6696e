"""The JSON member of a sample: what it must hold, and which image members it names."""

import json
from collections.abc import Sequence
from typing import Any

from autoselect.data.decode import IMAGE_SUFFIXES
from autoselect.data.faults import FaultKind

IMAGE_PLACEHOLDER = "<image>"
SPEAKERS = ("human", "gpt")
_SUFFIXES = frozenset(IMAGE_SUFFIXES.values()) | {"jpeg", "tiff"}


class RecordError(ValueError):
    """The record breaks a rule; `kind` is the kind of fault this is."""

    def __init__(self, kind: FaultKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: FaultKind = kind


def parse_record(data: bytes) -> dict[str, Any]:
    """Parses the JSON member and checks its conversation.

    Raises:
        RecordError: not UTF-8 JSON, not an object, or no conversation of alternating turns.
    """
    try:
        record = json.loads(data)
    except ValueError as error:
        raise RecordError("wrong_json", f"not JSON: {error}") from error
    check_conversation(record)
    return record


def check_conversation(record: Any) -> None:
    """Checks that `record` is an object with a conversation: human, gpt, human, ... with text.

    Half of a surrogate pair, which JSON can hold, is no text: tokenizers refuse it.

    Raises:
        RecordError: it is not; the message names the turn.
    """
    if not isinstance(record, dict):
        raise RecordError("wrong_json", f"expected an object, found {type(record).__name__}")
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RecordError("wrong_json", "conversations must be a list of at least one turn")
    for number, turn in enumerate(turns):
        speaker = SPEAKERS[number % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker:
            raise RecordError("wrong_json", f"turn {number}: 'from' must be {speaker!r}")
        if not isinstance(turn.get("value"), str):
            raise RecordError("wrong_json", f"turn {number}: 'value' must be text")
        encoded(turn["value"], f"turn {number}: 'value'")


def encoded(text: str, name: str) -> bytes:
    """The text in UTF-8.

    Raises:
        RecordError: it holds half of a surrogate pair; the message begins with `name`.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise RecordError("wrong_json", f"{name} holds {half!a}, half of a character") from error


def named_images(record: dict[str, Any]) -> list[str]:
    """The file names under `image`: none, one or several.

    Raises:
        RecordError: `image` is neither text nor a list of texts.
    """
    image = record.get("image")
    if image is None:
        return []
    names = [image] if isinstance(image, str) else image
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise RecordError("wrong_json", f"image must be a name or a list of names, is {image!r}")
    return names


def check_placeholders(record: dict[str, Any], num_images: int) -> None:
    """Checks that the human turns hold one placeholder per image, or none at all.

    Raises:
        RecordError: another number of placeholders, which no processor could fill.
    """
    texts = (turn["value"] for turn in record["conversations"] if turn["from"] == "human")
    count = sum(text.count(IMAGE_PLACEHOLDER) for text in texts)
    if count not in (0, num_images):
        raise RecordError(
            "wrong_json", f"{count} {IMAGE_PLACEHOLDER} placeholders for {num_images} images"
        )


def is_image(suffix: str) -> bool:
    """Whether a WebDataset suffix such as `jpg` or `0.png` belongs to an image."""
    return suffix.rpartition(".")[2] in _SUFFIXES


def _natural(suffix: str) -> tuple[int, str]:
    head = suffix.partition(".")[0]
    return (int(head) if head.isdecimal() else -1, suffix)


def image_order(record: dict[str, Any], key: str, suffixes: Sequence[str]) -> list[str]:
    """The sample's image suffixes in the order in which the record refers to them.

    Args:
        record: the parsed JSON member.
        key: WebDataset key of the sample.
        suffixes: suffixes of all its members.

    Returns:
        Image suffixes: as listed under `image` when the names are member names; by leading number
        when they are names of another place (shards that other tools wrote); all image members
        when the record has no `image`.

    Raises:
        RecordError: the record names more or fewer images than there are members.
    """
    found = sorted((suffix for suffix in suffixes if is_image(suffix)), key=_natural)
    names = named_images(record)
    if "image" in record and len(names) != len(found):
        raise RecordError(
            "missing_member", f"the record names {len(names)} images, {len(found)} are stored"
        )
    check_placeholders(record, len(found))
    by_name = {f"{key}.{suffix}": suffix for suffix in found}
    if names and set(names) == set(by_name) and len(set(names)) == len(names):
        return [by_name[name] for name in names]
    return found
