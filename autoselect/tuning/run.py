"""One search for the weights of diversity: load, check, answer, choose, write into the selector."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autoselect.config import ConfigError
from autoselect.config.destinations import check_folder
from autoselect.data.shards import ShardSet
from autoselect.evaluation.answers.answering import FULL, Column, Plan
from autoselect.evaluation.answers.parts import PartStore, answer_all, read_result
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.asking.choices import MODEL
from autoselect.evaluation.asking.replies import Replies
from autoselect.evaluation.earlier import SETTINGS, check_earlier
from autoselect.evaluation.figures.style import save
from autoselect.evaluation.identity import code_version, digest, model_files_digest
from autoselect.evaluation.loading import load_pair, selector_digest
from autoselect.evaluation.methods.registry import Method, selector_method
from autoselect.evaluation.scores.scoring import pictures_of
from autoselect.files.atomic import write_text
from autoselect.pruning.budget import parse_budgets
from autoselect.pruning.diversity import TunedWeight
from autoselect.pruning.selector import Selector
from autoselect.training.state import TrainingState
from autoselect.tuning.agreement import TunedBudget, best_diversity, curve_of, measure
from autoselect.tuning.figure import tuning_figure
from autoselect.tuning.gap import gap_rows, gap_warning, last_state, measure_gaps, rows_of_run
from autoselect.tuning.samples import TuningSamples, tuning_samples
from autoselect.tuning.settings import TuneSettings
from autoselect.vlm import FrozenVLM

logger = logging.getLogger(__name__)
REPORT, FIGURE, GAPS = "tune.json", "tune.png", "gaps.json"


@dataclass(frozen=True)
class Tuning:
    """A finished search.

    Attributes:
        vlm: the model.
        selector: the selector with the weights that were found.
        out: folder of the report.
        report: content of `tune.json`.
    """

    vlm: FrozenVLM
    selector: Selector
    out: Path
    report: dict[str, Any]


def tune(
    settings: TuneSettings,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] | None = None,
) -> Tuning | None:
    """Find the best weight at each budget and write it into the selector's `config.json`.

    Every weight selects on the scale `rank`, which the selector names from then on.

    Args:
        settings: what to search, and where.
        rank: rank of this process; only rank 0 writes and returns something.
        world_size: number of processes, which share the images.
        barrier: waits for all ranks, the last thing that the others do; called once.

    Raises:
        ConfigError: a setting does not fit, or `out` holds a report of other settings; raised
            before anything is computed.
    """
    folder = Path(settings.selector)
    if not folder.is_dir():
        raise ConfigError(
            f"selector={settings.selector} is not a folder here, and its config.json has to be "
            "rewritten; save the selector into one first (save_pretrained)"
        )
    out = folder.absolute().parent / "tune" if settings.out is None else Path(settings.out)
    check_folder("out", str(out))
    check_folder("selector", folder)
    if settings.out is not None:  # the folder beside the selector can only hold its own results
        check_earlier(out / REPORT, settings, rank)
    ready = _prepare(settings, out, rank)
    vlm, chosen, plan = ready.vlm, ready.chosen, ready.plan
    if rank == 0 and chosen.held_out < len(chosen.samples):
        logger.warning(
            "%d of the %d images of the search were used by the training, so their answers may "
            "agree more than those on new ones; search on other shards: autoselect tune --shards",
            len(chosen.samples) - chosen.held_out,
            len(chosen.samples),
        )
    asked = AskedVLM(vlm)
    replies = answer_all(asked, chosen.samples, plan, ready.store, rank, world_size, barrier)
    if rank != 0:
        return None
    columns = {
        (budget, weight): replies[str(Column(method.name, budget))]
        for budget in plan.budgets
        for weight, method in zip(settings.tried, plan.methods, strict=True)
    }
    full = replies[str(Column(FULL, 0))]
    found = measure(columns, full, plan.num_tokens, pictures_of(chosen.samples))
    earlier = _earlier(ready.selector, found)
    selector = _with_weights(ready.selector, found, earlier)
    report = _report(settings, ready, full, found)
    if ready.state is not None:
        with _cores_of_ranks(world_size):  # the others have ended
            report["gaps"] = _gaps(report["best"], ready.state, selector, ready)
    names = ("images", "questions", "held_out", "data_digest")
    best = sorted([*earlier, *report["best"]], key=lambda row: row["share"])
    selector.metadata["tuning"] = {name: report[name] for name in names} | {"best": best}
    if settings.out is not None:  # another process may have written one
        check_earlier(out / REPORT, settings)
    write_text(out / REPORT, json.dumps({**report, SETTINGS: asdict(settings)}, indent=1))
    save(tuning_figure(found), out / FIGURE)
    selector.save_config(folder)  # last, because it marks a finished search
    return Tuning(vlm, selector, out, report)


@dataclass(frozen=True)
class _Prepared:
    """Everything that is loaded and checked before the first answer.

    Attributes:
        vlm: the model.
        selector: the selector as it was.
        shards: the data.
        chosen: the images and questions of the search.
        plan: the selector with each weight, budgets and sizes.
        store: store of the answered parts.
        state: last checkpoint of the training, if the gaps are measured, which rank 0 does.
    """

    vlm: FrozenVLM
    selector: Selector
    shards: ShardSet
    chosen: TuningSamples
    plan: Plan
    store: PartStore
    state: TrainingState | None


def _prepare(settings: TuneSettings, out: Path, rank: int) -> _Prepared:
    shards = ShardSet.open(settings.shards)
    vlm, selector = load_pair(settings.model, settings.selector, settings.device)
    state, training = None, selector.metadata
    if settings.train_run is not None and not vlm.family.padding_mask_only:
        last = last_state(settings.train_run, selector)
        gate = last.train_config().gate
        if gate.fills:
            training = rows_of_run(selector, last)
            state = last if rank == 0 else None
        elif rank == 0:
            logger.info(
                "removal is not compared with noise filling: the training let no noise stand in "
                "for closed tokens (gate.kind=%s, gate.soft_removal=%s)",
                gate.kind,
                str(gate.soft_removal).lower(),
            )
    chosen = tuning_samples(shards, training, settings.images, settings.questions, vlm.refusal)
    if state is not None and not chosen.has_answers:
        logger.warning("removal is not compared with noise filling: the rows have no answers")
        state = None
    num_tokens = len(AskedVLM(vlm).encode(chosen.samples[:1]).images[0][0])
    plan = Plan(
        methods=tuple(_weighted(selector, weight) for weight in settings.tried),
        budgets=parse_budgets(settings.budgets, num_tokens),
        num_tokens=num_tokens,
        images_per_part=settings.images_per_part,
        rows_per_batch=settings.rows_per_batch,
        max_new_tokens=settings.max_new_tokens,
        reference=MODEL,
    )
    rows = [row.sample_id for row in chosen.rows]
    identity = _identity(settings, vlm, selector, plan) | {"data": shards.digest, "rows": rows}
    store = PartStore(out / "parts", identity)
    return _Prepared(vlm, selector, shards, chosen, plan, store, state)


def _earlier(selector: Selector, found: Sequence[TunedBudget]) -> list[dict[str, Any]]:
    """Return what an earlier search found at other shares, if the selector still goes by it."""
    rows = (selector.metadata.get("tuning") or {}).get("best", [])
    points = [TunedWeight(row["share"], row["weight"]) for row in rows]
    if (curve_of(points), selector.like().relevance) != (selector.diversity, selector.relevance):
        return []
    searched = {one.share for one in found}
    return [row for row in rows if row["share"] not in searched]


def _with_weights(
    selector: Selector, found: tuple[TunedBudget, ...], earlier: Sequence[Mapping[str, Any]]
) -> Selector:
    """Return the selector with the best weights, and those of an earlier search beside them."""
    others = [TunedWeight(row["share"], row["weight"]) for row in earlier]
    best = selector.like(best_diversity(found, others))
    if (best.diversity, best.relevance) != (selector.diversity, selector.relevance):
        best.metadata.pop("scores", None)  # those of another choice
    return best


@contextmanager
def _cores_of_ranks(count: int) -> Iterator[None]:
    """Compute with the threads of `count` ranks, as far as this process may use their cores."""
    own = torch.get_num_threads()
    usable = max(own, len(os.sched_getaffinity(0)))
    torch.set_num_threads(min(own * count, usable))
    try:
        yield
    finally:
        torch.set_num_threads(own)


def _gaps(
    best: list[dict[str, Any]], state: TrainingState, selector: Selector, ready: _Prepared
) -> list[dict[str, Any]]:
    """Measure the gaps, or return those of an earlier search with the same answers and outcome.

    A gap that is too large is logged.

    Args:
        best: the weights that were found, as in the report.
        state: last checkpoint of the training.
        selector: the selector with these weights.
        ready: model, samples and plan of the search; the gaps are kept beside its answers.
    """
    path = ready.store.folder / GAPS
    of = digest({"best": best, "step": state.step})
    known = read_result(path)
    if known is None or known.get("of") != of:
        gaps = measure_gaps(ready.vlm, selector, ready.chosen.rows, ready.plan.budgets, state)
        known = {"of": of, "rows": gap_rows(gaps), "warning": gap_warning(gaps)}
        write_text(path, json.dumps(known))
    if known["warning"]:
        logger.warning("%s", known["warning"])
    rows: list[dict[str, Any]] = known["rows"]
    return rows


def _weighted(selector: Selector, weight: float) -> Method:
    """Return the selector with another weight, on the scale `rank`, as a method."""
    other = selector.like(weight)
    return selector_method(other, f"diversity-{weight:g}")


def _identity(
    settings: TuneSettings, vlm: FrozenVLM, selector: Selector, plan: Plan
) -> dict[str, Any]:
    """Return what the answers depend on, the rows excepted.

    The weights that the selector has at present are not among it.
    """
    return {
        "model": vlm.digest or settings.model,
        "model_files": model_files_digest(settings.model),
        "selector": selector_digest(Selector(selector.scorer, site=selector.site)),
        "images": settings.images,
        "questions": settings.questions,
        "columns": [str(column) for column in plan.columns()],
        "plan": [plan.images_per_part, plan.rows_per_batch, plan.num_tokens, plan.max_new_tokens],
        "dtype": str(vlm.dtype),
        "code": code_version(),
    }


def _report(
    settings: TuneSettings, ready: _Prepared, full: Replies, found: tuple[TunedBudget, ...]
) -> dict[str, Any]:
    replies = [reply for own in full for reply in own]
    return {
        "images": len(ready.chosen.samples),
        "questions": len(replies),
        "held_out": ready.chosen.held_out,
        "data_digest": ready.shards.digest,
        "full_unended": sum(not reply.ended for reply in replies) / len(replies),
        "best": [{"budget": one.budget, "share": one.share, **asdict(one.best)} for one in found],
        "budgets": [one.budget for one in found],
        "weights": {
            f"{weight:g}": [asdict(one.measured[i]) for one in found]
            for i, weight in enumerate(settings.tried)
        },
    }


def tuning_table(report: dict[str, Any]) -> str:
    """Return agreement in per cent by weight and budget, the best weight in brackets."""
    table = [["tokens", *report["weights"]]]
    for number, best in enumerate(report["best"]):
        cells = [str(best["budget"])]
        for weight, measured in report["weights"].items():
            shown = f"{100 * measured[number]['agreement']:.1f}"
            cells.append(f"[{shown}]" if weight == f"{best['weight']:g}" else shown)
        table.append(cells)
    title = (
        "answers that agree with the full model's, in %, by weight of diversity; "
        f"{report['images']} images, {report['held_out']} of them not used by the training"
    )
    return "\n".join([title, *("  ".join(f"{cell:>7}" for cell in cells) for cells in table)])
