"""How conversations go on and who may join them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slime_core.config.data import DataConfig
from slime_core.config.rollout import RolloutConfig, TemplateDrift

from slime_sglang.config import SGLangConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What stays the same for every conversation of a run."""

    template_drift: TemplateDrift = "refuse"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    max_turns: int | None = None
    """Most requests of one session of the endpoints."""
    tool_call_parser: str | None = None
    """SGLang's name for how the model writes tool calls."""
    reasoning_parser: str | None = None
    """SGLang's name for how the model writes reasoning."""
    host: str = "127.0.0.1"
    """Address on which the endpoints listen."""
    port: int = 0
    """0 finds a free one."""
    timeout_s: float = 3600.0
    """Longest run of an agent."""

    @classmethod
    def of(cls, rollout: RolloutConfig, sglang: SGLangConfig, data: DataConfig) -> "AgentSettings":
        """As the command line says."""
        return cls(
            template_drift=rollout.template_drift,
            template_kwargs=data.apply_chat_template_kwargs,
            max_turns=rollout.max_turns,
            tool_call_parser=sglang.server.get("tool_call_parser"),
            reasoning_parser=sglang.server.get("reasoning_parser"),
            host=rollout.agent_host,
            port=rollout.agent_port,
            timeout_s=rollout.agent_timeout_s,
        )
