"""Records beside results, --config, --force and --quiet, as a user meets them."""

import pytest
import yaml

from c2r.cli import run_command
from c2r.cli.runs import is_forced
from c2r.errors import InputError
from c2r.planning import make_plan
from c2r.plans import Plan
from tests.reporting.profiles import clustered_profile


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "p.safetensors"
    # As many tokens as warn of nothing.
    clustered_profile(num_tokens=2500, hidden_size=64, expert_size=32, model="one").save(path)
    return path


def call(capsys, *arguments):
    capsys.readouterr()
    status = run_command([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def plan(capsys, profile, *options):
    out = profile.with_name("plan.safetensors")
    return out, call(capsys, "plan", profile, "--ranks", "4", "--out", out, *options)


def test_the_record_of_a_run_makes_it_again(capsys, profile):
    out, (status, _, err) = plan(capsys, profile, "--policy", "priced=0.1", "--seed", "3")
    assert status == 0, err
    record = out.with_name("plan.safetensors.run.yaml")
    found = yaml.safe_load(record.read_text())
    assert found["command"] == "plan" and found["profile"] == [str(profile)]
    assert (found["ranks"], found["policy"], found["seed"]) == (4, "priced=0.1", 3)
    assert not found.keys() & {"config", "force", "quiet", "json", "cluster"}
    content = out.read_bytes()
    out.unlink()
    status, _, err = call(capsys, "plan", "--config", record)
    assert status == 0 and out.read_bytes() == content, err
    other = out.with_name("other.safetensors")
    status, _, err = call(
        capsys, "plan", "--config", record, "--policy", "pruned=0.2", "--out", other
    )
    assert status == 0, err
    assert Plan.load(other).layers[0].policy == "pruned"  # the command line wins
    assert Plan.load(other).topology.num_ranks == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("ranks: 4\npolcy: priced\n", "no option of `c2r plan`: polcy; did you mean policy?"),
        ("ranks: 4\nzzz: 1\n", "no option of `c2r plan`: zzz; see `c2r plan --help`"),
        ("ranks: 4\nforce: true\n", "no option of `c2r plan`: force"),
        ("command: traffic\n", "is of `c2r traffic`, not of `c2r plan`"),
        ("policy: {priced: 1}\n", "policy takes one value"),
        ("ranks: [1, 2]\n", "ranks takes one value"),
        ("- ranks\n", "holds no options"),
        ("a: b: c\n", "cannot read"),
        ("ranks: four\n", "Invalid value for '--ranks'"),
    ],
)
def test_what_is_no_record_of_the_command_is_refused(capsys, profile, content, words):
    config = profile.with_name("c.yaml")
    config.write_text(content)
    status, out, err = call(capsys, "plan", profile, "--out", "none", "--config", config)
    assert (status, out, len(err.splitlines())) == (2, "", 1) and words in err


def test_options_of_a_file_have_dashes_or_underscores(capsys, profile):
    config = profile.with_name("c.yaml")
    out = profile.with_name("o.safetensors")
    for dash in "-_":
        config.write_text(f"max{dash}load: 1.5\nkeep{dash}groups: false\nranks: 2\nout: {out}\n")
        assert call(capsys, "plan", profile, "--config", config)[0] == 0
    assert Plan.load(out).topology.num_ranks == 2


def test_a_result_of_other_options_is_replaced_with_force_only(capsys, profile):
    out, (status, *_) = plan(capsys, profile)
    content = out.read_bytes()
    assert (status, plan(capsys, profile)[1][0]) == (0, 0)  # the same makes the same
    _, (status, printed, err) = plan(capsys, profile, "--policy", "priced=0.1")
    assert (status, printed) == (2, "") and out.read_bytes() == content
    assert err == f"c2r: {out} exists; choose another, or replace it with --force\n"
    assert plan(capsys, profile, "--policy", "priced=0.1", "--force")[1][0] == 0
    assert out.read_bytes() != content
    assert plan(capsys, profile, "--policy", "priced=0.1")[1][0] == 0


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_started_again_force_spares_what_the_same_command_made(capsys, monkeypatch, profile, name):
    plan(capsys, profile)
    seen = []

    def lose(*_, **__):
        seen.append(is_forced())
        raise InputError("lost")

    monkeypatch.setattr("c2r.planning.make_plan", lose)
    for count, seed in (("0", "0"), ("1", "0"), ("1", "1")):
        monkeypatch.setenv(name, count)
        assert plan(capsys, profile, "--seed", seed, "--force")[1][2] == "c2r: lost\n"
    assert seen == [True, False, True]


def test_a_file_without_a_record_is_replaced_with_force_only(capsys, profile):
    out = profile.with_name("plan.safetensors")
    out.write_text("mine")
    assert plan(capsys, profile)[1][0] == 2 and out.read_text() == "mine"
    assert plan(capsys, profile, "--force")[1][0] == 0
    Plan.load(out)


def test_a_folder_is_replaced_only_if_c2r_wrote_it(capsys, tmp_path, profile):
    made = make_plan(clustered_profile(num_experts=32, num_layers=4), num_ranks=4)
    made.save(tmp_path / "plan.safetensors")
    out = tmp_path / "permuted"
    arguments = ["permute", "tiny", "--plan", tmp_path / "plan.safetensors", "--out", out]
    out.mkdir()
    (out / "mine").write_text("mine")
    for options, words in (([], "exists; choose another"), (["--force"], "c2r has not written")):
        status, _, err = call(capsys, *arguments, *options)
        assert status == 2 and words in err and (out / "mine").exists()
    (out / "mine").unlink()
    assert call(capsys, *arguments)[0] == 0
    (out / "left").write_text("from before")
    assert call(capsys, *arguments)[0] == 2
    assert call(capsys, *arguments, "--force")[0] == 0
    assert (out / "config.json").exists() and not (out / "left").exists()


def test_quiet_prints_results_and_warnings_only(capsys, profile):
    _, (status, out, err) = plan(capsys, profile, "--quiet")
    assert (status, out, err) == (0, "", "")
    status, out, err = call(capsys, "inspect", profile, "-q")
    assert (status, err) == (0, "") and "effective collaborators" in out
    status, _, err = call(capsys, "inspect", profile.with_name("none"), "-q")
    assert status == 2 and len(err.splitlines()) == 1


def test_an_error_leaves_no_record(capsys, profile):
    profile.write_bytes(b"damaged")
    out, (status, *_) = plan(capsys, profile)
    assert status == 2 and not out.with_name("plan.safetensors.run.yaml").exists()


def test_a_run_killed_before_its_last_line_can_be_made_again(capsys, profile, monkeypatch):
    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("c2r.cli.runs.Run.save", killed)
        out, (status, _, _) = plan(capsys, profile)
    assert status != 0 and out.is_file()
    content = out.read_bytes()
    _, (status, _, err) = plan(capsys, profile)
    assert status == 0 and out.read_bytes() == content, err
