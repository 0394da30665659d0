import json
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from c2r.adapters.checkpoints.shards import check_files_inside
from c2r.adapters.huggingface.folders import load_tokenizer, load_weights
from c2r.artifacts import write_text
from c2r.assets import tiny_folder
from c2r.cli import run_command
from c2r.errors import ArtifactError, InputError, ModelError
from c2r.plans import ClusterTopology
from c2r.tasks import TaskRequest, load_tasks
from c2r.text import answers, conversations, templates
from c2r.timing.recording import RecordedRouting, Recording
from tests.hostile.mutations import originals

TASK = """
task: t
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_choice: [a, b]
doc_to_target: 0
doc_to_text: TEXT
"""


@pytest.fixture
def task_file(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"q": "x"}\n')

    def write(text):
        data = str(tmp_path / "d.jsonl")
        path = tmp_path / "t.yaml"
        path.write_text(TASK.replace("DATA", data).replace("TEXT", text))
        return path

    return write


def test_a_function_of_a_task_file_is_refused(task_file, tmp_path):
    (tmp_path / "evil.py").write_text("open('owned', 'w')\nf = str\n")
    path = task_file("!function evil.f")
    (tmp_path / "outer.yaml").write_text("include: t.yaml\n")
    for file in (path, tmp_path / "outer.yaml"):
        with pytest.raises(InputError, match=r"asks for !function evil\.f.*trust_task_code=True"):
            load_tasks(TaskRequest(task_files=(file,)))


def test_a_template_reaches_no_python(task_file, tmp_path):
    owned = tmp_path / "owned"
    path = task_file(f"\"{{{{ cycler.__init__.__globals__.os.popen('touch {owned}').read() }}}}\"")
    with pytest.raises(InputError):
        load_tasks(TaskRequest(task_files=(path,)))
    assert not owned.exists()


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(tiny_folder(), tmp_path / "model")


def test_a_model_with_code_of_its_own_is_refused_without_a_question(model, capfd):
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="needs code of its own"):
        load_weights(model)
    assert capfd.readouterr().out == ""


def test_links_and_shards_out_of_a_model_folder_are_refused(model, tmp_path):
    check_files_inside(model)
    (tmp_path / "secret").write_text("s")
    (model / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="is a link out of the folder"):
        load_weights(model)
    (model / "notes.txt").unlink()
    for name in ("../secret", str(tmp_path / "secret"), 3):
        index = {"weight_map": {"w": name}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match="no file of its folder"):
            load_weights(model)


def test_links_to_the_blobs_of_the_hub_cache_are_read(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0").write_text("b")
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/0")
    check_files_inside(snapshot)


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("before")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(InputError, match="link, folder or device"):
        write_text(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "before"


OVERWRITING = [
    "plan profile.safetensors --ranks 2 --out profile.safetensors",
    "plan profile.safetensors --cluster cluster.yaml --out cluster.yaml",
    "plan profile.safetensors --ranks 2 --sweep sweep.json --out sweep.json",
    "export --plan plan.safetensors --format sglang --out plan.safetensors",
    "report profile.safetensors --out profile.safetensors",
    "report profile.safetensors --cluster cluster.yaml --out cluster.yaml",
    "estimate --scale profile.safetensors --figure profile.safetensors",
    "estimate --scale --experts 8 --cluster cluster.yaml --figure cluster.yaml",
    "import dump.pt --format sglang-per-token --out dump.pt",
    "import traces --format trtllm-raw --out traces/rank0_raw.safetensors",
    "evaluate --compare result.json result.json --out result.json",
    "sweep tiny --cluster cluster.yaml --out cluster.yaml",
    "sweep tiny --ranks 2 --text data.txt --out s.json --plot data.txt",
    "optimize tiny --cluster sweep.json --out .",
    "bench parallel --trace routing.npz --out routing.npz",
    "bench parallel --recording recording --save-recording recording",
    "bench parallel --cluster cluster.yaml --out cluster.yaml",
]


@pytest.mark.parametrize("command", OVERWRITING)
def test_a_command_never_writes_over_what_it_reads(tmp_path, monkeypatch, capsys, command):
    originals(tmp_path)
    (tmp_path / "data.txt").write_text("text")
    (tmp_path / "traces").mkdir()
    save_file({"0_0": np.array([[0, 1]])}, tmp_path / "traces" / "rank0_raw.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2" if command.startswith("bench") else "1")
    assert run_command(command.split()) == 2
    assert "is an input of this command" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(num_ranks=[1]),
        lambda d: d["routing"].pop("copies"),
        lambda d: d["routing"].update(rank_load_max_over_mean="x"),
        lambda d: d.update(tasks=[]),
        lambda d: d["tasks"][0].update(correct=[1]),
        lambda d: d["tasks"][0].update(ids=[]),
        lambda d: d["tasks"][0].update(name=3),
    ],
)
def test_a_task_result_whose_figures_cannot_be_shown_is_refused(tmp_path, capsys, change):
    originals(tmp_path)
    path = tmp_path / "result.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    assert run_command(["evaluate", "--compare", str(path), str(path)]) == 2
    assert "lacks or damages a field" in capsys.readouterr().err


def test_a_task_name_cannot_command_the_terminal(tmp_path, capsys):
    originals(tmp_path)
    path = tmp_path / "result.json"
    document = json.loads(path.read_text())
    document["tasks"][0]["name"] = "\x1b]0;owned\x07"
    path.write_text(json.dumps(document))
    assert run_command(["evaluate", "--compare", str(path), str(path)]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "owned" in said.out


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLE = "{% set n = namespace(s='ab') %}{% for a in range(40) %}{% set n.s = n.s + n.s %}"
DOUBLE += "{% endfor %}{{ n.s }}"
BAD_TEMPLATES = {
    LOOP: "more than 1 s",
    DOUBLE: "more than 64 MiB",
    "{{ 'a' * 10**12 }}": "more than 64 MiB",
    "{{ 9 ** (9 ** 9) }}": "grows too large",
    "{% set n = namespace(x=3) %}{% for a in range(50) %}{% set n.x = n.x * n.x %}{% endfor %}": (
        "grows too large"
    ),
    "{{ 1 // 0 }}": "by zero",
    "{{ 1 + 'a' }}": "unsupported operand",
}


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(templates, "_MOST_SECONDS", 1.0)
    monkeypatch.setattr(templates, "_MOST_BYTES", 64 << 20)


def peak_bytes():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("template", BAD_TEMPLATES)
def test_a_chat_template_that_loops_or_fails_is_one_line(small_limits, template):
    tokenizer = load_tokenizer(tiny_folder())
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    line = conversations.Conversation(messages=messages, source="d.jsonl, line 1")
    before = peak_bytes()
    with pytest.raises(
        InputError, match=r"^d\.jsonl, line 1: the tokenizer's chat template re"
    ) as told:
        answers.render(line, tokenizer)
    assert BAD_TEMPLATES[template] in str(told.value)
    assert peak_bytes() - before <= 96 << 20
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("template", [LOOP, DOUBLE, "{{ 1 // 0 }}", "{{ 9 ** (9 ** 9) }}"])
def test_a_template_of_a_task_that_loops_or_fails_is_one_line(small_limits, task_file, template):
    path = task_file(json.dumps(template))
    with pytest.raises(InputError, match=r"^a template of a task file is refused") as told:
        load_tasks(TaskRequest(task_files=(path,)))
    assert BAD_TEMPLATES[template] in str(told.value)


@pytest.mark.parametrize("number", [0, 200_000, 10**9])
def test_a_number_of_experts_that_no_memory_holds_is_refused(tmp_path, capsys, number):
    ids = np.array([[0, 1], [1, 0]])
    save_file({"0_0": ids}, tmp_path / "rank0_raw.safetensors")
    (tmp_path / "meta_info.json").write_text(json.dumps({"num_experts": number}))
    out = ["--out", str(tmp_path / "out")]
    assert run_command(["import", str(tmp_path), "--format", "trtllm-raw", *out]) == 2
    assert f"pairs of {number} experts" in capsys.readouterr().err
    (tmp_path / "meta_info.json").unlink()
    named = ["--num-experts", str(number)]
    assert run_command(["import", str(tmp_path), "--format", "trtllm-raw", *named, *out]) == 2
    assert "num_experts is --num-experts" in capsys.readouterr().err


def recording():
    ids = np.arange(8).reshape(1, 4, 2) % 4
    routing = RecordedRouting(loss=1.0, expert_ids=ids, weights=np.ones((1, 4, 2), np.float32))
    return Recording(
        num_experts=4,
        topology=ClusterTopology(num_ranks=2),
        placement=np.array([[0, 0, 1, 1]]),
        replicas=np.array([[[2], [0]]]),
        max_load=1.0,
        routings={"top_k": routing},
    )


def routed(whole, **changes):
    return {"top_k": replace(whole.routings["top_k"], **changes)}


@pytest.mark.parametrize(
    "change",
    [
        lambda r: {"placement": r.placement + 1},
        lambda r: {"placement": r.placement[:, :3]},
        lambda r: {"replicas": r.replicas + 2},
        lambda r: {"replicas": r.replicas[:, :1]},
        lambda r: {"num_experts": 3},
        lambda r: {"routings": {}},
        lambda r: {"max_load": float("nan")},
        lambda r: {"routings": routed(r, expert_ids=-r.routings["top_k"].expert_ids)},
        lambda r: {"routings": routed(r, weights=np.ones(3, np.float32))},
    ],
)
def test_a_recording_that_is_damaged_is_refused(tmp_path, change):
    whole = recording()
    whole.save(tmp_path / "whole")
    assert Recording.load(tmp_path / "whole").num_layers == 1
    replace(whole, **change(whole)).save(tmp_path / "damaged")
    with pytest.raises(ArtifactError, match="lacks or damages a field"):
        Recording.load(tmp_path / "damaged")


@pytest.mark.parametrize("key", ["seconds", "partial", "spread"])
def test_a_sweep_whose_state_is_damaged_does_not_go_on(tmp_path, capsys, key):
    path = tmp_path / "sweep.json"
    cut = ["--tokens", "1024", "--seq-len", "128", "--policy", "priced=0.1"]
    command = ["sweep", "tiny", "--ranks", "2", *cut, "--out", str(path)]
    request = {"request": {}, "complete": False, "points": [], "seconds": 0, "partial": {}}
    path.write_text(json.dumps({**request, key: "x"}))
    assert run_command(command) == 2
    assert "lacks or damages a field" in capsys.readouterr().err


def test_no_command_writes_over_a_file_of_a_model(tmp_path, model, capsys):
    (tmp_path / "t.txt").write_text("text")
    text, config = str(tmp_path / "t.txt"), str(model / "config.json")
    before = (model / "config.json").read_bytes()
    np.savez(model / "trace.npz", layer_0=np.array([[0, 1]]))
    commands = (
        ["profile", str(model), "--out", config],
        ["profile", "tiny", "--text", text, "--out", text],
        ["sweep", str(model), "--ranks", "2", "--out", config],
        ["sweep", "tiny", "--ranks", "2", "--text", text, "--out", text],
        ["evaluate", str(model), "--tasks", "piqa", "--out", config],
        ["import", str(model), "--format", "npz", "--out", config],
    )
    for command in commands:
        assert run_command(command) == 2
        assert "is an input of this command" in capsys.readouterr().err
    assert (model / "config.json").read_bytes() == before
