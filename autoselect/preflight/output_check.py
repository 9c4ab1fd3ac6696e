"""Check of the output folder for `autoselect doctor`: it can be written, a run in it resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoselect.config import ConfigError, TrainConfig
from autoselect.config.destinations import check_run_folder
from autoselect.data.paths import expand
from autoselect.data.shards import ShardSet
from autoselect.files.digest import quick_digest
from autoselect.preflight.finding import Finding, Subject
from autoselect.preflight.shards_check import without_index
from autoselect.reference.resources import REFERENCE, SHARDS_FOLDER, resolve_model
from autoselect.training.checkpoint import CheckpointStore
from autoselect.training.resume import check_resumable
from autoselect.training.state import Origin, TrainingState
from autoselect.training.validation import check_best, is_over
from autoselect.vlm.model_files import local_folder, processor_digests

AFRESH = "choose another `output` to start afresh"


def check_output(subject: Subject) -> Finding:
    """Check that the output folder can be written, and that a run in it would resume.

    The checkpoints are read whole, as training reads them.
    """
    config = subject.config
    output = Path(config.output)
    try:
        check_run_folder(output)
    except ConfigError as refused:
        return Finding("output", "fail", str(refused), f"do what it says, or {AFRESH}")
    state, wrong = CheckpointStore(output / "checkpoints", config.keep_checkpoints).first_usable()
    problems = "; ".join(wrong)
    if state is None and wrong:
        found = f"{output} holds a run without a usable checkpoint: {problems}"
        fix = f"restore the folder or one checkpoint from a backup, or {AFRESH}"
        return Finding("output", "fail", found, fix)
    if state is None:
        return Finding("output", "ok", f"{output} can be written")
    refusal = _refusal(state, subject)
    if refusal:
        return Finding("output", "fail", refusal, f"do what it says, or {AFRESH}")
    found = f"{output} holds a run; it resumes at step {state.step} of {config.steps}"
    if state.step >= config.steps or is_over(config.validation, state.progress):
        found = f"{output} holds a finished run; a new start trains no further"
    if problems:
        found += f", because later checkpoints are not usable: {problems}"
    return Finding("output", "warn", found, AFRESH)


def _refusal(state: TrainingState, subject: Subject) -> str:
    """Return why training would not resume, or an empty text.

    The model is compared by the ends of its weight files, as reading them whole takes long.
    """
    config, begun = _resolved(subject.config), state.origin
    now = Origin(
        _data_digest(config.data.train_shards) or begun.data_digest,
        _model_digest(config.model) or begun.model_digest,
        subject.deepspeed.step_settings(),
        None if config.dtype == "auto" else config.dtype,
        processor_digests(config.model),
    )
    try:
        check_resumable(state, config, now)
        if config.validation.patience and state.progress.best_step != state.step:
            check_best(Path(config.output), state.progress)
    except ConfigError as error:
        return str(error)
    return ""


def _resolved(config: TrainConfig) -> TrainConfig:
    """Return the settings with the paths that training puts in place of `reference`."""
    data = config.data
    if data.train_shards == REFERENCE:
        data = replace(data, train_shards=str(SHARDS_FOLDER / "train-*.tar"))
    return replace(config, model=resolve_model(config.model), data=data)


def _data_digest(shards: str) -> str | None:
    """Return the digest of the shards; None if their own check says what is wrong with them.

    Missing indexes are not built here.
    """
    try:
        named = expand(shards)
        return None if without_index(named) else ShardSet.open(named).digest
    except ConfigError:
        return None


def _model_digest(model: str) -> str | None:
    """Return the quick digest of the model's weights; None if they are not on this machine."""
    folder = local_folder(model)
    if folder is None or not (folder / "config.json").is_file():
        return None
    return quick_digest(folder / "config.json")
