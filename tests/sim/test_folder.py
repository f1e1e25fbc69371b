"""The run folder: partial until it is whole, and a name that nobody else has."""

import pytest

import sim
from engine.errors import BadSettings
from sim import plots
from sim.folder import RunFolder, put


def test_a_folder_is_partial_until_it_is_published(tmp_path, five):
    folder = RunFolder(tmp_path / "runs", "made_1234")
    assert folder.path.name.endswith("_made_1234.partial")
    folder.told("metrics 1\n")
    folder.write(five, ["seed=3"], with_plots=False)
    final = folder.publish()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [final.name]
    assert final.name.endswith("_made_1234")
    assert (final / "metrics.prom").read_text() == "metrics 1\n"


def test_without_plots_no_picture_and_no_report_is_written(tmp_path, five):
    folder = RunFolder(tmp_path, "made")
    folder.write(five, [], with_plots=False)
    folder.close()
    assert not (folder.path / "plots").exists()
    assert not (folder.path / "report.html").exists()
    assert (folder.path / "requests.parquet").is_file()


def test_names_are_unique_within_a_second_whole_or_partial(tmp_path):
    folders = [RunFolder(tmp_path, "made") for _ in range(5)]
    folders[0].publish()
    folders.append(RunFolder(tmp_path, "made"))
    for folder in folders[1:]:
        folder.publish()
    assert len({folder.path for folder in folders}) == len(list(tmp_path.iterdir())) == 6


def test_an_error_while_writing_leaves_the_folder_partial(tmp_path, five):
    five.manifest["wall_s"] = float("nan")
    folder = RunFolder(tmp_path, "made")
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write(five, [], with_plots=False)
    folder.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]


@pytest.mark.slow
def test_the_same_run_written_twice_gives_the_same_bytes(tmp_path, five):
    written = []
    for number in range(2):
        folder = RunFolder(tmp_path / str(number), "made")
        folder.write(five, ["seed=3"], with_plots=True)
        final = folder.publish()
        written.append(
            {str(path.relative_to(final)): path.read_bytes() for path in final.rglob("*") if path.is_file()}
        )
    assert written[0] == written[1]
    assert len(written[0]) > 15


def test_a_file_in_the_way_is_a_clear_error(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(
        BadSettings, match=r"report\.folder is .*runs', but no run can be written there: File ex"
    ):
        RunFolder(tmp_path / "runs", "made")


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path, monkeypatch):
    def refuse(path, *_args, **_settings):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)  # the superuser may write anywhere
    with pytest.raises(BadSettings, match="no run can be written there: Permission denied"):
        RunFolder(tmp_path, "made")


def test_a_discarded_folder_leaves_nothing(tmp_path):
    RunFolder(tmp_path, "made").discard()
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_pictures_leaves_the_tables_in_a_partial_folder(tmp_path, five, monkeypatch):
    def spill(_run):
        raise MemoryError

    monkeypatch.setitem(plots.plots, "gantt", spill)
    folder = RunFolder(tmp_path, "made")
    with pytest.raises(MemoryError):
        folder.write(five, [], with_plots=True)
    folder.close()
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".partial"
    opened = sim.open_run(left)
    assert opened.requests.equals(five.requests)
    assert opened.checks == five.checks


def test_a_file_that_cannot_be_written_to_its_end_leaves_the_one_before(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    put(tmp_path / "page.html", b"whole")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        put(tmp_path / "page.html", b"torn")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_bytes() == b"whole"


def test_what_was_played_is_all_in_its_folder(played):
    names = {str(path.relative_to(played.path)) for path in played.path.rglob("*") if path.is_file()}
    tables = {f"{name}.parquet" for name in ("requests", "timeseries", "decisions", "facts")}
    texts = {"config.yaml", "overrides.yaml", "events.jsonl", "metrics.prom", "report.html", "report.md"}
    facts = {"manifest.json", "checks.json", "summary.json", "findings.json", "trace.json.gz"}
    assert names == tables | texts | facts | {
        f"plots/{name}.png" for name in plots.plots if name not in plots.left_out(played)
    }


def test_report_tables_writes_no_plots(tmp_path):
    lines = ["executor=roofline", "report=tables", "workload.requests=30", f"report.folder={tmp_path}"]
    run = sim.run("failover", lines)
    assert [path for path in run.path.rglob("*") if path.suffix in {".png", ".html", ".md"}] == []
    assert (run.path / "trace.json.gz").is_file()
