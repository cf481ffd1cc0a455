import asyncio

import pytest
from slime_core.errors import PluginError
from slime_core.hooks import adapters as hooks
from slime_core.types import SampleGroup
from slime_testing import make_sample

FLAT = {"reward_key": None, "max_turns": 3}


@pytest.fixture
def plugin(tmp_path):
    def write(text, name="custom.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_bare_file_means_the_usual_name_in_it(plugin):
    spec = plugin("def other(x): ...\nasync def custom_rm(args, sample, **kw):\n    return 2.0\n")
    fn = hooks.custom_reward(spec, FLAT, group=False)
    assert asyncio.run(fn([make_sample(), make_sample()])) == [2.0, 2.0]


def test_a_bare_file_with_one_function_means_that(plugin):
    spec = plugin("def score(args, sample):\n    return float(args.max_turns)\n")
    assert asyncio.run(hooks.custom_reward(spec, FLAT, group=False)([make_sample()])) == [3.0]


def test_an_ambiguous_file_lists_its_functions(plugin):
    spec = plugin("def a(args, sample): ...\ndef b(args, sample): ...\n")
    with pytest.raises(PluginError, match=r"defines \['a', 'b'\]; name one as .*custom.py:NAME"):
        hooks.custom_reward(spec, FLAT, group=False)
    with pytest.raises(PluginError, match=r"or call it custom_rm or reward_func or .*Model$"):
        hooks.custom_reward(spec, FLAT, group=False)
    broken = plugin("x = 1\ndef (:\n", "broken.py")
    with pytest.raises(PluginError, match="is not Python: line 2: invalid syntax"):
        hooks.custom_reward(broken, FLAT, group=False)
    with pytest.raises(PluginError, match="does not exist"):
        hooks.custom_reward("gone.py", FLAT, group=False)


def test_group_rewards_are_counted(plugin):
    spec = plugin("def custom_rm(args, samples, **kw):\n    return [1.0] * 2\n")
    fn = hooks.custom_reward(spec, FLAT, group=True)
    assert asyncio.run(fn([make_sample(), make_sample()])) == [1.0, 1.0]
    with pytest.raises(PluginError, match="2 rewards for 1 samples"):
        asyncio.run(fn([make_sample()]))


def test_reward_classes_are_understood(plugin):
    spec = plugin(
        "class CustomRewardModel:\n"
        "    def compute_reward(self, prompts, responses):\n"
        "        return [float(len(p + r)) for p, r in zip(prompts, responses)]\n"
    )
    fn = hooks.custom_reward(spec, FLAT, group=False)
    assert asyncio.run(fn([make_sample()])) == [5.0]
    needy = plugin(
        "class Model:\n    def __init__(self, path): ...\n    compute_reward = 1\n", "n.py"
    )
    with pytest.raises(PluginError, match="without arguments"):
        hooks.custom_reward(needy, FLAT, group=False)


def test_a_reward_class_is_given_the_path_of_its_model_once(plugin):
    spec = plugin(
        "class CustomRewardModel:\n"
        "    def __init__(self, model_path):\n"
        "        self.paths = [model_path]\n"
        "    def compute_reward(self, prompts, responses):\n"
        "        return [float(self.paths == ['m'])] * len(responses)\n"
    )
    fn = hooks.custom_reward(spec, {"reward_model_path": "m"}, group=False)
    assert asyncio.run(fn([make_sample(), make_sample()])) == [1.0, 1.0]
    short = plugin("class M:\n    def compute_reward(self, p, r):\n        return [1]\n", "m.py")
    with pytest.raises(PluginError, match="1 rewards for 2 samples"):
        asyncio.run(hooks.custom_reward(short, FLAT, group=False)([make_sample(), make_sample()]))


def test_generate_functions_of_both_shapes(plugin):
    one = plugin(
        "async def generate(args, sample, sampling_params, evaluation=False):\n"
        "    sample.response = f\"{sampling_params['n']} {evaluation} {args.max_turns}\"\n"
        "    return sample\n",
        "one.py",
    )
    many = plugin(
        "async def custom_generate(args, samples, evaluation=False):\n"
        "    for s in samples:\n        s.response = f'{evaluation}'\n"
        "    return samples\n",
        "many.py",
    )
    found = [
        asyncio.run(hooks.custom_generate(s, FLAT)(make_sample(), {"n": 1}, evaluation=True))
        for s in (one, many)
    ]
    assert [s.response for s in found] == ["1 True 3", "True"]


def test_filters_may_answer_yes_or_explain(plugin):
    spec = plugin("def filter(args, samples, **kw):\n    return len(samples) > 1\n")
    keep = hooks.dynamic_filter(spec, FLAT)
    assert keep([make_sample()] * 2).keep
    assert keep([make_sample()]).reason == "filtered"
    upstream = "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std"
    assert hooks.dynamic_filter(upstream, FLAT)([make_sample()]).reason == "zero_std_1.0"


@pytest.mark.parametrize(
    "truth",
    [
        "np.std(scores) > 0",
        "np.asarray(np.std(scores) > 0)",
        "torch.tensor(scores).std() > 0",
        "SimpleNamespace(keep=np.std(scores) > 0, reason=None)",
    ],
)
def test_truth_values_of_arrays_are_truth_values(plugin, truth):
    spec = plugin(
        "import numpy as np\nimport torch\n"
        "from types import SimpleNamespace\n"
        "def filter(args, samples):\n"
        "    scores = [float(s.reward) for s in samples]\n"
        f"    return {truth}\n"
    )
    keep = hooks.dynamic_filter(f"{spec}:filter", FLAT)
    differing, equal = [make_sample(reward=0.0), make_sample(reward=1.0)], [make_sample()] * 2
    assert keep(differing).keep is True
    assert keep(equal).keep is False


@pytest.mark.parametrize("answer", ["'yes'", "None", "1", "np.array([True, False])"])
def test_what_is_no_truth_value_names_the_filter(plugin, answer):
    spec = plugin(f"import numpy as np\ndef filter(args, samples):\n    return {answer}\n")
    with pytest.raises(PluginError, match=r"custom.py:filter' must return True, False or Dynamic"):
        hooks.dynamic_filter(f"{spec}:filter", FLAT)([make_sample()])


def test_answers_of_another_kind_name_the_function(plugin):
    group = plugin("def custom_rm(args, samples):\n    return 1.0\n", "group.py")
    with pytest.raises(PluginError, match=r"group.py' must return a list of 2 rewards.*1\.0"):
        asyncio.run(hooks.custom_reward(group, FLAT, group=True)([make_sample()] * 2))
    flat_array = plugin(
        "import numpy as np\ndef custom_rm(args, samples):\n    return np.array(1.0)\n", "zero.py"
    )
    with pytest.raises(PluginError, match="returned 1 rewards for 2 samples"):
        asyncio.run(hooks.custom_reward(flat_array, FLAT, group=True)([make_sample()] * 2))
    shape = plugin("def post_process_rewards(args, samples):\n    return [1]\n", "shape.py")
    with pytest.raises(PluginError, match=r"shape.py' must return two lists of numbers"):
        hooks.reward_post_process(shape, FLAT)([make_sample()])
    hook = plugin("def hook(args, sample):\n    return True\n", "hook.py")
    with pytest.raises(PluginError, match=r"hook.py' must return a Sample or None, returned True"):
        asyncio.run(hooks.sample_hook(hook, FLAT)(make_sample(), rollout_id=0, evaluation=False))


def test_the_wrong_shape_is_refused_at_start_up(plugin):
    spec = plugin("def filter(a, b, c):\n    ...\n")
    with pytest.raises(
        PluginError, match=r"must be callable as f\(args, samples\) or f\(samples\)"
    ):
        hooks.dynamic_filter(spec, FLAT)


def test_reward_shaping_sample_hooks_and_filters(plugin):
    shape = plugin("def post_process_rewards(args, samples):\n    return [1], [2]\n", "shape.py")
    assert hooks.reward_post_process(shape, FLAT)([make_sample()]) == ([1.0], [2.0])
    hook = plugin(
        "def hook(args, sample, *, rollout_id=None):\n    sample.index = rollout_id\n", "h.py"
    )
    sample = make_sample()
    run = hooks.sample_hook(hook, FLAT)
    assert asyncio.run(run(sample, rollout_id=4, evaluation=False)) is None
    assert sample.index == 4
    spec = plugin("def f(args, data):\n    data[0][0].remove_sample = True\n", "f.py")
    hooks.sample_filter(spec, FLAT)([[sample]])
    assert sample.remove_sample


def test_a_buffer_filter_works_on_lists_of_samples(plugin):
    spec = plugin(
        "def buffer_filter(args, rollout_id, buffer, num_samples):\n"
        "    return [buffer.pop() for _ in range(num_samples)]\n"
    )
    waiting = [SampleGroup(i, (make_sample(),)) for i in range(3)]
    taken = hooks.buffer_filter(spec, FLAT)(waiting, 2)
    assert [g.group_index for g in taken] == [2, 1]
    assert [g.group_index for g in waiting] == [0]
