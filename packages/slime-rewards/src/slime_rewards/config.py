"""Which reward a run uses, and what becomes of responses that cannot be graded."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from slime_core.config.flags import flag

BOXED = "boxed_"
"""Before the name of a type: it looks only at the last box of a response."""
RM_TYPES = (
    "math",
    "deepscaler",
    "dapo",
    "f1",
    "exact_match",
    "gpqa",
    "ifbench",
    "code",
    "random",
    "zero",
    "remote_rm",
    "sequence_classification",
    "judge",
)
"""Built-in rewards."""
COMPARING = ("math", "deepscaler", "dapo", "f1", "exact_match")
"""Those of them that compare a response with its label, so that there has to be one."""

FailurePolicy = Literal["drop-sample", "drop-group", "retry", "score"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """How responses are scored."""

    rm_type: str | None = None
    """Built-in reward: math, deepscaler, dapo, f1, gpqa, ifbench, exact_match, code, random, zero,
    remote_rm, sequence_classification, judge; boxed_NAME looks only at the last box; a row's
    metadata may name another. math unless a custom one is given, zero with --use-opd."""
    reward_key: str | None = None
    """Entry of a dictionary reward to train on."""
    eval_reward_key: str | None = None
    """Entry of a dictionary reward to report in evaluation; --reward-key by default."""
    group_rm: bool = False
    """Score the responses of one prompt in one call."""
    rm_url: str | None = None
    """Address of a reward server, for --rm-type remote_rm, of SGLang with a reward model, for
    --rm-type sequence_classification, or of a teacher, for --opd-type sglang."""
    custom_rm_path: str | None = None
    """Reward function: package.module.name, file.py:name or file.py."""
    custom_reward_post_process_path: str | None = None
    """Function (args, samples) that returns raw rewards and rewards to train on."""
    custom_convert_samples_to_train_data_path: str | None = None
    """Function (args, samples) that builds the training data."""

    reward_timeout_s: float = flag(default=5.0, above=0.0, ours=True)
    """Seconds a grader in a worker process may take for one response."""
    reward_call_timeout_s: float = flag(default=120.0, above=0.0, ours=True)
    """Seconds a reward function (args, sample), a reward model, a judge, or one try of a reward
    server may take."""
    reward_num_workers: int | None = flag(default=None, at_least=1, ours=True)
    """Processes that grade; half the processors, at most 8, by default."""
    reward_memory_mb: int = flag(default=4096, at_least=256, ours=True)
    """MiB of memory one of these processes may use."""
    reward_failure_policy: FailurePolicy = flag(default="drop-sample", ours=True)
    """What becomes of a response that cannot be graded, in time or at all: it is not trained on,
    nor is its group, it is graded again and then not trained on, or it gets
    --reward-failure-score."""
    reward_failure_score: float = flag(default=0.0, ours=True)
    """The reward under --reward-failure-policy score."""
    reward_num_retries: int = flag(default=2, at_least=1, ours=True)
    """How often a response is graded again under --reward-failure-policy retry."""
    reward_max_failures: int = flag(default=100, at_least=0, ours=True)
    """More errors than this in one rollout stop the run, with the first traceback. Answers that
    come too late count, too, as long as no response got a reward."""

    reward_model_path: str | None = flag(default=None, ours=True)
    """Hugging Face directory of a reward model, for --rm-type sequence_classification (with
    --rm-url only its tokenizer is used) and for a class given as --custom-rm-path."""
    judge_url: str | None = flag(default=None, ours=True)
    """Address of an OpenAI-compatible server, for --rm-type judge; the run's own router by
    default, so that the policy judges itself."""
    judge_model: str = flag(default="default", ours=True)
    """Name of the model to ask there."""
    judge_prompt: str | None = flag(default=None, ours=True)
    """Text file with what a judge is asked; {prompt}, {response} and {label} are filled in."""
    judge_score_pattern: str = flag(default=r"(?i)score\W*(-?\d+(?:\.\d+)?)", ours=True)
    """Regular expression whose first group is the score; its last match in the answer counts."""
    judge_max_score: float = flag(default=10.0, above=0.0, ours=True)
    """Scores are divided by this; one beyond it is an error."""
    judge_max_tokens: int = flag(default=512, at_least=1, ours=True)
    """Tokens a judge may answer with."""


def unknown_type(rm_type: str, known: Iterable[str]) -> str | None:
    """What is wrong with the name of a reward; None if it is ``known``."""
    if rm_type.removeprefix(BOXED) in known:
        return None
    return (
        f"is unknown; there are {', '.join(sorted(known))}, each also as {BOXED}NAME; for a "
        "function of your own give --custom-rm-path"
    )
