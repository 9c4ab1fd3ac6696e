"""The keys, types and ranges of `report.json`.

Scores, retentions and differences are fractions, times milliseconds, sizes bytes. Further keys are
allowed everywhere. `Report.model_json_schema()` gives the same as a JSON Schema.
"""

from collections.abc import Iterator
from typing import Annotated, Any

from autoselect.config.extras import extra
from autoselect.config.row_names import SELECTOR

with extra("evaluation"):
    from pydantic import BaseModel, ConfigDict, Field, ValidationError

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Interval = Annotated[list[float | None], Field(min_length=2, max_length=2)]
TaskScores = Annotated[dict[str, Fraction], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class AnswerNumbers(_Part):
    """How the answers of one column are, see `report/endings.py`; null if not measured."""

    unended: Fraction | None
    tokens: Ratio | None
    length_ratio: Ratio | None
    loss: Ratio | None
    loss_difference: float | None
    agreement: Fraction
    exact: Fraction
    exact_retention: Ratio | None
    first_word: Fraction
    first_word_retention: Ratio | None


class Scores(_Part):
    """Scores with all visual tokens, or with none."""

    mean: Fraction
    tasks: TaskScores
    details: dict[str, Any] = {}
    answers: AnswerNumbers | None = None


class BlindScores(Scores):
    """Scores without the image's tokens, and the share of the full scores that they reach."""

    retention: Ratio | None = None
    retention_ci95: Interval = [None, None]


class MethodScores(Scores):
    """Scores of one method at one budget; retentions are null if the full model scores 0."""

    method: Text
    budget: Count
    retention: Ratio | None
    retention_ci95: Interval
    retention_tasks: dict[str, Ratio]
    retention_tasks_ci95: dict[str, Interval]


class Difference(_Part):
    """Retention of the selector minus that of another method, at one budget."""

    budget: Count
    against: Text
    difference: float | None
    ci95: Interval
    better: bool


class PrunedLatency(_Part):
    """Times of one call with a token budget; `method` is missing where only one was timed."""

    method: Text = SELECTOR
    budget: Count
    prefill_ms: Positive
    selector_ms: Positive
    first_token_ms: Positive | None = None
    speedup: Positive
    speedup_with_vision: Positive | None = None
    kv_cache_bytes: Annotated[int, Field(ge=0)] | None = None


class LeftOut(_Part):
    """A method that was not evaluated, and why."""

    method: Text
    reason: Text


class Latency(_Part):
    """Times of the full call and of every budget."""

    full_prefill_ms: Positive
    full: dict[str, Any] = {}
    pruned: Annotated[list[PrunedLatency], Field(min_length=1)]
    protocol: str = ""
    environment: dict[str, Any] = {}


class Environment(_Part):
    """The machine and the software that the report was made with."""

    processor: Any
    threads: Any
    python: Any
    torch: Any
    transformers: Any
    git_commit: str | None


class Digests(_Part):
    """What identifies the model, the selectors and the data."""

    model: Text
    selector: Text
    data: Text
    selectors: dict[str, str] = {}


class Report(_Part):
    """A whole `report.json`."""

    model: Text
    num_tokens: Count
    images: Count
    questions: Count
    full: Scores
    blind: BlindScores
    other_image: BlindScores | None = None
    rows: Annotated[list[MethodScores], Field(min_length=1)]
    left_out: list[LeftOut] = []
    intervals: list[Difference]
    latency: Latency
    methods: dict[str, str]
    environment: Environment
    digests: Digests
    settings: dict[str, Any] = {}
    training: dict[str, Any] = {}
    warnings: list[str] = []
    audit: list[dict[str, Any]] = []
    analyses: dict[str, Any] = {}


def violations(report: Any) -> Iterator[str]:
    """Yield what breaks the schema, each with its place: `rows[2].mean=7.0: input should ...`."""
    try:
        Report.model_validate(report)
    except ValidationError as error:
        for found in error.errors(include_url=False, include_context=False):
            *parents, last = found["loc"] or ("",)
            if found["type"] == "missing":
                yield f"{_place(parents) or 'the report'} lacks {last!r}"
            else:
                message = found["msg"][0].lower() + found["msg"][1:]
                yield f"{_place(found['loc']) or 'the report'}={_shown(found['input'])}: {message}"


def _place(steps: Any) -> str:
    """Return `rows[2].tasks` for `("rows", 2, "tasks")`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.removeprefix(".")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
