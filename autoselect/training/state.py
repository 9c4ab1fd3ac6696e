"""State of a training run between two updates, which a checkpoint stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor

from autoselect.config import TrainConfig
from autoselect.config.errors import require
from autoselect.config.files import from_dict
from autoselect.files.digest import same_weights
from autoselect.training.engine_state import TrainedState

REMOVED_SETTINGS = {
    ("denoiser", "told_gate"): False,
    ("gate", "removal"): "none",
    ("gate", "removal_probability"): 1.0,
    ("gate", "removal_presence"): False,
}
"""Settings of earlier versions, each with the value that still means the same run."""


@dataclass(frozen=True)
class Origin:
    """What a run was begun with, and must have again when it resumes.

    Attributes:
        data_digest: digest of the shards.
        model_digest: digest of the frozen VLM's weights.
        step_settings: settings of the DeepSpeed file that decide the numbers of a step.
        dtype: that of the frozen VLM, which `dtype: auto` takes from the device; None if unknown.
        processor: digest of each file that decides pixels and token ids, by name; None if unknown.
    """

    data_digest: str | None = None
    model_digest: str | None = None
    step_settings: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    processor: dict[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "digest": self.data_digest,
            "model_digest": self.model_digest,
            "step_settings": self.step_settings,
            "dtype": self.dtype,
            "processor": self.processor,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Origin:
        """Read what `to_dict` returned, also in earlier versions with other or fewer keys."""
        return cls(
            values.get("digest"),
            values.get("model_digest"),
            values.get("step_settings", {}),
            values.get("dtype"),
            values.get("processor"),
        )

    def other_processor_files(self, now: Origin, whole: bool) -> list[str]:
        """Return the names of processor files that differ now.

        `whole` says that a file which is there only before or only now differs. In the hub's cache
        it does not: files come there when somebody asks for them.
        """
        if self.processor is None or now.processor is None:
            return []
        names = set(self.processor) & set(now.processor)
        if whole:
            names = set(self.processor) | set(now.processor)
        return sorted(n for n in names if self.processor.get(n) != now.processor.get(n))


@dataclass(frozen=True)
class Progress:
    """What a resumed run continues besides the trained part.

    Attributes:
        tracking_run_id: id of the tracked run; None without tracking.
        polarisation: gates of the K best tokens in the last update, as a share of K, 0..1.
        skipped_steps: updates skipped so far because a number was not finite.
        skipped_in_row: those since the last update that was made.
        images: images trained on so far, each as often as it came.
        smaller_images: those with fewer visual tokens than the budget of their step.
        best_loss: lowest held-out loss so far; None before the first measurement.
        best_step: updates made when it was measured.
        since_best: measurements since then.
        empty_steps: updates so far whose batch had no answer to learn from.
        held_out_digest: digest of the rows of the validation; None without one.
    """

    tracking_run_id: str | None = None
    polarisation: float | None = None
    skipped_steps: int = 0
    skipped_in_row: int = 0
    images: int = 0
    smaller_images: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    since_best: int = 0
    empty_steps: int = 0
    held_out_digest: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        """Read what `to_dict` returned, also in earlier versions with fewer keys."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


@dataclass(frozen=True)
class TrainingState:
    """A run between two updates.

    Attributes:
        step: updates made, skipped ones included; the next update has this number.
        trained: weights and moments; empty on ranks other than 0.
        config: the resolved training configuration, plain values.
        statistics: token statistics by name.
        origin: what the run was begun with.
        progress: what a resumed run continues.
    """

    step: int
    trained: TrainedState
    config: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    origin: Origin = Origin()
    progress: Progress = Progress()

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the tensors, as plain values."""
        return {
            "step": self.step,
            "adam_step": self.trained.adam_step,
            "config": self.config,
            "data": self.origin.to_dict(),
            "run": self.progress.to_dict(),
        }

    def train_config(self) -> TrainConfig:
        """Return the settings of the run.

        Raises:
            ConfigError: it used a setting that this version no longer has.
        """
        for group, name in REMOVED_SETTINGS:
            value = self.config.get(group, {}).get(name)
            require(
                value is None,
                f"the checkpoint of step {self.step} was trained with {group}.{name}={value}, "
                "which this version does not have; use the version that trained it",
            )
        return from_dict(TrainConfig, self.config)

    def check_made(self, selector: Mapping[str, Any], setting: str) -> None:
        """Refuse a selector of another training.

        Args:
            selector: its metadata; what they do not name is not compared.
            setting: name and value of the setting that named this run, for the message.

        Raises:
            ConfigError: seed, data or weights of the model differ.
        """
        facts = {
            "seed": self.train_config().seed,
            "data_digest": self.origin.data_digest,
            "model_digest": self.origin.model_digest,
        }
        known = {name: fact for name, fact in facts.items() if fact is not None}
        others = [name for name, fact in known.items() if not _same(fact, selector.get(name, fact))]
        require(
            not others,
            f"{setting} did not train this selector: {', '.join(others)} differ from those in its "
            "config.json; give the output folder of the training that made it",
        )

    @classmethod
    def from_dict(
        cls, values: dict[str, Any], trained: TrainedState, statistics: dict[str, Tensor]
    ) -> TrainingState:
        """Join the values of `to_dict` with the tensors."""
        config = {**values["config"]}
        if config.get("gate", {}).get("removal") == "none":  # the others then meant nothing
            unused = ("removal_probability", "removal_presence")
            config["gate"] = {k: v for k, v in config["gate"].items() if k not in unused}
        for (group, name), value in REMOVED_SETTINGS.items():
            if config.get(group, {}).get(name) == value:
                config[group] = {k: v for k, v in config[group].items() if k != name}
        return cls(
            values["step"],
            trained,
            config,
            statistics,
            Origin.from_dict(values["data"]),
            Progress.from_dict(values["run"]),
        )


def _same(one: Any, other: Any) -> bool:
    """Return True if two facts are equal; digests of weights have two forms."""
    texts = isinstance(one, str) and isinstance(other, str)
    return same_weights(one, other) if texts else bool(one == other)
