"""A whole sweep of a model, from its text to the curve; resumes where it was interrupted."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from c2r.adapters.huggingface import describe_model, find_sites, profile, remove
from c2r.artifacts import damaged_file, read_json, write_text
from c2r.errors import ArtifactError, InputError
from c2r.measuring import keeping_plan
from c2r.parallel import Comm, Share, agree
from c2r.planning import cluster_of, make_plan, placing, settings_per_layer
from c2r.plans import ClusterTopology, Plan
from c2r.prediction import Phase, Workload
from c2r.prediction.cluster import DESCRIBED
from c2r.profiling import CollaborationProfile
from c2r.results import Measurement, SweepPoint, SweepResult, TransferResult
from c2r.sweeps.crew import Crew, Keep, Stage
from c2r.sweeps.grid import DEFAULT_POLICIES, parse_points
from c2r.sweeps.running import RunningSweep
from c2r.sweeps.sensitivity import spread_points
from c2r.sweeps.times import with_times
from c2r.text import Batch, Text, named_beginning, split_texts, token_batches

_SECONDS_BETWEEN_SAVES = 30.0
_SHARE_FOR_SENSITIVITY = 4  # of the tokens, to ask each layer alone

Document = dict[str, Any]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Points = tuple[SweepPoint, ...]


@contextmanager
def no_progress(_: str, __: int) -> Iterator[Callable[[int], None]]:
    """Shows nothing."""
    yield lambda _: None


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
        cluster: a preset or a YAML file, for which times are predicted; None for as many H100s.
        objective: experts are placed for the least `"time"` there, or for the fewest copies
            (`"sets"`) where no cluster is named.
        tokens_per_rank: tokens of each rank in a step there.
        phase: what is done with them there, as `Phase` names it.
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
    cluster: str | None = None
    objective: str = "time"
    tokens_per_rank: int = 4096
    phase: str = "prefill"

    def placing(self, profile: CollaborationProfile) -> dict[str, Any]:
        """What `make_plan` is told beside the policy to place the experts."""
        return placing(asdict(self), profile)


def sweep(  # noqa: PLR0913 - the public door: every choice that a user may leave out
    model: Any,
    tokenizer: Any,
    texts: Sequence[Text],
    request: SweepRequest,
    *,
    out: str | Path | None = None,
    progress: Progress = no_progress,
    note: Callable[[str], None] = lambda _: None,
    on_profile: Callable[[CollaborationProfile], None] = lambda _: None,
    comm: Comm | None = None,
    replaces: bool = False,
) -> SweepResult:
    """Plans on the first half of each text, and measures many plans on the second half.

    Args:
        model: a causal language model; a plan that is applied to it does not count, and is put
            back.
        tokenizer: the model's.
        texts: as `c2r.text.read_texts` gives them.
        request: what to sweep.
        out: JSON file to write, and to resume from after an interruption; the calibration's profile
            goes beside it, as `*.profile.safetensors`. None keeps nothing.
        progress: opens a progress bar with a text and a total of tokens, gives what advances it.
        note: called with a line for the user.
        on_profile: called with the profile of all texts that the plans are made from.
        comm: ranks that share the text, each with the whole model; all get the result. None for
            one process.
        replaces: whether the sweep of another request that `out` holds is replaced.

    Raises:
        InputError: the texts are too short or too few, a file cannot be written, the cluster
            cannot be read, or `out` holds another sweep: of other figures of the cluster, say.
        ArtifactError: `out` holds something else.
        ModelError, PlanError, RoutingError: as `profile`, `make_plan` and `measure`.
    """
    running = _ResumableSweep(
        request=request,
        model=model,
        tokenizer=tokenizer,
        out=None if out is None else Path(out),
        progress=progress,
        note=note,
        on_profile=on_profile,
        crew=Crew(comm, None if out is None else Path(out)),
        replaces=replaces,
    )
    with keeping_plan(model):
        remove(model)
        return running.finish(texts)


def profile_beside(out: Path) -> Path:
    """Where the calibration's profile goes."""
    return out.with_suffix(".profile.safetensors")


def describe_request(
    request: SweepRequest, model: Any, tokenizer: Any, texts: Sequence[Text]
) -> Document:
    """JSON data: what is swept, of which model, on which texts, begun with which tokens.

    Of the cluster it has the figures. Raises `InputError` where that cannot be read.
    """
    found = {
        **asdict(request),
        DESCRIBED: cluster_of(asdict(request)).to_json(),
        **describe_model(model),
        "dtype": str(model.dtype),
        "texts": [{"name": text.name, "digest": text.digest} for text in texts],
        **named_beginning(tokenizer),
    }
    document: Document = json.loads(json.dumps(found))
    return document


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Calibration:
    """What was seen of some text, and the experts placed by it."""

    profile: CollaborationProfile
    placed: Plan


@dataclass(kw_only=True, slots=True, eq=False)
class _ResumableSweep:
    """The arguments of `sweep`, and how far it has come.

    Attributes:
        state: the document in the making; its `partial` holds the tallies of each text measured.
    """

    request: SweepRequest
    model: Any
    tokenizer: Any
    out: Path | None
    progress: Progress
    note: Callable[[str], None]
    on_profile: Callable[[CollaborationProfile], None]
    crew: Crew
    replaces: bool
    state: Document = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)

    def finish(self, texts: Sequence[Text]) -> SweepResult:
        """Runs what is left of the sweep of `texts`."""
        if self.request.transfer and len(texts) < 2:
            raise InputError("a transfer plans on one text and measures on others; give several")
        if self.crew.comm is not None:
            agree(describe_request(self.request, self.model, self.tokenizer, texts), self.crew.comm)
        first, second = split_texts(texts)
        points = self._points(self.request.policies or DEFAULT_POLICIES)
        spread = [self._points([name]) for name in self.request.spread]
        self.state = self.crew.agree(lambda: self._begin(texts)) or {}
        self._started = time.monotonic() - self.state["seconds"]
        if self.state["complete"]:
            self.on_profile(self._profiled(first, self._profile_path()))
        else:
            calibration = self._calibrate(first, self._profile_path())
            self.on_profile(calibration.profile)
            by_layer = self._spread(spread, calibration, first)
            baseline, *measured = self._measure("all", calibration, points + by_layer, second)
            transfer = self._transfer(points, first, second) if self.request.transfer else ()
            result = SweepResult(
                request=self.state["request"],
                baseline=baseline,
                points=tuple(measured),
                spread=by_layer,
                transfer=tuple(transfer),
            )
            self.state = {**result.to_json(), "partial": {}}
            self._save()
        return SweepResult.from_document(self.state, self.out or "the sweep")

    def _points(self, names: Sequence[str]) -> Points:
        """The points of policies as the request names them, checked before anything runs."""
        layers, num_ranks = find_sites(self.model), self.request.num_ranks
        ClusterTopology(num_ranks=num_ranks, num_nodes=self.request.num_nodes)
        points = [point for name in names for point in parse_points(name, layers, num_ranks)]
        for point in points:
            settings_per_layer(point.policy, point.strength, layers, num_ranks)
        return tuple(points)

    def _begin(self, texts: Sequence[Text]) -> Document:
        request = describe_request(self.request, self.model, self.tokenizer, texts)
        found = None if self.out is None else _read_state(self.out)
        if found is None or (self.replaces and not _is_same(found["request"], request)):
            return {
                "request": request,
                "complete": False,
                "points": [],
                "seconds": 0,
                "partial": {},
            }
        if not _is_same(found["request"], request):
            differing = [name for name in request if found["request"].get(name) != request[name]]
            raise InputError(
                f"{self.out} holds another sweep: of another {', '.join(differing)}; choose "
                "another file, or replace it (--force)"
            )
        self.note(f"{self.out} holds a part of this sweep; going on from there")
        return found

    def _save(self) -> None:
        self._saved = time.monotonic()
        self.state["seconds"] = round(self._saved - self._started, 1)
        if self.out is not None and self.crew.rank == 0:
            write_text(self.out, json.dumps(self.state, allow_nan=False) + "\n")

    def _profile_path(self) -> Path | None:
        return None if self.out is None else profile_beside(self.out)

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
        seen = self._profiled(texts, path)
        placed = self.crew.plan(
            lambda: make_plan(seen, policy="top_k", **placing(self.state["request"], seen))
        )
        return _Calibration(profile=seen, placed=placed)

    def _profiled(self, texts: Sequence[Text], path: Path | None) -> CollaborationProfile:
        """The profile of `texts`, from the file at `path` where this sweep wrote it."""
        is_begun = self.state.get("profiled") or self.state["partial"] or self.state["complete"]
        has_file = path is not None and path.exists() and is_begun
        if path is not None and self.crew.agree(lambda: {"has": has_file}) == {"has": True}:
            return self.crew.profile(
                CollaborationProfile.load(path) if self.crew.rank == 0 else None
            )
        seen = self.crew.profile(self._profile(texts))
        if path is not None and self.crew.rank == 0:
            seen.save(path)
            self.state["profiled"] = True
            self._save()
        return seen

    def _profile(self, texts: Sequence[Text]) -> CollaborationProfile | None:
        """Of this rank's batches; None where it has none."""
        batches = self.crew.deal(self._batches(texts, self.request.num_tokens))
        first = list(islice(batches, 1))
        if not first and self.crew.rank > 0:
            return None
        counted = 0
        with self.progress("profiling, tokens", self.request.num_tokens) as advance:

            def on_batch(num_tokens: int) -> None:
                nonlocal counted
                advance((num_tokens - counted) * self.crew.size)
                counted = num_tokens

            return profile(
                self.model, chain(first, batches), seed=self.request.seed, on_batch=on_batch
            )

    def _spread(
        self, spread: Sequence[Points], calibration: _Calibration, texts: Sequence[Text]
    ) -> Points:
        """Strengths per layer by sensitivity, measured on the text of the calibration."""
        if "spread" not in self.state:
            num_tokens = max(self.request.num_tokens // _SHARE_FOR_SENSITIVITY, 1)
            batches = list(self.crew.deal(self._batches(texts, num_tokens)))
            placed, seen, gather = calibration.placed, calibration.profile, self.crew.gather
            found = [
                spread_points(self.model, batches, placed, seen, points, gather)
                for points in spread
            ]
            self.state["spread"] = [point.to_json() for points in found for point in points]
        return tuple(map(SweepPoint.from_json, self.state["spread"]))

    def _transfer(
        self, points: Points, first: Sequence[Text], second: Sequence[Text]
    ) -> Iterator[TransferResult]:
        for ours in first:
            calibration = self._calibrate([ours])
            for theirs in second:
                key = f"{ours.name} to {theirs.name}"
                baseline, *measured = self._measure(key, calibration, points, [theirs])
                yield TransferResult(
                    calibration=ours.name,
                    evaluation=theirs.name,
                    baseline=baseline,
                    points=tuple(measured),
                )

    def _measure(
        self, key: str, calibration: _Calibration, points: Points, texts: Sequence[Text]
    ) -> tuple[Measurement, ...]:
        """Plain top-k, then each point."""
        running = RunningSweep.of(calibration.placed, calibration.profile, points)
        if key in self.state["partial"]:
            with damaged_file(self.out or "the sweep"):
                running.restore(self.state["partial"][key])
        fingerprints = tuple(plan.fingerprint for plan in running.plans)
        stage = Stage(self.state["request"], key, fingerprints)
        if self.crew.comm is None and not self.crew.parts(stage):
            self._run(running, Share(0, 1), texts, lambda tallies: self._keep(key, tallies))
        else:
            self.crew.measure(
                stage, running, lambda running, share, keep: self._run(running, share, texts, keep)
            )
            self._keep(key, running.to_json())
            self.crew.clear()
        where = cluster_of(self.state["request"])
        phase = Phase(self.request.phase)
        workload = Workload.of(calibration.profile, self.request.tokens_per_rank, phase)
        return tuple(with_times(found, where, workload) for found in running.measured())

    def _run(self, running: RunningSweep, share: Share, texts: Sequence[Text], keep: Keep) -> None:
        """Measures what is left of a share, and keeps it now and then, and at an interrupt."""
        number = len(running.plans)  # plain top-k is the first
        label = f"measuring {number} plan{'s' if number > 1 else ''}, tokens"
        each = self._batch_tokens * share.size
        level = running.to_json()  # every plan with as many batches
        try:
            with self.progress(label, self.request.num_tokens) as advance:
                advance(min(running.num_batches * each, self.request.num_tokens))
                batches = share.of(self._batches(texts, self.request.num_tokens))
                # Closed at once: Ctrl-C would hold the generator, and with it the taps.
                with closing(running.run(self.model, batches)) as run:
                    for num_tokens in run:
                        advance(num_tokens * share.size)
                        level = running.to_json()
                        if time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
                            keep(level)
                            self._saved = time.monotonic()
        except KeyboardInterrupt:
            keep(level)
            if self.out is not None:
                self.note(f"{self.out} holds what was measured; run the same command to resume")
            raise

    def _keep(self, key: str, tallies: list[Document]) -> None:
        self.state["partial"][key] = tallies
        self._save()


def _is_same(found: Document, request: Document) -> bool:
    """Whether a sweep is of this request; those of earlier versions tell no figures of clusters."""
    return {DESCRIBED: request[DESCRIBED], **found} == request


def _read_state(path: Path) -> Document | None:
    """The document of a sweep, finished or not; None where there is no such file."""
    if not path.exists():
        return None
    document = read_json(path)
    if not isinstance(document, dict) or not {"request", "points", "complete"} <= set(document):
        raise ArtifactError(f"{path} was not written by `c2r sweep`; give another file")
    with damaged_file(path):
        dict(document["request"])
        float(document["seconds"])
        dict(document["partial"])
        list(map(SweepPoint.from_json, document.get("spread", ())))
    return document
