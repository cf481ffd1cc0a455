"""What is wrong with the rewards that a command line names, found before anything starts."""

from collections.abc import Iterator

from slime_core.config.algorithm import OFFLINE_LOSSES
from slime_core.config.draft import Draft, Facts

from slime_rewards.config import BOXED, COMPARING, RM_TYPES, unknown_type

_OWN_CODE = (
    "custom_rm_path",
    "rollout_function_path",
    "custom_generate_function_path",
    "rollout_sample_hook_path",
    "data_source_path",
)
"""Fields that name a user's function which may score samples, or know labels, itself."""


def known_types(draft: Draft, facts: Facts) -> None:
    """Every --rm-type is one that there is, and has the model that it needs."""
    given = {"--rm-type": draft["rm_type"]}
    given |= {
        f"--eval-config {each.name}: rm_type": each.rm_type for each in draft["eval_datasets"]
    }
    told: set[str] = set()
    for where, rm_type in given.items():
        if rm_type is None or rm_type in told:
            continue
        told.add(rm_type)  # a set without one of its own has that of the run
        if complaint := unknown_type(rm_type, RM_TYPES):
            draft.problem(f"{where} {rm_type} {complaint}")
    if "sequence_classification" in told and not (draft["rm_url"] or draft["reward_model_path"]):
        draft.problem(
            "--rm-type sequence_classification needs a model: its directory as "
            "--reward-model-path, or the address of SGLang with it as --rm-url"
        )


def labels(draft: Draft, facts: Facts) -> None:
    """What compares responses with labels has labels to compare with."""
    for where, key, rm_type in _graded(draft):
        if where in facts.unlabelled and str(rm_type).removeprefix(BOXED) in COMPARING:
            default = "" if draft.given("rm_type") or rm_type != draft["rm_type"] else " by default"
            draft.problem(
                f"{where}: the first prompt has no label that is text or a number, and "
                f"responses are scored{default} by {rm_type}, which compares them with one: name "
                f"the labels' column with {key}, or give an --rm-type or a "
                "--custom-rm-path that needs none"
            )


def _graded(draft: Draft) -> Iterator[tuple[str, str, str | None]]:
    """(flag and path, flag for its labels, --rm-type) of every file that this package scores."""
    if draft["debug_train_only"] or draft["loss_type"] in OFFLINE_LOSSES:
        return
    if any(draft[name] for name in _OWN_CODE):
        return
    if draft["num_rollout"] != 0:
        for path in draft["prompt_data"]:
            yield f"--prompt-data {path}", "--label-key", draft["rm_type"]
    for each in draft["eval_datasets"]:
        own_code = each.custom_rm_path or each.custom_generate_function_path
        if not (draft["eval_function_path"] or own_code):
            rm_type = each.rm_type or each.metadata_overrides.get("rm_type") or draft["rm_type"]
            yield f"--eval-prompt-data {each.path}", "--eval-label-key", rm_type
            yield f"--eval-config {each.path}", "its label_key", rm_type


RULES = (known_types, labels)
