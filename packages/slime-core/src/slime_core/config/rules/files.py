"""Checkpoints, weight transport, logs."""

import json
import re
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path

from slime_core.config.algorithm import OFFLINE_LOSSES
from slime_core.config.draft import Draft, Facts
from slime_core.config.rules import templates
from slime_core.config.rules.cluster import engines_needed, starts_engines, trainer_needed
from slime_core.files.staging import RELEASE, TRACKER

_INDEX = "model.safetensors.index.json"


_PLACES = (
    *("load", "save", "save_hf", "opd_teacher_load"),
    *("dump_details", "save_debug_rollout_data", "save_debug_train_data"),
    "update_weight_disk_dir",
)


def named_places(draft: Draft, facts: Facts) -> None:
    """No name would be the directory in which the command was given."""
    for name in _PLACES:
        if draft.given(name) and draft[name] == "":
            draft.problem(
                f"{_flag(name)} is given an empty name, such as that of a variable which is not "
                "set: give a directory, or leave it out"
            )


def checkpoints(draft: Draft, facts: Facts) -> None:
    """Saving needs a place, loading needs something there."""
    for name in ("async_save", "no_save_optim"):
        if draft[name] and draft["save"] is None:
            draft.problem(f"{_flag(name)} needs a directory for checkpoints: give --save DIR")
    if draft["save_interval"] is not None and draft["save"] is None and draft["save_hf"] is None:
        draft.notice(
            f"--save-interval {draft['save_interval']} has nowhere to save: "
            "give --save DIR; nothing is saved"
        )
        draft.derive("save_interval", None, "no --save")
    else:
        _saved_seldom(draft)
    _loaded(draft)
    if draft["save_hf"] is not None and draft["save"] is None:
        draft.notice(f"--save-hf {draft['save_hf']} is written without resumable checkpoints")


def _loaded(draft: Draft) -> None:
    """Where a run begins is there, or is said to hold nothing."""
    if draft["load"] is None:
        for name in ("ckpt_step", "finetune"):
            if draft.given(name):
                draft.problem(f"--{name.replace('_', '-')} needs a checkpoint: give --load DIR")
    elif draft["load"] == draft["save"]:
        return  # the first start of a run that goes on from what it saves
    elif not Path(draft["load"]).is_dir():
        draft.problem(f"--load {draft['load']}: there is no such directory")
    elif not _holds_weights(draft["load"]):
        draft.notice(
            f"--load {draft['load']} holds neither checkpoints (no {TRACKER}) nor a Hugging Face "
            "model (no config.json): the run starts from --hf-checkpoint"
        )


def converted(draft: Draft, facts: Facts) -> None:
    """Weights that no run has trained are begun with: they have no optimizer to go on with."""
    for name in ("save", "load"):
        if draft[name] is None or (name == "load" and draft["ckpt_step"] is not None):
            continue
        try:
            newest = (Path(draft[name]) / TRACKER).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if newest == RELEASE:
            draft.derive("finetune", True, f"--{name} holds converted weights")
        return


def _saved_seldom(draft: Draft) -> None:
    """What a run that ends, or is ended, leaves nothing of is said before it costs anything."""
    if not trainer_needed(draft) or draft["num_rollout"] == 0:
        return
    if draft["save"] is None and draft["save_hf"] is None:
        draft.notice(
            "the trained weights are not kept: give --save DIR for checkpoints, --save-hf DIR for "
            "Hugging Face weights"
        )
    elif draft["save"] is not None and draft["save_interval"] is None:
        draft.notice(
            f"--save {draft['save']} is written once, after the last iteration: with "
            "--save-interval N a run that is stopped before goes on from where it was saved"
        )


def retention(draft: Draft, facts: Facts) -> None:
    """Checkpoints are chosen from where there are several."""
    every, multiple = draft["save_interval"], draft["save_retain_interval"]
    numbered = "{rollout_id" in (draft["save_hf"] or "")
    for name in ("save_retain_newest", "save_retain_interval"):
        if draft[name] is not None and draft["save"] is None and not numbered:
            draft.problem(
                f"{_flag(name)} has nothing to choose from: give --save DIR, or {{rollout_id}} in "
                "--save-hf"
            )
    if multiple is not None and (every is None or multiple % every):
        every = "not given" if every is None else every
        draft.problem(
            f"--save-retain-interval {multiple} must be a multiple of --save-interval, which is "
            f"{every}: no checkpoint is written in between"
        )


def saved_between_publishes(draft: Draft, facts: Facts) -> None:
    """A resumed run publishes what it loaded, which the run as it was had not published."""
    every, saves = draft["update_weights_interval"], draft["save_interval"]
    if draft["save"] is not None and saves is not None and saves % every:
        draft.notice(
            f"--save-interval {saves} is no multiple of --update-weights-interval {every}: a run "
            "that is resumed from in between generates with newer weights than one left alone"
        )


def model_files(draft: Draft, facts: Facts) -> None:
    """A run, unlike a dump of its configuration, needs the model's weights besides config.json."""
    directory = Path(draft["hf_checkpoint"] or "")
    invented = draft.server.values.get("load_format") == "dummy"
    if draft["dump_config"] or invented or not (directory / "config.json").is_file():
        return
    if (why := _unreadable(directory)) is not None:
        draft.problem(f"--hf-checkpoint {directory} {why}")


def _unreadable(directory: Path) -> str | None:
    """Why engines and trainer cannot read their weights there, as far as names of files tell."""
    if (directory / "adapter_config.json").is_file():
        return (
            "holds an adapter (adapter_config.json), which is not read: merge it into its base "
            "model, or take it out of the directory to go without it"
        )
    if not any(directory.glob("*.safetensors")):
        return (
            "holds no *.safetensors, and engines and trainer read their weights from those: "
            "download the whole model"
        )
    if (directory / "model.safetensors").is_file():
        return None
    try:
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
        names = sorted({str(name) for name in index["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # whoever reads it says what is wrong with it
    absent = [name for name in names if not (directory / name).is_file()]
    if not absent:
        return None
    return (
        f"lacks {len(absent)} of the {len(names)} files that {_INDEX} names ({absent[0]}): "
        "download the whole model"
    )


def other_policies(draft: Draft, facts: Facts) -> None:
    """The directories of reference and teacher are there, and hold weights of one kind or other."""
    instead = "; the reference is --hf-checkpoint where --ref-load is left out"
    _there(draft, "ref_load", "ref_ckpt_step", instead)
    served = draft["opd_type"] == "sglang" and draft["rm_url"] is not None
    if draft["use_opd"] and not served:
        _there(draft, "opd_teacher_load", "opd_teacher_ckpt_step")


def _there(draft: Draft, name: str, step: str, instead: str = "") -> None:
    if not draft.given(name):
        return
    directory = Path(draft[name])
    if not directory.is_dir():
        draft.problem(f"{_flag(name)} {directory}: there is no such directory{instead}")
    elif draft[step] is None and not _holds_weights(directory):
        draft.problem(
            f"{_flag(name)} {directory} is neither a Hugging Face directory (no config.json) nor "
            f"one of checkpoints (no {TRACKER}){instead}"
        )


def _holds_weights(directory: str | Path) -> bool:
    return any((Path(directory) / name).is_file() for name in ("config.json", TRACKER))


def _dumps(template: str) -> Iterator[Path]:
    """The files that a template of dumps stands for."""
    names = Path("*".join(map(escape, re.split(r"\{rollout_id.*?\}", template))))
    root = names.anchor
    return Path(root).glob(str(names.relative_to(root))) if names.parts else iter(())


def replayed_files(draft: Draft, facts: Facts) -> None:
    """What is trained on again was written."""
    template = draft["load_debug_rollout_data"]
    if template is None:
        if draft.given("load_debug_rollout_data_subsample"):
            draft.problem(
                "--load-debug-rollout-data-subsample needs --load-debug-rollout-data, of which it "
                "takes a part"
            )
        return
    if not any(_dumps(template)):
        draft.problem(
            f"--load-debug-rollout-data {template}: there is no such file; "
            "--save-debug-rollout-data of an earlier run writes them"
        )
        return
    begin, end = draft["start_rollout_id"], draft["num_rollout"]
    if end is None or (begin is None and draft["load"] is not None):  # a checkpoint says where
        return
    missing = next((i for i in range(begin or 0, end) if not _is_dumped(template, i)), None)
    if missing is not None:
        draft.problem(
            f"--load-debug-rollout-data {template}: there is no file of iteration {missing}, and "
            f"the run has iterations {begin or 0} to {end - 1}: give another --num-rollout or "
            "--start-rollout-id"
        )


def _is_dumped(template: str, iteration: int) -> bool:
    try:
        return Path(template.format(rollout_id=iteration)).is_file()
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):
        return True  # what is wrong with the template is told by itself


def transport(draft: Draft, facts: Facts) -> None:
    """The disk transport needs a directory; auto follows from where the engines are."""
    shared = draft["device"] == "cpu" or draft["colocate"]  # a GPU's memory is opened on that GPU
    external: tuple[str, ...] = draft["rollout_external_engine_addrs"] or ()
    away = [address for address in external if not _is_local(address)]
    if draft["update_weight_transport"] == "auto":
        beside = draft["actor_num_nodes"] == 1 or starts_engines(draft)
        by_memory = beside and shared and not away
        draft.derive("update_weight_transport", "tensor" if by_memory else "nccl", "placement")
    elif engines_needed(draft) and trainer_needed(draft):
        for obstacle in _obstacles(draft, away):
            draft.problem(f"--update-weight-transport {draft['update_weight_transport']}{obstacle}")
    if draft["update_weight_transport"] == "disk" and draft["update_weight_disk_dir"] is None:
        draft.problem(
            "--update-weight-transport disk needs a directory that trainer and engines see: "
            "give --update-weight-disk-dir DIR"
        )


def _obstacles(draft: Draft, away: Sequence[str]) -> Iterator[str]:
    """Why the carrier that was asked for does not reach the engines, and what does."""
    carrier, nodes = draft["update_weight_transport"], draft["actor_num_nodes"]
    other = "leave it out, or give disk with --update-weight-disk-dir"
    on_gpus = draft["device"] == "cuda"
    if carrier == "nccl" and on_gpus and draft["colocate"]:
        why = "with --colocate" if draft.given("colocate") else "on a single GPU"
        yield f" {why}: NCCL takes no GPU twice into a group; {other}"
    if carrier != "tensor":
        return
    if nodes > 1 and not starts_engines(draft):
        yield f" with --actor-num-nodes {nodes} stays within one machine: {other}"
    if away:
        yield (
            f" does not reach --rollout-external-engine-addrs {' '.join(away)}, as it stays within "
            f"one machine: {other}; an engine on this machine is 127.0.0.1:PORT"
        )
    if on_gpus and starts_engines(draft) and not draft["colocate"]:
        yield (
            " without --colocate: engines on GPUs of their own cannot open the trainer's memory; "
            f"{other}, or share the GPUs with --colocate"
        )


def _is_local(address: str) -> bool:
    return address.removeprefix("http://").startswith(("127.", "localhost:", "[::1]:"))


def weights_on_disk(draft: Draft, facts: Facts) -> None:
    """What is about files of weights needs a transport that writes files."""
    delta = draft["update_weight_mode"] == "delta"
    if draft["update_weight_transport"] != "disk":
        if delta:
            draft.problem(
                "--update-weight-mode delta needs --update-weight-transport disk: by memory and "
                "collectives whole weights are sent"
            )
        for name in ("custom_update_weight_post_write_path", "update_weight_local_checkpoint_dir"):
            if draft[name] is not None:
                draft.problem(f"{_flag(name)} needs --update-weight-transport disk")
        for name in ("update_weight_disk_dir", "update_weight_disk_keep_files"):
            if draft.given(name):
                draft.notice(f"{_flag(name)} has no effect without --update-weight-transport disk")
    if delta and draft["update_weight_local_checkpoint_dir"] is None:
        draft.problem(
            "--update-weight-mode delta needs a directory on the engines' machines for the weights "
            "that changes are applied to: give --update-weight-local-checkpoint-dir DIR"
        )
    for name in ("update_weight_delta_encoding", "update_weight_delta_checksum"):
        if draft.given(name) and not delta:
            draft.idle([name], f"{_flag(name)} needs --update-weight-mode delta, or is left out")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def output(draft: Draft, facts: Facts) -> None:
    """A run has a directory of its own."""
    if not draft["output_dir"]:
        model = Path(draft["hf_checkpoint"] or "model").name
        kind = draft["loss_type"]
        offline = kind in OFFLINE_LOSSES
        what = kind.removesuffix("_loss") if offline else draft["advantage_estimator"]
        name = f"{model}-{what}-{facts.now:%Y%m%d-%H%M%S}"
        draft.derive("output_dir", f"outputs/{name}", "model, estimator and time")
    if draft["tb_project_name"] is None and facts.tensorboard_dir:
        draft.derive("tb_project_name", facts.tensorboard_dir, "TENSORBOARD_DIR")


RULES = (
    named_places,
    checkpoints,
    converted,
    retention,
    saved_between_publishes,
    model_files,
    other_policies,
    replayed_files,
    transport,
    weights_on_disk,
    output,
    *templates.RULES,
)
