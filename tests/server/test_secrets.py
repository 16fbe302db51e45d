"""Credentials are shown to nobody."""

import json

import pytest

from sojourn.event import CREDENTIAL_CALL, Event
from sojourn.server.secrets import GIVEN, redacted, redacted_text

CREDENTIAL = {
    "authType": "oauth2",
    "oauth2": {
        "clientId": "c",
        "clientSecret": "S",
        "authUri": "u",
        "authResponseUri": "S",
        "accessToken": "S",
        "refreshToken": "S",
    },
    "http": {
        "scheme": "basic",
        "credentials": {"username": "n", "password": "S", "token": "S"},
        "additionalHeaders": {"A": "S"},
    },
    "apiKey": "S",
    "serviceAccount": {"serviceAccountCredential": {"projectId": "p", "privateKey": "S", "privateKeyId": "S"}},
}
SNAKE = {"auth_type": "apiKey", "api_key": "S", "oauth2": {"client_secret": "S", "auth_code": "S", "id_token": "S"}}


@pytest.mark.parametrize("credential", [CREDENTIAL, SNAKE])
@pytest.mark.parametrize(
    "place",
    [
        lambda c: c,
        lambda c: {"state": {"deep": [{"kept": c}]}},
        lambda c: {"rawAuthCredential": {**c, "authType": None}},
        lambda c: {"exchanged_auth_credential": c},
        lambda c: {"actions": {"requestedAuthConfigs": {"call": {"rawAuthCredential": c, "apiKey": "S"}}}},
        lambda c: {"functionCall": {"name": CREDENTIAL_CALL, "args": {"authConfig": {"x": c, "token": "S"}}}},
        lambda c: {"functionResponse": {"name": CREDENTIAL_CALL, "response": {"result": "S", "more": c}}},
    ],
)
def test_wherever_one_stands(credential, place):
    text = json.dumps(place(credential))
    assert '"S"' in text
    assert '"S"' not in redacted_text(text)
    assert '"S"' not in json.dumps(redacted(place(credential)))


def test_what_is_no_secret_stays():
    shown = redacted(CREDENTIAL)
    assert shown["oauth2"] == {"clientId": "c", "authUri": "u"}
    assert shown["http"]["credentials"] == {"username": "n"}
    answer = {"functionResponse": {"id": "i", "name": CREDENTIAL_CALL, "response": {"result": "S"}}}
    assert redacted(answer) == {"functionResponse": {"id": "i", "name": CREDENTIAL_CALL, "response": GIVEN}}


@pytest.mark.parametrize("said", ["authType", '{"authType": "oauth2", "token": "mine"}', "a \u2028 token: x", "\ud83d\ude00"])
def test_what_people_say_stays(said):
    event = Event(
        author="user", content={"parts": [{"text": said.encode("utf-16", "surrogatepass").decode("utf-16")}]}
    ).to_json()
    assert json.loads(redacted_text(event)) == json.loads(event)


def test_what_holds_nothing_of_the_kind_is_given_as_it_is():
    text = '{"token": "mine",  "state": {"password": "mine"}}'
    assert redacted_text(text) is text
