"""The profile of a text that ranks shared out among them."""

from pathlib import Path

from c2r.artifacts import decode_artifact, encode_artifact
from c2r.parallel.world import gather_bytes, join_world
from c2r.profiling import CollaborationProfile


def save_merged(own: CollaborationProfile, path: str | Path) -> CollaborationProfile | None:
    """Writes the profile of all ranks' tokens to `path`; every rank gives its own.

    Returns:
        On rank 0 what was written, on the others None, and on all only when it is on disk: what a
        rank has saved of its own part may go then.

    Raises:
        InputError: the profiles are of different models, or the file cannot be written.
    """
    world = join_world(backend="gloo")
    encoded = encode_artifact(own.to_artifact())
    parts = gather_bytes(encoded, world, "the gathering of profiles")
    merged = None
    if world.rank == 0:
        first, *others = (
            CollaborationProfile.from_artifact(decode_artifact(part, "profile")) for part in parts
        )
        merged = first
        for other in others:
            merged = merged.merge(other)
        merged.save(path)
    world.meet("the writing of the profile")
    return merged
