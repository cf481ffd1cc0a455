import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from slime_convert.dist import hf_to_dist
from slime_convert.families import FAMILIES, find, read_config
from slime_convert.saved_model import common, of_other_models
from slime_testing.tiny import make_qwen3
from slime_testing.tiny_families import make_family


def complaints(given: dict[str, tuple[str | None, int | None]], model: Path) -> list[str]:
    config = read_config(str(model))
    family = find(config)
    return list(of_other_models(given, family, family.megatron_args(config)))


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_checkpoint_is_of_the_model_that_it_was_made_of(tmp_path: Path, model_type: str) -> None:
    model = make_family(tmp_path / "hf", model_type)
    directory = hf_to_dist(model, tmp_path / "dist")
    assert common(directory)["slime"]["model_type"] == find(read_config(str(model))).model_type
    assert complaints({"--load": (f"{tmp_path}/dist", None)}, model) == []


def test_what_another_model_has_different_is_told_with_the_flag(tmp_path: Path) -> None:
    hf_to_dist(make_qwen3(tmp_path / "small", layers=2), tmp_path / "dist")
    large = make_qwen3(tmp_path / "large", layers=3)
    given = {"--save": (f"{tmp_path}/not there", None), "--load": (f"{tmp_path}/dist", None)}
    assert complaints(given, large) == [
        f"--load {tmp_path}/dist: release is a checkpoint of another model than --hf-checkpoint "
        "describes: num_layers is 2 there and 3 here. Give the --hf-checkpoint that it was trained "
        "from, or another --load"
    ]


def test_weights_of_hugging_face_are_compared_as_well(tmp_path: Path) -> None:
    small = make_qwen3(tmp_path / "small", layers=2)
    large = make_qwen3(tmp_path / "large", layers=3)
    given = {"--load": (str(small), None), "--ref-load": (str(large), None)}
    assert complaints(given, large) == [
        f"--load {small}: it holds the weights of another model than --hf-checkpoint describes: "
        "num_layers is 2 there and 3 here. Give the --hf-checkpoint that it was trained from, or "
        "another --load"
    ]
    (small / "config.json").write_text('{"model_type": "unheard of"}')
    assert complaints(given, large) == []


def test_what_cannot_be_read_is_left_to_the_load(tmp_path: Path) -> None:
    model = make_qwen3(tmp_path / "model")
    directory = hf_to_dist(make_qwen3(tmp_path / "other", layers=3), tmp_path / "dist")
    assert complaints({"--load": (f"{tmp_path}/dist", 7), "--save": (None, None)}, model) == []
    (directory / ".metadata").write_bytes(b"no pickle")
    assert complaints({"--load": (f"{tmp_path}/dist", None)}, model) == []


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("/tmp/was run"),)


def test_pickles_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[Path] = []
    payload = pickle.dumps(Malicious())
    monkeypatch.setattr(Path, "touch", run.append)
    (tmp_path / ".metadata").write_bytes(payload)
    assert common(tmp_path) == {}
    assert run == []
    pickle.loads(payload)
    assert run == [Path("/tmp/was run")]  # so it would have been


def test_it_needs_no_torch() -> None:
    code = "import sys, slime_convert.saved_model; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
