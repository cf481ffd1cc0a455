"""What is wrong with the rewards that a command line names, found before anything starts."""

from collections.abc import Iterator
from dataclasses import replace

from slime_core.config.algorithm import OFFLINE_LOSSES
from slime_core.config.draft import Draft, Facts
from slime_core.config.eval_sets import EvalDataset

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
        if where in facts.unlabelled and _comparing(rm_type):
            default = "" if draft.given("rm_type") or rm_type != draft["rm_type"] else " by default"
            draft.problem(
                f"{where}: the first prompt has no label that is text or a number, and "
                f"responses are scored{default} by {rm_type}, which compares them with one: name "
                f"the labels' column with {key}, or give an --rm-type or a "
                "--custom-rm-path that needs none"
            )


def rows_with_labels(draft: Draft, facts: Facts) -> None:
    """Of rows that are compared with labels, one without is found when the file is read."""
    if _scored_elsewhere(draft):
        return
    if draft["num_rollout"] != 0:
        draft.own.put("compared_by", _comparing(draft["rm_type"]), "derived: --rm-type")
    sets = [
        replace(each, compared_by=_comparing(_of_set(draft, each)))
        for each in draft["eval_datasets"]
    ]
    draft.own.put("eval_datasets", tuple(sets), draft.own.sources["eval_datasets"])


def _comparing(rm_type: str | None) -> str | None:
    """The reward, if it is one that compares responses with labels."""
    return rm_type if str(rm_type).removeprefix(BOXED) in COMPARING else None


def _scored_elsewhere(draft: Draft) -> bool:
    """Whether no file is scored by this package alone."""
    offline = draft["debug_train_only"] or draft["loss_type"] in OFFLINE_LOSSES
    return offline or any(draft[name] for name in _OWN_CODE)


def _graded(draft: Draft) -> Iterator[tuple[str, str, str | None]]:
    """(flag and path, flag for its labels, --rm-type) of every file that this package scores."""
    if _scored_elsewhere(draft):
        return
    if draft["num_rollout"] != 0:
        for path in draft["prompt_data"]:
            yield f"--prompt-data {path}", "--label-key", draft["rm_type"]
    for each in draft["eval_datasets"]:
        rm_type = _of_set(draft, each)
        yield f"--eval-prompt-data {each.path}", "--eval-label-key", rm_type
        yield f"--eval-config {each.path}", "its label_key", rm_type


def _of_set(draft: Draft, each: EvalDataset) -> str | None:
    """The --rm-type of an evaluation set, unless a user's function scores it."""
    if draft["eval_function_path"] or each.custom_rm_path or each.custom_generate_function_path:
        return None
    return each.rm_type or each.metadata_overrides.get("rm_type") or draft["rm_type"]


def whole_groups(draft: Draft, facts: Facts) -> None:
    """Only functions of the user's score the responses of a prompt together."""
    own = draft["custom_rm_path"] or draft["rollout_function_path"]
    if draft["group_rm"] and not own:
        draft.notice(
            f"--group-rm has no effect with --rm-type {draft['rm_type']}, which scores each "
            "response alone: it is for a function given as --custom-rm-path"
        )


RULES = (known_types, labels, rows_with_labels, whole_groups)
