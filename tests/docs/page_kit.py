"""What the pages' snippets and commands find when tests run them: small models and files under the names the pages use.

transformers takes a relative folder where one of a hub id's name exists, so hub ids of the pages are folders here.
"""

from __future__ import annotations

import json
import re
import shlex
import zlib
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
POLICIES = (
    "Qwen/Qwen2.5-0.5B-Instruct", "path/to/model", "path/to/instruct-model", "path/to/sft",
    "path/to/another-model", "org/chat-dpo", "org/chat-sft", "A", "B", "path/to/crm",
    "NAME", "FOLDER",
)  # fmt: skip
REWARD_MODELS = ("path/to/rm", "path/to/reward-model")
STEP_MODELS = ("jinachris/PURE-PRM-7B", "path/to/prm", "my-prm")
WIDE = ("Qwen/Qwen2.5-7B", "path/to/trained-policy")  # a page names an id of their vocabulary
WIDE_VOCABULARY = 151_936


def save_models(folder: Path) -> None:
    """Tiny random models under every name of the pages."""
    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    tokenizer = char_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    small = TinyConfig(hidden=16, layers=1, heads=2, intermediate=32)

    def save(name: str, tokens: Any, **options: Any) -> None:
        model = new_model(tokens, small, zlib.crc32(name.encode()), **options)  # no two alike
        if name in REWARD_MODELS:
            model = type(model)(type(model.config)(**{**model.config.to_dict(), "num_labels": 1}))
        model.save_pretrained(folder / name)
        tokens.save_pretrained(folder / name)

    for name in POLICIES:
        save(name, tokenizer)
    for name in REWARD_MODELS:
        save(name, tokenizer, architecture="LlamaForSequenceClassification")
    for name in STEP_MODELS:
        save(name, tokenizer, architecture="LlamaForTokenClassification")
    wide = wide_tokenizer()
    for name in WIDE:
        save(name, wide)


def wide_tokenizer() -> Any:
    """The character tokenizer with as many ids as Qwen's. In its vocabulary from the start: added tokens are slow to load."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from guerdon.tasks.tiny import char_tokenizer

    narrow = char_tokenizer()
    state = json.loads(narrow.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = vocabulary | {f"<{i}>": i for i in range(len(vocabulary), WIDE_VOCABULARY)}
    special = {name: str(token) for name, token in narrow.special_tokens_map.items()}
    inner = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=CHAT_TEMPLATE, padding_side="left", **special)


def save_files(folder: Path) -> None:
    """Data under the names the pages use, with every column that any of them asks for."""

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    questions = [
        {
            "prompt": f"What is {a} + {b}?", "answer": str(a + b), "ref_rewards": [0.0, 1.0], "verifiable": True,
            "gold_chain": f"{a} and {b} make {a + b}.",
        }
        for a in range(1, 9)
        for b in range(1, 9)
    ]  # fmt: skip
    for name in ("questions.jsonl", "problems.jsonl", "mixed.jsonl", "prompts.jsonl", "chains.jsonl"):
        write(name, questions)
    write(
        "pairs.jsonl",
        [{**row, "question_id": i // 2, "view": i % 2} for i, row in enumerate(question for question in questions for _ in "ab")],
    )  # fmt: skip
    answers = [
        {"prompt": row["prompt"], "completion": f"<think>Let me add.</think><answer>{row['answer'] if i % 2 else 0}</answer>", "answer": row["answer"]}
        for i, row in enumerate(questions[:4])
        for _ in range(2)
    ]  # fmt: skip
    for name in ("rollouts.jsonl", "answers.jsonl"):
        write(name, answers)
    write("responses.jsonl", [{**row, "responses": [row["completion"], "I do not know."]} for row in answers[::2]])
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(questions), folder / "questions.parquet")


def commands_of(text: str) -> list[list[str]]:
    """The words of every `guerdon ...` line of a page, continued lines joined and comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    found = (re.match(r"\s*(?:\$ )?(guerdon [a-z].*)$", line) for line in lines)
    return [_words(match[1]) for match in found if match]


def _words(line: str) -> list[str]:
    # A comment stands behind blanks, as in a shell; `csr:extract=after:#` is no comment.
    line = re.sub(r"\$\(python -m guerdon\.tasks\.\w+\)", "path/to/model", re.sub(r"\s#\s.*$", "", line))
    return shlex.split(line)[1:]
