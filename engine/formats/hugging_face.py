"""A model as a folder in Hugging Face's layout: config.json, and safetensors in one file or several.

Every file that is read is a plain name in the folder, and not a symlink to somewhere else. Nothing named by the
configuration is imported, and pickles are not opened.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import BadModel
from engine.formats.checkpoint import TensorInfo
from engine.formats.files import opened, parse_json, read_at_most, read_exactly, shown
from engine.formats.safe_tensors import read_safetensors

CONFIG, WEIGHTS, INDEX, README = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "README.md",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_CONFIG = 2**24
MAX_INDEX = 2**25
MAX_README = 2**16
MAX_LICENCE = 64

SHARD = re.compile(r"[\w.+-]{1,200}\.safetensors", re.ASCII)
LICENCE = re.compile(r"^license(?P<name>_name)?:[ \t]*['\"]?(?P<value>[\w.+-]+)['\"]?[ \t]*$", re.MULTILINE)


@dataclass(slots=True)
class Folder:
    """What a folder holds: its configuration, its tensors, the files they lie in, and the licence in its README."""

    path: Path
    config: dict[str, Any] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)
    files: tuple[Path, ...]
    licence: str | None


def read_folder(path: Path) -> Folder:
    """The configuration and the headers of all weights. Raises BadModel, which says what is wrong."""
    config_path = _inside(path, CONFIG)
    if not config_path.exists():
        raise BadModel(path, f"has no {CONFIG}")
    config = parse_json(config_path, read_at_most(config_path, MAX_CONFIG), "it")
    if (path / WEIGHTS).exists():
        weights = _inside(path, WEIGHTS)
        tensors = read_safetensors(weights).tensors
        files: tuple[Path, ...] = (weights,)
    elif (path / INDEX).exists():
        tensors, files = _sharded(path)
    else:
        raise BadModel(path, _why_no_weights(path))
    return Folder(path, config, tensors, files, read_licence(path))


def read_licence(folder: Path) -> str | None:
    """The licence that the front matter of README.md names, if there is one."""
    if not (folder / README).is_file():
        return None
    readme = _inside(folder, README)
    with opened(readme) as (file, size):
        text = read_exactly(file, readme, min(size, MAX_README)).decode(errors="replace")
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        return None
    end = next(number for number, line in enumerate(lines[1:], start=1) if line.strip() == "---")
    found = {bool(each["name"]): each["value"] for each in LICENCE.finditer("\n".join(lines[1:end]))}
    licence = found.get(False)
    if licence == "other":
        licence = found.get(True, licence)
    return licence and licence[:MAX_LICENCE]


def _sharded(folder: Path) -> tuple[dict[str, TensorInfo], tuple[Path, ...]]:
    index_path = _inside(folder, INDEX)
    weight_map = parse_json(index_path, read_at_most(index_path, MAX_INDEX), "it").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadModel(index_path, "has no weight_map that says in which file each tensor lies")
    shards: dict[str, dict[str, TensorInfo]] = {}
    tensors: dict[str, TensorInfo] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or file not in shards:
            shards[file] = read_safetensors(_shard(index_path, name, file)).tensors
        if name not in shards[file]:
            raise BadModel(index_path, f"says that tensor {shown(name)} lies in {file}, but it does not")
        tensors[name] = shards[file][name]
    return tensors, tuple(folder / file for file in sorted(shards))


def _shard(index_path: Path, name: str, file: Any) -> Path:
    if not isinstance(file, str) or not SHARD.fullmatch(file):
        raise BadModel(
            index_path,
            f"puts tensor {shown(name)} into {shown(file)}, but that is not the plain name of a .safetensors file",
        )
    shard = _inside(index_path.parent, file)
    if not shard.exists():
        raise BadModel(index_path, f"names {shown(file)}, but there is no such file in the folder")
    return shard


def _inside(folder: Path, name: str) -> Path:
    """The file of that name, which is not a symlink to a place outside the folder."""
    path = folder / name
    if not path.is_symlink():
        return path
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise BadModel(path, "is a symlink that leads nowhere") from error
    if not target.is_relative_to(folder.resolve()):
        raise BadModel(path, "is a symlink to a place outside the folder; copy the file into it")
    return path


def _why_no_weights(folder: Path) -> str:
    names = sorted(each.name for each in folder.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        return f"has safetensors, but neither {WEIGHTS} nor {INDEX}"
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles:
        return (
            f"has its weights only as pickles ({shown(pickles[0])}), which are never loaded because loading one runs"
            " whatever code it holds; convert them to safetensors"
        )
    return f"has no weights: neither {WEIGHTS} nor {INDEX}"
