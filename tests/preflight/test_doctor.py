"""`autoselect doctor` finds every planted fault and names the fix; a sound run passes."""

import json
import re
import shutil
import socket
from collections import namedtuple
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoselect import ops
from autoselect.cli.main import main
from autoselect.config import ConfigError, DataConfig, TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import load_config, to_dict
from autoselect.data.shards import ShardSet, ShardWriter
from autoselect.files.digest import JOINT, quick_digest
from autoselect.preflight import checks as doctor_checks
from autoselect.preflight import doctor
from autoselect.preflight.finding import Machine, Subject
from autoselect.preflight.model_check import check_model
from autoselect.reference.shards import render_sample
from autoselect.training.checkpoint import CheckpointStore, read_checkpoint
from autoselect.training.state import Origin
from autoselect.vlm import loading
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.families import FAMILIES
from tests.preflight.planting import STEPS, free_port
from tests.training.states import make_state
from tests.vlm import model_variants as variants

ROOT = Path(__file__).parents[2]
ZERO2 = ROOT / "configs" / "deepspeed" / "zero2.json"


def test_a_sound_run_passes_every_check(run):
    code, findings = run()
    assert code == 0
    assert set(findings) == {
        *("config", "deepspeed", "packages", "extension", "port", "tracking"),
        *("environment", "launch"),
        *("model", "shards", "epochs", "output", "disk", "budget", "memory"),
    }
    wrong = [f for f in findings.values() if f["status"] != "ok" and f["name"] != "extension"]
    assert not wrong
    assert "2 shards, 8 samples" in findings["shards"]["found"]
    assert findings["epochs"]["found"] == "5 steps x 32 images = 20.0 epochs of 8 samples"
    assert not Path("run").exists()


def plant_unknown_key(monkeypatch):
    return {"gate": {"token_bugdet": 8}}


def plant_missing_processor(monkeypatch):
    Path("model/processor_config.json").unlink()


def plant_missing_package(monkeypatch):
    from transformers import AutoProcessor

    def unavailable(path):
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but it was not")

    monkeypatch.setattr(AutoProcessor, "from_pretrained", unavailable)


def plant_foreign_index(monkeypatch):
    with Path("shards/train-000001.tar").open("ab") as shard:
        shard.write(b"\0" * 10240)


def plant_rows_without_an_answer(monkeypatch):
    with ShardWriter("shards", "train", 4, first_shard=2) as writer:
        for number in range(3):
            _, record, jpeg = render_sample(0, "train", number)
            question = {"conversations": record["conversations"][:1]}
            writer.write(f"silent-{number}", question, [jpeg])


def plant_full_disk(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))


def plant_package(monkeypatch, version):
    real, other = metadata.version, {"transformers": version}
    monkeypatch.setattr(metadata, "version", lambda name: other.get(name) or real(name))


def plant_old_package(monkeypatch):
    plant_package(monkeypatch, "4.57.1")


def plant_new_package(monkeypatch):
    plant_package(monkeypatch, "6.0.0")


def plant_dead_server(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")


def plant_unwritable_output(monkeypatch):
    Path("file").write_text("")
    return {"output": "file/run"}


def plant_unreachable_hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    return {"model": "org/some-model"}


def plant_budget_of_all_tokens(monkeypatch):
    return {"gate": {"token_budget": 144}}


def plant_budget_of_the_search_above_all_tokens(monkeypatch):
    return {"tune_budgets": "16,900"}


def plant_missing_shards_of_the_validation(monkeypatch):
    return {"validation": {"every": 2, "shards": "judges/*.tar"}}


def plant_too_few_rows_for_the_validation(monkeypatch):
    return {"validation": {"every": 2, "images": 128}}


def plant_images_that_fill_the_rows(monkeypatch):
    return {"data": {"train_shards": "shards/train-*.tar", "max_text_tokens": 144}}


FAULTS = [
    (plant_unknown_key, "config", "did you mean gate.token_budget", "correct run.yaml"),
    (plant_missing_processor, "model", "lacks processor_config.json", "hf download"),
    (plant_missing_package, "model", "requires the Torchvision library", "install what it needs"),
    (plant_foreign_index, "shards", "belongs to another file", "autoselect shards index"),
    (
        plant_rows_without_an_answer,
        "shards",
        "3 samples with pictures but no answer",
        "data.quarantine_budget=0.273",
    ),
    (plant_full_disk, "disk", "0.0 GiB free", "lower keep_checkpoints"),
    (plant_old_package, "packages", "transformers 4.57.1 is not <6,>=", "make setup"),
    (plant_new_package, "packages", "transformers 6.0.0 is not <6,>=", "make setup"),
    (plant_unwritable_output, "output", "Not a directory", "choose another `output`"),
    (plant_unreachable_hub, "model", "cannot be reached", "hf download org/some-model"),
    (plant_budget_of_all_tokens, "budget", "144 of 144", "below 144"),
    (
        plant_budget_of_the_search_above_all_tokens,
        "budget",
        "budget=900 exceeds the 144",
        "correct these budgets",
    ),
    (
        plant_missing_shards_of_the_validation,
        "shards",
        "the folder judges does not exist",
        "correct validation.shards",
    ),
    (
        plant_too_few_rows_for_the_validation,
        "shards",
        "validation.images=128",
        "do what it says",
    ),
    (plant_images_that_fill_the_rows, "budget", "no room", "data.max_text_tokens above 144"),
]


MODEL_FAULTS = [
    *variants.WRONG_FILES,
    variants.NO_WEIGHTS,
    *variants.OTHER_PROCESSOR,
]


@pytest.mark.parametrize("fault", MODEL_FAULTS, ids=lambda fault: fault[0].__name__[6:])
def test_a_fault_of_the_models_files_is_found_and_its_fix_is_named(prepared, tmp_path, fault):
    """The model's check alone: the others read nothing of the weights or the processor."""
    plant, found, fix = fault
    plant(variants.linked_copy(prepared / "model", tmp_path / "model"))
    config = TrainConfig(model=str(tmp_path / "model"))
    subject = Subject(config, DeepSpeedConfig.load(str(ZERO2)), "", Machine(1, None, None, None, 0))
    finding = check_model(subject)
    assert (finding.name, finding.status) == ("model", "fail")
    assert found in finding.found and fix in finding.fix
    assert finding.found.startswith(f"{tmp_path}/model ") and "\n" not in finding.found


@pytest.mark.parametrize("name", ["./none", "empty", "file", "org/none"])
def test_a_model_that_is_not_here_is_named_as_by_training(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("empty").mkdir()
    Path("file").touch()
    deepspeed = DeepSpeedConfig.load(str(ZERO2))
    machine = Machine(1, None, None, None, 0)
    finding = check_model(Subject(TrainConfig(model=name), deepspeed, "", machine))
    with pytest.raises(ConfigError) as error:
        loading.check_model(name)
    assert finding.status == "fail"
    assert without_reason(f"model={finding.found}; {finding.fix}") == without_reason(
        str(error.value)
    )


def without_reason(text):
    return re.sub(r"does not give it \(.*\);", "does not give it;", text)


@pytest.mark.parametrize(
    ("traits", "rounds", "found", "fix"),
    [
        ({"convolutions": True}, "independent", "would mix the rounds", "data.rounds=conversation"),
        ({"convolutions": True}, "conversation", "weight files", ""),
        ({"untrained": "it hums"}, "conversation", "cannot be trained on: it hums", "another"),
    ],
)
def test_a_family_that_training_refuses_is_found(prepared, monkeypatch, traits, rounds, found, fix):
    monkeypatch.setitem(FAMILIES, "llava", replace(FAMILIES["llava"], **traits))
    config = TrainConfig(model=str(prepared / "model"), data=DataConfig(rounds=rounds))
    subject = Subject(config, DeepSpeedConfig.load(str(ZERO2)), "", Machine(1, None, None, None, 0))
    finding = check_model(subject)
    assert finding.status == ("fail" if fix else "ok")
    assert found in finding.found and fix in finding.fix


@pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda fault: fault[0].__name__.removeprefix("plant_")
)
def test_a_planted_fault_is_found_and_its_fix_is_named(run, monkeypatch, fault):
    plant, name, found, fix = fault
    doctor_checks._read_shape.cache_clear()
    changes = plant(monkeypatch) or {}
    code, findings = run(**changes)
    assert code == 1
    assert [n for n, finding in findings.items() if finding["status"] == "fail"] == [name]
    assert found in findings[name]["found"]
    assert fix in findings[name]["fix"]


def test_a_taken_port_and_a_small_gpu_are_found(run):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        code, findings = run("--port", str(taken.getsockname()[1]), "--gpu-memory", "0.5")
    assert code == 1
    assert findings["port"]["status"] == "fail"
    assert "MASTER_PORT=PORT" in findings["port"]["fix"]
    assert findings["memory"]["status"] == "fail"
    assert "of 0.5 GiB" in findings["memory"]["found"]


@pytest.mark.parametrize("port", ["0", "70000", "-1"])
def test_a_number_that_is_no_port_is_found(run, port):
    code, findings = run("--port", port)
    assert code == 1
    assert findings["port"]["found"] == f"{port} is not a port; those are 1..65535"
    assert "MASTER_PORT=PORT" in findings["port"]["fix"]


def test_the_port_is_that_of_the_environment(monkeypatch, capsys):
    command = ["doctor", "--deepspeed", "no.json", "--json"]
    monkeypatch.setenv("MASTER_PORT", "70000")
    assert main(command) == 1 and "70000 is not a port" in capsys.readouterr().out
    monkeypatch.setenv("MASTER_PORT", "")
    assert main(command) == 1 and "29500 " in capsys.readouterr().out
    monkeypatch.setenv("MASTER_PORT", "here")
    assert main(command) == 2
    assert "MASTER_PORT=here is not a port; set it to a number" in capsys.readouterr().err


def test_the_longest_rows_decide_about_memory(run):
    """With memory between the needs of typical and longest rows, only shorter rows fit."""
    code, findings = run()
    found = findings["memory"]["found"]
    worst, usual = map(float, re.findall(r"(?:about|tokens=2048;) ([\d.]+)", found))
    between = str((worst + usual) / 2)
    code, findings = run("--gpu-memory", between)
    assert code == 1 and findings["memory"]["status"] == "fail"
    fix = findings["memory"]["fix"]
    assert "activation_checkpointing: true" in fix and "data.max_text_tokens" in fix
    code, findings = run("--gpu-memory", between, "--data.max_text_tokens=200")
    assert code == 0 and findings["memory"]["status"] == "ok"
    flags = ("--data.max_text_tokens=20000", "--activation_checkpointing=true")
    code, findings = run("--gpu-memory", between, *flags)
    assert "activation_checkpointing" not in findings["memory"]["fix"]


@pytest.mark.parametrize(("capability", "status"), [((12, 0), "fail"), ((8, 9), "ok")])
def test_a_gpu_that_no_kernel_was_built_for_is_found(run, monkeypatch, capability, status):
    built = {"native": True, "cuda_architectures": "8.0;9.0"}
    monkeypatch.setattr(ops, "build_info", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capability)
    found = run()[1]["extension"]
    assert found["status"] == status
    if status == "fail":
        assert "no kernel for GPU 0 of capability 12.0" in found["found"]
        assert "TORCH_CUDA_ARCH_LIST='8.0;9.0;12.0'" in found["fix"]


def test_devices_that_do_not_divide_the_batch_are_found(run):
    code, findings = run("--gpus", "7")
    assert code == 1 and findings["deepspeed"]["status"] == "fail"
    assert "another number of --gpus" in findings["deepspeed"]["fix"]


def test_settings_of_zero_that_deepspeed_refuses_are_found(run, tmp_path):
    path = tmp_path / "zero2.json"
    path.write_text(ZERO2.read_text().replace("overlap_comm", "overlap_com"))
    code, findings = run("--deepspeed", str(path))
    assert code == 1 and findings["deepspeed"]["status"] == "fail"
    assert "zero_optimization.overlap_com=False is refused" in findings["deepspeed"]["found"]


def test_a_dead_tracking_server_is_no_fault_of_a_run_that_does_not_track(run, monkeypatch):
    """The test follows the advice of the failing check."""
    plant_dead_server(monkeypatch)
    code, findings = run("--tracking=false")
    assert code == 0
    assert findings["tracking"]["status"] == "ok"
    assert "tracking is off" in findings["tracking"]["found"]


def test_steps_for_more_data_than_there_is_are_found(run):
    code, findings = run("--steps=5000")
    assert (code, findings["epochs"]["status"]) == (0, "warn")
    assert "5000 steps x 32 images = 20,000 epochs of 8 samples" in findings["epochs"]["found"]
    assert "lower `steps` to 5 or fewer (20 epochs), and `save_every`" in findings["epochs"]["fix"]


def test_the_reference_run_sees_less_than_its_data(run):
    _, findings = run(data={"train_shards": "reference"}, steps=TrainConfig().steps)
    assert findings["epochs"]["status"] == "ok"
    assert "240 steps x 32 images = 0.8 epochs of 10000" in findings["epochs"]["found"]


def test_missing_indexes_are_said_and_not_built(run):
    index = Path("shards/train-000001.tar.index.jsonl")
    index.unlink()
    before = sorted(Path("shards").iterdir())
    code, findings = run()
    assert code == 0 and findings["shards"]["status"] == findings["epochs"]["status"] == "warn"
    assert "1 of 2 shards have no index, such as" in findings["shards"]["found"]
    assert "train-000001.tar" in findings["shards"]["found"]
    assert "autoselect shards index" in findings["shards"]["fix"]
    assert sorted(Path("shards").iterdir()) == before


def test_indexes_are_not_built_beside_a_run_either(run, begun):
    begun(2)
    Path("shards/train-000001.tar.index.jsonl").unlink()
    before = sorted(Path("shards").iterdir())
    assert run()[1]["output"]["status"] == "warn"
    assert sorted(Path("shards").iterdir()) == before


@pytest.fixture
def begun(run, tmp_path):
    """Return a function that writes a checkpoint of the good run at a step."""
    run()

    def begin(step: int, **changes) -> Path:
        config = load_config(TrainConfig, "run.yaml", [])
        weights = quick_digest(tmp_path / "model" / "config.json")
        state = replace(
            make_state(step),
            config=to_dict(config) | changes,
            origin=Origin(
                ShardSet.open(config.data.train_shards).digest,
                f"whole{JOINT}{weights}",
                DeepSpeedConfig.load(str(ZERO2)).step_settings(),
            ),
        )
        return CheckpointStore("run/checkpoints", keep=3).save(state)

    return begin


def test_a_run_that_lies_there_is_named(run, begun):
    begun(2)
    code, findings = run()
    assert (code, findings["output"]["status"]) == (0, "warn")
    assert f"resumes at step 2 of {STEPS}" in findings["output"]["found"]
    assert run("--gpus", "2")[1]["output"] == findings["output"], "at any number of ranks"
    begun(STEPS)
    assert "holds a finished run" in run()[1]["output"]["found"]


def test_a_run_that_a_validation_ended_is_finished_if_its_best_selector_is_there(run, begun):
    validation = {"every": 10, "patience": 2, "images": 1, "shards": "shards/train-*.tar"}
    run(validation=validation)
    checkpoint = begun(2)
    state = read_checkpoint(checkpoint)
    shutil.rmtree(checkpoint)
    progress = replace(state.progress, best_loss=1.0, best_step=1, since_best=2)
    CheckpointStore("run/checkpoints").save(replace(state, progress=progress))
    code, findings = run(validation=validation)
    assert code == 1 and "run/best must hold the selector of step 1" in str(findings["output"])
    Path("run/best").mkdir()
    Path("run/best/config.json").write_text(json.dumps({"training": {"steps": 1}}))
    assert "holds a finished run" in run(validation=validation)[1]["output"]["found"]


def test_a_configuration_of_the_user_in_the_output_folder_is_found(run, begun):
    settings = begun(2).parents[1] / "config.yaml"
    settings.write_text("steps: 3\n")
    code, findings = run()
    assert (code, findings["output"]["status"]) == (1, "fail")
    assert "would replace a file" in findings["output"]["found"]


def test_a_damaged_checkpoint_is_found_before_the_run(run, begun):
    begun(2)
    newest = begun(3)
    (newest / "exp_avg.safetensors").unlink()
    code, findings = run()
    assert (code, findings["output"]["status"]) == (0, "warn")
    found = findings["output"]["found"]
    assert "resumes at step 2" in found and "step-00000003" in found, "the older one is used"
    shutil.rmtree(newest.with_name("step-00000002"))
    code, findings = run()
    assert (code, findings["output"]["status"]) == (1, "fail")
    assert "exp_avg.safetensors" in findings["output"]["found"]
    assert "from a backup" in findings["output"]["fix"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda folder: {"seed": 5}, "seed: 0 -> 5"),
        (lambda folder: (folder / "shards" / "train-000001.tar").unlink(), "other data"),
        (lambda folder: other_weights(folder / "model"), "other weights"),
    ],
    ids=["settings", "data", "weights"],
)
def test_a_run_that_would_not_resume_is_found(run, begun, tmp_path, change, found):
    begun(2)
    code, findings = run(**(change(tmp_path) or {}))
    assert code == 1 and found in findings["output"]["found"]
    assert "choose another `output`" in findings["output"]["fix"]


def other_weights(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file({n: t + 1 for n, t in tensors.items()}, model / "model.safetensors", {"format": "pt"})


def test_settings_behind_two_dashes_are_those_of_training(run, tmp_path):
    code, findings = run("--gate.token_budget=200")
    assert code == 1 and findings["budget"]["found"].startswith("200 of 144")


def test_the_table_ends_with_the_counts():
    findings = [
        doctor.Finding("port", "ok", "29500 is free"),
        doctor.Finding("disk", "fail", "nothing left", "free some space"),
    ]
    lines = doctor.table(findings).splitlines()
    assert lines[1].startswith("FAIL  disk") and lines[2].strip() == "-> free some space"
    assert lines[-1] == "2 checks: 1 failed, 0 with a warning"


@pytest.mark.parametrize(("tokens", "status"), [(144, "ok"), (1, "warn")])
def test_random_removal_is_measured_on_request(run, monkeypatch, tokens, status):
    """With every token kept nothing changes; a model that says nothing else does not end."""
    from autoselect.method import removal

    if status == "warn":
        seen = iter([removal.Outcome(1.0, 4, 2, 2, 2), *[removal.Outcome(9.0, 4, 2, 0, 0)] * 2])
        monkeypatch.setattr(removal, "forced_outcome", lambda *_: next(seen))
    gate = {"token_budget": tokens, "min_token_budget": tokens}
    _, findings = run("--removal-images", "2", gate=gate)
    found = findings["removal"]
    assert found["status"] == status and f"; {tokens}: loss" in found["found"]
    assert ("does not end its answers with 1 random" in found["fix"]) == (status == "warn")
    assert "removal" not in run()[1]


def test_random_removal_runs_in_the_dtype_of_training(run, monkeypatch):
    loaded, load = [], FrozenVLM.from_pretrained

    def remembered(*arguments, **keywords):
        vlm = load(*arguments, **keywords)
        loaded.append(next(vlm.model.parameters()).dtype)
        return vlm

    monkeypatch.setattr(FrozenVLM, "from_pretrained", remembered)
    _, findings = run("--removal-images", "2", dtype="bfloat16")
    assert "loss" in findings["removal"]["found"] and loaded == [torch.bfloat16]
