"""Settings of SGLang that an engine of a run cannot have."""

import socket

import pytest
from slime_core.config.draft import Facts
from slime_core.errors import ConfigErrors
from slime_testing.resolved_case import ARCHITECTURE, BASE
from slime_train.resolve import resolve
from slime_train.sources import read_sources

DIVIDED = "--sglang-dp-size 2 --sglang-enable-dp-attention --rollout-num-gpus-per-engine 2"


@pytest.mark.parametrize(
    "flag", ["enable-dp-attention-local-control-broadcast", "dwdp-size 2", "max-ep-size 4"]
)
def test_ranks_that_would_hear_of_new_weights_one_by_one_are_refused(flag: str) -> None:
    raw = read_sources(f"{BASE} {DIVIDED} --sglang-{flag}".split())
    told = f"--sglang-{flag.split()[0]}: the ranks of an engine would hear"
    with pytest.raises(ConfigErrors, match=told):
        resolve(raw, Facts(megatron_args=ARCHITECTURE, num_gpus=4))


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("--sglang-skip-tokenizer-init", "without their text"),
        ("--sglang-tokenizer-worker-num 2", "only one of the processes would hear of a pause"),
        ("--sglang-api-key secret", "by plain HTTP, without a key"),
        ("--sglang-ssl-certfile cert.pem", "by plain HTTP"),
        ("--sglang-smg-grpc-mode", "by plain HTTP"),
        ("--router-api-key secret", "by plain HTTP, without a key"),
        ("--router-tls-cert-path cert.pem", "by plain HTTP"),
    ],
)
def test_engines_that_the_run_would_not_understand_are_refused(flag: str, why: str) -> None:
    facts = Facts(megatron_args=ARCHITECTURE)
    with pytest.raises(ConfigErrors, match=f"{flag.split()[0]}: .*{why}.*: leave it out"):
        resolve(read_sources(f"{BASE} {flag}".split()), facts)
    resolve(read_sources(f"{BASE} --sglang-tokenizer-worker-num 1".split()), facts)


@pytest.mark.parametrize("flag", ["--sglang-router-port", "--router-prometheus-port"])
def test_a_port_that_somebody_listens_on_is_refused_before_anything_starts(flag: str) -> None:
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        port = somebody.getsockname()[1]
        raw = read_sources(f"{BASE} {flag} {port}".split())
        facts = Facts(megatron_args=ARCHITECTURE)
        told = f"{flag} {port}: the port cannot be used .* in use.*; give another one, or leave"
        with pytest.raises(ConfigErrors, match=told):
            resolve(raw, facts)
        resolve(raw, Facts(megatron_args=ARCHITECTURE, in_cluster=True))  # perhaps not there
        resolve(read_sources(f"{BASE} {flag} {port} --dump-config".split()), facts)
    resolve(raw, facts)
