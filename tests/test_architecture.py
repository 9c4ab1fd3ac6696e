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

FORBIDDEN = {
    "config": ("autoselect.",),
    "ops": (
        "autoselect.scorer",
        "autoselect.model",
        "autoselect.vlm",
        "autoselect.data",
        "autoselect.trainer",
        "autoselect.evaluation",
    ),
    "vlm": (
        "autoselect.scorer",
        "autoselect.selector",
        "autoselect.denoiser",
        "autoselect.model",
        "autoselect.ops",
        "autoselect.trainer",
        "autoselect.evaluation",
    ),
    "data": ("autoselect.model", "autoselect.vlm", "autoselect.trainer", "autoselect.evaluation"),
    "tracking": ("autoselect.model", "autoselect.trainer", "autoselect.evaluation"),
    "checkpoint": ("autoselect.model", "autoselect.trainer", "autoselect.vlm"),
    "scorer": ("autoselect.model", "autoselect.trainer", "autoselect.vlm", "autoselect.data"),
    "denoiser": ("autoselect.model", "autoselect.trainer", "autoselect.vlm", "autoselect.data"),
    "model": ("autoselect.trainer", "autoselect.evaluation", "autoselect.data"),
    "trainer": ("autoselect.evaluation", "autoselect.reference"),
    "evaluation": ("autoselect.trainer", "autoselect.train"),
}

HOMES = {
    "transformers": {"vlm", "reference", "sharded_loading"},
    "webdataset": {"data"},
    "mlflow": {"tracking"},
    "deepspeed": {
        "runtime",
        "trainer",
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
