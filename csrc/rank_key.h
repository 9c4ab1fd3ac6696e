// Scores as unsigned integers of the same order, for radix selection on host and device.
#pragma once

#include "platform.h"

namespace autoselect {

template <typename W>
struct RankKeyOf;
template <>
struct RankKeyOf<float> {
  using type = uint32_t;
};
template <>
struct RankKeyOf<double> {
  using type = uint64_t;
};
template <typename W>
using RankKey = typename RankKeyOf<W>::type;

// Larger scores have larger keys and equal scores equal ones (0 and -0 too); the key is never 0,
// which stands for padded tokens, and 1 stands for NaN.
template <typename W>
AS_INLINE RankKey<W> rank_key(W score) {
  using Key = RankKey<W>;
  if (score != score) return Key(1);
  const W value = score + W(0);
  Key bits;
  memcpy(&bits, &value, sizeof bits);
  const Key sign = Key(1) << (8 * sizeof(Key) - 1);
  return (bits & sign) ? Key(~bits) : Key(bits | sign);
}

}  // namespace autoselect
