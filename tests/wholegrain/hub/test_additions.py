"""What finetuning added comes back on its own base, and on no other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wholegrain.errors import ReleaseError
from wholegrain.hub.additions import ABOUT, TENSORS, added, load_additions, save_additions
from wholegrain.hub.card import Card
from wholegrain.hub.release import load_release, save_release
from wholegrain.model.config import MlpBoxHead, MmcaConfig, ModelConfig
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.predict import load
from wholegrain.text import Tokenizer

Small = Callable[..., ModelConfig]
MMCA = MmcaConfig(rank=4, embed_dim=8, gate_dim=4, blocks=1)


@pytest.fixture
def base(tmp_path: Path, letters: Tokenizer, small_config: Small) -> Path:
    torch.manual_seed(0)
    model = MultiGrainModel(small_config())
    return save_release(tmp_path / "base", model, letters, card=Card("base"))


@pytest.fixture
def finetuned(base: Path) -> MultiGrainModel:
    model, _, _ = load_release(base)
    model.new_box_head(MlpBoxHead(layers=2))
    model.add_adapter(MMCA)
    for parameter in (*model.adapters.parameters(), *model.box_head.parameters()):
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_round_trip(tmp_path: Path, base: Path, finetuned: MultiGrainModel) -> None:
    folder = save_additions(tmp_path / "a", finetuned, base, extras={"max_tokens": 12})
    model, _, info = load_additions(folder, base)
    assert info.extras == {"max_tokens": 12}
    assert model.config == finetuned.config
    expected = finetuned.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    photo = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    boxes = load(base, "cpu", additions=folder).ground(photo, ["a dog", "the cat"])
    assert all(np.isfinite(found.box).all() for found in boxes)
    assert boxes[0].box != boxes[1].box


def test_it_is_small(tmp_path: Path, base: Path, finetuned: MultiGrainModel) -> None:
    folder = save_additions(tmp_path / "a", finetuned, base)
    bytes_of_added = sum(value.numel() * 4 for value in added(finetuned).values())
    assert (folder / TENSORS).stat().st_size < bytes_of_added + 8192
    assert not any(name.startswith(("vision.", "text.", "cross.")) for name in added(finetuned))


def test_another_base_is_refused(
    tmp_path: Path, base: Path, finetuned: MultiGrainModel, letters: Tokenizer, small_config: Small
) -> None:
    folder = save_additions(tmp_path / "a", finetuned, base)
    torch.manual_seed(7)
    other = save_release(
        tmp_path / "other", MultiGrainModel(small_config()), letters, card=Card("other")
    )
    with pytest.raises(ReleaseError, match=r"learnt on the release 'base'.*other is .*give the"):
        load_additions(folder, other)


def test_a_host_that_was_trained_too_is_refused(
    tmp_path: Path, base: Path, finetuned: MultiGrainModel
) -> None:
    with torch.no_grad():
        finetuned.text.embeddings.word.weight[3, 2] += 1
    with pytest.raises(ReleaseError, match=r"text\.embeddings\.word.*train_host: false"):
        save_additions(tmp_path / "a", finetuned, base)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", [TENSORS, ABOUT])
def test_an_altered_file_is_named(
    tmp_path: Path, base: Path, finetuned: MultiGrainModel, name: str
) -> None:
    folder = save_additions(tmp_path / "a", finetuned, base)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ReleaseError, match=rf"{name}: altered or damaged"):
        load_additions(folder, base)


def test_an_existing_folder_stays(tmp_path: Path, base: Path, finetuned: MultiGrainModel) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    stays = rf"^{tmp_path}/a: exists and holds no additions\.json.*choose another path$"
    with pytest.raises(ReleaseError, match=stays):
        save_additions(tmp_path / "a", finetuned, base, overwrite=True)
    assert (tmp_path / "a" / "mine").exists()
