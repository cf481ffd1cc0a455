"""From recorded or given samples to what each rank is sent; no engine, no trainer."""

import json

import pytest
import torch
from slime_core.data.dump import read_dump, write_dump
from slime_core.errors import ConfigError, ConfigErrors, DataError, SampleError
from slime_core.hooks.rollout_functions import EvalResult
from slime_core.types import SampleGroup
from slime_testing import make_sample
from slime_testing.tiny import make_qwen3
from slime_train.facts import gather
from slime_train.resolve import resolve
from slime_train.rollout_host import RolloutHost
from slime_train.sources import read_sources


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_qwen3(tmp_path_factory.mktemp("model"))


def resolved(model, *words):
    length = () if "--num-rollout" in words else ("--num-rollout", 4)
    base = ["--hf-checkpoint", model, *length, *words]
    raw = read_sources([str(word) for word in base])
    return resolve(raw, gather(raw)).config


def pairs(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("loss", ["dpo_loss", "rm_loss"])
def test_pairs_stay_together_in_microbatches_of_one_rank(loss, model, tmp_path):
    rows = [{"prompt": f"{i}+{i}=", "chosen": f"{2 * i}", "rejected": "no" * i} for i in range(6)]
    config = resolved(
        model, "--loss-type", loss, "--prompt-data", pairs(tmp_path / "p.jsonl", *rows),
        "--rollout-batch-size", 6, "--global-batch-size", 3, "--micro-batch-size", 1,
        "--actor-num-gpus-per-node", 2, "--rollout-shuffle",
    )  # fmt: skip
    assert config.cluster.rollout_num_engines == 0
    assert (config.batch.num_steps_per_rollout, config.megatron.layout.dp) == (2, 2)
    host = RolloutHost(config, tmp_path)
    assert host.start(None) == (6, ())
    payloads, metrics = host.generate(0)
    assert metrics["rollout/num_samples"] == 12
    assert not [name for name in metrics if "reward" in name]
    for payload in payloads:
        assert len(payload.steps) == 2
        for step in payload.steps:
            assert step.counts.num_rollouts == 3
            for microbatch in step.microbatches:
                assert payload.batch.raw_rewards[list(microbatch)].tolist() in ([1, 0], [])
                assert len(set(payload.batch.rollout_ids[list(microbatch)].tolist())) <= 1
    assert sum(payload.batch.num_samples for payload in payloads) == 12
    host.save(tmp_path, 0)
    again = RolloutHost(config, tmp_path)
    again.start(tmp_path)
    (ours, theirs) = host.generate(1)[0], again.generate(1)[0]
    assert ours[0].batch.tokens.values.tolist() == theirs[0].batch.tokens.values.tolist()


def test_a_wrong_column_of_pairs_costs_a_second(model, tmp_path):
    path = pairs(tmp_path / "p.jsonl", {"prompt": "a", "better": "b", "rejected": "c"})
    line = ("--loss-type", "dpo_loss", "--prompt-data", path, "--rollout-batch-size", 1)
    with pytest.raises(ConfigErrors, match=r"no key 'chosen'.*--chosen-key"):
        resolved(model, *line)
    assert resolved(model, *line, "--chosen-key", "better").preference.chosen_key == "better"


def replayed(model, tmp_path, versions, *words, iterations=(0,), baseline=None):
    """Two groups of two samples; the response tokens of each were written by ``versions``."""
    groups = [
        SampleGroup(
            g,
            tuple(
                make_sample(
                    len(versions), index=2 * g + i, group_index=g, rollout_id=2 * g + i,
                    reward=float(i), token_versions=list(versions),
                )
                for i in range(2)
            ),
            baseline,
        )
        for g in range(2)
    ]  # fmt: skip
    template = str(tmp_path / "{rollout_id}.pt")
    written = {*iterations, *(int(file.stem) for file in tmp_path.glob("*.pt"))}
    for iteration in iterations:
        write_dump(template, iteration, groups)
    config = resolved(
        model, "--load-debug-rollout-data", template, "--rollout-batch-size", 2,
        "--n-samples-per-prompt", 2, "--start-rollout-id", min(written),
        "--num-rollout", max(written) + 1, *words,
    )  # fmt: skip
    return RolloutHost(config, tmp_path), template


def test_a_replay_trains_on_the_dump_and_not_on_what_a_checkpoint_had_finished(model, tmp_path):
    host, template = replayed(model, tmp_path, [0, 0], iterations=(0, 1))
    for iteration in (0, 1):
        host.generate(iteration)
    (tmp_path / "saved").mkdir()
    host.save(tmp_path / "saved", 0)  # which keeps iteration 1
    write_dump(template, 1, read_dump(template, 1)[:1])
    again, _ = replayed(model, tmp_path, [0, 0], "--global-batch-size", 2, iterations=())
    again.start(tmp_path / "saved")
    assert again.generate(1)[1]["rollout/num_samples"] == 2


def test_what_a_rank_trains_on_is_plain_data(model, tmp_path):
    host, _ = replayed(model, tmp_path, [0, 0])
    (payload,), _ = host.generate(0)
    torch.save(payload.plain(), tmp_path / "train.pt")
    read = torch.load(tmp_path / "train.pt", weights_only=True)
    assert [tokens.tolist() for tokens in read["batch"]["tokens"]] == [
        sample.tokens for group in read_dump(str(tmp_path / "{rollout_id}.pt"), 0)
        for sample in group.samples
    ]  # fmt: skip
    assert read["batch"]["raw_rewards"].tolist() == [0, 1, 0, 1]
    assert read["batch"]["teacher_log_probs"] is None
    assert read["steps"][0]["counts"]["num_samples"] == 4


def test_answers_of_an_evaluation_are_dumped_beside_those_of_rollouts(model, tmp_path, monkeypatch):
    template = tmp_path / "out" / "{rollout_id}.pt"
    host, _ = replayed(model, tmp_path, [0, 0], "--save-debug-rollout-data", template)
    found = EvalResult({"sums": {"samples": [make_sample(2, index=5)]}}, {"eval/sums": 1.0})
    monkeypatch.setattr(host._producer, "evaluate", lambda version: found)
    assert host.evaluate(3) == {"eval/sums": 1.0}
    read = torch.load(tmp_path / "out" / "eval_3.pt", weights_only=True)
    assert [sample["index"] for sample in read["sets"]["sums"]] == [5]


def test_tokens_of_another_vocabulary_are_not_sent_to_the_trainer(model, tmp_path):
    spec = f"{tmp_path}/mine.py:reward"
    (tmp_path / "mine.py").write_text("def reward(response, label, metadata): ...")
    host, template = replayed(model, tmp_path, [0, 0], "--custom-rm-path", spec)
    groups = read_dump(template, 0)
    groups[1].samples[0].tokens[-1] = 1_000_000
    write_dump(template, 0, groups)
    with pytest.raises(SampleError, match=r"sample 2: `tokens\[3\]` is 1000000") as caught:
        host.generate(0)
    assert str(caught.value).endswith(f"look at --custom-rm-path {spec}")


def test_groups_too_small_for_a_step_are_told_with_the_class_that_gives_them(model, tmp_path):
    spec = f"{tmp_path}/mine.py:Mine"
    host, template = replayed(model, tmp_path, [0, 0], "--data-source-path", spec)
    whole = read_dump(template, 0)
    write_dump(template, 0, [SampleGroup(g.group_index, g.samples[:1]) for g in whole])
    with pytest.raises(ConfigError) as caught:
        host.generate(0)
    assert str(caught.value) == (
        "--global-batch-size is 4 but the iteration holds 2 rollouts, not enough for one step: "
        "2 groups of 1, instead of 2 groups of 2 (--rollout-batch-size, --n-samples-per-prompt). "
        f"Look at --data-source-path {spec}: make its groups of 2 samples, "
        "args.n_samples_per_prompt, or give --n-samples-per-prompt 1"
    )
    again = [SampleGroup(7, tuple(make_sample(2, reward=0.0) for _ in range(3)))]
    write_dump(template, 1, [SampleGroup(whole[0].group_index, whole[0].samples[:1]), *again])
    assert host.generate(1)[1]["rollout/num_samples"] == 4  # enough, of sizes 1 and 3


@pytest.mark.parametrize(
    ("words", "asked"),
    [((), 0), (("--save", "saved"), 0), (("--save", "saved", "--async-buffer-size", 1), 1)],
)
def test_the_position_is_asked_for_where_a_checkpoint_may_come_while_generating(
    words, asked, model, tmp_path, monkeypatch
):
    host, _ = replayed(model, tmp_path, [0], *words)
    calls = []
    monkeypatch.setattr(host._producer, "state_dict", lambda: calls.append(0) or {})
    host.generate(0)
    assert len(calls) == asked


def test_tokens_that_are_too_old_are_not_trained_on(model, tmp_path):
    host, _ = replayed(
        model, tmp_path, [0, -1, 1, 2], "--max-token-staleness", 1, iterations=(1, 2, 3)
    )
    trained = []
    for iteration in (1, 2, 3):
        (payload,), metrics = host.generate(iteration)
        trained.append(payload.batch.loss_mask.values.view(4, 4)[0].tolist())
        stale = metrics["rollout/num_stale_tokens"]
        assert stale == 16 - payload.batch.loss_mask.values.sum().item()
    assert trained == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 1]]


def test_weights_are_as_old_as_the_last_that_were_published(model, tmp_path):
    host, _ = replayed(
        model, tmp_path, [2, 3], "--max-token-staleness", 0, "--update-weights-interval", 2,
        iterations=(3, 4, 5),
    )  # fmt: skip
    # published as 3, where the run began, and as 4
    trained = [host.generate(i)[0][0].batch.loss_mask.values.sum().item() for i in (3, 4, 5)]
    assert trained == [4, 0, 0]


def test_penalties_shape_what_is_learnt_from(model, tmp_path):
    words = ["--overlong-buffer-len", 2, "--rollout-max-response-len", 4]
    words += ["--disable-rewards-normalization"]
    host, _ = replayed(model, tmp_path, [0, 0, 0], *words)
    (payload,), _ = host.generate(0)
    assert payload.batch.raw_rewards.tolist() == [0, 1, 0, 1]
    assert payload.batch.rewards.tolist() == [-0.5, 0.5, -0.5, 0.5]


def test_what_a_dump_cannot_hold_is_told_with_the_function_that_set_it(model, tmp_path):
    (tmp_path / "own.py").write_text("def score(response, label, metadata): return 0.0\n")
    words = ("--save-debug-rollout-data", tmp_path / "again-{rollout_id}.pt")
    words += ("--custom-rm-path", f"{tmp_path}/own.py:score")
    host, template = replayed(model, tmp_path, [0], *words)
    groups = read_dump(template, 0)
    groups[1].samples[0].metadata["seen"] = range(3)
    host._producer.produce = lambda _: (groups, {})
    told = r"groups\[1\].*\['seen'\] is a builtins\.range.*--custom-rm-path \S*own\.py:score$"
    with pytest.raises(DataError, match=told):
        host.generate(0)


def test_a_dump_keeps_the_greedy_baseline(model, tmp_path):
    words = ("--advantage-estimator", "remax")
    host, template = replayed(model, tmp_path, [0], *words, baseline=0.25)
    assert [group.baseline for group in read_dump(template, 0)] == [0.25, 0.25]
    (payload,), _ = host.generate(0)
    assert payload.batch.rewards.tolist() == [-0.25, 0.75, -0.25, 0.75]
