"""Start or join Ray, and run one object per process on it.

A ``Remote`` is the only handle the rest of the app sees: it calls methods, waits with a deadline
and an owner, and turns what Ray raises back into the error that was raised over there.
"""

import functools
import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray.exceptions
from ray._private import parameter, services, utils
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError
from slime_core.errors import SlimeError
from slime_core.plugins.mistakes import Held
from slime_core.processes.heartbeat import WorkerError
from slime_core.processes.patience import Starting, patient
from slime_core.processes.replaced import answer, replaced
from slime_core.processes.sentinel import end_own_processes, keeping_sigterm

from slime_train.runtime.env import ray_address

logger = logging.getLogger(__name__)

POLL_S = 0.5
_FETCH_S = 600.0
_IN_VAIN = "Timed out waiting"  # as gloo says of another rank, which may be any of them
_OWN = "local"  # without it Ray joins whatever was started on this machine
_STARTS, _START_S = 2, 300.0
"""How often a Ray of our own is tried to be started, and how long it may take to find itself."""
_PARTS = ("start_gcs_server", "start_raylet")
_FEW = functools.partial(parameter.RayParams, include_log_monitor="", no_monitor=True)
"""Of a Ray of our own nobody reads logs or dashboard, and it does not grow: no process for that."""


@contextmanager
def cluster(num_workers: int) -> Generator[None]:
    """Join the cluster of ``RAY_ADDRESS``, or start one on this machine that ends with the block.

    A cluster of our own offers one logical CPU per worker: the operating system shares out the
    real ones, and Ray must not queue a worker for lack of them.
    """
    address = ray_address() or _OWN
    options: dict[str, Any] = {"address": address, "log_to_driver": False}
    options["logging_level"] = logging.ERROR
    if address == _OWN:
        options |= {"num_cpus": num_workers + 1, "num_gpus": 0, "include_dashboard": False}
        options["_system_config"] = {"prestart_worker_first_driver": False}  # without our env
    _start_ray(address, options)
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray(address: str, options: Mapping[str, Any]) -> None:
    """Ray gives itself half a minute, too short on a busy machine."""
    num_tries = _STARTS if address == _OWN else 1
    for number in range(1, num_tries + 1):
        starting = Starting()
        seen = {name: starting.seen(getattr(services, name)) for name in _PARTS}
        try:
            with (
                keeping_sigterm(),
                replaced(utils, set_sigterm_handler=answer(None)),
                patient(services, "get_node", RuntimeError, _START_S, starting.check),
                replaced(parameter, RayParams=_FEW),
                replaced(services, start_api_server=answer(("", None)), **seen),
            ):
                ray.init(**options)
        except Exception as error:  # Ray raises whatever its parts raise
            ray.shutdown()
            end_own_processes()  # what came up of it would be in the way of the next
            if number < num_tries:
                logger.warning("Ray did not start (%d of %d): %s", number, num_tries, error)
                continue
            where = "starting Ray here" if address == _OWN else f"joining RAY_ADDRESS={address}"
            raise WorkerError(
                f"{where} failed: {error}. On a machine that is very busy, try again; otherwise "
                "look into /tmp/ray/session_latest/logs"
            ) from error
        else:
            return


class Remote:
    """One object in a process of its own."""

    def __init__(
        self,
        name: str,
        factory: Callable[[], Any],
        *,
        env: Mapping[str, str] | None = None,
        peekable: bool = False,
        place: Mapping[str, Any] | None = None,
    ) -> None:
        """Build ``factory()`` in a new process with ``env`` added to its environment.

        ``peekable`` objects answer ``beside`` while a call is under way; their calls then run in a
        thread, which Megatron's process must not. ``place``: options that say on which machine.
        """
        self.name = name
        options: dict[str, Any] = {
            "num_cpus": 1,
            "runtime_env": {"env_vars": dict(env or {})},
            "max_restarts": 0,
            **(place or {}),
        }
        if peekable:
            side: Any = ray.remote(concurrency_groups={"side": 1})  # pyright: ignore[reportCallIssue]
            remote_class: Any = side(_PeekableHost)
        else:
            remote_class = ray.remote(_Host)
        self._actor: Any = remote_class.options(**options).remote(factory)

    def call(self, method: str, *args: Any, **kwargs: Any) -> "Pending":
        """Start ``method`` over there."""
        return Pending(self, method, self._actor.call.remote(method, args, kwargs))

    def beside(self, method: str, *args: Any) -> "Pending":
        """Start ``method`` beside whatever else runs there; it must be quick and thread-safe."""
        return Pending(self, method, self._actor.beside.remote(method, args))

    def end(self) -> None:
        """Kill the process."""
        ray.kill(self._actor)


class Pending:
    """A call under way."""

    def __init__(self, remote: Remote, method: str, ref: Any) -> None:
        self._remote, self._method, self.ref = remote, method, ref
        self._began = time.monotonic()

    def is_done(self) -> bool:
        """Whether ``result`` would return, or raise, at once."""
        return bool(ray.wait([self.ref], timeout=0)[0])

    def result(self, timeout_s: float) -> Any:
        """Wait for the answer.

        Raises:
            WeightSyncError, EngineError, ...: whatever was raised over there.
            WorkerError: the process died, or ``timeout_s`` passed.
        """
        name = self._remote.name
        try:
            return ray.get(self.ref, timeout=timeout_s)
        except GetTimeoutError as error:
            seconds = time.monotonic() - self._began
            message = f"{name} did not finish `{self._method}` within {seconds:.0f} s"
            raise WorkerError(message, name, "hang") from error
        except RayTaskError as error:
            if isinstance(error.cause, SlimeError):
                raise error.cause from error
            message = f"{name} failed during `{self._method}`: {error}"
            how = "hang" if _IN_VAIN in message else "exit"  # of a device, a connection
            raise WorkerError(message, name, how) from error
        except (RayActorError, ray.exceptions.OutOfMemoryError) as error:
            why = str(error) if isinstance(error, RayActorError) else str(error).split("\n")[0]
            raise WorkerError(f"{name} died during `{self._method}`: {why}", name) from error


def gather(
    calls: Sequence[Pending], timeout_s: float, while_waiting: Callable[[], None]
) -> list[Any]:
    """All answers, in order; the first failure is raised at once, without waiting for the rest.

    ``while_waiting`` is called about twice a second.
    """
    by_ref = {call.ref: call for call in calls}
    waiting = list(by_ref)
    deadline = time.monotonic() + timeout_s
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=POLL_S)
        for ref in done:
            by_ref[ref].result(0)
        while_waiting()
        if waiting and time.monotonic() > deadline:
            by_ref[waiting[0]].result(0)
    return [call.result(0) for call in calls]


def share(value: Any) -> Any:
    """Put ``value`` into the object store; workers that get the handle read it without a copy."""
    return ray.put(value)


def fetch(handles: Sequence[Any], timeout_s: float) -> list[Any]:
    """What ``share`` put there, in whichever process.

    Raises:
        WorkerError: the process that shared one of them is gone, or ``timeout_s`` passed.
    """
    try:
        return ray.get(list(handles), timeout=timeout_s)
    except (GetTimeoutError, ObjectLostError) as error:
        raise WorkerError(f"data of another process did not arrive: {error}") from error


class _Host:
    """The process side of ``Remote``."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self._held = Held(factory)  # what it fails with reaches whoever calls

    def call(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        resolved = [fetch([x], _FETCH_S)[0] if isinstance(x, ray.ObjectRef) else x for x in args]
        return self._held.call(method, resolved, kwargs)


class _PeekableHost(_Host):
    @ray.method(concurrency_group="side")
    def beside(self, method: str, args: Sequence[Any]) -> Any:
        return self._held.call(method, args, {})
