"""Groups a tar's members into samples, as WebDataset does: neighbours that share a key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from wholegrain.data.record_parse import MAX_RECORD_BYTES
from wholegrain.data.record_plain import split_key
from wholegrain.data.shard_image import MAX_IMAGE_BYTES, ImageKind
from wholegrain.data.shard_tar import Member, scan_tar
from wholegrain.errors import DataError

# Earlier wins where a sample has several.
_IMAGE_EXTENSIONS: dict[str, ImageKind] = {
    "jpg": "jpg",
    "jpeg": "jpg",
    "png": "png",
    "webp": "webp",
}
_LIMITS = {
    **dict.fromkeys(_IMAGE_EXTENSIONS, MAX_IMAGE_BYTES),
    "json": MAX_RECORD_BYTES,
    "txt": MAX_RECORD_BYTES,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One key's members by extension; only extensions that a corpus reads are kept."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)

    def image(self) -> tuple[Member, ImageKind] | None:
        """The image and its format; None if there is none or it is of no length."""
        for extension, kind in _IMAGE_EXTENSIONS.items():
            member = self.members.get(extension)
            if member is not None and member.size:
                return member, kind
        return None


def scan_samples(path: Path) -> Iterator[Sample]:
    """Yields the samples of a tar in order; members of other extensions are passed over.

    Raises:
        DataError: from :func:`scan_tar`; a member above its size limit; two members of one name;
            or a sample whose members are not neighbours, which no sequential reader can join.
    """
    seen: set[str] = set()
    keyed = ((split_key(member.name), member) for member in scan_tar(path))
    for key, group in groupby(keyed, key=lambda item: item[0][0]):
        if key in seen:
            raise DataError(
                f"{path}: the members of sample {key!r} are not neighbours; write the tar sorted"
            )
        seen.add(key)
        sample = Sample(key)
        for (_, extension), member in group:
            limit = _LIMITS.get(extension)
            if limit is None:
                continue
            if extension in sample.members:
                raise DataError(f"{path}: member {member.name!r} occurs twice; drop one")
            if member.size > limit:
                raise DataError(
                    f"{path}: member {member.name!r} has {member.size} bytes, above {limit}; "
                    "leave it out of the tar"
                )
            sample.members[extension] = member
        yield sample
