"""Run an ablation: check it before hours of training, train, evaluate, and write its tables."""

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any, NoReturn

from autoselect.ablation.cells import (
    Cell,
    check_trainings,
    evaluate_baselines,
    evaluation_settings,
)
from autoselect.ablation.collect import collect
from autoselect.ablation.evidence import write_page
from autoselect.ablation.sweep import run_cells
from autoselect.ablation.tables import markdown
from autoselect.ablation.tracked import AblationRecord
from autoselect.ablation.variants import CHANGEABLE, AblationPlan, Variant, load_plan
from autoselect.config import ConfigError
from autoselect.config.programs import eval_command
from autoselect.config.row_names import OWN
from autoselect.evaluation.commands import add_eval_arguments
from autoselect.evaluation.loading import parse_diversities
from autoselect.evaluation.methods.registry import choose_methods
from autoselect.evaluation.samples import EvaluationSet
from autoselect.evaluation.settings import EvalSettings
from autoselect.files.atomic import write_text
from autoselect.pruning.budget import parse_budgets
from autoselect.reference.resources import resolve_model, resolve_shards
from autoselect.training.budgets import check_budgets
from autoselect.vlm.loading import fixed_tokens

logger = logging.getLogger(__name__)


def ablate(arguments: argparse.Namespace) -> int:
    """Train and evaluate what the flags of `autoselect ablate` name; return the exit code."""
    plan = load_plan(arguments.config, _changes(arguments))
    only = _names(plan, arguments.only)
    check_eval_settings(plan)
    out = arguments.out
    if arguments.jobs < 1:
        raise ConfigError(f"jobs={arguments.jobs} is below 1; choose 1 or more")
    if arguments.collect:
        write(out, collect(plan, out))
        return 0
    check_trainings(plan, out)
    cells = list(plan.cells(only))
    if not all(Cell.of(out, *work).is_finished for work in cells):
        check_subject(plan)
    logger.info("%d cells in %s", len(cells), out)
    record = AblationRecord(plan, out)
    try:
        for cell in run_cells(plan, out, cells, arguments.jobs):
            evaluate_baselines(plan, out, cell)
            record.cell(cell)
        found = collect(plan, out)
        write(out, found)
        record.finish(found)
    except BaseException as error:
        record.abandon(error)
        raise
    return 0


def write_evidence(arguments: argparse.Namespace) -> int:
    """Write an ablation's tables into the page that the flags name; return the exit code."""
    if not arguments.ablation.is_file():
        raise ConfigError(
            f"ablation={arguments.ablation} does not exist; run `autoselect ablate` first"
        )
    try:
        found = json.loads(arguments.ablation.read_text())
    except ValueError as error:
        raise ConfigError(f"ablation={arguments.ablation} is not valid JSON: {error}") from error
    if not isinstance(found, dict) or "variants" not in found:
        raise ConfigError(
            f"ablation={arguments.ablation} does not hold an ablation; give the ablation.json "
            "that `autoselect ablate` wrote"
        )
    blocks = write_page(arguments.page, found)
    print(f"{blocks} tables written into {arguments.page}")
    return 0


def write(out: Path, found: dict[str, Any]) -> None:
    """Write `ablation.json` and `ablation.md` into `out`, and print the second."""
    text = markdown(found)
    write_text(out / "ablation.json", json.dumps(found, indent=1))
    write_text(out / "ablation.md", text)
    print(f"\n{text}\ntables: {out / 'ablation.md'}")


def check_eval_settings(plan: AblationPlan) -> None:
    """Refuse what `autoselect eval` would refuse, before hours of training.

    Budgets above the number of the model's visual tokens are found by `check_subject`.

    Raises:
        ConfigError: a budget or a baseline is wrong, or a setting of a variant, by name or value.
    """
    parse_budgets(plan.budgets, sys.maxsize)
    try:
        choose_methods(plan.baselines)
    except ConfigError as error:
        raise ConfigError(f"baselines={plan.baselines}: {error}") from error
    known = [field.name for field in dataclasses.fields(EvalSettings)]
    own = ("model", "selector", "shards", "budgets", "methods", "max_images", "out", "tracking")
    free = [name for name in known if name not in own]
    for variant in plan.variants:
        for name in variant.eval:
            if name not in free:
                raise ConfigError(
                    f"variants.{variant.name}: eval.{name} is not a setting that a variant may "
                    f"change; choose from {', '.join(free)}"
                )
        _check_values(plan, variant)


def check_subject(plan: AblationPlan) -> None:
    """Refuse a model or test data that the ablation cannot take, before hours of training.

    Raises:
        ConfigError: images of the model have different numbers of visual tokens, a budget exceeds
            their number, or the test data are unusable or have samples of several images.
    """
    tokens = fixed_tokens(resolve_model(plan.model))
    if tokens is None:
        raise ConfigError(
            f"model={plan.model} has a varying number of visual tokens per image, which the leak "
            "measure cannot take; choose a model whose images all have the same number"
        )
    parse_budgets(plan.budgets, tokens)
    if plan.leak_budget > tokens:
        raise ConfigError(
            f"leak_budget={plan.leak_budget} exceeds the {tokens} visual tokens of this model; "
            f"choose 1..{tokens}"
        )
    for variant in plan.variants:
        try:
            check_budgets(plan.train_config(variant, plan.seeds[0]), tokens)
        except ConfigError as error:
            raise ConfigError(f"variants.{variant.name}: {error}") from error
    shards = resolve_shards(plan.test_shards, "test")
    if not EvaluationSet.open(shards, plan.images).one_image_each:
        raise ConfigError(
            f"test_shards={plan.test_shards} hold samples of several images, which the leak "
            "measure cannot take; choose other shards"
        )


class _Flags(argparse.ArgumentParser):
    """The flags of `autoselect eval`; a wrong one raises ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _check_values(plan: AblationPlan, variant: Variant) -> None:
    """Read the settings of a variant's evaluation as `autoselect eval` does."""
    flags = _Flags(add_help=False)
    add_eval_arguments(flags)
    named = evaluation_settings(plan, Path("eval"), Path("selector"), variant, "none")
    command = eval_command(named)
    try:
        settings = EvalSettings(**vars(flags.parse_args(command[2:])))
        parse_diversities(settings.diversity or OWN)
    except ConfigError as error:
        raise ConfigError(f"variants.{variant.name}: eval: {error}") from error


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the flags change at the top level of the YAML."""
    changes = {n: getattr(arguments, n) for n in CHANGEABLE if getattr(arguments, n) is not None}
    if arguments.seeds is not None:
        try:
            changes["seeds"] = [int(seed) for seed in arguments.seeds.split(",")]
        except ValueError:
            raise ConfigError(
                f"seeds={arguments.seeds!r} must be whole numbers, for example 0,1,2"
            ) from None
    if arguments.no_tracking:
        changes["tracking"] = False
    return changes


def _names(plan: AblationPlan, text: str | None) -> list[str] | None:
    if text is None:
        return None
    known = [variant.name for variant in plan.variants]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"only={name!r} is not a variant; choose from {', '.join(known)}")
    return names
