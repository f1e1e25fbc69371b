"""The command `keys`, typed as an operator types it."""

import json
import re

import pytest

from engine.__main__ import main
from engine.clock import unix_ns_of, utc_now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.jsonl"


@pytest.fixture
def typed(capsys):
    """Type a command: its exit code, and what it prints to each side."""

    def type_it(*arguments):
        code = main(["keys", *map(str, arguments)])
        return code, *capsys.readouterr()

    return type_it


def test_a_key_is_printed_once_and_its_hash_is_kept(path, typed):
    code, out, err = typed("add", "--tenant", "acme", "--name", "ci", "--models", "phi-4, auto", path)
    assert code == 0
    assert re.fullmatch(r"my-[A-Za-z0-9_-]{43}\n", out)
    entry = json.loads(path.read_text())
    assert out.strip() not in path.read_text() + err
    assert (entry["tenant"], entry["name"], entry["models"]) == ("acme", "ci", ["phi-4", "auto"])
    assert (entry["admin"], entry["expires"], entry["max_priority"]) == (False, None, None)
    assert abs(unix_ns_of(entry["created"]) - unix_ns_of(utc_now().isoformat())) < 60 * 10**9
    code, listed, _ = typed("list", path)
    assert code == 0
    assert out.strip() not in listed
    assert entry["id"] in listed


def test_all_that_a_key_can_be_is_listed(path, typed):
    typed("add", path, "--tenant", "[bold]ops", "--admin", "--max-priority", "3", "--expires", "2020-01-01")
    typed("add", path, "--tenant", "acme")
    revoked = json.loads(path.read_text().splitlines()[1])["id"]
    assert typed("revoke", revoked, path) == (0, f"revoked {revoked} of tenant 'acme'\n", "")
    code, out, _ = typed("list", path)
    rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines() if " priority" not in line]
    rows = [row for row in rows if len(row) > 5]
    assert code == 0
    assert rows[0][1:5] == ["[bold]ops", "both doors", "all", "up to 3"]
    assert rows[0][-2:] == ["2020-01-01", "expired"]
    assert rows[1][-2:] == ["never", "revoked"]
    assert out.endswith(f"2 keys in {path}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("revoke", "nobody"), "has no key of id 'nobody'"),
        (("add", "--tenant", "a", "--expires", "soon"), "expires is 'soon'"),
        (("add", "--tenant", ""), "tenant is ''"),
        (("add", "--tenant", "a", "--models", ""), "models is ['']"),
    ],
    ids=["unknown", "date", "tenant", "models"],
)
def test_what_cannot_be_is_said_in_a_sentence(path, typed, arguments, words):
    typed("add", "--tenant", "acme", path)
    before = path.read_bytes()
    code, out, err = typed(*arguments, path)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert path.read_bytes() == before


def test_a_file_that_is_not_there_is_made_only_by_add(path, typed):
    assert typed("list", path)[0] == 2
    assert typed("revoke", "a", path)[0] == 2
    assert not path.exists()
    assert typed("add", "--tenant", "a", path)[0] == 0
    code, _, err = typed("add", "--tenant", "a", path.parent / "nowhere" / "keys")
    assert code == 1
    assert "No such file" in err
