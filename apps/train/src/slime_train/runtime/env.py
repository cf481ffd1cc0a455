"""The environment variables a run reads and sets, in one place.

Read:
    RAY_ADDRESS     join this Ray cluster instead of starting one on this machine
    TENSORBOARD_DIR where TensorBoard files go when no --tb-* flag says it

Set, unless they are set already, before Ray is imported:
    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0         under `uv run` Ray would copy the working directory and
                                            start every worker by another `uv run`, for a minute;
                                            workers on this machine use the driver's interpreter
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0    ranks get their devices from the run, not from Ray
    RAY_USAGE_STATS_ENABLED=0               nothing is reported to anybody
    RAY_raylet_start_wait_time_s=1          a Ray of our own that does not start is noticed soon
"""

import os

_DEFAULTS = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def prepare() -> None:
    """Set what Ray reads while it is being imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if ray_address() is None:
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "1")


def ray_address() -> str | None:
    """The cluster to join, if the user has one; ``local`` asks Ray for a new one."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address
