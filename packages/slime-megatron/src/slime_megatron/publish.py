"""Hand the trained weights to the rollout engines, verified."""

import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from slime_core.interfaces import WeightReceiver

from slime_megatron.buckets import Bucket

if TYPE_CHECKING:
    from slime_megatron.mcore.state import TrainState


def publish(
    state: "TrainState",
    receiver: WeightReceiver | None,
    version: int,
    buffer_size: int,
    senders: Collection[int] = (0,),
) -> dict[str, float]:
    """Send every weight to ``receiver`` as ``version``; return timings and sizes on ``senders``.

    Every rank calls it; ``receiver`` is None except on ``senders``, each of which sends the whole
    model to engines of its own. Buckets hold at most ``buffer_size`` bytes of Hugging Face tensors
    (or one that is larger); a receiver sends digests of its tensors along for the engines to
    compare with what arrived. A failure on a sender is raised on every rank.
    """
    from slime_megatron.mcore.weights.export import on_ranks  # after bootstrap.load, not before

    start = time.perf_counter()
    sent = {"bytes": 0, "tensors": 0, "buckets": 0}
    reported: dict[str, float] = {}

    def send(buckets: Iterator[Bucket]) -> None:
        assert receiver is not None, "whoever sends needs a receiver"
        receiver.begin(version)
        for bucket in buckets:
            receiver.send(bucket)
            sent["bytes"] += sum(tensor.nbytes for _, tensor in bucket)
            sent["tensors"] += len(bucket)
            sent["buckets"] += 1
        reported.update(receiver.commit())

    on_ranks(state, senders, send, bucket_bytes=buffer_size)
    if receiver is None:
        return {}
    seconds = time.perf_counter() - start
    return {
        **reported,
        "perf/update_weights_time": seconds,
        "perf/update_weights_bytes": float(sent["bytes"]),
        "perf/update_weights_tensors": float(sent["tensors"]),
        "perf/update_weights_buckets": float(sent["buckets"]),
    }
