"""Stand-ins of the data sets of the paper's ten tasks: `--tasks paper` runs without a network.

    python benchmarks/task_stand_ins.py --out FOLDER
    HF_HOME=FOLDER HF_HUB_OFFLINE=1 c2r evaluate MODEL --plan PLAN --tasks paper

FOLDER becomes what `datasets` leaves behind after a download: the names, splits, fields and types
of the published data sets, in its own files. The items are ours: which of some things is a kind of
tree, of fish, of metal. So every task loads, builds its prompts and is answered as it would be, and
its accuracy says nothing about a model's.
"""

import argparse
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Features, List, Value

KINDS = {
    "bird": ("finch", "heron", "owl", "robin", "swan"),
    "fish": ("carp", "eel", "perch", "salmon", "trout"),
    "fruit": ("apple", "fig", "grape", "pear", "plum"),
    "gem": ("amber", "garnet", "jade", "opal", "ruby"),
    "metal": ("copper", "iron", "lead", "tin", "zinc"),
    "tool": ("chisel", "drill", "hammer", "rasp", "saw"),
    "tree": ("birch", "cedar", "elm", "maple", "oak"),
    "vessel": ("bowl", "cup", "jar", "jug", "vase"),
}
NUM_TRAINING = 40
"""Items that shots are taken from: more than the 32 of boolq."""
NUM_ASKED = 3
_COMMIT = "0" * 40
_TEXT, _TEXTS = Value("string"), List(Value("string"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A kind, and some things of which the one at `right` is of that kind."""

    number: int
    kind: str
    things: tuple[str, ...]
    right: int

    @property
    def asked(self) -> str:
        """The question in words."""
        return f"Which of these is a kind of {self.kind}?"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """A published data set: how it is laid out, and its row for an item."""

    name: str
    row: Callable[[Item], dict[str, Any]]
    features: Mapping[str, Any]
    num_choices: int = 4
    configs: tuple[str, ...] = ("default",)
    shots_split: str = "train"
    asked_splits: tuple[str, ...] = ("validation", "test")


def _with_labels(item: Item) -> dict[str, Any]:
    letters = list("ABCD")
    return {
        "id": str(item.number),
        "choices": {"text": list(item.things), "label": letters},
        "answerKey": letters[item.right],
    }


def _arc(item: Item) -> dict[str, Any]:
    return {"question": item.asked, **_with_labels(item)}


def _openbookqa(item: Item) -> dict[str, Any]:
    return {"question_stem": f"A kind of {item.kind} is", **_with_labels(item)}


def _boolq(item: Item) -> dict[str, Any]:
    return {
        "question": f"is {item.things[0]} a kind of {item.kind}",
        "passage": f"The {item.kind}s include {item.things[item.right]}.",
        "idx": item.number,
        "label": 1 - item.right,
    }


def _hellaswag(item: Item) -> dict[str, Any]:
    first, second = f"A child looks for a kind of {item.kind}.", "the child"
    return {
        "ind": item.number,
        "activity_label": "Naming things",
        "ctx_a": first,
        "ctx_b": second,
        "ctx": f"{first} {second}",
        "endings": [f"[substeps] points at the {thing}." for thing in item.things],
        "source_id": f"ours~{item.number}",
        "split": "val",
        "split_type": "indomain",
        "label": str(item.right),
    }


def _logiqa(item: Item) -> dict[str, Any]:
    return {
        "label": "abcd"[item.right],
        "context": f"Only the {item.things[item.right]} is a kind of {item.kind}.",
        "question": item.asked,
        "options": list(item.things),
    }


def _mmlu(item: Item) -> dict[str, Any]:
    return {
        "question": item.asked,
        "subject": "kinds",
        "choices": list(item.things),
        "answer": item.right,
    }


def _piqa(item: Item) -> dict[str, Any]:
    first, second = (f"Look for the {thing}." for thing in item.things)
    return {
        "goal": f"Find a kind of {item.kind}.",
        "sol1": first,
        "sol2": second,
        "label": item.right,
    }


def _sciq(item: Item) -> dict[str, Any]:
    right = item.things[item.right]
    wrong = (thing for thing in item.things if thing != right)
    return {
        "question": item.asked,
        **{f"distractor{number}": thing for number, thing in enumerate(wrong, start=1)},
        "correct_answer": right,
        "support": f"Everyone knows that {right} is a kind of {item.kind}.",
    }


def _winogrande(item: Item) -> dict[str, Any]:
    first, second = item.things
    return {
        "sentence": f"Of the {first} and the {second}, only the _ is a kind of {item.kind}.",
        "option1": first,
        "option2": second,
        "answer": str(item.right + 1),
    }


def mmlu_subjects() -> tuple[str, ...]:
    """The configurations of MMLU that the harness asks for."""
    tasks = files("lm_eval") / "tasks" / "mmlu" / "default"
    named = re.compile(r'"dataset_name": "(\w+)"')
    found = (named.search(each.read_text(encoding="utf-8")) for each in tasks.iterdir())
    return tuple(sorted(match[1] for match in found if match))


def _texts(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, _TEXT)


_LABELLED = {**_texts("id", "answerKey"), "choices": {"text": _TEXTS, "label": _TEXTS}}

DATA_SETS = (
    DataSet(
        name="allenai/ai2_arc",
        row=_arc,
        features={"question": _TEXT, **_LABELLED},
        configs=("ARC-Easy", "ARC-Challenge"),
    ),
    DataSet(
        name="allenai/openbookqa",
        row=_openbookqa,
        features={"question_stem": _TEXT, **_LABELLED},
        configs=("main",),
    ),
    DataSet(
        name="allenai/sciq",
        row=_sciq,
        features=_texts(
            "question", "distractor1", "distractor2", "distractor3", "correct_answer", "support"
        ),
    ),
    DataSet(
        name="allenai/winogrande",
        row=_winogrande,
        features=_texts("sentence", "option1", "option2", "answer"),
        num_choices=2,
        configs=("winogrande_xl",),
    ),
    DataSet(
        name="aps/super_glue",
        row=_boolq,
        features={
            **_texts("question", "passage"),
            "idx": Value("int32"),
            "label": ClassLabel(names=["False", "True"]),
        },
        num_choices=2,
        configs=("boolq",),
    ),
    DataSet(
        name="baber/piqa",
        row=_piqa,
        features={**_texts("goal", "sol1", "sol2"), "label": Value("int64")},
        num_choices=2,
    ),
    DataSet(
        name="cais/mmlu",
        row=_mmlu,
        features={
            **_texts("question", "subject"),
            "choices": _TEXTS,
            "answer": ClassLabel(names=list("ABCD")),
        },
        configs=mmlu_subjects(),
        shots_split="dev",
    ),
    DataSet(
        name="EleutherAI/logiqa",
        row=_logiqa,
        features={**_texts("label", "context", "question"), "options": _TEXTS},
        configs=("logiqa",),
    ),
    DataSet(
        name="Rowan/hellaswag",
        row=_hellaswag,
        features={
            **_texts("activity_label", "ctx_a", "ctx_b", "ctx", "source_id"),
            **_texts("split", "split_type", "label"),
            "ind": Value("int32"),
            "endings": _TEXTS,
        },
    ),
)


def draw_items(num_items: int, num_choices: int, seed: str) -> Iterator[Item]:
    """Items that are the same for the same seed."""
    rng = random.Random(seed)
    for number in range(num_items):
        kind, *others = rng.sample(sorted(KINDS), num_choices)
        things = [rng.choice(KINDS[other]) for other in others]
        right = rng.randrange(num_choices)
        things.insert(right, rng.choice(KINDS[kind]))
        yield Item(number=number, kind=kind, things=tuple(things), right=right)


class _Builder(datasets.GeneratorBasedBuilder):
    """Writes rows as the library writes those of a data set that it has fetched."""

    def __init__(self, rows: dict[str, list[dict[str, Any]]], features: Features, **where: Any):
        self.rows, self.features = rows, features
        super().__init__(**where)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=self.features)

    def _split_generators(self, _: Any) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(name=name, gen_kwargs={"rows": rows})
            for name, rows in self.rows.items()
        ]

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, Any]]:
        yield from enumerate(rows)


def make_stand_ins(hf_home: Path, num_asked: int = NUM_ASKED) -> Path:
    """Writes all data sets below `hf_home`, the folder of HF_HOME; gives that of HF_DATASETS_CACHE.

    `num_asked` items are in each split that a task asks.
    """
    cache = hf_home / "datasets"
    for data_set in DATA_SETS:
        sizes = {data_set.shots_split: NUM_TRAINING}
        sizes |= dict.fromkeys(data_set.asked_splits, num_asked)
        for config in data_set.configs:
            rows = {
                split: [
                    data_set.row(item)
                    for item in draw_items(size, data_set.num_choices, f"{config} {split}")
                ]
                for split, size in sizes.items()
            }
            _Builder(
                rows,
                Features(data_set.features),
                cache_dir=str(cache),
                dataset_name=data_set.name.partition("/")[2],
                repo_id=data_set.name,
                config_name=config,
                hash=_COMMIT,
            ).download_and_prepare()
    return cache


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to give as HF_HOME")
    parser.add_argument("--items", type=int, default=NUM_ASKED, help="of each split that is asked")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    print(make_stand_ins(args.out, args.items))


if __name__ == "__main__":
    main()
