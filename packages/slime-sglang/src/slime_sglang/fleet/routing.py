"""Which engines get requests, told to the router until it has heard."""

import logging
import threading
import time

from slime_core.errors import EngineError

from slime_sglang.fleet.router import Members, Router

logger = logging.getLogger(__name__)

_TELL_ATTEMPTS, _TELL_AGAIN_S = 3, 0.5


class Routing:
    """Which engines get requests; the router may be our own or another's."""

    def __init__(self, members: Members, router: Router | None) -> None:
        self._members, self._router = members, router
        self._lock = threading.RLock()
        self._restarting = threading.Lock()
        """Held while the router is started again; taken before the other."""
        self._serving: list[str] = []
        self._gone: list[str] = []
        """Those that the router could not be told of yet: it still sends them requests."""

    @property
    def serving(self) -> tuple[str, ...]:
        """Engines that requests are sent to."""
        return tuple(self._serving)

    def begin(self, urls: list[str]) -> None:
        """The router knows these already."""
        self._serving = list(urls)

    def add(self, url: str) -> None:
        """Send requests there; raises ``EngineError``."""
        with self._restarting, self._lock:
            if url in self._gone:
                self._gone.remove(url)
            self._tell_of_the_gone()
            if url not in self._serving:
                self._members.add(url)
                self._serving.append(url)

    def remove(self, url: str) -> None:
        """Send nothing there any more.

        A router that cannot be told is told again shortly, and then at every later change.
        """
        with self._lock:
            if url not in self._serving:
                return
            self._serving.remove(url)
            self._gone.append(url)
        for attempt in range(_TELL_ATTEMPTS):
            time.sleep(_TELL_AGAIN_S if attempt else 0.0)  # unlocked: the router may come back
            with self._lock:
                self._tell_of_the_gone()
                if url not in self._gone:
                    return

    def _tell_of_the_gone(self) -> None:
        for url in [*self._gone]:
            try:
                self._members.remove(url)
                self._gone.remove(url)
            except EngineError as error:
                logger.warning("%s", error)

    def close(self) -> None:
        """Drop the connections."""
        self._members.close()

    def restart(self) -> None:
        """Start our own router again for the engines that serve.

        Those that are lost meanwhile are not waited for: ``remove`` is not kept waiting.
        """
        assert self._router is not None, "another's router is not watched"
        with self._restarting:
            self._router.start_again(lambda: self.serving)
            with self._lock:
                self._tell_of_the_gone()  # it may have begun with some of them
