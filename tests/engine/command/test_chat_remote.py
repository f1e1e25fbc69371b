"""The command `chat` with a server that runs, over real HTTP."""

import re
from dataclasses import replace

import pytest

from engine.__main__ import main
from engine.command.chat_remote import RemoteConversation
from engine.command.remote import Door, NoAnswer
from engine.request import Sampling
from engine.server.key_file import add_key
from tests.engine.command.test_status import QUIET
from tests.engine.server.conftest import modelled, running


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A server that wants a key, and that key."""
    file = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    key, _ = add_key(file, "acme", created="2026-01-01T00:00:00+00:00")
    with running(modelled(), replace(QUIET, keys_file=str(file))) as found:
        yield found, key


def test_the_second_question_brings_the_conversation_and_finds_it_in_the_cache(keyed, capsys, monkeypatch):
    server, key = keyed
    monkeypatch.setenv("MODELYARD_KEY", key)
    code = main(
        ["chat", "--server", server.url, "--max-tokens", "20", "Good morning to you all!", "Good night"]
    )
    out, err = capsys.readouterr()
    assert code == 0
    assert len(out.splitlines()) == 2
    first, second = re.findall(r"\[20 tokens, (\d+) of (\d+) of the prompt cached, length\]", err)
    assert int(first[0]) == 0
    assert int(second[0]) > int(first[1]) // 16 * 16 - 16
    assert int(second[1]) > int(first[1])


def test_what_is_asked_is_typed_where_it_is_not_given(keyed, capsys, monkeypatch):
    server, key = keyed
    monkeypatch.setenv("MY_KEY", key)
    lines = iter(["Hello", " ", "And again"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or _end())
    assert (
        main(["chat", "--server", server.url, "--key-env", "MY_KEY", "--model", "llama", "--max-tokens", "2"])
        == 0
    )
    assert capsys.readouterr().err.count("2 tokens") == 2


def _end():
    raise EOFError


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "nobody"], 2, "'nobody'"),
        (["--key-env", "NONE_SUCH"], 2, "--key-env is 'NONE_SUCH', but no variable of that name holds a key"),
        (["--max-tokens", "0"], 2, "max_tokens"),
    ],
)
def test_what_is_wrong_is_one_sentence(keyed, capsys, monkeypatch, arguments, code, words):
    server, key = keyed
    monkeypatch.setenv("MODELYARD_KEY", key)
    assert main(["chat", "--server", server.url, *arguments, "Hello"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


def test_without_its_key_it_is_refused(keyed, capsys):
    assert main(["chat", "--server", keyed[0].url, "Hello"]) == 2
    assert "API key" in capsys.readouterr().err


def test_a_question_that_was_not_answered_is_no_part_of_the_conversation(unused_port):
    server = Door(f"http://127.0.0.1:{unused_port}")
    conversation = RemoteConversation(server, "llama", Sampling(seed=1), 4)
    with pytest.raises(NoAnswer, match="does not answer"):
        conversation.ask("Hello", lambda piece: None)
    assert conversation.messages == []
