"""The published compositions on rollouts: what they compute end to end, and the catalogue."""

import importlib
import math
import subprocess
import sys

import pytest
import torch

import guerdon
from guerdon import Clock, ConfigError, LogProbs, Rewards, Rollouts, Spans
from guerdon.systems import SYSTEMS, VARIANTS
from guerdon.systems.base import builder_of, describe, published, reproduction_of, vectors_of
from guerdon.systems.catalogue import catalogue
from guerdon.systems.pure import VECTORS

NAN = float("nan")


class Given:
    def __init__(self, values, level="sequence"):
        self.values, self.level = torch.tensor(values), level

    def __call__(self, rollouts, scores):
        if self.level == "sequence":
            return Rewards.sequence(self.values, rollouts)
        spans = rollouts.segment(self.level)
        return Rewards(self.values[:, : spans.start.shape[1]], spans)


TEXTS = ["ab\n\ncd", "efgh", "i\n\nj\n\nk", "lm"]


def batch(texts=TEXTS, groups=(0, 0, 1, 1), **more):
    """One token a character, and an end-of-sequence token."""
    width = max(map(len, texts)) + 1
    mask = torch.zeros(len(texts), width, dtype=torch.bool)
    offsets = torch.zeros(len(texts), width, 2, dtype=torch.long)
    for row, text in enumerate(texts):
        mask[row, : len(text) + 1] = True
        for t in range(width):
            offsets[row, t] = torch.tensor([min(t, len(text)), min(t + 1, len(text))])
    zeros = torch.zeros(len(texts), width)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(texts), width, generator=generator)
    return Rollouts(
        ["p"] * len(texts),
        list(texts),
        completion_ids=torch.ones(len(texts), width, dtype=torch.long),
        completion_mask=mask,
        offsets=offsets,
        group_ids=torch.tensor(groups),
        logprobs={"old": LogProbs(zeros - 1, 1.0), "reference": LogProbs(zeros - 1 - 0.1 * noise, 1.0)},
        **more,
    )


STEPS = [[0.9, -0.4, 0.0], [0.2, 0.0, 0.0], [-0.3, 0.8, 0.5], [-0.9, 0.0, 0.0]]
ANSWERS = [1.0, 0.0, 1.0, 0.0]


def test_pure_equals_its_vector_function_end_to_end():
    """The chain on cut text, against the conformance function on the token rewards written out by hand."""
    rollouts = batch()
    system = guerdon.systems.pure(prm=Given(STEPS, "steps"), verifier=Given(ANSWERS), padded_length="batch")
    scores = system(rollouts)
    mask = rollouts.mask
    transformed = [[0.0] * mask.shape[1] for _ in TEXTS]
    ends = [[3, 6], [4], [2, 5, 7], [2]]  # "ab\n\n" ends at 3; the last step ends with the end-of-sequence token
    for row, (places, values) in enumerate(zip(ends, STEPS, strict=True)):
        r = torch.tensor(values[: len(places)], dtype=torch.float64)
        for place, value in zip(places, (torch.softmax(-r / 0.1, 0) * r).tolist(), strict=True):
            transformed[row][place] += value
        transformed[row][places[-1]] += ANSWERS[row]
    d = rollouts.logprobs["reference"].values - rollouts.logprobs["old"].values
    token_rewards = torch.tensor(transformed) - 0.001 * (d.exp() - d - 1) * mask
    expected = VECTORS["rloo_token_baseline_advantages"](
        token_rewards.tolist(), mask.long().tolist(), [0, 0, 1, 1], True, "sum"
    )
    torch.testing.assert_close(scores.advantages.double(), expected["advantages"], rtol=1e-4, atol=1e-5)
    softmin = [-0.4, 0.2, -0.3, -0.9]
    assert scores.reward.tolist() == pytest.approx([a + m for a, m in zip(ANSWERS, softmin, strict=True)], abs=1e-3)


def test_pure_s_baseline_divides_by_the_length_cap_as_verl_pads_to_it():
    """The vector function on the same rewards padded to the official cap of 7168, and to a cap of 20."""
    rollouts = batch()
    width = rollouts.mask.shape[1]
    options = dict(prm=Given(STEPS, "steps"), verifier=Given(ANSWERS), kl_coef=0.0)
    placed = guerdon.systems.pure(**options, adv_norm=False, padded_length=10**9)(rollouts).advantages.double()
    rewards = (
        placed.clone()
    )  # with a baseline of nothing the advantages are the returns, whose differences are the rewards
    rewards[:, :-1] -= placed[:, 1:]
    found = {}
    for cap in (7168, 20):
        padded = torch.nn.functional.pad(rewards, (0, cap - width))
        mask = torch.nn.functional.pad(rollouts.mask.double(), (0, cap - width))
        expected = VECTORS["rloo_token_baseline_advantages"](padded.tolist(), mask.tolist(), [0, 0, 1, 1], True, "sum")
        found[cap] = guerdon.systems.pure(**options, padded_length=cap)(rollouts).advantages.double()
        torch.testing.assert_close(found[cap], expected["advantages"][:, :width], rtol=1e-4, atol=1e-5)
    assert torch.equal(found[7168], guerdon.systems.pure(**options)(rollouts).advantages.double()), "the default"
    batchwise = guerdon.systems.pure(**options, padded_length="batch")(rollouts).advantages.double()
    assert float((batchwise - found[7168]).abs().max()) > 0.01
    for wrong in (0, -1, "cap"):
        with pytest.raises(ConfigError, match="padded_length"):
            guerdon.systems.pure(**options, padded_length=wrong)


def test_on_the_command_line_the_cap_is_the_run_s():
    from guerdon.systems.context import Context, build
    from guerdon.tasks import load_task

    task = load_task("sums,train_size=20,held_out_size=5")

    def baseline(model, cap=None, spec="pure:prm=anywhere"):
        system = build(spec, Context(task, None, "policy", model, cap))
        return next(link.padded_length for link in system.chain if type(link).__name__ == "LeaveOneOut")

    assert baseline("smollm2") == task.max_completion_length and baseline("smollm2", 300) == 300
    assert baseline("tiny") is None, "the width of the batch, as the recorded tables have it"
    assert baseline("smollm2", 300, "pure:prm=anywhere,padded_length=99") == 99


@pytest.mark.parametrize("baseline", ["token", "step"])
def test_pure_openrlhf_equals_its_vector_function(baseline):
    rollouts = batch()
    system = guerdon.systems.pure(
        prm=Given(STEPS, "steps"),
        verifier=Given(ANSWERS),
        credit="sum",
        baseline=f"openrlhf_{baseline}",
        adv_norm=False,
    )
    scores = system(rollouts)
    spans = system.segmented(rollouts).segment("steps")
    mask = rollouts.mask
    ends = torch.zeros_like(mask, dtype=torch.float64)
    placed = torch.zeros(mask.shape, dtype=torch.float64)
    for row, places in enumerate(spans.to_lists()):
        for step, (_, end) in enumerate(places):
            ends[row, end], placed[row, end] = 1, STEPS[row][step]
    expected = VECTORS["openrlhf_group_advantages"](
        placed.tolist(),
        ends.tolist(),
        ((spans.lengths - 1).clamp(min=0) * spans.mask).tolist(),
        spans.mask.long().tolist(),
        mask.long().tolist(),
        ANSWERS,
        [1] * 4,
        ((rollouts.logprobs["old"].values - rollouts.logprobs["reference"].values) * mask).tolist(),
        2,
        baseline,
        "PRMVR",
        1.0,
        0.001,
        True,
    )
    torch.testing.assert_close(scores.advantages.double(), expected["advantages"] * mask, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask_separators", [True, False])
def test_pure_openrlhf_standardises_over_the_tokens_it_credits(mask_separators):
    """Population variance over all credited tokens of the batch; delimiters that are masked are in no statistic and stay 0."""
    rollouts = batch()
    options = dict(
        prm=Given(STEPS, "steps"), verifier=Given(ANSWERS), baseline="openrlhf_token", mask_separators=mask_separators
    )
    raw = guerdon.systems.pure(**options, adv_norm=False)(rollouts).advantages.double()
    found = guerdon.systems.pure(**options)(rollouts).advantages.double()
    credited = rollouts.mask.clone()
    if mask_separators:
        for row, ends in enumerate([[3, 6], [4], [2, 5, 7], [2]]):
            credited[row, ends] = False
    values = raw[credited]
    expected = torch.zeros_like(raw)
    expected[credited] = (values - values.mean()) / values.var(unbiased=False).sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float((found - raw).abs().max()) > 0.1


def test_prompts_without_answers_get_no_verifier_advantage():
    """Mixed mode: NaN answers (no reference) leave the verifier's part at exactly zero; the steps still train."""
    mixed = [1.0, 0.0, NAN, NAN]
    rollouts = batch()
    both = guerdon.systems.pure(prm=Given(STEPS, "steps"), verifier=Given(mixed), adv_norm=False, kl_coef=0.0)(rollouts)
    alone = guerdon.systems.pure(prm=Given(STEPS, "steps"), adv_norm=False, kl_coef=0.0)(rollouts)
    assert both.keep.all() and torch.equal(both.advantages[2:], alone.advantages[2:])
    assert not torch.allclose(both.advantages[:2], alone.advantages[:2])
    answers_only = guerdon.systems.pure(prm=None, verifier=Given(mixed), mode="vr", kl_coef=0.0)(rollouts)
    assert answers_only.keep.tolist() == [True, True, False, False]
    broken = [[NAN, 0.1, 0.1], *STEPS[1:]]
    assert not guerdon.systems.pure(prm=Given(broken, "steps"), verifier=Given(ANSWERS))(rollouts).keep[0]


def test_filler_pays_under_sums_and_not_under_min_form():
    base, filler = [[0.8, -0.8]], [[0.8, 0.9, 0.9, 0.9, 0.9, -0.8]]
    totals = {}
    for credit in ("min", "sum"):
        for name, values in (("plain", base), ("filled", filler)):
            text = "\n\n".join("x" * len(values[0]))
            system = guerdon.systems.pure(prm=Given(values, "steps"), credit=credit, kl_coef=0.0)
            totals[credit, name] = float(system(batch([text], (0,))).reward[0])
    assert totals["min", "filled"] == pytest.approx(totals["min", "plain"], abs=0.05)
    assert totals["sum", "filled"] == pytest.approx(totals["sum", "plain"] + 4 * 0.9)


def test_few_long_steps_are_favoured_by_the_step_baseline_only():
    texts = ["aaaa\n\nbbbb\n\ncccc\n\ndddd", "aaaa..bbbb..cccc..dddd"] * 2
    values = [[-0.2] * 4, [-0.8, 0, 0, 0]] * 2  # the same worth, in four steps or in one
    spread = {}
    for baseline in ("openrlhf_token", "openrlhf_step"):
        system = guerdon.systems.pure(
            prm=Given(values, "steps"),
            credit="sum",
            baseline=baseline,
            kl_coef=0.0,
            adv_norm=False,
            mask_separators=False,
        )
        advantages = system(batch(texts, (0, 0, 0, 0))).advantages
        spread[baseline] = abs(float(advantages[0, 0] - advantages[1, 0]))
    assert spread["openrlhf_step"] > 1.0
    assert spread["openrlhf_token"] < 0.15


def test_clip_delta_returns_are_each_steps_own_score():
    values = torch.tensor([[0.95, 0.3, 0.7], [0.1, 0.0, 0.0], [0.4, 0.9, 0.2], [0.8, 0.0, 0.0]])
    system = guerdon.systems.clip_delta(
        prm=Given(values.tolist(), "steps"), verifier=Given(ANSWERS), eta=0.5, delimiter="\n\n", kl_coef=0.0
    )
    rollouts = batch()
    scores = system(rollouts)
    clipped = (values - 0.5).clamp(max=0)
    assert scores.reward.tolist() == pytest.approx([1.0, 0, 1 - 0.1, 0], abs=1e-6)
    returns = torch.zeros(rollouts.mask.shape, dtype=torch.float64)
    ends = [[3, 6], [4], [2, 5, 7], [2]]
    for row, places in enumerate(ends):
        start = 0
        for step, end in enumerate(places):
            own = clipped[row, step].item() if step < len(places) - 1 else 0.0
            returns[row, start : end + 1] = own + ANSWERS[row]
            start = end + 1
    estimator = VECTORS["rloo_token_baseline_advantages"]
    differences = returns.clone()
    differences[:, :-1] -= returns[:, 1:]
    expected = estimator(
        (differences * rollouts.mask).tolist(), rollouts.mask.long().tolist(), [0, 0, 1, 1], True, "sum"
    )
    torch.testing.assert_close(scores.advantages.double(), expected["advantages"], rtol=1e-4, atol=1e-5)


def test_delta_credit_has_the_gradient_of_the_step_wise_objective():
    """grad J = sum_k grad log pi_k (alpha r_k + beta success), and beta success for the last step."""
    generator = torch.Generator().manual_seed(3)
    scores, logits = torch.rand(1, 5, generator=generator), torch.randn(5, 4, generator=generator, dtype=torch.float64)
    spans = Spans.from_lists([[(i, i) for i in range(5)]], unit="token", name="steps")
    rollouts = Rollouts(
        ["p"], ["x"], completion_ids=torch.ones(1, 5, dtype=torch.long), completion_mask=torch.ones(1, 5, dtype=torch.bool),
        spans={"steps": spans},
    )  # fmt: skip
    system = guerdon.systems.clip_delta(
        prm=Given(scores.tolist(), "steps"), verifier=Given([1.0]), mode="pr_delta", kl_coef=0.0, alpha=0.5
    )
    system.chain = [link for link in system.chain if type(link).__name__ not in ("LeaveOneOut", "Whiten")]
    advantages = system.credit(system.score(rollouts), rollouts).advantages[0].double()
    weights = torch.cat([0.5 * scores[0, :-1].double() + 1, torch.ones(1, dtype=torch.float64)])
    gradients = []
    for credit in (advantages, weights):
        logits.requires_grad_()
        (gradient,) = torch.autograd.grad((logits.log_softmax(-1)[:, 0] * credit).sum(), logits)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["sr", "pr", "pr_clip", "pr_length_norm", "pr_step_penalty"])
def test_every_mode_of_clip_delta_runs(mode):
    system = guerdon.systems.clip_delta(prm=Given(STEPS, "steps"), verifier=Given(ANSWERS), mode=mode, delimiter="\n\n")
    assert torch.isfinite(system(batch()).advantages).all()
    assert (
        guerdon.systems.clip_delta(prm=None, verifier=Given(ANSWERS), orm=Given(ANSWERS), mode="or")(batch()).reward[0]
        == 2
    )
    with pytest.raises(ConfigError, match="orm"):
        guerdon.systems.clip_delta(prm=None, verifier=Given(ANSWERS), mode="or")
    assert (
        "values"
        in guerdon.systems.clip_delta(prm=Given(STEPS, "steps"), verifier=Given(ANSWERS), estimator="gae").needs
    )


@pytest.mark.parametrize(
    "shaping",
    ["par", "vanilla", "centred", "meanstd", "clip", "minmax", "lsc", "ceil", "tanh", "poly", "sgfc", "sigmoid"],
)
def test_every_shaping_of_par_runs(shaping):
    rollouts = batch(columns={"ref_rewards": [[0.5], [0.5, 1.0], [2.0], []]})
    scores = guerdon.systems.par(rm=Given([1.0, 2.0, 3.0, 4.0]), shaping=shaping, valid_len=3)(rollouts)
    assert torch.isfinite(scores.advantages).all()
    uses_references = shaping in ("par", "centred", "lsc", "tanh", "poly", "sgfc")
    assert scores.keep.tolist() == [True, True, True, not uses_references]
    if uses_references:
        assert "ref_rewards" in scores.notes["dropped"][3]


def test_each_shaping_of_par_is_its_formula():
    """By hand, with the paper's own constants: SGFC's shift of 3, Ceil's limit of 4."""
    raw, references = [1.0, 2.0, 4.5, 7.0], [[0.5], [0.5, 1.0], [2.0], [4.0, 6.0]]
    rollouts = batch(columns={"ref_rewards": references})

    def reward(**options):
        return guerdon.systems.par(rm=Given(raw), **options)(rollouts).reward.tolist()

    def mean_of(f):
        return [sum(f(r - m) for m in refs) / len(refs) for r, refs in zip(raw, references, strict=True)]

    def sigma(x):
        return 1 / (1 + math.exp(-x))

    assert reward(shaping="sgfc") == pytest.approx(mean_of(lambda x: sigma(x - 3)), abs=1e-6)
    assert reward(shaping="sgfc", sigmoid_k=3.0) == pytest.approx(mean_of(lambda x: sigma(3 * (x - 3))), abs=1e-6)
    assert reward(shaping="tanh") == pytest.approx(mean_of(math.tanh), abs=1e-6)
    assert reward(shaping="centred") == pytest.approx(mean_of(lambda x: x), abs=1e-6)
    assert reward(sigmoid_k=2.0) == pytest.approx(mean_of(lambda x: sigma(2 * x)), abs=1e-6)
    assert reward(max_ref=1)[3] == pytest.approx(sigma(3.0), abs=1e-6)
    assert reward(shaping="sigmoid") == pytest.approx([sigma(r) for r in raw], abs=1e-6)
    assert reward(shaping="uncentred_tanh") == pytest.approx([math.tanh(r) for r in raw], abs=1e-6)
    assert reward(shaping="ceil") == [1.0, 2.0, 4.0, 4.0] and reward(shaping="ceil", ceil=2.0) == [1.0, 2.0, 2.0, 2.0]
    assert reward(shaping="vanilla") == raw
    assert reward(shaping="vanilla", valid_len=3, len_penalty=0.5) == [1.0 - 2, 2.0 - 1, 4.5 - 2.5, 7.0], (
        "7, 5, 8 and 3 tokens"
    )


def test_par_s_default_carrier_keeps_what_the_sigmoid_says():
    """A group that is far above its references has nearly equal rewards, so hardly any advantage; division by the std makes it loud again."""
    rollouts = batch(columns={"ref_rewards": [[0.0]] * 4})
    far, near = [12.0, 13.0, -0.5, 0.5], slice(2, 4)
    default = guerdon.systems.par(rm=Given(far))
    assert default.needs == frozenset(), "nothing the trainer does not have"
    kept = default(rollouts).advantages[:, 0]
    assert float(kept[:2].abs().max()) < 1e-5 < 0.1 < float(kept[near].abs().min())
    divided = guerdon.systems.par(rm=Given(far), carrier="grpo")(rollouts).advantages[:, 0]
    assert divided.abs().tolist() == pytest.approx([0.5**0.5] * 4, abs=0.03)
    with pytest.raises(ConfigError, match="carrier"):
        guerdon.systems.par(rm=Given(far), carrier="dpo")


def test_par_reward_is_the_win_probability():
    rollouts = batch(columns={"ref_rewards": [[0.0], [0.0], [0.0], [0.0]]})
    scores = guerdon.systems.par(rm=Given([0.0, 100.0, -100.0, 1.0]))(rollouts)
    assert scores.reward.tolist() == pytest.approx([0.5, 1, 0, 0.731058], abs=1e-5)
    assert guerdon.systems.par(rm=Given([0.0]), carrier="ppo").needs == {"values", "logprobs.old", "logprobs.reference"}


def test_outcome_baselines_by_hand():
    rollouts = batch()
    assert guerdon.systems.dr_grpo(verifier=Given(ANSWERS))(rollouts).advantages[:, 0].tolist() == [
        0.5,
        -0.5,
        0.5,
        -0.5,
    ]
    assert guerdon.systems.rloo(verifier=Given(ANSWERS))(rollouts).advantages[:, 0].tolist() == [1, -1, 1, -1]
    grpo = guerdon.systems.outcome(verifier=Given(ANSWERS))(rollouts).advantages[:, 0]
    assert grpo[0].item() == pytest.approx(0.5 / (0.5**0.5 + 1e-4))
    plain = guerdon.systems.reinforce_pp(verifier=Given(ANSWERS), kl_coef=0.0)(rollouts)
    assert (
        plain.advantages[rollouts.mask].mean().item() == pytest.approx(0, abs=1e-6) and plain.reward.tolist() == ANSWERS
    )
    assert plain.advantages[rollouts.mask].std().item() == pytest.approx(1, abs=1e-5)
    two = guerdon.systems.gdpo(signals={"a": Given(ANSWERS), "b": Given([0.0, 1.0, 1.0, 0.0])})(rollouts)
    assert two.advantages[:, 0].tolist() == pytest.approx([0, 0, 1.2247, -1.2247], abs=1e-3)
    with pytest.raises(ConfigError, match="estimator"):
        guerdon.systems.outcome(verifier=Given(ANSWERS), estimator="ppo")


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "vr"},
        {"credit": "max"},
        {"mode": "both"},
        {"baseline": "trl"},
        {"credit": "strict_min", "baseline": "openrlhf_token"},
    ],
)
def test_wrong_options_of_pure(options):
    with pytest.raises(ConfigError):
        guerdon.systems.pure(prm=Given(STEPS, "steps"), **options)


def test_strict_min_and_mean_run():
    for credit in ("strict_min", "mean"):
        scores = guerdon.systems.pure(prm=Given(STEPS, "steps"), credit=credit)(batch())
        assert torch.isfinite(scores.advantages).all()


# -- the room -------------------------------------------------------------------------------------------------------------


def test_a_systems_name_is_its_function_however_it_was_imported():
    code = (
        "from guerdon.systems.pure import VECTORS\n"
        "import guerdon, sys\n"
        "assert callable(guerdon.systems.pure) and guerdon.systems.pure.__name__ == 'pure'\n"
        "assert 'transformers' not in sys.modules and 'trl' not in sys.modules\n"
        "import guerdon.systems.base; assert guerdon.systems.base.describe\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError):
        guerdon.systems.nothere  # noqa: B018


@pytest.mark.parametrize("name", [*SYSTEMS, *VARIANTS])
def test_every_system_can_be_described_without_its_parts(name):
    text = describe(name)
    assert "link    1." in text and "0x" not in text
    assert callable(builder_of(name))


def test_the_catalogue_is_computed():
    rows = {row["slug"]: row for row in catalogue()}
    assert list(rows) == list(SYSTEMS)
    for slug in ("pure", "rlpr", "clip_delta", "par"):
        assert rows[slug]["vectors"]["passed"] == rows[slug]["vectors"]["total"] > 20
    assert {"slug", "title", "arxiv", "kinds", "vectors", "reproduction"} <= set(rows["pure"])
    assert rows["outcome"]["vectors"] == {"passed": 0, "total": 0, "functions": 0}


def test_the_table_matches_the_modules():
    for slug, entry in SYSTEMS.items():
        module = importlib.import_module(f"guerdon.systems.{entry.module}")
        assert module.PUBLISHED.slug == slug == published(slug).slug
        assert published(slug).summary.endswith(".") and module.__doc__
    assert vectors_of("nobody") == {}
    with pytest.raises(ConfigError, match="there are: outcome"):
        builder_of("nobody")
    with pytest.raises(ConfigError, match="no reproduction"):
        reproduction_of("nobody")


def test_state_survives_a_checkpoint():
    system = guerdon.systems.par(rm=Given([1.0, 2.0, 3.0, 4.0]), shaping="meanstd")
    rollouts = batch(clock=Clock(training=True))
    system.commit(system(rollouts))
    again = guerdon.systems.par(rm=Given([1.0, 2.0, 3.0, 4.0]), shaping="meanstd")
    again.load_state_dict(system.state_dict())
    assert torch.equal(again(rollouts).advantages, system(rollouts).advantages)
    assert again._state == system._state
