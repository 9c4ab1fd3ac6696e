import json
import shutil
from dataclasses import asdict, replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

from autoselect.cli.main import main
from autoselect.config import ConfigError, GateConfig, TrainConfig
from autoselect.data.shards import ShardSet, ShardWriter
from autoselect.evaluation.analyses import classifier as analyses_classifier
from autoselect.evaluation.analyses import run as analyses
from autoselect.evaluation.analyses.classifier import (
    LabelledImages,
    classifier_accuracy,
    labelled_images,
    part_of,
    resize_selection,
)
from autoselect.evaluation.analyses.fidelity import (
    NOISE,
    REMOVAL,
    TREATMENTS,
    gating_fidelity,
    learned_positions,
    token_noises,
    warn_of_gap,
)
from autoselect.evaluation.analyses.frequency import selection_frequency
from autoselect.evaluation.analyses.gates import gate_samples, polarisation_course
from autoselect.evaluation.analyses.kinds import CLASSIFIER, KINDS
from autoselect.evaluation.analyses.line_figures import classifier_figure
from autoselect.evaluation.analyses.run import ANALYSES, Subject, write_analysis
from autoselect.evaluation.analyses.similarity import token_similarity
from autoselect.evaluation.figures.style import spread
from autoselect.evaluation.samples import encode_samples
from autoselect.method.gating import GateSetting
from autoselect.method.model import AutoSelect
from autoselect.method.statistics import calibrate
from autoselect.pruning.selector import Selector
from autoselect.reference.jpeg import to_jpeg
from autoselect.reference.scenes import make_scene
from autoselect.tracking import Tracker
from autoselect.vlm import FrozenVLM
from autoselect.vlm.image_classifier import only_patches
from tests.evaluation.fakes import GRID, FakeAsked, FakeSelector, FakeVLM, make_samples

N = GRID * GRID


def test_similarity_by_hand():
    """One red token among greys: the best differ from the worst, greys are alike."""
    found = token_similarity(FakeVLM(), FakeSelector(), make_samples(6), count=1)
    assert found.matrix.shape == (2, 2)
    torch.testing.assert_close(found.matrix.diagonal(), torch.ones(2))
    assert found.across < 0.8
    greys = token_similarity(FakeVLM(), FakeSelector(), make_samples(6), count=4)
    assert greys.bottom > 0.99 > greys.top


def test_frequency_sums_to_the_budget_and_counts_by_hand():
    samples = make_samples(20)
    shares = selection_frequency(FakeVLM(), FakeSelector(), samples, (1, 5), images_per_batch=7)
    assert float(shares[1].sum()) == pytest.approx(1)
    assert float(shares[5].sum()) == pytest.approx(5)
    expected = torch.zeros(N)
    for sample in samples:
        left, top, _, _ = sample.boxes[0][0]
        expected[top // 4 * GRID + left // 4] += 1 / 20
    torch.testing.assert_close(shares[1], expected)


def test_noise_gating_keeps_kept_tokens_and_says_nothing_of_the_others():
    asked, samples = FakeAsked(), make_samples(24)
    noises = token_noises(asked.vlm, samples)
    found = gating_fidelity(asked, samples, (4, N), noises, 4, images_per_batch=10)
    assert set(found["curves"]) == set(TREATMENTS)
    for values in found["curves"].values():
        assert values[1] == 1.0, "with every token kept all treatments are the full model"
    assert found["gaps"][1]["gap"] == 0 and found["gaps"][1]["ci95"] == [0, 0]
    low, high = found["gaps"][0]["ci95"]
    assert low <= found["gaps"][0]["gap"] <= high


def test_the_interval_of_a_gap_counts_draws_that_miss_a_task():
    """Six tasks of one image: a draw holds all of them only if it is the sample itself."""
    asked, samples = FakeAsked(), make_samples(6)
    samples = [replace(own, tasks=(f"task {i}",) * len(own.tasks)) for i, own in enumerate(samples)]
    noises = token_noises(asked.vlm, samples)
    (row,) = gating_fidelity(asked, samples, (2,), noises, 4)["gaps"]
    assert 0 < row["gap"] < 1
    assert row["ci95"][0] < row["gap"] < row["ci95"][1]


def test_the_gap_under_the_learned_scores_is_that_of_removal_alone(caplog):
    """The stand-in says red if no colour is left, and the noise of its data looks coloured."""

    class Worst(FakeSelector):
        def score(self, tokens, mask=None):
            return -super().score(tokens, mask)

    asked, samples = FakeAsked(), make_samples(24)
    noises = token_noises(asked.vlm, samples)
    best = gating_fidelity(asked, samples, (2,), noises, 4, learned_positions(FakeSelector()))
    assert best["curves"][REMOVAL] == [1.0]
    worst = gating_fidelity(asked, samples, (2,), noises, 4, learned_positions(Worst()))
    assert worst["curves"][REMOVAL] == [0.0], "a few grey tokens have no colour"
    gap = worst["curves"][NOISE][0] - worst["curves"][REMOVAL][0]
    assert worst["gaps"][0]["gap"] == gap > 0.02
    assert worst["unended"][REMOVAL] == [0.0], "the stand-in ends unless it sees no token"
    warn_of_gap(best)
    assert not caplog.records
    warn_of_gap(worst)
    assert "with 2 tokens under the learned scores" in caplog.text


def test_gates_sum_to_the_budget_and_polarise_as_the_temperature_falls():
    selector = selector_of(GateConfig(temperature_start=9.0, temperature_end=0.01))
    found = gate_samples(FakeVLM(), selector, make_samples(8), 1)
    assert [sample.temperature for sample in found] == pytest.approx([9.0, 0.3, 0.01])
    for sample in found:
        assert float(sample.gates.sum()) == pytest.approx(8, rel=1e-3)
    assert found[0].polarisation < found[1].polarisation < found[2].polarisation
    assert found[2].polarisation > 0.99


def selector_of(gate):
    """Return a stand-in that was trained with these settings of the gate."""
    selector = FakeSelector()
    selector.metadata = {"gate": asdict(gate)}
    return selector


PAPER = GateConfig(standardise=False, temperature_start=2.0, temperature_end=0.1)


@pytest.mark.parametrize("gate", [PAPER, GateConfig(coverage=0.5), GateConfig(kind="zero_fill")])
def test_gates_are_those_of_the_model_in_training(gate, model_folder):
    torch.manual_seed(0)
    vlm = FrozenVLM.from_pretrained(model_folder)
    samples = make_samples(3)
    visual = encode_samples(vlm, samples, gate.site)
    statistics = calibrate([visual.gated.flatten(0, 1)], 8)
    model = AutoSelect(vlm, TrainConfig(gate=gate), statistics).eval()
    selector = Selector(model.scorer, {"gate": asdict(gate)})
    found = gate_samples(vlm, selector, samples, 16)
    assert (found[0].temperature, found[-1].temperature) == (
        gate.temperature_start,
        gate.temperature_end,
    )
    for sample in found:
        setting = GateSetting(16, sample.temperature, seed=0, step=0)
        with torch.no_grad():
            gates = model.gate(visual, setting, torch.arange(3)).gates
        torch.testing.assert_close(sample.gates, gates.flatten())
        share = gates.topk(16, dim=-1).values.sum(-1) / 16
        assert sample.polarisation == pytest.approx(float(share.mean()))


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "training.gate is missing .* copy the group train.gate"),
        ({"gate": {"heat": 1}}, "training.gate .* unknown configuration key gate.heat=1"),
        ({"gate": asdict(GateConfig(kind="gumbel"))}, "gate.kind=gumbel .* gates of 0 and 1"),
    ],
)
def test_gates_that_are_unknown_or_hard_are_not_analysed(metadata, reason):
    selector = FakeSelector()
    selector.metadata = metadata
    with pytest.raises(ConfigError, match=reason):
        gate_samples(FakeVLM(), selector, make_samples(2), 1)


def test_resized_selection_covers_the_same_area():
    positions = torch.tensor([[0, 1, 6, 7]])
    assert resize_selection(positions, (6, 6), (3, 3)).tolist() == [[0]]
    assert resize_selection(positions, (6, 6), (6, 6)).tolist() == positions.tolist()
    larger = resize_selection(positions, (6, 6), (12, 12))
    assert larger.shape == (1, 16)
    assert larger.tolist() == [[r * 12 + c for r in range(4) for c in range(4)]]


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=24,
        patch_size=8,
        num_labels=3,
    )
    return ViTForImageClassification(config).eval()


def test_a_classifier_with_all_patches_is_untouched(classifier):
    pixels = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        stock = classifier(pixels).logits
        with only_patches(classifier, torch.arange(9).expand(2, -1)):
            assert torch.equal(classifier(pixels).logits, stock)
        assert torch.equal(classifier(pixels).logits, stock)


def test_dropped_patches_have_no_influence_on_the_classifier(classifier):
    pixels = torch.randn(1, 3, 24, 24)
    changed = pixels.clone()
    changed[:, :, 8:, :] = 7.0
    with torch.no_grad(), only_patches(classifier, torch.tensor([[0, 2]])):
        assert torch.equal(classifier(pixels).logits, classifier(changed).logits)
        changed[:, :, :8, :8] = 7.0
        assert not torch.equal(classifier(pixels).logits, classifier(changed).logits)


def test_classifier_accuracy_with_all_tokens_is_the_full_one(classifier):
    samples = make_samples(6)
    images = [sample.image for sample in samples]

    def preprocess(batch):
        pixels = torch.stack([torch.from_numpy(np.array(image)) for image in batch])
        return pixels.permute(0, 3, 1, 2) / 255

    with torch.no_grad():
        labels = classifier(preprocess(images)).logits.argmax(dim=-1).tolist()
    found = classifier_accuracy(
        FakeVLM(),
        FakeSelector(),
        classifier,
        preprocess,
        LabelledImages(images, labels, "by hand"),
        (4, N),
    )
    assert found["full"] == found["selected"][1] == found["random"][1] == 1.0
    assert found["grids"] == {"selection": [GRID, GRID], "classifier": [3, 3]}
    assert classifier_figure(found).axes
    unlabelled = LabelledImages(images, None, "its own prediction")
    again = classifier_accuracy(
        FakeVLM(), FakeSelector(), classifier, preprocess, unlabelled, (4, N)
    )
    assert again["selected"] == found["selected"], "here the labels are its own predictions"


class SizedVLM(FakeVLM):
    """Images differ in size: a token for every cell of 4 x 4 pixels, on a grid of their own."""

    num_tokens = None

    def grid_of(self, image):
        return image.height // 4, image.width // 4

    def tokens_of(self, images):
        (image,) = images
        rows, columns = self.grid_of(image)
        pixels = torch.from_numpy(np.array(image)).float() / 255
        cells = pixels.reshape(1, rows, 4, columns, 4, 3).mean(dim=(2, 4))
        return torch.nn.functional.pad(cells.reshape(1, -1, 3), (0, 2), value=0.1)


def test_the_classifier_sees_what_the_selector_chooses_of_every_size(classifier, monkeypatch):
    chosen, seen = [], []

    class LastTokens(FakeSelector):
        """Chooses other tokens than the best scores, as with diversity."""

        def select(self, tokens, budget, mask=None):
            assert mask is None and tokens.shape[1] in (9, 36), "no padding"
            chosen.append((tokens.shape[1], budget))
            positions = torch.arange(tokens.shape[1])[None, -budget:]
            return tokens[:, -budget:], positions

    def resized(positions, source, target):
        seen.append((source, positions.tolist()))
        return resize_selection(positions, source, target)

    monkeypatch.setattr(analyses_classifier, "resize_selection", resized)
    large = make_samples(1)[0].image
    images = [large, large.resize((12, 12))]

    def preprocess(batch):
        pixels = torch.stack([torch.from_numpy(np.array(i.resize((24, 24)))) for i in batch])
        return pixels.permute(0, 3, 1, 2) / 255

    data = LabelledImages(images, None, "its own prediction")
    classifier_accuracy(SizedVLM(), LastTokens(), classifier, preprocess, data, (8,))
    assert chosen == [(36, 8), (9, 2)], "the same share"
    assert seen[0] == ((6, 6), [list(range(28, 36))]) and seen[2] == ((3, 3), [[7, 8]])


def test_the_tokens_of_figure_4_are_drawn_on_what_the_vlm_sees(monkeypatch):
    class Cropping(FakeVLM):
        def seen(self, image):
            return image.crop((6, 6, 18, 18))

    drawn = []
    monkeypatch.setattr(
        analyses, "similarity_figure", lambda found, images, grid: drawn.extend(images)
    )
    samples = make_samples(8)
    ANALYSES["similarity"](Subject(Cropping(), FakeSelector(), samples, (2,)))
    assert [image.tobytes() for image in drawn] == [
        sample.image.crop((6, 6, 18, 18)).tobytes() for sample in samples[: len(drawn)]
    ]
    assert drawn


def test_the_classifier_gets_the_part_of_a_picture_that_the_vlm_sees(classifier):
    class Cropping(FakeVLM):
        def seen(self, image):
            return image.crop((12, 0, 36, 24)).resize((24, 24))

        def tokens_of(self, images):
            return super().tokens_of([self.seen(image) for image in images])

    given = []

    def preprocess(batch):
        given.extend(batch)
        pixels = torch.stack([torch.from_numpy(np.array(i.resize((24, 24)))) for i in batch])
        return pixels.permute(0, 3, 1, 2) / 255

    wide = Image.effect_noise((48, 24), 90).convert("RGB")
    data = LabelledImages([wide], None, "its own prediction")
    classifier_accuracy(Cropping(), FakeSelector(), classifier, preprocess, data, (8,))
    assert given[0].tobytes() == wide.crop((12, 0, 36, 24)).tobytes()
    beyond = part_of(wide, ((0.0, 1.0), (-0.5, 1.5)))
    assert beyond.size == (48, 48) and beyond.getbbox() == (0, 12, 48, 36)


class Stored:
    """A shard sample with a record."""

    def __init__(self, **record):
        self.key, self.record, self.images = "key", record, (b"",)


def test_labels_come_from_the_records():
    names = {"cat": 0, "dog": 1}
    assert labelled_images([Stored(label="dog"), Stored(label=0)], names).labels == [1, 0]
    assert labelled_images([Stored(), Stored()], names).labels is None
    with pytest.raises(ConfigError, match="label='bird' is not one of"):
        labelled_images([Stored(label="bird")], names)
    with pytest.raises(ConfigError, match=r"label=\['dog'\] is not one of"):
        labelled_images([Stored(label=["dog"])], names)
    with pytest.raises(ConfigError, match="is missing while others have one"):
        labelled_images([Stored(label="dog"), Stored()], names)


def test_the_course_of_training_reaches_the_gate_figure(tmp_path, monkeypatch, empty_store):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(empty_store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = Tracker.start("autoselect", "train")
    for step, value in ((1, 0.3), (2, 0.8), (3, 0.97)):
        run.log_metrics({"train/polarisation": value}, step)
    run.finish()
    selector = FakeSelector()
    selector.metadata = {**selector.metadata, "tracking_run_id": run.run_id}
    numbers, figure = ANALYSES["gates"](Subject(FakeVLM(), selector, make_samples(8), (2,)))
    assert numbers["course"] == [(1, 0.3), (2, 0.8), (3, 0.97)]
    assert [axes.get_title(loc="left") for axes in figure.axes][1] == "Polarisation over training"
    assert figure.axes[1].lines[0].get_ydata().tolist() == [0.3, 0.8, 0.97]
    assert polarisation_course("unknown-run") == []


def test_the_command_offers_every_analysis():
    assert sorted([*ANALYSES, CLASSIFIER]) == sorted(KINDS)


@pytest.mark.parametrize("kind", sorted(set(ANALYSES) - {"leak"}))
def test_every_analysis_writes_numbers_and_a_figure(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(analyses, "AskedVLM", FakeAsked)
    subject = Subject(FakeVLM(), FakeSelector(), make_samples(8), (2, 6))
    found = ANALYSES[kind](subject)
    write_analysis(kind, found, {"budgets": "2,6"}, tmp_path)
    assert (tmp_path / f"{kind}.png").stat().st_size > 5000
    stored = json.loads((tmp_path / f"{kind}.json").read_text())
    assert stored == {**json.loads(json.dumps(found[0])), "settings": {"budgets": "2,6"}}
    assert len(stored) > 1


def test_an_analysis_of_other_settings_is_not_replaced(
    model_folder, selector_folder, shards, tmp_path, capsys
):
    out = tmp_path / "out"
    words = ["analyse", "similarity", "--model", model_folder, "--shards", shards, "--no-tracking"]
    words += ["--device", "cpu", "--out", str(out)]
    for _ in range(2):
        assert main([*words, "--selector", selector_folder]) == 0
    other = shutil.copytree(selector_folder, tmp_path / "other")
    before = (out / "similarity.json").read_bytes()
    assert main([*words, "--selector", str(other)]) == 2
    assert (
        f"out={out} holds a report of other settings (selector: {selector_folder} -> {other}); "
        f"choose another folder, or remove {out / 'similarity.json'} to replace it"
    ) in capsys.readouterr().err
    assert (out / "similarity.json").read_bytes() == before


def test_an_analysis_that_another_process_wrote_meanwhile_stays(
    model_folder, selector_folder, shards, tmp_path, monkeypatch, capsys
):
    theirs = tmp_path / "frequency.json"
    real = ANALYSES["frequency"]

    def slower_than_another(subject):
        theirs.write_text(json.dumps({"settings": {"budgets": "8"}}))
        return real(subject)

    monkeypatch.setitem(ANALYSES, "frequency", slower_than_another)
    words = ["--model", model_folder, "--selector", selector_folder, "--shards", shards]
    words += ["--budgets", "4", "--out", str(tmp_path), "--no-tracking", "--device", "cpu"]
    assert main(["analyse", "frequency", *words]) == 2
    assert "holds a report of other settings (" in capsys.readouterr().err
    assert json.loads(theirs.read_text()) == {"settings": {"budgets": "8"}}
    assert not (tmp_path / "frequency.png").exists()


@pytest.mark.parametrize(("kind", "code"), [("similarity", 0), ("fidelity", 2)])
def test_answers_are_needed_by_what_scores_them_alone(
    kind, code, model_folder, selector_folder, shards, tmp_path, capsys
):
    stored = ShardSet.open(shards)
    with ShardWriter(str(tmp_path / "open")) as writer:
        for sample in (stored[0], stored[1]):
            turns = sample.record["conversations"][:1]
            writer.write(sample.key, {"conversations": turns}, [to_jpeg(sample.pictures[0])])
    words = ["analyse", kind, "--model", model_folder, "--selector", selector_folder]
    words += ["--shards", str(tmp_path / "open"), "--device", "cpu"]
    words += ["--budgets", "4"] if kind == "fidelity" else []
    assert main([*words, "--out", str(tmp_path / "out"), "--no-tracking"]) == code
    if code:
        assert "give every question its gpt turn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("similarity", ["--budgets", "8"], "budgets=8 has no part in similarity, which compares"),
        ("frequency", [], "budgets= is missing; give --budgets, as frequency needs it"),
    ],
)
def test_budgets_are_asked_for_where_they_are_used(kind, given, said, tmp_path, capsys):
    words = ["--model", "m", "--selector", "s", "--shards", "test-*.tar", "--out", str(tmp_path)]
    assert main(["analyse", kind, *words, *given]) == 2
    assert said in capsys.readouterr().err


def test_labels_are_spread_apart_in_order():
    assert spread([1.0, 5.0], 1.0) == [1.0, 5.0]
    heights = spread([3.0, 3.0, 3.1], 1.0)
    assert sorted(heights) == pytest.approx([h for h in sorted(heights)])
    assert min(abs(a - b) for i, a in enumerate(heights) for b in heights[:i]) >= 1.0 - 1e-9
    assert heights[2] == max(heights)


@pytest.mark.parametrize("kind", ["classifier", "fidelity", "similarity"])
def test_an_image_that_cannot_be_decoded_is_named_by_every_analysis(
    kind, model_folder, selector_folder, tmp_path, capsys, caplog
):
    folder = tmp_path / "shards"
    with ShardWriter(str(folder)) as writer:
        for index in range(3):
            buffer = BytesIO()
            make_scene(0, "test", index).image.save(buffer, "png")
            png = buffer.getvalue()
            record = {
                "id": f"{index}",
                "image": f"{index}.png",
                "conversations": [
                    {"from": "human", "value": "<image>\nhow many ?"},
                    {"from": "gpt", "value": "3"},
                ],
            }
            writer.write(f"{index}", record, [png[:200] if index == 1 else png])
    words = ["analyse", kind, "--shards", str(folder), "--device", "cpu", "--no-tracking"]
    words += ["--out", str(tmp_path / "out")]
    words += ["--budgets", "8"] if kind != "similarity" else []
    if kind == "fidelity":
        words += ["--site", "patch_embedding"]
    else:
        words += ["--model", model_folder, "--selector", selector_folder]
    assert main(words) == 2
    said = capsys.readouterr().err + caplog.text
    assert "image 0" in said and "replace the image" in said


@pytest.mark.parametrize("kind", ["classifier", "frequency"])
def test_an_analysis_refuses_rows_of_json_as_its_help_says(kind, tmp_path, capsys, caplog):
    (tmp_path / "rows.json").write_text("[]")
    words = ["--shards", str(tmp_path / "rows.json"), "--budgets", "8", "--no-tracking"]
    words += ["--model", "m", "--selector", "s", "--out", str(tmp_path / "out")]
    assert main(["analyse", kind, *words]) == 2
    assert "convert-llava" in capsys.readouterr().err + caplog.text
    assert not list(tmp_path.glob("*.jsonl"))
    with pytest.raises(SystemExit):
        main(["analyse", "--help"])
    assert ".json or .jsonl" not in " ".join(capsys.readouterr().out.split())
