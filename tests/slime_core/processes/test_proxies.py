"""What a run's own processes are told of the proxies of their environment."""

from urllib.request import getproxies_environment, proxy_bypass_environment

import pytest
from slime_core.processes.proxies import reach_directly, without_proxies


def test_proxies_are_left_out_and_nothing_else():
    proxies = {"http_proxy": "a", "HTTPS_PROXY": "b", "All_Proxy": "c"}
    others = {"NO_PROXY": "d", "PATH": "/bin", "my_http_proxy": "e"}
    assert without_proxies({**proxies, **others}) == others


@pytest.mark.parametrize(
    ("given", "exceptions"),
    [
        ({}, "10.0.0.7"),
        ({"no_proxy": "localhost, .corp"}, "localhost,.corp,10.0.0.7"),
        ({"NO_PROXY": "localhost", "no_proxy": ""}, "localhost,10.0.0.7"),
        ({"NO_PROXY": "a", "no_proxy": "10.0.0.7,b"}, "10.0.0.7,b,a"),
    ],
)
def test_a_host_is_added_to_those_that_are_reached_directly(given, exceptions, monkeypatch):
    environment = {"http_proxy": "http://proxy:3128", **given}
    reach_directly("10.0.0.7", environment)
    assert environment["no_proxy"] == environment["NO_PROXY"] == exceptions
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_bypass_environment("10.0.0.7:8000", getproxies_environment())
    assert not proxy_bypass_environment("example.com", getproxies_environment())


def test_an_environment_without_proxies_stays_as_it_is():
    environment = {"NO_PROXY": "localhost", "PATH": "/bin"}
    reach_directly("10.0.0.7", environment)
    assert environment == {"NO_PROXY": "localhost", "PATH": "/bin"}
