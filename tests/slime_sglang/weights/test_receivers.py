import pickle
import threading
import time
import weakref
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from slime_core.errors import ConfigError, EngineError, WeightSyncError
from slime_sglang.client import EngineClient
from slime_sglang.weights.collective import CollectiveReceiver
from slime_sglang.weights.disk import DiskReceiver, DiskSpec
from slime_sglang.weights.session import EngineTarget, PublishSession, UnderWay
from slime_sglang.weights.tensor import TensorReceiver
from slime_testing.engine_http import FakeEngine, serving
from slime_testing.runs import wait_for
from torch._C._distributed_c10d import PrefixStore, TCPStore


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with serving() as server:
        yield server


TENSORS = [("w", torch.ones(3))]


def publish(receiver: TensorReceiver) -> None:
    receiver.begin(1)
    receiver.send(TENSORS)
    receiver.commit()


def test_engines_are_paused_flushed_versioned_and_resumed_in_this_order(
    engine: FakeEngine,
) -> None:
    session = PublishSession([EngineTarget(engine.url)])
    session.open(5)
    session.pause()
    session.finish()
    session.close()
    paths = [path for path, _ in engine.calls]
    assert paths[:3] == ["/pause_generation", "/flush_cache", "/update_weight_version"]
    assert sorted(paths[3:]) == ["/continue_generation", "/model_info"]  # at once
    assert engine.version == "5"


def test_no_bucket_is_handed_over_before_the_engine_has_paused(engine: FakeEngine) -> None:
    may_pause = threading.Event()
    begun: list[str] = []

    def slow_pause(path: str, _body: dict[str, Any]) -> None:
        if path == "/pause_generation":
            assert may_pause.wait(10)
        begun.append(path)

    engine.on_call = slow_pause
    engine.replies["/update_weights_from_tensor"] = [(200, {"success": True, "message": ""})]
    receiver = TensorReceiver([EngineTarget(engine.url)])
    receiver.begin(1)  # does not wait
    sender = threading.Thread(target=receiver.send, args=(TENSORS,))
    sender.start()
    sender.join(0.2)
    assert sender.is_alive()
    assert begun == []
    may_pause.set()
    sender.join(10)
    with pytest.raises(WeightSyncError, match="without confirming"):
        receiver.commit()
    receiver.close()
    assert begun == ["/pause_generation", "/flush_cache", "/update_weights_from_tensor"]


def test_an_engine_that_refuses_to_pause_is_given_no_weights(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slime_sglang.client._ATTEMPTS", 2)
    engine.replies["/pause_generation"] = [(400, {"message": "not now"})]
    receiver = TensorReceiver([EngineTarget(engine.url)])
    receiver.begin(1)
    with pytest.raises(WeightSyncError, match="not now"):
        receiver.send(TENSORS)
    receiver.close()
    assert "/update_weights_from_tensor" not in [path for path, _ in engine.calls]


def test_an_engine_that_keeps_its_old_version_is_an_error(engine: FakeEngine) -> None:
    engine.replies["/model_info"] = [(200, {"weight_version": "4"})]
    session = PublishSession([EngineTarget(engine.url)])
    session.open(5)
    with pytest.raises(WeightSyncError, match=r"reports weight version '4' .* of '5'"):
        session.finish()
    session.close()


def test_an_engine_that_does_not_answer_in_time_is_named(engine: FakeEngine) -> None:
    engine.silent_about = "/update_weights_from_disk"
    with serving() as other:
        session = PublishSession([EngineTarget(engine.url), EngineTarget(other.url)])
        with pytest.raises(WeightSyncError, match="was not answered within") as caught:
            session.each(lambda client, _: client._update("/update_weights_from_disk", {}, 0.2))
        session.close()
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.silent == (engine.url,)
    assert str(again) == str(caught.value)


def test_an_engine_without_the_plugin_is_told_apart(engine: FakeEngine) -> None:
    receiver = TensorReceiver([EngineTarget(engine.url)])
    with pytest.raises(WeightSyncError, match="without confirming their digests"):
        publish(receiver)
    receiver.close()


def test_every_rank_of_an_engine_gets_a_handle_of_its_own(engine: FakeEngine) -> None:
    receiver = TensorReceiver([EngineTarget(engine.url, num_ranks=3)])
    with pytest.raises(WeightSyncError):
        publish(receiver)
    receiver.close()
    body = next(body for path, body in engine.calls if path == "/update_weights_from_tensor")
    assert len(body["serialized_named_tensors"]) == 3
    assert body["load_format"] == "flattened_bucket"


def test_an_engines_complaint_reaches_the_trainer(engine: FakeEngine) -> None:
    engine.replies["/update_weights_from_tensor"] = [
        (400, {"success": False, "message": "tensor `w` differs"})
    ]
    receiver = TensorReceiver([EngineTarget(engine.url)])
    with pytest.raises(WeightSyncError, match="tensor `w` differs"):
        publish(receiver)
    receiver.close()


def test_a_flush_that_is_refused_while_requests_end_is_asked_again(engine: FakeEngine) -> None:
    engine.replies["/flush_cache"] = [(400, {}), (400, {}), (200, {})]
    client = EngineClient(engine.url)
    client.flush_cache()
    client.close()
    assert len(engine.calls) == 3


def test_loading_weights_is_not_tried_twice(engine: FakeEngine) -> None:
    engine.replies["/update_weights_from_tensor"] = [(500, {"error": "out of memory"})]
    client = EngineClient(engine.url)
    with pytest.raises(EngineError, match="out of memory"):
        client.update_from_tensor(["x"])
    client.close()
    assert len(engine.calls) == 1


def test_an_engine_that_is_not_there_is_an_engine_error() -> None:
    client = EngineClient("http://127.0.0.1:9")
    assert not client.is_up()
    with pytest.raises(EngineError, match="ConnectError"):
        client.generate({}, timeout_s=2)
    client.close()


def test_an_engine_that_refuses_to_join_a_group_is_an_error_and_not_a_hang(
    engine: FakeEngine,
) -> None:
    engine.replies["/init_weights_update_group"] = [(400, {"success": False, "message": "no"})]
    receiver = CollectiveReceiver([EngineTarget(engine.url)], backend="gloo", timeout_s=3)
    with pytest.raises(WeightSyncError, match=r"did not join|failed|answered 400"):
        receiver.begin(1)
    receiver.close()


def test_a_buckets_memory_is_given_back_as_soon_as_engines_have_loaded_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Lent:
        flat, receipt = SimpleNamespace(is_cuda=True), "all of it"

    settled: dict[str, Any] = dict.fromkeys(
        ("settle_pause", "collect", "check_receipts"), lambda *_: None
    )
    receiver = TensorReceiver.__new__(TensorReceiver)
    receiver._session = SimpleNamespace(**settled)  # pyright: ignore[reportAttributeAccessIssue]
    bucket = Lent()
    held, collected = weakref.ref(bucket), list[bool]()
    receiver._under_way = UnderWay(bucket, ())  # pyright: ignore[reportArgumentType]
    del bucket
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: collected.append(held() is None))
    receiver._settle()
    assert collected == [True]


def test_an_engine_lost_while_the_group_forms_is_noticed_and_nobody_waits_for_it(
    engine: FakeEngine,
) -> None:
    ended: list[str] = []

    def join(body: dict[str, Any]) -> None:
        try:
            timeout = timedelta(seconds=60)
            port, world = body["master_port"], body["world_size"]
            store = TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
            keys = PrefixStore("cpu/", PrefixStore(body["group_name"], store))
            dist.ProcessGroupGloo(keys, body["rank_offset"], world, timeout=timeout)
        except RuntimeError as error:
            ended.append(str(error))

    engine.on_call = lambda path, body: join(body) if path.startswith("/init") else None
    begin = time.monotonic()
    with serving() as other:
        other.replies["/init_weights_update_group"] = [(400, {"message": "no"})]
        targets = [EngineTarget(engine.url), EngineTarget(other.url)]
        receiver = CollectiveReceiver(targets, backend="gloo", timeout_s=60)
        with pytest.raises(WeightSyncError, match=r"answered 400"):
            receiver.begin(1)
        receiver.close()
    assert wait_for(lambda: len(ended) == 1, 10)
    assert time.monotonic() - begin < 20
    assert "/destroy_weights_update_group" in [path for path, _ in engine.calls]


def test_engines_that_do_not_join_a_group_in_time_are_named(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slime_sglang.weights.collective._LEAVE_S", 2.0)
    engine.silent_about = "/init_weights_update_group"
    with serving() as other:
        targets = [EngineTarget(engine.url), EngineTarget(other.url)]
        receiver = CollectiveReceiver(targets, backend="gloo", timeout_s=1)
        with pytest.raises(WeightSyncError, match="not every engine took part") as caught:
            receiver.begin(1)
        receiver.close()
    assert caught.value.silent == (engine.url,)


def test_every_group_that_is_formed_has_a_name_of_its_own(engine: FakeEngine) -> None:
    refusal = (400, {"success": False, "message": "no"})
    engine.replies["/init_weights_update_group"] = [refusal, refusal]
    receiver = CollectiveReceiver([EngineTarget(engine.url)], backend="gloo", timeout_s=2)
    for version in (1, 2):
        with pytest.raises(WeightSyncError):
            receiver.begin(version)
    receiver.close()
    asked = [body for path, body in engine.calls if path == "/init_weights_update_group"]
    assert len({body["group_name"] for body in asked}) == len(asked) == 2


def test_nccl_needs_its_memory_setting_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCCL_CUMEM_ENABLE", raising=False)
    with pytest.raises(ConfigError, match="NCCL_CUMEM_ENABLE must be 0"):
        CollectiveReceiver([EngineTarget("http://x")], backend="nccl")


def test_a_version_on_disk_is_there_whole_or_not_at_all(engine: FakeEngine, tmp_path: Any) -> None:
    receiver = DiskReceiver([EngineTarget(engine.url)], DiskSpec(directory=tmp_path))
    (tmp_path / ".weight_v000007.partial").mkdir()  # of a run that was killed
    receiver.begin(2)
    receiver.send(TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == [".weight_v000002.partial"]
    with pytest.raises(WeightSyncError, match="without confirming"):
        receiver.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["weight_v000002"]
    receiver.begin(3)
    with pytest.raises(WeightSyncError, match="no weights were sent"):
        receiver.commit()
    receiver.close()
