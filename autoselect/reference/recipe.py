"""Sizes of the reference data and training settings of the reference VLM."""

from dataclasses import dataclass

from autoselect.config import require


@dataclass(frozen=True)
class ReferenceData:
    """Sizes of the reference data.

    Attributes:
        train: images for training the selector; the VLM was trained on other images.
        val: images in the validation split.
        test: images in the test split; their background photographs are not used for training.
        seed: seed of scenes and questions.
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
    """Training settings of the reference VLM; `train_vlm` describes the stages.

    Steps are updates of `batch_size` images. Learning rates are peaks. `images` is the number of
    rendered scenes, `save_every` the number of updates between two saved states.
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
