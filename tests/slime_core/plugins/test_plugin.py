import math

import pytest
from slime_core.errors import PluginError
from slime_core.plugins.plugin import load_plugin


async def reward_contract(args, sample): ...


def test_dotted_path():
    assert load_plugin("math.sqrt") is math.sqrt


def test_file_path(tmp_path):
    file = tmp_path / "my_rm.py"
    file.write_text("async def score(args, sample, **kw):\n    return 1.0\n")
    assert load_plugin(f"{file}:score", expects=reward_contract).__name__ == "score"


def test_a_file_alone_stands_for_the_function_of_its_name(tmp_path):
    file = tmp_path / "custom_generate.py"
    file.write_text("def helper(): ...\ndef custom_generate(args, samples): ...\n")
    assert load_plugin(str(file)).__name__ == "custom_generate"


def test_a_file_alone_stands_for_its_only_class(tmp_path):
    file = tmp_path / "custom_rm.py"
    file.write_text("from math import sqrt\nclass CustomRewardModel: ...\n")
    assert load_plugin(str(file)).__name__ == "CustomRewardModel"


def test_a_file_with_several_functions_asks_which(tmp_path):
    file = tmp_path / "plugins.py"
    file.write_text("def a(): ...\ndef b(): ...\n")
    with pytest.raises(PluginError, match=r"defines \['a', 'b'\]: say which one as .*:name"):
        load_plugin(str(file))


def test_a_file_that_fails_to_import_says_why(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("1 / 0\n")
    for _ in range(2):
        with pytest.raises(PluginError, match="cannot be imported: ZeroDivisionError"):
            load_plugin(f"{file}:f")


def test_a_script_that_ends_the_process_does_not_end_the_run_without_a_word(tmp_path, monkeypatch):
    (tmp_path / "scripted.py").write_text("import sys\nsys.exit(3)\ndef f(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for spec in (f"{tmp_path}/scripted.py:f", "scripted.f"):
        with pytest.raises(PluginError, match=r"sys.exit\(3\); put .* under `if __name__"):
            load_plugin(spec)


def test_a_misspelt_name_in_a_file_leads_to_the_right_one(tmp_path):
    file = tmp_path / "rew.py"
    file.write_text("def reward(): ...\n")
    with pytest.raises(
        PluginError, match=r": rew.py has \['reward'\], no 'rewrd'; did you mean 'reward'\?"
    ):
        load_plugin(f"{file}:rewrd")


def test_what_is_no_function_and_what_is_no_python_say_so(tmp_path):
    file = tmp_path / "odd.py"
    file.write_text("limit = 3\n")
    with pytest.raises(PluginError, match="is of type int, not a function"):
        load_plugin(f"{file}:limit")
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\ndef (:\n")
    with pytest.raises(PluginError, match=r"broken.py cannot be imported: line 2: invalid syntax"):
        load_plugin(f"{broken}:x")


def test_wrong_signature_says_so(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("def score(sample):\n    return 1.0\n")
    with pytest.raises(PluginError, match=r"must be callable as f\(args, sample\)"):
        load_plugin(f"{file}:score", expects=reward_contract)


def test_unknown_name_lists_the_alternatives():
    with pytest.raises(PluginError, match="entry points"):
        load_plugin("nope")


def test_a_missing_module_is_told_how_to_be_found():
    with pytest.raises(PluginError, match=r"cannot import 'my_rm' \(is it on PYTHONPATH\?"):
        load_plugin("my_rm.score")


def test_upstreams_types_are_elsewhere():
    with pytest.raises(PluginError, match=r"slime_core\.types"):
        load_plugin("slime.utils.types.Sample")


def test_upstreams_own_filter_is_found_under_its_name():
    spec = "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std"
    assert load_plugin(spec).__name__ == "check_reward_nonzero_std"
