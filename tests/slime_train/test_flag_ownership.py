import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from slime_core.config.flags import flags_of
from slime_train.run_config import SECTIONS, RunConfig
from slime_train.sources import all_flags

ROOT = Path(__file__).resolve().parents[2]
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
