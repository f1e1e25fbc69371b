"""Measuring on the real torch executor: a little of everything, kept as it comes."""

from dataclasses import replace

import numpy as np
import pytest

from engine.errors import BadSettings, UnknownName
from engine.execution import Batch, Chunk, Machine, executors
from engine.execution.profile import ProfileOptions
from engine.execution.profile_file import COPIES, read_profile
from engine.settings import ExecutorSettings
from engine.stand_ins import make_stand_ins
from sim.profile import fit, measure
from sim.profile.grid import Cell, Part
from sim.profile.measuring import LEAST_CELLS, model_of
from sim.profile.points import Notes, Visit
from sim.profile.rig import Rig, bare_sequence, counted

pytestmark = pytest.mark.torch
QUICK = {"budget_s": 0.2, "context_tokens": 128}


def test_a_model_is_measured_fitted_and_simulated(small, tmp_path, clock):
    told = []
    points = measure(small, "llama", **QUICK, told=lambda *each: told.append(each))
    assert len({visit.cell for visit in points.visits}) >= min(LEAST_CELLS, len(points.cells))
    assert [count for _, count, _ in told] == list(range(1, len(points.visits) + 1))
    assert points.copies.keys() == set(COPIES)
    assert points.load_s["made"] > 0
    assert points.measured["time"] == "of the thread"
    path = tmp_path / "llama.json"
    fit(points, 1).save(path)
    profile = read_profile(path)
    assert profile.shape == small.fleet.models[0].stand_in
    assert profile.machine["cores"] >= 1
    model, options = small.fleet.models[0], ProfileOptions(path=str(path), spread=False)
    executor = executors.make("profile", Machine(model, None, clock, 4, 1), options)
    predicted = executor.duration_ns(Batch([Chunk(bare_sequence(0, np.zeros(64, dtype=np.int32), 0), 64)]))
    assert 10_000 < predicted < 1_000_000_000


def test_a_cell_is_the_step_that_it_says(small):
    rig = Rig(small, small.fleet.models[0])
    cell = Cell(40, 32, 3, (Part("cached", 32, 10, True), Part("later", 32, 30, False)), (20, 40, 60), 1)
    seen, step = [], rig.executor.step

    async def watched(batch):
        chunks = [
            (each.sequence.computed_tokens, each.sequence.cached_tokens, each.num_tokens)
            for each in batch.chunks
        ]
        seen.append((chunks, [each.computed_tokens for each in batch.decodes], rig_counts(batch)))
        return await step(batch)

    from engine.execution.terms import counts as rig_counts  # noqa: PLC0415

    rig.executor.step = watched
    found = rig.observe(cell, 2)
    rig.close()
    measured = [each for each in seen if [new for _, _, new in each[0]] == [10, 30]]
    assert len(measured) == 3  # once before it counts
    assert len(found.durations_ns) == 2
    for chunks, contexts, units in measured:
        assert chunks == [(32, 32, 10), (32, 31, 30)]
        assert sorted(contexts) == [20, 40, 60]
        assert units == rig_counts(counted(cell))
    assert all(each > 0 for each in (*found.durations_ns, *found.yard_ns))


def test_whoever_is_interrupted_goes_on_with_the_points_that_are_kept(small, tmp_path, monkeypatch):
    notes, whole = tmp_path / "out.json.points", Rig.observe
    visits = []

    def interrupted(self, cell, repeats):
        visits.append(cell)
        if len(visits) > 12:
            raise KeyboardInterrupt
        return whole(self, cell, repeats)

    monkeypatch.setattr(Rig, "observe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(small, "llama", **QUICK, notes=notes)
    monkeypatch.undo()
    kept = len(notes.read_text().splitlines()) - 1
    assert kept == 12 - 3  # the first three warm up
    points = measure(small, "llama", **QUICK, notes=notes)
    assert len(notes.read_text().splitlines()) - 1 == len(points.visits) > kept
    least = min(LEAST_CELLS, len(points.cells))
    assert (
        len({visit.cell for visit in points.visits[:least]}) == least
    )  # nothing twice before all are reached


def test_points_of_something_else_are_not_mixed_in(small, tmp_path):
    notes = tmp_path / "out.json.points"
    with Notes(notes, {"seed": 1}):
        pass
    with pytest.raises(BadSettings, match=r"out\.json\.points holds points of something else"):
        measure(small, "llama", **QUICK, notes=notes)


def test_a_line_that_is_not_whole_is_left_out(tmp_path):
    path = tmp_path / "points"
    with Notes(path, {"a": 1}) as notes:
        notes.add(Visit(cell=3, durations_ns=[5], yard_ns=[6]))
    with path.open("a") as file:
        file.write(
            '[1, [2], [3]]\n[1, [0], [3]]\n[1, [], [3]]\n["x", [2], [3]]\n[1, [1e999], [3]]\n7\n[4, [2], ['
        )
    with Notes(path, {"a": 1}) as again:
        assert [visit.cell for visit in again.found] == [3, 1]


def test_only_what_computes_is_measured(small):
    modelled = replace(small, executor=ExecutorSettings(name="roofline", options={}))
    with pytest.raises(BadSettings, match="executor is 'roofline', but must be 'torch'"):
        measure(modelled, "llama", **QUICK)
    with pytest.raises(UnknownName, match="no model is called 'none'; choose from llama"):
        measure(small, "none", **QUICK)
    with pytest.raises(BadSettings, match="budget_s is 0, but must be above 0"):
        measure(small, "llama", budget_s=0)


@pytest.mark.slow
def test_a_model_with_files_is_found_in_its_folder_loaded_cold_and_mapped(small, tmp_path):
    make_stand_ins(tmp_path / "models", ["phi-4"])
    settings = replace(small, models=replace(small.models, folder=str(tmp_path / "models")))
    model = model_of(settings, "phi-4")
    assert model.path is not None
    points = measure(settings, "phi-4", **QUICK)
    assert points.load_s.keys() == {"cold", "mapped"}
    assert points.load_s["mapped"] < points.load_s["cold"]
    assert points.measured["of"] == "its weights"
    # what was converted for the stopwatch is gone
    assert not list((tmp_path / "models").rglob("*.safetensors"))
    fit(points, 1).save(tmp_path / "phi-4.json")
    options = ProfileOptions(path=str(tmp_path))
    assert executors.find("profile").weights_bytes(model, options) == 4 * model.architecture.parameters
