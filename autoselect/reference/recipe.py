"""Sizes of the reference data and training settings of the reference VLM."""

from dataclasses import dataclass

from autoselect.config import require
from autoselect.config.flags import check_counts
from autoselect.config.setting import setting


@dataclass(frozen=True)
class ReferenceData:
    train: int = setting(
        10_000, "images to train the selector on; none of them was used to train the VLM"
    )
    val: int = setting(400, "images of the validation split")
    test: int = setting(
        1000, "images of the test split, on photographs that no training image shows"
    )
    seed: int = setting(1, "seed of scenes and questions")

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            value = getattr(self, name)
            require(value >= 1, f"{name}={value} images is below 1; choose 1 or more")
        require(self.seed >= 0, f"seed={self.seed} must not be negative")


@dataclass(frozen=True)
class ReferenceTraining:
    """Recipe of the reference VLM; its stages stand in `autoselect/reference/train_vlm.py`."""

    images: int = setting(60_000, "rendered training scenes")
    tower_steps: int = setting(3000, "updates of stage 1, the vision tower")
    language_steps: int = setting(3000, "updates of stage 2, the language model")
    uneven_steps: int = setting(800, "updates of stage 3, whose images lose tokens unevenly")
    visible_steps: int = setting(700, "updates of stage 4, whose questions are about what is left")
    batch_size: int = setting(64, "images of one update")
    tower_learning_rate: float = setting(2e-3, "peak learning rate of stage 1")
    language_learning_rate: float = setting(2e-3, "peak learning rate of stage 2")
    uneven_learning_rate: float = setting(1e-3, "peak learning rate of stage 3")
    visible_learning_rate: float = setting(1e-3, "peak learning rate of stage 4")
    save_every: int = setting(250, "updates between two resumable states")
    seed: int = setting(0, "seed of data, weights and order")

    def __post_init__(self) -> None:
        check_counts(
            images=self.images,
            tower_steps=self.tower_steps,
            language_steps=self.language_steps,
            uneven_steps=self.uneven_steps,
            visible_steps=self.visible_steps,
            batch_size=self.batch_size,
            save_every=self.save_every,
        )
        require(
            self.images >= self.batch_size,
            f"images={self.images} is below batch_size={self.batch_size}; render more images",
        )
