"""Load the user's functions before anything starts, so that a typo costs a second."""

import inspect
from collections.abc import Iterator

from slime_core.config.draft import Draft
from slime_core.config.flat import Flat
from slime_core.data import selection
from slime_core.data.user_source import load_source
from slime_core.errors import PluginError
from slime_core.plugins.forms import given, is_plain, require, reward_arguments
from slime_core.plugins.functions import load_hook


def problems(draft: Draft) -> Iterator[str]:
    """A complaint for every user function that does not load or cannot be called as it will be."""
    flat = {"reward_model_path": draft["reward_model_path"]}
    functions = list(_given(draft))
    for name, spec in functions:
        try:
            check(name, spec, flat)
        except PluginError as error:
            yield f"--{name.replace('_', '-')} {spec}: {error}"
    yield from _own_keys(draft, read=bool(functions))


def _own_keys(draft: Draft, *, read: bool) -> Iterator[str]:
    """A complaint for every key of the user's own that is nearly a flag and that nobody reads.

    Where there are functions of the user's that may ``read`` it, it is told as a notice.
    """
    for key, meant in draft.meant.items():
        told = f"{key} in --custom-config-path is no flag{meant}"
        if meant and not read:
            yield f"{told}, and there is no function of yours to read it: mend it, or leave it out"
        elif meant:
            draft.notice(f"{told}: only functions of yours see it, as args.{key}")
    unread = [key for key, meant in draft.meant.items() if not (meant or read)]
    if unread:
        draft.notice(
            f"{', '.join(unread)} in --custom-config-path: no flag, and there is no function of "
            "yours to read it"
        )


def check(field: str, spec: str, flat: Flat) -> None:
    """Load a user function and look at how it can be called, without calling it.

    Raises:
        PluginError: it cannot be loaded, or cannot be called as it will be.
    """
    if field == "data_source_path":
        load_source(spec)
        return
    fn = load_hook(field, spec)
    if field == "buffer_filter_path":
        selection.as_select(fn, spec)
    elif field == "custom_rm_path" and inspect.isclass(fn):
        reward_arguments(spec, fn, flat.get("reward_model_path"))
    elif field != "custom_rm_path" or not is_plain(fn):
        require(field, spec, fn)


def _given(draft: Draft) -> Iterator[tuple[str, str]]:
    yield from given(draft.__getitem__)
    for each in draft["eval_datasets"]:
        for name in ("custom_generate_function_path", "custom_rm_path"):
            if spec := getattr(each, name):
                yield name, spec
