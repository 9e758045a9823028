"""Requests made from the OpenAPI document, by its rules and against them, to a running server.

Whatever comes, the answer has a status, a content type, headers and a shape that the document
promises, and none is a failure of the server.
"""

import json
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from glimt.api.fields import Label, NoEffect, NotDone
from glimt.api.route import ApiRoute
from glimt.api.routes import ROUTES
from tests.support.good_fields import GOOD, Fields
from tests.support.serving import Serving

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
not_a_server_error = pytest.importorskip("schemathesis.checks").not_a_server_error

POSITIVE = schemathesis.GenerationMode.POSITIVE
NEGATIVE = schemathesis.GenerationMode.NEGATIVE
KEY = {"Authorization": "Bearer operator"}
# Short answers: what is asked matters here, not what is said.
FLAGS = ("--api-key", "user", "--admin-key", "operator", "--max-model-len", "256")
FLAGS += ("--override-generation-config", '{"max_new_tokens": 2}', "--enable-auto-tool-choice")
FLAGS += ("--trust-request-chat-template", "--scheduling-policy", "priority")
FLAGS += ("--tool-call-parser", "glm45", "--reasoning-parser", "glm45")
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
# A server that is paused or asleep answers nothing but 503: that has tests of its own
# (tests/api/test_admin.py).
CLOSING = ("/pause", "/sleep")


@pytest.fixture(scope="module")
def serving(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    with Serving(checkpoint, *FLAGS, log=log) as serving:
        yield serving


@pytest.fixture(scope="module")
def operations(serving: Serving) -> list[Any]:
    request = urllib.request.Request(f"{serving.url}/openapi.json", headers=KEY)
    with urllib.request.urlopen(request) as answer:
        schema = schemathesis.openapi.from_dict(json.load(answer))
    schema.config.update(base_url=serving.url)
    found = [result.ok() for result in schema.get_all_operations()]
    return [each for each in found if each.path not in CLOSING]


def ask(operations: list[Any], mode: Any, max_examples: int) -> None:
    """So many requests of one mode to each operation; one to those that take nothing."""
    wanted = [*CHECKS, checks.negative_data_rejection]
    for operation in operations:

        @settings(
            max_examples=max_examples if operation.body else 1,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            case.call_and_validate(headers=KEY, checks=wanted, timeout=60)

        one()


def ask_together(operations: list[Any], max_examples: int) -> None:
    """Requests with several fields that are done each by itself."""
    for route in bodied():
        operation = next(each for each in operations if each.path == route.path)
        body, fields = GOOD[route.body]
        several = st.sets(st.sampled_from(sorted(fields)), min_size=2, max_size=6)
        ask_each(operation, several.map(partial(merged, body, fields)), max_examples)


def merged(body: Fields, fields: dict[str, Fields], names: set[str]) -> Fields:
    whole = dict(body)
    for name in sorted(names):
        whole |= fields[name]
    return whole


def ask_each(operation: Any, bodies: st.SearchStrategy[Fields], max_examples: int) -> None:
    @settings(max_examples=max_examples, phases=[Phase.generate], database=None)
    @given(body=bodies)
    def one(body: Fields) -> None:
        case = operation.Case(body=body, media_type="application/json")
        case.call_and_validate(headers=KEY, checks=CHECKS, timeout=60)

    one()


def test_requests_by_the_rules_of_the_document_get_documented_answers(
    operations: list[Any],
) -> None:
    ask(operations, POSITIVE, 2)


def test_requests_against_the_rules_of_the_document_are_refused_as_documented(
    operations: list[Any],
) -> None:
    ask([each for each in operations if each.body], NEGATIVE, 3)


def bodied() -> list[ApiRoute]:
    return [route for route in ROUTES if route.body is not None]


def done(kind: type) -> set[str]:
    """The fields that do something when they are sent."""
    fields = msgspec.structs.fields(kind)
    return {each.name for each in fields if each.type not in (Label, NoEffect, NotDone)}


@pytest.mark.parametrize("route", bodied(), ids=lambda route: route.path)
def test_each_field_that_is_done_is_done(operations: list[Any], route: ApiRoute) -> None:
    """Alone, with a value that asks for work; the answer has the documented shape."""
    body, fields = GOOD[route.body]
    assert set(fields) == done(route.body)
    operation = next(each for each in operations if each.path == route.path)
    for name, value in fields.items():
        case = operation.Case(body={**body, **value}, media_type="application/json")
        response = case.call_and_validate(headers=KEY, checks=CHECKS, timeout=60)
        assert response.status_code == 200, (name, response.text)
        assert "x-glimt-ignored-fields" not in response.headers, name


def test_fields_that_are_done_together_are_done_or_refused(operations: list[Any]) -> None:
    ask_together(operations, 5)


@pytest.mark.slow
def test_many_fields_that_are_done_together_are_done_or_refused(operations: list[Any]) -> None:
    ask_together(operations, 150)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_requests_by_the_rules_and_against_them(operations: list[Any]) -> None:
    ask(operations, POSITIVE, 60)
    ask([each for each in operations if each.body], NEGATIVE, 60)
