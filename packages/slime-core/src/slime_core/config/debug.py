"""Looking inside a run, and running half of it."""

from dataclasses import dataclass
from typing import Literal

from slime_core.config.flags import flag

_NO_PROFILER = "leave it out, and profile the processes from outside (py-spy, nsys)"
_NO_FP8 = "forward passes are not made in 8 bits: leave it out"
_NO_TEACHER = "there is no server of Megatron models: a teacher is given by --use-opd --opd-type"


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugConfig:
    """Dumps, replays, checks."""

    debug_rollout_only: bool = False
    """Generate and evaluate without a trainer; the weights stay those of --hf-checkpoint."""
    debug_train_only: bool = False
    """Train on saved rollouts without engines."""
    save_debug_rollout_data: str | None = None
    """Write each iteration's samples here; {rollout_id} in the path is the iteration."""
    load_debug_rollout_data: str | None = None
    """Train on samples written by --save-debug-rollout-data; implies --debug-train-only. With
    --load, --ckpt-step N, --start-rollout-id N+1 and --num-rollout N+2 it repeats one iteration."""
    load_debug_rollout_data_subsample: float | None = flag(default=None, above=0, at_most=1)
    """Take only this share of the saved samples."""
    save_debug_train_data: str | None = None
    """Write what each trainer rank saw here; {rollout_id} and {rank} in the path are filled in."""
    dump_details: str | None = None
    """Directory for both dumps."""
    ci_test: bool = False
    """Stop when the first step's policy ratio is not exactly 1, or trainer and engines differ."""
    ci_disable_kl_checker: bool = False
    """Leave KL divergences out of --ci-test."""
    ci_train_rollout_logprob_abs_diff_threshold: float = flag(default=0.1, above=0)
    """Largest mean difference of log-probabilities --ci-test allows between trainer and engine."""
    ci_save_grad_norm: str | None = None
    """Write each step's gradient norm here; {role}, {rollout_id}, {step_id} are filled in."""
    ci_load_grad_norm: str | None = None
    """Stop when a step's gradient norm is not within 1 % of what --ci-save-grad-norm wrote here."""
    load_forge_rollout_data: str | None = flag(
        default=None, planned="use --load-debug-rollout-data"
    )
    """Replay rollouts through the whole pipeline."""
    memory_snapshot_dir: str = flag(default=".", planned=_NO_PROFILER)
    """Directory of memory snapshots."""
    memory_snapshot_num_steps: int | None = flag(default=None, planned=_NO_PROFILER)
    """Steps a memory snapshot covers."""
    profile_target: tuple[Literal["train_overall", "train_actor", "train_log_probs"], ...] = flag(
        default=("train_overall",), planned=_NO_PROFILER
    )
    """What a profile covers."""
    memory_recorder: Literal["torch", "memray"] = flag(default="torch", planned=_NO_PROFILER)
    """Which recorder takes memory snapshots."""
    record_memory_history: bool = flag(default=False, planned=_NO_PROFILER)
    """Record allocations."""
    custom_megatron_init_path: str | None = None
    """Function (args) called after Megatron is initialised."""
    custom_megatron_before_log_prob_hook_path: str | None = None
    """Function (args, model, store_prefix) called before log-probabilities."""
    custom_megatron_before_train_step_hook_path: str | None = None
    """Function (args, rollout_id, step_id, model, optimizer, scheduler) called before a step."""
    megatron_deepgemm_forward_layers: tuple[int, ...] | None = flag(default=None, planned=_NO_FP8)
    """Layers with an 8-bit forward pass."""
    megatron_deepgemm_forward_modules: tuple[str, ...] | None = flag(default=None, planned=_NO_FP8)
    """Modules with an 8-bit forward pass."""
    megatron_deepgemm_moe_forward_layers: tuple[int, ...] | None = flag(
        default=None, planned=_NO_FP8
    )
    """Expert layers with an 8-bit forward pass."""
    megatron_deepgemm_moe_forward_modules: tuple[str, ...] | None = flag(
        default=None, planned=_NO_FP8
    )
    """Expert modules with an 8-bit forward pass."""
    teacher_port: int = flag(default=7999, planned=_NO_TEACHER)
    """Port of a teacher server."""
    teacher_warmup_port: int | None = flag(default=None, planned=_NO_TEACHER)
    """Port of a teacher server while it warms up."""
    teacher_warmup_timeout_s: float = flag(default=3000.0, planned=_NO_TEACHER)
    """Seconds a teacher server may take to warm up."""
    teacher_sample_reduction_chunk_size: int = flag(default=4096, planned=_NO_TEACHER)
    """Tokens a teacher samples at once."""
    teacher_label_reduction_chunk_size: int = flag(default=4096, planned=_NO_TEACHER)
    """Tokens a teacher scores at once."""
    megatron_server_max_length: int = flag(default=0, planned=_NO_TEACHER)
    """Longest sequence of a Megatron server."""
    megatron_server_update_timeout_s: float = flag(default=3600.0, planned=_NO_TEACHER)
    """Seconds a Megatron server may take to update."""
    megatron_server_warmup: bool = flag(default=False, planned=_NO_TEACHER)
    """Warm a Megatron server up."""
