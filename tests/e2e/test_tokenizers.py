"""Token ids of every pre-tokenizer and of SentencePiece, against Hugging Face `tokenizers` and `sentencepiece`.

The reference has the same vocabulary and merges and the pre-tokenizer that the family publishes in its tokenizer.json."""

import functools
import io
import json
import random
import re
import resource
import subprocess
import unicodedata

import gguf_file
import harness
import pytest
import sentencepiece
import tokenizers

SEED = random.randrange(1 << 32)
NUM_TEXTS = 2000
SPECIAL = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<|im", "<|ｅｎｄ▁ｏｆ|>"]
USER_DEFINED = ["<think>", "<tool>", "<tool>s", "\t\t\t\t", "\n\n\n\n\n", "e\u0301e\u0301"]


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex=False):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def digits(individual):
    return {"type": "Digits", "individual_digits": individual}


SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
NOT_WORD = r"[^\r\n\p{L}\p{N}]?"


def cl100k(number, letters=r"\p{L}+", other=r"[^\s\p{L}\p{N}]+"):
    return split(rf"{ENDINGS}|{NOT_WORD}{letters}|{number}| ?{other}[\r\n]*|{SPACES}")


def by_case(upper, lower, endings, number, slash):
    return split(rf"{NOT_WORD}{upper}*{lower}+{endings}|{NOT_WORD}{upper}+{lower}*{endings}|{number}"
                 rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n{slash}]*|{SPACES}")


def chars(ranges):
    """A class of characters from hexadecimal code points and ranges of them."""
    return "".join("-".join(chr(int(end, 16)) for end in part.split("-")) for part in ranges.split())


DEEPSEEK_LETTERS = "A-Za-z" + chars(
    "B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 "
    "48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D "
    "1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 "
    "1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 "
    "213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 "
    "A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 "
    "10CC0-10CF2 118A0-118DF 1E900-1E943")
DEEPSEEK_CJK = split(f"[{chars('4E00-9FA5 800-4E00 AC00-D7FF')}]+")
HAN = r"&&[^\p{Han}]]"

NONE, NFC, NFKC = None, {"type": "NFC"}, {"type": "NFKC"}
GPT2 = (NONE, [byte_level(True)])
DIGITS_GPT2 = (NONE, [digits(True), byte_level(True)])
QWEN2 = (NFC, [cl100k(r"\p{N}"), byte_level()])
LLAMA3 = (NONE, [cl100k(r"\p{N}{1,3}"), byte_level()])
GPT4O = (NONE, [by_case(UPPER, LOWER, ENDINGS + "?", r"\p{N}{1,3}", "/"), byte_level()])

# pre: (normalizer, pre-tokenizers, whether a piece in the vocabulary needs no merges, whether BOS is added unasked)
FAMILIES = {
    # llama.cpp's own rules for files that name none
    "default": (NONE, [split(r"[\p{P}$+<=>^~|]+"),
                       split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
                       split(r"\p{N}+"), split("[0-9][0-9][0-9]"), byte_level()], False, False),
    "gpt-2": (*GPT2, False, False),
    "phi-2": (*GPT2, False, False),
    "mpt": (NFC, GPT2[1], False, False),
    "olmo": (NFC, GPT2[1], False, False),
    "starcoder": (*DIGITS_GPT2, False, False),
    "refact": (*DIGITS_GPT2, False, False),
    "smollm": (*DIGITS_GPT2, False, False),
    "command-r": (NFC, DIGITS_GPT2[1], False, False),
    "exaone": (NFKC, DIGITS_GPT2[1], False, False),
    "qwen2": (*QWEN2, False, False),
    "stablelm2": (*QWEN2, False, False),
    "deepseek-r1-qwen": (*QWEN2, False, False),
    "qwen35": (NFC, [cl100k(r"\p{N}", r"[\p{L}\p{M}]+", r"[^\s\p{L}\p{M}\p{N}]+"), byte_level()], False, False),
    "llama-bpe": (*LLAMA3, True, True),
    "llama3": (*LLAMA3, True, True),
    "llama-v3": (*LLAMA3, True, True),
    "lfm2": (*LLAMA3, True, True),
    "falcon3": (*LLAMA3, True, True),
    "falcon-h1": (*LLAMA3, True, True),
    "pixtral": (*LLAMA3, True, True),
    "midm-2.0": (*LLAMA3, True, True),
    "smaug-bpe": (*LLAMA3, True, False),
    "minicpm5": (NONE, [split(r"\p{N}{1,3}"), cl100k(r"\p{N}+"), byte_level()], False, False),
    "seed-coder": (NFC, [split(rf"{ENDINGS}|{NOT_WORD}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"),
                         byte_level()], False, False),
    "dbrx": (*LLAMA3, False, False),
    "chatglm-bpe": (*LLAMA3, True, False),
    "glm4": (*LLAMA3, True, False),
    "gpt-4o": (*GPT4O, True, False),
    "llama4": (*GPT4O, True, False),
    "minimax-m2": (NFC, GPT4O[1], False, False),
    "tekken": (NONE, [by_case(UPPER, LOWER, "", r"\p{N}", "/"), byte_level()], True, True),
    "kimi-k2": (NONE, [split(r"[\p{Han}]+|" + by_case(UPPER[:-1] + HAN, LOWER[:-1] + HAN, ENDINGS + "?", r"\p{N}{1,3}", "")
                             ["pattern"]["Regex"]), byte_level()], True, False),
    "deepseek-llm": (NONE, [split("[\r\n]"), split(rf"\s?[{DEEPSEEK_LETTERS}]+"),
                            split(rf"\s?[!-/:-~{chars('FF01-FF0F FF1A-FF5E 2018-201F 3000-3002')}]+"), split(r"\s+$"),
                            DEEPSEEK_CJK, digits(True), byte_level()], False, False),
    "deepseek-coder": (NONE, [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), DEEPSEEK_CJK, digits(True),
                              byte_level()], False, False),
    "deepseek-v3": (NONE, [split(r"\p{N}{1,3}"), split(f"[{chars('4E00-9FA5 3040-309F 30A0-30FF')}]+"),
                           split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
                                 "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"), byte_level()], False, False),
    "falcon": (NONE, [{"type": "Punctuation", "behavior": "Contiguous"}, byte_level(True), digits(False),
                      split("[0-9][0-9][0-9]")], False, False),
    "bloom": (NONE, [split(" ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"), byte_level()], False, False),
}

WORDS = """
the The THE hello Hello HELLO world I'm I'M you'll YOU'LL it's IT'S we've They'RE he'd don't x'sy 'tis rock'n'roll
camelCase HTTPServer snake_case iPhone naïve Straße straße ﬁn e\u0301 A\u030a ș ŉ ǅ Ǆenana ʰa ªº привет ПРИВЕТ мир
Привет ελληνικά ΣΊΣΥΦΟΣ მხედრული Მთავრული Հայերեն مرحبا שלום नमस्ते क्षत्रिय สวัสดี ভাষা 한국어 ᄒ\u1161\u11ab 東京 東京都々〇〆ヶ
日本語のテキスト ひらがな カタカナ ﾊﾝｶｸ 中文字符 \u3021\u3022 㐀 𠀀𠀁 ⼀⺀ 🙂 👩\u200d👩\u200d👧\u200d👦 🇩🇪🇫🇷 👍🏽 1 12 123 1234 12345678 3.14
1,000,000 0x1F 2024-01-02 ²³¹ ½¼¾ 12½3456 x² Ⅷ ⅷ ٣٤٥ १२३ 𝟏𝟐 ①② 一二 C++ {}();[] ... !? -- => <= `code` a|b ~^$+ #include
// /* */ http://a.b/c?d=e&f=g \\n \\t ‘a’ “b” „c“ «d» 。、，！？； ・ ۔ ، । ٪ ¿¡ § © ™ € £ ₿ ° ∑ √ ∞ → ⇒ ■ ▁ ▁▁a \u02bc
\u2019s 'ſ 'Ｓ K Å Ω ﬀ ﷺ \u1e9b\u0323 \u0344 \u0958 豈""".split()
GAPS = ["", "", "", " ", " ", " ", " ", "  ", "   ", "    ", "\n", "\n\n", "\r\n", "\r", "\t", "\t\t", " \n", "\n ",
        " \n\n  ", "\r\n\r\n", "\n\t\n", "\u00a0", "\u0085", "\u1680", "\u180e", "\u2003", "\u2009\u200a", "\u2028",
        "\u2029", "\u202f", "\u205f", "\u3000", " \u3000 ", "\u200b", "\ufeff", "\x0b", "\x0c", "\x1c", "\x1f", "\x00",
        "\x7f", "\u200d", "\u00ad", "\u0301", "\u0301\u0323", "\u20dd", "\u2e48", "\ufe0f", "\U000e0020"]
RUNS = ["a", "A", " ", "\n", ".", "1", "東", "\u0301", "\u0323\u0307", "²", "ж", "Ж", "é", "\r\n", "\t", "_", "々", "٣", "-",
        "\u3000", "🙂"]
SPACES_AND_LETTERS = "aAbzZ sStTmM'dDlLvVeE1239 \n\r\t.,!/_ﬁ東々é\u0301²½ᾼǅʰ\u00a0\u3000"


def assigned(random_):
    """A code point of one of the planes people write in, assigned in Unicode as of Python's tables. No marks and no composed
    characters younger than Unicode 3.2: the reference's normal forms know fewer of them than utf8proc."""
    while True:
        character = chr(random_.randrange(random_.choice([0x80, 0x800, 0x3000, 0x10000, 0x20000])))
        category = unicodedata.category(character)
        is_young = unicodedata.ucd_3_2_0.category(character) == "Cn"
        if category not in ("Cn", "Cs") and not (is_young and (category[0] == "M" or unicodedata.decomposition(character))):
            return character


def random_text(random_):
    kind = random_.randrange(10)
    if kind == 0:
        return "".join(assigned(random_) for _ in range(random_.randrange(1, 30)))
    if kind == 1:
        return "".join(random_.choice(SPACES_AND_LETTERS) for _ in range(random_.randrange(1, 60)))
    parts = []
    for _ in range(random_.randrange(1, 16)):
        roll = random_.randrange(20)
        if roll == 0:
            parts.append(random_.choice(RUNS) * random_.randrange(1, 200))
        elif roll == 1:
            parts.append(random_.choice(SPECIAL + USER_DEFINED + ["<|im_", "<tool", "<|bos|", "|>"]))
        elif roll == 2:
            parts.append(assigned(random_))
        else:
            parts.append(random_.choice(WORDS))
        parts.append(random_.choice(GAPS))
    return "".join(parts)


def tokenize(binary, model, texts, *flags):
    """What `sluice tokenize` gives for each of `texts`, as it decodes."""
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    result = subprocess.run([str(binary), "tokenize", "--jsonl", "--json", "--model", str(model), *flags],
                            input=lines.encode(), capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr.decode()
    values = [json.loads(line) for line in result.stdout.decode().split("\n")[:-1]]
    assert len(values) == len(texts)
    return values


def fail_at_first(texts, got, expected, what, record, row):
    """Counts the texts for scripts/compatibility.py as well."""
    equal = sum(ours == reference for ours, reference in zip(got, expected))
    kind = "decoded texts" if what.startswith("decoded") else "texts"
    record(f"compared/tokenizers/{row}/{kind}", f"{len(texts)} {equal} 0")
    for text, ours, reference in zip(texts, got, expected, strict=True):
        assert ours == reference, f"{what} of {text!r} ({text.encode().hex(' ')}), seed {SEED}"


def reference_tokenizer(pre, model, added):
    normalizer, steps, ignore_merges, _ = FAMILIES[pre]
    return tokenizers.Tokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "post_processor": None, "decoder": byte_level(True),
        "added_tokens": [{"id": model["vocab"][token], "content": token, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": token in SPECIAL} for token in added],
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges,
                  **model}}))


@functools.cache
def random_texts(count, purpose):
    """The same for all tests of a run."""
    random_ = random.Random(f"{SEED}/{purpose}")
    return [random_text(random_) for _ in range(count)]


@functools.cache
def trained_model():
    """A small vocabulary that merges across every border of words, so that a border that is missing or too many shows.
    No merge makes some of its tokens, as in OpenAI's vocabularies."""
    added = re.compile("|".join(map(re.escape, sorted(SPECIAL + USER_DEFINED, key=len, reverse=True))))
    texts = [added.sub(" | ", text) for text in random_texts(1500, "train")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=3000, min_frequency=2, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    assert len(merges) > 2000
    parts = {part for merge in merges for part in merge}
    leaves = [merge for merge in merges if "".join(merge) not in parts]
    dropped = set(random.Random(SEED).sample(leaves, len(leaves) // 5))
    for token in SPECIAL + USER_DEFINED:
        assert token not in model["vocab"]
        model["vocab"][token] = len(model["vocab"])
    return {"vocab": model["vocab"], "merges": [list(merge) for merge in merges if merge not in dropped]}


def write_bpe(path, pre, model, **metadata):
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    types = [3 if token in SPECIAL else 4 if token in USER_DEFINED else 1 for token in tokens]
    keys = {"model": "gpt2", "tokens": tokens, "token_type": types, "merges": [" ".join(merge) for merge in model["merges"]],
            "bos_token_id": model["vocab"]["<|bos|>"], "eos_token_id": model["vocab"]["<|eos|>"], **metadata}
    if pre is not None:
        keys["pre"] = pre
    return gguf_file.write(path, {f"tokenizer.ggml.{key}": value for key, value in keys.items()})


@pytest.mark.parametrize("pre", FAMILIES)
def test_bpe_is_the_reference(sluice, tmp_path, record_property, pre):
    print("seed", SEED)
    model = trained_model()
    file = write_bpe(tmp_path / "vocabulary.gguf", pre, model)
    bos = [model["vocab"]["<|bos|>"]] if FAMILIES[pre][3] else []
    texts = random_texts(NUM_TEXTS, "test")
    for added, flags in ((SPECIAL + USER_DEFINED, ()), (USER_DEFINED, ("--no-special", "--no-bos"))):
        reference = reference_tokenizer(pre, model, added)
        expected = [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)]
        got = tokenize(sluice, file, texts, *flags)
        if not flags:
            assert any(len(ids) < len(text.encode()) / 2 for ids, text in zip(expected, texts))
            expected = [ids if ids[:1] == bos else bos + ids for ids in expected]
        fail_at_first(texts, [value["ids"] for value in got], expected, f"ids {flags}", record_property, pre)
        decoded = reference.decode_batch([value["ids"] for value in got], skip_special_tokens=True)
        if not flags:
            fail_at_first(texts, [value["text"] for value in got], decoded, "decoded text", record_property, pre)
        elif FAMILIES[pre][0] is NONE:
            fail_at_first(texts, decoded, texts, "decoded text", record_property, pre)


def test_the_list_of_pre_tokenizers_is_complete(sluice, tmp_path):
    model = {"vocab": {token: i for i, token in enumerate(["a", "b", "<|bos|>", "<|eos|>"])}, "merges": [["a", "b"]]}
    model["vocab"]["ab"] = 4
    file = write_bpe(tmp_path / "vocabulary.gguf", "gpt-5", model)
    result = subprocess.run([str(sluice), "tokenize", "--model", str(file)], input=b"ab", capture_output=True)
    [line] = result.stderr.decode().splitlines()
    assert result.returncode == 1
    known = re.search(r"tokenizer\.ggml\.pre: expected one of (.*), got 'gpt-5'", line)[1]
    assert sorted(known.split(", ")) == sorted(FAMILIES)
    file = write_bpe(tmp_path / "vocabulary.gguf", None, model)
    result = subprocess.run([str(sluice), "tokenize", "--model", str(file)], input=b"ab", capture_output=True)
    assert result.returncode == 0 and result.stdout == b"4\n"
    assert b"tokenizer.ggml.pre is missing" in result.stderr


def trained_sentencepiece(**options):
    """SentencePiece's own BPE, with the normalizer of Llama, Mistral, Phi-3 and Gemma: none. The vocabulary has room for all
    characters that any seed draws: SentencePiece refuses to train when it has not."""
    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(random_texts(1500, "train")), model_writer=output, model_type="bpe", vocab_size=1400, hard_vocab_limit=False,
        character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        user_defined_symbols=USER_DEFINED + ["\u2581\u2581\u2581"], **options)
    return sentencepiece.SentencePieceProcessor(model_proto=output.getvalue())


def write_sentencepiece(path, model, add_space_prefix):
    size = model.get_piece_size()
    pieces = [model.id_to_piece(i) for i in range(size)]
    user_defined = set(USER_DEFINED + ["\u2581\u2581\u2581"])
    types = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 5 if model.is_unused(i)
             else 4 if pieces[i] in user_defined else 1 for i in range(size)]
    keys = {"model": "llama", "tokens": pieces, "scores": [model.get_score(i) for i in range(size)], "token_type": types,
            "bos_token_id": model.bos_id(), "eos_token_id": model.eos_id(), "unknown_token_id": model.unk_id(),
            "add_space_prefix": add_space_prefix}
    return gguf_file.write(path, {f"tokenizer.ggml.{key}": value for key, value in keys.items()})


@pytest.mark.parametrize("add_space_prefix", [True, False], ids=["prefix", "no_prefix"])
@pytest.mark.parametrize("byte_fallback", [True, False], ids=["bytes", "unknown"])
def test_spm_is_the_reference(sluice, tmp_path, record_property, add_space_prefix, byte_fallback):
    row = f"SentencePiece, {'space' if add_space_prefix else 'no space'}, {'bytes' if byte_fallback else 'unknown'}"
    print("seed", SEED)
    model = trained_sentencepiece(byte_fallback=byte_fallback, add_dummy_prefix=add_space_prefix)
    file = write_sentencepiece(tmp_path / "vocabulary.gguf", model, add_space_prefix)
    texts = [text.replace("<|im_end|>", "</s>").replace("<|bos|>", "<s>") for text in random_texts(NUM_TEXTS, "test")]
    expected = model.encode(texts)
    assert any(len(ids) < len(text) * 0.7 for ids, text in zip(expected, texts))
    got = tokenize(sluice, file, texts, "--no-special", "--no-bos")
    fail_at_first(texts, [value["ids"] for value in got], expected, "ids", record_property, row)
    if byte_fallback:
        fail_at_first(texts, [value["text"] for value in got], model.decode(expected), "decoded text",
                      record_property, row)

    # Control tokens are not SentencePiece's: what lies between them is encoded by itself.
    control = {model.id_to_piece(i): i for i in (model.unk_id(), model.bos_id(), model.eos_id())}
    expected = []
    for text in texts:
        ids = [model.bos_id()]
        for part in re.split("(<unk>|<s>|</s>)", text):
            ids += [control[part]] if part in control else model.encode(part)
        expected.append(ids[1:] if ids[1:2] == [model.bos_id()] else ids)
    fail_at_first(texts, [value["ids"] for value in tokenize(sluice, file, texts)], expected, "ids with control tokens",
                  record_property, row)


def test_every_line_must_be_a_string(sluice):
    for lines in ('"a"\n7\n', '"a"\n"b\n', '"a"\n"\\ud800"\n', '"a"\n\n"b"\n'):
        result = subprocess.run([str(sluice), "tokenize", "--jsonl", "--model", str(harness.TINY / "vocab-spm.gguf")],
                                input=lines.encode(), capture_output=True)
        assert result.returncode == 1 and len(result.stdout.splitlines()) == 1
        assert b"line 2: expected a JSON string" in result.stderr


@pytest.fixture(scope="module")
def two_vocabularies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    return (write_bpe(folder / "bpe.gguf", "gpt-4o", trained_model()),
            write_sentencepiece(folder / "spm.gguf", trained_sentencepiece(byte_fallback=True), True))


@pytest.mark.parametrize("unit", ["A", " ", "\n", "東", "\u0301", "1", "."], ids=ascii)
def test_a_megabyte_takes_a_second(sluice, two_vocabularies, unit):
    """Of the processor's time, with the start of the process; a unit test asks the same of every pre-tokenizer."""
    text = (unit * (1 << 20)).encode()[:1 << 20].decode(errors="ignore").encode()
    for file in two_vocabularies:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run([str(sluice), "tokenize", "--model", str(file)], input=text, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.returncode == 0, result.stderr
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{file.name}: {len(result.stdout.split())} tokens in {spent:.2f} s")
        assert spent < 1
