"""Settings of an evaluation, and their checks."""

from dataclasses import dataclass

from autoselect.config import ConfigError
from autoselect.evaluation.answers.likelihood import GENERATION

COUNTS = {
    "max_images": "how many images are evaluated, or leave it out for all",
    "random_seeds": "how many seeds the random method has",
    "images_per_part": "how many images are encoded together",
    "rows_per_batch": "how many questions are answered together",
    "max_new_tokens": "how long an answer may be, for example 16",
    "latency_batch": "how many equal rows are timed together, for example 1",
}


def check_count(name: str, value: int | None) -> None:
    """Raise ConfigError where a setting of `COUNTS` is below 1; None is not given."""
    if value is not None and value < 1:
        raise ConfigError(f"{name}={value} is below 1; give {COUNTS[name]}")


@dataclass(frozen=True)
class EvalSettings:
    """Settings of an evaluation.

    Attributes:
        model: folder or hub name of the VLM.
        selector: folder or hub name of the selector; further ones, comma-separated and optionally
            named as NAME=FOLDER, become rows `autoselect:NAME` of the same report.
        shards: glob of the evaluation shards.
        budgets: tokens or ratios, comma-separated.
        methods: baselines, comma-separated, or `all`.
        out: folder of the report.
        max_images: evaluate only the first images; None for all.
        random_seeds: seeds of the random method.
        images_per_part: images encoded together.
        rows_per_batch: questions answered together.
        max_new_tokens: longest answer in tokens.
        scoring: `generation`; `likelihood` answers yes/no and multiple-choice questions with the
            likeliest word or letter, `text_likelihood` with the likeliest option text.
        diversity: instead of the selectors' own, see `Selector`; several, comma-separated, give
            rows of their own.
        latency_batch: batch size of the latency measurement.
        latency_compiled: time the LLM and the selector compiled, too.
        device: where the VLM runs; None for a GPU where there is one.
        experiment: MLflow experiment.
        tracking: log to MLflow.
    """

    model: str
    selector: str
    shards: str
    budgets: str
    out: str
    methods: str = "all"
    max_images: int | None = None
    random_seeds: int = 3
    images_per_part: int = 32
    rows_per_batch: int = 32
    max_new_tokens: int = 16
    scoring: str = GENERATION
    diversity: str | None = None
    latency_batch: int = 1
    latency_compiled: bool = False
    device: str | None = None
    experiment: str = "autoselect"
    tracking: bool = True

    def __post_init__(self) -> None:
        for name in COUNTS:
            check_count(name, getattr(self, name))
