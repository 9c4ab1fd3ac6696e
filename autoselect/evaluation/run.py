"""One evaluation from settings to report: load, check, answer, time, write."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoselect.config.destinations import check_folder
from autoselect.config.row_names import OWN, SELECTOR, diversity_row
from autoselect.evaluation.answers.answering import FULL, Column, Plan
from autoselect.evaluation.answers.parts import PartStore, answer_all
from autoselect.evaluation.answers.served import check_served, served
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.asking.choices import ANSWERS, MODEL
from autoselect.evaluation.asking.replies import Replies, answered_by
from autoselect.evaluation.earlier import SETTINGS, check_earlier
from autoselect.evaluation.identity import code_version, model_files_digest
from autoselect.evaluation.latency.environment import git_commit
from autoselect.evaluation.latency.protocol import LatencyPlan, Rounds, latency_report
from autoselect.evaluation.loading import (
    load_selectors,
    other_weights,
    selector_digest,
    shown_name,
)
from autoselect.evaluation.methods.registry import choose_methods, selector_method
from autoselect.evaluation.methods.usable import usable_methods
from autoselect.evaluation.report.build import build_report
from autoselect.evaluation.report.check import check_report
from autoselect.evaluation.report.examples import audited
from autoselect.evaluation.report.files import (
    FAILED,
    Evaluation,
    check_own,
    remove_pictures,
    write_figures,
    write_predictions,
    write_report,
)
from autoselect.evaluation.report.questions import question_tables
from autoselect.evaluation.report.tracked_evaluation import TrackedEvaluation
from autoselect.evaluation.report.warnings import seen_in_training
from autoselect.evaluation.rows import alone, with_converted_rows
from autoselect.evaluation.samples import EvaluationSet
from autoselect.evaluation.scores.scoring import Answered
from autoselect.evaluation.settings import VLLM, EvalSettings
from autoselect.pruning.budget import parse_budgets
from autoselect.pruning.diversity import stored_diversity
from autoselect.pruning.folder import weights_digest
from autoselect.pruning.selector import Selector
from autoselect.serving.plugin import installed_version
from autoselect.tracking import Data
from autoselect.vlm import FrozenVLM

logger = logging.getLogger(__name__)


def evaluate(
    settings: EvalSettings,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] | None = None,
    on_main: Callable[[Callable[[], None]], None] = alone,
) -> Evaluation | None:
    """Run an evaluation and write `report.json`, `report.md` and the predictions into `out`.

    Args:
        settings: what to evaluate.
        rank: rank of this process; only rank 0 times, writes and returns something.
        world_size: number of processes.
        barrier: waits for all ranks.
        on_main: runs an action on rank 0, and raises its ConfigError on every rank.

    Raises:
        ConfigError: a setting does not fit, or `out` holds a report of other settings or files
            that no evaluation wrote; raised before anything is computed. Or another process has
            written such a report meanwhile, which then stays.
    """
    given, out = settings, Path(settings.out)
    check_earlier(out / "report.json", given, rank)
    on_main(lambda: check_own(out))
    settings = with_converted_rows(settings, on_main)
    ready = prepare(settings, world_size)
    plan = ready.plan
    record = ready.record(settings) if rank == 0 else TrackedEvaluation.disabled(settings)
    with record, ready.asked(settings) as asked_vlm:
        replies = answer_all(asked_vlm, ready.samples, plan, ready.store, rank, world_size, barrier)
        if rank != 0:
            return None
        asked: Sequence[Answered] = ready.samples.answered()  # read once, scored once per column
        if plan.reference == MODEL:
            asked = answered_by(asked, replies[str(Column(FULL, 0))])
        report = measure(settings, ready, asked, replies) | {SETTINGS: dataclasses.asdict(given)}
        for text in report["warnings"]:
            logger.warning("%s", text)
        check_report(report)
        result = Evaluation(report, replies, ready.samples, asked, plan, ready.vlm, ready.selectors)
        check_earlier(out / "report.json", given)
        write_predictions(out / "predictions.jsonl", asked, replies, plan)
        figures = write_figures(out / "figures", result)
        remove_pictures(out / "failed", [FAILED])  # new ones are drawn for MLflow only
        write_report(out, report, figures)
        if settings.tracking:
            record.log(report, figures, ready.selectors, question_tables(result, out / "failed"))
    return result


@dataclass(frozen=True)
class Prepared:
    """Everything that is loaded and checked before the first answer.

    Attributes:
        vlm: the model.
        selectors: selectors by the name of their row.
        samples: images and questions.
        plan: methods, budgets and sizes.
        left_out: why methods are left out, by name.
        digests: digests of model, selectors and data.
        store: store of the answered parts.
    """

    vlm: FrozenVLM
    selectors: dict[str, Selector]
    samples: EvaluationSet
    plan: Plan
    left_out: dict[str, str]
    digests: dict[str, Any]
    store: PartStore

    def asked(self, settings: EvalSettings) -> AbstractContextManager[AskedVLM]:
        """Return a context with the model that answers; an engine stops behind it."""
        if settings.engine == VLLM:
            return served(self.vlm, settings.model, self.selectors[SELECTOR])
        return nullcontext(AskedVLM(self.vlm))

    def record(self, settings: EvalSettings) -> TrackedEvaluation:
        named = {name: value for name, value in self.digests.items() if name != "selectors"}
        tags = {f"{name}_digest": value for name, value in named.items()}
        tags |= {
            "model": shown_name(settings.model, self.vlm),
            "data": f"{len(self.samples)} images ({self.samples.digest[:8]})",
            "git_commit": git_commit(),
        }
        identity = {**dataclasses.asdict(settings), "fingerprint": self.store.fingerprint}
        training = self.selectors[SELECTOR].metadata.get("tracking_run_id")
        facts = f"{len(self.samples)} images"
        data = Data("evaluation shards", self.samples.digest, settings.shards, facts)
        return TrackedEvaluation(settings, identity, tags, data, training)


def prepare(settings: EvalSettings, world_size: int = 1) -> Prepared:
    """Load and check everything an evaluation needs; raise ConfigError for a wrong setting."""
    check_folder("out", settings.out)
    needs_answers = settings.reference == ANSWERS
    samples = EvaluationSet.open(settings.shards, settings.max_images, needs_answers)
    vlm, selectors = load_selectors(
        settings.model, settings.selector, settings.device, settings.diversity
    )
    methods = (
        *(selector_method(own, name) for name, own in selectors.items()),
        *choose_methods(settings.methods, settings.random_seeds),
    )
    asked = AskedVLM(vlm)
    if settings.engine == VLLM:
        check_served(selectors, asked, samples[0], world_size)
    strict = settings.methods.strip() != "all"
    methods, left_out = usable_methods(asked, samples, methods, strict)
    num_tokens = len(asked.encode([samples[0]]).images[0][0])
    plan = Plan(
        methods=methods,
        budgets=parse_budgets(settings.budgets, num_tokens),
        num_tokens=num_tokens,
        images_per_part=settings.images_per_part,
        rows_per_batch=settings.rows_per_batch,
        max_new_tokens=settings.max_new_tokens,
        scoring=settings.scoring,
        reference=settings.reference,
        others=len(set(samples.image_digests.values())) > 1,
    )
    of_selectors = {name: selector_digest(own) for name, own in selectors.items()}
    digests: dict[str, Any] = {
        "model": vlm.digest or "unknown",
        "selector": of_selectors[SELECTOR],
        "data": samples.digest,
    }
    if len(selectors) > 1:
        digests["selectors"] = of_selectors
    identity = {
        **digests,
        "model_files": model_files_digest(settings.model),
        **_plan_identity(plan),
        "dtype": str(vlm.dtype),
        "code": code_version(),
        **_engine_version(settings),
    }
    store = PartStore(Path(settings.out) / "parts", identity)
    return Prepared(vlm, selectors, samples, plan, left_out, digests, store)


def measure(
    settings: EvalSettings,
    ready: Prepared,
    asked: Sequence[Answered],
    replies: dict[str, Replies],
) -> dict[str, Any]:
    """Time the first sample's prompt, and build the report.

    `replies` maps column name -> image -> round -> reply.
    """
    vlm, plan, sample = ready.vlm, ready.plan, ready.samples[0]
    rounds = Rounds(settings.latency_repeats, compiled=settings.latency_compiled)
    timed = LatencyPlan(plan.budgets, settings.latency_batch, rounds)
    selectors = ready.selectors
    latency = latency_report(vlm, selectors, sample.images[0], sample.questions[0], timed)
    warnings = [other_weights(vlm, one) for one in selectors.values()]
    own = selectors.get(diversity_row(SELECTOR, OWN), selectors[SELECTOR])
    data = ready.samples.digest
    warnings += [seen_in_training(name, one.metadata, data) for name, one in selectors.items()]
    more = {
        "environment": latency["environment"] | _engine_version(settings),
        "digests": ready.digests,
        "training": selectors[SELECTOR].metadata,
        "selector_weights": weights_digest(selectors[SELECTOR].state_dict()),
        "selector_diversity": stored_diversity(own.diversity),
        "warnings": [text for text in warnings if text],
        "left_out": ready.left_out,
        "audit": audited(asked, replies, plan, settings.audit),
    }
    name = shown_name(settings.model, vlm)
    return build_report(asked, replies, plan, name, latency, more)


def _engine_version(settings: EvalSettings) -> dict[str, Any]:
    return {VLLM: installed_version()} if settings.engine == VLLM else {}


def _plan_identity(plan: Plan) -> dict[str, Any]:
    return {
        "columns": [str(column) for column in plan.columns()],
        "images_per_part": plan.images_per_part,
        "rows_per_batch": plan.rows_per_batch,
        "num_tokens": plan.num_tokens,
        "max_new_tokens": plan.max_new_tokens,
        "scoring": plan.scoring,
        "reference": plan.reference,
    }
