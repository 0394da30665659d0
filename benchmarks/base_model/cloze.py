"""A task in the manner of LAMBADA: the last word of a passage, from WikiText-2 test."""

import json
import re
from itertools import pairwise

_WORD = re.compile(r"[A-Za-z]{3,}")
_MARKS = (".", ",", ";", ":", "!", "?")
_LEAST_WORDS, _MOST_WORDS = 16, 32  # of a passage before the word

DEFINITION = """\
task: cloze
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
output_type: loglikelihood
test_split: test
doc_to_text: passage
doc_to_target: "{{{{' ' + word}}}}"
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""


def passages(text):
    """Each word before a mark of punctuation, and the 16 to 32 words of its paragraph before it.

    Words are of at least three letters. Passages with words that the text leaves out are passed
    over.
    """
    for paragraph in text.split("\n"):
        if paragraph.strip().startswith("="):
            continue
        words = paragraph.split()
        for place, (word, mark) in enumerate(pairwise(words)):
            before = words[max(0, place - _MOST_WORDS) : place]
            is_last = mark in _MARKS and _WORD.fullmatch(word)
            if is_last and len(before) >= _LEAST_WORDS and "<unk>" not in before:
                yield " ".join(before), word


def write_task(text, folder):
    """The items as JSON lines, and the definition for lm-evaluation-harness; returns its path."""
    items = folder / "cloze.jsonl"
    lines = [json.dumps({"passage": passage, "word": word}) for passage, word in passages(text)]
    items.write_text("\n".join(lines) + "\n")
    definition = folder / "cloze.yaml"
    definition.write_text(DEFINITION.format(path=items.resolve()))
    return definition, len(lines)
