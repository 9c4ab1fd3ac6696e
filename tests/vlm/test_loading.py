"""A processor that cannot be built is named before the weights are read; digests of weights."""

import re
import shutil
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AutoModelForImageTextToText

from autoselect.config import ConfigError
from autoselect.reference.resources import MODEL_FOLDER
from autoselect.vlm import loading, model_files
from autoselect.vlm.image_classifier import load_classifier
from autoselect.vlm.loading import check_model, load, load_processor, weights_digest
from autoselect.vlm.model_files import local_folder
from autoselect.vlm.quantised import check_trainable
from tests.vlm import tiny_processors
from tests.vlm.stock import model_of


@pytest.fixture
def folder(tmp_path):
    """Qwen2.5-VL as it comes from the hub: its processor has a part for clips."""
    model_of("qwen2_5_vl").save_pretrained(tmp_path)
    processor = tiny_processors.qwen2_5_vl()
    processor.tokenizer.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    names = '{"processor_class": "Qwen2_5_VLProcessor"}'
    (tmp_path / "processor_config.json").write_text(names)
    return tmp_path


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_package_that_the_processor_needs_is_named(folder, monkeypatch):
    with pytest.raises(ConfigError, match="(?i)needs a package .* torchvision"):
        load_processor(folder)

    def read(*arguments, **more):
        raise AssertionError("the weights were read first")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", read)
    with pytest.raises(ConfigError, match=f"model={folder}: its processor"):
        load(folder, None, torch.device("cpu"))


def test_a_folder_without_a_processor_is_named(folder):
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer.json"):
        (folder / file).unlink(missing_ok=True)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="has no processor"):
        load_processor(folder)


def test_weights_have_one_digest_under_a_hub_name_and_in_a_folder(tmp_path, monkeypatch):
    repository = tmp_path / "models--org--vlm"
    snapshot = repository / "snapshots" / "0123"
    shutil.copytree(MODEL_FOLDER, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert local_folder("org/vlm") == snapshot
    assert weights_digest("org/vlm") == weights_digest(MODEL_FOLDER) == weights_digest(snapshot)
    weights = bytearray((snapshot / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (snapshot / "model.safetensors").write_bytes(weights)
    assert weights_digest("org/vlm") != weights_digest(MODEL_FOLDER)
    assert local_folder("org/unknown") is None and weights_digest("org/unknown") == "org/unknown"


def test_a_hub_model_is_downloaded_unless_it_is_in_the_cache(tmp_path, monkeypatch):
    asked = []

    def hub(name, allow_patterns):
        asked.append(tuple(allow_patterns))
        if name == "org/gone":
            raise LocalEntryNotFoundError("the hub cannot be reached")
        (tmp_path / "config.json").touch()
        if "*.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr(loading, "snapshot_download", hub)
    cached = tmp_path / "config.json"
    monkeypatch.setattr(
        model_files, "try_to_load_from_cache", lambda *_: str(cached) if cached.exists() else None
    )
    loading.download("org/name")
    assert len(asked) == 2 and "*.bin" in asked[1], "weights that are not safetensors"
    loading.download("org/name")
    loading.download(tmp_path)
    assert len(asked) == 2, "nothing was missing"
    cached.unlink()
    with pytest.raises(ConfigError, match="model=org/gone .*hf download org/gone"):
        loading.download("org/gone")


NOT_HERE = {
    "./none": "is neither a folder here nor a hub name; correct the path, or give a hub name",
    "/no/such/model": "is neither a folder here nor a hub name; correct the path",
    "empty": "has no config.json; give the folder of a whole transformers model, or a hub name",
    "notes/config.json": "is a file; give the folder of a whole transformers model, or a hub name",
    "org/none": "is not a folder here, and the hub does not give it (",
}


@pytest.mark.parametrize("name", NOT_HERE)
def test_a_model_that_is_not_here_is_named_alike_everywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    Path("empty").mkdir()
    Path("notes").mkdir()
    Path("notes/config.json").write_text("{}")
    said = f"{name} {NOT_HERE[name]}"
    for told in (check_model, load_classifier, lambda name: load(name, None, torch.device("cpu"))):
        with pytest.raises(ConfigError, match=re.escape(said)) as error:
            told(name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", [0, 1])
def test_parts_of_a_quantised_weight_are_finite(place):
    """A quantised weight is numbers with their scales."""
    parts = [torch.ones(2, 2), torch.ones(2, 2)]
    model = torch.nn.Linear(2, 2)
    model.weight = torch.nn.Parameter(TwoTensor(*parts))
    loading.check_finite("folder", model)
    parts[place][0, 0] = torch.inf
    with pytest.raises(ConfigError, match="1 weights with numbers that are not finite"):
        loading.check_finite("folder", model)


class Settings:
    def to_dict(self):
        return {"quant_method": Method.TORCHAO}


class Method(Enum):
    TORCHAO = "torchao"


FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize(
    ("settings", "device", "reason"),
    [
        ({"quant_method": "torchao"}, None, "which DeepSpeed cannot move"),
        (Settings(), "cuda", "which DeepSpeed cannot move"),
        (FOUR_BITS, "cpu", "give wrong gradients"),
        (FOUR_BITS, "cuda", None),
        (FOUR_BITS, None, None),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "cpu", None),
        (None, "cpu", None),
    ],
)
def test_a_quantised_model_that_cannot_be_trained_on_is_named(settings, device, reason):
    config = SimpleNamespace(quantization_config=settings)
    device = None if device is None else torch.device(device)
    if reason is None:
        check_trainable("org/vlm", config, device)
    else:
        with pytest.raises(ConfigError, match=f"model=org/vlm cannot be trained on.*{reason}"):
            check_trainable("org/vlm", config, device)


def test_weights_that_cannot_be_split_over_ranks_are_named(monkeypatch):
    """At ZeRO-3 transformers raises what it reports elsewhere, as for Qwen3-VL-MoE."""

    def mistaken(*_arguments, **_named):
        raise RuntimeError(
            "Error(s) in loading state_dict for Some:\n\tsize mismatch for experts.down_proj: no"
        )

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", mistaken)
    with pytest.raises(ConfigError, match="size mismatch for experts.down_proj.* stage 2 or less"):
        load(MODEL_FOLDER, torch.float32, torch.device("cpu"))
