import threading
import time

import pytest
from slime_core.errors import EngineError
from slime_sglang.fleet.health import HealthSpec, Watch
from slime_testing.runs import wait_for

SPEC = HealthSpec(interval_s=0.2, timeout_s=0.1, max_restarts=2)


class Part:
    """An engine or a router that does what the test says."""

    def __init__(self, name="engine_0", *, serves_at_once=False, broken_starts=0):
        self.kind = name.split("_")[0]
        self.name = name
        self.serves_at_once = serves_at_once
        self.broken_starts = broken_starts
        self.pid = 100
        self.exit_code = None
        self.alive = True
        self.num_starts = 0
        self.last_words = "Its log is engine.log and ends with:\nout of memory"

    def answers(self, timeout_s):
        return self.alive

    def start_again(self):
        self.num_starts += 1
        self.pid += 1
        if self.broken_starts:
            self.broken_starts -= 1
            raise EngineError("no memory")
        self.exit_code, self.alive = None, True


class Events(list):
    def __call__(self, event, **fields):
        self.append({"event": event, **fields})

    def named(self, event):
        return [each for each in self if each["event"] == event]


@pytest.fixture
def watched():
    watches = []

    def start(*parts, spec=SPEC):
        events = Events()
        watch = Watch(parts, spec, events)
        watches.append(watch)
        watch.start()
        return watch, events

    yield start
    for watch in watches:
        watch.end()
        watch.join()


def test_a_part_that_ends_is_noticed_at_once_and_started_again(watched):
    part = Part()
    watch, events = watched(part, spec=HealthSpec(interval_s=600, timeout_s=600))
    part.exit_code = 137
    assert wait_for(lambda: part.num_starts == 1, 60)
    (lost,) = events.named("lost")
    assert (lost["kind"], lost["name"], lost["how"], lost["pid_lost"]) == (
        *("engine", "engine_0", "exit", 100),
    )
    assert lost["seconds"] < 60
    assert wait_for(lambda: events.named("process")[-1]["pid"] == 101, 60)
    assert watch.num_losses == 1


def test_a_part_that_does_not_answer_is_noticed_after_an_interval(watched):
    part = Part()
    _, events = watched(part)
    assert not wait_for(lambda: part.num_starts > 0, 0.6)
    part.alive = False
    assert wait_for(lambda: part.num_starts == 1, 60)
    assert events.named("lost")[0]["how"] == "hang"


def test_an_end_is_noticed_at_once_while_the_part_is_not_asked_yet(watched):
    part = Part()
    part.alive = False
    watched(part, spec=HealthSpec(interval_s=0.1, timeout_s=0.1, first_wait_s=600))
    assert not wait_for(lambda: part.num_starts > 0, 0.5)
    part.exit_code = 137
    assert wait_for(lambda: part.num_starts == 1, 60)


def test_a_part_that_answers_but_does_not_work_is_replaced_once(watched):
    part = Part()
    watch, events = watched(part)
    watch.accuse(part, "did not load weights")
    assert wait_for(lambda: part.num_starts == 1, 60)
    assert events.named("lost")[0]["how"] == "hang"
    watch.recovered(part)
    assert not wait_for(lambda: part.num_starts > 1, 0.5)


def test_an_engine_has_recovered_when_it_serves_and_a_router_when_it_is_up(watched):
    engine, router = Part(), Part("router", serves_at_once=True)
    watch, events = watched(engine, router)
    engine.exit_code = router.exit_code = 1
    assert wait_for(lambda: engine.num_starts == router.num_starts == 1, 60)
    assert wait_for(lambda: [e["name"] for e in events.named("recovered")] == ["router"], 60)
    assert watch.may_recover(time.monotonic() - 1000)
    watch.recovered(engine)
    assert [e["name"] for e in events.named("recovered")] == ["router", "engine_0"]
    assert events.named("recovered")[1]["seconds"] >= 0


def test_repeated_losses_end_in_one_diagnosis(watched):
    part = Part(broken_starts=10)
    watch, events = watched(part)
    part.exit_code = 137
    assert wait_for(lambda: watch.problem is not None, 60)
    assert part.num_starts == SPEC.max_restarts
    assert "engine_0 was lost 3 times" in watch.problem
    assert "--max-engine-restarts 2" in watch.problem
    assert "1. ended with exit code 137" in watch.problem
    assert watch.problem.endswith("out of memory")
    assert events.named("gave_up") == [{"event": "gave_up", "reason": watch.problem}]
    time.sleep(0.5)
    assert part.num_starts == SPEC.max_restarts


def test_progress_forgives(watched):
    part = Part()
    watch, _ = watched(part)
    for number in range(1, 6):
        part.exit_code = 1
        assert wait_for(lambda n=number: part.num_starts == n, 60)
        watch.recovered(part)
        watch.progress()
    assert watch.problem is None


def test_failures_are_excused_while_something_is_down_or_a_hang_may_be_unnoticed(watched):
    spec = HealthSpec(interval_s=8, timeout_s=8)
    watch, _ = watched(Part(), spec=spec)
    now = time.monotonic()
    assert watch.may_recover(now)
    assert not watch.may_recover(now - spec.notice_s - 1.0)


def test_nothing_is_started_after_the_end(watched):
    class Ending(Part):
        """Ends with the run, just when it is looked at."""

        @property
        def exit_code(self):
            watch.end()
            return 0

        @exit_code.setter
        def exit_code(self, value):
            pass

    part = Ending()
    watch = Watch([part], SPEC, events := Events())
    watch.start()
    watch.join()
    assert (part.num_starts, events.named("lost")) == (0, [])
    assert not [t for t in threading.enumerate() if t.name == f"watch {part.name}"]
