#pragma once

// The arithmetic of paged attention over sixteen lanes, included by attention_avx2.cc and
// attention_avx512.cc.
//
// Every (query, head) sees one sequence of roundings, whatever else is computed beside it:
//   score   lane = position, one FMA chain over d ascending, times scale, then the cap
//   tile    64 keys, those outside the query's window left out; maximum m over the tile and what
//   came before in the split; when it grows, l
//           and o are multiplied by exp(m_old - m_new); p = exp(score - m)
//   l       sixteen lanes, lane = position mod 16, added ascending, reduced in one tree at the end
//   o       lane = d, one FMA chain over positions ascending
//   split   256 keys from fresh (m, l, o); splits merged ascending from the first that is seen
// Blocking (how many queries share a load, how many pages or columns are in registers) changes
// which chains run side by side, never a chain.
//
// Non-finite scores: `poison` adds 0 * score to l, which is NaN when a score is not finite and
// nothing otherwise, because the maximum and the clamp inside exp would hide it.

#include "kernels/cpu/activation_kernels.h"
#include "kernels/cpu/attention_item.h"
#include "kernels/cpu/softcap_kernels.h"
#include "kernels/cpu/vec16.h"

namespace sluice::kernels::cpu::SLUICE_ISA {

#ifdef __AVX512F__
inline constexpr int kMaxBlock = 4;  // queries that share loads
inline constexpr int kMaxCols = 4;   // vectors of o in registers
constexpr int PagesAtOnce(int) { return 4; }
#else
inline constexpr int kMaxBlock = 3;
inline constexpr int kMaxCols = 2;
constexpr int PagesAtOnce(int queries) { return queries == 1 ? 4 : queries == 2 ? 2 : 1; }
#endif

inline F32x16 LoadKv(const float* p) { return Load(p); }
inline F32x16 LoadKv(const uint16_t* p) { return LoadF16(p); }

// The first n < 16 values at p, zeros after them; reads nothing beyond.
template <typename T>
inline F32x16 LoadKvTail(const T* p, int64_t n) {
  T lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return LoadKv(lanes);
}

// All ones in the first n lanes.
inline I32x16 LaneMask(int64_t n) {
  alignas(64) static const int32_t kLanes[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                                 -1, -1, -1, -1, -1, 0,  0,  0,  0,  0,  0,
                                                 0,  0,  0,  0,  0,  0,  0,  0,  0,  0};
  return LoadI(kLanes + 16 - n);
}

// All ones in lanes [begin, end).
inline I32x16 LaneMask(int64_t begin, int64_t end) {
  return And(LaneMask(end < 16 ? end : 16), SubI32(Set1I32(-1), LaneMask(begin)));
}

// x where the mask is all ones, elsewhere `other`.
inline F32x16 Masked(F32x16 x, I32x16 mask, F32x16 other) {
  const I32x16 hidden = SubI32(Set1I32(-1), mask);
  return BitsToF32(Or(And(F32ToBits(x), mask), And(F32ToBits(other), hidden)));
}

// Maximum over the lanes. The order does not matter: a NaN shows through `poison`.
inline float FastReduceMax(F32x16 a) {
#ifdef __AVX512F__
  // The zero-masked form: GCC 12 warns about the undefined operand of the plain ones.
  const __m256 half = _mm256_max_ps(_mm512_maskz_extractf32x8_ps(0xff, a.v, 0),
                                    _mm512_maskz_extractf32x8_ps(0xff, a.v, 1));
#else
  const __m256 half = _mm256_max_ps(a.lo, a.hi);
#endif
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  m = _mm_max_ss(m, _mm_movehdup_ps(m));
  return _mm_cvtss_f32(m);
}

// K and V of a tile. While scores are made from K its V is fetched, and while V is added up the K
// of the next tile is: pages are too short and too far apart for the hardware to see them coming.
template <typename T>
struct TilePages {
  const T* k[kTilePages] = {};
  const T* v[kTilePages] = {};
  const T* next_k[kTilePages] = {};  // anything readable when there is no next tile
  int count = 0;
};

// Fetches the cache lines of `bytes` at p.
template <int kBytes>
inline void Prefetch(const void* p) {
  for (int i = 0; i < kBytes; i += 64) _mm_prefetch(static_cast<const char*>(p) + i, _MM_HINT_T0);
}

// The state of an item's queries in `work`.
struct State {
  float* scores;    // [queries, 64], then p
  float* l;         // [queries, 16]
  float* m;         // [queries]
  float* rescale;   // [queries] factor of o before this tile
  float* o;         // [queries, Dp]
  float* merged_m;  // [queries]
  float* merged_l;  // [queries]
  float* merged_o;  // [queries, Dp]
  float* k_tile;    // [64 * D] K of the tile in f32
  float* v_tile;
};

inline State Carve(const AttentionItem& item) {
  const int64_t n = item.num_tokens * item.num_heads;
  State s;
  s.scores = item.work;
  s.l = s.scores + n * kTileKeys;
  s.o = s.l + n * 16;
  s.merged_o = s.o + n * item.padded_head_size;
  s.k_tile = s.merged_o + n * item.padded_head_size;
  s.v_tile = s.k_tile + kTileKeys * item.head_size;
  s.m = s.v_tile + kTileKeys * item.head_size;
  s.rescale = s.m + n;
  s.merged_m = s.rescale + n;
  s.merged_l = s.merged_m + n;
  return s;
}

inline const float* Query(const AttentionItem& item, int64_t i) {
  return item.q + i / item.num_heads * item.token_stride + i % item.num_heads * item.head_size;
}

inline int64_t Position(const AttentionItem& item, int64_t i) {
  return item.first_position + i / item.num_heads;
}

// Keys [begin, end) of a tile that a query sees, at least one if Tile() was given the query.
struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
  bool first_tile = false;  // no key of the split lies before the tile
};

inline KeyRange VisibleKeys(const AttentionItem& item, int64_t i, int64_t tile_begin) {
  const int64_t position = Position(item, i);
  const int64_t first = FirstKey(position, item.window) - tile_begin;
  const int64_t end = position + 1 - tile_begin;
  return {first > 0 ? first : 0, end < kTileKeys ? end : kTileKeys,
          tile_begin % kSplitKeys == 0 || first >= 0};
}

// scores[i][16 page + lane] = scale * (q_i . K) for queries [first, first + kQueries) and pages
// [page, page + kPages).
template <int kQueries, int kPages, typename T>
inline void ScorePages(const AttentionItem& item, const TilePages<T>& pages, int64_t first,
                       int page, float* scores) {
  const float* q[kQueries];
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) q[i] = Query(item, first + i);
  F32x16 acc[kQueries][kPages];
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < kPages; ++p) acc[i][p] = Zero();
  }
  for (int64_t d = 0; d < item.head_size; ++d) {
    F32x16 k[kPages];
#pragma GCC unroll 4
    for (int p = 0; p < kPages; ++p) {
      k[p] = LoadKv(pages.k[page + p] + d * 16);
      if constexpr (sizeof(T) == 2) Prefetch<32>(pages.v[page + p] + d * 16);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      const F32x16 x = Set1(q[i][d]);
#pragma GCC unroll 4
      for (int p = 0; p < kPages; ++p) acc[i][p] = Fma(x, k[p], acc[i][p]);
    }
  }
  const F32x16 scale = Set1(item.scale);
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < kPages; ++p) {
      Store(scores + (first + i) * kTileKeys + (page + p) * 16, Mul(acc[i][p], scale));
    }
  }
}

// Scores of the pages that hold keys [begin, end).
template <int kQueries, typename T>
inline void ScoreTile(const AttentionItem& item, const TilePages<T>& pages, int64_t begin,
                      int64_t end, int64_t first, float* scores) {
  constexpr int kPages = PagesAtOnce(kQueries);
  const int num_pages = static_cast<int>((end + 15) / 16);
  int page = static_cast<int>(begin / 16);
  for (; page + kPages <= num_pages; page += kPages) {
    ScorePages<kQueries, kPages>(item, pages, first, page, scores);
  }
  for (; page < num_pages; ++page) ScorePages<kQueries, 1>(item, pages, first, page, scores);
}

inline void CapScores(float softcap, KeyRange keys, float* scores) {
  for (int64_t b = keys.begin / 16 * 16; b < keys.end; b += 16) {
    Store(scores + b, Softcap16(Load(scores + b), Set1(softcap)));
  }
}

// The maximum and the poison of a tile's scores so far.
struct Seen {
  F32x16 most;
  F32x16 poison;
};
inline Seen LookAt(Seen seen, const float* scores) {
  const F32x16 x = Load(scores);
  return {Max(seen.most, x), Fma(x, Zero(), seen.poison)};
}
inline Seen LookAtSome(Seen seen, const float* scores, I32x16 mask) {
  const F32x16 x = Load(scores);
  return {Max(seen.most, Masked(x, mask, Set1(-__builtin_inff()))),
          Fma(Masked(x, mask, Zero()), Zero(), seen.poison)};
}

// scores = p = exp(scores - top); returns p.
inline F32x16 Weigh(F32x16 top, float* scores) {
  const F32x16 p = ExpNonPositive(Sub(Load(scores), top));
  Store(scores, p);
  return p;
}

// Turns the scores of query i into p and updates its m, l and rescale. Vectors of which only some
// keys are seen, the first and the last at most, go through masks.
inline void SoftmaxTile(const State& s, int64_t i, KeyRange keys) {
  float* scores = s.scores + i * kTileKeys;
  float* begin = scores + keys.begin / 16 * 16;
  float* end = scores + (keys.end + 15) / 16 * 16;
  const bool head = keys.begin % 16 != 0;
  const bool tail = keys.end % 16 != 0 && !(head && begin + 16 == end);
  float* full_begin = head ? begin + 16 : begin;
  float* full_end = tail ? end - 16 : end;
  const I32x16 tail_mask = LaneMask(keys.end % 16);
  I32x16 head_mask = ZeroI();
  Seen seen = {Set1(-__builtin_inff()), Zero()};
  if (head) {
    head_mask = LaneMask(keys.begin % 16, keys.end - keys.begin / 16 * 16);
    seen = LookAtSome(seen, begin, head_mask);
  }
  for (const float* x = full_begin; x < full_end; x += 16) seen = LookAt(seen, x);
  if (tail) seen = LookAtSome(seen, full_end, tail_mask);
  const float tile_m = FastReduceMax(seen.most);
  const float m = keys.first_tile || tile_m > s.m[i] ? tile_m : s.m[i];
  F32x16 l = seen.poison;
  if (keys.first_tile) {
    s.rescale[i] = 0.0f;
  } else {
    l = Load(s.l + i * 16);
    float factor = 1.0f;
    if (m > s.m[i]) {
      float lanes[16];
      const F32x16 f = ExpNonPositive(Set1(s.m[i] - m));
      l = Mul(l, f);
      Store(lanes, f);
      factor = lanes[0];
    }
    s.rescale[i] = factor;
    l = Add(l, seen.poison);
  }
  s.m[i] = m;
  const F32x16 top = Set1(m);
  if (head) l = Add(l, Masked(Weigh(top, begin), head_mask, Zero()));
  for (float* x = full_begin; x < full_end; x += 16) l = Add(l, Weigh(top, x));
  if (tail) l = Add(l, Masked(Weigh(top, full_end), tail_mask, Zero()));
  Store(s.l + i * 16, l);
}

// o_i = o_i * rescale_i + sum over keys [begin, end) of p_i[key] V[key] for the kCols vectors of o
// from column `col`; `cols` < 16 when the vector is the short last one.
template <int kQueries, int kCols, bool kTail, typename T>
inline void AddValues(const AttentionItem& item, const State& s, const TilePages<T>& pages,
                      int64_t first, int64_t col, int64_t begin, int64_t end, bool rescale) {
  F32x16 acc[kQueries][kCols];
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
    const float* o = s.o + (first + i) * item.padded_head_size + col;
    // The first tile of a split starts from zero: what `o` holds then is the last split's.
    const bool fresh = rescale && s.rescale[first + i] == 0.0f;
    const F32x16 factor = Set1(rescale ? s.rescale[first + i] : 1.0f);
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) acc[i][c] = fresh ? Zero() : Mul(Load(o + c * 16), factor);
  }
  const float* p = s.scores + first * kTileKeys;
  for (int64_t key = begin; key < end; ++key) {
    const int64_t at = key % 16 * item.head_size + col;
    const T* row = pages.v[key / 16] + at;
    if constexpr (sizeof(T) == 2) Prefetch<kCols * 32>(pages.next_k[key / 16] + at);
    F32x16 v[kCols];
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      if constexpr (kTail) {
        v[c] = LoadKvTail(row, item.head_size - col);
      } else {
        v[c] = LoadKv(row + c * 16);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      const F32x16 x = Set1(p[i * kTileKeys + key]);
#pragma GCC unroll 4
      for (int c = 0; c < kCols; ++c) acc[i][c] = Fma(x, v[c], acc[i][c]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
    float* o = s.o + (first + i) * item.padded_head_size + col;
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) Store(o + c * 16, acc[i][c]);
  }
}

template <int kQueries, typename T>
inline void AddValuesAllCols(const AttentionItem& item, const State& s, const TilePages<T>& pages,
                             int64_t first, int64_t begin, int64_t end, bool rescale) {
  int64_t col = 0;
  for (; col + kMaxCols * 16 <= item.head_size; col += kMaxCols * 16) {
    AddValues<kQueries, kMaxCols, false>(item, s, pages, first, col, begin, end, rescale);
  }
  for (; col + 16 <= item.head_size; col += 16) {
    AddValues<kQueries, 1, false>(item, s, pages, first, col, begin, end, rescale);
  }
  if (col < item.head_size) {
    AddValues<kQueries, 1, true>(item, s, pages, first, col, begin, end, rescale);
  }
}

// One tile for kQueries queries: scores, softmax, values.
template <int kQueries, typename T>
inline void TileBlock(const AttentionItem& item, const State& s, const TilePages<T>& pages,
                      int64_t first, int64_t tile_begin) {
  // Both ends of what a query sees ascend with the token.
  KeyRange keys[kQueries];
  for (int i = 0; i < kQueries; ++i) keys[i] = VisibleKeys(item, first + i, tile_begin);
  const KeyRange front = keys[0];
  const KeyRange back = keys[kQueries - 1];
  ScoreTile<kQueries>(item, pages, front.begin, back.end, first, s.scores);
  for (int i = 0; i < kQueries; ++i) {
    if (item.softcap > 0.0f) CapScores(item.softcap, keys[i], s.scores + (first + i) * kTileKeys);
    SoftmaxTile(s, first + i, keys[i]);
  }
  // Keys before those that all see, the common ones together, then the rest of each: a chain only
  // ever meets its own keys, ascending.
  const bool any_common = back.begin < front.end;
  const int64_t common_begin = any_common ? back.begin : back.end;
  const int64_t common_end = any_common ? front.end : back.end;
  if (front.begin < common_begin) {
    for (int i = 0; i < kQueries; ++i) {
      if (keys[i].begin >= common_begin) continue;
      const int64_t end = keys[i].end < common_begin ? keys[i].end : common_begin;
      AddValuesAllCols<1>(item, s, pages, first + i, keys[i].begin, end, /*rescale=*/true);
      s.rescale[first + i] = 1.0f;
    }
  }
  if (!any_common) return;
  AddValuesAllCols<kQueries>(item, s, pages, first, common_begin, common_end, /*rescale=*/true);
  if (back.end == common_end) return;
  for (int i = 0; i < kQueries; ++i) {
    if (keys[i].end > common_end) {
      AddValuesAllCols<1>(item, s, pages, first + i, common_end, keys[i].end, /*rescale=*/false);
    }
  }
}

// One tile for queries [first, last).
template <typename T>
inline void Tile(const AttentionItem& item, const State& s, const TilePages<T>& pages,
                 int64_t first, int64_t last, int64_t tile_begin) {
  int64_t i = first;
  for (; i + kMaxBlock <= last; i += kMaxBlock) {
    TileBlock<kMaxBlock>(item, s, pages, i, tile_begin);
  }
  const int64_t rest = last - i;
  if (rest == 3) {
    TileBlock<3>(item, s, pages, i, tile_begin);
  } else if (rest == 2) {
    TileBlock<2>(item, s, pages, i, tile_begin);
  } else if (rest == 1) {
    TileBlock<1>(item, s, pages, i, tile_begin);
  }
}

// Index of the first query whose token has position >= `position`.
inline int64_t FirstQueryAt(const AttentionItem& item, int64_t position) {
  const int64_t token = position - item.first_position;
  return token > 0 ? token * item.num_heads : 0;
}

// How many queries see a key before `position` > 0: later ones have moved their windows past it.
inline int64_t QueriesThatSeeBefore(const AttentionItem& item, int64_t position) {
  const int64_t tokens = position + item.window - 1 - item.first_position;
  return (tokens < item.num_tokens ? tokens : item.num_tokens) * item.num_heads;
}

// Many queries share a tile: convert it to f32 once instead of once for each block of queries.
// Pages before `begin` are seen by none.
inline TilePages<float> Converted(const AttentionItem& item, const State& s,
                                  const TilePages<uint16_t>& pages, int begin) {
  const int64_t page_values = 16 * item.head_size;
  TilePages<float> converted;
  converted.count = pages.count;
  for (int p = begin; p < pages.count; ++p) {
    float* k = s.k_tile + p * page_values;
    float* v = s.v_tile + p * page_values;
    for (int64_t i = 0; i < page_values; i += 16) {
      Store(k + i, LoadF16(pages.k[p] + i));
      Store(v + i, LoadF16(pages.v[p] + i));
    }
    converted.k[p] = k;
    converted.v[p] = v;
  }
  return converted;
}

template <typename T>
inline TilePages<T> PagesOf(const AttentionItem& item, int64_t begin, int64_t end) {
  TilePages<T> pages;
  const int64_t keys = end - begin < kTileKeys ? end - begin : kTileKeys;
  pages.count = static_cast<int>((keys + 15) / 16);
  for (int p = 0; p < pages.count; ++p) {
    const int64_t offset = item.pages[begin / 16 + p] * item.page_bytes;
    pages.k[p] = reinterpret_cast<const T*>(item.k + offset);
    pages.v[p] = reinterpret_cast<const T*>(item.v + offset);
    pages.next_k[p] = pages.k[p];
    if (begin + kTileKeys + p * 16 < end) {
      const int64_t next = item.pages[(begin + kTileKeys) / 16 + p] * item.page_bytes;
      pages.next_k[p] = reinterpret_cast<const T*>(item.k + next);
    }
  }
  return pages;
}

// m, l (sixteen lanes) and o of every query that sees something of the split.
template <typename T>
inline void SplitPass(const AttentionItem& item, const State& s, int64_t split) {
  const int64_t split_begin = split * kSplitKeys;
  const int64_t end = item.first_position + item.num_tokens;  // keys of the last token
  const int64_t split_end = end < split_begin + kSplitKeys ? end : split_begin + kSplitKeys;
  const int64_t first_key = FirstKey(item.first_position, item.window);
  const int64_t first_tile = first_key / kTileKeys * kTileKeys;
  for (int64_t begin = first_tile > split_begin ? first_tile : split_begin; begin < split_end;
       begin += kTileKeys) {
    const int64_t first = FirstQueryAt(item, begin);
    const int64_t last = QueriesThatSeeBefore(item, begin + kTileKeys);
    // The item's end, not the split's: the next split's K may be fetched as well.
    const TilePages<T> pages = PagesOf<T>(item, begin, end);
    if constexpr (sizeof(T) == 2) {
      if (last - first > 2 * kMaxBlock) {
        const int64_t first_page = VisibleKeys(item, first, begin).begin / 16;
        Tile(item, s, Converted(item, s, pages, static_cast<int>(first_page)), first, last, begin);
        continue;
      }
    }
    Tile(item, s, pages, first, last, begin);
  }
}

// (M, L, O) and (m, l, o) -> (M, L, O), O and o [Dp].
inline void MergeInto(float* merged_m, float* merged_l, float* merged_o, float m, float l,
                      const float* o, int64_t padded_head_size) {
  const float most = m > *merged_m ? m : *merged_m;
  const F32x16 a = ExpNonPositive(Set1(*merged_m - most));
  const F32x16 b = ExpNonPositive(Set1(m - most));
  float lanes[16];
  Store(lanes, Fma(Set1(l), b, Mul(Set1(*merged_l), a)));
  *merged_m = most;
  *merged_l = lanes[0];
  for (int64_t d = 0; d < padded_head_size; d += 16) {
    Store(merged_o + d, Fma(Load(o + d), b, Mul(Load(merged_o + d), a)));
  }
}

inline void CopyVectors(const float* from, int64_t padded_head_size, float* to) {
  for (int64_t d = 0; d < padded_head_size; d += 16) Store(to + d, Load(from + d));
}

// out [D] = o / l.
inline void Divide(const float* o, float l, int64_t head_size, float* out) {
  const F32x16 divisor = Set1(l);
  int64_t d = 0;
  for (; d + 16 <= head_size; d += 16) Store(out + d, Div(Load(o + d), divisor));
  float lanes[16];
  if (d < head_size) Store(lanes, Div(Load(o + d), divisor));
  for (int64_t i = d; i < head_size; ++i) out[i] = lanes[i - d];
}

inline void RunSplit(const AttentionItem& item, const State& s, int64_t split) {
  if (item.type == DType::kF16) {
    SplitPass<uint16_t>(item, s, split);
  } else {
    SplitPass<float>(item, s, split);
  }
}

inline void Attend(const AttentionItem& item) {
  const State s = Carve(item);
  const int64_t n = item.num_tokens * item.num_heads;
  const int64_t dp = item.padded_head_size;
  const int64_t end = item.first_position + item.num_tokens;
  int64_t split = FirstKey(item.first_position, item.window) / kSplitKeys;
  for (; split * kSplitKeys < end; ++split) {
    RunSplit(item, s, split);
    const int64_t last = QueriesThatSeeBefore(item, (split + 1) * kSplitKeys);
    for (int64_t i = FirstQueryAt(item, split * kSplitKeys); i < last; ++i) {
      const float l = ReduceAdd(Load(s.l + i * 16));
      float* merged = s.merged_o + i * dp;
      if (split == FirstKey(Position(item, i), item.window) / kSplitKeys) {
        s.merged_m[i] = s.m[i];
        s.merged_l[i] = l;
        CopyVectors(s.o + i * dp, dp, merged);
      } else {
        MergeInto(s.merged_m + i, s.merged_l + i, merged, s.m[i], l, s.o + i * dp, dp);
      }
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    float* out =
        item.out + i / item.num_heads * item.token_stride + i % item.num_heads * item.head_size;
    Divide(s.merged_o + i * dp, s.merged_l[i], item.head_size, out);
  }
}

inline void AttendSplit(const AttentionItem& item, int64_t split, float* partials) {
  const State s = Carve(item);
  const int64_t dp = item.padded_head_size;
  RunSplit(item, s, split);
  const int64_t last = QueriesThatSeeBefore(item, (split + 1) * kSplitKeys);
  for (int64_t i = FirstQueryAt(item, split * kSplitKeys); i < last; ++i) {
    float* partial = partials + i * (kPartialHead + dp);
    partial[0] = s.m[i];
    partial[1] = ReduceAdd(Load(s.l + i * 16));
    CopyVectors(s.o + i * dp, dp, partial + kPartialHead);
  }
}

inline void Merge(const float* partials, int64_t num_splits, int64_t stride, int64_t head_size,
                  float* work, float* out) {
  const int64_t dp = (head_size + 15) / 16 * 16;
  float m = partials[0];
  float l = partials[1];
  CopyVectors(partials + kPartialHead, dp, work);
  for (int64_t split = 1; split < num_splits; ++split) {
    const float* partial = partials + split * stride;
    MergeInto(&m, &l, work, partial[0], partial[1], partial + kPartialHead, dp);
  }
  Divide(work, l, head_size, out);
}

}  // namespace sluice::kernels::cpu::SLUICE_ISA
