"""Makes the study's base model: a mixture of experts out of SmolLM2-135M-Instruct.

    python benchmarks/make_base.py --out FOLDER --variant fine
    python benchmarks/make_base.py --out FOLDER --variant coarse --minutes 30

Needs `benchmarks/base_model/requirements.txt`. The model is FOLDER/VARIANT/model, which
transformers and c2r load; the figures of each step are in FOLDER/VARIANT/figures.json. The dense
model is FOLDER/dense, and FOLDER/dense-mixture for c2r, whose tasks take mixtures only. Stopped at
any moment, the same command goes on. `--set NAME=VALUE` changes a setting of
`base_model/settings.py`; with `--name` a trial stands beside the model, and shares what it can:

    python benchmarks/make_base.py --out FOLDER --variant fine --name trial --set tokens=65536
"""

import argparse
import json
import math
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from base_model.choices import losses_by_choice
from base_model.cloze import write_task
from base_model.dense import find_gguf, write_dense
from base_model.distilling import Distillation, loss_of
from base_model.masked_experts import use_experts
from base_model.sampling import BATCH, sample_rows
from base_model.settings import VARIANTS
from base_model.splitting import (
    LayerSplit,
    build_mixture,
    dense_as_mixture,
    ffn_inputs,
    split_layer,
)
from base_model.texts import (
    SHARES,
    Mixture,
    encode,
    measured_windows,
    read_data,
    text_sources,
    windows,
)
from harness import finish
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GraniteMoeSharedForCausalLM, LlamaForCausalLM

from c2r.artifacts import atomic_folder, atomic_path, write_text
from c2r.cli.console import note
from c2r.errors import C2RError, InputError

STEPS = ("dense", "texts", "sampled", "split", "distil", "measure")
_GIGABYTES = 6  # dense model, mixture, a checkpoint and the next one
_CORES = 2  # that the figures are of
_CHOICE_WINDOWS = 16  # of the measured ones


class StoppedError(Exception):
    """The minutes are over, or a signal came; what was done is kept."""


class Base:
    """A base model that is made in a folder, step by step; steps that were done are not repeated.

    The dense model, the texts and what was sampled are shared by the variants of a folder.
    """

    def __init__(self, out, name, settings, minutes=math.inf):
        self.shared, self.folder = out, out / name
        self.settings = settings
        self.end = time.monotonic() + 60 * minutes
        self.signal = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_settings()

    def _check_settings(self):
        path, mine = self.folder / "settings.json", json.dumps(asdict(self.settings), indent=1)
        if path.exists() and path.read_text() != mine:
            raise InputError(
                f"{self.folder} was begun with other settings, which are in {path.name}; give "
                "another --out, or the same settings"
            )
        write_text(path, mine)

    def make(self):
        """All steps; raises `StoppedError` between two of them, or in the distillation."""
        for name in STEPS:
            self.check_time()
            getattr(self, name)()

    def check_time(self):
        if self.is_over():
            raise StoppedError

    def is_over(self):
        return self.signal is not None or time.monotonic() > self.end

    def stop(self, number, _):
        """A signal that ends the work where nothing is lost; a second one ends it at once."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def figures(self):
        """Of the steps that were done."""
        path = self.folder / "figures.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def keep(self, step, started, **figures):
        """Keeps a step's figures with its seconds."""
        figures["seconds"] = round(time.monotonic() - started, 1)
        note(f"{step}: {json.dumps(figures)}")
        write_text(
            self.folder / "figures.json", json.dumps(self.figures() | {step: figures}, indent=1)
        )

    def dense(self):
        if not (self.shared / "dense").is_dir():
            started = time.monotonic()
            self.keep("dense", started, **write_dense(self.shared / "dense"))
        if not (self.shared / "dense-mixture").is_dir():
            mixture = dense_as_mixture(self.open_dense(), self.settings)
            self._write_model(mixture, self.shared / "dense-mixture")

    def open_dense(self, dtype=torch.float32):
        return LlamaForCausalLM.from_pretrained(self.shared / "dense", dtype=dtype).eval()

    @property
    def tokenizer(self):
        return AutoTokenizer.from_pretrained(self.shared / "dense")

    def texts(self):
        """Token ids of every text, a file each."""
        folder = self.shared / "texts"
        folder.mkdir(exist_ok=True)
        started = time.monotonic()
        tokenizer = self.tokenizer
        made = {}
        for name, read in text_sources(self.shared / "debian").items():
            if not (folder / f"{name}.npy").exists():
                tokens = encode(tokenizer, read())
                _save_array(folder / f"{name}.npy", tokens)
                made[name] = len(tokens)
        if made:
            self.keep("texts", started, tokens=made)

    def text(self, name):
        """Windows of a text, `[windows, seq_len]`."""
        length = self.settings.seq_len
        return windows(np.load(self.shared / "texts" / f"{name}.npy"), length)

    def choosing(self):
        """Windows that settings and checkpoints are chosen by."""
        return self.text("choosing")[: self.settings.choose_windows]

    def sampled(self):
        """Batches of text that the dense model writes."""
        folder = self.shared / f"sampled-{self.settings.seq_len}-{self.settings.seed}"
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{number:05}.npy" for number in range(self._num_sampled)]
        missing = [path for path in paths if not path.exists()]
        if not missing:
            return
        started, model, tokenizer = (
            time.monotonic(),
            self.open_dense(torch.bfloat16),
            self.tokenizer,
        )
        for path in missing:
            self.check_time()
            rows = sample_rows(
                model, tokenizer, int(path.stem), self.settings.seq_len, self.settings.seed
            )
            _save_array(path, rows.numpy().astype(np.int32))
        self.keep("sampled", started, tokens=len(paths) * BATCH * self.settings.seq_len)

    @property
    def _num_sampled(self):
        return math.ceil(self.settings.sampled_tokens / (BATCH * self.settings.seq_len))

    def _sampled_windows(self):
        folder = self.shared / f"sampled-{self.settings.seq_len}-{self.settings.seed}"
        batches = [np.load(folder / f"{n:05}.npy") for n in range(self._num_sampled)]
        rows = np.concatenate([np.empty((0, self.settings.seq_len), np.int32), *batches])
        return torch.from_numpy(rows.astype(np.int64))

    def _ffn_inputs(self, rows):
        """Of all layers of the dense model, which computes in bfloat16."""
        return ffn_inputs(self.open_dense(torch.bfloat16), rows)

    def split(self):
        """Groups of neurons and routers, a file per layer."""
        if "split" in self.figures():
            return
        (self.folder / "split").mkdir(exist_ok=True)
        started, dense = time.monotonic(), self.open_dense()
        missing = [path for path in self._split_paths(dense) if not path.exists()]
        if missing:
            self._split_layers(dense, missing)
        found = [json.loads(_metadata(path)["figures"]) for path in self._split_paths(dense)]
        choosing = self.choosing()
        self.keep(
            "split",
            started,
            **_means(found),
            choosing_loss=loss_of(self._mixture(dense), choosing),
            choosing_loss_dense=loss_of(dense, choosing),
        )

    def _split_paths(self, dense):
        layers = range(dense.config.num_hidden_layers)
        return [self.folder / "split" / f"{index:02}.safetensors" for index in layers]

    def _split_layers(self, dense, paths):
        num_windows = self.settings.calibration_tokens // self.settings.seq_len
        inputs = self._ffn_inputs(self.text("calibration")[:num_windows])
        for path in paths:
            self.check_time()
            index = int(path.stem)
            mlp = dense.model.layers[index].mlp
            split, figures = split_layer(
                inputs[index], mlp, self.settings, self.settings.seed + index
            )
            tensors = {name: getattr(split, name) for name in LayerSplit.__slots__}
            with atomic_path(path) as temporary:
                save_file(tensors, temporary, metadata={"figures": json.dumps(figures)})

    def text_to_distil(self):
        """Windows in the proportion of their sources' shares."""
        sources = {"wiki": self.text("distil"), "sampled": self._sampled_windows()}
        sources |= {name: self.text(name) for name in ("documents", "prose", "drama")}
        return Mixture(sources, SHARES, self.settings.seed)

    def _mixture(self, dense):
        splits = [LayerSplit(**load_file(path)) for path in self._split_paths(dense)]
        return build_mixture(dense, splits, self.settings)

    def distil(self):
        """The model in `model`; until it is there, the state of its training in `distil`."""
        folder = self.folder / "distil"
        if (self.folder / "model").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            return
        dense = self.open_dense()
        student, mixture = self._mixture(dense), self.text_to_distil()
        training = Distillation(folder, dense, student, mixture, self.choosing(), self.settings)
        if not training.run(self.is_over):
            raise StoppedError
        best = training.load_best()
        best.set_experts_implementation("grouped_mm")
        lines = (folder / "figures.jsonl").read_text().splitlines()
        self.keep("distil", time.monotonic(), curve=[json.loads(line) for line in lines])
        self._write_model(best, self.folder / "model")
        shutil.rmtree(folder)

    def _write_model(self, model, folder):
        with atomic_folder(folder) as partial:
            model.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)

    def measure(self):
        """Losses on the measured text, and by whose choice of experts they are made."""
        if "measure" in self.figures():
            return
        started, measured = time.monotonic(), measured_windows(self.tokenizer)
        model = open_mixture(self.folder / "model", self.settings.experts)
        task, num_items = write_task(read_data("wikitext2-test.txt"), self.folder)
        self.keep(
            "measure",
            started,
            loss=loss_of(model, measured),
            loss_dense=loss_of(self.open_dense(), measured),
            choices=losses_by_choice(model, measured[:_CHOICE_WINDOWS]),
            cloze=task.name,
            cloze_items=num_items,
        )


def _means(found):
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def _metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def _save_array(path, array):
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def open_mixture(folder, experts):
    """The mixture that was made, with experts computed as in training."""
    model = GraniteMoeSharedForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    use_experts(model, experts)
    return model


def parse_settings(variant, changes):
    """The variant's settings, with those of NAME=VALUE changed."""
    settings = VARIANTS[variant]
    kinds = {name: type(value) for name, value in asdict(settings).items()}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in kinds:
            raise InputError(f"there is no setting {name}; there are {', '.join(kinds)}")
        try:
            settings = replace(settings, **{name: kinds[name](value)})
        except ValueError:
            raise InputError(f"{name} is {value!r}; it must be a number") from None
    return settings


def check_machine(out):
    """Refuses a full disk; says what fewer cores mean."""
    out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free / 1e9
    if free < _GIGABYTES:
        raise InputError(
            f"{out} has {free:.1f} GB free; a base model needs {_GIGABYTES} while it is made"
        )
    cores = len(os.sched_getaffinity(0))
    if cores < _CORES:
        note(f"{cores} core: it takes about {_CORES / cores:g} times as long as on {_CORES}")
    torch.set_num_threads(cores)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of dense model and variants"
    )
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--name", help="of the folder in --out; the variant's unless given")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", dest="changes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then, go on later")
    return parser.parse_args()


def main():
    args = parse_arguments()
    settings = parse_settings(args.variant, args.changes)
    find_gguf()
    check_machine(args.out)
    base = Base(args.out, args.name or args.variant, settings, args.minutes)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, base.stop)
    try:
        base.make()
    except StoppedError:
        note("stopped; run the same command to go on")
        sys.exit(128 + base.signal if base.signal else 1)
    rows = [{"step": step, **figures} for step, figures in base.figures().items()]
    finish("make_base", "dense", rows, asdict(settings), variant=args.variant)


if __name__ == "__main__":
    try:
        main()
    except C2RError as error:
        note(f"make_base: {error}")
        sys.exit(2)
