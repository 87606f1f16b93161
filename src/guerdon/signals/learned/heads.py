"""Loading a reward model with the head it is asked for, or not at all.

transformers makes up a random head where a checkpoint has none, and says so in a log line. Scores of such a head are noise that
differs from run to run, so that everything loaded here is checked against the checkpoint's own list of weights.
Heads that transformers does not have (two layers, a value head, label tokens) are here, so that no checkpoint's code is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from guerdon.errors import ConfigError
from guerdon.extras import require
from guerdon.lm.forward import take_apart
from guerdon.lm.load import _quiet
from guerdon.signals.learned.conventions import (
    TABLE,
    Convention,
    Kind,
    convention_named,
    convention_of,
    known_conventions,
)

AUTO_CLASS: Mapping[Kind, str] = {
    "process": "AutoModelForTokenClassification",
    "outcome": "AutoModelForSequenceClassification",
}
LABELS: Mapping[Kind, int] = {"process": 2, "outcome": 1}
_HEAD_WEIGHT = re.compile(
    r"(^|\.)(score|classifier|v_head|value_head|reward_head|classification_head|regression_layer)\."
)
_ARTICLE: Mapping[Kind, str] = {"process": "a process", "outcome": "an outcome"}
_ADVICE: Mapping[Kind, str] = {
    "process": "give a process reward model (a token classifier with two labels), or train one with train_prm",
    "outcome": "give a reward model (a sequence classifier with one label), or train one with train_rm",
}


class Loaded(NamedTuple):
    """A reward model, its tokenizer (None where neither was given), and how it is read."""

    model: Any
    tokenizer: Any
    convention: Convention


def load_reward_model(
    source: Any,
    tokenizer: Any,
    kind: Kind,
    *,
    convention: str | Convention | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    options: Mapping[str, Any] | None = None,
) -> Loaded:
    """A reward model from a hub id, a folder (also of a LoRA adapter) or an object, by the table of conventions.

    Args:
        source: hub id, path or loaded model.
        tokenizer: the model's; None = the one beside it.
        kind: "process" or "outcome".
        convention: how it is read; None = what the checkpoint says, else "pure" or "sequence".
        device, dtype: where it goes; None = as it comes.
        options: further keyword arguments of `from_pretrained`, for a path.

    Raises:
        ConfigError: there is no such model, it has no such head, or another number of labels.
    """
    if isinstance(source, nn.Module):
        model, chosen = _from_object(source, tokenizer, kind, convention)
    else:
        transformers = require("transformers", extra="train")
        with _quiet(transformers), _errors_only(transformers):
            model, tokenizer, chosen = _from_checkpoint(
                transformers, str(source), tokenizer, kind, convention, dict(options or {})
            )
    labels = label_count(model)
    if chosen.head == "classifier" and labels != LABELS[kind]:
        has = f"{labels} label{'s' if labels != 1 else ''}"
        wants = "2 labels (bad, good)" if kind == "process" else "1 label"
        name = "a process reward model" if kind == "process" else "a scalar reward model"
        raise ConfigError(f"{_name(source)}: {name} has {wants}, this one {has}; {_ADVICE[kind]}")
    model = model if dtype is None else model.to(dtype)  # first: less to move
    model = model if device is None else model.to(device)
    return Loaded(model, tokenizer, chosen)


@contextmanager
def _errors_only(transformers: Any) -> Iterator[None]:
    """Without the report of made-up weights: what it says is refused here, in words that say what to do."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def label_count(model: Any) -> int:
    """How many scores its head gives."""
    return int(getattr(model, "num_labels", None) or model.config.num_labels)


# -- checkpoints -----------------------------------------------------------------------------------------------------------


def _from_checkpoint(
    transformers: Any,
    source: str,
    tokenizer: Any,
    kind: Kind,
    convention: str | Convention | None,
    options: dict[str, Any],
) -> tuple[Any, Any, Convention]:
    if source.endswith(".gguf"):
        raise ConfigError(f"{source}: a GGUF holds a language model without a reward model's head; {_ADVICE[kind]}")
    adapter = _adapter_base(source)
    config = _config(transformers, adapter or source)
    chosen = convention_named(convention, kind) if convention is not None else convention_of(source, config, kind)
    chosen = chosen or TABLE["pure" if kind == "process" else "sequence"]
    model = (
        _read(transformers, source, config, chosen, kind, options)
        if adapter is None
        else _read_adapter(transformers, source, adapter, config, chosen, kind, options)
    )
    if tokenizer is None:
        tokenizer = _tokenizer(transformers, source, adapter)
    return _labelled(model.eval(), tokenizer, chosen), tokenizer, chosen


def _read(
    transformers: Any, source: str, config: Any, convention: Convention, kind: Kind, options: Mapping[str, Any]
) -> Any:
    """The model with all weights its head needs out of the checkpoint."""
    model, info = _with_info(transformers, source, config, convention, kind, options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(_without_head(source, config, missing, kind))
    other = sorted(key for key in info["unexpected_keys"] if _HEAD_WEIGHT.search(key))
    if other and convention.head != "label_tokens":
        raise ConfigError(
            f"{source} holds weights of another head ({_few(other)}), which {convention.name!r} would leave unread; name how it is read: "
            f"convention= one of {', '.join(known_conventions(kind))}"
        )
    return model


def _with_info(
    transformers: Any, source: str, config: Any, convention: Convention, kind: Kind, options: Mapping[str, Any]
) -> tuple[Any, Any]:
    options = {"trust_remote_code": False, **options, "output_loading_info": True, "config": config}
    if convention.head == "two_layers":
        factory: Any = headed_model(transformers, "two_layers", LABELS[kind])
    elif convention.head == "value":
        factory = headed_model(transformers, "value", 1)
    else:
        auto = AUTO_CLASS[kind] if convention.head == "classifier" else "AutoModelForCausalLM"
        factory = getattr(transformers, auto)
    if convention.head in ("two_layers", "value"):
        options.pop("trust_remote_code")  # nothing of the checkpoint's own code is run
    try:
        return factory.from_pretrained(source, **options)
    except OSError as error:
        raise ConfigError(f"cannot load a reward model from {source!r} ({str(error).splitlines()[0]})") from error
    except RuntimeError as error:  # shapes of the checkpoint that the config does not describe
        raise ConfigError(
            f"the weights in {source!r} do not fit its own config (num_labels={config.num_labels}): {str(error).splitlines()[0]}"
        ) from error
    except ValueError as error:  # an architecture without such a head
        raise ConfigError(f"{source} ({_architecture(config)}) cannot be a reward model: {error}") from error


def _without_head(source: Any, config: Any, missing: list[str], kind: Kind) -> str:
    names = [name for name in known_conventions(kind) if TABLE[name].head == "label_tokens"]
    return (
        f"{source} is a {_architecture(config)} without the weights of {_ARTICLE[kind]} reward model's head ({_few(missing)} missing): its "
        f"scores would come from a random head, noise that differs from run to run; {_ADVICE[kind]}. A language model that answers "
        f"with label tokens is read by convention={' or '.join(map(repr, names))}"
    )


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _architecture(config: Any) -> str:
    names = getattr(config, "architectures", None)
    return str(names[0]) if names else f"{getattr(config, 'model_type', 'unknown')} model"


def _config(transformers: Any, source: str) -> Any:
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "config.json").exists():
        raise ConfigError(
            f"{source} is no transformers model folder: it has neither config.json nor adapter_config.json"
        )
    try:
        return transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot load a reward model from {source!r}: neither a local folder nor a hub model that can be reached "
            f"({str(error).splitlines()[0]})"
        ) from error


def _tokenizer(transformers: Any, source: str, adapter: str | None) -> Any:
    for place in filter(None, (source, adapter)):
        try:
            return transformers.AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError, KeyError):
            continue
    raise ConfigError(f"{source} has no tokenizer beside its weights: pass the reward model's with tokenizer=")


# -- adapters --------------------------------------------------------------------------------------------------------------


def _adapter_base(source: str) -> str | None:
    """What a LoRA adapter's folder is an adapter of, or None for a whole model."""
    folder = Path(source).expanduser()
    if not (folder / "adapter_config.json").exists() or (folder / "config.json").exists():
        return None
    base = require("peft", extra="train").PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise ConfigError(f"{source} is an adapter that does not say of which model; merge it into its model first")
    return str(base)


def _read_adapter(
    transformers: Any,
    source: str,
    base: str,
    config: Any,
    convention: Convention,
    kind: Kind,
    options: Mapping[str, Any],
) -> Any:
    """The base model with the adapter merged into it; a head that neither of them has is refused."""
    peft = require("peft", extra="train")
    if convention.head == "classifier":
        config.num_labels = LABELS[kind]
    model, info = _with_info(transformers, base, config, convention, kind, options)
    brought = peft.load_peft_weights(source, device="cpu")
    if info["missing_keys"] and not any(_HEAD_WEIGHT.search(key) for key in brought):
        raise ConfigError(_without_head(f"{source} (an adapter of {base})", config, sorted(info["missing_keys"]), kind))
    return peft.PeftModel.from_pretrained(model, source).merge_and_unload()


# -- objects ---------------------------------------------------------------------------------------------------------------


def _from_object(model: Any, tokenizer: Any, kind: Kind, convention: str | Convention | None) -> tuple[Any, Convention]:
    """A loaded model; one that can be seen to have no such head is refused."""
    config = getattr(model, "config", None)
    chosen = convention_named(convention, kind) if convention is not None else convention_of(None, config, kind)
    chosen = chosen or TABLE["pure" if kind == "process" else "sequence"]
    if chosen.head == "label_tokens":
        return _labelled(model, tokenizer, chosen), chosen
    name = type(model).__name__
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    bare = type(model).__module__.startswith("transformers.models.") and name.endswith("Model")
    headless = not any(isinstance(getattr(model, n, None), nn.Module) for n in ("score", "classifier"))
    if headless and (head is not None or bare):
        raise ConfigError(_without_head(name, config, ["score"], kind))
    if kind == "process" and name.endswith("ForSequenceClassification"):
        raise ConfigError(f"{name} gives one score for a whole text and none for a step; {_ADVICE[kind]}")
    return model, chosen


def _name(source: Any) -> str:
    return type(source).__name__ if isinstance(source, nn.Module) else str(source)


# -- heads that transformers does not have -----------------------------------------------------------------------------------


class LabelTokens(nn.Module):
    """A causal language model whose logits of two tokens are the scores: logits [B, L, 2] of (bad, good)."""

    num_labels = 2

    def __init__(self, model: Any, bad: int, good: int) -> None:
        super().__init__()
        self.model, self.ids = model, [bad, good]
        self.config = model.config
        parts = take_apart(model)
        self._backbone = parts.backbone if isinstance(parts.head, nn.Linear) else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if self._backbone is None:
            return SimpleNamespace(logits=self.model(**inputs).logits[..., self.ids])
        head = self.model.get_output_embeddings()
        bias = None if head.bias is None else head.bias[self.ids]
        hidden = self._backbone(**inputs).last_hidden_state
        return SimpleNamespace(logits=nn.functional.linear(hidden.to(head.weight.dtype), head.weight[self.ids], bias))


def _labelled(model: Any, tokenizer: Any, convention: Convention) -> Any:
    """A language model with its label tokens as the head; other models as they are."""
    if convention.head != "label_tokens" or isinstance(model, LabelTokens):
        return model
    if model.get_output_embeddings() is None:
        raise ConfigError(
            f"{type(model).__name__} has no language model's head, and {convention.name!r} reads its tokens "
            f"{convention.good!r} and {convention.bad!r}"
        )
    from guerdon.signals.learned.layouts import single_token_id

    bad, good = (single_token_id(tokenizer, text, "label") for text in (convention.bad, convention.good))
    return LabelTokens(model, bad, good)


def headed_model(transformers: Any, head: str, labels: int) -> Any:
    """A class that reads checkpoints of a backbone with a two-layer head (`score.0`, `score.2`) or a value head."""

    class Headed(transformers.PreTrainedModel):  # type: ignore[misc, name-defined]
        config_class = transformers.PreTrainedConfig
        base_model_prefix = "model"
        _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
        num_labels = 2 if head == "value" else labels

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            width = config.hidden_size
            self.model = transformers.AutoModel.from_config(config)
            if head == "value":
                self.v_head = nn.ModuleDict({"summary": nn.Linear(width, 1)})
            else:
                self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, labels))
            self.post_init()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
            if head == "two_layers":
                return SimpleNamespace(logits=self.score(hidden))
            # P(good) = sigmoid(v): as two logits, 0 and v.
            value = self.v_head["summary"](hidden)
            return SimpleNamespace(logits=torch.cat([torch.zeros_like(value), value], -1))

    return Headed
