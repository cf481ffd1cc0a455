"""Search while answering: <search>query</search>, <information>, <answer>."""

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from slime_core.types import Sample
from slime_sglang import generate_single

_QUERY = re.compile(r"<search>(.*?)</search>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NOTHING = "nothing found"


@cache
def retriever(corpus: Path) -> Any:
    """The index of a corpus, made once a process."""
    path = Path(__file__).with_name("retriever.py")
    spec = importlib.util.spec_from_file_location("search_r1_retriever", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Retriever.of_file(corpus)


def answer(text: str) -> str | None:
    """What stands in the last <answer>; None if there is none."""
    found = _ANSWER.findall(text)
    return found[-1].strip() if found else None


async def custom_generate(args: Any, sample: Sample, sampling_params: Any) -> Sample:
    """The model writes queries, the retriever what it knows, until the model answers."""
    # The corpus lies beside the prompts; --custom-config-path can name another.
    corpus = Path(getattr(args, "search_corpus", None) or _beside(args.prompt_data))
    text = str(sample.prompt)
    for _ in range(args.max_turns):
        said = await generate_single(text, {"stop": ["</search>", "</answer>"]})
        text += said
        query = _QUERY.search(said)
        if query is None:
            break
        passages = retriever(corpus).search(query[1])
        text += f"<information>{' '.join(passages) or NOTHING}</information>"
    sample.response = text.removeprefix(str(sample.prompt))
    sample.reward = float(answer(sample.response) == sample.label)
    sample.metadata["num_searches"] = len(_QUERY.findall(sample.response))
    return sample


def _beside(prompt_data: Any) -> Path:
    first = prompt_data if isinstance(prompt_data, str) else prompt_data[0]
    return Path(first).with_name("corpus.txt")
