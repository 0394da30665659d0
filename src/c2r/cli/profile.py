"""`c2r profile`: which experts of a model collaborate on real text."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import JsonOption, note, print_json, progress_bar
from c2r.cli.model_options import DEFAULT_LOADING, ModelOptions, runs_model
from c2r.cli.models import (
    DataOption,
    ExpertParallelOption,
    ModelArgument,
    TextOption,
    check_all_data,
    file_digest,
    load_on_ranks,
    note_unused,
    note_work,
    resolve_texts,
)
from c2r.cli.processes import is_first_process
from c2r.cli.ranks import DEFAULT_TIMEOUT, Ranks, TimeoutOption, together
from c2r.cli.runs import check_output, is_forced
from c2r.errors import InputError

if TYPE_CHECKING:
    from c2r.profiling import CollaborationProfile
    from c2r.text import Text


@runs_model()
def profile(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Profile to write.")],
    text: TextOption = None,
    data: DataOption = None,
    tokens: Annotated[int, typer.Option(help="Tokens to count, or all the text if less.")] = 204800,
    seq_len: Annotated[int, typer.Option(help="Tokens per sequence.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Sequences per forward pass.")] = 4,
    loading: ModelOptions = DEFAULT_LOADING,
    expert_parallel: ExpertParallelOption = False,
    seed: Annotated[int, typer.Option(help="Which parts of the text are taken.")] = 0,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    json: JsonOption = False,
) -> None:
    """Count which experts a model's tokens choose together on text.

    Plain text is cut into sequences; of --data each conversation is one, as the model is served it.
    Streaming: memory does not grow with the tokens. Ctrl-C leaves a valid partial profile; the
    same command resumes from there. Under torchrun each rank takes its share of the text and the
    profile is the merge; with --expert-parallel no rank holds all experts.
    """
    check_output(out, model, *(text or ()), *(data or ()), resumes=_is_unfinished(out))
    if text and data:
        raise InputError("--text and --data: give one, a profile is of one or the other")
    check_all_data(*(data or ()))
    cutting = {"seq_len": seq_len, "batch_size": batch_size, "num_tokens": tokens}
    with together(timeout, loading.backend if expert_parallel else "gloo") as ranks:
        from c2r.parallel import parts_beside, remove_parts

        source = _Conversations(data) if data else _Texts(resolve_texts(text))
        facts = {"the text": source.facts(), **cutting, "seed": seed, "dtype": loading.dtype}
        ranks.agree(facts)
        loaded, tokenizer = load_on_ranks(model, loading, expert_parallel, timeout)
        if is_forced() and is_first_process():
            remove_parts(parts_beside(out))
        request = {
            "model": model,
            "texts": source.facts(),
            "tokens": tokens,
            "seq_len": seq_len,
            "batch_size": batch_size,
            **source.beginning(tokenizer),
        }
        batches = source.batches(tokenizer, seed, cutting)
        total = min(tokens, source.most_tokens())
        note_work("profiling", total, seq_len, batch_size)
        finished: CollaborationProfile | None
        if ranks.comm is None and not parts_beside(out):
            finished = _count(loaded, batches, total, out, request, seed)
        else:
            finished = _shared_out(ranks, loaded, batches, total, out, request, seed)
    if finished is not None:
        _report(finished, out, json)


@dataclass(frozen=True, slots=True)
class _Texts:
    """Plain text, as windows of equal length."""

    texts: "tuple[Text, ...]"

    def facts(self) -> list[dict[str, str]]:
        return [{"name": text.name, "digest": text.digest} for text in self.texts]

    def beginning(self, tokenizer: Any) -> dict[str, list[str]]:
        from c2r.text import named_beginning

        return named_beginning(tokenizer)

    def most_tokens(self) -> int:
        return sum(len(text.content.encode()) for text in self.texts)

    def batches(self, tokenizer: Any, seed: int, cutting: dict[str, int]) -> Iterator[Any]:
        from c2r.text import token_batches

        return token_batches(self.texts, tokenizer, seed=seed, **cutting)


@dataclass(frozen=True, slots=True)
class _Conversations:
    """Conversations as the model is served them, a row each."""

    paths: list[Path]

    def facts(self) -> list[dict[str, str]]:
        return [{"name": path.name, "digest": file_digest(path)} for path in self.paths]

    def beginning(self, _: Any) -> dict[str, list[str]]:
        return {}  # templates begin each as the model is served it

    def most_tokens(self) -> int:
        return sys.maxsize

    def batches(self, tokenizer: Any, seed: int, cutting: dict[str, int]) -> Iterator[Any]:
        from c2r.text import PassageReader, passage_batches

        reader = PassageReader(tokenizer, seed=seed)
        yield from passage_batches(reader.read(self.paths), tokenizer, **cutting)
        note_unused(reader.unused)


def _is_unfinished(out: Path) -> bool:
    """Whether a profile is there that was interrupted."""
    from c2r.artifacts import read_header

    with suppress(InputError):
        found = read_header(out, "profile").get("provenance")
        return isinstance(found, dict) and found.get("complete") is False
    return False


def _shared_out(
    ranks: Ranks,
    model: Any,
    batches: Iterator[Any],
    total: int,
    out: Path,
    request: dict[str, Any],
    seed: int,
) -> "CollaborationProfile | None":
    """Counts this rank's share, and brings in what ranks that were lost had counted.

    Gives the profile of all on the first rank, once it is on disk.
    """
    from c2r.adapters.huggingface import describe_model, traces, unfinished_parts
    from c2r.parallel import merge_profiles, parts_beside, remove_parts, share_out
    from c2r.profiling import merge_files

    described = describe_model(model)
    ranks.agree({"the model": described["model_fingerprint"]})
    parts = unfinished_parts(parts_beside(out), {**described, "seed": seed, **request})
    sharing = share_out(out, parts, ranks.comm)
    own = sharing.share.of(batches)
    first = list(islice(own, 1))
    _check_shares(ranks, bool(first), bool(sharing.share.done))
    counted: CollaborationProfile | None = None
    if first:
        asked = {**request, "share": sharing.share.to_json()}
        each = total // sharing.share.size
        counted = _count(model, chain(first, own), each, sharing.path, asked, seed)
    else:
        for _ in traces(model, ()):  # others may need the experts of this rank
            pass
    if sharing.taken:
        taken = merge_files(sharing.taken, seed)
        counted = taken if counted is None else counted.merge(taken)
    merged = merge_profiles(counted, ranks.comm)
    if merged is not None:
        whole = {"request": {**described, "seed": seed, **request}, "complete": True}
        merged = replace(merged, provenance={**merged.provenance, **whole})
        merged.save(out)
    ranks.meet("the writing of the profile")
    remove_parts([*parts, sharing.path])
    return merged


def _check_shares(ranks: Ranks, has_some: bool, was_begun: bool) -> None:
    """Raises `InputError` on all ranks if one has nothing to count of a run that is just begun."""
    from c2r.parallel import gather_bytes

    if ranks.comm is None:
        return
    found = gather_bytes(b"1" * has_some, ranks.comm, "the shares of the text")
    if not all(found) and not was_begun:
        raise InputError(
            f"the text gives {sum(map(len, found))} batches for {len(found)} ranks; give more "
            "text, or shorter or fewer sequences per batch"
        )


def _count(
    model: Any, batches: Any, total: int, out: Path, request: dict[str, Any], seed: int
) -> "CollaborationProfile":
    from c2r.adapters.huggingface import profile

    with progress_bar("profiling, tokens", total) as advance:

        def resumed(num_tokens: int) -> None:
            note(f"{out} holds {num_tokens:,} tokens of this run; going on from there")
            advance.resume(num_tokens)

        try:
            return profile(
                model,
                batches,
                seed=seed,
                on_batch=advance.reach,
                out=out,
                request=request,
                on_resume=resumed,
            )
        except KeyboardInterrupt:
            if advance.reached:
                note(
                    f"{out} holds the {advance.reached:,} tokens so far; "
                    "run the same command to go on"
                )
            raise


def _report(finished: "CollaborationProfile", out: Path, json: bool) -> None:
    dtype = finished.provenance["request"]["dtype"]
    if json:
        summary = {"num_layers": finished.num_layers, "num_experts": finished.num_experts}
        print_json(
            {
                "out": str(out),
                **summary,
                "top_k": finished.top_k,
                "num_tokens": finished.num_tokens,
                "dtype": dtype,
            }
        )
    note(
        f"wrote {out}: {finished.num_layers} MoE layers, {finished.num_experts} experts, "
        f"k = {finished.top_k}, {finished.num_tokens:,} tokens, in {dtype}"
    )
