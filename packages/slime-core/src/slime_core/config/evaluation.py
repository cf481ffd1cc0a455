"""Scoring the policy on sets of its own."""

from dataclasses import dataclass

from slime_core.config.eval_sets import EvalDataset
from slime_core.config.flags import derived, flag


def named_sets(occurrences: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, str], ...]:
    """Pairs (name, path) from the words of each ``--eval-prompt-data``.

    One word alone is a path whose set is called "aime", as upstream has it.
    """
    pairs: list[tuple[str, str]] = []
    for words in occurrences:
        if len(words) == 1:
            words = ("aime", *words)
        if len(words) % 2:
            raise ValueError("expects pairs of a name and a path")
        pairs.extend(zip(words[::2], words[1::2], strict=True))
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"names a set twice: {' '.join(names)}")
    return tuple(pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Evaluation sets; what is not given falls back to the rollout's value."""

    eval_interval: int | None = flag(default=None, at_least=1)
    """Iterations between evaluations; the last iteration is always followed by one. Without it
    the sets are evaluated before training and after the last iteration."""
    eval_prompt_data: tuple[tuple[str, str], ...] = flag(default=(), repeat=True, parse=named_sets)
    """Sets as name path [name path ...]; may be given several times."""
    eval_config: str | None = None
    """YAML file of sets, each with settings of its own: eval: {defaults: ..., datasets: [...]}."""
    eval_datasets: tuple[EvalDataset, ...] = derived(default=())
    """Every set with all its settings."""
    skip_eval_before_train: bool = False
    """Do not evaluate before the first iteration."""
    eval_input_key: str | None = None
    """Column of the prompt; --input-key by default."""
    eval_label_key: str | None = None
    """Column of the reference answer; --label-key by default."""
    eval_tool_key: str | None = None
    """Column of tool definitions; --tool-key by default."""
    n_samples_per_eval_prompt: int = flag(default=1, at_least=1)
    """Responses per prompt."""
    eval_temperature: float | None = flag(default=None, at_least=0)
    """Softmax temperature, 0 for greedy; --rollout-temperature by default."""
    eval_top_p: float | None = flag(default=None, above=0, at_most=1)
    """Nucleus mass; --rollout-top-p by default."""
    eval_top_k: int | None = flag(default=None, at_least=-1)
    """Tokens kept; --rollout-top-k by default."""
    eval_max_response_len: int | None = flag(default=None, at_least=1)
    """Longest response in tokens; --rollout-max-response-len by default."""
    eval_max_prompt_len: int | None = flag(default=None, at_least=1)
    """Leave out longer prompts, in tokens; --rollout-max-prompt-len by default."""
    eval_min_new_tokens: int | None = flag(default=None, at_least=0)
    """Shortest response, in tokens."""
    eval_max_context_len: int | None = flag(default=None, at_least=2)
    """Longest prompt plus response in tokens; --rollout-max-context-len by default."""
    eval_function_path: str | None = None
    """Function (args, rollout_id, data_source, evaluation) that replaces the whole evaluation."""

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to evaluate on, or with."""
        return bool(self.eval_datasets or self.eval_function_path)

    @property
    def before_training(self) -> bool:
        """Whether the weights that a run begins with are evaluated."""
        return self.evaluates and not self.skip_eval_before_train
