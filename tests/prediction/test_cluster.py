import json
from dataclasses import replace

import pytest

from c2r.errors import InputError, PlanError
from c2r.planning import cluster_of
from c2r.plans import ClusterTopology, LayerPlan, Plan, contiguous_placement
from c2r.prediction import PRESETS, find_cluster
from c2r.prediction.cluster import planned_cluster, read_cluster


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_where_their_figures_come_from(name, tmp_path):
    cluster = find_cluster(name)
    assert cluster.name == name and cluster.source
    cluster.save(tmp_path / "cluster.yaml")
    assert read_cluster(tmp_path / "cluster.yaml") == cluster


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("teraflops: -1", ["line 9", "teraflops is -1", "typical is 400"]),
        ("teraflops: fast", ["line 9", "teraflops is fast"]),
        ("teraflops: .nan", ["line 9", "teraflops is nan"]),
        ("teraflops: 1e30", ["line 9", "typical is 400"]),
        ("", ["lacks teraflops", "typical is 400"]),
        ("teraflops: 1\nspeed: 3", ["line 10", "speed is no figure of a cluster"]),
        ("teraflops: [", ["is no YAML"]),
    ],
)
def test_a_wrong_figure_is_named_with_its_line(change, words, tmp_path):
    path = tmp_path / "mine.yaml"
    find_cluster("h100-8").save(path)
    lines = path.read_text().splitlines()
    lines[[line.startswith("teraflops") for line in lines].index(True)] = change
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as error:
        read_cluster(path)
    for word in words:
        assert word in str(error.value)


def test_nodes_must_divide_the_ranks(tmp_path):
    path = tmp_path / "mine.yaml"
    find_cluster("h100-8").of_size(8, 2).save(path)
    path.write_text(path.read_text().replace("num_nodes: 2", "num_nodes: 3"))
    with pytest.raises(PlanError, match="8 ranks cannot be split"):
        read_cluster(path)


def test_an_unknown_name_lists_the_presets():
    with pytest.raises(InputError, match="h100-8x2"):
        find_cluster("h100")


LINKS = [[0, 10, 20], [10, 0, 5.5], [20, 5.5, 0]]


def test_a_rate_for_each_link_is_kept(tmp_path):
    cluster = replace(find_cluster("h100-8").of_size(3, 1), link_gigabytes=as_rates(LINKS))
    cluster.save(tmp_path / "mine.yaml")
    assert "- [10, 0, 5.5]" in (tmp_path / "mine.yaml").read_text()
    assert read_cluster(tmp_path / "mine.yaml") == cluster
    assert cluster.of_size(6, 1).link_gigabytes == ()


def test_a_plan_tells_its_cluster():
    """Plans of earlier versions name a preset, of their own size or another."""
    where = replace(find_cluster("hosts-4-10g"), name="mine", link_gigabytes=as_rates(LINKS))
    where = replace(where, num_ranks=3, num_nodes=3)
    figures = json.loads(json.dumps(where.to_json()))
    described = {"cluster": "mine", "cluster_figures": figures}
    assert planned_cluster(plan_for(3, 3, described)) == where
    assert planned_cluster(plan_for(3, 3, {"cluster": "mine"})) is None
    assert planned_cluster(plan_for(3, 3, {"cluster": None})) is None
    preset = find_cluster("emulated-4")
    assert planned_cluster(plan_for(4, 4, {"cluster": "emulated-4"})) == preset
    assert planned_cluster(plan_for(8, 8, {"cluster": "emulated-4"})) == preset.of_size(8, 8)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (3, "description of its cluster is damaged"),
        ({}, "its cluster lacks"),
        ({"speed": 1}, "its cluster: speed is no figure"),
        ({**find_cluster("h100-8").to_json(), "teraflops": -1}, "teraflops is -1; typical is 400"),
        ({**find_cluster("h100-8").to_json(), "name": 3}, "name is 3; give a text"),
        (find_cluster("h100-8").to_json(), "3 ranks on 3 nodes.* of 8 on 1"),
    ],
)
def test_a_damaged_description_is_told(figures, words):
    with pytest.raises(InputError, match=words):
        planned_cluster(plan_for(3, 3, {"cluster": "mine", "cluster_figures": figures}))


def test_a_sweep_tells_its_cluster_as_a_plan_does():
    where = replace(find_cluster("h100-8"), name="mine", teraflops=1.0)
    request = {"num_ranks": 8, "num_nodes": 1, "cluster": "mine.yaml"}
    assert cluster_of({**request, "cluster_figures": where.to_json()}) == where
    with pytest.raises(InputError, match=r"there is no cluster file mine\.yaml"):
        cluster_of(request)
    damaged = {**request, "num_ranks": 4, "cluster_figures": where.to_json()}
    with pytest.raises(InputError, match="the sweep is for 4 ranks on 1 nodes"):
        cluster_of(damaged)


def plan_for(num_ranks, num_nodes, provenance):
    layer = LayerPlan(num_experts=24, top_k=2, placement=contiguous_placement(24, num_ranks))
    topology = ClusterTopology(num_ranks=num_ranks, num_nodes=num_nodes)
    return Plan(layers=(layer,), topology=topology, provenance=provenance)


def as_rates(links):
    return tuple(tuple(map(float, row)) for row in links)


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ([[0, 1], [1, 0]], ["line 13", "rows of [2, 2] rates", "give 3 rows of 3"]),
        (7, ["line 13", "give 3 rows of 3"]),
        ([[0, 1, 1], [1, 0, -1], [1, 1, 0]], ["line 13", "from rank 1 to 2 is -1"]),
        ([[0, 1, 1], [1, 0, 1], [1e30, 1, 0]], ["from rank 2 to 0 is 1e+30", "typical is"]),
        ([[0, "fast", 1], [1, 0, 1], [1, 1, 0]], ["from rank 0 to 1 is fast"]),
    ],
)
def test_a_wrong_rate_of_a_link_is_named(links, words, tmp_path):
    path = tmp_path / "mine.yaml"
    find_cluster("h100-8").of_size(3, 1).save(path)
    with path.open("a") as file:
        file.write(f"link_gigabytes: {links}\n")
    with pytest.raises(InputError) as error:
        read_cluster(path)
    for word in words:
        assert word in str(error.value)


def test_a_shared_adapter_outlives_its_file(tmp_path):
    path = tmp_path / "mine.yaml"
    shared = replace(find_cluster("h100-8x2"), is_outer_shared=True)
    shared.save(path)
    assert read_cluster(path) == shared
    path.write_text(path.read_text().replace("is_outer_shared: true", "is_outer_shared: 3"))
    with pytest.raises(InputError, match=r"line \d+: is_outer_shared is 3; give true or false"):
        read_cluster(path)
