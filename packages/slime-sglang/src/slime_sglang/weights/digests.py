"""Fingerprints that travel with weights: the sender writes them, the engine checks them.

Every bucket and every version on disk carries one more tensor, ``slime.digests``: the bytes of a
JSON object {tensor name: ``slime_core.digest.tensor_digest``}. The engine answers with a receipt
over what it verified; the sender compares it with its own.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import UInt8
from slime_core.digest import DIGITS, tensor_digest, tensor_digests
from slime_core.errors import WeightSyncError
from torch import Tensor

from slime_sglang.weights.fetch import fetched

DIGESTS = "slime.digests"
_RECEIPT = "slime-receipt"
_ALIGNED = 16

NamedTensors = Sequence[tuple[str, Tensor]]


def digests_of(tensors: NamedTensors) -> dict[str, str]:
    """Name to fingerprint; waits for the device once."""
    return begin_digests(tensors)()


def begin_digests(
    tensors: NamedTensors, copy_to: UInt8[Tensor, " bytes"] | None = None
) -> Callable[[], dict[str, str]]:
    """``digests_of`` once called; a GPU begins now, and is not kept from what it is given next.

    ``copy_to``: where ``tensors`` go one behind the other, which they fill.
    """
    finish = _begin([tensor for _, tensor in tensors], copy_to)
    return lambda: dict(zip((name for name, _ in tensors), finish(), strict=True))


def _begin(tensors: Sequence[Tensor], copy_to: Tensor | None) -> Callable[[], list[str]]:
    kernel = None
    if tensors and all(tensor.is_cuda for tensor in tensors):
        from slime_sglang.weights import digest_kernel as kernel

        if copy_to is not None and kernel.are_plain(tensors):
            return kernel.start(tensors, copy_to)
    if copy_to is not None:
        torch.cat([flat_bytes(tensor) for tensor in tensors], out=copy_to)
    return kernel.start(tensors) if kernel else lambda: tensor_digests(tensors)


def flat_bytes(tensor: Tensor) -> UInt8[Tensor, " bytes"]:
    """Its memory, copied only if it has gaps."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def room_for(names: Iterable[str]) -> int:
    """Bytes that the digests of tensors of these names will take."""
    return len(encode(dict.fromkeys(names, "0" * DIGITS)))


def encode(digests: Mapping[str, str]) -> Tensor:
    """The uint8 tensor that travels as ``slime.digests``.

    Filled up with spaces: where every piece has a multiple of 16 bytes, GPUs copy 16 at a time.
    """
    text = json.dumps(digests).encode()
    whole = -(-len(text) // _ALIGNED) * _ALIGNED
    return torch.frombuffer(bytearray(text.ljust(whole)), dtype=torch.uint8)


def decode(tensor: Tensor) -> dict[str, str]:
    """Inverse of ``encode``."""
    try:
        return dict(json.loads(tensor.cpu().numpy().tobytes()))
    except (ValueError, TypeError) as error:
        raise WeightSyncError(f"`{DIGESTS}` itself arrived damaged: {error}") from error


def split(tensors: Iterable[tuple[str, Tensor]]) -> tuple[list[tuple[str, Tensor]], Tensor | None]:
    """The weights, and what ``encode`` made of the digests that were sent with them, if any."""
    weights: list[tuple[str, Tensor]] = []
    told: Tensor | None = None
    for name, tensor in tensors:
        if name == DIGESTS:
            told = tensor
        else:
            weights.append((name, tensor))
    return weights, told


def begin_verifying(tensors: NamedTensors, told: Tensor) -> Callable[[], dict[str, str]]:
    """Once called, the digests that were sent: ``encode`` made ``told`` of them.

    Raises ``WeightSyncError`` naming the first tensor that is not what was sent. A GPU begins now,
    as soon as it has the tensors; nobody waits for it, nor is it kept from what it is given next.
    """
    sent, finish = fetched(told), begin_digests(tensors)

    def verify() -> dict[str, str]:
        expected = decode(sent())
        for name, found in finish().items():
            compare(name, found, expected)
        missing(expected, {name for name, _ in tensors})
        return expected

    return verify


def verify_one(name: str, tensor: Tensor, expected: Mapping[str, str]) -> None:
    """Raise ``WeightSyncError`` unless ``tensor`` is what was sent under ``name``."""
    compare(name, tensor_digest(tensor), expected)


def compare(name: str, found: str, expected: Mapping[str, str]) -> None:
    """Raise ``WeightSyncError`` unless ``name`` was sent with the digest ``found``."""
    if name not in expected:
        raise WeightSyncError(f"tensor `{name}` arrived without a digest")
    if found != expected[name]:
        raise WeightSyncError(
            f"tensor `{name}` differs from what was sent: digest {found}, expected {expected[name]}"
        )


def missing(expected: Mapping[str, str], arrived: set[str]) -> None:
    """Raise ``WeightSyncError`` naming the first tensor that was sent and did not arrive."""
    for name in expected:
        if name not in arrived:
            raise WeightSyncError(f"tensor `{name}` did not arrive")


def receipt(digests: Mapping[str, str]) -> str:
    """What an engine answers after verifying: the count and a hash of names and digests."""
    text = json.dumps(sorted(digests.items()))
    return f"{_RECEIPT}:{len(digests)}:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
