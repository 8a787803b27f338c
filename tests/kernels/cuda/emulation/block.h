// SPDX-License-Identifier: Apache-2.0
// The block of threads that runs on the emulated GPU, for the files that emulate instructions.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"

namespace cuda_emulation {

inline constexpr size_t kStackBytes = size_t{64} << 10;
inline constexpr unsigned kWarp = 32;

struct Copy {
  void* shared;
  const void* global;
  bool valid;
};

// What wgmma holds of a thread's: accumulators, whose registers are full of NaN meanwhile.
struct Accumulators {
  float* registers;
  std::vector<float> values;
  int64_t last;  // product that adds to them
};

// Fibers begin by ucontext and go on by _setjmp, which makes no system call.
struct Fiber {
  ucontext_t context = {};
  jmp_buf at = {};
  bool begun = false;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
  dim3 index;
  size_t number = 0;  // in the block
  bool done = false;
  int64_t warp_waits = 0;       // meetings of its warp so far
  const void* given = nullptr;  // to the warp
  std::vector<Copy> open;       // of the batch that is not closed yet
  std::deque<std::vector<Copy>> batches;
  std::string (*waits_for)(const void*) = nullptr;  // said of `waits_at` where nothing goes on
  const void* waits_at = nullptr;

  // hopper.cc
  std::vector<size_t> written;    // 16-byte pieces of shared memory since its last proxy fence
  std::vector<const void*> maps;  // fenced
  int64_t products = 0;           // issued
  std::deque<int64_t> groups;     // products before the end of each group that is not waited for
  std::vector<Accumulators> accumulators;
  bool registers_fenced = false;
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from launch to launch
  size_t size = 0;
  Fiber* current = nullptr;
  jmp_buf scheduler = {};
  const std::function<void()>* thread = nullptr;
  std::mt19937 random{1};
  std::vector<char> shared;  // memory of the launch, and what aligns it
  size_t shared_bytes = 0;
  size_t at_barrier = 0, ended = 0;  // threads
  int64_t barriers = 0;              // that all have passed
  int64_t progress = 0;              // grows with everything that another thread may wait for
};
inline thread_local Block block;  // one launch runs at a time

// Another fiber's turn.
void pause_fiber();

// Comes back when `passed` holds; waits_for(waits_at) says what for.
template <class Passed>
void wait_until(const Passed& passed, std::string (*waits_for)(const void*),
                const void* waits_at = nullptr) {
  block.current->waits_for = waits_for;
  block.current->waits_at = waits_at;
  while (!passed()) pause_fiber();
  ++block.progress;
}

// hopper.cc: of every block. A thread has written these bytes of shared memory.
void begin_hopper();
void end_hopper();
void end_hopper_thread();
void note_written(const void* shared, size_t bytes);
// Some of what is under way happens; `force`: at least one thing. False: nothing is under way.
bool advance_hopper(bool force);

}  // namespace cuda_emulation
