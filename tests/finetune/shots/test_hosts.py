"""Hosts: what they compare, what of them learns, and that nothing leaks from one run to another."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel

from finetune.shots.config import ClipHost, ReleaseHost
from finetune.shots.hosts import CLIP_MEAN, CLIP_STD, ClipEncoders, Encoders, open_host
from wholegrain.errors import CheckpointError, ConfigError, DataError
from wholegrain.hub.card import Card
from wholegrain.hub.release import save_release
from wholegrain.model.config import MmaConfig

CPU = torch.device("cpu")
ADAPTER = MmaConfig(rank=4, alpha=0.5, blocks=2)
TEXTS = ["a photo of a cat.", "x", "a photo of a large dog."]


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipEncoders:
    host = open_host(ClipHost(path=str(clip_folder)), "fp32", CPU)
    assert isinstance(host, ClipEncoders)
    return host


@pytest.fixture(scope="module", params=["clip", "wholegrain"])
def host(request: pytest.FixtureRequest, clip_folder: Path, release_folder: Path) -> Encoders:
    config = (
        ClipHost(path=str(clip_folder))
        if request.param == "clip"
        else ReleaseHost(path=str(release_folder))
    )
    return open_host(config, "fp32", CPU)


def test_clip_is_what_transformers_computes(
    clip: ClipEncoders, clip_folder: Path, pixels: torch.Tensor
) -> None:
    model = CLIPModel.from_pretrained(clip_folder).eval()
    ids, mask = clip.tokens(TEXTS)
    normal = torch.stack(
        [(pixels[:, c].float() / 255 - CLIP_MEAN[c]) / CLIP_STD[c] for c in range(3)], dim=1
    )
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long(), pixel_values=normal)
        logits = clip.scale * clip.image_vectors(pixels) @ clip.text_vectors((ids, mask)).T
    assert torch.allclose(logits, expected.logits_per_image, atol=1e-5)


def test_padding_changes_no_text(host: Encoders) -> None:
    with torch.no_grad():
        together = host.text_vectors(host.tokens(TEXTS))
        alone = torch.cat([host.text_vectors(host.tokens([text])) for text in TEXTS])
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(3))


def test_a_copy_learns_and_the_host_does_not(host: Encoders, pixels: torch.Tensor) -> None:
    before = {name: value.clone() for name, value in host.model.state_dict().items()}
    with torch.no_grad():
        plain = host.image_vectors(pixels)
    adapted = host.adapted(ADAPTER, seed=3)
    learning = {id(p) for p in adapted.adapters.parameters()}
    sum_ = (adapted.image_vectors(pixels) @ adapted.text_vectors(adapted.tokens(TEXTS)).T).sum()
    for parameter in adapted.adapters.parameters():
        assert parameter.requires_grad
    sum_.backward()
    for parameter in adapted.model.parameters():
        assert parameter.grad is None or id(parameter) in learning
    assert any(p.grad is not None and p.grad.any() for p in adapted.adapters.parameters())
    with torch.no_grad():
        for parameter in adapted.adapters.parameters():
            parameter.add_(1.0)
        assert not torch.equal(adapted.image_vectors(pixels), plain)
        assert torch.equal(host.image_vectors(pixels), plain)
    assert host.model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[n]) for n, value in host.model.state_dict().items())


def test_seeds_draw_the_adapters_and_nothing_else(host: Encoders) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, same, other = (host.adapted(ADAPTER, seed).adapters.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_adapters_are_kept_by_themselves(
    host: Encoders, pixels: torch.Tensor, tmp_path: Path
) -> None:
    adapted, fresh = host.adapted(ADAPTER, 1), host.adapted(ADAPTER, 2)
    adapted.save(tmp_path / "x.safetensors")
    with torch.no_grad():
        assert not torch.equal(fresh.image_vectors(pixels), adapted.image_vectors(pixels))
        fresh.load(tmp_path / "x.safetensors")
        for encoders in (fresh, host.adapted(ADAPTER, 5)):
            encoders.load(tmp_path / "x.safetensors")
            assert torch.equal(encoders.image_vectors(pixels), adapted.image_vectors(pixels))
            tokens = host.tokens(TEXTS)
            assert torch.equal(encoders.text_vectors(tokens), adapted.text_vectors(tokens))
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    with pytest.raises(CheckpointError):
        host.adapted(MmaConfig(rank=3, alpha=0.5, blocks=2), 1).load(tmp_path / "x.safetensors")


def test_bf16_is_close_and_gives_fp32(clip_folder: Path, pixels: torch.Tensor) -> None:
    config = ClipHost(path=str(clip_folder))
    exact, rounded = open_host(config, "fp32", CPU), open_host(config, "bf16", CPU)
    with torch.no_grad():
        one, other = exact.image_vectors(pixels), rounded.image_vectors(pixels)
    assert other.dtype == torch.float32
    assert not torch.equal(one, other)
    assert torch.allclose(one, other, atol=0.03)


def test_a_text_too_long(host: Encoders) -> None:
    with pytest.raises(DataError, match="shorten the class's name"):
        host.tokens(["a", "very " * 40 + "long name"])


class TestWrongHosts:
    def refused(self, path: str | Path) -> str:
        with pytest.raises(ConfigError) as caught:
            open_host(ClipHost(path=str(path)), "fp32", CPU)
        return str(caught.value)

    @pytest.mark.parametrize("path", ["no/such/folder", "/no/folder", "clip", "../clip"])
    def test_nothing_there(self, path: str) -> None:
        assert "is no folder and no `owner/name`" in self.refused(path)

    def test_weights_as_pickle(self, clip_folder: Path, tmp_path: Path) -> None:
        folder = tmp_path / "clip"
        shutil.copytree(clip_folder, folder)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert "weights as pickles are not read" in self.refused(folder)

    def test_damaged_weights(self, clip_folder: Path, tmp_path: Path) -> None:
        folder = tmp_path / "clip"
        shutil.copytree(clip_folder, folder)
        with open(folder / "model.safetensors", "r+b") as file:
            file.truncate(1000)
        assert "host.path" in self.refused(folder)

    def test_weights_of_one_encoder(
        self, clip: ClipEncoders, clip_folder: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "clip"
        shutil.copytree(clip_folder, folder)
        # Without the check the rest would be random, and only a log line would say so.
        model: Any = clip.model
        from safetensors.torch import save_file

        part = {n: v for n, v in model.state_dict().items() if n.startswith("vision_model")}
        save_file(part, folder / "model.safetensors", metadata={"format": "pt"})
        assert "whose weights lack" in self.refused(folder)

    def test_tokenizer_of_another(self, clip_folder: Path, tmp_path: Path) -> None:
        folder = tmp_path / "clip"
        shutil.copytree(clip_folder, folder)
        path = folder / "config.json"
        assert '"vocab_size": 190' in path.read_text()
        model = CLIPModel.from_pretrained(clip_folder)
        model.config.text_config.vocab_size = 150
        model.config.text_config.eos_token_id = model.config.text_config.bos_token_id = 149
        model.config.text_config.pad_token_id = 149
        CLIPModel(model.config).save_pretrained(folder)
        assert "whose tokenizer has 190 pieces" in self.refused(folder)

    def test_a_release_with_adapters(
        self, release_folder: Path, make_adapted: Callable[[Path], Path]
    ) -> None:
        with pytest.raises(ConfigError, match="has adapters already"):
            open_host(ReleaseHost(path=str(make_adapted(release_folder))), "fp32", CPU)

    @pytest.fixture
    def make_adapted(self, tmp_path: Path) -> Callable[[Path], Path]:
        from wholegrain.hub.release import load_release
        from wholegrain.model.config import MmcaConfig

        def make(folder: Path) -> Path:
            model, tokenizer, _ = load_release(folder)
            model.add_adapter(MmcaConfig(rank=4, embed_dim=8, gate_dim=4, blocks=2))
            card = Card(title="x")
            return save_release(tmp_path / "adapted", model, tokenizer, card=card)

        return make
