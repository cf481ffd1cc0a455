"""Whatever is named in place of something of upstream's is there."""

import re
from importlib import import_module

import pytest
from slime_core import upstream
from slime_train.sources import all_flags

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
