import json
import subprocess
import sys
from pathlib import Path

import pytest
from slime_convert import families, presets

SCRIPTS = Path(__file__).parents[2] / "scripts" / "models"

UPSTREAM = """
qwen3-0.6B              28 1024  3072 16 1000000 tied
qwen3-1.7B              28 2048  6144 16 1000000 tied
qwen3-4B                36 2560  9728 32 1000000 tied
qwen3-4B-Instruct-2507  36 2560  9728 32 5000000 tied
qwen3-8B                36 4096 12288 32 1000000 untied
qwen3-14B               40 5120 17408 40 1000000 untied
qwen3-32B               64 5120 25600 64 1000000 untied
"""
"""Layers, hidden size, MLP size, heads, rotary base, output layer: as in upstream's scripts."""


def sourced(path):
    """Return MODEL_ARGS of a script as bash sees it."""
    command = ["bash", "-euc", 'source "$1"; printf "%s\\n" "${MODEL_ARGS[@]}"', "_", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_scripts_are_what_the_table_renders_to():
    rendered = {f"{name}.sh": presets.render(name) for name in presets.PRESETS}
    written = {path.name: path.read_text() for path in SCRIPTS.glob("qwen3-*.sh")}
    assert written == rendered


@pytest.mark.parametrize("row", UPSTREAM.strip().splitlines(), ids=lambda row: row.split()[0])
def test_a_script_gives_the_values_of_upstream(row):
    name, layers, hidden, ffn, heads, theta, tied = row.split()
    flags = sourced(SCRIPTS / f"{name}.sh")
    expected = {
        "--num-layers": layers,
        "--hidden-size": hidden,
        "--ffn-hidden-size": ffn,
        "--num-attention-heads": heads,
        "--num-query-groups": "8",
        "--kv-channels": "128",
        "--rotary-base": theta,
        "--vocab-size": "151936",
        "--norm-epsilon": "1e-06",
        "--normalization": "RMSNorm",
        "--position-embedding-type": "rope",
    }
    assert {flag: flags[flags.index(flag) + 1] for flag in expected} == expected
    switches = {"--swiglu", "--qk-layernorm", "--disable-bias-linear", "--group-query-attention"}
    assert switches < set(flags)
    assert ("--untie-embeddings-and-output-weights" in flags) == (tied == "untied")


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
    lines = [" ".join([p.stem, *sourced(p)]) for p in sorted(SCRIPTS.glob("qwen3-*.sh"))]
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
