import json
import subprocess
import sys
from pathlib import Path

import pytest
from slime_convert import families, presets

SCRIPTS = Path(__file__).parents[2] / "scripts" / "models"

UPSTREAM = """
qwen2.5-0.5B             24  896  4864 14 2  64 151936 1000000 1e-06 tied   qkv-bias
qwen2.5-1.5B             28 1536  8960 12 2 128 151936 1000000 1e-06 tied   qkv-bias
qwen2.5-3B               36 2048 11008 16 2 128 151936 1000000 1e-06 tied   qkv-bias
qwen2.5-7B               28 3584 18944 28 4 128 152064 1000000 1e-06 untied qkv-bias
qwen2.5-14B              48 5120 13824 40 8 128 152064 1000000 1e-06 untied qkv-bias
qwen2.5-32B              64 5120 27648 40 8 128 152064 1000000 1e-05 untied qkv-bias
qwen2.5-72B              80 8192 29568 64 8 128 152064 1000000 1e-06 untied qkv-bias
qwen3-0.6B               28 1024  3072 16 8 128 151936 1000000 1e-06 tied   qk-layernorm
qwen3-1.7B               28 2048  6144 16 8 128 151936 1000000 1e-06 tied   qk-layernorm
qwen3-4B                 36 2560  9728 32 8 128 151936 1000000 1e-06 tied   qk-layernorm
qwen3-4B-Instruct-2507   36 2560  9728 32 8 128 151936 5000000 1e-06 tied   qk-layernorm
qwen3-8B                 36 4096 12288 32 8 128 151936 1000000 1e-06 untied qk-layernorm
qwen3-14B                40 5120 17408 40 8 128 151936 1000000 1e-06 untied qk-layernorm
qwen3-32B                64 5120 25600 64 8 128 151936 1000000 1e-06 untied qk-layernorm
llama3-8B                32 4096 14336 32 8 128 128256  500000 1e-05 untied -
llama3-70B               80 8192 28672 64 8 128 128256  500000 1e-05 untied -
llama3.1-8B-Instruct     32 4096 14336 32 8 128 128256  500000 1e-05 untied rope-scaling-8
llama3.1-70B-Instruct    80 8192 28672 64 8 128 128256  500000 1e-05 untied rope-scaling-8
llama3.2-1B-Instruct     16 2048  8192 32 8  64 128256  500000 1e-05 tied   rope-scaling-32
llama3.2-3B-Instruct     28 3072  8192 24 8 128 128256  500000 1e-05 tied   rope-scaling-32
"""
"""Layers, hidden size, MLP size, heads, groups, head, vocabulary, rotary base, epsilon, output
layer, and what is particular: as in upstream's scripts, or in config.json where those differ."""
SPECIAL = {
    "qkv-bias": "--add-qkv-bias",
    "qk-layernorm": "--qk-layernorm",
    "rope-scaling-8": "--use-rope-scaling --rope-scaling-factor 8",
    "rope-scaling-32": "--use-rope-scaling --rope-scaling-factor 32",
    "-": "",
}


def sourced(path):
    """Return MODEL_ARGS of a script as bash sees it."""
    command = ["bash", "-euc", 'source "$1"; printf "%s\\n" "${MODEL_ARGS[@]}"', "_", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_scripts_are_what_the_table_renders_to():
    rendered = {f"{name}.sh": presets.render(name) for name in presets.PRESETS}
    written = {path.name: path.read_text() for path in SCRIPTS.glob("*.sh")}
    assert written == rendered


@pytest.mark.parametrize("row", UPSTREAM.strip().splitlines(), ids=lambda row: row.split()[0])
def test_a_script_gives_the_values_of_upstream(row):
    name, *numbers, tied, special = row.split()
    layers, hidden, ffn, heads, groups, head, vocab, theta, eps = numbers
    flags = sourced(SCRIPTS / f"{name}.sh")
    expected = {
        "--num-layers": layers,
        "--hidden-size": hidden,
        "--ffn-hidden-size": ffn,
        "--num-attention-heads": heads,
        "--num-query-groups": groups,
        "--kv-channels": head,
        "--rotary-base": theta,
        "--vocab-size": vocab,
        "--norm-epsilon": eps,
        "--normalization": "RMSNorm",
        "--position-embedding-type": "rope",
    }
    assert {flag: flags[flags.index(flag) + 1] for flag in expected} == expected
    assert {"--swiglu", "--disable-bias-linear", "--group-query-attention"} < set(flags)
    assert ("--untie-embeddings-and-output-weights" in flags) == (tied == "untied")
    special_flags = {word for words in SPECIAL.values() for word in words.split() if "--" in word}
    assert SPECIAL[special] in " ".join(flags)
    assert special_flags & set(flags) == special_flags & set(SPECIAL[special].split())


PARSE = """
import json, sys, warnings
warnings.simplefilter("ignore")
from megatron.training.arguments import parse_args
parsed = {}
for line in sys.stdin:
    name, *flags = line.split()
    sys.argv = ["", *flags]
    parsed[name] = {k: v for k, v in vars(parse_args(ignore_unknown_args=False)).items()
                    if isinstance(v, bool | int | float | str)}
print(json.dumps(parsed))
"""


@pytest.mark.slow
def test_megatron_parses_every_script_to_the_arguments_of_its_family():
    lines = [" ".join([p.stem, *sourced(p)]) for p in sorted(SCRIPTS.glob("*.sh"))]
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parsed = json.loads(done.stdout.splitlines()[-1])
    assert parsed.keys() == presets.PRESETS.keys()
    for name, config in presets.PRESETS.items():
        arguments = families.find(config).megatron_args(config)
        del arguments["max_position_embeddings"]  # of the checkpoint, not of the architecture
        assert {dest: parsed[name][dest] for dest in arguments} == arguments
