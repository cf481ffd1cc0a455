"""The kernel in Triton's interpreter, which needs a process of its own, and on a GPU as it is."""

import os
import subprocess
import sys

import pytest
import torch

CHECK = """
import sys
import torch
from slime_core.digest import BLOCK, tensor_digests
from slime_sglang.weights import digest_kernel

device = sys.argv[1]
generator = torch.Generator().manual_seed(0)
sizes = (0, 1, 3, 7, 8, BLOCK, 2 * BLOCK + 4, 2 * BLOCK + 5, 9 * BLOCK * 2 + 1)
kinds = (torch.bfloat16, torch.float32)
tensors = [torch.randn(n, generator=generator).to(kind) for n in sizes for kind in kinds]
tensors += [torch.randint(0, 255, (13,), dtype=torch.uint8), torch.randn(64, 48).T]
tensors += [torch.randn(9).bfloat16()[1:]]
found = digest_kernel.start([tensor.to(device) for tensor in tensors])()
assert found == tensor_digests(tensors), [a == b for a, b in zip(found, tensor_digests(tensors))]
plain = [tensor.to(device) for tensor in tensors if digest_kernel.are_plain([tensor])]
assert 5 < len(plain) < len(tensors)
copy = torch.zeros(sum(tensor.nbytes for tensor in plain) + 16, dtype=torch.uint8, device=device)
found = digest_kernel.start(plain, copy[:-16])()
assert found == tensor_digests([tensor.cpu() for tensor in plain])
assert torch.equal(copy[:-16], torch.cat([tensor.flatten().view(torch.uint8) for tensor in plain]))
assert not copy[-16:].any()
print("equal")
"""


def check(device: str, **env: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, device],
        env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.slow
def test_its_digests_are_those_of_a_cpu() -> None:
    check("cpu", TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_its_digests_are_those_of_a_cpu_on_a_gpu() -> None:
    check("cuda")
