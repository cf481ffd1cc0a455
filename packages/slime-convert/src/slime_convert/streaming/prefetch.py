"""Reading ahead in a thread, while what was read before is written."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager

AHEAD_BYTES = 128 << 20


@contextmanager
def prefetch[T](
    items: Iterable[T], *, size: Callable[[T], int], max_bytes: int = AHEAD_BYTES
) -> Generator[Iterator[T]]:
    """Yield an iterator of ``items`` that keeps at most ``max_bytes`` of them ahead, or one.

    What producing them raises is raised at the place of the failed item. Leaving the block stops
    the thread after the item it is at.
    """
    queue = _Queue(size, max_bytes)
    thread = threading.Thread(target=queue.fill, args=(items,), daemon=True)
    thread.start()
    try:
        yield queue.drain()
    finally:
        queue.stop()
        thread.join()  # waits: for the piece being read; the queue takes no more


class _Queue[T]:
    def __init__(self, size: Callable[[T], int], max_bytes: int) -> None:
        self._size, self._max_bytes = size, max_bytes
        self._items: deque[T] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._error: BaseException | None = None

    def fill(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as error:  # raised where the items are used
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: T) -> bool:
        size = self._size(item)
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or not self._items or self._bytes + size <= self._max_bytes
            )
            self._items.append(item)
            self._bytes += size
            self._changed.notify_all()
            return not self._stopped

    def drain(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended)
                if not self._items:
                    break
                item = self._items.popleft()
                self._bytes -= self._size(item)
                self._changed.notify_all()
            yield item
            del item
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
