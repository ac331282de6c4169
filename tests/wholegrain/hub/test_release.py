"""A release comes back as it was saved, or says which file is wrong."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wholegrain.errors import ReleaseError
from wholegrain.hub.card import Card
from wholegrain.hub.release import FILES, load_release, read_info, save_release
from wholegrain.model.config import MmaConfig, MmcaConfig, ModelConfig
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.report import Estimate, ResultTable
from wholegrain.text import Tokenizer

CARD = Card("A model for tests", recipe="seed: 0")


Small = Callable[..., ModelConfig]


@pytest.fixture
def saved(tmp_path: Path, letters: Tokenizer, small_config: Small) -> Path:
    torch.manual_seed(0)
    model = MultiGrainModel(small_config())
    return save_release(tmp_path / "release", model, letters, card=CARD, extras={"max_tokens": 20})


@pytest.mark.parametrize("adapter", [None, MmcaConfig(rank=4, embed_dim=8, gate_dim=4, blocks=1)])
def test_round_trip(
    tmp_path: Path, letters: Tokenizer, small_config: Small, adapter: MmcaConfig | None
) -> None:
    torch.manual_seed(1)
    model = MultiGrainModel(small_config(adapter))
    save_release(tmp_path / "r", model, letters, card=CARD, extras={"max_tokens": 20})
    torch.manual_seed(2)
    loaded, words, info = load_release(tmp_path / "r")
    assert loaded.config == model.config
    assert info.extras == {"max_tokens": 20}
    assert not loaded.training
    assert words.encode("red dog") == letters.encode("red dog")
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_an_alpha_chosen_after_training_is_kept(
    tmp_path: Path, letters: Tokenizer, small_config: Small
) -> None:
    model = MultiGrainModel(small_config(MmaConfig(rank=4, blocks=1, alpha=0.1)))
    model.get_submodule("adapters.mma").alpha = 0.5
    save_release(tmp_path / "r", model, letters, card=CARD)
    loaded, _, _ = load_release(tmp_path / "r")
    assert loaded.get_submodule("adapters.mma").alpha == 0.5


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ReleaseError, match=rf"{name}: missing; fetch it again"):
        load_release(saved)


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_named(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(ReleaseError, match=rf"{name}: altered or damaged.*fetch it again"):
        load_release(saved)


def test_no_checksums_is_no_release(saved: Path) -> None:
    (saved / "checksums.json").unlink()
    with pytest.raises(ReleaseError, match=r"checksums\.json: missing"):
        load_release(saved)


def test_a_run_folder_points_at_its_release(saved: Path) -> None:
    with pytest.raises(ReleaseError, match=r"its release is .*/release"):
        load_release(saved.parent)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="nowhere: no such release folder"):
        load_release(tmp_path / "nowhere")


def reseal(folder: Path, name: str, content: bytes) -> None:
    """Replaces a file and its checksum, as someone would who makes a release by hand."""
    from hashlib import sha256

    (folder / name).write_bytes(content)
    sums = json.loads((folder / "checksums.json").read_text())
    sums["sha256"][name] = sha256(content).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(sums))


def test_weights_must_fit_both_ways(saved: Path) -> None:
    from safetensors.torch import load_file, save

    state = load_file(saved / "model.safetensors")
    bias = state.pop("text_projection.bias")
    state["stray.bias"] = bias
    state["image_projection.bias"] = torch.zeros(3)
    reseal(saved, "model.safetensors", save(state))
    with pytest.raises(ReleaseError) as caught:
        load_release(saved)
    for part in ("missing text_projection.bias", "not in the model stray.bias", "is (3,) instead"):
        assert part in str(caught.value)


def test_weights_that_are_nan_are_refused(saved: Path) -> None:
    from safetensors.torch import load_file, save

    state = load_file(saved / "model.safetensors")
    state["text_projection.bias"][0] = float("nan")
    reseal(saved, "model.safetensors", save(state))
    with pytest.raises(ReleaseError, match=r"NaN or infinity in text_projection\.bias"):
        load_release(saved)


class Mine:
    """Leaves a trace if anybody unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pickle_is_an_error_and_never_runs(saved: Path, tmp_path: Path, name: str) -> None:
    trace = tmp_path / "ran"
    reseal(saved, name, pickle.dumps(Mine(trace)))
    with pytest.raises(ReleaseError, match=name):
        load_release(saved)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format is 2, this version reads 1; update wholegrain"),
        ({"model": {"embed_dimm": 8}}, "unknown key 'embed_dimm'; did you mean 'embed_dim'"),
        ({"code": "x.py"}, "unknown or malformed keys"),
    ],
)
def test_a_foreign_config_is_explained(saved: Path, change: dict, message: str) -> None:
    described = json.loads((saved / "config.json").read_text()) | change
    reseal(saved, "config.json", json.dumps(described).encode())
    with pytest.raises(ReleaseError, match=message):
        read_info(saved)


def test_tokenizer_and_model_must_agree(
    tmp_path: Path, letters: Tokenizer, small_config: Small, saved: Path
) -> None:
    pieces = [*letters.tokens(range(letters.vocab_size)), "dog"]
    (tmp_path / "v.txt").write_text("\n".join(pieces))
    other = Tokenizer.from_vocab(tmp_path / "v.txt")
    with pytest.raises(ReleaseError, match=r"58 word pieces, but text\.vocab_size .* is 57"):
        save_release(tmp_path / "x", MultiGrainModel(small_config()), other, card=CARD)
    assert not (tmp_path / "x").exists()


def test_an_existing_folder_is_kept(saved: Path, letters: Tokenizer, small_config: Small) -> None:
    before = (saved / "model.safetensors").read_bytes()
    model = MultiGrainModel(small_config())
    with pytest.raises(ReleaseError, match="exists"):
        save_release(saved, model, letters, card=CARD)
    assert (saved / "model.safetensors").read_bytes() == before
    save_release(saved, model, letters, card=CARD, overwrite=True)
    assert (saved / "model.safetensors").read_bytes() != before
    load_release(saved)


def test_a_failure_leaves_nothing(tmp_path: Path, letters: Tokenizer, small_config: Small) -> None:
    with pytest.raises(ReleaseError, match="extras are not plain JSON"):
        save_release(
            tmp_path / "r",
            MultiGrainModel(small_config()),
            letters,
            card=CARD,
            extras={"x": object()},
        )
    assert list(tmp_path.iterdir()) == []


def test_card_tells_data_results_and_recipe(
    tmp_path: Path, letters: Tokenizer, small_config: Small
) -> None:
    table = ResultTable(
        "Scenes | val",
        ["model", "Acc@0.5"],
        [["ours <b>", Estimate(0.712, 0.69, 0.733)], ["best constant box", 0.296]],
        baselines=[1],
        command="accelerate launch finetune/refcoco.py --config x.yaml",
    )
    manifest = {"name": "scenes", "fingerprint": "abc123", "counts": {"images": 1200, "regions": 0}}
    card = Card("T", manifests=[manifest], recipe="seed: 7", results=[table], limitations=["Mine."])
    save_release(tmp_path / "r", MultiGrainModel(small_config()), letters, card=card)
    text = (tmp_path / "r" / "README.md").read_text()
    for part in (
        "`abc123`",
        "1,200 images",
        "### Scenes \\| val",
        "| **ours &lt;b>** | 0.712 (0.690–0.733) |",
        "| best constant box | 0.296 |",
        "accelerate launch finetune/refcoco.py --config x.yaml",
        "```yaml\nseed: 7\n```",
        "- Mine.",
        "wholegrain.load(",
        "square of 32 px",
    ):
        assert part in text
