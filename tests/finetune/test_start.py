"""Where finetuning starts, and what of it may learn."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune.config import FinetuneConfig
from finetune.start import starting_model
from wholegrain.config import from_dict
from wholegrain.data.corpus import Corpus
from wholegrain.errors import ConfigError, ReleaseError
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.text import Tokenizer
from wholegrain.train import checkpoint

MMCA = {"kind": "mmca", "rank": 4, "embed_dim": 8, "gate_dim": 4, "blocks": 2}
Settings = dict[str, Any]


def configured(settings: Settings, init: Path | None = None, **changes: Any) -> FinetuneConfig:
    settings = copy.deepcopy(settings) | changes
    if init is not None:
        del settings["model"]
        settings["init"] = str(init)
    return from_dict(FinetuneConfig, settings)


def started(
    settings: Settings, init: Path | None = None, **changes: Any
) -> tuple[MultiGrainModel, Tokenizer]:
    config = configured(settings, init, **changes)
    return starting_model(config, Corpus.open(config.data.train.path).select("train"))


def learning(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def host_of(model: MultiGrainModel) -> dict[str, torch.Tensor]:
    """The host's parameters and buffers under the names that they have without adapters."""
    added = {id(p) for p in model.adapters.parameters()}
    named = [*model.named_parameters(), *model.named_buffers()]
    return {n.replace("host.", ""): t.detach() for n, t in named if id(t) not in added}


@pytest.mark.parametrize("kind", ["release", "run folder"])
def test_pretrained_weights_and_words_are_taken_over(
    tiny_finetune: Settings, pretrained: Any, kind: str
) -> None:
    init = pretrained.out / "release" if kind == "release" else pretrained.out
    model, tokenizer = started(tiny_finetune, init)
    newest = checkpoint.latest(pretrained.out)
    assert newest is not None
    expected = MultiGrainModel(model.config)
    newest.load(expected)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    stored = Tokenizer.load(newest.folder / "tokenizer.json")
    assert tokenizer.to_json() == stored.to_json()


def test_from_nothing_the_seed_decides(tiny_finetune: Settings) -> None:
    def table(seed: int) -> torch.Tensor:
        run = tiny_finetune["run"] | {"seed": seed}
        model, tokenizer = started(tiny_finetune, run=run)
        assert model.config.text.vocab_size == tokenizer.vocab_size <= 200
        return model.text.embeddings.word.weight

    assert torch.equal(table(1), table(1))
    assert not torch.equal(table(1), table(2))


@pytest.mark.parametrize("suffix", ["json", "txt"])
def test_a_tokenizer_can_be_named(tiny_finetune: Settings, tmp_path: Path, suffix: str) -> None:
    _, learnt = started(tiny_finetune)
    path = tmp_path / f"t.{suffix}"
    if suffix == "json":
        learnt.save(path)
    else:
        path.write_text("\n".join(learnt.tokens(range(learnt.vocab_size))))
    _, named = started(tiny_finetune, tokenizer=str(path))
    assert named.encode("the red ball") == learnt.encode("the red ball")


def test_init_and_model_exclude_each_other(tiny_finetune: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give either init .* or model .*, not both"):
        configured(tiny_finetune | {"init": "x"})
    with pytest.raises(ConfigError, match="not neither"):
        configured({k: v for k, v in tiny_finetune.items() if k != "model"})
    with pytest.raises(ConfigError, match=rf"init is '{tmp_path}', which holds neither a release"):
        started(tiny_finetune, tmp_path)


def test_an_altered_release_is_refused(
    tiny_finetune: Settings, pretrained: Any, tmp_path: Path
) -> None:
    copied = shutil.copytree(pretrained.out / "release", tmp_path / "release")
    (copied / "model.safetensors").write_bytes(b"")
    with pytest.raises(ReleaseError, match=r"model\.safetensors: altered or damaged"):
        started(tiny_finetune, copied)


@torch.no_grad()
def test_adapters_leave_the_host_as_it_is_at_the_start(
    tiny_finetune: Settings, pretrained: Any
) -> None:
    init = pretrained.out / "release"
    plain, tokenizer = started(tiny_finetune, init)
    adapted, _ = started(tiny_finetune, init, adapters=[MMCA])
    assert adapted.config.adapters
    found, expected = host_of(adapted), host_of(plain)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    texts = ["the red ball", "left of the small green box", "a thing"]
    ids, mask = tokenizer.encode_batch(texts, 24)
    image = torch.tensor([0, 1, 1])
    photos = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    answers = []
    for model in (plain.eval(), adapted.eval()):
        answers.append(model.ground(model.normalise_images(photos), ids, mask, image))
    # One image a text or one a batch: the same numbers, up to how a convolution is summed.
    torch.testing.assert_close(answers[1][0], answers[0][0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(answers[1][1], answers[0][1], rtol=1e-4, atol=1e-6)


def test_what_the_loss_does_not_reach_is_frozen(tiny_finetune: Settings) -> None:
    frozen = ("image_projection", "text_projection", "match_head", "masked_language_head")
    model, _ = started(tiny_finetune)
    names = {name for name, _ in model.named_parameters()}
    assert names - learning(model) == {
        name for name in names if name.startswith((*frozen, "temperature"))
    }


def test_without_the_host_only_head_and_adapters_learn(tiny_finetune: Settings) -> None:
    model, _ = started(tiny_finetune, train_host=False)
    head = {f"box_head.{name}" for name, _ in model.box_head.named_parameters()}
    assert learning(model) == head
    model, _ = started(tiny_finetune, train_host=False, adapters=[MMCA])
    adapters = {id(p) for p in model.adapters.parameters()}
    assert adapters
    named = dict(model.named_parameters())
    assert learning(model) == head | {n for n, p in named.items() if id(p) in adapters}
    assert not any(".host." in name for name in learning(model))


def test_a_fresh_head_of_another_kind(tiny_finetune: Settings, pretrained: Any) -> None:
    model, _ = started(tiny_finetune, pretrained.out / "release", box_head={"kind": "cls"})
    assert model.config.box_head.kind == "cls"
    assert any(name.startswith("box_head.mlp") for name in learning(model))


def test_texts_longer_than_the_model_reads_are_refused(tiny_finetune: Settings) -> None:
    reg = {"kind": "reg", "width": 16, "layers": 1, "heads": 2, "feed_forward": 16, "max_text": 8}
    data = tiny_finetune["data"] | {"max_tokens": 9}
    with pytest.raises(ConfigError, match=r"data\.max_tokens is 9, .* at most 8 tokens"):
        started(tiny_finetune, fusion=reg, box_head={"kind": "mlp"}, data=data)
    data = tiny_finetune["data"] | {"max_tokens": 4000}
    with pytest.raises(ConfigError, match=r"data\.max_tokens is 4000"):
        started(tiny_finetune, data=data)


def test_a_text_encoder_comes_with_its_vocabulary(tiny_finetune: Settings) -> None:
    with pytest.raises(ConfigError, match=r"set tokenizer to the vocab\.txt beside it"):
        configured(tiny_finetune, backbones={"text": "backbones/bert-base-uncased"})
