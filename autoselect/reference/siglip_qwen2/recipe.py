"""The recipe of the second reference VLM."""

from dataclasses import dataclass

from autoselect.config import require


@dataclass(frozen=True)
class MixedTraining:
    """Sizes and rates; steps count updates.

    Attributes:
        images: rendered training images, scenes and pages in equal parts.
        tower_steps: updates of the dense stage of the vision tower; with more, all after it begins
            anew.
        language_steps: updates that both variants share; raise it to train on.
        variant_steps: updates of each variant after those, with a falling learning rate.
        tower_batch: images of one update of the tower.
        language_batch: images of one update after that, each with up to eight questions.
        tower_learning_rate: peak of the tower's stage.
        language_learning_rate: of projector and language model.
        save_every: updates between two resumable states.
        seed: of data, weights and order.
    """

    images: int = 32_000
    tower_steps: int = 550
    language_steps: int = 1250
    variant_steps: int = 150
    tower_batch: int = 64
    language_batch: int = 16
    tower_learning_rate: float = 6e-3
    language_learning_rate: float = 3e-3
    save_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "images",
            "tower_steps",
            "language_steps",
            "variant_steps",
            "tower_batch",
            "language_batch",
            "save_every",
        ):
            value = getattr(self, name)
            require(value >= 1, f"{name}={value} is below 1; choose 1 or more")
        batch = max(self.tower_batch, self.language_batch)
        require(
            self.images >= batch,
            f"images={self.images} is below a batch of {batch}; render more images",
        )
