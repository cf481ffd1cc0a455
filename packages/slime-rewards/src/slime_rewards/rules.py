"""What is wrong with the rewards that a command line names, found before anything starts."""

from slime_core.config.draft import Draft, Facts

from slime_rewards.config import RM_TYPES, unknown_type


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


RULES = (known_types,)
