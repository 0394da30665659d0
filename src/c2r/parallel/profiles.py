"""The profile of a text that ranks shared out among them."""

from c2r.artifacts import decode_artifact, encode_artifact
from c2r.parallel.comm import Comm
from c2r.parallel.world import gather_bytes, send_bytes
from c2r.profiling import CollaborationProfile


def merge_profiles(
    own: CollaborationProfile | None, comm: Comm | None, *, everywhere: bool = False
) -> CollaborationProfile | None:
    """The profile of all ranks' tokens; every rank gives its own, or None where it has none.

    The ranks merge in pairs, then pairs of pairs, and so on: none holds more than two profiles.

    Returns:
        On rank 0 the merge, on the others None; with `everywhere` on all. One process, without
        `comm`, gets its own.

    Raises:
        InputError: the profiles are of different models.
        CommunicationError: a rank does not answer in time.
    """
    if comm is None:
        return own
    what = "the merging of profiles"
    comm.meet(what)
    step = 1
    while step < comm.size:
        sender, receiver = comm.rank % (2 * step) == step, comm.rank % (2 * step) == 0
        partner = comm.rank - step if sender else comm.rank + step
        is_paired = sender or (receiver and partner < comm.size)
        data = _encoded(own) if sender else b""
        theirs = _decoded(send_bytes(data, partner if is_paired else None, comm, what))
        own = None if sender else _merged(own, theirs)
        step *= 2
    if everywhere:
        own = _decoded(gather_bytes(_encoded(own), comm, what)[0])
    return own


def _encoded(profile: CollaborationProfile | None) -> bytes:
    return b"" if profile is None else encode_artifact(profile.to_artifact())


def _decoded(data: bytes) -> CollaborationProfile | None:
    if not data:
        return None
    return CollaborationProfile.from_artifact(decode_artifact(data, "profile"))


def _merged(
    ours: CollaborationProfile | None, theirs: CollaborationProfile | None
) -> CollaborationProfile | None:
    if ours is None or theirs is None:
        return ours or theirs
    return ours.merge(theirs)
