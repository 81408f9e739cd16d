"""BAGEL: one network that reads pictures and generates them.  Shapes as in the parts; D: values a latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from umcompress.models.bagel.autoencoder import AutoEncoder
from umcompress.models.bagel.config import BagelConfig
from umcompress.models.bagel.context import Cache, Context, causal
from umcompress.models.bagel.decoder import LanguageModel
from umcompress.models.bagel.layers import Connector, PositionTable, TimestepEmbedder
from umcompress.models.bagel.packing import Packing
from umcompress.models.bagel.vision import VisionContext, VisionModel

UND, GEN = 0, 1


@dataclass(frozen=True)
class PictureLayout:
    """Where the rows of pictures of noise stand, the same at every denoising step.

    ids: (G,) in the table of positions; marks: (2B, H) the embedded markers around each picture.
    """

    context: Context
    ids: Tensor
    marks: Tensor


class Bagel(nn.Module):
    """The whole model.  All but `vae` is stored in `ema.safetensors`, `vae` in `ae.safetensors`."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        hidden = config.text.hidden_size
        self.config = config
        self.language_model = LanguageModel(config.text, config.experts)
        self.time_embedder = TimestepEmbedder(hidden)
        self.vae2llm = nn.Linear(config.latent_channels, hidden)
        self.llm2vae = nn.Linear(hidden, config.latent_channels)
        self.latent_pos_embed = PositionTable(config.max_latent_size, hidden)
        self.vit_model = VisionModel(config.vision)
        self.connector = Connector(config.vision.hidden_size, hidden)
        self.vit_pos_embed = PositionTable(config.vit_max_num_patch_per_side, hidden)
        self.vae = AutoEncoder(config.autoencoder)

    @property
    def device(self) -> torch.device:
        return self.language_model.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.model.embed_tokens.weight.dtype

    # -- embeddings ----------------------------------------------------------------------------------------

    def embed_text(self, ids: Tensor) -> Tensor:
        """(T,) token ids -> (T, H)."""
        rows: Tensor = self.language_model.model.embed_tokens(ids.to(self.device))
        return rows

    def patchify(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(3, h, w) in [-1, 1] -> patches (R, P*P*3), channel fastest, and table ids (R,)."""
        side = self.config.vision.patch_size
        rows, columns = image.shape[1] // side, image.shape[2] // side
        cut = image.view(3, rows, side, columns, side)
        patches = cut.permute(1, 3, 2, 4, 0).reshape(rows * columns, side * side * 3)
        return patches, self.vit_pos_embed.ids(rows, columns)

    def encode_vision(self, images: Sequence[Tensor]) -> tuple[Tensor, Packing]:
        """Images (3, h, w) -> rows in decoder width (R, H), packed, and how many belong to each."""
        cut = [self.patchify(image) for image in images]
        patches = torch.cat([patch for patch, _ in cut]).to(self.device, self.dtype)
        ids = torch.cat([ids for _, ids in cut]).to(self.device)
        packing = Packing([len(patch) for patch, _ in cut], self.device)
        seen = self.vit_model(patches, ids, VisionContext(packing))
        return self.connector(seen) + self.vit_pos_embed(ids), packing

    def latent_tokens(self, latent: Tensor) -> Tensor:
        """(C, h*p, w*p) -> (h*w, p*p*C), channel fastest."""
        patch = self.config.latent_patch_size
        channels, height, width = latent.shape
        cut = latent.view(channels, height // patch, patch, width // patch, patch)
        return cut.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)

    def latent_image(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(h*w, p*p*C) -> (C, h*p, w*p); `size` is (h, w) in tokens."""
        patch = self.config.latent_patch_size
        rows, columns = size
        cut = tokens.view(rows, columns, patch, patch, -1)
        return cut.permute(4, 0, 2, 1, 3).reshape(-1, rows * patch, columns * patch)

    def embed_latents(self, tokens: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Tokens (G, D), their timesteps (G,) and table ids (G,) -> (G, H)."""
        rows: Tensor = self.vae2llm(tokens.to(self.dtype))
        out: Tensor = rows + self.time_embedder(t).to(rows.dtype) + self.latent_pos_embed(ids)
        return out

    # -- absorbing segments --------------------------------------------------------------------------------

    def absorb_text(self, cache: Cache, ids: Sequence[Tensor], wrap: bool = True) -> tuple[Tensor, Packing]:
        """Text for every sequence of the cache, wrapped as bos, ids, eos.

        Returns normed rows (T, H), packed.
        """
        marks = self.config.tokens
        if wrap:
            ends = torch.tensor([marks.bos_token_id]), torch.tensor([marks.eos_token_id])
            ids = [torch.cat([ends[0], item.cpu(), ends[1]]) for item in ids]
        lengths = [len(item) for item in ids]
        positions = [torch.arange(n) + start for n, start in zip(lengths, cache.positions, strict=True)]
        kinds = [torch.full((n,), UND) for n in lengths]
        context = Context(kinds, positions, causal(lengths), cache, append=True, device=self.device)
        und = self.embed_text(torch.cat([item.cpu() for item in ids]))
        und, _ = self.language_model(und, und[:0], context)
        cache.positions = [start + n for start, n in zip(cache.positions, lengths, strict=True)]
        return und, context.packing["understanding"]

    def absorb_vision(self, cache: Cache, images: Sequence[Tensor]) -> tuple[Tensor, Packing]:
        """One image a sequence, as the vision tower sees it.

        Returns normed rows with both markers, packed.
        """
        seen, packing = self.encode_vision(images)
        marks = self.config.tokens
        ends = self.embed_text(torch.tensor([marks.start_of_image, marks.end_of_image]))
        parts = [torch.cat([ends[:1], rows, ends[1:]]) for rows in packing.split(seen)]
        counts = [len(part) for part in parts]
        context = self._image_context(cache, [torch.full((n,), UND) for n in counts], append=True)
        context.vision_rows = torch.cat([_patches(n) for n in counts]).to(self.device)
        und = torch.cat(parts)
        und, _ = self.language_model(und, und[:0], context)
        cache.positions = [position + 1 for position in cache.positions]
        return und, context.packing["understanding"]

    def absorb_latents(self, cache: Cache, latents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """One clean latent (C, ...) a sequence, at timestep 0.

        Returns normed (2B, H) markers and (G, H) rows.
        """
        patch = self.config.latent_patch_size
        sizes = [(latent.shape[1] // patch, latent.shape[2] // patch) for latent in latents]
        tokens = torch.cat([self.latent_tokens(latent) for latent in latents]).to(self.device)
        und, gen = self._image_rows(
            self.picture_layout(cache, sizes, append=True), tokens, torch.zeros(len(tokens))
        )
        cache.positions = [position + 1 for position in cache.positions]
        return und, gen

    def velocity(
        self, cache: Cache, tokens: Tensor, t: float | Tensor, sizes: Sequence[tuple[int, int]],
        layout: PictureLayout | None = None,
    ) -> Tensor:  # fmt: skip
        """Velocity (G, D) in float32 of noisy tokens (G, D) at time t; the cache is read, not changed.

        layout: of pictures of these sizes behind this cache, where it is known from an earlier step.
        """
        times = torch.as_tensor(t, dtype=torch.float32).expand(len(tokens))
        _, gen = self._image_rows(layout or self.picture_layout(cache, sizes), tokens, times)
        out: Tensor = self.llm2vae(gen)
        return out.float()

    def _image_rows(self, layout: PictureLayout, tokens: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        gen = self.embed_latents(tokens, t.to(self.device), layout.ids)
        out: tuple[Tensor, Tensor] = self.language_model(layout.marks, gen, layout.context)
        return out

    def picture_layout(
        self, cache: Cache, sizes: Sequence[tuple[int, int]], append: bool = False
    ) -> PictureLayout:
        """Of one picture of noise a sequence, of so many rows and columns of tokens."""
        ids = torch.cat([self.latent_pos_embed.ids(*size) for size in sizes]).to(self.device)
        marks = torch.tensor([self.config.tokens.start_of_image, self.config.tokens.end_of_image])
        und = self.embed_text(marks.repeat(len(sizes)))
        kinds = []
        for rows, columns in sizes:
            kind = torch.full((rows * columns + 2,), GEN)
            kind[0] = kind[-1] = UND
            kinds.append(kind)
        return PictureLayout(self._image_context(cache, kinds, append), ids, und)

    def _image_context(self, cache: Cache, kinds: Sequence[Tensor], append: bool) -> Context:
        """An image sees itself whole and takes one position, whatever its size."""
        positions = [
            torch.full((len(kind),), position) for kind, position in zip(kinds, cache.positions, strict=True)
        ]
        return Context(kinds, positions, None, cache, append=append, device=self.device)

    def logits(self, und: Tensor) -> Tensor:
        """Final-normed rows (T, H) -> (T, V)."""
        out: Tensor = self.language_model.lm_head(und)
        return out

    # -- decoding text -------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode_text(self, cache: Cache, max_length: int) -> list[list[int]]:
        """Greedy continuation of every sequence; each list starts with bos and leaves the eos out.

        The cache grows by what is decoded.  A sequence that has met its eos goes on unread until all have.
        """
        marks = self.config.tokens
        tokens = torch.full((cache.batch,), marks.bos_token_id)
        out = [[marks.bos_token_id] for _ in range(cache.batch)]
        running = [True] * cache.batch
        for _ in range(max_length - 1):
            rows, _ = self.absorb_text(cache, list(tokens[:, None]), wrap=False)
            tokens = self.logits(rows).argmax(-1).cpu()
            for sequence, token in enumerate(tokens.tolist()):
                running[sequence] = running[sequence] and token != marks.eos_token_id
                if running[sequence]:
                    out[sequence].append(token)
            if not any(running):
                break
        return out


def _patches(count: int) -> Tensor:
    """(count,) boolean: an image's rows, but for the markers at both ends."""
    rows = torch.ones(count, dtype=torch.bool)
    rows[0] = rows[-1] = False
    return rows
