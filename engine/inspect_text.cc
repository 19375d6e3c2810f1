#include <algorithm>
#include <cstdio>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/gguf/gguf_text.h"
#include "engine/inspection.h"
#include "engine/model/fact_reader.h"
#include "engine/tokenizer/utf8.h"

namespace sluice::engine {
namespace {

constexpr size_t kTextColumns = 60;   // of a string value
constexpr size_t kShownElements = 6;  // of an array

// Lines of columns, each as wide as its longest cell; the last is not padded.
class Table {
 public:
  void Add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }

  std::string Text() const {
    std::vector<size_t> widths;
    for (const auto& row : rows_) {
      widths.resize(std::max(widths.size(), row.size()), 0);
      for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Columns(row[i]));
    }
    std::string out;
    for (const auto& row : rows_) {
      std::string line = " ";
      for (size_t i = 0; i < row.size(); ++i) {
        line += " " + row[i];
        if (i + 1 < row.size()) line.append(widths[i] - Columns(row[i]) + 1, ' ');
      }
      line.erase(line.find_last_not_of(' ') + 1);
      out += line + "\n";
    }
    return out;
  }

 private:
  // Code points: near enough to columns for names and numbers.
  static size_t Columns(std::string_view text) {
    return static_cast<size_t>(
        std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
  }

  std::vector<std::vector<std::string>> rows_;
};

// A string of the file fit for a terminal: what is not printable and broken UTF-8 escaped,
// shortened.
std::string Shown(std::string_view text) {
  std::string out = "\"";
  size_t columns = 0, at = 0;
  for (; at < text.size() && columns < kTextColumns; ++columns) {
    const Utf8Step step = NextUtf8(text.substr(at));
    const std::string_view bytes = text.substr(at, step.length);
    if (bytes == "\n") {
      out += "\\n";
    } else if (step.state != Utf8State::kValid || !IsPrintableCodePoint(step.code_point)) {
      const std::string quoted = Quoted(bytes);
      out.append(quoted, 1, quoted.size() - 2);
    } else {
      out += bytes;
    }
    at += step.length;
  }
  out += '"';
  if (at < text.size()) out += "... (" + std::to_string(text.size()) + " bytes)";
  return out;
}

template <typename T>
std::string ScalarText(const T& value) {
  if constexpr (std::is_same_v<T, std::string>) {
    return Shown(value);
  } else if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_floating_point_v<T>) {
    return NumberString(value);
  } else {
    return std::to_string(value);
  }
}

std::string ValueText(const MetadataValue& value) {
  return std::visit(
      [](const auto& held) -> std::string {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<T, MetadataArray>) {
          return std::visit(
              [](const auto& elements) {
                using Element = typename std::decay_t<decltype(elements)>::value_type;
                std::string out = std::to_string(elements.size()) + " [";
                for (size_t i = 0; i < std::min(elements.size(), kShownElements); ++i) {
                  out += (i > 0 ? ", " : "") + ScalarText<Element>(elements[i]);
                }
                return out + (elements.size() > kShownElements ? ", ...]" : "]");
              },
              held);
        } else {
          return ScalarText<T>(held);
        }
      },
      value);
}

std::string Scaled(double number, double step, std::string_view units) {
  size_t unit = 0;
  while (number >= step && unit + 1 < units.size()) {
    number /= step;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f" : "%.1f", number);
  return units[unit] == ' ' ? text : std::string(text) + " " + units[unit];
}

std::string BytesText(uint64_t bytes) {
  const std::string text = Scaled(static_cast<double>(bytes), 1000, " kMGT");
  return text + (text.find(' ') == std::string::npos ? " B" : "B");
}

// What not all layers do.
void AddLayers(const ModelConfig& config, Table& facts) {
  int64_t num_unrotated = 0, num_windows = 0;
  int32_t window = 0;
  for (const LayerTraits& layer : config.layers) {
    num_unrotated += layer.rope < 0;
    num_windows += layer.window > 0;
    window = std::max(window, layer.window);
  }
  const std::string of = " of " + std::to_string(config.num_layers) + " layers";
  if (num_unrotated > 0) facts.Add({"without rotation", std::to_string(num_unrotated) + of});
  if (num_windows > 0) {
    facts.Add(
        {"window", std::to_string(window) + " positions in " + std::to_string(num_windows) + of});
  }
}

std::string FactsText(const ModelConfig& config, uint64_t num_parameters) {
  Table facts;
  const auto number = [](int64_t n) { return std::to_string(n); };
  facts.Add({"name", config.name});
  facts.Add({"architecture", config.architecture});
  facts.Add({"parameters", Scaled(static_cast<double>(num_parameters), 1000, " kMGT")});
  facts.Add({"layers", number(config.num_layers)});
  facts.Add({"width", number(config.width)});
  facts.Add({"heads", number(config.num_heads) + " (" + number(config.num_kv_heads) +
                          " key/value), " + number(config.head_size) + " values each"});
  facts.Add({"FFN width", number(config.ffn_width)});
  facts.Add({"vocabulary", number(config.vocab_size)});
  facts.Add({"context", number(config.context_length)});
  for (const RopeTable& rope : config.ropes) {
    const bool interleaved = rope.style == kernels::RopeStyle::kInterleaved;
    facts.Add({&rope == config.ropes.data() ? "rope" : "rope of windows",
               "base " + NumberString(rope.base) + ", " + number(rope.rotary_size) +
                   " values of a head, " + (interleaved ? "interleaved" : "half-split")});
  }
  AddLayers(config, facts);
  facts.Add({"norm epsilon", NumberString(config.norm_epsilon)});
  facts.Add({"Q/K/V biases", config.has_qkv_bias ? "yes" : "no"});
  facts.Add({"output head", config.tied_head ? "the token embedding" : "its own"});
  for (const std::string& note : config.notes) facts.Add({"note", note});
  return facts.Text();
}

std::string ChatTemplateText(const Tokenizer& tokenizer) {
  const std::string& name = tokenizer.first_template_name();
  if (!tokenizer.chat_template().empty()) {
    return tokenizer.tool_use_template().empty() ? "yes" : "yes, and another for tools";
  }
  return name.empty() ? "no" : "no, only by name, " + Quoted(name) + " first";
}

std::string TokenizerText(const Inspection& inspection) {
  if (inspection.tokenizer == nullptr) return "  none\n";
  const Tokenizer& tokenizer = *inspection.tokenizer;
  const auto token = [&](const std::optional<TokenId>& id) {
    return id.has_value() ? std::to_string(*id) + " " + Shown(tokenizer.TokenBytes(*id)) : "none";
  };
  Table facts;
  facts.Add({"model", std::string(tokenizer.model())});
  if (!tokenizer.pre().empty()) facts.Add({"pre-tokenizer", std::string(tokenizer.pre())});
  facts.Add({"tokens", std::to_string(tokenizer.vocab_size())});
  facts.Add({"begins with", token(tokenizer.bos()) + (tokenizer.adds_bos() ? "" : ", not added")});
  std::string ends;
  for (const TokenId id : tokenizer.end_of_generation()) {
    ends += (ends.empty() ? "" : ", ") + token(id);
  }
  facts.Add({"generation ends at", ends.empty() ? "none" : ends});
  facts.Add({"chat template", ChatTemplateText(tokenizer)});
  return facts.Text();
}

std::string FormatText(const ModelFile& file) {
  if (file.format() == ModelFile::Format::kGguf) {
    return "GGUF version " + std::to_string(file.version()) + ", " + BytesText(file.file_bytes()) +
           ", alignment " + std::to_string(file.alignment());
  }
  const size_t count = file.FileNames().size();
  return "safetensors in " + std::to_string(count) + (count == 1 ? " file, " : " files, ") +
         BytesText(file.file_bytes());
}

std::string ListText(std::string_view title, const std::vector<std::string>& lines) {
  if (lines.empty()) return "";
  std::string out = "\n" + std::string(title) + " (" + std::to_string(lines.size()) + ")\n";
  for (const std::string& line : lines) out += "  " + line + "\n";
  return out;
}

}  // namespace

std::string InspectionText(const Inspection& inspection) {
  const ModelFile& file = *inspection.file;
  std::string out = file.path() + "\n  " + FormatText(file) + "\n";
  out += "\nModel\n";
  out += inspection.config.has_value() ? FactsText(*inspection.config, inspection.num_parameters)
                                       : "  refused, see the problems below\n";
  out += "\nTokenizer\n" + TokenizerText(inspection);

  Table metadata;
  for (const ModelFile::Entry& entry : file.entries()) {
    metadata.Add({entry.key, TypeName(entry.value), ValueText(entry.value)});
  }
  out += "\nMetadata (" + std::to_string(file.entries().size()) + " keys)\n" + metadata.Text();

  Table tensors;
  for (size_t i = 0; i < file.tensors().size(); ++i) {
    const FileTensor& tensor = file.tensors()[i];
    tensors.Add({tensor.name, DimsString(tensor.dims), std::string(kernels::Name(tensor.type)),
                 BytesText(tensor.bytes), inspection.roles.present[i].role});
  }
  out += "\nTensors (" + std::to_string(file.tensors().size()) + ")\n" + tensors.Text();
  out += ListText("Missing", inspection.roles.missing);
  out += ListText("Unused", inspection.roles.unused);
  out += ListText("Warnings", inspection.tokenizer_warnings);
  out += ListText("Problems", inspection.problems);
  if (inspection.problems.empty()) out += "\nNo problems: this file can be served.\n";
  return out;
}

}  // namespace sluice::engine
