import httpx
import pytest
from slime_core.errors import EngineError
from slime_sglang.client import EngineClient


def test_a_client_that_another_thread_has_closed_finds_no_engine() -> None:
    client = EngineClient("http://127.0.0.1:9")
    client.close()  # as ``stop`` does while a restart waits for the engine
    assert not client.is_up()
    with pytest.raises(EngineError, match=r"/release_memory_occupation failed: .*closed"):
        client.release_memory()


def test_damaged_json_is_the_engines_failure_and_shown() -> None:
    def truncated(request: httpx.Request) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return httpx.Response(200, text='{"tp_size": 1, "internal', headers=headers)

    client = EngineClient("http://engine:1")
    client.close()
    client._http = httpx.Client(
        base_url="http://engine:1", transport=httpx.MockTransport(truncated)
    )
    with client, pytest.raises(EngineError, match=r"/server_info answered with damaged JSON .*tp_"):
        client.server_info()
