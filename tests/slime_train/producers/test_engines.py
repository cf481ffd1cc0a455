from types import SimpleNamespace

from slime_train.producers.engines import EngineProducer


def test_a_users_rollout_function_forgives_losses_as_any_finished_rollout_does():
    forgiven = []
    producer = EngineProducer.__new__(EngineProducer)  # without engines
    producer._rollout = lambda iteration, stream: ([iteration], {})
    producer._stream = None
    producer._fleets = [
        SimpleNamespace(progress=lambda name=name: forgiven.append(name))
        for name in ("policy", "teacher")
    ]
    assert producer.produce(3) == ([3], {})
    assert forgiven == ["policy", "teacher"]
