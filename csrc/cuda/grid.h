// The sizes of grids.
#pragma once

#include <cstdint>

namespace autoselect {

constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;  // in the first direction of a grid
constexpr int64_t kMostBlocksBeside = 65535;             // in the second

// The blocks for `work` items, `each` of them per block. More blocks than a grid can have become a
// number that the launch refuses, instead of one that leaves work undone.
inline unsigned blocks_for(int64_t work, int64_t each = 1) {
  const int64_t blocks = (work + each - 1) / each;
  return unsigned(blocks <= kMostBlocks ? blocks : kMostBlocks + 1);
}

}  // namespace autoselect
