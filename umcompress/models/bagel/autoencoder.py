"""The FLUX-style autoencoder.  Images (B, 3, h, w) in [-1, 1]; latents (B, z, h/f, w/f)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from umcompress.models.bagel.config import NORM_GROUPS, AutoencoderConfig


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """norm, SiLU, 3x3 conv, twice; a 1x1 shortcut where the channels change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)
        self.changes = inputs != outputs

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        out: Tensor = (self.nin_shortcut(x) if self.changes else x) + h
        return out


class PixelAttention(nn.Module):
    """Single-head attention over all pixels, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        out: Tensor = x + self.proj_out(mixed[:, 0].transpose(1, 2).reshape(batch, channels, height, width))
        return out


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = PixelAttention(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Downsample(nn.Module):
    """Zero-pad right and bottom by one, 3x3 conv with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Nearest x2, 3x3 conv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The residual blocks of one resolution, and the resampling that leaves it."""

    def __init__(self, inputs: int, outputs: int, blocks: int, resample: str | None) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(ResidualBlock(widths[i], outputs) for i in range(blocks))
        self.resample = resample
        if resample == "downsample":
            self.downsample = Downsample(outputs)
        elif resample == "upsample":
            self.upsample = Upsample(outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.resample is None else self.get_submodule(self.resample)(x)


class Encoder(nn.Module):
    """Image -> moments (B, 2z, h/f, w/f): mean, then log variance."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        widths = [config.ch] + [config.ch * factor for factor in config.ch_mult]
        last = len(config.ch_mult) - 1
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], config.num_res_blocks, "downsample" if i < last else None)
            for i in range(last + 1)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(self.mid(h))))
        return out


class Decoder(nn.Module):
    """Latent -> image.

    `up.0` is the full-resolution level, so that the levels run from the last to the first.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        inputs = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Level(inputs[i], widths[i], config.num_res_blocks + 1, "upsample" if i > 0 else None)
            for i in range(len(widths))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for index in reversed(range(len(self.up))):
            h = self.up[index](h)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(h)))
        return out


class AutoEncoder(nn.Module):
    """Encoder and decoder with the latent's scale and shift."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.scale, self.shift = config.scale_factor, config.shift_factor

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents (B, z, ...): the posterior's mean, or a sample of it where `noise` is given."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        if noise is not None:
            mean = mean + torch.exp(0.5 * log_variance) * noise
        out: Tensor = self.scale * (mean - self.shift)
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """(B, z, ...) -> (B, 3, h, w), not clamped."""
        out: Tensor = self.decoder(latents / self.scale + self.shift)
        return out
