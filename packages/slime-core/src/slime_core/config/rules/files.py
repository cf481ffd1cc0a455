"""Checkpoints, weight transport, logs."""

from pathlib import Path

from slime_core.config.algorithm import OFFLINE_LOSSES
from slime_core.config.draft import Draft, Facts


def checkpoints(draft: Draft, facts: Facts) -> None:
    """Saving needs a place, loading needs something there."""
    needed = ["async_save", "no_save_optim"]
    if draft["save_hf"] is None:
        needed.append("save_interval")
    for name in needed:
        if draft[name] and draft["save"] is None:
            flag = "--" + name.replace("_", "-")
            draft.problem(f"{flag} needs a directory for checkpoints: give --save DIR")
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
    if draft["update_weight_transport"] == "auto":
        draft.derive("update_weight_transport", "tensor" if one_host else "nccl", "placement")
    if draft["update_weight_transport"] == "disk" and draft["update_weight_disk_dir"] is None:
        draft.problem(
            "--update-weight-transport disk needs a directory that trainer and engines see: "
            "give --update-weight-disk-dir DIR"
        )


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


RULES = (checkpoints, reference_files, transport, output)
