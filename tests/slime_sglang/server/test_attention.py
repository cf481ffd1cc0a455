from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from slime_sglang.server.attention import _decode


def make_case(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, tuple[Any, ...]]:
    """Query, empty output, caches: 4 query heads over 2 key heads of 8."""
    generator = torch.Generator().manual_seed(0)
    rows = len(lengths)
    query = torch.randn(rows, 4, 8, generator=generator)
    keys, values = (torch.randn(400, 2, 8, generator=generator) for _ in range(2))
    table = torch.randint(0, 400, (rows + 3, 64), generator=generator)
    pool = torch.randperm(rows + 3, generator=generator)[:rows]
    caches = (keys, values, table, pool, torch.tensor(lengths), None)
    return query, torch.empty_like(query), caches


def one_by_one(query: torch.Tensor, caches: tuple[Any, ...]) -> torch.Tensor:
    keys, values, table, pool, lengths, _ = caches
    rows = []
    for row, length in enumerate(lengths.tolist()):
        tokens = table[pool[row], :length]
        k, v = (cache[tokens].movedim(0, 1).unsqueeze(0) for cache in (keys, values))
        q = query[row : row + 1].movedim(0, 1).unsqueeze(0)
        rows.append(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)[0, :, 0])
    return torch.stack(rows)


def unused(*_args: Any, **_options: Any) -> torch.Tensor:
    raise AssertionError("SGLang's own function was not needed")


@pytest.mark.parametrize("lengths", [[5], [7, 7, 7], [3, 40, 3, 17, 40, 40]])
def test_requests_of_one_length_attend_together_as_they_would_alone(lengths: list[int]) -> None:
    query, output, caches = make_case(lengths)
    found = _decode(unused, None, query, output, *caches, scaling=None, enable_gqa=True)
    assert found is output
    # Not bit for bit: the order of a sum depends on where in memory its rows begin.
    torch.testing.assert_close(found, one_by_one(query, caches), rtol=0, atol=1e-6)


def test_sliding_windows_and_encoders_are_left_to_sglang() -> None:
    query, output, caches = make_case([5, 6])
    encoded = (*caches[:5], torch.tensor([3, 3]))
    found = _decode(lambda *_args, **_kw: query, None, query, output, *encoded)
    assert found is query
    found = _decode(
        lambda *_args, **_kw: query, None, query, output, *caches, sliding_window_size=4
    )
    assert found is query
