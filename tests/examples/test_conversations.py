"""What the examples of conversations do between two requests."""

import sys
from pathlib import Path
from typing import Any

import pytest
from slime_core.plugins.plugin import load_plugin
from slime_core.types import Sample, Status
from slime_sglang.agents.settings import AgentSettings
from slime_sglang.answers.sampling_params import Sampling
from slime_testing.engine_stub import Script, Server, run
from slime_testing.templates import MergingTokenizer
from slime_testing.workspace import ROOT

EXAMPLES = ROOT / "examples"


def part(name: str) -> Any:
    return load_plugin(f"{EXAMPLES}/{name}")


def played(name: str, sample: Sample, texts: list[str], **flat: Any) -> tuple[Any, Server]:
    """The example's function with a model that says ``texts``."""
    tokenizer, left = MergingTokenizer("qwen2"), iter(texts)
    script = Script(tokenizer, lambda asked: [*map(ord, next(left)), tokenizer.eos_token_id])
    server = Server(script)
    (made,) = run(
        server,
        [sample],
        tokenizer=tokenizer,
        custom_generate=f"{EXAMPLES}/{name}:custom_generate",
        sampling=Sampling(max_response_len=1000),
        agents=AgentSettings(tool_call_parser="qwen25"),
        flat={"max_turns": 3, **flat},
    )
    for one in made if isinstance(made, list) else [made]:
        one.validate()
    return made, server


def num_trained(sample: Sample) -> int:
    return sample.effective_response_length


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12*34", "408"),
        ("7-(2+3)*2", "-3"),
        ("2**9", "error"),
        ("open('x')", "error"),
        ("", "error"),
    ],
)
def test_the_calculator_knows_three_operations_and_nothing_else(
    expression: str, value: str
) -> None:
    found = part("multi_turn_tools/calculator.py:calculate")(expression)
    assert found.split(":")[0] == value


def test_a_call_is_answered_and_the_last_turn_is_scored() -> None:
    data = vars(sys.modules[part("multi_turn_tools/data.py:write").__module__])
    question = [{"role": "user", "content": "12*34"}]
    sample = Sample(index=0, prompt=question, label="408", metadata={"tools": [data["TOOL"]]})
    call, answer = f"{data['OPENING']}12*34{data['CLOSING']}", "\\boxed{408}"
    made, server = played("multi_turn_tools/calculator.py", sample, [call, answer])
    assert (made.reward, made.metadata["num_calls"], made.status) == (1.0, 1, Status.COMPLETED)
    assert num_trained(made) == len(call) + len(answer) + 2
    assert "\n408\n" in MergingTokenizer("qwen2").decode(server.bodies[1]["input_ids"])


def test_a_guess_without_a_call_is_one_turn() -> None:
    sample = Sample(index=0, prompt=[{"role": "user", "content": "12*34"}], label="408")
    made, server = played("multi_turn_tools/calculator.py", sample, ["\\boxed{400}"])
    assert (made.reward, len(server.bodies)) == (0.0, 1)


CORPUS = ["Ada lives in Oslo", "Bo lives in Rome", "Cy lives nowhere in Rome or Oslo"]


def test_the_retriever_puts_rare_words_and_short_passages_first() -> None:
    found = part("search-r1/retriever.py:Retriever")(CORPUS)
    assert found.search("ADA?") == ["Ada lives in Oslo"]
    assert found.search("Rome", 3) == ["Bo lives in Rome", "Cy lives nowhere in Rome or Oslo"]
    assert found.search("Zoe") == []


def test_a_query_is_answered_inside_the_response(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS))
    sample = Sample(index=0, prompt="Where does Ada live?", label="Oslo")
    texts = ["<search>Ada</search>", "<answer>Oslo</answer>"]
    made, server = played(
        "search-r1/search.py", sample, texts, prompt_data=[str(tmp_path / "train.jsonl")]
    )
    assert made.reward == 1.0
    assert made.metadata["num_searches"] == 1
    assert "<information>Ada lives in Oslo</information>" in made.response
    assert num_trained(made) == sum(map(len, texts)) + 2
    assert server.bodies[0]["sampling_params"]["stop"] == ["</search>", "</answer>"]


def test_the_team_shares_its_reward_and_each_role_trains_on_what_it_said() -> None:
    question = [{"role": "user", "content": "10+12=?"}]
    sample = Sample(index=3, rollout_id=3, prompt=question, label="22")
    texts = ["\\boxed{21}", "no", "\\boxed{22}", "yes"]
    segments, server = played("multi_agent/agents.py", sample, texts)
    assert [segment.reward for segment in segments] == [1.0, 1.0, 1.0]
    assert {segment.rollout_id for segment in segments} == {3}
    lengths = [len(text) + 1 for text in texts]
    assert sorted(map(num_trained, segments)) == sorted(
        [lengths[0] + lengths[2], lengths[1], lengths[3]]
    )
    asked = [MergingTokenizer("qwen2").decode(body["input_ids"]) for body in server.bodies]
    assert "user\n10+12=21?<" in asked[1]
    assert "assistant\n\\boxed{21}<|im_end|>\n<|im_start|>user\nno<" in asked[2]


@pytest.mark.parametrize("name", ["multi_turn_tools", "search-r1", "multi_agent"])
def test_what_an_example_trains_on_is_written_by_one_command(name: str, tmp_path: Path) -> None:
    part(f"{name}/data.py:write")(tmp_path)
    assert (tmp_path / "model" / "model.safetensors").is_file()
    for file in ("demonstrations.jsonl", "train.jsonl", "eval.jsonl"):
        assert (tmp_path / file).read_text().count("\n") >= 64
