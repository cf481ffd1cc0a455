"""Symbols of Unicode, spelled in LaTeX."""
# ruff: noqa: RUF001 -- symbols that look like others are what this is about

import re

_SPELLED = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/",
    "±": r"\pm ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∞": r"\infty ",
    "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "°": r"^\circ ",
    "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ",
    "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ", "μ": r"\mu ", "σ": r"\sigma ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}", "ℕ": r"\mathbb{N}",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "\u00a0": " ", "\u2009": " ",
    "\u202f": " ", "\u200b": "",
}  # fmt: skip
_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_TABLE = str.maketrans(_SPELLED) | _FULL_WIDTH
_RAISED, _LEVEL = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-"
_POWER = re.compile(f"[{_RAISED}]+")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]))")


def spelled(text: str) -> str:
    """``text`` with powers, roots, relations, Greek and fractions as LaTeX commands."""
    if text.isascii():
        return text
    level = str.maketrans(_RAISED, _LEVEL)
    text = _POWER.sub(lambda found: f"^{{{found[0].translate(level)}}}", text)
    text = _ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2] or found[3] or ''}}}", text)
    return text.translate(_TABLE)
