"""Where things are in this repository, for the tests that read it as text."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

PACKAGES = {
    "slime_core": ROOT / "packages/slime-core",
    "slime_convert": ROOT / "packages/slime-convert",
    "slime_rewards": ROOT / "packages/slime-rewards",
    "slime_sglang": ROOT / "packages/slime-sglang",
    "slime_megatron": ROOT / "packages/slime-megatron",
    "slime_train": ROOT / "apps/train",
}


def modules(package: str) -> list[Path]:
    """The source files of one import package."""
    return sorted((PACKAGES[package] / "src" / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name under which a source file is imported."""
    parts = path.parts[path.parts.index("src") + 1 :]
    return ".".join(parts).removesuffix(".py").removesuffix(".__init__")


def tracked_files() -> list[Path]:
    """Every file git knows or would add; in an unpacked archive, every file there is."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [
        path
        for name in done.stdout.decode().split("\0")
        if name and (path := ROOT / name).is_file()
    ]
