"""What `pip install .` brings is enough to deploy; everything else names the extra it needs."""

import ast
import json
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from autoselect.cli import launch
from autoselect.cli.main import main
from autoselect.config import ConfigError, extras

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN_EXTRAS = PROJECT["optional-dependencies"]
MODULES = {"pyyaml": "yaml", "pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn"}
DEPENDED_ON = {
    "torch": {"torchvision"},  # fits a build of torch, and is used only if it is there
    "transformers": {"tokenizers"},
    "mlflow": {"alembic", "requests", "sqlalchemy"},
    "lmms-eval": {"accelerate"},
}
"""Packages that come with a requirement, or whose build the user chooses with it."""
HOSTS = {"serving": "vllm"}
"""Packages of ours that a program loads as its plug-in; it is there then."""


def modules_of(requirements: list[str]) -> set[str]:
    """Return the top modules that requirements bring, those of included extras too."""
    found: set[str] = set()
    for line in requirements:
        need = Requirement(line)
        if need.name == "autoselect":
            for name in need.extras:
                found |= modules_of(OWN_EXTRAS[name])
        else:
            found |= {MODULES.get(need.name, need.name.replace("-", "_"))}
            found |= DEPENDED_ON.get(need.name, set())
    return found


def third_parties(path: Path) -> list[tuple[str, str | None]]:
    """Return the top module of each import in a file, and the extra that its context names."""
    found: list[tuple[str, str | None]] = []

    def walk(node: ast.AST, extra: str | None) -> None:
        if isinstance(node, ast.With):
            call = node.items[0].context_expr
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "extra":
                assert isinstance(call.args[0], ast.Constant)
                extra = str(call.args[0].value)
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        tops = {name.partition(".")[0] for name in names}
        found.extend((top, extra) for top in tops - sys.stdlib_module_names - {"autoselect"})
        for child in ast.iter_child_nodes(node):
            walk(child, extra)

    walk(ast.parse(path.read_text()), None)
    return found


def test_every_import_is_of_a_requirement_or_names_the_extra_that_brings_it():
    own = modules_of(PROJECT["dependencies"])
    for path in sorted((ROOT / "autoselect").rglob("*.py")):
        host = HOSTS.get(path.parent.name)
        for module, extra in third_parties(path):
            if module == host:
                continue
            brought = own | (modules_of(OWN_EXTRAS[extra]) if extra else set())
            assert module in brought, f"{path} imports {module}, extra {extra}"


def installed_by(requirements: list[str]) -> set[str]:
    """Return the distributions that pip would install for requirements, of those that are here."""
    found: set[str] = set()
    rest = [Requirement(line) for line in requirements]
    while rest:
        need = rest.pop()
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        name = re.sub(r"[-_.]+", "-", need.name).lower()
        try:
            brings = metadata.requires(name)
        except metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            rest += [Requirement(line) for line in brings or []]
    return found


DEPLOYED_BARE = """
import json, sys
sys.path.insert(0, sys.argv[1])
folder, own, *modules = sys.argv[2:]
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from autoselect import Selector, attach, detach
vlm = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
from autoselect.config import ScorerConfig
from autoselect.method.scorer import Scorer
Selector(Scorer(vlm.config.text_config.hidden_size, ScorerConfig())).save_pretrained(own)
model = attach(vlm, Selector.from_pretrained(own), budget=16)
asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there"}]}]
prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
inputs = processor(images=[Image.new("RGB", (96, 96))], text=[prompt], return_tensors="pt")
kept = []
for budget in (16, 4):
    model.generate(**inputs, max_new_tokens=2, visual_token_budget=budget)
    kept.append(len(model.autoselect.last.images[0].kept))
detach(model)
from importlib import import_module
from autoselect.cli.main import main
refused = {}
for name in modules:
    try:
        import_module(name)
    except ValueError as error:
        refused[name] = str(error)
flags = ["--model=m", "--selector=s", "--shards=d", "--budgets=4", "--out=o"]
print(json.dumps([kept, refused, main(["eval", *flags])]))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Return what a Python does that has only the packages of `pip install .` without extras.

    These are the numbers of kept tokens of two calls, the modules that refuse their import with
    what they say, and the exit code of a command whose extra is missing.
    """
    folder = tmp_path_factory.mktemp("bare")
    site = Path(sysconfig.get_path("purelib")).resolve()
    for name in installed_by(PROJECT["dependencies"]):
        for file in metadata.files(name) or []:
            top, link = file.parts[0], folder / file.parts[0]
            if top not in ("..", "__pycache__") and not link.exists() and (site / top).exists():
                link.symlink_to(site / top)
    (folder / "autoselect").symlink_to(ROOT / "autoselect")
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "autoselect").rglob("*.py"))
        if path.stem != "__main__" and path.parent.name not in HOSTS
    ]
    arguments = [folder, ROOT / "autoselect/reference/model", folder / "own", *modules]
    command = [sys.executable, "-I", "-S", "-c", DEPLOYED_BARE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_selector_is_deployed_without_any_extra(bare):
    assert bare[0] == [16, 4]


def test_every_module_imports_or_names_its_extra_without_any(bare):
    said = re.compile(r"\w+ is not installed; install it with: pip install 'autoselect\[(\w+)\]'")
    named = {name: said.fullmatch(text)[1] for name, text in bare[1].items()}
    assert named["autoselect.tracking.store"] == "tracking"
    assert named["autoselect.evaluation.figures.style"] == "evaluation"
    assert named["autoselect.lmms.lmms_model"] == "bench"
    packages = {name.split(".")[1] for name in named}
    assert not packages & {"config", "files", "ops", "data", "vlm", "method", "pruning"}


def test_a_command_without_its_extra_ends_with_code_2(bare):
    assert bare[2] == 2


def test_training_without_deepspeed_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(extras, "find_spec", lambda package: None)
    monkeypatch.setattr(launch.os, "execvpe", None)
    assert main(["train", "--ranks", "1"]) == 2
    assert "pip install 'autoselect[training]'" in capsys.readouterr().err


def test_an_import_error_of_another_kind_stays_as_it_is():
    with pytest.raises(ModuleNotFoundError), extras.extra("tracking"):
        raise ModuleNotFoundError("No module named 'autoselect.gone'", name="autoselect.gone")
    with pytest.raises(ConfigError, match=r"mlflow is not installed.*autoselect\[tracking\]"):
        with extras.extra("tracking"):
            raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow.entities")


def test_users_get_types():
    """`mypy` checks the public modules as with `--strict`, see pyproject.toml."""
    assert (ROOT / "autoselect" / "py.typed").exists()


def test_importing_the_package_imports_no_third_party():
    program = "import sys, autoselect; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tops = {name.partition(".")[0] for name in done.stdout.split()}
    assert not tops & {"torch", "transformers", "numpy", "PIL", "yaml", "mlflow"}
