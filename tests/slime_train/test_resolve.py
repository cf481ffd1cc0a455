import pickle
from datetime import datetime
from pathlib import Path

import pytest
from slime_core.config.draft import Facts
from slime_core.errors import ConfigErrors
from slime_testing.resolved_case import ARCHITECTURE, BASE
from slime_train.resolve import resolve
from slime_train.sources import read_sources

NOW = datetime(2026, 1, 2, 3, 4, 5)


def facts(**changes):
    return Facts(**{"megatron_args": ARCHITECTURE, "now": NOW, **changes})


def resolved(line="", base=BASE, **changes):
    return resolve(read_sources(f"{base} {line}".split()), facts(**changes))


def config(line="", **changes):
    return resolved(line, **changes).config


def problems(line="", base=BASE, **changes):
    with pytest.raises(ConfigErrors) as caught:
        resolved(line, base, **changes)
    return "\n".join(caught.value.problems)


def test_a_laptop_gets_one_process_one_engine_gloo_and_float32():
    c = config()
    assert (c.cluster.device, c.cluster.actor_num_gpus_per_node) == ("cpu", 1)
    assert (c.cluster.rollout_num_engines, c.cluster.rollout_num_gpus) == (1, 1)
    assert (c.cluster.distributed_backend, c.model.precision) == ("gloo", "fp32")
    assert "--bf16" not in c.megatron.argv
    assert "--use-cpu-initialization" in c.megatron.argv


def test_a_gpu_host_gets_nccl_and_bf16():
    c = config("--actor-num-gpus-per-node 4 --rollout-num-gpus 4", num_gpus=8)
    assert (c.cluster.device, c.cluster.distributed_backend) == ("cuda", "nccl")
    assert (c.cluster.rollout_num_engines, c.megatron.world_size) == (4, 4)
    assert "--bf16" in c.megatron.argv


def test_float32_can_be_asked_for_on_gpus_and_bf16_on_a_cpu():
    c = config("--actor-num-gpus-per-node 1 --precision fp32", num_gpus=2)
    assert "--bf16" not in c.megatron.argv
    assert config("--bf16").model.precision == "bf16"
    assert "--bf16 contradicts --precision fp32" in problems("--bf16 --precision fp32")


def test_colocated_engines_use_the_trainers_gpus():
    c = config("--actor-num-gpus-per-node 2 --colocate", num_gpus=2)
    assert (c.cluster.rollout_num_gpus, c.cluster.offload_train) == (2, True)


def test_memory_is_handed_over_where_it_can_be_opened():
    assert config("--colocate", num_gpus=2).sync.update_weight_transport == "tensor"
    assert config("--rollout-num-gpus 1", num_gpus=2).sync.update_weight_transport == "nccl"


def test_a_single_gpu_is_shared_in_turns():
    c = config(num_gpus=1)
    assert (c.cluster.offload_train, c.cluster.offload_rollout) == (True, True)
    assert c.sglang.server == {"mem_fraction_static": 0.8}


def test_side_by_side_the_engine_takes_less_than_half():
    c = config("--no-offload-train --no-offload-rollout", num_gpus=1)
    assert (c.cluster.colocate, c.cluster.actor_num_gpus_per_node) == (True, 1)
    assert c.cluster.rollout_num_gpus == 1
    assert c.sglang.server == {"mem_fraction_static": 0.4}


def test_either_side_may_keep_what_it_holds():
    c = config("--colocate --no-offload-train", num_gpus=2)
    assert (c.cluster.offload_train, c.cluster.offload_rollout) == (False, True)
    assert c.sglang.server["mem_fraction_static"] == 0.4
    c = config("--colocate --no-offload-rollout --sglang-mem-fraction-static 0.5", num_gpus=2)
    assert (c.cluster.offload_train, c.cluster.offload_rollout) == (True, False)
    assert c.sglang.server["mem_fraction_static"] == 0.5


def test_on_a_cpu_and_on_gpus_of_their_own_nobody_makes_room_unless_asked():
    for c in (config(), config(num_gpus=2), config("--colocate")):
        assert (c.cluster.offload_train, c.cluster.offload_rollout) == (False, False)
    c = config("--offload")
    assert (c.cluster.offload_train, c.cluster.offload_rollout) == (True, True)
    text = problems("--offload", num_gpus=2)
    assert "--offload without --colocate" in text
    assert "--async-buffer-size 1 with --offload" in problems("--offload --async-buffer-size 1")


def test_weights_that_are_not_published_every_time_survive_being_released():
    c = config("--colocate --update-weights-interval 2", num_gpus=2)
    assert c.sglang.server["enable_weights_cpu_backup"] is True
    assert "enable_weights_cpu_backup" not in config("--colocate", num_gpus=2).sglang.server


def test_several_machines_need_a_cluster():
    assert "set RAY_ADDRESS" in problems("--actor-num-nodes 2")
    c = config("--actor-num-nodes 2 --actor-num-gpus-per-node 2", in_cluster=True)
    assert (c.megatron.world_size, c.sync.update_weight_transport) == (4, "tensor")
    external = "--actor-num-nodes 2 --device cuda --rollout-external-engine-addrs a:1"
    c = config(external, in_cluster=True)
    assert (c.megatron.world_size, c.sync.update_weight_transport) == (16, "nccl")


def test_the_trainer_takes_the_gpus_that_engines_leave():
    assert config(num_gpus=8).megatron.world_size == 7
    assert config("--rollout-num-gpus 4", num_gpus=8).megatron.world_size == 4
    assert config("--rollout-num-gpus 2 --num-gpus-per-node 4", num_gpus=8).megatron.world_size == 2
    assert config("--colocate", num_gpus=8).megatron.world_size == 8


def test_responses_take_at_most_half_of_a_short_context():
    short = {"max_position_embeddings": 256}
    assert config(hf_config=short).sampling.rollout_max_response_len == 128
    assert config("--rollout-max-response-len 200", hf_config=short).sampling == (
        config("--rollout-max-response-len 200").sampling
    )
    assert "no room for a prompt" in problems("--rollout-max-response-len 256", hf_config=short)
    of_evaluation = "--eval-max-response-len 256 --eval-prompt-data a p.jsonl"
    assert "--eval-max-response-len 256 leaves no room" in problems(of_evaluation, hf_config=short)


def test_a_stretched_context_is_as_long_as_sglang_has_it():
    twice = {"max_position_embeddings": 256, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert config(hf_config=twice).sampling.rollout_max_response_len == 256
    assert "context of 512" in problems("--rollout-max-response-len 512", hf_config=twice)

    def told(line):
        return "\n".join(resolved(line, hf_config=twice).notices)

    assert "refuses it, unless" in told("--sglang-context-length 513")
    assert "refuses it" not in told("--sglang-context-length 512")


def test_too_few_gpus_are_counted_up():
    text = problems("--actor-num-gpus-per-node 2 --rollout-num-gpus 2", num_gpus=2)
    assert "4 GPUs are needed" in text
    assert "2 are visible" in text
    assert "--colocate" in text


def test_engines_and_gpus_must_agree():
    assert config("--rollout-num-engines 2").cluster.rollout_num_gpus == 2
    assert "not a multiple" in problems("--rollout-num-gpus 3 --rollout-num-gpus-per-engine 2")
    assert "not --rollout-num-engines 3" in problems("--rollout-num-gpus 2 --rollout-num-engines 3")


def test_supervised_training_needs_no_engine_no_reward_and_no_advantages():
    c = config("--loss-type sft_loss")
    assert (c.cluster.rollout_num_engines, c.reward.rm_type) == (0, None)
    assert c.advantage.compute_advantages_and_returns is False


def test_supervised_training_has_no_engines_to_evaluate_with():
    text = problems("--loss-type sft_loss --eval-prompt-data a p.jsonl")
    assert "--eval-prompt-data needs engines, and --loss-type sft_loss runs without" in text


def test_one_step_takes_the_whole_iteration_unless_said_otherwise():
    batch = config("--n-samples-per-prompt 8").batch
    assert (batch.global_batch_size, batch.num_steps_per_rollout) == (32, 1)
    batch = config("--n-samples-per-prompt 8 --num-steps-per-rollout 4").batch
    assert (batch.global_batch_size, batch.num_steps_per_rollout) == (8, 4)
    batch = config("--n-samples-per-prompt 8 --global-batch-size 16").batch
    assert (batch.global_batch_size, batch.num_steps_per_rollout) == (16, 2)


@pytest.mark.parametrize(
    "line",
    [
        "--global-batch-size 7",
        "--num-steps-per-rollout 5",
        "--global-batch-size 16 --num-steps-per-rollout 3",
    ],
)
def test_batch_sizes_that_do_not_fit_are_spelled_out(line):
    text = problems(f"--n-samples-per-prompt 8 {line}")
    assert "--rollout-batch-size 4 * --n-samples-per-prompt 8 = 32" in text
    assert "--global-batch-size" in text
    assert "--num-steps-per-rollout" in text


def test_learning_rate_schedules_know_the_length_of_the_run():
    c = config("--n-samples-per-prompt 8 --num-steps-per-rollout 4")
    assert c.megatron.train_iters == 12
    assert c.megatron["lr"] == 1e-6
    assert c.megatron["lr_decay_style"] == "constant"


def test_epochs_are_counted_in_iterations():
    base = "--hf-checkpoint m --prompt-data p.jsonl --rollout-batch-size 4 --num-epoch 3"
    assert resolved(base=base, num_prompts=10).config.rollout.num_rollout == 7


def test_either_rollouts_or_epochs_are_needed():
    text = problems(base="--hf-checkpoint m --prompt-data p.jsonl")
    assert "--num-rollout (iterations) or --num-epoch is missing" in text


def test_everything_missing_is_listed_together():
    text = problems(base="--use-kl-loss", megatron_args={})
    for flag in ("--hf-checkpoint", "--prompt-data", "--num-rollout"):
        assert f"{flag} " in text


def test_architecture_comes_from_config_json():
    argv = config().megatron.argv
    assert argv[argv.index("--num-layers") + 1] == "4"
    assert "--untie-embeddings-and-output-weights" in argv
    assert "--disable-bias-linear" in argv


def test_architecture_that_contradicts_config_json_names_both_values():
    assert config("--num-layers 4").megatron["num_layers"] == 4
    text = problems("--num-layers 5")
    assert "--num-layers gives num_layers = 5" in text
    assert "says 4" in text


@pytest.mark.parametrize(
    "line",
    ["--hidden-dropout 0.1", "--transformer-impl transformer_engine", "--ckpt-format torch"],
)
def test_what_follows_from_how_models_are_built_cannot_be_changed(line):
    text = problems(line)
    assert line.split()[0] in text
    assert "leave the flag out" in text


def test_ranks_must_divide_into_groups():
    c = config(
        "--actor-num-gpus-per-node 8 --tensor-model-parallel-size 2 --context-parallel-size 2"
    )
    layout = c.megatron.layout
    assert (layout.dp, layout.tp, layout.cp, layout.pp) == (2, 2, 2, 1)
    text = problems("--actor-num-gpus-per-node 3 --tensor-model-parallel-size 2")
    assert "3 trainer ranks do not divide" in text


def test_heads_and_layers_must_divide():
    text = problems(
        "--actor-num-gpus-per-node 12 --tensor-model-parallel-size 4 "
        "--pipeline-model-parallel-size 3"
    )
    assert "--tensor-model-parallel-size 4 does not divide the model's num_query_groups 2" in text
    assert "--pipeline-model-parallel-size 3 does not divide the model's num_layers 4" in text
    assert "possible: 1, 2, 4" in text


def test_chunks_of_log_probabilities_are_bounded():
    assert config().batch.log_probs_chunk_size == -1
    assert config("--log-probs-chunk-size 64").batch.log_probs_chunk_size == 64


def test_evaluation_falls_back_to_the_rollout():
    c = config("--eval-prompt-data a p.jsonl --rollout-temperature 0.8 --eval-top-p 0.7")
    assert c.evaluation.eval_prompt_data == (("a", "p.jsonl"),)
    assert (c.evaluation.eval_temperature, c.evaluation.eval_top_p) == (0.8, 0.7)
    assert c.evaluation.eval_input_key == "input"


def test_an_evaluation_interval_without_data_is_noted_and_dropped():
    r = resolved("--eval-interval 50")
    assert r.config.evaluation.eval_interval is None
    assert "--eval-prompt-data" in " ".join(r.notices)


def test_checkpoints_between_two_publishes_are_noted_as_they_do_not_resume_exactly():
    line = "--save s --update-weights-interval 2 --save-interval"
    note = "--save-interval 3 is no multiple of --update-weights-interval 2"
    assert note in " ".join(resolved(f"{line} 3").notices)
    assert "multiple" not in " ".join(resolved(f"{line} 4").notices)


def test_evaluations_between_two_publishes_are_noted_as_of_older_weights():
    line = "--eval-prompt-data a p.jsonl --update-weights-interval 2"
    note = "--eval-interval 3 is no multiple of --update-weights-interval 2"
    assert note in " ".join(resolved(f"{line} --eval-interval 3").notices)
    for other in ("--eval-interval 4", "--num-rollout 5"):
        assert "multiple" not in " ".join(resolved(f"{line} {other}").notices)


def test_a_save_interval_without_a_directory_is_noted_and_dropped():
    r = resolved("--save-interval 100")
    assert r.config.checkpoint.save_interval is None
    assert "--save-interval" not in r.config.megatron.argv
    assert "--save-interval 100 has nowhere to save: give --save DIR" in " ".join(r.notices)
    assert config("--save-interval 100 --save-hf out").checkpoint.save_interval == 100


def test_a_run_whose_weights_nobody_keeps_is_told_so_before_it_starts():
    note = "the trained weights are not kept: give --save DIR"
    assert note in " ".join(resolved().notices)
    for line in ("--save s", "--save-hf s", "--debug-rollout-only", "--save-interval 3"):
        assert note not in " ".join(resolved(line).notices)
    only = "--num-rollout 0 --eval-prompt-data a p.jsonl"
    assert note not in " ".join(resolved(only).notices)


def test_a_run_that_saves_once_is_told_that_it_cannot_go_on_from_in_between():
    note = "--save s is written once, after the last iteration"
    assert note in " ".join(resolved("--save s").notices)
    assert note not in " ".join(resolved("--save s --save-interval 5").notices)


def test_retained_checkpoints_are_chosen_from_those_that_there_are():
    c = config("--save s --save-interval 5 --save-retain-interval 20 --save-retain-newest 3")
    assert (c.checkpoint.save_retain_interval, c.checkpoint.save_retain_newest) == (20, 3)
    assert "--save-retain-interval" not in c.megatron.argv
    assert "--save-retain-newest has nothing to choose from" in problems("--save-retain-newest 2")
    single = "--save-retain-newest 2 --save-hf out"
    assert "{rollout_id} in --save-hf" in problems(single)
    assert config(single + "-{rollout_id}").checkpoint.save_retain_newest == 2
    for interval in ("--save-interval 5", ""):
        told = problems(f"--save s {interval} --save-retain-interval 12")
        assert "--save-retain-interval 12 must be a multiple of --save-interval" in told


def test_an_unknown_reward_of_an_evaluation_set_is_named_with_its_set():
    file = {"eval": {"datasets": [{"name": "gpqa", "path": "g.jsonl", "rm_type": "gqpa"}]}}
    told = problems("--eval-config sets.yaml --rm-type boxed_math", eval_file=file)
    assert "--eval-config gpqa: rm_type gqpa is unknown; there are" in told


def test_upper_clip_follows_the_lower():
    assert config("--eps-clip 0.3").policy_loss.eps_clip_high == 0.3
    assert config("--eps-clip 0.3 --eps-clip-high 0.4").policy_loss.eps_clip_high == 0.4
    assert config("--eps-clip 0.3 --eps-clip-high 0.2").policy_loss.eps_clip_high == 0.2


def test_the_reference_is_the_model_itself():
    assert config("--use-kl-loss").reference.ref_load == "/models/tiny"


DELTA = "--update-weight-mode delta --update-weight-transport disk"
EXTERNAL = "--rollout-external-engine-addrs"


def test_engines_that_already_run_are_counted_and_not_placed():
    c = config(f"{EXTERNAL} 10.0.0.1:30000 10.0.0.2:30000")
    assert (c.cluster.rollout_num_gpus, c.cluster.rollout_num_engines) == (0, 2)
    assert c.sync.update_weight_transport == "nccl"  # they are on other machines
    here = config(f"{EXTERNAL} 127.0.0.1:30000 http://localhost:30001")
    assert here.sync.update_weight_transport == "tensor"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("--kl-coef 0.1 --use-kl-loss --kl-loss-coef 0.1", "exclude each other"),
        ("--advantage-estimator reinforce_plus_plus", "needs --normalize-advantages"),
        ("--use-rollout-logprobs --use-tis", "nothing to correct"),
        ("--over-sampling-batch-size 3", "at least --rollout-batch-size 4"),
        ("--mask-offpolicy-in-partial-rollout", "needs --partial-rollout"),
        ("--async-save", "give --save DIR"),
        ("--rm-type maths", "--rm-type maths is unknown; there are code, dapo"),
        ("--rm-type sequence_classification", "its directory as --reward-model-path"),
        ("--load /nowhere/at/all", "no such directory"),
        ("--update-weight-transport disk", "--update-weight-disk-dir"),
        ("--update-weight-mode delta", "needs --update-weight-transport disk"),
        (f"{DELTA} --update-weight-disk-dir d", "give --update-weight-local-checkpoint-dir DIR"),
        ("--update-weight-delta-encoding overwrite", "needs --update-weight-mode delta"),
        ("--update-weight-local-checkpoint-dir d", "needs --update-weight-transport disk"),
        ("--custom-update-weight-post-write-path m.f", "needs --update-weight-transport disk"),
        (f"{EXTERNAL} host", "give addresses as host:port"),
        (f"{EXTERNAL} host:1 --use-fault-tolerance", "somebody else's"),
        (f"{EXTERNAL} host:1 --rollout-num-engines 2", "engines that the run starts"),
        (f"{EXTERNAL} host:1 --sglang-dtype float16", "--sglang-dtype has no effect"),
        (f"{EXTERNAL} host:1 --loss-type sft_loss", "generates nothing"),
        ("--sglang-router-ip 1.2.3.4", "needs --sglang-router-port"),
        ("--rm-type remote_rm", "give --rm-url"),
        ("--disable-compute-advantages-and-returns", "without advantages"),
        ("--debug-train-only", "--load-debug-rollout-data"),
        ("--distributed-backend nccl --device cpu", "needs GPUs"),
        ("--device cuda", "no NVIDIA device is visible"),
        ("--bf16 --fp16", "exclude each other"),
        ("--rollout-max-response-len 4096 --sglang-context-length 4096", "no room"),
        ("--group-rm --eval-prompt-data a p.jsonl", "--group-rm"),
    ],
)
def test_contradictions(line, complaint):
    assert complaint in problems(line)


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("--use-kl-loss --kl-loss-coef 0.1", "--kl-loss-type k1"),
        ("--advantage-estimator cispo", "--eps-clip 1 or more"),
        ("--max-tokens-per-gpu 9", "--use-dynamic-batch-size"),
        ("--kl-loss-coef 0.1", "without --use-kl-loss"),
    ],
)
def test_things_probably_not_meant_are_noted(line, note):
    assert note in " ".join(resolved(line).notices)


def test_planned_flags_say_what_to_do():
    text = problems("--use-routing-replay --rollout-data-transport nixl")
    assert "--use-routing-replay: not there yet; every pass routes its own tokens" in text
    assert "--rollout-data-transport nixl: not there yet; use object-store" in text


def test_upstreams_own_functions_may_be_named():
    theirs = config("--rollout-function-path slime.rollout.sglang_rollout.generate_rollout")
    assert theirs.rollout.rollout_function_path is None
    own = config("--rollout-function-path mine.generate")
    assert own.rollout.rollout_function_path == "mine.generate"


def test_flags_that_mean_nothing_here_say_what_to_give():
    text = problems("--train-iters 5 --sglang-tp-size 2")
    assert "--train-iters 5: not used here, it follows from --num-rollout" in text
    assert (
        "--sglang-tp-size 2: the run sets this itself; give --rollout-num-gpus-per-engine" in text
    )


def test_engine_flags_are_handed_on():
    c = config("--sglang-mem-fraction-static 0.5 --router-policy round_robin")
    assert c.sglang.server == {"mem_fraction_static": 0.5}
    assert (c.sglang.router["policy"], c.sglang.router["log_level"]) == ("round_robin", "warn")


def test_every_value_knows_where_it_came_from():
    draft = resolved("--eps-clip 0.3").draft
    assert draft.own.sources["eps_clip"] == "command line"
    assert draft.own.sources["eps_clip_high"] == "derived: --eps-clip"
    assert draft.own.sources["gamma"] == "default"
    assert draft.megatron.sources["num_layers"] == "model config"
    assert draft.megatron.sources["lr"] == "default of slime"


def test_a_run_has_a_directory_of_its_own():
    assert config().tracking.output_dir == "outputs/tiny-grpo-20260102-030405"
    assert config("--output-dir here").tracking.output_dir == "here"


def test_plugins_see_everything_in_one_place():
    flat = config("--max-turns 5 --sglang-mem-fraction-static 0.5").flat
    assert (flat["max_turns"], flat["sglang_mem_fraction_static"]) == (5, 0.5)
    assert (flat["hidden_size"], flat["lr"], flat["rollout_batch_size"]) == (64, 1e-6, 4)
    assert flat["rewards_normalization"] is True
    assert flat["sglang_server_concurrency"] == 512


def test_plugins_find_every_flag_of_upstream():
    flat = config().flat
    golden = Path(__file__).with_name("golden") / "upstream_flags.txt"
    flags = golden.read_text().replace("--no-offload", "--offload").replace("--disable-", "--")
    names = {flag.removeprefix("--").replace("-", "_") for flag in flags.split()}
    unresolved = {"custom_config_path", "megatron_config_path", "train_backend"}
    assert names - set(flat) - unresolved == set()


def test_a_run_travels_between_processes():
    c = config("--eval-prompt-data a p.jsonl")
    assert pickle.loads(pickle.dumps(c)) == c


def test_generation_goes_no_further_ahead_than_tokens_may_be_old():
    line = "--async-buffer-size 4 --max-staleness 1 --update-weights-interval 2 --use-tis"
    made = config(line)
    assert made.rollout.async_buffer_size == 2
    assert made.off_policy.max_token_staleness == 2
    assert config().rollout.async_buffer_size == 0
    assert config("--max-token-staleness 3 --max-staleness 9").off_policy.max_token_staleness == 3


def test_going_ahead_without_a_correction_is_noted():
    assert "consider --use-tis" in " ".join(resolved("--async-buffer-size 1").notices)
    assert resolved("--async-buffer-size 1 --use-tis").notices == resolved("--use-tis").notices


def test_fully_asynchronous_generation_needs_a_buffer_and_prompts_of_its_own():
    assert config("--fully-async --async-buffer-size 1 --use-tis").rollout.fully_async
    for line, problem in {
        "": "--async-buffer-size 0: no rollout may be generated before",
        "--async-buffer-size 1 --max-staleness 0": "--max-staleness 0: generation has to wait",
        "--async-buffer-size 1 --partial-rollout": "--partial-rollout: nothing is cut off",
        "--async-buffer-size 1 --rollout-function-path a.b": "--rollout-function-path a.b: it rep",
        "--async-buffer-size 1 --loss-type sft_loss": "--loss-type sft_loss: it reads its samples",
        "--async-buffer-size 1 --num-rollout 0": "--num-rollout 0: nothing but an evaluation",
        "--load-debug-rollout-data d-{rollout_id}.pt": "--debug-train-only: nothing is generated",
    }.items():
        assert f"--fully-async with {problem}" in problems(f"--fully-async {line}"), line
    assert "with --offload" in problems("--fully-async --async-buffer-size 1 --offload")


def test_engines_that_share_gpus_with_the_trainer_cannot_go_ahead():
    text = problems("--async-buffer-size 1 --colocate --device cuda", num_gpus=1)
    assert "--async-buffer-size 1 with --colocate" in text


def test_a_cache_of_old_prefixes_is_refused_where_requests_stay_in_the_engines():
    assert "--sglang-disable-radix-cache" in problems("--weight-update-mode retract")
    config("--weight-update-mode retract --sglang-disable-radix-cache")


def test_a_run_that_only_generates_has_no_trainer_to_make_room_for():
    c = config("--debug-rollout-only --rollout-num-gpus 2", num_gpus=2)
    assert c.debug.debug_rollout_only
    assert c.cluster.rollout_num_engines == 2
    assert not config("--debug-rollout-only", num_gpus=1).cluster.colocate
    assert config("", num_gpus=1).cluster.colocate


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--save s", "has no trainer for --save: leave it out"),
        ("--load .", "has no trainer for --load"),
        ("--load-debug-rollout-data d", "--load-debug-rollout-data leave nothing to do"),
        ("--debug-train-only", "--debug-train-only leave nothing to do"),
        ("--loss-type sft_loss", "--loss-type sft_loss generates nothing"),
    ],
)
def test_what_needs_a_trainer_is_refused_where_there_is_none(line, named):
    assert named in problems(f"--debug-rollout-only {line}")


def test_a_set_whose_reward_would_not_be_asked_is_refused():
    file = {"eval": {"datasets": [{"name": "gpqa", "path": "g.jsonl", "rm_type": "gpqa"}]}}
    line = "--eval-config sets.yaml --custom-rm-path mine.py"
    assert "gpqa: rm_type gpqa has no effect" in problems(line, eval_file=file)
    assert config("--eval-config sets.yaml", eval_file=file).evaluation.eval_datasets[0].rm_type


@pytest.mark.parametrize("flag", ["--save", "--save-hf", "--load", "--dump-details"])
def test_an_empty_name_of_a_directory_is_refused(flag):
    with pytest.raises(ConfigErrors) as caught:
        resolve(read_sources([*BASE.split(), flag, ""]), facts())
    assert any(f"{flag} is given an empty name" in text for text in caught.value.problems)


def test_names_of_dumps_are_taken_as_they_are(tmp_path):
    with pytest.raises(ConfigErrors) as caught:
        resolve(read_sources([*BASE.split(), "--load-debug-rollout-data", ""]), Facts())
    assert "there is no such file" in "\n".join(caught.value.problems)
    marked = tmp_path / "run[1]**"
    marked.mkdir()
    (marked / "d-0.pt").touch()
    config(f"--load-debug-rollout-data {marked}/d-{{rollout_id}}.pt --num-rollout 1")


def test_a_reference_without_weights_and_dumps_that_were_not_written_are_told(tmp_path):
    assert "neither a Hugging Face directory" in problems(f"--ref-load {tmp_path}")
    assert "where --ref-load is left out" in problems(f"--ref-load {tmp_path}/none")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    config(f"--ref-load {tmp_path}")
    line = f"--load-debug-rollout-data {tmp_path}/d-{{rollout_id}}.pt"
    assert "there is no such file" in problems(line)
    (tmp_path / "d-0.pt").touch()
    config(f"{line} --num-rollout 1")
    assert "no file of iteration 1, and the run has iterations 0 to 2" in problems(
        f"{line} --num-rollout 3"
    )
    config(f"{line} --num-rollout 3 --load {tmp_path}")  # it may have been trained on before
    (tmp_path / "d-2.pt").touch()
    config(f"{line} --num-rollout 3 --start-rollout-id 2 --load {tmp_path}")
