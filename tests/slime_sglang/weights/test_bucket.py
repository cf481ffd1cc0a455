import json
import pickle
import subprocess
import sys
from base64 import b64decode

import pytest
import torch
from slime_core.digest import tensor_digest
from slime_core.errors import WeightSyncError
from slime_sglang.weights import digests
from slime_sglang.weights.bucket import pack, unpack
from slime_sglang.weights.tensor import serialize


def make_tensors() -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        ("bytes", torch.randint(0, 255, (5,), dtype=torch.uint8, generator=generator)),
        ("half", torch.randn(3, 3, generator=generator).bfloat16()),
        ("transposed", torch.randn(4, 2, generator=generator).T),
        ("scalar", torch.tensor(3.5)),
        ("double", torch.randn(3, generator=generator).double()),
    ]


def test_a_bucket_holds_every_tensor_bit_for_bit_at_aligned_places() -> None:
    tensors = make_tensors()
    bucket = pack(tensors)
    rows = bucket.metadata()
    assert all(row.start_idx % row.dtype.itemsize == 0 for row in rows)
    assert rows[-1].end_idx == bucket.flat.numel()
    arrived, told = digests.split(unpack(bucket.flat, rows))
    assert told is not None
    carried = digests.begin_verifying(arrived, told)()
    found = dict(arrived)
    assert found.keys() == dict(tensors).keys()
    for name, tensor in tensors:
        assert torch.equal(found[name], tensor)
        assert carried[name] == tensor_digest(tensor)
    assert digests.receipt(carried) == bucket.receipt


def test_a_bucket_is_described_as_sglang_asks_for_it() -> None:
    described = pack([("w", torch.zeros(2, 3, dtype=torch.bfloat16))]).description()
    assert described["names"] == ["w", "slime.digests"]
    assert described["dtypes"] == ["bfloat16", "uint8"]
    assert described["shapes"][0] == [2, 3]
    assert described["load_format"] == "flattened_bucket"
    json.dumps(described)


def test_digests_take_the_room_that_was_left_for_them_in_whole_steps_of_sixteen_bytes() -> None:
    for count in range(1, 20):
        told = {f"layer.{n}": tensor_digest(torch.tensor(n)) for n in range(count)}
        encoded = digests.encode(told)
        assert len(encoded) == digests.room_for(told)
        assert len(encoded) % 16 == 0
        assert digests.decode(encoded) == told


def test_the_first_wrong_tensor_is_named() -> None:
    tensors = make_tensors()
    told = digests.encode(digests.digests_of(tensors))
    tensors[2][1][0, 1] += 1
    tensors[4][1][0] += 1
    with pytest.raises(WeightSyncError, match="`transposed` differs"):
        digests.begin_verifying(tensors, told)()


def test_a_tensor_that_did_not_arrive_is_named() -> None:
    tensors = make_tensors()
    told = digests.encode(digests.digests_of(tensors))
    with pytest.raises(WeightSyncError, match="`half` did not arrive"):
        digests.begin_verifying([tensors[0], *tensors[2:]], told)()


def test_a_tensor_that_nobody_announced_is_named() -> None:
    tensors = make_tensors()
    told = digests.encode(digests.digests_of(tensors[:4]))
    with pytest.raises(WeightSyncError, match="`double` arrived without a digest"):
        digests.begin_verifying(tensors, told)()


def test_damaged_digests_are_an_error() -> None:
    with pytest.raises(WeightSyncError, match=r"slime\.digests` itself"):
        digests.decode(torch.tensor([1, 2, 3], dtype=torch.uint8))


def test_a_receipt_depends_on_every_name_and_digest() -> None:
    receipts = {digests.receipt(d) for d in ({"a": "1"}, {"a": "2"}, {"b": "1"}, {})}
    assert len(receipts) == 4
    assert digests.receipt({"a": "1", "b": "2"}) == digests.receipt({"b": "2", "a": "1"})


# What SGLang's unpickler allows, of what a handle to shared memory needs.
OPEN = """
import base64, pickle, io, sys
import torch, torch.multiprocessing
class Safe(pickle.Unpickler):
    def find_class(self, module, name):
        assert module.split(".")[0] in ("torch", "types", "collections", "builtins"), (module, name)
        return super().find_class(module, name)
opened = Safe(io.BytesIO(base64.b64decode(sys.stdin.read()))).load()
for row in opened["metadata"]:
    part = opened["flattened_tensor"][row.start_idx:row.end_idx].view(row.dtype)
    print(row.name, tuple(row.shape), part.double().sum().item())
"""


def test_another_process_opens_the_handle_without_our_code() -> None:
    bucket = pack([("w", torch.arange(6.0).reshape(2, 3)), ("v", torch.ones(4).half())])
    payload = serialize(bucket)
    assert b"slime" not in pickle.dumps(b64decode(payload)).replace(b"slime.digests", b"")
    done = subprocess.run(
        [sys.executable, "-c", OPEN], input=payload, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["w (2, 3) 15.0", "v (4,) 4.0"]
