"""What planning for nodes saves: copies between nodes against a placement that knows ranks only.

    python benchmarks/placement_nodes.py

The embedded model is profiled on the first halves of its held-out texts and placed on 2 nodes of
2 and of 4 ranks. The baseline is the placement for as many ranks on one node, its ranks dealt to
the nodes in order. Held-out is the second halves. Prints a table and a JSON line.
"""

import argparse

from embedded import mean_of, profile_halves
from harness import finish, print_table

from c2r.planning import make_plan
from c2r.plans import ClusterTopology, mean_copies, mean_node_copies

FIGURES = ("flat", "flat_nodes", "placed", "placed_nodes", "node_cut", "heldout_node_cut")


def compare(calibration, heldout, topology, inter_node_cost):
    flat = make_plan(calibration, topology.num_ranks)
    placed = make_plan(
        calibration,
        topology.num_ranks,
        num_nodes=topology.num_nodes,
        inter_node_cost=inter_node_cost,
    )
    for index, (ours, theirs) in enumerate(zip(placed.layers, flat.layers, strict=True)):
        sets = calibration.layers[index].routing_sets()
        held = heldout.layers[index].routing_sets()
        nodes, flat_nodes, held_nodes, held_flat_nodes = (
            mean_node_copies(*text, plan.placement, topology)
            for text in (sets, held)
            for plan in (ours, theirs)
        )
        yield {
            "devices": f"{topology.num_nodes}x{topology.ranks_per_node}",
            "layer": index,
            "flat": mean_copies(*sets, theirs.placement),
            "flat_nodes": flat_nodes,
            "placed": mean_copies(*sets, ours.placement),
            "placed_nodes": nodes,
            "node_cut": 1 - nodes / flat_nodes,
            "heldout_node_cut": 1 - held_nodes / held_flat_nodes,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inter-node-cost", type=float, default=8.0)
    parser.add_argument("--tokens", type=int, default=204_800)
    args = parser.parse_args()
    calibration, heldout = profile_halves(args.tokens)
    rows = [
        row
        for num_ranks in (4, 8)
        for row in compare(
            calibration,
            heldout,
            ClusterTopology(num_ranks=num_ranks, num_nodes=2),
            args.inter_node_cost,
        )
    ]
    print_table(rows, ("devices", "layer", *FIGURES))
    figures = {
        "means": {
            devices: mean_of([row for row in rows if row["devices"] == devices], FIGURES)
            for devices in ("2x2", "2x4")
        },
        "node_cut_range": [round(pick(row["node_cut"] for row in rows), 4) for pick in (min, max)],
    }
    baseline = "placement for the same ranks on one node"
    settings = vars(args) | {"calibration_tokens": calibration.num_tokens}
    finish("placement_nodes", baseline, rows, settings, **figures)


if __name__ == "__main__":
    main()
