"""Policies besides the trained one: the reference, a teacher."""

from slime_core.config.draft import Draft, Facts, spelled

_TEACHER = ("opd_type", "opd_kl_coef", "opd_teacher_load", "opd_teacher_ckpt_step")


def reference(draft: Draft, facts: Facts) -> None:
    """The reference starts as the model itself."""
    needed = draft["kl_coef"] or draft["use_kl_loss"] or draft["loss_type"] == "dpo_loss"
    if not draft["ref_load"]:
        draft.derive("ref_load", draft["hf_checkpoint"], "--hf-checkpoint")
    elif not needed:
        draft.notice("--ref-load has no effect without --use-kl-loss or --kl-coef")
    if draft["ref_ckpt_step"] is not None and not draft.given("ref_load"):
        draft.problem("--ref-ckpt-step chooses among checkpoints: give --ref-load DIR")
    if draft["ref_update_interval"] is not None and not needed:
        draft.notice("--ref-update-interval has no effect without --use-kl-loss or --kl-coef")


def distillation(draft: Draft, facts: Facts) -> None:
    """A teacher runs somewhere."""
    kind = draft["opd_type"]
    if not draft["use_opd"]:
        given = [name for name in _TEACHER if draft.given(name)]
        if given:
            draft.idle(given, f"{spelled(*given)} without --use-opd: add it, or drop them")
        return
    if kind is None:
        draft.problem("--use-opd needs --opd-type sglang or --opd-type megatron")
    if kind == "megatron" and draft["opd_teacher_load"] is None:
        draft.problem("--opd-type megatron needs --opd-teacher-load, the teacher's checkpoint")
    if kind == "sglang" and draft["opd_teacher_load"] is None and draft["rm_url"] is None:
        draft.problem(
            "--opd-type sglang needs a teacher: give --rm-url of a running server, or "
            "--opd-teacher-load with a Hugging Face directory to start one for"
        )
    started = kind == "sglang" and draft["rm_url"] is None and draft["opd_teacher_load"] is not None
    if started and draft["device"] == "cuda":
        draft.problem(
            "--opd-type sglang starts an engine for --opd-teacher-load only with --device cpu: on "
            "GPUs it would take those of the rollout engines. Start `python -m "
            f"sglang.launch_server --model-path {draft['opd_teacher_load']} --port PORT` on GPUs "
            "that CUDA_VISIBLE_DEVICES keeps from the run, and give its address as --rm-url "
            "http://HOST:PORT"
        )
    if kind == "sglang" and draft["opd_teacher_ckpt_step"] is not None:
        draft.problem(
            "--opd-teacher-ckpt-step chooses among Megatron checkpoints, and --opd-type sglang "
            "reads a Hugging Face directory: leave it out"
        )


RULES = (reference, distillation)
