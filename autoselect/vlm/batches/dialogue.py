"""Write LLaVA-style conversations with the chat template of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoselect.config import ConfigError
from autoselect.data.turns import IMAGE_PLACEHOLDER
from autoselect.vlm.backbone import FrozenVLM, chat
from autoselect.vlm.families import training_fault
from autoselect.vlm.text.placeholders import question_content

Content = list[dict[str, Any]]
PROBE = "yes"
"""Answer used to test a chat template."""


@dataclass(frozen=True)
class Round:
    """A question and its answer; a last question may have None."""

    question: str
    answer: str | None


@dataclass(frozen=True)
class WrittenRound:
    """The text that the chat template adds to a conversation in one round.

    `asked` ends where the answer begins, and holds image marks. `answer` includes what ends it.
    """

    asked: str
    answer: str


def rounds_of(record: dict[str, Any]) -> list[Round]:
    texts: list[str | None] = [turn["value"] for turn in record["conversations"]]
    texts += [None] * (len(texts) % 2)
    return [Round(str(texts[i]), texts[i + 1]) for i in range(0, len(texts), 2)]


def first_rounds(record: dict[str, Any], dropped: int) -> dict[str, Any]:
    kept = len(rounds_of(record)) - dropped
    return {**record, "conversations": record["conversations"][: 2 * kept]}


class DialogueWriter:
    """Write rounds with the chat template of a model. It holds only the processor.

    Args:
        mark: text that the template writes for an image.

    Raises:
        ConfigError: the template does not write the text of an answer.
    """

    def __init__(self, vlm: FrozenVLM, mark: str) -> None:
        self.processor = vlm.processor
        self.model_name = vlm.name
        self.mark = mark
        self.answers_in_parts, self.header = self._answers_in_parts()
        self.without_turns = "set data.rounds=independent"
        if training_fault(vlm.model.config, "independent"):
            self.without_turns = "make every round a sample of its own"

    def _answers_in_parts(self) -> tuple[bool, str]:
        """Return True if the template takes an answer as a list of parts, else as plain text.

        Templates that expect plain text print a list of parts with its keys. Also return the text
        between a question and its answer.
        """
        messages: list[dict[str, Any]] = [{"role": "user", "content": _text("?")}]
        question = chat(self.processor, messages, generation=False)
        for content in (_text(PROBE), PROBE):
            answered = [*messages, {"role": "assistant", "content": content}]
            try:
                told = chat(self.processor, answered, generation=False).removeprefix(question)
            except TypeError:
                continue  # the template joins text to the list
            if PROBE in told and "type" not in told:
                return content != PROBE, told.partition(PROBE)[0]
        raise ConfigError(
            f"model={self.model_name}: its chat template does not write the text of an answer, "
            "given as a list of parts or as plain text; set a chat_template that does"
        )

    def conversation(self, rounds: Sequence[Round], num_images: int) -> list[WrittenRound]:
        """Write rounds as one conversation, with images in place of their marks.

        Args:
            rounds: rounds with one mark per image, or without marks; then images go first.
        """
        counts = [one.question.count(IMAGE_PLACEHOLDER) for one in rounds]
        if not any(counts):
            counts[0] = num_images
        pairs = zip(rounds, counts, strict=True)
        return self._write([question_content(r.question, n) for r, n in pairs], rounds)

    def independent(self, rounds: Sequence[Round], num_images: int) -> list[WrittenRound]:
        """Write rounds as separate conversations that share all text up to the last image.

        The images stand at the marks of the first question, or before it if their numbers differ.
        Each later round repeats the text up to the last image and continues with its own question.
        """
        contents = [question_content(rounds[0].question, num_images)]
        first = self._write(contents, rounds[:1])
        shared = first[0].asked.rpartition(self.mark)[0] + self.mark
        written = first
        for one in rounds[1:]:
            text = one.question.replace(IMAGE_PLACEHOLDER, "").strip()
            (alone,) = self._write([question_content(text, num_images)], [one])
            if not alone.asked.startswith(shared):
                (alone,) = self._write([_up_to_last_image(contents[0]) + _text(text)], [one])
            written.append(alone)
        return written

    def _write(self, contents: Sequence[Content], rounds: Sequence[Round]) -> list[WrittenRound]:
        """Write the rounds of one conversation.

        Raises:
            ConfigError: the template changes earlier turns when a turn is added.
        """
        messages: list[dict[str, Any]] = []
        parts: list[WrittenRound] = []
        written = ""
        for content, one in zip(contents, rounds, strict=True):
            messages.append({"role": "user", "content": content})
            asked = chat(self.processor, messages, generation=True)
            told = asked
            if one.answer is not None:
                answer = _text(one.answer) if self.answers_in_parts else one.answer
                messages.append({"role": "assistant", "content": answer})
                told = chat(self.processor, messages, generation=False)
            if not asked.startswith(written):
                raise ConfigError(
                    f"model={self.model_name}: its chat template rewrites earlier turns, so "
                    f"answers cannot be located in a conversation; {self.without_turns}"
                )
            parts.append(WrittenRound(asked[len(written) :], self._answer(messages, asked, told)))
            written = told
        return parts

    def _answer(self, messages: Sequence[dict[str, Any]], asked: str, told: str) -> str:
        """Return what `told` adds to `asked`: the last answer with what ends it.

        What a template writes before an answer may differ from the end of a prompt, by a space in
        LLaVA-OneVision; the answer then follows the prompt, as at inference.

        Raises:
            ConfigError: the template changes the question when the answer is added.
        """
        if told.startswith(asked):
            return told[len(asked) :]
        before = chat(self.processor, list(messages[:-1]), generation=False) + self.header
        if not told.startswith(before):
            raise ConfigError(
                f"model={self.model_name}: its chat template rewrites a question when its answer "
                "is added, so answers cannot be located; set a chat_template that only adds text"
            )
        return told[len(before) :]


def _text(text: str) -> Content:
    return [{"type": "text", "text": text}]


def _up_to_last_image(content: Content) -> Content:
    last = max(place for place, part in enumerate(content) if part["type"] == "image")
    return content[: last + 1]
