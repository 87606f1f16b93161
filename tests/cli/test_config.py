"""Configuration: flags over file over defaults, errors that name key and value, specs, and runs that may be continued."""

import pytest

from guerdon.cli.config import CompareConfig, RunConfig, check_same, resolve, save, slug
from guerdon.cli.main import split_specs
from guerdon.errors import ConfigError
from guerdon.folders import claim
from guerdon.systems.spec import parse_spec
from guerdon.tasks.arithmetic import sums


def test_flags_win_over_the_file_and_sets_nest(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("system: pure\nsteps: 10\ngrpo: {num_iterations: 2}\n")
    config = resolve(RunConfig, file, {"steps": 20, "seed": None}, ["grpo.epsilon=1e-1", "columns.prompt=question"])
    assert (config.system, config.steps, config.seed) == ("pure", 20, 0)
    assert config.grpo == {"num_iterations": 2, "epsilon": 0.1}
    assert config.columns == {"prompt": "question"}


def test_a_saved_configuration_is_a_configuration(tmp_path):
    config = RunConfig(system="pure:credit=sum", steps=7, learning_rate=1e-3, grpo={"top_k": 5}, preset="none")
    save(config, tmp_path)
    assert resolve(RunConfig, tmp_path / "config.yaml", {}, []) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, r"steps: .*greater than or equal to 0.*\(got -1\)"),
        ({"stepz": 3}, r"stepz: Extra inputs.*\n?.*known settings: .*steps"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_wrong_settings_name_key_and_value(values, message):
    with pytest.raises(ConfigError, match=message):
        resolve(RunConfig, None, values, [])


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("- pure\n")
    with pytest.raises(ConfigError, match="mapping"):
        resolve(RunConfig, file, {}, [])
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        resolve(RunConfig, tmp_path / "none.yaml", {}, [])


def a_run(folder, config, steps=1):
    """A folder as `guerdon train` leaves it after some steps."""
    claim.claim(folder, "train")
    save(config, folder)
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {k + 1}}}\n' for k in range(steps)))


def test_a_folder_continues_only_the_same_run(tmp_path):
    config = RunConfig(steps=5, out=str(tmp_path))
    other = config.model_copy(update={"steps": 6})
    assert check_same(config, tmp_path, restart=False) == "new"
    a_run(tmp_path, config)
    assert check_same(config.model_copy(update={"threads": 2}), tmp_path, restart=False) == "continue"
    with pytest.raises(ConfigError, match="steps: 5 -> 6"):
        check_same(other, tmp_path, restart=False)
    assert check_same(other, tmp_path, restart=True) == "replace"
    with pytest.raises(ConfigError, match="holds a single run, and this is a comparison"):
        check_same(CompareConfig(out=str(tmp_path)), tmp_path, restart=True)


def test_a_run_that_never_took_a_step_is_in_nobodys_way(tmp_path):
    a_run(tmp_path, RunConfig(steps=5), steps=0)
    assert check_same(RunConfig(steps=6), tmp_path, restart=False) == "replace"


def test_a_setting_that_is_younger_than_the_run_stood_at_its_default(tmp_path):
    a_run(tmp_path, RunConfig(steps=5))
    file = tmp_path / "config.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("kl_to_start")))
    assert check_same(RunConfig(steps=5), tmp_path, restart=False) == "continue"
    with pytest.raises(ConfigError, match="kl_to_start: True -> False"):
        check_same(RunConfig(steps=5, kl_to_start=False), tmp_path, restart=False)


def test_restart_is_refused_where_no_run_is_and_a_config_that_cannot_be_read_is_no_traceback(tmp_path):
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    assert check_same(RunConfig(), tmp_path, restart=False) == "new"
    with pytest.raises(ConfigError, match=r"holds no run of Guerdon \(config.yaml in it\)"):
        check_same(RunConfig(), tmp_path, restart=True)
    assert check_same(RunConfig(), tmp_path / "none", restart=True) == "new"
    (tmp_path / "config.yaml").unlink()
    a_run(tmp_path, RunConfig())
    for text in ("", "a: [", "- x"):
        (tmp_path / "config.yaml").write_text(text)
        assert check_same(RunConfig(), tmp_path, restart=False) == "continue"


def test_a_comparison_is_every_system_with_every_seed_in_folders_of_their_own():
    config = CompareConfig(systems=["outcome", "pure:credit=sum"], seeds=2, seed=3, steps=4, out="x")
    runs = config.runs()
    assert [(run.system, run.seed) for run in runs] == [
        ("outcome", 3),
        ("pure:credit=sum", 3),
        ("outcome", 4),
        ("pure:credit=sum", 4),
    ]
    assert len({run.out for run in runs}) == 4 and runs[1].out == "x/pure-credit-sum/seed3"
    assert all(run.steps == 4 for run in runs)


def test_specs():
    assert parse_spec("pure") == ("pure", {})
    name, options = parse_spec("pure:credit=sum,temperature=1e-2,adv_norm=false,prm=org/model-7B,weights=[1, 2]")
    assert name == "pure"
    assert options == {
        "credit": "sum",
        "temperature": 0.01,
        "adv_norm": False,
        "prm": "org/model-7B",
        "weights": [1, 2],
    }
    with pytest.raises(ConfigError, match="key=value"):
        parse_spec("pure:sum")


def test_one_comma_separated_list_of_specs():
    assert split_specs("outcome,pure:credit=sum,temperature=0.1,rlpr") == [
        "outcome",
        "pure:credit=sum,temperature=0.1",
        "rlpr",
    ]


def test_slugs_are_folder_names():
    assert slug("pure:credit=sum,prm=a/b") == "pure-credit-sum-prm-a-b"


def test_few_held_out_questions_are_told_before_the_run():
    from guerdon.cli.train import questions_line

    task = sums(train_size=20, held_out_size=5)
    assert questions_line(task, samples=5) == "sums: 20 questions to train on, 5 held out"
    assert questions_line(task, samples=128).endswith("takes 128 samples, so it asks them more than once")
