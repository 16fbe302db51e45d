"""The OpenAPI document is true: what is answered to anything that fits it, and to much that does not, is as it says."""

import asyncio
import json
import logging
import threading
from types import SimpleNamespace

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sojourn.runner.runner import Runner
from sojourn.server import ApiKeyAuth, JwtAuth, KeyFile, NoAuth, ServerConfig, create_app
from sojourn.server.auth.several import AnyOf
from tests.server.access_matrix import APP, ROWS, keeper, things_of
from tests.server.identity import AUDIENCE, ISSUER, RSA_KEY, key_set
from tests.server.serving import serve

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 6
"""Per route and mode."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server in a thread of its own."""
    keys = KeyFile(tmp_path_factory.mktemp("server") / "keys.json")
    started = threading.Event()
    serving = SimpleNamespace(keys=keys)

    async def main():
        runner = Runner(app_name=APP, agent=keeper)
        app = create_app(runner, ServerConfig(auth=ApiKeyAuth(keys), max_body_bytes=100_000))
        async with serve(app) as serving.url:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            serving.stop = lambda: loop.call_soon_threadsafe(stop.set)
            serving.things_of = lambda user: asyncio.run_coroutine_threadsafe(things_of(runner, user), loop).result(30)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert started.wait(30)
    yield serving
    serving.stop()
    thread.join(30)


@pytest.fixture(scope="module")
def schema(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.fixture
def user(server):
    """A user who has something of everything."""
    things = server.things_of(f"user-{len(server.keys.keys())}")
    return SimpleNamespace(things=things, key=server.keys.add(things.user_id)[0])


def addressed(things):
    """What stands in paths, by the names of the places."""
    return {
        "app_name": APP,
        "user_id": things.user_id,
        "session_id": things.session_id,
        "name": things.name,
        "version": "0",
        "runId": things.run_id,
        "interruptId": things.interrupt_id,
    }


def places(template, things):
    """Those of a path."""
    return {name: value for name, value in addressed(things).items() if f"{{{name}" in template}


def aimed(case, things):
    """Has a request that would miss hit what is there; every other one, so that misses are tried, too."""
    real = {
        **addressed(things),
        "appName": APP,
        "userId": things.user_id,
        "sessionId": things.session_id,
        "newMessage": {"parts": [{"text": "Hello"}]},
        "filename": things.name,
        "artifact": {"text": "Hello"},
        "answer": True,
    }
    for part in (case.path_parameters, case.query, case.body):
        if isinstance(part, dict):
            part.update({name: value for name, value in real.items() if name in part})
            if "newMessage" in part:
                # Of what is left, some is refused for good reasons.
                for name in part.keys() - real.keys() - {"streaming"}:
                    del part[name]
                part.update({"userId": things.user_id, "appName": APP})
    return case


OPERATIONS = [key for key in ROWS if key != ("GET", "/openapi.json")]


@pytest.mark.parametrize(("method", "template"), OPERATIONS, ids=map(" ".join, OPERATIONS))
def test_answers_are_as_the_document_says(method, template, schema, user, caplog):
    caplog.set_level(logging.CRITICAL)
    operation = schema[template.replace("{name:path}", "{name}")][method.lower()]
    session = requests.Session()
    statuses = set()
    row = ROWS[method, template]

    def tell(case):
        response = case.call(session=session, headers={"X-API-Key": user.key}, timeout=20)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    # Whatever is generated, one request of each is as it should be.
    body = row.json(user.things)
    sent = {} if body is None else {"body": body, "media_type": "application/json"}
    tell(operation.Case(path_parameters=places(template, user.things), query=row.query(user.things), **sent))
    assert statuses == {row.owner}

    for mode in GenerationMode:

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            ask.count += 1
            if ask.count % 2:
                case = aimed(case, user.things)
            tell(case)

        ask.count = 0
        try:
            ask()
        except Exception as error:
            if "Unsatisfiable" not in type(error).__name__:
                raise
    session.close()


# -- what it says of access ---------------------------------------------------------------------------------------------


def document_of(auth):
    return create_app(Runner(app_name=APP, agent=keeper), ServerConfig(auth=auth)).openapi()


def test_it_names_the_ways_to_say_who_calls_that_are_configured(tmp_path):
    keys = ApiKeyAuth(tmp_path / "keys.json")
    tokens = JwtAuth(issuer=ISSUER, audience=AUDIENCE, keys=key_set(RSA_KEY))
    for auth, names in [
        (NoAuth(), set()),
        (keys, {"apiKey", "apiKeyAsBearer"}),
        (tokens, {"token"}),
        (AnyOf(keys, tokens), {"apiKey", "apiKeyAsBearer", "token"}),
    ]:
        document = document_of(auth)
        assert set(document["components"].get("securitySchemes", {})) == names
        for (method, template), row in ROWS.items():
            if template == "/openapi.json":
                continue
            operation = document["paths"][template.replace("{name:path}", "{name}")][method.lower()]
            told = {name for each in operation.get("security", []) for name in each}
            assert told == (set() if row.public else names), template
            assert ("401" in operation["responses"]) == (bool(names) and not row.public)
            assert ("429" in operation["responses"]) == (not row.public)


def test_every_problem_is_described_as_one(tmp_path):
    document = document_of(ApiKeyAuth(tmp_path / "keys.json"))
    assert "HTTPValidationError" not in json.dumps(document)
    assert "ValidationError" not in document["components"]["schemas"]
    assert {"code", "detail", "status", "type", "title", "retryable"} == set(
        document["components"]["schemas"]["Problem"]["required"]
    )
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for status, response in operation["responses"].items():
                if status[0] in "45":
                    assert list(response["content"]) == ["application/problem+json"], f"{method} {path} {status}"
            assert {"4XX", "5XX"} <= operation["responses"].keys()


def test_operations_have_names_for_the_functions_of_generated_clients():
    document = create_app(Runner(app_name=APP, agent=keeper)).openapi()
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))
    assert {"start_run", "follow_run", "answer_interrupt", "run_sse", "get_session"} <= set(ids)


def test_the_document_is_made_once():
    app = create_app(Runner(app_name=APP, agent=keeper))
    assert app.openapi() is app.openapi()
