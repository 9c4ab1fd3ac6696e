"""Attach and detach: nothing is left behind, nothing of training runs, mistakes are named."""

import copy
import inspect
import pickle
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from autoselect import ConfigError, Selector, attach, detach
from autoselect.config import ScorerConfig
from autoselect.method.denoiser import Denoiser
from autoselect.method.scorer import Scorer
from autoselect.pruning.attachment import keeping
from autoselect.reference.scenes import make_scene
from autoselect.reference.vlm import build_model, build_processor
from autoselect.vlm import FrozenVLM, VisualAdapter, release
from autoselect.vlm.families import FAMILIES, REFUSED, Family, family_of, register_family
from autoselect.vlm.loading import weights_digest
from autoselect.vlm.rasters import nearest_raster
from autoselect.vlm.sites import SITES
from tests.vlm.checks import KeepPlaces
from tests.vlm.stock import asked_inputs, attached, model_of, selector
from tests.vlm.tiny import TINY, batch, build, clip_batch
from tests.vlm.tiny_models import llama, llava
from tests.vlm.tiny_prompts import IMAGE, WIDTH

GREEDY = {"max_new_tokens": 3, "do_sample": False}


@pytest.mark.parametrize("name", sorted(TINY))
def test_attach_use_detach_leaves_the_object_as_it_was(name):
    model = build(name)
    model.generate(**batch(name, [["l"]]), **GREEDY)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = dict(vars(model))
    attach(model, selector(), 2)
    assert set(model.state_dict()) == set(before)
    model.generate(**batch(name, [["l"]]), **GREEDY)
    assert detach(model) is model
    assert vars(model) == attributes
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert not model._forward_pre_hooks_with_kwargs and not model._forward_hooks_with_kwargs
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_five_lines_with_a_real_processor(tmp_path):
    """The reference model and its processor: the answers with the best tokens kept by hand."""
    vlm = FrozenVLM(build_model(3), build_processor(), "reference")
    chosen = Selector(Scorer(vlm.width, ScorerConfig(hidden_size=16, num_heads=2)))
    chosen.save_pretrained(tmp_path)
    pictures = [make_scene(0, "train", index).image for index in range(2)]
    questions = ["is there a red circle ?", "what does the sign say ?"]
    inputs = asked_inputs(vlm, [[picture] for picture in pictures], questions)
    selector = Selector.from_pretrained(tmp_path)
    model = attach(vlm.model, selector, budget=0.1)
    tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    detach(model)
    assert torch.equal(tokens[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    _, best = selector.select(vlm.encode_images(pictures).tokens, 0.1)
    with keeping(vlm.model, list(best)):
        assert torch.equal(vlm.model.generate(**inputs, max_new_tokens=5, do_sample=False), tokens)


class OwnOperators(TorchDispatchMode):
    """Notes which operators of the extension run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "autoselect":
            self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_denoiser_and_noise_are_never_called(monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("training only")

    monkeypatch.setattr(Denoiser, "forward", forbidden)
    with attached("llava", 4) as model, OwnOperators() as ran:
        model.generate(**batch("llava", [["s"]]), **GREEDY)
    assert ran.names == {"autoselect::hard_top_k"}


def test_the_budget_of_a_call():
    inputs = batch("internvl", [["s", "l"]])
    with attached("internvl", 4) as model:

        def kept(**arguments):
            model(**inputs, **arguments)
            return [len(image.kept) for image in model.autoselect.last.images]

        assert kept() == [4, 4]
        assert kept(visual_token_budget=2) == [2, 2]
        assert kept(visual_token_budget=0.25) == [4, 8]
        assert kept(visual_token_budget=[3, 0.5]) == [3, 16]
        model.generate(**inputs, **GREEDY, visual_token_budget=6, num_beams=2)
        assert [len(image.kept) for image in model.autoselect.last.images] == [6, 6]
        assert kept() == [4, 4]
        model.autoselect.budget = 5
        assert kept() == [5, 5]


def test_labels_and_wanted_logits_follow_the_columns():
    inputs = batch("llava", [["s"]])
    ids = inputs["input_ids"]
    labels = ids.where(ids > IMAGE, torch.tensor(-100))
    with attached("llava", 4) as model:
        output = model(**inputs, labels=labels)
        columns = model.autoselect.last.columns
        logits = output.logits[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits, labels[0, columns[0, 1:]])
        torch.testing.assert_close(output.loss, expected)
        wanted = torch.tensor([ids.shape[1] - 3, ids.shape[1] - 1])
        some = model(**inputs, logits_to_keep=wanted).logits
        torch.testing.assert_close(some, output.logits[:, [-3, -1]])
        last = model(**inputs, logits_to_keep=1).logits
        torch.testing.assert_close(last, output.logits[:, -1:])
        with pytest.raises(ConfigError, match="logits_to_keep"):
            removed = next(c for c in range(ids.shape[1]) if c not in columns)
            model(**inputs, logits_to_keep=torch.tensor([removed]))


def test_arguments_by_place():
    inputs = batch("llava", [["s"]])
    with attached("llava", 4) as model:
        by_name = model(**inputs).logits
        by_place = model(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
        assert torch.equal(by_place.logits, by_name)
        as_tuple = model(**inputs, return_dict=False)
        assert torch.equal(as_tuple[0], by_name)
        assert as_tuple[1].autoselect_layout.full_length == inputs["input_ids"].shape[1]


def in_a_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@pytest.mark.parametrize("run", [in_a_thread, lambda call: call()])
@pytest.mark.parametrize("use_cache", [True, False])
def test_calls_that_run_at_the_same_time_do_not_meet(run, use_cache):
    """Calls of other budgets run to their end whenever one reaches the model or its decoder."""
    inputs, others = batch("llava", [["s"]]), batch("llava", [["l"], ["s"]], seed=3)
    model, busy, answers = build("llava"), [], []

    def whole_call():
        output = model(**inputs, visual_token_budget=4)
        step = {"input_ids": torch.tensor([[40]]), "past_key_values": output.past_key_values}
        logits = [output.logits, model(**step).logits]
        return [*logits, model.generate(**inputs, **call, visual_token_budget=4)]

    def other_calls():
        answers.append(model(**others, visual_token_budget=7).logits)
        answers.append(model.generate(**others, **GREEDY, num_beams=2, visual_token_budget=7))

    def interrupt(*_):
        if watched and not busy:
            busy.append(True)
            run(other_calls)
            busy.clear()

    call, watched = {**GREEDY, "use_cache": use_cache}, False
    model.register_forward_pre_hook(interrupt)
    attach(model, selector(), 2)
    model.get_decoder().register_forward_pre_hook(interrupt)
    alone = whole_call()
    other_calls()
    expected, answers = answers, []
    watched = True
    assert all(map(torch.equal, whole_call(), alone))
    assert len(answers) == 2 * 2 * (2 + GREEDY["max_new_tokens"])
    assert all(map(torch.equal, answers, expected * (len(answers) // 2)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_a_selector_of_its_own(copied):
    inputs, model = batch("llava", [["s"]]), attach(build("llava"), selector(), 4)
    other = copied(model)
    tokens = model.generate(**inputs, **GREEDY)
    detach(model)
    assert torch.equal(other.generate(**inputs, **GREEDY), tokens)
    assert detach(other).generate(**inputs, **GREEDY).equal(model.generate(**inputs, **GREEDY))


@torch.no_grad()
def test_a_selector_that_replaces_another_selects_at_its_own_site():
    inputs, first = batch("llava", [["s"]]), selector()
    width = SITES["before_projector"].width(VisualAdapter(model_of("llava")))
    torch.manual_seed(11)
    other = Selector(
        Scorer(width, ScorerConfig(hidden_size=16, num_heads=2)), site="before_projector"
    )
    model = attach(model_of("llava"), other, 4)
    want = model(**inputs).logits
    attach(detach(model), first, 4)
    model.autoselect.selector = other
    for wrong, said in (("runs/mine/selector", "'runs/mine/selector'"), (None, "a NoneType")):
        with pytest.raises(ConfigError, match=f"selector={said} is not a Selector"):
            model.autoselect.selector = wrong
    assert torch.equal(model(**inputs).logits, want)
    detach(model)


@torch.no_grad()
def test_a_hook_of_the_user_may_change_what_the_model_returns():
    inputs, model = batch("llava", [["s"]]), build("llava")
    model.register_forward_hook(lambda model, args, output: output.logits)
    ours = attach(model, selector(), 4)(**inputs)
    with attached("llava", 4) as other:
        assert torch.equal(ours, other(**inputs).logits)


@pytest.mark.parametrize("name", ["generate", "prepare_inputs_for_generation"])
def test_an_own_method_of_the_object_is_called_and_comes_back(name):
    inputs, model, calls = batch("llava", [["s"]]), build("llava"), []
    attach(model, selector(), 4)
    pruned = model.generate(**inputs, **GREEDY)
    stock = getattr(detach(model), name)

    def own(*args, **kwargs):
        calls.append(name)
        return stock(*args, **kwargs)

    setattr(model, name, own)
    before = dict(vars(model))
    model.generate(**inputs, **GREEDY)
    alone = len(calls)
    attach(model, selector(), 4)
    assert torch.equal(model.generate(**inputs, **GREEDY), pruned)
    assert len(calls) == 2 * alone
    detach(model)
    with keeping(model, [torch.arange(16)]):
        model.generate(**inputs, **GREEDY)
    assert len(calls) == 3 * alone
    assert vars(model) == before


def test_what_prunes_a_model_already_stays_alone():
    inputs, model, some = batch("llava", [["s"]]), build("llava"), [torch.tensor([1, 2])]
    with keeping(model, some):
        kept = model.generate(**inputs, **GREEDY)
        with pytest.raises(ConfigError, match="inside a block of keeping"):
            attach(model, selector(), 4)
        with pytest.raises(ConfigError, match="block of keeping"), keeping(model, []):
            pass
        assert torch.equal(model.generate(**inputs, **GREEDY), kept)
    tokens = attach(model, selector(), 4).generate(**inputs, **GREEDY)
    with pytest.raises(ConfigError, match="has a selector already"), keeping(model, some):
        pass
    assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
    assert not hasattr(detach(model), "autoselect")


def test_text_only_calls_are_untouched():
    inputs, model = batch("llava", [[], []]), model_of("llava")
    tokens = model.generate(**inputs, **GREEDY)
    with attached("llava", 4):
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
        assert model.autoselect.last is None


@pytest.mark.parametrize("name", sorted(TINY))
@torch.no_grad()
def test_embeddings_without_images_are_untouched(name):
    """Families whose `generate` takes no embeddings refuse them as before."""
    inputs, model = batch(name, [[], []]), model_of(name)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))

    def answer():
        try:
            return model.generate(inputs_embeds=embeds, **inputs, **GREEDY).tolist()
        except ValueError as error:
            return str(error)

    stock = answer()
    signature = inspect.signature(model.prepare_inputs_for_generation)
    with attached(name, 4):
        assert inspect.signature(model.prepare_inputs_for_generation) == signature
        assert answer() == stock


def test_a_picture_of_the_choice():
    picture = Image.new("RGB", (80, 80), "white")
    with attached("llava", 4) as model:
        with pytest.raises(ConfigError, match="call with an image first"):
            model.autoselect.overlay(picture)
        model(**batch("llava", [["s"]]))
        shown = model.autoselect.overlay(picture)
        kept = set(model.autoselect.last.images[0].kept.tolist())
        for token in range(16):
            pixel = shown.getpixel((token % 4 * 20 + 10, token // 4 * 20 + 10))
            assert (pixel == (255, 255, 255)) == (token in kept)
        with pytest.raises(ConfigError, match="15 cells for 16"):
            model.autoselect.overlay(picture, grid=(3, 5))
        with pytest.raises(ConfigError, match=r"number=1 is not an image .* had 1; choose 0\.\.0"):
            model.autoselect.overlay(picture, 1)
        with pytest.raises(ConfigError, match=r"type str, not a PIL image; .*read_image\(PATH\)"):
            model.autoselect.overlay("photo.jpg")
    assert nearest_raster(24, (300, 200)) == (4, 6)


def test_a_transparent_picture_is_shown_on_white_as_the_processor_took_it():
    picture = Image.new("RGBA", (80, 80), (0, 0, 0, 0))
    with attached("llava", 4) as model:
        model(**batch("llava", [["s"]]))
        shown = model.autoselect.overlay(picture)
        white = model.autoselect.overlay(Image.new("RGB", (80, 80), "white"))
    assert shown.tobytes() == white.tobytes()


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("gemma3", (320, 80), (4, 4)),
        ("llava", (80, 320), (4, 4)),
        ("mistral3", (100, 200), (4, 2)),
        ("qwen2_5_vl", (200, 100), (2, 4)),
        ("qwen3_vl", (200, 100), (2, 4)),
    ],
)
def test_a_token_is_drawn_where_it_is_on_the_picture(name, size, grid):
    """A square view has as many rows as columns, whatever the shape of the picture."""
    picture = Image.new("RGB", size, "white")
    with attached(name, 1) as model:
        model.autoselect.selector = KeepPlaces([grid[1] + 1])
        model(**batch(name, [["s"]]))
        shown = model.autoselect.overlay(picture)
    height, width = size[1] // grid[0], size[0] // grid[1]
    cell = (width, height, 2 * width, 2 * height)
    assert shown.crop(cell).getcolors() == [(width * height, (255, 255, 255))]
    assert dict(map(reversed, shown.getcolors()))[(255, 255, 255)] == width * height


@pytest.mark.parametrize("name", sorted(name for name in TINY if FAMILIES[name].raster is None))
def test_tokens_that_are_no_single_raster_are_drawn_on_a_given_grid_only(name):
    picture = Image.new("RGB", (80, 40), "white")
    with attached(name, 4) as model:
        model(**batch(name, [["l"]]))
        with pytest.raises(ConfigError, match=r"give grid=\(rows, columns\)"):
            model.autoselect.overlay(picture)
        assert model.autoselect.overlay(picture, grid=(1, TINY[name].tokens("l")))


def test_families_with_tiles_or_newlines_have_no_single_raster():
    several = ("aya_vision", "internvl", "idefics3", "llava_next", "llava_onevision", "ovis2")
    assert all(FAMILIES[name].raster is None for name in several)
    assert all(own.tiles is None for own in FAMILIES.values() if own.raster)


def test_a_clip_is_not_drawn_on_a_picture():
    with attached("qwen2_5_vl", 4) as model:
        model(**clip_batch("qwen2_5_vl"))
        with pytest.raises(ConfigError, match="8 visual tokens of this video"):
            model.autoselect.overlay(Image.new("RGB", (80, 80)))


def test_mistakes_in_attaching_are_named(monkeypatch):
    model = model_of("llava")
    wide = Selector(Scorer(WIDTH + 8, ScorerConfig(hidden_size=16, num_heads=2)))
    with pytest.raises(ConfigError, match=f"tokens of {WIDTH + 8} channels, .* have {WIDTH};"):
        attach(model, wide, 4)
    with pytest.raises(ConfigError, match="not a transformers model"):
        attach(torch.nn.Linear(2, 2), selector(), 4)
    with pytest.raises(ConfigError, match=r"'runs/mine/selector' is not a Selector; give Sel"):
        attach(model, "runs/mine/selector", 4)
    with pytest.raises(ConfigError, match="'clip' or 'frame'"):
        attach(model, selector(), 4, video_budget_per="second")
    with pytest.raises(ConfigError, match="no selector"):
        detach(model)
    with attached("llava", 4), pytest.raises(ConfigError, match="has a selector already"):
        attach(model, selector(), 4)
    assert not hasattr(model, "autoselect")


def test_a_forward_that_takes_no_features_is_named_with_what_helps(monkeypatch):
    """The installed release is at fault only if it is too old."""
    text = hf.LlamaForCausalLM(llama())
    changed = llava()
    monkeypatch.setattr(type(changed), "forward", lambda self, input_ids=None: None)
    for model, kind in ((text, "LlamaForCausalLM"), (changed, "LlavaForConditionalGeneration")):
        monkeypatch.setattr(release.transformers, "__version__", "5.24.0")
        with pytest.raises(ConfigError, match=f"^model={kind} .* has a forward without .*; give a"):
            attach(model, selector(), 4)
        monkeypatch.setattr(release.transformers, "__version__", "5.19.2")
        with pytest.raises(ConfigError, match=r"pip install .transformers>=5\.20"):
            attach(model, selector(), 4)


@pytest.mark.parametrize(
    ("trained", "name", "warns"),
    [
        ("org/one", "org/other", True),
        ("org/one", "org/one", False),
        ("runs/here/model", "org/other", False),
        ("org/one", "", False),
        (None, "org/other", False),
    ],
)
def test_a_selector_for_another_model_of_the_hub_is_a_warning(caplog, trained, name, warns):
    model = build("llava")
    model.config.name_or_path = name
    attach(model, Selector(selector().scorer, {"model": trained}), 4)
    told = [record.getMessage() for record in caplog.records]
    assert [text.split(":")[0] for text in told] == warns * [
        "the selector was trained for org/one, not for org/other"
    ]


def test_a_selector_for_other_weights_of_a_folder_is_a_warning(tmp_path, caplog):
    """Models of one architecture have one width, so nothing else tells them apart."""
    model = build("llava")
    model.save_pretrained(tmp_path)
    model.config.name_or_path = str(tmp_path)
    for digest, warns in ((weights_digest(tmp_path), False), ("0" * 64, True)):
        caplog.clear()
        metadata = {"model": "elsewhere/one/x", "model_digest": digest}
        for _ in range(3):  # as the evaluator does; it is said once
            detach(attach(model, Selector(selector().scorer, metadata), 4))
        told = [r.getMessage() for r in caplog.records if "was trained for" in r.getMessage()]
        assert [f"not for {tmp_path}" in text for text in told] == [True] * warns


@pytest.mark.parametrize("kind", REFUSED)
def test_other_families_are_refused(kind):
    with pytest.raises(ConfigError, match=kind):
        family_of(SimpleNamespace(model_type=kind))


def test_a_family_can_be_added(monkeypatch):
    """Each tile is one entry of the features; the family says that they are one image."""
    monkeypatch.delitem(FAMILIES, "aya_vision")
    images = []
    for _ in range(2):
        with attached("aya_vision", 4) as model:
            model(**batch("aya_vision", [["l"]]))
            images.append(len(model.autoselect.last.images))
        register_family("aya_vision", Family(images="runs", tiles="same_after_last"))
    assert images == [2, 1]


def test_mistakes_in_calls_are_named():
    inputs = batch("llava", [["s"]])
    without = {**inputs, "input_ids": inputs["input_ids"].where(inputs["input_ids"] != IMAGE, 30)}
    fewer = {**inputs, "input_ids": inputs["input_ids"][:, 5:]}
    fewer["attention_mask"] = torch.ones_like(fewer["input_ids"])
    with attached("llava", 4) as model:
        for budget, text in ((-3, "budget=-3 is below 1"), (0, "below 1"), (1.5, "share")):
            with pytest.raises(ConfigError, match=text):
                model.generate(**inputs, **GREEDY, visual_token_budget=budget)
        with pytest.raises(ConfigError, match="budget lists 2 values for 1 images"):
            model(**inputs, visual_token_budget=[1, 2])
        with pytest.raises(ConfigError, match="no image token"):
            model.generate(**without, **GREEDY)
        with pytest.raises(ConfigError, match="13 image placeholders .* for 16 visual tokens"):
            model(**fewer)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        pixels = {"inputs_embeds": embeds, "pixel_values": inputs["pixel_values"]}
        for call in (model, partial(model.generate, **GREEDY)):
            for more in ({}, {"input_ids": inputs["input_ids"]}):
                with pytest.raises(ConfigError, match="give input_ids with the pixels"):
                    call(**pixels, **more)
        with pytest.raises(ConfigError, match="attention_mask of shape"):
            four = torch.ones(1, 1, embeds.shape[1], embeds.shape[1])
            model(**{**inputs, "attention_mask": four})
        columns = embeds.shape[1]
        with pytest.raises(ConfigError, match="attention_mask of dict cannot be pruned"):
            model(**{**inputs, "attention_mask": {"full_attention": four}})
        with pytest.raises(ConfigError, match=f"attention_mask has {columns + 3} columns; give"):
            model(**{**inputs, "attention_mask": torch.ones(1, columns + 3)})
        with pytest.raises(ConfigError, match="prefill_chunk_size"):
            model.generate(**inputs, **GREEDY, prefill_chunk_size=8)
        cache = model(**inputs).past_key_values
        with pytest.raises(ConfigError, match="whole conversation"):
            step = torch.tensor([[40]])
            model(input_ids=step, attention_mask=torch.ones(1, 3), past_key_values=cache)
        with pytest.raises(ConfigError, match="crop no further"):
            cache.crop(-6)
        model(input_ids=step, past_key_values=cache)


@torch.no_grad()
def test_visual_tokens_that_the_caller_masks_are_removed_too():
    inputs = batch("llava", [["s"]])
    inputs["attention_mask"][0, 4:7] = 0
    positions = torch.arange(inputs["input_ids"].shape[1])[None]
    expected = model_of("llava")(**inputs, position_ids=positions).logits[:, -1]
    with attached("llava", 1.0) as model:
        model.autoselect.selector = KeepPlaces(list(range(15)))
        pruned = model(**inputs, visual_token_budget=15)
        assert pruned.past_key_values.get_seq_length() == inputs["input_ids"].shape[1] - 4
        assert torch.equal(model(**inputs).logits[:, -1], expected)


@torch.no_grad()
def test_an_image_with_fewer_tokens_than_the_budget_keeps_all_and_is_counted():
    """The large image of the same call keeps what the budget says, as in a call of its own."""
    inputs, small = batch("llava_next", [["s"], ["l"], ["s"]]), TINY["llava_next"].tokens("s")
    budget = small + 4
    with attached("llava_next", budget) as model:
        model.generate(**inputs, **GREEDY)
        last = model.autoselect.last
        assert [len(image.kept) for image in last.images] == [small, budget, small]
        assert last.images[0].kept.tolist() == list(range(small))
        assert last.smaller_images == 2
        model(**inputs, visual_token_budget=[budget, 1.0, small])
        assert model.autoselect.last.smaller_images == 1
        model.generate(**inputs, **GREEDY, num_beams=2)
        assert model.autoselect.last.smaller_images == 2
        model(**batch("llava_next", [["l"]], seed=1))
        assert torch.equal(model.autoselect.last.images[0].kept, last.images[1].kept)
