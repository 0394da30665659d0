"""Tasks of the study's real model: the dense one, the mixture, and the mixture under policies.

    python benchmarks/study_tasks.py --out study --base FOLDER/fine --tasks-dir FOLDER

Takes up the study of `study_quality.py --scale smollm --out study`: its placement, and with --mode
the models that it tuned in that mode (seed 0), instead of the untuned ones. All models answer the
same items: PIQA, from the files in --tasks-dir, and the last words of passages of WikiText-2 test
(`base_model/cloze.py`). Answers are kept in the folder; a stopped run goes on with the models that
are left. Prints a table, each model against its control with a paired interval, and one JSON line.
"""

import argparse
import json
import time
from functools import cached_property
from pathlib import Path

from harness import finish
from study_base import SCALES
from study_plans import StudyPlans, parse_cases
from study_quality import tuned_folder, tuned_run

from c2r.adapters.huggingface import load_tokenizer
from c2r.artifacts import write_text
from c2r.cli.console import note
from c2r.measuring import free_plan
from c2r.tasks import TaskEvaluation, TaskRequest, compare_evaluations, evaluate, load_tasks

CASES = ("priced=0.03", "priced=0.1", "c2r=16")
DENSE, PLAIN = "dense", "control"


class Answers:
    """What each model answered, a file each."""

    def __init__(self, args):
        self.args = args
        self.folder = args.out / "answers"
        self.folder.mkdir(exist_ok=True)

    @cached_property
    def plans(self):
        from study_smollm import MixtureMaterial

        return StudyPlans(self.args.out, MixtureMaterial(self.args.base, SCALES["smollm"]))

    @cached_property
    def tasks(self):
        request = TaskRequest(
            tasks=("piqa",),
            task_files=(self.args.base / "cloze.yaml",),
            folder=self.args.tasks_dir,
            batch_size=self.args.batch_size,
            limit=self.args.limit,
        )
        return load_tasks(request)

    def of(self, name, folder, plan=None):
        """The answers of the model in `folder`; answered once."""
        rate = self.args.learning_rate and f"-{self.args.learning_rate:g}"
        path = self.folder / f"{name.replace(' ', '-')}{rate or ''}.json"
        if not path.exists():
            from make_base import open_mixture

            started = time.monotonic()
            model = open_mixture(folder, "masked" if name != DENSE else "eager").bfloat16()
            tokenizer = load_tokenizer(str(self.args.base / "model"))  # tuned models hold none
            plan = free_plan(model) if plan is None else plan
            found = evaluate(model, tokenizer, self.tasks, plan, strict=False)
            write_text(path, json.dumps(found.to_json()))
            note(f"{name}: {time.monotonic() - started:.0f} s")
        return TaskEvaluation.load(path)

    def all(self):
        """By name: answers, and the name of what they are compared with."""
        found, prefix = {}, f"{self.args.mode} " if self.args.mode else ""
        if not self.args.mode:
            found[DENSE] = (self.of(DENSE, self.args.base.parent / "dense-mixture"), PLAIN)
        for case in parse_cases(self.args.cases):
            name, plan = prefix + case.name, self.plans.of(case)
            found[name] = (self.of(name, self._folder_of(case), plan), prefix + PLAIN)
        return found

    def _folder_of(self, case):
        """The mixture, or what it was tuned to."""
        if not self.args.mode:
            return self.args.base / "model"
        rate = self.args.learning_rate
        run = tuned_run(case, self.args.mode, 0, SCALES["smollm"], learning_rate=rate)
        return tuned_folder(self.args.out, run)


def summarise(answers):
    """A row per model and task, against what it is compared with."""
    rows = []
    for name, (found, reference) in answers.items():
        compared = compare_evaluations(found, answers[reference][0])
        for task in (each.name for each in found.tasks):
            rows.append(
                {
                    "model": name,
                    "task": task,
                    "items": compared[task].num_items,
                    "accuracy": compared[task].accuracy,
                    "against": reference,
                    "difference": compared[task].difference,
                    "interval": list(compared[task].interval),
                    "p_value": compared[task].p_value,
                }
            )
    return rows


def table(rows):
    """The rows in Markdown."""
    lines = ["| model | task | items | right, % | points over | 95 % |", "|---" * 6 + "|"]
    for row in rows:
        against = f"{100 * row['difference']:+.1f} {row['against']}"
        ends = " to ".join(f"{100 * end:+.1f}" for end in row["interval"])
        if row["model"] == row["against"]:
            against = ends = "-"
        lines.append(
            f"| {row['model']} | {row['task']} | {row['items']:,} | {100 * row['accuracy']:.1f} | "
            f"{against} | {ends} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--base", type=Path, required=True, help="what make_base.py made")
    parser.add_argument("--tasks-dir", type=Path, required=True, help="holds the files of PIQA")
    parser.add_argument("--cases", nargs="*", default=CASES, metavar="POLICY=STRENGTH")
    parser.add_argument("--mode", choices=SCALES["smollm"].learning_rates, help="of tuning")
    parser.add_argument("--learning-rate", type=float, help="of tuning, where not the usual one")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--limit", type=int, help="items of each task")
    args = parser.parse_args()
    rows = summarise(Answers(args).all())
    print(table(rows))
    settings = vars(args) | {"items": {row["task"]: row["items"] for row in rows}}
    finish("study_tasks", PLAIN, rows, settings)


if __name__ == "__main__":
    main()
