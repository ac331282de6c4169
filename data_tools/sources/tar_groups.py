"""The samples of a tar that may be damaged: neighbouring members that share a key.

What is wrong with a sample or with the tar comes as a group with a fault rather than as an error,
so that one bad sample costs no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from wholegrain.data.record_parse import MAX_RECORD_BYTES
from wholegrain.data.record_plain import split_key
from wholegrain.data.shard_image import MAX_IMAGE_BYTES
from wholegrain.data.shard_tar import Member, TarRefusedError, scan_tar
from wholegrain.errors import DataError

_LIMITS = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp"), MAX_IMAGE_BYTES),
    **dict.fromkeys(("json", "txt"), MAX_RECORD_BYTES),
}


@dataclass(slots=True)
class Group:
    """One key's members by extension (images, ``json``, ``txt``; others are passed over).

    ``fault`` is (cause, detail) of a sample that cannot be used; with no ``key``, of the tar from
    that place on. ``cut_off`` says that the tar's fault comes next, so that members may lack.
    """

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    fault: tuple[str, str] | None = None
    cut_off: bool = False


def tar_groups(path: Path) -> Iterator[Group]:
    """Yields the groups of a tar in order and, if it is damaged or refused, at last a fault.

    Raises:
        DataError: the file cannot be opened or read, which may be another matter next time.
    """
    faults: list[Group] = []
    seen: set[str] = set()
    keyed = ((split_key(member.name), member) for member in _members(path, faults))
    for key, members in groupby(keyed, key=lambda item: item[0][0]):
        group = Group(key)
        for (_, extension), member in members:
            _add(group, extension, member, path)
        if key in seen:
            detail = f"{path}: the members of sample {key!r} are not neighbours"
            group.fault = "tar: members apart", detail
        seen.add(key)
        group.cut_off = bool(faults)
        yield group
    yield from faults


def _members(path: Path, faults: list[Group]) -> Iterator[Member]:
    try:
        yield from scan_tar(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run again") from None
    except TarRefusedError as error:
        faults.append(Group("", fault=("tar: refused", str(error))))
    except DataError as error:
        faults.append(Group("", fault=("tar: damaged", str(error))))


def _add(group: Group, extension: str, member: Member, path: Path) -> None:
    limit = _LIMITS.get(extension)
    if limit is None:
        return
    if extension in group.members:
        group.fault = "tar: member twice", f"{path}: member {member.name!r} occurs twice"
    if member.size > limit:
        detail = f"{path}: member {member.name!r} has {member.size} bytes, above {limit}"
        group.fault = "tar: member too large", detail
    group.members[extension] = member
