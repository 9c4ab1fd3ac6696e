"""The shipped DeepSpeed files are valid; every mistake in one has a message with the fix."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from autoselect.config import ConfigError
from autoselect.config.deepspeed import DeepSpeedConfig

FOLDER = Path(__file__).parents[2] / "configs" / "deepspeed"
STAGES = {
    "zero0": 0,
    "zero1": 1,
    "zero2": 2,
    "zero3": 3,
    "zero3_offload": 3,
}
PUBLIC_STAGES = {f"public_{name}": stage for name, stage in STAGES.items() if stage > 0}
ADAM: dict[str, Any] = {"type": "AdamW", "params": {"torch_adam": True}}
MINIMAL = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "optimizer": ADAM}


def adam(**parameters: Any) -> dict[str, Any]:
    return {"optimizer": {"type": "AdamW", "params": ADAM["params"] | parameters}}


def write(folder: Path, text: str) -> Path:
    path = folder / "config.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", STAGES)
def test_shipped_files_state_the_reference_run(name: str) -> None:
    config = DeepSpeedConfig.load(FOLDER / f"{name}.json")
    assert config.zero_stage == STAGES[name]
    assert config.gradient_clipping == 1.0
    sizes = config.split(world_size=2)
    assert (sizes.total, sizes.micro, sizes.accumulation) == (32, 16, 1)


@pytest.mark.parametrize("name", PUBLIC_STAGES)
def test_files_for_public_models_split_over_whole_nodes(name: str) -> None:
    config = DeepSpeedConfig.load(FOLDER / f"{name}.json")
    assert config.zero_stage == PUBLIC_STAGES[name]
    for count in (1, 2, 4, 8, 16, 32):
        sizes = config.split(world_size=count)
        assert (sizes.total, sizes.micro, sizes.accumulation) == (128, 4, 32 // count)


@pytest.mark.parametrize("name", PUBLIC_STAGES)
def test_files_for_public_models_differ_in_batch_sizes_only(name: str) -> None:
    public = DeepSpeedConfig.load(FOLDER / f"{name}.json")
    reference = DeepSpeedConfig.load(FOLDER / f"{name.removeprefix('public_')}.json")
    assert public == reference.with_batch(public.total_batch, public.micro_batch)


def test_no_other_file_is_shipped() -> None:
    known = {*STAGES, *PUBLIC_STAGES, "zero2_one_card"}
    assert {path.stem for path in FOLDER.iterdir()} == known
    one, usual = (
        json.loads((FOLDER / f"{n}.json").read_text()) for n in ("zero2_one_card", "zero2")
    )
    assert one == usual | {"train_micro_batch_size_per_gpu": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"train_batch_size": 8,}', "not valid JSON"),
        ("[]", "not a JSON object"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"train_batch_size": 8, "train_batch_size": 9}', "appears twice"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message):
        DeepSpeedConfig.load(path)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_arguments: Any, **_named: Any) -> str:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, "{}")
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match="config.json cannot be read: .*Permission denied; mend"):
        DeepSpeedConfig.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist.*configs/deepspeed"):
        DeepSpeedConfig.load(tmp_path / "zero9.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_batch_sise": 8}, "unknown key train_batch_sise"),
        ({"bf16": {"enabled": True}}, "kept in float32"),
        ({"fp16": {"enabled": True}}, "kept in float32"),
        ({"train_batch_size": "64"}, "train_batch_size='64' is not a positive integer"),
        ({"train_batch_size": 0}, "train_batch_size=0 is not"),
        ({"train_micro_batch_size_per_gpu": True}, "is not a positive integer"),
        ({"train_batch_size": None}, "is not a positive integer"),
        ({"zero_optimization": {"stage": 4}}, "choose 0, 1, 2 or 3"),
        ({"zero_optimization": 2}, "zero_optimization=2 is not a JSON object"),
        ({"communication_data_type": "bf16"}, "communication_data_type='bf16' loses"),
        ({"data_types": {"grad_accum_dtype": "fp16"}}, "grad_accum_dtype='fp16' loses"),
        ({"gradient_clipping": -1.0}, "gradient_clipping=-1.0"),
        ({"gradient_clipping": math.nan}, "gradient_clipping=nan must be 0"),
        ({"data_types": {"grad_acum_dtype": "fp32"}}, "unknown key data_types.grad_acum_dtype"),
        ({"steps_per_print": "x"}, "steps_per_print='x' is not a positive integer"),
        ({"activation_checkpointing": {}}, "no effect here.*--activation_checkpointing true"),
        ({"optimizer": "AdamW"}, "optimizer='AdamW' is not a JSON object"),
        ({"optimizer": {"type": "AdamW", "params": 3}}, "optimizer.params=3 is not a JSON object"),
        ({"optimizer": {}}, "optimizer.type=None is not supported.*torch_adam"),
        ({"optimizer": {"type": "SGD"}}, "optimizer.type='SGD' is not supported"),
        ({"optimizer": {"type": "AdamW"}}, "optimizer.params.torch_adam=None is not supported"),
        ({"optimizer": ADAM | {"parms": {}}}, "unknown key optimizer.parms"),
        (adam(torch_adam="true"), "optimizer.params.torch_adam='true' is not supported"),
        (adam(beta=[0.9, 0.9]), "unknown key optimizer.params.beta; known keys: .*betas"),
        (adam(maximize=True), "unknown key optimizer.params.maximize"),
        (adam(amsgrad=True), "unknown key optimizer.params.amsgrad"),
        (adam(betas=[0.9]), r"betas=\[0.9\] must be two numbers"),
        (adam(betas=[0.9, 1.0]), "must be two numbers of 0..1, below 1"),
        (adam(eps="1e-8"), "eps='1e-8' must be a number above 0"),
        (adam(eps=0), "eps=0 must be a number above 0"),
        (adam(adam_w_mode=False), "adam_w_mode=False must be true"),
        (adam(lr=1e-4), "params.lr=0.0001 would have no effect.*--optimizer.learning_rate"),
        (
            adam(weight_decay=0.1),
            "params.weight_decay=0.1 would have no effect.*--optimizer.weight_decay",
        ),
    ],
)
def test_mistakes_have_a_fix(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    DeepSpeedConfig.load(write(tmp_path, json.dumps(MINIMAL)))
    path = write(tmp_path, json.dumps(MINIMAL | changes))
    with pytest.raises(ConfigError, match=message):
        DeepSpeedConfig.load(path)


@pytest.mark.parametrize("key", MINIMAL)
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    config = {name: value for name, value in MINIMAL.items() if name != key}
    with pytest.raises(ConfigError, match=f"missing key {key}"):
        DeepSpeedConfig.load(write(tmp_path, json.dumps(config)))


def test_every_split_of_the_global_batch_is_exact_or_refused() -> None:
    for total in (1, 6, 8, 64):
        for micro in (1, 2, 3, 32):
            for world_size in (1, 2, 3, 4, 128):
                config = DeepSpeedConfig(MINIMAL).with_batch(total, micro)
                if total % (micro * world_size) == 0:
                    sizes = config.split(world_size)
                    assert sizes.micro * sizes.accumulation * world_size == total
                else:
                    with pytest.raises(ConfigError, match="choose") as refused:
                        config.split(world_size)
                    advised = re.search(r"such as (\d+)", str(refused.value))
                    if advised:
                        DeepSpeedConfig(MINIMAL).with_batch(int(advised[1]), micro).split(
                            world_size
                        )


def test_the_dictionary_for_deepspeed_is_a_copy_of_the_file() -> None:
    config = DeepSpeedConfig.load(FOLDER / "zero3_offload.json")
    given = config.to_dict()
    assert given == json.loads((FOLDER / "zero3_offload.json").read_text())
    given["optimizer"]["params"]["lr"] = 1.0
    assert config.to_dict() != given
    assert config.offloads_parameters and not load("zero3").offloads_parameters


def load(name: str) -> DeepSpeedConfig:
    return DeepSpeedConfig.load(FOLDER / f"{name}.json")
