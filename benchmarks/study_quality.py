"""What constraints cost a model, tuned under them or not, against the same tuning without them.

    python benchmarks/study_quality.py --out study                            # embedded model, CPU
    python benchmarks/study_quality.py --out study --scale smollm --base FOLDER/fine
    python benchmarks/study_quality.py --out study --scale 100m --minutes 9   # trains its own, GPU

For each policy and mode (none, router, full, lora) and three seeds: held-out loss, copies per
token, load and predicted time. The baseline, `control`, is tuned by the same steps on the same data
in the same order without the constraint. A case is POLICY=STRENGTH, or POLICY=STRENGTH@VARIANT for
another placement than the one of all cases, or other strengths (`study_plans.py`). Everything done
is kept in the folder `--out`, tuned models included, so that the study goes on where it was
stopped; `--minutes` stops it in time. Prints a table in Markdown and one JSON line.

Text: what every Python installation carries, as `scripts/train_tiny.py` collects it; for the model
that `make_base.py` made (`--base`), what `base_model/texts.py` keeps for each purpose. Experts are
placed for the least time, rank load bounded, by a profile of text of its own; losses, copies and
load are measured on text held out from all training. Times are the time model's for the ranks'
shares that were measured, of a layer with the sizes of Qwen3-30B-A3B in training.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from harness import finish
from study_base import SCALES, ByteMaterial
from study_plans import PLACED_FOR, WORKLOAD, Case, StudyPlans, cluster_of, parse_cases
from transformers import TrainerCallback

from c2r.adapters.huggingface import prepare
from c2r.measuring import Tally, measure_plans
from c2r.prediction.shares import measured_shares
from c2r.prediction.time import layer_time
from c2r.results import Measurement, renamed
from c2r.training import FinetuneSettings, finetune

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, by number of seeds
CONTIGUOUS = "in order"
CASES = ("c2r=16", "c2r=8", "c2r=3", "priced=0.03", "priced=0.1", "priced=0.3", "pruned=0.1")
UNTUNED = ("none", 0, 0.0)  # mode, steps, learning rate
TIMED_ON = (PLACED_FOR, "hosts-4-100g", "h100-8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A constraint, tuned in one way; mode `none` is not tuned."""

    policy: str
    strength: float
    mode: str
    seed: int
    steps: int
    learning_rate: float
    variant: str = ""

    @property
    def case(self):
        return Case(policy=self.policy, strength=self.strength, variant=self.variant)

    @property
    def setting(self):
        """How it is tuned; the runs of one setting and seed are compared."""
        return (self.mode, self.steps, self.learning_rate)


def tuned_folder(out, run):
    """Where a study keeps the model that a run tuned."""
    tuning = f"{run.mode}-{run.steps}-{run.learning_rate:g}"
    return out / "models" / f"{tuning}-{run.case.slug}-{run.seed}"


class OutOfTimeError(Exception):
    """The minutes are over; what was done is kept."""


class Deadline(TrainerCallback):
    """Stops a training that outlives the study's time, with a checkpoint to go on from."""

    def __init__(self, minutes):
        self.end = time.monotonic() + 60 * minutes

    def is_over(self):
        return time.monotonic() > self.end

    def on_step_end(self, args, state, control, **_):
        if self.is_over() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
        return control

    def check(self):
        if self.is_over():
            raise OutOfTimeError

    @contextmanager
    def watching(self):
        """A training that ends early inside the block has been stopped by this or by Ctrl-C."""
        try:
            yield
        except KeyboardInterrupt:
            if self.is_over():
                raise OutOfTimeError from None
            raise


def runs_of(args, scale):
    """The runs that were asked for, seed by seed, so that a study cut short has whole seeds."""
    mode, steps, rate = UNTUNED
    untuned = {"mode": mode, "steps": steps, "learning_rate": rate, "seed": 0}
    runs = [Run(**asdict(case), **untuned) for case in parse_cases(args.cases)]
    cases = parse_cases(args.cases if args.tuned_cases is None else args.tuned_cases)
    for seed in args.seeds:
        for mode in args.modes:
            runs += [
                tuned_run(case, mode, seed, scale, args.steps, args.learning_rate) for case in cases
            ]
    return runs


def tuned_run(case, mode, seed, scale, steps=None, learning_rate=None):
    """A case tuned in a mode, as its scale says unless told otherwise."""
    return Run(
        **asdict(case),
        mode=mode,
        seed=seed,
        steps=steps or scale.steps,
        learning_rate=learning_rate or scale.learning_rates[mode],
    )


def milliseconds(found, cluster, dispatcher="zero_redundancy"):
    """Predicted time of a layer whose ranks had the shares of a measurement; mean over layers."""
    measured = Measurement.from_json(found)
    if cluster.num_nodes == 1:  # every token visits the one node there is
        measured = replace(measured, node_visits=((1.0,),) * len(measured.rank_visits))
    times = [
        layer_time(layer, cluster, WORKLOAD, dispatcher).total
        for layer in measured_shares(measured)
    ]
    return float(np.mean(times))


class ResumableSweep:
    """Runs against one base model, on one placement, kept as lines of a file."""

    def __init__(self, args, scale, deadline):
        self.args, self.scale, self.deadline = args, scale, deadline
        self.folder = args.out
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines = self.folder / "runs.jsonl"
        self.material = self._material()
        self.plans = StudyPlans(self.folder, self.material, args.ranks, args.max_load)
        self.heldout = self.material.heldout()

    def _material(self):
        if self.args.base is not None:
            from study_smollm import MixtureMaterial

            return MixtureMaterial(self.args.base, self.scale)
        with self.deadline.watching():
            return ByteMaterial(self.folder, self.scale, self.args.device, [self.deadline])

    def in_order(self):
        """What plain top-k sends with the experts in the order of their ids, measured once."""
        path = self.folder / "in_order.json"
        if not path.exists():
            (found,) = self._measure(self.material.open(), [self.plans.in_order()])
            path.write_text(json.dumps(found.to_json()))
        return json.loads(path.read_text())

    def _measure(self, model, plans):
        """Of each plan, against the first one, in one pass over the text."""
        model = self.scale.measured_form(model)
        prepared = [prepare(model, plan, strict=False) for plan in plans]
        tallies = [Tally() for _ in plans]
        for _ in measure_plans(model, self.heldout, prepared, tallies):
            pass
        reference = tallies[0]
        return [tally.measured(plan, reference) for tally, plan in zip(tallies, plans, strict=True)]

    def done(self):
        """The results so far, by run."""
        return read_runs(self.lines)

    def run_untuned(self, runs):
        """Measures all of them on the same batches, and writes a line each."""
        found = self._measure(self.material.open(), [self.plans.of(run.case) for run in runs])
        for run, each in zip(runs, found, strict=True):
            self._keep(run, each)

    def run(self, run):
        """Tunes, measures, and writes a line."""
        model, plan = self.material.open(), self.plans.of(run.case)
        self._tune(model, run, plan)
        self._keep(run, *self._measure(model, [plan]))

    def _keep(self, run, found):
        with self.lines.open("a") as file:
            file.write(json.dumps({"run": asdict(run), **found.to_json()}) + "\n")

    def _tune(self, model, run, plan):
        """A tuning that the deadline stops has a folder to go on from."""
        folder = self.folder / "tuning" / hashlib.sha256(repr(run).encode()).hexdigest()[:16]
        with self.deadline.watching():
            finetune(model, self._examples(run), plan, self._settings(run), folder, [self.deadline])
        kept = tuned_folder(self.folder, run)
        kept.parent.mkdir(exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        folder.rename(kept)

    def _examples(self, run):
        return self.material.examples(run.steps * self.scale.batch_size, run.seed)

    def _settings(self, run):
        return FinetuneSettings(
            mode=run.mode,
            num_steps=run.steps,
            batch_size=self.scale.batch_size,
            learning_rate=run.learning_rate,
            warmup=0.1,
            weight_decay=0.1 if run.mode == "full" else 0.0,
            aux_weight=0.01,
            seed=run.seed,
            control=run.case.is_control,
            bf16=self.scale.bf16,
            log_every=10,
        )


def read_runs(path):
    """The results that a study kept, by run."""
    entries = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {Run(**entry["run"]): entry for entry in entries}


def summarise(entries, in_order, num_ranks):
    """Rows of means over seeds, each against the control of the same tuning and seed.

    Times are ratios to those of the untuned model's plain top-k, experts in order, each token sent
    once per expert; the first row is of the same, each token sent once per rank.
    """
    clusters = {name: cluster_of(name, num_ranks) for name in TIMED_ON}
    k_fold = {name: milliseconds(in_order, each, "k_fold") for name, each in clusters.items()}
    controls = {
        (run.setting, run.seed): entry for run, entry in entries.items() if run.case.is_control
    }
    groups = defaultdict(list)
    for run, entry in entries.items():
        control = controls.get((run.setting, run.seed))
        if control is not None:
            groups[run.setting, run.case.name].append((entry, control))
    groups = {(UNTUNED, CONTIGUOUS): [(in_order, in_order)]} | groups
    rows = []
    for (setting, case), pairs in sorted(groups.items(), key=lambda item: item[0][0] != UNTUNED):
        row = {"case": case, "mode": setting[0], "steps": setting[1], "learning_rate": setting[2]}
        row |= _mean_row(pairs)
        for name, cluster in clusters.items():
            times = [milliseconds(entry, cluster) for entry, _ in pairs]
            row[f"time_{name}"] = float(np.mean(times)) / k_fold[name]
        rows.append(row)
    return rows


def _mean_row(pairs):
    """Of a case's results, each with its control's."""
    ratios = [entry["loss"] / control["loss"] - 1 for entry, control in pairs]
    in_order = np.mean([renamed(control)["copies_in_order"] for _, control in pairs])
    names = ("loss", "copies", "rank_load_max_over_mean")
    row = {name: float(np.mean([entry[name] for entry, _ in pairs])) for name in names}
    busiest = [[max(layer) * len(layer) for layer in entry["rank_visits"]] for entry, _ in pairs]
    return row | {
        "of_contiguous": float(row["copies"] / in_order),
        "busiest": float(np.mean(busiest)),
        "over_control": float(np.mean(ratios)),
        "over_control_by_seed": ratios,
        # of one seed: over windows of text, where the control was measured beside it
        "interval": _interval(ratios) or pairs[0][0]["loss_increase_interval"],
        "seeds": len(pairs),
    }


def _interval(ratios):
    """95 % over seeds, by Student's t; None for a number of seeds that it is not kept for."""
    if len(ratios) not in T_975:
        return None
    half = T_975[len(ratios)] * np.std(ratios, ddof=1) / math.sqrt(len(ratios))
    return [float(np.mean(ratios) - half), float(np.mean(ratios) + half)]


def table(rows):
    """The rows in Markdown."""
    lines = [
        (
            "| tuning | routing | seeds | loss | over its control, % (95 %) | copies | "
            "of in order | busiest | load | "
            + " | ".join(f"time, {name}" for name in TIMED_ON)
            + " |"
        ),
        "|---" * (9 + len(TIMED_ON)) + "|",
    ]
    for row in rows:
        over = "-" if row["case"].split(",")[0] in (CONTIGUOUS, "control") else _percent(row)
        lines.append(
            f"| {tuning(row)} | {row['case']} | {row['seeds']} | {row['loss']:.4f} | {over} | "
            f"{row['copies']:.3f} | {row['of_contiguous']:.2f} | {row['busiest']:.2f} | "
            f"{row['rank_load_max_over_mean']:.2f} | "
            + " | ".join(f"{row[f'time_{name}']:.3f}" for name in TIMED_ON)
            + " |"
        )
    return "\n".join(lines)


def tuning(row):
    """How a row was tuned, in words."""
    if row["mode"] == "none":
        return "none"
    return f"{row['mode']}, {row['steps']} steps at {row['learning_rate']:g}"


def _percent(row):
    mean, (low, high) = f"{100 * row['over_control']:+.2f}", row["interval"]
    is_known = row["seeds"] > 1 or row["mode"] == "none"
    return f"{mean} ({100 * low:+.2f} to {100 * high:+.2f})" if is_known else mean


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--scale", choices=SCALES, default="embedded")
    parser.add_argument("--base", type=Path, help="of scale smollm: what make_base.py made")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--modes", nargs="*", default=["full", "router"])
    parser.add_argument("--max-load", type=float, default=1.1, help="bound of the placement")
    parser.add_argument("--cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--tuned-cases", nargs="*", metavar="CASE", help="default: all")
    parser.add_argument("--steps", type=int, help="of fine-tuning")
    parser.add_argument("--learning-rate", type=float, help="for all modes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then, go on later")
    parser.add_argument("--threads", type=int, help="of a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def run_all(args, scale):
    """Every run that is left, and the results; None if there was no time for the base model."""
    deadline = Deadline(args.minutes)
    study = None
    try:
        study = ResumableSweep(args, scale, deadline)
        runs, done = runs_of(args, scale), study.done()
        left = [run for run in runs if run not in done]
        if untuned := [run for run in left if run.mode == "none"]:
            deadline.check()
            # Whose intervals need the control's losses, window by window.
            study.run_untuned([run for run in runs if run.mode == "none"])
        for number, run in enumerate(run for run in left if run not in untuned):
            deadline.check()
            print(f"{number + 1} of {len(left) - len(untuned)}: {run}", file=sys.stderr, flush=True)
            study.run(run)
    except OutOfTimeError:
        print("out of time; run the same command to go on", file=sys.stderr)
    return study and (study.done(), study.in_order())


def main():
    args = parse_arguments()
    scale = SCALES[args.scale]
    if args.device == "cpu" and args.threads:
        torch.set_num_threads(args.threads)
    results = run_all(args, scale)
    if results is None:
        return
    rows = summarise(*results, args.ranks)
    print(table(rows))
    settings = {"scale": args.scale, "ranks": args.ranks, "max_load": args.max_load}
    settings |= asdict(scale)
    finish("study_quality", "control", rows, settings, command=" ".join(sys.argv))


if __name__ == "__main__":
    main()
