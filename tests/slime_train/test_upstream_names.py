"""Whatever is named in place of something of upstream's is there."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from slime_core.config.gone import GONE
from slime_core.plugins import upstream
from slime_train.sources import all_flags

ROOT = Path(__file__).resolve().parents[2]
TEXTS = " ".join(upstream.INSTEAD.values())


@pytest.mark.parametrize("module", sorted({*upstream.MODULES.values()}))
def test_modules_are_there(module):
    import_module(module)


@pytest.mark.parametrize("line", sorted(set(re.findall(r"`((?:from|import) [^`]+)`", TEXTS))))
def test_lines_to_write_can_be_run(line):
    exec(line, {})


def test_flags_to_give_are_there():
    named = set(re.findall(r"--[a-z-]+", TEXTS))
    assert named
    assert named <= set(all_flags())


def test_the_page_for_people_from_upstream_names_every_module():
    page = (ROOT / "docs/coming_from_upstream.md").read_text()
    mapped = {name.removeprefix("slime.rollout.filter_hub") for name in upstream.MODULES}
    assert [name for name in mapped if name not in page] == []
    assert [name for name in upstream.INSTEAD if name not in page] == []


def test_the_page_names_flags_that_there_are():
    page = (ROOT / "docs/coming_from_upstream.md").read_text()
    named = set(re.findall(r"--[a-z][a-z0-9-]*[a-z0-9](?![\w-])", page))
    unknown = named - set(all_flags()) - set(GONE) - {"--local-dir", "--logdir", "--head"}
    assert unknown == set()


def test_what_upstreams_examples_import_has_a_twin():
    wanted = {
        "slime.utils.types": ("Sample",),
        "slime.rollout.base_types": ("RolloutFnTrainOutput", "RolloutFnEvalOutput"),
        "slime.rollout.filter_hub.base_types": ("DynamicFilterOutput",),
        "slime.rollout.data_source": ("RolloutDataSource", "RolloutDataSourceWithBuffer"),
    }
    for module, names in wanted.items():
        ours = import_module(upstream.MODULES[module])
        assert all(hasattr(ours, name) for name in names)
