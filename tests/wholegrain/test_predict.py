"""Use of a model: photos and words in, boxes in the photo's pixels out."""

import io
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wholegrain.errors import DataError, ReleaseError, TextError
from wholegrain.hub.card import Card
from wholegrain.hub.release import save_release
from wholegrain.model.config import MmcaConfig, ModelConfig
from wholegrain.model.fusion_config import RegFusion
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.predict import Grounder, load, read_photo
from wholegrain.text import Tokenizer

MMCA = MmcaConfig(rank=4, embed_dim=8, gate_dim=4, blocks=1)
TEXTS = ["the man in red", "a dog", "left"]


@pytest.fixture(scope="module")
def make(letters: Tokenizer, small_config: Callable[..., ModelConfig]) -> Callable[..., Grounder]:
    def grounder(adapter: MmcaConfig | None = None) -> Grounder:
        config = small_config(adapter)
        torch.manual_seed(0)
        model = MultiGrainModel(config)
        with torch.no_grad():  # fresh weights answer all texts alike; these do not
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return Grounder(model, letters, device="cpu")

    return grounder


@pytest.fixture(scope="module")
def plain(make: Callable[..., Grounder]) -> Grounder:
    return make()


@pytest.fixture(scope="module")
def adapted(make: Callable[..., Grounder]) -> Grounder:
    return make(MMCA)


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoder_calls(model: MultiGrainModel) -> list[int]:
    """Images of each call of the image encoder, from now on."""
    calls: list[int] = []
    model.vision.register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    return calls


@pytest.mark.parametrize("kind", ["plain", "adapted"])
def test_together_equals_one_by_one(kind: str, request: pytest.FixtureRequest) -> None:
    model: Grounder = request.getfixturevalue(kind)
    together = model.ground(noise(60, 40), TEXTS)
    assert [one.text for one in together] == TEXTS
    assert len({one.box for one in together}) == len(TEXTS)
    for one in together:
        (alone,) = model.ground(noise(60, 40), [one.text])
        assert alone.box == pytest.approx(one.box, abs=1e-3)
        assert alone.score == pytest.approx(one.score, abs=1e-5)


def test_threads_take_turns(adapted: Grounder) -> None:
    photos = [noise(60, 40, seed) for seed in range(8)]
    alone = [adapted.ground(photo, TEXTS) for photo in photos]
    with ThreadPoolExecutor(8) as pool:
        other = Grounder(adapted.model, adapted.tokenizer, device="cpu")
        asked = [(adapted, other)[number % 2].ground for number in range(len(photos))]
        together = list(pool.map(lambda ask, photo: ask(photo, TEXTS), asked, photos))
    assert together == alone


def test_an_image_is_encoded_once_for_all_texts(make: Callable[..., Grounder]) -> None:
    model = make()
    calls = encoder_calls(model.model)
    model.ground(noise(60, 40), ["dog"] * 150)
    assert calls == [1]
    calls.clear()
    model.match([noise(60, 40), noise(20, 30)], ["dog"] * 150)
    assert calls == [2]


def test_boxes_scale_with_the_photo_and_stay_inside(plain: Grounder) -> None:
    photo = noise(32, 32)
    small = plain.ground(photo, TEXTS)
    large = plain.ground(photo.repeat(3, axis=0).repeat(5, axis=1), TEXTS)
    for one, other in zip(small, large, strict=True):
        left, top, right, bottom = one.box
        assert 0 <= left <= right <= 32 and 0 <= top <= bottom <= 32
        assert 0 <= one.score <= 1
        # Repeated pixels squeeze back to nearly the same square, so to nearly the same answer.
        assert other.box == pytest.approx(
            (left * 5, top * 3, right * 5, bottom * 3), rel=0.2, abs=16
        )


@pytest.mark.parametrize(("width", "height"), [(20, 20), (1, 300), (8000, 20), (3000, 2000)])
def test_any_size(plain: Grounder, tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(noise(width, height)).save(path)
    ((left, top, right, bottom),) = (one.box for one in plain.ground(path, ["dog"]))
    assert 0 <= left <= right <= width and 0 <= top <= bottom <= height


def test_a_large_jpeg_is_decoded_small_yet_boxes_are_in_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(noise(1600, 800)).save(path)
    decoded = read_photo(path, min_side=32)
    assert (decoded.width, decoded.height) == (1600, 800)
    assert decoded.pixels.shape[1] < 1600


def test_file_pil_and_array_agree(plain: Grounder, tmp_path: Path) -> None:
    array = noise(50, 30)
    path = tmp_path / "photo.png"
    Image.fromarray(array).save(path)
    expected = plain.ground(array, TEXTS)
    assert plain.ground(path, TEXTS) == expected
    assert plain.ground(str(path), TEXTS) == expected
    assert plain.ground(Image.open(path), TEXTS) == expected


def test_every_mode_of_pil_is_read() -> None:
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"):
        photo = Image.new(mode, (8, 6))
        decoded = read_photo(photo)
        assert decoded.pixels.shape == (6, 8, 3), mode
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (read_photo(clear).pixels == 255).all(), "transparency is laid on white, as in corpora"


def test_match_is_a_matrix_of_the_scores_that_ground_gives(adapted: Grounder) -> None:
    photos = [noise(40, 40, seed) for seed in range(3)]
    matrix = adapted.match(photos, TEXTS)
    assert matrix.shape == (3, 3)
    for row, photo in zip(matrix, photos, strict=True):
        scores = [one.score for one in adapted.ground(photo, TEXTS)]
        assert row.tolist() == pytest.approx(scores, abs=1e-5)
    assert adapted.match(photos[0], TEXTS).shape == (1, 3)
    assert matrix.unique().numel() == 9


def test_match_of_more_images_than_a_batch(plain: Grounder) -> None:
    photos = [noise(30, 30, seed) for seed in range(18)]
    matrix = plain.match(photos, TEXTS)
    assert torch.allclose(matrix[17], plain.match(photos[17], TEXTS)[0], atol=1e-5)
    assert torch.allclose(matrix[1], plain.match(photos[1], TEXTS)[0], atol=1e-5)


def test_embeddings_are_unit_vectors_in_order(plain: Grounder) -> None:
    photos = [noise(30, 30, seed) for seed in range(20)]
    images, texts = plain.embed_images(photos), plain.embed_texts(TEXTS)
    assert images.shape == (20, 8) and texts.shape == (3, 8)
    assert torch.allclose(images.norm(dim=-1), torch.ones(20), atol=1e-5)
    assert torch.allclose(texts.norm(dim=-1), torch.ones(3), atol=1e-5)
    assert torch.allclose(images[17], plain.embed_images(photos[17])[0], atol=1e-5)
    assert torch.allclose(texts[1], plain.embed_texts(["a dog"])[0], atol=1e-5)


def test_nothing_asked_is_nothing_answered(plain: Grounder) -> None:
    assert plain.ground(noise(20, 20), []) == []
    assert plain.match([noise(20, 20)], []).shape == (1, 0)
    assert plain.embed_images([]).shape == (0, 8)


@pytest.mark.parametrize("text", ["", "   ", "?!"])
def test_an_empty_expression_is_refused_by_place(plain: Grounder, text: str) -> None:
    with pytest.raises(TextError, match=r"texts\[1\].*empty.*give at least one word"):
        plain.ground(noise(20, 20), ["dog", text])
    with pytest.raises(TextError, match=r"texts\[0\] is None; give a string"):
        plain.embed_texts([None])  # type: ignore[list-item]


def test_ten_thousand_words_are_cut_with_a_warning(
    plain: Grounder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    long = plain.ground(noise(20, 20), ["a dog " * 5000])
    assert "10000 words are more than the model reads" in caplog.text
    cut = plain.ground(noise(20, 20), ["a dog " * 20])
    assert long[0].box == cut[0].box


def test_a_fusion_may_read_shorter_texts(
    make: Callable[..., Grounder], caplog: pytest.LogCaptureFixture
) -> None:
    model = make().model
    model.new_fusion(RegFusion(width=16, layers=1, heads=2, feed_forward=16, max_text=6))
    grounder = Grounder(model, make().tokenizer, device="cpu")
    assert grounder.max_tokens == 6
    (found,) = grounder.ground(noise(60, 40), ["the red ball on the left of a green box"])
    (cut,) = grounder.ground(noise(60, 40), ["the re"])  # letters are pieces here
    assert "only the first 5 word pieces count" in caplog.text
    assert found.box == pytest.approx(cut.box, abs=1e-3)


def test_another_script_is_answered_with_a_warning(
    plain: Grounder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert len(plain.ground(noise(20, 20), ["красная собака"])) == 1
    assert "does not cover 2 of 2 word pieces" in caplog.text
    caplog.clear()
    plain.ground(noise(20, 20), TEXTS)
    assert caplog.text == ""


def test_photos_that_cannot_be_read_are_explained(plain: Grounder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jpg: cannot be read"):
        plain.ground(tmp_path / "nowhere.jpg", ["dog"])
    page = tmp_path / "page.jpg"
    page.write_text("<html><body>404</body></html>")
    with pytest.raises(DataError, match=r"page\.jpg: .*HTML page"):
        plain.ground(page, ["dog"])
    whole = io.BytesIO()
    Image.fromarray(noise(200, 200)).save(whole, "JPEG")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.getvalue()[:3000])
    with pytest.raises(DataError, match=r"cut\.jpg: .*cut short"):
        plain.ground(cut, ["dog"])
    with pytest.raises(DataError, match=r"float64 \(4, 4\); give uint8 RGB"):
        plain.ground(np.zeros((4, 4)), ["dog"])


def test_a_photo_on_its_side_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise(40, 20)).save(tmp_path / "a.jpg", exif=turned)
    assert read_photo(tmp_path / "a.jpg").width == 40
    assert "EXIF orientation" in caplog.text


def test_load_answers_as_the_saved_model_did(tmp_path: Path, make: Callable[..., Grounder]) -> None:
    model = make(MMCA)
    expected = model.ground(noise(60, 40), TEXTS)
    extras = {"max_tokens": 12}
    save_release(tmp_path / "r", model.model, model.tokenizer, card=Card("T"), extras=extras)
    loaded = load(tmp_path / "r", device="cpu")
    assert loaded.ground(noise(60, 40), TEXTS)[1:] == expected[1:]
    assert loaded.max_tokens == 12
    with pytest.raises(ReleaseError, match="device 'nonsense' cannot be used"):
        load(tmp_path / "r", device="nonsense")


def test_real_photos(plain: Grounder, real_data: Path) -> None:
    photos = sorted((real_data / "refcoco_native" / "images").glob("*.jpg"))[:5]
    assert len(photos) == 5
    for photo in photos:
        width, height = Image.open(photo).size
        for one in plain.ground(photo, TEXTS):
            left, top, right, bottom = one.box
            assert 0 <= left <= right <= width and 0 <= top <= bottom <= height


@pytest.mark.parametrize("kind", ["plain", "adapted"])
def test_many_photos_are_as_each_by_itself(kind: str, request: pytest.FixtureRequest) -> None:
    """Different numbers of expressions, none among them, and more of both than fit in a batch."""
    model: Grounder = request.getfixturevalue(kind)
    photos = [noise(30 + row, 20 + row, row) for row in range(18)]
    texts = [[f"dog {letter}" for letter in "abcdefghij"[: row % 7]] for row in range(18)]
    found = model.ground_many(photos, texts)
    assert [len(some) for some in found] == [row % 7 for row in range(18)]
    for row in (0, 6, 13, 17):
        for one, alone in zip(found[row], model.ground(photos[row], texts[row]), strict=True):
            assert one.text == alone.text
            assert one.box == pytest.approx(alone.box, abs=1e-3)
            assert one.score == pytest.approx(alone.score, abs=1e-5)


def test_what_the_texts_do_not_reach_is_computed_once(make: Callable[..., Grounder]) -> None:
    """MMCA in the last block: the blocks before it see each image once, however many texts."""
    model = make(MMCA)
    first, last = (block for block in model.model.vision.blocks())
    calls: dict[str, list[int]] = {"first": [], "last": []}
    first.register_forward_hook(lambda _m, given, _o: calls["first"].append(len(given[0])))
    last.attn.register_forward_hook(lambda _m, given, _o: calls["last"].append(len(given[0])))
    inner: list[int] = []
    first.attn.register_forward_hook(lambda _m, given, _o: inner.append(len(given[0])))
    model.ground(noise(60, 40), ["dog"] * 150)
    assert inner == [1]
    assert calls["last"] == [64, 64, 22]


def test_many_photos_need_as_many_lists(plain: Grounder) -> None:
    with pytest.raises(DataError, match="texts has 1 entries for 2 photos"):
        plain.ground_many([noise(9, 9), noise(9, 9)], [["dog"]])
    with pytest.raises(TextError, match=r"texts\[1\]\[0\]"):
        plain.ground_many([noise(9, 9), noise(9, 9)], [["dog"], [" "]])
    assert plain.ground_many([], []) == []
