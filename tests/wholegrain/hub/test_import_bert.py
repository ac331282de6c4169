"""BERT as Hugging Face stores it: same outputs, every tensor accounted for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wholegrain.errors import CheckpointError
from wholegrain.hub.backbones import load_backbones
from wholegrain.model.config import ModelConfig, TextConfig, VitVision
from wholegrain.model.multigrain import MultiGrainModel

TEXT = TextConfig(
    vocab_size=50,
    hidden_size=24,
    layers=4,
    fusion_layer=2,
    heads=3,
    intermediate_size=40,
    max_positions=20,
)
VISION = VitVision(image_size=16, patch_size=8, width=8, depth=1, heads=1)
IDS = torch.tensor([[5, 6, 7, 8, 9], [5, 3, 2, 0, 0], [5, 41, 0, 0, 0]])
MASK = IDS > 0


def model_of(text: TextConfig = TEXT, seed: int = 1) -> MultiGrainModel:
    torch.manual_seed(seed)
    return MultiGrainModel(ModelConfig(vision=VISION, text=text, embed_dim=8)).eval()


def bert(kind: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=20,
        initializer_range=0.3,
    )
    model: nn.Module = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # no norm and no bias is trivial
                parameter += 0.2 * torch.randn(parameter.shape)
    return model


def whole_stack(model: MultiGrainModel) -> MultiGrainModel:
    """The same BERT with every layer in the text encoder, so that it can be run without images."""
    deep = model_of(replace(TEXT, layers=5, fusion_layer=4))
    state = {f"text.{name}": value for name, value in model.text.state_dict().items()}
    for name, value in model.cross.layers.state_dict().items():
        index, _, rest = name.partition(".")
        if not rest.startswith("cross_"):
            state[f"text.layers.{int(index) + 2}.{rest}"] = value
    deep.text.load_state_dict({name.removeprefix("text."): value for name, value in state.items()})
    return deep


Save = Callable[[Path, nn.Module], Path]


def as_safetensors(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    return folder


def as_pickle(folder: Path, model: nn.Module) -> Path:
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def as_old_pickle(folder: Path, model: nn.Module) -> Path:
    """As converted from TensorFlow in 2018: other names of the norms, the older container."""
    state = {}
    for name, value in model.state_dict().items():
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        state[name] = value
    place = "bert." if any(name.startswith("bert.") for name in state) else ""
    state[f"{place}embeddings.position_ids"] = torch.arange(20)[None]
    path = folder / "old.bin"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize("save", [as_safetensors, as_pickle, as_old_pickle])
@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_outputs_are_hugging_faces(tmp_path: Path, kind: str, save: Save) -> None:
    theirs, model = bert(kind), model_of()
    report = load_backbones(model, text=save(tmp_path, theirs))
    stack = getattr(theirs, "bert", theirs).double()
    expected = stack(input_ids=IDS, attention_mask=MASK.long(), output_hidden_states=True)
    lower = model.double().encode_text(IDS, MASK)
    torch.testing.assert_close(lower[MASK], expected.hidden_states[2][MASK], rtol=0, atol=1e-6)
    whole = whole_stack(model.float()).double().encode_text(IDS, MASK)
    torch.testing.assert_close(whole[MASK], expected.last_hidden_state[MASK], rtol=0, atol=1e-6)

    taken, fresh = report.parts[0].taken, report.fresh
    assert taken["text.embeddings"] == 5
    assert taken["text.layers"] == taken["cross.layers"] == 2 * 16
    assert fresh["cross.layers.*.cross_attention"] == 2 * 8
    assert fresh["cross.layers.*.cross_residual"] == 2 * 2
    assert fresh["vision"] > 0
    if kind == "BertModel":
        assert fresh["masked_language_head"] == 5
    else:
        head: Any = theirs.double()
        logits = head(input_ids=IDS, attention_mask=MASK.long())
        logits = getattr(logits, "logits", None) if kind != "BertForPreTraining" else logits[0]
        ours = model.double().token_logits(whole)
        torch.testing.assert_close(ours[MASK], logits[MASK], rtol=0, atol=1e-6)
        assert "masked_language_head" not in fresh
    dropped = {name.split(".")[-3] for name in report.parts[0].dropped if "pooler" in name}
    assert bool(dropped) == (kind != "BertForMaskedLM")


def test_single_precision_is_as_exact(tmp_path: Path) -> None:
    theirs: Any = bert("BertModel")
    model = model_of()
    load_backbones(model, text=as_safetensors(tmp_path, theirs))
    expected = theirs(input_ids=IDS, attention_mask=MASK.long()).last_hidden_state
    found = whole_stack(model).encode_text(IDS, MASK)
    torch.testing.assert_close(found[MASK], expected[MASK], rtol=0, atol=1e-6)


def test_what_bert_lacks_stays_as_it_was(tmp_path: Path) -> None:
    model, before = model_of(), model_of().state_dict()
    load_backbones(model, text=as_pickle(tmp_path, bert("BertModel")))
    for name, value in model.state_dict().items():
        kept = "cross_attention" in name or "cross_residual" in name
        kept = kept or not name.startswith(("text.", "cross."))
        if kept or value.ndim > 1:
            assert torch.equal(value, before[name]) == kept, name


def saved(folder: Path, change: Callable[[dict[str, Tensor]], object], kind: str) -> Path:
    state = {name: value.clone() for name, value in bert(kind).state_dict().items()}
    change(state)
    save_file(state, folder / "a.safetensors")
    return folder / "a.safetensors"


LAYER = "bert.encoder.layer.3"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda s: s.update({f"{LAYER}.adapter.weight": torch.ones(1)}),
            f"tensor '{LAYER}.adapter.weight' is not part of BERT",
        ),
        (
            lambda s: s.update({f"{LAYER}.crossattention.self.key.bias": torch.ones(24)}),
            "crossattention.self.key.bias' is not part of BERT",
        ),
        (
            lambda s: s.update({"embeddings.LayerNorm.bias": torch.ones(24)}),
            "'embeddings.LayerNorm.bias' is not part of BERT",
        ),
        (
            lambda s: s.pop(f"{LAYER}.output.dense.bias"),
            r"the file lacks cross.layers.1.feed_forward.down.bias.*text.vocab_size",
        ),
        (
            lambda s: [s.pop(name) for name in list(s) if LAYER in name],
            "the file lacks cross.layers.1.* and 12 more",
        ),
        (
            lambda s: s.update(
                {n.replace("layer.3", "layer.4"): v.clone() for n, v in s.items() if LAYER in n}
            ),
            "the model has no cross.layers.2",
        ),
        (
            lambda s: s.update({"bert.embeddings.word_embeddings.weight": torch.ones(51, 24)}),
            r"'cls.predictions.decoder.weight' differs from 'embeddings.word_embeddings.weight'",
        ),
        (
            lambda s: s.update({"bert.embeddings.position_embeddings.weight": torch.ones(9, 24)}),
            r"text.embeddings.position.weight is \(9, 24\) in the file, \(20, 24\) in the model",
        ),
        (
            lambda s: s.pop("cls.predictions.transform.dense.weight"),
            "the file lacks masked_language_head.dense.weight",
        ),
        (
            lambda s: s["bert.embeddings.LayerNorm.bias"].fill_(float("nan")),
            "NaN or infinity in text.embeddings.norm.bias",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], match: str
) -> None:
    model, before = model_of(), model_of().state_dict()
    path = saved(tmp_path, change, "BertForMaskedLM")
    with pytest.raises(CheckpointError, match=match):
        load_backbones(model, text=path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_head_bias_under_its_second_name_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, lambda s: s.pop("cls.predictions.bias"), "BertForMaskedLM")
    model = model_of()
    load_backbones(model, text=path)
    expected = load_file(path)["cls.predictions.decoder.bias"]
    assert torch.equal(model.masked_language_head.bias, expected)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("num_attention_heads", 4, "num_attention_heads 4, the model 3; set text.heads"),
        ("hidden_act", "relu", "hidden_act 'relu'"),
        ("model_type", "roberta", "calls it 'roberta'"),
    ],
)
def test_what_no_shape_shows_is_read_from_the_description(
    tmp_path: Path, key: str, value: object, match: str
) -> None:
    import json

    folder = as_safetensors(tmp_path, bert("BertModel"))
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, key: value}))
    with pytest.raises(CheckpointError, match=match):
        load_backbones(model_of(), text=folder)


def test_another_epsilon_is_noted(tmp_path: Path) -> None:
    folder = as_safetensors(tmp_path, bert("BertModel"))
    report = load_backbones(model_of(replace(TEXT, norm_eps=1e-6)), text=folder)
    assert report.parts[0].notes == (
        "layer norms were trained with epsilon 1e-12, here it is 1e-06",
    )
    assert "epsilon" in str(report)
