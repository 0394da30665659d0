"""Routing traces that engines write, as profiles."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from c2r.adapters.engines import arrays, megatron, sglang, tensorrt_llm, vllm
from c2r.adapters.engines.c2r_pickle import read_c2r_pickle
from c2r.adapters.engines.engine import TraceFormat
from c2r.adapters.engines.records import BadRecords, Record, expert_ids
from c2r.adapters.engines.shares import Share, counted, divide
from c2r.adapters.formats import ImportFormat
from c2r.adapters.layers import ModelLayers
from c2r.errors import InputError
from c2r.profiling import CollaborationProfile, IdProfileBuilder, LayerProfile

_MODULES = (sglang, vllm, megatron, tensorrt_llm, arrays)
_TRACES: dict[str, TraceFormat] = {
    module.TRACE_FORMAT.name: module.TRACE_FORMAT for module in _MODULES
}
MOST_EXPERTS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """A profile from traces, the records that were left out, and the tokens that were padding.

    Attributes:
        profile: of all tokens.
        num_bad: records left out.
        first_bad: why, of the first of them.
        num_padding: tokens left out in every layer.
        num_workers: processes that counted.
    """

    profile: CollaborationProfile
    num_bad: int
    first_bad: str
    num_padding: int = 0
    num_workers: int = 1


def import_traces(  # noqa: PLR0913 - the public door: every choice that a user may leave out
    format_: str,
    paths: Sequence[str | Path],
    model: ModelLayers | int | None = None,
    *,
    top_k: int | None = None,
    is_skipping_bad: bool = False,
    is_ordered: bool = False,
    num_workers: int = 1,
    on_share: Callable[[int, int, int], None] | None = None,
) -> Import:
    """The profile of all tokens in the files of an engine, read in constant memory.

    Padding is dropped, slots become experts by the dump's own map, files of several ranks are
    counted together. The profile has no score mass; and no top-1 counts, since engines do not
    promise the order of the ids. Of the pair counts of C2R's authors (`c2r-pickle`) one file is
    read whole; besides it only `top_k` is asked for.

    Args:
        format_: what the files are, one of `ImportFormat`.
        paths: the files, or one folder of them.
        model: its MoE layers, to name and check those of the trace; or E; None where the files
            tell E.
        top_k: experts per token, which pair counts do not tell.
        is_skipping_bad: leave bad records out and count them.
        is_ordered: the first id of every token is its top-1, you know it; gives top-1 counts.
        num_workers: processes at most that share the traces, a large file too; the profile is the
            same with any number. A script that asks for more than one must guard its entry with
            `if __name__ == "__main__"`.
        on_share: called now and then with the bytes read so far, the bytes of all files, and the
            rows so far: a row is what one token chose in one layer.

    Raises:
        InputError: a file cannot be read, is of another mode or model, or holds a bad record.
    """
    files = trace_files(format_, paths)
    if format_ == ImportFormat.C2R_PICKLE:
        return _import_pairs(files, top_k)
    job = _Job(_TRACES[format_], model, is_skipping_bad, is_ordered)
    shares = divide(files)
    num_workers = max(min(num_workers, len(shares)), 1)
    total = _total(job.count, shares, num_workers, on_share)
    layers = total.layers
    if not layers:
        raise InputError(
            f"no tokens were found in {len(files)} files ({total.num_bad} bad records)"
        )
    if isinstance(model, ModelLayers):
        _check_layers(layers, model)
    provenance = {
        "format": str(format_),
        "files": [path.name for path in files],
        "is_ordered": is_ordered,
        "num_bad_records": total.num_bad,
        "num_padding": max(total.padding.values(), default=0),
        "complete": True,
    }
    if isinstance(model, ModelLayers):
        provenance["num_groups"] = model.num_groups
    profile = CollaborationProfile(
        layers=tuple(layers[number] for number in sorted(layers)), provenance=provenance
    )
    return Import(
        profile=profile,
        num_bad=total.num_bad,
        first_bad=total.first_bad,
        num_padding=max(total.padding.values(), default=0),
        num_workers=num_workers,
    )


def _import_pairs(paths: Sequence[Path], top_k: int | None) -> Import:
    if len(paths) != 1 or top_k is None:
        raise InputError(
            f"{ImportFormat.C2R_PICKLE} reads one file, which does not say how many experts a "
            f"token chooses: {len(paths)} files and top_k={top_k} do not do"
        )
    return Import(profile=read_c2r_pickle(paths[0], top_k), num_bad=0, first_bad="")


@dataclass(frozen=True, slots=True)
class _Counts:
    """What is in one share or more: layers by number, what was left out, padding by layer."""

    layers: dict[int, LayerProfile]
    num_bad: int
    first_bad: str
    padding: Counter[int]

    @property
    def num_rows(self) -> int:
        return sum(layer.num_tokens for layer in self.layers.values())


@dataclass(frozen=True, slots=True)
class _Job:
    traces: TraceFormat
    model: ModelLayers | int | None
    is_skipping_bad: bool
    is_ordered: bool

    def count(self, share: Share) -> _Counts:
        bad, padding = BadRecords(is_skipping=self.is_skipping_bad), Counter[int]()
        builder: IdProfileBuilder | None = None
        model = self.model if isinstance(self.model, ModelLayers) else None
        known = model.num_experts if model else self.model
        assert not isinstance(known, ModelLayers), "a model tells its number of experts"
        for path, part in share.parts:
            known = _agreed(known, self.traces.num_experts(path), path)
            for record in self.traces.read(path, bad, part):
                known = _agreed(known, _mapped_experts(record), path)
                if builder is None:
                    size = _known(known, path)
                    builder = IdProfileBuilder(size, is_ordered=self.is_ordered, seed=share.number)
                padding[record.layer] += _count(record, builder, model, bad)
        if builder is None or not builder.layers:
            return _Counts({}, bad.count, bad.first, padding)
        names = {n: model.routers[n] if model else f"layers.{n}" for n in builder.layers}
        profile = builder.build(names)
        layers = dict(zip(builder.layers, profile.layers, strict=True))
        return _Counts(layers, bad.count, bad.first, padding)


def _total(
    count: Callable[[Share], _Counts],
    shares: Sequence[Share],
    num_workers: int,
    on_share: Callable[[int, int, int], None] | None,
) -> _Counts:
    total, num_read = _Counts({}, 0, "", Counter()), 0
    num_bytes = sum(share.num_bytes for share in shares)
    # Closed at once: an error of `on_share` would hold the generator, and with it the workers.
    with closing(counted(count, shares, num_workers)) as results:
        for share, found in zip(shares, results, strict=True):
            total = _Counts(
                layers=_merged(total.layers, found.layers),
                num_bad=total.num_bad + found.num_bad,
                first_bad=total.first_bad or found.first_bad,
                padding=total.padding + found.padding,
            )
            num_read += share.num_bytes
            if on_share is not None:
                on_share(num_read, num_bytes, total.num_rows)
    return total


def _merged(
    ours: dict[int, LayerProfile], theirs: dict[int, LayerProfile]
) -> dict[int, LayerProfile]:
    merged = {**theirs, **ours}
    for number in sorted(ours.keys() & theirs.keys()):
        a, b = ours[number], theirs[number]
        if (a.num_experts, a.top_k) != (b.num_experts, b.top_k):
            raise InputError(
                f"files disagree on layer {number}: {a.num_experts} experts with k = {a.top_k}, "
                f"and {b.num_experts} with k = {b.top_k}; give traces of one model"
            )
        rng = np.random.default_rng([number, a.num_tokens, b.num_tokens])
        merged[number] = a.merge(b, rng)
    return merged


def trace_files(format_: str, paths: Sequence[str | Path]) -> list[Path]:
    """The files named, and those of a folder named that a format reads.

    Raises `InputError` where the format is unknown, or a folder holds none.
    """
    if format_ == ImportFormat.C2R_PICKLE:
        return [Path(path) for path in paths]
    if format_ not in _TRACES:
        raise InputError(f"format {format_!r} is unknown; choose {', '.join(ImportFormat)}")
    pattern = _TRACES[format_].pattern
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path.glob(pattern)) if path.is_dir() else [path]
        if not found:
            raise InputError(f"{path} holds no {pattern}, which {format_} reads; check the folder")
        files += found
    return files


def _mapped_experts(record: Record) -> int | None:
    """E of a dump's own map; None without one.

    Raises `InputError` unless the map holds every expert up to its largest.
    """
    if record.slots is None:
        return None
    if record.slots.size and record.slots.max() >= len(record.slots):
        raise InputError(
            f"{record.where}: its map of layer {record.layer} names expert {record.slots.max()} in "
            f"{len(record.slots)} slots; dump again"
        )
    held = (
        np.bincount(record.slots) if record.slots.size and record.slots.min() >= 0 else np.zeros(1)
    )
    if not held.all():
        raise InputError(
            f"{record.where}: its map of layer {record.layer} has no slot for expert "
            f"{int(np.argmin(held))}; dump again"
        )
    return len(held)


def _known(num_experts: int | None, path: Path) -> int:
    if num_experts is None:
        raise InputError(
            f"{path} does not say how many experts a layer has, and model={num_experts}; give the "
            "model that was traced, or its number of experts"
        )
    if not 1 <= num_experts <= MOST_EXPERTS:
        raise InputError(
            f"{path}: pairs of {num_experts} experts (num_experts={num_experts}) are beyond us; "
            f"give 1 to {MOST_EXPERTS:,}"
        )
    return num_experts


def _agreed(known: int | None, stated: int | None, path: Path) -> int | None:
    if known is None or stated is None:
        return known if stated is None else stated
    if known != stated:
        raise InputError(
            f"{path} is of a model with {stated} experts, not {known}; give the model that was "
            "traced"
        )
    return known


def _count(
    record: Record, builder: IdProfileBuilder, model: ModelLayers | None, bad: BadRecords
) -> int:
    """Counts a record; gives how many of its tokens were padding, none where all were."""
    number = _layer(record, model)
    if number is None:
        return 0
    try:
        ids = expert_ids(record)
        builder.update(number, ids)
    except (ValueError, InputError) as error:
        bad.report(record.where, str(error))
        return 0
    return len(record.ids) - len(ids) if len(ids) else 0


def _layer(record: Record, model: ModelLayers | None) -> int | None:
    """The number in the model of a record's layer; None for a dense one.

    Raises `InputError` if the source counts other layers than the model has.
    """
    if model is None:
        return record.layer
    numbers = sorted(model.routers)
    if record.num_layers == len(numbers) != model.num_layers:
        return numbers[record.layer]  # MoE layers only
    if record.num_layers not in (None, model.num_layers):
        raise InputError(
            f"{record.where} counts {record.num_layers} layers, the model has {model.num_layers}, "
            f"{len(numbers)} of them MoE layers; give the model that was traced"
        )
    if record.layer in model.routers:
        return record.layer
    if record.num_layers is None:
        raise InputError(
            f"{record.where} names layer {record.layer}; the model's MoE layers are {numbers[0]} "
            f"to {numbers[-1]}. Give the model that was traced"
        )
    return None


def _check_layers(found: Collection[int], model: ModelLayers) -> None:
    missing = sorted(model.routers.keys() - set(found))
    if missing:
        raise InputError(
            f"the trace has no tokens of {len(missing)} of the model's {len(model.routers)} MoE "
            f"layers (first {model.routers[missing[0]]}); record all layers"
        )
