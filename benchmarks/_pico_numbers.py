"""What names of fields do not say about a pico model: numbers that must fit others, by model type."""

from __future__ import annotations

from typing import Any

_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_BESIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
_WINDOWS = {"fullatt_block_indexes": [1], "window_size": 16}
_SHARING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_d_head": 16, "attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"mamba_d_head": 16, "layer_types": ["mamba", "attention"] * 2}, "mamba2": {"head_dim": 16},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_hidden_layers": 6,
              "layers_block_type": ["linear_attention", "hybrid"] * 3},
    "zamba2": {"mamba_headdim": 8, "n_mamba_heads": 8, "mamba_expand": 2, "attention_hidden_size": 64,
               "attention_head_dim": 16, "num_hidden_layers": 6,
               "layers_block_type": ["linear_attention", "hybrid"] * 3, "hybrid_layer_ids": [1, 3, 5]},
    "blenderbot": {"encoder_layers": 4, "decoder_layers": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE["rope_parameters"]}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "n_shared_experts": 1},
    "dots3_note": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "gemma3n_text": {**_SHARING, "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0]},
    "hrm_text": {"num_layers_per_stack": 4, "num_hidden_layers": 32},
    "hunyuan_v1_dense": {"head_dim": 8} | _ROPE,
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": [2] * 4, "num_experts": 4} | _ROPE,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}, "ffn_config": {
        "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "ffn_act_fn": {"name": "silu"}}},
    "step3p7_text": {"sliding_window": 4}, "glm4v_moe_text": {"head_dim": 16} | _MROPE,
    "cosmos3_edge_text": {"head_dim": 8},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "longcat_flash": {"num_layers": 4, "num_hidden_layers": 8},
    "aria": {"projector_patch_to_query_dict": {"16": 4}},
    **dict.fromkeys(("glm4v_text", "glm_ocr_text", "paddleocr_vl_text", "qwen2_vl_text", "qwen2_5_vl_text",
                     "qwen2_5_omni_text"), _MROPE),
    "hunyuan_vl_text": {"head_dim": 8} | _MROPE,
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
                       "indexer_compress_ratio": 2},
    "ministral": {"head_dim": 8} | _ROPE, "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "reformer": {"is_decoder": True}, "xmod": {"default_language": "en_XX"},
    # -- those that read pictures
    **dict.fromkeys(("qwen2_5_vl_vision", "qwen2_5_omni_vision_encoder", "exaone4_5_vision"), _WINDOWS),
    "blip-2": {"image_token_index": 90},
    "chameleon_vqgan": {"num_embeddings": 10, "base_channels": 32, "resolution": 32}, "emu3_vqgan": {
        "codebook_size": 16, "base_channels": 32, "channel_multiplier": [1, 1, 2, 2], "hidden_size": 64},
    "chameleon": {"vocabulary_map": {"<image>": 90} | {f"IMGIMGA{chr(65 + i)}Z": 50 + i for i in range(10)}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"] * 2, "num_experts_per_tok": 2},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "emu3": {"vocabulary_map": {"<image>": 90, "<|extra_200|>": 91}
             | {f"<|visual token {i:06d}|>": 50 + i for i in range(16)}},
    "ernie4_5_vl_moe_text": {"rope_parameters": _ROPE["rope_parameters"] | {"mrope_section": [1, 1, 2]},
                             "moe_intermediate_size": [16, 16]},
    "glm5_next_text": {"index_kpool": 2, "index_topk": 4},
    # Pictures go into language blocks 0, 2 and 3.
    "granite4_vision": {"deepstack_layer_map": [[-2, 0]], "spatial_target_layers": [2, 2, 3, 3],
                        "downsample_rate": "1/2", "image_grid_pinpoints": [[16, 16]], "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "image_size": 16, "patch_size": 4}},
    "llama4_vision_model": {"intermediate_size": 128, "projector_input_dim": 32, "projector_output_dim": 32},
    "mistral4": {"head_dim": 16},
    "molmo2_adapter": {"vision_feature_layer": [3, 1]},
    "pp_formulanet_vision": dict.fromkeys(
        ("post_conv_in_channels", "post_conv_mid_channels", "post_conv_out_channels", "decoder_hidden_size"), 32),
    "vision-encoder-decoder": {
        "encoder": _BESIDE | {"model_type": "vit", "image_size": 16, "patch_size": 4},
        "decoder": _BESIDE | {"model_type": "bert", "vocab_size": 96, "max_position_embeddings": 64,
                              "is_decoder": True, "add_cross_attention": True}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 92, "vision_end_token_id": 93},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 92, "vision_end_token_id": 93},
    "radio": {"video_temporal_patch_size": 2},
    "step3p5": {"sliding_window": 4},
    "vipllava": {"vision_feature_layer": [-1, -2, -3, -4, 2]},
    "xlstm": {"qk_dim_factor": 1.0, "mode": "inference"},
}  # fmt: skip
