"""Training settings of the second reference VLM."""

from dataclasses import dataclass

from autoselect.config import require
from autoselect.config.flags import check_counts
from autoselect.config.setting import setting


@dataclass(frozen=True)
class MixedTraining:
    """Recipe of the second reference VLM; its stages stand in `siglip_qwen2/train.py`."""

    images: int = setting(32_000, "rendered training images, scenes and pages in equal parts")
    tower_steps: int = setting(
        1500, "updates of stage 1, the vision tower; with more, all later stages begin anew"
    )
    language_steps: int = setting(
        2000, "updates of stage 2, which both variants share; raise it to train on"
    )
    variant_steps: int = setting(300, "updates of stage 3, at a falling learning rate, per variant")
    tower_batch: int = setting(64, "images of one update of stage 1")
    language_batch: int = setting(
        16, "images of one update of stages 2 and 3, each with up to eight questions"
    )
    tower_learning_rate: float = setting(6e-3, "peak learning rate of stage 1")
    language_learning_rate: float = setting(3e-3, "peak learning rate of stages 2 and 3")
    save_every: int = setting(50, "updates between two resumable states")
    seed: int = setting(0, "seed of data, weights and order")

    def __post_init__(self) -> None:
        check_counts(
            images=self.images,
            tower_steps=self.tower_steps,
            language_steps=self.language_steps,
            variant_steps=self.variant_steps,
            tower_batch=self.tower_batch,
            language_batch=self.language_batch,
            save_every=self.save_every,
        )
        batch = max(self.tower_batch, self.language_batch)
        require(
            self.images >= batch,
            f"images={self.images} is below a batch of {batch}; render more images",
        )
