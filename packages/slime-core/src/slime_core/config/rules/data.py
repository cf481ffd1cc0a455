"""Prompts, rewards, evaluation sets."""

from slime_core.config.algorithm import OFFLINE_LOSSES
from slime_core.config.draft import DEFAULT, Draft, Facts, spelled
from slime_core.config.eval_sets import eval_datasets
from slime_core.config.rollout import BUILT_IN_ROLLOUTS, SFT_ROLLOUT


def replayed_rollouts(draft: Draft, facts: Facts) -> None:
    """Training on saved rollouts needs no engines, and training without engines needs those."""
    if draft["load_debug_rollout_data"] is not None:
        draft.derive("debug_train_only", True, "--load-debug-rollout-data")
    if (
        draft["debug_train_only"]
        and draft["load_debug_rollout_data"] is None
        and draft["loss_type"] not in OFFLINE_LOSSES
    ):
        draft.problem(
            "--debug-train-only needs saved rollouts: give --load-debug-rollout-data PATH, "
            "written by an earlier run with --save-debug-rollout-data PATH"
        )
    if draft["dump_details"] is not None:
        folder = draft["dump_details"]
        for side, name in (("rollout", "{rollout_id}"), ("train", "{rollout_id}_{rank}")):
            if draft[f"save_debug_{side}_data"] is None:
                path = f"{folder}/{side}_data/{name}.pt"
                draft.derive(f"save_debug_{side}_data", path, "--dump-details")
    if draft["load_debug_rollout_data"] is not None and (
        draft["load_debug_rollout_data"] == draft["save_debug_rollout_data"]
    ):
        draft.problem(
            "--load-debug-rollout-data and --save-debug-rollout-data name the same path "
            f"{draft['load_debug_rollout_data']}: give another to save"
        )


def rollouts_alone(draft: Draft, facts: Facts) -> None:
    """Without a trainer there is nothing to save, and something has to be generated."""
    if not draft["debug_rollout_only"]:
        return
    if draft["loss_type"] in OFFLINE_LOSSES:
        draft.problem(f"--debug-rollout-only: --loss-type {draft['loss_type']} generates nothing")
    if draft["debug_train_only"]:
        replays = draft["load_debug_rollout_data"] is not None
        other = "--load-debug-rollout-data" if replays else "--debug-train-only"
        draft.problem(f"--debug-rollout-only and {other} leave nothing to do: leave out one")
    for name in ("save", "save_hf", "load", "save_debug_train_data"):
        if draft.given(name):
            draft.problem(
                f"--debug-rollout-only has no trainer for --{name.replace('_', '-')}: leave it out"
            )


def prompts(draft: Draft, facts: Facts) -> None:
    """There are prompts, unless the run only evaluates or replays."""
    replays = draft["load_debug_rollout_data"] is not None
    if not draft["rollout_global_dataset"]:
        if draft["data_source_path"] is None:
            draft.problem(
                "--disable-rollout-global-dataset reads no --prompt-data: give --data-source-path "
                "CLASS, which finds prompts itself"
            )
        return
    given = draft["prompt_data"]
    for path in dict.fromkeys(path for path in given if given.count(path) > 1):
        draft.problem(f"--prompt-data names {path} twice: weight it instead, as in {path}*2")
    if not given and not replays and draft["num_rollout"] != 0:
        draft.problem(
            "--prompt-data is missing: give a .jsonl or .parquet file with one prompt per row"
        )


def columns(draft: Draft, facts: Facts) -> None:
    """Every file has its own where none are given, so the value stays; --dump-config tells them."""
    for name, found in facts.prompt_columns.items():
        if not draft.given(name) and found != draft[name]:
            draft.own.put(name, draft[name], f"{DEFAULT}; the rows' column is {found}")


def streaming(draft: Draft, facts: Facts) -> None:
    """What is not in memory cannot be compared."""
    if draft.given("streaming_window") and not draft["streaming_data"]:
        draft.notice("--streaming-window has no effect without --streaming-data")
    if draft["streaming_data"] and draft["data_duplicate_ids"] != "keep":
        draft.problem(
            f"--data-duplicate-ids {draft['data_duplicate_ids']} compares all rows, and "
            "--streaming-data holds a window of them: leave out one of the two"
        )


_READ_NO_KEY = (None, "slime_core.data.selection.oldest_first")


def selection(draft: Draft, facts: Facts) -> None:
    """A key is for what chooses by it; a data source of the user's own may."""
    if draft["loss_type"] in OFFLINE_LOSSES or draft["data_source_path"] is not None:
        return
    if draft.given("buffer_key") and draft["buffer_filter_path"] in _READ_NO_KEY:
        draft.notice(
            f"--buffer-key {draft['buffer_key']} has no effect: groups leave the buffer oldest "
            "first unless --buffer-filter-path slime_core.data.selection.priority (or stratified) "
            "chooses them"
        )


def first_iteration(draft: Draft, facts: Facts) -> None:
    """A run that begins behind its end does nothing."""
    first, last = draft["start_rollout_id"], draft["num_rollout"]
    if first is not None and last and first >= last:
        draft.problem(
            f"--start-rollout-id {first} leaves none of the iterations 0 to {last - 1} of "
            f"--num-rollout {last}: give more than {first} of these, or another first one"
        )


def length_of_run(draft: Draft, facts: Facts) -> None:
    """--num-rollout, or from --num-epoch and the number of prompts."""
    if draft["num_rollout"] is not None:
        if draft.given("num_epoch"):
            draft.notice(
                f"--num-epoch {draft['num_epoch']} has no effect: --num-rollout "
                f"{draft['num_rollout']} says how long the run is"
            )
        return
    if draft["num_epoch"] is None:
        draft.problem("--num-rollout (iterations) or --num-epoch is missing: give one of them")
        return
    if facts.num_prompts is not None:
        total = draft["num_epoch"] * facts.num_prompts // draft["rollout_batch_size"]
        draft.derive("num_rollout", max(1, total), "--num-epoch over the prompts")


def sampling(draft: Draft, facts: Facts) -> None:
    """SGLang calls keeping all tokens -1, where others say 0."""
    for name in ("rollout_top_k", "eval_top_k"):
        if draft[name] == 0:
            draft.problem(
                f"{spelled(name)} 0 keeps no token: give -1, which keeps all, or leave it out"
            )


_UPSTREAM_TEACHER = "slime.rollout.on_policy_distillation."
"""What upstream gives as reward functions so that the teacher is asked."""


def reward(draft: Draft, facts: Facts) -> None:
    """Without a word about rewards, a teacher is all there is, or answers are mathematics."""
    if draft["use_opd"]:
        for name in ("custom_rm_path", "custom_reward_post_process_path"):
            if str(draft[name]).startswith(_UPSTREAM_TEACHER):
                draft.derive(name, None, "--use-opd asks the teacher itself")
        if draft["rm_type"] is None and draft["custom_rm_path"] is None:
            draft.derive("rm_type", "zero", "--use-opd learns from the teacher alone")
    if (
        draft["loss_type"] not in OFFLINE_LOSSES
        and draft["rm_type"] is None
        and draft["custom_rm_path"] is None
    ):
        draft.derive("rm_type", "math", "no reward is given")
    if draft["rm_type"] == "remote_rm" and draft["rm_url"] is None:
        draft.problem("--rm-type remote_rm needs the address of the reward server: give --rm-url")
    elif draft.given("rm_url") and not draft["use_opd"] and _asks_nobody(draft):
        draft.notice(
            f"--rm-url has no effect with --rm-type {draft['rm_type']}: --rm-type remote_rm asks a "
            "server"
        )
    if draft["eval_reward_key"] is None:
        draft.derive("eval_reward_key", draft["reward_key"], "--reward-key")
    if draft["group_rm"] and _evaluates(draft):
        draft.problem(
            "--group-rm scores the responses of a prompt together, which evaluation does not do: "
            "leave out --eval-prompt-data or --group-rm"
        )


def _asks_nobody(draft: Draft) -> bool:
    """Whether only graders of ours score, and none of them is a server."""
    own = draft["custom_rm_path"] is None and draft["custom_generate_function_path"] is None
    return own and draft["rm_type"] not in (None, "remote_rm") and not _evaluates(draft)


def rollout_functions(draft: Draft, facts: Facts) -> None:
    """Upstream's own functions stand for what happens anyway."""
    for name in ("rollout_function_path", "eval_function_path"):
        function = draft[name]
        if function == SFT_ROLLOUT and draft["loss_type"] != "sft_loss":
            draft.problem(
                f"--{name.replace('_', '-')} {function} takes responses from the data: give "
                f"--loss-type sft_loss, not {draft['loss_type']}"
            )
        elif function in BUILT_IN_ROLLOUTS:
            draft.derive(name, None, "what happens without it")


def _evaluates(draft: Draft) -> bool:
    sources = ("eval_prompt_data", "eval_config", "eval_function_path")
    return any(draft[name] for name in sources)


_FROM_ROLLOUT = {
    "eval_input_key": "input_key",
    "eval_label_key": "label_key",
    "eval_tool_key": "tool_key",
    "eval_temperature": "rollout_temperature",
    "eval_top_p": "rollout_top_p",
    "eval_top_k": "rollout_top_k",
    "eval_max_response_len": "rollout_max_response_len",
    "eval_max_prompt_len": "rollout_max_prompt_len",
    "eval_max_context_len": "rollout_max_context_len",
}


_OF_EVALUATION = (
    *_FROM_ROLLOUT,
    "eval_min_new_tokens",
    "n_samples_per_eval_prompt",
    "skip_eval_before_train",
)


def evaluation(draft: Draft, facts: Facts) -> None:
    """What evaluation does not say is as in the rollout."""
    for name, fallback in _FROM_ROLLOUT.items():
        if draft[name] is None:
            draft.derive(name, draft[fallback], "--" + fallback.replace("_", "-"))
    draft.derive("eval_min_new_tokens", draft["eval_min_new_tokens"] or 0, "none asked for")
    engineless = draft["loss_type"] in OFFLINE_LOSSES or draft["debug_train_only"]
    if _evaluates(draft) and engineless:
        offline = f"--loss-type {draft['loss_type']}"
        why = "--debug-train-only" if draft["debug_train_only"] else offline
        draft.problem(
            f"--eval-prompt-data needs engines, and {why} runs without: leave it out, and evaluate "
            "saved weights in a run with --num-rollout 0 --hf-checkpoint DIR"
        )
    if draft["eval_interval"] is not None and not _evaluates(draft):
        draft.notice(
            f"--eval-interval {draft['eval_interval']} has nothing to evaluate: "
            "give --eval-prompt-data NAME PATH; evaluation is off"
        )
        draft.derive("eval_interval", None, "no --eval-prompt-data")
    _old_weights_scored(draft)
    if not _evaluates(draft) and (idle := [name for name in _OF_EVALUATION if draft.given(name)]):
        draft.notice(
            f"{spelled(*idle)} without effect: there is nothing to evaluate on without "
            "--eval-prompt-data NAME PATH"
        )
    if draft["num_rollout"] == 0 and not _evaluates(draft):
        draft.problem("--num-rollout 0 only evaluates: give --eval-prompt-data NAME PATH")


def _old_weights_scored(draft: Draft) -> None:
    """Engines evaluate what they serve; after the last iteration that is what was trained."""
    every, evaluates = draft["update_weights_interval"], draft["eval_interval"]
    if draft.given("eval_interval") and evaluates is not None and evaluates % every:
        draft.notice(
            f"--eval-interval {evaluates} is no multiple of --update-weights-interval {every}: an "
            "evaluation between two publishes scores the weights of the one before it"
        )


def prompt_length(draft: Draft, facts: Facts) -> None:
    """A context limit bounds the prompt."""
    for side in ("rollout", "eval"):
        context, prompt = draft[f"{side}_max_context_len"], draft[f"{side}_max_prompt_len"]
        if context is not None and prompt is None:
            draft.derive(f"{side}_max_prompt_len", context - 1, f"--{side}-max-context-len")


def eval_sets(draft: Draft, facts: Facts) -> None:
    """Every evaluation set with what holds for it."""
    found = eval_datasets(draft["eval_prompt_data"], facts.eval_file, draft.own.values)
    draft.problems += found.problems
    for each in found.datasets:
        if each.rm_type and draft["custom_rm_path"] and not each.custom_rm_path:
            draft.problem(
                f"--eval-config {each.name}: rm_type {each.rm_type} has no effect, because "
                f"--custom-rm-path {draft['custom_rm_path']} scores every sample of the run: give "
                "the set a custom_rm_path too, or leave its rm_type out"
            )
    draft.own.put("eval_datasets", found.datasets, "derived: --eval-prompt-data, --eval-config")


RULES = (
    rollout_functions,
    replayed_rollouts,
    rollouts_alone,
    prompts,
    columns,
    streaming,
    selection,
    length_of_run,
    first_iteration,
    sampling,
    reward,
    evaluation,
    prompt_length,
    eval_sets,
)
