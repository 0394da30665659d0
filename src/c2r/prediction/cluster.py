"""The machines that a plan is for: what they compute, copy and send in a second."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from c2r.artifacts import write_text
from c2r.errors import InputError, one_line
from c2r.plans import ClusterTopology, Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Ranks, the links between them, and what a rank computes. All figures are achieved ones.

    Attributes:
        name: what tables call it.
        source: where the figures come from.
        num_ranks: devices.
        num_nodes: machines; ranks of one machine are joined by the inner links.
        inner_gigabytes: GB/s that a rank sends, and at the same time receives, inside its node.
        inner_microseconds: time of an exchange inside a node that carries nothing.
        outer_gigabytes: the same of a rank to and from other nodes.
        outer_microseconds: time of an exchange between nodes that carries nothing.
        teraflops: rate of the experts' grouped products, in the type they are computed in.
        memory_gigabytes_per_second: of a rank's own memory; copies and weights are read at it.
        memory_gigabytes: of a rank.
        launch_microseconds: what a layer costs besides, for each part that it is computed in.
        link_gigabytes: GB/s from each rank (row) to each other (column), where links are not alike;
            then it counts in the place of `inner_gigabytes` and `outer_gigabytes`. Its diagonal is
            not looked at.
        is_outer_shared: the ranks of a node share one adapter, of which `outer_gigabytes` is a
            rank's part: then the mean of a node's ranks counts, not the rank with most rows.
    """

    name: str
    source: str
    num_ranks: int
    num_nodes: int = 1
    inner_gigabytes: float
    inner_microseconds: float
    outer_gigabytes: float
    outer_microseconds: float
    teraflops: float
    memory_gigabytes_per_second: float
    memory_gigabytes: float
    launch_microseconds: float
    link_gigabytes: tuple[tuple[float, ...], ...] = ()
    is_outer_shared: bool = False

    @property
    def topology(self) -> ClusterTopology:
        """The ranks and nodes, as plans know them."""
        return ClusterTopology(num_ranks=self.num_ranks, num_nodes=self.num_nodes)

    @property
    def is_nested(self) -> bool:
        """Whether there are several nodes of several ranks, where hierarchical dispatch differs."""
        return 1 < self.num_nodes < self.num_ranks

    @property
    def place(self) -> str:
        """Its name and its size, in words."""
        nodes = self.num_nodes
        return f"{self.name} ({self.num_ranks} ranks on {nodes} node{'s' if nodes > 1 else ''})"

    def of_size(self, num_ranks: int, num_nodes: int) -> "Cluster":
        """As many ranks and nodes of the same kind; of another number all links are alike."""
        links = self.link_gigabytes if num_ranks == self.num_ranks else ()
        return replace(self, num_ranks=num_ranks, num_nodes=num_nodes, link_gigabytes=links)

    def to_json(self) -> dict[str, Any]:
        """JSON data for `from_json`."""
        return {**asdict(self), "link_gigabytes": [list(row) for row in self.link_gigabytes]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], source: str) -> "Cluster":
        """What `to_json` gave. Raises `InputError`, which names the `source`, if damaged."""
        return _checked(dict(document), source, {})

    def save(self, path: Path) -> None:
        """Writes what `read_cluster` reads. Raises `InputError` if it cannot be written."""
        document = self.to_json()
        links = document.pop("link_gigabytes")
        if not self.is_outer_shared:
            del document["is_outer_shared"]
        text = yaml.safe_dump(document, sort_keys=False, width=1000)
        if links:
            rows = "".join(f"- [{', '.join(f'{rate:.4g}' for rate in row)}]\n" for row in links)
            text += f"link_gigabytes:\n{rows}"
        write_text(path, text)


_TYPICAL = {
    "inner_gigabytes": "450 for NVLink of an H100, 12 for PCIe 3",
    "inner_microseconds": "20",
    "outer_gigabytes": "50 for 400 Gbit/s, 1.25 for 10 Gbit/s",
    "outer_microseconds": "30, or 100 over Ethernet",
    "teraflops": "400 for an H100 in bfloat16",
    "memory_gigabytes_per_second": "3000 for an H100",
    "memory_gigabytes": "80",
    "launch_microseconds": "30",
}
_MOST = 1000000000.0
_LIMITS = dict.fromkeys(_TYPICAL, (0.0, _MOST)) | {
    "num_ranks": (1, 65_536),
    "num_nodes": (1, 65_536),
}
_MAY_BE_ZERO = ("inner_microseconds", "outer_microseconds", "launch_microseconds")


def read_cluster(path: Path) -> Cluster:
    """The cluster that a YAML file describes, a key for each attribute of `Cluster`.

    Raises:
        InputError: the file cannot be read, a key is missing or unknown, or a number is negative
            or absurd; the message has the line, and what is typical.
    """
    document, lines = _read_yaml(path)
    document.setdefault("name", path.stem)
    document.setdefault("source", path.name)
    return _checked(document, str(path), lines)


def _checked(document: dict[str, Any], source: str, lines: Mapping[str, int]) -> Cluster:
    """The cluster of a document. Raises `InputError`, with the line of the source if known."""
    where = _Where(source, lines)
    unknown = [str(key) for key in document if key not in _names().split(", ")]
    if unknown:
        raise InputError(
            f"{where.of(unknown[0])}: {_shown(unknown[0])} is no figure of a cluster; choose from "
            f"{_names()}"
        )
    document.setdefault("num_nodes", 1)
    for name in _LIMITS:
        _check_figure(where, name, document)
    document["num_ranks"], document["num_nodes"] = (
        int(document[name]) for name in ("num_ranks", "num_nodes")
    )
    shared = document.setdefault("is_outer_shared", False)
    if not isinstance(shared, bool):
        raise InputError(
            f"{where.of('is_outer_shared')}: is_outer_shared is {_shown(shared)}; give true or "
            "false"
        )
    for name in ("name", "source"):
        if not isinstance(document.get(name), str):
            raise InputError(f"{source}: {name} is {_shown(document.get(name))}; give a text")
    links = document.get("link_gigabytes") or ()
    if links:
        _check_links(where.of("link_gigabytes"), links, document["num_ranks"])
    document["link_gigabytes"] = tuple(tuple(map(float, row)) for row in links)
    cluster = Cluster(**document)
    _ = cluster.topology  # checks that the nodes divide the ranks
    return cluster


@dataclass(frozen=True, slots=True)
class _Where:
    """Where the figures of a cluster stand."""

    source: str
    lines: Mapping[str, int]

    def of(self, name: str) -> str:
        """The place of one, with its line where that is known."""
        return f"{self.source}, line {self.lines[name]}" if name in self.lines else self.source


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What a file says, and the line of each key. Raises `InputError` where it is no mapping."""
    if not path.is_file():
        raise InputError(f"there is no cluster file {path}; check the path")
    try:
        text = path.read_text(encoding="utf-8")
        node, document = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the cluster file {path} ({one_line(error)}); check the path"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no YAML ({' '.join(str(error).split())[:150]})") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no cluster; write a line for each of {_names()}")
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
    return {str(key): value for key, value in document.items()}, lines


def _shown(value: Any) -> str:
    """The beginning of a value, which may refer to itself or be of any size."""
    return one_line(value if isinstance(value, str) else reprlib.repr(value))[:40]


def _check_links(place: str, links: Any, size: int) -> None:
    """Raises `InputError` unless it is a row of rates for each rank, positive off the diagonal."""
    rows = links if isinstance(links, list) else [links]
    lengths = [len(row) if isinstance(row, list) else 1 for row in rows]
    if lengths != [size] * size:
        raise InputError(
            f"{place}: link_gigabytes has rows of {_shown(lengths)} rates; give {size} rows of "
            f"{size}, GB/s from each rank to each"
        )
    for sender, row in enumerate(rows):
        for receiver, rate in enumerate(row):
            is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
            if sender != receiver and not (is_number and 0 < rate <= _MOST):
                raise InputError(
                    f"{place}: link_gigabytes from rank {sender} to {receiver} is "
                    f"{_shown(rate)}; typical is {_TYPICAL['outer_gigabytes']}"
                )


def _names() -> str:
    return ", ".join(field.name for field in fields(Cluster))


def _check_figure(where: _Where, name: str, document: dict[str, Any]) -> None:
    typical = f"; typical is {_TYPICAL[name]}" if name in _TYPICAL else ""
    if name not in document:
        raise InputError(f"{where.source} lacks {name}{typical}")
    value, (low, high) = document[name], _LIMITS[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    least = low if name in _MAY_BE_ZERO or low else math.ulp(0.0)
    if not is_number or not least <= value <= high or math.isnan(value):
        raise InputError(f"{where.of(name)}: {name} is {_shown(value)}{typical}")
    if name.startswith("num_") and value != int(value):
        raise InputError(f"{where.of(name)}: {name} is {value}; give a whole number")


_H100: dict[str, Any] = {
    "inner_gigabytes": 360.0,
    "inner_microseconds": 20.0,
    "outer_gigabytes": 40.0,
    "outer_microseconds": 40.0,
    "teraflops": 400.0,
    "memory_gigabytes_per_second": 2700.0,
    "memory_gigabytes": 80.0,
    "launch_microseconds": 30.0,
}
_H100_SOURCE = (
    "NVIDIA's data sheet: NVLink 450 GB/s a direction, one 400 Gbit/s adapter a GPU, 989 TFLOP/s "
    "in bfloat16, HBM3 3.35 TB/s; 80 % of the links and the memory, 40 % of the products assumed"
)
_ETHERNET: dict[str, Any] = {
    "inner_gigabytes": 10.0,
    "inner_microseconds": 50.0,
    "outer_microseconds": 100.0,
    "teraflops": 60.0,
    "memory_gigabytes_per_second": 700.0,
    "memory_gigabytes": 24.0,
    "launch_microseconds": 30.0,
}


def _h100(name: str, num_nodes: int, **other: Any) -> Cluster:
    return Cluster(
        name=name,
        source=_H100_SOURCE,
        num_ranks=8 * num_nodes,
        num_nodes=num_nodes,
        **{**_H100, **other},
    )


def _hosts(name: str, gigabytes: float) -> Cluster:
    source = "four hosts with one GPU each; 80 % of the Ethernet, a GPU of 150 TFLOP/s at 40 %"
    return Cluster(
        name=name, source=source, num_ranks=4, num_nodes=4, outer_gigabytes=gigabytes, **_ETHERNET
    )


_H200: dict[str, Any] = {"memory_gigabytes_per_second": 3800.0, "memory_gigabytes": 141.0}
PRESETS = {
    cluster.name: cluster
    for cluster in (
        _h100("h100-8", 1),
        _h100("h100-8x2", 2),
        _h100("h100-8x4", 4),
        _h100("h200-8", 1, **_H200),
        _h100("h200-8x2", 2, **_H200),
        Cluster(
            name="a100-8",
            source="NVIDIA's data sheet: NVLink 300 GB/s a direction, 312 TFLOP/s in bfloat16, "
            "HBM2e 2.0 TB/s; 80 % of the links and the memory, 45 % of the products assumed",
            num_ranks=8,
            inner_gigabytes=240.0,
            inner_microseconds=20.0,
            outer_gigabytes=20.0,
            outer_microseconds=40.0,
            teraflops=140.0,
            memory_gigabytes_per_second=1600.0,
            memory_gigabytes=80.0,
            launch_microseconds=30.0,
        ),
        Cluster(
            name="gb200-nvl72",
            source="NVIDIA's data sheet: 72 GPUs, NVLink 900 GB/s a direction, 2.5 PFLOP/s in "
            "bfloat16, HBM3e 8 TB/s; 80 % of links and memory, 40 % of the products assumed",
            num_ranks=72,
            inner_gigabytes=720.0,
            inner_microseconds=20.0,
            outer_gigabytes=40.0,
            outer_microseconds=40.0,
            teraflops=1000.0,
            memory_gigabytes_per_second=6400.0,
            memory_gigabytes=186.0,
            launch_microseconds=30.0,
        ),
        Cluster(
            name="emulated-4",
            source="c2r bench cluster on four emulated hosts at 350 Mbit/s that share two cores "
            "(benchmarks/emulated_cluster.py), 2026-11-27; products are those of emulated devices: "
            "30,000 rows of hidden 1,024 and intermediate 512 a second",
            num_ranks=4,
            num_nodes=4,
            inner_gigabytes=0.0284,
            inner_microseconds=2020.0,
            outer_gigabytes=0.0284,
            outer_microseconds=2020.0,
            teraflops=0.0944,
            memory_gigabytes_per_second=9.3,
            memory_gigabytes=25.3,
            launch_microseconds=11000.0,
        ),
        _hosts("hosts-4-10g", 1.0),
        _hosts("hosts-4-100g", 10.0),
    )
}
"""Clusters by name. Only `emulated-4` was measured by us: `c2r bench cluster` measures yours."""

DEFAULT = "h100-8"
"""Of what kind the ranks are taken to be where no cluster is named."""

DESCRIBED = "cluster_figures"
"""Where the provenance of a plan, or the request of a sweep, describes the cluster it is for."""


def default_cluster(num_ranks: int, num_nodes: int) -> Cluster:
    """As many ranks and nodes of the kind that is taken where no cluster is named."""
    return PRESETS[DEFAULT].of_size(num_ranks, num_nodes)


def planned_cluster(plan: Plan) -> Cluster | None:
    """The cluster that a plan was made for, as the plan describes it; as `cluster_within`."""
    return cluster_within(plan.provenance, plan.topology, "plan")


def cluster_within(made: Mapping[str, Any], topology: ClusterTopology, kind: str) -> Cluster | None:
    """The cluster that a plan or a sweep was made for, as it describes it.

    Those of earlier versions only name it: then it is the preset of that name, with as many ranks.
    None where they name none, or one whose figures are not known here.

    Args:
        made: the provenance of a plan, or the request of a sweep.
        topology: its ranks and nodes.
        kind: `"plan"` or `"sweep"`, for errors.

    Raises:
        InputError: the description is damaged, or of other ranks or nodes than `topology`.
    """
    described, name = made.get(DESCRIBED), made.get("cluster")
    if described is None:
        preset = PRESETS.get(name) if isinstance(name, str) else None
        size = topology.num_ranks, topology.num_nodes
        return None if preset is None else preset.of_size(*size)
    if not isinstance(described, Mapping):
        raise InputError(
            f"the {kind}'s description of its cluster is damaged; make the {kind} again"
        )
    found = Cluster.from_json(described, f"the {kind}'s description of its cluster")
    if found.topology != topology:
        raise InputError(
            f"the {kind} is for {topology.num_ranks} ranks on {topology.num_nodes} nodes, and "
            f"describes a cluster of {found.num_ranks} on {found.num_nodes}; make it again"
        )
    return found


def find_cluster(name_or_path: str) -> Cluster:
    """A preset by name, or the cluster of a file. Raises `InputError` as `read_cluster`."""
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise InputError(
            f"there is no cluster {name_or_path}; choose {', '.join(PRESETS)} (`c2r clusters` has "
            "their figures), or give a YAML file"
        )
    return read_cluster(path)
