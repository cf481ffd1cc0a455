import json
import random
from pathlib import Path

from slime_train.quickstart.task import careless, problems, write_task


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_column_carries():
    # 36 ways to fill the tens (each at least 1, together at most 9), 55 to fill the ones.
    assert len(problems()) == len(set(problems())) == 36 * 55
    assert all(len(problem.total) == 2 for problem in problems())


def test_held_out_problems_are_neither_trained_on_nor_demonstrated(tmp_path: Path):
    files = write_task(tmp_path, seed=0)
    held_out = {row["prompt"] for row in rows(files.evaluation)}
    training = {row["prompt"] for row in rows(files.train)}
    taught = {row["messages"][0]["content"] for row in rows(files.demonstrations)}
    assert (len(held_out), len(training)) == (198, 1782)
    assert not held_out & training
    assert taught <= training


def test_labels_are_right_and_half_of_the_demonstrations(tmp_path: Path):
    files = write_task(tmp_path, seed=1)
    labels = {row["prompt"]: row["label"] for row in rows(files.train)}
    assert all(eval(prompt.removesuffix("=?")) == int(label) for prompt, label in labels.items())
    taught = rows(files.demonstrations)
    right = sum(
        row["messages"][1]["content"] == f"\\boxed{{{labels[row['messages'][0]['content']]}}}"
        for row in taught
    )
    # 0.7^2 = 0.49, with a standard deviation of 0.0035 over 20,480 demonstrations.
    assert abs(right / len(taught) - 0.49) < 0.0175


def test_a_careless_digit_is_another_digit():
    rng = random.Random(0)
    answers = [careless("7", rng) for _ in range(1000)]
    assert set(answers) == set("0123456789")
    assert 640 < answers.count("7") < 760


def test_one_seed_makes_one_task(tmp_path: Path):
    first, second = write_task(tmp_path / "a", seed=5), write_task(tmp_path / "b", seed=5)
    other = write_task(tmp_path / "c", seed=6)
    assert first.demonstrations.read_bytes() == second.demonstrations.read_bytes()
    assert first.evaluation.read_bytes() != other.evaluation.read_bytes()
