"""Read rows as their authors meant them: turns and pictures under the keys of other tools.

A row that names something which is not read (a video, a picture under an unknown key) is refused
by name, so that it is never stored and trained on as text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoselect.data.faults import RecordError
from autoselect.data.storage import is_web
from autoselect.data.turns import FRAMES, TURN_KEYS, picture_of, plain_key, read_turns

_PICTURES = (
    *("image", "images", "image_path", "image_paths", "image_url", "image_urls", "image_file"),
    *("image_files", "image_name", "image_names", "img", "imgs", "img_path", "img_paths"),
    *("picture", "pictures", "file_name"),
)
_UNREAD_TEXT = ("system", "system_prompt", "input", "history", "tools", "functions")
_UNREAD_MEDIA = (
    *("video", "videos", "video_path", "video_paths", "video_url", "video_file", "video_files"),
    *("audio", "audios", "audio_path", "audio_paths", "audio_url", "audio_file"),
)
_NAMES = ("id", "source_id", *TURN_KEYS)
_MEDIA_KEY = re.compile(r"(^|_)(image|img|picture|photo|video|audio)s?(_|$)")
_MEDIA_FILE = re.compile(
    r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif|heic|jp2|svg|mp4|avi|mov|mkv|webm|m4v|wav|mp3|flac|ogg)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Row:
    """A row in LLaVA's form.

    Attributes:
        fields: the other fields, without those of the turns and pictures.
        turns: the conversation; whether it alternates is not yet checked.
        pictures: paths, `data:` URLs or web addresses, in the order of their marks.
    """

    fields: dict[str, Any]
    turns: list[Any]
    pictures: list[str]


def read_row(row: Any) -> Row:
    """Turn a row of any known tool into LLaVA's form.

    Raises:
        RecordError: the row has no turns, names something that is not read, or is ambiguous.
    """
    if not isinstance(row, Mapping):
        raise RecordError("wrong_json", f"expected an object, found {type(row).__name__}")
    turn_keys, turns, shown = read_turns(row)
    picture_keys, named = named_pictures(row)
    if shown and named and shown != named:
        raise _ambiguous(turn_keys[0], shown, picture_keys[0], named)
    used = {*turn_keys, *picture_keys}
    fields = {name: value for name, value in row.items() if name not in used}
    _refuse_unread(fields)
    if not (shown or named):
        refuse_unread_media(fields)
    return Row(fields, turns, shown or named)


def named_pictures(row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the keys that name the pictures of a row, and the pictures.

    Several keys may name the same pictures. Web addresses beside file names are left aside.

    Raises:
        RecordError: a value is not a name or a list of names, or two keys name other pictures.
    """
    found: dict[str, list[str]] = {}
    for wanted in _PICTURES:
        for key, value in row.items():
            if plain_key(key) == wanted and value is not None and value != []:
                found[key] = _names(value, key)
    files = {key: names for key, names in found.items() if not all(map(is_web, names))}
    keys = list(files or found)
    if not keys:
        return [], []
    first = found[keys[0]]
    for key in keys:
        if files and found[key] != first:
            raise _ambiguous(keys[0], first, key, found[key])
    return [key for key in keys if found[key] == first], first


def refuse_unread_media(fields: Mapping[str, Any]) -> None:
    """Raise RecordError if the fields of a row without pictures name a picture, video or sound."""
    for key, value in fields.items():
        name = plain_key(key)
        if name in _NAMES or value in (None, "", [], {}, 0):
            continue
        values = value if isinstance(value, list) else [value]
        files = [one for one in values if isinstance(one, str) and _MEDIA_FILE.search(one)]
        if files or _MEDIA_KEY.search(name):
            raise RecordError(
                "unsupported",
                f"it has no picture, but {key!r} is {str(files[0] if files else value)[:60]!r}; "
                f"name pictures under 'image'; {FRAMES}",
            )


def _refuse_unread(fields: Mapping[str, Any]) -> None:
    """Raise RecordError if the row says something that would not be trained on."""
    for key, value in fields.items():
        name = plain_key(key)
        if value in (None, "", [], {}):
            continue
        if name in _UNREAD_MEDIA:
            raise RecordError(
                "unsupported",
                f"{key!r} is {str(value)[:60]!r}, and only pictures are read; {FRAMES}",
            )
        if name in _UNREAD_TEXT and isinstance(value, (str, list, Mapping)):
            raise RecordError(
                "unsupported",
                f"{key!r} is not trained with; put its text into the first question, or remove it",
            )


def _names(value: Any, key: str) -> list[str]:
    """Return the picture names in the value of a key: a name, an object with one, or a list."""
    values = value if isinstance(value, list) else [value]
    names = [picture_of(one) if isinstance(one, Mapping) else one for one in values]
    if not all(isinstance(name, str) and name for name in names):
        raise RecordError(
            "wrong_json",
            f"{key} must be a name or a list of names, not {str(value)[:60]!r}; leave it out if "
            "the row has no picture",
        )
    return [str(name) for name in names]


def _ambiguous(one: str, names: list[str], other: str, others: list[str]) -> RecordError:
    return RecordError(
        "wrong_json",
        f"{one!r} names {_short(names)} and {other!r} names {_short(others)}; keep one of both",
    )


def _short(names: list[str]) -> str:
    return ", ".join(name[:60] for name in names[:3]) + (", ..." if len(names) > 3 else "")
