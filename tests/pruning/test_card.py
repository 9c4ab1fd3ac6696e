"""Model cards say what is known and no more; selectors travel through the hub and back."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml

from autoselect.config import ConfigError, ScorerConfig
from autoselect.method.scorer import Scorer
from autoselect.pruning.folder import weights_digest
from autoselect.pruning.selector import Selector

METADATA = {
    "model": "llava-hf/llava-1.5-7b-hf",
    "model_name": "llava-1.5-7b-hf",
    "model_digest": "8c85e9a4d626b7b908448be32c1ba5ad79b95e76",
    "data_digest": "d" * 64,
    "steps": 5000,
    "seed": 3,
    "token_budget": 192,
    "min_token_budget": 32,
    "polarisation": 0.9712,
}
REPORT = {
    "model": "llava-1.5-7b-hf",
    "num_tokens": 576,
    "full": {"mean": 0.7, "tasks": {"gqa": 0.6, "pope_random": 0.8}},
    "digests": {"data": "e" * 64},
    "rows": [
        {"method": "random", "budget": 64, "mean": 0.1, "retention": 0.2, "retention_ci95": [0, 1]},
        {
            "method": "autoselect",
            "budget": 64,
            "mean": 0.665,
            "retention": 0.95,
            "retention_ci95": [0.94, 0.96],
        },
    ],
}


def make(metadata: dict) -> Selector:
    torch.manual_seed(0)
    return Selector(Scorer(12, ScorerConfig(hidden_size=8, num_heads=2)), metadata)


def card(folder: Path) -> tuple[dict, str]:
    """Head and text of a card."""
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_card_names_model_data_budgets_and_licence(tmp_path):
    make(METADATA).save_pretrained(tmp_path / "mine")
    head, text = card(tmp_path / "mine")
    assert head["base_model"] == "llava-hf/llava-1.5-7b-hf"
    assert head["license"] == "apache-2.0" and head["library_name"] == "autoselect"
    for known in ("8c85e9a4d626b7b9", "d" * 64, "32 to 192 tokens", "| steps | 5000 |", "0.971"):
        assert known in text
    assert "from_pretrained('llava-hf/llava-1.5-7b-hf')" in text
    assert "Selector.from_pretrained('PATH_OF_THIS_FOLDER')" in text, "its name is no address"
    assert "Not evaluated yet" in text


def test_a_local_model_is_no_base_model_and_its_path_is_not_told(tmp_path):
    make({"model": str(tmp_path / "secret" / "vlm"), "token_budget": 8}).save_pretrained(tmp_path)
    head, text = card(tmp_path)
    assert "base_model" not in head
    assert "AutoProcessor.from_pretrained('PATH_OF_THE_MODEL')" in text
    assert "secret" not in text and "vlm" in text
    assert "| budgets in training | 8 tokens;" in text
    assert "| data digest | unknown |" in text


def test_recorded_scores_are_in_the_card_and_come_back(tmp_path):
    selector = make(METADATA)
    selector.record_scores(REPORT)
    selector.save_pretrained(tmp_path)
    assert "| 64 | 66.5 | 95.0 | 94.0 to 96.0 |" in card(tmp_path)[1]
    assert "| 576 (all) | 70.0 | 100.0 |  |" in card(tmp_path)[1]
    again = Selector.from_pretrained(tmp_path)
    assert again.metadata["scores"]["rows"][0]["retention"] == 0.95
    assert len(again.metadata["scores"]["rows"]) == 1


def test_scores_of_other_weights_are_refused_and_their_kind_is_told(tmp_path):
    selector = make(METADATA)
    own = {**REPORT, "selector_weights": weights_digest(selector.state_dict())}
    selector.record_scores({**own, "settings": {"reference": "model"}})
    selector.save_pretrained(tmp_path)
    assert "Measured with reference=model." in card(tmp_path)[1]
    with torch.no_grad():
        selector.scorer.score.bias += 1
    with pytest.raises(ConfigError, match="report is of another selector"):
        selector.record_scores(own)


def test_the_scores_are_those_of_the_selectors_own_diversity():
    """With `autoselect eval --diversity 0,own` the row of hard top-K comes first."""
    row = {"budget": 64, "mean": 0.7, "retention_ci95": [0.9, 1.0]}
    names = {"autoselect": 0.8, "autoselect:diversity-own": 0.95, "autoselect:diversity-0.4": 0.9}
    rows = [{**row, "method": name, "retention": value} for name, value in names.items()]
    report = {**REPORT, "rows": rows, "settings": {"diversity": "0, 0.40,own"}}
    selector = make(METADATA)
    for diversity, retention in ((0.4, 0.9), (0.5, 0.95), (0.0, 0.8)):
        selector.diversity = diversity
        selector.record_scores(report)
        (found,) = selector.metadata["scores"]["rows"]
        assert found["retention"] == retention
    selector.diversity = 0.7
    with pytest.raises(ConfigError, match="diversity=0,0.4 and no row of the selector's own, 0.7"):
        selector.record_scores({**report, "settings": {"diversity": "0,0.4"}})


@pytest.mark.parametrize("given", [None, "own", "own,0", "0.1,own"])
def test_scores_of_another_own_diversity_than_todays_are_refused(given):
    selector = make(METADATA)
    selector.diversity = [{"share": 0.1, "weight": 0.3}]
    report = {**REPORT, "settings": {"diversity": given}}
    own = json.loads(json.dumps(selector.config["diversity"]))
    selector.record_scores({**report, "selector_diversity": own})
    selector.diversity = 0.4
    with pytest.raises(ConfigError, match="the selector's own is 0.4 now; evaluate it again"):
        selector.record_scores({**report, "selector_diversity": own})


def test_the_shipped_model_is_called_by_what_it_is(tmp_path):
    make({"model": "/somewhere/autoselect/reference/model"}).save_pretrained(tmp_path / "mine")
    assert "# mine: which visual tokens of the reference VLM matter" in card(tmp_path / "mine")[1]


class FakeHub:
    """Keeps repositories as folders; calls are those of huggingface_hub that we use."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []

    def create_repo(self, name, private=False, exist_ok=False):
        assert exist_ok
        (self.root / name).mkdir(parents=True, exist_ok=True)

    def file_exists(self, name, file):
        return (self.root / name / file).is_file()

    def upload_folder(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/1")

    def snapshot_download(self, name, revision=None, allow_patterns=None):
        self.asked.append(f"{name}@{revision}")
        assert set(allow_patterns) == {"selector.safetensors", "config.json", "README.md"}
        if not (self.root / name).is_dir():
            raise FileNotFoundError(f"404: there is no {name}\nsecond line")
        return str(self.root / name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_selector_travels_through_the_hub(hub):
    selector = make(METADATA)
    assert selector.push_to_hub("org/selector").endswith("/org/selector/commit/1")
    assert "Selector.from_pretrained('org/selector')" in card(hub.root / "org/selector")[1]
    loaded = Selector.from_pretrained("org/selector", revision="v1")
    tokens = torch.randn(1, 20, 12)
    assert torch.equal(loaded.score(tokens), selector.score(tokens))
    assert hub.asked == ["org/selector@v1"]


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("/home/me/secret/vlm", "vlm"),
        ("/home/me/autoselect/reference/model", "autoselect/reference/model"),
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
    ],
)
def test_what_is_uploaded_tells_no_path_of_this_machine(hub, model, shown):
    selector = make({"model": model})
    selector.push_to_hub("org/selector", licence="mit")
    uploaded = Selector.from_pretrained("org/selector")
    assert uploaded.metadata == {"model": shown, "licence": "mit"}
    assert card(hub.root / "org/selector")[0]["license"] == "mit"
    assert selector.metadata == {"model": model}


def test_a_folder_of_that_name_comes_first(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(METADATA).save_pretrained("runs/selector")
    Selector.from_pretrained("runs/selector")
    with pytest.raises(ConfigError, match="is a folder here, so revision=v1 would be ignored"):
        Selector.from_pretrained("runs/selector", revision="v1")
    assert hub.asked == []


def test_the_repository_of_a_model_is_not_overwritten(hub):
    (hub.root / "org/model").mkdir(parents=True)
    (hub.root / "org/model/config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ConfigError, match="^repository=org/model has a config.json .* its own$"):
        make(METADATA).push_to_hub("org/model")
    assert [path.name for path in (hub.root / "org/model").iterdir()] == ["config.json"]
    make(METADATA).push_to_hub("org/selector")
    make(METADATA).push_to_hub("org/selector")


def test_what_the_hub_refuses_is_one_line_with_the_fix(hub, monkeypatch):
    with pytest.raises(
        ConfigError, match="is not a folder here, .* 404: there is no org/none; give"
    ):
        Selector.from_pretrained("org/none")
    with pytest.raises(ConfigError, match="must have the form org/name"):
        make({}).push_to_hub("name")

    def refuse(*arguments, **options):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(ConfigError, match="403 Forbidden; log in with `hf auth login`"):
        make({}).push_to_hub("org/mine")
