#include "engine/tokenizer/pre_tokenizer_rules.h"

namespace sluice::engine {
namespace {

// The families' own expressions (`pre_tokenizer` of their tokenizer.json) as PCRE2 spells them:
//  - \p{White_Space} for \s, which holds U+180E too in PCRE2: it lost that property in Unicode 6.3,
//    and Hugging Face's regular expressions take it for no space.
//  - \p{sc:Han} for \p{Han}, which means the script extensions in PCRE2.
//  - no class within a class and no intersection of classes, which PCRE2 lacks.

constexpr std::string_view kDigit = R"(\p{N})";
constexpr std::string_view kUpToThreeDigits = R"(\p{N}{1,3})";

constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
    R"(| ?[^\p{White_Space}\p{L}\p{N}]+[\r\n]*|\p{White_Space}*[\r\n]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";
// Marks are parts of words.
constexpr std::string_view kQwen35 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N})"
    R"(| ?[^\p{White_Space}\p{L}\p{M}\p{N}]+[\r\n]*|\p{White_Space}*[\r\n]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";
// OpenAI's cl100k, as Hugging Face's converter spells it.
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
    R"(| ?[^\p{White_Space}\p{L}\p{N}]+[\r\n]*|\p{White_Space}*[\r\n]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";
// Cut apart before by kUpToThreeDigits.
constexpr std::string_view kMiniCpm5 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+)"
    R"(| ?[^\p{White_Space}\p{L}\p{N}]+[\r\n]*|\p{White_Space}*[\r\n]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";
// Punctuation without the ends of lines after it.
constexpr std::string_view kSeedCoder =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
    R"(| ?[^\p{White_Space}\p{L}\p{N}\r\n]+|\p{White_Space}*[\r\n]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";
// OpenAI's o200k: words break where capitals begin and keep their contraction.
constexpr std::string_view kGpt4o =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\p{White_Space}\p{L}\p{N}]+[\r\n/]*|\p{White_Space}*[\r\n]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"(|\p{N}| ?[^\p{White_Space}\p{L}\p{N}]+[\r\n/]*|\p{White_Space}*[\r\n]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";
// o200k with Han apart. [Lu Lt Lm Lo M] without Han is what is none of the other categories and not
// Han. Kimi's own code cuts texts of 400,000 characters, and runs of 25,000 spaces or others, in
// pieces before; here they are whole.
constexpr std::string_view kKimiK2 =
    R"(\p{sc:Han}+)"
    R"(|[^\r\n\p{L}\p{N}]?[^\p{Ll}\p{N}\p{P}\p{S}\p{Z}\p{C}\p{sc:Han}]*)"
    R"([^\p{Lu}\p{Lt}\p{N}\p{P}\p{S}\p{Z}\p{C}\p{sc:Han}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[^\p{Ll}\p{N}\p{P}\p{S}\p{Z}\p{C}\p{sc:Han}]+)"
    R"([^\p{Lu}\p{Lt}\p{N}\p{P}\p{S}\p{Z}\p{C}\p{sc:Han}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\p{White_Space}\p{L}\p{N}]+[\r\n]*|\p{White_Space}*[\r\n]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";

// Punctuation as Hugging Face's pre-tokenizer of that name has it: ASCII's, and the categories as
// of Unicode 8. Left out: what has become punctuation since; put in: what no longer is.
constexpr std::string_view kPunctuation =
    R"((?:(?![\x{61D}\x{9FD}\x{A76}\x{C77}\x{C84}\x{1B7D}-\x{1B7E}\x{2E43}-\x{2E4F})"
    R"(\x{2E52}-\x{2E5D}\x{10EAD}\x{10F55}-\x{10F59}\x{10F86}-\x{10F89}\x{1144B}-\x{1144F})"
    R"(\x{1145A}-\x{1145B}\x{1145D}\x{11660}-\x{1166C}\x{116B9}\x{1183B}\x{11944}-\x{11946})"
    R"(\x{119E2}\x{11A3F}-\x{11A46}\x{11A9A}-\x{11A9C}\x{11A9E}-\x{11AA2}\x{11C41}-\x{11C45})"
    R"(\x{11C70}-\x{11C71}\x{11EF7}-\x{11EF8}\x{11FFF}\x{12FF1}-\x{12FF2}\x{16E97}-\x{16E9A})"
    R"(\x{16FE2}\x{1E95E}-\x{1E95F}])\p{P}|[$+<=>^`|~\x{166D}\x{111C9}])++)";
constexpr std::string_view kBloom =
    R"( ?[^(\p{White_Space}|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{0964}\x{06D4}\x{060C})]+)";

constexpr std::string_view kNewline = R"([\r\n])";
// The ends of lines are cut off already, so that $ is the end of the piece. The original, \s+$,
// takes time quadratic in a run of spaces that ends earlier.
constexpr std::string_view kTrailingSpaces = R"((?<!\p{White_Space})\p{White_Space}++\z)";
constexpr std::string_view kDeepSeekCjk =
    R"([\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+)";
constexpr std::string_view kDeepSeekLlmLetters =
    R"(\p{White_Space}?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF})"
    R"(\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386})"
    R"(\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F})"
    R"(\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA})"
    R"(\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15})"
    R"(\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B})"
    R"(\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4})"
    R"(\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4})"
    R"(\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126})"
    R"(\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149})"
    R"(\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3})"
    R"(\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E})"
    R"(\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A})"
    R"(\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2})"
    R"(\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+)";
constexpr std::string_view kDeepSeekLlmPunctuation =
    R"(\p{White_Space}?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F})"
    R"(\x{3000}-\x{3002}]+)";
constexpr std::string_view kDeepSeekCoderLetters = R"(\p{White_Space}?\p{L}+)";
constexpr std::string_view kDeepSeekCoderPunctuation = R"(\p{White_Space}?\p{P}+)";
constexpr std::string_view kDeepSeekV3Cjk =
    R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)";
constexpr std::string_view kDeepSeekV3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
    R"(| ?[\p{P}\p{S}]+[\r\n]*|\p{White_Space}*[\r\n]+)"
    R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";

// llama.cpp's own for files that name none: no family's rules.
constexpr std::string_view kDefaultPunctuation = R"([\p{P}$+<=>^~|]+)";
constexpr std::string_view kDigits = R"(\p{N}+)";
constexpr std::string_view kThreeAsciiDigits = R"([0-9][0-9][0-9])";

constexpr PreTokenizerRules kKnown[] = {
    {.name = "default", .patterns = {kDefaultPunctuation, kGpt2, kDigits, kThreeAsciiDigits}},
    {.name = "gpt-2", .patterns = {kGpt2}},
    {.name = "phi-2", .patterns = {kGpt2}},
    {.name = "mpt", .patterns = {kGpt2}, .normal_form = NormalForm::kNfc},
    {.name = "olmo", .patterns = {kGpt2}, .normal_form = NormalForm::kNfc},
    {.name = "starcoder", .patterns = {kDigit, kGpt2}},
    {.name = "refact", .patterns = {kDigit, kGpt2}},
    {.name = "smollm", .patterns = {kDigit, kGpt2}},
    {.name = "command-r", .patterns = {kDigit, kGpt2}, .normal_form = NormalForm::kNfc},
    {.name = "exaone", .patterns = {kDigit, kGpt2}, .normal_form = NormalForm::kNfkc},
    {.name = "qwen2", .patterns = {kQwen2}, .normal_form = NormalForm::kNfc},
    {.name = "stablelm2", .patterns = {kQwen2}, .normal_form = NormalForm::kNfc},
    {.name = "deepseek-r1-qwen", .patterns = {kQwen2}, .normal_form = NormalForm::kNfc},
    {.name = "qwen35", .patterns = {kQwen35}, .normal_form = NormalForm::kNfc},
    {.name = "llama-bpe",
     .patterns = {kLlama3},
     .ignores_merges = true,
     .adds_bos_by_default = true},
    {.name = "llama3", .patterns = {kLlama3}, .ignores_merges = true, .adds_bos_by_default = true},
    {.name = "llama-v3",
     .patterns = {kLlama3},
     .ignores_merges = true,
     .adds_bos_by_default = true},
    {.name = "lfm2", .patterns = {kLlama3}, .ignores_merges = true, .adds_bos_by_default = true},
    {.name = "falcon3", .patterns = {kLlama3}, .ignores_merges = true, .adds_bos_by_default = true},
    {.name = "falcon-h1",
     .patterns = {kLlama3},
     .ignores_merges = true,
     .adds_bos_by_default = true},
    {.name = "pixtral", .patterns = {kLlama3}, .ignores_merges = true, .adds_bos_by_default = true},
    {.name = "midm-2.0",
     .patterns = {kLlama3},
     .ignores_merges = true,
     .adds_bos_by_default = true},
    {.name = "smaug-bpe", .patterns = {kLlama3}, .ignores_merges = true},
    {.name = "minicpm5", .patterns = {kUpToThreeDigits, kMiniCpm5}},
    {.name = "seed-coder", .patterns = {kSeedCoder}, .normal_form = NormalForm::kNfc},
    {.name = "dbrx", .patterns = {kLlama3}},
    {.name = "chatglm-bpe", .patterns = {kLlama3}, .ignores_merges = true},
    {.name = "glm4", .patterns = {kLlama3}, .ignores_merges = true},
    {.name = "gpt-4o", .patterns = {kGpt4o}, .ignores_merges = true},
    {.name = "llama4", .patterns = {kGpt4o}, .ignores_merges = true},
    {.name = "minimax-m2", .patterns = {kGpt4o}, .normal_form = NormalForm::kNfc},
    {.name = "tekken", .patterns = {kTekken}, .ignores_merges = true, .adds_bos_by_default = true},
    {.name = "kimi-k2", .patterns = {kKimiK2}, .ignores_merges = true},
    {.name = "deepseek-llm",
     .patterns = {kNewline, kDeepSeekLlmLetters, kDeepSeekLlmPunctuation, kTrailingSpaces,
                  kDeepSeekCjk, kDigit}},
    {.name = "deepseek-coder",
     .patterns = {kNewline, kDeepSeekCoderLetters, kDeepSeekCoderPunctuation, kDeepSeekCjk,
                  kDigit}},
    {.name = "deepseek-v3", .patterns = {kUpToThreeDigits, kDeepSeekV3Cjk, kDeepSeekV3}},
    {.name = "falcon", .patterns = {kPunctuation, kGpt2}, .cuts_digits_of_alphabet = true},
    {.name = "bloom", .patterns = {kBloom}},
};

}  // namespace

std::span<const PreTokenizerRules> KnownPreTokenizerRules() { return kKnown; }

}  // namespace sluice::engine
