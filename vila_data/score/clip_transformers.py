"""CLIP and SigLIP from transformers: one item per run in float32 on a CPU, batches in bfloat16 on a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import RunError
from vila_data.score.model import (
    ITEMS_PER_THREAD,
    ModelKeys,
    Source,
    find_model,
    model_fingerprint,
    spread,
    unit_length,
)
from vila_data.score.preprocess import read_preprocess

_STAGED: Final = 64
"""Images copied to a GPU at a time: while it computes on some, the next are copied."""


class TransformersClip:
    """Clip (see clip.py) over a transformers model that has image and text features."""

    def __init__(self, config: ModelKeys, threads: int, device: str | None = None) -> None:
        """`device` "cpu" or "cuda"; None takes the GPU if there is one."""
        import torch

        source = find_model(config.model, config.revision)
        self.fingerprint = model_fingerprint(config.model, config.revision)
        self._prepare = read_preprocess(source)
        self.image_side = self._prepare.side
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
        self._where = config.model
        self._model, self._tokenizer = _load(source)
        self._model.to(self._device, self._dtype).eval().requires_grad_(False)
        text = getattr(self._model.config, "text_config", self._model.config)
        self._max_tokens = int(text.max_position_embeddings)
        self._padding = "max_length" if "siglip" in self._model.config.model_type else True
        self._pool: ThreadPoolExecutor | None = None
        self.batch_size = config.batch_size
        if self._device.type == "cpu":
            self.batch_size = min(config.batch_size, ITEMS_PER_THREAD * threads)
            self._pool = ThreadPoolExecutor(threads, "clip", initializer=torch.set_num_threads, initargs=(1,))
        self.dim = self._text_features([self._tokens(["a"])])[0].shape[-1]

    def prepare(self, rgb_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Clip."""
        return self._prepare(rgb_HWC)

    def embed_images(self, pixels_CHW: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """See Clip."""
        if self._pool is not None:
            return unit_length(spread(self._pool.map, self._embed_image, pixels_CHW, self.dim), self._where)
        staged = [pixels_CHW[at : at + _STAGED] for at in range(0, len(pixels_CHW), _STAGED)]
        return unit_length(self._image_features(staged), self._where)

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """See Clip."""
        if self._pool is not None:
            tokens = [self._tokens([text]) for text in texts]  # here: its tokenizer is not for many threads
            return unit_length(spread(self._pool.map, self._embed_tokens, tokens, self.dim), self._where)
        batches = [texts[at : at + self.batch_size] for at in range(0, len(texts), self.batch_size)]
        return unit_length(self._text_features([self._tokens(batch) for batch in batches]), self._where)

    def _embed_image(self, pixels_CHW: NDArray[np.float32]) -> NDArray[np.float32]:
        vector_D: NDArray[np.float32] = self._image_features([[pixels_CHW]])[0]
        return vector_D

    def _embed_tokens(self, tokens: dict[str, Any]) -> NDArray[np.float32]:
        vector_D: NDArray[np.float32] = self._text_features([tokens])[0]
        return vector_D

    def _tokens(self, texts: list[str]) -> dict[str, Any]:
        tokens: dict[str, Any] = self._tokenizer(
            texts, padding=self._padding, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).data
        return tokens

    def _image_features(self, batches: list[list[NDArray[np.float32]]]) -> NDArray[np.float32]:
        """[N, D] of the images of some batches; a GPU works on one batch while the next is copied."""
        import torch

        features = []
        with torch.inference_mode():
            for batch in batches:
                shape = (len(batch), *batch[0].shape)
                pixels_NCHW = torch.empty(shape, dtype=self._dtype, pin_memory=self._device.type == "cuda")
                for row, pixels_CHW in enumerate(batch):
                    pixels_NCHW[row].copy_(torch.from_numpy(pixels_CHW))
                on_device = pixels_NCHW.to(self._device, non_blocking=True)
                features.append(_features(self._model.get_image_features(pixel_values=on_device)))
            return _on_host(features)

    def _text_features(self, batches: list[dict[str, Any]]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            moved = ({name: value.to(self._device) for name, value in batch.items()} for batch in batches)
            return _on_host([_features(self._model.get_text_features(**batch)) for batch in moved])


def _features(output: Any) -> Any:
    """The projected features: transformers 5 returns an object that holds them, 4 the tensor."""
    return output.pooler_output if hasattr(output, "pooler_output") else output


def _on_host(features: list[Any]) -> NDArray[np.float32]:
    import torch

    vectors_ND: NDArray[np.float32] = torch.cat(features).float().cpu().numpy()
    return vectors_ND


def _load(source: Source) -> tuple[Any, Any]:
    """(model, tokenizer).

    Raises:
        RunError: files that cannot be read, or a model without image and text features.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call,unused-ignore]
    try:
        model = AutoModel.from_pretrained(source.name, revision=source.revision)
        tokenizer = AutoTokenizer.from_pretrained(source.name, revision=source.revision)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise RunError(
            f"score.clip.model: {source.name}: cannot be loaded: {str(error).splitlines()[0]}; "
            "copy the whole model directory again, or choose another model"
        ) from error
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise RunError(f"score.clip.model: {source.name}: {type(model).__name__} has no image and text features")
    return model, tokenizer
