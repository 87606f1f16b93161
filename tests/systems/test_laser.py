"""LaSeR: the position of the score, its constant, loss and class weights, mixed advantages, votes; and the loss through the trainer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon import CapabilityError, Clock, ConfigError, Rewards, Rollouts
from guerdon.credit import MixSelfReward, Onset, auroc, self_reward_advantages, verification_metrics
from guerdon.errors import ChainError, ShapeError
from guerdon.objectives.self_reward import SelfRewardRegression, class_weights, self_reward_loss
from guerdon.rewards import Scores
from guerdon.signals.agreement.choice import best_of, vote_in_groups, weighted_vote
from guerdon.signals.likelihood.last_token import CUT, LastTokenScore, after_the_end, log_partition, reserved_token
from guerdon.systems.laser import VECTORS, laser

transformers = pytest.importorskip("transformers")
NAN = float("nan")


@pytest.fixture(scope="module")
def lm() -> Any:
    from guerdon.lm import LocalModel
    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    tokenizer = char_tokenizer()
    model = new_model(tokenizer, TinyConfig(hidden=32, layers=2, heads=2, intermediate=64), 0)
    return LocalModel(model.eval(), tokenizer)


PROMPTS, TEXTS = ["1+1=", "a longer prompt: 2+3=", "7="], ["2", "it is 5", "7, not 8"]


def tokens(lm: Any, *, cut: tuple[int, ...] = (), ended: bool = True, **more: Any) -> Rollouts:
    """Rollouts with ids, padded with the end-of-sequence token itself."""
    end = lm.tokenizer.eos_token_id
    heads = [torch.tensor(lm.tokenizer(text)["input_ids"]) for text in PROMPTS]
    tails = [
        torch.tensor([*lm.tokenizer(text)["input_ids"], *([end] if ended and row not in cut else [])])
        for row, text in enumerate(TEXTS)
    ]
    wide, long = max(map(len, heads)), max(map(len, tails)) + 2
    prompt_ids, prompt_mask = torch.full((3, wide), end), torch.zeros(3, wide, dtype=torch.bool)
    ids, mask = torch.full((3, long), end), torch.zeros(3, long, dtype=torch.bool)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        prompt_ids[row, wide - len(head) :], prompt_mask[row, wide - len(head) :] = head, True
        ids[row, : len(tail)], mask[row, : len(tail)] = tail, True
    finished = torch.tensor([row not in cut for row in range(3)])
    return Rollouts(
        list(PROMPTS), list(TEXTS), prompt_ids=prompt_ids, prompt_mask=prompt_mask, completion_ids=ids,
        completion_mask=mask, finished=finished, **more,
    )  # fmt: skip


def alone(lm: Any, row: int, token: str = "|") -> float:
    """log pi(z) after prompt, text and one end, in a forward of this row alone."""
    ids = [*lm.tokenizer(PROMPTS[row] + TEXTS[row])["input_ids"], lm.tokenizer.eos_token_id]
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids])).logits[0, -1]
    return float(logits.log_softmax(-1)[lm.tokenizer.convert_tokens_to_ids(token)])


def signal(lm: Any, **options: Any) -> LastTokenScore:
    made = LastTokenScore(**{"constant": -5.0, "token": "|", **options})
    made.bind("policy", lm)
    return made


# --- the score -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [True, False])
def test_the_score_stands_after_one_end_whatever_the_padding(lm: Any, ended: bool) -> None:
    found = signal(lm)(tokens(lm, ended=ended))
    expected = [0.1 * (alone(lm, row) + 5.0) for row in range(3)]
    assert found.values[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    texts = signal(lm)(Rollouts.from_texts(PROMPTS, TEXTS))
    assert texts.values[:, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_cut_completion_scores_zero_with_the_reason(lm: Any) -> None:
    found = signal(lm)(tokens(lm, cut=(1,)))
    assert found.values[1, 0] == 0.0 and found.reasons == {(1, 0): CUT}
    assert float(found.values[2, 0]) == pytest.approx(0.1 * (alone(lm, 2) + 5.0), abs=1e-5)
    nobody = signal(lm)(tokens(lm, cut=(0, 1, 2)))
    assert nobody.values[:, 0].tolist() == [0.0] * 3 and len(nobody.reasons) == 3
    assert len(signal(lm)(Rollouts.from_texts([], []))) == 0


def test_the_reference_gives_each_row_its_constant(lm: Any) -> None:
    made = signal(lm, constant="reference")
    with pytest.raises(CapabilityError, match="reference"):
        made(tokens(lm))
    made.bind("reference", lm)
    assert made(tokens(lm)).values[:, 0].tolist() == [0.0] * 3
    assert set(made.roles) == {"policy", "reference"}


def test_calibration_is_the_mean_over_finished_rows_and_survives_a_checkpoint(lm: Any) -> None:
    made = signal(lm, constant="calibrate", calibration_rows=3)
    before = made(tokens(lm))
    assert before.failed.all() and "calibrat" in before.reasons[0, 0]
    with pytest.raises(ConfigError, match="nothing to calibrate"):
        made.calibrate(tokens(lm, cut=(0, 1, 2)))
    with pytest.warns(UserWarning, match="beta="):
        metrics = made.update(tokens(lm, cut=(1,)), Scores({}, torch.ones(3)))
    values = [alone(lm, 0), alone(lm, 2)]
    assert metrics["constant"] == pytest.approx(sum(values) / 2, abs=1e-5)
    assert metrics["spread"] == pytest.approx(abs(values[0] - values[1]) / 2, abs=1e-5)
    made.update(tokens(lm), Scores({}, torch.ones(3)))
    assert made.calibration is not None and made.calibration.rows == 5
    made.update(tokens(lm), Scores({}, torch.ones(3)))
    assert made.calibration.rows == 5, "enough"
    trained = signal(lm, constant="calibrate", trained_from=Onset(0))
    with pytest.warns(UserWarning, match="beta="):
        trained.update(tokens(lm, cut=(1,)), Scores({}, torch.ones(3)))
    trained.update(tokens(lm), Scores({}, torch.ones(3)))
    assert trained.calibration is not None and trained.calibration.rows == 2, "one batch, and none after training began"
    again = signal(lm, constant="calibrate")
    again.load_state_dict(made.state_dict())
    assert again.calibration == made.calibration
    assert again(tokens(lm)).values.tolist() == made(tokens(lm)).values.tolist()


def test_partition_by_hand_and_without_overflow() -> None:
    assert log_partition(-23.0, 0.1) == pytest.approx(math.log(1 + math.exp(-23) * (math.exp(10) - 1)), rel=1e-6)
    assert log_partition(-23.0, 0.02) == pytest.approx(27.0), "too small a beta: Z is far from 1"
    assert log_partition(-2.0, 1e-4) == pytest.approx(9998.0)
    assert log_partition(-5.0, 0.1, reward=0.0) == 0.0


def test_after_the_end() -> None:
    grid = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    values, room = after_the_end(grid, torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0]]))
    assert values.tolist() == [2.0, 0.0, 7.0] and room.tolist() == [True, False, True]
    empty, none = after_the_end(torch.zeros(2, 0), torch.zeros(2, 0))
    assert empty.tolist() == [0.0, 0.0] and none.tolist() == [False, False]


def test_the_reserved_token(lm: Any) -> None:
    tokenizer = lm.tokenizer
    assert reserved_token(tokenizer) == tokenizer.unk_token_id, "a vocabulary without an unused special token"
    assert reserved_token(tokenizer, "|") == tokenizer.convert_tokens_to_ids("|") == reserved_token(tokenizer, 96)
    for wrong in ("||", 99, -1):
        with pytest.raises(ConfigError, match="token="):
            reserved_token(tokenizer, wrong)
    from guerdon.tasks.tiny import char_tokenizer

    more = char_tokenizer()
    more.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|spare|>"]})
    more.chat_template = "<|turn|>{{ messages }}"
    assert reserved_token(more) == more.convert_tokens_to_ids("<|spare|>")


@pytest.mark.parametrize("options", [{"constant": "mean"}, {"constant": 0.0}, {"constant": NAN}, {"beta": 0.0}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LastTokenScore(**{"constant": -23.0, **options})


# --- loss and advantages ---------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_class_weights_give_both_classes_half_of_the_batch(rows: list[tuple[bool, bool]]) -> None:
    right, counts = torch.tensor([r for r, _ in rows]).bool(), torch.tensor([c for _, c in rows]).bool()
    weights = class_weights(right, counts)
    for label in (True, False):
        of_class = counts & (right == label)
        if of_class.any():
            assert float(weights[of_class].sum()) == pytest.approx(float(counts.sum()) / 2)
        else:
            assert float(weights[right == label].sum()) == 0


def test_loss_by_hand_and_its_gradient() -> None:
    scores = torch.tensor([0.5, 1.0, NAN], requires_grad=True)
    loss = self_reward_loss(scores, torch.tensor([1.0, 0.25, 1.0]), torch.tensor([True, True, False]))
    assert float(loss) == pytest.approx((0.25 + 0.5625) / 3)
    loss.backward()
    assert scores.grad is not None and scores.grad.tolist() == pytest.approx([2 * -0.5 / 3, 2 * 0.75 / 3, 0.0])
    assert float(self_reward_loss(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool))) == 0.0


def test_vector_functions_beyond_the_cases() -> None:
    loss = VECTORS["self_rewarding_loss"]
    none = dict(
        ref_logprobs=None, verifier_rewards=[], class_weights=None, kl_coef=0.1, ref_constant=-23.0, temperature=1.0
    )
    assert loss(logprobs=[], response_mask=[], **none) == {"self_rewarding_scores": [], "loss": torch.tensor(0.0)}
    filled = loss(logprobs=[[-1.0]], response_mask=[[1]], **{**none, "verifier_rewards": [1.0]})
    assert filled["self_rewarding_scores"] == [None] and float(filled["loss"]) == 0.0
    with pytest.raises(ConfigError, match="reference"):
        loss(logprobs=[[-1.0]], response_mask=[[0]], **{**none, "verifier_rewards": [1.0], "ref_constant": None})
    grid = dict(response_mask=[[1, 1], [1, 0]], ref_logprobs=[[0.0, 0.0], [0.0, 0.0]], ref_constant=-23.0)
    found = VECTORS["self_rewarding_advantages"](
        old_logprobs=[[-13.0, -13.0], [-1.0, -13.0]], group_ids=["a", "a"], advantages=[0.0, 0.0], kl_coef=0.1, **grid
    )
    half = math.sqrt(0.5)
    assert found["self_rewarding_advantages"].tolist() == pytest.approx([-half, half]), "a truncated row counts as 0"
    single = VECTORS["self_rewarding_advantages"](
        old_logprobs=[[-1.0, -16.0]], group_ids=["x"], advantages=[9.0],
        **{**grid, "response_mask": [[1, 0]], "ref_logprobs": [[0.0, 0.0]]},
    )  # fmt: skip
    assert float(single["self_rewarding_advantages"]) == pytest.approx(0.7), "a group of one: mean 0, std 1"


def scored(answer: list[float], own: list[float], **more: Any) -> tuple[Scores, Rollouts]:
    rollouts = Rollouts.from_texts(["p"] * len(answer), ["y"] * len(answer), group_ids=[0] * len(answer))
    rollouts = replace(rollouts, **more)
    advantages = replace(Rewards.sequence(answer, rollouts), kind="advantage")
    sources = {"answer": advantages, "self": Rewards.sequence(own, rollouts)}
    return Scores(sources, torch.ones(len(answer), dtype=torch.bool)), rollouts


def test_mixing_by_hand() -> None:
    scores, rollouts = scored([1.0, -1.0, 0.0], [2.0, -3.0, 0.5])
    mixed = MixSelfReward("answer", "self", mix=0.5)(scores, rollouts)
    assert mixed["answer"].values[:, 0].tolist() == pytest.approx([1.0, -1.0, 0.0]), "clipped to 1, 0, 1/2: std 1/2"
    assert set(mixed.sources) == {"answer"}
    free = MixSelfReward("answer", "self", mix=0.5, clip=False)(scores, rollouts)["answer"].values[:, 0]
    own = (torch.tensor([2.0, -3.0, 0.5]) + 1 / 6) / torch.tensor([2.0, -3.0, 0.5]).std()
    torch.testing.assert_close(free, 0.5 * torch.tensor([1.0, -1.0, 0.0]) + 0.5 * own)


def test_what_keeps_the_verifiers_advantage() -> None:
    flat, rollouts = scored([1.0, -1.0], [0.5, 0.6])
    assert MixSelfReward("answer", "self", mix=0.5)(flat, rollouts)["answer"].values[:, 0].tolist() == [1.0, -1.0]
    early, rollouts = scored([1.0, -1.0], [0.0, 1.0], clock=Clock(3, 10, True))
    late = MixSelfReward("answer", "self", mix=0.5, onset=Onset(4))
    assert late(early, rollouts)["answer"].values[:, 0].tolist() == [1.0, -1.0]
    later = late(early, replace(rollouts, clock=Clock(4, 10, True)))["answer"].values[:, 0].tolist()
    assert later == pytest.approx([0.5 - 0.5 * math.sqrt(0.5), -0.5 + 0.5 * math.sqrt(0.5)])
    missing, rollouts = scored([1.0, -1.0, 0.5], [0.0, 1.0, NAN])
    assert MixSelfReward("answer", "self", mix=0.5)(missing, rollouts)["answer"].values[2, 0] == 0.5
    with pytest.raises(ChainError, match="centre it first"):
        scores, rollouts = scored([1.0], [1.0])
        MixSelfReward("self", "answer")(scores, rollouts)


def test_self_advantages_of_separate_groups() -> None:
    values = torch.tensor([0.0, 1.0, 0.2, 0.2])
    given = torch.tensor([5.0, 6.0, 7.0, 8.0])
    found = self_reward_advantages(values, given, torch.tensor([1, 1, 0, 0]))
    assert found.tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5), 7.0, 8.0])


def test_onsets_follow_the_run() -> None:
    first = Onset(None, usual=200, share=1 / 8)
    second = Onset(None, usual=200, share=1 / 8, after=first)
    assert [o.at(Clock(0, 1609, True)) for o in (first, second)] == [200, 400], "the paper's run"
    assert [o.at(Clock(0, 60, True)) for o in (first, second)] == [7, 14]
    assert [o.at(Clock(0, None, True)) for o in (first, second)] == [200, 400]
    assert Onset(50).at(Clock(0, 60, True)) == 50 and Onset().reached(Clock())
    assert not second.reached(Clock(13, 60, True)) and second.reached(Clock(14, 60, True))


# --- votes -----------------------------------------------------------------------------------------------------------


def test_votes() -> None:
    assert weighted_vote(["4", "4", "5"]).winner == "4"
    assert weighted_vote(["4", "4", "5"], [0.1, None, 0.3]) == ("5", {"4": 0.1, "5": 0.3})
    assert weighted_vote(["4", "5"], [-2.0, -1.0]).winner == "5" and weighted_vote([]) == (None, {})
    assert weighted_vote(["4", "5"], [NAN, NAN]).winner is None
    assert best_of([0.1, None, 0.7, 0.7, NAN]) == 2 and best_of([None]) is None
    with pytest.raises(ShapeError):
        weighted_vote(["4"], [])


def test_votes_of_groups_that_are_not_adjacent() -> None:
    rollouts = Rollouts.from_texts(["p"] * 5, ["#1", "#2", "#1", "#2", "no"], group_ids=[7, 3, 3, 7, 7])
    weights = Rewards.sequence([0.1, 0.2, 0.9, 0.5, 5.0], rollouts)

    def answer(text: str) -> str | None:
        return text[1:] if text[0] == "#" else None

    assert {g: v.winner for g, v in vote_in_groups(rollouts, answer, weights).items()} == {7: "2", 3: "1"}
    assert {g: v.winner for g, v in vote_in_groups(rollouts, answer).items()} == {7: "1", 3: "2"}


def test_metrics_of_scores() -> None:
    found = verification_metrics([0.9, None, 0.7, NAN], [1, 1, 0, 0])
    assert found == (0.5, 0.5, 0.5, 0.5)
    assert auroc([0.9, 0.5, 0.5], [1, 1, 0]) == 0.75 and math.isnan(auroc([1.0], [1]))
    with pytest.raises(ShapeError):
        verification_metrics([1.0], [])


# --- through the trainer ---------------------------------------------------------------------------------------------


class Half:
    """Right where the text has an even number of characters; `flat` = always right."""

    scope, level = "row", "sequence"

    def __init__(self, flat: bool = False) -> None:
        self.flat = flat

    def __call__(self, rollouts: Rollouts, scores: object) -> Rewards:
        return Rewards.sequence([float(self.flat or len(t) % 2 == 0) for t in rollouts.completions], rollouts)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

    folder = tmp_path_factory.mktemp("policy")
    tokenizer = char_tokenizer()
    model = new_model(tokenizer, TinyConfig(hidden=16, layers=1, heads=2, intermediate=32, positions=64), 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def step(
    policy: str, folder: Any, system: Any, **changes: Any
) -> tuple[dict[str, torch.Tensor], Rollouts, Scores, Any]:
    """One SGD step; the gradient it took, the rollouts it took it on, and the trainer."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig

    from guerdon.engines.trl import CreditTrainer, RolloutLog
    from guerdon.tasks.tiny import char_tokenizer

    model = AutoModelForCausalLM.from_pretrained(policy)
    with torch.no_grad():  # an untrained policy ends one text in a hundred
        model.get_output_embeddings().weight[char_tokenizer().eos_token_id] *= 3
    seen: list[Any] = []
    settings = dict(
        output_dir=str(folder), per_device_train_batch_size=16, num_generations=4, max_completion_length=16, max_steps=1,
        learning_rate=0.25, lr_scheduler_type="constant", temperature=0.8, beta=0.0, loss_type="dr_grpo",
        max_grad_norm=1e9, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=False,
        gradient_checkpointing=False, seed=3,
    )  # fmt: skip
    trainer = CreditTrainer(
        model, system, GRPOConfig(**{**settings, **changes}),  # type: ignore[arg-type]
        Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(8)]), processing_class=char_tokenizer(),
        monitors=[lambda rollouts, scores: seen.append((rollouts, scores)) and None],
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.25), None), rollout_log=RolloutLog(every=0),
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    gradient = {name: (before[name] - p.detach()) / 0.25 for name, p in model.named_parameters()}
    trainer.before = before
    return gradient, *seen[0], trainer


def by_hand(policy: str, before: dict[str, torch.Tensor], rollouts: Rollouts, right: torch.Tensor, weights: Any) -> Any:
    """grad of alpha mean over rows of w (r_s - r_v)^2, every row in a forward of its own."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    model.load_state_dict(before, strict=False)
    assert rollouts.completion_ids is not None and rollouts.prompt_ids is not None and rollouts.prompt_mask is not None
    assert rollouts.finished is not None
    total = torch.zeros(())
    for row in rollouts.finished.nonzero()[:, 0].tolist():
        ids = torch.cat(
            [rollouts.prompt_ids[row][rollouts.prompt_mask[row]], rollouts.completion_ids[row][rollouts.mask[row]]]
        )
        logprob = model(ids[None]).logits[0, -1].log_softmax(-1)[96]
        total = total + weights[row] * (0.25 * (logprob + 8.0) - right[row]) ** 2
    loss = 0.1 * total / len(rollouts)
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


OPTIONS: dict[str, Any] = {"token": 96, "constant": -8.0, "beta": 0.25, "warmup": 0}


@pytest.mark.parametrize("balance", [True, False])
def test_where_rewards_are_flat_the_step_is_the_scores_gradient_alone(
    policy: str, tmp_path: Any, balance: bool
) -> None:
    gradient, rollouts, scores, trainer = step(
        policy, tmp_path, laser(verifier=Half(flat=True), mix=0.0, balance=balance, **OPTIONS)
    )
    assert rollouts.finished is not None and 3 < int(rollouts.finished.sum()) < 16, "some end, some are cut"
    expected = by_hand(policy, trainer.before, rollouts, torch.ones(16), [0.5 if balance else 1.0] * 16)
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 1e-4
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, rtol=2e-3, atol=1e-3 * largest)
    logged = trainer.state.log_history[0]
    finished = scores.raw["self"].values[:, 0][rollouts.finished]
    assert logged["objective/self_reward_right"] == pytest.approx(float(finished.mean()), rel=1e-4)


def test_the_step_is_grpos_plus_the_scores(policy: str, tmp_path: Any) -> None:
    """No policy gradient reaches the token of the score, and class weights are those of the whole batch."""
    from guerdon.systems.outcome import grpo

    plain, *_ = step(policy, tmp_path / "a", grpo(verifier=Half(), eps=1e-6))
    ours, rollouts, scores, trainer = step(policy, tmp_path / "b", laser(verifier=Half(), mix=0.0, **OPTIONS))
    right = scores.raw["answer"].values[:, 0]
    weights = class_weights(right > 0.5, rollouts.finished)  # type: ignore[arg-type]
    own = by_hand(policy, trainer.before, rollouts, right, weights)
    largest = max(float(g.abs().max()) for g in own.values())
    for name, value in own.items():
        torch.testing.assert_close(ours[name] - plain[name], value.float(), rtol=5e-3, atol=2e-3 * largest)
    parts, *_ = step(
        policy, tmp_path / "c", laser(verifier=Half(), mix=0.0, **OPTIONS),
        per_device_train_batch_size=4, gradient_accumulation_steps=4,
    )  # fmt: skip
    for name, value in ours.items():
        torch.testing.assert_close(parts[name], value, rtol=2e-3, atol=1e-3 * largest)


def test_without_its_parts_it_is_grpo_to_the_last_bit(policy: str, tmp_path: Any) -> None:
    from guerdon.systems.outcome import grpo

    plain, *_ = step(policy, tmp_path / "a", grpo(verifier=Half(), eps=1e-6))
    ours, *_ = step(policy, tmp_path / "b", laser(verifier=Half(), mix=0.0, coefficient=0.0, **OPTIONS))
    assert all(torch.equal(value, ours[name]) for name, value in plain.items())


def test_calibration_comes_before_the_first_scores(policy: str, tmp_path: Any) -> None:
    system = laser(verifier=Half(), token=96, beta=0.5, warmup=0, mix_after=0)
    _, rollouts, scores, trainer = step(policy, tmp_path, system)
    assert not scores.raw["self"].failed.any() and rollouts.finished is not None
    assert float(scores.raw["self"].values[rollouts.finished].mean()) == pytest.approx(0, abs=1e-5)
    assert torch.equal(scores.reward, scores.raw["answer"].values[:, 0]), "the score is no part of the reward"
    assert 0 <= scores.metrics["self/auroc"] <= 1 and "self/f1" in scores.metrics
    assert trainer.state.log_history[0]["self/constant"] == pytest.approx(system.signals["self"].calibration.constant)


def test_objectives_refuse_what_they_cannot_do(lm: Any) -> None:
    with pytest.raises(ConfigError, match="divide="):
        SelfRewardRegression(signal(lm), divide="tokens")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="coefficient="):
        SelfRewardRegression(signal(lm), coefficient=-1.0)


def test_it_trains_from_the_command_line_and_scores_files(policy: str, tmp_path: Any) -> None:
    pytest.importorskip("trl")
    import json

    from typer.testing import CliRunner

    from guerdon.cli.main import app
    from guerdon.lm import LocalModel

    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}+{i}=", "answer": str(2 * i)}) + "\n" for i in range(12)))
    run = CliRunner().invoke(
        app,
        ["train", "--system", "laser:token=96,beta=0.5", "--task", f"{data},verifier=exact", "--model", policy,
         "--steps", "2", "--out", str(tmp_path / "run"), "--group-size", "2", "--set", "prompts_per_step=4", "--set",
         "eval_prompts=2", "--set", "max_completion_length=30", "--quiet"],
    )  # fmt: skip
    assert run.exit_code == 0, run.output + str(run.exception)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and {"answer", "self"} <= lines[0]["components"].keys() and "self/f1" in lines[0]["chain"]
    assert lines[0]["reward"] == lines[0]["components"]["answer"]["mean"]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"prompt": p, "completion": t}) + "\n" for p, t in zip(PROMPTS, TEXTS, strict=True))
    )
    command = ["score", str(source), str(target), "--model", policy, "--quiet", "--reward"]
    refused = CliRunner().invoke(app, [*command, "last_token:token=96"])
    assert refused.exit_code and "needs constant" in str(refused.exception)
    scored = CliRunner().invoke(app, [*command, "last_token:token=96,constant=-5.0"])
    assert scored.exit_code == 0, scored.output + str(scored.exception)
    model = LocalModel(policy)
    found = [json.loads(line)["reward"] for line in target.read_text().splitlines()]
    assert found == pytest.approx([0.1 * (alone(model, row) + 5.0) for row in range(3)], abs=1e-5)
