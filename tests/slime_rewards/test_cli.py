import json
import subprocess
import sys
import tomllib

import pytest
from slime_rewards import cli
from slime_testing.workspace import PACKAGES


def grade(rows, *arguments):
    """Exit code, rows of the answer, and what was said."""
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    code = "from slime_rewards.cli import entry; entry()"
    done = subprocess.run(
        [sys.executable, "-c", code, "grade", *arguments],
        input=text.encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.decode().splitlines()]
    return done.returncode, answers, done.stderr.decode()


def test_rewards_come_in_the_order_of_the_rows(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import time\n\n\ndef grade(response, label, metadata):\n"
        "    if response == 'slow':\n        time.sleep(30)\n"
        "    if response == 'bad':\n        raise KeyError('k')\n"
        "    time.sleep(metadata.get('seconds', 0))\n    return {'score': float(response)}\n"
    )
    rows = [
        {"response": "1", "metadata": {"seconds": 0.3}},
        {"response": "slow"},
        {"response": "2"},
        {"response": r"\boxed{(x+1)^2}", "label": "x^2+2x+1", "metadata": {"rm_type": "math"}},
        {"response": "bad"},
    ]
    rows = "\n\n".join(json.dumps(row) for row in rows)
    options = ["--custom-rm-path", f"{tmp_path}/mine.py:grade", "--timeout", "1"]
    code, answers, said = grade(rows, *options, "--workers", "2", "--memory-mb", "2048")
    assert (code, said) == (0, "")
    assert [row["reward"] for row in answers] == [{"score": 1.0}, None, {"score": 2.0}, 1.0, None]
    outcomes = ["value", "abstention", "value", "value", "error"]
    assert [row["outcome"] for row in answers] == outcomes
    assert "KeyError" in answers[4]["error"]
    assert answers[0]["error"] is None
    assert answers[0]["seconds"] >= 0.3


def test_rows_of_a_dump_are_graded_as_in_the_run():
    row = json.dumps({"response": "Paris<|im_end|>", "label": "paris"})
    assert grade(row, "--rm-type", "exact_match")[1][0]["reward"] == 1.0


def test_rows_before_a_malformed_one_are_graded_and_its_line_is_named():
    good = json.dumps({"response": "4", "label": 4})
    for bad, message in [("{", "Expecting property name"), ("[1]", "a row is an object")]:
        code, answers, said = grade(f"{good}\n{bad}\n{good}\n", "--rm-type", "math")
        assert (code, [row["reward"] for row in answers]) == (1, [1.0])
        assert f"line 2: {message}" in said


def test_a_label_that_no_answer_equals_is_an_error_of_its_row():
    labels = ('{"a": 1}', "NaN", "null", '"4"')
    rows = "".join(f'{{"response": "4", "label": {label}}}\n' for label in labels)
    code, answers, _ = grade(rows, "--rm-type", "math")
    assert code == 0
    assert [row["outcome"] for row in answers] == ["error", "error", "error", "value"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"label": 1}', "response is None: give text"),
        (b'{"response": "", "metadata": 3}', "metadata is 3"),
        (b'{"response": "", "metadata": {"rm_type": "mth"}}', "metadata rm_type mth is unknown"),
        (b'{"response": "\xff"}', "'utf-8' codec"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row, message):
    with pytest.raises(cli.RowError, match=f"line 2: {message}"):
        list(cli._questions([b"\n", row], "math"))


def test_mistakes_on_the_command_line_are_said(tmp_path, capsys):
    assert cli.main(["grade", "--rm-type", "mth"]) == 1
    assert "--rm-type mth is unknown; there are math" in capsys.readouterr().err
    assert cli.main(["grade", "--custom-rm-path", "gone.py"]) == 1
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "rm.py").write_text("async def rm(args, sample): ...\n")
    assert cli.main(["grade", "--custom-rm-path", f"{tmp_path}/rm.py"]) == 1
    assert "(response, label, metadata)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["grade", "--rm-type", "math", "--workers", "0"])


def test_random_rewards_repeat_with_their_seed():
    rows = [{"response": "a"}] * 30
    first = [row["reward"] for row in grade(rows, "--rm-type", "random")[1]]
    assert set(first) == {0.0, 1.0}
    assert first == [row["reward"] for row in grade(rows, "--rm-type", "random")[1]]
    assert first != [row["reward"] for row in grade(rows, "--rm-type", "random", "--seed", "1")[1]]


def test_the_command_is_installed_with_the_package():
    project = tomllib.loads((PACKAGES["slime_rewards"] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"slime-rewards": "slime_rewards.cli:entry"}


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_deadline_that_is_none_is_refused(capsys, seconds):
    with pytest.raises(SystemExit):
        cli.main(["grade", "--rm-type", "math", "--timeout", seconds])
    assert f"{seconds} is no number of seconds above 0" in capsys.readouterr().err


def test_a_deadline_in_some_years_is_kept():
    row = {"response": r"\boxed{(x+1)^2}", "label": "x^2+2x+1"}
    code, answers, _ = grade([row], "--rm-type", "math", "--timeout", "1e9")
    assert (code, answers[0]["reward"]) == (0, 1.0)


def test_a_row_too_deep_to_be_read_is_named():
    code, _, said = grade("[" * 100_000 + "\n", "--rm-type", "math")
    assert code == 1
    assert "line 1: maximum recursion depth" in said
