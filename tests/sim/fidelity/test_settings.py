import pytest

from engine.errors import BadSettings
from sim.fidelity.__main__ import estimate, main
from sim.fidelity.cases import CASES
from sim.fidelity.settings import QUICK, read


def test_settings_of_ours_and_overrides_of_the_run_are_told_apart():
    settings = read(["cases=[bursty,five]", "minutes=2", "fleet.max_batch=8", "seed=3"])
    assert (settings.cases, settings.minutes) == (["bursty", "five"], 2.0)
    assert settings.overrides == ["fleet.max_batch=8", "seed=3"]
    assert read(["cases=bursty,five"]).cases == ["bursty", "five"]
    assert read([]).cases == list(CASES)


def test_the_yardstick_may_be_left_out():
    assert read(["yard_every_s=0"]).yard_every_s == 0
    assert read([]).yard_every_s >= 0.02


def test_quick_fills_in_what_is_not_given():
    settings = read(["--quick", "repeats=3"])
    assert (settings.repeats, settings.requests) == (3, QUICK["requests"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cases=nope"], "cases is 'nope', but must be some of decisions, poisson50"),
        (["cases=[]"], "cases is []"),
        (["repeats=1"], "repeats is 1, but must be at least 2"),
        (["draws=0"], "draws is 0, but must be at least 1"),
        (["minutes=0"], "minutes is 0"),
        (["minutes=long"], "minutes is 'long'"),
        (["requests=0"], "requests is 0"),
        (["poisson"], "'poisson' is no setting"),
        (["max_floor=nan"], "max_floor is nan"),
        (["yard_every_s=0.001"], "yard_every_s is 0.001, but must be 0, or at least 0.02"),
        (["yard_every_s=-1"], "yard_every_s is -1.0, but must be 0, or at least 0.02"),
    ],
)
def test_settings_that_are_no_good_are_named(arguments, said):
    with pytest.raises(BadSettings) as error:
        read(arguments)
    assert said in str(error.value)


@pytest.mark.parametrize("override", ["fleet.nope=1", "strategy=nope", "workload.rate=-1"])
def test_an_override_that_is_no_good_ends_with_2_and_nothing_is_written(override, tmp_path, capsys):
    assert main(["--quick", f"folder={tmp_path / 'out'}", override]) == 2
    assert "modelyard: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_to_resume_must_be_one_of_these_settings(tmp_path, capsys):
    assert main(["--quick", f"resume={tmp_path}"]) == 2
    assert "must be a folder of a comparison" in capsys.readouterr().err
    (tmp_path / "settings.sha256").write_text("other\n")
    assert main(["--quick", f"resume={tmp_path}"]) == 2
    assert "had other settings" in capsys.readouterr().err


def test_how_long_it_takes_is_said_before():
    assert "about 20 minutes" in estimate(read(["minutes=20"]), list(CASES))
    assert "about 10 minutes" in estimate(read(["minutes=30"]), list(CASES)[:3])
    assert "7 requests a run" in estimate(read(["requests=7"]), list(CASES))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulated=nope"], "no executor is called 'nope'"),
        (["profile=nowhere.json"], "profile is 'nowhere.json', but must be a file"),
        (["show"], "show is [], but must be one folder"),
        (["show", "nowhere"], "'nowhere' is no folder of a comparison"),
    ],
)
def test_what_cannot_be_run_or_shown_ends_with_2_and_nothing_is_written(arguments, said, tmp_path, capsys):
    folder = [] if arguments[0] == "show" else [f"folder={tmp_path / 'out'}"]
    assert main([*arguments, *folder]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_case_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "bursty.json").write_text("{")
    assert main(["show", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_help_names_every_setting(capsys):
    assert main(["--help"]) == 0
    assert "max_schedule_delay" in capsys.readouterr().out
