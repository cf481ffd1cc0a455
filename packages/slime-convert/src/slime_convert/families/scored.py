"""Any family with a score in place of the vocabulary: critics and reward models."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from slime_convert.family import Family
from slime_convert.rules import HfConfig, Rule, hf

HEAD = "output_layer.weight"
SCORE = "score.weight"


def scored(family: Family) -> Family:
    """The family whose models end in one number per token, under transformers' own names.

    Its checkpoints are those of transformers' ``...ForSequenceClassification`` with one label; one
    of a language model will do to start from, as the score may be absent.
    """

    def dims(config: HfConfig) -> dict[str, int]:
        return {**family.dims(config), "scores": 1}

    body = tuple(rule for rule in family.rules if rule.megatron != HEAD)
    score = Rule(HEAD, (hf(SCORE, "scores", "hidden"),))
    return replace(
        family,
        rules=(*body, score),
        dims=dims,
        ignored=(*family.ignored, "lm_head.weight"),
        optional=(*family.optional, SCORE),
    )


def classifier_config(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json of a scored model says differently from that of the language model.

    None removes a key. Transformers takes the score at the last token that is no padding, which
    with the end of a text for padding is the token before that end.
    """
    names = hf_config.get("architectures") or []
    padding = hf_config.get("pad_token_id")
    changes: dict[str, Any] = {
        "architectures": [n.replace("ForCausalLM", "ForSequenceClassification") for n in names],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    if padding is not None and padding == hf_config.get("eos_token_id"):
        changes["pad_token_id"] = None
    return changes
