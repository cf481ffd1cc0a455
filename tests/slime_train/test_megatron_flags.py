"""What a command line hears about flags of Megatron's that do not do what they say."""

import importlib.util

import pytest
from slime_core.config.draft import Facts
from slime_core.errors import ConfigErrors
from slime_testing.ranks import run_on_ranks
from slime_testing.resolved_case import ARCHITECTURE, BASE
from slime_train.resolve import resolve
from slime_train.sources import read_sources

COMMAND = f"{BASE} --n-samples-per-prompt 2"
EXPERTS = {"num_experts": 8, "moe_ffn_hidden_size": 64}


def resolved(line="", model=ARCHITECTURE, **changes):
    return resolve(read_sources(f"{COMMAND} {line}".split()), Facts(megatron_args=model, **changes))


def problems(line, model=ARCHITECTURE):
    with pytest.raises(ConfigErrors) as caught:
        resolved(line, model)
    return "\n".join(caught.value.problems)


USUAL = (
    "--attention-backend flash --attention-softmax-in-fp32 --accumulate-allreduce-grads-in-fp32 "
    "--log-throughput --log-interval 1 --timing-log-level 2 --manual-gc --manual-gc-interval 5 "
    "--seq-length 1024 --no-barrier-with-level-1-timing --distributed-timeout-minutes 30 "
    "--ckpt-fully-parallel-load --tokenizer-type HuggingFaceTokenizer --deterministic-mode "
    "--no-gradient-accumulation-fusion --transformer-impl local --cp-comm-type p2p"
)


def test_flags_that_only_megatrons_loop_reads_are_told_in_one_line_and_not_handed_on():
    run = resolved(USUAL)
    (note,) = (n for n in run.notices if n.startswith("of no effect"))
    for told in (
        "--log-interval 1, --log-throughput, --timing-log-level 2, "
        "--no-barrier-with-level-1-timing (metrics are slime's own)",
        "--manual-gc, --manual-gc-interval 5 (Python",
        "--seq-length 1024 (samples are packed",
        "--tokenizer-type HuggingFaceTokenizer (the tokenizer",
        "--ckpt-fully-parallel-load (",
    ):
        assert told in note
    argv = run.config.megatron.argv
    assert {"--accumulate-allreduce-grads-in-fp32", "--deterministic-mode"} <= set(argv)
    assert "--attention-softmax-in-fp32" in argv
    assert argv[argv.index("--attention-backend") + 1] == "flash"
    assert not {"--manual-gc", "--log-interval"} & set(argv)
    assert argv[argv.index("--tokenizer-type") + 1] == "NullTokenizer"


def test_one_way_to_attend_is_left_on_a_cpu():
    told = "--attention-backend fused has no effect on a CPU"
    assert told in resolved("--attention-backend fused --device cpu").notices


def test_attention_in_single_operations_has_two_names():
    argv = resolved("--attention-backend local").config.megatron.argv
    assert argv[argv.index("--attention-backend") + 1] == "unfused"


def test_what_is_megatrons_default_anyway_is_not_worth_a_line():
    line = "--attention-backend auto --log-interval 100 --cuda-graph-impl none"
    assert resolved(line).notices == resolved().notices


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("--freeze-all-layers", "--freeze-params-name-list"),
        ("--rampup-batch-size 1 1 8", "--global-batch-size"),
        ("--iterations-to-skip 3", "--prompt-data"),
        ("--pretrained-checkpoint /p", "--hf-checkpoint"),
        ("--spec a b", "--custom-model-provider-path"),
        ("--fp8-format e4m3", "TransformerEngine"),
        ("--check-for-spiky-loss", "--max-skipped-steps"),
        ("--rerun-mode report_stats", "--max-skipped-steps"),
        ("--exit-signal-handler", "--save-interval"),
        ("--non-persistent-save-interval 5", "--save-interval"),
        ("--num-distributed-optimizer-instances 2", "--use-distributed-optimizer"),
        ("--cuda-graph-impl local", "batches of one shape"),
        ("--use-tp-pp-dp-mapping", "pipeline parallelism"),
        ("--batch-size 4", "--micro-batch-size"),
    ],
)
def test_what_would_change_or_protect_the_result_is_refused(line, advice):
    assert f"{line}: not used here, " in problems(line)
    assert advice in problems(line)


def test_saying_what_is_done_anyway_is_no_mistake():
    line = "--rerun-mode disabled --num-distributed-optimizer-instances 1 --qk-clip-alpha 0.5"
    assert resolved(line).notices == resolved().notices
    assert "--rerun-mode validate_results" in problems("--rerun-mode validate_results")


def test_layers_that_config_json_does_not_describe_are_for_a_models_own_code():
    text = problems("--window-size 128,0 --apply-layernorm-1p")
    assert "--window-size 128,0 is for other layers" in text
    assert "--apply-layernorm-1p is for other layers" in text
    run = resolved("--apply-layernorm-1p --custom-model-provider-path my.model")
    assert run.config.megatron["layernorm_zero_centered_gamma"]


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("--tensor-model-parallel-size 0", ">= 1"),
        ("--context-parallel-size 0", ">= 1"),
        ("--pipeline-model-parallel-size -2", ">= 1"),
        ("--expert-tensor-parallel-size 0", ">= 1"),
        ("--lr -1", ">= 0"),
        ("--weight-decay -1", ">= 0"),
        ("--clip-grad -1", ">= 0"),
        ("--adam-beta2 2", ">= 0 and < 1"),
        ("--lr-warmup-iters -5", ">= 0"),
        ("--lr-warmup-fraction 2", ">= 0 and < 1"),
        ("--sglang-mem-fraction-static 3", "> 0 and < 1"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_with_its_range(line, allowed):
    flag, value = line.split()
    assert f"{flag} must be {allowed}, got {value}" in problems(line)


def test_every_number_out_of_range_is_told_at_once():
    told = problems("--tensor-model-parallel-size 0 --context-parallel-size 0 --lr -1")
    assert told.count("must be") == 3


def test_a_model_without_experts_gets_none_from_the_command_line():
    told = problems("--num-experts 8 --moe-ffn-hidden-size 32")
    assert "--num-experts 8: config.json of --hf-checkpoint /models/tiny describes a model" in told


def test_a_list_of_layers_with_experts_may_say_what_a_number_says():
    model = {**ARCHITECTURE, **EXPERTS, "moe_layer_freq": 1}
    assert resolved("--moe-layer-freq [1,1,1,1]", model).config.megatron["num_experts"] == 8
    assert resolved("--moe-layer-freq [1]*4", model).notices == resolved("", model).notices
    assert "--moe-layer-freq gives" in problems("--moe-layer-freq [0]+[1]*3", model)
    model["moe_layer_freq"] = [1, 0, 1, 0]
    assert resolved("--moe-layer-freq 2", model).notices == resolved("", model).notices
    assert "--moe-layer-freq gives" in problems("--moe-layer-freq 1", model)


def test_gpus_talk_through_nccl_alone():
    with pytest.raises(ConfigErrors, match="--distributed-backend gloo is for a CPU"):
        resolved("--distributed-backend gloo --rollout-num-gpus 1", num_gpus=2)
    assert resolved("--distributed-backend gloo").config.cluster.device == "cpu"


def test_adams_state_has_one_precision():
    assert "TransformerEngine's Adam" in problems("--use-precision-aware-optimizer")
    told = problems("--optimizer-cpu-offload --exp-avg-dtype bf16 --optimizer-offload-fraction 2")
    assert "--exp-avg-dtype bf16 does not go with --optimizer-cpu-offload" in told
    assert "--exp-avg-dtype fp32, or leave --optimizer-cpu-offload out" in told
    assert "--optimizer-offload-fraction must be >= 0 and <= 1, got 2.0" in told
    told = problems("--optimizer-cpu-offload --optimizer sgd")
    assert "--optimizer sgd does not go with --optimizer-cpu-offload" in told


@pytest.mark.parametrize("more", ["", "--use-precision-aware-optimizer"])
def test_an_optimizer_in_host_memory_needs_one_flag(more):
    run = resolved(f"--optimizer-cpu-offload --overlap-cpu-optimizer-d2h-h2d {more}")
    assert {"--optimizer-cpu-offload", "--use-precision-aware-optimizer"} <= set(
        run.config.megatron.argv
    )
    alone = resolved("--overlap-cpu-optimizer-d2h-h2d")
    wanted = "--overlap-cpu-optimizer-d2h-h2d has no effect without --optimizer-cpu-offload"
    assert wanted in alone.notices


def test_experts_keep_their_activations_and_the_rest_is_computed_again():
    line = "--recompute-granularity selective --recompute-modules moe_act core_attn"
    run = resolved(f"{line} --moe-grouped-gemm", {**ARCHITECTURE, **EXPERTS})
    assert any(n.startswith("--recompute-modules moe_act: of no effect") for n in run.notices)
    assert run.config.megatron["recompute_modules"] == ["core_attn"]


FATAL = (
    "--attention-backend local --encoder-num-layers 4 --log-memory-interval 7 "
    "--cuda-graph-impl full_iteration --defer-embedding-wgrad-compute --tp-comm-overlap "
    "--overlap-moe-expert-parallel-comm --start-eval-at-iter 2 "
    "--logits-save-top-k 3 --hierarchical-context-parallel-sizes 3"
)


def accepted(rank, world, argv):
    from slime_megatron.mcore.startup import arguments

    return arguments.parse(argv, rank, world).num_layers


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_would_end_every_rank_does_not_reach_one():
    run = resolved(
        FATAL, {**ARCHITECTURE, "position_embedding_type": "rope", "normalization": "RMSNorm"}
    )
    assert run_on_ranks(1, accepted, run.config.megatron.argv, megatron=True) == [4]


@pytest.mark.parametrize("name", ["muon", "dist_muon", "lion", "soap"])
def test_optimizers_of_a_package_that_is_not_there_are_refused_before_the_start(name, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module: None if "emerging" in module else found(module)
    )
    (told,) = [line for line in problems(f"--optimizer {name}").splitlines() if name in line]
    assert f"--optimizer {name} needs the package emerging-optimizers, which is not" in told
