"""Parts of a file that are not there, asked for over real HTTP."""

import openai
import pytest

from engine.server.settings import JobSettings, LogSettings, ServerSettings
from tests.engine.server.conftest import modelled


@pytest.fixture(scope="module")
def server(serving):
    settings = ServerSettings(port=0, admin_port=0, log=LogSettings(level="off"), jobs=JobSettings())
    with serving(modelled(), settings) as found:
        yield found


@pytest.mark.parametrize("ranges", ["bytes=6-", "bytes=6-9, 7-", "bytes=-0", "bytes=9-" + "9" * 18])
def test_a_part_that_no_file_has_is_refused_as_an_error_that_tells_how_long_the_file_is(server, ranges):
    client = server.openai()
    file = client.files.create(file=("in.jsonl", b"abcdef"), purpose="batch")
    with pytest.raises(openai.APIStatusError) as told:
        client.files.content(file.id, extra_headers={"range": ranges})
    error, headers = told.value, told.value.response.headers
    assert (error.status_code, error.type, error.code) == (
        416,
        "invalid_request_error",
        "range_not_satisfiable",
    )
    assert "but must be within the 6 bytes of the file" in error.message
    assert (headers["content-range"], headers["content-type"]) == ("bytes */6", "application/json")
    assert "x-request-id" in headers


def test_an_empty_file_has_no_parts_but_is_there(server):
    client = server.openai()
    file = client.files.create(file=("in.jsonl", b""), purpose="batch")
    assert client.files.content(file.id).read() == b""
    with pytest.raises(openai.APIStatusError) as told:
        client.files.content(file.id, extra_headers={"range": "bytes=-1"})
    assert told.value.response.headers["content-range"] == "bytes */0"


def test_the_part_of_another_file_is_all_of_this_one(server):
    http = server.http()
    file = http.post("/v1/files", files={"file": ("x", b"abcdef")}, data={"purpose": "batch"}).json()
    url = f"/v1/files/{file['id']}/content"
    marks = http.get(url).headers
    for name in ("etag", "last-modified"):
        answer = http.get(url, headers={"range": "bytes=4-", "if-range": marks[name]})
        assert (answer.status_code, answer.content) == (206, b"ef")
        answer = http.get(url, headers={"range": "bytes=9-", "if-range": marks[name]})
        assert answer.status_code == 416
    answer = http.get(url, headers={"range": "bytes=9-", "if-range": '"other"'})
    assert (answer.status_code, answer.content) == (200, b"abcdef")
