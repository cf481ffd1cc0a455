"""What upstream's modules are called here, for user code that imports them."""

import ast
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, TracebackType

FUNCTIONS: Mapping[str, str] = MappingProxyType(
    {
        "slime.rollout.filter_hub.dynamic_sampling_filters.": "slime_core.data.filters.",
        "slime.rollout.data_source.pop_first": "slime_core.data.selection.oldest_first",
        "slime.rollout.data_source.": "slime_core.data.source.",
    }
)
"""Beginnings of paths on upstream's command lines that mean something of ours."""

MODULES: Mapping[str, str] = MappingProxyType(
    {
        "slime.utils.types": "slime_core.types",
        "slime.rollout.base_types": "slime_core.hooks.rollout_functions",
        "slime.rollout.filter_hub.base_types": "slime_core.data.filters",
        "slime.rollout.filter_hub.dynamic_sampling_filters": "slime_core.data.filters",
        "slime.rollout.data_source": "slime_core.data.source",
    }
)
"""Modules whose names are the same in one of ours."""

INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "slime.rollout.fully_async_rollout": "run slime-train-async --fully-async, with "
        "--async-buffer-size for how far generation goes ahead and --max-staleness for how old a "
        "token may be",
        "slime.rollout.sglang_rollout": "`from slime_sglang import generate_single`: "
        "await generate_single(args, sample) continues a sample by one request",
        "slime.rollout.sglang_streaming_rollout": "leave it out: --partial-rollout keeps what was "
        "generated",
        "slime.rollout.sft_rollout": "give --loss-type sft_loss",
        "slime.rollout.on_policy_distillation": "give --use-opd --opd-type sglang --rm-url ADDRESS",
        "slime.rollout.rm_hub": "name a grader with --rm-type, or import one, for example "
        "`from slime_rewards.math import grade`: grade(response, label)",
        "slime.utils.http_utils": "`import httpx`: await httpx.AsyncClient().post(url, json=body)",
        "slime.utils.async_utils": "`import asyncio`",
        "slime.utils.mask_utils": "`from slime_core.data.loss_mask import mask_conversation`",
        "slime.utils.metric_utils": "`from slime_core.reports import metrics`",
        "slime.utils.ppo_utils": "formulas are in slime_core.losses and slime_core.advantages",
        "slime.agent": "`from slime_sglang import run_agent` (docs/agents.md)",
        "slime_plugins": "models are built from the config.json of --hf-checkpoint",
    }
)
"""Modules, with everything below them, that have no twin, and what does their work."""

_ELSEWHERE = "docs/coming_from_upstream.md says what takes its place"


def is_upstream(module: str) -> bool:
    """Whether ``module`` belongs to upstream's packages."""
    return module.partition(".")[0] in ("slime", "slime_plugins")


def renamed(path: str) -> str:
    """The dotted path that one of upstream's means here, or the same."""
    for old, new in FUNCTIONS.items():
        if path.startswith(old):
            return new + path.removeprefix(old)
    return path


def instead_of(module: str) -> str:
    """What to do in place of importing ``module``."""
    if module in MODULES:
        return f"it is {MODULES[module]} here"
    parents = [module.rsplit(".", n)[0] for n in range(module.count(".") + 1)]
    return next((INSTEAD[name] for name in parents if name in INSTEAD), _ELSEWHERE)


def advice(error: ModuleNotFoundError) -> str | None:
    """What to write for every import of upstream's in the file that failed; None without one."""
    if not is_upstream(error.name or ""):
        return None
    path = _importer(error.__traceback__)
    lines = [] if path is None else list(_replacements(path))
    if path is None or not lines:
        return f"{error.name} is upstream's: {instead_of(error.name or '')}"
    return f"{path.name} imports upstream's package: {'; '.join(lines)}"


def _importer(trace: TracebackType | None) -> Path | None:
    """The file whose import failed: the innermost frame that is not of the import system."""
    found: Path | None = None
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        found = path if path.is_file() and path.parent.name != "importlib" else found
        trace = trace.tb_next
    return found


def _replacements(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level and is_upstream(node.module or ""):
            yield f"line {node.lineno}: {_rewritten(node.module or '', node.names)}"
        elif isinstance(node, ast.Import):
            for name in node.names:
                if is_upstream(name.name):
                    yield f"line {node.lineno}: {name.name}: {instead_of(name.name)}"


def _rewritten(module: str, names: list[ast.alias]) -> str:
    """For ``from module import names``: the line to write, or what does the work of ``module``."""
    ours = MODULES.get(module)
    if ours is None:
        whole = [f"{module}.{name.name}" for name in names]
        return f"{module}: {instead_of(whole[0] if len(whole) == 1 else module)}"
    there = [name for name in names if hasattr(import_module(ours), name.name)]
    line = f"write `from {ours} import {', '.join(ast.unparse(name) for name in there)}`"
    missing = ", ".join(name.name for name in names if name not in there)
    gone = f"{ours} has no {missing}" if missing else ""
    return "; ".join(filter(None, (line if there else "", gone)))
