#pragma once

// Products of panels of 16 interleaved rows (kernels/cpu/pack.h has the layouts) with tiles of 1,
// 2, 4 or 8 tokens. Lane = row, so no sum ever crosses lanes, and a token's operations do not
// depend on the tile it is computed in: equal bits for any number of tokens. Weights are unpacked
// once a tile.
//
// Reads each weight of its panels once a tile and K quants a token, writes 16 floats a panel and
// token. bench/linear_bench on one core of an AVX-512 VNNI Xeon that others used too, a second of
// processor time; GB/s of weights from memory for one token, where plain reading gives 14.8, and
// GMAC/s of tiles of eight with weights in cache (tiles of sixteen are no faster):
//
//          Q8_0  Q4_0  Q4_1  Q5_0  Q5_1  IQ4_NL  Q4_K  Q5_K  Q6_K  Q3_K  Q2_K  F16   BF16
//   GB/s   15.3  13.7  14.8  12.8  14.1  13.4    14.1  13.9  14.1  12.3  10.5  15.5  15.3
//   GMAC/s  126   112   115   109   110   115     106   109   104   104    70    64    64

#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/panel_formats.h"
#include "kernels/cpu/vec16.h"

namespace sluice::kernels::cpu::SLUICE_ISA {

#ifdef __AVX512F__
inline constexpr int kMaxTile = 8;
#else
inline constexpr int kMaxTile = 4;  // sixteen registers hold no more accumulators
#endif

// A token alone waits for memory. One core of a Xeon reads Q4_1 panels at 10.4 GB/s
// with the hardware's prefetch alone, 14.2 with this distance, 13.0 with half of it and 10.3 with
// twice, where plain reading reaches 14.9 (gigabytes a second of processor time).
inline constexpr int kPrefetchBytes = 2048;

// Two neighbouring int16 of an activation in every lane.
inline I32x16 BroadcastPair(const int16_t* quants) {
  int32_t pair;
  __builtin_memcpy(&pair, quants, 4);
  return Set1I32(pair);
}

// One panel times kTokens tokens; the canonical product of the quantised types. Sub-blocks ascend
// in K, each with the exact integer sum of its products, isum, and one accumulator takes
//
//   acc = fma(float(isum), w_scale * a_scale, acc)
//   acc = fma(w_minimum, a_sum, acc)      where the type has a minimum
//
// in this order. w_scale and w_minimum are Format::Scales', rounded once each; a_scale and a_sum
// are the activation's. Where a sub-block is half a block of the activation, a_sum is a_scale *
// float(sum of its sixteen quants).
template <typename Format, int kTokens>
void QuantizedTile(const uint8_t* panel, const ActivationRows& input, int64_t first_token,
                   float* out, int64_t out_stride) {
  // Integer sums have no order: a lone token uses two chains to hide the latency of the dot.
  constexpr int kChains = kTokens == 1 ? 2 : 1;
  constexpr int kChunks = Format::kColumns / 32;
  constexpr int kChunkSubs = 16 / Format::kSubPairs;
  constexpr int kReadBytes = Format::kBlockBytes / kChunks;  // a chunk, its part of the head too
  const int64_t num_blocks = input.cols / 32;
  const int16_t* quants[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    quants[t] = input.quants + (first_token + t) * input.cols;
    // One register a token: GCC would otherwise keep a hundred offsets from one base on the stack.
    asm("" : "+r"(quants[t]));
  }
  const float* scales = input.scales + first_token * num_blocks;
  const float* sums = input.sums + first_token * num_blocks;
  F32x16 acc[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) acc[t] = Zero();
  for (int64_t block = 0; block < num_blocks; panel += Format::kBlockBytes) {
    ScalesOf<Format> w;
    if constexpr (kChunks > 1) Format::Scales(panel, w.scale, w.minimum);
    const uint8_t* words = panel + Format::kHeadBytes;
    for (int chunk = 0; chunk < kChunks; ++chunk, ++block, words += Format::kChunkBytes) {
      if constexpr (kTokens == 1) {
#pragma GCC unroll 16
        for (int line = 0; line < kReadBytes; line += 64) {
          _mm_prefetch(
              reinterpret_cast<const char*>(panel) + chunk * kReadBytes + kPrefetchBytes + line,
              _MM_HINT_T0);
        }
      }
      I32x16 dot[kTokens * kChains];
#pragma GCC unroll 8
      for (int t = 0; t < kTokens * kChains; ++t) dot[t] = ZeroI();
      const auto add_pair = [&](int pair, I32x16 weights) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          I32x16& chain = dot[t * kChains + pair % kChains];
          chain = DotI16(chain, weights, BroadcastPair(quants[t] + 2 * pair));
        }
        if (pair % Format::kSubPairs != Format::kSubPairs - 1) return;
        // The scales of a block of 32 are loaded only now, so that they take no register before.
        if constexpr (kChunks == 1) Format::Scales(panel, w.scale, w.minimum);
        const int sub = chunk * kChunkSubs + pair / Format::kSubPairs;
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          const F32x16 a_scale = Set1(scales[t * num_blocks + block]);
          I32x16 sum = dot[t * kChains];
          if constexpr (kChains == 2) sum = AddI32(sum, dot[t * kChains + 1]);
          acc[t] = Fma(ToF32(sum), Mul(w.scale[sub], a_scale), acc[t]);
          if constexpr (Format::kHasMinimum && kChunkSubs == 1) {
            acc[t] = Fma(w.minimum[sub], Set1(sums[t * num_blocks + block]), acc[t]);
          } else if constexpr (Format::kHasMinimum) {
            const I32x16 half = SumI16(quants[t] + pair / Format::kSubPairs * 16);
            acc[t] = Fma(w.minimum[sub], Mul(a_scale, ToF32(half)), acc[t]);
          }
        }
#pragma GCC unroll 8
        for (int t = 0; t < kTokens * kChains; ++t) dot[t] = ZeroI();
      };
      Format::ForPairs(words, add_pair);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) quants[t] += 32;
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) Store(out + t * out_stride, acc[t]);
}

struct FormatF32 {
  static constexpr int kColumnBytes = 64;
  static F32x16 Column(const uint8_t* p) { return Load(reinterpret_cast<const float*>(p)); }
};
struct FormatF16 {
  static constexpr int kColumnBytes = 32;
  static F32x16 Column(const uint8_t* p) { return LoadF16(reinterpret_cast<const uint16_t*>(p)); }
};
struct FormatBF16 {
  static constexpr int kColumnBytes = 32;
  static F32x16 Column(const uint8_t* p) { return LoadBF16(reinterpret_cast<const uint16_t*>(p)); }
};

// kPanels panels times kTokens tokens: one FMA chain a lane, ascending in K. The product of panels
// and tokens is the number of chains in flight, which hide the latency of the FMA.
template <typename Format, int kPanels, int kTokens>
void FloatTile(const uint8_t* panels, int64_t panel_bytes, const ActivationRows& input,
               int64_t first_token, float* out, int64_t out_stride) {
  const float* values = input.values + first_token * input.cols;
  F32x16 acc[kPanels * kTokens];
#pragma GCC unroll 8
  for (int i = 0; i < kPanels * kTokens; ++i) acc[i] = Zero();
  for (int64_t k = 0; k < input.cols; ++k) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const F32x16 column = Format::Column(panels + p * panel_bytes + k * Format::kColumnBytes);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        acc[p * kTokens + t] = Fma(column, Set1(values[t * input.cols + k]), acc[p * kTokens + t]);
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      Store(out + t * out_stride + 16 * p, acc[p * kTokens + t]);
    }
  }
}

// Splits the tokens into tiles of 8 (where the registers allow), 4, 2 and 1 and calls
// tile<kTokens>(first_token) for each.
template <typename Tile>
void ForTiles(int64_t num_tokens, const Tile& tile) {
  int64_t t = 0;
  if constexpr (kMaxTile >= 8) {
    for (; t + 8 <= num_tokens; t += 8) tile.template operator()<8>(t);
  }
  for (; t + 4 <= num_tokens; t += 4) tile.template operator()<4>(t);
  for (; t + 2 <= num_tokens; t += 2) tile.template operator()<2>(t);
  for (; t < num_tokens; ++t) tile.template operator()<1>(t);
}

template <typename Format>
void QuantizedProduct(const PanelProduct& args) {
  for (int64_t p = 0; p < args.num_panels; ++p) {
    const uint8_t* panel = reinterpret_cast<const uint8_t*>(args.panels) + p * args.panel_bytes;
    float* out = args.out + 16 * p;
    ForTiles(args.num_tokens, [&]<int kTokens>(int64_t t) {
      QuantizedTile<Format, kTokens>(panel, args.input, t, out + t * args.out_stride,
                                     args.out_stride);
    });
  }
}

template <typename Format>
void FloatProduct(const PanelProduct& args) {
  const uint8_t* panels = reinterpret_cast<const uint8_t*>(args.panels);
  int64_t p = 0;
  for (; p + 4 <= args.num_panels; p += 4) {
    const uint8_t* four = panels + p * args.panel_bytes;
    float* out = args.out + 16 * p;
    ForTiles(args.num_tokens, [&]<int kTokens>(int64_t t) {
      // Eight chains a tile, whatever its number of tokens.
      constexpr int kPanels = kTokens >= 8 ? 1 : kTokens >= 4 ? 2 : 4;
      for (int q = 0; q < 4; q += kPanels) {
        FloatTile<Format, kPanels, kTokens>(four + q * args.panel_bytes, args.panel_bytes,
                                            args.input, t, out + 16 * q + t * args.out_stride,
                                            args.out_stride);
      }
    });
  }
  for (; p < args.num_panels; ++p) {
    const uint8_t* panel = panels + p * args.panel_bytes;
    float* out = args.out + 16 * p;
    ForTiles(args.num_tokens, [&]<int kTokens>(int64_t t) {
      FloatTile<Format, 1, kTokens>(panel, args.panel_bytes, args.input, t,
                                    out + t * args.out_stride, args.out_stride);
    });
  }
}

inline void Product(const PanelProduct& args) {
  switch (args.type) {
    case DType::kF32:
      return FloatProduct<FormatF32>(args);
    case DType::kF16:
      return FloatProduct<FormatF16>(args);
    case DType::kBF16:
      return FloatProduct<FormatBF16>(args);
    case DType::kQ4_0:
      return QuantizedProduct<FormatQ4_0>(args);
    case DType::kQ4_1:
      return QuantizedProduct<FormatQ4_1>(args);
    case DType::kQ5_0:
      return QuantizedProduct<FormatQ5_0>(args);
    case DType::kQ5_1:
      return QuantizedProduct<FormatQ5_1>(args);
    case DType::kQ8_0:
      return QuantizedProduct<FormatQ8_0>(args);
    case DType::kQ2_K:
      return QuantizedProduct<FormatQ2_K>(args);
    case DType::kQ3_K:
      return QuantizedProduct<FormatQ3_K>(args);
    case DType::kQ4_K:
      return QuantizedProduct<FormatQ4_K>(args);
    case DType::kQ5_K:
      return QuantizedProduct<FormatQ5_K>(args);
    case DType::kQ6_K:
      return QuantizedProduct<FormatQ6_K>(args);
    case DType::kIQ4_NL:
      return QuantizedProduct<FormatIQ4_NL>(args);
  }
  __builtin_trap();  // there is no other type
}

}  // namespace sluice::kernels::cpu::SLUICE_ISA
