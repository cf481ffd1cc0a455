import pytest
import torch
from slime_megatron.mcore.state import TrainState
from slime_megatron.mcore.weights.snapshots import Snapshots
from slime_megatron.mcore.weights.tensors import named_tensors, unwrap
from torch import nn


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.output = nn.Linear(3, 4, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("expert_bias", torch.zeros(2))
        self.register_buffer("inv_freq", torch.ones(2), persistent=False)


def make_state(*chunks: nn.Module) -> TrainState:
    return TrainState(
        args=None,
        chunks=list(chunks),
        optimizer=None,
        scheduler=None,
        family=None,  # type: ignore[arg-type]
        hf_config={},
        device=torch.device("cpu"),
    )


def test_wrappers_come_off_and_tied_weights_count_once():
    model = Tied()
    assert unwrap(Wrapper(Wrapper(model))) is model
    assert [name for name, _ in named_tensors(model)] == ["embedding.weight", "expert_bias"]


def test_each_tag_comes_back_bit_for_bit_in_place():
    first, second = nn.Linear(3, 2), nn.Linear(2, 2).bfloat16()
    snapshots = Snapshots(make_state(Wrapper(first), second))
    storage = first.weight.data_ptr()
    actor = [p.detach().clone() for m in (first, second) for p in m.parameters()]
    snapshots.store("actor")
    with torch.no_grad():
        for p in [*first.parameters(), *second.parameters()]:
            p.mul_(-3.7)
    ref = [p.detach().clone() for m in (first, second) for p in m.parameters()]
    snapshots.store("ref")
    for tag, expected in [("actor", actor), ("ref", ref), ("actor", actor)]:
        snapshots.load(tag)
        now = [p for m in (first, second) for p in m.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(now, expected, strict=True))
    assert first.weight.data_ptr() == storage
    assert snapshots.tags == {"actor", "ref"}


def test_using_a_snapshot_restores_what_was_there_even_after_an_error():
    model = nn.Linear(2, 2)
    snapshots = Snapshots(make_state(model))
    snapshots.store("ref")
    ref = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    trained = model.weight.detach().clone()
    with pytest.raises(ZeroDivisionError), snapshots.using("ref"):
        1 / 0  # noqa: B018
    assert torch.equal(model.weight, trained)
    with snapshots.using("ref"):
        assert torch.equal(model.weight, ref)
    assert torch.equal(model.weight, trained)


def test_an_unknown_tag_is_named_with_those_that_exist():
    snapshots = Snapshots(make_state(nn.Linear(1, 1)))
    snapshots.store("actor")
    with pytest.raises(KeyError, match="no snapshot 'ref'; stored are: actor"):
        snapshots.load("ref")
