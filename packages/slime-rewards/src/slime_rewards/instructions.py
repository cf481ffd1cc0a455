"""Checks of single instructions: (answer, keywords) -> followed?"""

import itertools
import json
import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

Check = Callable[[str, dict[str, Any]], bool]
Keywords = dict[str, Any]

_FENCE = re.compile(r"^```(?:json)?\s*\n?|\n?```$", re.IGNORECASE)
_EMPHASIZED = r"[^\S\n]*[^\s*][^\n*]*"
_HIGHLIGHT = re.compile(rf"\*\*{_EMPHASIZED}\*\*|\*{_EMPHASIZED}\*")
_SENTENCE_END = re.compile(r"[.!?]+")


def words(text: str) -> list[str]:
    """Runs of letters, digits, apostrophes and hyphens within."""
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text)


def sentences(text: str) -> list[str]:
    """What stands before full stops, exclamation and question marks, or the end of the text."""
    parts = _SENTENCE_END.split(re.sub(r"(?<=\d)\.(?=\d)", "", text))
    return [part.strip() for part in parts if part.strip()]


def compare(number: int, wanted: int, relation: str | None) -> bool:
    """``number`` against ``wanted`` by a relation's name in IFEval."""
    match relation:
        case None | "at least":
            return number >= wanted
        case "less than":
            return number < wanted
        case "at most":
            return number <= wanted
        case "exactly" | "equal to":
            return number == wanted
        case _:
            raise ValueError(f"relation {relation!r}: at least, less than, at most or exactly")


def _count(text: str, phrase: str) -> int:
    """How often a word or phrase occurs as a whole, in any case."""
    pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)"
    return len(re.findall(pattern, text, re.IGNORECASE))


def _existence(text: str, k: Keywords) -> bool:
    return all(_count(text, word) for word in k["keywords"])


def _forbidden(text: str, k: Keywords) -> bool:
    return not any(_count(text, word) for word in k["forbidden_words"])


def _frequency(text: str, k: Keywords) -> bool:
    return compare(_count(text, k["keyword"]), k["frequency"], k.get("relation"))


def _letter_frequency(text: str, k: Keywords) -> bool:
    return compare(
        text.lower().count(k["letter"].lower()), k["let_frequency"], k.get("let_relation")
    )


def _num_words(text: str, k: Keywords) -> bool:
    return compare(len(words(text)), k["num_words"], k.get("relation"))


def _word_range(text: str, k: Keywords) -> bool:
    return k["min_words"] <= len(words(text)) <= k["max_words"]


def _num_sentences(text: str, k: Keywords) -> bool:
    return compare(len(sentences(text)), k["num_sentences"], k.get("relation"))


def _paragraphs(text: str) -> list[str]:
    """Parts between lines of three stars; empty ones at the ends do not count."""
    return [part.strip() for part in re.split(r"\s?\*\*\*\s?", text.strip("* \n\t"))]


def _num_paragraphs(text: str, k: Keywords) -> bool:
    parts = _paragraphs(text)
    return all(parts) and len(parts) == k["num_paragraphs"]


def _nth_paragraph(text: str, k: Keywords) -> bool:
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    nth = k["nth_paragraph"]
    if len(parts) != k["num_paragraphs"] or not 1 <= nth <= len(parts):
        return False
    first = words(parts[nth - 1])[:1]
    return bool(first) and first[0].lower() == k["first_word"].lower()


def _placeholders(text: str, k: Keywords) -> bool:
    return len(re.findall(r"\[[^\[\]]+\]", text)) >= k["num_placeholders"]


def _postscript(text: str, k: Keywords) -> bool:
    marker = k.get("postscript_marker", "P.S.")
    letters = [re.escape(letter) for letter in marker if letter.isalpha()]
    pattern = r"\.?\s?".join(letters)
    return re.search(rf"(?im)^[^\S\n]*{pattern}", text) is not None


def _bullets(text: str, k: Keywords) -> bool:
    return len(re.findall(r"(?m)^[^\S\n]*(?:\*(?!\*)|-)\s*\S", text)) == k["num_bullets"]


def _highlights(text: str, k: Keywords) -> bool:
    return len(_HIGHLIGHT.findall(text)) >= k["num_highlights"]


def _sections(text: str, k: Keywords) -> bool:
    return len(re.findall(rf"{re.escape(k['section_spliter'])}\s?\d+", text)) >= k["num_sections"]


def _json(text: str, _: Keywords) -> bool:
    try:
        json.loads(_FENCE.sub("", _FENCE.sub("", text.strip())).strip())
    except (ValueError, RecursionError):  # deeper nested than anything that was asked for
        return False
    return True


def _title(text: str, _: Keywords) -> bool:
    return any(found.strip() for found in re.findall(r"<<([^<>\n]+)>>", text))


def _constrained(text: str, k: Keywords) -> bool:
    options = k.get("options", ("My answer is yes.", "My answer is no.", "My answer is maybe."))
    return any(option in text for option in options)


def _two_responses(text: str, _: Keywords) -> bool:
    parts = text.split("******")
    inner = [part.strip() for part in parts]
    kept = [p for i, p in enumerate(inner) if p or 0 < i < len(inner) - 1]
    return len(kept) == 2 and all(kept) and kept[0] != kept[1]


def _repeat(text: str, k: Keywords) -> bool:
    return text.strip().lower().startswith(k["prompt_to_repeat"].strip().lower())


def _ends_with(text: str, k: Keywords) -> bool:
    return text.strip().strip('"').lower().endswith(k["end_phrase"].strip().lower())


def _quotation(text: str, _: Keywords) -> bool:
    text = text.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def _capital_words(text: str, k: Keywords) -> bool:
    number = sum(word.isupper() for word in words(text))
    return compare(number, k["capital_frequency"], k.get("capital_relation"))


def _copies(text: str, k: Keywords) -> bool:
    return text.strip().lower() == k["prompt_to_repeat"].strip().lower()


def _unique_words(text: str, k: Keywords) -> bool:
    return len({word.lower() for word in words(text)}) >= k["N"]


def _numbers(text: str, k: Keywords) -> bool:
    return len(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])", text)) == k["N"]


def _no_repeats(text: str, k: Keywords) -> bool:
    counts = Counter(word.lower() for word in words(text))
    return max(counts.values(), default=0) <= k["small_n"]


def _alphabet(text: str, _: Keywords) -> bool:
    """Each word begins with the letter after that of the one before, round and round."""
    initials = [word[0].lower() for word in words(text)]
    letters = string.ascii_lowercase
    if any(letter not in letters for letter in initials):
        return False
    pairs = itertools.pairwise(initials)
    return all((letters.index(b) - letters.index(a)) % 26 == 1 for a, b in pairs)


def _first_word(text: str, k: Keywords) -> bool:
    found = words(text)
    return bool(found) and found[0].lower() == k["first_word"].lower()


def _last_word(text: str, k: Keywords) -> bool:
    found = words(text)
    return bool(found) and found[-1].lower() == k["last_word"].lower()


CHECKS: dict[str, Check] = {
    "keywords:existence": _existence,
    "keywords:forbidden_words": _forbidden,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letter_frequency,
    "length_constraints:number_words": _num_words,
    "length_constraints:number_sentences": _num_sentences,
    "length_constraints:number_paragraphs": _num_paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "detectable_format:constrained_response": _constrained,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quotation,
    "change_case:english_capital": lambda text, _: text.isupper(),
    "change_case:english_lowercase": lambda text, _: text.islower(),
    "change_case:capital_word_frequency": _capital_words,
    "punctuation:no_comma": lambda text, _: "," not in text,
    "copy:copy": _copies,
    "count:unique_word_count": _unique_words,
    "count:word_count_range": _word_range,
    "count:numbers": _numbers,
    "words:no_consecutive": lambda text, _: _initials_differ(text),
    "words:alphabet": _alphabet,
    "words:repeats": _no_repeats,
    "first_word:first_word_answer": _first_word,
    "last_word:last_word_answer": _last_word,
    "format:no_whitespace": lambda text, _: not any(map(str.isspace, text)),
}


def _initials_differ(text: str) -> bool:
    initials = [word[0].lower() for word in words(text)]
    return all(a != b for a, b in itertools.pairwise(initials))
