"""What can be wrong with a sample, and the exception that carries it."""

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
    "unreadable",
    "unprocessable",
    "placeholder_text",
    "too_long",
    "no_answer",
]


@dataclass(frozen=True)
class Fault:
    """One thing found wrong in a shard, named precisely enough to look at it with `dd`.

    Attributes:
        kind: what rule was broken. The last four are those of the model that is trained: its
            processor refuses the images, its placeholders stand in the text, not even one round
            fits its rows, or there is nothing to learn.
        shard: path or URL of the shard.
        key: WebDataset key of the sample; empty when its header is unreadable.
        offset: where the sample or member starts in the shard, in bytes.
        detail: what was found and what was expected.
    """

    kind: FaultKind
    shard: str
    key: str
    offset: int
    detail: str

    @property
    def place(self) -> tuple[str, str, int]:
        """Shard, key and offset: what tells faulty samples apart."""
        return self.shard, self.key, self.offset

    def __str__(self) -> str:
        place = f"{self.shard}: sample {self.key!r} at byte {self.offset}"
        return f"{place}: {self.kind}: {self.detail}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class BadSample(Exception):
    """A sample cannot be used; `fault` says which and why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return str(self.fault)
