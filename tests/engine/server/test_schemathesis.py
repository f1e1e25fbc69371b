"""The server against its own description: whatever it allows and whatever it does not, nothing breaks or hangs.

The examples are drawn by Hypothesis from a fixed seed. Each answer has a status that the description has for that
route, the content type and the shape that stand there; what breaks the description is never taken as if it did not.
"""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as hypothesis_settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from engine.server.openapi import PATH
from engine.server.settings import LimitsSettings
from tests.engine.server.conftest import modelled
from tests.engine.server.raw import figures, get, lets_in, quiet, until

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
PATIENCE_S = 30


@pytest.fixture(scope="module")
def server(serving):
    """One that answers at once, and no more than a little."""
    limits = LimitsSettings(max_output_tokens=32, body_timeout_s=2)
    with serving(modelled(models=("llama", "mistral")), quiet(limits=limits, default_max_tokens=8)) as found:
        yield found
        assert lets_in(found)
        assert until(lambda: figures(found)["in service, waiting"] == (0, 0))


def name_what_there_is(case):
    """A drawn name is that of nothing: models are asked for by one that is known, so that they answer."""
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "llama"
    if "name" in case.path_parameters:
        case.path_parameters["name"] = "mistral"  # which may be unloaded and drained by it


def attack(running, *, admin, examples, mode):
    """So many examples for each operation of a port."""
    port = running.server.admin_port if admin else running.server.port
    page = get(port, PATH).json
    schema = schemathesis.openapi.from_dict(page)
    schema.config.update(base_url=f"http://127.0.0.1:{port}")
    asked, is_negative = 0, mode is GenerationMode.NEGATIVE
    for result in schema.get_all_operations():
        operation = result.ok()
        takes = page["paths"][operation.path][operation.method]
        is_text = [each["schema"]["type"] == "string" for each in takes["parameters"]]
        if is_negative and all(is_text) and "requestBody" not in takes:
            continue  # there is nothing about it that could be wrong: it is there, or it is not
        strategy = operation.as_strategy(generation_mode=mode)

        @seed(20261126)
        @hypothesis_settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=False,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def ask(case):
            nonlocal asked
            asked += 1
            if not is_negative:
                name_what_there_is(case)
            response = case.call(timeout=PATIENCE_S)
            checks = [*CHECKS, negative_data_rejection] if is_negative else CHECKS
            case.validate_response(response, checks=checks)

        ask()
    return asked


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("admin", [False, True], ids=["public", "admin"])
def test_nothing_that_is_drawn_breaks_the_server(server, admin, mode):
    assert attack(server, admin=admin, examples=5, mode=mode) > 10


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("admin", [False, True], ids=["public", "admin"])
def test_nothing_of_much_more_that_is_drawn_breaks_the_server(server, admin, mode):
    assert attack(server, admin=admin, examples=20, mode=mode) > 70
