import json
from types import SimpleNamespace

import numpy as np
import pytest
from slime_core import RolloutDataSource, RolloutDataSourceWithBuffer, Sample
from slime_core.config.data import DataConfig
from slime_core.data.buffer import oldest_first
from slime_core.data.prompts import prompt_rows
from slime_core.data.stream import PromptStream
from slime_core.data.user_source import UserSource, load_source, open_source, user_source
from slime_core.errors import DataError, PluginError
from slime_core.types import Status
from slime_testing.chars import CharTokenizer

UPSTREAM = "slime.rollout.data_source."


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(i), "label": "1"}) + "\n" for i in range(9)))
    return str(path)


@pytest.fixture
def plugin(tmp_path):
    def write(text, name="mine.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def open_user(spec, prompts, **flat):
    data = DataConfig(prompt_data=(prompts,), data_source_path=spec, rollout_shuffle=False)
    rows = prompt_rows(data, CharTokenizer())
    return open_source(rows, data, 2, select=oldest_first, flat={"buffer_filter_path": None} | flat)


def names(groups):
    return [group.samples[0].prompt for group in groups]


def test_without_the_flag_it_is_the_stream_itself(prompts):
    assert isinstance(open_user(None, prompts), PromptStream)


def test_upstreams_names_mean_our_classes(prompts):
    plain = open_user(UPSTREAM + "RolloutDataSource", prompts)
    buffered = open_user(UPSTREAM + "RolloutDataSourceWithBuffer", prompts)
    assert len(plain) == len(buffered) == 9
    assert type(plain.source) is RolloutDataSource
    assert type(buffered.source) is RolloutDataSourceWithBuffer
    for source, again in ((plain, "3"), (buffered, "1")):
        groups = source.take(3)
        assert names(groups) == ["0", "1", "2"]
        assert [s.index for g in groups for s in g.samples] == list(range(6))
        source.ledger.train(groups[:1])
        source.give_back(groups[1:])
        source.settle()
        assert names(source.take(1)) == [again]
    assert (plain.ledger.aborted, buffered.ledger.aborted) == (2, 0)


SEEDS = '''
from slime_core import RolloutDataSource

class Mine(RolloutDataSource):
    def __init__(self):
        self.buffer = []

    def get_samples(self, num_samples):
        taken = self.buffer_filter(None, self.buffer, num_samples)
        self.buffer = [g for g in self.buffer if not any(g is t for t in taken)]
        return taken + self.dataset.sample(num_samples - len(taken))

    def add_samples(self, samples):
        """Store generated samples for reuse."""
        self.buffer.extend(samples)

    def buffer_filter(self, args, buffer, num_samples):
        return sorted(buffer, key=lambda g: -g[0].group_index)[:num_samples]
'''


def test_a_class_as_in_the_seeds_runs_and_its_buffer_survives(prompts, plugin):
    spec = plugin(SEEDS)
    source = open_user(spec, prompts)
    groups = source.take(3)
    groups[2].samples[0].response, groups[2].samples[0].status = "half", Status.ABORTED
    source.give_back(groups[1:])
    source.ledger.train(groups[:1])
    source.settle()
    resumed = open_user(spec, prompts)
    resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
    resumed.settle()
    for each in (source, resumed):
        first, second = each.take(2)
        assert (first.group_index, second.group_index) == (2, 1)
        assert first.samples[0].response == "half"
        assert first.samples[0].status is Status.ABORTED
    assert resumed.take(2) == source.take(2)


@pytest.mark.parametrize("parameters", ["args, buffer", "args, rollout_id, buffer"])
def test_the_filter_of_the_buffer_may_be_overridden_in_both_forms(prompts, plugin, parameters):
    spec = plugin(
        "from slime_core import RolloutDataSourceWithBuffer\n"
        "class Newest(RolloutDataSourceWithBuffer):\n"
        f"    def buffer_filter(self, {parameters}, num_samples):\n"
        "        assert args.answer == 42\n"
        "        return buffer[::-1][:num_samples]\n"
    )
    source = open_user(f"{spec}:Newest", prompts, answer=42)
    source.give_back(source.take(3))
    assert names(source.take(5)) == ["2", "1", "0", "3", "4"]


def test_the_buffer_takes_the_flag_for_its_filter(prompts):
    source = open_user(
        UPSTREAM + "RolloutDataSourceWithBuffer",
        prompts,
        buffer_filter_path="slime_core.data.selection.priority",
    )
    groups = source.take(3)
    for sample in groups[2].samples:
        sample.metadata["priority"] = 1
    source.give_back(groups)
    assert names(source.take(2)) == ["2", "0"]


def test_a_filter_of_the_buffer_that_returns_too_much_is_named(prompts, plugin):
    own = plugin(
        "from slime_core import RolloutDataSourceWithBuffer\n"
        "class Greedy(RolloutDataSourceWithBuffer):\n"
        "    def buffer_filter(self, args, buffer, num_samples): return buffer\n"
    )
    given = plugin("def everything(buffer, num_samples): return buffer\n", "filter.py")
    for spec, path, name in (
        (own, None, "Greedy.buffer_filter"),
        (UPSTREAM + "RolloutDataSourceWithBuffer", given, given),
    ):
        source = open_user(spec, prompts, buffer_filter_path=path)
        source.give_back(source.take(3))
        with pytest.raises(PluginError, match=f"^buffer filter '{name}' returned 3 groups for 1;"):
            source.take(1)


GENERATED = '''
from slime_core import Sample

class Endless:
    """Makes prompts itself, leaves numbers out, keeps its own file."""
    def __init__(self, args):
        self.args, self.number = args, 0
        assert args.prompt_stream is None
    def get_samples(self, num_samples):
        self.number += num_samples
        return [[Sample(prompt=f"{self.rollout_id}/{i}") for _ in range(2)]
                for i in range(self.number - num_samples, self.number)]
    def add_samples(self, samples):
        pass
    def save(self, rollout_id):
        with open(f"{self.args.folder}/{rollout_id}.txt", "w") as file:
            file.write(str(self.number))
    def load(self, rollout_id=None):
        with open(f"{self.args.folder}/{rollout_id}.txt") as file:
            self.number = int(file.read())
'''


def test_a_class_of_its_own_needs_no_files_and_keeps_its_own_state(plugin, tmp_path):
    data = DataConfig(
        data_source_path=plugin(GENERATED), prompt_data=("nowhere",), rollout_global_dataset=False
    )

    def make():
        rows, flat = prompt_rows(data), {"folder": str(tmp_path)}
        return open_source(rows, data, 2, select=oldest_first, flat=flat)

    source = make()
    source.begin(7)
    groups = source.take(2) + source.take(1)
    assert names(groups) == ["7/0", "7/1", "7/2"]
    samples = [sample for group in groups for sample in group.samples]
    assert len({s.index for s in samples}) == len({s.rollout_id for s in samples}) == 6
    assert len({s.group_index for s in samples}) == 3
    source.ledger.train(groups)
    source.settle()
    resumed = make()
    resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
    resumed.begin(8)
    (group,) = resumed.take(1)
    assert group.samples[0].prompt == "8/3"
    assert group.group_index not in {s.group_index for s in samples}
    assert len(resumed) == 0
    resumed.close()


def test_samples_that_a_class_numbers_anew_in_each_group_are_executions_of_their_own():
    class Mine:
        def get_samples(self, num_samples):
            return [[Sample(index=i) for i in range(2)] for _ in range(num_samples)]

        def add_samples(self, samples):
            pass

    groups = UserSource(Mine(), "Mine").take(2)
    samples = [sample for group in groups for sample in group.samples]
    assert [sample.index for sample in samples] == [0, 1, 0, 1]
    assert len({sample.rollout_id for sample in samples}) == 4


def test_a_class_is_not_asked_to_save_before_it_has_given_out_anything(plugin, tmp_path):
    source = user_source(plugin(GENERATED), {"folder": str(tmp_path), "prompt_stream": None}, None)
    state = source.state_dict()
    source.load_state_dict(state)
    assert list(tmp_path.glob("*.txt")) == []


KEEPS = """
from slime_core import Sample

class Mine:
    def __init__(self):
        self.buffer, self.number = [], 0

    def get_samples(self, num_samples):
        while len(self.buffer) < num_samples:
            self.buffer.append([Sample(prompt=str(self.number))])
            self.number += 1
        taken, self.buffer = self.buffer[:num_samples], self.buffer[num_samples:]
        return taken

    def add_samples(self, samples):
        self.buffer += samples
"""


def test_the_buffer_of_a_class_without_a_state_is_kept_for_it(plugin):
    source = user_source(plugin(KEEPS), {}, None)
    groups = source.take(3)
    source.give_back(groups[1:])
    source.ledger.train(groups[:1])
    source.settle()
    resumed = user_source(plugin(KEEPS), {}, None)
    resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
    resumed.settle()
    assert names(resumed.take(2)) == ["1", "2"]
    assert resumed.metrics()["rollout/prompts_trained"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class C:\n    def get_samples(self, n): pass\n", "has no add_samples"),
        (
            "class C:\n    def __init__(self, a, b): pass\n"
            "    def get_samples(self, n): pass\n    def add_samples(self, s): pass\n",
            r"must be made as C\(args\)",
        ),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_at_the_start(plugin, text, message):
    with pytest.raises(PluginError, match=message):
        user_source(plugin(text), {}, None)
    with pytest.raises(PluginError, match=message):
        load_source(plugin(text))


@pytest.mark.parametrize(
    ("raising", "message"),
    [
        ("raise ConnectionError('no database at :5432')", "ConnectionError: no database at :5432"),
        ("args.databse", "AttributeError: no flag sets args.databse; did you mean 'database'?"),
        ("import sys; sys.exit('no database')", "SystemExit: no database"),
    ],
)
def test_what_a_class_raises_when_it_is_made_is_told_with_its_line(plugin, raising, message):
    spec = plugin(
        "class Rows:\n"
        "    def __init__(self, args):\n"
        "        self.connect(args)\n"
        "    def connect(self, args):\n"
        f"        {raising}\n"
        "    def get_samples(self, num_samples): ...\n"
        "    def add_samples(self, samples): ...\n"
    )
    with pytest.raises(PluginError) as caught:
        user_source(f"{spec}:Rows", {"database": "x"}, None)
    first, *frames = str(caught.value).splitlines()
    assert first == f"--data-source-path {spec}:Rows: Rows(args) raised {message}"
    assert frames[:4] == [
        f'  File "{spec}", line 3, in __init__',
        "    self.connect(args)",
        f'  File "{spec}", line 5, in connect',
        f"    {raising}",
    ]


def test_a_class_is_not_made_to_find_out_whether_it_can_be(plugin):
    body = "class C:\n    def __init__(self): raise AssertionError\n"
    body += "    def get_samples(self, n): ...\n    def add_samples(self, s): ...\n"
    assert load_source(plugin(body)).__name__ == "C"
    with pytest.raises(PluginError, match=r"mine\.py: C\(\) raised AssertionError\n"):
        user_source(plugin(body), {}, None)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([], "returned no samples"),
        (None, "mine.py: get_samples must return a list of groups, .* it returned None"),
        ([[]], "each a list of slime_core.Sample that is not empty"),
        ([Sample()], "each a list of slime_core.Sample"),
        ([[Sample(group_index=1)], [Sample(group_index=1)]], "returned group_index 1 twice"),
    ],
)
def test_what_get_samples_must_return_is_said(returned, message):
    source = SimpleNamespace(get_samples=lambda n: returned, add_samples=lambda s: None)
    with pytest.raises(DataError, match=message):
        UserSource(source, "mine.py").take(2)


def test_a_data_source_saves_and_loads_by_itself(prompts, tmp_path):
    save = str(tmp_path / "made" / "for it")
    args = SimpleNamespace(prompt_data=(prompts,), save=save, load=save)
    source = RolloutDataSourceWithBuffer(args)
    taken = source.get_samples(4)
    source.add_samples(taken[:1])
    source.metadata["note"] = np.int64(1)
    source.save(3)
    other = RolloutDataSourceWithBuffer(args)
    other.load()
    assert other.get_samples(1)[0][0].prompt == "0"
    other.load(3)
    assert [g[0].prompt for g in other.get_samples(2)] == ["0", "4"]
    assert other.metadata == {"note": 1}
    with pytest.raises(DataError, match="needs prompt_data"):
        RolloutDataSource(SimpleNamespace()).get_samples(1)


def test_a_data_set_that_was_assigned_is_not_asked_where_it_is():
    source = RolloutDataSource()
    source.dataset = ["a", "b"]
    assert (len(source), source.state_dict()) == (2, {"metadata": {}})


def test_user_names_are_imported_when_asked_for():
    import slime_core

    assert slime_core.Sample is Sample
    with pytest.raises(AttributeError, match="nothing"):
        _ = slime_core.nothing


def test_checkpoints_of_another_kind_of_source_are_refused(prompts):
    own, plain = open_user(UPSTREAM + "RolloutDataSource", prompts), open_user(None, prompts)
    with pytest.raises(DataError, match=r"without --data-source-path .*--finetune"):
        own.load_state_dict(plain.state_dict())
    with pytest.raises(DataError, match="give the same --data-source-path"):
        plain.load_state_dict(own.state_dict())


@pytest.mark.parametrize(("one", "other"), [("state_dict", "load_state_dict"), ("save", "load")])
def test_a_class_that_could_not_go_on_from_a_checkpoint_is_refused_at_once(tmp_path, one, other):
    lines = ["class Half:"]
    for method in ("get_samples(self, n)", "add_samples(self, s)", f"{one}(self, *a)"):
        lines += [f"    def {method}:", "        ..."]
    (tmp_path / "half.py").write_text("\n".join(lines) + "\n")
    with pytest.raises(PluginError, match=f"has {one} and no {other}"):
        load_source(f"{tmp_path}/half.py:Half")
    lines += [f"    def {other}(self, *a):", "        ..."]
    (tmp_path / "whole.py").write_text("\n".join(lines) + "\n")
    assert load_source(f"{tmp_path}/whole.py:Half").__name__ == "Half"
