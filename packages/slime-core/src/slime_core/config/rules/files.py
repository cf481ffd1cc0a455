"""Checkpoints, weight transport, logs."""

from pathlib import Path

from slime_core.config.algorithm import OFFLINE_LOSSES
from slime_core.config.draft import Draft, Facts


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
    if draft["load"] is None:
        for name in ("ckpt_step", "finetune"):
            if draft.given(name):
                draft.problem(f"--{name.replace('_', '-')} needs a checkpoint: give --load DIR")
    elif not Path(draft["load"]).is_dir():
        if draft["load"] == draft["save"]:
            return
        draft.problem(f"--load {draft['load']}: there is no such directory")
    if draft["save_hf"] is not None and draft["save"] is None:
        draft.notice(f"--save-hf {draft['save_hf']} is written without resumable checkpoints")


def reference_files(draft: Draft, facts: Facts) -> None:
    """The reference's directory is there."""
    if draft.given("ref_load") and not Path(draft["ref_load"]).is_dir():
        draft.problem(f"--ref-load {draft['ref_load']}: there is no such directory")


def transport(draft: Draft, facts: Facts) -> None:
    """The disk transport needs a directory; auto follows from where the engines are."""
    one_host = draft["actor_num_nodes"] == 1 and not facts.in_cluster
    shared = draft["device"] == "cpu" or draft["colocate"]  # a GPU's memory is opened on that GPU
    local = all(_is_local(address) for address in draft["rollout_external_engine_addrs"] or ())
    if draft["update_weight_transport"] == "auto":
        by_memory = one_host and shared and local
        draft.derive("update_weight_transport", "tensor" if by_memory else "nccl", "placement")
    if draft["update_weight_transport"] == "disk" and draft["update_weight_disk_dir"] is None:
        draft.problem(
            "--update-weight-transport disk needs a directory that trainer and engines see: "
            "give --update-weight-disk-dir DIR"
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
    if delta and draft["update_weight_local_checkpoint_dir"] is None:
        draft.problem(
            "--update-weight-mode delta needs a directory on the engines' machines for the weights "
            "that changes are applied to: give --update-weight-local-checkpoint-dir DIR"
        )
    for name in ("update_weight_delta_encoding", "update_weight_delta_checksum"):
        if draft.given(name) and not delta:
            draft.problem(f"{_flag(name)} needs --update-weight-mode delta")


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


RULES = (checkpoints, reference_files, transport, weights_on_disk, output)
