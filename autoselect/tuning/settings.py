"""Settings of a search for the weights of diversity, and their checks."""

from dataclasses import dataclass

from autoselect.config import ConfigError
from autoselect.config.bounds import check_diversity
from autoselect.config.flags import check_counts
from autoselect.config.setting import required, setting

BUDGETS = "3%,6%,11%,22%"
WEIGHTS = "0,0.2,0.3,0.35,0.4,0.45,0.5,0.6,0.7"


@dataclass(frozen=True)
class TuneSettings:
    model: str = required("folder or hub name of the vision-language model, or reference")
    selector: str = required("folder of the trained selector, whose config.json is rewritten")
    shards: str = required(
        "folder or glob of shards with images and questions, or reference; answers are not read"
    )
    out: str | None = setting(
        None, "folder for tune.json, tune.png and the parts (default tune, beside the selector)"
    )
    train_run: str | None = setting(
        None, "output folder of the training; with it, removal is compared with noise filling"
    )
    budgets: str = setting(
        BUDGETS, "visual tokens kept: counts, ratios (0.11) or percentages (11%), comma-separated"
    )
    weights: str = setting(WEIGHTS, "weights of diversity that are tried, 0..1, comma-separated")
    images: int = setting(96, "images, taken from all over the shards")
    questions: int = setting(4, "questions per image, the first ones")
    images_per_part: int = setting(
        16, "images encoded together; an interrupted search repeats at most so many"
    )
    rows_per_batch: int = setting(64, "questions answered together")
    max_new_tokens: int = setting(16, "longest answer in tokens")
    device: str | None = setting(None, "cpu or cuda; by default a GPU if there is one")
    experiment: str = setting("autoselect", "MLflow experiment")
    tracking: bool = setting(True, "log to MLflow")

    def __post_init__(self) -> None:
        names = ("images", "questions", "images_per_part", "rows_per_batch", "max_new_tokens")
        check_counts(**{name: getattr(self, name) for name in names})
        _ = self.tried

    @property
    def tried(self) -> tuple[float, ...]:
        """Return the weights as numbers, ascending.

        Raises:
            ConfigError: they are not numbers of 0..1, or have more than six digits.
        """
        try:
            values = {float(value) for value in self.weights.split(",")}
        except ValueError:
            raise ConfigError(
                f"weights={self.weights!r} must be numbers of 0..1, comma-separated, for example "
                f"{WEIGHTS}"
            ) from None
        for value in values:
            try:
                check_diversity(value)
            except ConfigError as error:
                raise ConfigError(f"weights={self.weights!r}: {error}") from error
            if float(f"{value:g}") != value:
                raise ConfigError(
                    f"weights={self.weights!r}: {value!r} has more digits than tables and columns "
                    f"show; write at most six, such as {value:g}"
                )
        return tuple(sorted(values))
