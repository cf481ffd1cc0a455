"""--megatron-config-path: actor and critic, each with settings of its own."""

from datetime import datetime

import pytest
from slime_core.config.draft import Facts
from slime_core.errors import ConfigErrors
from slime_train.dump import dump
from slime_train.resolve import resolve
from slime_train.sources import read_sources

ARCHITECTURE = {"num_attention_heads": 4, "num_layers": 2, "vocab_size": 100}
BASE = "--hf-checkpoint /models/tiny --prompt-data p.jsonl --num-rollout 3 --rollout-batch-size 4"
PPO = "--advantage-estimator ppo"


def resolved(tmp_path, roles, line=PPO, **changes):
    path = tmp_path / "roles.yaml"
    path.write_text(roles)
    facts = Facts(megatron_args=ARCHITECTURE, now=datetime(2026, 1, 2), **changes)
    return resolve(read_sources(f"{BASE} {line} --megatron-config-path {path}".split()), facts)


def problems(*args, **changes):
    with pytest.raises(ConfigErrors) as caught:
        resolved(*args, **changes)
    return "\n".join(caught.value.problems)


def test_each_role_gets_its_own_values_and_shares_the_others(tmp_path):
    found = resolved(
        tmp_path,
        "megatron:\n"
        "  - {name: policy, role: actor, overrides: {lr: 2.0e-6}}\n"
        "  - {name: value, role: critic, args: {lr: 1.0e-5, value-clip: 0.5}}\n",
        f"{PPO} --clip-grad 0.5",
    )
    actor, critic = found.config, found.config.of_critic
    assert (actor.megatron["lr"], critic.megatron["lr"]) == (2e-6, 1e-5)
    assert (actor.critic.value_clip, critic.critic.value_clip) == (0.2, 0.5)
    assert actor.megatron["clip_grad"] == critic.megatron["clip_grad"] == 0.5
    assert "1e-05" in "\n".join(dump(found)).split("[critic]")[1]


def test_ppo_has_a_critic_without_being_told_and_nothing_else_has(tmp_path):
    facts = Facts(megatron_args=ARCHITECTURE)
    assert resolve(read_sources(f"{BASE} {PPO}".split()), facts).config.of_critic is not None
    assert resolve(read_sources(BASE.split()), facts).config.of_critic is None
    roles = "megatron: [{role: critic, overrides: {lr: 1.0e-5}}]"
    assert "needs --advantage-estimator ppo" in problems(tmp_path, roles, "")


def test_a_critic_may_come_from_another_checkpoint(tmp_path):
    roles = "megatron: [{role: critic, overrides: {hf_checkpoint: /models/value}}]"
    config = resolved(tmp_path, roles).config
    assert config.model.hf_checkpoint == "/models/tiny"
    assert config.of_critic.model.hf_checkpoint == "/models/value"


def test_actor_and_critic_must_fit_into_host_memory_together(monkeypatch):
    from slime_megatron.rules import host_memory

    monkeypatch.setattr(host_memory, "num_parameters", lambda _: host_memory.Parameters(10**9))
    words = f"{BASE} {PPO} --colocate --use-distributed-optimizer --offload-host-memory-gib".split()
    facts = Facts(megatron_args=ARCHITECTURE, num_gpus=2, hf_config={"any": "model"})
    resolve(read_sources([*words, "30"]), facts)
    with pytest.raises(ConfigErrors, match="of actor and critic") as caught:
        resolve(read_sources([*words, "20"]), facts)  # each alone takes 15
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("roles", "complaint"),
    [
        ("megatron: [{role: judge}]", "is no role: give {role: actor or critic"),
        ("megatron: [{role: critic, overrides: {lrr: 1}}]", "critic: there is no flag lrr"),
        ("megatron: [{role: critic, overrides: {eps-clip: 1}}]", "has no effect on a critic"),
        ("megatron: [{role: critic, overrides: {lr: fast}}]", "critic: lr:"),
        ("megatron: [{role: critic, overrides: {lr: 1, value_clip: -1}}]", "value"),
        ("other: 1", "must hold one key, `megatron`"),
        ("[1]", "must hold a mapping"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, roles, complaint):
    assert complaint in problems(tmp_path, roles)


def test_actor_and_critic_train_on_the_same_microbatches(tmp_path):
    roles = "megatron: [{role: critic, overrides: {context_parallel_size: 2}}]"
    line = f"{PPO} --actor-num-gpus-per-node 2"
    assert "other parallel sizes" in problems(tmp_path, roles, line)


def test_a_file_that_is_not_there_is_one_problem(tmp_path):
    words = f"{BASE} {PPO} --megatron-config-path {tmp_path / 'none.yaml'}".split()
    with pytest.raises(ConfigErrors, match="cannot be read"):
        resolve(read_sources(words), Facts(megatron_args=ARCHITECTURE))
