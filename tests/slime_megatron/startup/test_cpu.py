"""CUDA means the CPU, in Megatron's eyes only where it must."""

from typing import Any

import pytest
from slime_testing.ranks import run_on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def look_around(rank: int, world: int) -> dict[str, Any]:
    import sys
    import threading
    import types

    import torch
    from slime_megatron.mcore.startup import cpu

    depth = torch.overrides._len_torch_function_stack()
    again = cpu.install()
    inside = types.ModuleType("megatron.anything")
    code = "def ask(x): return x.is_cuda, x.type()"
    exec(code, inside.__dict__)
    elsewhere: list[Any] = []

    def other_thread() -> None:
        cpu.install()
        elsewhere.append(torch.zeros(1, device="cuda").device.type)

    def refuse(*args: Any) -> Any:
        raise AssertionError("something is compiled")

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    for_gpus = ("flashinfer", "flash_attn", "torch._inductor.compile_fx")
    x = torch.zeros(2, device="cuda:0", pin_memory=True)
    return {
        "devices": {x.device.type, x.cuda().device.type, x.to("cuda").device.type, *elsewhere},
        "ours": (x.is_cuda, x.type()),
        "megatron": inside.ask(x),
        "entered once": again and torch.overrides._len_torch_function_stack() == depth,
        "for gpus": [name for name in for_gpus if name in sys.modules],
        "compiled": torch.compile(lambda y: y + 1, backend=refuse)(x).tolist(),
        "no gpu": torch.cuda.is_available(),
    }


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return run_on_ranks(1, look_around, megatron=True)[0]


def test_every_way_to_ask_for_cuda_gives_the_cpu_in_every_thread(seen: dict[str, Any]):
    assert seen["devices"] == {"cpu"}


def test_only_megatron_is_told_that_a_tensor_is_on_a_gpu(seen: dict[str, Any]):
    assert seen["ours"] == (False, "torch.FloatTensor")
    assert seen["megatron"] == (True, "torch.cuda.FloatTensor")
    assert seen["no gpu"] is False


def test_installing_again_changes_nothing(seen: dict[str, Any]):
    assert seen["entered once"]


def test_neither_kernels_for_gpus_nor_a_compiler_are_imported(seen: dict[str, Any]):
    assert seen["for gpus"] == []


def test_what_is_compiled_runs_as_it_is(seen: dict[str, Any]):
    assert seen["compiled"] == [1.0, 1.0]
