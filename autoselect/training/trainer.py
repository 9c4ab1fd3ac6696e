"""The training loop: updates over global batches, with their check, metrics and checkpoints."""

import logging
import sys
import time
from dataclasses import astuple, replace
from pathlib import Path

from tqdm import tqdm

from autoselect.config.files import to_dict
from autoselect.config.remaining import Remaining
from autoselect.data.loader import BatchPlan, Loader
from autoselect.method import schedules
from autoselect.method.gating import GateSetting
from autoselect.method.model import StepOutput
from autoselect.ranks import rank_zero
from autoselect.training.engine_state import capture, restore
from autoselect.training.export import export
from autoselect.training.parts import Run, start_quarantine, start_tracker
from autoselect.training.remarks import report_smaller_images, summary, warn_of_soft_gates
from autoselect.training.state import Progress, TrainingState
from autoselect.training.sums import sum_over_ranks, total
from autoselect.training.update_guard import UpdateGuard
from autoselect.training.validation import (
    BEST_FOLDER,
    Validation,
    check_best,
    is_over,
    judged,
    take_best,
    validation_of,
)
from autoselect.training.work import ModelSize, StepWork
from autoselect.vlm.batches.batch import TrainBatch
from autoselect.vlm.sharded import gathered

logger = logging.getLogger(__name__)
SELECTOR_FOLDER = "selector"
LONGEST_FLUSH_S = 30.0


class Trainer:
    """Makes the steps of a run from the checkpoint `state` on, or from step 0 if it is None."""

    def __init__(self, run: Run, state: TrainingState | None) -> None:
        self.parts = run
        self.config, self.engine = run.config, run.engine
        self.info, self.device, self.heartbeat = run.info, run.device, run.heartbeat
        self.sizes = run.deepspeed.split(run.info.world_size)
        self.step = 0 if state is None else state.step
        self.size = ModelSize.of(run.engine.module.vlm)
        self.guard = UpdateGuard(run.engine, patience=run.config.max_skipped_steps)
        self.quarantine = start_quarantine(run, anew=self.step == 0)
        self.loader = Loader(
            run.shards,
            run.collator,
            run.config.seed,
            BatchPlan(
                self.sizes.micro,
                self.sizes.accumulation,
                run.info.rank,
                run.info.world_size,
                self.step,
                run.config.steps,
                run.config.data.group_by_length,
            ),
            run.config.data.workers,
            self.quarantine.quarantine,
        )
        self.remaining = Remaining(self.config.steps)
        progress = Progress() if state is None else state.progress
        if state is not None:
            restore(run.engine, state.trained, f"checkpoint of step {self.step}")
            logger.info("resuming at step %d of %d", self.step, run.config.steps)
        self.guard.skipped = progress.skipped_steps
        self.guard.skipped_in_row = progress.skipped_in_row
        self.validation = validation_of(run, self.sizes.micro, self.loader.batch_size)
        if self.validation is not None:
            progress = self.validation.resumed(progress)
        # What earlier runs could not deliver may take long.
        with run.heartbeat.independently("starting the tracked run"):
            self.tracker = start_tracker(run, progress.tracking_run_id)
        run_id = self.tracker.run_id or progress.tracking_run_id
        self.progress = replace(progress, tracking_run_id=run_id)

    def save(self) -> None:
        """Flush the metrics of the steps made so far, then write a checkpoint (a collective).

        A slow tracking server gets the rest later: the other ranks wait in the collective.
        """
        self.tracker.flush(LONGEST_FLUSH_S)
        self.parts.store.save(
            TrainingState(
                self.step,
                capture(self.engine),
                to_dict(self.config),
                self.engine.module.statistics.tensors(),
                self.parts.origin,
                self.now(),
            )
        )

    def now(self) -> Progress:
        """Return what a resumed run continues besides the trained part."""
        skipped, in_row = self.guard.skipped, self.guard.skipped_in_row
        return replace(self.progress, skipped_steps=skipped, skipped_in_row=in_row)

    def run(self) -> bool:
        """Make all remaining steps, write the selector into `OUTPUT/selector`, end the tracked run.

        Returns:
            False if a signal ended the run early, after a checkpoint and without a selector.

        Raises:
            NumbersError: too many updates in a row were not finite.
            QuarantineBudgetError: too many samples are unusable, over all ranks.
        """
        self.heartbeat.on_lost = self._on_lost
        try:
            finished = self._run()
            if finished:
                if self.info.is_main:
                    warn_of_soft_gates(self.progress.polarisation or 0.0)
                    report_smaller_images(self.progress.smaller_images, self.progress.images)
                self._export_last_or_best()
        except BaseException:
            self.tracker.finish("FAILED")
            raise
        # A tracking server that hangs may take longer than the timeout of a collective.
        with self.heartbeat.independently("ending the tracked run"):
            self.tracker.finish("FINISHED" if finished else "KILLED")
        return finished

    def _export_last_or_best(self) -> None:
        """Write `OUTPUT/selector` (a collective)."""
        folder = self.parts.output / SELECTOR_FOLDER
        if not self.config.validation.patience:
            self._export_gathered(folder)
        elif self.info.is_main:
            take_best(self.parts.output, folder, self.progress)

    def _export_gathered(self, folder: Path) -> None:
        self.heartbeat.progress("exporting the selector")
        with gathered(self.engine.module.scorer.parameters()):
            if self.info.is_main:
                export(self.parts, self.step, self.loader.batch_size, self.now(), folder)

    def validate(self, validation: Validation) -> bool:
        """Measure the held-out loss; return True to end training."""
        self.heartbeat.progress(f"validation of step {self.step}")
        loss = validation.loss()
        self.progress = judged(self.progress, self.step, loss)
        self.tracker.log_metrics({"validation/loss": loss}, self.step)
        logger.info("step %d: held-out loss %.4f", self.step, loss)
        return is_over(self.config.validation, self.progress)

    @property
    def at_best(self) -> bool:
        """Return True if a selector of this step is what training would end with."""
        return bool(self.config.validation.patience) and self.progress.best_step == self.step

    def _export_best(self) -> None:
        """Write `OUTPUT/best`, after the checkpoint that says so (a collective).

        A run that is killed between the two writes it when it resumes.
        """
        self._export_gathered(self.parts.output / BEST_FOLDER)

    def _on_lost(self, verdict: str) -> None:
        self.tracker.finish("FAILED")

    def _run(self) -> bool:
        if self.at_best:
            self._export_best()
        elif self.config.validation.patience:
            rank_zero.on_main(lambda: check_best(self.parts.output, self.progress))
        if is_over(self.config.validation, self.progress):
            return True
        self.engine.train()
        self.parts.signals.steps_begin()
        self.remaining = Remaining(self.config.steps - self.step)
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            desc="training",
            unit="step",
            disable=None if self.info.is_main else True,
        )
        asked = time.perf_counter()
        for micro_batches in self.loader:
            waited = time.perf_counter() - asked
            self.heartbeat.progress(f"update {self.step}")
            metrics = self.update(micro_batches, waited)
            self.step += 1
            self.remaining.done += 1
            bar.update()
            bar.set_postfix_str(summary(metrics))
            self.log(metrics)
            last = self.step == self.config.steps
            if self.validation is not None and self.validation.due(self.step):
                last = self.validate(self.validation) or last
            stopping = self.parts.signals.raised_anywhere(self.device)
            if stopping or last or self.at_best or self.step % self.config.save_every == 0:
                self.heartbeat.progress(f"checkpoint of step {self.step}")
                self.save()
            if self.at_best:
                self._export_best()
            if stopping and not last:
                logger.warning("stopped by a signal after step %d, checkpoint saved", self.step)
                return False
            if last:
                break
            asked = time.perf_counter()
        bar.close()
        return True

    def setting(self) -> GateSetting:
        gate, steps = self.config.gate, self.config.steps
        return GateSetting(
            schedules.token_budget(gate, self.config.seed, self.step),
            schedules.temperature(gate, self.step, steps),
            self.config.seed,
            self.step,
        )

    def update(self, micro_batches: list[TrainBatch], waited: float = 0.0) -> dict[str, float]:
        """Make one optimiser step over the global batch and return its metrics.

        Micro-batches are moved to the device one at a time. `waited` is how long the step waited
        for them, in seconds. The loss is the sum over answer tokens, divided by their number in the
        whole global batch.
        DeepSpeed averages over ranks and accumulation steps; `factor` undoes that.
        """
        started = time.perf_counter()
        setting = self.setting()
        rate = schedules.learning_rate(self.config.optimizer, self.step, self.config.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        work = StepWork.of(micro_batches)
        unusable, *sums = sum_over_ranks([self.quarantine.new, *astuple(work)], self.device)
        work = StepWork(*sums)
        answers = work.answers
        self.quarantine.check(unusable)
        if not answers:
            self.note_empty_step()
        factor = self.info.world_size * self.sizes.accumulation / max(answers, 1.0)
        outputs: list[StepOutput] = []
        for number, batch in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(number == len(micro_batches) - 1)
            output = self.engine(batch.to(self.device), setting)
            loss = output.loss_sum * factor
            self.guard.observe(loss)
            self.engine.backward(loss)
            outputs.append(output)
        self.guard.update_allowed(self.step, trains=answers > 0)
        self.engine.step()
        metrics = self._metrics(outputs, work, setting, rate)
        seconds = time.perf_counter() - started
        return metrics | work.rates(self.size, seconds, waited, self.info.world_size)

    def note_empty_step(self) -> None:
        """Count a step without answer tokens, and warn of the first one."""
        empty_steps = self.progress.empty_steps + 1
        self.progress = replace(self.progress, empty_steps=empty_steps)
        if empty_steps == 1 and self.info.is_main:
            logger.warning(
                "step %d trains nothing: no sample of its batch has both a picture and an answer; "
                "train/empty_steps counts such steps",
                self.step + 1,
            )

    def _metrics(
        self,
        outputs: list[StepOutput],
        work: StepWork,
        setting: GateSetting,
        rate: float,
    ) -> dict[str, float]:
        """Return the metrics of the last update, and count its images as trained on.

        Those of answers and gates are left out if it had no images.
        """
        loss, gates, top, best, images, smaller = sum_over_ranks(
            [
                total([o.loss_sum.detach() for o in outputs]),
                total([o.gate_sum for o in outputs]),
                total([o.top_gate_sum for o in outputs]),
                sum(o.wanted_sum for o in outputs),
                sum(o.images for o in outputs),
                sum(o.smaller_images for o in outputs),
            ],
            self.device,
        )
        measured = {}
        if images:
            measured = {
                "train/loss": loss / max(work.answers, 1.0),
                "train/polarisation": top / best,
                "train/budget_error_tokens": abs(gates - best) / images,
            }
        before = self.progress
        self.progress = replace(
            before,
            polarisation=measured.get("train/polarisation", before.polarisation),
            images=before.images + int(images),
            smaller_images=before.smaller_images + int(smaller),
        )
        return measured | {
            "train/token_budget": setting.token_budget,
            "train/temperature": setting.temperature,
            "train/learning_rate": rate,
            "train/gradient_norm": self.guard.gradient_norm(),
            "train/skipped_steps": self.guard.skipped,
            "train/answer_tokens": work.answers,
            "train/images": images,
            "train/smaller_images": self.progress.smaller_images,
            "train/empty_steps": self.progress.empty_steps,
            "train/quarantined_samples": self.quarantine.quarantine.count,
            "train/epoch": self.loader.epoch,
        }

    def log(self, metrics: dict[str, float]) -> None:
        """Send the metrics of the last step to tracker and console, every `log_every` steps."""
        if self.step % self.config.log_every == 0 or self.step == self.config.steps:
            self.tracker.log_metrics(metrics, self.step)
            if not sys.stderr.isatty():
                place = f"step {self.step} of {self.config.steps}"
                logger.info("%s: %s, %s", place, summary(metrics), self.remaining)
