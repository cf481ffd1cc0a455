import json
from pathlib import Path

import pytest
from slime_core.config.algorithm import PreferenceConfig
from slime_core.config.data import DataConfig
from slime_core.data.first_look import FirstLook, first_look


@pytest.mark.parametrize(
    ("row", "gradable"),
    [
        ('{"input": "1+1=", "label": "2"}', True),
        ('{"input": "1+1=", "answer": 2}', True),
        ('{"input": "1+1=", "metadata": {"rm_type": "ifbench"}}', True),
        ('{"input": "1+1=", "metadata": {"level": 3}}', False),
        ('{"input": "1+1=", "label": null}', False),
        ('{"input": "1+1=", "label": ""}', False),
        ('{"input": "1+1=", "label": ["2"]}', True),
        ('{"input": "1+1=", "label": NaN}', False),
        ('{"input": "1+1=", "label": {"style": "rule", "ground_truth": "2"}}', False),
    ],
)
def test_a_prompt_has_a_label_or_says_how_it_is_scored(
    tmp_path: Path, row: str, gradable: bool
) -> None:
    (tmp_path / "p.jsonl").write_text(row + "\n")
    assert first_look(f"{tmp_path}/p.jsonl", DataConfig()) == FirstLook(gradable=gradable)


def test_what_is_wrong_with_a_file_is_told_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"input": "1+1="}\n')
    (tmp_path / "empty.jsonl").write_text("")
    assert first_look(f"{tmp_path}/gone.jsonl", DataConfig()).problem == (
        f"{tmp_path}/gone.jsonl: there is no such file; give a .jsonl or .parquet file"
    )
    assert first_look(f"{tmp_path}/empty.jsonl", DataConfig()).problem is not None
    lacking = first_look(f"{tmp_path}/p.jsonl", DataConfig(label_key="gold")).problem
    assert f"{tmp_path}/p.jsonl:1" in str(lacking)
    assert "--label-key" in str(lacking)


def test_pairs_are_looked_for_where_pairs_are_trained_on(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"input": "1+1=", "label": "2"}\n')
    problem = first_look(f"{tmp_path}/p.jsonl", DataConfig(), PreferenceConfig()).problem
    assert "chosen" in str(problem)


GOOD = '{"input": "1+1=", "label": "2"}'


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"inp": "x", "label": "2"}', ": no key 'input'; the row has ['inp', 'label']"),
        ('{"input": "x"}', ": no key 'label'; the row has ['input']: choose with --label-key"),
        ('{"input": 3, "label": "2"}', ": 'input' is 3, neither a string nor a list of messages"),
        ('{"input": [{"content": "x"}], "label": "2"}', "nor a list of messages with a role"),
        ('{"input": " ", "label": "2"}', ": the prompt is empty"),
        ('{"input": "\\ud800", "label": "2"}', ": the prompt is not Unicode"),
        ('{"input": "x", "label": "2", "metadata": 3}', ": 'metadata' is 3, not a dict"),
        ('{"input": "x", "label": "2", "tools": {"a": 1}}', ": 'tools' is {'a': 1}, not a list"),
        ('{"input', " is not JSON"),
        ('["x"]', " is of type list, not an object with keys"),
    ],
)
@pytest.mark.parametrize("number", [1, 2, 100])
def test_every_one_of_the_first_rows_is_looked_at(
    tmp_path: Path, row: str, told: str, number: int
) -> None:
    rows = [GOOD] * 99
    rows.insert(number - 1, row)
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(rows) + "\n")
    problem = first_look(str(path), DataConfig(label_key="label")).problem
    assert problem is not None
    assert f"{path}:{number}" in problem
    assert told in problem
    skipping = DataConfig(label_key="label", data_error_policy="skip")
    assert first_look(str(path), skipping).problem is None


def test_a_row_far_behind_is_left_to_the_reading_of_the_whole(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(f"{GOOD}\n" * 100 + "{}\n")
    assert first_look(f"{tmp_path}/p.jsonl", DataConfig()) == FirstLook()


def test_where_bad_rows_are_left_out_one_has_to_be_good(tmp_path: Path) -> None:
    skipping = DataConfig(label_key="label", data_error_policy="skip")
    (tmp_path / "p.jsonl").write_text("{}\n" * 150 + f"{GOOD}\n")
    assert first_look(f"{tmp_path}/p.jsonl", skipping) == FirstLook()
    (tmp_path / "p.jsonl").write_text("{}\n" * 150)
    problem = first_look(f"{tmp_path}/p.jsonl", skipping).problem
    assert "150 of 150 rows of the prompt files cannot be used" in str(problem)


@pytest.mark.parametrize(
    ("row", "learnt"),
    [
        ('{"input": "x", "label": "y"}', True),
        ('{"input": "x"}', False),
        ('{"input": [{"role": "user", "content": "x"}]}', False),
        ('{"input": [{"role": "user", "content": "x"}], "label": "y"}', True),
        ('{"input": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
         True),
        ('{"input": [{"role": "assistant", "content": "y", "train": false}], "label": "z"}', False),
    ],
)  # fmt: skip
def test_what_is_to_be_learnt_has_to_be_there(tmp_path: Path, row: str, learnt: bool) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f"{row}\n")
    assert first_look(str(path), DataConfig()).problem is None
    problem = first_look(str(path), DataConfig(), answered=True).problem
    assert (problem is None) == learnt
    assert learnt or f"{path}:1: there is nothing to train on" in str(problem)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"input": "\ud800", "chosen": "a", "rejected": "b"}, "the prompt is not Unicode"),
        ({"input": "q", "chosen": "a", "rejected": "\ud800"}, "'rejected' is not Unicode"),
        ({"chosen": [{"role": "user", "content": "q"},
                     {"role": "assistant", "content": "\ud800"}],
          "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]},
         "'chosen' is not Unicode"),
    ],
)  # fmt: skip
def test_half_a_character_in_a_pair_is_told_by_row(tmp_path: Path, row: object, told: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n")
    problem = first_look(str(path), DataConfig(), PreferenceConfig()).problem
    assert f"{path}:1: {told}" in str(problem)


def test_half_a_character_in_what_is_learnt_is_told_by_row(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"input": "q", "label": "\ud800"}) + "\n")
    assert first_look(str(path), DataConfig()).problem is None
    problem = first_look(str(path), DataConfig(), answered=True).problem
    assert f"{path}:1: 'label' is not Unicode" in str(problem)
    row = {"input": [{"role": "user", "content": "\ud800"}], "label": "a"}
    path.write_text(json.dumps(row) + "\n")
    assert "the prompt is not Unicode" in str(first_look(str(path), DataConfig()).problem)
