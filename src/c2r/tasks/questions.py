"""Multiple-choice questions from the files that benchmarks are published as."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from c2r.errors import InputError
from c2r.text import json_lines, read_texts

_LETTERS = "ABCD"
_LOGIQA_LINES = 8  # of an item: blank, letter, context, question, four options
_LABEL = re.compile(r"^[A-D][.? ]\s*")
_NUMBER = re.compile(r"(?<![\d.])-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A prompt up to where the answer begins, the choices, and the index of the right one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


def read_questions(task: str, folder: Path) -> tuple[Question, ...]:
    """The questions of a task of `LOCAL_TASKS`, from its files in `folder`.

    - `piqa`: `piqa-valid.jsonl` and `piqa-valid-labels.lst`, as published.
    - `logiqa`: `logiqa-test.txt`, as published.
    - `gsm8k-choice`: `gsm8k-test.jsonl`, with three wrong numbers beside each right one: the first
      two others of the worked solution, from its end, and of the question; and the right one
      doubled or halved, or one off. Where the right one is whole and positive, so are they. A
      digest of the question draws the place of the right one, and whether the third is above it.
      The numbers are listed by letters, and the letter is the answer.

    Prompts and choices of `piqa` and `logiqa` are the same as in lm-evaluation-harness; the choices
    are the texts themselves.

    Raises:
        InputError: a file is missing or holds something else.
    """
    return tuple(LOCAL_TASKS[task](folder))


def _read_piqa(folder: Path) -> Iterator[Question]:
    items, labels = read_texts([folder / "piqa-valid.jsonl", folder / "piqa-valid-labels.lst"])
    records, answers = list(json_lines(items)), labels.content.split()
    if len(records) != len(answers) or not set(answers) <= {"0", "1"}:
        raise InputError(
            f"{items.name} has {len(records)} items, {labels.name} {len(answers)} labels; there "
            "must be one label, 0 or 1, for each item"
        )
    for (record, source), answer in zip(records, answers, strict=True):
        goal, *choices = _strings(record, ("goal", "sol1", "sol2"), source)
        yield Question(
            prompt=f"Question: {goal}\nAnswer:", choices=tuple(choices), answer=int(answer)
        )


def _read_logiqa(folder: Path) -> Iterator[Question]:
    """Items of eight lines each; options come labelled, and the prompt labels them anew."""
    (text,) = read_texts([folder / "logiqa-test.txt"])
    lines = text.content.rstrip("\n").split("\n")
    for start in range(0, len(lines), _LOGIQA_LINES):
        item = [line.strip() for line in lines[start : start + _LOGIQA_LINES]]
        if len(item) != _LOGIQA_LINES or item[0] or item[1] not in tuple(_LETTERS.lower()):
            raise InputError(
                f"lines {start + 1} to {start + _LOGIQA_LINES} of {text.name} are no item; there "
                "must be a blank line, the right letter, context, question and four options"
            )
        letter, context, question, *options = item[1:]
        choices = tuple(_LABEL.sub("", option) for option in options)
        asked = [
            f"Passage: {context}",
            f"Question: {question}",
            "Choices:",
            *_list_choices(choices),
        ]
        yield Question(
            prompt="\n".join([*asked, "Answer:"]),
            choices=choices,
            answer=_LETTERS.lower().index(letter),
        )


def _read_gsm8k(folder: Path) -> Iterator[Question]:
    """The worked solution ends with `#### answer`; what it names on the way makes wrong choices."""
    (text,) = read_texts([folder / "gsm8k-test.jsonl"])
    for record, source in json_lines(text):
        question, worked = _strings(record, ("question", "answer"), source)
        solution, mark, last = worked.rpartition("####")
        found = _numbers(last)
        if not mark or len(found) != 1:
            raise InputError(f"{source} has an answer that does not end with #### and a number")
        right, drawn = found[0], int(hashlib.sha256(question.encode()).hexdigest(), 16)
        place, is_above = drawn % len(_LETTERS), drawn // len(_LETTERS) % 2 == 1
        numbers = _wrong_numbers(right, _numbers(solution)[::-1] + _numbers(question), is_above)
        numbers.insert(place, right)
        choices = [f"{number.normalize():f}" for number in numbers]
        prompt = "\n".join([f"Question: {question}", *_list_choices(choices), "Answer:"])
        yield Question(prompt=prompt, choices=tuple(_LETTERS), answer=place)


def _wrong_numbers(right: Decimal, told: list[Decimal], is_above: bool) -> list[Decimal]:
    """Three numbers that are not `right`, as `read_questions` describes."""
    is_plain = right > 0 and right % 1 == 0
    alike = [n for n in told if n != right and (not is_plain or (n > 0 and n % 1 == 0))]
    wrong = list(dict.fromkeys(alike))[: len(_LETTERS) - 2]
    # With the solution's numbers alone the right one is largest in 45 % of items (docs/log.md).
    near = [right * 2, right + 1] if is_above else [right // 2, right - 1]
    near += [right + 10 * step for step in range(1, len(_LETTERS))]
    fitting = [n for n in near if n not in (right, *wrong) and (not is_plain or n > 0)]
    return [*wrong, *fitting[: len(_LETTERS) - 1 - len(wrong)]]


def _numbers(text: str) -> list[Decimal]:
    return [Decimal(number.replace(",", "")) for number in _NUMBER.findall(text)]


def _list_choices(choices: Sequence[str]) -> list[str]:
    return [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True)]


def _strings(record: dict[str, object], names: tuple[str, ...], source: str) -> list[str]:
    values = [record.get(name) for name in names]
    if not all(isinstance(value, str) for value in values):
        raise InputError(f"{source} must have the texts {', '.join(names)}; it has {list(record)}")
    return [str(value) for value in values]


LOCAL_TASKS: dict[str, Callable[[Path], Iterator[Question]]] = {
    "piqa": _read_piqa,
    "logiqa": _read_logiqa,
    "gsm8k-choice": _read_gsm8k,
}
