"""One real SGLang server and the real router on a CPU: everything a run asks of them."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from slime_core.errors import EngineError, WeightSyncError
from slime_core.types import Sample, Status
from slime_sglang.answers.sampling_params import Sampling
from slime_sglang.client import EngineClient
from slime_sglang.config import SGLangConfig
from slime_sglang.fleet.engines import Engines
from slime_sglang.fleet.spec import FleetSpec
from slime_sglang.rollout.generation import Generation, GenerationSpec
from slime_sglang.rollout.teacher import Teacher
from slime_sglang.weights import digests, disk_format
from slime_sglang.weights.collective import CollectiveReceiver
from slime_sglang.weights.disk import DiskReceiver, DiskSpec
from slime_sglang.weights.session import EngineTarget
from slime_sglang.weights.tensor import TensorReceiver
from slime_sglang.weights.version_files import LocalCopySpec
from slime_sglang.weights.version_index import read_index
from slime_testing.tiny import make_qwen3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROMPTS = [[7, 8, 9, 10], [20, 21], [30, 31, 32, 33, 34, 35, 36], [40], [50, 51, 52]]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen3(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module")
def engines(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    spec = FleetSpec(
        model_path=model_path,
        device="cpu",
        log_dir=tmp_path_factory.mktemp("logs"),
        sglang=SGLangConfig(server={"max_total_tokens": 16384}),
    )
    engines = Engines(spec)
    engines.start()
    yield engines
    engines.stop()


@pytest.fixture(scope="module")
def reference(model_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)


def weights(reference: Any, scale: float = 1.0) -> list[tuple[str, torch.Tensor]]:
    return [(name, value * scale) for name, value in reference.state_dict().items()]


def generate(
    engines: Engines, *, temperature: float = 1.0, seed: int = 1, concurrency: int = 64
) -> list[Sample]:
    """One response to each prompt, in an event loop of its own."""

    async def run() -> list[Sample]:
        spec = GenerationSpec(
            router_url=engines.router_url,
            engine_urls=engines.urls,
            sampling=Sampling(temperature=temperature, max_response_len=8),
            concurrency=concurrency,
            seed=seed,
        )
        async with Generation(spec, None, engines.check_alive) as generation:
            generation.begin(0)
            samples = [Sample(index=i, tokens=list(p)) for i, p in enumerate(PROMPTS * 2)]
            return list(await asyncio.gather(*(generation(sample) for sample in samples)))

    return asyncio.run(run())


def log_prob_difference(reference: Any, samples: list[Sample], scale: float = 1.0) -> float:
    """Largest |engine - Hugging Face| over the response tokens, with scaled weights."""
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    reference.load_state_dict({name: value * scale for name, value in before.items()})
    worst = 0.0
    with torch.no_grad():
        for sample in samples:
            logits = reference(torch.tensor([sample.tokens])).logits[0]
            table = logits.log_softmax(-1)[sample.prompt_length - 1 : -1]
            picked = table.gather(1, torch.tensor(sample.tokens[sample.prompt_length :])[:, None])
            found = torch.tensor(sample.rollout_log_probs)
            worst = max(worst, float((picked[:, 0] - found).abs().max()))
    reference.load_state_dict(before)
    return worst


def receivers(engines: Engines, directory: Path) -> dict[str, Any]:
    return {
        "tensor": TensorReceiver(engines.targets),
        "collective": CollectiveReceiver(engines.targets, backend="gloo"),
        "disk": DiskReceiver(engines.targets, DiskSpec(directory=directory / "versions")),
        "delta": DiskReceiver(
            engines.targets,
            DiskSpec(
                directory=directory / "versions",
                local=LocalCopySpec(directory=directory / "copy", delta=True),
            ),
        ),
    }


def publish(receiver: Any, version: int, tensors: list[tuple[str, torch.Tensor]]) -> None:
    half = len(tensors) // 2
    receiver.begin(version)
    receiver.send(tensors[:half])
    receiver.send(tensors[half:])
    receiver.commit()


def test_samples_carry_the_models_own_log_probabilities(engines: Engines, reference: Any) -> None:
    samples = generate(engines)
    for sample in samples:
        sample.validate()
        assert sample.status in (Status.COMPLETED, Status.TRUNCATED)
        assert sample.response_length == 8 or sample.status is Status.COMPLETED
        assert len(sample.weight_versions) == 1
        assert len(sample.token_versions or []) == sample.response_length
    assert log_prob_difference(reference, samples) <= 1e-4


def test_a_seed_fixes_the_tokens_whatever_else_is_in_the_batch(engines: Engines) -> None:
    first, alone, other = (
        [sample.tokens for sample in generate(engines, seed=seed, concurrency=limit)]
        for seed, limit in ((5, 64), (5, 1), (6, 64))
    )
    assert first == alone
    assert first != other


def test_log_probabilities_are_the_same_bits_in_any_batch(engines: Engines) -> None:
    many, one = (generate(engines, seed=5, concurrency=limit) for limit in (64, 1))
    assert [s.rollout_log_probs for s in many] == [s.rollout_log_probs for s in one]


@pytest.mark.parametrize("transport", ["tensor", "collective", "disk", "delta"])
def test_published_weights_are_served_and_versioned(
    transport: str, engines: Engines, reference: Any, tmp_path: Path
) -> None:
    receiver = receivers(engines, tmp_path)[transport]
    for version, scale in ((1, 1.3), (2, 0.9)):
        publish(receiver, version, weights(reference, scale))
        samples = generate(engines, seed=version)
        assert {tuple(sample.weight_versions) for sample in samples} == {(str(version),)}
        assert {v for sample in samples for v in sample.token_versions or []} == {version}
        assert log_prob_difference(reference, samples, scale) <= 1e-4
    if transport == "disk":
        assert [path.name for path in (tmp_path / "versions").iterdir()] == ["weight_v000002"]
    if transport == "delta":
        index = read_index(tmp_path / "versions" / "weight_v000002")
        assert index is not None
        assert (index.kind, index.base_version) == ("delta", 1)
        assert (tmp_path / "copy" / "weight_v000002").is_dir()
        shutil.rmtree(tmp_path / "copy")  # what a machine that was replaced has: nothing
    publish(receiver, 3, weights(reference))
    assert log_prob_difference(reference, generate(engines)) <= 1e-4
    receiver.close()


@pytest.mark.parametrize("transport", ["tensor", "collective", "disk", "delta"])
def test_a_tensor_that_changed_on_the_way_is_named(
    transport: str,
    engines: Engines,
    reference: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver = receivers(engines, tmp_path)[transport]
    name = "model.layers.1.self_attn.q_proj.weight"

    def corrupt(tensors: Any) -> dict[str, str]:
        """Digests of what should have arrived: one bit of one tensor was different then."""
        intended = [(n, t.clone()) for n, t in tensors]
        for found, tensor in intended:
            if found == name:
                tensor.view(torch.int32).flatten()[5] ^= 1
        return digests.digests_of(intended)

    def copy_and_corrupt(tensors: Any, to: torch.Tensor) -> Any:
        digests.begin_digests(tensors, to)()
        return lambda: corrupt(tensors)

    with monkeypatch.context() as patch:
        patch.setattr("slime_sglang.weights.bucket.begin_digests", copy_and_corrupt)
        patch.setattr("slime_sglang.weights.version_files.digests_of", corrupt)
        with pytest.raises(WeightSyncError, match=name):
            publish(receiver, 7, weights(reference))
    publish(receiver, 8, weights(reference))
    assert {s.weight_versions[0] for s in generate(engines)} == {"8"}
    receiver.close()


def test_a_file_damaged_on_disk_is_an_error_and_the_engine_survives(
    engines: Engines, reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = DiskReceiver(engines.targets, DiskSpec(directory=tmp_path))
    write = disk_format.write_shard

    def cut(directory: Path, number: int, tensors: Any) -> None:
        write(directory, number, tensors)
        path = next(directory.glob(f"*{number:05d}*"))
        path.write_bytes(path.read_bytes()[:-64])

    monkeypatch.setattr("slime_sglang.weights.version_files.write_shard", cut)
    with pytest.raises(WeightSyncError):
        publish(receiver, 9, weights(reference))
    monkeypatch.undo()
    publish(receiver, 10, weights(reference))
    receiver.close()
    engines.check_alive()


async def abort_in_the_middle(generation: Generation) -> tuple[Sample, list[Sample]]:
    """A sample that had been begun and was aborted, and all of its kind.

    Answers of 400 tokens take more than twice as long as their first token, on any machine: one of
    the times comes between.
    """
    for wait_s in (0.02 * 2**number for number in range(10)):
        generation.begin(0)
        samples = [Sample(index=i, tokens=[9, 9, i]) for i in range(8)]
        tasks = [asyncio.create_task(generation(sample)) for sample in samples]
        await asyncio.sleep(wait_s)
        await generation.abort()
        finished = list(await asyncio.wait_for(asyncio.gather(*tasks), 120))
        for sample in finished:
            if sample.status is Status.ABORTED and sample.response_length:
                return sample, finished
    raise AssertionError("none was aborted in the middle")


def test_aborted_samples_keep_what_they_have(engines: Engines) -> None:
    async def run() -> list[Sample]:
        spec = GenerationSpec(
            router_url=engines.router_url,
            engine_urls=engines.urls,
            sampling=Sampling(max_response_len=400, min_new_tokens=400),
            concurrency=4,
        )
        async with Generation(spec, None, engines.check_alive) as generation:
            left, finished = await abort_in_the_middle(generation)
            generation.begin(1)
            before = list(left.tokens)
            short = Sampling(max_response_len=left.response_length + 3)
            await generation.request(left, replace(generation._purpose, sampling=short))
            assert left.tokens[: len(before)] == before
            return finished

    samples = asyncio.run(run())
    for sample in samples:
        sample.validate()
    assert any(sample.status is Status.ABORTED for sample in samples)


def teach(engines: Engines, samples: list[Sample]) -> None:
    async def run() -> None:
        teacher = Teacher(engines.urls[0])
        try:
            await teacher(samples)
        finally:
            await teacher.close()

    asyncio.run(run())


def test_a_teacher_judges_the_students_tokens(engines: Engines, reference: Any) -> None:
    """The engine is teacher and student at once: it must say the same twice."""
    samples = generate(engines, seed=11)
    alone = Sample(index=99, tokens=[7, 8, 9], response_length=2, status=Status.COMPLETED)
    teach(engines, [*samples, alone])
    for sample in samples:
        sample.validate()
        found, known = map(torch.tensor, (sample.teacher_log_probs, sample.rollout_log_probs))
        torch.testing.assert_close(found, known, rtol=0, atol=1e-4)
        sample.rollout_log_probs = sample.teacher_log_probs
    assert log_prob_difference(reference, samples) <= 1e-4
    assert len(alone.teacher_log_probs or []) == 2


def test_a_teacher_with_another_vocabulary_is_named(engines: Engines) -> None:
    foreign = Sample(index=3, tokens=[7, 500], response_length=1, status=Status.COMPLETED)
    with pytest.raises(EngineError, match=r"--rm-url .*refused sample 3.*500.*vocabulary"):
        teach(engines, [foreign])
    engines.check_alive()


def test_a_greedy_answer_is_the_likeliest_and_the_same_again(
    engines: Engines, reference: Any
) -> None:
    first, again = (generate(engines, temperature=0.0, seed=seed) for seed in (1, 2))
    assert [s.tokens for s in first] == [s.tokens for s in again]
    with torch.no_grad():
        logits = reference(torch.tensor([first[0].tokens])).logits[0, first[0].prompt_length - 1]
    assert int(logits.argmax()) == first[0].tokens[first[0].prompt_length]


def test_a_second_run_on_the_machine_gets_ports_of_its_own(engines: Engines) -> None:
    # A server's port stays reserved while it is in use: nobody else is handed it.
    from slime_sglang.processes.ports import PortLease

    taken = {int(url.rsplit(":", 1)[1]) for url in [*engines.urls, engines.router_url]}
    with PortLease(200) as lease:
        assert not taken & set(lease.ports)


_OWNER = """
import sys, time
from pathlib import Path
from slime_sglang.config import SGLangConfig
from slime_sglang.fleet.engines import Engines
from slime_sglang.fleet.spec import FleetSpec
model, logs = map(Path, sys.argv[1:])
engines = Engines(FleetSpec(model_path=model, device="cpu", log_dir=logs, sglang=SGLangConfig()))
engines.start()
print("ready", *engines.urls, flush=True)
time.sleep(600)
"""


def test_sigkill_of_the_owner_leaves_no_process(model_path: Path, tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(model_path), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout is not None
        line = owner.stdout.readline()
        assert line.startswith("ready"), (tmp_path / "engine_0.log").read_text()[-2000:]
        family = psutil.Process(owner.pid).children(recursive=True)
        assert len(family) >= 5  # guardians of engine and router, router, server, its children
    finally:
        owner.kill()
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_an_engine_that_cannot_start_is_reported_with_its_log(tmp_path: Path) -> None:
    model = make_qwen3(tmp_path / "broken")
    (model / "model.safetensors").write_bytes(b"not weights")
    spec = FleetSpec(model_path=model, device="cpu", log_dir=tmp_path, sglang=SGLangConfig())
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"engine_0.*exit code") as caught:
        Engines(spec).start()
    assert str(tmp_path / "engine_0.log") in str(caught.value)
    assert "safetensors" in str(caught.value).lower()
    assert time.monotonic() - began < 200


CONVERSE = """
from slime_sglang import generate_single, run_agent

async def custom_generate(args, samples, evaluation=False):
    for sample in samples:
        for turn in range(args.max_turns):
            response = await generate_single(sample.prompt, {"max_new_tokens": 5})
            sample.prompt.append({"role": "assistant", "content": response})
            sample.prompt.append({"role": "tool", "content": f"result {turn}"})
    return samples

async def agent(base_url, api_key, sample):
    import httpx
    async with httpx.AsyncClient(trust_env=False) as client:
        messages = list(sample.prompt)
        for answer in ("go on", "and?", None):
            body = {"messages": messages, "max_tokens": 5}
            reply = await client.post(base_url + "/chat/completions", json=body, timeout=60)
            messages.append(reply.json()["choices"][0]["message"])
            messages.append({"role": "user", "content": answer})

async def by_agent(args, sample, sampling_params):
    return await run_agent(args, sample, sampling_params, agent=agent)
"""


@pytest.mark.parametrize("name", ["custom_generate", "by_agent"])
def test_conversations_carry_the_models_own_log_probabilities(
    engines: Engines, reference: Any, model_path: Path, tmp_path: Path, name: str
) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "mine.py").write_text(CONVERSE)

    async def converse() -> list[Any]:
        spec = GenerationSpec(
            router_url=engines.router_url,
            engine_urls=engines.urls,
            sampling=Sampling(max_response_len=400),
            concurrency=8,
            custom_generate=f"{tmp_path}/mine.py:{name}",
            flat={"max_turns": 4},
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
        async with Generation(spec, tokenizer, engines.check_alive) as generation:
            generation.begin(0)
            prompts = [[{"role": "user", "content": text}] for text in ("1+2", "look up x")]
            samples = [Sample(index=i, prompt=prompt) for i, prompt in enumerate(prompts)]
            return list(await asyncio.gather(*(generation(sample) for sample in samples)))

    for sample in asyncio.run(converse()):
        sample.validate()
        # The random model may end a turn early, never late.
        num_turns = 4 if name == "custom_generate" else 3
        assert num_turns <= sample.effective_response_length <= 5 * num_turns
        pairs = zip(sample.token_versions, sample.loss_mask, strict=True)
        expected = [n if mask else -1 for n, mask in pairs]
        assert sample.token_versions == expected
        with torch.no_grad():
            logits = reference(torch.tensor([sample.tokens])).logits[0].log_softmax(-1)
        table = logits[sample.prompt_length - 1 : -1]
        picked = table.gather(1, torch.tensor(sample.tokens[sample.prompt_length :])[:, None])[:, 0]
        mask = torch.tensor(sample.loss_mask, dtype=torch.bool)
        found = torch.tensor(sample.rollout_log_probs)
        assert float((picked - found)[mask].abs().max()) < 1e-4
        assert sample.metadata["prefix_cache"]["cached_tokens"] > 0


def test_a_dead_engine_is_noticed_at_once(engines: Engines, reference: Any) -> None:
    """Last of this file: it kills the engine that all the others use."""
    target = EngineTarget(engines.urls[0])
    server = psutil.Process(engines._parts[0].engine.process.pid).children()[0]
    scheduler = next(p for p in server.children(recursive=True) if "sched" in p.name())
    receiver = CollectiveReceiver([target], backend="gloo", timeout_s=30)
    receiver.begin(20)
    os.kill(scheduler.pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(WeightSyncError):  # noqa: PT012 - a bucket is over when the next one begins
        receiver.send(weights(reference))
        receiver.commit()
    assert time.monotonic() - began < 40
    with pytest.raises(EngineError, match="engine_0"):
        generate(engines)
    engines.stop()
    with pytest.raises(EngineError):
        EngineClient(target.url).generate({"input_ids": [1]}, timeout_s=2)
