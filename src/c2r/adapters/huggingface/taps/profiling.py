"""The collaboration profile of a running model, counted in one go or in several."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from c2r.adapters.huggingface.batches import as_batches
from c2r.adapters.huggingface.taps.recorder import describe_model, traces
from c2r.artifacts import read_header
from c2r.errors import ArtifactError, C2RError, InputError
from c2r.parallel import Part, Share
from c2r.profiling import CollaborationProfile
from c2r.traces import ProfileBuilder, RoutingTrace

_SECONDS_BETWEEN_SAVES = 60.0


def profile(  # noqa: PLR0913 - the public door: every choice that a user may leave out
    model: nn.Module,
    batches: Iterable[Any],
    *,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    out: str | Path | None = None,
    request: Mapping[str, Any] | None = None,
    on_resume: Callable[[int], None] | None = None,
) -> CollaborationProfile:
    """The collaboration profile of `model` on text.

    With `out` the profile is written there: when it is finished, and every minute and at Ctrl-C as
    far as it got. Where `out` holds an unfinished profile of the same model, seed and `request`,
    the batches that it counted are passed over and the others added to it. Any other file there is
    written over.

    Args:
        model: a transformers model; left as it was.
        batches: as in `traces`; from the first one on, also where a profile is gone on from.
        seed: draws the sample of routing sets where there are too many to keep all.
        on_batch: called after each batch with the number of tokens counted so far.
        out: the file.
        request: JSON data that tells these batches from others, such as the digests of the texts
            and the length of the sequences; None never goes on from a file.
        on_resume: called with the number of tokens of the profile that is gone on from, if any.

    Raises:
        ModelError: the model is not supported.
        InputError: no batches, one without input_ids, or a file that cannot be written.
        RoutingError: a router gives NaN scores.
    """
    asked = {**describe_model(model), "seed": seed, **json.loads(json.dumps(request or {}))}
    path = None if out is None else Path(out)
    start = None if path is None or request is None else _unfinished(path, asked)
    if start is not None and on_resume is not None:
        on_resume(start.num_tokens)
    run = _Run(asked, path, start)
    try:
        # Closed at once: an error of `on_batch` would hold the generator, and with it the taps.
        with closing(traces(model, islice(as_batches(batches), run.num_batches, None))) as stream:
            for trace in stream:
                run.count(trace)
                if on_batch is not None:
                    on_batch(run.num_tokens)
    except KeyboardInterrupt:
        if path is not None and run.num_tokens:
            run.build(complete=False)
        raise
    return run.build(complete=True)


def _unfinished(path: Path, asked: Mapping[str, Any]) -> CollaborationProfile | None:
    if not path.exists():
        return None
    try:
        found = CollaborationProfile.load(path)
    except ArtifactError:
        return None
    if found.provenance.get("request") != asked:
        return None
    is_part = "share" in asked  # of a rank that was through when another was lost
    return found if is_part or not found.provenance.get("complete", True) else None


def unfinished_parts(paths: Iterable[Path], asked: Mapping[str, Any]) -> dict[Path, Part]:
    """Of files that ranks kept, those of one run, whatever its ranks were.

    Args:
        paths: of the files; what is none of ours is passed over.
        asked: what the ranks were asked, their shares aside: model, seed and request.
    """
    found = {}
    for path in paths:
        try:
            provenance = dict(read_header(path, "profile")["provenance"])
            request = dict(provenance["request"])
            part = Part(Share.from_json(request.pop("share")), int(provenance["batches"]))
        except (C2RError, KeyError, TypeError, ValueError):
            continue
        if request == json.loads(json.dumps(asked)):
            found[path] = part
    return found


class _Run:
    """A profile being counted, from `start` on, and saved where there is a path."""

    def __init__(
        self, asked: dict[str, Any], path: Path | None, start: CollaborationProfile | None
    ) -> None:
        self.num_batches = 0 if start is None else int(start.provenance["batches"])
        self._asked, self._path = asked, path
        self._builder = ProfileBuilder(start, seed=asked["seed"])
        self._saved = time.monotonic()

    @property
    def num_tokens(self) -> int:
        return self._builder.num_tokens

    def count(self, trace: RoutingTrace) -> None:
        self._builder.update(trace)
        self.num_batches += 1
        if self._path and time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
            self.build(complete=False)

    def build(self, *, complete: bool) -> CollaborationProfile:
        built = self._builder.build(
            {
                "request": self._asked,
                "model_fingerprint": self._asked["model_fingerprint"],
                "complete": complete,
                "batches": self.num_batches,
            }
        )
        if built is None or not built.num_tokens:
            raise InputError(
                "there are no batches to profile: the text holds no token for this process; give "
                "more text"
            )
        if self._path is not None:
            built.save(self._path)
            self._saved = time.monotonic()
        return built
