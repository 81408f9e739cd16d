"""What a BAGEL folder says about its shapes, and what the official loaders hard-code.

`llm_config.json` and `vit_config.json` are the official files.  The rest (latent patch, autoencoder, token
ids) stands in no official file; a folder that differs from the released model says so in `extra.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from umcompress.documents.base import explain
from umcompress.documents.files import read_json
from umcompress.errors import ModelError
from umcompress.models.bagel.expert_layout import expert_layers, stored_shapes

EXTRA_FILES = ("extra.json", "tiny_extra.json")
# The autoencoder's normalisations take channels in so many groups.
NORM_GROUPS = 32


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


def _divides(what: str, value: int, by: str, divisor: int) -> None:
    if value % divisor:
        raise ValueError(f"{what} {value} is no multiple of {by} {divisor}")


class TextConfig(_Config):
    """The Qwen2 decoder: names as in `llm_config.json`."""

    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    rope_theta: PositiveFloat = 1_000_000.0
    rms_norm_eps: float = 1e-6

    @model_validator(mode="after")
    def _heads_fit(self) -> TextConfig:
        _divides("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        _divides(
            "num_attention_heads", self.num_attention_heads, "num_key_value_heads", self.num_key_value_heads
        )
        if self.head_dim % 2:
            raise ValueError(f"{self.head_dim} channels a head have no halves, which rotary embeddings need")
        return self

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


class VisionConfig(_Config):
    """The SigLIP tower: names as in `vit_config.json`.  One layer fewer than stated is used (and stored)."""

    hidden_size: PositiveInt
    num_hidden_layers: Annotated[int, Field(ge=2)]
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    patch_size: PositiveInt
    image_size: PositiveInt
    layer_norm_eps: float = 1e-6

    @model_validator(mode="after")
    def _heads_fit(self) -> VisionConfig:
        _divides("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        return self

    @property
    def layers_used(self) -> int:
        return self.num_hidden_layers - 1


class AutoencoderConfig(_Config):
    """The FLUX-style autoencoder.  Defaults are the released ones."""

    in_channels: PositiveInt = 3
    out_ch: PositiveInt = 3
    ch: Annotated[int, Field(gt=0, multiple_of=NORM_GROUPS)] = 128
    ch_mult: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 4, 4)
    num_res_blocks: PositiveInt = 2
    z_channels: PositiveInt = 16
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159

    @property
    def downsample(self) -> int:
        return int(2 ** (len(self.ch_mult) - 1))


class SpecialTokens(_Config):
    """Token ids; the released model looks them up in its tokenizer by string."""

    bos_token_id: int = 151644
    eos_token_id: int = 151645
    start_of_image: int = 151652
    end_of_image: int = 151653


class SamplingDefaults(_Config):
    """How pictures are made when the caller does not say: the official text-to-image settings."""

    image_size: PositiveInt = 1024
    num_timesteps: Annotated[int, Field(ge=2)] = 50
    timestep_shift: float = 3.0
    cfg_text_scale: float = 4.0
    cfg_interval: tuple[float, float] = (0.4, 1.0)
    cfg_renorm_type: Literal["global", "channel", "text_channel"] = "global"
    cfg_renorm_min: float = 0.0


class ImageRule(_Config):
    """The resize rule of one input path, in pixels."""

    max_size: PositiveInt
    min_size: PositiveInt
    stride: PositiveInt


class ExpertLayer(_Config):
    """A feed-forward of experts: `active` of `experts`, each `width` wide, and `shared_width` always on.

    `normalised` is a matter of the legacy rule: probabilities of the chosen experts add up to 1.
    """

    component: Literal["understanding", "generation"]
    layer: NonNegativeInt
    experts: PositiveInt
    active: PositiveInt
    width: PositiveInt
    shared_width: NonNegativeInt = 0
    rule: Literal["live", "legacy"] = "live"
    normalised: bool = False

    @model_validator(mode="after")
    def _enough(self) -> ExpertLayer:
        if self.active > self.experts:
            raise ValueError(f"top_k is {self.active}, and there are {self.experts} experts")
        return self

    @property
    def routes_vision(self) -> bool:
        """Whether vision rows have a router of their own."""
        return self.rule == "live" and self.component == "understanding"


class BagelConfig(_Config):
    """Everything that the shapes and the flows of a BAGEL folder depend on."""

    text: TextConfig
    vision: VisionConfig
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    tokens: SpecialTokens = SpecialTokens()
    sampling: SamplingDefaults = SamplingDefaults()
    latent_patch_size: PositiveInt = 2
    max_latent_size: PositiveInt = 64
    vit_max_num_patch_per_side: PositiveInt = 70
    timestep_shift: float = 1.0
    vit_rule: ImageRule = ImageRule(max_size=980, min_size=224, stride=14)
    vae_rule: ImageRule = ImageRule(max_size=1024, min_size=512, stride=16)
    direct_vit_input: bool = False
    experts: tuple[ExpertLayer, ...] = ()

    @property
    def latent_downsample(self) -> int:
        """Pixels on a side of one latent token (D of the paper's code)."""
        return self.latent_patch_size * self.autoencoder.downsample

    @property
    def latent_channels(self) -> int:
        """Values in one latent token: patch * patch * channels."""
        return self.latent_patch_size**2 * self.autoencoder.z_channels

    @classmethod
    def from_folder(cls, folder: Path) -> BagelConfig:
        """Read the JSON files of `folder`.  Raises ModelError naming what is missing or malformed."""
        text = _read_json(folder / "llm_config.json")
        vision = _read_json(folder / "vit_config.json")
        extra: dict[str, Any] = {}
        for name in EXTRA_FILES:
            if (folder / name).exists():
                extra = _read_json(folder / name)
                break
        values = _extra_values(extra)
        found = {**_table_sides(folder), "experts": expert_layers(folder, text)}
        try:
            return cls.model_validate({"text": text, "vision": vision, **found, **values})
        except ValidationError as error:
            raise ModelError(
                asked=f"the configuration of {folder} (text: llm_config.json, vision: vit_config.json)",
                found=explain(error), do="mend the JSON files of the folder",
            ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except FileNotFoundError as error:
        raise ModelError(
            asked=f"a BAGEL folder at {path.parent}", found=f"no {path.name} in it",
            do="point at a folder in the official BAGEL layout (llm_config.json, vit_config.json, "
            "ema.safetensors, ae.safetensors, tokenizer)",
        ) from error
    except (ValueError, OSError) as error:
        raise ModelError(asked=f"JSON in {path}", found=str(error), do="fetch the file again") from error
    if not isinstance(value, dict):
        raise ModelError(f"a JSON object in {path}", f"a {type(value).__name__}", "fetch the file again")
    return value


def _extra_values(extra: dict[str, Any]) -> dict[str, Any]:
    renamed = {"vae": "autoencoder", "special_tokens": "tokens"}
    return {renamed.get(key, key): value for key, value in extra.items()}


def _table_sides(folder: Path) -> dict[str, int]:
    """The sides of both position tables follow from their rows, whatever the loaders hard-code."""
    tables = {
        "max_latent_size": "latent_pos_embed.pos_embed",
        "vit_max_num_patch_per_side": "vit_pos_embed.pos_embed",
    }
    shapes = stored_shapes(folder)
    return {field: round(shapes[name][0] ** 0.5) for field, name in tables.items() if shapes.get(name)}
