"""Tars of one name: fine where records name their samples, refused where the tars do."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from wholegrain.data.corpus import Corpus
from wholegrain.data.index import index_tars, write_index
from wholegrain.data.record import Record
from wholegrain.errors import DataError


def _tar(path: Path, meta: dict[str, bytes]) -> Path:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (90, 50, 20)).save(buffer, "jpeg")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in {"000.jpg": buffer.getvalue(), **meta}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_plain_tars_of_one_name_are_refused(tmp_path: Path) -> None:
    tars = [_tar(tmp_path / folder / "00000.tar", {"000.txt": b"a cat"}) for folder in "ab"]
    with pytest.raises(DataError) as caught:
        index_tars(tars, tmp_path / "out", source="cats")
    message = str(caught.value)
    assert all(str(tar) in message for tar in tars)
    assert "'00000'" in message and "rename one" in message
    assert not (tmp_path / "out").exists()
    other = tars[1].rename(tars[1].with_name("00001.tar"))
    index_tars([tars[0], other], tmp_path / "out", source="cats")
    corpus = Corpus.open(tmp_path / "out")
    assert [corpus.record(i).id for i in range(2)] == ["00000/000", "00001/000"]
    assert write_index(tmp_path / "out")["counts"]["images"] == 2


def test_records_have_ids_of_their_own(tmp_path: Path) -> None:
    tars = []
    for folder in "ab":
        record = Record(f"set/{folder}", "set", "train", 24, 16, ("a cat",))
        meta = json.dumps(json.loads(record.to_json())).encode()
        tars.append(_tar(tmp_path / folder / "00000.tar", {"000.json": meta}))
    index_tars(tars, tmp_path / "out", source="unused")
    corpus = Corpus.open(tmp_path / "out")
    assert [corpus.record(i).id for i in range(2)] == ["set/a", "set/b"]
