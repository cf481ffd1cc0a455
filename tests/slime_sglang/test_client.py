import pytest
from slime_core.errors import EngineError
from slime_sglang.client import EngineClient


def test_a_client_that_another_thread_has_closed_finds_no_engine() -> None:
    client = EngineClient("http://127.0.0.1:9")
    client.close()  # as ``stop`` does while a restart waits for the engine
    assert not client.is_up()
    with pytest.raises(EngineError, match=r"/release_memory_occupation failed: .*closed"):
        client.release_memory()
