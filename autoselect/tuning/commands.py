"""The command `autoselect tune`."""

import argparse
import dataclasses
from typing import Any

from autoselect.config.flags import add_setting_flags, read_settings
from autoselect.reference.resources import resolve_model, resolve_shards
from autoselect.tuning.settings import TuneSettings


def add_tune_command(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "tune", help="find the weight of diversity for each budget, without labels"
    )
    add_setting_flags(parser, TuneSettings)
    parser.set_defaults(run=run_tune)


def run_tune(arguments: argparse.Namespace) -> int:
    from autoselect.tuning.run import FIGURE, REPORT, tune, tuning_table
    from autoselect.tuning.tracked import log_alone

    settings = read_settings(TuneSettings, arguments)
    settings = dataclasses.replace(
        settings, model=resolve_model(settings.model), shards=resolve_shards(settings.shards)
    )
    tuning = tune(settings)
    assert tuning is not None, "rank 0 returns what it found"
    if settings.tracking:
        log_alone(tuning, settings)
    print(f"\n{tuning_table(tuning.report)}")
    print(f"weights: {settings.selector}/config.json")
    print(f"report: {tuning.out / REPORT}, {tuning.out / FIGURE}")
    return 0
