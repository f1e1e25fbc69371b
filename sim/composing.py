"""What Hydra composes of override lines, without composing it anew for each of them.

Most of what `compose` takes (170 ms) goes into the choices: files are read, parsed and merged. A line that sets a
value is put on top of that afterwards. So what the choices give is kept, and a run that differs from earlier ones by
values only, such as a point of a sweep, takes a tenth.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from hashlib import blake2b
from importlib import import_module
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.errors import BadSettings
from engine.settings import require

CONFIG_MODULE = "conf"
OF_HYDRA = {"hydra", "_dummy_empty_config_.yaml"}  # what its store has before anybody registers anything

MOST_KEPT = 128  # a tenth of a megabyte each


@contextmanager
def keeping_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt for an error that hides it: what OmegaConf tidies up halfway can fail in its place."""
    try:
        yield
    except Exception as error:
        if is_interrupted(error):
            raise KeyboardInterrupt from error
        raise


def is_interrupted(error: BaseException | None) -> bool:
    """Whether an error came of Ctrl-C."""
    return error is not None and (
        isinstance(error, KeyboardInterrupt)
        or is_interrupted(error.__cause__)
        or is_interrupted(error.__context__)
    )


def config_folder() -> Path:
    """Where the configuration lies, installed or not."""
    return Path(import_module(CONFIG_MODULE).__path__[0])


def composed_by_hydra(overrides: Sequence[str]) -> DictConfig:
    """What override lines make, the caller's to change. Raises BadSettings, and what Hydra raises."""
    with _left_to_the_caller():
        return _on_what_is_kept(overrides) or _composed(overrides)


def plainly_composed(arguments: Sequence[str]) -> DictConfig | None:
    """The same of a command line; None where it is for Hydra's own: flags, settings of Hydra's, most mistakes."""
    with _left_to_the_caller():
        if any(
            each.startswith("-") for each in arguments
        ):  # a flag is no line, so that none would be looked at
            _check_choices(_read([each for each in arguments if "=" in each and not each.startswith("-")]))
        return _on_what_is_kept(arguments)


def _read(lines: Sequence[str]) -> Sequence[Override]:
    """Override lines as Hydra reads them; none where it cannot, and will say so itself."""
    try:
        return OverridesParser.create().parse_overrides(list(lines))
    except HydraException:
        return []


@contextmanager
def _left_to_the_caller() -> Iterator[None]:
    hydra = GlobalHydra.instance()
    of_the_caller, hydra.hydra = hydra.hydra, None  # a program that uses Hydra itself keeps its own
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = of_the_caller


def _composed(lines: Sequence[str]) -> DictConfig:
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        return compose("config", overrides=list(lines))


def _on_what_is_kept(lines: Sequence[str]) -> DictConfig | None:
    """None where it is not as simple as that, or wrong: Hydra itself has to say what it thinks of it."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(lines))
        _check_choices(parsed)
        if ConfigStore.instance().repo.keys() - OF_HYDRA:
            return None  # whoever registers configurations of his own may do so again between two runs
        values = [each for each in parsed if not _is_choice(each)]
        if not all(map(_is_plain, parsed)):
            return None
        choices = tuple(str(each.input_line) for each in parsed if _is_choice(each))
        config = deepcopy(_chosen(choices, _files()))
        for each in values:
            OmegaConf.update(config, each.key_or_group, each.value(), merge=True)
    except (HydraException, OmegaConfBaseException) as error:
        if is_interrupted(error):
            raise
        return None
    return config


@lru_cache(MOST_KEPT)
def _chosen(lines: tuple[str, ...], as_the_files_are: bytes) -> DictConfig:  # noqa: ARG001  part of the key
    return _composed(lines)


def _files() -> bytes:
    """Another one as soon as a file of the configuration is edited: in a notebook that happens between two runs."""
    digest = blake2b()
    for path in sorted(config_folder().glob("**/*.yaml")):
        stat = path.stat()
        digest.update(f"{path} {stat.st_mtime_ns} {stat.st_size}\n".encode())
    return digest.digest()


def _check_choices(parsed: Sequence[Override]) -> None:
    """Raise BadSettings for a choice that is no name: Hydra takes it for a mistake of the program's."""
    for each in parsed:
        key, value = each.key_or_group, each.value()
        if not key:
            raise BadSettings(f"{each.input_line!r} is no setting: write KEY=VALUE")
        if each.type is OverrideType.DEL or each.is_sweep_override() or isinstance(value, dict):
            continue
        names = value if isinstance(value, list) else [value]
        if (_is_choice(each) or "/" in key) and not (names and all(isinstance(name, str) for name in names)):
            known = sorted(path.stem for path in (config_folder() / key).glob("*.yaml"))
            require(key, value, False, f"one of {', '.join(known)}" if known else "the name of a choice")


def _is_choice(override: Override) -> bool:
    key = override.key_or_group
    return "." not in key and (config_folder() / key).is_dir()


def _is_plain(override: Override) -> bool:
    """Whether it is `group=name` or `key=value`: nothing added, taken away or swept, no package, not Hydra's own."""
    key, value = override.key_or_group, override.value()
    is_a_change = override.type is OverrideType.CHANGE and override.package is None
    is_one = not override.is_sweep_override() and "/" not in key and key.partition(".")[0] != "hydra"
    return is_a_change and is_one and (not _is_choice(override) or isinstance(value, str))
