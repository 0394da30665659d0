"""What a layer cut into chunks takes, whose exchanges and work overlap."""


def chunk_parts(num_chunks: int) -> list[int]:
    """How large the chunks are beside each other: of three and more, the ends are half as large.

    Nothing overlaps the way of the first chunk to its experts and the way of the last one back.
    """
    ends = 1 if num_chunks > 2 else 2
    return [ends, *[2] * (num_chunks - 2), ends][:num_chunks]


def pipeline_time(
    num_chunks: int, exchange: float, work: float, *, latency: float = 0.0, launch: float = 0.0
) -> float:
    """Time from the start of the first exchange to the end of the last; one pass, one direction.

    There is one wire, and one device. `parallel_moe` starts in this order, backward too: chunk
    i + 1 leaves, the device works on chunk i, the results of chunk i leave once those of i - 1 are
    back. An exchange travels when the one started before it is through. With one chunk the parts
    add up; with many, the longer of all exchanges and all work is left, and ends that nothing
    hides.

    Args:
        num_chunks: parts of the batch.
        exchange: of the batch, one way.
        work: of the device on the batch.
        latency: of each exchange besides.
        launch: of the device besides, for each chunk.
    """
    parts = chunk_parts(num_chunks)
    shares = [part / sum(parts) for part in parts]
    exchanges = [latency + share * exchange for share in shares]
    now = returned = wire = arrived = exchanges[0]
    for index, share in enumerate(shares):
        now = max(now, arrived)
        if index + 1 < num_chunks:
            arrived = wire = max(wire, now) + exchanges[index + 1]
        now += launch + share * work
        if index:
            now = max(now, returned)  # the layer waits for the results of the last chunk here
        returned = wire = max(wire, now) + exchanges[index]
    return returned
