import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from slime_core.config.flags import flags_of
from slime_core.config.gone import GONE, MEANT
from slime_megatron.config import REFUSED
from slime_sglang.config import SLIME_SETS
from slime_train.run_config import SECTIONS, RunConfig
from slime_train.sources import all_flags, read_sources

ROOT = Path(__file__).resolve().parents[2]
INSTEAD = (*REFUSED.values(), *SLIME_SETS.values(), *GONE.values())
GOLDEN = Path(__file__).with_name("golden") / "upstream_flags.txt"


def test_every_flag_of_upstream_is_known():
    missing = set(GOLDEN.read_text().split()) - set(all_flags())
    assert missing == set()


def test_field_names_are_unique_over_all_sections():
    names = [flag.dest for section in SECTIONS.values() for flag in flags_of(section)]
    assert len(names) == len(set(names))


def test_a_run_has_every_section():
    attributes = {field.name for field in dataclasses.fields(RunConfig)}
    assert set(SECTIONS) - {"command"} | {"megatron"} <= attributes


def test_every_flag_has_a_help_text():
    flags = (f for section in SECTIONS.values() for f in flags_of(section, helps=True))
    assert [flag.dest for flag in flags if not flag.help] == []


def test_the_help_of_a_flag_that_denies_begins_with_a_denial():
    flags = [f for section in SECTIONS.values() for f in flags_of(section, helps=True)]
    denying = [f for f in flags if f.names[0].startswith(("--disable-", "--no-", "--skip-"))]
    assert len(denying) == 9
    assert [f.names[0] for f in denying if not f.help.startswith("Do not ")] == []
    assert [f.names[0] for f in flags if f.const is False and f not in denying] == []


def test_no_refusal_leads_to_a_flag_that_is_refused_or_unknown():
    flags = all_flags()
    planned = [flag.spelling.get("planned") or "" for flag in flags.values()]
    reasons = [p for each in planned for p in ([each] if isinstance(each, str) else each.values())]
    named = set(re.findall(r"--[a-z][a-z0-9-]*[a-z0-9](?![\w-])", " ".join([*reasons, *INSTEAD])))
    assert len(named) > 10
    refused = {name for name in named & set(flags) if is_refused(flags[name])}
    assert (named - set(flags), refused) == (set(), set())


@pytest.mark.parametrize(
    ("flag", "advice"),
    [
        ("--post-self-attn-layernorm", "a model of the glm4 family has these norms"),
        ("--post-mlp-layernorm", "leave it out"),
        ("--use-gated-attention", "cannot be trained"),
        ("--use-critic", "give that"),
    ],
)
def test_a_flag_that_is_gone_gets_advice_instead_of_a_near_spelling(flag, advice):
    (told,) = read_sources([flag]).problems
    assert told.startswith(f"{flag} is no flag here: ")
    assert advice in told
    assert "did you mean" not in told
    assert not (set(GONE) | set(MEANT)) & set(all_flags())
    assert {flag for flag in MEANT.values() if flag.startswith("--")} <= set(all_flags())


def is_refused(flag):
    if flag.owner == "megatron":
        return flag.dest in REFUSED
    return isinstance(flag.spelling.get("planned"), str)


def test_the_page_of_flags_is_in_step_with_the_sections():
    script = ROOT / "scripts/generate_flag_docs.py"
    code = f"import runpy; print(runpy.run_path({str(script)!r})['page'](), end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (ROOT / "docs/reference/flags.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_flag_tables_are_in_step_with_the_real_parsers():
    script = ROOT / "scripts/generate_flag_tables.py"
    command = [sys.executable, str(script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("--lerning-rate", "(did you mean --lr?)"),
        ("--learning_rate", "(did you mean --lr?)"),
        ("--clip-eps", "(did you mean --eps-clip?)"),
        ("--high_eps_clip", "(did you mean --eps-clip-high?)"),
        ("--max-completion-length", "(did you mean --rollout-max-response-len?)"),
        ("--per-device-train-batch-size", "(did you mean --micro-batch-size?)"),
        ("--per_device_train_batch_size", "(did you mean --micro-batch-size?)"),
        ("--resume", "to go on from another directory give --load"),
        ("--rollout-temprature", "(did you mean --rollout-temperature?)"),
        ("--Num-Rollout", "(did you mean --num-rollout?)"),
        ("--tensor-model-paralel-size", "(did you mean --tensor-model-parallel-size?)"),
        ("--sglang-mem-fraction", "(did you mean --sglang-mem-fraction-static?)"),
        ("--frobnicate", "unknown flag --frobnicate"),
        ("--speed-up", "unknown flag --speed-up"),
    ],
)
def test_a_flag_spelt_badly_or_as_elsewhere_leads_to_the_right_one(typed, advice):
    (told,) = read_sources([typed]).problems
    assert told.endswith(advice)
