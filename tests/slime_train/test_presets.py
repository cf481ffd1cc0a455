"""MODEL_ARGS beside --hf-checkpoint, for every preset: they agree, or both values are named."""

import re
import shlex

import pytest
from slime_convert import families
from slime_convert.presets import PRESETS, render
from slime_core.config.draft import Facts
from slime_core.errors import ConfigErrors
from slime_train.resolve import resolve
from slime_train.sources import read_sources

BASE = "--hf-checkpoint /models/x --prompt-data p.jsonl --num-rollout 3 --rollout-batch-size 4"


def model_args(name: str) -> list[str]:
    """What ``source scripts/models/NAME.sh`` puts on a command line."""
    inside = re.search(r"\((.*)\)", render(name), re.DOTALL)
    assert inside
    return shlex.split(inside.group(1))


def facts(name: str) -> Facts:
    config = PRESETS[name]
    arguments = families.find(config).megatron_args(config)
    return Facts(hf_config=config, megatron_args=arguments)


@pytest.mark.parametrize("name", PRESETS)
def test_a_model_needs_no_arguments_and_takes_its_own(name):
    alone = resolve(read_sources(BASE.split()), facts(name)).config.megatron
    given = resolve(read_sources([*BASE.split(), *model_args(name)]), facts(name)).config.megatron
    wanted = facts(name).megatron_args
    assert {dest: alone.values[dest] for dest in wanted} == wanted
    assert set(alone.argv) == set(given.argv)


@pytest.mark.parametrize(
    ("given", "checkpoint", "named"),
    [
        ("qwen3-4B", "qwen3-8B", ("--hidden-size", "2560", "4096")),
        ("qwen3-4B", "qwen3-4B-Instruct-2507", ("--rotary-base", "1000000", "5000000")),
        ("deepseek-v3-5layer", "deepseek-v3", ("--moe-layer-freq", "[0]*3+[1]*2", "[0]*3+[1]*58")),
        ("kimi-k2", "kimi-k2-thinking", ("--rotary-scaling-factor", "32", "64")),
        ("glm4-9B", "glm4-32B", ("--num-layers", "40", "61")),
    ],
)
def test_a_preset_of_another_model_is_refused_with_both_values(given, checkpoint, named):
    with pytest.raises(ConfigErrors) as caught:
        resolve(read_sources([*BASE.split(), *model_args(given)]), facts(checkpoint))
    flag = named[0]
    (line,) = [problem for problem in caught.value.problems if problem.startswith(flag)]
    assert all(value in line for value in named)


def test_how_experts_are_trained_is_not_the_checkpoints_to_say():
    words = "--moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 0.001"
    found = resolve(read_sources(f"{BASE} {words}".split()), facts("qwen3-30B-A3B")).config
    assert found.megatron.values["moe_router_load_balancing_type"] in (
        "seq_aux_loss",
        ["seq_aux_loss"],
        ("seq_aux_loss",),
    )
