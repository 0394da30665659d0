"""How far the study's models are from the dense model, and from the mixture that they came from.

    python benchmarks/study_divergence.py --out study --base FOLDER/fine

Takes up the study of `study_quality.py --scale smollm --out study`: the mixture under each policy,
and each tuned model under its own. The KL divergence of the next token's distribution from that of
the dense model, and of the mixture under plain top-k, in nats per token of the measured text; means
over seeds. Prints a table and one JSON line.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from harness import finish
from study_base import SCALES
from study_plans import StudyPlans
from study_quality import UNTUNED, read_runs, tuned_folder, tuning

from c2r import apply
from c2r.artifacts import write_text
from c2r.cli.console import note
from c2r.measuring import Tally

_SCALE = SCALES["smollm"]


class Divergence:
    """Of models on the first tokens of the measured text, whose reference logits are held."""

    def __init__(self, material, num_windows):
        self.windows = torch.cat([batch["input_ids"] for batch in material.heldout()])[:num_windows]
        references = (material.made.open_dense(), material.open())
        self.references = [self._logits(model) for model in references]

    @torch.no_grad()
    def _logits(self, model):
        """In bfloat16, `[windows, tokens, vocabulary]`."""
        model = _SCALE.measured_form(model)
        rows = [model(input_ids=ids[None], use_cache=False).logits[0] for ids in self.windows]
        return torch.stack(rows)

    def of(self, model):
        """Mean KL in nats per token from each reference."""
        ours = self._logits(model)
        return [self._from(reference, ours) for reference in self.references]

    def _from(self, reference, ours):
        tally = Tally()
        for rows in zip(ours, reference, self.windows, strict=True):
            tally.add_window(*rows)  # of all places: the loss that is tallied too means nothing
        return tally.kl / sum(tally.num_predicted)


def model_of(run, args, material, plans):
    """The model of a run, under its plan."""
    from make_base import open_mixture

    folder = args.base / "model"
    if run.mode != UNTUNED[0]:
        folder = tuned_folder(args.out, run)
    model = open_mixture(folder, "masked")
    if not run.case.is_control:
        apply(model, plans.of(run.case), strict=False)
    return model


def measure_all(args):
    """The divergences of every run of the study, measured once."""
    from study_smollm import MixtureMaterial

    material = MixtureMaterial(args.base, _SCALE)
    plans = StudyPlans(args.out, material)
    path = args.out / "divergence.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    divergence = None
    for run in read_runs(args.out / "runs.jsonl"):
        if repr(run) not in found:
            divergence = divergence or Divergence(material, args.windows)
            found[repr(run)] = divergence.of(model_of(run, args, material, plans))
            note(f"{run}: {found[repr(run)]}")
            write_text(path, json.dumps(found))
        yield run, found[repr(run)]


def summarise(measured):
    """Rows of means over seeds."""
    groups = defaultdict(list)
    for run, found in measured:
        groups[run.setting, run.case.name].append(found)
    rows = []
    for (setting, case), found in sorted(groups.items(), key=lambda item: item[0][0] != UNTUNED):
        row = {"case": case, "mode": setting[0], "steps": setting[1], "learning_rate": setting[2]}
        from_dense, from_mixture = np.mean(found, 0)
        row |= {"from_dense": float(from_dense), "from_mixture": float(from_mixture)}
        rows.append(row | {"seeds": len(found)})
    return rows


def table(rows):
    """The rows in Markdown."""
    lines = ["| tuning | routing | seeds | from dense | from mixture |", "|---" * 5 + "|"]
    for row in rows:
        lines.append(
            f"| {tuning(row)} | {row['case']} | {row['seeds']} | {row['from_dense']:.4f} | "
            f"{row['from_mixture']:.4f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--base", type=Path, required=True, help="what make_base.py made")
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens")
    args = parser.parse_args()
    rows = summarise(measure_all(args))
    print(table(rows))
    finish("study_divergence", "dense", rows, vars(args))


if __name__ == "__main__":
    main()
