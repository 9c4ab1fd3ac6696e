"""`autoselect reference shards|train|measure`: the data and the VLMs that need no download."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from autoselect.config import require
from autoselect.flags import check_counts

RECIPES = ("clip-llama", "siglip-qwen2")
RUNS = Path("runs/reference")


def _add_fields(parser: argparse.ArgumentParser, cls: type) -> None:
    for field in dataclasses.fields(cls):
        flag = f"--{field.name.replace('_', '-')}"
        kind: Any = type(field.default)
        parser.add_argument(flag, type=kind, default=field.default)


def _read_fields(arguments: argparse.Namespace, cls: type) -> Any:
    return cls(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)})


def _recipe_classes() -> dict[str, type]:
    from autoselect.reference.recipe import ReferenceTraining
    from autoselect.reference.siglip_qwen2.recipe import MixedTraining

    return dict(zip(RECIPES, (ReferenceTraining, MixedTraining), strict=True))


def _recipe_fields() -> dict[str, Any]:
    """Return names and types of the settings of all recipes."""
    return {
        field.name: type(field.default)
        for recipe in _recipe_classes().values()
        for field in dataclasses.fields(recipe)
    }


def _add_recipe_fields(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting; one that is not given has its recipe's own default."""
    defaults = {
        name: [
            f"{recipe} {field.default}"
            for recipe, cls in _recipe_classes().items()
            for field in dataclasses.fields(cls)
            if field.name == name
        ]
        for name in _recipe_fields()
    }
    for name, kind in _recipe_fields().items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, help=f"default: {', '.join(defaults[name])}")


def add_reference_commands(subparsers: Any) -> None:
    """Add `reference` with its sub-commands."""
    from autoselect.reference.recipe import ReferenceData

    root = subparsers.add_parser("reference", help="the small VLM and data that ship with this")
    kinds = root.add_subparsers(dest="kind", required=True)
    shards = kinds.add_parser("shards", help="render the reference data as WebDataset shards")
    shards.add_argument("--out", type=Path, help="default: runs/reference/shards, or .../pages")
    shards.add_argument(
        "--domain", choices=("scenes", "pages"), default="scenes", help="what images show"
    )
    _add_fields(shards, ReferenceData)
    shards.set_defaults(run=run_shards)
    train = kinds.add_parser("train", help="train a reference VLM (hours on a CPU; resumable)")
    train.add_argument("--recipe", choices=RECIPES, default=RECIPES[0], help="which VLM")
    train.add_argument("--out", type=Path, help="default: runs/reference/model, or .../RECIPE")
    train.add_argument(
        "--work", type=Path, help="corpus and states; default: runs/reference/work, or .../RECIPE"
    )
    _add_recipe_fields(train)
    train.set_defaults(run=run_train)
    measure = kinds.add_parser("measure", help="accuracy and blind accuracy of a reference VLM")
    measure.add_argument("--model", default="reference")
    measure.add_argument("--images", type=int, default=1000, help="of each domain")
    measure.add_argument("--recipe", choices=RECIPES, default=RECIPES[0], help="that made the VLM")
    measure.set_defaults(run=run_measure)


def run_shards(arguments: argparse.Namespace) -> int:
    """Render all three splits."""
    from autoselect.reference.recipe import ReferenceData
    from autoselect.reference.shards import render_shards

    folder = "shards" if arguments.domain == "scenes" else arguments.domain
    out = arguments.out or RUNS / folder
    render_shards(out, _read_fields(arguments, ReferenceData), domain=arguments.domain)
    return 0


def run_train(arguments: argparse.Namespace) -> int:
    """Train, or go on with, the VLM of a recipe."""
    from autoselect.reference.siglip_qwen2.train import train_mixed_vlm
    from autoselect.reference.train_vlm import train_reference_vlm

    is_first = arguments.recipe == RECIPES[0]
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
    own = _recipe_classes()[arguments.recipe]
    known = {field.name for field in dataclasses.fields(own)}
    given = {}
    for name in _recipe_fields():
        value = getattr(arguments, name)
        if value is None:
            continue
        require(
            name in known,
            f"{name}={value} is not a setting of recipe={arguments.recipe}; leave it out, or "
            f"choose one of {', '.join(sorted(known))}",
        )
        given[name] = value
    return own(**given)


def run_measure(arguments: argparse.Namespace) -> int:
    """Print accuracy per family: full, blind, and with random tokens removed."""
    from autoselect.reference.measure import measure_vlm, table
    from autoselect.reference.resources import resolve_model

    check_counts(images=arguments.images)
    if arguments.recipe == RECIPES[0]:
        print(table(measure_vlm(resolve_model(arguments.model), arguments.images)))
    else:
        from autoselect.reference.siglip_qwen2.measure import measure_mixed_vlm, tables

        print(tables(measure_mixed_vlm(arguments.model, arguments.images)))
    return 0
