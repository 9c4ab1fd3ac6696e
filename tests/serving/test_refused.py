"""What is not right in vLLM is refused at the start or with the request, by name."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")

from vllm import EngineArgs  # noqa: E402

from autoselect.config import ConfigError, ScorerConfig  # noqa: E402
from autoselect.method.scorer import Scorer  # noqa: E402
from autoselect.pruning.selector import Selector  # noqa: E402
from autoselect.serving import guards  # noqa: E402
from autoselect.serving.guards import extend_rope_table, refused_modes  # noqa: E402
from autoselect.serving.processor import PrunedProcessor  # noqa: E402
from autoselect.serving.settings import ServingSettings  # noqa: E402
from tests.serving.cases import Case  # noqa: E402
from tests.serving.engine import DEFAULTS, answers, engine, stop  # noqa: E402


def configured(model, block, **settings):
    """Return vLLM's configuration, as far as it comes before any weights."""
    given = {**DEFAULTS, "hf_overrides": {"autoselect": block}, **settings}
    return EngineArgs(model=str(model), **given).create_engine_config()


@pytest.fixture
def block(selector):
    return {"selector": str(selector), "budget": 16}


def test_the_configuration_of_a_served_model_is_accepted(native, block):
    config = configured(native, block)
    assert config.model_config.uses_mrope
    assert config.model_config.hf_config.text_config.max_position_embeddings == 2048


def test_without_the_block_nothing_changes(native):
    config = EngineArgs(model=str(native), **DEFAULTS).create_engine_config()
    assert not config.model_config.uses_mrope
    assert config.model_config.hf_config.text_config.max_position_embeddings == 1024


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ({"budget": 0}, {}, "budget=0 is below 1"),
        ({"k": 3}, {}, "unknown keys k"),
        ({"selector": "/no/such/folder"}, {}, "selector=/no/such/folder"),
        ({}, {"model_impl": "transformers"}, "TransformersMultiModal.* cannot be pruned"),
    ],
)
def test_a_wrong_block_and_other_architectures_are_refused(native, block, change, settings, words):
    with pytest.raises(ValueError, match=words):
        configured(native, {**block, **change}, **settings)


def test_pipeline_parallelism_is_refused(native, block):
    parallel = {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}
    with pytest.raises(ValueError, match="--pipeline-parallel-size does not work"):
        configured(native, block, **parallel)


MODES = {
    "parallel_config": ("prefill_context_parallel_size", "use_ubatching"),
    "compilation_config": ("cudagraph_mm_encoder",),
    "lora_config": ("enable_tower_connector_lora",),
    "multimodal_config": ("video_pruning_rate", "enable_mm_embeds", "mm_encoder_only"),
}


@pytest.mark.parametrize("mode", [name for names in MODES.values() for name in names])
def test_every_mode_that_is_not_right_is_refused(mode):
    parts = {
        part: SimpleNamespace(**{name: 2 if name == mode else 0 for name in names})
        for part, names in MODES.items()
    }
    parts["parallel_config"].pipeline_parallel_size = 1
    parts["multimodal_config"].mm_processor_kwargs = None
    multimodal = SimpleNamespace(multimodal_config=parts.pop("multimodal_config"))
    config = SimpleNamespace(speculative_config=None, model_config=multimodal, **parts)
    assert len(refused_modes(config)) == 1


def test_a_budget_of_the_engine_in_the_place_of_a_request_is_refused(native, block):
    """The processor would ignore it."""
    with pytest.raises(ValueError, match="visual_token_budget in --mm-processor-kwargs does not"):
        configured(native, block, mm_processor_kwargs={"visual_token_budget": 8})


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_embeddings_that_depend_on_the_length_are_refused(kind):
    text = SimpleNamespace(rope_parameters={"rope_type": kind}, max_position_embeddings=64)
    model = SimpleNamespace(hf_text_config=text, model="org/model", hf_config=SimpleNamespace())
    with pytest.raises(ValueError, match=f"rope_type={kind}"):
        extend_rope_table(model)


def test_a_selector_of_another_width_is_refused(native, tmp_path):
    Selector(Scorer(64, ScorerConfig()), {"model": "other"}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokens of 64 channels.*this one: other"):
        configured(native, {"selector": str(tmp_path), "budget": 16})


def test_a_selector_of_another_width_before_the_projector_is_refused(native, tmp_path):
    selector = Selector(Scorer(64, ScorerConfig()), {"model": "other"}, site="before_projector")
    selector.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="tokens of 64 channels, .* have 128"):
        engine(native, {"selector": str(tmp_path), "budget": 16})


@pytest.mark.parametrize(
    ("site", "architecture"),
    [
        ("before_encoder", "LlavaForConditionalGeneration"),
        ("before_projector", "Qwen3VLForConditionalGeneration"),
    ],
)
def test_a_selector_of_a_site_that_vllm_does_not_give_is_refused(tmp_path, site, architecture):
    Selector(Scorer(64, ScorerConfig()), site=site).save_pretrained(tmp_path)
    text = SimpleNamespace(hidden_size=64)
    model = SimpleNamespace(model="org/one", hf_text_config=text, architecture=architecture)
    with pytest.raises(ConfigError, match=f"site={site} cannot prune {architecture} in vLLM"):
        guards.check_selector(ServingSettings(str(tmp_path), 16), model)


def test_a_selector_for_another_model_of_the_hub_is_a_warning(tmp_path, monkeypatch):
    Selector(Scorer(64, ScorerConfig()), {"model": "org/one"}).save_pretrained(tmp_path)
    told, text = [], SimpleNamespace(hidden_size=64)
    monkeypatch.setattr(guards.logger, "warning_once", told.append)
    for name in ("org/one", "org/other", "/models/here"):
        model = SimpleNamespace(model=name, hf_text_config=text, architecture="other")
        guards.check_selector(ServingSettings(str(tmp_path), 16), model)
    (line,) = told
    assert line.startswith("the selector was trained for org/one, not for org/other")


def test_wrong_requests_are_refused_and_others_go_on(native, block):
    torch.manual_seed(0)
    llm = engine(native, block, limit_mm_per_prompt={"image": 8}, max_num_batched_tokens=1024)
    good = Case((0,), "what does the sign say ?", "", 16)
    try:
        with pytest.raises(ValueError, match="visual_token_budget: budget=0 is below 1"):
            answers(llm, [Case((0,), good.question, "", 0)], by_request=True)
        with pytest.raises(ValueError, match="tokens before pruning"):
            answers(llm, [Case(tuple(range(8)), good.question, "", 16)])
        assert len(answers(llm, [good])) == 1
    finally:
        stop(llm)


@pytest.mark.parametrize("error", [ConfigError("too long"), AssertionError("no mark")])
def test_a_refused_request_leaves_no_image_in_the_cache(error):
    """The engine does not have it, so the next request with the image would get no answer."""

    class Refusing(PrunedProcessor):
        def _get_mm_hashes(self, inputs):
            return {"image": ["a", "b"]}

    class Family:
        def apply(self, inputs, timing_ctx):
            raise error

    removed = []
    inputs = SimpleNamespace(cache=SimpleNamespace(invalidate=removed.append))
    with pytest.raises(type(error)):
        type("Own", (Refusing, Family), {})().apply(inputs, None)
    assert removed == ["a", "b"]


def test_the_selector_survives_a_sleep_that_discards_all_but_buffers(native, block):
    def sleep(model):
        """Do what a worker of vLLM does at level 2, to the selector's weights."""
        before = [weight.clone() for weight in model.selector.state_dict().values()]
        saved = {name: buffer.cpu().clone() for name, buffer in model.named_buffers()}
        for weight in model.selector.state_dict().values():
            weight.fill_(torch.nan)
        for name, buffer in model.named_buffers():
            buffer.data.copy_(saved[name].data)
        return all(map(torch.equal, model.selector.state_dict().values(), before))

    llm = engine(native, block)
    try:
        assert llm.apply_model(sleep) == [True]
    finally:
        stop(llm)
