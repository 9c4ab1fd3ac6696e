"""The commands `autoselect reference shards`, `train` and `measure`."""

import argparse
from pathlib import Path
from typing import Any

from autoselect.config import require
from autoselect.config.flags import add_setting_flags, check_counts, flag_help, read_settings
from autoselect.config.setting import described
from autoselect.reference.recipe import ReferenceData, ReferenceTraining
from autoselect.reference.siglip_qwen2.recipe import MixedTraining

RECIPES = {"clip-llama": ReferenceTraining, "siglip-qwen2": MixedTraining}
FIRST, SECOND = RECIPES
RUNS = Path("runs/reference")


def _add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag per setting of any recipe; it is None if it is not given."""
    types: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    for recipe, cls in RECIPES.items():
        for name, hint, field in described(cls):
            types[name] = hint
            text = flag_help(cls, name, field.default)
            texts.setdefault(name, []).append(f"{recipe}: {text}")
    for name, own in texts.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=types[name], help="; ".join(own))


def add_reference_commands(subparsers: Any) -> None:
    root = subparsers.add_parser("reference", help="make the small reference VLMs and their data")
    kinds = root.add_subparsers(dest="kind", required=True, metavar="COMMAND")
    shards = kinds.add_parser("shards", help="render the reference data as WebDataset shards")
    where = f"folder for the shards of all splits (default {RUNS}/shards; others: {RUNS}/DOMAIN)"
    shards.add_argument("--out", type=Path, help=where)
    domain = "what a sample holds: a scene or a page with questions, or a scene with its caption"
    choices = ("scenes", "pages", "captions")
    shards.add_argument("--domain", choices=choices, default="scenes", help=domain)
    add_setting_flags(shards, ReferenceData)
    shards.set_defaults(run=run_shards)
    train = kinds.add_parser("train", help="train a reference VLM (hours on a CPU; resumable)")
    which = f"recipe of the reference VLM (default {FIRST})"
    train.add_argument("--recipe", choices=RECIPES, default=FIRST, help=which)
    where = f"folder for the finished VLM (default {RUNS}/model; {SECOND}: {RUNS}/{SECOND}/model)"
    train.add_argument("--out", type=Path, help=where)
    where = f"folder for resumable states (default {RUNS}/work; {SECOND}: {RUNS}/{SECOND}/work)"
    train.add_argument("--work", type=Path, help=where)
    _add_recipe_flags(train)
    train.set_defaults(run=run_train)
    measure = kinds.add_parser(
        "measure", help="measure accuracy and blind accuracy of a reference VLM"
    )
    model = f"folder of the VLM, or reference (default; {FIRST} only)"
    measure.add_argument("--model", default="reference", help=model)
    images = "test images, per domain (default 1000)"
    measure.add_argument("--images", type=int, default=1000, help=images)
    which = f"recipe that made the VLM (default {FIRST})"
    measure.add_argument("--recipe", choices=RECIPES, default=FIRST, help=which)
    measure.set_defaults(run=run_measure)


def run_shards(arguments: argparse.Namespace) -> int:
    from autoselect.reference.shards import render_shards

    folder = "shards" if arguments.domain == "scenes" else arguments.domain
    out = arguments.out or RUNS / folder
    render_shards(out, read_settings(ReferenceData, arguments), domain=arguments.domain)
    return 0


def run_train(arguments: argparse.Namespace) -> int:
    from autoselect.reference.siglip_qwen2.train import train_mixed_vlm
    from autoselect.reference.train_vlm import train_reference_vlm

    is_first = arguments.recipe == FIRST
    recipe = _read_recipe(arguments)
    out = arguments.out or RUNS / ("model" if is_first else f"{arguments.recipe}/model")
    work = arguments.work or RUNS / ("work" if is_first else f"{arguments.recipe}/work")
    (train_reference_vlm if is_first else train_mixed_vlm)(out, work, recipe)
    return 0


def _read_recipe(arguments: argparse.Namespace) -> Any:
    """Build the recipe from the flags that were given.

    Raises:
        ConfigError: a flag belongs to another recipe.
    """
    own = RECIPES[arguments.recipe]
    known = {name for name, _, _ in described(own)}
    names = {name for cls in RECIPES.values() for name, _, _ in described(cls)}
    flags = vars(arguments).items()
    given = {name: value for name, value in flags if name in names and value is not None}
    for name, value in given.items():
        require(
            name in known,
            f"{name}={value} is not a setting of recipe={arguments.recipe}; leave it out, or "
            f"choose one of {', '.join(sorted(known))}",
        )
    return own(**given)


def run_measure(arguments: argparse.Namespace) -> int:
    from autoselect.reference.measure import measure_vlm, table
    from autoselect.reference.resources import REFERENCE, resolve_model

    check_counts(images=arguments.images)
    if arguments.recipe == FIRST:
        print(table(measure_vlm(resolve_model(arguments.model), arguments.images)))
    else:
        require(
            arguments.model != REFERENCE,
            f"model={REFERENCE} was made by recipe={FIRST}; give the folder of a VLM of "
            f"recipe={arguments.recipe}",
        )
        from autoselect.reference.siglip_qwen2.measure import measure_mixed_vlm, tables

        print(tables(measure_mixed_vlm(arguments.model, arguments.images)))
    return 0
