"""What this machine has: NVIDIA devices that a process may use, memory, an address."""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from slime_core.errors import ConfigError

_KIB = 1024


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """How many NVIDIA devices there are, as far as CUDA_VISIBLE_DEVICES shows them."""
    present = len([path for path in devices.glob("nvidia*") if path.name[6:].isdigit()])
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return present
    return min(present, len(_shown(environment)))


def visible_device(index: int, environment: Mapping[str, str]) -> str:
    """What CUDA calls the GPU ``index``, counted within CUDA_VISIBLE_DEVICES of the whole run.

    Raises:
        ConfigError: so many GPUs are not shown.
    """
    names = _shown(environment)
    if not names:
        return str(index)
    if index >= len(names):
        raise ConfigError(
            f"GPU {index} (counted from 0) is needed, and CUDA_VISIBLE_DEVICES={','.join(names)} "
            f"shows {len(names)}: show more, or give smaller --actor-num-gpus-per-node or "
            "--rollout-num-gpus"
        )
    return names[index]


def granted_devices(granted: Sequence[str], environment: Mapping[str, str]) -> Mapping[str, str]:
    """CUDA_VISIBLE_DEVICES of a run that was granted these GPUs; none where it uses none.

    A choice by the command that leaves one of them out goes before.
    """
    chosen = _shown(environment)
    if not granted or (chosen and not set(granted) <= set(chosen)):
        granted = chosen
    return {"CUDA_VISIBLE_DEVICES": ",".join(granted)} if granted else {}


def _shown(environment: Mapping[str, str]) -> list[str]:
    names = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [name.strip() for name in names if name.strip() and name.strip() != "-1"]


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes of host memory that can still be used; None where nothing says so.

    What the kernel has left, or what the control group of this process may still take.
    """
    found = [_of_kernel(root / "proc/meminfo"), _of_group(root / "sys/fs/cgroup")]
    known = [size for size in found if size is not None]
    return min(known, default=None)


def _of_kernel(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(sizes[0]) * _KIB if sizes else None


def _of_group(directory: Path) -> int | None:
    """Pages of files count as used there, but are given up when memory is wanted."""
    try:
        limit = (directory / "memory.max").read_text().strip()
        used = int((directory / "memory.current").read_text())
        rows = (directory / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    pages = [int(row.split()[1]) for row in rows if row.startswith("inactive_file ")]
    return max(0, int(limit) - used + sum(pages))


def network_address() -> str:
    """Where other machines reach this one: its address on the way out, else loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 9))  # chooses a route: nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def meeting_place() -> str:
    """A TCP address of this machine where a process group can form, on a port that is free now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        return f"tcp://{network_address()}:{probe.getsockname()[1]}"
