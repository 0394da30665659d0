"""A whole sweep of a model, from its text to the curve; resumes where it was interrupted."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from c2r.adapters.huggingface import describe_model, find_sites, profile
from c2r.errors import InputError
from c2r.planning import make_plan, settings_per_layer
from c2r.plans import ClusterTopology, Plan
from c2r.profiling import CollaborationProfile
from c2r.sweeps.grid import DEFAULT_POLICIES, parse_points
from c2r.sweeps.sensitivity import spread_points
from c2r.sweeps.sweep import Sweep, SweepPoint
from c2r.sweeps.target import read_partial, write_sweep
from c2r.text import Batch, Text, split_texts, token_batches

_SECONDS_BETWEEN_SAVES = 30.0
_SHARE_FOR_SENSITIVITY = 4  # of the tokens, to ask each layer alone

Document = dict[str, Any]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Points = tuple[SweepPoint, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRequest:
    """What to sweep; a sweep resumes only under the same request.

    Attributes:
        num_ranks: devices that the experts are spread over.
        num_nodes: machines that the ranks are on.
        policies: to try, each as `budgeted` or `budgeted=0.05,0.1`; none for all.
        spread: policies whose strengths are also spread over layers by sensitivity.
        max_load: bound of the placement on the busiest rank's load over the mean.
        transfer: also plan on each text and measure on each.
        num_tokens: to calibrate on, and to measure.
        seq_len: tokens per window of text.
        batch_size: windows per forward pass.
        seed: draws the parts of the text and the placement.
    """

    num_ranks: int
    num_nodes: int = 1
    policies: tuple[str, ...] = ()
    spread: tuple[str, ...] = ()
    max_load: float | None = None
    transfer: bool = False
    num_tokens: int = 65536
    seq_len: int = 512
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Calibration:
    """What was seen of some text, and the experts placed by it."""

    profile: CollaborationProfile
    placed: Plan


@dataclass(kw_only=True, slots=True, eq=False)
class ResumableSweep:
    """A sweep of one model.

    Attributes:
        request: what to sweep.
        model: a causal language model without a plan.
        tokenizer: the model's.
        out: JSON file to write and to resume from; the calibration's profile goes beside it, as
            `*.profile.safetensors`. None keeps nothing.
        progress: opens a progress bar with a text and a total of tokens, gives what advances it.
        note: called with a line for the user.
        state: the document in the making; its `partial` holds the tallies of each text measured.
    """

    request: SweepRequest
    model: Any
    tokenizer: Any
    out: Path | None = None
    progress: Progress = lambda _text, _total: nullcontext(lambda _: None)
    note: Callable[[str], None] = lambda _: None
    state: Document = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)

    def finish(self, texts: Sequence[Text]) -> Document:
        """Runs what is left of the sweep of `texts`, and gives its document as JSON data.

        The first half of each text is calibrated on, the second half measured.

        Raises:
            InputError: the texts are too short or too few, or a file cannot be written.
            ArtifactError: `out` holds something else.
            ModelError, PlanError, RoutingError: as `profile`, `make_plan` and `measure_plans`.
        """
        if self.request.transfer and len(texts) < 2:
            raise InputError("a transfer plans on one text and measures on others; give several")
        first, second = split_texts(texts)
        points = self._points(self.request.policies or DEFAULT_POLICIES)
        spread = [self._points([name]) for name in self.request.spread]
        self.state = self._begin(texts)
        self._started = time.monotonic() - self.state["seconds"]
        if not self.state["complete"]:
            calibration = self._calibrate(first, self._profile_path())
            by_layer = self._spread(spread, calibration, first)
            self.state |= self._measure("all", calibration, points + by_layer, second)
            if self.request.transfer:
                self.state["transfer"] = list(self._transfer(points, first, second))
            self.state |= {"complete": True, "partial": {}}
            self._save()
        return {key: value for key, value in self.state.items() if key != "partial"}

    def _points(self, names: Sequence[str]) -> Points:
        """The points of policies as the request names them, checked before anything runs."""
        layers, num_ranks = find_sites(self.model), self.request.num_ranks
        ClusterTopology(num_ranks=num_ranks, num_nodes=self.request.num_nodes)
        points = [point for name in names for point in parse_points(name, layers, num_ranks)]
        for point in points:
            settings_per_layer(point.policy, point.strength, layers, num_ranks)
        return tuple(points)

    def _begin(self, texts: Sequence[Text]) -> Document:
        request = {
            **asdict(self.request),
            **describe_model(self.model),
            "dtype": str(self.model.dtype),
            "texts": [{"name": text.name, "digest": text.digest} for text in texts],
        }
        request = json.loads(json.dumps(request))
        found = None if self.out is None else read_partial(self.out)
        if found is not None and found["request"] == request:
            self.note(f"{self.out} holds a part of this sweep; going on from there")
            return found
        return {"request": request, "complete": False, "points": [], "seconds": 0, "partial": {}}

    def _save(self) -> None:
        self._saved = time.monotonic()
        self.state["seconds"] = round(self._saved - self._started, 1)
        if self.out is not None:
            write_sweep(self.out, self.state)

    def _profile_path(self) -> Path | None:
        return None if self.out is None else self.out.with_suffix(".profile.safetensors")

    def _batches(self, texts: Sequence[Text], num_tokens: int) -> Iterator[Batch]:
        return token_batches(
            texts,
            self.tokenizer,
            seq_len=self.request.seq_len,
            batch_size=self.request.batch_size,
            num_tokens=num_tokens,
            seed=self.request.seed,
        )

    @property
    def _batch_tokens(self) -> int:
        return self.request.seq_len * self.request.batch_size

    def _calibrate(self, texts: Sequence[Text], path: Path | None = None) -> _Calibration:
        if path is not None and path.exists() and self.state["partial"]:
            seen = CollaborationProfile.load(path)
        else:
            seen = self._profile(texts)
            if path is not None:
                seen.save(path)
        placed = make_plan(
            seen,
            num_ranks=self.request.num_ranks,
            num_nodes=self.request.num_nodes,
            policy="top_k",
            seed=self.request.seed,
            max_load=self.request.max_load,
        )
        return _Calibration(profile=seen, placed=placed)

    def _profile(self, texts: Sequence[Text]) -> CollaborationProfile:
        batches = self._batches(texts, self.request.num_tokens)
        with self.progress("profiling, tokens", self.request.num_tokens) as advance:
            return profile(
                self.model,
                batches,
                seed=self.request.seed,
                on_batch=lambda _: advance(self._batch_tokens),
            )

    def _spread(
        self, spread: Sequence[Points], calibration: _Calibration, texts: Sequence[Text]
    ) -> Points:
        """Strengths per layer by sensitivity, measured on the text of the calibration."""
        if "spread" not in self.state:
            num_tokens = max(self.request.num_tokens // _SHARE_FOR_SENSITIVITY, 1)
            batches = list(self._batches(texts, num_tokens))
            placed, seen = calibration.placed, calibration.profile
            found = [spread_points(self.model, batches, placed, seen, points) for points in spread]
            self.state["spread"] = [asdict(point) for points in found for point in points]
        return tuple(SweepPoint(**point) for point in self.state["spread"])

    def _transfer(
        self, points: Points, first: Sequence[Text], second: Sequence[Text]
    ) -> Iterator[Document]:
        for ours in first:
            calibration = self._calibrate([ours])
            for theirs in second:
                key = f"{ours.name} to {theirs.name}"
                found = self._measure(key, calibration, points, [theirs])
                yield {"calibration": ours.name, "evaluation": theirs.name, **found}

    def _measure(
        self, key: str, calibration: _Calibration, points: Points, texts: Sequence[Text]
    ) -> Document:
        sweep = Sweep.of(calibration.placed, calibration.profile, points)
        if key in self.state["partial"]:
            sweep.restore(self.state["partial"][key])
        label = f"measuring {len(points)} plans, tokens"
        try:
            with self.progress(label, self.request.num_tokens) as advance:
                advance(sweep.num_batches * self._batch_tokens)
                for _ in sweep.run(self.model, self._batches(texts, self.request.num_tokens)):
                    advance(self._batch_tokens)
                    self.state["partial"][key] = sweep.to_json()
                    if time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
                        self._save()
        except KeyboardInterrupt:
            self._save()
            if self.out is not None:
                self.note(f"{self.out} holds what was measured; run the same command to resume")
            raise
        return sweep.results()
