"""Tables of what architectures call the fields that count, list or name layers. A new architecture extends these.

Nothing here computes: the rules that read the tables are in the other files of this folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# -- widths ---------------------------------------------------------------------------------------------------

WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "mlp_dim", "ffn_hidden_size", "ffn_config", "d_ff")
# Of the expert beside a mixture that every token uses.
SHARED_WIDTH = "shared_expert_intermediate_size"
# Attributes of a feed-forward that repeat its width; its last linear, which has it as its input.
MODULE_WIDTHS = ("intermediate_size", "ffn_dim", "hidden_features")
LAST_LINEARS = ("down_proj", "fc2", "c_proj", "w2", "linear2", "dense_4h_to_h")

# -- how many layers ------------------------------------------------------------------------------------------

COUNTS = ("num_hidden_layers", "depth", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers",
          "num_blocks")  # fmt: skip
# Attributes of the module that runs the blocks.
OWNER_COUNTS = (*COUNTS, "layers")
# Parts of a path that have a count of their own beside that of the other side: `{side}_layers`, `num_{side}_layers`.
SIDES = ("encoder", "decoder")
# Stacks above another one of the same configuration, and the count that is theirs (Llama 3.2 Vision: all tiles).
SECOND_STACKS = {"global_transformer": "num_global_layers"}

# -- lists by layer -------------------------------------------------------------------------------------------

# One entry a layer.
BY_LAYER = re.compile(r"_types?$|^no_rope_layers$|_per_layer$|_pattern$|^attention_layers$|_layers_mask$|^layers_")
# Layer numbers.
LAYER_NUMBERS = re.compile(
    r"^(mlp_only_layers|fullatt_block_indexes|deepstack_visual_indexes|cross_attention_layers|global_attn_layers|"
    r"look_ahead_layers|look_backward_layers)$|"
    r"layer_(indices|indexes|ids)$"
)
# A word for each layer, which some configurations compute from other fields.
LAYER_KINDS = ("layer_types", "layers_block_type")
# How many layers from the bottom differ from those above; how many at the top do.
FROM_THE_BOTTOM = ("max_window_layers", "first_k_dense_replace")
FROM_THE_TOP = ("num_kv_shared_layers",)
# Of the module that runs the blocks: where those above begin.
OWNER_BOUNDARIES = ("first_kv_shared_layer_idx",)
# Set where each block reads its own columns of an embedding, which stay as they are (Gemma).
PER_LAYER_EMBEDDING = "hidden_size_per_layer_input"

# -- layers that lend something to layers above ---------------------------------------------------------------

# Of a module in a block: the layer whose keys and values it uses.
LENDING_LAYER = ("kv_shared_layer_index",)
# The same of a configuration: one entry a layer, which may be its own number.
LENDING_LAYERS = "kv_source_layers"
# Kinds of a list with one entry a layer: "shared" uses the tokens that the last other one below has chosen (GLM-5).
CHOOSING_KINDS, CHOOSES_NOTHING = "indexer_types", "shared"
# Of a module in a block: it makes the position biases for the blocks above, which have none of their own (T5).
MAKES_BIASES = "has_relative_attention_bias"

# -- layers that are read from outside of their stack ---------------------------------------------------------


@dataclass(frozen=True)
class ReadField:
    """A field that says after which block of a stack its hidden states are read: one number or a list of them.

    part: the sub-configuration that has the field; "": the configuration itself. counts: of "states" 0 goes into the
    first block and 1 comes out of it, of "blocks" 0 comes out of the first block; -1 is in both what comes out of the
    last. stays: whether these blocks have to stay.
    """

    name: str
    part: str = ""
    counts: Literal["states", "blocks"] = "states"
    stays: bool = False


# In the whole model's configuration, of its vision tower.
VISION_READ = (
    ReadField("vision_feature_layer"), ReadField("vision_feature_layers"), ReadField("spatial_vision_layer"),
    # Molmo 2
    ReadField("vision_feature_layer", "adapter_config", "blocks", stays=True),
)  # fmt: skip
# In the whole model's configuration, of its language model: what a talker reads (Qwen3-Omni).
LANGUAGE_READ = (ReadField("accept_hidden_layer", "talker_config"),)
# In a tower's own configuration (Phi-4); the modules above it keep the number as the attribute `OWN_READ_ATTRIBUTE`.
OWN_READ = ReadField("feature_layer")
OWN_READ_ATTRIBUTE = "layer_idx"
# In a tower's own configuration and in the modules above it: blocks that are read beside the last (Llama 3.2 Vision).
READ_BESIDE = "intermediate_layers_indices"
# Pairs (hidden state of the tower, language block that it is added to); language blocks alone (Granite Vision).
READ_PAIRS, LANGUAGE_TARGETS = "deepstack_layer_map", "spatial_target_layers"
# Vision blocks whose outputs are added to the first language blocks, in this order (Qwen3-VL).
ADDED_IN_ORDER = "deepstack_visual_indexes"
# Sub-configurations of towers that the fields of `VISION_READ` do not speak of.
OTHER_TOWERS = ("audio_config",)
