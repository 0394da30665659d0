"""What can be done of the C2R paper (arXiv 2504.01337) without its models and its GPUs.

    python benchmarks/reproduce_paper.py --authors FOLDER --routing ROUTING.npz
    python benchmarks/reproduce_paper.py --tables benchmarks/results/reproduce_paper.json

FOLDER holds the authors' files (github.com/UNITES-Lab/c2r-moe): their `*collaboration.pkl` and
`config.json`. ROUTING.npz is a trace of gpt-oss-20b, as `placement_time.py` reads it. Parts whose
files are not given are left out. The baseline of copies and time is k-fold dispatch with experts in
order, which sends as MegaBlocks does. Models are small: LLaMA-MoE's and Qwen1.5-MoE's experts, k
and rule on random weights. Nothing is fetched. Prints a table for each part and a JSON line;
`--tables` prints the tables of docs/paper.md from that line.
"""

import argparse
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from harness import finish, print_table

RESULTS = Path(__file__).parent / "results"
SHAPES = {  # model type, experts, k, strengths: the last is T = E - 1
    "LLaMA-MoE": ("mixtral", 8, 2, (1, 2, 5, 7)),
    "Qwen-MoE": ("qwen2_moe", 60, 4, (3, 15, 30, 59)),
}
PUBLISHED = {"LLaMA-MoE": 5, "Qwen-MoE": 30}
PRESETS = {"LLaMA-MoE": "paper-llama", "Qwen-MoE": "paper-qwen"}
NUM_RANKS = 4
LLAMA_MOE_3_5B = {
    "hidden_size": 4096,
    "expert_size": 1376,
    "shared_expert_size": 0,
    "num_layers": 32,
    "num_moe_layers": 32,
    "dense_parameters": 32 * 4 * 4096**2 + 32_000 * 4096,
}
CLUSTERS = ("h100-8", "hosts-4-10g")
NUM_LAYERS = 2
NUM_TOKENS = 2_048
SEQ_LEN = 128  # of fine-tuning; the paper's is 2,048


def matrices(authors):
    """The authors' own counts: what their rule does to copies and load, k = 2, so exactly."""
    found = {
        path.name.partition("_collab")[0]: path for path in authors.rglob("*collaboration.pkl")
    }
    config = json.loads(_config(authors, "llama").read_text())
    lists = np.array(config["collaborative_list"])
    for name in sorted(found):
        top_t = None if name == "base" else int(name.rpartition("_")[2])
        profile = _read(found[name])
        yield {
            "part": "matrices",
            "T": top_t,
            "tokens": profile.num_tokens,
            **_collaboration(profile),
            "outside_lists": None if top_t is None else _outside(profile, lists[..., :top_t]),
            **_copies(profile),
        }


def _config(authors, name):
    configs = [p for p in authors.rglob("*config.json") if name in str(p).lower()]
    return sorted(configs)[0]


def _read(path):
    from c2r.adapters.engines import import_traces

    return import_traces("c2r-pickle", [path], top_k=2).profile


def _collaboration(profile):
    from c2r.profiling import mean_metrics, measure_collaboration

    found = mean_metrics([measure_collaboration(layer) for layer in profile.layers])
    return {"collaborators": found.effective_collaborators, "expert_load": found.load_max_over_mean}


def _outside(profile, lists):
    """The share of the pairs in which neither expert is on the other's list."""
    counts = np.stack([layer.coactivation for layer in profile.layers])
    allowed = np.zeros(counts.shape, dtype=bool)
    np.put_along_axis(allowed, lists, True, axis=2)
    outside = counts * ~(allowed | allowed.transpose(0, 2, 1))
    return float(outside.sum() / counts.sum())


def _copies(profile):
    import c2r

    four, two = (
        c2r.predict_traffic(profile, c2r.make_plan(profile, num_ranks=ranks)).mean
        for ranks in (NUM_RANKS, 2)
    )
    return {
        "k_fold": four.copies_once_per_expert,
        "in_order": four.copies_in_order,
        "placed": four.copies_placed,
        "placed_load": four.rank_load_max_over_mean,
        "placed_on_2": two.copies_placed,
    }


def lists(authors):
    """The published lists: whom they hold, and how many of 4 ranks a top-1 and its list span."""
    for name, top_t in (("LLaMA-MoE", 5), ("Qwen-MoE", 30)):
        config = json.loads(_config(authors, name.partition("-")[0].lower()).read_text())
        partners = np.array(config["collaborative_list"])
        num_experts = partners.shape[1]
        own = np.arange(num_experts)[None, :, None]
        place = np.arange(num_experts) // (num_experts // NUM_RANKS)
        reached = place[np.concatenate([np.broadcast_to(own, (*partners.shape[:2], 1)),
                                        partners[..., :top_t]], axis=2)]  # fmt: skip
        spans = (np.sort(reached, 2)[..., 1:] != np.sort(reached, 2)[..., :-1]).sum(2) + 1
        yield {
            "part": "lists",
            "model": name,
            "T": config["top_t"],
            "layers": len(partners),
            "experts": num_experts,
            "self_within_T": int((partners[..., :top_t] == own).any(2).sum()),
            "ranks_in_order": float(spans.mean()),
            "fewest_ranks": -(-(top_t + 1) * NUM_RANKS // num_experts),
        }


def times(authors):
    """Predicted times of LLaMA-MoE-3.5B with the routing of each matrix."""
    import c2r

    found = {
        path.name.partition("_collab")[0]: path for path in authors.rglob("*collaboration.pkl")
    }
    profiles = {name: _read(found[name]) for name in sorted(found)}
    workload = c2r.Workload(sizes=c2r.ModelSizes(**LLAMA_MOE_3_5B), tokens_per_rank=4096)
    for name in CLUSTERS:
        cluster = c2r.find_cluster(name)
        cluster = cluster.of_size(NUM_RANKS, cluster.num_nodes)
        before = c2r.predict_time(profiles["base"], None, cluster, workload, dispatcher="k_fold")
        for routing in ("base", "topt_5", "topt_2", "topt_1"):
            if routing not in profiles:
                continue
            profile, where = profiles[routing], {"num_nodes": cluster.num_nodes}
            plan = c2r.make_plan(profile, NUM_RANKS, cluster=cluster, workload=workload, **where)
            once, placed = (
                c2r.predict_time(profile, tried, cluster, workload) for tried in (None, plan)
            )
            yield {
                "part": "times",
                "cluster": name,
                "routing": routing,
                "k_fold_layer_ms": before.layer,
                "once": once.layer / before.layer,
                "placed": placed.layer / before.layer,
                "placed_step": placed.total / before.total,
            }


def rule(folder):
    """Their rule at its strengths, in running models."""
    for name in SHAPES:
        yield from _strengths(name, folder)


def _strengths(name, folder):
    import c2r

    _, num_experts, top_k, strengths = SHAPES[name]
    model, halves = _model(name)
    planned, judged = (list(half) for half in halves)
    profile = c2r.profile(model, planned)
    placed = c2r.make_plan(profile, num_ranks=NUM_RANKS)
    for top_t in strengths:
        plan = c2r.with_policy(placed, profile, "c2r", top_t)
        if top_t == PUBLISHED[name]:
            plan.save(folder / f"{name}.safetensors")
        found = c2r.measure(model, judged, plan)
        if top_t == strengths[0]:
            checks = _checks(model, judged, placed)
            yield _row(name, num_experts, top_k, None, found.reference, checks)
        yield _row(name, num_experts, top_k, top_t, found, _checks(model, judged, plan))
    model.save_pretrained(folder / name)
    _tokenizer().save_pretrained(folder / name)


def _row(name, num_experts, top_k, top_t, found, checks):
    visits = np.array(found.rank_visits)
    return {
        "part": "rule",
        "model": name,
        "experts": num_experts,
        "k": top_k,
        "T": top_t,
        "in_order": found.copies_in_order,
        "placed": found.copies,
        "busiest": float(visits.max(1).mean() * NUM_RANKS),
        "load": found.rank_load_max_over_mean,
        **checks,
    }


def _checks(model, batches, plan):
    """What the rule replaced, what was chosen against it, and whether the logits are the same.

    And the load of the busiest rank and its visits, were the experts in order.
    """
    import torch

    import c2r

    ids, scores, is_same = [], [], True
    with torch.no_grad():
        for batch in batches:
            plain = model(**batch).logits
            c2r.apply(model, plan)
            with c2r.capture(model) as recorder:
                is_same &= bool(torch.equal(plain, model(**batch).logits))
                layers = recorder.take().layers
            c2r.remove(model)
            ids.append(torch.stack([layer.expert_ids for layer in layers]))
            scores.append(torch.stack([layer.scores for layer in layers]))
    return {
        **_against_rule(torch.cat(ids, 1), torch.cat(scores, 1), plan),
        **_in_order(torch.cat(ids, 1).numpy(), plan),
        "same_logits": is_same,
    }


def _against_rule(ids, scores, plan):
    """Shares of choices `[layers, tokens, k]` that plain top-k, and the rule, would not make."""
    import torch

    best = scores.topk(ids.shape[2]).indices
    replaced = (ids[..., None] != best[:, :, None]).all(-1)
    outside = ids != scores.argmax(-1)[..., None]
    for layer, own in enumerate(plan.layers):
        if own.policy == "c2r":
            allowed = torch.as_tensor(own.partners)[ids[layer, :, 0]]
            outside[layer, :, 1:] = (ids[layer, :, 1:, None] != allowed[:, None]).all(-1)
        else:
            outside[layer] = replaced[layer]
    return {
        "replaced": replaced.double().mean().item(),
        "outside": outside.double().mean().item(),
    }


def _in_order(ids, plan):
    from c2r.plans import contiguous_placement, load_max_over_mean, row_loads
    from c2r.prediction import rows_per_rank

    place = contiguous_placement(plan.layers[0].num_experts, NUM_RANKS)
    ones = np.ones(ids.shape[1])
    loads = [load_max_over_mean(row_loads(place[layer], ones, NUM_RANKS)) for layer in ids]
    visits = [rows_per_rank(layer, place, NUM_RANKS).max() / len(layer) for layer in ids]
    return {
        "load_in_order": float(np.mean(loads)),
        "busiest_in_order": float(np.mean(visits) * NUM_RANKS),
    }


def _tokenizer():
    from c2r.adapters.huggingface import load_tokenizer
    from c2r.assets import tiny_folder

    return load_tokenizer(str(tiny_folder()))


def _model(name):
    """A model of that shape, and the batches of two halves of the embedded model's text."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from c2r.assets import heldout_files
    from c2r.text import read_texts, split_texts, token_batches

    kind, num_experts, top_k, _ = SHAPES[name]
    tokenizer = _tokenizer()
    halves = (
        token_batches(texts, tokenizer, num_tokens=NUM_TOKENS, seq_len=256)
        for texts in split_texts(read_texts(heldout_files()))
    )
    names = {"mixtral": "num_local_experts", "qwen2_moe": "num_experts"}
    experts = {names[kind]: num_experts, "num_experts_per_tok": top_k}
    widths = {"intermediate_size": 32, "moe_intermediate_size": 32}
    if kind == "qwen2_moe":
        widths["shared_expert_intermediate_size"] = 64
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        initializer_range=0.1,
        **widths,
        **experts,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval(), halves


def real_routing(routing):
    """What the routers of gpt-oss-20b chose: how much of it a list would allow, and copies."""
    from placement_time import GPT_OSS_20B, read_profiles

    import c2r
    from c2r.planning import order_partners
    from c2r.planning.scaling import some_layers

    planned, judged = read_profiles(routing, GPT_OSS_20B)
    with np.load(routing) as arrays:
        experts, lengths = arrays["experts"].astype(np.int64), arrays["lengths"]
    is_judged = np.repeat(np.arange(len(lengths)), lengths) % 2 == 1
    chosen = experts[is_judged]
    places = []
    for index, layer in enumerate(planned.layers):
        partners = order_partners(layer.coactivation)
        place = np.zeros((layer.num_experts, layer.num_experts), dtype=np.int64)
        np.put_along_axis(place, partners, np.arange(partners.shape[1])[None], axis=1)
        places.append(place[chosen[:, index, :1], chosen[:, index, 1:]])
    place = np.stack(places)
    part, few = some_layers(planned, 6), some_layers(judged, 6)
    traffic = c2r.predict_traffic(few, c2r.make_plan(part, num_ranks=NUM_RANKS)).mean
    for top_t in (3, 8, 16, 24, 31):
        yield {
            "part": "real",
            "T": top_t,
            "choices_on_list": float((place < top_t).mean()),
            "tokens_on_list": float((place < top_t).all(2).mean()),
            "k_fold": traffic.copies_once_per_expert,
            "in_order": traffic.copies_in_order,
            "placed": traffic.copies_placed,
            "placed_load": traffic.rank_load_max_over_mean,
        }


def tuning(folder):
    """The fine-tuning presets, whole: two epochs, on short windows of conversations of ours."""
    from task_stand_ins import draw_items

    for name, preset in PRESETS.items():
        data = folder / f"{preset}.jsonl"
        lines = (
            [f"{item.asked} {', '.join(item.things)}", f"The {item.things[item.right]}."]
            for item in draw_items(200, 4, preset)
        )
        data.write_text("".join(json.dumps({"conversations": line}) + "\n" for line in lines))
        for control in ((), ("--control",)):
            out = folder / f"{preset}{'-control' if control else ''}"
            command = ["finetune", folder / name, "--plan", folder / f"{name}.safetensors"]
            command += ["--preset", preset, "--data", data, "--out", out, "--seq-len", SEQ_LEN]
            document = _c2r(*command, "--eval-share", 0.1, *control)
            before, plain, after = (
                document["held_out"][key]["loss"]
                for key in ("before, under the plan", "before, plain top-k", _last(document))
            )
            yield {
                "part": "tuning",
                "model": name,
                "preset": preset,
                "control": bool(control),
                "steps": document["num_steps"],
                "windows": document["num_windows"],
                "batch": document["settings"]["batch_size"],
                "loss_before": plain if control else before,
                "loss_after": after,
                "trained": document["num_trainable"],
            }


def _last(document):
    return list(document["held_out"])[-1]


def tasks(folder):
    """The ten tasks, on stand-ins of their data sets: under the rule, and with plain top-k."""
    from datasets import disable_progress_bars
    from task_stand_ins import make_stand_ins

    disable_progress_bars()
    make_stand_ins(Path(os.environ["HF_HOME"]))
    name = "Qwen-MoE"
    command = ["evaluate", folder / name, "--plan", folder / f"{name}.safetensors"]
    document = _c2r(*command, "--tasks", "paper", "--limit", 1)
    for task, other in zip(document["tasks"], document["reference"]["tasks"], strict=True):
        yield {
            "part": "tasks",
            "task": task["name"],
            "shots": task["num_shots"],
            "items": len(task["ids"]),
            "right": sum(task["correct"]),
            "right_plain": sum(other["correct"]),
            "left_out": task["num_left_out"],
            "truncated": task["num_truncated"],
            "policy": "+".join(document["policies"]),
        }


def _c2r(*arguments):
    """The JSON that a command of c2r prints."""
    from c2r.cli import run_command

    printed = io.StringIO()
    with redirect_stdout(printed):
        status = run_command([*map(str, arguments), "--json"])
    assert status == 0, arguments
    return json.loads(printed.getvalue().splitlines()[-1])


def study():
    """The rule on trained routers: what `study_quality.py` found for the embedded model."""
    for name, placement in (("study_quality", "few copies"), ("study_quality_bounded", "time")):
        document = json.loads((RESULTS / f"{name}.json").read_text())
        for row in document["rows"]:
            policy, _, strength = row["case"].partition(" ")
            is_ours = policy in ("control", "c2r") and row["mode"] != "router"
            if is_ours and row["steps"] in (0, 400):
                yield {
                    "part": "study",
                    "placed_for": placement,
                    "T": int(strength) if strength else None,
                    "tuned": row["mode"] == "full",
                    "over_control": row["over_control"] if strength else None,
                    "placed": row["copies"],
                    "load": row["rank_load_max_over_mean"],
                }


def measured_times():
    """What was measured before, of k-fold dispatch: results of `expert_parallel.py`."""
    runs = {
        "expert_parallel_emulated": "500 Mbit/s, emulated devices",
        "expert_parallel_emulated_unlimited": "unlimited links, emulated devices",
        "expert_parallel_gpt_oss_4": "500 Mbit/s, emulated devices, routing of gpt-oss-20b",
        "expert_parallel_4_hosts": "700 Mbit/s, real products on two cores",
    }
    dispatches = {
        "once": "zero_redundancy",
        "placed": "zero_redundancy, placed",
        "c2r_16": "zero_redundancy, placed, c2r 16",
        "c2r_8": "zero_redundancy, placed, c2r 8",
    }
    for name, what in runs.items():
        document = json.loads((RESULTS / f"{name}.json").read_text())
        ratios = {case["case"]["name"]: case["ratio"]["median"] for case in document["cases"]}
        row = {"part": "measured", "run": what, "file": f"{name}.json"}
        yield row | {key: ratios.get(case) for key, case in dispatches.items()}


def tables(rows) -> Iterator[str]:
    """The tables of docs/paper.md."""
    yield _markdown(rows, "matrices", {
        "routing": lambda row: "base" if row["T"] is None else f"T = {row['T']}",
        "pairs outside their lists": lambda row: _percent(row["outside_lists"]),
        "collaborators of 7": _number("collaborators"),
        "expert load": _number("expert_load"),
        "4 ranks, once per rank": _number("in_order", 3),
        "placed": _number("placed", 3),
        "load, placed": _number("placed_load"),
        "2 ranks, placed": _number("placed_on_2", 3),
    })  # fmt: skip
    yield _markdown(rows, "lists", {
        "list": lambda row: f"{row['model']}, T = {row['T']}",
        "layers": _number("layers", 0),
        "experts": _number("experts", 0),
        "experts that are their own partner": _number("self_within_T", 0),
        "ranks that a top-1 and its list span, of 4": _number("ranks_in_order"),
        "fewest possible": _number("fewest_ranks", 0),
    })  # fmt: skip
    yield _markdown(rows, "rule", {
        "model": lambda row: f"{row['model']}, E = {row['experts']}, k = {row['k']}",
        "T": lambda row: "-" if row["T"] is None else str(row["T"]),
        "choices replaced": lambda row: _percent(row["replaced"], 1),
        "copies in order": _number("in_order", 3),
        "busiest": _number("busiest_in_order"),
        "load": _number("load_in_order"),
        "copies placed": _number("placed", 3),
        "busiest, placed": _number("busiest"),
        "load, placed": _number("load"),
    })  # fmt: skip
    yield _markdown(rows, "study", {
        "placed for": lambda row: row["placed_for"],
        "tuned": lambda row: "yes" if row["tuned"] else "no",
        "T": lambda row: "-" if row["T"] is None else str(row["T"]),
        "loss over the control": lambda row: _percent(row["over_control"], 2, "+"),
        "copies": _number("placed", 3),
        "load": _number("load"),
    })  # fmt: skip
    yield _markdown(rows, "real", {
        "T": _number("T", 0),
        "choices on the list": lambda row: _percent(row["choices_on_list"], 1),
        "tokens with all of them": lambda row: _percent(row["tokens_on_list"], 1),
    })  # fmt: skip
    yield _markdown(rows, "tuning", {
        "preset": lambda row: row["preset"] + (", `--control`" if row["control"] else ""),
        "windows": _number("windows", 0),
        "batch": _number("batch", 0),
        "steps": _number("steps", 0),
        "loss before": _number("loss_before", 4),
        "after": _number("loss_after", 4),
    })  # fmt: skip
    yield _markdown(rows, "tasks", {
        "task": lambda row: row["task"],
        "shots": _number("shots", 0),
        "items": _number("items", 0),
        "right under T = 30": _number("right", 0),
        "with plain top-k": _number("right_plain", 0),
    })  # fmt: skip
    yield _markdown(rows, "times", {
        "cluster": lambda row: row["cluster"],
        "routing": lambda row: {"base": "base"}.get(row["routing"], f"T = {row['routing'][-1]}"),
        "once per rank": _number("once"),
        "placed": _number("placed"),
        "step, placed": _number("placed_step"),
    })  # fmt: skip
    yield _markdown(rows, "measured", {
        "run": lambda row: row["run"],
        "once per rank": _number("once"),
        "placed": _number("placed"),
        "placed, T = E/2": _number("c2r_16"),
        "placed, T = E/4": _number("c2r_8"),
    })  # fmt: skip


def came_out(rows) -> Iterator[str]:
    """The sentences of docs/paper.md that tell figures of several tables."""
    of = {part: [row for row in rows if row["part"] == part] for part in {r["part"] for r in rows}}
    counted = {row["T"]: row for row in of["matrices"]}
    base, published, shortest = counted[None], counted[PUBLISHED["LLaMA-MoE"]], counted[1]
    yield (
        f"An expert has {base['collaborators']:.2f} effective collaborators of 7; with T = 5 "
        f"{published['collaborators']:.2f}, with T = 1 {shortest['collaborators']:.2f}."
    )
    yield (
        f"On 4 ranks a token makes {base['k_fold']:.0f} rows sent once per expert, "
        f"{base['in_order']:.3f} once per rank, {base['placed']:.3f} placed, and "
        f"{published['placed']:.3f} placed with T = 5."
    )
    models = {(row["model"], row["T"]): row for row in of["rule"]}
    qwen, free = models["Qwen-MoE", PUBLISHED["Qwen-MoE"]], models["Qwen-MoE", None]
    yield (
        f"With T = 30 {100 * qwen['replaced']:.1f} % of the choices change, and a token visits "
        f"{qwen['placed']:.3f} ranks instead of {free['placed']:.3f} (random weights)."
    )
    trained = {(row["placed_for"], row["tuned"], row["T"]): row for row in of["study"]}
    listed, free = trained["few copies", True, 16], trained["few copies", True, None]
    yield (
        f"Tuned, T = 16 of 32 sends {listed['placed']:.3f} copies instead of "
        f"{free['placed']:.3f}, for {100 * listed['over_control']:.2f} % of the loss."
    )
    real = {row["T"]: row for row in of["real"]}[16]
    yield (
        f"Of the choices of gpt-oss-20b {100 * real['choices_on_list']:.0f} % are on a list of "
        f"T = 16 already; placement alone takes its copies from {real['in_order']:.2f} to "
        f"{real['placed']:.2f}."
    )
    asked = of["tasks"]
    yield (
        f"All {len(asked)} tasks ran: {sum(row['items'] for row in asked)} items, none left out, "
        f"{sum(row['truncated'] for row in asked)} cut."
    )
    steps = {(row["cluster"], row["routing"]): row for row in of["times"]}
    for cluster in CLUSTERS:
        alone, listed = (steps[cluster, name]["placed_step"] for name in ("base", "topt_5"))
        yield (
            f"{cluster}: placement saves {100 * (1 - alone):.1f} % of a predicted step, with "
            f"T = 5 {100 * (1 - listed):.1f} %."
        )


def _number(key, digits=2):
    return lambda row: "-" if row[key] is None else f"{row[key]:,.{digits}f}"


def _percent(share, digits=0, sign=""):
    return "-" if share is None else f"{100 * share:{sign}.{digits}f} %"


def _markdown(rows, part, columns):
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        if row["part"] == part:
            lines.append("| " + " | ".join(cell(row) for cell in columns.values()) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--authors", type=Path, help="folder of the authors' files")
    parser.add_argument("--routing", type=Path, help=".npz of the routing of gpt-oss-20b")
    parser.add_argument(
        "--tables", type=Path, help="print the page's tables of a result; run nothing"
    )
    args = parser.parse_args()
    if args.tables:
        rows = json.loads(args.tables.read_text())["rows"]
        print("\n\n".join([*tables(rows), *came_out(rows)]))
        return
    with tempfile.TemporaryDirectory() as name:
        # Before the first import of what reads them: stand-ins are found, and nothing is fetched.
        os.environ |= {"HF_HOME": f"{name}/hub", "HF_HUB_OFFLINE": "1"}
        rows = list(_run(args, Path(name)))
    settings = {"authors": args.authors, "routing": args.routing, "tokens": NUM_TOKENS}
    settings |= {"layers": NUM_LAYERS, "seq_len": SEQ_LEN}
    finish("reproduce_paper", "k-fold dispatch, experts in order", rows, settings)


def _run(args, folder):
    parts = [rule(folder), tuning(folder), tasks(folder), study(), measured_times()]
    if args.routing:
        parts.append(real_routing(args.routing))
    if args.authors:
        parts += [matrices(args.authors), lists(args.authors), times(args.authors)]
    for part in parts:
        found = list(part)
        print_table([{k: v for k, v in row.items() if k != "part"} for row in found])
        print(flush=True)
        yield from found


if __name__ == "__main__":
    main()
