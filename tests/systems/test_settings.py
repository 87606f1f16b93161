"""The loss side of the published runs: TRL takes every preset, every value has a source, and `guerdon train` applies them as its page says."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import guerdon as gd
from guerdon import ConfigError
from guerdon.cli.config import CompareConfig, RunConfig, resolve
from guerdon.cli.presets import in_use, preset_line
from guerdon.systems import SYSTEMS, VARIANTS
from guerdon.systems.base import describe, settings_of
from guerdon.systems.reproductions.tables import settings_block
from guerdon.systems.settings import CLIP_RANGE, SOURCES, applied, settings

PUBLISHED = [slug for slug in SYSTEMS if slug != "outcome"]


@pytest.mark.parametrize("name", [*SYSTEMS, *VARIANTS])
def test_trl_takes_every_preset(name: str, tmp_path: Any) -> None:
    from trl import GRPOConfig

    preset = gd.systems.preset(name)
    group = preset.get("num_generations", 8)
    args = GRPOConfig(str(tmp_path), **preset, per_device_train_batch_size=group, use_cpu=True, bf16=False)
    for field, value in preset.items():
        assert getattr(args, field) == value, field
    preset["beta"] = 9.0
    assert gd.systems.preset(name).get("beta") != 9.0, "a copy, to be changed at will"


@pytest.mark.parametrize("slug", PUBLISHED)
def test_every_published_system_says_what_it_was_trained_with(slug: str) -> None:
    rows = settings_of(slug).rows()
    assert rows and all(source in SOURCES and value for _, value, source in rows)
    shown = describe(slug)
    for setting, value, source in rows:
        assert f"{value}  [{source}]" in shown and setting in shown and value in settings_block(slug)


def test_the_catalogue_has_them_as_data() -> None:
    from guerdon.systems.catalogue import catalogue

    rows = {row["slug"]: row["settings"] for row in catalogue()}
    assert rows["rlpr"] == gd.systems.preset("rlpr") and rows["outcome"] == {}


def test_the_papers_own_numbers() -> None:
    """A few from each kind of source, as the sheets have them."""
    rlpr = settings_of("rlpr")
    assert (rlpr.fields["epsilon"], rlpr.fields["epsilon_high"], rlpr.fields["beta"]) == (0.2, 0.27, 0.0)
    assert rlpr.sources["epsilon_high"] == "code"
    assert (
        gd.systems.preset("pure")["max_completion_length"] == 7168 and gd.systems.preset("pure")["num_generations"] == 8
    )
    assert gd.systems.preset("sar")["beta"] == 0.001 and gd.systems.preset("sar")["num_generations"] == 6
    assert gd.systems.preset("igpo")["num_generations"] == 16
    assert gd.systems.preset("co_reward")["beta"] == 0.005 and gd.systems.preset("co_rewarding_ii")["beta"] == 0.001
    assert gd.systems.preset("nover")["epsilon"] == 0.1 and gd.systems.preset("likelihood")["num_generations"] == 32
    assert settings_of("hybrid_multi_aspect").sources["beta"] == "guess"
    assert gd.systems.preset("pure:credit=sum") == gd.systems.preset("pure_sum") == gd.systems.preset("pure")
    assert gd.systems.preset("cdr") == gd.systems.preset("outcome") == {}
    with pytest.raises(ConfigError, match="no system 'rlrp'"):
        gd.systems.preset("rlrp")


def test_settings_refuse_what_has_no_source_or_two() -> None:
    with pytest.raises(ConfigError, match="two sources"):
        settings(paper={"beta": 0.1}, code={"beta": 0.2})
    with pytest.raises(ConfigError, match="no source"):
        settings(shown={"batch": "128 prompts"})


def run(system: str, model: str = "smollm2", sets: tuple[str, ...] = (), **flags: Any) -> RunConfig:
    config: RunConfig = resolve(RunConfig, None, {"system": system, "model": model, **flags}, list(sets))
    return config


def test_train_applies_the_preset_to_real_models_and_flags_win() -> None:
    config = run("rlpr")
    assert (config.group_size, config.learning_rate, config.beta, config.loss_type) == (8, 1e-6, 0.0, "dapo")
    assert config.grpo == {"epsilon": 0.2, "epsilon_high": 0.27}
    assert config.max_completion_length is None, "the task's"
    own = run("rlpr", sets=("grpo.epsilon_high=0.4", "beta=0.1"), learning_rate=1e-5, group_size=4)
    assert (own.group_size, own.learning_rate, own.beta) == (4, 1e-5, 0.1)
    assert own.grpo == {"epsilon": 0.2, "epsilon_high": 0.4}
    taken, instead = in_use(own)
    assert taken == {"temperature": 1.0, "epsilon": 0.2, "loss_type": "dapo"}
    assert instead == {"group_size": 4, "learning_rate": 1e-5, "beta": 0.1, "epsilon_high": 0.4}
    line = preset_line(own)
    assert "published settings of rlpr: " in line and "as you said: " in line and "beta 0.1" in line
    par = run("par:rm=x,shaping=sgfc")
    assert (par.group_size, par.temperature, par.top_p, par.beta) == (5, 0.9, 0.9, 0.005) and par.grpo["top_k"] == 50
    none = run("par:rm=x", sets=("preset=none",))
    assert (none.group_size, none.temperature, none.beta, none.grpo) == (8, 1.0, 0.0, {}) and preset_line(none) == ""
    assert preset_line(run("outcome")) == ""


def test_the_tiny_model_takes_the_clip_range_alone() -> None:
    for name in [*SYSTEMS, *VARIANTS]:
        taken = applied(settings_of(name), tiny=True)
        assert taken.keys() <= CLIP_RANGE
        config, default = run(name, "tiny"), RunConfig(system=name)
        assert config.model_copy(update={"grpo": {}}) == default, "its own settings otherwise"
        assert config.grpo == taken


def test_the_demo_of_the_readme_trains_with_the_settings_it_was_recorded_with() -> None:
    for config in CompareConfig().runs():
        assert config.preset == "none" and config.grpo == {}
        assert (config.group_size, config.beta, config.temperature, config.loss_type) == (8, 0.0, 1.0, "dapo")


def test_arms_share_one_setting_unless_each_is_to_have_its_papers() -> None:
    shared = CompareConfig(systems=["igpo", "sar"], model="smollm2", seeds=1).runs()
    assert [r.group_size for r in shared] == [8, 8] and all(r.grpo == {} and r.beta == 0.0 for r in shared)
    published = CompareConfig(systems=["igpo", "sar"], model="smollm2", seeds=1, preset="published", beta=0.2).runs()
    assert [r.group_size for r in published] == [16, 6] and [r.beta for r in published] == [0.2, 0.2]
    assert [r.loss_type for r in published] == ["grpo", "dr_grpo"]


def test_an_arm_s_file_gives_the_same_run(tmp_path: Any) -> None:
    from guerdon.cli.config import save

    for config in (run("igpo"), *CompareConfig(systems=["igpo"], model="smollm2", preset="published").runs()):
        save(config, tmp_path)
        assert resolve(RunConfig, tmp_path / "config.yaml", {}, []) == config


def test_the_trainer_s_configuration_has_what_the_preset_says(tmp_path: Any) -> None:
    """What `guerdon train` hands to TRL, built from the run's record alone."""
    from types import SimpleNamespace

    from guerdon.cli.train import grpo_config

    parts: Any = SimpleNamespace(task=SimpleNamespace(max_completion_length=64))
    args = grpo_config(run("co_reward"), parts, tmp_path)
    assert (args.beta, args.epsilon, args.delta, args.learning_rate) == (0.005, 0.2, 3.0, 3e-6)
    assert (args.lr_scheduler_type, args.warmup_steps, args.max_completion_length) == ("cosine", 0.1, 64)
    tiny = grpo_config(run("co_reward", "tiny"), parts, tmp_path)
    assert (tiny.beta, tiny.learning_rate, tiny.epsilon, tiny.lr_scheduler_type) == (0.0, 2e-4, 0.2, "constant")


@pytest.mark.parametrize(("prompts", "micro"), [(2, 6), (8, 8), (3, 6), (1, 6)])
def test_a_micro_batch_nobody_set_divides_the_rollouts(prompts: int, micro: int, tmp_path: Any) -> None:
    """SAR's groups of six: 8 rollouts a forward where they fit, the largest number below that where they do not."""
    from types import SimpleNamespace

    from guerdon.cli.train import grpo_config

    parts: Any = SimpleNamespace(task=SimpleNamespace(max_completion_length=64))
    args = grpo_config(run("sar", prompts_per_step=prompts), parts, tmp_path)
    assert args.per_device_train_batch_size == micro
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 6 * prompts
    with pytest.raises(ConfigError, match="micro_batch=5 does not divide"):
        grpo_config(run("sar", sets=("micro_batch=5",), prompts_per_step=prompts), parts, tmp_path)


def test_presets_need_no_trainer() -> None:
    code = "import sys, guerdon; guerdon.systems.preset('rlpr'); assert 'trl' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
