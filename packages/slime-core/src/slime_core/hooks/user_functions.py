"""Load the user's functions before anything starts, so that a typo costs a second."""

from collections.abc import Iterator

from slime_core.config.draft import Draft
from slime_core.errors import PluginError
from slime_core.hooks.forms import given
from slime_core.hooks.loading import check


def problems(draft: Draft) -> Iterator[str]:
    """A complaint for every user function that does not load or cannot be called as it will be."""
    flat = {"reward_model_path": draft["reward_model_path"]}
    for name, spec in _given(draft):
        try:
            check(name, spec, flat)
        except PluginError as error:
            yield f"--{name.replace('_', '-')} {spec}: {error}"


def _given(draft: Draft) -> Iterator[tuple[str, str]]:
    yield from given(draft.__getitem__)
    for each in draft["eval_datasets"]:
        for name in ("custom_generate_function_path", "custom_rm_path"):
            if spec := getattr(each, name):
                yield name, spec
