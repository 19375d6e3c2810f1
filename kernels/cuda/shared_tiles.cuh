#pragma once

// Tiles of f16 values in shared memory: asynchronous copies into it, and loads of 8 x 8 matrices
// from it into the operands of mma_step (PTX ISA, cp.async and ldmatrix; compute capability 8.0).
// And who asks for bulk copies.

#include <cstdint>

namespace sluice::kernels::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ uint4 load_shared_quad(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}

// Requests 16 bytes, through L2 alone; zeros, and nothing is read, when they are not `present`.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(present ? 16 : 0)
               : "memory");
}
// Closes a group of the thread's requests.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending of the thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
// Brings a line to L2. Reads no value: it may come before wait_for_previous.
__device__ __forceinline__ void request_line(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// True for one lane of the warp, all of which are here (compute capability 9.0). The compiler knows
// it to be one: for a thread that it does not know to be alone it makes a loop about every copy.
__device__ __forceinline__ bool elect_lane() {
  uint32_t elected = 0;
  asm volatile(
      "{.reg .pred p;"
      "elect.sync _|p, 0xffffffff;"
      "@p mov.u32 %0, 1;}"
      : "+r"(elected));
  return elected != 0;
}

// Four matrices; lanes 8 m to 8 m + 7 give the addresses of the rows of matrix m, 16 bytes each.
// Lane 4 g + t receives the columns 2 t and 2 t + 1 of row g of each.
__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row_address)
               : "memory");
}
// The same transposed: lane 4 g + t receives the rows 2 t and 2 t + 1 of column g of each.
__device__ __forceinline__ void load_transposed(uint32_t (&m)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row_address)
               : "memory");
}
// Two of them, whose addresses lanes 0 to 15 give.
__device__ __forceinline__ void load_transposed(uint32_t (&m)[2], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(m[0]), "=r"(m[1])
               : "r"(row_address)
               : "memory");
}

}  // namespace sluice::kernels::cuda
