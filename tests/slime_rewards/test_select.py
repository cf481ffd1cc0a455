import asyncio
import logging
import os
import time

import httpx
import pytest
from slime_core.errors import ConfigError, PluginError
from slime_core.types import Status
from slime_rewards import graders, remote
from slime_rewards.config import RM_TYPES, RewardConfig
from slime_rewards.policy import GradingError
from slime_rewards.select import make_reward
from slime_rewards.workers import Workers
from slime_testing import make_sample


def score(*samples, flat=None, **config):
    rewards = make_reward(RewardConfig(**config), flat or {})
    try:
        asyncio.run(rewards(samples))
    finally:
        rewards.close()
    return [sample.reward for sample in samples]


def answered(response, label="4", **changes):
    return make_sample(reward=None, response=response, label=label, **changes)


@pytest.fixture
def plugin(tmp_path):
    def write(text):
        (tmp_path / "rm.py").write_text(text)
        return str(tmp_path / "rm.py")

    return write


def test_the_types_that_rules_know_are_those_that_score():
    rewards = make_reward(RewardConfig(rm_type="zero"), {})
    assert set(RM_TYPES) == {*rewards._scores._direct, *graders.NAMES}
    rewards.close()


def test_math_is_the_default_and_says_so(caplog):
    with caplog.at_level(logging.INFO):
        assert score(answered("4"), answered("5"), answered("4", label=4)) == [1.0, 0.0, 1.0]
    assert "no --rm-type" in caplog.text


@pytest.mark.parametrize("end", ["", "<|im_end|>", "<|eot_id|>\n", "<|im_end|><|endoftext|>"])
def test_the_token_that_ends_a_turn_is_no_part_of_the_answer(plugin, end):
    spec = plugin("def rm(response, label, metadata):\n    return float(response == label)\n")
    answers = {
        "exact_match": answered(f"Paris{end}", "Paris"),
        "f1": answered(f"Paris is in France{end}", "Paris is in France"),
        "dapo": answered(f"Answer: 34{end}", "34"),
        "math": answered(f"34{end}", "34"),
    }
    for rm_type, sample in answers.items():
        sample.metadata["rm_type"] = rm_type
    *numbers, dapo = score(*(answers[name] for name in ("exact_match", "f1", "math", "dapo")))
    assert (numbers, dapo["score"]) == ([1.0, 1.0, 1.0], 1.0)
    assert score(answered(f"Paris{end}", "Paris"), custom_rm_path=f"{spec}:rm") == [1.0]
    assert all(sample.response.endswith(end) for sample in answers.values())


def test_a_number_before_the_token_that_ends_a_turn_needs_no_worker(monkeypatch):
    monkeypatch.delattr(Workers, "ask")
    numbers = [answered("34<|im_end|>", label) for label in ("34.0", "35")]
    assert score(*numbers, rm_type="math") == [1.0, 0.0]


def test_a_token_in_the_middle_of_an_answer_stays_a_part_of_it():
    wrong = answered("Par<|im_end|>is", "Paris")
    assert score(wrong, rm_type="exact_match") == [0.0]


def test_a_box_can_be_asked_for():
    assert score(answered(r"a cat \boxed{dog}", "dog"), rm_type="boxed_f1") == [1.0]
    assert score(answered("dog", "dog"), rm_type="boxed_f1") == [0.0]


def test_a_row_may_name_its_own_type_and_path(plugin):
    spec = plugin("async def custom_rm(args, sample, **kw):\n    return {'score': args.bonus}\n")
    samples = [
        answered("the cat", "cat", metadata={"rm_type": "f1"}),
        answered("x", custom_rm_path=spec),
        answered("4"),
    ]
    assert score(*samples, flat={"bonus": 7.0}) == [1.0, {"score": 7.0}, 1.0]


def test_groups_are_scored_in_one_call(plugin):
    spec = plugin(
        "async def custom_rm(args, samples, **kw):\n"
        "    return [float(len(samples))] * len(samples)\n"
    )
    assert score(answered("a"), answered("b"), custom_rm_path=spec, group_rm=True) == [2.0, 2.0]


def test_a_class_is_given_the_responses_of_a_prompt_at_once(plugin):
    spec = plugin(
        "class CustomRewardModel:\n"
        "    def __init__(self, model_path):\n"
        "        self.path = model_path\n"
        "    def compute_reward(self, prompts, responses):\n"
        "        return [{'score': float(len(prompts)), 'path': self.path} for _ in responses]\n"
    )
    flat = {"reward_model_path": "m"}
    reward = {"score": 2.0, "path": "m"}
    assert score(answered("a"), answered("b"), flat=flat, custom_rm_path=spec) == [reward] * 2


def test_a_custom_function_is_late_alone(plugin):
    spec = plugin(
        "import time\n\n\n"
        "def custom_rm(args, sample):\n"
        "    time.sleep(60 if sample.response == 'slow' else 0)\n"
        "    return 1\n"
    )
    slow, quick = answered("slow"), answered("quick")
    start = time.monotonic()
    assert score(slow, quick, custom_rm_path=spec, reward_call_timeout_s=0.3) == [None, 1.0]
    assert time.monotonic() - start < 1.3
    assert slow.metadata["reward_outcome"] == "abstention"


def test_a_dictionary_needs_the_entry_that_counts(plugin, tmp_path):
    spec = plugin(
        "def rm(response, label, metadata):\n"
        "    return {'a': {'score': 1, 'why': 'x'}, 'b': {'points': 1}}[response]\n"
    )
    good, bad = answered("a"), answered("b")
    assert score(good, bad, custom_rm_path=spec, reward_key="score") == [
        {"score": 1, "why": "x"},
        None,
    ]
    assert bad.metadata["error"].endswith("['points']: --reward-key asks for score")
    (tmp_path / "nan.py").write_text("def rm(args, sample): return {'score': float('nan')}\n")
    nan = answered("a", custom_rm_path=f"{tmp_path}/nan.py")
    score(nan, reward_key="score")
    assert "rewards are finite" in nan.metadata["error"]


def test_what_a_rollout_needs_is_started_before_it():
    rewards = make_reward(RewardConfig(rm_type="f1"), {})
    rewards.connect("http://router")
    rewards._scores._workers._threads.shutdown(wait=True)
    assert rewards._scores._workers._nursery._process.poll() is None
    rewards.close()


def test_plain_functions_are_graded_in_worker_processes(plugin):
    spec = plugin("import os\n\n\ndef rm(response, label, metadata):\n    return os.getpid()\n")
    [pid] = score(answered("a"), custom_rm_path=spec, group_rm=True)
    assert pid != os.getpid()


def test_failures_become_data(plugin, caplog):
    spec = plugin("def custom_rm(args, sample):\n    return 1 / 0\n")
    bad, unlabelled = answered("4", custom_rm_path=spec), answered("4", label=None)
    unknown = answered("4", metadata={"rm_type": "mth"})
    assert score(bad, unlabelled, unknown, answered("4")) == [None, None, None, 1.0]
    assert bad.status is Status.FAILED
    assert bad.metadata["error"] == "ZeroDivisionError: division by zero"
    assert "--label-key" in unlabelled.metadata["error"]
    assert "--rm-type mth is unknown" in unknown.metadata["error"]
    assert "division by zero" in caplog.text


@pytest.mark.parametrize("value", ["float('nan')", "'0.5'", "None"])
@pytest.mark.parametrize("parameters", ["args, sample", "response, label, metadata"])
def test_a_bad_reward_names_the_function_and_the_sample(plugin, value, parameters):
    spec = plugin(f"def rm({parameters}):\n    return {value}\n")
    sample = answered("four", custom_rm_path=spec, index=17)
    with pytest.raises(GradingError, match=r"sample 17, label '4', response 'four':\n") as caught:
        score(sample, reward_max_failures=0)
    assert f"{spec}, sample 17" in str(caught.value)
    assert "a grader returned" in str(caught.value).splitlines()[-1]


def test_keys_that_are_the_same_are_asked_for_once(plugin):
    spec = plugin("def rm(args, sample):\n    return {'score': 1.0}\n")
    sample = answered("a", custom_rm_path=spec)
    score(sample, reward_key="scor", eval_reward_key="scor")
    assert sample.metadata["error"].endswith("--reward-key asks for scor")


def test_a_failing_group_fails_together(plugin):
    spec = plugin("def custom_rm(args, samples):\n    return [1.0]\n")
    samples = [answered("a"), answered("b")]
    assert score(*samples, custom_rm_path=spec, group_rm=True) == [None, None]
    assert "1 rewards for 2 samples" in samples[1].metadata["error"]


def test_what_has_a_reward_or_was_not_finished_is_left_alone():
    kept = make_sample(reward=0.3)
    aborted = answered("4", status=Status.ABORTED)
    assert score(kept, aborted) == [0.3, None]


def test_random_rewards_repeat():
    samples = [answered("a", index=i) for i in range(40)]
    again = [answered("a", index=i) for i in range(40)]
    first = score(*samples, rm_type="random")
    assert set(first) == {0.0, 1.0}
    assert score(*again, rm_type="random") == first


def test_mistakes_are_found_at_start_up():
    with pytest.raises(ConfigError, match="--rm-type maths is unknown; there are code, dapo"):
        make_reward(RewardConfig(rm_type="maths"), {})
    with pytest.raises(ConfigError, match="--rm-url"):
        make_reward(RewardConfig(rm_type="remote_rm"), {})
    with pytest.raises(PluginError, match="does not exist"):
        make_reward(RewardConfig(custom_rm_path="gone.py"), {})


def test_a_server_is_asked_again_until_it_answers(monkeypatch):
    seen = []

    def answer(request):
        seen.append(request.content)
        return httpx.Response(503 if len(seen) < 3 else 200, json=0.5)

    original = httpx.AsyncClient
    monkeypatch.setattr(
        remote.httpx,
        "AsyncClient",
        lambda **options: original(transport=httpx.MockTransport(answer)),
    )
    monkeypatch.setattr(
        remote.tenacity, "wait_exponential", lambda **_: remote.tenacity.wait_none()
    )
    monkeypatch.setattr(remote.tenacity, "wait_random", lambda *_: remote.tenacity.wait_none())
    assert score(answered("r"), rm_type="remote_rm", rm_url="http://rm") == [0.5]
    assert len(seen) == 3
    assert b'"label":"4"' in seen[0]
