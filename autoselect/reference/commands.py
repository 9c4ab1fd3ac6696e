"""The commands `autoselect reference shards`, `train` and `measure`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from autoselect.config.flags import add_setting_flags, check_counts


def _read_fields(arguments: argparse.Namespace, cls: type) -> Any:
    return cls(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)})


def add_reference_commands(subparsers: Any) -> None:
    from autoselect.reference.recipe import ReferenceData, ReferenceTraining

    root = subparsers.add_parser("reference", help="make the small reference VLM and its data")
    kinds = root.add_subparsers(dest="kind", required=True)
    shards = kinds.add_parser("shards", help="render the reference data as WebDataset shards")
    where = "folder for the shards of all splits"
    shards.add_argument("--out", type=Path, default=Path("runs/reference/shards"), help=where)
    add_setting_flags(shards, ReferenceData)
    shards.set_defaults(run=run_shards)
    train = kinds.add_parser("train", help="train the reference VLM (hours on a CPU; resumable)")
    model, work = Path("runs/reference/model"), Path("runs/reference/work")
    train.add_argument("--out", type=Path, default=model, help="folder for the finished VLM")
    train.add_argument("--work", type=Path, default=work, help="folder for resumable states")
    add_setting_flags(train, ReferenceTraining)
    train.set_defaults(run=run_train)
    measure = kinds.add_parser("measure", help="accuracy and blind accuracy of a reference VLM")
    measure.add_argument("--model", default="reference", help="folder of the VLM, or reference")
    measure.add_argument("--images", type=int, default=1000, help="test images")
    measure.set_defaults(run=run_measure)


def run_shards(arguments: argparse.Namespace) -> int:
    from autoselect.reference.recipe import ReferenceData
    from autoselect.reference.shards import render_shards

    render_shards(arguments.out, _read_fields(arguments, ReferenceData))
    return 0


def run_train(arguments: argparse.Namespace) -> int:
    from autoselect.reference.recipe import ReferenceTraining
    from autoselect.reference.train_vlm import train_reference_vlm

    train_reference_vlm(arguments.out, arguments.work, _read_fields(arguments, ReferenceTraining))
    return 0


def run_measure(arguments: argparse.Namespace) -> int:
    from autoselect.reference.measure import measure_vlm, table
    from autoselect.reference.resources import resolve_model

    check_counts(images=arguments.images)
    print(table(measure_vlm(resolve_model(arguments.model), arguments.images)))
    return 0
