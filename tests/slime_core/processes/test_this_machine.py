from pathlib import Path

from slime_core.processes.this_machine import available_memory, granted_devices, visible_gpus

GIB = 1024**3


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_kernel_says_what_is_left(tmp_path):
    write(tmp_path, {"proc/meminfo": "MemTotal: 99 kB\nMemAvailable:  2097152 kB\n"})
    assert available_memory(tmp_path) == 2 * GIB


def test_a_control_group_may_allow_less_and_counts_pages_of_files_as_free(tmp_path):
    write(
        tmp_path,
        {
            "proc/meminfo": "MemAvailable: 99999999 kB\n",
            "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {GIB}\n",
        },
    )
    assert available_memory(tmp_path) == 2 * GIB
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 99999999 * 1024


def test_where_nothing_is_known_nothing_is_said(tmp_path):
    assert available_memory(tmp_path) is None


def test_only_devices_that_are_there_and_shown_count(tmp_path):
    write(tmp_path, {"nvidia0": "", "nvidia1": "", "nvidiactl": "", "nvidia-uvm": ""})
    assert visible_gpus({}, tmp_path) == 2
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == 1
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0


def test_granted_gpus_are_used_unless_the_command_leaves_one_out():
    chosen = {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert granted_devices(["2", "3"], {}) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert granted_devices(["5"], chosen) == {"CUDA_VISIBLE_DEVICES": "5"}
    assert granted_devices(["0", "5"], chosen) == chosen
    assert granted_devices([], {}) == {}
