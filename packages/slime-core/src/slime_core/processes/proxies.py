"""The environment's HTTP proxies, past which the processes of a run speak to each other."""

from collections.abc import Mapping, MutableMapping

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_EXCEPTIONS = ("no_proxy", "NO_PROXY")
"""Programs differ in which of the two they read."""


def without_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` for a process that speaks to nobody but other processes of the run."""
    return {name: value for name, value in environment.items() if name.lower() not in _PROXIES}


def reach_directly(host: str, environment: MutableMapping[str, str]) -> None:
    """Have clients that are made from now on speak to ``host`` past a proxy, if there is one."""
    if without_proxies(environment).keys() == environment.keys():
        return
    given = [name for each in _EXCEPTIONS for name in environment.get(each, "").split(",")]
    hosts = dict.fromkeys([*(name.strip() for name in given if name.strip()), host])
    environment.update(dict.fromkeys(_EXCEPTIONS, ",".join(hosts)))
