"""`c2r demo`: the whole road on the embedded model, in a couple of minutes."""

import time
from dataclasses import dataclass
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_json, print_table, progress_bar
from c2r.cli.models import load_model_and_tokenizer, resolve_texts

_NUM_RANKS = 4
_SEQ_LEN = 512
_SETTINGS = (("c2r", 16), ("c2r", 8), ("priced", 0.03), ("priced", 0.1))
"""Lists of half of the experts, as published for Qwen, and of a quarter; and a price for ranks."""
_CHOSEN = "priced-0.1"


def demo(
    out: Annotated[Path, typer.Option(help="Folder for what the demo writes.")] = Path("c2r-demo"),
    tokens: Annotated[int, typer.Option(help="Tokens to profile, and to evaluate.")] = 65536,
    json: JsonOption = False,
) -> None:
    """Profile, plan, constrain and measure the embedded model, on text it was not trained on.

    The first half of each held-out text (code, prose, C headers) is profiled, the second half
    measures quality and traffic. Everything is written to a folder, so that the other commands
    can be tried on it.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    rows = _Demo.prepare(out, tokens).run()
    page = _write_report(rows, out)
    seconds = time.monotonic() - started
    if json:
        report = None if page is None else str(page)
        print_json({"out": str(out), "report": report, "rows": rows, "seconds": round(seconds, 1)})
        return
    _show(rows, out)
    if page is not None:
        print(f"Open {page} in a browser: figures and tables of all this.")
    note(f"{seconds:.0f} s")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Demo:
    out: Path
    model: Any
    tokenizer: Any
    calibration: Any
    evaluation: Any
    tokens: int

    @classmethod
    def prepare(cls, out: Path, tokens: int) -> "_Demo":
        from c2r.text import split_texts

        note("The embedded model: byte-level Qwen2-MoE, 4 layers, 32 experts, k = 4.")
        model, tokenizer = load_model_and_tokenizer("tiny")
        calibration, evaluation = split_texts(resolve_texts(None))
        return cls(
            out=out,
            model=model,
            tokenizer=tokenizer,
            calibration=calibration,
            evaluation=evaluation,
            tokens=tokens,
        )

    def run(self) -> list[dict[str, Any]]:
        from c2r.adapters.huggingface import apply, remove
        from c2r.planning import STRENGTH_NAMES, make_plan, with_policy

        profile = self._profile()
        profile.save(self.out / "profile.safetensors")
        placed = make_plan(profile, num_ranks=_NUM_RANKS, policy="top_k")
        rows = self._measure_unconstrained(placed)
        for policy, strength in _SETTINGS:
            plan = with_policy(placed, profile, policy, strength)
            plan.save(_plan_file(self.out, f"{policy}-{strength}"))
            apply(self.model, plan)
            rows.append(self._measure(f"{policy}, {STRENGTH_NAMES[policy]} = {strength}", plan)[0])
            remove(self.model)
        self._save_constrained(plan)
        return rows

    def _batches(self, texts: Any) -> Any:
        from c2r.text import token_batches

        return token_batches(
            texts, self.tokenizer, seq_len=_SEQ_LEN, batch_size=8, num_tokens=self.tokens
        )

    def _profile(self) -> Any:
        from c2r.adapters.huggingface import profile

        with progress_bar("profiling the first halves", self.tokens) as advance:
            return profile(self.model, self._batches(self.calibration), on_batch=advance.reach)

    def _measure(self, name: str, plan: Any) -> tuple[dict[str, Any], Any]:
        """The row of the routing in force, placed as planned; and its predicted traffic."""
        from c2r.measuring import evaluate
        from c2r.prediction import predict_traffic
        from c2r.profiling import mean_metrics, measure_collaboration

        with progress_bar(f"{name}: loss and traffic", self.tokens) as advance:
            found = evaluate(self.model, self._batches(self.evaluation), advance)
        traffic = predict_traffic(found.profile, plan).mean
        metrics = mean_metrics([measure_collaboration(layer) for layer in found.profile.layers])
        row = {
            "routing": name,
            "dispatch": "once per rank, placed",
            "loss": found.loss,
            "copies": traffic.copies_placed,
            "rank_load": traffic.rank_load_max_over_mean,
            "effective_collaborators": metrics.effective_collaborators,
        }
        return row, traffic

    def _measure_unconstrained(self, plan: Any) -> list[dict[str, Any]]:
        placed, traffic = self._measure("plain top-k", plan)
        contiguous = {**placed, "rank_load": traffic.rank_load_max_over_mean_contiguous}
        return [
            {**contiguous, "dispatch": "once per expert", "copies": traffic.copies_k_fold},
            {**contiguous, "dispatch": "once per rank", "copies": traffic.copies_contiguous},
            placed,
        ]

    def _save_constrained(self, plan: Any) -> None:
        from c2r.adapters.huggingface import apply, remove, save_pretrained

        folder = self.out / "constrained"
        if folder.exists():
            return
        apply(self.model, plan)
        save_pretrained(self.model, folder, tokenizer=self.tokenizer)
        remove(self.model)


def _plan_file(out: Path, name: str) -> Path:
    return out / f"plan-{name}.safetensors"


def _write_report(rows: list[dict[str, Any]], out: Path) -> Path | None:
    """The page of what the demo found; None where plotly is not installed."""
    from c2r.artifacts import write_text
    from c2r.reporting import build_report, read_inputs, write_page

    curve = out / "curve.json"
    write_text(curve, dumps(_curve(rows)) + "\n")
    if find_spec("plotly") is None:
        note("no report: it needs plotly, `pip install 'c2r-moe[report]'`")
        return None
    page = out / "report.html"
    plan = _plan_file(out, _CHOSEN)
    write_page(build_report(read_inputs([out / "profile.safetensors", plan, curve])), page)
    return page


def _curve(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows in the shape of a sweep."""
    _, contiguous, placed, *constrained = rows
    figures = [
        {
            "loss": row["loss"],
            "copies": row["copies"],
            "rank_load_max_over_mean": row["rank_load"],
        }
        for row in (placed, *constrained)
    ]
    baseline = {
        "policy": "top_k",
        **figures[0],
        "copies_contiguous": contiguous["copies"],
    }
    points = [
        {"policy": policy, "strength": strength, **point}
        for (policy, strength), point in zip(_SETTINGS, figures[1:], strict=True)
    ]
    request = {"model": "tiny", "num_ranks": _NUM_RANKS, "command": "c2r demo"}
    return {"request": request, "baseline": baseline, "points": points}


def _show(rows: list[dict[str, Any]], out: Path) -> None:
    base = rows[0]
    table = [
        [
            row["routing"],
            row["dispatch"],
            row["loss"],
            f"{(row['loss'] / base['loss'] - 1) * 100:+.2f} %",
            row["copies"],
            f"{(row['copies'] / base['copies'] - 1) * 100:+.0f} %",
            row["rank_load"],
            row["effective_collaborators"],
        ]
        for row in rows
    ]
    columns = [
        "routing",
        "a token is sent",
        "loss",
        "change",
        "copies",
        "change",
        "rank load",
        "collaborators",
    ]
    print_table(f"Quality and traffic on {_NUM_RANKS} ranks, held-out text", columns, table)
    print(
        "loss: nats per byte. copies: rows sent per token and layer. rank load: busiest over\n"
        "mean. collaborators: experts, of 31, that an expert in effect shares its tokens with.\n"
        "c2r: each token's other experts are among the T closest collaborators of its first.\n"
        "priced: a token visits a rank only if that adds enough to what it keeps."
    )
    print(f"Written to {out}/. Go on with:")
    print(f"  c2r inspect {out}/profile.safetensors")
    print(f"  c2r traffic {out}/profile.safetensors --plan {_plan_file(out, _CHOSEN)}")
    print(f"  c2r profile {out}/constrained --out {out}/constrained.safetensors")
