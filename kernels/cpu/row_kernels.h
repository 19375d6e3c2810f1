#pragma once

// What the linear ops do to single rows: norms, rotation, gate, cap, conversion. One order of
// operations a value, whatever the instruction set and the number of rows.

#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/softcap_kernels.h"
#include "kernels/cpu/vec16.h"

namespace sluice::kernels::cpu::SLUICE_ISA {

// The first `n` < 16 values, zeros after them.
inline F32x16 LoadPart(const float* p, int64_t n) {
  float lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return Load(lanes);
}
inline void StorePart(float* p, F32x16 a, int64_t n) {
  float lanes[16];
  Store(lanes, a);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// 1 / sqrt(total / n + epsilon).
inline float InverseRoot(float total, int64_t n, float epsilon) {
  const float mean = total / static_cast<float>(n);
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + epsilon)));
}

// Adds up over a row in four vectors of sixteen lanes, vector j of the row in sum j % 4, then in
// one tree. step(sum, i, n): the sum with the n <= 16 values from i on added.
template <typename Step>
inline float SumRow(int64_t n, const Step& step) {
  F32x16 sums[4] = {Zero(), Zero(), Zero(), Zero()};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; ++j) sums[j] = step(sums[j], i + 16 * j, 16);
  }
  for (int j = 0; i < n; ++j, i += 16) sums[j] = step(sums[j], i, n - i < 16 ? n - i : 16);
  return ReduceAdd(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
}

// The first `n` values, at most 16, zeros after them.
inline F32x16 LoadUpTo16(const float* p, int64_t n) { return n >= 16 ? Load(p) : LoadPart(p, n); }

// Root mean square layer normalisation (arXiv 1910.07467).
inline void RmsNorm(const float* x, const float* weight, float epsilon, int64_t n, float* out) {
  const float total = SumRow(n, [x](F32x16 sum, int64_t i, int64_t count) {
    const F32x16 v = LoadUpTo16(x + i, count);
    return Fma(v, v, sum);
  });
  const F32x16 inverse = Set1(InverseRoot(total, n, epsilon));
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    Store(out + i, Mul(Mul(Load(x + i), inverse), Load(weight + i)));
  }
  if (i < n) {
    const F32x16 v = Mul(Mul(LoadPart(x + i, n - i), inverse), LoadPart(weight + i, n - i));
    StorePart(out + i, v, n - i);
  }
}

// x - mean of the first `n` values, zeros after them.
inline F32x16 Centred(const float* x, float mean, int64_t n) {
  if (n >= 16) return Sub(Load(x), Set1(mean));
  float lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = x[i] - mean;
  return Load(lanes);
}

// Layer normalisation (arXiv 1607.06450): the mean in one pass, the variance in a second, so that
// a row far from zero keeps its digits.
inline void LayerNorm(const float* x, const float* weight, const float* bias, float epsilon,
                      int64_t n, float* out) {
  const float total = SumRow(
      n, [x](F32x16 sum, int64_t i, int64_t count) { return Add(sum, LoadUpTo16(x + i, count)); });
  const float mean = total / static_cast<float>(n);
  const float squares = SumRow(n, [x, mean](F32x16 sum, int64_t i, int64_t count) {
    const F32x16 v = Centred(x + i, mean, count);
    return Fma(v, v, sum);
  });
  const F32x16 inverse = Set1(InverseRoot(squares, n, epsilon));
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t count = n - i < 16 ? n - i : 16;
    const F32x16 scaled =
        Mul(Mul(Centred(x + i, mean, count), inverse), LoadUpTo16(weight + i, count));
    const F32x16 v = bias == nullptr ? scaled : Add(scaled, LoadUpTo16(bias + i, count));
    if (count == 16) {
      Store(out + i, v);
    } else {
      StorePart(out + i, v, count);
    }
  }
}

// Both activations are gate * sigmoid(z): z = gate for SiLU; z = 2 sqrt(2/pi) (gate + 0.044715
// gate^3) for GELU, because (1 + tanh(u)) / 2 = sigmoid(2u). With e = exp(-|z|) nothing overflows:
// sigmoid is 1 / (1 + e) for z >= 0 and e / (1 + e) below; z has the sign of gate, so max(gate, 0)
// and min(gate, 0) choose. Zero comes first in both, so that a NaN stays one.
inline F32x16 GateUp16(F32x16 gate, F32x16 up, bool gelu) {
  F32x16 z = gate;
  if (gelu) {
    const F32x16 cubic = Fma(Mul(Set1(0.044715f), Mul(gate, gate)), gate, gate);
    z = Mul(Set1(1.5957691216057308f), cubic);
  }
  const F32x16 e = ExpNonPositive(Sub(Zero(), Abs(z)));
  const F32x16 numerator = Fma(Min(Zero(), gate), e, Max(Zero(), gate));
  return Mul(Div(numerator, Add(Set1(1.0f), e)), up);
}

inline void GateUp(const float* gate, const float* up, int64_t n, bool gelu, float* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Store(out + i, GateUp16(Load(gate + i), Load(up + i), gelu));
  if (i < n) {
    const F32x16 v = GateUp16(LoadPart(gate + i, n - i), LoadPart(up + i, n - i), gelu);
    StorePart(out + i, v, n - i);
  }
}

// out = fn(x) for n values, sixteen at a time.
template <typename Fn>
inline void MapRow(const float* x, int64_t n, float* out, const Fn& fn) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Store(out + i, fn(Load(x + i)));
  if (i < n) StorePart(out + i, fn(LoadPart(x + i, n - i)), n - i);
}

inline void Activate(const float* x, int64_t n, bool gelu, float* out) {
  MapRow(x, n, out, [gelu](F32x16 v) { return GateUp16(v, Set1(1.0f), gelu); });
}

inline void ScaleRow(float factor, int64_t n, float* x) {
  MapRow(x, n, x, [factor](F32x16 v) { return Mul(v, Set1(factor)); });
}

inline void SoftcapRow(float softcap, int64_t n, float* x) {
  MapRow(x, n, x, [softcap](F32x16 v) { return Softcap16(v, Set1(softcap)); });
}

// Scalar code and vectors round alike: products, then one sum, never contracted.
inline void Rotate(const float* cosines, const float* sines, int64_t half, bool interleaved,
                   float* head) {
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = head[2 * i];
      const float b = head[2 * i + 1];
      head[2 * i] = a * cosines[i] - b * sines[i];
      head[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
    return;
  }
  int64_t i = 0;
  for (; i + 16 <= half; i += 16) {
    const F32x16 a = Load(head + i);
    const F32x16 b = Load(head + half + i);
    const F32x16 c = Load(cosines + i);
    const F32x16 s = Load(sines + i);
    Store(head + i, Sub(Mul(a, c), Mul(b, s)));
    Store(head + half + i, Add(Mul(b, c), Mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = head[i];
    const float b = head[half + i];
    head[i] = a * cosines[i] - b * sines[i];
    head[half + i] = b * cosines[i] + a * sines[i];
  }
}

inline void AddRow(const float* y, int64_t n, float* x) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Store(x + i, Add(Load(x + i), Load(y + i)));
  for (; i < n; ++i) x[i] += y[i];
}

inline void ToF16(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) StoreF16(out + i, Load(x + i));
  if (i < n) {
    uint16_t lanes[16];
    StoreF16(lanes, LoadPart(x + i, n - i));
    for (int64_t j = 0; i + j < n; ++j) out[i + j] = lanes[j];
  }
}

}  // namespace sluice::kernels::cpu::SLUICE_ISA
