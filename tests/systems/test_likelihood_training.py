"""The two-term gradient through the real trainer, against the same gradient written out by hand."""

import pytest
import torch

pytest.importorskip("trl")
from guerdon.credit.likelihood import jensen_advantages, jensen_weights
from guerdon.engines.trl import CreditTrainer, RolloutLog
from guerdon.signals.likelihood import Splice, aggregate
from guerdon.systems.likelihood import likelihood, nover
from guerdon.tasks.tiny import TinyConfig, char_tokenizer, new_model

LR, TEMPERATURE = 0.25, 0.8


def halfway(response: str, reference: str) -> Splice:
    """An untrained policy writes no tags: half of what it wrote is taken for reasoning."""
    kept = len(response) // 2
    return Splice(f"={reference}.", 1, 1 + len(reference), kept=kept, reasoning=kept)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = char_tokenizer()
    new_model(tokenizer, TinyConfig(hidden=16, layers=1, heads=2, intermediate=32, positions=64), 0).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


def config(folder, **changes):
    from trl import GRPOConfig

    settings = dict(
        output_dir=str(folder), per_device_train_batch_size=8, num_generations=4, max_completion_length=10, max_steps=1,
        learning_rate=LR, lr_scheduler_type="constant", temperature=TEMPERATURE, beta=0.0, loss_type="dr_grpo",
        max_grad_norm=1e9, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=False,
        gradient_checkpointing=False, seed=3,
    )  # fmt: skip
    return GRPOConfig(**{**settings, **changes})


def dataset(references=("41", "7", "twelve")):
    from datasets import Dataset

    return Dataset.from_list([{"prompt": f"{i}+{i}=", "answer": references[i % len(references)]} for i in range(8)])


def step(policy, folder, system, data=None, **changes):
    """One SGD step; returns the gradient it took, and the rollouts it took it on."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy)
    seen = []
    trainer = CreditTrainer(
        model, system, config(folder, **changes), dataset() if data is None else data, processing_class=char_tokenizer(),
        monitors=[lambda rollouts, scores: seen.append((rollouts, scores)) and None],
        optimizers=(torch.optim.SGD(model.parameters(), lr=LR), None), rollout_log=RolloutLog(every=0),
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    return {name: (before[name] - p.detach()) / LR for name, p in model.named_parameters()}, *seen[0], trainer


def by_hand(policy, rollouts, thoughts, form, answer_term):
    """grad of mean-over-rows-and-cap of -[A_k log p(reasoning) + R_k], with R_k differentiated by autograd itself."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy).eval(), char_tokenizer()
    reasoning, values, totals = [], [], []
    for row, text in enumerate(rollouts.completions):
        spliced = halfway(text, rollouts.columns["answer"][row])
        # By ids: an untrained policy also samples special tokens, which no text shows.
        head, own = rollouts.prompt_ids[row].tolist(), rollouts.completion_ids[row, : thoughts[row]].tolist()
        ids = torch.tensor([*head, *own, *tokenizer(spliced.text)["input_ids"]])[None]
        logits = model(ids).logits[0] / TEMPERATURE
        logprobs = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        start = len(head) + len(own)
        reasoning.append(logprobs[len(head) - 1 : start - 1].sum())
        answer = logprobs[start + spliced.start - 1 : start + spliced.end - 1]
        values.append(aggregate(answer[None], torch.ones(1, len(answer), dtype=torch.bool), form)[0])
        totals.append(answer.sum())
    value, thought, total = torch.stack(values), torch.stack(reasoning), torch.stack(totals)
    if form == "logprob" and answer_term == "jepo":
        advantages = jensen_advantages(total.detach(), rollouts.groups)[0].float()
        second = jensen_weights(total.detach(), rollouts.groups).float() * total
    else:
        table = value.detach().view(-1, 4)
        advantages = ((table - table.mean(1, keepdim=True)) * 4 / 3).view(-1)
        second = value if answer_term else 0 * value
    loss = -(advantages * thought + second).mean() / 10
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


@pytest.mark.parametrize(
    ("form", "answer_term"),
    [
        ("logprob", True),
        ("logprob", False),
        ("mean_logprob", True),
        ("prob", True),
        ("mean_prob", True),
        ("jepo", True),
    ],
)
def test_the_trainer_takes_the_gradient_of_the_objective(policy, tmp_path, form, answer_term):
    system = likelihood(form=form, splice=halfway, answer_term=answer_term, truncated="score", temperature=TEMPERATURE)
    gradient, rollouts, scores, trainer = step(policy, tmp_path, system)
    same = "logprob" if form == "jepo" else form
    thoughts = scores.raw["likelihood.reasoning"].values[:, 0].long().tolist()
    expected = by_hand(policy, rollouts, thoughts, same, "jepo" if form == "jepo" else answer_term)
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 1e-6
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, rtol=2e-3, atol=2e-4 * largest)
    if answer_term:
        logged = trainer.state.log_history[0]
        mean = float((-scores.raw["likelihood.logprob"].values / scores.raw["likelihood.tokens"].values).mean())
        assert logged["objective/answer_nll"] == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_micro_batches_add_up_to_the_same_step(policy, tmp_path, loss_type):
    def gradient(**changes):
        system = likelihood(splice=halfway, truncated="score", temperature=TEMPERATURE)
        return step(policy, tmp_path, system, loss_type=loss_type, **changes)[0]

    whole, parts = gradient(), gradient(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-6)


def test_rows_without_a_reference_leave_both_terms(policy, tmp_path):
    system = likelihood(splice=halfway, truncated="score", temperature=TEMPERATURE)
    gradient, _, scores, _ = step(policy, tmp_path, system, dataset((None,)))
    assert not scores.keep.any() and all(float(g.abs().max()) == 0 for g in gradient.values())


def test_several_references_train_the_likeliest(policy, tmp_path):
    data = [{"prompt": "1+1=", "answer": ["41", "twelve"]} for _ in range(8)]
    from datasets import Dataset

    system = likelihood(splice=halfway, truncated="score", temperature=TEMPERATURE, references="first")
    first, *_ = step(policy, tmp_path, system, Dataset.from_list(data))
    system = likelihood(splice=halfway, truncated="score", temperature=TEMPERATURE)
    best, _, scores, _ = step(policy, tmp_path, system, Dataset.from_list(data))
    assert scores.raw["likelihood.tokens"].values.unique().tolist() == [2.0]  # fewer tokens, likelier
    for name, value in first.items():
        torch.testing.assert_close(best[name], value, rtol=1e-3, atol=1e-6)


def test_nover_trains_and_its_proxy_is_another_model(policy, tmp_path):
    system = nover(every=1, truncated="score")
    _, _, scores, trainer = step(policy, tmp_path, system)
    assert scores.raw["proxy.placed"].values.sum() == 0, "an untrained policy writes no tags"
    proxy, live = trainer.instruments.by_role["proxy"].model, trainer.instruments.policy.model
    assert proxy is not live and trainer.state.log_history[0]["proxy/synced"] == 1.0


def test_scoring_at_another_temperature_than_sampling_is_told(policy, tmp_path):
    with pytest.warns(UserWarning, match=r"divides logits by 1.0.* sampled at temperature 0.8"):
        step(policy, tmp_path, likelihood(splice=halfway, truncated="score"))
