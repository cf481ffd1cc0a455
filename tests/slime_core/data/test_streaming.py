import json
import logging
import os
import signal
import time
from collections import Counter
from contextlib import closing

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from slime_core.config.data import DataConfig
from slime_core.data.ahead import ReadAhead
from slime_core.data.opening import open_stream
from slime_core.data.prompt_room import PromptRoom
from slime_core.data.prompts import prompt_rows
from slime_core.data.streaming import StreamedPrompts
from slime_core.errors import DataError
from slime_core.processes import events
from slime_testing.chars import CharTokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """47 rows in four formats, of different sizes."""
    root = tmp_path_factory.mktemp("stream")
    rows = [{"prompt": f"p{i:02}", "label": str(i)} for i in range(47)]
    (root / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    parquet.write_table(pa.Table.from_pylist(rows[20:30]), root / "b.parquet", row_group_size=4)
    (root / "c.json").write_text(json.dumps(rows[30:37]))
    lines = [f"{row['prompt']},{row['label']}" for row in rows[37:]]
    (root / "d.csv").write_text("\n".join(["prompt,label", *lines]) + "\n")
    return tuple(str(root / name) for name in ("a.jsonl", "b.parquet", "c.json", "d.csv"))


def make(sources, *, window=8, shuffle=True, workers=0, limit=None, n=1, **data):
    config = DataConfig(
        prompt_data=tuple(sources),
        streaming_data=True,
        streaming_window=window,
        rollout_shuffle=shuffle,
        num_data_workers=workers,
        **data,
    )
    return open_stream(prompt_rows(config, CharTokenizer(), max_prompt_len=limit), config, n)


def names(stream, number):
    return [group.samples[0].prompt for group in stream.take(number)]


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(files):
    stream = make(files)
    assert len(stream) == 47
    epochs = [names(stream, 47) for _ in range(3)]
    assert all(sorted(epoch) == [f"p{i:02}" for i in range(47)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert stream.epoch == 2
    assert names(make(files), 47) == epochs[0]
    assert names(make(files, rollout_seed=1), 47) != epochs[0]


def test_without_shuffling_rows_come_in_the_order_of_the_files(files):
    assert names(make(files, shuffle=False), 60) == [f"p{i % 47:02}" for i in range(60)]


def test_rows_are_shuffled_inside_the_window_and_files_are_mixed(files):
    first = names(make(files, window=16), 8)
    assert len({name for name in first if name < "p20"}) < 8
    one = names(make(files[:1], window=10), 20)
    moved = [abs(at - int(name[1:])) for at, name in enumerate(one)]
    assert 0 < max(moved) < 10


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_window_larger_than_the_file_is_a_full_shuffle_or_none(files, shuffle):
    taken = names(make(files[:1], window=1000, shuffle=shuffle), 20)
    assert sorted(taken) == [f"p{i:02}" for i in range(20)]
    assert (taken != sorted(taken)) == shuffle


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    before=st.integers(0, 130),
    window=st.sampled_from([1, 3, 8, 100]),
    shuffle=st.booleans(),
    weights=st.tuples(*[st.sampled_from(["", "*2", "*0.4", "*1.5"])] * 4),
)
def test_a_restored_stream_goes_on_exactly_from_any_row(files, before, window, shuffle, weights):
    sources = [file + weight for file, weight in zip(files, weights, strict=True)]
    stream = make(sources, window=window, shuffle=shuffle)
    stream.take(before)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = make(sources, window=window, shuffle=shuffle)
    resumed.load_state_dict(state)
    assert resumed.take(60) == stream.take(60)
    assert resumed.epoch == stream.epoch


def test_weights_say_how_often_an_epoch_sees_a_file(files):
    sources = (f"{files[0]}@[:10]*2", f"{files[1]}*0.5")
    stream = make(sources)
    assert len(stream) == 25
    seen = Counter(names(stream, 50))
    assert {seen[f"p{i:02}"] for i in range(10)} == {4}
    assert {seen[f"p{i:02}"] for i in range(20, 30)} == {1}
    group = stream.take(1)[0]
    assert group.samples[0].metadata["source"] in sources


def test_any_number_of_workers_gives_the_same_and_resumes_the_same(files):
    alone = make(files, limit=3)
    expected = alone.take(120)
    for workers in (1, 3):
        stream = make(files, limit=3, workers=workers)
        try:
            assert stream.take(70) == expected[:70]
            state = stream.state_dict()
            assert stream.take(50) == expected[70:]
            stream.load_state_dict(state)
            assert stream.take(50) == expected[70:]
        finally:
            stream.close()
    resumed = make(files, limit=3)
    resumed.load_state_dict(state)
    assert resumed.take(50) == expected[70:]


def test_loading_everything_with_workers_is_loading_everything(files):
    config = DataConfig(prompt_data=files, num_data_workers=2)
    rows = prompt_rows(config, CharTokenizer())
    stream = open_stream(rows, config, 1)
    assert names(stream, 47) == [f"p{i:02}" for i in range(47)]


def test_a_dead_worker_is_an_error_that_names_it_and_its_rows(files, tmp_path, monkeypatch):
    module = tmp_path / "crashing_tokenizer.py"
    module.write_text(
        "import os, signal\nfrom slime_testing.chars import CharTokenizer\n"
        "class Crashing(CharTokenizer):\n"
        "    def encode(self, text, *, add_special_tokens=True):\n"
        "        if text == 'p05':\n            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().encode(text, add_special_tokens=add_special_tokens)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import crashing_tokenizer

    config = DataConfig(prompt_data=files, num_data_workers=2, streaming_data=True)
    stream = open_stream(prompt_rows(config, crashing_tokenizer.Crashing()), config, 1)
    began = time.monotonic()
    message = r"data worker 0 \(process \d+\) was killed by signal 9 while it read .*a.jsonl:1 and"
    with pytest.raises(DataError, match=message):
        stream.take(10)
    assert time.monotonic() - began < 30
    stream.close()


def test_a_streamed_prompt_that_engines_would_refuse_is_told_with_what_helps(files):
    config = DataConfig(prompt_data=files, streaming_data=True)
    rows = prompt_rows(config, CharTokenizer(), room=PromptRoom(2, "that the engines take"))
    stream = open_stream(rows, config, 1)
    told = "a.jsonl:1: the prompt has 3 tokens, more than the 2 .* --rollout-max-prompt-len N"
    with pytest.raises(DataError, match=told):
        stream.take(1)
    stream.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_is_replaced_and_no_row_is_lost_or_repeated(
    files, number, monkeypatch, tmp_path
):
    monkeypatch.setattr(events, "_own", [])
    events.keep_in(tmp_path / "events.jsonl")
    config = DataConfig(prompt_data=files, num_data_workers=1, streaming_data=True)
    rows = prompt_rows(config, CharTokenizer())
    with closing(StreamedPrompts(rows, config, sources=files[:1])) as cursor:
        wanted = [cursor.next() for _ in range(200)]
    with closing(StreamedPrompts(rows, config, sources=files[:1])) as cursor:
        found = [cursor.next()]
        assert isinstance(cursor._ahead, ReadAhead)
        worker = cursor._ahead._workers[0]
        os.kill(worker.pid, number)
        while not (worker.ended or worker.is_stopped):
            time.sleep(0.01)
        found += [cursor.next() for _ in range(40)]  # to the next rows that are asked for
        told = events.read_events(tmp_path / "events.jsonl")
        found += [cursor.next() for _ in range(159)]
    assert found == wanted
    names = [event["event"] for event in told if event["kind"] == "data_worker"]
    assert names[-4:] == ["process", "lost", "process", "recovered"]
    assert told[-3]["how"] == ("exit" if number == signal.SIGKILL else "hang")


def test_what_cannot_be_sent_to_workers_is_said(files):
    config = DataConfig(prompt_data=files, num_data_workers=1, streaming_data=True)
    tokenizer = CharTokenizer()
    tokenizer.hook = lambda text: text
    stream = open_stream(prompt_rows(config, tokenizer), config, 1)
    with pytest.raises(DataError, match=r"cannot be sent .*--num-data-workers 0"):
        stream.take(1)
    stream.close()


BAD = ('{"prompt": "a"}', "{", '{"prompt": "b"}', '{"q": 1}', '{"prompt": "long"}')


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(BAD) + "\n")
    return str(path)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_rows_are_left_out_counted_and_named_while_streaming(bad, caplog, workers):
    stream = make([bad], data_error_policy="skip", limit=3, workers=workers, shuffle=False)
    with caplog.at_level(logging.WARNING):
        assert names(stream, 5) == ["a", "b", "a", "b", "a"]
    metrics = stream.metrics()
    assert metrics["rollout/data_left_out/malformed"] == 2
    assert metrics["rollout/data_left_out/missing_key"] == 2
    assert metrics["rollout/data_left_out/too_long"] == 2
    assert "bad.jsonl:2 is not JSON" in caplog.text
    assert "bad.jsonl:4: no key 'prompt'" in caplog.text
    stream.close()


def test_bad_rows_stop_before_the_first_prompt_however_far_they_are(bad):
    with pytest.raises(DataError, match=r"2 of 5 rows of the prompt files cannot be used"):
        make([bad])


def test_a_file_of_only_bad_rows_ends(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("{\n" * 30)
    stream = make([str(path)], data_error_policy="skip")
    with pytest.raises(DataError, match="all rows were left out"):
        stream.take(1)
    path.write_text("")
    with pytest.raises(DataError, match="there are no rows"):
        make([str(path)], data_error_policy="skip").take(1)


def test_other_files_and_other_ways_of_reading_begin_the_epoch_anew(files, caplog):
    stream = make(files[:2])
    stream.take(35)
    other = make(files[2:])
    other.load_state_dict(stream.state_dict())
    assert "are read from their beginning" in caplog.text
    config = DataConfig(prompt_data=files)
    loaded = open_stream(prompt_rows(config, CharTokenizer()), config, 1)
    loaded.load_state_dict(stream.state_dict())
    assert loaded.epoch == 1
    assert loaded.take(1)[0].group_index == 35
    stream.load_state_dict(loaded.state_dict())
    assert stream.take(1)[0].group_index == 36


def test_a_row_that_turns_out_not_to_render_ends_the_run_with_what_to_do(tmp_path):
    path = tmp_path / "p.jsonl"
    good, bad = {"role": "user", "content": "a"}, {"role": "user", "text": "b"}
    rows = [{"input": [good]}] * 3 + [{"input": [good, bad]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = CharTokenizer("{% for m in messages %}{{ m.content + '#' }}{% endfor %}")
    config = DataConfig(prompt_data=(str(path),), apply_chat_template=True, streaming_data=True)
    stream = open_stream(prompt_rows(config, tokenizer), config, 1)
    assert len(stream.take(3)) == 3
    with pytest.raises(DataError, match=r"p.jsonl:4: the chat template .*--data-error-policy skip"):
        stream.take(1)
