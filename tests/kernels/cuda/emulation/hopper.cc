// SPDX-License-Identifier: Apache-2.0
// Hopper's asynchronous instructions (kernels/cuda/hopper.cuh): barriers with transaction bytes,
// TMA, proxies, wgmma. A descriptor of wgmma means here what PTX ISA 9.0, 9.7.15.5.1, says that it
// means, whatever kernels want it to mean.
#include <algorithm>
#include <array>
#include <map>

#include "block.h"
#include "cuda.h"
#include "kernels/core/check.h"

namespace cuda_emulation {
namespace {

using annulus::kernels::concat;

constexpr size_t kWarpgroup = 128;
constexpr uint32_t kFirstAddress = 1024;  // of a launch's memory; before it lies the system's
constexpr uint32_t kNanBits = 0xffffffffu;

struct Mbarrier {
  int64_t count, pending;  // arrivals: of a phase, missing
  int64_t bytes = 0;       // expected and not there
  uint32_t parity = 0;     // of the phase that is under way
  bool visible = false;    // to the async proxy
  const Fiber* made_by;
};
struct NamedBarrier {
  int threads = 0, arrived = 0;
  int64_t passed = 0;
};
struct Load {
  CUtensorMap map;
  uint32_t to;
  int32_t column, row;
  uint64_t* barrier;
  uint32_t rounds;  // until it lands
};
// A product as all threads of a warpgroup have called it.
struct Joined {
  Product product;
  struct Caller {
    Fiber* fiber = nullptr;
    float* d = nullptr;
    const uint32_t* a = nullptr;
  };
  std::array<Caller, kWarpgroup> callers;
  size_t joined = 0;
};
struct Warpgroup {
  std::deque<Joined> products;  // not done
  int64_t done = 0;
  uint32_t rounds = 0;  // until the next may run
};

struct Hopper {
  std::map<const void*, Mbarrier> barriers;
  std::array<NamedBarrier, 16> named;
  std::vector<Load> loads;
  std::array<Warpgroup, 8> warpgroups;
  int64_t free_registers = 0;    // given and not taken
  std::vector<uint32_t> writer;  // of a 16-byte piece of memory, where not fenced: thread + 1
};
thread_local Hopper hopper;

char* memory_at(uint32_t address, size_t bytes) {
  ANNULUS_CHECK(address >= kFirstAddress && address - kFirstAddress + bytes <= block.shared_bytes,
                bytes, " bytes at ", address, " are not of this block's shared memory");
  return launch_memory() + (address - kFirstAddress);
}

Mbarrier& known(const void* barrier) {
  const auto found = hopper.barriers.find(barrier);
  ANNULUS_CHECK(found != hopper.barriers.end(), "an mbarrier at +",
                static_cast<const char*>(barrier) - launch_memory(), " that nobody made");
  return found->second;
}

std::string describe(const void* at) {
  const Mbarrier& barrier = known(at);
  return concat("the mbarrier at +", static_cast<const char*>(at) - launch_memory(), ", phase ",
                barrier.parity, ", which misses ", barrier.pending, " of ", barrier.count,
                " arrivals and ", barrier.bytes, " bytes");
}

void end_phase_if_whole(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.parity ^= 1;
  barrier.pending = barrier.count;
}

void arrive(uint64_t* at, int64_t bytes) {
  Mbarrier& barrier = known(at);
  ANNULUS_CHECK(barrier.pending > 0, "thread ", block.current->number, " arrives too often at ",
                describe(at));
  barrier.bytes += bytes;
  --barrier.pending;
  ++block.progress;
  end_phase_if_whole(barrier);
}

// How a map lies in its 128 bytes.
struct Map {
  uint64_t magic, address, columns, rows, stride_bytes, box_columns, box_rows, swizzle;
};
constexpr uint64_t kMagic = 0x616e6e756c757321;
Map read(const CUtensorMap& map) {
  Map out;
  static_assert(sizeof(out) <= sizeof(map));
  std::memcpy(&out, &map, sizeof(out));
  ANNULUS_CHECK(out.magic == kMagic, "TMA by a tensor map that is none");
  return out;
}

// Bits 4 to 6 of an address are changed by bits 7 to 9: all of them, two or one.
uint32_t swizzled(uint32_t address, uint32_t row_bytes) {
  return address ^ (address >> 3 & (row_bytes - 1) & 0x70);
}

void carry_out(const Load& load) {
  const Map map = read(load.map);
  const auto row_bytes = static_cast<uint32_t>(2 * map.box_columns);
  for (uint32_t r = 0; r < map.box_rows; ++r) {
    for (uint32_t c = 0; c < map.box_columns; ++c) {
      const int64_t row = int64_t{load.row} + r, column = int64_t{load.column} + c;
      const bool there = row >= 0 && column >= 0 && row < static_cast<int64_t>(map.rows) &&
                         column < static_cast<int64_t>(map.columns);
      uint16_t element = 0;
      if (there) {
        std::memcpy(&element,
                    reinterpret_cast<const char*>(map.address) +
                        row * static_cast<int64_t>(map.stride_bytes) + 2 * column,
                    2);
      }
      const uint32_t at = load.to + r * row_bytes + 2 * c;
      std::memcpy(memory_at(map.swizzle != 0 ? swizzled(at, 128) : at, 2), &element, 2);
    }
  }
  Mbarrier& barrier = known(load.barrier);
  barrier.bytes -= static_cast<int64_t>(row_bytes * map.box_rows);
  end_phase_if_whole(barrier);
}

// -- wgmma

struct Matrix {
  uint32_t start, leading, stride, row_bytes;  // row_bytes: 16, 32, 64 or 128, the swizzle's
};
Matrix decode(uint64_t descriptor) {
  const auto field = [&](int bit) {
    return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4;
  };
  constexpr uint32_t kRowBytes[] = {16, 128, 64, 32};
  ANNULUS_CHECK((descriptor >> 49 & 7) == 0, "base offsets are not emulated");
  return {field(0), field(16), field(32), kRowBytes[descriptor >> 62]};
}
// Where element (i, k) of the matrix lies, i along M or N.
uint32_t address_of(const Matrix& m, bool mn_major, uint32_t i, uint32_t k) {
  uint32_t at = m.start;
  if (mn_major) {
    const uint32_t across = m.row_bytes / 2;  // elements of a row
    const bool plain = m.row_bytes == 16;     // then the two distances have each other's meaning
    at += i % across * 2 + i / across * (plain ? m.stride : m.leading);
    at += k % 8 * m.row_bytes + k / 8 * (plain ? m.leading : m.stride);
  } else {
    at += i % 8 * m.row_bytes + i / 8 * m.stride;
    at += m.row_bytes == 16 ? k % 8 * 2 + k / 8 * m.leading : k * 2;
  }
  return swizzled(at, m.row_bytes);
}
float as_float(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}
float element(const Matrix& m, bool mn_major, uint32_t i, uint32_t k) {
  const uint32_t at = address_of(m, mn_major, i, k);
  uint16_t bits;
  std::memcpy(&bits, memory_at(at, 2), 2);
  const bool fenced = hopper.writer[(at - kFirstAddress) / 16] == 0;
  return as_float(fenced ? bits : uint16_t{0xffff});
}

Accumulators& accumulators_of(Fiber* fiber, const float* registers) {
  const auto found = std::find_if(fiber->accumulators.begin(), fiber->accumulators.end(),
                                  [&](const auto& held) { return held.registers == registers; });
  ANNULUS_CHECK(found != fiber->accumulators.end(), "accumulators of nobody");
  return *found;
}

// D and A: element e of a thread's lies in row 16 warp + lane / 4 + 8 (e / 2 mod 2), column 8 (e /
// 4) + 2 (lane mod 4) + e mod 2. A's elements are the 8 of its 16 columns.
uint32_t row_of(size_t thread, size_t e) {
  return static_cast<uint32_t>(thread / kWarp * 16 + thread % kWarp / 4 + e / 2 % 2 * 8);
}
uint32_t column_of(size_t thread, size_t e) {
  return static_cast<uint32_t>(e / 4 * 8 + thread % 4 * 2 + e % 2);
}

void carry_out(const Joined& joined) {
  const Product& product = joined.product;
  const auto n = static_cast<uint32_t>(product.n);
  std::array<std::array<float, 16>, 64> a;
  if (product.a == nullptr) {
    const Matrix matrix = decode(product.a_matrix);
    for (uint32_t i = 0; i < 64; ++i)
      for (uint32_t k = 0; k < 16; ++k) a[i][k] = element(matrix, false, i, k);
  } else {
    for (size_t t = 0; t < kWarpgroup; ++t)
      for (size_t e = 0; e < 8; ++e) {
        const uint32_t pair = joined.callers[t].a[e / 2];
        a[row_of(t, e)][column_of(t, e)] = as_float(static_cast<uint16_t>(pair >> 16 * (e % 2)));
      }
  }
  const Matrix matrix = decode(product.b_matrix);
  std::array<std::array<float, 256>, 16> b;
  for (uint32_t k = 0; k < 16; ++k)
    for (uint32_t j = 0; j < n; ++j) b[k][j] = element(matrix, product.b_is_mn_major, j, k);
  std::array<std::array<float, 256>, 64> sums = {};
  for (size_t i = 0; i < 64; ++i)
    for (size_t k = 0; k < 16; ++k)
      for (size_t j = 0; j < n; ++j) sums[i][j] += a[i][k] * b[k][j];
  for (size_t t = 0; t < kWarpgroup; ++t) {
    float* const d = accumulators_of(joined.callers[t].fiber, joined.callers[t].d).values.data();
    for (size_t e = 0; e < n / 2; ++e) {
      const float sum = sums[row_of(t, e)][column_of(t, e)];
      d[e] = product.accumulate ? d[e] + sum : sum;
    }
  }
}

bool is_poison(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits == kNanBits;
}

Warpgroup& warpgroup_of(const Fiber* fiber) {
  return hopper.warpgroups[fiber->number / kWarpgroup];
}

}  // namespace

void begin_hopper() {
  hopper = {};
  hopper.writer.assign(block.shared_bytes / 16 + 1, 0);
}

void end_hopper() {
  ANNULUS_CHECK(hopper.loads.empty(), "a block ends before its TMA");
  for (size_t id = 0; id < hopper.named.size(); ++id) {
    ANNULUS_CHECK(hopper.named[id].arrived == 0, hopper.named[id].arrived,
                  " arrivals are left over at barrier ", id);
  }
}

void end_hopper_thread() {
  Fiber* const self = block.current;
  ANNULUS_CHECK(self->accumulators.empty(), "a thread ends before its products");
  self->written.clear();
  self->maps.clear();
  self->groups.clear();
  self->products = 0;
  self->registers_fenced = false;
}

void note_written(const void* shared, size_t bytes) {
  Fiber* const self = block.current;
  const size_t first = static_cast<size_t>(static_cast<const char*>(shared) - launch_memory()) / 16;
  for (size_t piece = first; piece < first + (bytes + 15) / 16; ++piece) {
    if (piece >= hopper.writer.size()) return;  // not of the launch's memory
    hopper.writer[piece] = static_cast<uint32_t>(self->number + 1);
    self->written.push_back(piece);
  }
}

namespace {
// Rounds that something takes: mostly few, sometimes so many that others get far ahead.
uint32_t some_rounds() {
  return static_cast<uint32_t>(block.random() % (block.random() % 8 == 0 ? 100 : 3));
}
}  // namespace

bool advance_hopper(bool force) {
  bool any = false;
  auto& loads = hopper.loads;
  std::shuffle(loads.begin(), loads.end(), block.random);
  if (force && !loads.empty()) loads.front().rounds = 0;
  std::erase_if(loads, [&](Load& load) {
    if (load.rounds > 0) {
      --load.rounds;
      return false;
    }
    carry_out(load);
    return any = true;
  });
  for (Warpgroup& warpgroup : hopper.warpgroups) {
    auto& products = warpgroup.products;
    const auto ready = [&] { return !products.empty() && products.front().joined == kWarpgroup; };
    if (force && !any) warpgroup.rounds = 0;
    if (warpgroup.rounds > 0) --warpgroup.rounds;
    while (ready() && warpgroup.rounds == 0) {
      carry_out(products.front());
      products.pop_front();
      ++warpgroup.done;
      warpgroup.rounds = some_rounds();
      any = true;
    }
  }
  if (any) ++block.progress;
  return any;
}

uint32_t shared_address(const void* shared) {
  const auto at = static_cast<const char*>(shared) - launch_memory();
  ANNULUS_CHECK(at >= 0 && static_cast<size_t>(at) < block.shared_bytes,
                "not in the memory of the launch");
  return kFirstAddress + static_cast<uint32_t>(at);
}

void mbarrier_init(uint64_t* barrier, uint32_t count) {
  ANNULUS_CHECK(reinterpret_cast<uintptr_t>(barrier) % 8 == 0 && count > 0, "an mbarrier of ",
                count, " arrivals");
  Mbarrier made = {};
  made.count = made.pending = count;
  made.made_by = block.current;
  hopper.barriers[barrier] = made;
}
void mbarrier_arrive(uint64_t* barrier) {
  arrive(barrier, 0);
}
void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  arrive(barrier, bytes);
}
void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  Mbarrier& awaited = known(barrier);
  wait_until([&] { return awaited.parity != parity; }, describe, barrier);
}

namespace {
NamedBarrier& arrive_at(int id, int threads) {
  ANNULUS_CHECK(id > 0 && id < 16 && threads % static_cast<int>(kWarp) == 0 && threads > 0,
                "barrier ", id, " of ", threads, " threads");
  NamedBarrier& barrier = hopper.named[static_cast<size_t>(id)];
  if (barrier.arrived == 0) barrier.threads = threads;
  ANNULUS_CHECK(barrier.threads == threads, "barrier ", id, " is of ", barrier.threads,
                " threads to one and of ", threads, " to another");
  ++block.progress;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.passed;
  }
  return barrier;
}
std::string describe_named(const void* at) {
  const auto& barrier = *static_cast<const NamedBarrier*>(at);
  return concat("barrier ", &barrier - hopper.named.data(), ", where ", barrier.arrived, " of ",
                barrier.threads, " threads are");
}
}  // namespace
void named_barrier_sync(int id, int threads) {
  const int64_t before = hopper.named[static_cast<size_t>(id)].passed;
  const NamedBarrier& barrier = arrive_at(id, threads);
  wait_until([&] { return barrier.passed != before; }, describe_named, &barrier);
}
void named_barrier_arrive(int id, int threads) {
  arrive_at(id, threads);
}

void set_registers(int registers) {
  // ptxas uses as many as the launch allows.
  const auto at_launch = static_cast<int64_t>(std::min<size_t>(255, 65536 / block.size / 8 * 8));
  ANNULUS_CHECK(registers % 8 == 0 && registers >= 24 && registers <= 256, registers,
                " registers a thread");
  const int64_t more = registers - at_launch;
  wait_until([&] { return hopper.free_registers >= more; },
             [](const void*) { return std::string("registers that no thread gives"); });
  hopper.free_registers -= more;
}

void fence_proxy_async() {
  Fiber* const self = block.current;
  for (const size_t piece : self->written) {
    if (hopper.writer[piece] == self->number + 1) hopper.writer[piece] = 0;
  }
  self->written.clear();
  for (auto& [at, barrier] : hopper.barriers) barrier.visible |= barrier.made_by == self;
}

void fence_tensor_map(const CUtensorMap* map) {
  block.current->maps.push_back(map);
}

void tma_load(void* shared, const CUtensorMap* map, int32_t column, int32_t row,
              uint64_t* barrier) {
  const auto& fenced = block.current->maps;
  ANNULUS_CHECK(std::find(fenced.begin(), fenced.end(), map) != fenced.end(),
                "TMA by a tensor map before its fence");
  ANNULUS_CHECK(reinterpret_cast<uintptr_t>(map) % 64 == 0, "a tensor map is not aligned");
  ANNULUS_CHECK(known(barrier).visible, "TMA does not see its mbarrier: no proxy fence");
  const Map of = read(*map);
  const uint32_t to = shared_address(shared);
  const auto bytes = static_cast<size_t>(2 * of.box_columns * of.box_rows);
  ANNULUS_CHECK(to % 128 == 0, "a box at +", to - kFirstAddress, " is not aligned to 128 bytes");
  for (size_t piece = 0; piece < bytes / 16; ++piece) {
    ANNULUS_CHECK(hopper.writer[(to - kFirstAddress) / 16 + piece] == 0,
                  "TMA over what was written without a proxy fence");
  }
  std::memset(memory_at(to, bytes), 0xff, bytes);
  hopper.loads.push_back({*map, to, column, row, barrier, some_rounds()});
}

void wgmma(const Product& product) {
  Fiber* const self = block.current;
  Warpgroup& warpgroup = warpgroup_of(self);
  const int64_t number = self->products++;
  const auto at = static_cast<size_t>(number - warpgroup.done);
  if (warpgroup.products.size() <= at) warpgroup.products.resize(at + 1);
  Joined& joined = warpgroup.products[at];
  if (joined.joined == 0) joined.product = product;
  const Product& first = joined.product;
  ANNULUS_CHECK(
      first.n == product.n && first.a_matrix == product.a_matrix &&
          first.b_matrix == product.b_matrix && (first.a == nullptr) == (product.a == nullptr) &&
          first.b_is_mn_major == product.b_is_mn_major && first.accumulate == product.accumulate,
      "threads of a warpgroup call different products");
  joined.callers[self->number % kWarpgroup] = {self, product.d, product.a};
  ++joined.joined;
  ++block.progress;

  const auto size = static_cast<size_t>(product.n / 2);
  auto& all = self->accumulators;
  auto held = std::find_if(all.begin(), all.end(),
                           [&](const auto& one) { return one.registers == product.d; });
  if (held == all.end()) {
    ANNULUS_CHECK(self->registers_fenced, "wgmma without wgmma.fence after other accesses");
    all.push_back({product.d, std::vector<float>(product.d, product.d + size), number});
    std::memset(product.d, 0xff, 4 * size);
  } else {
    ANNULUS_CHECK(held->values.size() == size, "products of several shapes without a wait");
    held->last = number;
  }
}

void wgmma_fence() {
  block.current->registers_fenced = true;
}
void wgmma_commit() {
  block.current->groups.push_back(block.current->products);
}
void wgmma_wait(int later) {
  Fiber* const self = block.current;
  auto& groups = self->groups;
  int64_t until = 0;
  while (groups.size() > static_cast<size_t>(later)) {
    until = groups.front();
    groups.pop_front();
  }
  const Warpgroup& warpgroup = warpgroup_of(self);
  wait_until(
      [&] { return warpgroup.done >= until; },
      [](const void*) { return std::string("products that not all of its warpgroup call"); });
  std::erase_if(self->accumulators, [&](const Accumulators& held) {
    if (held.last >= until) return false;
    ANNULUS_CHECK(std::all_of(held.registers, held.registers + held.values.size(), is_poison),
                  "accumulators are written while wgmma has them");
    std::copy(held.values.begin(), held.values.end(), held.registers);
    self->registers_fenced = false;
    return true;
  });
}

}  // namespace cuda_emulation

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank,
                                void* address, const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* steps,
                                CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  constexpr cuuint64_t kMostSize = cuuint64_t{1} << 32, kMostStride = cuuint64_t{1} << 40;
  const auto at = reinterpret_cast<uintptr_t>(address);
  const bool is_128 = swizzle == CU_TENSOR_MAP_SWIZZLE_128B;
  bool good = reinterpret_cast<uintptr_t>(map) % 64 == 0 && rank == 2 && at % 16 == 0;
  for (int i = 0; i < 2; ++i) {
    good = good && sizes[i] > 0 && sizes[i] <= kMostSize && box[i] > 0 && box[i] <= 256;
    good = good && steps[i] == 1;
  }
  good = good && strides[0] % 16 == 0 && strides[0] < kMostStride && 2 * box[0] % 16 == 0 &&
         (!is_128 || 2 * box[0] <= 128);
  if (!good) return CUDA_ERROR_INVALID_VALUE;
  const cuda_emulation::Map made = {
      cuda_emulation::kMagic, at, sizes[0], sizes[1], strides[0], box[0], box[1], is_128};
  *map = {};
  std::memcpy(map, &made, sizeof(made));
  return CUDA_SUCCESS;
}
