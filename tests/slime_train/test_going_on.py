"""What a run is told when it goes on from a checkpoint of its own."""

import pytest
from slime_testing.tiny import make_qwen3
from slime_train.facts import gather
from slime_train.resolve import resolve
from slime_train.run_config import continued
from slime_train.sources import read_sources

STARTS = "--load {root} --finetune --no-load-optim --no-load-rng --start-rollout-id 3"


def config_of(root, more=""):
    line = (
        f"--hf-checkpoint {root}/model --prompt-data {root}/prompts.jsonl --num-rollout 4 "
        f"--rollout-batch-size 2 --output-dir {root}/out --save {root}/save {more}"
    )
    raw = read_sources(line.format(root=root).split())
    return resolve(raw, gather(raw)).config


@pytest.fixture
def root(tmp_path):
    make_qwen3(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+2=", "label": "3"}\n' * 4)
    return tmp_path


@pytest.mark.parametrize("more", ["", "--advantage-estimator ppo"])
def test_every_part_forgets_how_the_run_was_started(root, more):
    found = models(continued(config_of(root, f"{STARTS} {more}")))
    plain = models(config_of(root, f"--load {root} {more}"))
    assert len(found) == len(plain) == (2 if more else 1)
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.megatron.argv == theirs.megatron.argv
        assert (ours.checkpoint, ours.data) == (theirs.checkpoint, theirs.data)
        assert not any(ours.flat[name] for name in ("finetune", "no_load_rng", "start_rollout_id"))


def models(config):
    return [config] if config.of_critic is None else [config, config.of_critic]
