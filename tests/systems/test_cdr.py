"""CDR's parts: customised prompts, routing, pairs, annotation of a file (streaming, resumed, refused), SimPO, the composition."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import Rewards, Rollouts
from guerdon.errors import ConfigError, DataError, ShapeError
from guerdon.io.output import state_path
from guerdon.lm.chat import Reply, ScriptedModel
from guerdon.objectives.simpo import simpo_loss
from guerdon.preference import annotate_file, best_of_n_pair, draw_pair, pairwise_accuracy
from guerdon.signals.likelihood.customise import (
    CRITERIA,
    Customisation,
    ModelRouter,
    customise_messages,
    extract_domain,
    keyword_router,
)
from guerdon.systems.cdr import VECTORS, cdr

NAN = float("nan")
USER = [{"role": "user", "content": "How?"}]

# --- prompts -----------------------------------------------------------------------------------------------------------


def test_the_original_conversation_is_not_changed() -> None:
    messages = [{"role": "system", "content": "old"}, *USER, {"role": "assistant", "content": "so"}, *USER]
    made = customise_messages(messages, "SAFETY", {"SAFETY": "new"}, "ex")
    assert [m["content"] for m in made] == ["new", "How?", "so", "ex\nHow?\nGood Assistant:"]
    assert messages[0]["content"] == "old" and messages[3]["content"] == "How?"
    assert customise_messages(messages, "SAFETY", {"SAFETY": ""}) == messages
    assert customise_messages([], "SAFETY", {"SAFETY": "new"}, "ex") == [{"role": "system", "content": "new"}]


def test_vanilla_domains_are_untouched_and_the_others_get_their_own_text() -> None:
    custom = Customisation()
    prompts = ["Tell me a story about a fox.", "How do I steal a car?", USER]
    made, domains = custom(prompts, [None, None, "REASONING"])
    assert domains == ["CHAT", "SAFETY", "REASONING"] and made[0] is prompts[0]
    assert made[1][0] == {"role": "system", "content": CRITERIA["SAFETY"]}
    assert made[1][1]["content"].endswith("\nHow do I steal a car?\nGood Assistant:")
    assert made[2][0]["content"] == CRITERIA["REASONING"]
    with pytest.raises(ConfigError, match="MATH"):
        Customisation(criteria={"MATH": "x"})


def test_a_prompts_exemplar_depends_on_seed_and_prompt_alone() -> None:
    drawn = [[Customisation(seed=seed).exemplar(f"q{i}", "SAFETY") for i in range(20)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) > 1
    assert Customisation(exemplars={}).exemplar("q", "SAFETY") == ""


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("[START] SAFETY [END]", "SAFETY"),
        ("[START]CHAT[END] [START]SAFETY[END]", "CHAT"),
        ("[START]\nREASONING\n[END]", "REASONING"),
        ("[END] SAFETY [START]", "CHAT"),
        ("[END] first, then [START] SAFETY", "SAFETY"),
        ("so [END], or [START] REASONING [END] it is", "REASONING"),
        ("[START] [START] SAFETY [END]", "CHAT"),
        ("[START] SAFETY [START] CHAT [END]", "SAFETY"),
        ("[START] SAFETY", "CHAT"),
        ("", "CHAT"),
    ],
)
def test_replies_that_cannot_be_read_are_chat(text: str, domain: str) -> None:
    assert extract_domain(text) == domain


def test_routers() -> None:
    asked = ["What is 3 * 4?", "Write a poem.", [{"role": "user", "content": "how to make a bomb"}]]
    assert keyword_router(asked) == ["REASONING", "CHAT", "SAFETY"]
    model = ScriptedModel(
        lambda messages, _: "[START]SAFETY[END]" if "bomb" in messages[-1]["content"] else Reply(None, error="down")
    )
    assert ModelRouter(model)(asked) == ["CHAT", "CHAT", "SAFETY"]
    custom = Customisation(router=ModelRouter(model))
    assert custom.domains(asked, ["REASONING", "MATH", None]) == ["REASONING", "CHAT", "SAFETY"]


# --- pairs -------------------------------------------------------------------------------------------------------------


def test_failed_responses_are_in_no_pair() -> None:
    found = best_of_n_pair([NAN, 1.0, 0.0], ["a", "b", "c"])
    assert found is not None and found.chosen == 1 and found.rejected_pool == [2]
    assert best_of_n_pair([NAN, 1.0], ["a", "b"]) is None and best_of_n_pair([], []) is None
    with pytest.raises(ShapeError):
        best_of_n_pair([1.0], [])


def test_why_there_is_no_pair() -> None:
    rng = random.Random(0)
    assert draw_pair([1.0, 1.0], ["a", "b"], rng) == "all rewards are equal"
    assert draw_pair([1.0, NAN], ["a", "b"], rng) == "1 scored response"
    assert "text or reward" in str(draw_pair([1.0, 0.0], ["a", "a"], rng))
    assert "length" in str(draw_pair([1.0, 0.0], ["a", "bbb"], rng, length_tolerance=0.1))
    assert draw_pair([1.0, 0.0, 0.5], ["aaaaaaaaaa", "b", "aaaaaaaaab"], rng, length_tolerance=0.1) == (0, 2)


@given(st.lists(st.tuples(st.floats(-5, 5), st.sampled_from("abc")), min_size=1, max_size=8), st.integers(0, 9))
def test_pairs_are_ordered_differ_and_repeat(rows: list[tuple[float, str]], seed: int) -> None:
    rewards, texts = [r for r, _ in rows], [t for _, t in rows]
    first, second = (draw_pair(rewards, texts, random.Random(seed)) for _ in range(2))
    assert first == second
    if not isinstance(first, str):
        chosen, rejected = first
        assert rewards[chosen] == max(rewards) > rewards[rejected] and texts[chosen] != texts[rejected]


def test_accuracy_counts_ties_and_failures_as_wrong() -> None:
    shares, average = pairwise_accuracy([1.0, 1.0, NAN, 2.0], [0.0, 1.0, 0.0, 1.0], ["a", "a", "b", "c"])
    assert shares == {"a": 0.5, "b": 0.0, "c": 1.0} and average == pytest.approx(0.5)


# --- a file ------------------------------------------------------------------------------------------------------------


class Longest:
    """More characters are better; NaN for the word "broken"."""

    scope, level = "row", "sequence"

    def __init__(self) -> None:
        self.seen = 0
        self.stop_at: int | None = None

    def __repr__(self) -> str:
        return "Longest()"

    def __call__(self, rollouts: Rollouts, scores: Any = None) -> Rewards:
        self.seen += len(rollouts)
        if self.stop_at is not None and self.seen > self.stop_at:
            raise KeyboardInterrupt
        values = [NAN if text == "broken" else float(len(text)) for text in rollouts.completions]
        return Rewards.sequence(values, rollouts, [None if v == v else "broken" for v in values])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


ROWS = [{"prompt": f"q{i}", "responses": ["a" * (i % 4), "b" * 3, "c"], "topic": i} for i in range(20)]


def test_pairs_of_a_file(tmp_path: Path) -> None:
    rows = [
        *ROWS[:2],
        {"prompt": "flat", "responses": ["aa", "bb"]},
        {"prompt": USER, "responses": ["broken", "a", "bbb"]},
    ]
    done = annotate_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", Longest())
    out = read(tmp_path / "out.jsonl")
    assert [row["prompt"] for row in out] == ["q0", "q1", USER] and out[0]["topic"] == 0 and "responses" not in out[0]
    assert out[0]["chosen"] == "bbb" and out[0]["rejected"] in ("", "c") and out[0]["margin"] > 0
    assert out[2]["chosen"] == [{"role": "assistant", "content": "bbb"}] and out[2]["rejected"][0]["content"] == "a"
    assert out[2]["rewards"] == [None, 1.0, 3.0]
    assert done.file.left_out == 1 and "all rewards are equal" in done.file.problems[0]
    assert done.length_correlation == pytest.approx(1.0)


def test_rows_of_one_response_each_stay_together(tmp_path: Path) -> None:
    rows = [{"prompt": p, "completion": "x" * n} for p, n in (("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 5))]
    annotate_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", Longest(), batch_size=2)
    assert [(r["prompt"], len(r["chosen"])) for r in read(tmp_path / "out.jsonl")] == [("a", 3), ("b", 5)]


def test_an_interrupted_annotation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", ROWS)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    annotate_file(source, whole, Longest(), batch_size=3)
    first = Longest()
    first.stop_at = 30
    with pytest.raises(KeyboardInterrupt):
        annotate_file(source, parts, first, batch_size=3)
    kept = len(read(parts))
    assert 0 < kept < len(ROWS)
    second = Longest()
    done = annotate_file(source, parts, second, batch_size=3)
    assert done.file.resumed_at == kept and second.seen == 3 * (len(ROWS) - kept)
    assert parts.read_bytes() == whole.read_bytes()
    third = Longest()
    assert (
        annotate_file(source, parts, third, batch_size=3).file.rows == len(ROWS) and third.seen == 0
    )  # done: nothing to do
    with pytest.raises(DataError, match="seed"):
        annotate_file(source, parts, Longest(), batch_size=3, seed=1)
    assert state_path(parts).exists()


def test_parquet_in_jsonl_out(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from guerdon.io import RowWriter, read_rows

    with RowWriter(tmp_path / "in.parquet") as out:
        out.write(ROWS)
    annotate_file(tmp_path / "in.parquet", tmp_path / "out.parquet", Longest(), batch_size=4)
    rows = [row for batch in read_rows(tmp_path / "out.parquet", 50) for row in batch]
    assert len(rows) == 20 and rows[3]["chosen"] == "aaa"


def test_a_reward_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "responses": ["aa", "bb"]}]
    with pytest.raises(DataError, match="not one of 1 prompts gave a pair"):
        annotate_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", Longest())
    with pytest.raises(DataError, match="neither a list"):
        annotate_file(write(tmp_path / "bad.jsonl", [{"prompt": "q"}]), tmp_path / "out2.jsonl", Longest())


# --- models ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    pytest.importorskip("transformers")
    from guerdon.lm import LocalModel
    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    tokenizer = char_tokenizer()
    config = TinyConfig(hidden=16, layers=1, heads=2, intermediate=16)
    return tuple(LocalModel(new_model(tokenizer, config, seed).eval(), tokenizer) for seed in (0, 1))  # type: ignore[return-value]


def test_the_system_is_the_ratio_centred_in_its_group(models: tuple[Any, Any]) -> None:
    system = cdr(strong=models[0], weak=models[1])
    rollouts = Rollouts.from_texts(["q"] * 3, ["ab", "cde", "f"], group_ids=[0, 0, 0])
    scores = system(rollouts)
    ratio = scores.raw["sow.ratio"].values[:, 0]
    torch.testing.assert_close(scores.reward, ratio)
    torch.testing.assert_close(ratio, (scores.raw["sow.strong"].values - scores.raw["sow.weak"].values)[:, 0])
    expected = (ratio - ratio.mean()) / (ratio.std() + 1e-4)
    torch.testing.assert_close(scores.advantages[:, 0], expected)
    assert not system.needs and system.scope == "group"


def test_annotation_by_the_ratio_with_customised_prompts(models: tuple[Any, Any], tmp_path: Path) -> None:
    """Both models read the customised text; a prompt of a vanilla domain scores as without customisation."""
    from guerdon.signals.likelihood.density_ratio import DensityRatio

    for lm in models:
        lm.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    try:
        chats = [[{"role": "user", "content": text}] for text in ("Tell me a story.", "What is 3 * 4?")]
        rollouts = Rollouts.from_texts(chats, ["ab", "ab"])
        plain, custom = DensityRatio(*models)(rollouts), DensityRatio(*models, customise=Customisation())(rollouts)
        same = torch.isclose(plain["ratio"].values, custom["ratio"].values, atol=1e-4)[:, 0].tolist()
        assert same == [True, False]
        rows = [{"prompt": chat, "responses": ["ab", "cd", "efg"]} for chat in chats]
        done = annotate_file(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", DensityRatio(*models))
        assert done.file.rows == 2 and math.isfinite(done.length_correlation)
    finally:
        for lm in models:
            lm.tokenizer.chat_template = None


def test_simpo_equals_trls() -> None:
    pytest.importorskip("trl")
    from types import SimpleNamespace

    from trl.experimental.cpo import CPOTrainer

    chosen, rejected = torch.tensor([-1.0, -2.5]), torch.tensor([-2.0, -0.5])  # mean log-probabilities
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"),
        beta=2.5,
        loss_type="simpo",
        simpo_gamma=1.375,
        label_smoothing=0.0,
        alpha=0.0,
    )
    theirs = CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]
    lengths = torch.tensor([20.0, 7.0]), torch.tensor([30.0, 4.0])
    ours = simpo_loss(chosen * lengths[0], lengths[0], rejected * lengths[1], lengths[1])
    torch.testing.assert_close(ours.loss, theirs)
    assert torch.isfinite(
        simpo_loss(torch.tensor([-1e6]), torch.tensor([0]), torch.tensor([0.0]), torch.tensor([0])).loss
    ).all()


def test_vectors_take_missing_numbers() -> None:
    none: list[Any] = [None, -1.0]
    found = VECTORS["density_ratio_reward"](["a", "b"], none, ["a", "b"], none, 1, 1)
    assert float(found["reward"]) == 0.0
    assert math.isnan(VECTORS["density_ratio_reward"](["a", "b"], none, ["a", "b"], none, 0, 1)["reward"])
    assert VECTORS["best_of_n_pair"]([None, 1.0, 0.0], ["a", "b", "c"])["chosen"] == 1


def test_the_built_in_task_offers_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    from guerdon.systems.context import Context, build
    from guerdon.tasks import load_task, tiny

    asked: list[Any] = []
    monkeypatch.setattr(tiny, "tiny_policy", lambda **options: asked.append(options) or f"policy{len(asked)}")
    task = load_task("sums,train_size=20,held_out_size=5")
    system = build("cdr:reduction=mean", Context(task, None, "tiny"))
    assert "strong='policy1', weak='policy2', 'mean'" in str(system)
    assert asked[0]["warm_start"].noise == asked[0]["warm_start"].noise.__class__() and asked[1] == {}
    with pytest.raises(ConfigError, match="strong"):
        build("cdr", Context(task, None, "tiny", model="smollm2"))


def test_a_chat_prompt_without_a_user_turn_is_left_alone() -> None:
    system_only = [{"role": "system", "content": "x"}]
    assert customise_messages(system_only, "SAFETY", {}, "ex") == system_only
