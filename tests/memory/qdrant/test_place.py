import pytest

from sojourn.errors import InvalidInput
from sojourn.memory.qdrant import opening
from sojourn.memory.qdrant.place import qdrant_memory_at
from tests.memory.embedders import WordEmbedder


@pytest.fixture
def places(monkeypatch):
    """What was opened."""
    seen = []
    monkeypatch.setattr("sojourn.memory.qdrant.service.opened", lambda place, dimensions: seen.append((place, dimensions)))
    return seen


@pytest.mark.parametrize(
    ("url", "place", "collection", "key"),
    [
        ("qdrant+http://localhost", "http://localhost:6333", "sojourn_memory", None),
        ("qdrant+http://localhost:7000/", "http://localhost:7000", "sojourn_memory", None),
        ("qdrant+https://:s%2Fcret@q.example:6334/mine", "https://q.example:6334", "mine", "s/cret"),
        ("qdrant+http://[::1]/mine", "http://[::1]:6333", "mine", None),
    ],
)
def test_servers(places, url, place, collection, key):
    qdrant_memory_at(url, embedder=WordEmbedder())
    ((opened, dimensions),) = places
    assert (opened.place, opened.collection, opened.api_key, dimensions) == (place, collection, key, 16)


def test_directories(places, tmp_path):
    qdrant_memory_at("qdrant:///my%20memory", directory=tmp_path)
    qdrant_memory_at(f"qdrant:///{tmp_path}/memory", directory=tmp_path / "elsewhere")
    assert [place.place for place, _ in places] == [tmp_path / "my memory", tmp_path / "memory"]


@pytest.mark.parametrize(
    "url",
    [
        "qdrant://host",
        "qdrant://host/directory",
        "qdrant:///",
        "qdrant+http://",
        "qdrant+http://user:secret@host",
        "qdrant+http://host:secret",
        "qdrant+http://host?api_key=secret",
        "qdrant+http://[secret",
    ],
)
def test_what_cannot_be_is_refused_and_not_repeated(url):
    with pytest.raises(InvalidInput) as caught:
        qdrant_memory_at(url)
    assert caught.value.code == "memory.invalid_url"
    assert "secret" not in str(caught.value)


def test_a_missing_library_is_named(monkeypatch):
    def missing(*args, **options):
        raise ModuleNotFoundError("No module named 'qdrant_edge'", name="qdrant_edge")

    monkeypatch.setattr(opening, "_in_directory", missing)
    with pytest.raises(Exception, match=r"pip install \"sojourn\[qdrant\]\"") as caught:
        qdrant_memory_at("qdrant:///memory")
    assert caught.value.code == "memory.not_installed"
