import json
import logging
import pickle

import pytest
from slime_core.config.data import DataConfig
from slime_core.data.faults import Faults, RowError
from slime_core.data.prompts import load_prompts, read_prompts
from slime_core.errors import DataError
from slime_testing.chars import CharTokenizer

GOOD = [b'{"prompt": "a"}', b'{"prompt": "b"}']
BAD = {
    "malformed": b'{"prompt": "b"',
    "not_utf8": b'{"prompt": "\xff"}',
    "missing_key": b'{"q": "b"}',
    "wrong_type": b'{"prompt": 3}',
    "empty": b'{"prompt": ""}',
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "p.jsonl"

    def write(*lines, name="p.jsonl"):
        (tmp_path / name).write_bytes(b"".join(line + b"\n" for line in lines))
        return str(tmp_path / name)

    write(*GOOD, *BAD.values())
    write.path = str(path)
    return write


def load(*paths, max_prompt_len=None, **data):
    prompts = load_prompts(
        DataConfig(**data), CharTokenizer(), sources=paths, max_prompt_len=max_prompt_len
    )
    return [prompt.prompt for prompt in prompts]


def test_all_that_is_wrong_ends_the_run_at_once_by_line_and_number(file):
    with pytest.raises(DataError) as error:
        load(file.path)
    text = str(error.value)
    assert text.startswith("5 of 7 rows of the prompt files cannot be used:")
    assert "p.jsonl:3 is not JSON" in text
    assert "p.jsonl:4 is not UTF-8: byte 0xff at column 13" in text
    assert "p.jsonl:5: no key 'prompt'; the row has ['q']" in text
    assert "p.jsonl:6: 'prompt' is 3" in text
    assert "p.jsonl:7: the prompt is empty" in text
    assert "--data-error-policy skip" in text


def test_what_is_wrong_is_left_out_counted_and_named_under_the_other_policy(file, caplog):
    with caplog.at_level(logging.WARNING):
        assert load(file.path, data_error_policy="skip") == ["a", "b"]
    for number, kind in enumerate(BAD, 3):
        assert f"left out 1 of 7 rows ({kind}): {file.path}:{number}" in caplog.text


def test_only_the_first_of_many_are_named(file):
    path = file(*GOOD, *[b'{"q' + b"q" * number for number in range(20)])
    with pytest.raises(DataError) as error:
        load(path)
    assert str(error.value).count("is not JSON") == 5
    assert "and 15 more" in str(error.value)


def test_a_key_that_no_row_has_is_told_once(file):
    path = file(*[b'{"prompt": "a", "answer": "1"}'] * 7)
    with pytest.raises(DataError) as error:
        load(path, label_key="nolabel")
    assert str(error.value).splitlines() == [
        "7 of 7 rows of the prompt files cannot be used:",
        f"  {path}:1: no key 'nolabel'; the row has ['answer', 'prompt']: choose with --label-key "
        "(for evaluation --eval-label-key) (first of 7 such rows)",
        "  no row can be used: are these the right files and keys?",
    ]


def test_rows_that_are_wrong_in_the_same_way_are_told_once_with_their_number(file, caplog):
    row = '{"prompt": "a", "metadata": "%s"}'
    values = ["abc", "{}", "abc", "xyz", "abc", "{}"]
    path = file(*[(row % value).encode() for value in values], b"{")
    told = [
        f"{path}:1: 'metadata' is not JSON: 'abc' (first of 3 such rows)",
        f"{path}:4: 'metadata' is not JSON: 'xyz'",
    ]
    with pytest.raises(DataError) as error:
        load(path)
    head, *lines, _ = str(error.value).splitlines()
    assert head == "5 of 7 rows of the prompt files cannot be used:"
    assert [line.strip() for line in lines[:2]] == told
    assert len(lines) == 3
    assert f"{path}:7 is not JSON" in lines[2]
    assert load(path, data_error_policy="skip") == ["a", "a"]
    assert f"left out 4 of 7 rows (wrong_type): {'; '.join(told)}" in caplog.text


@pytest.mark.parametrize(
    "nothing",
    ["", " \n", [{"role": "user", "content": ""}], [{"role": "system", "content": "S"}]],
)
@pytest.mark.parametrize("templated", [False, True])
def test_what_only_a_template_would_fill_is_empty(file, nothing, templated):
    path = file(*GOOD, json.dumps({"prompt": nothing}).encode())
    with pytest.raises(DataError, match=r"p.jsonl:3: the prompt is empty"):
        load(path, apply_chat_template=templated, system_prompt="S" if templated else None)


def test_json_that_stops_at_a_character_says_at_once(file):
    with pytest.raises(DataError, match=r": Invalid control character at column 13\n"):
        load(file(*GOOD, b'{"prompt": "\t"}'))


def test_a_file_of_another_kind_is_not_read_to_its_end(file):
    path = file(*[b'{"q": 1}'] * 5000)
    with pytest.raises(DataError, match=r"1000 rows .* cannot be used, and the rest was not read"):
        load(path)


def test_a_prompt_may_be_as_long_as_the_limit(file):
    path = file(b'{"prompt": "abc"}', b'{"prompt": "abcd"}')
    assert load(path, max_prompt_len=3) == ["abc"]


def test_rows_that_may_be_left_out_are_told_once_however_many_they_are(file, caplog):
    path = file(*GOOD, *[b"{"] * 1100)
    assert load(path, data_error_policy="skip") == ["a", "b"]
    assert caplog.text.count("left out") == 1
    assert "left out 1100 of 1102 rows (malformed)" in caplog.text


def test_columns_are_those_of_the_first_usable_row(file):
    path = file(b"{", b'{"id": 1}', b'{"question": "a", "answer": "1"}', b'{"question": "b"}')
    with pytest.raises(DataError, match=r"p.jsonl:1 .*\n.*p.jsonl:2: .*\n.*:4: no key 'answer'"):
        load(path)
    assert load(path, data_error_policy="skip") == ["a"]


def test_an_empty_file_beside_others_is_one_of_the_problems(file):
    empty = file(name="empty.jsonl")
    with pytest.raises(DataError, match=r"empty.jsonl has no rows"):
        load(file(*GOOD), empty)
    assert load(file(*GOOD), empty, data_error_policy="skip") == ["a", "b"]


def test_repeated_ids_are_kept_left_out_or_the_end(file, caplog):
    lines = [json.dumps({"id": i, "prompt": p}).encode() for i, p in [(1, "a"), (2, "b"), (1, "c")]]
    path, other = file(*lines), file(lines[0], name="other.jsonl")
    with caplog.at_level(logging.WARNING):
        assert load(path, other) == ["a", "b", "c", "a"]
    assert f"1 of 4 rows repeat an id and are kept: {path}:3: id '1' is that of 1" in caplog.text
    assert load(path, data_duplicate_ids="skip") == ["a", "b"]
    with pytest.raises(DataError, match=r"p.jsonl:3: id '1' is that of 1"):
        load(path, data_duplicate_ids="stop")
    assert load(path, data_duplicate_ids="stop", id_key="uid") == ["a", "b", "c"]


def test_long_prompts_are_left_out_under_either_policy(file):
    path = file(*GOOD, b'{"prompt": "long"}')
    assert load(path, max_prompt_len=3) == ["a", "b"]


def test_text_that_no_tokenizer_takes_is_found(file):
    path = file(*GOOD, rb'{"prompt": "\ud800"}')
    with pytest.raises(DataError, match=r"p.jsonl:3: the prompt is not Unicode"):
        load(path)


def test_the_first_prompts_are_there_before_the_complaint(file):
    prompts = read_prompts(DataConfig(), sources=[file.path])
    assert [next(prompts).prompt, next(prompts).prompt] == ["a", "b"]


def test_row_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(RowError("empty", "p:1: it is empty")))
    assert (error.kind, str(error)) == ("empty", "p:1: it is empty")


def test_counts_become_metrics():
    faults = Faults("skip")
    faults.add("empty", "a")
    faults.add("empty", "b")
    assert faults.metrics() == {"rollout/data_left_out/empty": 2.0}
