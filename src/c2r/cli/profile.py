"""`c2r profile`: which experts of a model collaborate on real text."""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_json, progress_bar
from c2r.cli.models import (
    DtypeOption,
    ModelArgument,
    TextOption,
    load_model_and_tokenizer,
    resolve_texts,
)
from c2r.cli.processes import num_processes, process_rank

if TYPE_CHECKING:
    from c2r.profiling import CollaborationProfile
    from c2r.traces import ProfileBuilder

_SECONDS_BETWEEN_SAVES = 60.0


def profile(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Profile to write.")],
    text: TextOption = None,
    tokens: Annotated[int, typer.Option(help="Tokens to count, or all the text if less.")] = 204800,
    seq_len: Annotated[int, typer.Option(help="Tokens per sequence.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Sequences per forward pass.")] = 4,
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Which parts of the text are taken.")] = 0,
    json: JsonOption = False,
) -> None:
    """Run a model on text and count which experts its tokens choose together.

    Streaming: memory does not grow with the tokens. Ctrl-C leaves a valid partial profile; the
    same command goes on from there. Under torchrun each rank takes its share of the text and the
    profile is the merge.
    """
    from c2r.adapters.huggingface import describe_model
    from c2r.text import token_batches

    texts = resolve_texts(text)
    loaded, tokenizer = load_model_and_tokenizer(model, dtype)
    share = _Share.from_environment()
    request = {
        **describe_model(loaded),
        "model": model,
        "texts": [{"name": item.name, "digest": item.digest} for item in texts],
        "tokens": tokens,
        "seq_len": seq_len,
        "batch_size": batch_size,
        "seed": seed,
        "share": f"{share.rank} of {share.num_ranks}",
    }
    batches = token_batches(
        texts, tokenizer, seq_len=seq_len, batch_size=batch_size, num_tokens=tokens, seed=seed
    )
    run = _Run(path=share.path(out), request=request)
    total = min(tokens, sum(len(item.content.encode()) for item in texts)) // share.num_ranks
    result = run.count(loaded, share.select(batches), total)
    finished = share.merge(result, out)
    if finished is not None:
        _report(finished, out, json)


def _report(finished: "CollaborationProfile", out: Path, json: bool) -> None:
    if json:
        summary = {"num_layers": finished.num_layers, "num_experts": finished.num_experts}
        print_json(
            {"out": str(out), **summary, "top_k": finished.top_k, "num_tokens": finished.num_tokens}
        )
    note(
        f"wrote {out}: {finished.num_layers} MoE layers, {finished.num_experts} experts, "
        f"k = {finished.top_k}, {finished.num_tokens:,} tokens"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Share:
    """This process's part of the text under torchrun; all of it otherwise."""

    rank: int
    num_ranks: int

    @classmethod
    def from_environment(cls) -> "_Share":
        return cls(rank=process_rank(), num_ranks=num_processes())

    def path(self, out: Path) -> Path:
        if self.num_ranks == 1:
            return out
        return out.with_name(f"{out.name}.rank{self.rank}of{self.num_ranks}")

    def select(self, batches: Any) -> Any:
        return itertools.islice(batches, self.rank, None, self.num_ranks)

    def merge(self, profile: "CollaborationProfile", out: Path) -> "CollaborationProfile | None":
        """On rank 0 the merge of all ranks' profiles, written to `out`; None elsewhere."""
        from c2r.artifacts import decode_artifact, encode_artifact
        from c2r.parallel import gather_bytes
        from c2r.profiling import CollaborationProfile

        if self.num_ranks == 1:
            return profile
        parts = gather_bytes(encode_artifact(profile.to_artifact()))
        merged: CollaborationProfile | None = None
        if self.rank == 0:
            for part in parts:
                loaded = CollaborationProfile.from_artifact(decode_artifact(part, "profile"))
                merged = loaded if merged is None else merged.merge(loaded)
            assert merged is not None, "a world has at least one rank"
            merged.save(out)
        gather_bytes(b"written")  # no part is removed before the whole is safe
        self.path(out).unlink(missing_ok=True)
        return merged


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """Counting that goes on where an interrupted run with the same request stopped."""

    path: Path
    request: dict[str, Any]

    def count(self, model: Any, batches: Any, num_tokens: int) -> "CollaborationProfile":
        from c2r.adapters.huggingface import traces
        from c2r.traces import ProfileBuilder

        start = self._partial()
        done = start.provenance["batches"] if start else 0
        builder = ProfileBuilder(start, seed=self.request["seed"])
        if start is not None:
            note(f"{self.path} holds {start.num_tokens:,} tokens of this run; going on from there")
        saved = time.monotonic()
        try:
            with progress_bar("profiling, tokens", num_tokens) as advance:
                advance(builder.num_tokens)
                for trace in traces(model, itertools.islice(batches, done, None)):
                    builder.update(trace)
                    done += 1
                    advance(trace.layers[0].num_tokens)
                    if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                        self._save(builder, done, complete=False)
                        saved = time.monotonic()
        except KeyboardInterrupt:
            if builder.num_tokens:
                self._save(builder, done, complete=False)
                note(
                    f"{self.path} holds the {builder.num_tokens:,} tokens so far; "
                    "run the same command to go on"
                )
            raise
        return self._save(builder, done, complete=True)

    def _partial(self) -> "CollaborationProfile | None":
        from c2r.errors import ArtifactError
        from c2r.profiling import CollaborationProfile

        if not self.path.exists():
            return None
        try:
            found = CollaborationProfile.load(self.path)
        except ArtifactError:
            return None
        same = found.provenance.get("request") == self.request
        return found if same and not found.provenance.get("complete", True) else None

    def _save(
        self, builder: "ProfileBuilder", batches: int, *, complete: bool
    ) -> "CollaborationProfile":
        from c2r.errors import InputError

        profile = builder.build(
            {
                "request": self.request,
                "model_fingerprint": self.request["model_fingerprint"],
                "complete": complete,
                "batches": batches,
            }
        )
        if profile is None:
            raise InputError("the text holds no token for this process; give more text")
        profile.save(self.path)
        return profile
