"""Weights & Biases: the package is there, and its flags have something to act on."""

from importlib.util import find_spec

from slime_core.config.draft import Draft, Facts, spelled

_ITS_FLAGS = (
    *("wandb_dir", "wandb_key", "wandb_host", "wandb_team", "wandb_group", "wandb_project"),
    *("wandb_mode", "wandb_random_suffix", "wandb_always_use_train_step", "wandb_run_id"),
)


def weights_and_biases(draft: Draft, facts: Facts) -> None:
    """A run, unlike a dump of its configuration, needs the package, which is optional."""
    if not draft["use_wandb"]:
        if names := [name for name in _ITS_FLAGS if draft.given(name)]:
            draft.notice(f"{_spelled(names)} without --use-wandb: nothing goes to Weights & Biases")
        return
    if draft["wandb_mode"] == "disabled":
        draft.notice("--wandb-mode disabled: nothing goes to Weights & Biases")
        return
    host = draft["wandb_host"]
    if host is not None and not host.startswith(("http://", "https://")):
        draft.problem(f"--wandb-host {host} must begin with http:// or https://")
    if not draft["dump_config"] and not _is_installed("wandb"):
        draft.problem(
            "--use-wandb needs the package wandb, which is not installed: "
            "pip install 'slime-train[wandb]', or in a clone uv pip install wandb"
        )


def _spelled(names: list[str]) -> str:
    return spelled(*names).replace("--wandb-random", "--disable-wandb-random")


def _is_installed(package: str) -> bool:
    """Whether it can be imported; a directory of that name, as wandb makes, is no package."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def tensorboard(draft: Draft, facts: Facts) -> None:
    """An experiment is a directory of a project."""
    if draft["tb_experiment_name"] is None or draft["tb_project_name"] or facts.tensorboard_dir:
        return
    draft.notice(
        f"--tb-experiment-name {draft['tb_experiment_name']} has no effect without "
        "--tb-project-name: files go to --output-dir"
    )


RULES = (weights_and_biases, tensorboard)
