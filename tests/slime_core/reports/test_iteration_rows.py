from slime_core.reports.iteration_rows import Table, row


def cells(line: str) -> dict[str, str]:
    titles = ("iteration", "reward", "accuracy", "length", "loss")
    return dict(zip(titles, line.split(), strict=False))


def test_an_evaluation_is_in_one_row_only():
    table = Table()
    assert table.lines(10, {"eval/sums": 0.25}) == ["evaluation after 10 iterations: sums 0.250"]
    first = table.lines(10, {"train/loss": 1.0})[-1]
    second = table.lines(11, {"train/loss": 1.0})[-1]
    assert (cells(first)["accuracy"], cells(second)["accuracy"]) == ("0.250", "-")


def test_of_several_sets_the_row_has_the_mean_and_the_line_says_so():
    table = Table()
    line = table.lines(1, {"eval/a": 0.25, "eval/b": 0.75})
    assert line == ["evaluation after 1 iteration: a 0.250, b 0.750, mean 0.500"]
    assert cells(table.lines(1, {"train/loss": 1.0})[-1])["accuracy"] == "0.500"


def test_answers_that_failed_are_told_beside_the_mean_of_the_others():
    told = {"eval/a": 1.0, "eval/a/failed_ratio": 0.5, "eval/b": 0.5, "eval/b/failed_ratio": 0.0}
    (line,) = Table().lines(1, told)
    assert "iteration: a 1.000 (failed_ratio 0.500), b 0.500, mean 0.750" in line


def test_a_set_may_have_a_hyphen_or_a_slash_in_its_name():
    told = {
        "eval/aime-2024": 0.5,
        "eval/aime-2024/raw_reward": 0.5,
        "eval/aime-2024-truncated_ratio": 0.1,
        "eval/aime-2024-pass@1": 0.5,
        "eval/math/500": 0.25,
        "eval/math/500/raw_reward": 0.25,
        "eval/math/500-truncated_ratio": 0.1,
        "eval/math/500-pass@16": 0.75,
        "eval/own-function": 0.125,
        "eval/grading/seconds": 3.0,
    }
    (line,) = Table().lines(2, told)
    assert line == (
        "evaluation after 2 iterations: aime-2024 0.500, math/500 0.250, own-function 0.125, "
        "mean 0.292"
    )


def test_a_loss_that_is_shown_as_zero_is_explained_once():
    table, rollout = Table(), {"rollout/raw_reward": 0.5}
    table.lines(0, rollout)
    texts = [table.lines(step, {"train/loss": 1e-9}) for step in (0, 1)]
    assert [sum("a loss of 0" in line for line in lines) for lines in texts] == [1, 0]
    other = Table()
    other.lines(0, rollout)
    assert not any("a loss of 0" in line for line in other.lines(0, {"train/loss": 0.1}))


def test_seconds_are_those_between_two_rows():
    times = iter([0.0, 5.0, 7.5, 8.0])
    table = Table(lambda: next(times))
    table.begin()
    rows = [table.lines(step, {"train/loss": 1.0})[-1] for step in (0, 1)]
    assert [line.split()[-1] for line in rows] == ["2.50", "0.50"]


def test_titles_come_again_after_twenty_rows():
    table = Table()
    counts = [len(table.lines(step, {"train/loss": 1.0})) for step in range(21)]
    assert counts == [2, *[1] * 19, 2]


def test_a_row_says_how_many_steps_were_left_out():
    one = row(0, {"train/num_skipped_steps": 1.0, "critic/num_skipped_steps": 0.0})
    assert one.endswith("  1 step skipped: gradient not finite")
    two = row(0, {"train/num_skipped_steps": 1.0, "critic/num_skipped_steps": 1.0})
    assert two.endswith("  2 steps skipped: gradient not finite")
    assert row(0, {"train/num_skipped_steps": 0.0}) == row(0, {})


def test_the_first_publish_after_each_start_is_told():
    table, published = Table(), {"perf/update_weights_time": 0.84}
    for _ in range(2):  # a run begins again when a process is lost
        table.begin()
        told = [table.lines(step, published) for step in (0, 1)]
        assert told == [["  first weights published in 0.8 s"], []]


def test_a_row_says_why_nothing_was_learnt_and_does_not_call_it_as_it_should_be():
    numbers = {"rollout/raw_reward": 1.0, "train/loss": 0.0, "train/grad_norm": 0.0}
    (_, same) = Table().lines(0, {**numbers, "rollout/response_len/max": 7.0})
    assert same.endswith("gradient 0: are the rewards of each group all the same?")
    (_, masked) = Table().lines(0, {**numbers, "rollout/response_len/max": 0.0})
    assert masked.endswith("gradient 0: no token is trained on, all are masked or removed")
    assert "gradient 0" not in row(0, {**numbers, "train/grad_norm": 0.5})
    assert "gradient 0" not in row(0, {"train/loss": 0.0, "train/grad_norm": 0.0})
