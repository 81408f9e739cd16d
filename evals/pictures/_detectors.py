"""What GenEval asks of pictures: a detector of COCO objects and a classifier of their colours.

Two small protocols, and implementations by transformers' Mask2Former and CLIP from folders on disk.  GenEval's own
detector is mmdet's Mask2Former (another training run of the same architecture): scores of this one are a variant
of it, not for comparison to the second decimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from umcompress.evals.pictures._clip import Clip, check_folder, load, load_model
from umcompress.evals.pictures.geneval_rules import COLORS, Detection
from umcompress.extend import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

# COCO's 80 classes in COCO's order, by the names that GenEval's prompts use.
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
# Candidates an image, as in mmdet; less probable ones than FLOOR can count for no threshold that is in use.
MOST, FLOOR = 100, 0.05
GREY = "#999"
STRIDE = 32


class Detector(Protocol):
    """Finds objects in a picture."""

    @property
    def name(self) -> str: ...

    def detect(self, image: Image) -> list[Detection]:
        """Objects with class, box, score and, if known, a mask (h, w) of bools."""


class ColorClassifier(Protocol):
    """Tells the colours of objects."""

    @property
    def name(self) -> str: ...

    def classify(self, image: Image, objects: Sequence[Detection], label: str) -> list[str]:
        """One of COLORS for each of the objects, all of class `label`."""


def select(class_logits: Tensor, mask_logits: Tensor, most: int = MOST, floor: float = FLOOR) -> list[Detection]:
    """mmdet's instances: class logits (Q, C+1), mask logits (Q, h, w) at the picture's own size.

    The `most` best of all queries and classes, the last class (nothing) aside; mask: logit > 0; score: the class's
    probability times the mean probability inside the mask; box: the mask's extent, its end one past the last pixel.
    """
    import torch

    chances = class_logits.float().softmax(-1)[:, :-1]
    best = chances.flatten().topk(min(most, chances.numel()))
    found = []
    for chance, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        query, label = divmod(index, chances.shape[1])
        mask = mask_logits[query] > 0
        if chance <= floor or not mask.any():
            continue
        score = chance * mask_logits[query][mask].float().sigmoid().mean().item()
        rows, columns = (torch.nonzero(mask.any(dim=axis)).flatten() for axis in (1, 0))
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        found.append(Detection(CLASSES[label], box, score, mask=mask.cpu().numpy()))
    return sorted(found, key=lambda thing: -thing.score)


class Mask2FormerDetector:
    """transformers' Mask2Former for COCO instances, such as facebook/mask2former-swin-small-coco-instance."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        check_folder(folder, "mask2former", f"the detector {folder}")
        from transformers import Mask2FormerForUniversalSegmentation
        from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

        asked = f"the detector {folder}"
        self.processor = load(Mask2FormerImageProcessorPil, folder, asked)
        self.model = load_model(Mask2FormerForUniversalSegmentation, folder, asked, device)
        if self.model.config.num_labels != len(CLASSES):
            raise ModelError(
                asked, f"it knows {self.model.config.num_labels} classes",
                f"take a model of COCO's {len(CLASSES)} classes, such as facebook/mask2former-swin-small-coco-instance",
            )
        self.name = f"transformers Mask2Former ({folder.name})"

    def detect(self, image: Image) -> list[Detection]:
        """As mmdet: logits to the input's size, padding cut, then to the picture's size, then judged."""
        import torch
        from torch.nn.functional import interpolate, pad

        # transformers would stretch the picture to whole strides where mmdet pads it.
        pixels = self.processor(images=image.convert("RGB"), return_tensors="pt", size_divisor=1)["pixel_values"]
        rows, columns = pixels.shape[-2:]
        pixels = pad(pixels, (0, -columns % STRIDE, 0, -rows % STRIDE)).to(self.model.device)
        with torch.no_grad():
            out = self.model(pixel_values=pixels)
        classes = out.class_queries_logits[0]
        likely = classes.float().softmax(-1)[:, :-1].amax(-1) > FLOOR
        # Upsampled, a hundred masks of a large picture are hundreds of megabytes: only those that can count.
        masks = out.masks_queries_logits[0][likely].float()
        if not len(masks):
            return []
        masks = interpolate(masks[None], pixels.shape[-2:], mode="bilinear", align_corners=False)
        masks = masks[..., :rows, :columns]
        masks = interpolate(masks, (image.height, image.width), mode="bilinear", align_corners=False)[0]
        return select(classes[likely], masks)


def cut_out(image: Image, thing: Detection, background: str = GREY) -> Image:
    """The object on grey, cropped to its box.  Without a mask: the box of the picture as it is."""
    from PIL import Image as Pillow

    image = image.convert("RGB")
    if thing.mask is not None:
        blank = Pillow.new("RGB", image.size, color=background)
        image = Pillow.composite(image, blank, _as_mask(thing.mask))
    x1, y1, x2, y2 = (round(value) for value in thing.box)
    return image.crop((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)))


def _as_mask(mask: NDArray[np.bool_]) -> Image:
    from PIL import Image as Pillow

    return Pillow.fromarray(mask)


class ClipColors:
    """Zero-shot colours by CLIP, such as openai/clip-vit-large-patch14: three templates, their mean the colour."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.name = clip.name
        self._heads: dict[str, Tensor] = {}

    def head(self, label: str) -> Tensor:
        """(colours, D): the normalised mean of the normalised embeddings of the templates, one head a class."""
        if label not in self._heads:
            texts = [
                text
                for color in COLORS
                for text in (
                    f"a photo of a {color} {label}", f"a photo of a {color}-colored {label}",
                    f"a photo of a {color} object",
                )
            ]
            mean = self.clip.texts(texts).reshape(len(COLORS), 3, -1).mean(1)
            self._heads[label] = mean / mean.norm(dim=-1, keepdim=True)
        return self._heads[label]

    def classify(self, image: Image, objects: Sequence[Detection], label: str) -> list[str]:
        """The nearest colour of each object."""
        if not objects:
            return []
        seen = self.clip.images([cut_out(image, thing) for thing in objects])
        return [COLORS[index] for index in (seen @ self.head(label).T).argmax(-1).tolist()]


__all__ = [
    "CLASSES", "ClipColors", "ColorClassifier", "Detector", "Mask2FormerDetector", "cut_out", "select",
]  # fmt: skip
