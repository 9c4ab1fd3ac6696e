"""The part of JSON Schema (draft 2020-12) that the schema of the report uses.

One schema is no reason for a dependency. `tests/evaluation/test_report_check.py` compares with the
`jsonschema` package where that is installed.
"""

from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]
NOTES = {"$schema", "$defs", "title", "description"}


def violations(value: Any, schema: Schema) -> Iterator[str]:
    """What in a JSON value breaks a schema, each with its place: `rows[2].mean: 7 is above 1`."""
    yield from _check(value, schema, schema, "")


def _check(value: Any, schema: Schema, root: Schema, place: str) -> Iterator[str]:
    if "$ref" in schema:
        schema = _definition(schema["$ref"], root)
    types = schema.get("type")
    if types is not None:
        names = [types] if isinstance(types, str) else types
        if not any(TYPES[name](value) for name in names):
            yield f"{place or 'the report'}: {_shown(value)} must be of type {' or '.join(names)}"
            return
    for keyword, rule in schema.items():
        if keyword in RULES:
            yield from RULES[keyword](value, rule, root, place)
        else:
            assert keyword in NOTES | {"type", "additionalProperties"}, keyword
    if isinstance(value, dict) and "additionalProperties" in schema:
        known = schema.get("properties", {})
        for name, item in value.items():
            if name not in known:
                yield from _check(item, schema["additionalProperties"], root, _inside(place, name))


def _definition(reference: str, root: Schema) -> Schema:
    found: Any = root
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return dict(found)


def _required(value: Any, names: list[str], root: Schema, place: str) -> Iterator[str]:
    for name in names:
        if name not in value:
            yield f"{place or 'the report'} lacks {name!r}"


def _properties(value: Any, known: dict[str, Schema], root: Schema, place: str) -> Iterator[str]:
    for name, schema in known.items():
        if name in value:
            yield from _check(value[name], schema, root, _inside(place, name))


def _items(value: Any, schema: Schema, root: Schema, place: str) -> Iterator[str]:
    for position, item in enumerate(value):
        yield from _check(item, schema, root, f"{place}[{position}]")


def _bound(words: str, broken: Callable[[Any, Any], bool], wanted: type | tuple[type, ...]) -> Any:
    def rule(value: Any, bound: Any, root: Schema, place: str) -> Iterator[str]:
        if isinstance(value, wanted) and not isinstance(value, bool) and broken(value, bound):
            yield f"{place or 'the report'}: {_shown(value)} {words} {bound}"

    return rule


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "number": _is_number,
    "integer": lambda value: _is_number(value) and value == int(value),
    "null": lambda value: value is None,
}
NUMBERS = (int, float)
RULES: dict[str, Any] = {
    "required": _required,
    "properties": _properties,
    "items": _items,
    "minimum": _bound("is below", lambda value, bound: value < bound, NUMBERS),
    "maximum": _bound("is above", lambda value, bound: value > bound, NUMBERS),
    "exclusiveMinimum": _bound("is not above", lambda value, bound: value <= bound, NUMBERS),
    "minItems": _bound("has fewer items than", lambda value, bound: len(value) < bound, list),
    "maxItems": _bound("has more items than", lambda value, bound: len(value) > bound, list),
    "minLength": _bound("is shorter than", lambda value, bound: len(value) < bound, str),
    "minProperties": _bound("has fewer entries than", lambda v, bound: len(v) < bound, dict),
}
