"""Read the turns of a row in the forms of other tools, and write them as LLaVA's.

LLaVA's form is a list of `{"from": "human" | "gpt", "value": text}` with a mark `<image>` per
picture, or none. ShareGPT's roles, OpenAI's messages with typed parts, and pairs such as
`{"user": ..., "assistant": ...}` are turned into it. What cannot be trained on (system turns, tool
calls, videos, sound) is refused by name, never dropped.
"""

import re
from collections.abc import Mapping
from typing import Any

from autoselect.data.faults import RecordError

IMAGE_PLACEHOLDER = "<image>"
SPEAKERS = ("human", "gpt")
FRAMES = "of a video, take frames and list them under 'image'; otherwise leave the row out"
TURN_KEYS = ("conversations", "conversation", "messages", "dialogue", "dialog", "turns", "texts")

_PAIRS = (
    *(("user", "assistant"), ("human", "gpt"), ("human", "assistant"), ("question", "answer")),
    *(("query", "response"), ("prompt", "response"), ("prompt", "completion")),
    *(("instruction", "output"), ("problem", "solution")),
)
_SPEAKER_OF = {
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt"), "gpt"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_IMAGE_PARTS = ("image", "image_url", "input_image", "image_file", "img")
_TEXT_PARTS = ("text", "input_text", "output_text")
_SOURCES = ("image_url", "url", "image", "path", "image_path", "file_name", "file", "source")
_FOREIGN_MARK = re.compile(r"^\s*<(?:video|audio|speech)>\s*$|<img>[^<]*</img>", re.MULTILINE)


def plain_key(key: Any) -> str:
    """Return a key in lower case with underscores, for example `image_path` for `imagePath`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(key))
    return re.sub(r"[-\s]+", "_", spaced).lower()


def picture_of(part: Mapping[str, Any]) -> str | None:
    """Return the path or URL of the picture that an object names; None if it names none."""
    for key in _SOURCES:
        value = part.get(key)
        if isinstance(value, Mapping):
            return picture_of(value)
        if isinstance(value, str) and value:
            return value
    data, media = part.get("data") or part.get("base64"), part.get("media_type") or "image/png"
    return f"data:{media};base64,{data}" if isinstance(data, str) else None


def read_turns(row: Mapping[str, Any]) -> tuple[list[str], list[Any], list[str]]:
    """Return the keys of a row's turns, the turns in LLaVA's form, and the pictures they name.

    Whether questions and answers alternate is not checked.

    Raises:
        RecordError: there are no turns, or they hold something that cannot be trained on.
    """
    for wanted in TURN_KEYS:
        for key in row:
            if plain_key(key) == wanted and row[key] not in (None, []):
                return [key], *_turns_of(key, row[key])
    if (pair := _pair(row)) is not None:
        return list(pair), *_turns_of("", [{name: row[name] for name in pair}])
    captions = any("caption" in plain_key(key) for key in row)
    hint = "; captions are for `autoselect shards convert-captions`" if captions else ""
    raise RecordError(
        "wrong_json",
        "conversations must be a list of at least one turn; the row has the keys "
        f"{', '.join(map(str, row)) or '(none)'}{hint}",
    )


def as_turns(record: Any) -> Any:
    """Return a stored record with its turns in LLaVA's form; one in that form stays as it is."""
    if not isinstance(record, dict) or _in_llava_format(record.get("conversations")):
        return record
    keys, turns, _ = read_turns(record)
    kept = {name: value for name, value in record.items() if name not in keys}
    return kept | {"conversations": turns}


def _in_llava_format(turns: Any) -> bool:
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(isinstance(t, dict) and t.get("from") in SPEAKERS and "value" in t for t in turns)
    )


def _pair(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the keys of a question and its answer in one object, if there are both."""
    return next((pair for pair in _PAIRS if all(isinstance(turn.get(n), str) for n in pair)), None)


def _turns_of(key: str, values: Any) -> tuple[list[Any], list[str]]:
    if not isinstance(values, list):
        raise RecordError(
            "wrong_json", f"{key} must be a list of turns, not {type(values).__name__}"
        )
    turns: list[Any] = []
    shown: list[str | None] = []
    for value in values:
        if isinstance(value, Mapping) and (pair := _pair(value)) is not None:
            said = [(speaker, value[name]) for speaker, name in zip(SPEAKERS, pair, strict=True)]
            turns += [{"from": speaker, "value": text} for speaker, text in said]
        else:
            turn, pictures = _turn(len(turns), value)
            turns.append(turn)
            shown += pictures
    named = [picture for picture in shown if picture is not None]
    if named and len(named) < len(shown):
        raise RecordError("wrong_json", "some pictures in its turns are named and some are not")
    return turns, named


def _turn(number: int, turn: Any) -> tuple[dict[str, Any], list[str | None]]:
    """Return one turn in LLaVA's form, and its pictures: names, or None if it does not name them.

    A turn in that form stays as it is.
    """
    if not isinstance(turn, Mapping):
        raise RecordError("wrong_json", f"turn {number} must be an object, not {str(turn)[:60]!r}")
    role = _first(turn, "from", "role", "speaker")
    if role is None:
        raise RecordError(
            "wrong_json",
            f"turn {number} has the keys {', '.join(map(str, turn)) or '(none)'}; name who speaks "
            "under 'from' and the text under 'value'",
        )
    speaker = _speaker(number, role)
    content = _first(turn, "value", "content", "text")
    if isinstance(content, (list, Mapping)):
        text, pictures = _parts(number, content if isinstance(content, list) else [content])
        if pictures and speaker == "gpt":
            raise RecordError(
                "unsupported", f"turn {number} answers with a picture; leave the row out"
            )
        return {"from": speaker, "value": text}, pictures
    if isinstance(content, str) and (mark := _FOREIGN_MARK.search(content)):
        raise RecordError(
            "unsupported",
            f"turn {number} holds {mark[0].strip()[:60]!r}; write {IMAGE_PLACEHOLDER} for a "
            f"picture and name its file under 'image'; {FRAMES}",
        )
    kept = turn if turn.get("from") == speaker and "value" in turn else {}
    return dict(kept) | {"from": speaker, "value": content}, []


def _speaker(number: int, role: Any) -> str:
    speaker = _SPEAKER_OF.get(role.strip().lower()) if isinstance(role, str) else None
    if speaker == "system":
        raise RecordError(
            "unsupported",
            f"turn {number} is a system turn, which is not trained with; put its text in front of "
            "the first question, or remove it",
        )
    if speaker is None:
        raise RecordError(
            "wrong_json",
            f"turn {number}: 'from' must be {SPEAKERS[number % 2]!r}, not {str(role)[:40]!r}",
        )
    return speaker


def _first(turn: Mapping[str, Any], *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _parts(number: int, parts: list[Any]) -> tuple[str, list[str | None]]:
    """Return the text of typed parts, with a mark for every picture, and the pictures."""
    text = ""
    pictures: list[str | None] = []
    for part in parts:
        kind = _kind(part)
        if kind == "text":
            text += part if isinstance(part, str) else part["text"]
        elif kind == "image":
            text += IMAGE_PLACEHOLDER
            pictures.append(picture_of(part))
        else:
            shown = part.get("type", part) if isinstance(part, Mapping) else part
            raise RecordError(
                "unsupported",
                f"turn {number} holds a part {str(shown)[:40]!r}, and only text and images are "
                f"read; {FRAMES}",
            )
    return text, pictures


def _kind(part: Any) -> str | None:
    """Return `text`, `image`, or None for another kind of part."""
    if isinstance(part, str):
        return "text"
    if not isinstance(part, Mapping):
        return None
    kind = part.get("type")
    if (kind in _TEXT_PARTS or kind is None) and isinstance(part.get("text"), str):
        return "text"
    named = any(isinstance(part.get(name), str) for name in ("image", "image_url"))
    return "image" if kind in _IMAGE_PARTS or (kind is None and named) else None
