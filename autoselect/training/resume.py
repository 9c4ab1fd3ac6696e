"""Whether a run may go on from a checkpoint: same model, same data, same settings."""

from pathlib import Path

from autoselect.config import ConfigError, TrainConfig
from autoselect.config.files import flatten, to_dict
from autoselect.config.gate import with_lowest_budget
from autoselect.files.digest import same_weights
from autoselect.training.state import Origin, TrainingState

FREE_SETTINGS = {
    "model",
    "data.train_shards",
    "output",
    "save_every",
    "keep_checkpoints",
    "log_every",
    "experiment",
    "tracking",
    "max_skipped_steps",
    "activation_checkpointing",
    "tune_images",
    "tune_budgets",
    "data.workers",
    "data.quarantine_budget",
}
"""Settings that may change when a run resumes: no number of the steps depends on them.

Model and shards may have moved; their digests are compared. So may the shards of the validation if
the checkpoint has the digest of its rows.
"""

UNSET = "unset"


def check_resumable(state: TrainingState, config: TrainConfig, now: Origin) -> None:
    """Refuse to resume with another model, other data or other settings.

    A setting of this version that the checkpoint does not name had its default then. Any other that
    is named only then or only now has changed.

    Args:
        state: the checkpoint.
        config: the present configuration.
        now: digests and step settings of this start.

    Raises:
        ConfigError: another model, other data, or a setting that the numbers so far depend on.
    """
    begun = state.origin
    if not same_weights(begun.model_digest, now.model_digest):
        raise ConfigError(
            f"output={config.output} holds a run on other weights of model={config.model}; "
            "choose another output folder, or remove this one to train anew"
        )
    others = begun.other_processor_files(now, whole=Path(config.model).is_dir())
    if others:
        raise ConfigError(
            f"output={config.output} holds a run with another processor of model={config.model}: "
            f"{', '.join(others)} changed, so it would get other pixels or token ids; put the old "
            "files back, or choose another output folder to train with these"
        )
    if begun.data_digest != now.data_digest:
        raise ConfigError(
            f"output={config.output} holds a run on other data (digest {begun.data_digest}, "
            f"now {now.data_digest}); choose another output folder to train on these shards"
        )
    recorded = flatten(state.config) | flatten(begun.step_settings)
    before = with_lowest_budget(flatten(to_dict(TrainConfig())) | recorded)
    present = with_lowest_budget(flatten(to_dict(config))) | flatten(now.step_settings)
    if begun.dtype is not None:  # `auto` may mean another one on this device
        before["dtype"], present["dtype"] = begun.dtype, now.dtype or begun.dtype
    free = FREE_SETTINGS | ({"validation.shards"} if state.progress.held_out_digest else set())
    pairs = {
        k: (before.get(k, UNSET), present.get(k, UNSET)) for k in present | before if k not in free
    }
    changed = {k: pair for k, pair in pairs.items() if pair[0] != pair[1]}
    if changed:
        listed = ", ".join(f"{k}: {old} -> {new}" for k, (old, new) in changed.items())
        gone = ", ".join(k for k, (_, new) in changed.items() if new == UNSET)
        how = f"with the version that has {gone}" if gone else "with the old settings"
        raise ConfigError(
            f"output={config.output} holds a run with other settings ({listed}); "
            f"choose another output folder, or go on {how}"
        )
