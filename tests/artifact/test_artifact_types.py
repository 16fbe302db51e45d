import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.artifact.segments import MAX_SEGMENT, decode_segment, encode_segment
from sojourn.artifact.types import ArtifactRef, ArtifactScope, ArtifactVersion, artifact_uri, parse_artifact_uri
from sojourn.content import FileData, Part
from sojourn.errors import InvalidInput
from sojourn.ids import check_artifact_name, check_id


def accepted(check):
    def accepts(text):
        try:
            check(text)
        except InvalidInput:
            return False
        return True

    return accepts


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
TRICKY_TEXT = st.text(st.sampled_from("aA.~%2fe/\\:é😀 ?#&=+"), min_size=1, max_size=60)
LONG_TEXT = st.text("aA%.", min_size=40, max_size=256)
NAMES = st.one_of(ANY_TEXT, TRICKY_TEXT, TRICKY_TEXT.map("user:{}".format)).filter(accepted(check_artifact_name))
IDS = st.one_of(ANY_TEXT, TRICKY_TEXT, LONG_TEXT).filter(accepted(lambda text: check_id(text, "id")))


class TestUris:
    @pytest.mark.parametrize(
        ("name", "version", "uri"),
        [
            ("july.pdf", 0, "artifact:july.pdf?version=0"),
            ("reports/july 1.pdf", 12, "artifact:reports/july%201.pdf?version=12"),
            ("user:photo.png", 3, "artifact:user:photo.png?version=3"),
            ("a?b#c%d", 0, "artifact:a%3Fb%23c%25d?version=0"),
            ("é", 0, "artifact:%C3%A9?version=0"),
        ],
    )
    def test_what_they_look_like(self, name, version, uri):
        assert artifact_uri(name, version) == uri
        assert parse_artifact_uri(uri) == ArtifactRef(name, version)

    @given(NAMES, st.integers(0, 10**18 - 1))
    def test_they_round_trip(self, name, version):
        uri = artifact_uri(name, version)
        assert parse_artifact_uri(uri) == (name, version)
        assert uri.isascii()
        assert FileData.model_validate_json(FileData(file_uri=uri).to_json()).file_uri == uri

    def test_a_version_knows_its_own(self):
        info = ArtifactVersion(name="user:a b", version=4, mime_type="image/png", size=1, created_at=1.0)
        assert parse_artifact_uri(info.uri) == ("user:a b", 4)

    @pytest.mark.parametrize(
        "uri",
        [
            "", "artifact:", "artifact:a", "artifact:a?version=", "artifact:a?version=-1", "artifact:a?version=01",
            "artifact:a?version=1&x=2", "artifact:a?version=1#x", "artifact:a?version=٣", "artifact:?version=1",
            "artifact:../a?version=1", "artifact:%2e%2e/a?version=1", "artifact:a/%2E%2E/b?version=1", "artifact:/a?version=1",
            "artifact://a?version=1", "artifact:a%5Cb?version=1", "artifact:a%00b?version=1", "artifact:%ff?version=1",
            "artifact:user:?version=1", "ARTIFACT:a?version=1", "https://example.org/a?version=1", "a?version=1",
            "artifact:a?version=1\n", "artifact:a?version=" + "9" * 30, "artifact:\ud800?version=1",
        ],
    )  # fmt: skip
    def test_what_is_none_is_refused(self, uri):
        with pytest.raises(InvalidInput) as caught:
            parse_artifact_uri(uri)
        assert caught.value.code == "artifact.invalid_uri"

    @pytest.mark.parametrize(("name", "version", "code"), [("../a", 0, "invalid_name"), ("a", -1, "invalid_version")])
    def test_none_is_made_for_what_cannot_be(self, name, version, code):
        with pytest.raises(InvalidInput) as caught:
            artifact_uri(name, version)
        assert caught.value.code == f"artifact.{code}"


class TestSegments:
    SAFE = frozenset(string.ascii_lowercase + string.digits + "-_.%~")

    @given(IDS)
    def test_they_are_safe(self, text):
        segment = encode_segment(text)
        assert set(segment) <= self.SAFE
        assert 1 <= len(segment) <= MAX_SEGMENT
        assert not {segment[0], segment[-1]} & {"."}

    @given(IDS, IDS)
    def test_different_texts_have_different_ones(self, one, other):
        assert (encode_segment(one) == encode_segment(other)) == (one == other)

    @given(IDS)
    def test_they_can_be_read_back_unless_shortened(self, text):
        segment = encode_segment(text)
        assert decode_segment(segment) == (None if "~" in segment else text)

    @pytest.mark.parametrize("text", ["A" * 256, "é" * 128, "/" * 43])
    def test_long_ones_are_shortened(self, text):
        assert len(encode_segment(text)) == MAX_SEGMENT
        assert decode_segment(encode_segment(text)) is None
        assert encode_segment(text[:-1] + "b") != encode_segment(text)

    def test_a_text_that_looks_like_a_shortened_one_is_another(self):
        shortened = encode_segment("A" * 256)
        assert encode_segment(shortened) != shortened

    @pytest.mark.parametrize("segment", ["A", "%41%", "%2F", "%61", ".a", "a b", "%ff", "é", ""])
    def test_what_encoding_never_gives_is_not_decoded(self, segment):
        assert decode_segment(segment) in (None, "")


class TestScope:
    def test_it_checks_its_ids(self):
        scope = ArtifactScope("app", "alice", "session", "uid")
        assert scope.check() is scope
        assert str(scope) == "app/alice/session"


class TestVersion:
    def test_it_gives_the_part_that_was_saved(self):
        info = ArtifactVersion(name="a", version=0, mime_type="text/plain", size=2, created_at=1.0)
        assert info.to_part(b"hi") == Part.from_bytes(b"hi", "text/plain")
        assert info.model_copy(update={"is_text": True}).to_part(b"hi") == Part.from_text("hi")

    def test_its_wire_form(self):
        info = ArtifactVersion(name="a", version=0, mime_type="text/plain", size=2, created_at=1.0, custom_metadata={"k": [1]})
        assert info.to_wire() == {
            "name": "a",
            "version": 0,
            "mimeType": "text/plain",
            "size": 2,
            "createdAt": 1.0,
            "customMetadata": {"k": [1]},
        }
        assert ArtifactVersion.model_validate(info.to_wire()) == info
