"""What is done about samples that another policy drew."""

from dataclasses import dataclass
from typing import Literal

from slime_core.config.checked import check_section
from slime_core.config.flags import flag

_NO_REPLAY = (
    "every pass routes its own tokens, and none is handed the experts that an engine or an earlier "
    "pass chose: leave it out; --use-tis --tis-mode mask leaves out tokens on which engine and "
    "trainer disagree"
)

Level = Literal["token", "sequence", "geometric"]
Mode = Literal["truncate", "clip", "mask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OffPolicyConfig:
    """Corrections for engines that compute differently, and for weights that moved since.

    Importance weights compare the trainer's old policy with the one that drew the tokens.
    """

    use_rollout_logprobs: bool = False
    """Take the engines' log-probabilities as those of the old policy."""
    use_tis: bool = False
    """Weigh the policy loss with importance weights between the engine and the trainer."""
    tis_level: Level = flag(default="token", ours=True)
    """Weight of a token: its own ratio, the product over the response, or its geometric mean."""
    tis_mode: Literal["truncate", "clip", "mask"] = flag(default="truncate", ours=True)
    """Beyond the bounds: cut from above; cut on both sides; leave the token out (IcePop)."""
    tis_clip: float = flag(default=2.0, above=0)
    """Upper bound of the importance weight."""
    tis_clip_low: float = flag(default=0.0, at_least=0)
    """Lower bound of the importance weight."""
    tis_batch_normalize: bool = flag(default=False, ours=True)
    """Divide the weights by their mean over the whole step."""
    use_rs: bool = flag(default=False, ours=True)
    """Rejection sampling: leave out what lies beyond the --rs bounds."""
    rs_level: Level = flag(default="token", ours=True)
    """What is rejected: tokens, or responses by their product or geometric mean."""
    rs_lower_bound: float | None = flag(default=None, at_least=0, ours=True)
    """Lower bound of a ratio that is kept; --tis-clip-low by default."""
    rs_upper_bound: float | None = flag(default=None, above=0, ours=True)
    """Upper bound of a ratio that is kept; --tis-clip by default."""
    rs_veto_threshold: float | None = flag(default=None, above=0, at_most=1, ours=True)
    """Leave out a whole response if the ratio of any of its tokens is below this."""
    custom_tis_function_path: str | None = None
    """Function that replaces the built-in importance weights."""
    get_mismatch_metrics: bool = False
    """Report importance weights and mismatch without using them."""
    use_opsm: bool = False
    """Leave out sequences with negative advantage that drifted from the old policy."""
    opsm_delta: float = flag(default=1e-4, at_least=0)
    """Mean KL per token beyond which a sequence has drifted."""
    keep_old_actor: bool = False
    """Keep the weights that were last published, for the log-probabilities of the old policy."""
    use_decoupled_ppo: bool = flag(default=False, ours=True)
    """Clip against the policy before the first step (proximal), and weigh with its ratio to the
    policy that drew the tokens (behaviour: the kept old actor, else the engine)."""
    max_token_staleness: int | None = flag(default=None, at_least=0, ours=True)
    """Leave out tokens written by weights that are more than so many iterations old."""
    use_routing_replay: bool = flag(default=False, planned=_NO_REPLAY)
    """Use the routing of the log-probability pass again in training."""
    use_rollout_routing_replay: bool = flag(default=False, planned=_NO_REPLAY)
    """Use the engines' expert routing in training."""

    def __post_init__(self) -> None:
        check_section(self)
