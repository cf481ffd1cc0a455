from types import SimpleNamespace

from slime_train.producers.engines import EngineProducer


def test_a_users_rollout_function_forgives_losses_as_any_finished_rollout_does():
    forgiven = []
    producer = SimpleNamespace(
        _rollout=lambda iteration, stream: ([iteration], {}),
        _stream=None,
        fleet=SimpleNamespace(progress=lambda: forgiven.append(True)),
    )
    assert EngineProducer.produce(producer, 3) == ([3], {})  # pyright: ignore[reportArgumentType]
    assert forgiven == [True]
