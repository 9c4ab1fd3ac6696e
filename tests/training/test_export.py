"""The selector of a training names its model so that it means the same everywhere."""

from types import SimpleNamespace

import pytest
import yaml

from autoselect import Selector
from autoselect.config import ScorerConfig, TrainConfig
from autoselect.method.scorer import Scorer
from autoselect.training.export import export
from autoselect.training.state import Progress


@pytest.mark.parametrize(("model", "base"), [("models/vlm", None), ("org/vlm", "org/vlm")])
def test_a_relative_folder_is_no_hub_name_elsewhere(model, base, tmp_path, monkeypatch):
    (tmp_path / "here/models/vlm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    scorer = Scorer(8, ScorerConfig(hidden_size=8, num_layers=1, num_heads=2))
    module = SimpleNamespace(scorer=scorer, vlm=SimpleNamespace(name="vlm", digest="0" * 64))
    run = SimpleNamespace(
        engine=SimpleNamespace(module=module),
        config=TrainConfig(model=model, output="runs"),
        shards=SimpleNamespace(digest="d"),
    )
    export(run, 1, 1, Progress(), tmp_path / "selector")
    monkeypatch.chdir(tmp_path)
    Selector.from_pretrained("selector").save_config("selector")
    head = yaml.safe_load((tmp_path / "selector/README.md").read_text().split("---\n")[1])
    assert head.get("base_model") == base
