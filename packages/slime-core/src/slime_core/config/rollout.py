"""Generation: how responses are sampled, how many, and by whom."""

from dataclasses import dataclass
from typing import Literal

from slime_core.config.flags import flag

SFT_ROLLOUT = "slime.rollout.sft_rollout.generate_rollout"
BUILT_IN_ROLLOUTS = ("slime.rollout.sglang_rollout.generate_rollout", SFT_ROLLOUT)
"""Upstream's own rollout functions; which of them is meant follows from --loss-type."""

_OWN_BUFFER = "the buffer is in the run itself: leave it out"
TemplateDrift = Literal["refuse", "keep", "fork"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How responses are drawn from the policy."""

    rollout_temperature: float = flag(default=1.0, above=0)
    """Softmax temperature; the trainer divides its logits by it as well. Greedy decoding (0) has
    no log-probabilities to learn from."""
    rollout_top_p: float = flag(
        default=1.0,
        above=0,
        at_most=1,
    )
    """Probability mass kept by nucleus sampling."""
    rollout_top_k: int = flag(default=-1, at_least=-1)
    """Tokens kept by top-k sampling; -1 keeps all."""
    rollout_max_response_len: int = flag(default=1024, at_least=1)
    """Longest response, in tokens; unless given, at most half of the model's context."""
    rollout_max_context_len: int | None = flag(default=None, at_least=2)
    """Longest prompt plus response, in tokens; longer prompts are left out."""
    rollout_skip_special_tokens: bool = False
    """Leave special tokens out of the response's text."""
    rollout_stop: tuple[str, ...] | None = None
    """Strings that end a response."""
    rollout_stop_token_ids: tuple[int, ...] | None = None
    """Token ids that end a response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How many responses an iteration collects and which functions take part."""

    num_rollout: int | None = flag(default=None, at_least=0)
    """Iterations of the run; 0 only evaluates."""
    rollout_batch_size: int = flag(default=32, at_least=1)
    """Prompts per iteration."""
    n_samples_per_prompt: int = flag(default=1, at_least=1)
    """Responses per prompt."""
    over_sampling_batch_size: int | None = flag(default=None, at_least=1)
    """Prompts asked for at once; at least --rollout-batch-size, which is the default."""
    dynamic_sampling_filter_path: str | None = None
    """Function (args, samples) that keeps or drops a finished group."""
    dynamic_sampling_max_batches: int = flag(default=50, at_least=1, ours=True)
    """Times --rollout-batch-size that an iteration generates before the run ends for want of groups
    that are kept."""
    partial_rollout: bool = False
    """Keep the unfinished responses of an iteration and continue them in the next one."""
    mask_offpolicy_in_partial_rollout: bool = False
    """Do not train on the tokens that earlier weights wrote."""
    rollout_function_path: str | None = None
    """Function (args, rollout_id, data_source, evaluation) that replaces the whole rollout."""
    custom_generate_function_path: str | None = None
    """Function (args, sample, sampling_params) that replaces the generation of one sample."""
    rollout_sample_hook_path: tuple[str, ...] = ()
    """Functions (args, sample) called on each generated sample before its reward."""
    rollout_sample_filter_path: str | None = None
    """Function (args, groups) that sets remove_sample on samples not to be trained on."""
    rollout_all_samples_process_path: str | None = None
    """Function (args, groups, data_source) that sees every sample, filtered ones too."""
    buffer_filter_path: str | None = None
    """Function (args, rollout_id, buffer, num_groups) that takes groups out of the buffer."""
    custom_rollout_log_function_path: str | None = None
    """Function (rollout_id, args, samples, metrics, seconds); True replaces the default log."""
    custom_eval_rollout_log_function_path: str | None = None
    """Function (rollout_id, args, data, metrics); True replaces the default log."""
    rollout_data_postprocess_path: str | None = None
    """Function (args, rollout_id, rollout_data) called on the trainer before its steps."""
    rollout_external_engine_addrs: tuple[str, ...] | None = None
    """Addresses (host:port) of engines that already run, with slime-sglang beside them: they are
    asked for their sizes, given weights and requests, and never started or ended."""
    rollout_data_transport: Literal["object-store", "nixl"] = flag(
        default="object-store", planned={"nixl": "use object-store"}
    )
    """How training data travels from the rollout to the trainer."""
    max_turns: int | None = flag(default=None, at_least=1, ours=True)
    """Turns of a conversation: custom generate functions read args.max_turns, agents are refused
    further requests."""
    template_drift: TemplateDrift = flag(default="refuse", ours=True)
    """Where a chat template rewrites what a model was shown or wrote in earlier turns: stop with
    the example, keep the tokens as they were, or fork: go on in a new segment rendered anew."""
    agent_host: str = flag(default="127.0.0.1", ours=True)
    """Address on which agents reach the OpenAI and Anthropic endpoints."""
    agent_port: int = flag(default=0, at_least=0, at_most=65535, ours=True)
    """Port of these endpoints; 0 finds a free one."""
    agent_timeout_s: float = flag(default=3600.0, above=0, ours=True)
    """Seconds an agent may take for one sample."""
    custom_generate_timeout_s: float | None = flag(default=None, above=0, ours=True)
    """Seconds a custom generate function may take for one sample, which has failed then; twice
    --agent-timeout-s by default."""
    rollout_timeout_s: float = flag(default=14400.0, above=0, ours=True)
    """Seconds that one rollout, or one evaluation, may take; what still runs then counts as a hang
    of the rollout worker."""
    async_buffer_size: int | None = flag(default=None, at_least=0, ours=True)
    """Finished rollouts that may wait for the trainer: generation goes on while it trains. 0 takes
    turns, the default of slime-train; that of slime-train-async is 1."""
    max_staleness: int | None = flag(default=None, at_least=0, ours=True)
    """Publishes that a token may be behind when it is trained on: bounds how far generation goes
    ahead (--async-buffer-size), and masks what is older all the same."""
    fully_async: bool = flag(default=False, ours=True)
    """Engines never drain: groups still being written when a rollout is full go on and count for
    the next one, and new ones begin as others finish: as many at once as a rollout has, or as
    --over-sampling-batch-size says."""
    use_distributed_post: bool = flag(
        default=False, planned="requests are posted from one process: leave it out"
    )
    """Send requests to the engines from several processes."""
    http_proxy: str | None = flag(default=None, planned="set the environment variable http_proxy")
    """Proxy of outgoing requests."""
    rollout_buffer_url: str | None = flag(default=None, planned=_OWN_BUFFER)
    """Address of an external rollout buffer."""
    fetch_trajectory_retry_times: int = flag(default=-1, planned=_OWN_BUFFER)
    """Attempts to fetch from an external rollout buffer."""
    min_batch_collection_ratio: float = flag(default=1.0, planned=_OWN_BUFFER)
    """Share of a batch an external rollout buffer must hold."""
    rollout_task_type: str = flag(default="math", planned=_OWN_BUFFER)
    """Task name for an external rollout buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """Watching over the processes of a run."""

    use_fault_tolerance: bool = flag(default=False)
    """Start lost processes again: an engine or a router that ends or does not answer is replaced,
    gets the current weights before any request, and what it was asked is asked again."""
    rollout_health_check_interval: float = flag(default=30.0, above=0)
    """Seconds between two questions whether an engine or the router still answers."""
    rollout_health_check_timeout: float = flag(default=30.0, above=0)
    """Seconds they may take to answer; later they count as hung and are replaced."""
    rollout_health_check_first_wait: float = flag(default=0.0, at_least=0)
    """Seconds before an engine that has started is asked for the first time; that its process has
    ended is noticed all the same."""
    max_engine_restarts: int = flag(default=3, at_least=0, ours=True)
    """Restarts of one engine, or of the router, without a finished rollout in between; one more
    loss ends the run with what is known of all of them."""
    heartbeat_timeout_s: float = flag(default=60.0, above=0, ours=True)
    """Seconds without a sign of life after which a trainer rank or the rollout worker counts as
    hung. With --use-fault-tolerance the run then starts again from its last checkpoint, as it does
    when one of them ends; without it the run ends with what is known of that process."""
    max_restarts: int = flag(default=3, at_least=0, ours=True)
    """Such restarts without a new checkpoint in between; one more loss ends the run."""
