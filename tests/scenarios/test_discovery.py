"""Files that come while the engine runs are found at once; twins find them late, or not, or not what is wrong."""

import tempfile
from time import sleep

import pytest

from engine.engine import Engine
from engine.errors import BadSettings
from engine.registry import Model, Registry, discovery
from scenarios import discovery as story
from tests.scenarios.verdicts import failed, verdicts

SCAN = "a scan of the whole folder, real s"
KNOWN, FINE = "from coming to known, virtual s, the wait for a rescan included", "models known as fine"
HEALTHY = "from coming until all are loaded and healthy, virtual s"
DAMAGED, SERVED = "damaged files listed with a reason", "requests for it that were served"
LOST, SOME = "requests for the others that were not", "models that served some"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made, empty again when a story is over."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_all_that_comes_is_found_and_served(play, temporary, seed):
    run = play(f"seed={seed}")
    assert run.verdict == "pass"
    assert run.measured["scan_s"] > 0
    assert list(temporary.iterdir()) == []
    told = (run.path / "events.jsonl").read_text()
    assert '"folder_looked_at"' in told
    assert "ends inside a metadata key" in told


@pytest.mark.slow
@pytest.mark.torch
def test_the_same_holds_with_real_weights(play):
    run = play("executor=torch")
    assert failed(run) == []


@pytest.mark.slow
def test_headers_of_true_size_are_read_as_quickly(play):
    run = play("size=full")
    assert failed(run) == []
    assert set(run.requests["model"].dropna()) >= {"phi-4@1.0.0"}


def test_twin_that_never_looks_again_is_seen(play, monkeypatch):
    async def blind(self):
        pass

    monkeypatch.setattr(Engine, "rescan", blind)
    run = play()
    assert failed(run) == [KNOWN, HEALTHY, LOST, SOME]
    assert verdicts(run)[FINE] == "inconclusive"


@pytest.mark.slow
def test_twin_that_looks_too_seldom_is_seen(play):
    assert failed(play("models.rescan_every_s=0.9")) == [KNOWN]


@pytest.mark.slow
def test_twin_that_looks_too_slowly_is_seen(play, monkeypatch):
    candidates = discovery._candidates

    def slow(root):
        sleep(0.02)
        return candidates(root)

    monkeypatch.setattr(discovery, "_candidates", slow)
    assert failed(play("scenario.max_scan_s=0.015")) == [SCAN]


@pytest.mark.slow
def test_twin_that_loads_too_slowly_is_seen(play):
    assert failed(play("models.cold_median_s=9", "models.cold_p90_s=12")) == [HEALTHY]


def test_twin_that_says_nothing_of_the_damaged_file_is_seen(play, monkeypatch):
    relearn = Registry.relearn

    def silent(self, changes):
        changes.added = tuple(each for each in changes.added if each.is_healthy)
        return relearn(self, changes)

    monkeypatch.setattr(Registry, "relearn", silent)
    assert failed(play()) == [DAMAGED]


@pytest.mark.slow
def test_twin_that_answers_for_the_damaged_file_is_seen(play, monkeypatch):
    find = Registry.find
    monkeypatch.setattr(
        Registry, "find", lambda self, name: find(self, "phi-4" if name == story.DAMAGED else name)
    )
    assert failed(play()) == [SERVED]


@pytest.mark.slow
def test_twin_in_which_the_damaged_file_takes_another_along_is_seen(play, monkeypatch):
    made = Model.from_checkpoint

    def doubtful(checkpoint, reason=None):
        return made(
            checkpoint, reason or ("its neighbour is damaged" if checkpoint.name == "phi-4" else None)
        )

    monkeypatch.setattr(Model, "from_checkpoint", doubtful)
    assert failed(play()) == [FINE, HEALTHY, LOST, SOME]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("models.folder=.", r"models\.folder is '\.', but must be null"),
        ("models.rescan_every_s=null", r"models\.rescan_every_s is None"),
        ("scenario.models=6", r"scenario\.models is 6, but must be at most 5"),
        ("scenario.asked_from_s=0.5", r"scenario\.asked_from_s is 0\.5, but must be after"),
    ],
)
def test_what_is_no_such_story_is_refused(play, temporary, line, told):
    with pytest.raises(BadSettings, match=told):
        play(line)
    assert list(temporary.iterdir()) == []
