"""What few-shot classification compares: two encoders, a scale, and adapters that learn.

A host is CLIP or a model of this library. It stays as it is: each run adapts a copy, so that no
run finds what another one has learnt.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.shots.config import ClipHost, HostConfig
from finetune.start import pretrained
from wholegrain.errors import ConfigError, DataError
from wholegrain.model.clip_host import MmaClip, attach_clip, host_fingerprint
from wholegrain.model.config import MmaConfig
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.tensor_file import write_tensors
from wholegrain.model.weights import load_weights
from wholegrain.predict import DEFAULT_MAX_TOKENS
from wholegrain.text import Tokenizer

Precision = Literal["fp32", "bf16"]

# Of the pixels CLIP was trained on, in 0..1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


class Encoders(ABC):
    """A frozen host, perhaps with adapters.

    Attributes:
        model: the host.
        resolution: R, the side of the square images it reads.
        squeezes: whether it was trained on whole images squeezed to a square (this library) or on
            central squares (CLIP).
    """

    resolution: int
    squeezes: bool

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        # Evaluation mode for good: what is frozen must not drop anything at random.
        self.model = model.eval().requires_grad_(False)
        self._precision = precision
        self._fingerprint: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the host's weights; asked for before adapters are there."""
        if self._fingerprint is None:
            self._fingerprint = host_fingerprint(self.model)
        return self._fingerprint

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Unit vectors (B, E), fp32, of uint8 pixels (B, 3, R, R)."""
        with self._cast():
            vectors = self._encode_images(pixels.to(self.device, non_blocking=True))
        return F.normalize(vectors.float(), dim=-1)

    def text_vectors(self, texts: tuple[Tensor, Tensor]) -> Tensor:
        """Unit vectors (T, E), fp32, of what `tokens` made of texts."""
        with self._cast():
            vectors = self._encode_texts(*texts)
        return F.normalize(vectors.float(), dim=-1)

    def adapted(self, config: MmaConfig, seed: int) -> Encoders:
        """A copy of the host with fresh adapters, whose initial weights the seed draws."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            other._attach(config)
        other.model.to(self.device)
        return other

    @contextmanager
    def _cast(self) -> Iterator[None]:
        wanted = self._precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=wanted):
            yield

    @property
    @abstractmethod
    def scale(self) -> Tensor:
        """() what cosines are multiplied by to become logits; not learnt here."""

    @property
    @abstractmethod
    def adapters(self) -> nn.Module:
        """The module that holds what learns, and nothing else."""

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (T, L) and mask bool (T, L), True at tokens, on the device.

        Raises:
            DataError: a text is longer than the host reads.
        """

    @abstractmethod
    def save(self, path: Path) -> None:
        """Writes the adapters (safetensors); the file appears whole or not at all."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Reads adapters that `save` wrote for the same host and configuration.

        Raises:
            CheckpointError: they do not fit.
        """

    @abstractmethod
    def _encode_images(self, pixels: Tensor) -> Tensor: ...

    @abstractmethod
    def _encode_texts(self, ids: Tensor, mask: Tensor) -> Tensor: ...

    @abstractmethod
    def _attach(self, config: MmaConfig) -> None: ...


class ClipEncoders(Encoders):
    """transformers' `CLIPModel` with its tokenizer."""

    squeezes = False

    def __init__(self, model: Any, tokenizer: Any, precision: Precision = "fp32") -> None:
        super().__init__(model, precision)
        size = model.config.vision_config.image_size
        if not isinstance(size, int):
            raise ConfigError(f"host: image_size is {size!r}; only square images are read")
        self.resolution = size
        self._tokenizer = tokenizer
        self._adapter: MmaClip | None = None

    @property
    def _host(self) -> Any:
        return self.model

    @property
    def scale(self) -> Tensor:
        """``exp(logit_scale)``, 100 of the published models."""
        scale: Tensor = self._host.logit_scale.exp()
        return scale

    @property
    def adapters(self) -> nn.Module:
        """The pairs."""
        if self._adapter is None:
            raise ConfigError("the host has no adapters; use `adapted`")
        return self._adapter

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As of the base; the end token comes last, padding after it changes nothing."""
        ids = self._tokenizer(list(texts))["input_ids"]
        longest = max(range(len(ids)), key=lambda place: len(ids[place]))
        most = self._host.config.text_config.max_position_embeddings
        if len(ids[longest]) > most:
            raise DataError(
                f"the text {texts[longest]!r:.80} has {len(ids[longest])} tokens, and the host "
                f"reads {most}; shorten the class's name or the template"
            )
        padded = torch.full((len(ids), len(ids[longest])), int(self._tokenizer.pad_token_id))
        for row, one in enumerate(ids):
            padded[row, : len(one)] = torch.tensor(one)
        lengths = torch.tensor([len(one) for one in ids])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return padded.to(self.device), mask.to(self.device)

    def save(self, path: Path) -> None:
        """Writes the pairs with their configuration and the host's fingerprint."""
        assert isinstance(self.adapters, MmaClip)
        self.adapters.save(path)

    def load(self, path: Path) -> None:
        """As of the base."""
        assert isinstance(self.adapters, MmaClip)
        self.adapters.load(path)

    def _encode_images(self, pixels: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(values, device=pixels.device)[:, None, None]
            for values in (CLIP_MEAN, CLIP_STD)
        )
        normal = (pixels.float() / 255 - mean) / std
        output: Tensor = self._host.get_image_features(pixel_values=normal).pooler_output
        return output

    def _encode_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        # Without the mask: attention is causal, and a text is read at its end token, before which
        # there is no padding.
        output: Tensor = self._host.get_text_features(input_ids=ids).pooler_output
        return output

    def _attach(self, config: MmaConfig) -> None:
        self._adapter = attach_clip(self.model, config)


class ReleaseEncoders(Encoders):
    """A `MultiGrainModel` with its tokenizer, by the vectors of its contrastive objective."""

    squeezes = True

    def __init__(
        self, model: MultiGrainModel, tokenizer: Tokenizer, precision: Precision = "fp32"
    ) -> None:
        if model.adapters:
            raise ConfigError(
                f"host: has adapters already ({', '.join(model.adapters)}); give the release that "
                "they were learnt on"
            )
        super().__init__(model, precision)
        self.resolution = model.config.vision.image_size
        self._tokenizer = tokenizer
        self._max_tokens = min(DEFAULT_MAX_TOKENS, model.config.text.max_positions)

    @property
    def _host(self) -> MultiGrainModel:
        assert isinstance(self.model, MultiGrainModel)
        return self.model

    @property
    def scale(self) -> Tensor:
        """1 / temperature."""
        return 1 / self._host.temperature.detach()

    @property
    def adapters(self) -> nn.Module:
        """The model's adapters of kind `mma`."""
        if "mma" not in self._host.adapters:
            raise ConfigError("the host has no adapters; use `adapted`")
        return self._host.adapters["mma"]

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As of the base."""
        for text in texts:
            count = len(self._tokenizer.encode(text, max_tokens=10 * self._max_tokens))
            if count > self._max_tokens:
                raise DataError(
                    f"the text {text!r:.80} has {count} tokens, and the host reads "
                    f"{self._max_tokens}; shorten the class's name or the template"
                )
        ids, mask = self._tokenizer.encode_batch(texts, self._max_tokens)
        return ids.to(self.device), mask.to(self.device)

    def save(self, path: Path) -> None:
        """Writes the pairs alone."""
        state = self.adapters.state_dict()
        aside = path.with_name(f"{path.name}.partial")
        write_tensors(aside, {n: v.detach().cpu().contiguous() for n, v in state.items()}, {})
        aside.replace(path)

    def load(self, path: Path) -> None:
        """As of the base."""
        load_weights(self.adapters, path)

    def _encode_images(self, pixels: Tensor) -> Tensor:
        host = self._host
        return host.image_vector(host.encode_images(host.normalise_images(pixels)).cls)

    def _encode_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self._host.text_vector(self._host.encode_text(ids, mask)[:, 0])

    def _attach(self, config: MmaConfig) -> None:
        self._host.add_adapter(config)


def open_host(config: HostConfig, precision: Precision, device: torch.device) -> Encoders:
    """Reads a host, frozen and in evaluation mode.

    Raises:
        ConfigError, ReleaseError: it is not there, not whole, or no host of this kind.
    """
    if isinstance(config, ClipHost):
        model, tokenizer = _read_clip(config)
        return ClipEncoders(model.to(device), tokenizer, precision)
    release, words = pretrained(Path(config.path), "host.path")
    return ReleaseEncoders(release.to(device), words, precision)


def _read_clip(config: ClipHost) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPTokenizer

    folder = Path(config.path)
    is_local = folder.is_dir()
    if not is_local and not _HUB_ID.fullmatch(config.path):
        raise ConfigError(
            f"host.path is {config.path!r}, which is no folder and no `owner/name` of the hub; "
            "correct it"
        )
    if is_local and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"host.path is {config.path!r}, which holds no *.safetensors; weights as pickles are "
            "not read: load them elsewhere and write them with save_pretrained"
        )
    where: dict[str, Any] = {"local_files_only": is_local}
    if config.revision is not None and not is_local:
        where["revision"] = config.revision
    # Their own type information does not know what from_pretrained gives with loading information.
    clip: Any = CLIPModel
    try:
        model, loading = clip.from_pretrained(
            config.path,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **where,
        )
        tokenizer = CLIPTokenizer.from_pretrained(config.path, **where)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"host.path is {config.path!r}, from which no CLIP can be read ({first[0]}); give a "
            "folder of save_pretrained with config.json, safetensors and tokenizer, or a hub id"
        ) from error
    wrong = [*loading["missing_keys"], *loading.get("mismatched_keys", ())]
    if wrong:
        raise ConfigError(
            f"host.path is {config.path!r}, whose weights lack {len(wrong)} of CLIP's tensors "
            f"(such as {sorted(map(str, wrong))[0]}); give a CLIPModel's, not one encoder's"
        )
    _check_vocabulary(config.path, model, tokenizer)
    return model, tokenizer


def _check_vocabulary(path: str, model: Any, tokenizer: Any) -> None:
    pieces, known = len(tokenizer), model.config.text_config.vocab_size
    if pieces > known:
        raise ConfigError(
            f"host.path is {path!r}, whose tokenizer has {pieces} pieces and whose text encoder "
            f"{known}; they must belong together"
        )
