"""The faults that a sample can have, and the exception that carries one."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

FaultKind = Literal[
    "truncated",
    "header",
    "payload",
    "missing_member",
    "duplicate_key",
    "undecodable",
    "too_large",
    "wrong_json",
    "unsupported",
    "unreadable",
    "unprocessable",
    "placeholder_text",
    "too_long",
    "no_answer",
]


MODEL_FAULTS = frozenset(("unprocessable", "placeholder_text", "too_long", "no_answer"))
"""Kinds that only the collator finds, which knows the model that is trained."""


@dataclass(frozen=True)
class Fault:
    """One fault in a shard, located precisely enough to look at it with `dd`.

    Attributes:
        kind: the rule that is broken. `unsupported` is a part of a row that is not read, such as
            a video. Those of MODEL_FAULTS depend on the trained model: its processor
            refuses the images, its placeholders occur in the text, not even one round of the
            conversation fits its length limit, or it has nothing to learn from.
        shard: path or URL of the shard.
        key: WebDataset key of the sample; empty if its header is unreadable.
        offset: start of the sample or member in the shard, in bytes.
        detail: what was found and what was expected.
    """

    kind: FaultKind
    shard: str
    key: str
    offset: int
    detail: str

    @property
    def place(self) -> tuple[str, str, int]:
        """Return shard, key and offset, which identify a faulty sample."""
        return self.shard, self.key, self.offset

    def __str__(self) -> str:
        place = f"{self.shard}: sample {self.key!r} at byte {self.offset}"
        return f"{place}: {self.kind}: {self.detail}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class RecordError(ValueError):
    """The record breaks a rule; `kind` is the kind of the sample's `Fault`."""

    def __init__(self, kind: FaultKind, detail: str) -> None:
        super().__init__(detail)
        self.kind: FaultKind = kind


class BadSample(Exception):
    """A sample cannot be used; `fault` says which one and why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return str(self.fault)
