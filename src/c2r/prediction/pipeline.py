"""What a layer cut into chunks takes, whose exchanges and work overlap."""


def chunk_shares(num_chunks: int) -> list[float]:
    """Share of the tokens in each chunk, as `c2r.parallel` cuts them.

    Of three and more, the first and the last are half as large.
    """
    if num_chunks < 3:
        return [1 / num_chunks] * num_chunks
    whole = 1 / (num_chunks - 1)
    return [whole / 2, *[whole] * (num_chunks - 2), whole / 2]


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
    shares = chunk_shares(num_chunks)
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
