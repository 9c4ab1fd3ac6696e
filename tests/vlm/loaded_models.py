"""Models as users load and call them: every way is a check, and a line in docs/backbones.md."""

import copy
import pickle
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import transformers as hf

from autoselect import ConfigError, attach, detach
from autoselect.reference.scenes import make_scene
from autoselect.reference.vlm import build_model, build_processor
from autoselect.vlm import Collator, FrozenVLM
from autoselect.vlm.loading import check_finite
from tests.vlm.conversations import sample
from tests.vlm.stock import (
    attached,
    close,
    features_of,
    loss_of,
    masked_generate,
    masked_logits,
    model_of,
    selector,
)
from tests.vlm.tiny import batch, build

NAMES = ("llava", "qwen2_5_vl")
ROWS = [["s", "l"], [], ["s"]]
GREEDY = {"max_new_tokens": 3, "do_sample": False}
NEWLINES = "llava_next"
"""A family whose encoder reads a weight of the base model itself."""
TRIED = "qwen3_5"
"""A family without an entry, which is tried when a selector is attached."""


def answers(model: Any, name: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Return the answers of an attached model, and its logits."""
    inputs = batch(name, ROWS)
    given = {n: v.to(dtype) if v.is_floating_point() else v for n, v in inputs.items()}
    with torch.no_grad():
        tokens = model.generate(**given, **GREEDY)
        return [tokens, model(**given).logits]


def expected(name: str) -> list[torch.Tensor]:
    with attached(name, 4) as model:
        return answers(model, name)


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float = 0.0) -> None:
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=tolerance, atol=tolerance)


def moved_after_attach() -> None:
    for name in NAMES:
        before = attach(build(name).to(torch.bfloat16), selector(), 4)
        after = attach(build(name), selector(), 4).to(torch.bfloat16)
        same(answers(after, name, torch.bfloat16), answers(before, name, torch.bfloat16))


def copied() -> None:
    model = attach(build("llava"), selector(), 4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        same(answers(other, "llava"), expected("llava"))
        assert other.autoselect.last is not model.autoselect.last


def saved_after_attach() -> None:
    model = build("llava")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/stock")
        attach(model, selector(), 4).save_pretrained(f"{folder}/attached")
        files = [
            {p.name: p.read_bytes() for p in Path(folder, n).iterdir()}
            for n in ("stock", "attached")
        ]
    assert files[0] == files[1]


def streamed() -> None:
    model, inputs, processor = asked()
    streamer = hf.TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    thread = Thread(target=model.generate, kwargs={**inputs, **GREEDY, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    tokens = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    assert text.strip() == processor.tokenizer.decode(tokens).strip() != ""


def in_a_pipeline() -> None:
    model, inputs, processor = asked()
    pipe = hf.pipeline("image-text-to-text", model=model, processor=processor)
    found = pipe(
        images=picture(), text=question(processor), generate_kwargs=GREEDY, return_full_text=False
    )
    assert len(model.autoselect.last.images[0].kept) == 4
    tokens = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    wanted = processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert found[0]["generated_text"].split() == wanted.split()


def traced(compile_in: Callable[[Any], Any]) -> None:
    """Compare answers when torch.compile traces, and runs what it traced without a compiler."""
    inputs = batch("llava", [["s"]])
    with attached("llava", 4) as model:
        tokens, logits = model.generate(**inputs, **GREEDY), turns(model, inputs)
    for is_static in (False, True):
        torch._dynamo.reset()
        model = attach(build("llava"), selector(), 4)
        ours = compile_in(model)
        config = model.config.get_text_config()
        cache = hf.StaticCache(config=config, max_cache_len=128) if is_static else None
        torch.testing.assert_close(turns(ours, inputs, cache), logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.generate(**inputs, **GREEDY), tokens)


@torch.no_grad()
def turns(model: Any, inputs: dict[str, Any], cache: Any = None) -> list[torch.Tensor]:
    """Return the logits of a prompt, and of further turns on its cache."""
    output = model(**inputs, past_key_values=cache)
    cache, found = output.past_key_values, [output.logits]
    for _ in range(2):
        found.append(model(input_ids=torch.tensor([[40, 41]]), past_key_values=cache).logits)
    return found


def compiled() -> None:
    traced(lambda model: torch.compile(model, backend="eager"))


def with_a_compiled_language_model() -> None:
    def compile_in(model: Any) -> Any:
        decoder = model.get_decoder()
        decoder.forward = torch.compile(decoder.forward, backend="eager")
        return model

    traced(compile_in)


def quantised() -> None:
    """Every linear layer in int8: all tokens kept is the quantised model, fewer are fewer."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao gives way to torchao
        model = torch.ao.quantization.quantize_dynamic(
            build("llava"), {torch.nn.Linear}, dtype=torch.qint8
        )
        stock = answers(model, "llava")
        attach(model, selector(), 1.0)
        same(answers(model, "llava"), stock)
        model.autoselect.budget = 4
        assert not torch.equal(answers(model, "llava")[1][:, -1], stock[1][:, -1])
    assert [len(image.kept) for image in model.autoselect.last.images] == [4, 4, 4]


def loaded_quantised(settings: Any) -> tuple[Any, Any]:
    """Return the reference model with quantised weights, and its processor."""
    with tempfile.TemporaryDirectory() as folder:
        build_model(3).save_pretrained(folder)
        model = hf.AutoModelForImageTextToText.from_pretrained(
            folder, quantization_config=settings, device_map="cpu", dtype=torch.float32
        )
    kinds = {type(weight) for weight in model.get_decoder().layers.parameters()}
    assert kinds > {torch.nn.Parameter}, "quantised weights beside plain ones"
    check_finite("folder", model)
    return model, build_processor()


@torch.no_grad()
def prunes_like_the_masked_model(model: Any, processor: Any) -> None:
    """Compare a loaded model with itself: all tokens kept, and fewer."""
    inputs = dict(processor(images=picture(), text=question(processor), return_tensors="pt"))
    stock = model(**inputs).logits
    attach(model, selector(model.config.text_config.hidden_size), 1.0)
    assert torch.equal(model(**inputs).logits, stock)
    model.autoselect.budget = 4
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    selection = model.autoselect.last
    detach(model)
    close(logits, masked_logits(model, inputs, selection))
    assert torch.equal(tokens, masked_generate(model, inputs, selection, **GREEDY))


def has_a_true_gradient(model: Any, processor: Any) -> None:
    """Compare the gradient of the visual tokens with a difference of two losses."""
    vlm = FrozenVLM(model, processor, "quantised")
    batch = Collator(vlm)([sample(0, (picture(),))])
    features = features_of(vlm, batch).detach().requires_grad_()
    loss_of(vlm, batch, features).backward()
    length, step = float(features.grad.norm()), 0.1
    along = step * features.grad / length
    with torch.no_grad():
        rise = loss_of(vlm, batch, features + along) - loss_of(vlm, batch, features - along)
    assert float(rise) / (2 * step) == pytest.approx(length, rel=0.03)


def in_8_bits_by_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    loaded = loaded_quantised(hf.BitsAndBytesConfig(load_in_8bit=True))
    prunes_like_the_masked_model(*loaded)
    has_a_true_gradient(*loaded)


def in_4_bits_by_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    settings = hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    prunes_like_the_masked_model(*loaded_quantised(settings))


def in_8_bits_by_torchao() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    pytest.importorskip("accelerate")
    settings = hf.TorchAoConfig(torchao.Int8WeightOnlyConfig())
    prunes_like_the_masked_model(*loaded_quantised(settings))


def compiled_decoding() -> None:
    """Static caches of full attention, on a grid, and with windows; without a compiler."""
    settings = hf.CompileConfig(backend="eager", fullgraph=True)
    settings._compile_all_devices = True
    for name in (*NAMES, "gemma3"):
        torch._dynamo.reset()
        inputs = batch(name, ROWS)
        more = {**GREEDY, "cache_implementation": "static"}
        with attached(name, 4) as model:
            ours = model.generate(**inputs, **more, compile_config=settings)
            selection = model.autoselect.last
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        assert torch.equal(ours, masked_generate(model, inputs, selection, **GREEDY))


def with_a_logits_processor() -> None:
    seen: list[int] = []

    def forbid(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids.shape[1])
        return scores.index_fill(1, torch.arange(40, 60), -torch.inf)

    inputs, model = batch("llava", ROWS), model_of("llava")
    more = {**GREEDY, "logits_processor": hf.LogitsProcessorList([forbid])}
    with attached("llava", 4):
        ours = model.generate(**inputs, **more)
        selection = model.autoselect.last
    length = inputs["input_ids"].shape[1]
    assert seen == [length, length + 1, length + 2], "it sees the original prompt"
    assert torch.equal(ours, masked_generate(model, inputs, selection, **more))


@torch.no_grad()
def several_questions_about_one_image() -> None:
    """The prompt is read once; its cache is copied for each question."""
    inputs = batch("llava", [["l"]])
    questions = torch.tensor([[40, 41, 42], [50, 51, 52]])
    with attached("llava", 4) as model:
        cache = model(**inputs).past_key_values
        cache.batch_repeat_interleave(2)
        together = model(input_ids=questions, past_key_values=cache).logits
        for number, question in enumerate(questions):
            alone = model(**inputs).past_key_values
            logits = model(input_ids=question[None], past_key_values=alone).logits
            torch.testing.assert_close(together[number], logits[0], rtol=1e-5, atol=1e-5)


def with_lora() -> None:
    """An adapter of PEFT around the model, and the same one merged into it."""
    peft = pytest.importorskip("peft")
    for name in NAMES:
        torch.manual_seed(0)
        settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        wrapped = peft.get_peft_model(build(name), settings).eval()
        base = attach(wrapped.get_base_model(), selector(), 4)
        ours = answers(wrapped, name)
        assert not torch.allclose(ours[1], expected(name)[1])
        detach(base)
        merged = attach(wrapped.merge_and_unload(), selector(), 4)
        same(answers(merged, name), ours, 1e-4)


def offloaded() -> None:
    accelerate = pytest.importorskip("accelerate")
    for name in (*NAMES, NEWLINES, TRIED):
        model = accelerate.cpu_offload(build(name), execution_device="cpu")
        same(answers(attach(model, selector(), 4), name), expected(name))


def replicated() -> None:
    model = attach(build("llava"), selector(), 4)
    with pytest.raises(ConfigError, match="start one process for each device"):
        model._replicate_for_data_parallel()(**batch("llava", [["s"]]))


def asked() -> tuple[Any, dict[str, Any], Any]:
    """Return the reference model with a selector, and a question in its processor's words."""
    processor, model = build_processor(), build_model(3).eval()
    width = model.config.text_config.hidden_size
    attach(model, selector(width), 4)
    inputs = processor(images=picture(), text=question(processor), return_tensors="pt")
    return model, dict(inputs), processor


def picture() -> Any:
    return make_scene(0, "train", 0).image


def question(processor: Any) -> str:
    content = [{"type": "image"}, {"type": "text", "text": "is there a red circle ?"}]
    talk = [{"role": "user", "content": content}]
    return processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)


Check = Callable[[], None]
WAYS: dict[str, tuple[Check, str | None]] = {
    "`model.to(...)` after `attach`": (moved_after_attach, None),
    "`copy.deepcopy`, pickling": (copied, None),
    "`save_pretrained` after `attach` (writes the stock model)": (saved_after_attach, None),
    "`TextIteratorStreamer`": (streamed, None),
    '`pipeline("image-text-to-text", model=model, ...)`': (in_a_pipeline, None),
    "`torch.compile(model)` after `attach` (encoder and selection are not compiled)": (
        compiled,
        None,
    ),
    "a compiled language model": (with_a_compiled_language_model, None),
    "linear layers in int8 (`torch.ao.quantization.quantize_dynamic`)": (quantised, None),
    "bitsandbytes in 8 bits (`BitsAndBytesConfig`); `autoselect train` takes it": (
        in_8_bits_by_bitsandbytes,
        "bitsandbytes",
    ),
    "bitsandbytes in 4 bits; `autoselect train` refuses it on a CPU, where its gradients are "
    "wrong": (in_4_bits_by_bitsandbytes, "bitsandbytes"),
    "torchao, weights in int8 (`TorchAoConfig`); `autoselect train` refuses it, because DeepSpeed "
    "cannot move its weights": (in_8_bits_by_torchao, "torchao"),
    'compiled decoding with a static cache (`cache_implementation="static"`)': (
        compiled_decoding,
        None,
    ),
    "a logits processor (sees the original prompt)": (with_a_logits_processor, None),
    "one image, many questions (`cache.batch_repeat_interleave`)": (
        several_questions_about_one_image,
        None,
    ),
    "LoRA of PEFT (`attach(model.get_base_model(), ...)`), merged LoRA": (with_lora, "peft"),
    "CPU offload of accelerate": (offloaded, "accelerate"),
}
NOT: dict[str, str] = {
    "`torch.nn.DataParallel` over several GPUs": "no: it copies the model to devices where its "
    "selector is not; start one process for each device",
    '`device_map="auto"` over several GPUs': "not tested: it needs two GPUs",
    "int4 weights of torchao": "not tested: it needs the package `mslk`",
    "contrastive search": "no: it compares new tokens with the hidden states of the whole prompt, "
    "and removed tokens have none; transformers 5 has it as code of the hub only",
}


def tested(way: str) -> str:
    """Return `yes`, and which package the check of a way needs."""
    package = WAYS[way][1]
    return "yes" if package is None else f"yes (tested where `{package}` is installed)"
