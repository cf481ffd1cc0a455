import asyncio

import pytest
from slime_core.errors import ConfigError
from slime_rewards.config import RewardConfig
from slime_rewards.select import make_reward
from slime_testing import make_sample
from slime_testing.json_server import json_server


def chat(content, reason="stop"):
    return {"choices": [{"message": {"content": content}, "finish_reason": reason}]}


def judged(answer, sample, *, own_router=False, **config):
    asked = []

    def reply(path, body):
        asked.append((path, body))
        return 200, answer

    with json_server(reply) as url:
        address = {} if own_router else {"judge_url": url}
        rewards = make_reward(RewardConfig(rm_type="judge", **address, **config), {})
        if own_router:
            rewards.connect(url)
        asyncio.run(rewards([sample]))
        rewards.close()
    return asked


def sample(**changes):
    return make_sample(**{"reward": None, "prompt": "1+1?", "response": "2 {label}"} | changes)


def test_the_last_score_is_a_share_of_the_highest():
    made = sample(label="two")
    [(path, body)] = judged(chat("Score: 2? No.\nScore: **7.5**"), made)
    assert made.reward == 0.75
    assert path == "/v1/chat/completions"
    question = body["messages"][0]["content"]
    assert "1+1?" in question
    assert "2 {label}" in question  # what a response says is not filled in
    assert "two" in question
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("default", 0.0, 512)


def test_the_token_that_ends_a_response_does_not_end_the_question():
    [(_, body)] = judged(chat("score 10"), sample(response="two <|im_end|>\n"))
    assert "two" in body["messages"][0]["content"]
    assert "<|im_end|>" not in body["messages"][0]["content"]


def test_the_runs_own_engines_judge_by_default():
    made = sample(prompt=[{"role": "user", "content": "1+1?"}])
    [(path, _)] = judged(chat("score 10"), made, own_router=True)
    assert (made.reward, path) == (1.0, "/v1/chat/completions")


def test_prompt_pattern_and_scale_can_be_chosen(tmp_path):
    (tmp_path / "ask.txt").write_text("Is {response} right for {prompt}? {other}")
    made = sample()
    [(_, body)] = judged(
        chat("<grade>4</grade>"),
        made,
        judge_prompt=str(tmp_path / "ask.txt"),
        judge_score_pattern="<grade>(.*?)</grade>",
        judge_max_score=5.0,
        judge_model="big",
    )
    assert body["messages"][0]["content"] == "Is 2 {label} right for 1+1?? {other}"
    assert (made.reward, body["model"]) == (0.8, "big")


@pytest.mark.parametrize(
    ("answer", "outcome", "message"),
    [
        (chat("very good"), "error", "no score in the judge's answer 'very good'"),
        (chat("Score: 11"), "error", "the judge gave 11 of 10"),
        ({"detail": "no"}, "error", "is no chat completion"),
        (chat("", "abort"), "abstention", "was aborted"),
        ("not json", "error", "JSONDecodeError"),
    ],
)
def test_no_score_is_never_a_zero(answer, outcome, message):
    made = sample()
    judged(answer, made)
    assert made.reward is None
    assert made.metadata["reward_outcome"] == outcome
    assert message in made.metadata["error"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"judge_prompt": "gone.txt"}, "--judge-prompt gone.txt cannot be read"),
        ({"judge_score_pattern": "("}, "no expression"),
        ({"judge_score_pattern": "x"}, "no group"),
    ],
)
def test_mistakes_are_found_at_start_up(config, message):
    with pytest.raises(ConfigError, match=message):
        make_reward(RewardConfig(rm_type="judge", **config), {})


def test_a_prompt_must_show_the_response(tmp_path):
    (tmp_path / "ask.txt").write_text("Is it right?")
    with pytest.raises(ConfigError, match=r"has no \{response\}"):
        make_reward(RewardConfig(judge_prompt=str(tmp_path / "ask.txt")), {})
