"""`c2r sweep`: the curve of quality against traffic, policy by policy."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_json, print_table, progress_bar
from c2r.cli.models import (
    DtypeOption,
    ModelArgument,
    TextOption,
    load_model_and_tokenizer,
    resolve_texts,
)
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.adapters.text import Text
    from c2r.evaluation import SweepPoint
    from c2r.planning import Plan
    from c2r.profiling import CollaborationProfile

_SECONDS_BETWEEN_SAVES = 30.0
_SHARE_FOR_SENSITIVITY = 4  # of the tokens, to ask each layer alone

Document = dict[str, Any]


def sweep(
    model: ModelArgument,
    ranks: Annotated[int, typer.Option(help="Devices that the experts are spread over.")],
    nodes: Annotated[int, typer.Option(help="Machines that the ranks are on.")] = 1,
    text: TextOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON to write, and to go on from; the profile goes beside it."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Policy to try, as budgeted or budgeted=0.05,0.1; repeat. [all]"),
    ] = None,
    spread: Annotated[
        list[str] | None,
        typer.Option(help="Policy whose strengths are also spread by each layer's sensitivity."),
    ] = None,
    transfer: Annotated[
        bool,
        typer.Option(
            help="Also plan on each text and measure on each, with --tokens for every pair."
        ),
    ] = False,
    max_load: Annotated[
        float | None,
        typer.Option(help="Bound of the placement on the busiest rank's load over the mean."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to calibrate on, and to measure.")] = 65536,
    seq_len: Annotated[int, typer.Option(help="Tokens per window of text.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Windows per forward pass.")] = 16,
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Draws the parts of the text and the placement.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="PNG of the curve to draw.")] = None,
    json: JsonOption = False,
) -> None:
    """Measure what each routing policy costs in quality and saves in traffic.

    The first half of every text is profiled and planned on, the second half measures: loss, KL to
    the unconstrained model, copies per token and load, with 95 % intervals of the loss over windows
    of text. An interrupted sweep goes on from --out with the same command.
    """
    from c2r.adapters.huggingface import remove
    from c2r.evaluation.plot import check_matplotlib, plot_curve

    if plot is not None:
        check_matplotlib()
    loaded, tokenizer = load_model_and_tokenizer(model, dtype)
    remove(loaded)  # a folder may carry a plan
    request = _Request(
        model=model,
        num_ranks=ranks,
        num_nodes=nodes,
        policies=list(policy or ()),
        spread=list(spread or ()),
        max_load=max_load,
        transfer=transfer,
        tokens=tokens,
        seq_len=seq_len,
        batch_size=batch_size,
        dtype=dtype,
        seed=seed,
    )
    run = _Run(request=request, model=loaded, tokenizer=tokenizer, out=out)
    document = run.finish(resolve_texts(text))
    if plot is not None:
        plot_curve(document, plot)
        note(f"wrote {plot}")
    if json:
        print_json(document)
    else:
        _show(document)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """What the user asked for; a sweep goes on only under the same."""

    model: str
    num_ranks: int
    num_nodes: int
    policies: list[str]
    spread: list[str]
    max_load: float | None
    transfer: bool
    tokens: int
    seq_len: int
    batch_size: int
    dtype: str
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Calibration:
    """What was seen of one text, and the experts placed by it."""

    profile: "CollaborationProfile"
    placed: "Plan"


@dataclass(kw_only=True, slots=True)
class _Run:
    """A sweep that goes on where an interrupted one with the same request stopped.

    `state` is the document in the making; its `partial` holds the tallies of each text measured.
    """

    request: _Request
    model: Any
    tokenizer: Any
    out: Path | None
    state: Document = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    def finish(self, texts: "Sequence[Text]") -> Document:
        from c2r.adapters.text import split_texts
        from c2r.evaluation import DEFAULT_POLICIES

        if self.request.transfer and len(texts) < 2:
            raise InputError("--transfer plans on one text and measures on others; give several")
        first, second = split_texts(texts)
        points = self._points(self.request.policies or DEFAULT_POLICIES)
        spread = [self._points([name]) for name in self.request.spread]
        self.state = self._begin(texts)
        self.started = time.monotonic() - self.state["seconds"]
        if not self.state["complete"]:
            calibration = self._calibrate(first, self._profile_path())
            by_layer = self._spread_points(spread, calibration, first)
            self.state |= self._measure("all", calibration, points + by_layer, second)
            if self.request.transfer:
                self.state["transfer"] = list(self._transfer(points, first, second))
            self.state |= {"complete": True, "partial": {}}
            self._save()
        return {key: value for key, value in self.state.items() if key != "partial"}

    def _begin(self, texts: "Sequence[Text]") -> Document:
        from c2r.adapters.huggingface import describe_model
        from c2r.evaluation import read_partial

        request = {
            **asdict(self.request),
            **describe_model(self.model),
            "texts": [{"name": item.name, "digest": item.digest} for item in texts],
        }
        found = None if self.out is None else read_partial(self.out)
        if found is not None and found["request"] == json.loads(json.dumps(request)):
            note(f"{self.out} holds a part of this sweep; going on from there")
            return found
        return {"request": request, "complete": False, "points": [], "seconds": 0, "partial": {}}

    def _save(self) -> None:
        from c2r.evaluation import write_sweep

        self.saved = time.monotonic()
        self.state["seconds"] = round(self.saved - self.started, 1)
        if self.out is not None:
            write_sweep(self.out, self.state)

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self.saved > _SECONDS_BETWEEN_SAVES:
            self._save()

    def _profile_path(self) -> Path | None:
        return None if self.out is None else self.out.with_suffix(".profile.safetensors")

    def _batches(self, texts: "Sequence[Text]", num_tokens: int) -> Any:
        from c2r.adapters.text import token_batches

        return token_batches(
            texts,
            self.tokenizer,
            seq_len=self.request.seq_len,
            batch_size=self.request.batch_size,
            num_tokens=num_tokens,
            seed=self.request.seed,
        )

    def _calibrate(self, texts: "Sequence[Text]", path: Path | None = None) -> _Calibration:
        from c2r.adapters.huggingface import profile
        from c2r.planning import make_plan
        from c2r.profiling import CollaborationProfile

        request = self.request
        if path is not None and path.exists() and self.state["partial"]:
            seen = CollaborationProfile.load(path)
        else:
            with progress_bar("profiling, tokens", request.tokens) as advance:
                step = request.seq_len * request.batch_size
                batches = self._batches(texts, request.tokens)
                seen = profile(
                    self.model, batches, seed=request.seed, on_batch=lambda _: advance(step)
                )
            if path is not None:
                seen.save(path)
        placed = make_plan(
            seen,
            num_ranks=request.num_ranks,
            num_nodes=request.num_nodes,
            policy="top_k",
            seed=request.seed,
            max_load=request.max_load,
        )
        return _Calibration(profile=seen, placed=placed)

    def _points(self, names: "Sequence[str]") -> "tuple[SweepPoint, ...]":
        """The points of names like `budgeted` and `budgeted=0.05,0.1`, checked."""
        from c2r.adapters.huggingface import find_sites
        from c2r.evaluation import default_points
        from c2r.planning import ClusterTopology, settings_per_layer

        layers, num_ranks = find_sites(self.model), self.request.num_ranks
        ClusterTopology(num_ranks=num_ranks, num_nodes=self.request.num_nodes)
        points: list[SweepPoint] = []
        for name in names:
            policy, _, strengths = name.partition("=")
            named = _parse_points(name) if strengths else default_points(policy, layers, num_ranks)
            points += named
        for point in points:
            settings_per_layer(point.policy, point.strength, layers, num_ranks)
        return tuple(points)

    def _spread_points(
        self,
        spread: "Sequence[Sequence[SweepPoint]]",
        calibration: _Calibration,
        texts: "Sequence[Text]",
    ) -> "tuple[SweepPoint, ...]":
        """Strengths per layer by sensitivity, measured on the text of the calibration."""
        from c2r.evaluation import SweepPoint, spread_points

        if "spread" not in self.state:
            num_tokens = max(self.request.tokens // _SHARE_FOR_SENSITIVITY, 1)
            found = [
                spread_points(
                    self.model,
                    list(self._batches(texts, num_tokens)),
                    calibration.placed,
                    calibration.profile,
                    points,
                )
                for points in spread
            ]
            self.state["spread"] = [asdict(point) for points in found for point in points]
        return tuple(SweepPoint(**point) for point in self.state["spread"])

    def _transfer(
        self,
        points: "tuple[SweepPoint, ...]",
        first: "Sequence[Text]",
        second: "Sequence[Text]",
    ) -> Iterator[Document]:
        for ours in first:
            calibration = self._calibrate([ours])
            for theirs in second:
                names = {"calibration": ours.name, "evaluation": theirs.name}
                key = f"{ours.name} to {theirs.name}"
                yield {**names, **self._measure(key, calibration, points, [theirs])}

    def _measure(
        self,
        key: str,
        calibration: _Calibration,
        points: "tuple[SweepPoint, ...]",
        texts: "Sequence[Text]",
    ) -> Document:
        from c2r.evaluation import Sweep

        sweep = Sweep.of(calibration.placed, calibration.profile, points)
        if key in self.state["partial"]:
            sweep.restore(self.state["partial"][key])
        size = self.request.seq_len * self.request.batch_size
        label = f"measuring {len(points)} plans, tokens"
        try:
            with progress_bar(label, self.request.tokens) as advance:
                advance(sweep.num_batches * size)
                for _ in sweep.run(self.model, self._batches(texts, self.request.tokens)):
                    advance(size)
                    self.state["partial"][key] = sweep.to_json()
                    self._save_now_and_then()
        except KeyboardInterrupt:
            self._save()
            if self.out is not None:
                note(f"{self.out} holds what was measured; run the same command to go on")
            raise
        return sweep.results()


def _parse_points(name: str) -> "list[SweepPoint]":
    from c2r.evaluation import SweepPoint

    policy, _, strengths = name.partition("=")
    try:
        values = [float(part) for part in strengths.split(",")]
    except ValueError:
        raise InputError(
            f"{name} does not name strengths; try --policy budgeted=0.05,0.1"
        ) from None
    return [SweepPoint(policy=policy, strength=value) for value in values]


def _show(document: Document) -> None:
    rows = [
        [
            f"{point['policy']} {_strength(point)}".strip(),
            point["loss"],
            f"{100 * point.get('loss_increase', 0.0):+.2f} %",
            point["kl"],
            point["copies"],
            f"{point['copies'] / document['baseline']['copies_contiguous']:.2f}x",
            point["rank_load_max_over_mean"],
        ]
        for point in (document["baseline"], *document["points"])
    ]
    columns = ["policy", "loss", "change", "KL", "copies", "of contiguous", "rank load"]
    print_table(f"Quality and traffic on {document['request']['num_ranks']} ranks", columns, rows)
    if "transfer" in document:
        _show_transfer(document["transfer"])
    print(
        "loss: nats per token of held-out text. copies: rows sent per token and layer, the\n"
        "token's own rank counted; of contiguous: over plain top-k with experts in order."
    )


def _show_transfer(pairs: list[Document]) -> None:
    from c2r.evaluation import Target

    within = Target(max_loss_increase=0.003)
    rows = [
        [
            pair["calibration"],
            pair["evaluation"],
            pair["baseline"]["copies"],
            within.pick([pair["baseline"] | {"loss_increase": 0.0}, *pair["points"]])["copies"],
        ]
        for pair in pairs
    ]
    columns = ["planned on", "measured on", "copies, top-k", "copies within +0.3 % loss"]
    print_table("Plans on other text", columns, rows)


def _strength(point: Document) -> str:
    values = point.get("strength", [])
    return ",".join(f"{value:g}" for value in (values if isinstance(values, list) else [values]))
