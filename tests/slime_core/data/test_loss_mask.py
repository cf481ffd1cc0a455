import pytest
from slime_core.data.chat import Tokenizer
from slime_core.data.loss_mask import mask_conversation
from slime_core.data.sft import complete, has_answer
from slime_core.errors import DataError
from slime_core.types import Sample, Status
from slime_testing.chars import CharTokenizer
from slime_testing.templates import MergingTokenizer

# Like Qwen3's: only the turns after the last user message show an (empty) thought.
QWEN3 = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}(){% endif %}{{ m.content }}#\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
REWRITING = (
    "{{ messages | length }}{% for m in messages %}<{{ m.role }}>{{ m.content }}#{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chat(*turns):
    roles = ["user", "assistant"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def trained(masked):
    pairs = zip(masked.tokens, masked.loss_mask, strict=True)
    return "".join(chr(t) if flag else "." for t, flag in pairs).strip(".")


def test_all_turns_and_their_ends_are_marked():
    masked = mask_conversation(chat("a", "bb", "c", "d"), CharTokenizer())
    assert "".join(map(chr, masked.tokens)) == "<user>a#<assistant>bb#<user>c#<assistant>d#"
    assert trained(masked) == "bb#" + "." * len("<user>c#<assistant>") + "d#"


def test_thoughts_that_later_turns_drop_do_not_confuse():
    masked = mask_conversation(chat("a", "b", "c", "d"), CharTokenizer(QWEN3))
    assert trained(masked) == "b#" + "." * len("\n<user>c#\n<assistant>") + "()d#"


def test_turns_can_be_left_out():
    messages = chat("a", "b", "c", "d")
    messages[1]["step_loss_mask"] = 0
    assert trained(mask_conversation(messages, CharTokenizer())) == "d#"


def test_of_the_last_turn_alone_nothing_is_marked_where_somebody_else_speaks_last():
    ended = mask_conversation(chat("a", "b", "c", "d"), CharTokenizer(), last_only=True)
    assert trained(ended) == "d#"
    asked = mask_conversation(chat("a", "b", "c"), CharTokenizer(), last_only=True)
    assert trained(asked) == ""


def test_a_turn_may_begin_where_the_turn_before_it_ended():
    template = "{% for m in messages %}{{ m.content }}#{% endfor %}"
    messages = [{"role": "user", "content": "a"}, *[{"role": "assistant", "content": "b"}] * 2]
    assert trained(mask_conversation(messages, CharTokenizer(template))) == "b#b#"


def test_only_turns_of_the_assistant_and_labels_are_answers():
    switched_off = [*chat("a"), {"role": "assistant", "content": "b", "train": False}]
    answered = [
        has_answer(messages, None) for messages in (chat("a"), switched_off, chat("a", "b"))
    ]
    assert answered == [False, False, True]
    assert [has_answer(prompt, "c") for prompt in ("a", chat("a"), switched_off)] == [
        True, True, False,
    ]  # fmt: skip


def test_a_template_that_rewrites_is_refused_with_the_example():
    with pytest.raises(
        DataError, match=r"not append-only: the 1 messages before turn 1 .*'1<user>a"
    ):
        mask_conversation(chat("a", "b"), CharTokenizer(REWRITING))


def test_a_turn_without_an_end_is_refused_unless_it_is_the_last():
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}" + (
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert trained(mask_conversation(chat("a", "b"), CharTokenizer(template))) == "b#"
    assert trained(mask_conversation(chat("a", "b"), CharTokenizer(template, eos=None))) == "b"
    with pytest.raises(DataError, match=r"message 1 .* not closed by the end-of-turn token '#'"):
        mask_conversation(chat("a", "b", "c", "d"), CharTokenizer(template))


def test_a_turn_may_be_closed_by_another_token_than_the_one_that_ends_texts():
    """As in the base models of Qwen: <|im_end|>, where eos is <|endoftext|>."""
    masked = mask_conversation(chat("a", "bb", "c", "d"), CharTokenizer(eos="$"))
    assert "".join(map(chr, masked.tokens)) == "<user>a#<assistant>bb#<user>c#<assistant>d#"
    assert trained(masked) == "bb#" + "." * len("<user>c#<assistant>") + "d#"
    thinking = mask_conversation(chat("a", "b", "c", "d"), CharTokenizer(QWEN3, eos="$"))
    assert trained(thinking) == "b#" + "." * len("\n<user>c#\n<assistant>") + "()d#"


def test_the_next_turn_may_end_a_turn_and_after_the_last_its_token_is_added():
    """As in GLM-4, whose end-of-turn token is <|user|>."""
    tokenizer = MergingTokenizer("glm4")
    masked = mask_conversation(chat("a", "b", "c", "d"), tokenizer)
    assert masked.tokens[-1] == tokenizer.eos_token_id
    pairs = zip(masked.tokens, masked.loss_mask, strict=True)
    assert tokenizer.decode([token for token, flag in pairs if flag]) == "b<|user|>d<|user|>"


def test_a_conversation_becomes_a_sample_whose_response_starts_at_the_first_trained_token():
    sample = Sample(prompt=chat("a", "b", "c", "d"))
    complete(sample, CharTokenizer(), apply_chat_template=True)
    sample.validate()
    assert sample.response == "b#<user>c#<assistant>d#"
    assert sample.prompt_length == len("<user>a#<assistant>")
    assert sum(sample.loss_mask) == 4
    assert (sample.status, sample.reward) == (Status.COMPLETED, 0.0)


def test_a_label_answers_a_prompt():
    sample = Sample(prompt="2+2=", label=4)
    complete(sample, CharTokenizer(), apply_chat_template=False)
    assert (sample.response, sample.loss_mask, sample.prompt_length) == ("4#", [1, 1], 4)
    sample = Sample(prompt="2+2=", label="4")
    complete(sample, CharTokenizer(), apply_chat_template=True)
    assert (sample.response, sample.prompt_length) == ("4#", len("<user>2+2=#<assistant>"))


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(DataError, match="no assistant turn and no label"):
        complete(Sample(prompt=chat("a")), CharTokenizer(), apply_chat_template=True)
    with pytest.raises(DataError, match="--label-key"):
        complete(Sample(prompt="a"), CharTokenizer(), apply_chat_template=False)


def test_tokenizers_that_make_up_their_attributes_count_as_tokenizers():
    class Lazy:
        encode = decode = apply_chat_template = CharTokenizer.encode

        def __getattr__(self, name):
            return 7

    assert isinstance(Lazy(), Tokenizer)
