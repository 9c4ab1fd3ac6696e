"""Imports point one way: every package names what it may import, and there are no circles."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "autoselect"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

ALLOWED = {
    "config": set(),
    "files": set(),
    "ops": {"config"},
    "ranks": {"config"},
    "data": {"config", "files"},
    "tracking": {"config", "files"},
    "vlm": {"config", "files", "data"},
    "method": {"config", "ops", "vlm"},
    "pruning": {"config", "files", "ops", "data", "method", "vlm", "tracking"},
    "training": {"config", "files", "ranks", "data", "tracking", "vlm", "method", "pruning"},
    "reference": {"config", "files", "data", "vlm"},
    "preflight": {
        *("config", "files", "ops", "ranks", "data", "tracking", "vlm", "method"),
        *("training", "reference"),
    },
    "evaluation": {
        *("config", "files", "ops", "data", "tracking", "vlm", "method"),
        *("pruning", "training", "reference", "serving"),
    },
    "tuning": {
        *("config", "files", "ops", "ranks", "data", "tracking", "vlm", "method", "pruning"),
        *("training", "reference", "evaluation"),
    },
    "ablation": {
        *("config", "files", "tracking", "vlm", "pruning", "training", "reference", "evaluation"),
    },
    "lmms": {
        *("config", "files", "data", "tracking", "vlm", "pruning"),
        *("reference", "evaluation"),
    },
    "serving": {"config", "files", "vlm", "pruning"},
    "cli": {
        "config",
        "ranks",
        "data",
        "files",
        "ops",
        "tracking",
        "vlm",
        "pruning",
        "reference",
        "evaluation",
        "lmms",
    },
    "train": {"config", "ranks", "data", "training", "reference", "tuning", "cli"},
    "eval": {"config", "ranks", "evaluation", "cli"},
    "__init__": {"config", "data", "pruning"},
}
"""What each package may import beside itself and the version in `autoselect/__init__.py`."""

HOMES = {
    "transformers": {"vlm", "reference", "training.sharded_loading"},
    "webdataset": {"data"},
    "mlflow": {"tracking"},
    "huggingface_hub": {"pruning.hub", "preflight.model_check", "vlm"},
    "lmms_eval": {"lmms"},
    "accelerate": {"lmms"},
    "deepspeed": {"ranks", "training", "vlm.sharded"},
    "vllm": {"serving"},
}
"""The only packages or modules that may import each third party."""


def imports_of(path: Path) -> set[str]:
    """Return every module that a file imports, at its top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in full}
    return names


def own_imports(module: str) -> set[str]:
    """Return the modules of this package that `module` imports."""
    return {name for name in imports_of(MODULES[module]) if name in MODULES and name != module}


def package_of(module: str) -> str:
    """Return the name in `ALLOWED` that a module stands under."""
    return "__init__" if module == "autoselect" else module.split(".")[1]


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_package_may(module):
    own = package_of(module)
    assert own in ALLOWED, f"{module} stands in no package of ALLOWED; put it into one"
    used = {package_of(name) for name in own_imports(module)} - {own}
    if own != "__init__":
        used -= {"__init__"}
    assert used <= ALLOWED[own], f"{module} must not import {sorted(used - ALLOWED[own])}"


def room_of(module: str) -> str:
    """Return the sub-package that a module stands in, such as `vlm.text`, or the module itself."""
    return ".".join(module.split(".")[:3])


def between_rooms() -> dict[str, set[str]]:
    """Return what the sub-packages import, and the modules that stand beside them."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        inside = {name for name in own_imports(module) if name.count(".") > 1}
        rooms = {room_of(name) for name in inside} - {room_of(module)}
        graph.setdefault(room_of(module), set()).update(rooms)
    return {room: used for room, used in graph.items() if room.count(".") > 1}


@pytest.mark.parametrize("kind", ["packages", "sub-packages", "modules"])
def test_there_are_no_circles(kind):
    if kind == "packages":
        graph = {name: targets for name, targets in ALLOWED.items()}
    elif kind == "sub-packages":
        graph = between_rooms()
    else:
        graph = {module: own_imports(module) - {"autoselect"} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


def test_the_allow_list_names_what_exists():
    assert set(ALLOWED) == {package_of(module) for module in MODULES}


def test_the_page_has_the_allow_list():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| .* \| ([^|]*) \|$", page, re.MULTILINE)
    shown = {name.removesuffix(".py"): set(re.findall("`(.+?)`", cell)) for name, cell in rows}
    known = {name: shown.get(name) for name in ALLOWED if name != "__init__"}
    assert known == {name: ALLOWED[name] for name in known}


def test_the_top_holds_entry_points_and_packages_only():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "train.py", "eval.py"}


@pytest.mark.parametrize("library", HOMES)
def test_third_parties_have_one_home(library):
    for module, path in MODULES.items():
        if any(within(name, library) for name in imports_of(path)):
            homes = {f"autoselect.{home}" for home in HOMES[library]}
            assert any(within(module, home) for home in homes), f"{module} imports {library}"


def test_files_at_the_top_shadow_no_module():
    """The deepspeed launcher puts `autoselect/` first on the path."""
    third_party = {"datasets", "evaluate", "transformers", "deepspeed", "torch", "mlflow"}
    names = {path.stem for path in PACKAGE.iterdir() if path.stem != "__init__"}
    assert not names & (set(sys.stdlib_module_names) | third_party)


WRITERS = {
    "files.atomic": "the one atomic write",
    "evaluation.figures.style": "figures, into a stream of it",
    "training.checkpoint": "files of a checkpoint, whose folder is renamed as a whole",
    "tracking.store": "a lock",
    "tracking.journal": "a lock",
}
"""Modules that open a file for writing, and what for."""


def writes_a_file(node: ast.AST) -> bool:
    """Return True for `path.write_text(...)` and the like, and for opening a file to replace it."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name in ("write_text", "write_bytes", "savefig"):
        return True
    opens = name == "open" or (isinstance(node.func, ast.Name) and node.func.id == "open")
    modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
    modes += [own.value.value for own in node.keywords if isinstance(own.value, ast.Constant)]
    return opens and any(isinstance(mode, str) and mode[:1] in ("w", "x") for mode in modes)


def test_files_are_written_atomically():
    found = {
        module.removeprefix("autoselect.")
        for module, path in MODULES.items()
        if any(map(writes_a_file, ast.walk(ast.parse(path.read_text()))))
    }
    assert found == set(WRITERS), "write through autoselect.files, so that a kill leaves no half"


@pytest.mark.parametrize("name", ["train", "eval"])
def test_entry_points_are_wiring_only(name):
    assert len((PACKAGE / f"{name}.py").read_text().splitlines()) < 100


MOST_PARAMETERS = 7
OPERATOR_SCHEMAS = PACKAGE / "ops" / "noise_gate.py"
"""Its registrations repeat the arguments of the C++ operators."""


def test_no_function_has_more_than_seven_parameters():
    for path in sorted({*MODULES.values()} - {OPERATOR_SCHEMAS}):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([own for own in given if own.arg not in ("self", "cls")])
                assert count <= MOST_PARAMETERS, f"{path}: {node.name} takes {count} parameters"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda p: p.stem)
def test_no_test_file_is_imported_by_another(path):
    """Shared helpers stand in plain modules; a moved or renamed test breaks nothing else."""
    words = re.compile(rf"^ *(from|import) (.*|[^(\n]*\([^)]*)\b{path.stem}\b", re.MULTILINE)
    for other in (ROOT / "tests").rglob("*.py"):
        found = words.search(other.read_text())
        assert not found, f"{other} imports {path.name}: {found}"
