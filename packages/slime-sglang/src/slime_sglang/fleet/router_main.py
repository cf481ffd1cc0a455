"""sglang-router's launcher without SGLang: ``python -m slime_sglang.fleet.router_main ARGS``.

The launcher imports a load balancer for debugging which imports all of SGLang, 13 seconds of
processor time, for a router that is a compiled library and starts in a tenth of a second. A
stand-in takes that module's place; asking for it (``--mini-lb``) fails by name.
"""

import sys
from types import ModuleType
from typing import Any


class _NoMiniLoadBalancer:
    def __init__(self, *_args: Any) -> None:
        raise SystemExit("--router-mini-lb is for debugging and not started by slime")


def main() -> None:
    """Parse the router's own command line and serve until told to stop."""
    stand_in = ModuleType("sglang_router.mini_lb")
    stand_in.MiniLoadBalancer = _NoMiniLoadBalancer  # type: ignore[attr-defined]
    sys.modules[stand_in.__name__] = stand_in
    from sglang_router import launch_router

    launch_router.main()


if __name__ == "__main__":
    main()
