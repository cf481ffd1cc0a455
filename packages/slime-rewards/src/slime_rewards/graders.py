"""Graders by name: plain functions of a response, its label and its metadata.

They run in ``workers``. One that is not here is a path, ``file.py:name`` or
``package.module.name``, of a function ``(response, label, metadata)``.
"""

import difflib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, cast

from slime_core.errors import PluginError
from slime_core.plugins.functions import load_hook
from slime_core.plugins.plugin import ENTRY_POINT_GROUP
from slime_core.scores import is_answer

from slime_rewards import code, dapo, deepscaler, exact_match, f1, gpqa, ifbench, math
from slime_rewards.boxed import last_boxed
from slime_rewards.config import BOXED
from slime_rewards.verdict import Grade, label_text


def _labelled(grade: Any) -> Grade:
    def labelled(response: str, label: object, metadata: dict[str, Any]) -> Any:
        del metadata
        if not is_answer(label):
            raise ValueError(
                f"the sample has {_lacking(label)} to compare with: name the column with "
                "--label-key"
            )
        return grade(response, label_text(label))

    return labelled


def _texted(grade: Any) -> Grade:
    """A user's function, which is given text, or None where there is no label."""

    def texted(response: str, label: object, metadata: dict[str, Any]) -> Any:
        given = is_answer(label) or isinstance(label, Mapping | str)
        return grade(response, label_text(label) if given else None, metadata)

    return texted


def _lacking(label: object) -> str:
    if isinstance(label, Mapping):
        keys = ", ".join(map(str, cast("Mapping[Any, Any]", label)))
        return f"a dictionary (of {keys}) as its label, and no text or number"
    return "an empty label" if isinstance(label, str) else "no label"


_NAMED: dict[str, Any] = {
    "math": _labelled(math.grade),
    "deepscaler": _labelled(deepscaler.grade),
    "dapo": _labelled(dapo.grade),
    "f1": _labelled(f1.grade),
    "exact_match": _labelled(exact_match.grade),
    "gpqa": gpqa.grade,
    "ifbench": ifbench.grade,
    "code": code.grade,
}
NAMES = tuple(_NAMED)


_EXAMPLES = (
    (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}"),
    (r"\boxed{\frac{3}{4}}", r"0.75 \text{ cm}"),
    (r"\boxed{\{1, 2\}}", r"\{2, 1\}"),
    (r"\boxed{[0, 1) \cup (2, \infty)}", r"x \in (2, \infty) \cup [0, 1)"),
    (r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}", r"\begin{pmatrix}1&0\end{pmatrix}"),
    (r"\boxed{x = 1, y = \sin\pi}", r"y = 2x^{2} - \log_2 3"),
    ("the answer is 12.", "13"),
)


def preload() -> None:
    """Import and learn what takes long, once for all workers."""
    for response, label in _EXAMPLES:
        math.verify(response, label)


def is_trusted(name: str) -> bool:
    """Whether a grader starts processes of its own, and sees to their confinement itself."""
    return name.removeprefix(BOXED) == "code"


def require(name: str) -> None:
    """Look at a name before anything is started for it.

    Raises:
        PluginError: it is neither a built-in grader's, nor a path, nor an entry point.
    """
    if name.removeprefix(BOXED) in _NAMED or "." in name:
        return
    if name in entry_points(group=ENTRY_POINT_GROUP).names:
        return
    near = difflib.get_close_matches(name, NAMES, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    raise PluginError(
        f"there is no grader {name!r}{meant}: there are {', '.join(NAMES)}, each also as "
        f"{BOXED}NAME, and functions by their paths"
    )


def find(name: str) -> Grade:
    """The grader called ``name``, or at that path.

    Raises:
        PluginError: there is no such function.
    """
    unboxed = name.removeprefix(BOXED)
    if unboxed not in _NAMED:
        return _texted(load_hook("custom_rm_path", name))
    grade: Grade = code.grader() if unboxed == "code" else _NAMED[unboxed]
    if unboxed == name:
        return grade
    return lambda response, label, metadata: grade(last_boxed(response) or "", label, metadata)
