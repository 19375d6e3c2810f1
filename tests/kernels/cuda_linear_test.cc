// The products of the CUDA backend: against the definition in double, and every kernel against
// every other, bit by bit. Skipped where there is no device.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_paths.h"
#include "kernels/cuda/linear_row.h"
#include "kernels/cuda/rows.h"
#include "kernels/ops.h"
#include "tests/kernels/linear_fixture.h"

namespace sluice::kernels::cuda {
namespace {

constexpr LinearPath kPaths[] = {LinearPath::kSlices, LinearPath::kStream, LinearPath::kTiles128,
                                 LinearPath::kTiles256};

void Expect(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    Expect(cudaMalloc(reinterpret_cast<void**>(&values_), std::max<size_t>(1, size) * sizeof(T)));
    // What nobody writes must show.
    Expect(cudaMemset(values_, 0xff, std::max<size_t>(1, size) * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { Write(values); }
  ~DeviceArray() { cudaFree(values_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* get() const { return values_; }
  void Write(const std::vector<T>& values) {
    Expect(cudaMemcpy(values_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> Read(size_t size) const {
    std::vector<T> values(size);
    Expect(cudaMemcpy(values.data(), values_, size * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }
  std::vector<T> Read() const { return Read(size_); }

 private:
  size_t size_;
  T* values_ = nullptr;
};

std::vector<float> RandomRows(int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (float& value : values) value = normal(random);
  return values;
}

// Rows in f32 on the device, and room for their operands.
struct Rows {
  Rows(int64_t rows, int64_t width, uint32_t seed)
      : max_rows(rows),
        cols(static_cast<int32_t>(width)),
        host(RandomRows(rows, width, seed)),
        values(host),
        operands(static_cast<size_t>(OperandBytes(rows, width) / 16)),
        factors(static_cast<size_t>(rows)) {}

  NormRowsArgs Args(int num_tokens) const {
    NormRowsArgs args;
    args.source = values.get();
    args.num_rows = num_tokens;
    args.cols = cols;
    args.out = {operands.get(), factors.get(), (cols + kUnitCols - 1) / kUnitCols,
                OperandGroups(num_tokens)};
    return args;
  }
  OperandRows Make(int num_tokens) const {
    const NormRowsArgs args = Args(num_tokens);
    EXPECT_TRUE(LaunchNormRows(args, nullptr).ok());
    return args.out;
  }

  int64_t max_rows;
  int32_t cols;
  std::vector<float> host;
  DeviceArray<float> values;
  DeviceArray<uint4> operands;
  DeviceArray<float> factors;
};

struct Matrix {
  Matrix(DType type, int64_t rows, int64_t cols, bool with_bias, uint32_t seed)
      : stored(StoredMatrix::Random(type, rows, cols, with_bias, seed)),
        packed(stored.Pack(Backend::kCuda)),
        bias(stored.bias) {}

  LinearTask Task(float* out, int64_t stride) const {
    LinearTask task;
    task.weight =
        ViewOf(PackedLayout::Of(packed.type, packed.rows, packed.cols), packed.storage.bytes());
    task.bias = stored.bias.empty() ? nullptr : bias.get();
    task.out = out;
    task.out_stride = static_cast<int32_t>(stride);
    return task;
  }

  StoredMatrix stored;
  PackedWeight packed;
  DeviceArray<float> bias;
};

class CudaLinearTest : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    const auto facts = OpenDevice(0);
    if (!facts.ok()) GTEST_SKIP() << facts.status().message();
    const auto found = FindLinearDevice();
    ASSERT_TRUE(found.ok()) << found.status();
    device = *found;
  }
  bool Has(LinearPath path, int num_tokens) const {
    if (path == LinearPath::kSlices) return true;
    return device.has_wgmma && (path == LinearPath::kStream || num_tokens > 128);
  }

  // Waits, and says what a launch came to.
  static void Finish(const absl::Status& status) {
    ASSERT_TRUE(status.ok()) << status;
    Expect(cudaDeviceSynchronize());
  }

  LinearDevice device;
};

std::string NameOf(LinearPath path) {
  return path == LinearPath::kSlices     ? "slices"
         : path == LinearPath::kStream   ? "stream"
         : path == LinearPath::kTiles128 ? "tiles of 128"
                                         : "tiles of 256";
}

// The first difference in words, or nothing.
std::string Difference(const std::vector<float>& expected, const std::vector<float>& actual,
                       size_t width) {
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::memcmp(&expected[i], &actual[i], sizeof(float)) == 0) continue;
    size_t count = 0;
    for (size_t j = i; j < actual.size(); ++j) {
      count += std::memcmp(&expected[j], &actual[j], sizeof(float)) != 0;
    }
    return "token " + std::to_string(i / width) + " row " + std::to_string(i % width) + ": " +
           std::to_string(expected[i]) + " expected, " + std::to_string(actual[i]) + " came; " +
           std::to_string(count) + " of " + std::to_string(actual.size()) + " differ";
  }
  return "";
}

// Nothing was written to [begin, end).
bool Untouched(const DeviceArray<float>& array, size_t begin, size_t end) {
  const std::vector<float> values = array.Read(end);
  return std::all_of(values.begin() + static_cast<int64_t>(begin), values.end(), [](float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits == 0xffffffffu;
  });
}

// ---- against the definition

// Both operands rounded to f16 (a value far below its row's largest to a multiple of 2^-24 of it),
// of K-quants scales and minima too, and the tensor cores' sums cut off behind the largest term of
// each step.
void ExpectNear(const StoredMatrix& matrix, const Rows& rows, int num_tokens,
                const std::vector<float>& actual, const std::string& what) {
  constexpr double kHalf = 0x1p-11;
  const bool k_quants = Traits(matrix.type).block_values == 256;
  const double roundings = k_quants ? 3.0 : 2.0;
  const double most_steps = k_quants ? 33.0 : 1.0;  // a quant's, of a scale's error
  const auto cols = static_cast<size_t>(matrix.cols);
  const auto num_rows = static_cast<size_t>(matrix.rows);
  double worst = 0.0;
  std::string where;
  for (size_t t = 0; t < static_cast<size_t>(num_tokens); ++t) {
    const float* x = rows.host.data() + t * cols;
    double most = 0.0;
    for (size_t k = 0; k < cols; ++k) most = std::max<double>(most, std::abs(x[k]));
    for (size_t n = 0; n < num_rows; ++n) {
      double sum = matrix.bias.empty() ? 0.0 : matrix.bias[n];
      double bound = std::abs(sum) * 0x1p-23;
      double largest_weight = 0.0;
      for (size_t k = 0; k < cols; ++k) {
        const size_t at = n * cols + k;
        sum += static_cast<double>(matrix.values[at]) * x[k];
        const double term = static_cast<double>(matrix.magnitudes[at]) * std::abs(x[k]);
        bound += term * (roundings * kHalf * (1.0 + kHalf) + static_cast<double>(cols) * 0x1p-22) +
                 std::abs(matrix.values[at]) * most * 0x1p-24;
        largest_weight = std::max<double>(largest_weight, matrix.magnitudes[at]);
      }
      // Weights too small for normal f16.
      bound += static_cast<double>(cols) * most * std::min(most_steps * 0x1p-24, largest_weight);
      const double error = std::abs(sum - static_cast<double>(actual[t * num_rows + n]));
      if (!(error / bound <= worst)) {
        worst = error / bound;
        where = "token " + std::to_string(t) + " row " + std::to_string(n) + ": " +
                std::to_string(sum) + " expected, " + std::to_string(actual[t * num_rows + n]) +
                " came, bound " + std::to_string(bound);
      }
    }
  }
  EXPECT_LE(worst, 1.0) << what << ": " << where;
}

TEST_P(CudaLinearTest, KeepsWithinRoundingOfTheDefinition) {
  const DType type = GetParam();
  const DTypeTraits& traits = Traits(type);
  const int64_t block = traits.quantized ? traits.block_values : 1;
  uint32_t seed = 1;
  for (const int64_t rows : {1, 16, 37, 200}) {
    for (const int64_t cols : {70, 96, 512, 1000}) {
      const int64_t width = (cols + block - 1) / block * block;
      for (const int num_tokens : {1, 5, 130}) {
        if (num_tokens == 130 && rows > 37) continue;
        const Matrix matrix(type, rows, width, seed % 2 == 0, seed);
        const Rows tokens(num_tokens, width, ++seed);
        for (const LinearPath path : kPaths) {
          if (!Has(path, num_tokens)) continue;
          DeviceArray<float> out(static_cast<size_t>(num_tokens * rows));
          LinearArgs args;
          args.tasks[0] = matrix.Task(out.get(), rows);
          args.num_tasks = 1;
          args.input = tokens.Make(num_tokens);
          args.num_tokens = num_tokens;
          Finish(LaunchLinear(args, device, nullptr, path));
          ExpectNear(matrix.stored, tokens, num_tokens, out.Read(),
                     std::string(Name(type)) + " [" + std::to_string(rows) + ", " +
                         std::to_string(width) + "] " + NameOf(path));
        }
      }
    }
  }
}

// ---- against each other

struct Shape {
  int64_t rows;
  int64_t cols;
  int slices;
};
// Every number of slices, the last of them shorter, units of K-quants' blocks cut apart.
constexpr Shape kShapes[] = {{12300, 512, 1}, {6155, 768, 2}, {2600, 1536, 4}, {2571, 1792, 4},
                             {700, 2304, 8},  {333, 512, 8},  {2600, 576, 4},  {700, 576, 8}};
// The last two have three and five slices: fewer than their rows allow.
bool Fits(DType type, const Shape& shape) { return shape.cols % Traits(type).block_values == 0; }

TEST_P(CudaLinearTest, EveryKernelGivesTheSameBits) {
  const DType type = GetParam();
  constexpr int kMost = 2048;
  uint32_t seed = 100;
  for (const Shape& shape : kShapes) {
    if (!Fits(type, shape)) continue;
    const auto [rows, cols, slices] = shape;
    const std::string name =
        std::string(Name(type)) + " [" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
    const Matrix matrix(type, rows, cols, true, ++seed);
    const Rows tokens(kMost, cols, ++seed);
    DeviceArray<float> out(static_cast<size_t>(kMost * rows));
    LinearArgs args;
    args.tasks[0] = matrix.Task(out.get(), rows);
    args.num_tasks = 1;
    ASSERT_EQ(SlicesOf(args.tasks[0].weight.tiles), slices) << name;
    const auto run = [&](int num_tokens, LinearPath path) {
      args.input = tokens.Make(num_tokens);
      args.num_tokens = num_tokens;
      Finish(LaunchLinear(args, device, nullptr, path));
      return out.Read(static_cast<size_t>(num_tokens * rows));
    };
    const std::vector<float> expected = run(kMost, LinearPath::kSlices);
    ASSERT_TRUE(std::all_of(expected.begin(), expected.end(),
                            [](float value) { return std::isfinite(value); }));
    for (const int num_tokens : {1, 2, 3, 4, 8, 9, 17, 64, 100, 128, 256, 300, 2048}) {
      for (const LinearPath path : kPaths) {
        if (!Has(path, num_tokens) || (path == LinearPath::kStream && num_tokens > 300)) continue;
        const auto count = static_cast<size_t>(num_tokens * rows);
        const auto guarded = static_cast<size_t>(std::min(kMost, num_tokens + 64) * rows);
        Expect(cudaMemset(out.get(), 0xff, guarded * 4));
        ASSERT_EQ(Difference(expected, run(num_tokens, path), static_cast<size_t>(rows)), "")
            << name << " " << NameOf(path) << " of " << num_tokens
            << " tokens: " << Describe(ConfigureLinear(args, device, path));
        ASSERT_TRUE(Untouched(out, count, guarded)) << name << " " << NameOf(path);
      }
    }
    LinearRowArgs lone;
    lone.tasks[0] = args.tasks[0];
    lone.num_tasks = 1;
    lone.norm = tokens.Args(1);
    lone.units = lone.norm.out.units;
    Finish(LaunchLinearRow(lone, nullptr));
    ASSERT_EQ(Difference(expected, out.Read(static_cast<size_t>(rows)), static_cast<size_t>(rows)),
              "")
        << name << " linear_row";
  }
}

// Three tasks of different types, and of one type and different numbers of slices.
TEST_P(CudaLinearTest, ThreeTasksAddToWhatIsThere) {
  constexpr int64_t kCols = 1536;
  constexpr int64_t kStride = 2600 + 130 + 264;
  constexpr int kMost = 300;
  const Rows tokens(kMost, kCols, 14);
  const std::vector<float> before = RandomRows(kMost, kStride, 15);
  DeviceArray<float> out(before);
  for (const bool same : {false, true}) {
    const Matrix matrices[] = {{GetParam(), 2600, kCols, true, 11},
                               {same ? GetParam() : DType::kQ8_0, 130, kCols, false, 12},
                               {same ? GetParam() : DType::kF16, 264, kCols, true, 13}};
    LinearArgs args;
    int64_t at = 0;
    for (const Matrix& matrix : matrices) {
      args.tasks[args.num_tasks++] = matrix.Task(out.get() + at, kStride);
      at += matrix.stored.rows;
    }
    args.scale = 0.37f;
    args.add_to_out = true;
    const auto run = [&](int num_tokens, LinearPath path) {
      out.Write(before);
      args.input = tokens.Make(num_tokens);
      args.num_tokens = num_tokens;
      Finish(LaunchLinear(args, device, nullptr, path));
      return out.Read(static_cast<size_t>(num_tokens * kStride));
    };
    const std::vector<float> expected = run(kMost, LinearPath::kSlices);
    for (const int num_tokens : {1, 2, 7, 33, 64, 129, 300}) {
      for (const LinearPath path : kPaths) {
        if (!Has(path, num_tokens)) continue;
        ASSERT_EQ(Difference(expected, run(num_tokens, path), kStride), "")
            << NameOf(path) << " of " << num_tokens
            << " tokens: " << Describe(ConfigureLinear(args, device, path));
      }
    }
  }
}

// More items than pairs of multiprocessors, each so short that the next one's weights and operand
// rows come while it is written.
TEST_P(CudaLinearTest, BlocksGoFromItemToItem) {
  if (!device.has_wgmma) GTEST_SKIP() << "only 9.0 has tiles";
  constexpr int64_t kRows = 20000;
  constexpr int64_t kCols = 256;
  constexpr int kTokens = 300;
  const Matrix up(GetParam(), kRows, kCols, true, 31);
  const Matrix gate(GetParam(), kRows, kCols, false, 32);
  const Rows tokens(kTokens, kCols, 33);
  const std::vector<float> before = RandomRows(kTokens, kRows, 34);
  DeviceArray<float> out(before), unused(before.size());
  for (const bool gated : {false, true}) {
    LinearArgs args;
    args.tasks[0] = up.Task(out.get(), kRows);
    args.tasks[1] = gate.Task(unused.get(), kRows);
    args.num_tasks = gated ? 2 : 1;
    args.gated = gated;
    args.add_to_out = !gated;
    args.input = tokens.Make(kTokens);
    args.num_tokens = kTokens;
    const auto run = [&](LinearPath path) {
      out.Write(before);
      Finish(LaunchLinear(args, device, nullptr, path));
      return out.Read();
    };
    const std::vector<float> expected = run(LinearPath::kStream);
    for (const LinearPath path : {LinearPath::kTiles128, LinearPath::kTiles256}) {
      const LinearConfig config = ConfigureLinear(args, device, path);
      ASSERT_GT(config.grid_x * config.grid_y, config.blocks) << Describe(config);
      ASSERT_EQ(Difference(expected, run(path), kRows), "") << Describe(config);
    }
  }
}

// Whole rounds of pairs, and clusters for the items that are left.
TEST_P(CudaLinearTest, LastRoundsAreSpread) {
  if (!device.has_wgmma) GTEST_SKIP() << "only 9.0 has tiles";
  constexpr int64_t kCols = 3584;
  constexpr int64_t kStride = 3584 + 512 + 512;
  constexpr int kTokens = 2048;
  const Matrix matrices[] = {{GetParam(), 3584, kCols, true, 41},
                             {GetParam(), 512, kCols, false, 42},
                             {GetParam(), 512, kCols, true, 43}};
  const Rows tokens(kTokens, kCols, 44);
  const std::vector<float> before = RandomRows(kTokens, kStride, 45);
  DeviceArray<float> out(before);
  for (const int num_tasks : {1, 3}) {
    LinearArgs args;
    int64_t at = 0;
    for (const Matrix& matrix : matrices) {
      args.tasks[args.num_tasks++] = matrix.Task(out.get() + at, kStride);
      at += matrix.stored.rows;
    }
    args.num_tasks = num_tasks;
    args.scale = 0.37f;
    args.add_to_out = num_tasks == 1;
    // The last blocks of tokens are not whole: of 128 tokens 80, of 256 tokens 208.
    args.num_tokens = num_tasks == 1 ? kTokens - 48 : kTokens;
    args.input = tokens.Make(args.num_tokens);
    if (device.multiprocessors == 132 && GetParam() <= DType::kBF16) {
      const LinearConfig config = ConfigureLinear(args, device);
      ASSERT_EQ(TilesLaunches(args, config, device).size(), 2) << Describe(config);
    }
    const auto run = [&](std::optional<LinearPath> path) {
      out.Write(before);
      Finish(LaunchLinear(args, device, nullptr, path));
      return out.Read();
    };
    ASSERT_EQ(Difference(run(LinearPath::kSlices), run(std::nullopt), kStride), "") << num_tasks;
  }
}

TEST_P(CudaLinearTest, GatedProductsEqualSeparateOnes) {
  if (!device.has_wgmma) GTEST_SKIP() << "only 9.0 has gated products";
  constexpr int kMost = 340;  // the last rows are nobody's
  for (const Shape& shape : kShapes) {
    if (!Fits(GetParam(), shape)) continue;
    const auto [rows, cols, slices] = shape;
    const Matrix up(GetParam(), rows, cols, true, 21);
    const Matrix gate(GetParam(), rows, cols, false, 22);
    const Rows tokens(kMost, cols, 23);
    const auto size = static_cast<size_t>(kMost * rows);
    DeviceArray<float> ups(size), gates(size), separate(size), fused(size);
    DeviceArray<uint4> operands(static_cast<size_t>(OperandBytes(kMost, rows) / 16));
    DeviceArray<float> factors(kMost);
    for (const int num_tokens : {2, 9, 64, 100, 256, 300}) {
      for (const GateActivation activation : {GateActivation::kSilu, GateActivation::kGeluTanh}) {
        LinearArgs args;
        args.tasks[0] = up.Task(ups.get(), rows);
        args.tasks[1] = gate.Task(gates.get(), rows);
        args.num_tasks = 2;
        args.input = tokens.Make(num_tokens);
        args.num_tokens = num_tokens;
        Finish(LaunchLinear(args, device, nullptr, LinearPath::kSlices));
        const OperandRows rows_of = {operands.get(), factors.get(),
                                     static_cast<int32_t>((rows + kUnitCols - 1) / kUnitCols),
                                     OperandGroups(num_tokens)};
        Finish(LaunchGateRows({.gate = gates.get(),
                               .up = ups.get(),
                               .num_rows = num_tokens,
                               .cols = static_cast<int32_t>(rows),
                               .activation = activation,
                               .values = separate.get(),
                               .out = rows_of},
                              nullptr));
        const auto count = static_cast<size_t>(num_tokens * rows);
        const std::vector<float> expected = separate.Read(count);
        args.gated = true;
        args.activation = activation;
        args.tasks[0].out = fused.get();
        for (const LinearPath path : kPaths) {
          if (path == LinearPath::kSlices || !Has(path, num_tokens)) continue;
          Expect(cudaMemset(fused.get(), 0xff, size * 4));
          Finish(LaunchLinear(args, device, nullptr, path));
          ASSERT_EQ(Difference(expected, fused.Read(count), static_cast<size_t>(rows)), "")
              << NameOf(path) << " of " << num_tokens
              << " tokens: " << Describe(ConfigureLinear(args, device, path));
          ASSERT_TRUE(Untouched(fused, count, size)) << NameOf(path) << " of " << num_tokens;
        }
        // The operands that a kernel of rows makes of them.
        const auto kept = operands.Read();
        const auto kept_factors = factors.Read(static_cast<size_t>(num_tokens));
        Finish(LaunchNormRows({.source = fused.get(),
                               .num_rows = num_tokens,
                               .cols = static_cast<int32_t>(rows),
                               .out = rows_of},
                              nullptr));
        EXPECT_EQ(kept_factors, factors.Read(static_cast<size_t>(num_tokens)));
        const auto again = operands.Read();
        EXPECT_EQ(std::memcmp(kept.data(), again.data(), kept.size() * sizeof(uint4)), 0);
      }
    }
  }
}

// Operand rows whichever kernel makes them, with the norm and without: of one row a block or of
// two, in quads, in chunks, and the general way, which rows take that do not begin at sixteen
// bytes.
TEST(CudaRowsTest, EveryKernelMakesTheSameOperands) {
  if (const auto facts = OpenDevice(0); !facts.ok()) GTEST_SKIP() << facts.status().message();
  for (const int32_t cols : {4, 60, 100, 576, 896, 1028, 2050, 3584, 4096, 4100, 4864, 6152, 8200,
                             10248, 18944, 20488, 28672}) {
    const auto units = (cols + kUnitCols - 1) / kUnitCols;
    DeviceArray<float> weight(RandomRows(1, cols, 31));
    for (const int32_t num_rows : {1, 2, 7, 192, 193, 200}) {
      std::vector<float> values = RandomRows(num_rows, cols, 32 + static_cast<uint32_t>(num_rows));
      for (int32_t row = 0; row < num_rows; ++row) {  // each of another size
        for (int32_t k = 0; k < cols; ++k)
          values[row * cols + k] *= std::ldexp(1.0f, row % 40 - 20);
      }
      values[values.size() / 2] = 3e38f;
      DeviceArray<float> aligned(values);
      values.insert(values.begin(), 0.0f);
      DeviceArray<float> moved(values);
      const auto words = static_cast<size_t>(OperandBytes(num_rows, cols) / 16);
      for (const bool normed : {false, true}) {
        const auto make = [&](const float* source, std::vector<uint4>& operands,
                              std::vector<float>& factors) {
          DeviceArray<uint4> x(words);
          DeviceArray<float> scales(static_cast<size_t>(num_rows));
          NormRowsArgs args;
          args.source = source;
          args.num_rows = num_rows;
          args.cols = cols;
          if (normed) args.norm = {weight.get(), nullptr, 1e-5f, NormKind::kRms};
          args.out = {x.get(), scales.get(), units, OperandGroups(num_rows)};
          const absl::Status status = LaunchNormRows(args, nullptr);
          ASSERT_TRUE(status.ok()) << status;
          Expect(cudaDeviceSynchronize());
          operands = x.Read();
          factors = scales.Read();
        };
        std::vector<uint4> operands, general;
        std::vector<float> factors, general_factors;
        make(aligned.get(), operands, factors);
        make(moved.get() + 1, general, general_factors);
        const std::string name = std::to_string(num_rows) + " rows of " + std::to_string(cols) +
                                 (normed ? " columns, normed" : " columns");
        EXPECT_EQ(factors, general_factors) << name;
        ASSERT_EQ(operands.size(), general.size());
        EXPECT_EQ(std::memcmp(operands.data(), general.data(), words * sizeof(uint4)), 0) << name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaLinearTest, ::testing::ValuesIn(kAllTypes),
                         [](const auto& info) { return std::string(Name(info.param)); });

}  // namespace
}  // namespace sluice::kernels::cuda
