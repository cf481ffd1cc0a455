import json
import subprocess
import sys
from pathlib import Path

import pytest
from slime_convert import families, presets
from slime_megatron.config import same

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
qwen3-30B-A3B                 48 2048  6144 32 4 128 151936  1000000 1e-06 untied qk-layernorm
qwen3-30B-A3B-Instruct-2507   48 2048  6144 32 4 128 151936 10000000 1e-06 untied qk-layernorm
qwen3-235B-A22B               94 4096 12288 64 4 128 151936  1000000 1e-06 untied qk-layernorm
qwen3-235B-A22B-Instruct-2507 94 4096 12288 64 4 128 151936  5000000 1e-06 untied qk-layernorm
glm4-9B                  40 4096 13696 32 2 128 151552   10000 1e-05 untied qkv-bias
glm4-32B                 61 6144 23040 48 2 128 151552   10000 1e-05 untied -
glm-z1-9B                40 4096 13696 32 2 128 151552   10000 1e-05 untied qkv-bias
glm4.5-106B-A12B         46 4096 10944 96 8 128 151552 1000000 1e-05 untied qkv-bias
glm4.5-355B-A32B         92 5120 12288 96 8 128 151552 1000000 1e-05 untied both
mimo-7B-rl               36 4096 11008 32 8 128 151680  640000 1e-05 untied qkv-bias
"""
"""Layers, hidden size, MLP size, heads, groups, head, vocabulary, rotary base, epsilon, output
layer, and what is particular: as in upstream's scripts, or in config.json where those differ."""
SPECIAL = {
    "qkv-bias": "--add-qkv-bias",
    "qk-layernorm": "--qk-layernorm",
    "rope-scaling-8": "--use-rope-scaling --rope-scaling-factor 8",
    "rope-scaling-32": "--use-rope-scaling --rope-scaling-factor 32",
    "both": "--qk-layernorm --add-qkv-bias",
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


EXPERTS = """
qwen3-30B-A3B     128 8  768    - 1              softmax
qwen3-235B-A22B   128 8 1536    - 1              softmax
glm4.5-106B-A12B  128 8 1408 1408 [0]*1+[1]*45   sigmoid 1
glm4.5-355B-A32B  160 8 1536 1536 [0]*3+[1]*89   sigmoid 2.5
glm4.7-30B-A3B     64 4 1536 1536 [0]*1+[1]*46   sigmoid 1.8
deepseek-v3       256 8 2048 2048 [0]*3+[1]*58   sigmoid 2.5
deepseek-v3-5layer 256 8 2048 2048 [0]*3+[1]*2   sigmoid 2.5
kimi-k2           384 8 2048 2048 [0]*1+[1]*60   sigmoid 2.827
kimi-k2-thinking  384 8 2048 2048 [0]*1+[1]*60   sigmoid 2.827
moonlight          64 6 1408 2816 [0]*1+[1]*26   sigmoid 2.446
"""
"""Experts, how many a token visits, their size, that of the shared ones, which layers have them,
how they are scored, and what their weights are multiplied by."""
LATENT = """
deepseek-v3     128 1536 512 128 64 128 40
glm4.7-30B-A3B   20  768 512 192 64 256 1
kimi-k2          64 1536 512 128 64 128 32
kimi-k2-thinking 64 1536 512 128 64 128 64
moonlight        16    - 512 128 64 128 1
"""
"""Heads, ranks of queries and of keys with values, head sizes (plain, turned, value), factor."""


def given(name, table):
    """The flags of a script that a row of a table is about, and the row."""
    flags = sourced(SCRIPTS / f"{name}.sh")
    found = {flag: flags[flags.index(flag) + 1] if flag in flags else "-" for flag in table}
    return list(found.values())


@pytest.mark.parametrize("row", EXPERTS.strip().splitlines(), ids=lambda row: row.split()[0])
def test_a_script_gives_the_experts_of_upstream(row):
    name, *expected = row.split()
    flags = (
        "--num-experts",
        "--moe-router-topk",
        "--moe-ffn-hidden-size",
        "--moe-shared-expert-intermediate-size",
        "--moe-layer-freq",
        "--moe-router-score-function",
        "--moe-router-topk-scaling-factor",
    )
    assert given(name, flags) == [*expected, "-"][:7]


@pytest.mark.parametrize("row", LATENT.strip().splitlines(), ids=lambda row: row.split()[0])
def test_a_script_gives_the_latents_of_upstream(row):
    name, *expected = row.split()
    flags = (
        "--num-attention-heads",
        "--q-lora-rank",
        "--kv-lora-rank",
        "--qk-head-dim",
        "--qk-pos-emb-head-dim",
        "--v-head-dim",
        "--rotary-scaling-factor",
    )
    assert given(name, flags) == expected


PARSE = """
import json, sys, warnings
warnings.simplefilter("ignore")
from megatron.training.arguments import parse_args
parsed = {}
for line in sys.stdin:
    name, *flags = line.rstrip("\\n").split("\\t")
    sys.argv = ["", *flags]
    found = vars(parse_args(ignore_unknown_args=False))
    found = {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in found.items()}
    parsed[name] = {k: v for k, v in found.items()
                    if isinstance(v, bool | int | float | str | list)}
print(json.dumps(parsed))
"""


@pytest.mark.slow
def test_megatron_parses_every_script_to_the_arguments_of_its_family():
    lines = ["\t".join([p.stem, *sourced(p)]) for p in sorted(SCRIPTS.glob("*.sh"))]
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
        differ = {d: parsed[name][d] for d, x in arguments.items() if not same(parsed[name][d], x)}
        assert differ == {}
