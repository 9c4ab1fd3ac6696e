"""Sizes of the reference data and the recipe of the reference VLM."""

from dataclasses import dataclass

from autoselect.config import require


@dataclass(frozen=True)
class ReferenceData:
    """Sizes of the reference data.

    Attributes:
        train: images for the selector's training; none of them trained the VLM.
        val: images of the validation split.
        test: images of the test split, on photographs that training never shows.
        seed: of scenes and questions.
    """

    train: int = 10_000
    val: int = 400
    test: int = 1000
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            value = getattr(self, name)
            require(value >= 1, f"{name}={value} images is below 1; choose 1 or more")
        require(self.seed >= 0, f"seed={self.seed} must not be negative")


@dataclass(frozen=True)
class ReferenceTraining:
    """Recipe of the reference VLM. Steps count updates of `batch_size` images.

    Attributes:
        images: rendered training scenes.
        tower_steps: updates of stage 1.
        language_steps: updates of stage 2.
        uneven_steps: updates of stage 3.
        visible_steps: updates of stage 4.
        batch_size: images of one update.
        tower_learning_rate: peak of stage 1.
        language_learning_rate: peak of stage 2.
        uneven_learning_rate: peak of stage 3.
        visible_learning_rate: peak of stage 4.
        save_every: updates between two resumable states.
        seed: of data, weights and order.
    """

    images: int = 60_000
    tower_steps: int = 3000
    language_steps: int = 3000
    uneven_steps: int = 800
    visible_steps: int = 700
    batch_size: int = 64
    tower_learning_rate: float = 2e-3
    language_learning_rate: float = 2e-3
    uneven_learning_rate: float = 1e-3
    visible_learning_rate: float = 1e-3
    save_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "images",
            "tower_steps",
            "language_steps",
            "uneven_steps",
            "visible_steps",
            "batch_size",
            "save_every",
        ):
            value = getattr(self, name)
            require(value >= 1, f"{name}={value} is below 1; choose 1 or more")
        require(
            self.images >= self.batch_size,
            f"images={self.images} is below batch_size={self.batch_size}; render more images",
        )
