"""MMBench (Liu et al. 2023): multiple choice, asked in every rotation of the options.

The official TSV holds images as base64. A long file repeats a question under `index + 1e6`,
`index + 2e6`, ... with rotated options, and may name another row's index in place of an image.
Other files get their rotations here. One sample holds all rotations of a question, so that
circular accuracy is computed over its rounds.
"""

import base64
import csv
import io
from collections.abc import Mapping
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.data.benchmarks.rows import (
    LETTER_ANSWER,
    LETTERS,
    Question,
    Row,
    field,
    image_row,
    with_options,
)
from autoselect.data.text_files import read_text
from autoselect.files.atomic import write_bytes

ROTATION = 1_000_000
LONGEST_REFERENCE = 64
CHINESE_ANSWER = "\n请直接回答选项字母。"
_LARGEST_FIELD = 2**31 - 1


def rows_en(files: Mapping[str, Path]) -> list[Row]:
    return _rows(files, "mmbench_en_dev", LETTER_ANSWER)


def rows_cn(files: Mapping[str, Path]) -> list[Row]:
    return _rows(files, "mmbench_cn_dev", CHINESE_ANSWER)


def _rows(files: Mapping[str, Path], task: str, instruction: str) -> list[Row]:
    """Return the rows of a TSV; their images are files that `store_pictures` writes."""
    path = files["questions"]
    entries = _read(path)
    found = []
    for number, group in _groups(entries).items():
        asked = group if len(group) > 1 else _rotations(group[0], path)
        questions = [_question(entry, task, instruction, path) for entry in asked]
        image, _ = _image(group[0], entries, path)
        found.append(image_row(str(number), image, questions))
    return found


def store_pictures(files: Mapping[str, Path]) -> None:
    """Write the images of a TSV into the folder `files["images"]`, each under its index."""
    path = files["questions"]
    entries = _read(path)
    images = dict(_image(group[0], entries, path) for group in _groups(entries).values())
    for name, text in images.items():
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError:
            # Stored unchanged; the converter rejects it as undecodable.
            data = text.encode(errors="replace")
        target = files["images"] / name
        if not target.is_file() or target.read_bytes() != data:
            write_bytes(target, data)


def _groups(entries: Mapping[str, dict[str, str]]) -> dict[int, list[dict[str, str]]]:
    """Return the rows of each question by its number."""
    groups: dict[int, list[dict[str, str]]] = {}
    for entry in entries.values():
        groups.setdefault(int(entry["index"]) % ROTATION, []).append(entry)
    return groups


def _read(path: Path) -> dict[str, dict[str, str]]:
    csv.field_size_limit(_LARGEST_FIELD)
    try:
        lines = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t")
        numbered = ((str(int(row["index"])), row) for row in lines)
        table = {number: row | {"index": number} for number, row in numbered}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not an MMBench TSV: {error!r}; download it again") from error
    if not table:
        raise ConfigError(f"{path} holds no questions")
    return table


def _options(entry: dict[str, str]) -> list[str]:
    """Return the options A, B, ... up to the first that is missing."""
    options = []
    for letter in LETTERS[:5]:
        text = (entry.get(letter) or "").strip()
        if text.lower() in ("", "nan", "none"):
            break
        options.append(text)
    return options


def _rotations(entry: dict[str, str], path: Path) -> list[dict[str, str]]:
    """Return the question once per option, with the options rotated by 0, 1, 2, ... places."""
    options = _options(entry)
    place = LETTERS.index(_answer(entry, path))
    turned = []
    for shift in range(len(options)):
        texts = options[shift:] + options[:shift]
        turned.append(
            entry
            | dict(zip(LETTERS, texts, strict=False))
            | {
                "answer": LETTERS[(place - shift) % len(options)],
                "index": str(int(entry["index"]) + shift * ROTATION),
            }
        )
    return turned


def _answer(entry: dict[str, str], path: Path) -> str:
    answer = str(field(entry, "answer", path)).strip()
    if answer not in tuple(LETTERS[: len(_options(entry))]):
        raise ConfigError(
            f"{path}: question {entry['index']} has answer={answer!r}, which is none of its "
            "options; the test split has no answers and is scored on the benchmark's server"
        )
    return answer


def _question(entry: dict[str, str], task: str, instruction: str, path: Path) -> Question:
    hint = (entry.get("hint") or "").strip()
    hint = "" if hint.lower() in ("nan", "none") else hint
    text = with_options(field(entry, "question", path), _options(entry), hint)
    return Question(entry["index"], text + instruction, (_answer(entry, path),), task)


def _image(
    entry: dict[str, str], entries: Mapping[str, dict[str, str]], path: Path
) -> tuple[str, str]:
    """Return the index under which a row's image stands, and the image as base64."""
    name, text = entry["index"], str(field(entry, "image", path))
    seen = {name}
    while len(text) <= LONGEST_REFERENCE and text in entries and text not in seen:
        seen.add(text)
        name, text = text, str(field(entries[text], "image", path))
    return name, text
