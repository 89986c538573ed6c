"""Chat templates for the tests: those that the trl wheel carries, and some of our own that look at what is said."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tests.encode.made_tokenizers import byte_level

_SPELLED = re.compile(
    r"<\|[^|<>{}\n]{1,40}\|>|<\uff5c[^\uff5c]{1,40}\uff5c>|<\|[a-z_\"]+>|<[a-z_]+\|>|<end_of_utterance>|<(?:start|end)_of_(?:turn|image)>"
)

OWN = {
    "upper case": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content | upper if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}",
    "first line": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('\n')[0] }}<|im_end|>\n{% endfor %}",
    "cut short": "{% for m in messages %}<|{{ m.role }}|>{{ m['content'][:20] }}"
    "{% if m['content'] | length > 20 %}...{% endif %}</s>{% endfor %}",
    "by number": "{% for i in range(messages | length) %}{% set m = messages[i] %}<|im_start|>{{ m.role }}\n"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}",
    "buffered": "{% set out %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% endset %}{{ out }}",
    "joined": "{% set ns = namespace(parts=[]) %}{% for m in messages %}{% set ns.parts = ns.parts + "
    "['<|im_start|>' ~ m.role ~ '\n' ~ (m.content | replace('A', 'B')) ~ '<|im_end|>'] %}{% endfor %}{{ ns.parts | join('\n') }}",
    "formatted": "{% for m in messages %}{{ '<|im_start|>%s\n%s<|im_end|>\n' % (m.role, m.content) }}{% endfor %}",
    "next header": "{{ '<|im_start|>user\n' }}{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>\n"
    "{% if m.role == 'user' %}<|im_start|>assistant\n{% elif not loop.last %}<|im_start|>user\n{% endif %}{% endfor %}",
    "earlier thoughts dropped": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content.startswith('<think>') and not loop.last %}{{ m.content.split('</think>')[-1].lstrip() }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}",
    "stripped": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.rstrip() }}<|im_end|>\n{% endfor %}",
}
"""Templates that no model has: each looks at the content in another way."""


@cache
def published() -> dict[str, str]:
    """Name -> template of the trl wheel, training variants among them."""
    spec = find_spec("trl")
    assert spec is not None and spec.origin is not None, "trl is one of the dev requirements"
    files = sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))
    assert len(files) > 60, "the wheel has its templates"
    return {file.stem: file.read_text() for file in files}


def training_variant(name: str) -> str | None:
    """The template that marks its answers: the published variant, or the template itself."""
    source = published()[name]
    return source if "endgeneration" in source else published().get(f"{name}_training")


def tokenizer_with(template: str, folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, written to `folder`, that has the special tokens which a template spells."""
    backend = byte_level()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    names: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    spelled = set(_SPELLED.findall(template)) | ({"<image>"} if "<image>" in template else set())
    fast.add_special_tokens({"additional_special_tokens": sorted(spelled)})
    fast.chat_template = template
    fast.save_pretrained(folder)
    return fast
