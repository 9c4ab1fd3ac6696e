"""Training rows hold the tokens of inference, whatever the tokenizer does to the text."""

import pytest
import torch
import transformers as hf
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from autoselect.config import ConfigError
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.vlm import Collator, FrozenVLM
from autoselect.vlm.batches.batch import IGNORED_LABEL
from autoselect.vlm.batches.dialogue import DialogueWriter, Round
from autoselect.vlm.batches.rows import RowWriter
from tests.vlm import tiny_processors, tiny_tokenizers
from tests.vlm.conversations import sample
from tests.vlm.stock import asked_inputs, model_of

KINDS = ["llama", "metaspace", "byte_level", "byte_level_with_bos", "word_pieces"]
LLAVA = (  # llava-hf's: no BOS, images first, nothing special around the answer
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for p in m['content'] if p['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SPACED = LLAVA.replace("'ASSISTANT:'", "'ASSISTANT: '")
MARKED = (  # BOS of its own, parts where they stand
    "{{ '<s>' }}{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<assistant>' }}"
    "{% for p in m['content'] %}{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
TEMPLATES = {"llava": LLAVA, "spaced": SPACED, "marked": MARKED}
ROUNDS = [("is there a red star ?", "no"), ("what does the sign say ?", "K7 and  3 é星 hearts")]
PICTURES = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
TOKENS = 16


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return getattr(tiny_tokenizers, request.param)()


@pytest.fixture(scope="module", params=TEMPLATES)
def vlm(request, tokenizer):
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    processor = hf.LlavaProcessor(
        images,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATES[request.param],
    )
    vlm = FrozenVLM(model_of("llava"), processor, request.param)
    vlm.adapter.token_ids["image"] = tokenizer.convert_tokens_to_ids("<image>")
    vlm.num_tokens = TOKENS
    return vlm


def asked_ids(vlm, text, count):
    """Token ids that inference gives a text."""
    return vlm.inputs([PICTURES[:count]], [text])["input_ids"][0].tolist()


def told(vlm, rounds, count):
    """Return the text of a conversation with its answers."""
    messages = []
    for number, (question, answer) in enumerate(rounds):
        images = [{"type": "image"}] * (count if number == 0 else 0)
        messages += [
            {"role": "user", "content": [*images, {"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    return vlm.processor.apply_chat_template(messages, tokenize=False)


def characters(tokenizer, ids):
    """Return what tokens say, without white space."""
    return "".join(tokenizer.decode(ids).split())


@pytest.mark.parametrize("count", [1, 2])
def test_a_conversation_has_the_tokens_of_inference(vlm, tokenizer, count):
    batch = Collator(vlm, "conversation")([sample(0, PICTURES[:count], ROUNDS)])
    assert batch.input_ids[0].tolist() == asked_ids(vlm, told(vlm, ROUNDS, count), count)
    assert batch.position_ids[0].tolist() == list(range(batch.input_ids.shape[1]))


@pytest.mark.parametrize("count", [1, 2])
def test_independent_rounds_have_the_tokens_of_inference(vlm, tokenizer, count):
    batch = Collator(vlm, "independent")([sample(0, PICTURES[:count], ROUNDS)])
    for number, pair in enumerate(ROUNDS):
        seen = (batch.segments[0] == -1) | (batch.segments[0] == number)
        expected = asked_ids(vlm, told(vlm, [pair], count), count)
        assert batch.input_ids[0][seen].tolist() == expected
        assert batch.position_ids[0][seen].tolist() == list(range(len(expected)))


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_prompts_of_one_image_begin_the_rows(vlm, tokenizer, rounds):
    (question, answer), *_ = ROUNDS
    batch = Collator(vlm, rounds)([sample(0, PICTURES[:1], [(question, answer)])])
    prompt = asked_inputs(vlm, [PICTURES[:1]], [question])["input_ids"][0].tolist()
    space = vlm.name == "spaced"  # which some tokenizers join to the answer
    assert batch.input_ids[0].tolist()[: len(prompt) - space] == prompt[: len(prompt) - space]


@pytest.fixture
def answering():
    """Return a model whose template writes an answer by the given expression."""

    def build(expression):
        vlm = FrozenVLM(model_of("llava_next"), tiny_processors.llava_next(), "printing")
        vlm.processor.chat_template = (
            "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<user>' }}"
            "{% for p in m['content'] %}"
            "{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
            "{% else %}{{ '<assistant>' }}" + expression + "{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
        )
        return vlm

    return build


PARTS = "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
@pytest.mark.parametrize("opening", ["{{ ' ' }}", "{{ '<unk> a' }}"])
def test_an_answer_follows_the_prompt_of_inference(answering, rounds, opening):
    """LLaVA-OneVision's template writes a space before an answer, which its prompt does not."""
    told, vlm = [("?", "a"), ("is there ?", "no")], answering(PARTS)
    wanted = Collator(vlm, rounds)([sample(0, PICTURES[:1], told)])
    vlm = answering(PARTS)
    template = vlm.processor.chat_template
    assert template.count("{{ '<assistant>' }}") == 2
    vlm.processor.chat_template = template.replace(
        "{{ '<assistant>' }}", opening + "{{ '<assistant>' }}" + opening, 1
    )
    batch = Collator(vlm, rounds)([sample(0, PICTURES[:1], told)])
    assert torch.equal(batch.input_ids, wanted.input_ids)
    assert torch.equal(batch.labels, wanted.labels)


@pytest.mark.parametrize("convolutions", [False, True])
def test_a_template_that_drops_thoughts_of_earlier_turns_is_named_with_what_helps(
    answering, monkeypatch, convolutions
):
    """Templates of thinking models open the last answer with a thought and drop earlier ones."""
    vlm = answering(PARTS)
    thought = "{{ '<assistant>' }}{% if loop.last %}{{ '<unk>' }}{% endif %}"
    template = vlm.processor.chat_template.replace("{{ '<assistant>' }}", thought, 1)
    vlm.processor.chat_template = template
    asked = sample(0, PICTURES[:1], ROUNDS)
    if convolutions:
        refusal = ("has convolutions", "set data.rounds=conversation")
        monkeypatch.setattr(
            "autoselect.vlm.batches.dialogue.training_fault", lambda _, rounds: refusal
        )
    fix = "make every round a sample of its own" if convolutions else "set data.rounds=independent"
    with pytest.raises(
        ConfigError, match=f"rewrites earlier turns, so .* in a conversation; {fix}$"
    ):
        Collator(vlm, "conversation")([asked])
    assert Collator(vlm, "independent")([asked]).num_answer_tokens > 0
    alone = [sample(0, PICTURES[:1], [one]) for one in ROUNDS]
    assert Collator(vlm, "conversation")(alone).num_answer_tokens > 0


def test_a_model_that_can_think_is_asked_for_direct_answers(answering):
    vlm = answering(PARTS)
    head, _, rest = vlm.processor.chat_template.partition("{{ '<assistant>' }}")
    template = (
        head
        + "{{ '<assistant><unk>' }}"
        + rest.replace(
            "{{ '<assistant>' }}",
            "{{ '<assistant>' if enable_thinking | default(true) else '<assistant><unk>' }}",
        )
    )
    assert template.count("<unk>") == 2
    vlm.processor.chat_template = template
    (written,) = DialogueWriter(vlm, "<image>").independent([Round("?", "a")], 1)
    assert written.answer == "a" and written.asked.endswith("<assistant><unk>")
    assert AskedVLM(vlm).prompt(1, "?") == written.asked


def test_a_template_that_changes_a_question_is_named(answering):
    vlm = answering(PARTS)
    vlm.processor.chat_template = "{{ messages | length }}" + vlm.processor.chat_template
    with pytest.raises(ConfigError, match="rewrites a question when its answer is added"):
        Collator(vlm)([sample(0, PICTURES[:1], ROUNDS[:1])])


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
@pytest.mark.parametrize(
    "expression",
    [PARTS, "{{ m['content'] }}", "{{ m['content'] + '' }}", "{{ m['content'] | trim }}"],
)
def test_labels_are_the_answer_however_a_template_prints_it(answering, expression, rounds):
    """GLM-4.1V prints the content of an answer; as a list of parts it would be Python."""
    vlm = answering(expression)
    batch = Collator(vlm, rounds)([sample(0, PICTURES[:1], [("what ?", "no"), ("is it ?", "K7")])])
    labels = batch.labels[batch.labels != IGNORED_LABEL].tolist()
    assert labels == vlm.processor.tokenizer("no K7")["input_ids"]


@pytest.mark.parametrize("expression", ["", "{{ m['text'] }}"])
def test_a_template_that_writes_no_answer_is_named(answering, expression):
    with pytest.raises(ConfigError, match="model=printing: its chat template does not write"):
        Collator(answering(expression))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_exactly_the_answers_are_labelled(vlm, tokenizer, rounds, count):
    batch = Collator(vlm, rounds)([sample(0, PICTURES[:count], ROUNDS)])
    labels = batch.labels[batch.labels != IGNORED_LABEL]
    end = "</s>" if vlm.name == "marked" else ""
    told = "".join(f"{answer}{end}" for _, answer in ROUNDS)
    expected = characters(tokenizer, tokenizer(told, add_special_tokens=False)["input_ids"])
    assert characters(tokenizer, labels) == expected
    assert not bool(
        torch.isin(labels, torch.tensor([tokenizer.bos_token_id, vlm.adapter.image_token_id])).any()
    )


def test_the_first_label_is_the_first_token_of_the_answer(vlm, tokenizer):
    """What the model is asked for right behind the prompt."""
    batch = Collator(vlm)([sample(0, PICTURES[:1], ROUNDS[:1])])
    first = int((batch.labels[0] != IGNORED_LABEL).int().argmax())
    whole = asked_ids(vlm, told(vlm, ROUNDS[:1], 1), 1)
    prompt = asked_inputs(vlm, [PICTURES[:1]], [ROUNDS[0][0]])["input_ids"][0].tolist()
    common = 0
    while common < len(prompt) and prompt[common] == whole[common]:
        common += 1
    assert first == common - 1
    assert torch.equal(batch.labels[0, first:-1], batch.input_ids[0, first + 1 :])


def test_a_tokenizer_adds_bos_where_the_template_does_not(vlm, tokenizer):
    row = Collator(vlm)([sample(0, PICTURES[:1], ROUNDS)]).input_ids[0].tolist()
    adds = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    wanted = 1 if adds or vlm.name == "marked" else 0
    assert row.count(tokenizer.bos_token_id) == wanted


def test_what_ends_an_image_joins_the_text_of_each_round(vlm, tokenizer):
    """Gemma's processor writes line breaks around an image."""
    image = "\n\n<image><image>\n\n"
    row = RowWriter(vlm, "<image>", 2048).independent(sample(0, (), ROUNDS).record, [image])
    for number, pair in enumerate(ROUNDS):
        text = told(vlm, [pair], 1).replace("<image>", image)
        special = not text.startswith("<s>")
        seen = [
            token for token, own in zip(row.ids, row.segments, strict=True) if own in (-1, number)
        ]
        assert seen == tokenizer(text, add_special_tokens=special)["input_ids"]


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_a_system_prompt_that_a_processor_writes_by_itself_is_in_every_text(rounds):
    """Janus, against its own processor; what the caller holds is left as it is."""
    own = tiny_processors.janus()
    vlm = FrozenVLM(model_of("janus"), own, "janus")
    question, answer = ROUNDS[0]
    content = [{"type": "image"}, {"type": "text", "text": question}]
    asked = own.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    stock = own(text=[asked], images=[PICTURES[:1]], return_tensors="pt")["input_ids"][0].tolist()
    without = own.tokenizer(asked)["input_ids"]
    assert len(stock) > len(without) + 20, "the system prompt"
    row = Collator(vlm, rounds)([sample(0, PICTURES[:1], [(question, answer)])]).input_ids[0]
    assert row.tolist()[: len(stock)] == stock
    assert asked_ids(vlm, AskedVLM(vlm).prompt(1, question), 1) == stock
