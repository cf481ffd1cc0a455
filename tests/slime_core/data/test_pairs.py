import json

import pytest
from slime_core.collate import collate
from slime_core.config.algorithm import AdvantageConfig, PreferenceConfig
from slime_core.config.data import DataConfig
from slime_core.data.pairs import Pair, complete_pair, read_pairs
from slime_core.data.stream import PromptStream
from slime_core.errors import DataError
from slime_core.types import Status
from slime_testing.chars import CharTokenizer


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path, data=None, **keys):
    return list(read_pairs(data or DataConfig(), PreferenceConfig(**keys), sources=[path]))


def completed(prompts, *, tokenizer=None, apply_chat_template=False, count=1, scored=False):
    stream = PromptStream(prompts, 2, shuffle=False, seed=0)
    return [
        complete_pair(
            group,
            tokenizer or CharTokenizer(),
            apply_chat_template=apply_chat_template,
            scored=scored,
        )
        for group in stream.take(count)
    ]


def said(role, text):
    return {"role": role, "content": text}


def text(sample):
    return "".join(map(chr, sample.tokens))


def trained(sample):
    tail = sample.tokens[sample.prompt_length :]
    return "".join(chr(t) for t, flag in zip(tail, sample.loss_mask, strict=True) if flag)


def test_text_becomes_two_answered_samples_of_one_rollout(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "ab", "chosen": "yes", "rejected": "n"})
    (group,) = completed(read(path))
    chosen, rejected = group.samples
    assert (text(chosen), text(rejected)) == ("abyes#", "abn#")
    assert (trained(chosen), trained(rejected)) == ("yes#", "n#")
    assert (chosen.reward, rejected.reward) == (1.0, 0.0)
    assert chosen.rollout_id == rejected.rollout_id == group.group_index
    assert (chosen.index, rejected.index) == (0, 1)
    assert {s.status for s in group.samples} == {Status.COMPLETED}
    for sample in group.samples:
        sample.validate()


@pytest.mark.parametrize(
    ("behind", "read_to_learn", "read_to_score"),
    [("#\n", "yes#", "yes#\n"), ("", "yes#", "yes")],
)
def test_a_reward_model_reads_what_the_template_renders_to_its_end(
    tmp_path, behind, read_to_learn, read_to_score
):
    """There transformers takes the score of the same messages."""
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}BEHIND{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    ).replace("BEHIND", behind)
    tokenizer = CharTokenizer(template)
    prompts = read(write(tmp_path / "p.jsonl", {"prompt": "q", "chosen": "yes", "rejected": "n"}))
    read_by = {
        scored: completed(prompts, tokenizer=tokenizer, apply_chat_template=True, scored=scored)[
            0
        ].samples[0]
        for scored in (False, True)
    }
    asked = f"<user>q{behind}<assistant>"
    assert text(read_by[False]) == asked + read_to_learn
    assert text(read_by[True]) == asked + read_to_score
    assert trained(read_by[True]) == read_to_score.rstrip()
    messages = [said("user", "q"), said("assistant", "yes")]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert read_by[True].tokens == tokenizer.encode(rendered, add_special_tokens=False)


def test_rollouts_are_as_many_as_pairs_over_epochs(tmp_path):
    row = {"input": "q", "chosen": "a", "rejected": "b"}
    groups = completed(read(write(tmp_path / "p.jsonl", row, row)), count=5)
    batch = collate(groups, reward_key=None, advantage=AdvantageConfig())
    assert batch.rollout_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert batch.raw_rewards.tolist() == [1, 0] * 5


def test_a_chat_template_makes_turns_of_prompt_and_responses(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "ab", "chosen": "yes", "rejected": "n"})
    (group,) = completed(read(path), apply_chat_template=True)
    assert text(group.samples[0]) == "<user>ab#<assistant>yes#"
    assert trained(group.samples[1]) == "n#"


def test_conversations_that_hold_the_prompt_need_no_prompt_column(tmp_path):
    asked = [said("user", "a"), said("assistant", "b"), said("user", "c")]
    row = {
        "chosen": [*asked, said("assistant", "good")],
        "rejected": [*asked, said("assistant", "bad")],
    }
    (group,) = completed(read(write(tmp_path / "p.jsonl", row)))
    assert text(group.samples[0]) == "<user>a#<assistant>b#<user>c#<assistant>good#"
    assert [trained(sample) for sample in group.samples] == ["good#", "bad#"]
    assert group.samples[0].prompt == asked


def test_messages_that_are_only_the_response_follow_the_prompt(tmp_path):
    row = {
        "question": [said("system", "s"), said("user", "a")],
        "better": [said("assistant", "good")],
        "worse": "bad",
    }
    prompts = read(write(tmp_path / "p.jsonl", row), chosen_key="better", rejected_key="worse")
    (group,) = completed(prompts)
    assert [text(sample) for sample in group.samples] == [
        "<system>s#<user>a#<assistant>good#",
        "<system>s#<user>a#<assistant>bad#",
    ]


def test_earlier_turns_may_be_rewritten_by_the_template(tmp_path):
    template = (
        "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == 'assistant' %}()"
        "{% endif %}{{ m.content }}#{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    asked = [said("user", "a"), said("assistant", "b"), said("user", "c")]
    row = {
        "chosen": [*asked, said("assistant", "x")],
        "rejected": [*asked, said("assistant", "y")],
    }
    prompts = read(write(tmp_path / "p.jsonl", row))
    (group,) = completed(prompts, tokenizer=CharTokenizer(template))
    assert trained(group.samples[0]) == "()x#"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "rejected": "n"}, r":2: no key 'chosen'.*--chosen-key"),
        ({"prompt": "a", "chosen": "n"}, r":2: no key 'rejected'.*--rejected-key"),
        ({"chosen": "y", "rejected": "n"}, r":2: no key 'prompt'.*--input-key"),
        ({"prompt": 3, "chosen": "y", "rejected": "n"}, r":2: 'prompt' is 3"),
        ({"prompt": "a", "chosen": 3, "rejected": "n"}, r":2: 'chosen' is 3"),
        (
            {"prompt": "a", "chosen": "y", "rejected": [said("user", "n")]},
            r":2: 'rejected' .*assistant's",
        ),
        (
            {
                "chosen": [said("user", "a"), said("assistant", "y")],
                "rejected": [said("user", "b"), said("assistant", "n")],
            },
            r":2: 'chosen' and 'rejected' answer different",
        ),
    ],
)
def test_a_row_that_is_no_pair_is_named(row, words, tmp_path):
    fine = {"prompt": "a", "chosen": "y", "rejected": "n"}
    with pytest.raises(DataError, match=words):
        read(write(tmp_path / "p.jsonl", fine, row))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "chosen": "", "rejected": "n"}, ":1, key 'chosen': the response is"),
        ({"prompt": "", "chosen": "y", "rejected": "n"}, ":1, key 'chosen': the prompt is"),
    ],
)
def test_an_empty_side_is_named(row, words, tmp_path):
    prompts = read(write(tmp_path / "p.jsonl", row))
    with pytest.raises(DataError, match=words):
        completed(prompts, tokenizer=CharTokenizer(eos=None))


def test_a_template_that_does_not_suit_is_named_with_the_row(tmp_path):
    rewriting = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    path = write(tmp_path / "p.jsonl", {"prompt": "a", "chosen": "y", "rejected": "n"})
    with pytest.raises(DataError, match=r":1, key 'chosen': the chat template"):
        completed(read(path), tokenizer=CharTokenizer(rewriting), apply_chat_template=True)


def test_metadata_and_tools_travel_with_both(tmp_path):
    row = {"prompt": "a", "chosen": "y", "rejected": "n", "metadata": {"k": 1}, "tools": [{"t": 2}]}
    (prompt,) = read(write(tmp_path / "p.jsonl", row))
    assert isinstance(prompt.label, Pair)
    (group,) = completed([prompt])
    assert all(s.metadata == {"k": 1, "tools": [{"t": 2}]} for s in group.samples)
