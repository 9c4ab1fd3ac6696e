"""`autoselect serve`: write the command of a vLLM server with a selector, and become that server.

autoselect serve MODEL --selector org/name --budget 64 -- --port 8000 --max-model-len 4096
"""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from autoselect.config import ConfigError
from autoselect.config.extras import require_extra
from autoselect.serving import BLOCK
from autoselect.serving.families import check_architecture, check_site
from autoselect.serving.plugin import check_version, installed_version

if TYPE_CHECKING:
    from autoselect.serving.settings import ServingSettings

SERVER = "vllm.entrypoints.openai.api_server"
PLUGINS = "VLLM_PLUGINS"


def add_serve_command(subparsers: Any) -> None:
    serve = subparsers.add_parser(
        "serve",
        usage="autoselect serve MODEL --selector NAME --budget K [--diversity W] [-- VLLM_FLAGS]",
        help="serve a model with a selector by vLLM",
        description="Start vLLM's server with a selector; what follows -- are its own flags.",
        allow_abbrev=False,
    )
    serve.add_argument("model", help="folder, or org/name on the hub")
    serve.add_argument("--selector", required=True, help="folder, or org/name on the hub")
    serve.add_argument(
        "--budget", required=True, help="tokens per image (64) or share (0.11, 11%%)"
    )
    serve.add_argument("--diversity", type=float, help="instead of the selector's own weight")
    serve.set_defaults(run=run_serve, takes_settings=True)


def run_serve(arguments: argparse.Namespace) -> int:
    block = {"selector": arguments.selector, "budget": arguments.budget}
    if arguments.diversity is not None:
        block["diversity"] = arguments.diversity
    settings = read_block(block)
    block["budget"] = settings.budget
    command = server_command(arguments.model, block, arguments.settings)
    check_installation()
    # What is wrong is named here, before vLLM starts and adds a traceback.
    architecture = known_architecture(arguments.model)
    if architecture is not None:
        check_architecture(architecture)
    check_site(settings.load().site, architecture)
    print(f"$ {shlex.join(command)}", flush=True)
    os.execvp(command[0], command)


def read_block(block: dict[str, Any]) -> "ServingSettings":
    """Return the settings in the block `autoselect` of a model's configuration.

    Raises:
        ConfigError: the block is wrong.
    """
    from autoselect.serving.settings import ServingSettings  # imports torch

    settings = ServingSettings.of(SimpleNamespace(**{BLOCK: block}))
    assert settings is not None
    return settings


def known_architecture(model: str) -> str | None:
    """Return the class that a model's configuration names; None if it is not on this machine.

    Args:
        model: folder, or name on the hub.

    Raises:
        ConfigError: the configuration is damaged, or not that of a VLM.
    """
    from autoselect.vlm.loading import read_config
    from autoselect.vlm.model_files import has_config

    if not has_config(model):
        return None
    return next(iter(read_config(model).architectures or ()), None)


def server_command(model: str, block: dict[str, Any], flags: Sequence[str]) -> list[str]:
    """Return the words that start vLLM's server.

    Args:
        model: folder, or name on the hub.
        block: the block `autoselect` of the model's configuration.
        flags: further flags of vLLM.

    Raises:
        ConfigError: the flags have what this command writes.
    """
    flags = list(flags[1:] if flags[:1] == ["--"] else flags)
    given = {_plain(word) for word in flags if word.startswith("--")}
    for name in ("--hf-overrides", "--model"):
        if name in given:
            raise ConfigError(f"{name} is written by `autoselect serve`; take it out of its flags")
    overrides = json.dumps({BLOCK: block})
    return [sys.executable, "-m", SERVER, "--model", model, "--hf-overrides", overrides, *flags]


def _plain(flag: str) -> str:
    """Return a flag without its value or key; vLLM takes `--a_b`, `--a-b=1` and `--a-b.key 1`."""
    return re.split(r"[=.]", flag, maxsplit=1)[0].replace("_", "-")


def check_installation() -> None:
    """Check that vLLM is there and will load the plug-in; without it images would be served whole.

    Raises:
        ConfigError: vLLM is missing or of another version, or the plug-in is not installed or is
            switched off.
    """
    require_extra("serving", "vllm")
    check_version(installed_version())
    if BLOCK not in {found.name for found in entry_points(group="vllm.general_plugins")}:
        raise ConfigError(
            "vLLM would not find the plug-in of autoselect; install the package again, with pip"
        )
    allowed = os.environ.get(PLUGINS)
    if allowed is not None and BLOCK not in allowed.split(","):
        raise ConfigError(f"{PLUGINS}={allowed} leaves {BLOCK} out; add it, or unset {PLUGINS}")
