"""Dependencies point one way, and each third party has one home."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "autoselect"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

TRAINING = ("autoselect.trainer", "autoselect.training_run")

FORBIDDEN = {
    "config": ("autoselect.",),
    "config_files": (
        "autoselect.runtime",
        "autoselect.ops",
        "autoselect.vlm",
        "autoselect.data",
        *TRAINING,
    ),
    "ops": (
        "autoselect.scorer",
        "autoselect.model",
        "autoselect.vlm",
        "autoselect.data",
        *TRAINING,
        "autoselect.evaluation",
    ),
    "vlm": (
        "autoselect.scorer",
        "autoselect.selector",
        "autoselect.denoiser",
        "autoselect.model",
        "autoselect.ops",
        "autoselect.selection",
        "autoselect.attachment",
        *TRAINING,
        "autoselect.evaluation",
    ),
    "selection": ("autoselect.denoiser", "autoselect.model", *TRAINING),
    "attachment": ("autoselect.denoiser", "autoselect.model", *TRAINING),
    "data": ("autoselect.model", "autoselect.vlm", *TRAINING, "autoselect.evaluation"),
    "tracking": ("autoselect.model", *TRAINING, "autoselect.evaluation"),
    "checkpoint": ("autoselect.model", *TRAINING, "autoselect.vlm"),
    "scorer": ("autoselect.model", *TRAINING, "autoselect.vlm", "autoselect.data"),
    "denoiser": ("autoselect.model", *TRAINING, "autoselect.vlm", "autoselect.data"),
    "model": (*TRAINING, "autoselect.evaluation", "autoselect.data"),
    "trainer": ("autoselect.training_run", "autoselect.evaluation", "autoselect.reference"),
    "training_run": ("autoselect.evaluation", "autoselect.reference"),
    "evaluation": (*TRAINING, "autoselect.train", "autoselect.ablation"),
    "ablation": (*TRAINING, "autoselect.train", "autoselect.model", "autoselect.vlm"),
}

HOMES = {
    "transformers": {"vlm", "reference", "image_classifier", "sharded_loading"},
    "webdataset": {"data"},
    "mlflow": {"tracking"},
    "huggingface_hub": {"selector", "doctor_model", "vlm"},
    "lmms_eval": {"public"},
    "accelerate": {"public"},
    "deepspeed": {
        "runtime",
        "training_run",
        "engine_state",
        "update_guard",
        "heartbeat",
        "sharded_loading",
    },
}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def within(name: str, prefix: str) -> bool:
    return name == prefix.rstrip(".") or name.startswith(prefix.rstrip(".") + ".")


@pytest.mark.parametrize("part", FORBIDDEN)
def test_dependencies_point_one_way(part):
    for module, path in MODULES.items():
        if part_of(module) == part:
            wrong = {name for name in imports_of(path) for p in FORBIDDEN[part] if within(name, p)}
            assert not wrong, f"{module} must not import {sorted(wrong)}"


@pytest.mark.parametrize("library", HOMES)
def test_third_parties_have_one_home(library):
    users = {
        part_of(module)
        for module, path in MODULES.items()
        if any(within(name, library) for name in imports_of(path))
    }
    assert users <= HOMES[library]


def test_files_at_the_top_shadow_no_module():
    """The deepspeed launcher puts `autoselect/` first on the path."""
    third_party = {"datasets", "evaluate", "transformers", "deepspeed", "torch", "mlflow"}
    names = {path.stem for path in PACKAGE.iterdir() if path.stem != "__init__"}
    assert not names & (set(sys.stdlib_module_names) | third_party)


@pytest.mark.parametrize("name", ["train", "eval"])
def test_entry_points_are_wiring_only(name):
    assert len((PACKAGE / f"{name}.py").read_text().splitlines()) < 100
