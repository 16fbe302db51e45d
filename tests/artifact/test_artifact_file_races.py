"""Between any two calls to the operating system, somebody else does something to the same artifact."""

import os

import pytest

from sojourn.artifact.filetree import FileTree, PendingVersion, name_path, session_path, user_path
from sojourn.artifact.rules import Draft
from sojourn.artifact.types import ArtifactScope
from tests.artifact.syscalls import at_call, open_below

SCOPE = ArtifactScope("app", "alice", "session", "uid")
NAME = "report.pdf"
LONG_NAME = NAME * 20


class World:
    """A directory, and what two processes do in it: each has a tree object of its own."""

    def __init__(self, root, name):
        self.root = str(root)
        self.name = name
        self.path = name_path(SCOPE, name)

    def tree(self):
        return FileTree(self.root)

    def save(self, data):
        return PendingVersion(self.tree()).publish([data], Draft.of(SCOPE, self.name, data, None, None), self.path)

    def delete(self):
        return self.tree().remove_artifact(self.path)

    def delete_session(self):
        return self.tree().remove(session_path(SCOPE))

    def delete_user(self):
        return self.tree().remove(user_path(SCOPE.app_name, SCOPE.user_id))

    def load(self):
        opened = self.tree().open_version(self.path, None)
        return opened and opened.read_all()

    def contents(self):
        """The data of all versions, in order."""
        infos = self.tree().versions(self.path, 0, 1000) or []
        assert [info.version for info in infos] == list(range(len(infos)))
        return [self.tree().open_version(self.path, info.version).read_all() for info in infos]

    def names(self):
        return self.tree().names(session_path(SCOPE), "", 1000)


@pytest.fixture
def worlds(tmp_path):
    """Runs `scenario` in a world of its own for each point at which `act` can happen in it; yields world and outcome."""

    def run(scenario, act, *, saved=(), name=NAME):
        for at in range(1000):
            world = World(tmp_path / f"{at}", name)
            for data in saved:
                world.save(data)
            with at_call(at, lambda _, world=world: act(world)) as counter:
                outcome = scenario(world)
            if not counter.reached:
                assert at > 5
                return
            yield world, outcome
            del outcome
            assert open_below(world.root) == 0
            assert os.listdir(tmp_path / f"{at}" / ".tmp") == []

    return run


OLD = [b"old 0", b"old 1"]
DELETIONS = [World.delete, World.delete_session, World.delete_user]


@pytest.mark.parametrize("saved", [[], OLD], ids=["first", "later"])
def test_a_save_during_a_save(worlds, saved):
    for world, version in worlds(lambda w: w.save(b"mine"), lambda w: w.save(b"theirs"), saved=saved):
        contents = world.contents()
        assert contents in ([*saved, b"mine", b"theirs"], [*saved, b"theirs", b"mine"])
        assert contents[version] == b"mine"


@pytest.mark.parametrize("delete", DELETIONS)
@pytest.mark.parametrize("saved", [[], OLD], ids=["first", "later"])
def test_a_deletion_during_a_save(worlds, saved, delete):
    outcomes = set()
    for world, version in worlds(lambda w: w.save(b"mine"), delete, saved=saved):
        contents = world.contents()
        assert (version, contents) in ((0, [b"mine"]), (len(saved), []))
        outcomes.add(len(contents))
    assert outcomes == {0, 1}


@pytest.mark.parametrize("delete", DELETIONS)
def test_a_deletion_and_a_save_during_a_save(worlds, delete):
    def act(world):
        delete(world)
        world.save(b"theirs")

    for world, version in worlds(lambda w: w.save(b"mine"), act, saved=OLD):
        contents = world.contents()
        assert contents in ([b"theirs"], [b"mine", b"theirs"], [b"theirs", b"mine"])
        assert contents == [b"theirs"] or contents[version] == b"mine"


@pytest.mark.parametrize("delete", DELETIONS)
def test_a_save_during_a_deletion(worlds, delete):
    for world, deleted in worlds(delete, lambda w: w.save(b"theirs"), saved=OLD):
        assert deleted
        assert world.contents() in ([], [b"theirs"])


@pytest.mark.parametrize("delete", DELETIONS)
def test_a_deletion_during_a_deletion(worlds, delete):
    theirs = []
    for world, mine in worlds(delete, lambda w: theirs.append(w.delete()), saved=OLD):
        # Who deletes the artifact's parent finds that, even if the artifact has gone.
        assert (mine, theirs[-1]).count(True) == 1 if delete is World.delete else mine or theirs[-1]
        assert world.contents() == []


def test_a_deletion_and_a_save_during_a_load(worlds):
    def act(world):
        world.delete()
        world.save(b"new")

    loaded = {data for _, data in worlds(World.load, act, saved=OLD)}
    # For a moment there was nothing.
    assert {OLD[-1], b"new"} <= loaded <= {OLD[-1], b"new", None}


def test_a_deletion_during_a_load(worlds):
    loaded = {data for _, data in worlds(World.load, World.delete, saved=OLD)}
    assert loaded == {OLD[-1], None}


def test_a_deletion_and_a_save_while_listing_versions(worlds):
    def act(world):
        world.delete()
        world.save(b"new")

    listed = [
        contents for _, contents in worlds(lambda w: [i.size for i in w.tree().versions(w.path, 0, 1000) or []], act, saved=OLD)
    ]
    sizes = [len(data) for data in OLD]
    assert all(one in (sizes, [], [len(b"new")]) for one in listed)
    assert sizes in listed


@pytest.mark.parametrize("name", [NAME, LONG_NAME], ids=["plain", "shortened"])
@pytest.mark.parametrize("delete", DELETIONS)
def test_a_deletion_while_listing_names(worlds, delete, name):
    listed = [names for _, names in worlds(World.names, delete, saved=OLD, name=name)]
    assert all(names in ([], [name]) for names in listed)
    assert [name] in listed
