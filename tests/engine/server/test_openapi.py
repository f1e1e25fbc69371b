"""The description of the server: all routes and no other, and bounds as they are set."""

import pytest

from engine.server.openapi import ROUTES, keys_of
from engine.server.settings import LimitsSettings
from tests.engine.server.conftest import modelled
from tests.engine.server.raw import bearer, gates, get, new_key, quiet

PATH = "/openapi.json"


def operations(page):
    return {f"{method.upper()} {path}" for path, each in page["paths"].items() for method in each}


@pytest.fixture(scope="module")
def pages(plain):
    return {port: get(port, PATH).json for port in gates(plain)}


def test_every_route_is_described_in_words_of_its_own_and_nothing_else_is(plain, pages):
    for port, gate in gates(plain).items():
        served = set(keys_of(gate._hot, gate._rest.routes))
        assert operations(pages[port]) == served
        assert served <= set(ROUTES)


def test_what_can_be_described_is_served_unless_there_are_no_jobs(pages):
    described = set().union(*map(operations, pages.values()))
    left = [key for key in ROUTES if key not in described]
    assert all("/v1/files" in key or "/v1/batches" in key or "/admin/jobs" in key for key in left), left


def test_what_is_described_can_be_found(pages):
    """Each reference leads somewhere, and no two operations have one name."""
    for page in pages.values():
        schemas = page["components"]["schemas"]
        found = set()

        def look(value, found=found):
            if isinstance(value, dict):
                found |= {value["$ref"]} if "$ref" in value else set()
                value = list(value.values())
            if isinstance(value, list):
                for each in value:
                    look(each)

        look(page)
        assert {f"#/components/schemas/{name}" for name in schemas} == found
        names = [each["operationId"] for path in page["paths"].values() for each in path.values()]
        assert len(set(names)) == len(names)


def test_bounds_are_those_that_are_set(serving):
    limits = LimitsSettings(max_choices=3, max_output_tokens=77, max_messages=5, max_stop=2)
    with serving(modelled(), quiet(admin_port=None, limits=limits)) as found:
        page = get(found.server.port, PATH).json
    fields = page["components"]["schemas"]["ChatBody"]["properties"]
    assert fields["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 3}
    assert fields["max_tokens"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 77}
    assert fields["messages"]["maxItems"] == 5
    assert fields["stop"]["anyOf"][1]["maxItems"] == 2
    assert page["components"]["schemas"]["ChatBody"]["additionalProperties"] is False
    assert page["security"] == []


def test_probes_need_no_key_and_all_else_does(serving, tmp_path):
    keys = tmp_path / "keys.jsonl"
    key = new_key(keys)
    with serving(modelled(), quiet(admin_port=None, keys_file=str(keys))) as found:
        assert get(found.server.port, PATH).status == 401
        page = get(found.server.port, PATH, bearer(key)).json
    assert page["security"] == [{"key": []}]
    free = {
        path for path, each in page["paths"].items() for about in each.values() if about.get("security") == []
    }
    assert free == {"/health", "/ready"}
