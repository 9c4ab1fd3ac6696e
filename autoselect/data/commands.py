"""The sub-commands `autoselect shards index | verify | convert-llava | convert-<benchmark>`."""

import argparse
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.data.arguments import (
    SAMPLES_PER_SHARD,
    add_command,
    add_limit_arguments,
    add_output_arguments,
    chosen_limits,
    tell_rejected,
)
from autoselect.data.benchmarks.commands import add_public_converters
from autoselect.data.captions import PROMPT, convert_caption_rows, convert_caption_shards
from autoselect.data.convert import ConvertReport, convert_llava
from autoselect.data.index import IndexJob, index_shard, sidecar
from autoselect.data.parallel import map_processes
from autoselect.data.paths import expand
from autoselect.data.shards import ShardSet
from autoselect.data.verify import VerifyJob, verify_shard


def add_shards_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `shards` and its sub-commands.

    Each sets `run`, a function of the parsed arguments that returns the exit code: 0, or 1 if
    something is wrong with the data.
    """
    shards = subparsers.add_parser("shards", help="make, index and verify WebDataset shards")
    commands = shards.add_subparsers(dest="shards_command", required=True, metavar="COMMAND")

    index = add_command(commands, "index", run_index, "write the index of existing shards")
    _add_paths(index)
    index.add_argument(
        "--rebuild", action="store_true", help="replace existing indexes, needed for other caps"
    )
    add_limit_arguments(index)

    verify = add_command(commands, "verify", run_verify, "compare shards with their indexes")
    _add_paths(verify)
    verify.add_argument("--decode", action="store_true", help="decode every image too")

    convert = add_command(
        commands, "convert-llava", run_convert, "convert LLaVA-style JSON and images"
    )
    convert.add_argument("source", type=Path, help="JSON list or JSON lines")
    convert.add_argument(
        "--images", type=Path, nargs="+", required=True, metavar="FOLDER", help="image folders"
    )
    _add_key_prefix(convert)
    add_output_arguments(convert)

    captions = add_command(
        commands, "convert-captions", run_captions, "convert captions, each as one round"
    )
    captions.add_argument(
        "source",
        type=Path,
        nargs="+",
        help="one file of JSON rows with image and caption, or WebDataset shards (.jpg and .txt)",
    )
    captions.add_argument(
        "--images", type=Path, nargs="+", default=[], metavar="FOLDER", help="folders of JSON rows"
    )
    captions.add_argument("--prompt", default=PROMPT, help="request that every caption answers")
    _add_key_prefix(captions)
    add_output_arguments(captions, None, f"of JSON rows (default {SAMPLES_PER_SHARD})")
    add_public_converters(commands)


def _add_key_prefix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-prefix",
        default="",
        metavar="TEXT",
        help="text before the row number in every key; must differ if folders are used together",
    )


def _add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        help="folders, tar files, patterns like shard-{000000..000012}.tar, URLs",
    )
    parser.add_argument("--index-folder", help="folder of the indexes if not beside the shards")
    parser.add_argument(
        "--allow-pipe", action="store_true", help="run 'pipe:' paths as shell commands"
    )


def _shards(arguments: argparse.Namespace) -> list[str]:
    return expand(
        arguments.paths, allow_pipe=arguments.allow_pipe, pipe_folder=arguments.index_folder
    )


def run_index(arguments: argparse.Namespace) -> int:
    """Index shards and print their faults."""
    shards = _shards(arguments)
    jobs = [
        IndexJob(shard, arguments.index_folder, chosen_limits(arguments), arguments.rebuild)
        for shard in shards
    ]
    headers = list(map_processes(index_shard, jobs, arguments.workers, "indexing"))
    for header in headers:
        for fault in header.faults:
            print(fault)
    faults = sum(len(header.faults) for header in headers)
    samples = sum(header.samples for header in headers)
    size = sum(header.bytes for header in headers)
    print(f"{len(headers)} shards, {samples} samples, {size} bytes, {faults} faults")
    indexes = [sidecar(shard, arguments.index_folder) for shard in shards]
    ShardSet(shards, indexes, headers).check_keys()
    return 1 if faults else 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Verify shards and print every difference."""
    shards = _shards(arguments)
    jobs = [VerifyJob(shard, arguments.index_folder, arguments.decode) for shard in shards]
    reports = list(map_processes(verify_shard, jobs, arguments.workers, "verifying"))
    for report in reports:
        for fault in report.faults:
            print(fault)
    faults = sum(len(report.faults) for report in reports)
    samples = sum(report.samples for report in reports)
    print(f"{len(reports)} shards, {samples} samples, {faults} faults")
    if faults:
        return 1
    ShardSet.open(shards, index_folder=arguments.index_folder).check_keys()
    return 0


def run_captions(arguments: argparse.Namespace) -> int:
    """Convert captions; return 1 if too many rows are rejected."""
    workers, limits = arguments.workers, chosen_limits(arguments)
    sources, output, prompt = arguments.source, arguments.output, arguments.prompt
    if all(source.suffix == ".tar" for source in sources):
        if arguments.images or arguments.samples_per_shard is not None:
            raise ConfigError(
                "--images and --samples-per-shard are for JSON rows; leave them out, because tar "
                "files hold their pictures and each becomes one shard"
            )
        prefix = arguments.key_prefix
        report = convert_caption_shards(sources, output, prompt, workers, limits, prefix)
        return _told(report, arguments)
    if len(sources) > 1 or not arguments.images:
        raise ConfigError(
            f"source={' '.join(map(str, sources))} must be tar files, or one file of JSON rows "
            "with --images FOLDER"
        )
    report = convert_caption_rows(
        sources[0],
        arguments.images,
        output,
        prompt,
        samples_per_shard=arguments.samples_per_shard or SAMPLES_PER_SHARD,
        workers=workers,
        limits=limits,
        key_prefix=arguments.key_prefix,
    )
    return _told(report, arguments)


def run_convert(arguments: argparse.Namespace) -> int:
    """Convert a LLaVA-style file; return 1 if too many rows are rejected."""
    report = convert_llava(
        arguments.source,
        arguments.images,
        arguments.output,
        samples_per_shard=arguments.samples_per_shard,
        workers=arguments.workers,
        limits=chosen_limits(arguments),
        key_prefix=arguments.key_prefix,
    )
    return _told(report, arguments)


def _told(report: ConvertReport, arguments: argparse.Namespace) -> int:
    """Print a report; return 1 if too many rows are rejected."""
    print(
        f"{report.rows} rows, {report.samples} samples in {report.shards} shards, "
        f"{len(report.rejected)} rejected"
    )
    print(report.remarks())
    return tell_rejected(report, arguments)
