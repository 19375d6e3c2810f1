#!/usr/bin/env python3
"""Makes the golden models of tests/golden/architectures: one tiny model of random weights for each architecture.

    python3 -m venv venv && venv/bin/pip install -r tests/golden/requirements.txt
    venv/bin/python tests/golden/make_models.py tests/golden/architectures [NAME...]

Hugging Face transformers computes the logits, in float32 with eager attention and without a cache. The GGUF files have
the keys and tensors that llama.cpp's converter writes for the architecture: rows of Q and K permuted where it permutes
them, 1 added to Gemma's norms, Phi-3's fused tensors as they are. Weights are rounded to the file's type before the
reference uses them, so that both compute with the same values. With names, only those models are made again and the
other entries of the manifest stay. Not run by any test: the files it makes are in the tree.
"""

import hashlib
import json
import math
import pathlib
import sys

import gguf
import numpy as np
import torch
import transformers

NUM_TOKENS = 40
NUM_GREEDY = 24
NUM_PROMPT = 8
F32, F16, BF16 = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16)
TORCH_TYPE = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}


# ---------------------------------------------------------------- vocabularies


def byte_symbols():
    """The character that byte-level BPE writes for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols.update({byte: chr(256 + i) for i, byte in enumerate(rest)})
    return [symbols[byte] for byte in range(256)]


def write_bpe(writer, pre):
    pairs = ["in", "th", "er", "on", "an", "re", "st", "en"]
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = byte_symbols() + pairs + controls
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (256 + len(pairs)) + [gguf.TokenType.CONTROL] * len(controls))
    writer.add_token_merges([" ".join(pair) for pair in pairs])
    writer.add_bos_token_id(len(tokens) - 3)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    return len(tokens)


def write_spm(writer):
    pieces = ["\u2581", *"abcdefghijklmnopqrstuvwxyz", "th", "in", "er", "\u2581the"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.UNKNOWN] + [gguf.TokenType.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 260 + [-float(i) for i in range(len(pieces))])
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * len(pieces))
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    return len(tokens)


# ---------------------------------------------------------------- weights


def randomise(model, file_type, one_is_added, sharpness):
    """Random weights, such that nothing saturates and attention is far from uniform; `sharpness` scales Q and K."""
    tied = getattr(model.config, "tie_word_embeddings", False)
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        noise = torch.rand(shape) * 2 - 1
        if parameter.dim() == 2:
            values = noise * math.sqrt(3.0 / shape[1])
            if "embed_tokens" in name:
                # As a head it must not outweigh the layers, whose (scaled) input it is.
                values = noise * (0.35 if tied else 1.5)
                if one_is_added:
                    values = noise * 0.12
            if any(part in name for part in ("q_proj", "k_proj", "qkv_proj")):
                values = values * sharpness
            values = values.to(TORCH_TYPE[file_type]).float()
        elif name.endswith("norm.weight"):
            # Exact in float32 when 1 is added.
            values = torch.round(noise * 0.4 * 1024) / 1024 + (0.0 if one_is_added else 1.0)
        else:
            values = noise * 0.5
        parameter.data.copy_(values)


def permuted(values, num_heads):
    """Rows (i, i + D / 2) of each head side by side, as files of interleaved rotations have them."""
    rows = values.shape[0]
    halves = values.reshape(num_heads, 2, rows // num_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def write_tensors(writer, model, arch, file_type, *, permutes, one_is_added):
    config = model.config
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = getattr(config, "tie_word_embeddings", False)
    for name, parameter in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        values = parameter.detach().clone()
        if permutes and ".q_proj." in name:
            values = permuted(values, config.num_attention_heads)
        if permutes and ".k_proj." in name:
            values = permuted(values, config.num_key_value_heads)
        if one_is_added and name.endswith("norm.weight"):
            values = values + 1.0
        stored_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored_name is not None, name
        if values.dim() == 1 or file_type == F32:
            writer.add_tensor(stored_name, values.numpy())
        elif file_type == F16:
            writer.add_tensor(stored_name, values.to(torch.float16).numpy())
        else:
            words = values.to(torch.bfloat16).view(torch.uint8).numpy()
            writer.add_tensor(stored_name, words, raw_dtype=BF16)


# ---------------------------------------------------------------- facts


def rope_of(config, kind="full_attention"):
    parameters = config.rope_parameters or {}
    return parameters.get(kind, parameters)


def write_rope_scaling(writer, rope):
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "attention_factor" in rope:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
        if "beta_fast" in rope:
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        if "beta_slow" in rope:
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
        if "mscale_all_dim" in rope:
            writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])


def write_sizes(writer, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)


def write_common(writer, config):
    """What the converter writes for every architecture without code of its own for it."""
    write_sizes(writer, config)
    write_rope_scaling(writer, rope_of(config))
    writer.add_rope_freq_base(rope_of(config)["rope_theta"])
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for key in ("layer_norm_eps", "norm_epsilon"):
        if hasattr(config, key):
            writer.add_layer_norm_eps(getattr(config, key))
    if getattr(config, "head_dim", None) is not None:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)


def write_llama(writer, config):
    write_common(writer, config)
    writer.add_vocab_size(config.vocab_size)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_size)


def write_mistral3(writer, config):
    write_llama(writer, config)
    writer.add_attn_temperature_scale(rope_of(config)["llama_4_scaling_beta"])


def llama3_factors(rope, dims):
    frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims))
    factors = []
    for frequency in frequencies:
        turns = rope["original_max_position_embeddings"] * float(frequency) / (2 * math.pi)
        if turns > rope["high_freq_factor"]:
            factors.append(1.0)
        elif turns < rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            factors.append(1.0 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def write_exaone(writer, config):
    write_common(writer, config)
    dims = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(dims)
    writer.add_tensor("rope_freqs.weight", llama3_factors(rope_of(config), dims))


def write_granite(writer, config):
    write_llama(writer, config)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def write_gemma(writer, config):
    write_sizes(writer, config)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def write_gemma2(writer, config):
    write_gemma(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def write_gemma3(writer, config):
    # Files older than rope.freq_base_swa leave the base of the layers with a window out.
    write_common(writer, config)
    writer.add_sliding_window(config.sliding_window)


def write_gemma3_swa(writer, config):
    write_gemma3(writer, config)
    writer.add_rope_freq_base_swa(rope_of(config, "sliding_attention")["rope_theta"])
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def write_phi3(writer, config):
    rope = rope_of(config)
    write_sizes(writer, config)
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_size = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(rope.get("partial_rotary_factor", 1.0) * head_size))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_sliding_window(config.sliding_window or 0)
    if rope.get("rope_type") == "longrope":
        scale = config.max_position_embeddings / config.original_max_position_embeddings
        writer.add_rope_scaling_attn_factors(
            math.sqrt(1 + math.log(scale) / math.log(config.original_max_position_embeddings)))
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], dtype=np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], dtype=np.float32))


def write_stablelm(writer, config):
    write_sizes(writer, config)
    rope = rope_of(config)
    head_size = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * head_size))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_parallel_residual(config.use_parallel_residual)
    writer.add_layer_norm_eps(config.layer_norm_eps)


# ---------------------------------------------------------------- models


def rope(theta=10000.0, **scaling):
    return {"rope_type": "default", "rope_theta": theta, **scaling}


def sizes(**more):
    return {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 256, **more}


A = gguf.MODEL_ARCH
# name: architecture, class of the reference, its config, what writes the facts, and what differs from `DEFAULTS`.
DEFAULTS = {"type": F16, "pre": "llama-bpe", "permutes": False, "one_is_added": False, "sharpness": 2.0, "padding": 0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
MODELS = {
    # Heads wider than E / H, as in Mistral Nemo.
    "nemo.f16": (A.LLAMA, "Mistral", sizes(head_dim=24, sliding_window=None, rope_parameters=rope(1000000.0)),
                 write_llama, {"permutes": True}),
    "linear.f32": (A.LLAMA, "Llama",
                   sizes(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=1,
                         tie_word_embeddings=True, rope_parameters=rope(rope_type="linear", factor=4.0)),
                   write_llama, {"permutes": True, "type": F32}),
    # 40 positions are within the original context, where the reference does not scale queries.
    "mistral3.f16": (A.MISTRAL3, "Ministral3",
                     sizes(head_dim=24,
                           rope_parameters=rope(1000.0, **{**YARN, "original_max_position_embeddings": 64},
                                                mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1)),
                     write_mistral3, {"permutes": True}),
    "qwen3.bf16": (A.QWEN3, "Qwen3", sizes(head_dim=24, rope_parameters=rope(1000000.0)), write_common,
                  {"pre": "qwen2", "padding": 5, "type": BF16}),
    "qwen3-yarn.f16": (A.QWEN3, "Qwen3",
                       sizes(head_dim=32, num_attention_heads=3, num_key_value_heads=3, tie_word_embeddings=True,
                             rope_parameters=rope(1000000.0, **YARN)),
                       write_common, {"pre": "qwen2"}),
    "qwen2-yarn.f16": (A.QWEN2, "Qwen2",
                       sizes(rope_parameters=rope(1000.0, **{**YARN, "original_max_position_embeddings": 64},
                                                  beta_fast=4.0, beta_slow=0.5, mscale=1.0, mscale_all_dim=0.5)),
                       write_common, {"pre": "qwen2"}),
    "smollm3.f16": (A.SMOLLM3, "SmolLM3",
                    sizes(hidden_size=48, num_hidden_layers=5, num_attention_heads=3, num_key_value_heads=1,
                          tie_word_embeddings=True, rope_parameters=rope(5000000.0)),
                    write_llama, {"permutes": True}),
    # EXAONE 3 and InternLM 2 compute what Llama computes; their classes are not in transformers.
    "exaone.f16": (A.EXAONE, "Llama",
                   sizes(num_hidden_layers=1,
                         rope_parameters=rope(500000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                              high_freq_factor=4.0, original_max_position_embeddings=32)),
                   write_exaone, {}),
    "internlm2.f16": (A.INTERNLM2, "Llama", sizes(num_hidden_layers=1, rope_parameters=rope(1000000.0)),
                      write_common, {"permutes": True}),
    "gemma.bf16": (A.GEMMA, "Gemma", sizes(head_dim=32, num_key_value_heads=1, rope_parameters=rope()), write_gemma,
                   {"pre": None, "one_is_added": True, "type": BF16}),
    "gemma2.f16": (A.GEMMA2, "Gemma2",
                   sizes(num_hidden_layers=3, head_dim=24, query_pre_attn_scalar=24, sliding_window=9,
                         attn_logit_softcapping=3.0, final_logit_softcapping=5.0, rope_parameters=rope()),
                   write_gemma2, {"pre": None, "one_is_added": True}),
    "gemma3.f16": (A.GEMMA3, "Gemma3",
                   sizes(hidden_size=48, intermediate_size=56, num_hidden_layers=7, num_key_value_heads=1,
                         head_dim=16, query_pre_attn_scalar=16, sliding_window=11,
                         rope_parameters={"full_attention": rope(1000000.0, rope_type="linear", factor=8.0),
                                          "sliding_attention": rope(10000.0)}),
                   write_gemma3, {"pre": None, "one_is_added": True}),
    "gemma3-swa.f16": (A.GEMMA3, "Gemma3",
                       sizes(num_hidden_layers=3, head_dim=16, query_pre_attn_scalar=16, sliding_window=6,
                             final_logit_softcapping=4.0,
                             layer_types=["full_attention", "sliding_attention", "full_attention"],
                             rope_parameters={"full_attention": rope(1000000.0),
                                              "sliding_attention": rope(5000.0)}),
                       write_gemma3_swa, {"pre": None, "one_is_added": True}),
    "phi3.f16": (A.PHI3, "Phi3",
                 sizes(num_key_value_heads=4, sliding_window=13, original_max_position_embeddings=256,
                       pad_token_id=0, rope_parameters=rope()),
                 write_phi3, {}),
    # 40 positions are within the original context, so that the reference takes the short factors.
    "phi3-longrope.f16": (A.PHI3, "Phi3",
                          sizes(tie_word_embeddings=True, sliding_window=None, max_position_embeddings=512,
                                original_max_position_embeddings=64, pad_token_id=0,
                                rope_parameters=rope(rope_type="longrope", partial_rotary_factor=0.75,
                                                     original_max_position_embeddings=64,
                                                     short_factor=[1.0, 1.1, 1.25, 1.5, 2.0, 2.5],
                                                     long_factor=[1.5, 2.0, 4.0, 8.0, 16.0, 30.0])),
                          write_phi3, {}),
    "starcoder2.f16": (A.STARCODER2, "Starcoder2",
                       sizes(num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=rope(999999.4)),
                       write_common, {}),
    "granite.bf16": (A.GRANITE, "Granite",
                    sizes(tie_word_embeddings=True, embedding_multiplier=3.0, residual_multiplier=0.4,
                          attention_multiplier=0.125, logits_scaling=2.5, rope_parameters=rope()),
                    write_granite, {"permutes": True, "type": BF16}),
    "stablelm.f16": (A.STABLELM, "StableLm",
                     sizes(num_key_value_heads=4, use_qkv_bias=True,
                           rope_parameters=rope(partial_rotary_factor=0.25)),
                     write_stablelm, {}),
}


def reference_classes(family):
    config = getattr(transformers, family + ("TextConfig" if family == "Gemma3" else "Config"))
    return config, getattr(transformers, family + "ForCausalLM")


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def make(folder, name):
    arch, family, config_values, write_facts, changes = MODELS[name]
    traits = {**DEFAULTS, **changes}
    torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little"))
    file = folder / f"{name}.gguf"
    writer = gguf.GGUFWriter(str(file), gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name(f"tiny {name}")
    vocab_size = write_bpe(writer, traits["pre"]) if traits["pre"] else write_spm(writer)
    vocab_size += traits["padding"]

    config_class, model_class = reference_classes(family)
    special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = config_class(vocab_size=vocab_size, **{**special, **config_values})
    config._attn_implementation = "eager"
    model = model_class(config).eval().float()
    randomise(model, traits["type"], traits["one_is_added"], traits["sharpness"])
    model.tie_weights()
    write_facts(writer, config)
    write_tensors(writer, model, arch, traits["type"], permutes=traits["permutes"],
                  one_is_added=traits["one_is_added"])
    writer.add_quantization_version(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    ids = torch.randint(0, vocab_size, (NUM_TOKENS,)).tolist()
    logits = logits_of(model, ids)
    np.save(folder / f"{name}.logits.npy", logits.numpy())
    greedy, sequence = [], ids[:NUM_PROMPT]
    for _ in range(NUM_GREEDY):
        best = torch.topk(logits_of(model, sequence)[-1], 2)
        greedy.append([int(best.indices[0]), round(float(best.values[0] - best.values[1]), 5)])
        sequence = sequence + [greedy[-1][0]]
    spread = float(logits.std())
    print(f"{name}: {file.stat().st_size} bytes, V {vocab_size}, logits spread {spread:.2f}, "
          f"smallest margin {min(margin for _, margin in greedy)}")
    return {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "ids": ids,
            "logits": f"{name}.logits.npy", "greedy_prompt": ids[:NUM_PROMPT], "greedy": greedy}


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    manifest = folder / "manifest.json"
    entries = {entry["file"]: entry for entry in json.loads(manifest.read_text())} if manifest.exists() else {}
    for name in sys.argv[2:] or MODELS:
        entry = make(folder, name)
        entries[entry["file"]] = entry
    lines = ",\n".join(json.dumps(entries[file]) for file in sorted(entries))
    manifest.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
