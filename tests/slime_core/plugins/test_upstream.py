import sys

import pytest
from slime_core.errors import PluginError
from slime_core.plugins import upstream
from slime_core.plugins.plugin import load_plugin

PLUGIN = """
import json
from slime.utils.types import Sample as S, Status, Trace
from slime.rollout.filter_hub.base_types import DynamicFilterOutput
from slime.utils.http_utils import post
import slime.rollout.fully_async_rollout as ahead

async def custom_rm(args, sample):
    return 1.0
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "my_plugin.py"
    sys.modules.pop("my_plugin", None)


@pytest.mark.parametrize("dotted", [False, True])
def test_every_import_of_upstreams_is_told_with_what_to_write(plugin, dotted):
    with pytest.raises(PluginError) as caught:
        load_plugin("my_plugin.custom_rm" if dotted else f"{plugin}:custom_rm")
    _, told = str(caught.value).split("my_plugin.py imports upstream's package: ")
    assert told.split("; ") == [
        "line 3: write `from slime_core.types import Sample as S, Status`",
        "slime_core.types has no Trace",
        "line 4: write `from slime_core.data.filters import DynamicFilterOutput`",
        "line 5: slime.utils.http_utils: `import httpx`: await httpx.AsyncClient().post(url, "
        "json=body)",
        "line 6: slime.rollout.fully_async_rollout: run slime-train-async --fully-async, "
        "with --async-buffer-size for how far generation goes ahead and --max-staleness for how "
        "old a token may be",
    ]


def test_a_path_into_upstream_is_told_what_takes_its_place():
    with pytest.raises(PluginError, match="run slime-train-async --fully-async, with --async-buf"):
        load_plugin("slime.rollout.fully_async_rollout.generate_rollout_fully_async")
    with pytest.raises(PluginError, match=r"it is slime_core\.types here"):
        load_plugin("slime.utils.types.Sample")
    with pytest.raises(PluginError, match=r"name a grader with --rm-type"):
        load_plugin("slime.rollout.rm_hub.deepscaler.get_deepscaler_rule_based_reward")
    with pytest.raises(PluginError, match=r"docs/coming_from_upstream\.md"):
        load_plugin("slime.ray.rollout.RolloutManager")


def test_what_fails_in_a_file_of_theirs_is_found_in_that_file(plugin):
    (plugin.parent / "outer.py").write_text("import my_plugin\ndef custom_rm(args, sample): ...\n")
    with pytest.raises(PluginError, match=r"outer\.py cannot be imported: my_plugin\.py imports"):
        load_plugin(f"{plugin.parent}/outer.py:custom_rm")


def test_other_missing_modules_are_not_upstreams():
    assert upstream.advice(ModuleNotFoundError("no", name="slimes")) is None
