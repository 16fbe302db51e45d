"""What an entry says of a version."""

from __future__ import annotations

from dataclasses import dataclass

from sojourn import jsonvalue
from sojourn.artifact.rules import damaged
from sojourn.artifact.s3.keys import Place
from sojourn.artifact.types import ArtifactVersion


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version as an entry tells it.

    Attributes:
        info: What is known of it.
        data_id: The last segment of the key of its bytes, made for this save: no two entries are the same.
    """

    info: ArtifactVersion
    data_id: str

    def body(self) -> bytes:
        """The entry. The number of the version is not in it: its position gives it."""
        return jsonvalue.encode({**self.info.model_dump(exclude={"version"}), "data": self.data_id}).encode()

    def key(self, artifact: Place) -> str:
        """The key of the bytes."""
        return f"{artifact.data}/{self.data_id}"

    @classmethod
    def read(cls, body: bytes, number: int, place: str) -> StoredVersion:
        """Reads an entry.

        Args:
            body: The entry.
            number: The version.
            place: What the artifact is called in a message.

        Raises:
            Unavailable: `artifact.damaged`.
        """
        try:
            stored = jsonvalue.decode(body)
            data_id = stored.pop("data")
            if not isinstance(data_id, str) or "/" in data_id:
                raise ValueError("data is no id")
            return cls(ArtifactVersion.model_validate({**stored, "version": number}), data_id)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise damaged(place, number, "its entry cannot be read") from error
