"""Training of Scorer and Denoiser around a frozen VLM, with DeepSpeed.

`train` reads from top to bottom: load the frozen VLM, open the shards, calibrate, build the model
and its engine, go on from the last checkpoint, step, export the selector.
"""

import logging
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor
from tqdm import tqdm

from autoselect import runtime, schedules
from autoselect.calibration import TokenStatistics, calibrate
from autoselect.checkpoint import CheckpointStore, TrainingState
from autoselect.config import ConfigError, TrainConfig, flatten, to_dict
from autoselect.data.loader import Loader
from autoselect.data.quarantine import Quarantine
from autoselect.data.shards import ShardSet
from autoselect.deepspeed_config import BatchSizes, batch_sizes
from autoselect.engine_state import capture, restore
from autoselect.heartbeat import Heartbeat
from autoselect.model import AutoSelect, GateSetting, StepOutput
from autoselect.selector import Selector
from autoselect.sharded_loading import gathered, sharded_loading
from autoselect.tracking import Tracker
from autoselect.update_guard import UpdateGuard
from autoselect.vlm.backbone import FrozenVLM, default_dtype
from autoselect.vlm.batch import Collator, TrainBatch

logger = logging.getLogger(__name__)
SELECTOR_FOLDER = "selector"
CALIBRATION_BATCH = 32


def train(
    config: TrainConfig,
    deepspeed: dict[str, Any],
    info: runtime.RankInfo,
    signals: runtime.SignalFlag | None = None,
) -> bool:
    """Train a selector and export it to `OUTPUT/selector`.

    Args:
        config: the run.
        deepspeed: checked DeepSpeed configuration: batch sizes, ZeRO, clipping.
        info: this rank; the ranks have met.
        signals: remembers signals since the process began; made here by default.

    Returns:
        True when all steps are done; False after a signal, with a checkpoint to go on from.

    Raises:
        ConfigError: the model, the shards, the budget or the batch sizes do not fit.
        CheckpointError: checkpoints are there but none can be used.
    """
    signals = signals or runtime.SignalFlag()
    device = runtime.choose_device(info)
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    with sharded_loading(deepspeed, dtype or default_dtype(device)):
        vlm = FrozenVLM.from_pretrained(config.model, dtype=dtype, device=device)
    check_budget(config, vlm)
    sizes = batch_sizes(deepspeed, info.world_size)
    shards = ShardSet.open(config.data.train_shards)
    collator = Collator(vlm, config.data.rounds, config.data.max_text_tokens)
    store = CheckpointStore(Path(config.output) / "checkpoints", keep=config.keep_checkpoints)
    state = store.load()
    if state is None:
        with gathered(vlm.vision_parameters()):
            statistics = calibrate_on(vlm, shards, collator, config)
    else:
        check_resumable(state, config, shards, vlm)
        statistics = TokenStatistics.from_tensors(state.statistics)
    if info.is_main:
        write_resolved(config, deepspeed)
    runtime.seed_everything(config.seed)  # loading draws differently at each ZeRO stage
    model = AutoSelect(vlm, config, statistics.to(device))
    engine = build_engine(model, config, deepspeed)
    trainer = Trainer(config, engine, shards, collator, sizes, info, device, store, state, signals)
    if not trainer.run():
        return False
    with gathered(model.scorer.parameters()):
        if info.is_main:
            trainer.export(Path(config.output) / SELECTOR_FOLDER)
    return True


def check_resumable(
    state: TrainingState, config: TrainConfig, shards: ShardSet, vlm: FrozenVLM
) -> None:
    """The run that goes on is the run that was begun.

    Raises:
        ConfigError: another model, other data, or a setting that the numbers so far depend on.
    """
    if state.data.get("model_digest") != vlm.digest:
        raise ConfigError(
            f"output={config.output} holds a run on other weights of model={config.model}; "
            "choose another output folder, or remove this one to train anew"
        )
    if state.data.get("digest") != shards.digest:
        raise ConfigError(
            f"output={config.output} holds a run on other data (digest {state.data.get('digest')}, "
            f"now {shards.digest}); choose another output folder to train on these shards"
        )
    free = {"output", "save_every", "keep_checkpoints", "log_every", "experiment", "tracking"}
    before, now = flatten(state.config), flatten(to_dict(config))
    changed = [k for k in now if before.get(k) != now[k] and k not in free and k != "data.workers"]
    if changed:
        listed = ", ".join(f"{k}: {before.get(k)} -> {now[k]}" for k in changed)
        raise ConfigError(
            f"output={config.output} holds a run with other settings ({listed}); "
            "choose another output folder, or repeat the old settings to go on"
        )


def check_budget(config: TrainConfig, vlm: FrozenVLM) -> None:
    """The budget fits into the model's visual tokens, where their number is fixed."""
    if vlm.num_tokens is not None and config.gate.token_budget > vlm.num_tokens:
        raise ConfigError(
            f"gate.token_budget={config.gate.token_budget} exceeds the {vlm.num_tokens} visual "
            f"tokens of this model; choose 1..{vlm.num_tokens}"
        )


def write_resolved(config: TrainConfig, deepspeed: dict[str, Any]) -> None:
    """The whole resolved configuration, beside everything the run writes."""
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    resolved = {"train": to_dict(config), "deepspeed": deepspeed}
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))


def calibrate_on(
    vlm: FrozenVLM, shards: ShardSet, collator: Collator, config: TrainConfig
) -> TokenStatistics:
    """Statistics of the first samples' visual tokens; rank 0's are everybody's."""

    def batches() -> Iterator[Tensor]:
        with_images = (sample for sample in shards.usable() if sample.pictures)
        first = islice(with_images, config.gate.calibration_images)
        while chunk := list(islice(first, CALIBRATION_BATCH)):
            visual = vlm.encode(collator(chunk).pixels)
            mask = visual.mask
            yield visual.tokens.flatten(0, 1) if mask is None else visual.tokens[mask]

    rank = config.gate.noise_rank if config.gate.noise == "covariance" else None
    statistics = calibrate(batches(), rank)
    logger.info(
        "calibrated on visual tokens of width %d, participation ratio %.1f",
        len(statistics.mean),
        statistics.participation_ratio,
    )
    return TokenStatistics.from_tensors(runtime.broadcast_object(statistics.tensors()))


def build_engine(model: AutoSelect, config: TrainConfig, deepspeed: dict[str, Any]) -> Any:
    """A DeepSpeed engine that optimises the trainable parameters only."""
    import deepspeed as ds

    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in trained if p.ndim >= 2],
            "weight_decay": config.optimizer.weight_decay,
        },
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    engine, _, _, _ = ds.initialize(model=model, model_parameters=groups, config=deepspeed)
    return engine


class Trainer:
    """Steps an engine through the run: data, schedules, loss, guard, metrics."""

    def __init__(
        self,
        config: TrainConfig,
        engine: Any,
        shards: ShardSet,
        collator: Collator,
        sizes: BatchSizes,
        info: runtime.RankInfo,
        device: torch.device,
        store: CheckpointStore,
        state: TrainingState | None,
        signals: runtime.SignalFlag,
    ) -> None:
        self.config, self.engine, self.info, self.device = config, engine, info, device
        self.sizes, self.shards, self.store = sizes, shards, store
        self.step = 0 if state is None else state.step
        self.guard = UpdateGuard(engine, patience=config.max_skipped_steps)
        self.signals = signals
        self.loader = Loader(
            shards,
            collator,
            config.seed,
            sizes.micro,
            sizes.accumulation,
            info.rank,
            info.world_size,
            start_step=self.step,
            workers=config.data.workers,
            quarantine=Quarantine(
                len(shards) + len(shards.faults),
                config.data.quarantine_budget,
                Path(config.output) / f"quarantine-{info.rank}.jsonl",
            ),
            stop_step=config.steps,
        )
        if state is not None:
            restore(engine, state.trained, f"checkpoint of step {state.step}")
            logger.info("going on at step %d of %d", state.step, config.steps)
        run = {} if state is None else state.run
        self.polarisation: float | None = run.get("polarisation")
        self.tracking_run_id: str | None = run.get("tracking_run_id")
        self.tracker = self._start_tracker()

    def _start_tracker(self) -> Tracker:
        if not (self.info.is_main and self.config.tracking):
            return Tracker.disabled()
        tracker = Tracker.start(
            self.config.experiment,
            f"train {Path(self.config.output).name}",
            flatten(to_dict(self.config)),
            {"kind": "train", "data_digest": self.shards.digest},
            run_id=self.tracking_run_id,
        )
        self.tracking_run_id = tracker.run_id
        return tracker

    def save(self) -> None:
        """A checkpoint after the steps made so far (a collective)."""
        run = {
            "tracking_run_id": self.tracking_run_id,
            "polarisation": self.polarisation,
            "skipped_steps": self.guard.skipped,
        }
        statistics = self.engine.module.statistics.tensors()
        self.store.save(
            TrainingState(
                self.step,
                capture(self.engine),
                to_dict(self.config),
                statistics,
                {
                    "digest": self.shards.digest,
                    "model_digest": self.engine.module.vlm.digest,
                    "next_step": self.step,
                },
                run,
            )
        )

    def export(self, folder: Path) -> None:
        """Write the selector for users: `selector.safetensors` and `config.json`."""
        model, config = self.engine.module, self.config
        metadata = {
            "model": config.model,
            "model_name": model.vlm.name,
            "model_digest": model.vlm.digest,
            "data_digest": self.shards.digest,
            "steps": config.steps,
            "seed": config.seed,
            "token_budget": config.gate.token_budget,
            "min_token_budget": config.gate.min_token_budget,
            "polarisation": self.polarisation,
            "tracking_run_id": self.tracking_run_id,
        }
        Selector(model.scorer, metadata).save_pretrained(folder)
        logger.info("selector written to %s", folder)

    def run(self) -> bool:
        """All remaining steps; False when a signal ended it early, after a checkpoint.

        Raises:
            NumbersError: too many updates in a row were not finite.
            RankLostError: another rank is dead, failed or stalled.
        """
        try:
            with Heartbeat(self.info, on_lost=self._on_lost) as heartbeat:
                finished = self._run(heartbeat)
        except BaseException:
            self.tracker.finish("FAILED")
            raise
        self.tracker.finish("FINISHED" if finished else "KILLED")
        return finished

    def _on_lost(self, verdict: str) -> None:
        self.tracker.finish("FAILED")

    def _run(self, heartbeat: Heartbeat) -> bool:
        self.engine.train()
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            desc="training",
            unit="step",
            disable=None if self.info.is_main else True,
        )
        for micro_batches in self.loader:
            heartbeat.progress(f"update {self.step}")
            metrics = self.update([batch.to(self.device) for batch in micro_batches])
            self.step += 1
            self.polarisation = metrics["train/polarisation"]
            bar.update()
            bar.set_postfix_str(summary(metrics))
            self._log(metrics)
            stopping = self.signals.raised_anywhere(self.device)
            last = self.step == self.config.steps
            if stopping or last or self.step % self.config.save_every == 0:
                heartbeat.progress(f"checkpoint of step {self.step}")
                self.save()
            if stopping and not last:
                logger.warning("stopped by a signal after step %d, checkpoint saved", self.step)
                return False
        bar.close()
        return True

    def setting(self) -> GateSetting:
        """What the gates of the coming step are made with."""
        gate, steps = self.config.gate, self.config.steps
        return GateSetting(
            schedules.token_budget(gate, self.config.seed, self.step),
            schedules.temperature(gate, self.step, steps),
            self.config.seed,
            self.step,
        )

    def update(self, micro_batches: list[TrainBatch]) -> dict[str, float]:
        """One optimiser step over the global batch; returns its metrics.

        The loss is the sum over answer tokens divided by those of the whole global batch. DeepSpeed
        averages over ranks and accumulation steps, which the factor undoes.
        """
        started = time.perf_counter()
        setting = self.setting()
        rate = schedules.learning_rate(self.config.optimizer, self.step, self.config.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        answers = self._sum_over_ranks([sum(b.num_answer_tokens for b in micro_batches)])[0]
        factor = self.info.world_size * self.sizes.accumulation / max(answers, 1.0)
        outputs: list[StepOutput] = []
        for number, batch in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(number == len(micro_batches) - 1)
            output = self.engine(batch, setting)
            loss = output.loss_sum * factor
            self.guard.observe(loss)
            self.engine.backward(loss)
            outputs.append(output)
        self.guard.update_allowed(self.step)
        self.engine.step()
        return self._metrics(outputs, answers, setting, rate, time.perf_counter() - started)

    def _metrics(
        self,
        outputs: list[StepOutput],
        answers: float,
        setting: GateSetting,
        rate: float,
        seconds: float,
    ) -> dict[str, float]:
        loss, gates, top, images = self._sum_over_ranks(
            [
                sum(float(o.loss_sum.detach()) for o in outputs),
                sum(float(o.gate_sum) for o in outputs),
                sum(float(o.top_gate_sum) for o in outputs),
                sum(o.images for o in outputs),
            ]
        )
        wanted = max(images, 1.0) * setting.token_budget
        return {
            "train/loss": loss / max(answers, 1.0),
            "train/polarisation": top / wanted,
            "train/budget_error_tokens": abs(gates / max(images, 1.0) - setting.token_budget),
            "train/token_budget": setting.token_budget,
            "train/temperature": setting.temperature,
            "train/learning_rate": rate,
            "train/gradient_norm": self.guard.gradient_norm(),
            "train/skipped_steps": self.guard.skipped,
            "train/answer_tokens": answers,
            "train/tokens_per_s": answers / seconds,
            "train/step_ms": seconds * 1000,
            "train/epoch": self.loader.epoch,
        }

    def _sum_over_ranks(self, values: list[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def _log(self, metrics: dict[str, float]) -> None:
        if self.step % self.config.log_every == 0 or self.step == self.config.steps:
            self.tracker.log_metrics(metrics, self.step)
            if not sys.stderr.isatty():
                logger.info("step %d of %d: %s", self.step, self.config.steps, summary(metrics))


def summary(metrics: dict[str, float]) -> str:
    """The numbers worth watching, in one line."""
    return (
        f"loss {metrics['train/loss']:.3f}, polarisation {metrics['train/polarisation']:.3f}, "
        f"budget error {metrics['train/budget_error_tokens']:.1e} tokens, "
        f"{metrics['train/tokens_per_s']:.0f} answer tokens/s"
    )
