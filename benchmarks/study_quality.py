"""What constraints cost a model, tuned under them or not, against the same tuning without them.

    python benchmarks/study_quality.py --out study                            # embedded model, CPU
    python benchmarks/study_quality.py --out study --scale 100m --minutes 9   # trains its own, GPU

For each policy and mode (none, router, full) and three seeds: held-out loss, copies per token and
load. The baseline, `control`, is tuned by the same steps on the same data in the same order
without the constraint. Everything done is kept in the folder `--out`, so that the study goes on
where it was stopped; `--minutes` stops it in time. Prints a table in Markdown and one JSON line.

Text: what every Python installation carries, as `scripts/train_tiny.py` collects it. Experts are
placed by a profile of training text; losses are measured on files held out from all training.
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
from study_base import SCALES, Corpus, calibrate, heldout_batches, open_base, train_base
from transformers import TrainerCallback

from c2r.assets import tiny_folder
from c2r.measuring import measure
from c2r.planning import make_plan, parse_policy, with_policy
from c2r.training import FinetuneSettings, finetune

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, by number of seeds
CONTROL = "top_k"
CASES = ("c2r=16", "c2r=8", "c2r=3", "priced=0.08", "priced=0.2", "priced=0.7")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A constraint, tuned in one way; mode `none` is not tuned."""

    policy: str
    strength: float
    mode: str
    seed: int
    steps: int
    learning_rate: float

    @property
    def case(self):
        return "control" if self.policy == CONTROL else f"{self.policy} {self.strength:g}"

    @property
    def setting(self):
        """How it is tuned; the runs of one setting and seed are compared."""
        return (self.mode, self.steps, self.learning_rate)


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

    @contextmanager
    def watching(self):
        """A training that ends early inside the block has been stopped by this or by Ctrl-C."""
        try:
            yield
        except KeyboardInterrupt:
            if self.is_over():
                raise OutOfTimeError from None
            raise


def parse_cases(texts):
    """Policies with their strengths, the control first."""
    parsed = [parse_policy(text) for text in texts]
    return [(CONTROL, 0.0), *((policy, value) for policy, values in parsed for value in values)]


def runs_of(args, scale):
    """The runs that were asked for, seed by seed, so that a study cut short has whole seeds."""
    cases = parse_cases(args.cases)
    runs = [_untuned(*case) for case in cases]
    for seed in range(args.seeds):
        for mode in args.modes:
            rate = args.learning_rate or scale.learning_rates[mode]
            for policy, strength in cases:
                runs.append(
                    Run(
                        policy=policy,
                        strength=strength,
                        mode=mode,
                        seed=seed,
                        steps=args.steps or scale.steps,
                        learning_rate=rate,
                    )
                )
    return runs


def _untuned(policy, strength):
    return Run(policy=policy, strength=strength, mode="none", seed=0, steps=0, learning_rate=0.0)


class ResumableSweep:
    """Runs against one base model, on one placement, kept as lines of a file."""

    def __init__(self, args, scale, deadline):
        self.args, self.scale, self.deadline = args, scale, deadline
        self.folder = args.out
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines = self.folder / "runs.jsonl"
        self.corpus = Corpus(scale.seq_len)
        self.base = self._base()
        path = self.folder / "profile.safetensors"
        self.profile = calibrate(self.base, self.corpus, args.device, path)
        self.placed = make_plan(self.profile, num_ranks=args.ranks, policy=CONTROL)
        self.heldout = heldout_batches(scale)

    def _base(self):
        if not self.scale.base_steps:
            return tiny_folder()
        folder = self.folder / "base"
        if not (folder / "config.json").exists():
            with self.deadline.watching():
                train_base(folder, self.corpus, self.scale, self.args.device, [self.deadline])
        return folder

    def done(self):
        """The results so far, by run."""
        if not self.lines.exists():
            return {}
        entries = map(json.loads, self.lines.read_text().splitlines())
        return {Run(**entry["run"]): entry for entry in entries}

    def run(self, run):
        """Tunes, measures, and writes a line."""
        plan = with_policy(self.placed, self.profile, run.policy, run.strength or None)
        model = open_base(self.base, self.args.device)
        if run.mode != "none":
            self._tune(model, run, plan)
        found = measure(model, self.heldout, plan, strict=False)
        plain = found.reference or found  # the control is plain top-k itself
        entry = {
            "run": asdict(run),
            **replace(found, reference=None).to_json(),
            "copies_contiguous_top_k": plain.copies_contiguous,
            "loss_unconstrained": plain.loss,
        }
        with self.lines.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _tune(self, model, run, plan):
        """A tuning that the deadline stops has a folder to go on from."""
        folder = self.folder / "tuning" / hashlib.sha256(repr(run).encode()).hexdigest()[:16]
        with self.deadline.watching():
            finetune(model, self._examples(run), plan, self._settings(run), folder, [self.deadline])
        shutil.rmtree(folder)

    def _examples(self, run):
        return self.corpus.examples(run.steps * self.scale.batch_size, 1000 + run.seed)

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
            control=run.policy == CONTROL,
            bf16=self.scale.bf16,
            log_every=50,
        )


def summarise(entries):
    """Rows of means over seeds, each against the control of the same tuning and seed."""
    groups = defaultdict(list)
    for run, entry in entries.items():
        groups[run.setting, run.case].append((run, entry))
    controls = {
        (run.setting, run.seed): entry for run, entry in entries.items() if run.policy == CONTROL
    }
    rows = []
    for (setting, case), members in groups.items():
        pairs = [
            (entry, controls[setting, run.seed])
            for run, entry in members
            if (setting, run.seed) in controls
        ]
        if not pairs:
            continue
        ratios = [entry["loss"] / control["loss"] - 1 for entry, control in pairs]
        row = {"case": case, "mode": setting[0], "steps": setting[1], "learning_rate": setting[2]}
        for name in ("loss", "copies", "rank_load_max_over_mean"):
            row[name] = float(np.mean([entry[name] for entry, _ in pairs]))
        contiguous = float(np.mean([control["copies_contiguous"] for _, control in pairs]))
        row["of_contiguous"] = row["copies"] / contiguous
        row["over_control"] = float(np.mean(ratios))
        if row["mode"] == "none":
            row["interval"] = pairs[0][0]["loss_increase_interval"]  # over windows of text
        else:
            row["interval"] = _interval(ratios)
        row["seeds"] = len(pairs)
        rows.append(row)
    return rows


def _interval(ratios):
    """95 % over seeds, by Student's t; None for a number of seeds that it is not kept for."""
    if len(ratios) not in T_975:
        return None
    half = T_975[len(ratios)] * np.std(ratios, ddof=1) / math.sqrt(len(ratios))
    return [float(np.mean(ratios) - half), float(np.mean(ratios) + half)]


def _percent(mean, interval):
    if interval is None:
        return f"{100 * mean:+.2f}"
    return f"{100 * mean:+.2f} ({100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})"


def table(rows):
    """The rows in Markdown."""
    lines = [
        (
            "| tuning | steps | rate | seeds | routing | loss | over its control, % (95 %) | "
            "copies | of contiguous | load |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        over = "-" if row["case"] == "control" else _percent(row["over_control"], row["interval"])
        lines.append(
            f"| {row['mode']} | {row['steps']} | {row['learning_rate']:g} | {row['seeds']} | "
            f"{row['case']} | {row['loss']:.4f} | {over} | {row['copies']:.3f} | "
            f"{row['of_contiguous']:.2f} | {row['rank_load_max_over_mean']:.2f} |"
        )
    return "\n".join(lines)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--scale", choices=SCALES, default="embedded")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--modes", nargs="*", default=["full", "router"])
    parser.add_argument("--cases", nargs="*", default=CASES, metavar="POLICY=STRENGTH")
    parser.add_argument("--steps", type=int, help="of fine-tuning")
    parser.add_argument("--learning-rate", type=float, help="for all modes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then, go on later")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def run_all(args, scale):
    """Every run that is left, and the results; None if there was no time for the base model."""
    deadline = Deadline(args.minutes)
    study = None
    try:
        study = ResumableSweep(args, scale, deadline)
        runs, done = runs_of(args, scale), study.done()
        for number, run in enumerate(runs, 1):
            if run not in done:
                if deadline.is_over():
                    raise OutOfTimeError
                print(f"{number}/{len(runs)}: {run}", file=sys.stderr, flush=True)
                study.run(run)
    except OutOfTimeError:
        print("out of time; run the same command to go on", file=sys.stderr)
    return study and study.done()


def main():
    args = parse_arguments()
    scale = SCALES[args.scale]
    if args.device == "cpu":
        torch.set_num_threads(1)
    results = run_all(args, scale)
    if results is None:
        return
    rows = summarise(results)
    print(table(rows))
    settings = {"scale": args.scale, "ranks": args.ranks, **asdict(scale)}
    finish("study_quality", "control", rows, settings, command=" ".join(sys.argv))


if __name__ == "__main__":
    main()
