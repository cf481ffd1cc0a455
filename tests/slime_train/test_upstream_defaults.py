"""Upstream's defaults, written out, are no mistake."""

from datetime import datetime

import pytest
from slime_core.config.draft import Facts
from slime_core.errors import ConfigErrors
from slime_testing.resolved_case import ARCHITECTURE, BASE
from slime_train.resolve import Resolved, resolve
from slime_train.sources import read_sources, slime_flags

FACTS = Facts(megatron_args=ARCHITECTURE, now=datetime(2026, 1, 2))

CHANGE_NOTHING = """
--actor-num-nodes 1 --rollout-num-gpus-per-engine 1 --num-gpus-per-node 8 --train-env-vars {}
--distributed-timeout-minutes 10 --qwen-gdn-backend fla --update-weight-mode full
--update-weight-delta-encoding xor --update-weight-delta-checksum xxh3-128
--log-probs-chunk-size -1 --rollout-temperature 1.0 --rollout-top-p 1.0 --rollout-top-k -1
--rollout-seed 42 --update-weight-buffer-size 536870912 --update-weights-interval 1
--rollout-data-transport object-store --rollout-health-check-interval 30
--rollout-health-check-timeout 30 --rollout-health-check-first-wait 0
--apply-chat-template-kwargs {} --input-key input --metadata-key metadata --tool-key tools
--n-samples-per-prompt 1 --micro-batch-size 1 --n-samples-per-eval-prompt 1 --seed 1234
--clip-grad 1.0 --lr 1e-6 --num-critic-only-steps 0 --eps-clip .2 --value-clip .2 --kl-coef 0
--kl-loss-type k1 --kl-loss-coef 0 --loss-type policy_loss --advantage-estimator grpo
--entropy-coef 0 --gamma 1.0 --lambd 1.0 --tis-clip 2.0 --tis-clip-low 0 --opsm-delta 1e-4
--opd-kl-coef 1.0 --memory-snapshot-dir . --profile-target train_overall --memory-recorder torch
--fetch-trajectory-retry-times -1 --min-batch-collection-ratio 1 --rollout-task-type math
--loss-mask-type qwen --ci-train-rollout-logprob-abs-diff-threshold 0.1
--sglang-router-request-timeout-secs 14400 --sglang-server-concurrency 512
--teacher-port 7999 --teacher-warmup-timeout-s 3000 --teacher-sample-reduction-chunk-size 4096
--teacher-label-reduction-chunk-size 4096 --megatron-server-max-length 0
--megatron-server-update-timeout-s 3600 --train-backend megatron
"""


def resolved(line: str) -> Resolved:
    return resolve(read_sources(f"{BASE} {line}".split()), FACTS)


def sections(line: str) -> dict[str, object]:
    config = resolved(line).config
    names = ("advantage", "policy_loss", "off_policy", "rollout", "sampling", "sync", "debug")
    return {name: getattr(config, name) for name in names} | {"argv": config.megatron.argv}


def test_upstreams_defaults_give_the_run_that_there_is_without_them():
    assert sections(" ".join(CHANGE_NOTHING.split())) == sections("")


VALUED = [
    flag
    for flag in slime_flags()
    if flag.spelling.get("planned") and flag.arity != "none" and flag.default is not None
]


@pytest.mark.parametrize("flag", VALUED, ids=lambda flag: flag.dest)
def test_what_is_not_there_may_be_left_as_it_is(flag):
    value = " ".join(map(str, flag.default)) if flag.arity == "some" else str(flag.default)
    assert read_sources([flag.names[0], *value.split()]).problems == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--qwen-gdn-backend flashqla", "no family with gated delta nets is there yet"),
        ("--memory-recorder memray", "profile the processes from outside"),
        ("--profile-target train_overall train_actor", "profile the processes from outside"),
        ("--rollout-task-type code", "the buffer is in the run itself: leave it out"),
        ("--teacher-port 8000", "a teacher is given by --use-opd --opd-type"),
        ("--tis-clip 3", "--tis-clip without importance weights: add --use-tis"),
        ("--value-clip 0.3", "--value-clip needs --advantage-estimator ppo"),
        ("--opsm-delta 1e-3", "add --use-opsm, or leave it out"),
        ("--opd-kl-coef 2", "without --use-opd"),
        ("--update-weight-delta-encoding overwrite", "needs --update-weight-mode delta"),
    ],
)
def test_another_value_is_refused(line, told):
    with pytest.raises(ConfigErrors) as caught:
        resolved(line)
    assert told in "\n".join(caught.value.problems)


def test_a_default_of_something_that_is_off_is_told_as_having_no_effect():
    assert "--tis-clip without importance weights" in " ".join(resolved("--tis-clip 2.0").notices)


def test_a_switch_may_be_off_in_a_file(tmp_path):
    (tmp_path / "own.yaml").write_text("use_routing_replay: false\nrecompute_loss_function: true\n")
    assert read_sources(["--custom-config-path", f"{tmp_path}/own.yaml"]).problems == []
    (tmp_path / "own.yaml").write_text("use_routing_replay: true\n")
    (told,) = read_sources(["--custom-config-path", f"{tmp_path}/own.yaml"]).problems
    assert "use_routing_replay: true: not there yet" in told
