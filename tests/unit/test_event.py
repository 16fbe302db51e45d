"""Events, their actions, and partials."""

import copy
import json
import pickle

import pytest
from pydantic import ValidationError

from sojourn.content import Content, Part
from sojourn.event import ASK_CALL, Event, EventActions, Partial, Transcription, Usage

ADK_EVENT = {
    "content": {"parts": [{"functionCall": {"id": "adk-1", "args": {"q": "x"}, "name": "ask"}}], "role": "model"},
    "customMetadata": {"my_key": {"Nested": 1}},
    "usageMetadata": {
        "promptTokenCount": 1,
        "candidatesTokenCount": 2,
        "totalTokenCount": 6,
        "cachedContentTokenCount": 1,
        "thoughtsTokenCount": 3,
    },
    "errorCode": "SAFETY",
    "errorMessage": "stopped",
    "interrupted": True,
    "turnComplete": True,
    "invocationId": "e-1",
    "author": "helper",
    "actions": {
        "stateDelta": {"a_b": 1, "user:c": [None]},
        "artifactDelta": {"f.txt": 2},
        "transferToAgent": "billing",
        "escalate": True,
        "skipSummarization": True,
        "endOfAgent": True,
        "requestedAuthConfigs": {"adk-1": {"authScheme": "x"}},
        "requestedToolConfirmations": {"adk-1": {"hint": "sure?"}},
    },
    "longRunningToolIds": ["adk-1"],
    "branch": "root.a",
    "id": "b3c1",
    "timestamp": 1767225600.25,
}
"""An event as google-adk's server writes it, with every field that both know."""

PLAIN_ADK_EVENT = {
    "content": {"parts": [{"text": "Hello"}], "role": "model"},
    "partial": False,
    "invocationId": "e-1",
    "author": "helper",
    "actions": {"stateDelta": {}, "artifactDelta": {}, "requestedAuthConfigs": {}, "requestedToolConfirmations": {}},
    "id": "b3c1",
    "timestamp": 1767225600.25,
    "groundingMetadata": {"unknown": True},
    "finishReason": "STOP",
}
"""A common one: empty objects written out, and fields that are not kept."""


def snake(value, path=()):
    """Names of fields in snake case; what users named is left alone."""
    users = {"stateDelta", "artifactDelta", "args", "customMetadata", "requestedAuthConfigs", "requestedToolConfirmations"}
    if isinstance(value, list):
        return [snake(v) for v in value]
    if not isinstance(value, dict):
        return value
    return {"".join(f"_{c.lower()}" if c.isupper() else c for c in k): v if k in users else snake(v) for k, v in value.items()}


class TestWire:
    @pytest.mark.parametrize("form", [ADK_EVENT, snake(ADK_EVENT)], ids=["camel", "snake"])
    def test_in_and_out_is_google_adk_s_form(self, form):
        for event in (Event.model_validate(form), Event.model_validate_json(json.dumps(form))):
            assert event.to_wire() == ADK_EVENT
            assert json.loads(event.to_json()) == ADK_EVENT

    def test_what_is_empty_or_unknown_is_left_out(self):
        event = Event.model_validate(PLAIN_ADK_EVENT)
        kept = {k: PLAIN_ADK_EVENT[k] for k in ("content", "invocationId", "author", "id", "timestamp", "finishReason")}
        assert event.to_wire() == kept
        assert event.actions == EventActions()

    def test_null_is_absent(self):
        names = {"author", "actions", "id", "timestamp", "run_id", "attempt", "superseded"}
        nulls = dict.fromkeys(set(Event.model_fields) - names)
        event = Event.model_validate_json(json.dumps({**nulls, "author": "a", "invocation_id": "e-1"}))
        assert event == Event(author="a", run_id="e-1")
        actions = dict.fromkeys(
            ["transferToAgent", "escalate", "skipSummarization", "endOfAgent", "stateDelta", "artifact_delta"]
        )
        actions |= dict.fromkeys(["requestedAuthConfigs", "requestedToolConfirmations", "stateIncrements", "state_deleted"])
        assert EventActions.model_validate_json(json.dumps(actions)) == EventActions()
        assert Usage.model_validate_json('{"promptTokenCount": null, "totalTokenCount": 3}') == Usage(total_token_count=3)

    @pytest.mark.parametrize("name", ["invocationId", "invocation_id", "runId", "run_id"])
    def test_the_run_has_four_names_on_input(self, name):
        event = Event.model_validate({name: "r-1"})
        assert event.run_id == event.invocation_id == "r-1"
        assert event.to_wire() == {"invocationId": "r-1"}

    def test_a_set_of_long_running_ids_is_taken(self):
        assert Event(long_running_tool_ids={"a"}).long_running_tool_ids == ("a",)  # type: ignore[arg-type]

    def test_every_field_travels(self):
        event = Event(
            id="e", run_id="r", author="a", timestamp=1.5, content=Content("model").with_text("hi"), output={"x": [1]},
            actions=EventActions(state_delta={"a": 1}, state_deleted=("b",), state_increments={"c": 1}, summary_until=3),
            partial=True, interrupted=True, error_code="x.y", error_message="m", long_running_tool_ids=("c",), branch="a.b",
            usage_metadata=Usage(total_token_count=5), finish_reason="STOP", custom_metadata={"k": None}, turn_complete=False,
            input_transcription=Transcription(text="hi"), output_transcription=Transcription(finished=True), seq=4, pos=3,
            ordinal=2, attempt=2, supersedes=1, superseded=True,
        )  # fmt: skip
        assert set(event.model_fields_set) == set(Event.model_fields)
        assert Event.model_validate_json(event.to_json()) == event
        assert Event.model_validate(event.to_wire()) == event


class TestText:
    def test_text_and_delta(self):
        event = Event(content=Content("model", (Part(text="a"), Part(text="hm", thought=True), Part(text="b"))))
        assert (event.text, event.delta, event.thought) == ("ab", "ab", False)
        assert (Event().text, Event().delta) == ("", "")

    def test_a_reader_s_delta(self):
        event = Event(content=Content("model").with_text("Hello"))
        for delta in ("", "lo"):
            given = event.with_delta(delta)
            assert (given.delta, given.text) == (delta, "Hello")
        assert event.delta == "Hello"

    def test_what_was_given_to_a_reader_does_not_make_another_event(self):
        event = Event(id="e", content=Content("model").with_text("Hello"))
        assert event.with_delta("lo") == event
        assert hash(event.with_delta("lo")) == hash(event)
        assert event != event.evolve(id="f")
        assert event != "Hello"

    def test_the_delta_is_not_on_the_wire_and_survives_a_pickle(self):
        event = Event(id="e").with_delta("lo")
        assert event.to_wire() == {"id": "e"}
        assert pickle.loads(pickle.dumps(event)).delta == "lo"


CALL = Content("model", (Part.from_function_call("f", id="c"),))
RESPONSE = Content("user", (Part.from_function_response("f", {"r": 1}, id="c"),))


@pytest.mark.parametrize(
    ("event", "final"),
    [
        (Event(content=Content("model").with_text("done")), True),
        (Event(), True),
        (Event(output={"answer": 42}), True),
        (Event(content=Content("model").with_text("do"), partial=True), False),
        (Event(content=CALL), False),
        (Event(content=RESPONSE), False),
        (Event(content=CALL, long_running_tool_ids=("c",)), True),
        (Event(content=RESPONSE, actions=EventActions(skip_summarization=True)), True),
        (Event(content=Content("model", (Part(text="calling"), *CALL.parts))), False),
    ],
)
def test_is_final_response(event, final):
    assert event.is_final_response() is final


def test_calls_and_responses():
    assert [c.id for c in Event(content=CALL).get_function_calls()] == ["c"]
    assert [r.name for r in Event(content=RESPONSE).get_function_responses()] == ["f"]
    assert Event().get_function_calls() == Event().get_function_responses() == []


class TestSameAs:
    EVENT = Event(
        id="e", author="a", branch="b", content=Content("model").with_text("x"), output=[1], error_code="c",
        actions=EventActions(state_delta={"k": 1}), ordinal=1, attempt=1,
    )  # fmt: skip

    @pytest.mark.parametrize(
        "changes",
        [{"id": "f"}, {"timestamp": 9.0}, {"attempt": 2}, {"seq": 3, "pos": 2}, {"usage_metadata": Usage(total_token_count=1)}],
        ids=str,
    )
    def test_what_differs_between_two_attempts_does_not_count(self, changes):
        assert self.EVENT.same_as(self.EVENT.evolve(**changes))

    @pytest.mark.parametrize(
        "changes",
        [
            {"author": "z"},
            {"branch": None},
            {"content": Content("model").with_text("y")},
            {"content": None},
            {"output": [2]},
            {"interrupted": True},
            {"error_code": None},
            {"actions": EventActions()},
            {"actions": EventActions(state_delta={"k": 2})},
        ],
        ids=str,
    )
    def test_what_it_says_and_does_counts(self, changes):
        assert not self.EVENT.same_as(self.EVENT.evolve(**changes))


class TestActions:
    @pytest.mark.parametrize(
        ("actions", "changes"),
        [
            (EventActions(), False),
            (EventActions(transfer_to_agent="b", escalate=True), False),
            (EventActions(state_delta={"a": None}), True),
            (EventActions(state_deleted=("a",)), True),
            (EventActions(state_increments={"a": 0}), True),
        ],
    )
    def test_changes_state(self, actions, changes):
        assert actions.changes_state is changes

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), "1", True, None, 2**20_000], ids=lambda v: type(v).__name__)
    def test_increments_are_numbers(self, bad):
        with pytest.raises(ValidationError):
            EventActions(state_increments={"a": bad})

    def test_increments_keep_their_type(self):
        actions = EventActions(state_increments={"i": 2, "f": 2.0, "big": 2**70})
        assert [type(v) for v in actions.state_increments.values()] == [int, float, int]
        assert EventActions.model_validate_json(actions.to_json()) == actions


class TestCopies:
    def test_the_caller_s_values_are_copied(self):
        delta, output, metadata = {"a": [1]}, {"b": [1]}, {"c": [1]}
        event = Event(output=output, custom_metadata=metadata, actions=EventActions(state_delta=delta))
        for value in (delta["a"], output["b"], metadata["c"]):
            value.append(2)
        delta["more"] = output["more"] = metadata["more"] = 1  # type: ignore[assignment]
        assert (event.output, event.custom_metadata, event.actions.state_delta) == ({"b": [1]}, {"c": [1]}, {"a": [1]})

    def test_fields_are_frozen(self):
        event = Event()
        with pytest.raises(ValidationError):
            event.author = "x"  # type: ignore[misc]

    @pytest.mark.parametrize("field", ["state_delta", "state_increments", "artifact_delta", "requested_auth_configs"])
    def test_nobody_writes_into_what_was_not_given(self, field):
        """One empty value serves all events: a write would be seen by every other event of the process."""
        value = getattr(Event().actions, field)
        for write in (
            lambda: value.__setitem__("k", 1),
            lambda: value.update(k=1),
            lambda: value.setdefault("k", 1),
            lambda: value.__ior__({"k": 1}),
            lambda: value.pop("k", None),
            value.clear,
        ):
            with pytest.raises(TypeError, match="an event does not change"):
                write()
        assert value == {}
        assert copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == {}

    @pytest.mark.parametrize(
        "event",
        [
            Event(content=Content("model").with_text("x"), error_code="e"),
            Event(output="text"),
            Event(output=[[1]]),
            Event(output={"a": [1]}),
            Event(custom_metadata={"a": [1]}),
            Event(custom_metadata={}),
            Event(actions=EventActions(state_delta={"a": [1]})),
            Event(actions=EventActions(state_delta={})),
            Event(actions=EventActions(requested_auth_configs={"a": {"b": 1}})),
            Event(content=CALL),
            Event(content=RESPONSE),
            Event(content=Content("user").with_bytes(b"x"), usage_metadata=Usage()),
        ],
        ids=lambda e: e.to_json(),
    )
    def test_a_snapshot_is_equal_and_shares_nothing_that_can_change(self, event):
        snapshot = event.snapshot()
        before = snapshot.to_json()
        assert snapshot == event
        for container in mutable(event):
            if isinstance(container, list):
                container.append("changed")
            else:
                container["changed"] = 1
        assert snapshot.to_json() == before

    def test_a_snapshot_without_anything_mutable_costs_nothing(self):
        event = Event(content=Content("model").with_text("x"))
        assert event.snapshot() is event

    def test_evolve_leaves_the_original(self):
        event = Event(id="a")
        assert event.evolve(seq=3).seq == 3
        assert event.seq is None

    @pytest.mark.parametrize("changes", [{}, {"seq": 3, "pos": None}], ids=repr)
    def test_evolve_gives_what_pydantic_gives(self, changes):
        event = Event(id="a", content=Content("model").with_text("x")).with_delta("y")
        evolved, copied = event.evolve(**changes), event.model_copy(update=changes)
        assert evolved == copied == pickle.loads(pickle.dumps(evolved))
        assert evolved.delta == "y"
        assert evolved.to_json() == copied.to_json()
        assert event.model_fields_set == {"id", "content"}

    def test_what_is_made_without_a_look_is_what_pydantic_makes(self):
        fields = {"id": "a", "run_id": "r", "content": Content.of("x"), "ordinal": 3}
        made = Event.unchecked(fields)
        assert made == Event(**fields) == pickle.loads(pickle.dumps(made))
        assert (made.to_json(), repr(made)) == (Event(**fields).to_json(), repr(Event(**fields)))
        assert made.model_copy(update={"id": "b"}).id == "b"
        assert Event.unchecked({}).model_fields_set == set(Event.model_fields)


def mutable(value):
    """All writable dicts and lists in a value."""
    if isinstance(value, dict):
        own = [] if type(value).__name__ == "Nothing" else [value]
        return [*own, *(c for v in list(value.values()) for c in mutable(v))]
    if isinstance(value, list | tuple):
        return [*([value] if isinstance(value, list) else []), *(c for v in value for c in mutable(v))]
    if hasattr(value, "model_fields_set"):
        return [c for _, v in value for c in mutable(v)]
    return []


class TestRefusals:
    @pytest.mark.parametrize("timestamp", [float("nan"), float("inf"), "soon"])
    def test_timestamps_are_finite(self, timestamp):
        with pytest.raises(ValidationError):
            Event(timestamp=timestamp)

    @pytest.mark.parametrize("field", ["id", "author", "branch", "error_message"])
    def test_a_lone_surrogate_is_no_text(self, field):
        with pytest.raises(ValidationError):
            Event(**{field: "\ud800"})

    @pytest.mark.parametrize(
        "text", ['{"stateDelta": {"a": NaN}}', '{"stateDelta": {"a": 1e999}}', '{"stateDelta": {"a": "\\ud800"}}']
    )
    def test_json_that_is_none_is_refused(self, text):
        with pytest.raises(ValidationError):
            EventActions.model_validate_json(text)


class TestPartial:
    PARTIAL = Partial("e-1", "r-1", "helper", "a.b", 5, "lo", False)
    THOUGHT = Partial("e-1", "r-1", "helper", None, 0, "hm", True)

    def test_it_reads_like_an_event(self):
        partial = self.PARTIAL
        assert (partial.text, partial.delta, partial.partial, partial.invocation_id) == ("lo", "lo", True, "r-1")
        assert (partial.pos, partial.seq) == (None, None)
        assert partial.content == Content("model").with_text("lo")
        assert partial.actions == EventActions()
        assert partial.is_final_response() is False
        assert partial.get_function_calls() == partial.get_function_responses() == []
        assert "lo" in repr(partial)

    def test_a_thought_has_no_text(self):
        assert (self.THOUGHT.text, self.THOUGHT.delta, self.THOUGHT.thought) == ("", "hm", True)
        assert self.THOUGHT.content.thoughts == "hm"
        assert self.THOUGHT.content.text == ""

    def test_its_wire_form_is_a_partial_event_under_the_same_id(self):
        assert self.PARTIAL.to_event().to_wire() == {
            "id": "e-1",
            "invocationId": "r-1",
            "author": "helper",
            "branch": "a.b",
            "content": {"role": "model", "parts": [{"text": "lo"}]},
            "partial": True,
        }


def test_the_call_that_asks_a_person_has_google_adk_s_name():
    assert ASK_CALL == "adk_request_input"


class TestSpeech:
    def test_a_transcript_is_what_an_event_says(self):
        heard = Event(author="user", input_transcription=Transcription(text="hello", finished=True))
        spoken = Event(author="a", output_transcription=Transcription(text="hi", finished=True))
        assert (heard.text, heard.delta, heard.said) == ("hello", "hello", Content.of("hello", "user"))
        assert (spoken.text, spoken.said) == ("hi", Content.of("hi", "model"))
        assert Event().said is None

    def test_content_comes_before_a_transcript(self):
        event = Event(content=Content("model").with_text("a"), output_transcription=Transcription(text="b"))
        assert (event.text, event.said) == ("a", event.content)

    def test_adks_wire(self):
        event = Event(output_transcription=Transcription(text="hi", finished=True), turn_complete=True)
        assert event.to_wire() == {"outputTranscription": {"text": "hi", "finished": True}, "turnComplete": True}

    def test_transcripts_tell_events_apart(self):
        event = Event(output_transcription=Transcription(text="hi"))
        assert event.same_as(event.evolve(id="f"))
        assert not event.same_as(event.evolve(output_transcription=None))
        assert not event.same_as(event.evolve(input_transcription=Transcription(text="hi")))

    def test_what_opens_a_live_run_says_nothing(self):
        opening = Event(author="user", ordinal=0)
        assert (opening.is_opening(), opening.is_message()) == (True, True)
        said = Event(author="user", ordinal=0, content=Content.of("hi"))
        assert (said.is_opening(), said.is_message()) == (False, True)

    def test_what_users_say_in_a_live_run_is_a_message_and_an_answer_is_none(self):
        said = Event(author="user", ordinal=3, content=Content.of("hi"))
        answer = Event(author="user", ordinal=3, content=Content("user", (Part.from_function_response("f", {}, id="1"),)))
        assert said.is_message()
        assert not answer.is_message()
        assert not said.evolve(author="agent").is_message()
        assert not said.evolve(ordinal=None).is_message()
