import json
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from slime_convert.dist import hf_to_dist
from slime_core.plugins.forms import FIELDS
from slime_testing.tiny import make_qwen3
from slime_train.cli import main
from slime_train.facts import gather
from slime_train.resolve import resolve
from slime_train.sources import read_sources, slime_flags

HEAVY = ("torch", "ray", "sglang", "sglang_router", "megatron", "transformers")
ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "tie_word_embeddings": True,
}


@pytest.fixture
def line(tmp_path):
    """A command line that can run."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    (model / "model.safetensors").touch()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1+1=", "label": "2"}\n')
    text = f"--hf-checkpoint {model} --prompt-data {prompts} --num-rollout 2 --rollout-batch-size 2"
    return [*text.split(), "--device", "cpu"]


def test_an_interrupt_while_files_are_looked_at_is_one_line(line, monkeypatch, capsys):
    def slow(raw):
        raise KeyboardInterrupt

    monkeypatch.setattr("slime_train.facts.gather", slow)
    assert main(line) == 130
    assert capsys.readouterr().err == "\nslime-train: interrupted before anything was started\n"


def in_a_new_process(*argv):
    code = (
        "import sys; from slime_train.cli import main; code = main(sys.argv[1:]);"
        f"sys.stdout.flush(); heavy = sorted(set({HEAVY!r}) & set(sys.modules));"
        "sys.exit('imports ' + ' '.join(heavy) if heavy else code)"
    )
    command = [sys.executable, "-c", code, *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_needs_under_half_a_second_of_processor_and_no_framework():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = in_a_new_process("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "--rollout-temperature" in done.stdout
    assert "Softmax temperature" in done.stdout
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 0.5


@pytest.mark.parametrize(
    ("flag", "shows"),
    [
        ("--help-megatron", "--tensor-model-parallel-size"),
        ("--help-sglang", "--sglang-mem-fraction-static"),
        ("--help-router", "--router-policy"),
    ],
)
def test_helps_of_the_other_programs(flag, shows, capsys):
    assert main([flag]) == 0
    assert shows in capsys.readouterr().out


def test_words_behind_help_find_the_flags_that_say_them_in_all_programs(capsys):
    assert main(["--hf-checkpoint", "x", "--help", "Recompute", "--lr", "1"]) == 0
    shown = capsys.readouterr().out
    heads = [line.split()[0] for line in shown.splitlines() if line.startswith("  --")]
    assert "--recompute-granularity" in heads  # Megatron's
    assert "--num-rollout" not in heads
    assert "--lr" not in heads
    assert main(["--help", "kl", "coef"]) == 0
    narrower = capsys.readouterr().out
    assert "--kl-loss-coef" in narrower
    assert "--kl-loss-type" not in narrower
    assert main(["--help", "no-flag-says-this"]) == 0
    assert capsys.readouterr().out == "flags that say no-flag-says-this:\n  none\n"


def test_a_dump_starts_nothing_and_imports_no_framework(line):
    done = in_a_new_process(*line, "--dump-config", "--lr", "1e-4")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(text.split()) for text in done.stdout.splitlines()]
    assert "rollout_temperature 1.0 # default" in lines
    assert "lr 0.0001 # command line" in lines
    assert "num_layers 2 # model config" in lines
    assert "global_batch_size 2 # derived: samples over steps" in lines
    assert any(text.startswith("--") and "--num-layers 2" in text for text in lines)


def test_a_machine_without_gpus_shows_what_one_with_eight_resolves_to(line, monkeypatch):
    monkeypatch.setattr("slime_train.facts.available_memory", lambda: 1)
    raw = read_sources([*line[:-2], "--dump-config", "--assume-gpus", "8", "--colocate"])
    found = gather(raw)
    assert (found.num_gpus, found.host_bytes) == (8, None)
    cluster = resolve(raw, found).config.cluster
    assert (cluster.device, cluster.actor_num_gpus_per_node, cluster.offload_train) == (
        "cuda",
        8,
        True,
    )


def test_problems_are_told_together_with_exit_code_2_and_no_traceback(line):
    done = in_a_new_process(*line, "--rollout-temprature", "1", "--eps-clip", "x", "--colocat")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "slime-train: 3 problems with this command line",
        "  * unknown flag --rollout-temprature (did you mean --rollout-temperature?)",
        "  * --eps-clip expects float, got 'x'; allowed: >= 0",
        "  * unknown flag --colocat (did you mean --colocate?)",
    ]


def test_a_model_without_weights_can_be_configured_and_not_run(line, tmp_path, capsys):
    (tmp_path / "model/model.safetensors").unlink()
    assert main([*line, "--dump-config"]) == 0
    assert main(line) == 2
    assert "holds no *.safetensors" in capsys.readouterr().err


def test_a_model_that_was_not_downloaded_to_its_end_is_refused_before_the_start(
    line, tmp_path, capsys
):
    model = tmp_path / "model"
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    weight_map = {
        "a": "model-1.safetensors",
        "b": "model-2.safetensors",
        "c": "model-3.safetensors",
    }
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert main(line) == 2
    told = capsys.readouterr().err
    assert "lacks 2 of the 3 files that model.safetensors.index.json names (model-2.safe" in told
    (model / "adapter_config.json").write_text("{}")
    assert main(line) == 2
    assert "holds an adapter (adapter_config.json), which is not read" in capsys.readouterr().err


def test_missing_files_are_named(line, tmp_path, capsys):
    words = [*line, "--hf-checkpoint", str(tmp_path), "--prompt-data", "/none.jsonl"]
    words += ["--eval-prompt-data", "aime", "/gone.jsonl"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "has no config.json" in told
    assert "--prompt-data /none.jsonl: there is no such file" in told
    assert "--eval-prompt-data /gone.jsonl: there is no such file" in told


def test_a_column_that_is_not_there_is_named(line, capsys):
    assert main([*line, "--input-key", "question"]) == 2
    told = capsys.readouterr().err
    assert "no key 'question'; the row has ['label', 'prompt']: choose with --input-key" in told


def test_prompts_without_labels_are_told_before_anything_starts(line, tmp_path, capsys):
    (tmp_path / "bare.jsonl").write_text('{"prompt": "1+1="}\n')
    words = [*line, "--eval-prompt-data", "bare", f"{tmp_path}/bare.jsonl", "--rm-type", "math"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert f"--eval-prompt-data {tmp_path}/bare.jsonl: the first prompt has no label" in told
    assert "--prompt-data" not in told.replace("--eval-prompt-data", "")


def test_a_checkpoint_of_another_model_is_told_before_anything_starts(line, tmp_path, capsys):
    hf_to_dist(make_qwen3(tmp_path / "other", layers=3), tmp_path / "checkpoints")
    assert main([*line, "--load", f"{tmp_path}/checkpoints"]) == 2
    told = capsys.readouterr().err
    assert f"--load {tmp_path}/checkpoints: release is a checkpoint of another model" in told
    assert "num_layers is 3 there and 2 here" in told


def test_a_dump_tells_the_columns_that_are_read(line, capsys):
    assert main([*line, "--dump-config"]) == 0
    told = capsys.readouterr().out
    assert "# default; the rows' column is prompt" in told
    assert "# default; the rows' column is label" in told


def test_user_functions_are_loaded_before_anything_starts(line, tmp_path, capsys):
    words = [*line, "--custom-rm-path", f"{tmp_path}/rm.py:score", "--buffer-filter-path", "a.b"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "--custom-rm-path" in told
    assert "does not exist" in told
    assert "--buffer-filter-path a.b: plugin 'a.b': cannot import 'a'" in told


MODEL_CLASS = """
class CustomRewardModel:
    def __init__(self, model_path): ...
    def compute_reward(self, prompts, responses): ...
"""


def test_user_functions_that_cannot_be_called_are_told_before_anything_starts(
    line, tmp_path, capsys
):
    (tmp_path / "custom_rm.py").write_text(MODEL_CLASS)
    (tmp_path / "custom_loss.py").write_text("def custom_loss(args, logits): ...\n")
    words = [*line, "--custom-rm-path", f"{tmp_path}/custom_rm.py", "--loss-type", "custom_loss"]
    words += ["--custom-loss-function-path", f"{tmp_path}/custom_loss.py"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "with a path given as --reward-model-path" in told
    assert "must be callable as f(args, batch, logits, sum_of_sample_mean)" in told
    told_of_model = [*words[:-4], "--reward-model-path", str(tmp_path), "--dump-config"]
    assert main(told_of_model) == 0


def test_functions_and_values_and_files_are_told_in_one_go(line, capsys):
    words = [*line, "--eps-clip", "-1", "--prompt-data", "/none.jsonl", "--custom-rm-path", "a.b"]
    assert main([*words, "--advantage-estimator", "reinforce_plus_plus", "--nonsense"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("slime-train: 5 problems with this command line")
    assert all(t in told for t in ("--eps-clip", "/none.jsonl", "import 'a'", "--nonsense"))
    assert "needs --normalize-advantages" in told


def test_rows_that_cannot_be_learnt_from_are_told_before_anything_starts(line, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1", "label": "2"}\n{"prompt": "3"}\n')
    assert main([*line, "--dump-config"]) == 2
    assert "prompts.jsonl:2: no key 'label'; the row has ['prompt']" in capsys.readouterr().err
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1"}\n')
    assert main([*line, "--loss-type", "sft_loss", "--dump-config"]) == 2
    assert "prompts.jsonl:1: there is nothing to train on" in capsys.readouterr().err


def test_files_that_a_class_of_the_users_reads_are_not_looked_at(line, tmp_path):
    (tmp_path / "own.py").write_text(
        "class Own:\n"
        "    def get_samples(self, num_samples): ...\n"
        "    def add_samples(self, samples): ...\n"
    )
    (tmp_path / "prompts.txt").write_text("1+1=\n")
    words = [*line, "--prompt-data", f"{tmp_path}/prompts.txt", "--dump-config"]
    words += ["--data-source-path", f"{tmp_path}/own.py:Own"]
    assert main(words) == 2
    assert main([*words, "--disable-rollout-global-dataset"]) == 0


def test_a_key_of_a_file_that_nothing_reads_is_told(line, tmp_path, capsys):
    file, rewards = tmp_path / "own.yaml", tmp_path / "rewards.py"
    rewards.write_text("async def custom_rm(args, sample): return args.search_url\n")
    words = [*line, "--custom-config-path", str(file), "--dump-config"]
    file.write_text("rollout_temprature: 0.5\nsearch_url: x\n")
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "rollout_temprature in --custom-config-path is no flag (did you mean rollout_te" in told
    assert "search_url" not in told
    file.write_text("search_url: x\n")
    assert main(words) == 0
    told = capsys.readouterr().err
    assert "note: search_url in --custom-config-path: no flag, and there is no function" in told
    file.write_text("rollout_temprature: 0.5\nsearch_url: x\n")
    assert main([*words, "--custom-rm-path", str(rewards)]) == 0
    told = capsys.readouterr().err
    assert "only functions of yours see it, as args.rollout_temprature" in told
    assert "search_url" not in told


def test_every_function_of_the_users_is_checked():
    files = {"custom_config_path", "megatron_config_path", "reward_model_path"}
    paths = {flag.dest for flag in slime_flags() if flag.dest.endswith("_path")}
    assert paths - files == set(FIELDS)


def test_a_run_gets_the_resolved_configuration_and_what_to_record_of_it(line, monkeypatch):
    seen = []
    run = SimpleNamespace(run=lambda *given: seen.extend(given) or 7)
    monkeypatch.setitem(sys.modules, "slime_train.run", run)
    assert main(line) == 7
    assert seen[0].rollout.num_rollout == 2
    assert seen[0].hf_config["model_type"] == "qwen3"
    assert list(seen[1].words) == line
    assert any(text.split()[:2] == ["num_rollout", "2"] for text in seen[1].config)


@pytest.mark.parametrize(
    ("script", "ahead"),
    [
        ("apps/train/train.py", "0"),
        ("apps/train/train_async.py", "1"),
        ("train.py", "0"),
        ("train_async.py", "1"),
    ],
)
def test_the_scripts_are_the_commands(line, script, ahead):
    wrong = run_script(script, "--num-rollot", "1")
    assert wrong.returncode == 2
    assert "did you mean --num-rollout?" in wrong.stderr
    dumped = run_script(script, *line, "--dump-config")
    assert dumped.returncode == 0, dumped.stderr
    (found,) = [text.split() for text in dumped.stdout.splitlines() if "async_buffer_size" in text]
    assert found[:2] == ["async_buffer_size", ahead]


def run_script(name, *argv):
    command = [sys.executable, str(ROOT / name), *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


MEGATRON_LINES = (
    "",
    "--bf16",
    "--actor-num-gpus-per-node 2 --tensor-model-parallel-size 2 --sequence-parallel",
    "--actor-num-gpus-per-node 4 --context-parallel-size 2 --recompute-granularity full"
    " --recompute-method uniform --recompute-num-layers 1",
    "--actor-num-gpus-per-node 2 --pipeline-model-parallel-size 2 --global-batch-size 1"
    " --lr-decay-style cosine --lr-warmup-iters 1 --save s --save-interval 1",
    "--moe-token-dispatcher-type allgather --hidden-dropout 0 --transformer-impl local",
)

CHECK = '''
import sys
from slime_train.facts import gather
from slime_train.resolve import resolve
from slime_train.sources import read_sources
from slime_megatron.mcore.startup import bootstrap
bootstrap.load()
from slime_megatron.config import same
from slime_megatron.mcore.startup.arguments import _megatron_parser, parse

NAMES = """num_layers hidden_size vocab_size lr bf16 train_iters lr_decay_style seed clip_grad
    tensor_model_parallel_size context_parallel_size pipeline_model_parallel_size
    sequence_parallel global_batch_size use_distributed_optimizer qk_layernorm
    untie_embeddings_and_output_weights recompute_granularity""".split()
base, lines = sys.argv[1].split(), sys.argv[2:]
for line in lines:
    raw = read_sources([*base, *line.split()])
    config = resolve(raw, gather(raw)).config.megatron
    args = parse(config.argv, 0, config.world_size)
    differ = {n: (getattr(args, n), config[n]) for n in NAMES if getattr(args, n) != config[n]}
    assert not differ, (line, differ)
    assert args.data_parallel_size == config.layout.dp
    read = vars(_megatron_parser().parse_args(config.argv))
    read = {n: getattr(x, "name", x) for n, x in read.items()}  # of enumerations
    differ = {n: (read[n], x) for n, x in config.values.items() if not same(read.get(n), x)}
    assert not differ, (line, differ)
'''


@pytest.mark.slow
def test_megatrons_own_parser_takes_the_command_line_and_agrees(line):
    command = [sys.executable, "-c", CHECK, " ".join(line), *MEGATRON_LINES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
