// Included by kernels_*.cpp inside one anonymous namespace per instruction set; see kernels.h.
//
// Sums run over kLanes partial sums, so that the compiler can vectorise them without reordering.

constexpr int64_t kLanes = 16;
constexpr int64_t kChunk = 512;      // elements summed in work precision before going to double
constexpr int64_t kTileBlocks = 64;  // Philox blocks drawn at a time
constexpr int64_t kTile = 4 * kTileBlocks;

template <typename W>
inline double lane_sum(const W* lanes) {
  double total = 0.0;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += double(lanes[lane]);
  return total;
}

// Adds up M terms of each of `count` elements; `terms_of(i, terms)` writes those of element i.
template <typename W, int M, typename Terms>
inline void sum_terms(int64_t count, double* totals, const Terms& terms_of) {
  for (int m = 0; m < M; ++m) totals[m] = 0.0;
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t end = start + kChunk < count ? start + kChunk : count;
    W lanes[M][kLanes] = {};
    const int64_t whole = start + (end - start) / kLanes * kLanes;
    for (int64_t i = start; i < whole; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        W terms[M];
        terms_of(i + lane, terms);
        for (int m = 0; m < M; ++m) lanes[m][lane] += terms[m];
      }
    }
    for (int64_t i = whole; i < end; ++i) {
      W terms[M];
      terms_of(i, terms);
      for (int m = 0; m < M; ++m) lanes[m][i - whole] += terms[m];
    }
    for (int m = 0; m < M; ++m) totals[m] += lane_sum(lanes[m]);
  }
}

template <typename W>
RowSummary<W> summarise(const W* scores, int64_t count) {
  W smallest = scores[0];
  W largest = scores[0];
  for (int64_t i = 1; i < count; ++i) {
    smallest = scores[i] < smallest ? scores[i] : smallest;
    largest = scores[i] > largest ? scores[i] : largest;
  }
  const W middle = smallest + (largest - smallest) * W(0.5);
  double sums[2];
  sum_terms<W, 2>(count, sums, [&](int64_t i, W* terms) {
    terms[0] = scores[i] - middle;
    terms[1] = terms[0] * terms[0];
  });
  const double mean = sums[0] / double(count);
  const double variance = sums[1] / double(count) - mean * mean;
  return {W(double(middle) + mean), W(variance > 0.0 ? variance : 0.0), smallest, largest};
}

template <typename W>
RowExcess<W> row_excess(const W* scores, int64_t count, Threshold<W> threshold, W inverse) {
  double sums[3];
  sum_terms<W, 3>(count, sums, [&](int64_t i, W* terms) {
    RowExcess<W> one = {};
    add_token(one, gate_logit(scores[i], threshold, inverse));
    terms[0] = one.above;
    terms[1] = one.signed_terms;
    terms[2] = one.slope;
  });
  return {W(sums[0]), W(sums[1]), W(sums[2])};
}

template <typename W>
void solve_row(const W* scores, int64_t count, W budget, W temperature, W* logits, W* gates) {
  const W inverse = W(1) / temperature;
  ThresholdSearch<W> search;
  search.begin(summarise(scores, count), budget, W(count), temperature);
  for (int i = 0; i < kMaxIterations && !search.done; ++i) {
    search.advance(row_excess(scores, count, search.current, inverse));
  }
  for (int64_t i = 0; i < count; ++i) {
    logits[i] = gate_logit(scores[i], search.current, inverse);
    gates[i] = gate_from_logit(logits[i]);
  }
}

template <typename W>
void score_gradient(const W* logits, const W* grad_gates, const W* grad_logits, int64_t count,
                    W temperature, W* grad_scores) {
  W nearest = W(INFINITY);
  for (int64_t i = 0; i < count; ++i) {
    const W size = magnitude(logits[i]);
    nearest = size < nearest ? size : nearest;
  }
  if (nearest == W(INFINITY)) {
    for (int64_t i = 0; i < count; ++i) grad_scores[i] = settled_gradient(logits[i]);
    return;
  }
  double sums[2];
  sum_terms<W, 2>(count, sums, [&](int64_t i, W* terms) {
    W h = grad_logits != nullptr ? grad_logits[i] : W(0);
    if (grad_gates != nullptr) h += weighted(gate_slope(logits[i]), grad_gates[i]);
    grad_scores[i] = h;
    terms[0] = h;
    terms[1] = threshold_weight(logits[i], nearest);
  });
  const W mean = W(sums[0] / sums[1]);
  const W inverse = W(1) / temperature;
  for (int64_t i = 0; i < count; ++i) {
    const W weight = threshold_weight(logits[i], nearest);
    grad_scores[i] = (grad_scores[i] - weight * mean) * inverse;
  }
}

struct BlockWords {
  uint32_t x0[kTileBlocks], x1[kTileBlocks], x2[kTileBlocks], x3[kTileBlocks];
};

// draw_words: the random words of `lanes` Philox blocks from `block` on; lanes is a multiple of
// kLanes.
#if defined(AUTOSELECT_AVX512)
// One counter per 64-bit lane: the widening product takes one instruction, which the compiler does
// not find by itself. What is left above bit 32 of a lane is never read.
struct WideCounters {
  __m512i c0, c1, c2, c3;
};

inline void philox_round(WideCounters& c, __m512i key_low, __m512i key_high) {
  constexpr int kXorOfThree = 0x96;
  const __m512i product0 = _mm512_mul_epu32(c.c0, _mm512_set1_epi64(0xD2511F53u));
  const __m512i product1 = _mm512_mul_epu32(c.c2, _mm512_set1_epi64(0xCD9E8D57u));
  c.c0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product1, 32), c.c1, key_low, kXorOfThree);
  c.c2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product0, 32), c.c3, key_high, kXorOfThree);
  c.c1 = product1;
  c.c3 = product0;
}

inline void store_low_halves(__m512i wide, uint32_t* out) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi64_epi32(wide));
}

inline void draw_words(PhiloxKey stream, TokenPlace place, uint32_t block, int64_t lanes,
                       BlockWords& words) {
  __m512i keys_low[10], keys_high[10];
  for (int round = 0; round < 10; ++round) {
    keys_low[round] = _mm512_set1_epi64(uint32_t(stream.low + uint32_t(round) * 0x9E3779B9u));
    keys_high[round] = _mm512_set1_epi64(uint32_t(stream.high + uint32_t(round) * 0xBB67AE85u));
  }
  const __m512i ramp = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i token = _mm512_set1_epi64(place.token);
  const __m512i sample_low = _mm512_set1_epi64(uint32_t(place.sample));
  const __m512i sample_high = _mm512_set1_epi64(uint32_t(uint64_t(place.sample) >> 32));
  constexpr int kAbreast = kLanes / 8;  // independent chains, so that their latencies overlap
  for (int64_t i = 0; i < lanes; i += kLanes) {
    WideCounters counters[kAbreast];
    for (int j = 0; j < kAbreast; ++j) {
      const __m512i first = _mm512_set1_epi64(int64_t(block) + i + 8 * j);
      counters[j] = {_mm512_add_epi64(first, ramp), token, sample_low, sample_high};
    }
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      for (int j = 0; j < kAbreast; ++j) {
        philox_round(counters[j], keys_low[round], keys_high[round]);
      }
    }
    for (int j = 0; j < kAbreast; ++j) {
      store_low_halves(counters[j].c0, words.x0 + i + 8 * j);
      store_low_halves(counters[j].c1, words.x1 + i + 8 * j);
      store_low_halves(counters[j].c2, words.x2 + i + 8 * j);
      store_low_halves(counters[j].c3, words.x3 + i + 8 * j);
    }
  }
}
#else
inline void draw_words(PhiloxKey stream, TokenPlace place, uint32_t block, int64_t lanes,
                       BlockWords& words) {
  for (int64_t i = 0; i < lanes; ++i) {
    const PhiloxWords four = noise_words(stream, block + uint32_t(i), place.token, place.sample);
    words.x0[i] = four.x0;
    words.x1[i] = four.x1;
    words.x2[i] = four.x2;
    words.x3[i] = four.x3;
  }
}
#endif

// Normals of noise channels 4 * block .. of one token; writes a multiple of 4 * kLanes of them.
inline void draw_normals(PhiloxKey stream, TokenPlace place, int64_t block, int64_t blocks,
                         float* normals) {
  const int64_t lanes = (blocks + kLanes - 1) / kLanes * kLanes;
  BlockWords words;
  draw_words(stream, place, uint32_t(block), lanes, words);
  for (int64_t i = 0; i < lanes; ++i) {
    float n0, n1, n2, n3;
    box_muller(words.x0[i], words.x1[i], n0, n1);
    box_muller(words.x2[i], words.x3[i], n2, n3);
    normals[4 * i] = n0;
    normals[4 * i + 1] = n1;
    normals[4 * i + 2] = n2;
    normals[4 * i + 3] = n3;
  }
}

#if defined(AUTOSELECT_AVX512)
constexpr int kVectorBytes = 64;
constexpr int kVectors = 4;  // per token in add_factor_block
#elif defined(AUTOSELECT_AVX2)
constexpr int kVectorBytes = 32;
constexpr int kVectors = 2;
#else
constexpr int kVectorBytes = 16;
constexpr int kVectors = 2;
#endif

template <typename W>
struct VectorOf {
  typedef W type __attribute__((vector_size(kVectorBytes), aligned(alignof(W)), may_alias));
};

// noise[t] += sum_j eta[t][j] * block[j] for kTokens tokens; the sums stay in registers, and each
// is added up in the order of j.
template <int kTokens, typename W>
inline void add_factor_block(const W* block, int64_t rank, const W* const (&eta)[kTokens],
                             W* const (&noise)[kTokens]) {
  using Vector = typename VectorOf<W>::type;
  constexpr int64_t kWidth = kVectorBytes / int(sizeof(W));
  for (int64_t start = 0; start < kFactorBlock; start += kVectors * kWidth) {
    Vector sums[kTokens][kVectors];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[t][v] = *reinterpret_cast<const Vector*>(noise[t] + start + v * kWidth);
      }
    }
    for (int64_t j = 0; j < rank; ++j) {
      const W* row = block + j * kFactorBlock + start;
      Vector directions[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        directions[v] = *reinterpret_cast<const Vector*>(row + v * kWidth);
      }
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        const W weight = eta[t][j];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[t][v] += weight * directions[v];
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        *reinterpret_cast<Vector*>(noise[t] + start + v * kWidth) = sums[t][v];
      }
    }
  }
}

// L eps of those tokens of a group that need it, tile by tile.
template <typename W>
class GroupNoise {
 public:
  explicit GroupNoise(const NoiseSource<W>& source) : source_(source) {}

  void add(int64_t token, TokenPlace place) {
    if (source_.factor != nullptr) draw_common_part(place, eta_[count_]);
    tokens_[count_] = token;
    places_[count_++] = place;
  }

  int64_t count() const { return count_; }
  int64_t token(int64_t i) const { return tokens_[i]; }
  const W* tile(int64_t i) const { return noise_[i]; }

  // Draws L eps of channels start .. start + size - 1; start is a multiple of kTile.
  void draw(int64_t start, int64_t size) {
    const W* std = source_.std + start;
    const int64_t whole = (size + kFactorBlock - 1) / kFactorBlock * kFactorBlock;
    for (int64_t i = 0; i < count_; ++i) {
      float normals[kTile];
      draw_normals(source_.stream, places_[i], start / 4, (size + 3) / 4, normals);
      W* noise = noise_[i];
      for (int64_t c = 0; c < size; ++c) noise[c] = std[c] * W(normals[c]);
      for (int64_t c = size; c < whole; ++c) noise[c] = W(0);
    }
    if (source_.factor == nullptr) return;
    for (int64_t first = 0; first < whole; first += kFactorBlock) add_common_part(start, first);
  }

 private:
  // eta is drawn from the channels that follow the token's own.
  void draw_common_part(TokenPlace place, W* eta) const {
    float normals[kTile];
    const int64_t first = source_.width / 4;
    const int64_t skip = source_.width % 4;
    draw_normals(source_.stream, place, first, (skip + source_.rank + 3) / 4, normals);
    for (int64_t j = 0; j < source_.rank; ++j) eta[j] = W(normals[skip + j]);
  }

  // Channels `first` .. of the tile that begins at channel `start`.
  void add_common_part(int64_t start, int64_t first) {
    const int64_t rank = source_.rank;
    const W* block = source_.factor + (start + first) * rank;
    int64_t i = 0;
    for (; i + 4 <= count_; i += 4) {
      const W* const eta[4] = {eta_[i], eta_[i + 1], eta_[i + 2], eta_[i + 3]};
      W* const noise[4] = {noise_[i] + first, noise_[i + 1] + first, noise_[i + 2] + first,
                           noise_[i + 3] + first};
      add_factor_block<4>(block, rank, eta, noise);
    }
    for (; i < count_; ++i) {
      const W* const eta[1] = {eta_[i]};
      W* const noise[1] = {noise_[i] + first};
      add_factor_block<1>(block, rank, eta, noise);
    }
  }

  const NoiseSource<W>& source_;
  int64_t count_ = 0;
  int64_t tokens_[kGroup];
  TokenPlace places_[kGroup];
  W eta_[kGroup][kLargestRank];
  W noise_[kGroup][kTile];
};

inline int64_t tile_size(int64_t start, int64_t width) {
  return width - start < kTile ? width - start : kTile;
}

template <typename T>
void gate_forward(const T* x, T* out, const NoiseSource<Work<T>>& source,
                  const TokenGroup<Work<T>>& group) {
  using W = Work<T>;
  const int64_t width = source.width;
  GroupNoise<W> noise_of_group(source);
  for (int64_t t = 0; t < group.count; ++t) {
    if (group.b[t] != W(0)) {
      noise_of_group.add(t, group.places[t]);
      continue;
    }
    const W a = group.a[t];
    const W rest = W(1) - a;
    for (int64_t c = t * width; c < (t + 1) * width; ++c) {
      from_work(a * to_work(x[c]) + rest * source.mean[c - t * width], out[c]);
    }
  }
  for (int64_t start = 0; start < width; start += kTile) {
    const int64_t size = tile_size(start, width);
    noise_of_group.draw(start, size);
    const W* mean = source.mean + start;
    for (int64_t i = 0; i < noise_of_group.count(); ++i) {
      const int64_t t = noise_of_group.token(i);
      const W* noise = noise_of_group.tile(i);
      const W a = group.a[t];
      const W b = group.b[t];
      const W rest = W(1) - a;
      const T* x_tile = x + t * width + start;
      T* out_tile = out + t * width + start;
      if (a == W(0)) {  // then the token does not count, even where it is infinite or NaN
        for (int64_t c = 0; c < size; ++c) from_work(mean[c] + b * noise[c], out_tile[c]);
        continue;
      }
      for (int64_t c = 0; c < size; ++c) {
        from_work(a * to_work(x_tile[c]) + rest * mean[c] + b * noise[c], out_tile[c]);
      }
    }
  }
}

// lanes[c mod kLanes] += terms[c]
template <typename W>
inline void add_to_lanes(const W* terms, int64_t size, W* lanes) {
  W sums[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane];
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t c = 0; c < whole; c += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += terms[c + lane];
  }
  for (int64_t c = whole; c < size; ++c) sums[c - whole] += terms[c];
  for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = sums[lane];
}

template <typename T>
void gate_backward(const T* grad, const T* x, T* grad_x, const NoiseSource<Work<T>>& source,
                   const TokenGroup<Work<T>>& group, Work<T> (*dots)[2]) {
  using W = Work<T>;
  const int64_t width = source.width;
  GroupNoise<W> noise_of_group(source);
  for (int64_t t = 0; t < group.count; ++t) {
    dots[t][0] = dots[t][1] = W(0);
    const W a = group.a[t];
    if (a * group.b[t] != W(0)) {
      noise_of_group.add(t, group.places[t]);
      continue;
    }
    if (grad_x == nullptr) continue;
    for (int64_t c = t * width; c < (t + 1) * width; ++c)
      from_work(weighted(a, to_work(grad[c])), grad_x[c]);
  }
  W signal_lanes[kGroup][kLanes] = {};
  W noise_lanes[kGroup][kLanes] = {};
  for (int64_t start = 0; start < width; start += kTile) {
    const int64_t size = tile_size(start, width);
    noise_of_group.draw(start, size);
    const W* mean = source.mean + start;
    for (int64_t i = 0; i < noise_of_group.count(); ++i) {
      const int64_t t = noise_of_group.token(i);
      const W* noise = noise_of_group.tile(i);
      const T* x_tile = x + t * width + start;
      const T* grad_tile = grad + t * width + start;
      W signal_terms[kTile], noise_terms[kTile];
      const auto terms_of = [&](int64_t c) {
        const W gradient = to_work(grad_tile[c]);
        signal_terms[c] = gradient * (to_work(x_tile[c]) - mean[c]);
        noise_terms[c] = gradient * noise[c];
        return gradient;
      };
      if (grad_x == nullptr) {
        for (int64_t c = 0; c < size; ++c) terms_of(c);
      } else {
        const W a = group.a[t];
        T* out_tile = grad_x + t * width + start;
        for (int64_t c = 0; c < size; ++c) from_work(a * terms_of(c), out_tile[c]);
      }
      add_to_lanes(signal_terms, size, signal_lanes[i]);
      add_to_lanes(noise_terms, size, noise_lanes[i]);
    }
  }
  for (int64_t i = 0; i < noise_of_group.count(); ++i) {
    dots[noise_of_group.token(i)][0] = W(lane_sum(signal_lanes[i]));
    dots[noise_of_group.token(i)][1] = W(lane_sum(noise_lanes[i]));
  }
}

template <typename T>
void mean_token(const T* x, const int64_t* listed, int64_t count, int64_t width, float* mean) {
  constexpr int64_t kTogether = 32;  // tokens summed before their sum is added: smaller errors
  for (int64_t c = 0; c < width; ++c) mean[c] = 0.0f;
  for (int64_t start = 0; start < width; start += kTile) {
    const int64_t size = tile_size(start, width);
    for (int64_t first = 0; first < count; first += kTogether) {
      const int64_t last = first + kTogether < count ? first + kTogether : count;
      float sums[kTile] = {};
      for (int64_t i = first; i < last; ++i) {
        const T* token = x + listed[i] * width + start;
        for (int64_t c = 0; c < size; ++c) sums[c] += float(to_work(token[c]));
      }
      for (int64_t c = 0; c < size; ++c) mean[start + c] += sums[c];
    }
  }
  const float total = count > 0 ? float(count) : 1.0f;
  for (int64_t c = 0; c < width; ++c) mean[c] /= total;
}

template <int64_t kSums>
struct Terms {
  float of[kSums];
};

// sums[r] = the sum of `terms(i).of[r]` over 4 kLanes partial sums: several chains of additions at
// once.
template <int64_t kSums, typename TermsOf>
inline void wide_sums(int64_t count, const TermsOf& terms, float* sums) {
  constexpr int64_t kWide = 4 * kLanes;
  float lanes[kSums][kWide] = {};
  const int64_t whole = count / kWide * kWide;
  for (int64_t i = 0; i < whole; i += kWide) {
    for (int64_t lane = 0; lane < kWide; ++lane) {
      const Terms<kSums> term = terms(i + lane);
      for (int64_t r = 0; r < kSums; ++r) lanes[r][lane] += term.of[r];
    }
  }
  for (int64_t i = whole; i < count; ++i) {
    const Terms<kSums> term = terms(i);
    for (int64_t r = 0; r < kSums; ++r) lanes[r][i - whole] += term.of[r];
  }
  for (int64_t r = 0; r < kSums; ++r) {
    for (int64_t half = kWide / 2; half >= kLanes; half /= 2) {
      for (int64_t lane = 0; lane < half; ++lane) lanes[r][lane] += lanes[r][lane + half];
    }
    sums[r] = float(lane_sum(lanes[r]));
  }
}

template <typename T>
float centred_square(const T* x, const float* mean, int64_t width) {
  float square;
  const auto terms = [&](int64_t c) {
    const float centred = float(to_work(x[c])) - mean[c];
    return Terms<1>{{centred * centred}};
  };
  wide_sums<1>(width, terms, &square);
  return square;
}

template <int64_t kCount, typename T>
void dots_of(const T* x, const float* mean, const float* directions, int64_t width, float* dots) {
  const auto terms = [&](int64_t c) {
    const float centred = float(to_work(x[c])) - mean[c];
    Terms<kCount> products;
    for (int64_t r = 0; r < kCount; ++r) products.of[r] = centred * directions[r * width + c];
    return products;
  };
  wide_sums<kCount>(width, terms, dots);
}

template <typename T>
void centred_dots(const T* x, const float* mean, const float* directions, int64_t count,
                  int64_t width, float* dots) {
  switch (count) {
    case 4:
      return dots_of<4>(x, mean, directions, width, dots);
    case 3:
      return dots_of<3>(x, mean, directions, width, dots);
    case 2:
      return dots_of<2>(x, mean, directions, width, dots);
    default:
      return dots_of<1>(x, mean, directions, width, dots);
  }
}

template <typename T>
void direction_of(const T* x, const float* mean, float length, int64_t width, float* direction) {
  for (int64_t c = 0; c < width; ++c) direction[c] = (float(to_work(x[c])) - mean[c]) / length;
}

template <typename W>
RowKernels<W> row_kernels_of() {
  return {solve_row<W>, score_gradient<W>};
}

template <typename T>
TokenKernels<T> token_kernels_of() {
  return {gate_forward<T>,   gate_backward<T>, mean_token<T>,
          centred_square<T>, centred_dots<T>,  direction_of<T>};
}

inline CpuKernels kernels_here(const char* instruction_set) {
  return {row_kernels_of<float>(),
          row_kernels_of<double>(),
          token_kernels_of<float>(),
          token_kernels_of<double>(),
          token_kernels_of<BFloat16>(),
          token_kernels_of<Half16>(),
          instruction_set};
}
