"""Chat templates in the manner of the supported families, and a tokenizer that merges."""

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2

QWEN2 = (
    "{% for m in messages %}<|im_start|>"
    "{% if m.role == 'tool' %}user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% else %}{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

QWEN3 = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}<|im_start|>"
    "{% if m.role == 'tool' %}user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% elif m.role == 'assistant' %}assistant\n"
    "{% set content = m.content or '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{% endif %}{{ content }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}"
    "{% else %}{{ m.role }}\n{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)

LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}"
    "<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
    "{% if m.tool_calls %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", '
    '"parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{% else %}{{ m.content | trim }}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

GLM4 = (
    "[gMASK]<sop>{% for m in messages %}"
    "{% if m.role == 'tool' %}<|observation|>\n{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|assistant|>\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}</tool_call>{% endfor %}"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

DEEPSEEK = (
    "{% set ns = namespace(tool=false, first=true) %}<|begin|>"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{% set ns.tool = false %}<|User|>{{ m.content }}<|Assistant|>"
    "{% elif m.role == 'tool' %}"
    "{% if not ns.tool %}<|outputs|>{% endif %}<|output|>{{ m.content }}<|output_end|>"
    "{% set ns.tool = true %}"
    "{% else %}{% set content = (m.content or '').split('</think>')[-1] %}"
    "{% if ns.tool %}<|outputs_end|>{% set ns.tool = false %}{% endif %}{{ content }}"
    "{% for c in m.tool_calls or [] %}<|call|>{{ c.function.name }}\n"
    "{{ c.function.arguments | tojson }}<|call_end|>{% endfor %}<|end|>"
    "{% endif %}{% endfor %}"
    "{% if ns.tool and add_generation_prompt %}<|outputs_end|>{% endif %}"
)

KIMI = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}<|im_system|>{{ m.name or 'tool' }}<|im_middle|>"
    "## Return of {{ m.tool_call_id }}\n{{ m.content }}<|im_end|>"
    "{% else %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>{{ m.content }}"
    "{% if m.tool_calls %}<|calls|>{% for c in m.tool_calls %}<|call|>{{ c.id }}<|args|>"
    "{{ c.function.arguments | tojson }}<|call_end|>{% endfor %}<|calls_end|>{% endif %}"
    "<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
)

FAMILIES = {
    "qwen2": (QWEN2, "<|im_end|>"),
    "qwen3": (QWEN3, "<|im_end|>"),
    "llama3": (LLAMA3, "<|eot_id|>"),
    "glm4": (GLM4, "<|user|>"),
    "deepseek": (DEEPSEEK, "<|end|>"),
    "kimi": (KIMI, "<|im_end|>"),
}
"""Template and end-of-turn token of each family."""

_SPECIAL = re.compile(r"<\|\w+\|>|\[gMASK\]|<sop>")
_FIRST = 0x110000


class MergingTokenizer:
    """Special tokens whole, some pairs of characters merged, single characters otherwise.

    The same text has several tokenizations, of which ``encode`` gives the one with most merges.
    """

    def __init__(self, family: str, merges: Sequence[str] = ("an", "he", "\n\n", "in", "12")):
        self.template, self.eos = FAMILIES[family]
        specials = sorted({self.eos, *_SPECIAL.findall(" ".join(t for t, _ in FAMILIES.values()))})
        roles = [f"<|im_{r}|>" for r in ("user", "assistant", "system")]
        glm = [f"<|{r}|>" for r in ("user", "assistant", "system")]
        words = [*dict.fromkeys([*specials, *roles, *glm]), *merges]
        self._ids = {word: _FIRST + i for i, word in enumerate(words)}
        self._words = {i: word for word, i in self._ids.items()}
        longest = sorted(words, key=len, reverse=True)
        self._pieces = re.compile("|".join(map(re.escape, longest)) + r"|[\s\S]")
        self.eos_token_id = self._ids[self.eos]

    def id_of(self, word: str) -> int:
        return self._ids[word] if word in self._ids else ord(word)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        assert not add_special_tokens
        return [self.id_of(piece) for piece in self._pieces.findall(text)]

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        words = [self._words.get(i) or chr(i) for i in token_ids]
        kept = words if not skip_special_tokens else [w for w in words if not _SPECIAL.match(w)]
        return "".join(kept)

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        assert kwargs.pop("tokenize") is False
        return _compiled(self.template).render(messages=conversation, **kwargs)


@cache
def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.Environment(autoescape=False)
    environment.filters["tojson"] = lambda x: json.dumps(x, ensure_ascii=False)
    return environment.from_string(template)
