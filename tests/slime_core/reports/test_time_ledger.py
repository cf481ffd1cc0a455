import pytest
from slime_core.reports.time_ledger import TimeLedger


def test_shares_of_what_was_done_and_of_idleness_add_up_to_one() -> None:
    now = iter([0.0, 1.0, 3.0, 3.0, 4.0, 8.0, 8.0, 9.0, 10.0])
    ledger = TimeLedger("trainer", clock=lambda: next(now))
    with ledger.spending("train"):  # 1 to 3
        pass
    with ledger.spending("publish"):  # 3 to 4
        pass
    assert ledger.shares() == {  # at 8
        "perf/trainer_train_share": 0.25,
        "perf/trainer_publish_share": 0.125,
        "perf/trainer_idle_share": 0.625,
    }
    with ledger.spending("train"):  # 8 to 9
        pass
    shares = ledger.shares()  # at 10
    assert shares == {"perf/trainer_train_share": 0.5, "perf/trainer_idle_share": 0.5}


def test_what_fails_is_booked_too() -> None:
    now = iter([0.0, 0.0, 2.0, 2.0])
    ledger = TimeLedger("engines", clock=lambda: next(now))
    with pytest.raises(OSError, match="x"), ledger.spending("generate"):
        raise OSError("x")
    assert ledger.shares() == {
        "perf/engines_generate_share": 1.0,
        "perf/engines_idle_share": 0.0,
    }
