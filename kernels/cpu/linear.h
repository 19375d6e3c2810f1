#pragma once

// What the linear ops of the CPU share: tiles of products cut into chunks for the workers.

#include <cstdint>

#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/workspace.h"
#include "kernels/ops.h"

namespace sluice::kernels::cpu {

const LinearKernels& KernelsFor(const Exec& exec);

// Rows of `activation` from `first_row` on.
ActivationRows RowsFrom(const Activation& activation, int64_t first_row);

// Panels [first_panel, first_panel + num_panels) of `linear` times num_tokens rows, without bias.
void ProductOfPanels(const LinearKernels& kernels, const Linear& linear, int64_t first_panel,
                     int64_t num_panels, const ActivationRows& input, int64_t num_tokens,
                     float* out, int64_t out_stride);

// Panels of one chunk, so that every worker gets several chunks and no chunk is so short that the
// shared counter is contended. panel_bytes: what one panel reads (of all its weights).
int64_t ChunkPanels(int64_t num_panels, int64_t panel_bytes, int num_workers);

}  // namespace sluice::kernels::cpu
