import asyncio
import importlib.util
import json
import random
import sys
import threading
from http.server import ThreadingHTTPServer
from types import ModuleType
from typing import Any

import pytest
import torch
from slime_rewards.config import RewardConfig
from slime_rewards.select import make_reward
from slime_testing import make_sample
from slime_testing.workspace import ROOT


def load(name: str, monkeypatch: Any) -> ModuleType:
    """A file of an example, which may import those beside it."""
    path = ROOT / "examples" / f"{name}.py"
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.delitem(sys.modules, "custom_rm", raising=False)
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scored(*samples: Any, flat: Any = None, **config: Any) -> list[Any]:
    rewards = make_reward(RewardConfig(**config), flat or {})
    try:
        asyncio.run(rewards(samples))
    finally:
        rewards.close()
    return [sample.reward for sample in samples]


def answered(prompt: str, response: str, label: Any = None) -> Any:
    return make_sample(reward=None, prompt=prompt, response=response, label=label)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_reward_model_learns_to_tell_right_sums_from_wrong_ones(monkeypatch, tmp_path):
    data = load("custom_reward_model/data", monkeypatch)
    model = data.learn(steps=200)
    good, bad = data.preferences(random.Random(1), 500)
    assert (model(good) > model(bad)).float().mean() > 0.99
    torch.save(model.state_dict(), tmp_path / "reward_model.pt")
    question = "<|im_start|>user\n12+34=?<|im_end|>\n"
    right, wrong, nothing = scored(
        answered(question, r"\boxed{46}"),
        answered(question, r"\boxed{91}"),
        answered(question, "46"),
        custom_rm_path=str(ROOT / "examples/custom_reward_model/custom_rm.py"),
        flat={"reward_model_path": str(tmp_path / "reward_model.pt")},
    )
    assert right > 0.9
    assert wrong < 0.1
    assert nothing == 0.0


def test_the_server_is_asked_for_rewards(monkeypatch):
    server = load("reward_server/server", monkeypatch)
    with ThreadingHTTPServer(("127.0.0.1", 0), server.Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/score"
        answers = [answered("12+34=?", text, "46") for text in (r"\boxed{46}", r"\boxed{96}", "")]
        rewards = scored(*answers, rm_type="remote_rm", rm_url=url)
        http.shutdown()
    assert rewards == [
        {"digits": 1.0, "exact": 1.0},
        {"digits": 0.5, "exact": 0.0},
        {"digits": 0.0, "exact": 0.0},
    ]


def test_right_programs_pass_their_tests_in_the_sandbox(monkeypatch):
    data = load("code_sandbox/data", monkeypatch)
    answers = []
    for operation, number in [("+", 12), ("-", 99), ("*", 40)]:
        row = json.loads(json.dumps(data.prompt_row((operation, number))))
        for response in (data.program(operation, str(number)), data.program(operation, "13"), "x"):
            answers.append(answered(row["prompt"], response, row["label"]))
    assert scored(*answers, rm_type="code") == [1.0, 0.0, 0.0] * 3


def test_demonstrations_are_right_about_half_the_time(monkeypatch):
    data = load("code_sandbox/data", monkeypatch)
    rng = random.Random(0)
    right = 0
    for problem in data.problems():
        messages = data.demonstration(problem, rng)["messages"]
        right += messages[1]["content"] == data.program(problem[0], str(problem[1]))
    assert 0.4 < right / len(data.problems()) < 0.7
