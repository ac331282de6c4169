"""Use of a released model: expressions to boxes, images against texts, both to vectors.

>>> model = load("runs/refcoco/release")                                    # doctest: +SKIP
>>> model.ground("photo.jpg", ["the man in red"])[0].box                    # doctest: +SKIP
(103.2, 44.0, 310.9, 402.5)
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wholegrain.boxes import clip_xyxy, cxcywh_to_xyxy, denormalise
from wholegrain.data.augment import squeeze, to_planes
from wholegrain.data.decode import Decoded, decode_image
from wholegrain.errors import DataError, ReleaseError, TextError
from wholegrain.hub.additions import load_additions
from wholegrain.hub.release import load_release
from wholegrain.model.concepts import ImageFeatures, whole_images
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.text import Tokenizer, normalise_text

log = logging.getLogger(__name__)
T = TypeVar("T")

Photo = str | Path | Image.Image | np.ndarray
"""A file, a PIL image, or uint8 RGB (H, W, 3)."""

DEFAULT_MAX_TOKENS = 40
_IMAGE_BATCH = 16
_TEXT_BATCH = 64
_EXIF_ORIENTATION = 0x0112

# What a pass is conditioned on, and what of it is computed once, is kept in the model itself.
_PASSES: WeakKeyDictionary[MultiGrainModel, threading.Lock] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Grounding:
    """Where an expression is."""

    text: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the photo as stored, inside it."""
    score: float
    """Confidence of the box head, 0 to 1, not calibrated: the matching probability (`cls`), the
    share of the votes inside the box (`patch`), or the expected IoU (`mlp`)."""


def load(
    folder: Path | str,
    device: str | torch.device | None = None,
    additions: Path | str | None = None,
) -> Grounder:
    """Loads a release, ready for use.

    Args:
        folder: the release; every file is checked against its checksum first.
        device: where to run; None takes a GPU if there is one.
        additions: what finetuning added to this release, kept by itself
            (`wholegrain.hub.additions`).

    Raises:
        ReleaseError: a file is missing, altered or foreign, the additions belong to another
            release, or the device is not there.
    """
    if additions is None:
        model, tokenizer, info = load_release(folder)
    else:
        model, tokenizer, info = load_additions(additions, folder)
    max_tokens = info.extras.get("max_tokens", DEFAULT_MAX_TOKENS)
    if not isinstance(max_tokens, int) or max_tokens < 2:
        raise ReleaseError(f"{folder}: extras.max_tokens is {max_tokens!r}; it must be at least 2")
    return Grounder(model, tokenizer, device=device, max_tokens=max_tokens)


class Grounder:
    """A model with its tokenizer. Methods take photos of any size and return CPU values.

    They may be called from several threads, whose passes through the model take turns.
    """

    def __init__(
        self,
        model: MultiGrainModel,
        tokenizer: Tokenizer,
        *,
        device: str | torch.device | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            self.model = model.eval().to(self.device)
        except (RuntimeError, AssertionError) as error:  # torch's answers to an absent device
            raise ReleaseError(f"device {device!r} cannot be used ({error}); try 'cpu'") from None
        self.tokenizer = tokenizer
        self.max_tokens = min(max_tokens, model.max_text)

    @torch.inference_mode()
    def ground(self, image: Photo, texts: Sequence[str]) -> list[Grounding]:
        """One box for each expression; what does not depend on the text is computed once.

        Args:
            image: the photo.
            texts: expressions. One longer than the model reads is cut, with a logged warning.

        Raises:
            TextError: an expression is empty.
            DataError: the photo cannot be read.
        """
        return self._ground([image], [self._checked(texts)])[0]

    @torch.inference_mode()
    def ground_many(
        self, images: Sequence[Photo], texts: Sequence[Sequence[str]]
    ) -> list[list[Grounding]]:
        """Boxes in several photos, photos and expressions in batches; as `ground` of each photo.

        Args:
            images: photos.
            texts: the expressions of each photo, any number of them.

        Returns:
            One list a photo, in the order of its expressions.

        Raises:
            TextError: an expression is empty.
            DataError: a photo cannot be read, or `texts` has not one entry a photo.
        """
        if len(texts) != len(images):
            raise DataError(
                f"texts has {len(texts)} entries for {len(images)} photos; give each one"
            )
        asked = [self._checked(some, f"texts[{row}]") for row, some in enumerate(texts)]
        found: list[list[Grounding]] = []
        for some in _batches(list(zip(images, asked, strict=True)), _IMAGE_BATCH):
            found += self._ground([image for image, _ in some], [words for _, words in some])
        return found

    def _ground(self, images: Sequence[Photo], texts: list[list[str]]) -> list[list[Grounding]]:
        """Of a batch of photos."""
        pairs = [(row, text) for row, some in enumerate(texts) for text in some]
        found: list[list[Grounding]] = [[] for _ in images]
        if not pairs:
            return found
        size = self.model.config.vision.image_size
        decoded = [read_photo(image, size) for image in images]
        pixels = self._pixels(decoded)
        with self._alone, self.model.same_images():
            whole = None if self.model.image_depends_on_text else self.model.see(pixels)
            for part in _batches(pairs, _TEXT_BATCH):
                image = torch.tensor([row for row, _ in part], device=self.device)
                states = self._encode([text for _, text in part])
                features, rows = self._features(pixels, whole, states, image)
                prediction, scores, _ = self.model.ground_encoded(features, states, rows)
                corners = cxcywh_to_xyxy(prediction.boxes.float().cpu())
                answers = zip(part, corners, scores.float().tolist(), strict=True)
                for (row, text), corner, score in answers:
                    width, height = decoded[row].width, decoded[row].height
                    box = clip_xyxy(denormalise(corner, width, height), width, height)
                    left, top, right, bottom = box.tolist()
                    found[row].append(Grounding(text, (left, top, right, bottom), score))
        return found

    @torch.inference_mode()
    def match(self, images: Photo | Sequence[Photo], texts: Sequence[str]) -> Tensor:
        """Probabilities (images, texts) that a text belongs to an image, by the cross encoder.

        Every pair is a pass of the cross encoder; to search among many, compare the vectors of
        `embed_images` and `embed_texts` first.

        Raises:
            ReleaseError: the model was made for grounding alone and has no cross encoder.
        """
        if not len(self.model.cross.layers):
            raise ReleaseError(
                "the model has no cross encoder (text.fusion_layer is text.layers), so it cannot "
                "match; use `ground`, or another release"
            )
        texts = self._checked(texts)
        photos = _as_list(images)
        scores = torch.zeros(len(photos), len(texts))
        if not texts:
            return scores
        with self._alone:
            self._match(photos, self._encode(texts), scores)
        return scores

    def _match(self, photos: Sequence[Photo], states: TextStates, scores: Tensor) -> None:
        """Fills in the scores."""
        for first, pixels in self._image_batches(photos):
            whole = None if self.model.image_depends_on_text else self.model.encode_images(pixels)
            pairs = torch.cartesian_prod(torch.arange(len(pixels)), torch.arange(len(states)))
            for some in pairs.to(self.device).split(_TEXT_BATCH):
                row, text = some[:, 0], some[:, 1]
                asked = states.take(text)
                features, rows = self._features(pixels, whole, asked, row)
                memory = self.model.memory(whole_images(features))
                cls = self.model.fuse_cls(asked.states, asked.mask, memory, rows)
                match = self.model.match_logits(cls).float().softmax(dim=-1)[:, 1]
                scores[first + row.cpu(), text.cpu()] = match.cpu()

    @torch.inference_mode()
    def embed_images(self, images: Photo | Sequence[Photo]) -> Tensor:
        """Unit vectors (images, E); their product with those of texts is cosine similarity."""
        with self._alone:
            vectors = [
                self.model.image_vector(self.model.encode_images(pixels).cls).cpu()
                for _, pixels in self._image_batches(_as_list(images))
            ]
        return torch.cat(vectors) if vectors else torch.zeros(0, self.model.config.embed_dim)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (texts, E)."""
        vectors = []
        for part in _batches(self._checked(texts), _TEXT_BATCH):
            with self._alone:
                vectors.append(self.model.text_vector(self._encode(part).states[:, 0]).cpu())
        return torch.cat(vectors) if vectors else torch.zeros(0, self.model.config.embed_dim)

    @property
    def _alone(self) -> threading.Lock:
        return _PASSES.setdefault(self.model, threading.Lock())

    def _features(
        self, pixels: Tensor, whole: ImageFeatures | None, texts: TextStates, image: Tensor
    ) -> tuple[ImageFeatures, Tensor]:
        """Features that these texts may read, and the row of them that each one reads."""
        if whole is not None:
            return whole, image
        return self.model.encode_for_texts(pixels, texts, image)

    def _checked(self, texts: Sequence[str], where: str = "texts") -> list[str]:
        """The texts as a list, each with something to encode; warns of what will be lost."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TextError(f"{where}[{index}] is {text!r:.80}; give a string")
            try:
                words = normalise_text(text).split()
            except TextError as error:
                raise TextError(f"{where}[{index}]: {error}") from None
            self._warn_of_loss(f"{where}[{index}] ({text[:40]!r})", words)
        return texts

    def _warn_of_loss(self, where: str, words: list[str]) -> None:
        pieces = self.tokenizer.pieces(" ".join(words[: self.max_tokens]))
        read = self.max_tokens - 1  # the first place is [CLS]'s
        if len(words) > self.max_tokens or len(pieces) > read:
            log.warning(
                "%s: %d words are more than the model reads; only the first %d word pieces count",
                where,
                len(words),
                read,
            )
        unknown = pieces[:read].count(self.tokenizer.unk_id)
        if 2 * unknown >= len(pieces[:read]):
            log.warning(
                "%s: the vocabulary does not cover %d of %d word pieces (another script?); "
                "the answer hardly depends on the words",
                where,
                unknown,
                len(pieces[:read]),
            )

    def _encode(self, texts: Sequence[str]) -> TextStates:
        """The texts, encoded."""
        ids, mask = self.tokenizer.encode_batch(texts, self.max_tokens)
        return self.model.read_texts(ids.to(self.device), mask.to(self.device))

    def _image_batches(self, photos: Sequence[Photo]) -> Iterator[tuple[int, Tensor]]:
        """(number of the first photo, normalised pixels) of batches."""
        size = self.model.config.vision.image_size
        for first in range(0, len(photos), _IMAGE_BATCH):
            some = photos[first : first + _IMAGE_BATCH]
            yield first, self._pixels([read_photo(photo, size) for photo in some])

    def _pixels(self, photos: Sequence[Decoded]) -> Tensor:
        """Normalised pixels (I, 3, R, R): each photo squeezed to a square, as in training."""
        size = self.model.config.vision.image_size
        squares = torch.stack([to_planes(squeeze(photo.pixels, size)) for photo in photos])
        return self.model.normalise_images(squares.to(self.device))


def read_photo(photo: Photo, min_side: int | None = None) -> Decoded:
    """RGB pixels of a photo and its stored size.

    An EXIF orientation is not applied, as in corpora: boxes refer to the pixels as stored.

    Args:
        photo: a file, a PIL image, or uint8 RGB (H, W, 3).
        min_side: pixels that the shorter side needs; a large JPEG is then decoded smaller.

    Raises:
        DataError: it cannot be read; says why and what to do.
    """
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
            raise DataError(
                f"image: an array {photo.dtype} {photo.shape}; give uint8 RGB (H, W, 3)"
            )
        return Decoded(np.ascontiguousarray(photo), photo.shape[1], photo.shape[0])
    if isinstance(photo, Image.Image):
        return _from_pil(photo)
    path = Path(photo)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    decoded = decode_image(data, str(path), min_side, smallest=1)
    _warn_of_orientation(path, data)
    return decoded


def _from_pil(photo: Image.Image) -> Decoded:
    if photo.mode in ("CMYK", "YCbCr", "LAB", "HSV", "F"):  # no PNG holds these
        photo = photo.convert("RGB")
    if photo.mode == "RGB" and "transparency" not in photo.info:
        return Decoded(np.array(photo), photo.width, photo.height)
    # Palettes, transparency and 16 bits have rules in the decoder; PNG carries them there intact.
    packed = io.BytesIO()
    photo.save(packed, "PNG", compress_level=0)
    return decode_image(packed.getvalue(), "image", smallest=1)


def _warn_of_orientation(path: Path, data: bytes) -> None:
    try:
        turned = Image.open(io.BytesIO(data)).getexif().get(_EXIF_ORIENTATION, 1) != 1
    except (OSError, SyntaxError, ValueError):
        return
    if turned:
        log.warning(
            "%s: stored on its side or mirrored (EXIF orientation); boxes refer to the stored "
            "pixels. Turn the photo upright for better answers",
            path,
        )


def _as_list(images: Photo | Sequence[Photo]) -> list[Photo]:
    if isinstance(images, str | Path | Image.Image | np.ndarray):
        return [images]
    return list(images)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
