import pytest
from slime_core.errors import PluginError
from slime_core.hooks.user_functions import check
from slime_core.plugins.forms import EXACT, FORMS, functions_of_samples, given

FITTING = [
    ("custom_generate_function_path", "async def f(args, sample, sampling_params): ..."),
    ("custom_generate_function_path", "async def f(args, samples, evaluation=False): ..."),
    ("custom_rm_path", "async def f(args, sample, **kwargs): ..."),
    ("custom_rm_path", "def f(response, label, metadata): ..."),
    ("custom_rm_path", "class F:\n    def compute_reward(self, prompts, responses): ..."),
    ("dynamic_sampling_filter_path", "def f(samples): ..."),
    ("rollout_sample_hook_path", "def f(args, sample, *, rollout_id): ..."),
    ("custom_tis_function_path", "def f(args, *, pg_loss, loss_masks, **kwargs): ..."),
    ("custom_megatron_init_path", "def f(args): ..."),
    ("custom_megatron_init_path", "def f(): ..."),
    ("custom_model_provider_path", "def f(pre_process, post_process, vp_stage=None): ..."),
    ("rollout_function_path", "def f(args, rollout_id, data_source, evaluation=False): ..."),
    ("buffer_filter_path", "def f(args, buffer, num_samples): ..."),
    ("data_source_path", "class F:\n    get_samples = add_samples = None"),
]
UNFIT = [
    ("custom_generate_function_path", "async def f(args, prompt): ...", "sample, sampling_params"),
    ("custom_rm_path", "def f(args, sample, model): ...", r"f\(args, sample\) or f\(sample\)"),
    ("custom_rm_path", "def f(first, second): ...", "missing a required argument: 'second'"),
    (
        "custom_rm_path",
        "def f(prompt, completion): ...",
        r"f\(args, sample\) or f\(sample\) or f\(response, label, metadata\), but is \(prompt",
    ),
    ("custom_rm_path", "class F: ...", "without compute_reward"),
    (
        "custom_rm_path",
        "class F:\n    compute_reward = 0\n    def __init__(self, path): ...",
        "a path given as --reward-model-path",
    ),
    ("dynamic_sampling_filter_path", "async def f(args, samples): ...", "must not be async"),
    ("custom_loss_function_path", "def f(args, batch, logits): ...", "too many positional"),
    ("custom_tis_function_path", "def f(args, *, losses): ...", r"f\(args, \*, pg_loss, "),
    ("custom_model_provider_path", "def f(pre, post, vp_stage=None): ...", r"\*, pre_process"),
    ("rollout_function_path", "def f(args, rollout_id): ...", "data_source"),
    ("buffer_filter_path", "def f(args): ...", "num_samples"),
    ("data_source_path", "class F:\n    get_samples = None", "has no add_samples"),
]


def written(tmp_path, text):
    (tmp_path / "own.py").write_text(text + "\n")
    return f"{tmp_path}/own.py:{'F' if text.startswith('class') else 'f'}"


@pytest.mark.parametrize(("field", "text"), FITTING)
def test_a_function_that_can_be_called_is_taken(tmp_path, field, text):
    check(field, written(tmp_path, text), {})


@pytest.mark.parametrize(("field", "text", "complaint"), UNFIT)
def test_one_that_cannot_be_called_is_refused_without_being_called(
    tmp_path, field, text, complaint
):
    with pytest.raises(PluginError, match=complaint):
        check(field, written(tmp_path, text), {})


def test_a_reward_class_is_made_with_the_path_of_its_model(tmp_path):
    text = "class F:\n    compute_reward = 0\n    def __init__(self, path): 1 / 0"
    check("custom_rm_path", written(tmp_path, text), {"reward_model_path": "m"})


def test_no_field_has_two_forms():
    assert not FORMS.keys() & EXACT.keys()


def test_the_functions_that_may_set_attributes_of_a_sample_are_told_by_their_flags():
    flat = {
        "custom_rm_path": "own.score",
        "rollout_sample_hook_path": ("own.a", "own.b"),
        "custom_loss_function_path": "own.loss",
        "data_source_path": None,
    }
    assert functions_of_samples(flat) == (
        "--custom-rm-path own.score, --rollout-sample-hook-path own.a, "
        "--rollout-sample-hook-path own.b"
    )
    assert ("custom_loss_function_path", "own.loss") in given(flat.get)
