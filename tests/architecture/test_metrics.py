"""The page of metrics names every number that the sources do, and none that they do not."""

import re
from pathlib import Path

from slime_testing.documented import documented, undocumented

ROOT = Path(__file__).parents[2]
SOURCES = [path for room in ("packages", "apps") for path in (ROOT / room).glob("*/src/**/*.py")]
REPORTS = re.compile(r'(?:report|metrics)\["([a-z_0-9/]+)"\] = |^ +"([a-z_0-9/]+)": ', re.MULTILINE)
NAMED = re.compile(r'"((?:perf|rollout|critic)/[a-z_0-9/@]*[a-z_0-9])"')
AXES = {"rollout/step"}


def test_every_metric_that_a_source_names_is_documented() -> None:
    found = {name for path in SOURCES for name in NAMED.findall(path.read_text())}
    assert len(found) > 20
    assert undocumented(found - AXES) == set()


def test_every_metric_of_a_loss_is_documented() -> None:
    losses = ROOT / "packages" / "slime-core" / "src" / "slime_core" / "losses"
    modules = ("policy", "mismatch", "corrections", "value", "preference")
    text = "\n".join((losses / f"{module}.py").read_text() for module in modules)
    found = {f"train/{''.join(names)}" for names in REPORTS.findall(text)}
    assert len(found) > 25
    assert undocumented(found) == set()


def test_every_documented_metric_is_named_by_a_source() -> None:
    text = "\n".join(path.read_text() for path in SOURCES)
    assert len(documented()) > 80
    assert {
        name for name in documented() if not any(part in text for part in _parts(name))
    } == set()


def _parts(name: str) -> set[str]:
    """What a source may spell of a name: times and shares are put together there."""
    ending = re.sub(r"[A-Z].*", "", name).split("/")[-1]
    return {ending, ending.removesuffix("_time"), ending.removesuffix("_share").split("_")[-1]}
