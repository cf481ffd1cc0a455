import pytest
from slime_core.errors import EngineError, WeightSyncError
from slime_sglang.fleet.readmission import Readmission
from slime_sglang.weights.session import EngineTarget, FleetStatus


class Fleet:
    """Engines by name; those in ``serving`` get requests."""

    def __init__(self, *names):
        self.serving, self.waiting = list(names), []
        self.losses = 0
        self.paused = []
        self.log = []
        self.gave_up = None

    def status(self):
        if self.gave_up is not None:
            raise EngineError(self.gave_up)
        return FleetStatus(
            self.losses,
            tuple(EngineTarget(name) for name in self.serving),
            tuple(EngineTarget(name) for name in self.waiting),
        )

    def publishing(self, urls):
        self.paused = list(urls)

    def admit(self, urls):
        self.log.append(("admit", *urls))
        for url in urls:
            if url in self.waiting:
                self.waiting.remove(url)
                self.serving.append(url)

    def unanswered(self, urls, why):
        self.log.append(("unanswered", *urls, why))
        for url in urls:
            self.lose(url)

    def lose(self, name, back=None):
        for names in (self.serving, self.waiting):
            if name in names:
                names.remove(name)
        self.losses += 1
        if back is not None:
            self.waiting.append(back)


class Trainer:
    def __init__(self, fleet):
        self.fleet = fleet
        self.connected = ()
        self.log = []
        self.accidents = []

    def connect(self, engines):
        self.connected = tuple(engine.url for engine in engines)

    def train(self, iteration, batch):
        return {"loss": 1.0}

    def publish(self, version):
        assert self.fleet.paused == list(self.connected)
        self.log.append((version, *self.connected))
        if self.accidents:
            silent = self.accidents.pop(0)()
            raise WeightSyncError("connection reset", silent or ())
        return {"time": 1.0}

    def save(self, directory, iteration): ...


def made(*names, notice_s=0.0):
    fleet = Fleet(*names)
    trainer = Trainer(fleet)
    slept = []
    tended = Readmission(
        trainer,
        fleet,
        published=lambda version: fleet.log.append(("published", version)),
        notice_s=notice_s,
        start_s=0.0,
        sleep=slept.append,
    )
    return tended, trainer, fleet


def test_an_engine_lost_in_a_publish_is_left_out_of_the_next_attempt():
    tended, trainer, fleet = made("a", "b")
    trainer.accidents = [lambda: fleet.lose("b")]
    assert tended.publish(0) == {"time": 1.0}
    assert trainer.log == [(0, "a", "b"), (0, "a")]
    assert fleet.log == [("admit", "a")]


def test_a_publish_that_fails_although_all_engines_live_is_an_error():
    tended, trainer, _ = made("a")
    trainer.accidents = [lambda: None]
    with pytest.raises(WeightSyncError, match="connection reset"):
        tended.publish(0)


def test_an_engine_that_did_not_answer_a_publish_is_replaced_and_the_publish_repeated():
    tended, trainer, fleet = made("a", "b")
    trainer.accidents = [lambda: ["b"]]
    assert tended.publish(0) == {"time": 1.0}
    assert trainer.log == [(0, "a", "b"), (0, "a")]
    ((what, url, why), admitted) = fleet.log
    assert (what, url, admitted) == ("unanswered", "b", ("admit", "a"))
    assert why == "did not take part in a publish (connection reset)"


def test_an_engine_that_came_back_gets_the_weights_that_the_others_serve():
    tended, trainer, fleet = made("a", "b")
    tended.publish(0)
    tended.train(0, None)
    tended.publish(1)
    fleet.lose("a", back="c")
    tended.tend()
    assert trainer.log[-1] == (1, "c")
    assert fleet.log[-1] == ("admit", "c")
    tended.tend()  # nobody waits any more
    assert len(trainer.log) == 3
    tended.train(1, None)
    tended.publish(2)
    assert trainer.log[-1] == (2, "b", "c")


def test_where_the_trainer_has_gone_on_everybody_gets_the_newer_weights():
    tended, trainer, fleet = made("a", "b")
    tended.publish(0)
    tended.train(0, None)  # --update-weights-interval 2
    fleet.lose("a", back="c")
    tended.tend()
    assert trainer.log[-1] == (1, "b", "c")
    assert fleet.log[-1] == ("published", 1)


def test_an_engine_lost_again_while_it_gets_weights_is_waited_for():
    tended, trainer, fleet = made("a", "b")
    tended.publish(0)
    fleet.lose("a", back="c")
    trainer.accidents = [lambda: fleet.lose("c", back="d")]
    tended.tend()
    assert ("admit", "c") not in fleet.log
    tended.tend()
    assert trainer.log[-1] == (0, "d")
    assert fleet.serving == ["b", "d"]


def test_nothing_is_published_before_the_first_weights_are_known():
    tended, trainer, fleet = made("a")
    fleet.lose("a", back="b")
    tended.tend()
    assert trainer.log == []


def test_the_diagnosis_of_the_engines_is_what_a_publish_says():
    tended, trainer, fleet = made("a")

    def give_up():
        fleet.gave_up = "engine_0 was lost 4 times"

    trainer.accidents = [give_up]
    with pytest.raises(EngineError, match="lost 4 times"):
        tended.publish(0)


def test_without_any_engine_a_publish_waits_and_then_says_so():
    tended, _, fleet = made("a")
    fleet.lose("a")
    with pytest.raises(EngineError, match="no engine has come back"):
        tended.publish(0)
