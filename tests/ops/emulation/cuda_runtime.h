// One thread block of a CUDA kernel as cooperative fibers: a warp runs until all of its fibers wait
// for the rest of the block, then another one goes on, from the first to the last and back. So a
// warp is as far ahead of the others as the barriers let it be, and a missing one shows in results.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "cuda_runtime_api.h"

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) int4 {
  int x, y, z, w;
};
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace emulation {

constexpr unsigned kWarpSize = 32;
constexpr size_t kStack = 64 * 1024;

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  unsigned index;
  bool started;
  bool finished;
  unsigned long shuffles;  // passed so far
  alignas(16) unsigned char exchanged[2][16];  // values of the last two shuffles
};

// Fibers that have to meet before any of them goes on.
struct Barrier {
  unsigned members;
  unsigned waiting;
  unsigned long round;
};

inline std::vector<Fiber>* block = nullptr;
inline Barrier block_barrier;
inline std::vector<Barrier> warp_barriers;
inline Fiber* running = nullptr;
inline jmp_buf scheduler;
inline unsigned long moves;  // barriers that fibers have passed
inline std::function<void()> body;
inline dim3 block_index, grid_size;
alignas(16) inline char dynamic_shared[64 * 1024];

inline void yield() {
  if (_setjmp(running->resume) == 0) _longjmp(scheduler, 1);
}

inline void meet(Barrier& barrier) {
  const unsigned long round = barrier.round;
  if (++barrier.waiting == barrier.members) {
    barrier.waiting = 0;
    ++barrier.round;
  }
  while (barrier.round == round) yield();
  ++moves;
}

template <typename T>
T shuffle(T value, unsigned source_lane) {
  Fiber& self = *running;
  const unsigned first = self.index / kWarpSize * kWarpSize;
  const unsigned long slot = self.shuffles++ % 2;
  std::memcpy(self.exchanged[slot], &value, sizeof value);
  meet(warp_barriers[self.index / kWarpSize]);
  T received = value;
  if (source_lane < kWarpSize) {
    std::memcpy(&received, (*block)[first + source_lane].exchanged[slot], sizeof received);
  }
  return received;
}

inline void enter() {
  body();
  running->finished = true;
  _longjmp(scheduler, 1);
}

inline void resume(Fiber& fiber) {
  running = &fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

inline void run_block(unsigned threads) {
  static std::vector<char> stacks(1024 * kStack);
  std::vector<Fiber> fibers(threads);
  block = &fibers;
  block_barrier = {threads, 0, 0};
  warp_barriers.assign(threads / kWarpSize, {kWarpSize, 0, 0});
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.index = i;
    fiber.started = fiber.finished = false;
    fiber.shuffles = 0;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks.data() + i * kStack;
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, enter, 0);
  }
  const auto run_warp = [&](unsigned first) {
    bool waits = false;
    for (unsigned long before = moves - 1; before != moves;) {
      before = moves;
      waits = false;
      for (unsigned i = first; i < first + kWarpSize; ++i) {
        if (!fibers[i].finished) resume(fibers[i]);
        waits |= !fibers[i].finished;
      }
    }
    return waits;
  };
  static bool backwards = false;
  for (bool waits = true; waits; backwards = !backwards) {
    const unsigned long before = moves;
    waits = false;
    for (unsigned i = 0; i < threads; i += kWarpSize) {
      waits |= run_warp(backwards ? threads - kWarpSize - i : i);
    }
    if (waits && before == moves) std::abort();  // for threads that never come
  }
}

// kernel<<<grid, threads, shared, stream>>>(arguments...)
template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, dim3 grid, unsigned threads, Arguments... arguments) {
  grid_size = grid;
  body = [=] { kernel(arguments...); };
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      block_index = dim3(x, y);
      // Garbage, so that a kernel that reads shared memory before writing it is found out.
      std::memset(dynamic_shared, 0xa5, sizeof dynamic_shared);
      run_block(threads);
    }
  }
}

struct ThreadIndex {
  struct {
    operator unsigned() const { return running->index; }
  } x;
};

}  // namespace emulation

inline emulation::ThreadIndex threadIdx;
#define blockIdx emulation::block_index
#define gridDim emulation::grid_size

inline void __syncthreads() { emulation::meet(emulation::block_barrier); }
inline void __syncwarp() {
  emulation::meet(emulation::warp_barriers[emulation::running->index / emulation::kWarpSize]);
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::shuffle(value, (emulation::running->index % 32) ^ unsigned(mask));
}

template <typename T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const int lane = int(emulation::running->index % 32) - delta;
  return emulation::shuffle(value, lane < 0 ? 32u : unsigned(lane));
}

inline void atomicAdd(unsigned* where, unsigned value) { *where += value; }
