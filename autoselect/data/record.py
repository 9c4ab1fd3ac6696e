"""The JSON member of a sample: its rules, and which image members it names."""

import json
from collections.abc import Sequence
from typing import Any

from autoselect.data.decode import IMAGE_SUFFIXES
from autoselect.data.faults import RecordError
from autoselect.data.row_keys import named_pictures, refuse_unread_media
from autoselect.data.turns import IMAGE_PLACEHOLDER, SPEAKERS, as_turns

_SUFFIXES = frozenset(IMAGE_SUFFIXES.values()) | {"jpeg", "tiff"}
_UNREAD_SUFFIXES = frozenset(
    ("avif", "heic", "heif", "jp2", "jxl", "ppm", "pgm", "svg", "pdf", "exr", "npy", "img")
) | frozenset(("mp4", "avi", "mov", "mkv", "webm", "m4v", "wav", "mp3", "flac", "ogg"))


def parse_record(data: bytes) -> dict[str, Any]:
    """Parse the JSON member and check its conversation; raise RecordError if either fails.

    Turns in the form of another tool are turned into LLaVA's.
    """
    try:
        record = as_turns(json.loads(data))
    except RecordError:
        raise
    except (ValueError, RecursionError) as error:
        raise RecordError("wrong_json", f"not JSON: {error}") from error
    check_conversation(record)
    return record


def check_conversation(record: Any) -> None:
    """Check that `record` is an object whose `conversations` alternate human, gpt, human, ...

    Every turn must be text without half surrogate pairs; JSON can hold them, tokenizers refuse
    them. RecordError names the turn that breaks a rule.
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


def lacks_answer(turns: Sequence[Any]) -> bool:
    """Return whether checked turns hold no answer, so that training has nothing to learn.

    An answer of white space would train the end of answers alone.
    """
    return not any(turn["value"].strip() for turn in turns[1::2])


def encoded(text: str, name: str) -> bytes:
    """Return the text in UTF-8; raise RecordError if it holds half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise RecordError("wrong_json", f"{name} holds {half!a}, half of a character") from error


def check_placeholders(record: dict[str, Any], num_images: int) -> None:
    """Check that the human turns hold one placeholder per image, or none at all."""
    texts = (turn["value"] for turn in record["conversations"] if turn["from"] == "human")
    count = sum(text.count(IMAGE_PLACEHOLDER) for text in texts)
    if count not in (0, num_images):
        raise RecordError(
            "wrong_json", f"{count} {IMAGE_PLACEHOLDER} placeholders for {num_images} images"
        )


def is_image(suffix: str) -> bool:
    """Return whether a WebDataset suffix such as `jpg` or `0.png` belongs to an image."""
    return suffix.rpartition(".")[2] in _SUFFIXES


def _natural(suffix: str) -> tuple[int, str]:
    head = suffix.partition(".")[0]
    return (int(head) if head.isdecimal() else -1, suffix)


def image_order(record: dict[str, Any], key: str, suffixes: Sequence[str]) -> list[str]:
    """Return the suffixes of a sample's images in the order in which the record names them.

    If the record names no image or other names than those of members, as in shards that other tools
    wrote, the images are sorted by the leading number of their suffix. `suffixes` are those of all
    members of the sample `key`.

    Raises:
        RecordError: the record names more or fewer images, or names or holds something that is not
            read, such as a video, and no image is stored.
    """
    found = sorted((suffix for suffix in suffixes if is_image(suffix)), key=_natural)
    own = "image" in record
    keys, names = named_pictures({"image": record["image"]} if own else record)
    if (own or keys) and len(names) != len(found):
        raise RecordError(
            "missing_member", f"the record names {len(names)} images, {len(found)} are stored"
        )
    if not found:
        refuse_unread_media(record)
        for suffix in suffixes:
            if suffix.rpartition(".")[2] in _UNREAD_SUFFIXES:
                raise RecordError(
                    "unsupported",
                    f"{key}.{suffix} is not read; store {', '.join(sorted(_SUFFIXES))}",
                )
    check_placeholders(record, len(found))
    by_name = {f"{key}.{suffix}": suffix for suffix in found}
    if names and set(names) == set(by_name) and len(set(names)) == len(names):
        return [by_name[name] for name in names]
    return found
