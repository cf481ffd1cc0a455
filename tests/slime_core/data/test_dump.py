"""Dumps of samples are read back whatever users put into them, or are not written."""

import numpy as np
import pytest
import torch
from slime_core.data.dump import read_dump, write_dump, write_evaluation
from slime_core.errors import DataError
from slime_core.types import SampleGroup
from slime_testing import make_sample


def group_of(**attributes):
    sample = make_sample(2, index=7, group_index=3)
    for name, value in attributes.items():
        setattr(sample, name, value)
    return SampleGroup(3, (sample,))


def test_a_dump_holds_numpys_values_as_pythons(tmp_path):
    template = str(tmp_path / "{rollout_id}.pt")
    group = group_of(
        reward={"score": np.float64(0.5), "ok": np.bool_(True)},
        metadata={"votes": np.arange(3), "counts": {np.int64(2): np.float32(1.5)}},
        rollout_log_probs=np.array([-0.5, -0.25]),
        seen=torch.tensor([1]),
    )
    write_dump(template, 4, [group])
    (read,) = read_dump(template, 4)[0].samples
    assert read.reward == {"score": 0.5, "ok": True}
    assert read.metadata == {"votes": [0, 1, 2], "counts": {2: 1.5}}
    assert read.rollout_log_probs == [-0.5, -0.25]
    assert read.seen.tolist() == [1]
    assert type(group.samples[0].metadata["votes"]) is np.ndarray  # the run's own stays as it was


def test_the_samples_of_an_evaluation_lie_beside_the_dumps_of_rollouts(tmp_path):
    template = str(tmp_path / "d" / "{rollout_id:03}.pt")
    (sample,) = group_of(reward=np.float64(0.5)).samples
    write_evaluation(template, 4, {"aime": {"samples": [sample], "rewards": [0.5]}, "own": {}})
    read = torch.load(tmp_path / "d" / "eval_004.pt", weights_only=True)
    assert read["rollout_id"] == 4
    assert read["sets"]["own"] == []
    assert [(s["index"], s["reward"]) for s in read["sets"]["aime"]] == [(7, 0.5)]
    assert [each.name for each in (tmp_path / "d").iterdir()] == ["eval_004.pt"]


def test_a_dump_that_is_not_there_is_named_with_its_flag(tmp_path):
    template = str(tmp_path / "{rollout_id}.pt")
    with pytest.raises(DataError, match=r"--load-debug-rollout-data .*: .*/4\.pt does not exist"):
        read_dump(template, 4)


class Verdict:
    pass


def test_an_object_is_refused_when_written_and_names_the_field_and_the_function(tmp_path):
    template = str(tmp_path / "{rollout_id}.pt")
    told = (
        r"0\.pt: groups\[0\]\['samples'\]\[0\]\['metadata'\]\['judge'\] is a \S*Verdict, .*"
        r": --custom-rm-path own\.score$"
    )
    group = group_of(metadata={"judge": Verdict()})
    with pytest.raises(DataError, match=told):
        write_dump(template, 0, [group], "--custom-rm-path own.score")
    assert not list(tmp_path.iterdir())


def test_a_file_with_other_things_in_it_is_told_by_its_name(tmp_path):
    template = str(tmp_path / "{rollout_id}.pt")
    torch.save({"groups": [{"samples": [np.arange(2)]}]}, tmp_path / "0.pt")
    with pytest.raises(DataError, match=r"0\.pt cannot be read .*--save-debug-rollout-data"):
        read_dump(template, 0)
    torch.save({"samples": []}, tmp_path / "1.pt")
    with pytest.raises(DataError, match=r"1\.pt is not a dump"):
        read_dump(template, 1)
