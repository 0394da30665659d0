"""`c2r clusters`: what the clusters are that have a name."""

from itertools import groupby
from typing import TYPE_CHECKING

from c2r.cli.console import JsonOption, print_json, print_table, print_text

if TYPE_CHECKING:
    from c2r.prediction import Cluster


def clusters(json: JsonOption = False) -> None:
    """List the clusters that --cluster knows by name.

    Figures are achieved ones, each way, of one rank (GPU). `c2r bench cluster` measures your own,
    and a YAML file describes any other.
    """
    from c2r.prediction import PRESETS

    known = list(PRESETS.values())
    if json:
        print_json({"clusters": [cluster.to_json() for cluster in known]})
        return
    columns = ["cluster", "ranks", "nodes", "GB/s inside", "GB/s between", "TFLOP/s"]
    rows = [_row(cluster) for cluster in known]
    print_table("Clusters by name", [*columns, "memory GB/s", "memory GB"], rows)
    print_text(
        "GB/s inside a node and between nodes, each way, of one rank; TFLOP/s of the experts' "
        "products. The figures are from:"
    )
    for source, found in groupby(known, key=lambda cluster: cluster.source):
        print_text(f"  {', '.join(cluster.name for cluster in found)}: {source}")


def _row(cluster: "Cluster") -> list[object]:
    inside = cluster.topology.ranks_per_node > 1
    figures = (
        cluster.inner_gigabytes if inside else None,
        cluster.outer_gigabytes if cluster.num_nodes > 1 else None,
        cluster.teraflops,
        cluster.memory_gigabytes_per_second,
        cluster.memory_gigabytes,
    )
    shown = ("" if value is None else f"{value:g}" for value in figures)
    return [cluster.name, cluster.num_ranks, cluster.num_nodes, *shown]
