"""Train the embedded model: a byte-level Qwen2-MoE on text that every Python installation carries.

    python scripts/train_tiny.py --out src/c2r/assets/tiny

Three kinds of text: code (the standard library's modules), prose (the language reference in
`pydoc_data/topics.py` and the docstrings of the library) and headers (the C API's `.h` files).
One file in ten is held out, chosen by a hash of its name, and so is everything taken from it:
a held-out module gives neither code nor docstrings to the training text. Writes the model as a
normal Hugging Face folder, `heldout/*.txt`, and `training.json` with the settings and losses.
"""

import argparse
import ast
import hashlib
import importlib.util
import json
import math
import platform
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2MoeConfig, Qwen2MoeForCausalLM

KINDS = ("code", "prose", "headers")
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data"}
HELDOUT_BYTES = 200_000  # per kind, as shipped


def is_held_out(name: str) -> bool:
    """One name in ten, the same on every machine."""
    return hashlib.sha256(name.encode()).digest()[0] % 10 == 0


def library_modules() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not SKIPPED_FOLDERS & set(name.parts):
            yield name.as_posix(), path.read_text(encoding="utf-8", errors="ignore")


def docstrings(source: str) -> list[ast.Constant]:
    """The docstring nodes of a module, in order."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, owners) and node.body]
    return [
        body[0].value
        for body in bodies
        if isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    ]


def read_topics() -> dict[str, str]:
    """The language reference that `help()` reads, by topic."""
    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    spec = importlib.util.spec_from_file_location("topics", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.topics


def collect() -> dict[str, dict[bool, list[str]]]:
    """Documents by kind and by whether they are held out."""
    texts = {kind: {False: [], True: []} for kind in KINDS}
    for name, source in library_modules():
        held_out = is_held_out(name)
        texts["code"][held_out].append(source)
        paragraphs = [node.value for node in docstrings(source) if len(node.value) > 80]
        if paragraphs:
            texts["prose"][held_out].append("\n\n".join(paragraphs))
    for topic, text in sorted(read_topics().items()):
        texts["prose"][is_held_out(topic)].append(text)
    include = Path(sysconfig.get_paths()["include"])
    for path in sorted(include.rglob("*.h")):
        name = path.relative_to(include).as_posix()
        texts["headers"][is_held_out(name)].append(
            path.read_text(encoding="utf-8", errors="ignore")
        )
    return texts


def encode(documents: list[str], seed: int) -> np.ndarray:
    """Documents in a seeded order, joined, as bytes."""
    order = np.random.default_rng(seed).permutation(len(documents))
    joined = "\n\n".join(documents[i] for i in order)
    return np.frombuffer(joined.encode(), dtype=np.uint8)


def bigram_loss(train: np.ndarray, heldout: np.ndarray) -> float:
    """Held-out nats per byte of an add-one byte bigram model."""
    counts = np.ones((256, 256))
    np.add.at(counts, (train[:-1], train[1:]), 1)
    log_probs = np.log(counts / counts.sum(1, keepdims=True))
    return float(-log_probs[heldout[:-1], heldout[1:]].mean())


@torch.no_grad()
def heldout_loss(model: Qwen2MoeForCausalLM, heldout: np.ndarray, seq_len: int) -> float:
    """Held-out nats per byte of the model, in windows of `seq_len`."""
    windows = torch.from_numpy(heldout[: len(heldout) // seq_len * seq_len].astype(np.int64))
    model.eval()
    losses = [
        model(input_ids=batch, labels=batch, output_router_logits=False).loss.item()
        for batch in windows.view(-1, seq_len).split(8)
    ]
    model.train()
    return sum(losses) / len(losses)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens: token id = byte value."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    symbols = [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]
    assert set(symbols) == set(alphabet), "the byte-level alphabet changed"
    tokenizer = Tokenizer(BPE({symbol: byte for byte, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=1024)


def make_model(seed: int) -> Qwen2MoeForCausalLM:
    torch.manual_seed(seed)
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=256,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            num_experts=32,
            num_experts_per_tok=4,
            moe_intermediate_size=64,
            shared_expert_intermediate_size=128,
            intermediate_size=256,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            output_router_logits=True,
            router_aux_loss_coef=0.01,
        )
    )


def batches(
    corpora: list[np.ndarray], steps: int, tokens: int, seed: int
) -> Iterator[torch.Tensor]:
    """Windows drawn uniformly from each kind in turn; the last seventh of the steps is longer."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        seq_len = 512 if step < steps * 6 // 7 else 1024
        rows = []
        for _ in range(tokens // seq_len):
            corpus = corpora[rng.integers(len(corpora))]
            start = rng.integers(len(corpus) - seq_len)
            rows.append(corpus[start : start + seq_len].astype(np.int64))
        yield torch.from_numpy(np.stack(rows))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then linearly to zero."""
    return peak * min((step + 1) / 100, (steps - step) / (steps - 100))


def train(model: Qwen2MoeForCausalLM, corpora: list[np.ndarray], args: argparse.Namespace) -> None:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    started = time.time()
    for step, batch in enumerate(batches(corpora, args.steps, args.batch_tokens, args.seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        loss = model(input_ids=batch, labels=batch).loss
        if not math.isfinite(loss.item()):
            sys.exit(f"loss is {loss.item()} at step {step}; lower --lr")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            minutes = (time.time() - started) / 60
            print(f"step {step}/{args.steps} loss {loss.item():.4f} {minutes:.1f} min", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    texts = collect()
    corpora = {kind: encode(texts[kind][False], args.seed) for kind in KINDS}
    heldout = {kind: encode(texts[kind][True], args.seed)[:HELDOUT_BYTES] for kind in KINDS}
    model = make_model(args.seed)
    train(model, list(corpora.values()), args)

    model = model.to(torch.bfloat16)
    model.config.output_router_logits = False
    model.save_pretrained(args.out)
    make_tokenizer().save_pretrained(args.out)
    folder = args.out / "heldout"
    folder.mkdir(exist_ok=True)
    for kind in KINDS:
        (folder / f"{kind}.txt").write_bytes(
            heldout[kind].tobytes().decode(errors="ignore").encode()
        )
    shipped = model.float()
    record = {
        "script": "scripts/train_tiny.py",
        "seed": args.seed,
        "steps": args.steps,
        "batch_tokens": args.batch_tokens,
        "peak_learning_rate": args.lr,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_bytes": {kind: len(corpora[kind]) for kind in KINDS},
        "heldout_bytes": {kind: len(heldout[kind]) for kind in KINDS},
        "heldout_nats_per_byte": {
            kind: {
                "model": round(heldout_loss(shipped, heldout[kind], 1024), 4),
                "byte_bigram": round(bigram_loss(corpora[kind], heldout[kind]), 4),
            }
            for kind in KINDS
        },
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
