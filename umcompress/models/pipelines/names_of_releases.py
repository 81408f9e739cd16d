"""What the first releases of transformers called their tensors, as far as diffusers' functions do not say it.

`RENAMED`: class -> (pattern in diffusers' names, what it was), one after the other. `BLOCKS`: of classes whose function
asks for every tensor by name, the first names of the stacks, by which it sees how many blocks there are. `SEEN`:
further names by which it sees what parts there are: (pattern in diffusers' names, name).
"""

from __future__ import annotations

Renaming = tuple[tuple[str, str], ...]

BLOCKS: dict[str, Renaming] = {
    "FluxTransformer2DModel": (
        ("double_blocks", "transformer_blocks"), ("single_blocks", "single_transformer_blocks"),
    ),
    "ChromaTransformer2DModel": (
        ("double_blocks", "transformer_blocks"), ("single_blocks", "single_transformer_blocks"),
        ("distilled_guidance_layer.layers", "distilled_guidance_layer.layers"),
    ),
    "SD3Transformer2DModel": (("joint_blocks", "transformer_blocks"),),
    "AuraFlowTransformer2DModel": (
        ("double_layers", "joint_transformer_blocks"), ("single_layers", "single_transformer_blocks"),
    ),
}  # fmt: skip

SEEN: Renaming = (
    (r"time_text_embed\.guidance_embedder\.", "guidance_in."),
    (r"transformer_blocks\.(\d+)\.attn2\.", r"joint_blocks.\1.x_block.attn2."),
    (r"transformer_blocks\.(\d+)\.attn\.norm_q\.", r"joint_blocks.\1.x_block.attn.ln_q."),
)

_WAN: Renaming = (
    (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^scale_shift_table", "head.modulation"), (r"^proj_out", "head.head"),
    (r"\.scale_shift_table", ".modulation"),
    (r"\.attn1\.", ".self_attn."), (r"\.attn2\.", ".cross_attn."),
    (r"\.to_out\.0\.", ".o."), (r"\.to_([qkv])\.", r".\1."), (r"\.add_([kv])_proj\.", r".\1_img."),
    (r"\.norm_added_k\.", ".norm_k_img."), (r"\.ffn\.net\.0\.proj\.", ".ffn.0."), (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.norm2\.", ".norm_of_text."), (r"\.norm3\.", ".norm2."), (r"\.norm_of_text\.", ".norm3."),
)  # fmt: skip

_FLUX2: Renaming = (
    (r"^x_embedder\.", "img_in."), (r"^context_embedder\.", "txt_in."),
    (r"^time_guidance_embed\.timestep_embedder\.linear_1\.", "time_in.in_layer."),
    (r"^time_guidance_embed\.timestep_embedder\.linear_2\.", "time_in.out_layer."),
    (r"^time_guidance_embed\.guidance_embedder\.linear_1\.", "guidance_in.in_layer."),
    (r"^time_guidance_embed\.guidance_embedder\.linear_2\.", "guidance_in.out_layer."),
    (r"^(\w+_modulation(?:_\w+)?)\.linear\.", r"\1.lin."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."), (r"^proj_out\.", "final_layer.linear."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj\.", r"single_blocks.\1.linear1."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_out\.", r"single_blocks.\1.linear2."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
    (r"^transformer_blocks\.", "double_blocks."),
    (r"\.attn\.to_[qkv]\.", ".img_attn.qkv."), (r"\.attn\.add_[qkv]_proj\.", ".txt_attn.qkv."),
    (r"\.attn\.norm_q\.weight", ".img_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight", ".img_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_added_q\.weight", ".txt_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_added_k\.weight", ".txt_attn.norm.key_norm.scale"),
    (r"\.attn\.to_out\.0\.", ".img_attn.proj."), (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
    (r"\.ff\.linear_in\.", ".img_mlp.0."), (r"\.ff\.linear_out\.", ".img_mlp.2."),
    (r"\.ff_context\.linear_in\.", ".txt_mlp.0."), (r"\.ff_context\.linear_out\.", ".txt_mlp.2."),
)  # fmt: skip

_Z_IMAGE: Renaming = (
    (r"^all_final_layer\.2-1\.", "final_layer."), (r"^all_x_embedder\.2-1\.", "x_embedder."),
    (r"\.attention\.to_out\.0\.", ".attention.out."), (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
    (r"\.attention\.to_[qkv]\.", ".attention.qkv."),
)  # fmt: skip

_LUMINA2: Renaming = (
    (r"^time_caption_embed\.caption_embedder\.", "cap_embedder."),
    (r"^time_caption_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"^time_caption_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"^norm_out\.linear_1\.", "final_layer.adaLN_modulation.1."), (r"^norm_out\.linear_2\.", "final_layer.linear."),
    (r"\.norm1\.linear\.", ".adaLN_modulation.1."), (r"\.norm1\.(norm\.)?", ".attention_norm1."),
    (r"\.norm2\.", ".attention_norm2."), (r"\.attn\.to_out\.0\.", ".attention.out."),
    (r"\.attn\.norm_([qk])\.", r".attention.\1_norm."), (r"\.attn\.to_[qkv]\.", ".attention.qkv."),
    (r"\.feed_forward\.linear_(\d)\.", r".feed_forward.w\1."),
)  # fmt: skip

RENAMED: dict[str, Renaming] = {
    # Released by diffusers' names.
    "QwenImageTransformer2DModel": (),
    "ZImageTransformer2DModel": _Z_IMAGE,
    "WanTransformer3DModel": _WAN,
    "Flux2Transformer2DModel": _FLUX2,
    "Lumina2Transformer2DModel": _LUMINA2,
    "LTXVideoTransformer3DModel": (
        (r"^proj_in\.", "patchify_proj."), (r"^time_embed\.", "adaln_single."), (r"\.norm_([qk])\.", r".\1_norm."),
    ),
}  # fmt: skip
