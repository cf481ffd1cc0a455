"""What SGLang and its router are told."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from slime_core.config.draft import Draft, Facts
from slime_core.config.rules.cluster import engines_needed
from slime_core.errors import ConfigError

from slime_sglang.context_length import engine_context, model_context
from slime_sglang.processes.ports import require_free

_HERE = "127.0.0.1"

APART: Mapping[str, Any] = MappingProxyType(
    {"enable_dp_attention_local_control_broadcast": False, "dwdp_size": 1, "max_ep_size": None}
)
"""Settings with which SGLang tells each data-parallel rank by itself what all have to do at once,
and the values that have it tell all of them together."""

ONE_VOICE: Mapping[str, Any] = MappingProxyType(
    {"tokenizer_worker_num": 1, "skip_tokenizer_init": False}
)
"""Settings with which not every answer has its text, or the version of the weights that wrote it,
and the values with which it has."""

_TEXT = "answers would come without their text, which rewards read"
_OF_ONE = "only one of the processes would hear of a pause, or which weights are the newest"
_HTTP = "the run speaks to engines and router by plain HTTP, without a key"
_UNHEARD: Mapping[str, str] = MappingProxyType(
    {
        "skip_tokenizer_init": _TEXT,
        "tokenizer_worker_num": _OF_ONE,
        **dict.fromkeys(("api_key", "admin_api_key", "ssl_keyfile", "ssl_certfile"), _HTTP),
        **dict.fromkeys(("grpc_mode", "smg_grpc_mode"), _HTTP),
    }
)
"""Settings with which the run and an engine of its own would not understand each other, and why."""
_LOCKED = ("api_key", "tls_cert_path", "tls_key_path")
"""Those with which the run's own router would not answer it."""


def router_timeout(draft: Draft, facts: Facts) -> None:
    """The router waits as long as slime says."""
    if not draft.router.given("request_timeout_secs"):
        timeout = draft["sglang_router_request_timeout_secs"]
        rule = "derived: --sglang-router-request-timeout-secs"
        draft.router.put("request_timeout_secs", timeout, rule)


def router_address(draft: Draft, facts: Facts) -> None:
    """A router that already runs has an address and a port."""
    if draft["sglang_router_ip"] is not None and draft["sglang_router_port"] is None:
        draft.problem("--sglang-router-ip needs --sglang-router-port")


def router_ports(draft: Draft, facts: Facts) -> None:
    """Ports that were asked for are free, where it is known that the router will be here."""
    elsewhere = facts.in_cluster or draft["sglang_router_ip"] is not None
    if elsewhere or draft["dump_config"] or not engines_needed(draft):
        return
    router = draft.router.values
    asked = {
        "--sglang-router-port": (draft["sglang_router_port"], _HERE),
        "--router-prometheus-port": (
            router.get("prometheus_port"),
            router.get("prometheus_host") or _HERE,
        ),
    }
    for flag, (port, host) in asked.items():
        if port is not None:
            try:
                require_free(port, flag, host)
            except ConfigError as error:
                draft.problem(str(error))


def external_engines(draft: Draft, facts: Facts) -> None:
    """Engines that somebody else started have their settings."""
    if not draft["rollout_external_engine_addrs"]:
        return
    for name in draft.server.values:
        if draft.server.given(name):
            draft.problem(
                f"--sglang-{name.replace('_', '-')} has no effect on engines that already run "
                "(--rollout-external-engine-addrs): give it to whoever starts them"
            )


def own_gpus(draft: Draft, facts: Facts) -> None:
    """An engine has the GPUs of its tensor-parallel ranks, and both prefills and decodes."""
    if draft["rollout_external_engine_addrs"]:
        return
    values = draft.server.values
    more = "for more GPUs give --rollout-num-gpus-per-engine, for more engines --rollout-num-gpus"
    reasons = {
        "pp_size": f"an engine spans GPUs by tensor parallelism alone; {more}",
        "disaggregation_mode": "every engine prefills and decodes; leave it out",
    }
    if not values.get("enable_dp_attention"):
        reasons["dp_size"] = (
            f"copies in one engine would need GPUs that it does not have; {more}, or have "
            "its GPUs divide the attention's batch with --sglang-enable-dp-attention"
        )
    for name, reason in reasons.items():
        if values.get(name, 1) not in (1, "null"):
            draft.problem(f"--sglang-{name.replace('_', '-')} {values[name]}: {reason}")


def one_word_for_all(draft: Draft, facts: Facts) -> None:
    """All ranks of an engine hear of a pause, or of weights, between the same two batches."""
    values = draft.server.values
    for name, together in APART.items():
        if values.get(name, together) != together:
            draft.problem(
                f"--sglang-{name.replace('_', '-')}: the ranks of an engine would hear of pauses "
                "and of new weights one by one, some of them in the middle of a batch that the "
                "others wait for: leave it out"
            )


def understood(draft: Draft, facts: Facts) -> None:
    """The run hears engines, and every part of an engine hears the run."""
    values = draft.server.values
    for name, reason in _UNHEARD.items():
        if values.get(name, ONE_VOICE.get(name)) not in (ONE_VOICE.get(name), None, False):
            draft.problem(f"--sglang-{name.replace('_', '-')}: {reason}: leave it out")
    for name in _LOCKED:
        if draft.router.values.get(name) is not None and draft["sglang_router_ip"] is None:
            draft.problem(f"--router-{name.replace('_', '-')}: {_HTTP}: leave it out")


def shared_memory(draft: Draft, facts: Facts) -> None:
    """A colocated engine leaves the trainer what it holds meanwhile: most of the GPU, or little."""
    if not draft["colocate"] or draft["device"] != "cuda":
        return
    alone = draft["offload_train"] and draft["offload_rollout"]
    share, why = (0.8, "--offload") if alone else (0.4, "--colocate")
    if "mem_fraction_static" not in draft.server.values:
        draft.server.put("mem_fraction_static", share, f"derived: {why}")


def weights_that_stay(draft: Draft, facts: Facts) -> None:
    """Released weights come back without content, unless a publish follows every time."""
    if draft["offload_rollout"] and draft["update_weights_interval"] > 1:
        rule = "derived: --offload-rollout, --update-weights-interval"
        draft.server.put("enable_weights_cpu_backup", True, rule)


def response_length(draft: Draft, facts: Facts) -> None:
    """Half of the context at most, unless given."""
    context = engine_context(facts.hf_config, draft.server.values)
    if context is not None and not draft.given("rollout_max_response_len"):
        length = min(draft["rollout_max_response_len"], context // 2)
        draft.derive("rollout_max_response_len", length, "half of the context")


def context_length(draft: Draft, facts: Facts) -> None:
    """Responses fit into the context of the engines, and that is one that SGLang takes."""
    given, model = draft.server.values.get("context_length"), model_context(facts.hf_config)
    if given is not None and model is not None and given > model:
        draft.notice(
            f"--sglang-context-length {given} is more than the model's context of {model}: SGLang "
            "refuses it, unless SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 is in the environment"
        )
    context = engine_context(facts.hf_config, draft.server.values)
    if context is None:
        return
    where = f"--sglang-context-length {given}" if given else f"the model's context of {context}"
    for what, length in _response_lengths(draft):
        if length is not None and length >= context:
            draft.problem(f"{what} {length} leaves no room for a prompt within {where}")


def _response_lengths(draft: Draft) -> Iterator[tuple[str, int | None]]:
    yield "--rollout-max-response-len", draft["rollout_max_response_len"]
    if draft["eval_max_response_len"] != draft["rollout_max_response_len"]:
        yield "--eval-max-response-len", draft["eval_max_response_len"]
    for each in draft["eval_datasets"]:
        if each.max_response_len != draft["eval_max_response_len"]:
            yield f"--eval-config {each.name}: max_response_len", each.max_response_len


RULES = (
    router_timeout,
    router_address,
    router_ports,
    external_engines,
    own_gpus,
    one_word_for_all,
    understood,
    shared_memory,
    weights_that_stay,
    context_length,
)
