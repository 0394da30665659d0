"""The files that a report is made from, recognised by their content, never by their names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from c2r.artifacts import damaged_file, read_kind
from c2r.errors import ArtifactError, InputError, one_line
from c2r.plans import ClusterTopology, Plan
from c2r.profiling import CollaborationProfile
from c2r.reporting.task_report import TASK_KIND, TaskReport
from c2r.results import Measurement, SweepResult

Document = dict[str, Any]

LOSSES = ("loss", "eval_loss")  # as a Trainer logs them
COPIES = "copies_per_token"  # as `c2r finetune` does

_ROUNDING = 1e-6
_MOST_ROWS = 10_000  # of a token in a layer: no model has as many experts
_SINGLE = ("profile", "plan", "sweep")
_ALL_KINDS = (*_SINGLE, "measurement", "tasks", "benchmark", "training")
_OF_A_MEASUREMENT = ("policy", "strength", "plan_fingerprint", "num_tokens")
_KINDS = (
    "a profile, a plan, or the JSON of `c2r sweep`, `c2r measure`, `c2r evaluate`, `c2r bench` or "
    "a Trainer's state"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Source:
    """A file and what it holds.

    Attributes:
        path: as the user gave it.
        kind: `profile`, `plan`, `sweep`, `measurement`, `tasks`, `benchmark` or `training`.
        value: a `CollaborationProfile`, a `Plan`, a `SweepResult`, a `Measurement`, a
            `TaskReport`, or JSON data.
    """

    path: Path
    kind: str
    value: Any

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What the file says about where its numbers come from."""
        if self.kind in ("profile", "plan"):
            known: Mapping[str, Any] = self.value.provenance
            return known
        if self.kind == "sweep":
            request: Mapping[str, Any] = self.value.request
            return request
        if self.kind == "tasks":
            said: Mapping[str, Any] = self.value.provenance
            return said
        if self.kind == "measurement":
            return {name: getattr(self.value, name) for name in _OF_A_MEASUREMENT}
        keys = ("settings", "topology", "machine", "versions", "command", "global_step", "epoch")
        return {key: self.value[key] for key in keys if key in self.value}

    @property
    def model_name(self) -> str | None:
        """The model as the file names it; of a folder's path only the last part."""
        known = dict(self.provenance)
        for inner in ("profile", "request", "settings"):
            value = known.get(inner)
            known |= value if isinstance(value, Mapping) else {}
        name = known.get("model", known.get("model_type"))
        if not isinstance(name, str):
            return None
        return Path(name).name if Path(name).is_absolute() else name


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Inputs:
    """What a report shows; each part may be missing, but not all."""

    sources: tuple[Source, ...]
    profile: CollaborationProfile | None = None
    plan: Plan | None = None
    sweep: SweepResult | None = None
    measurements: tuple[Measurement, ...] = ()
    tasks: tuple[TaskReport, ...] = ()
    benchmarks: tuple[Document, ...] = ()
    trainings: tuple[Document, ...] = ()

    @property
    def model_name(self) -> str:
        """The name of the model in the first file that has one."""
        names = (source.model_name for source in self.sources)
        return next((name for name in names if name is not None), "a model without a name")

    @property
    def topology(self) -> ClusterTopology | None:
        """Ranks and nodes of the plan, or of the sweep."""
        source = self.plan or self.sweep
        return None if source is None else source.topology

    def name_of(self, kind: str) -> str | None:
        """Name of the first file of a kind."""
        return next((source.path.name for source in self.sources if source.kind == kind), None)


def read_inputs(paths: Sequence[str | Path]) -> Inputs:
    """Reads the files of one model.

    Args:
        paths: at most one profile, one plan and one sweep; any number of the others.

    Raises:
        InputError: a file is missing, empty or of no known kind; two files are of one kind where a
            report shows one; files are of different models, or of different numbers of ranks.
        ArtifactError: a file is damaged.
    """
    if not paths:
        raise InputError(f"a report is made from files; give {_KINDS}")
    sources = tuple(_read(Path(path)) for path in paths)
    for ours, theirs in combinations(sources, 2):
        _check_pair(ours, theirs)
    values = {kind: tuple(s.value for s in sources if s.kind == kind) for kind in _ALL_KINDS}
    single = {kind: next(iter(values[kind]), None) for kind in _SINGLE}
    return Inputs(
        sources=sources,
        measurements=values["measurement"],
        tasks=values["tasks"],
        benchmarks=values["benchmark"],
        trainings=values["training"],
        **single,
    )


def _read(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            is_binary = b"\0" in file.read(8)  # the length that a safetensors file begins with
        content = b"" if is_binary else path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}; check the path") from None
    if is_binary:
        kind = read_kind(path)
        return Source(path=path, kind=kind, value=_load(path, kind))
    document = _parse(path, content)
    if "points" in document:
        return Source(path=path, kind="sweep", value=_sweep(path, document))
    with damaged_file(path):
        if document.get("kind") == TASK_KIND:
            return Source(path=path, kind="tasks", value=TaskReport.from_json(document))
        if {"plan_fingerprint", "loss_increase"} <= set(document):
            measured = Measurement.from_json(document)
            _check_shares(measured, None)
            return Source(path=path, kind="measurement", value=measured)
    for kind, (keys, check) in _JSON_KINDS.items():
        if keys <= set(document):
            check(path, document)
            return Source(path=path, kind=kind, value=document)
    raise InputError(f"{path} is JSON of a kind that a report cannot show; give {_KINDS}")


def _load(path: Path, kind: str) -> CollaborationProfile | Plan:
    if kind == "plan":
        return Plan.load(path)
    profile = CollaborationProfile.load(path)
    empty = [index for index, layer in enumerate(profile.layers) if not layer.load.any()]
    if empty:
        raise InputError(
            f"{path} holds no tokens in {len(empty)} of {profile.num_layers} layers; profile the "
            "model on some text first"
        )
    return profile


def _parse(path: Path, content: bytes) -> Document:
    constants: list[str] = []
    try:
        document = json.loads(content, parse_constant=constants.append)  # such a value is None
        if constants and not (isinstance(document, dict) and "log_history" in document):
            raise ValueError(f"{constants[0]} is not a number")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is neither a file of c2r nor JSON ({one_line(error)}); give {_KINDS}"
        ) from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds JSON that is no object; give {_KINDS}")
    return document


def _sweep(path: Path, document: Document) -> SweepResult:
    sweep = SweepResult.from_document(document, path)
    if not sweep.points:
        raise InputError(f"{path} has no points; sweep again, with some policies")
    with damaged_file(path):
        for found in (sweep.baseline, *sweep.points):
            _check_shares(found, sweep.topology)
            if found.rank_rows and found.num_ranks != sweep.topology.num_ranks:
                raise ValueError(f"a point is not of {sweep.topology.num_ranks} ranks")
    return sweep


def _check_shares(found: Measurement, topology: ClusterTopology | None) -> None:
    """Raises `ValueError` unless there is a figure for each layer and each rank, or none at all."""
    if found.strength == ():
        raise ValueError("a strength for each layer is of no layer")
    rows, visits, nodes = found.rank_rows, found.rank_visits, found.node_visits
    if not len(rows) == len(visits) == len(nodes):
        raise ValueError("the shares of ranks and nodes are of different layers")
    if any(len(row) != found.num_ranks for row in (*rows, *visits)):
        raise ValueError(f"a layer has no share for each of {found.num_ranks} ranks")
    if any(share > 1 + _ROUNDING for row in (*visits, *nodes) for share in row):
        raise ValueError("a share of the tokens is more than all")
    if any(row > _MOST_ROWS for layer in rows for row in layer):
        raise ValueError(f"a token has more than {_MOST_ROWS} expert rows")
    num_nodes = None if topology is None else topology.num_nodes
    if num_nodes is not None and any(len(row) != num_nodes for row in nodes):
        raise ValueError(f"a layer has no share for each of {num_nodes} nodes")


def _check_benchmark(path: Path, document: Document) -> None:
    cases = document["cases"]
    if isinstance(cases, list):
        cases = [case.get("seconds") if isinstance(case, dict) else None for case in cases]
    _check_rows(path, {"cases": cases}, "cases", ("median", "lower", "upper"))


def _check_training(path: Path, document: Document) -> None:
    _check_rows(path, document, "log_history", ("step",))
    log = document["log_history"]
    losses = [row[name] for row in log for name in LOSSES if row.get(name) is not None]
    if not losses:
        raise InputError(f"{path} logs no {' and no '.join(LOSSES)}; give another file")
    for name in (*LOSSES, COPIES):
        if not all(_is_number(row[name]) for row in log if row.get(name) is not None):
            raise InputError(f"{path} logs a {name} that is no number; give another file")


_JSON_KINDS = {
    "benchmark": ({"benchmark", "cases"}, _check_benchmark),
    "training": ({"log_history"}, _check_training),
}


def _check_rows(
    path: Path,
    document: Document,
    name: str,
    numbers: Sequence[str],
) -> None:
    rows = document[name]
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path} has no {name.replace('_', ' ')}; write it again")
    for index, row in enumerate(rows):
        found = row if isinstance(row, dict) else {}
        missing = [key for key in numbers if not _is_number(found.get(key))]
        if missing:
            raise InputError(f"{path} lacks {', '.join(missing)} in {name} {index}; write it again")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_pair(ours: Source, theirs: Source) -> None:
    if ours.kind == theirs.kind and ours.kind in _SINGLE:
        raise InputError(
            f"{ours.path} and {theirs.path} are both a {ours.kind}; a report shows one, leave the "
            "other out"
        )
    for identify in (_fingerprint, _shapes):
        one, other = identify(ours), identify(theirs)
        if one is not None and other is not None and one != other:
            raise InputError(
                f"{ours.path} is of {_describe(ours, one)} but {theirs.path} of "
                f"{_describe(theirs, other)}; give files of one model"
            )
    for count, kinds in (("ranks", ("plan", "sweep", "measurement")), ("nodes", ("plan", "sweep"))):
        if ours.kind not in kinds or theirs.kind not in kinds:
            continue
        sizes = _number_of(ours, count), _number_of(theirs, count)
        if sizes[0] != sizes[1]:
            raise InputError(
                f"{ours.path} is for {sizes[0]} {count} but {theirs.path} for {sizes[1]}; give "
                "files for the same number"
            )


def _fingerprint(source: Source) -> str | None:
    known = source.provenance.get("model_fingerprint")
    if not isinstance(known, Mapping):
        return None
    return "fingerprint " + "/".join(str(known.get(key)) for key in ("structure", "weights"))


def _shapes(source: Source) -> str | None:
    if source.kind not in ("profile", "plan"):
        return None
    shapes = [(layer.num_experts, layer.top_k) for layer in source.value.layers]
    kinds = ", ".join(f"{experts} experts with k = {k}" for experts, k in dict.fromkeys(shapes))
    return f"{len(shapes)} layers of {kinds}"


def _describe(source: Source, identity: str) -> str:
    name = source.model_name
    return identity if name is None else f"{name} ({identity})"


def _number_of(source: Source, count: str) -> int:
    """The ranks or nodes that a plan, a sweep or a measurement is for."""
    value = source.value if source.kind == "measurement" else source.value.topology
    number: int = getattr(value, f"num_{count}")
    return number
