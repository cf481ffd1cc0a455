import subprocess
import sys

from slime_convert import cli
from slime_convert.families import FAMILIES
from slime_convert.published import PRESETS
from slime_testing.tiny import make_qwen3


def test_the_families_are_listed_without_loading_torch():
    code = (
        "import sys; from slime_convert import cli; cli.main(['list']);"
        "sys.exit('torch was loaded' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    families, _, presets = done.stdout.partition("\n\n")
    assert [line.split()[0] for line in families.splitlines()] == sorted(FAMILIES)
    assert [line.split()[0] for line in presets.splitlines()[1:]] == sorted(PRESETS)


def test_a_whole_checkpoint_is_described(tmp_path, capsys):
    assert cli.main(["inspect", str(make_qwen3(tmp_path, tied=True))]) == 0
    out = capsys.readouterr().out
    # Embedding 100 * 64, final norm 64, and twice: norms 2 * 64 + 2 * 32, attention
    # 64 * (128 + 64 + 64 + 128), MLP 3 * 64 * 128.
    count = 6400 + 64 + 2 * (192 + 64 * 384 + 3 * 64 * 128)
    assert f"parameters                           {count:,}" in out
    assert "24 F32" in out
    assert "num_query_groups                     2" in out


def test_a_checkpoint_that_is_not_in_order_is_an_error_of_one_line(tmp_path, capsys):
    path = make_qwen3(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert cli.main(["inspect", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"slime-convert: {path} holds")
    assert captured.err.count("\n") == 1
