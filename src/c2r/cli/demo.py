"""`c2r demo`: the whole road on the embedded model, in a couple of minutes."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_json, print_table, progress_bar
from c2r.cli.models import load_model_and_tokenizer
from c2r.cli.runs import check_output, record_now

if TYPE_CHECKING:
    from c2r.results import Measurement, SweepResult
    from c2r.sweeps import RunningSweep, SweepRequest

_CLUSTER = "hosts-4-10g"
"""Where times are predicted, and what the experts are placed for: four hosts at 10 Gbit/s."""
_SEQ_LEN = 512
_BATCH_SIZE = 8
_SETTINGS = (("c2r", 16), ("c2r", 8), ("priced", 0.03), ("priced", 0.1))
"""Lists of half of the experts, as published for Qwen, and of a quarter; and a price for ranks."""
_CHOSEN = "priced-0.1"


def demo(
    out: Annotated[Path, typer.Option(help="Folder for what the demo writes.")] = Path("c2r-demo"),
    tokens: Annotated[int, typer.Option(help="Tokens to profile, and to evaluate.")] = 65536,
    json: JsonOption = False,
) -> None:
    """Profile, plan, constrain and measure the embedded model.

    The first half of each text that it was not trained on (code, prose, C headers) is profiled, the
    second half measures quality and traffic. Everything is written to a folder, so that the other
    commands can be tried on it.
    """
    started = time.monotonic()
    check_output(out, fills=True)
    out.mkdir(parents=True, exist_ok=True)
    record_now()
    rows, sweep = _Demo.prepare(out, tokens).run()
    page = _write_report(sweep, out)
    seconds = time.monotonic() - started
    if json:
        print_json(
            {"out": str(out), "report": str(page), "rows": rows, "seconds": round(seconds, 1)}
        )
        return
    _show(rows, out)
    print(f"Open {page} in a browser: figures and tables of all this.")
    note(f"{seconds:.0f} s")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Demo:
    out: Path
    model: Any
    tokenizer: Any
    texts: Any
    calibration: Any
    evaluation: Any
    tokens: int

    @classmethod
    def prepare(cls, out: Path, tokens: int) -> "_Demo":
        from c2r.assets import heldout_files
        from c2r.text import read_texts, split_texts

        note("The embedded model: byte-level Qwen2-MoE, 4 layers, 32 experts, k = 4.")
        model, tokenizer = load_model_and_tokenizer("tiny")
        texts = read_texts(heldout_files())
        calibration, evaluation = split_texts(texts)
        return cls(
            out=out,
            model=model,
            tokenizer=tokenizer,
            texts=texts,
            calibration=calibration,
            evaluation=evaluation,
            tokens=tokens,
        )

    def run(self) -> "tuple[list[dict[str, Any]], SweepResult]":
        """The rows of the table, and the curve that they are on."""
        from c2r.planning import STRENGTH_NAMES, make_plan
        from c2r.prediction import Workload, find_cluster
        from c2r.results import SweepPoint, SweepResult
        from c2r.sweeps import RunningSweep, describe_request

        profile = self._profile()
        profile.save(self.out / "profile.safetensors")
        request, workload = self._request(), Workload.of(profile)
        placed = make_plan(profile, policy="top_k", **request.placing(profile))
        settings = [SweepPoint(policy=name, strength=strength) for name, strength in _SETTINGS]
        sweep = RunningSweep.of(placed, profile, settings)
        for (policy, strength), plan in zip(_SETTINGS, sweep.plans[1:], strict=True):
            plan.save(_plan_file(self.out, f"{policy}-{strength}"))
        self._save_constrained(sweep.plans[-1])
        free, *constrained = self._measure(sweep)
        baseline, *points = sweep.measured()
        timing = find_cluster(_CLUSTER), workload
        rows = _unconstrained_rows(baseline, free, timing)
        for (policy, strength), point, seen in zip(_SETTINGS, points, constrained, strict=True):
            name = f"{policy}, {STRENGTH_NAMES[policy]} = {strength}"
            rows.append(_row(name, point, seen, timing))
        described = describe_request(request, self.model, self.tokenizer, self.texts)
        return rows, SweepResult(request=described, baseline=baseline, points=tuple(points))

    def _request(self) -> "SweepRequest":
        from c2r.sweeps import SweepRequest

        return SweepRequest(
            num_ranks=4,
            num_nodes=4,
            cluster=_CLUSTER,
            policies=tuple(f"{policy}={strength}" for policy, strength in _SETTINGS),
            num_tokens=self.tokens,
            seq_len=_SEQ_LEN,
            batch_size=_BATCH_SIZE,
        )

    def _batches(self, texts: Any) -> Any:
        from c2r.text import token_batches

        return token_batches(
            texts, self.tokenizer, seq_len=_SEQ_LEN, batch_size=_BATCH_SIZE, num_tokens=self.tokens
        )

    def _profile(self) -> Any:
        from c2r.adapters.huggingface import profile

        with progress_bar("profiling the first halves", self.tokens) as advance:
            return profile(self.model, self._batches(self.calibration), on_batch=advance.reach)

    def _measure(self, sweep: "RunningSweep") -> list[Any]:
        """Measures all plans at once; gives a profile of the routing under each."""
        from c2r.traces import ProfileBuilder

        builders = [ProfileBuilder() for _ in sweep.plans]
        batches = self._batches(self.evaluation)
        with progress_bar("measuring the second halves", self.tokens) as advance:
            for num_tokens in sweep.run(
                self.model, batches, lambda index, trace: builders[index].update(trace)
            ):
                advance(num_tokens)
        return [builder.build() for builder in builders]

    def _save_constrained(self, plan: Any) -> None:
        from c2r.adapters.huggingface import apply, remove, save_pretrained

        folder = self.out / "constrained"
        if folder.exists():
            return
        apply(self.model, plan)
        save_pretrained(self.model, folder, tokenizer=self.tokenizer)
        remove(self.model)


def _row(name: str, found: "Measurement", seen: Any, timing: Any) -> dict[str, Any]:
    from c2r.prediction.shares import measured_shares
    from c2r.prediction.time import measured_time
    from c2r.profiling import mean_metrics, measure_collaboration

    metrics = mean_metrics([measure_collaboration(layer) for layer in seen.layers])
    return {
        "routing": name,
        "dispatch": "once per rank, placed",
        "loss": found.loss,
        "copies": found.copies,
        "busiest_rows": found.busiest_visits,
        "rank_load": found.rank_load_max_over_mean,
        "layer_ms": measured_time(measured_shares(found), *timing).layer,
        "effective_collaborators": metrics.effective_collaborators,
    }


def _unconstrained_rows(found: "Measurement", seen: Any, timing: Any) -> list[dict[str, Any]]:
    """Plain top-k, sent and placed in three ways."""
    from c2r.plans import load_max_over_mean
    from c2r.prediction import predict_time
    from c2r.prediction.shares import layer_shares

    placed, (cluster, workload) = _row("plain top-k", found, seen, timing), timing
    layers = [layer_shares(seen, index, None, cluster.topology) for index in range(seen.num_layers)]
    rows = [(layer.rows.sum(), layer.rows.max() * cluster.num_ranks) for layer in layers]
    visits = [(layer.visits.sum(), layer.visits.max() * cluster.num_ranks) for layer in layers]
    loads = [load_max_over_mean(layer.rows) for layer in layers]
    sent = {"once per expert": ("k_fold", rows), "once per rank": ("zero_redundancy", visits)}
    unplaced = []
    for dispatch, (name, figures) in sent.items():
        copies, busiest = (sum(column) / len(layers) for column in zip(*figures, strict=True))
        unplaced.append(
            {
                **placed,
                "dispatch": dispatch,
                "copies": float(copies),
                "busiest_rows": float(busiest),
                "rank_load": sum(loads) / len(loads),
                "layer_ms": predict_time(seen, None, cluster, workload, dispatcher=name).layer,
            }
        )
    return [*unplaced, placed]


def _plan_file(out: Path, name: str) -> Path:
    return out / f"plan-{name}.safetensors"


def _write_report(sweep: "SweepResult", out: Path) -> Path:
    """The page of what the demo found."""
    from c2r.reporting import build_report, read_inputs, write_page

    curve = out / "curve.json"
    sweep.save(curve)
    page = out / "report.html"
    plan = _plan_file(out, _CHOSEN)
    write_page(build_report(read_inputs([out / "profile.safetensors", plan, curve])), page)
    return page


def _show(rows: list[dict[str, Any]], out: Path) -> None:
    base = rows[1]
    table = [
        [
            row["routing"],
            row["dispatch"],
            row["loss"],
            f"{(row['loss'] / base['loss'] - 1) * 100:+.2f} %",
            row["copies"],
            row["busiest_rows"],
            f"{row['rank_load']:.2f}",
            f"{row['layer_ms']:.2f}",
            f"{row['layer_ms'] / base['layer_ms']:.2f}",
        ]
        for row in rows
    ]
    columns = ["routing", "a token is sent", "loss", "change", "copies", "busiest", "rank load"]
    title = f"Quality, traffic and predicted time on {_CLUSTER}, held-out text"
    print_table(title, [*columns, "layer, ms", "of baseline"], table)
    print(
        "loss: nats per byte; change: of the loss. copies: rows sent per token and layer.\n"
        "busiest: copies, were every rank sent as many rows as the busiest. rank load: expert\n"
        "rows of the busiest rank over the mean. layer: predicted milliseconds, 4,096 tokens a\n"
        "rank, from what was measured here. baseline: the second row, experts in order.\n"
        "c2r: each token's other experts are among the T closest collaborators of its first.\n"
        "priced: a token visits a rank only if that adds enough to what it keeps."
    )
    print(f"Written to {out}/. Go on with:")
    print(f"  c2r inspect {out}/profile.safetensors")
    print(f"  c2r estimate {out}/profile.safetensors --plan {_plan_file(out, _CHOSEN)}")
    print(f"  c2r profile {out}/constrained --out {out}/constrained.safetensors")
