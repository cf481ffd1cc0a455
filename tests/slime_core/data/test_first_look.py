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
