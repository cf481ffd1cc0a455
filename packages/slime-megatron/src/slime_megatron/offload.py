"""Memory of a device given back and taken again: whole storages move, so every view stays valid.

A tensor's storage is emptied and later filled again in place. Parameters, views into flat buffers,
optimizer state and whatever else shares the storage keep their identity, shape and strides; only
their address changes. While a storage is away nobody may read or write it.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, UntypedStorage

_ALIGNMENT = 512
PAGE_BYTES = 256 * 1024**2
"""Of host memory that is taken at once: a power of two, as pinned memory is given out in such."""


class HostPages:
    """Host memory that is filled from the start again and again; it grows and stays.

    Pinned where devices copy from it: that makes copies several times as fast and pinning takes
    longer than copying, so pages are kept.
    """

    def __init__(self, *, pin: bool, page_bytes: int = PAGE_BYTES) -> None:
        self._pin, self._page_bytes = pin, page_bytes
        self._pages: list[Tensor] = []
        self._used = 0

    @property
    def num_bytes(self) -> int:
        """Host memory held."""
        return len(self._pages) * self._page_bytes

    def restart(self) -> None:
        """Everything may be overwritten."""
        self._used = 0

    def take(self, num_bytes: int) -> list[Tensor]:
        """Pieces of pages that together hold ``num_bytes``."""
        pieces: list[Tensor] = []
        while num_bytes:
            page, offset = divmod(self._used, self._page_bytes)
            if page == len(self._pages):
                self._pages.append(
                    torch.empty(self._page_bytes, dtype=torch.uint8, pin_memory=self._pin)
                )
            length = min(num_bytes, self._page_bytes - offset)
            pieces.append(self._pages[page][offset : offset + length])
            self._used += -(-length // _ALIGNMENT) * _ALIGNMENT
            num_bytes -= length
        return pieces


class Movable:
    """The storages of some tensors, in device memory or away; made once, moved many times.

    Not thread-safe, and all work on the tensors must have been issued on the current stream.
    """

    def __init__(self, pages: HostPages | None) -> None:
        """Without ``pages`` the content is forgotten, and zeros come back."""
        self._pages = pages
        self._away: list[tuple[UntypedStorage, int, Sequence[Tensor]]] = []

    @property
    def is_away(self) -> bool:
        """Whether storages are empty now."""
        return bool(self._away)

    @property
    def host_bytes(self) -> int:
        """Host memory held for them, also while they are in device memory."""
        return self._pages.num_bytes if self._pages is not None else 0

    @torch.no_grad()
    def give(self, storages: Iterable[UntypedStorage]) -> int:
        """Empty ``storages``, once all are copied; the bytes that are free now."""
        assert not self._away, "storages are moved back before others are moved away"
        copied: list[tuple[UntypedStorage, int, Sequence[Tensor]]] = []
        if self._pages is not None:
            self._pages.restart()
        for storage in storages:
            size = storage.nbytes()
            if not size or not storage.resizable():
                continue
            pieces: Sequence[Tensor] = ()
            if self._pages is not None:
                pieces = self._pages.take(size)
                for piece, part in zip(pieces, _parts(storage, pieces), strict=True):
                    piece.copy_(part, non_blocking=True)
            copied.append((storage, size, pieces))
        _synchronize(storage for storage, _, _ in copied)
        self._away = copied
        for storage, _, _ in self._away:
            storage.resize_(0)
        return sum(size for _, size, _ in self._away)

    @torch.no_grad()
    def take_back(self) -> int:
        """Fill them again; the bytes that are in use again.

        Where the device has no room for all they remain away, and may be taken back later.
        """
        for storage, size, _ in self._away:
            storage.resize_(size)
        away, self._away = self._away, []
        for storage, _, pieces in away:
            if not pieces:
                _bytes_of(storage).zero_()
            for piece, part in zip(pieces, _parts(storage, pieces), strict=True):
                part.copy_(piece, non_blocking=True)
        _synchronize(storage for storage, _, _ in away)
        return sum(size for _, size, _ in away)


def storages_of(
    tensors: Iterable[Tensor], device: torch.device, seen: set[int]
) -> list[UntypedStorage]:
    """The storages on ``device`` below ``tensors`` that are not in ``seen``, which they join."""
    found: list[UntypedStorage] = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        identity: int = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if tensor.device.type == device.type and identity not in seen:
            seen.add(identity)
            found.append(storage)
    return found


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _parts(storage: UntypedStorage, pieces: Sequence[Tensor]) -> Sequence[Tensor]:
    return _bytes_of(storage).split([len(piece) for piece in pieces]) if pieces else ()


def _synchronize(storages: Iterable[UntypedStorage]) -> None:
    for device in {storage.device for storage in storages}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
