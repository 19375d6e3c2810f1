#!/usr/bin/env python3
"""Makes tests/golden/safetensors: tiny models with random weights as Hugging Face saves them, and what Hugging Face computes.

    python3 -m venv venv && venv/bin/pip install torch transformers tokenizers safetensors numpy
    venv/bin/python tests/golden/make_safetensors.py tests/golden [NAME...]

Each directory is what save_pretrained wrote (model, and a tokenizer trained on tests/golden/kl_text.txt), two of them with
their config.json as version 4 of transformers wrote it. manifest.json has for each: ids and file of float32 logits
[len(ids), V] (eager attention on the CPU), and texts with their ids, with and without special tokens. Those of BARE have
no tokenizer. With names, only those of BARE are made again and the other entries of the manifest stay.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                r"|\s+(?!\S)|\s+")
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
EXTRA_TEXTS = [
    "The quick brown fox", "  two leading spaces", "trailing  ", "a\tb\n\nc", "1234567890 3.14159", "don't WE'LL they'Re",
    "<|bos|>again", "x<|end|> y", "a</s>b", "a</s> b", "<s>x</s></s> y", "▁x</s>▁y", "<|end|><|end|>", "tool <tool> call", "<tool><tool>  <tool>", "<|unknown|>", "naïve café",
    "e\u0301 combining", "日本語のテキスト", "한국어 텍스트", "🙂🙃 emoji 👩‍👩‍👧", "\u200bzero width", "▁literal▁▁mark", "▁",
    "a▁b", "      six", "\t\ttabs", "\r\nwindows\r\n", "====----====", "((()))", "CamelCaseWord snake_case_word", "\u00a0nbsp",
    "\u3000ideographic", "aaaaaaaaaaaaaaaaaaaaaaaa", " " * 33, "\n" * 17, "end.", "<s>", "</s>", "<unk>", "<0x41>", "ﬁ ligature",
    "Ω Ω", "mixed 12 34abc 5", "don’t", "\x01\x02 control", "",
]


def train_byte_level(text, split, vocab_size, specials):
    tokenizer = Tokenizer(models.BPE(ignore_merges=split is LLAMA3_SPLIT))
    if split is QWEN2_SPLIT:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    for token in specials:
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def train_pieces(text, vocab_size, prepend_scheme):
    """As converters make them of SentencePiece's models: characters, U+2581 for spaces, bytes for the rest."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trainer_normalizer = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(trainer_normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # of the training only
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, max_token_length=12,
                                  special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)])
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.pre_tokenizer = None
    # The byte tokens are of the vocabulary, not added ones.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < 3]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if prepend_scheme is None:
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                               decoders.Strip(content=" ", left=1)])
    else:
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend_scheme, split=False)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                               decoders.Strip(content=" ", left=1)])
    return tokenizer


def with_bos(tokenizer, bos):
    template = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1",
                                             special_tokens=[(bos, tokenizer.token_to_id(bos))])
    tokenizer.post_processor = template
    return tokenizer


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 2:
            values *= 1.5 / parameter.shape[1] ** 0.5
        elif "norm" in name:
            values = values * 0.1 + (0.0 if "gemma" in type(model).__name__.lower() else 1.0)
        else:
            values *= 0.2
        parameter.data = values


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


NFC = {"type": "NFC"}
DIGITS = {"type": "Digits", "individual_digits": True}
UPPER, LOWER, ENDINGS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
QWEN35_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
                r"|\s+(?!\S)|\s+")


def by_case(endings, number):
    return (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{endings}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{endings}|{number}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PIECES = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def metaspace(scheme):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


def pieces(normalizer, pre_tokenizer, *ending):
    return {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "decoder": {"type": "Sequence", "decoders": [*PIECES, *ending]}}


# Other pipelines over the vocabulary of one of the models: parts of tokenizer.json, and options of its model.
VARIANTS = {
    "llama3": {
        "gpt-2": {"pre_tokenizer": byte_level(True), "model": {"ignore_merges": False}},
        "olmo": {"normalizer": NFC, "pre_tokenizer": byte_level(True), "model": {"ignore_merges": False}},
        "smollm": {"pre_tokenizer": sequence(DIGITS, byte_level(True)), "model": {"ignore_merges": False}},
        "command-r": {"normalizer": NFC, "pre_tokenizer": sequence(DIGITS, byte_level(True)), "model": {"ignore_merges": False}},
        "dbrx": {"pre_tokenizer": sequence(split(LLAMA3_SPLIT), byte_level(False)), "model": {"ignore_merges": False}},
        "qwen35": {"normalizer": NFC, "pre_tokenizer": sequence(split(QWEN35_SPLIT), byte_level(False)),
                   "model": {"ignore_merges": False}},
        "gpt-4o": {"pre_tokenizer": sequence(split(by_case(ENDINGS, r"\p{N}{1,3}")), byte_level(False))},
        "tekken": {"pre_tokenizer": sequence(split(by_case("", r"\p{N}")), byte_level(False))},
    },
    "mistral": {
        "gemma": pieces(MARK, {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}),
        "none": pieces(MARK, None),
        "each": pieces(None, metaspace("always"), STRIP),
        "never": pieces(None, metaspace("never")),
    },
}


def make_variant(path, edit, texts):
    state = json.loads((path / "tokenizer.json").read_text())
    state["model"].update(edit.get("model", {}))
    state.update({key: value for key, value in edit.items() if key != "model"})
    tokenizer = Tokenizer.from_str(json.dumps(state))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def write_logits(folder, name, model_class, seed):
    loaded = model_class.from_pretrained(folder / "safetensors" / name, dtype=torch.float32, attn_implementation="eager").eval()
    ids = [(7 * i * i + 3 * i + seed) % loaded.config.vocab_size for i in range(40)]
    with torch.no_grad():
        logits = loaded(torch.tensor([ids])).logits[0].numpy().astype(np.float32)
    np.save(folder / "safetensors" / f"{name}.logits.npy", logits)
    print(f"{name}: logits spread {logits.std():.2f}")
    return ids, f"{name}.logits.npy", model_class.__name__


def make(folder, name, model, tokenizer, dtype, texts, manifest, seed, shard="1GB", config_edit=None):
    path = folder / "safetensors" / name
    shutil.rmtree(path, ignore_errors=True)
    randomize(model, seed)
    model = model.to(dtype).eval()
    model.save_pretrained(path, max_shard_size=shard)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|bos|>" if "<|bos|>" in tokenizer.get_vocab() else "<s>",
                                                eos_token="<|end|>" if "<|end|>" in tokenizer.get_vocab() else "</s>")
    fast.save_pretrained(path)
    if name == "mistral":  # merges as versions before 0.20 of tokenizers wrote them
        state = json.loads((path / "tokenizer.json").read_text())
        state["model"]["merges"] = [" ".join(merge) for merge in state["model"]["merges"]]
        (path / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False, indent=2))
    if name == "llama3":
        ends = [tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<tool>")]
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}) + "\n")
    if config_edit is not None:
        config = json.loads((path / "config.json").read_text())
        config_edit(config)
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    ids, file, model_class = write_logits(folder, name, type(model), seed)
    read = Tokenizer.from_file(str(path / "tokenizer.json"))
    rows = [{"text": text, "ids": read.encode(text).ids, "ids_bare": read.encode(text, add_special_tokens=False).ids}
            for text in texts]
    manifest.append({"directory": name, "class": model_class, "ids": ids, "logits": file,
                     "texts": rows,
                     "variants": [{"name": key, "edit": edit, "ids": make_variant(path, edit, texts)}
                                  for key, edit in VARIANTS.get(name, {}).items()]})


def version4(config):
    """config.json as transformers 4 wrote it."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.40.0"
    config.pop("head_dim", None)


def rope(theta=10000.0, **scaling):
    return {"rope_type": "default", "rope_theta": theta, **scaling}


def gemma3_version4(config):
    parameters = config.pop("rope_parameters")
    full = parameters["full_attention"]
    config["rope_theta"] = full.pop("rope_theta")
    config["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
    config["rope_scaling"] = None if full["rope_type"] == "default" else full
    config.pop("layer_types")
    config.pop("_sliding_window_pattern", None)
    config["sliding_window_pattern"] = 3
    config["torch_dtype"] = config.pop("dtype")
    config["cache_implementation"] = "hybrid"
    config["transformers_version"] = "4.50.0"


def phi3_version4(config):
    version4(config)
    for name in ("original_max_position_embeddings", "rope_theta"):
        config["rope_scaling"].pop(name, None)
    config["partial_rotary_factor"] = config["rope_scaling"].pop("partial_rotary_factor")


def starcoder2_version4(config):
    version4(config)
    config.update(activation_function="gelu", attention_softmax_in_fp32=True, layer_norm_epsilon=1e-5, mlp_type="default",
                  norm_type="layer_norm", scale_attention_softmax_in_fp32=True, scale_attn_weights=True)


SMALL = {"vocab_size": 100, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None,
         "pad_token_id": None}
# name: family, its config, type of the tensors, edit of config.json. No tokenizer.
BARE = {
    "gemma": ("Gemma", {**SMALL, "num_key_value_heads": 1, "head_dim": 24, "rope_parameters": rope()}, torch.bfloat16,
              lambda config: (version4(config), config.update(head_dim=24, hidden_act="gelu", hidden_activation=None))),
    "gemma2": ("Gemma2", {**SMALL, "num_hidden_layers": 3, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 9,
                          "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0, "rope_parameters": rope()},
               torch.bfloat16, None),
    "gemma3": ("Gemma3", {**SMALL, "num_hidden_layers": 3, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6,
                          "final_logit_softcapping": 4.0,
                          "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                          "rope_parameters": {"full_attention": rope(1000000.0), "sliding_attention": rope(5000.0)}},
               torch.bfloat16, None),
    "gemma3-version4": ("Gemma3", {**SMALL, "num_hidden_layers": 4, "num_key_value_heads": 1, "head_dim": 16,
                                   "query_pre_attn_scalar": 16, "sliding_window": 11, "rope_parameters": {
                                       "full_attention": rope(500000.0, rope_type="linear", factor=8.0),
                                       "sliding_attention": rope(2000.0)}}, torch.float16, gemma3_version4),
    "phi3": ("Phi3", {**SMALL, "sliding_window": 13, "original_max_position_embeddings": 128, "rope_parameters": rope()},
             torch.bfloat16, None),
    # The ids are within the original context, where the reference takes the short factors.
    "phi3-longrope": ("Phi3", {**SMALL, "max_position_embeddings": 512, "original_max_position_embeddings": 64,
                               "tie_word_embeddings": True, "sliding_window": None, "rope_parameters": rope(
                                   rope_type="longrope", partial_rotary_factor=0.5, original_max_position_embeddings=64,
                                   short_factor=[1.0, 1.25, 2.0], long_factor=[1.5, 4.0, 30.0])},
                      torch.bfloat16, phi3_version4),
    "granite": ("Granite", {**SMALL, "attention_bias": True, "tie_word_embeddings": True, "embedding_multiplier": 3.0,
                            "residual_multiplier": 0.4, "attention_multiplier": 0.125, "logits_scaling": 2.5,
                            "rope_parameters": rope()}, torch.bfloat16, None),
    "starcoder2": ("Starcoder2", {**SMALL, "num_key_value_heads": 1, "sliding_window": 11, "rope_parameters": rope(999999.4)},
                   torch.bfloat16, starcoder2_version4),
    "smollm3": ("SmolLM3", {**SMALL, "num_hidden_layers": 5, "num_key_value_heads": 1, "intermediate_size": 48,
                            "rope_parameters": rope(5000.0)}, torch.bfloat16, None),
    "stablelm": ("StableLm", {**SMALL, "hidden_size": 64, "num_key_value_heads": 4, "use_qkv_bias": True,
                              "rope_parameters": rope(partial_rotary_factor=0.25)}, torch.bfloat16, None),
}


def make_bare(folder, name, seed):
    family, values, dtype, config_edit = BARE[name]
    config = getattr(transformers, family + ("TextConfig" if family == "Gemma3" else "Config"))(**values)
    model = getattr(transformers, family + "ForCausalLM")(config)
    randomize(model, seed)
    if "Gemma" in family:  # as input it is scaled by the root of the width, and as head it must not outweigh the layers
        model.model.embed_tokens.weight.data *= 0.5
    model.tie_weights()
    path = folder / "safetensors" / name
    shutil.rmtree(path, ignore_errors=True)
    model.to(dtype).save_pretrained(path)
    (path / "generation_config.json").unlink(missing_ok=True)
    if config_edit is not None:
        state = json.loads((path / "config.json").read_text())
        config_edit(state)
        (path / "config.json").write_text(json.dumps(state, indent=2) + "\n")
    return write_logits(folder, name, type(model), seed)


def main(folder, names):
    manifest = []
    if names:
        manifest = json.loads((folder / "safetensors" / "manifest.json").read_text())
        manifest = [entry for entry in manifest if entry["directory"] not in names]
    else:
        make_with_tokenizers(folder, manifest)
    for name in names or BARE:
        ids, file, model_class = make_bare(folder, name, 11 + list(BARE).index(name))
        manifest.append({"directory": name, "class": model_class, "ids": ids, "logits": file, "texts": [], "variants": []})
    (folder / "safetensors" / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False, separators=(",", ":")) + "\n")


def make_with_tokenizers(folder, manifest):
    text = (folder / "kl_text.txt").read_text()
    texts = [json.loads(line)["text"] for line in (folder / "smollm2" / "tokenizer.jsonl").read_text().splitlines()]
    texts = list(dict.fromkeys(texts + EXTRA_TEXTS))
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    specials = [AddedToken("<|bos|>", special=True), AddedToken("<|end|>", special=True),
                AddedToken("<tool>", special=False, normalized=False)]

    tokenizer = with_bos(train_byte_level([text], LLAMA3_SPLIT, 380, specials), "<|bos|>")
    config = transformers.LlamaConfig(**sizes, vocab_size=390, rms_norm_eps=1e-5, attention_bias=True, tie_word_embeddings=True,
                                      rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                                                       "high_freq_factor": 4.0, "original_max_position_embeddings": 64})
    make(folder, "llama3", transformers.LlamaForCausalLM(config), tokenizer, torch.bfloat16, texts, manifest, 1)

    tokenizer = train_byte_level([text], QWEN2_SPLIT, 380, specials)
    config = transformers.Qwen2Config(**{**sizes, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}, vocab_size=384, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    make(folder, "qwen2", transformers.Qwen2ForCausalLM(config), tokenizer, torch.float32, texts, manifest, 2, shard="80KB")

    tokenizer = with_bos(train_pieces([text], 420, None), "<s>")
    config = transformers.MistralConfig(**sizes, vocab_size=420, rms_norm_eps=1e-5, sliding_window=None,
                                        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    make(folder, "mistral", transformers.MistralForCausalLM(config), tokenizer, torch.float16, texts, manifest, 3, config_edit=version4)

    tokenizer = with_bos(train_pieces([text], 420, "first"), "<s>")
    config = transformers.Qwen3Config(**{**sizes, "num_attention_heads": 3, "num_key_value_heads": 1}, head_dim=32, vocab_size=421, rms_norm_eps=1e-6,
                                      tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    make(folder, "qwen3", transformers.Qwen3ForCausalLM(config), tokenizer, torch.bfloat16, texts, manifest, 4, config_edit=lambda c: (version4(c), c.update(head_dim=32)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
