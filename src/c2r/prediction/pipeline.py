"""What a layer cut into chunks takes, whose exchanges and work overlap."""


def pipeline_time(num_chunks: int, exchange: float, work: float) -> float:
    """Time from the start of the first exchange to the end of the last; one pass, one direction.

    There is one wire, and one device. `parallel_moe` starts in this order, backward too: chunk
    i + 1 leaves, the device works on chunk i, the results of chunk i leave once those of i - 1 are
    back. An exchange travels when the one started before it is through. With one chunk the parts
    add up; with many, the longer of all exchanges and all work is left, and ends that nothing
    hides.

    Args:
        num_chunks: parts of the batch.
        exchange: of a chunk, one way.
        work: of the device on a chunk.
    """
    now = returned = wire = arrived = exchange
    for following in range(1, num_chunks + 1):
        now = max(now, arrived)
        if following < num_chunks:
            arrived = wire = max(wire, now) + exchange
        now += work
        if following > 1:
            now = max(now, returned)  # the layer waits for the results of the last chunk here
        returned = wire = max(wire, now) + exchange
    return returned
