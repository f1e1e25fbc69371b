"""What is served where nobody says: SmolLM2 if it is there, what else lies in the models folder, or stand-ins."""

from pathlib import Path

from engine.registry import Model, discover
from engine.registry.discovery import Found
from engine.settings import ModelSettings
from engine.stand_ins import REFERENCE, make_stand_ins

SMOLLM2 = "smollm2-135m-instruct"
"""What the registry calls the file that `fetch smollm2` leaves in the folder."""

STAND_IN = "stand-in"
"""The tag of those that were made here."""


def default_models(folder: Path) -> tuple[list[ModelSettings], list[str]]:
    """The models that are in memory from the start, and what was done, in sentences. Raises BadSettings, OSError.

    Stand-ins of the five reference models are made where the folder has nothing else: half a second, five megabytes.
    """
    found = discover(folder).healthy if folder.is_dir() else []
    real = [each for each in found if each.checkpoint is not None and STAND_IN not in each.checkpoint.tags]
    small = _named(real, SMOLLM2)
    if small:
        return small[:1], [f"models: {small[0].key} from {small[0].path}"]
    if real:
        return [], [f"models: {len(found)} in {folder}, each loaded when it is first asked for"]
    there = {each.checkpoint.name for each in found if each.checkpoint is not None}
    missing = [name for name in REFERENCE if name.lower() not in there]
    notes = []
    if missing:
        make_stand_ins(folder, missing)
        notes = [
            f"models: made {len(missing)} stand-ins in {folder}; a real one: python -m engine fetch smollm2"
        ]
        found = discover(folder).healthy
    models = [each for name in REFERENCE for each in _named(found, name.lower())[:1]]
    return models, [
        *notes,
        f"models: stand-ins, whose answers are babble: {', '.join(each.name for each in models)}",
    ]


def _named(found: list[Found], name: str) -> list[ModelSettings]:
    """The models of that name that can be served, in the order of their paths."""
    cards = [
        Model.from_checkpoint(each.checkpoint)
        for each in found
        if each.checkpoint is not None and each.checkpoint.name == name
    ]
    return [card.settings for card in cards if card.settings is not None]
