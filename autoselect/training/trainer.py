"""The training loop: one engine, stepped over global batches; guard, metrics and checkpoints."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from autoselect.config import TrainConfig
from autoselect.config.deepspeed import batch_sizes, step_settings
from autoselect.config.files import flatten, to_dict
from autoselect.data.faults import Fault
from autoselect.data.loader import Loader
from autoselect.data.quarantine import Quarantine
from autoselect.data.reread import still_unusable
from autoselect.data.shards import ShardSet
from autoselect.method import schedules
from autoselect.method.gating import GateSetting
from autoselect.method.model import StepOutput
from autoselect.pruning.selector import Selector
from autoselect.ranks import processes
from autoselect.ranks.heartbeat import Heartbeat
from autoselect.tracking import Tracker
from autoselect.training.checkpoint import CheckpointStore, TrainingState
from autoselect.training.engine_state import capture, restore
from autoselect.training.sharded_loading import gathered
from autoselect.training.shared_quarantine import SharedQuarantine
from autoselect.training.update_guard import UpdateGuard
from autoselect.vlm.text.batch import Collator, TrainBatch

logger = logging.getLogger(__name__)
SELECTOR_FOLDER = "selector"


class Trainer:
    """Steps an engine through the run: data, schedules, loss, guard, metrics."""

    def __init__(
        self,
        config: TrainConfig,
        engine: Any,
        shards: ShardSet,
        collator: Collator,
        deepspeed: dict[str, Any],
        info: processes.RankInfo,
        device: torch.device,
        store: CheckpointStore,
        state: TrainingState | None,
        signals: processes.SignalFlag,
        heartbeat: Heartbeat,
    ) -> None:
        self.config, self.engine, self.info, self.device = config, engine, info, device
        self.deepspeed, self.shards, self.store = deepspeed, shards, store
        self.sizes = batch_sizes(deepspeed, info.world_size)
        self.step = 0 if state is None else state.step
        self.guard = UpdateGuard(engine, patience=config.max_skipped_steps)
        self.signals, self.heartbeat = signals, heartbeat
        self.quarantine = self._start_quarantine(collator)
        self.loader = Loader(
            shards,
            collator,
            config.seed,
            self.sizes.micro,
            self.sizes.accumulation,
            info.rank,
            info.world_size,
            start_step=self.step,
            workers=config.data.workers,
            quarantine=self.quarantine.quarantine,
            stop_step=config.steps,
        )
        if state is not None:
            restore(engine, state.trained, f"checkpoint of step {state.step}")
            logger.info("going on at step %d of %d", state.step, config.steps)
        run = {} if state is None else state.run
        self.guard.skipped = run.get("skipped_steps", 0)
        self.polarisation: float | None = run.get("polarisation")
        self.tracker = self._start_tracker(run.get("tracking_run_id"))
        self.tracking_run_id = self.tracker.run_id or run.get("tracking_run_id")

    def _start_quarantine(self, collator: Collator) -> SharedQuarantine:
        """One list per rank; of an earlier start's, at any world size, what is unusable still."""
        folder = Path(self.config.output)
        own = folder / f"quarantine-{self.info.rank}.jsonl"
        total = len(self.shards) + len(self.shards.faults)
        others = [path for path in sorted(folder.glob("quarantine-*.jsonl")) if path != own]
        budget = self.config.data.quarantine_budget
        shared = SharedQuarantine(Quarantine(total, budget, own, others))

        def reread(faults: Sequence[Fault]) -> list[Fault]:
            with self.heartbeat.independently("reading unusable samples again"):
                return still_unusable(self.shards, collator, faults)

        shared.reread(reread, anew=self.step == 0)
        return shared

    def _start_tracker(self, run_id: str | None) -> Tracker:
        """The tracked run of the checkpoint, or of an equal start that died before it had one."""
        if not (self.info.is_main and self.config.tracking):
            return Tracker.disabled()
        note = Path(self.config.output) / "tracking.json"
        settings = {
            "config": to_dict(self.config),
            "step_settings": step_settings(self.deepspeed),
            "data_digest": self.shards.digest,
            "model_digest": self.engine.module.vlm.digest,
        }
        if run_id is None and note.exists():
            known = json.loads(note.read_text())
            run_id = known["run_id"] if known["settings"] == settings else None
        tracker = Tracker.start(
            self.config.experiment,
            f"train {run_name(Path(self.config.output))}",
            flatten(to_dict(self.config)),
            {
                "kind": "train",
                "model": self.engine.module.vlm.name,
                "model_digest": self.engine.module.vlm.digest,
                "data_digest": self.shards.digest,
            },
            run_id=run_id,
        )
        partial = note.with_suffix(".partial")
        partial.write_text(json.dumps({"run_id": tracker.run_id, "settings": settings}))
        partial.replace(note)
        return tracker

    def save(self) -> None:
        """A checkpoint after the steps made so far, logged before (a collective)."""
        self.tracker.flush()
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
                    "step_settings": step_settings(self.deepspeed),
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
        """All remaining steps, then the selector, into `OUTPUT/selector`, and the tracked run ends.

        Returns:
            False when a signal ended it early, after a checkpoint and without a selector.

        Raises:
            NumbersError: too many updates in a row were not finite.
            QuarantineBudgetError: too many samples are unusable, over all ranks.
        """
        self.heartbeat.on_lost = self._on_lost
        try:
            finished = self._run()
            if finished:
                self.heartbeat.progress("exporting the selector")
                with gathered(self.engine.module.scorer.parameters()):
                    if self.info.is_main:
                        self.export(Path(self.config.output) / SELECTOR_FOLDER)
        except BaseException:
            self.tracker.finish("FAILED")
            raise
        # A server that hangs takes longer than a collective of the others may.
        with self.heartbeat.independently("ending the tracked run"):
            self.tracker.finish("FINISHED" if finished else "KILLED")
        return finished

    def _on_lost(self, verdict: str) -> None:
        self.tracker.finish("FAILED")

    def _run(self) -> bool:
        self.engine.train()
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            desc="training",
            unit="step",
            disable=None if self.info.is_main else True,
        )
        for micro_batches in self.loader:
            self.heartbeat.progress(f"update {self.step}")
            metrics = self.update([batch.to(self.device) for batch in micro_batches])
            self.step += 1
            self.polarisation = metrics["train/polarisation"]
            bar.update()
            bar.set_postfix_str(summary(metrics))
            self.log(metrics)
            stopping = self.signals.raised_anywhere(self.device)
            last = self.step == self.config.steps
            if stopping or last or self.step % self.config.save_every == 0:
                self.heartbeat.progress(f"checkpoint of step {self.step}")
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
        answers, unusable = self._sum_over_ranks(
            [sum(b.num_answer_tokens for b in micro_batches), self.quarantine.new]
        )
        self.quarantine.check(unusable)
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
        loss, gates, top, best, images = self._sum_over_ranks(
            [
                sum(float(o.loss_sum.detach()) for o in outputs),
                sum(float(o.gate_sum) for o in outputs),
                sum(float(o.top_gate_sum) for o in outputs),
                sum(o.wanted_sum for o in outputs),
                sum(o.images for o in outputs),
            ]
        )
        return {
            "train/loss": loss / max(answers, 1.0),
            "train/polarisation": top / max(best, 1.0),
            "train/budget_error_tokens": abs(gates - best) / max(images, 1.0),
            "train/token_budget": setting.token_budget,
            "train/temperature": setting.temperature,
            "train/learning_rate": rate,
            "train/gradient_norm": self.guard.gradient_norm(),
            "train/skipped_steps": self.guard.skipped,
            "train/answer_tokens": answers,
            "train/quarantined_samples": self.quarantine.quarantine.count,
            "train/tokens_per_s": answers / seconds,
            "train/step_ms": seconds * 1000,
            "train/epoch": self.loader.epoch,
        }

    def _sum_over_ranks(self, values: list[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def log(self, metrics: dict[str, float]) -> None:
        """Hand the last step's metrics to tracker and console, every `log_every` steps."""
        if self.step % self.config.log_every == 0 or self.step == self.config.steps:
            self.tracker.log_metrics(metrics, self.step)
            if not sys.stderr.isatty():
                logger.info("step %d of %d: %s", self.step, self.config.steps, summary(metrics))


def run_name(output: Path) -> str:
    """How dashboards call a run: its folder, or the one above where that is just `train`."""
    return output.absolute().parent.name if output.name == "train" else output.name


def summary(metrics: dict[str, float]) -> str:
    """The numbers worth watching, in one line."""
    return (
        f"loss {metrics['train/loss']:.3f}, polarisation {metrics['train/polarisation']:.3f}, "
        f"budget error {metrics['train/budget_error_tokens']:.1e} tokens, "
        f"{metrics['train/tokens_per_s']:.0f} answer tokens/s"
    )
