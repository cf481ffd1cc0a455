import re
from contextlib import contextmanager

from slime_core.processes.events import FILE_NAME, Events
from slime_testing.tiny import make_qwen3
from slime_train import run as runs
from slime_train.cli import main
from slime_train.compose import Composition
from slime_train.loop import Cadence


def test_while_a_run_starts_each_step_is_a_line_on_the_terminal(tmp_path, monkeypatch, capsys):
    @contextmanager
    def cluster(num_workers):
        assert num_workers == 2
        yield

    def compose(config, directory, screen, resume):
        screen.say("starting the trainer and the engines")
        others = Events(directory / FILE_NAME)
        for what, seconds in (("trainer: model built", 1.04), ("engine 1 of 1 up", 12.0)):
            others.started(what, seconds)
            screen.on_wait()
            screen.say("(the driver waits)")
        others.started("router up", 0.5)  # nobody has waited since
        log = screen.log
        return Composition(log, Cadence(first=0, last=1), lambda: None)

    def train(log, cadence):
        log(0, {"perf/update_weights_time": 0.84})

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1+1=", "label": "2"}\n')
    model = make_qwen3(tmp_path / "model")
    for name, stand_in in {"cluster": cluster, "compose": compose, "train": train}.items():
        monkeypatch.setattr(runs, name, stand_in)
    text = (
        f"--hf-checkpoint {model} --prompt-data {prompts} --num-rollout 1 --rollout-batch-size 1 "
        f"--device cpu --output-dir {tmp_path / 'out'}"
    )
    assert main(text.split()) == 0
    lines = re.sub(r"up in 0\.\d s", "up in 0.0 s", capsys.readouterr().out).splitlines()
    assert lines[:9] == [
        f"output directory: {tmp_path / 'out'}",
        "  Ray up in 0.0 s",
        "starting the trainer and the engines",
        "  trainer: model built in 1.0 s",
        "(the driver waits)",
        "  engine 1 of 1 up in 12.0 s",
        "(the driver waits)",
        "  router up in 0.0 s",
        "ready after 0.0 s; iterations to go: 1",
    ]
    assert lines[9] == "  first weights published in 0.8 s"
