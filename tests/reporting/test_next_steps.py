"""One next step for each kind of plan, whoever asks."""

from dataclasses import replace

import numpy as np

from c2r.assets import tiny_folder
from c2r.plans import ClusterTopology, LayerPlan, Plan
from c2r.prediction import PRESETS, Worth
from c2r.reporting.next_steps import PlanFiles, cluster_options, model_in

LAYER = LayerPlan(num_experts=4, top_k=2, placement=np.array([0, 0, 1, 1]))


def step(layer, worth=Worth.PAYS, is_measured=False, is_own_text=False, lacks_replicas=False):
    plan = Plan(layers=(layer,), topology=ClusterTopology(num_ranks=2, num_nodes=1))
    files = PlanFiles(plan=plan, file="my plan", where="--ranks 2", model="MODEL")
    return files.next_step(
        worth, is_measured=is_measured, is_own_text=is_own_text, lacks_replicas=lacks_replicas
    ).command


def test_a_placement_renumbers_the_checkpoint():
    assert step(LAYER) == "c2r permute MODEL --plan 'my plan' --out renumbered"


def test_a_plan_that_pays_on_its_own_text_is_judged_on_another():
    command = step(LAYER, is_own_text=True)
    assert command.startswith("c2r profile MODEL --text OTHER.txt --out other.safetensors && ")
    assert command.endswith("c2r report other.safetensors 'my plan' --out other.html")
    assert "permute" in step(LAYER)


def test_a_placement_with_replicas_is_for_engines_that_know_them():
    replicated = replace(LAYER, replicas=np.array([[2], [0]]))
    assert step(replicated).startswith("c2r export --plan 'my plan' --model MODEL --format sglang")


def test_a_policy_is_measured_first_and_then_applied():
    priced = replace(LAYER, policy="priced", strength=0.1)
    for worth in Worth:
        assert step(priced, worth).startswith("c2r measure MODEL --plan 'my plan' --text OTHER.txt")
    assert step(priced, is_measured=True) == "c2r apply MODEL --plan 'my plan' --out constrained"


def test_what_was_measured_comes_onto_the_model_card():
    plan = Plan(
        layers=(replace(LAYER, policy="priced", strength=0.1),),
        topology=ClusterTopology(num_ranks=2, num_nodes=1),
    )
    command = PlanFiles(plan=plan, where="", measurement="my measured.json").use().command
    assert "--measurement 'my measured.json' --out" in command


def test_what_does_not_pay():
    assert step(LAYER, Worth.NO_DIFFERENCE).startswith("c2r estimate profile.safetensors --plan")
    again = "c2r plan profile.safetensors --ranks 2 --out 'my plan' --force"
    assert step(LAYER, Worth.SLOWER) == again
    for worth in (Worth.NO_DIFFERENCE, Worth.SLOWER):
        assert "--replicas auto" in step(LAYER, worth, lacks_replicas=True)


def test_replicas_are_planned_under_the_same_policy():
    layers = tuple(replace(LAYER, policy="priced", strength=price) for price in (0.1, 0.03, 0.1))
    for chosen, policy in ((layers, "priced=0.1,0.03,0.1"), (layers[:1], "priced=0.1")):
        plan = Plan(layers=chosen, topology=ClusterTopology(num_ranks=2, num_nodes=1))
        files = PlanFiles(plan=plan, file="best/plan.safetensors", where="--ranks 2")
        assert files.replicate().command == (
            f"c2r plan profile.safetensors --ranks 2 --policy {policy} --replicas auto "
            "--out best/plan.safetensors --force"
        )


def test_names_that_files_tell():
    request = {"model": "owner/name"}
    assert model_in({"profile": {"request": request}}) == model_in({"request": request})
    assert model_in({"request": request}) == "owner/name"
    assert model_in({"request": {"model": str(tiny_folder())}}) == "tiny"
    assert model_in({}) == model_in({"profile": {"request": {"model": 3}}}) == "MODEL"
    assert cluster_options(PRESETS["h100-8"]) == "--cluster h100-8"
    assert cluster_options(PRESETS["h100-8"].of_size(4, 1)) == "--ranks 4 --nodes 1"
    assert cluster_options(replace(PRESETS["h100-8"], name="mine")) == "--cluster CLUSTER.yaml"
