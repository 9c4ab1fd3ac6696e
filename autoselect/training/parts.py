"""The parts of a training run, on one rank: assembled by `run.py`, stepped by the `Trainer`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoselect.config import TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import flatten, to_dict
from autoselect.config.gate import with_lowest_budget
from autoselect.data.faults import Fault
from autoselect.data.quarantine import Quarantine
from autoselect.data.reread import still_unusable
from autoselect.data.shards import ShardSet
from autoselect.ranks.heartbeat import Heartbeat
from autoselect.ranks.processes import RankInfo
from autoselect.ranks.signals import SignalFlag
from autoselect.tracking import Data, Tracker
from autoselect.tracking.note import TRAINING, RunNote
from autoselect.training.checkpoint import CheckpointStore
from autoselect.training.shared_quarantine import SharedQuarantine
from autoselect.training.state import Origin
from autoselect.vlm import FrozenVLM
from autoselect.vlm.batches.batch import Collator
from autoselect.vlm.model_files import processor_digests


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that the steps of a training run need.

    Attributes:
        config: the resolved training configuration.
        deepspeed: batch sizes, ZeRO stage and clipping.
        info: rank of this process.
        device: device of this rank.
        signals: signals that end the run after the step it is in.
        heartbeat: watches the other ranks.
        shards: the training data.
        collator: builds micro-batches from samples.
        engine: DeepSpeed engine around an `AutoSelect` model.
        store: folder of the checkpoints.
        origin: what the run was begun with, read before its first step.
    """

    config: TrainConfig
    deepspeed: DeepSpeedConfig
    info: RankInfo
    device: torch.device
    signals: SignalFlag
    heartbeat: Heartbeat
    shards: ShardSet
    collator: Collator
    engine: Any
    store: CheckpointStore
    origin: Origin

    @property
    def output(self) -> Path:
        return Path(self.config.output)


def origin_of(shards: ShardSet, vlm: FrozenVLM, deepspeed: DeepSpeedConfig, model: str) -> Origin:
    """Return what a run on these shards with this VLM, loaded from `model`, is begun with."""
    return Origin(
        shards.digest,
        vlm.digest,
        deepspeed.step_settings(),
        str(vlm.dtype).removeprefix("torch."),
        processor_digests(model),
    )


def start_quarantine(run: Run, anew: bool) -> SharedQuarantine:
    """Open this rank's quarantine file, and read again what earlier starts listed as unusable.

    Earlier starts may have had another number of ranks. What is usable now leaves the list. `anew`
    says that the run begins at step 0.
    """
    own = run.output / f"quarantine-{run.info.rank}.jsonl"
    total = len(run.shards) + len(run.shards.faults)
    others = [path for path in sorted(run.output.glob("quarantine-*.jsonl")) if path != own]
    budget = run.config.data.quarantine_budget
    shared = SharedQuarantine(Quarantine(total, budget, own, others))

    def reread(faults: Sequence[Fault]) -> list[Fault]:
        with run.heartbeat.independently("reading unusable samples again"):
            return still_unusable(run.shards, run.collator, faults)

    shared.reread(reread, anew=anew)
    return shared


def start_tracker(run: Run, run_id: str | None) -> Tracker:
    """Resume a tracked run, or begin one; disabled on ranks other than 0 and without tracking.

    Args:
        run: the training run.
        run_id: id in the checkpoint. Without one, the run of an identical start that crashed
            before its first checkpoint is resumed.
    """
    if not (run.info.is_main and run.config.tracking):
        return Tracker.disabled()
    origin = run.origin
    settings = {
        "config": to_dict(run.config),
        "step_settings": origin.step_settings,
        "data_digest": origin.data_digest,
        "model_digest": origin.model_digest,
    }
    note = RunNote(run.output, TRAINING, settings)
    tracker = Tracker.start(
        run.config.experiment,
        f"train {run_name(run.output)}",
        with_lowest_budget(flatten(to_dict(run.config))),
        {
            "kind": "train",
            "model": run.engine.module.vlm.name,
            "model_digest": run.engine.module.vlm.digest,
            "data_digest": run.shards.digest,
        },
        run_id=run_id or note.get(TRAINING),
    )
    note.keep(TRAINING, tracker.run_id)
    where, found = run.config.data.train_shards, f"{len(run.shards)} samples"
    tracker.log_data(Data("training shards", run.shards.digest, str(where), found), "training")
    tracker.watch_machine()
    return tracker


def run_name(output: Path) -> str:
    """Return the name of a run in dashboards: its folder, or the parent of a folder `train`."""
    return output.absolute().parent.name if output.name == "train" else output.name
