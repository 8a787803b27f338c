// SPDX-License-Identifier: Apache-2.0
#include "tests/kernels/cuda/scripted_cudnn.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/dtype.h"
#include "tests/kernels/cuda/cudnn_of_machine.h"

namespace annulus::kernels {
struct CudnnContext {
  cudaStream_t stream = nullptr;
};
}  // namespace annulus::kernels

namespace annulus::testing {
namespace {

using namespace kernels;

constexpr int64_t kWorkspace = 4096;
constexpr int kRefused = 3000;  // CUDNN_STATUS_NOT_SUPPORTED

struct Descriptor;

struct TensorOf {
  int64_t id = 0;
  int type = 0;
  std::array<int64_t, 4> dims = {}, strides = {};
  bool between = false, by_value = false;
};

// What is written to a tensor, x, b and t being what is read.
struct Operation {
  int kind = 0, mode = 0;  // of its descriptors' types and modes
  int64_t axis = -1;
  TensorOf x, b, t, to;
  bool has_b = false, has_t = false;
};
using Program = std::vector<Operation>;

struct Descriptor {
  int type = 0;
  bool final = false;
  std::map<int, std::vector<std::byte>> attributes;
  std::shared_ptr<const Program> program;  // of a graph, an engine, a plan
  int engine = -1;                         // of an engine, a plan

  template <class T>
  std::vector<T> all(int name) const {
    const auto found = attributes.find(name);
    ANNULUS_CHECK(found != attributes.end(), "descriptor ", type, " lacks attribute ", name);
    std::vector<T> out(found->second.size() / sizeof(T));
    std::memcpy(out.data(), found->second.data(), found->second.size());
    return out;
  }
  template <class T>
  T one(int name) const {
    const std::vector<T> values = all<T>(name);
    ANNULUS_CHECK(values.size() == 1, values.size(), " values of attribute ", name);
    return values[0];
  }
  const Descriptor& part(int name, int of_type) const {
    const auto* const out = static_cast<const Descriptor*>(one<CudnnDescriptor>(name));
    ANNULUS_CHECK(out->type == of_type && out->final, "attribute ", name, " is a ", out->type);
    return *out;
  }
};

Descriptor& as(CudnnDescriptor descriptor) {
  return *static_cast<Descriptor*>(descriptor);
}

size_t size_of(int type) {
  switch (type) {
    case kCudnnOfHandle:
    case kCudnnOfPointer:
    case kCudnnOfInt64:
    case kCudnnOfDescriptor: return 8;
    case kCudnnOfBool:
    case kCudnnOfChar: return 1;
    default: return 4;
  }
}

TensorOf tensor_of(const Descriptor& d) {
  TensorOf out = {
      d.one<int64_t>(kCudnnTensorId),        d.one<int>(kCudnnTensorType),         {}, {},
      d.one<char>(kCudnnTensorVirtual) != 0, d.one<char>(kCudnnTensorByValue) != 0};
  const auto dims = d.all<int64_t>(kCudnnTensorDims), strides = d.all<int64_t>(kCudnnTensorStrides);
  ANNULUS_CHECK(dims.size() == 4 && strides.size() == 4 && dims[0] == 1, dims.size(),
                " dimensions");
  std::copy(dims.begin(), dims.end(), out.dims.begin());
  std::copy(strides.begin(), strides.end(), out.strides.begin());
  return out;
}

Operation operation_of(const Descriptor& d) {
  Operation out;
  out.kind = d.type;
  const auto tensor = [&](int name) { return tensor_of(d.part(name, kCudnnTensor)); };
  switch (d.type) {
    case kCudnnPointwiseOp: {
      const Descriptor& kind = d.part(kCudnnOpPointwise, kCudnnPointwise);
      out.mode = kind.one<int>(kCudnnPointwiseMode);
      if (out.mode == kCudnnIndex) out.axis = kind.one<int64_t>(kCudnnPointwiseAxis);
      out.x = tensor(kCudnnOpPointwiseX);
      out.to = tensor(kCudnnOpPointwiseY);
      out.has_b = d.attributes.contains(kCudnnOpPointwiseB);
      out.has_t = d.attributes.contains(kCudnnOpPointwiseT);
      if (out.has_b) out.b = tensor(kCudnnOpPointwiseB);
      if (out.has_t) out.t = tensor(kCudnnOpPointwiseT);
      return out;
    }
    case kCudnnReductionOp:
      out.mode = d.part(kCudnnOpReduction, kCudnnReduction).one<int>(kCudnnReductionOperator);
      out.x = tensor(kCudnnOpReductionX);
      out.to = tensor(kCudnnOpReductionY);
      return out;
    default:
      ANNULUS_CHECK(d.type == kCudnnMatmulOp, "operation ", d.type);
      out.x = tensor(kCudnnOpMatmulA);
      out.b = tensor(kCudnnOpMatmulB);
      out.to = tensor(kCudnnOpMatmulC);
      out.has_b = true;
      return out;
  }
}

// Operations by whether they have operands, in order: each reads what has memory or was written.
Program program_of(const Descriptor& graph) {
  Program out;
  std::map<int64_t, bool> written;
  for (const CudnnDescriptor raw : graph.all<CudnnDescriptor>(kCudnnGraphOps)) {
    ANNULUS_CHECK(as(raw).final, "an operation that is not finalised");
    const Operation op = operation_of(as(raw));
    const auto read = [&](const TensorOf& x) {
      ANNULUS_CHECK(!x.between || written[x.id], "tensor ", x.id, " is read before it is written");
    };
    read(op.x);
    if (op.has_b) read(op.b);
    if (op.has_t) read(op.t);
    ANNULUS_CHECK(!std::exchange(written[op.to.id], true), "tensor ", op.to.id,
                  " is written twice");
    out.push_back(op);
  }
  return out;
}

using Pointers = std::map<int64_t, const void*>;
using Scalars = std::map<int64_t, double>;  // by value: as they were at the call

double element(const TensorOf& tensor, const void* data, int64_t at) {
  switch (tensor.type) {
    case kCudnnF32: return static_cast<double>(static_cast<const float*>(data)[at]);
    case kCudnnI32: return static_cast<const int32_t*>(data)[at];
    default:
      ANNULUS_CHECK(tensor.type == kCudnnBF16, "type ", tensor.type);
      return static_cast<double>(to_float(static_cast<const bf16*>(data)[at]));
  }
}

double rounded(double x, int type) {
  if (type == kCudnnF32) return static_cast<double>(static_cast<float>(x));
  return type == kCudnnBF16 ? static_cast<double>(to_float(to_bf16(static_cast<float>(x)))) : x;
}

double apply(int mode, double x, double b, double t) {
  switch (mode) {
    case kCudnnAdd: return x + b;
    case kCudnnMul: return x * b;
    case kCudnnDiv: return x / b;
    case kCudnnSub: return x - b;
    case kCudnnExp: return std::exp(x);
    case kCudnnLog: return std::log(x);
    case kCudnnNotLess: return x >= b ? 1 : 0;
    case kCudnnSelect: return t != 0 ? x : b;
    default: ANNULUS_CHECK(false, "pointwise mode ", mode); return 0;
  }
}

// The matrix of one head: [rows][columns], and every row's sum.
struct Matrix {
  std::vector<double> values, sums;
};

Matrix matrix_of(const TensorOf& tensor, const void* data, int64_t head) {
  const auto rows = static_cast<size_t>(tensor.dims[2]), cols = static_cast<size_t>(tensor.dims[3]);
  Matrix out = {std::vector<double>(rows * cols), std::vector<double>(rows)};
  for (size_t r = 0; r < rows; ++r)
    for (size_t c = 0; c < cols; ++c) {
      const double x =
          element(tensor, data,
                  head * tensor.strides[1] + static_cast<int64_t>(r) * tensor.strides[2] +
                      static_cast<int64_t>(c) * tensor.strides[3]);
      out.values[r * cols + c] = x;
      out.sums[r] += x;
    }
  return out;
}

// One query and head of a program: what is between operations, by tensor, a value or one a key.
class Row {
 public:
  Row(const Pointers& pointers, const Scalars& scalars, const std::map<int64_t, Matrix>& matrices,
      int64_t head, int64_t row)
      : pointers_(pointers), scalars_(scalars), matrices_(matrices), head_(head), row_(row) {}

  void run(const Operation& op) {
    std::vector<double> out;
    if (op.kind == kCudnnMatmulOp) {
      out = product(read(op.x), matrices_.at(op.b.id), op.b.dims[3]);
    } else if (op.kind == kCudnnReductionOp) {
      const std::vector<double> x = read(op.x);
      out = {x[0]};
      for (size_t i = 1; i < x.size(); ++i) {
        out[0] = op.mode == kCudnnSum ? out[0] + x[i] : std::max(out[0], x[i]);
      }
      if (op.mode == kCudnnMost) most_ = out[0];
    } else if (op.mode == kCudnnIndex) {
      out.resize(static_cast<size_t>(op.to.dims[3]), static_cast<double>(row_));
      for (size_t i = 0; i < out.size() && op.axis == 3; ++i) out[i] = static_cast<double>(i);
    } else {
      const std::vector<double> x = read(op.x), b = op.has_b ? read(op.b) : std::vector{0.0},
                                t = op.has_t ? read(op.t) : std::vector{0.0};
      out.resize(std::max({x.size(), b.size(), t.size()}));
      for (size_t i = 0; i < out.size(); ++i) {
        const auto at = [i](const std::vector<double>& v) { return v.size() == 1 ? v[0] : v[i]; };
        out[i] = apply(op.mode, at(x), at(b), at(t));
      }
    }
    ANNULUS_CHECK(static_cast<int64_t>(out.size()) == op.to.dims[3], out.size(), " values for ",
                  op.to.dims[3]);
    for (double& x : out) x = rounded(x, op.to.type);
    if (op.to.between) {
      values_[op.to.id] = std::move(out);
    } else {
      results_.push_back({op.to, std::move(out)});
    }
  }
  // Into memory, at the end. What becomes of a row whose scores all are the hidden value is
  // nobody's business: NaN.
  void write(double hidden) const {
    for (const auto& [to, values] : results_)
      for (size_t c = 0; c < values.size(); ++c) {
        const int64_t at =
            head_ * to.strides[1] + row_ * to.strides[2] + static_cast<int64_t>(c) * to.strides[3];
        const double x = most_ == hidden ? std::numeric_limits<double>::quiet_NaN() : values[c];
        void* const data = const_cast<void*>(pointers_.at(to.id));
        if (to.type == kCudnnF32) {
          static_cast<float*>(data)[at] = static_cast<float>(x);
        } else {
          static_cast<bf16*>(data)[at] = to_bf16(static_cast<float>(x));
        }
      }
  }

 private:
  std::vector<double> read(const TensorOf& tensor) const {
    if (tensor.between) return values_.at(tensor.id);
    if (tensor.by_value) return {scalars_.at(tensor.id)};
    const void* const data = pointers_.at(tensor.id);
    const int64_t head = tensor.dims[1] == 1 ? 0 : head_, row = tensor.dims[2] == 1 ? 0 : row_;
    std::vector<double> out;
    for (int64_t c = 0; c < tensor.dims[3]; ++c)
      out.push_back(
          element(tensor, data,
                  head * tensor.strides[1] + row * tensor.strides[2] + c * tensor.strides[3]));
    return out;
  }
  static std::vector<double> product(const std::vector<double>& x, const Matrix& matrix,
                                     int64_t cols) {
    std::vector<double> out(static_cast<size_t>(cols));
    ANNULUS_CHECK(matrix.values.size() == x.size() * out.size(), x.size(), " by ",
                  matrix.values.size());
    for (size_t k = 0; k < x.size(); ++k) {
      if (x[k] == 0 && std::isfinite(matrix.sums[k])) continue;  // adds nothing
      const double factor = x[k], *const from = matrix.values.data() + k * out.size();
      for (size_t c = 0; c < out.size(); ++c) out[c] += factor * from[c];
    }
    return out;
  }

  const Pointers& pointers_;
  const Scalars& scalars_;
  const std::map<int64_t, Matrix>& matrices_;
  const int64_t head_, row_;
  double most_ = 0;
  std::map<int64_t, std::vector<double>> values_;
  std::vector<std::pair<TensorOf, std::vector<double>>> results_;
};

void interpret(const Program& program, const Pointers& pointers, const Scalars& scalars) {
  const TensorOf& q = program.front().x;
  double hidden = std::numeric_limits<double>::quiet_NaN();  // of the select, if there is one
  for (const Operation& op : program) {
    if (op.kind == kCudnnPointwiseOp && op.mode == kCudnnSelect) hidden = scalars.at(op.b.id);
  }
  int64_t of_head = -1;
  std::map<int64_t, Matrix> matrices;
  for (int64_t head = 0; head < q.dims[1]; ++head) {
    for (const Operation& op : program) {
      if (op.kind != kCudnnMatmulOp) continue;
      ANNULUS_CHECK(q.dims[1] % op.b.dims[1] == 0, op.b.dims[1], " heads of keys");
      const int64_t kv_head = head / (q.dims[1] / op.b.dims[1]);
      if (kv_head != of_head) matrices[op.b.id] = matrix_of(op.b, pointers.at(op.b.id), kv_head);
    }
    of_head = head / (q.dims[1] / program.front().b.dims[1]);
    for (int64_t row = 0; row < q.dims[2]; ++row) {
      Row it(pointers, scalars, matrices, head, row);
      for (const Operation& op : program) it.run(op);
      it.write(hidden);
    }
  }
}

size_t version() {
  return 91900;
}
void last_error(char* message, size_t bytes) {
  std::strncpy(message, "scripted", bytes);
}
int create(CudnnHandle* handle) {
  ++cudnn_script().live;
  *handle = new CudnnContext;
  return 0;
}
int destroy(CudnnHandle handle) {
  --cudnn_script().live;
  delete handle;
  return 0;
}
int set_stream(CudnnHandle handle, cudaStream_t stream) {
  handle->stream = stream;
  return 0;
}
int descriptor_create(int type, CudnnDescriptor* descriptor) {
  ++cudnn_script().live;
  *descriptor = new Descriptor{type, false, {}, {}, -1};
  return 0;
}
int descriptor_destroy(CudnnDescriptor descriptor) {
  --cudnn_script().live;
  delete &as(descriptor);
  return 0;
}

int set(CudnnDescriptor descriptor, int name, int type, int64_t count, const void* values) {
  Descriptor& d = as(descriptor);
  ANNULUS_CHECK(!d.final, "attribute ", name, " behind finalize");
  const auto* const bytes = static_cast<const std::byte*>(values);
  d.attributes[name] = {bytes, bytes + static_cast<size_t>(count) * size_of(type)};
  return 0;
}

int finalize(CudnnDescriptor descriptor) {
  Descriptor& d = as(descriptor);
  ANNULUS_CHECK(!std::exchange(d.final, true), "descriptor ", d.type, " is finalised twice");
  if (d.type == kCudnnGraph) d.program = std::make_shared<const Program>(program_of(d));
  if (d.type == kCudnnHeuristics) {
    ANNULUS_CHECK(d.one<int>(kCudnnHeuristicsMode) == kCudnnModeA, "another mode");
    d.program = d.part(kCudnnHeuristicsGraph, kCudnnGraph).program;
  }
  if (d.type == kCudnnPlan) {
    ANNULUS_CHECK(d.one<CudnnHandle>(kCudnnPlanHandle) != nullptr, "a plan without a handle");
    const auto* const engine =
        static_cast<const Descriptor*>(d.one<CudnnDescriptor>(kCudnnPlanConfig));
    ANNULUS_CHECK(engine->program != nullptr, "an engine from nowhere");
    if (engine->engine < cudnn_script().refused) return kRefused;
    ++cudnn_script().plans;
    d.program = engine->program;
    d.engine = engine->engine;
  }
  return 0;
}

int get(CudnnDescriptor descriptor, int name, int type, int64_t room, int64_t* count,
        void* values) {
  const Descriptor& d = as(descriptor);
  ANNULUS_CHECK(d.final, "attribute ", name, " of what is not finalised");
  if (name == kCudnnPlanWorkspace) {
    ANNULUS_CHECK(type == kCudnnOfInt64 && room == 1, room);
    *static_cast<int64_t*>(values) = kWorkspace;
    *count = 1;
    return 0;
  }
  ANNULUS_CHECK(name == kCudnnHeuristicsResults && type == kCudnnOfDescriptor, name);
  *count = cudnn_script().engines;
  for (int i = 0; i < std::min<int64_t>(room, *count); ++i) {
    Descriptor& engine = as(static_cast<CudnnDescriptor*>(values)[i]);
    ANNULUS_CHECK(engine.type == kCudnnEngineConfig, engine.type);
    engine.program = d.program;
    engine.engine = i;
  }
  return 0;
}

int execute(CudnnHandle handle, CudnnDescriptor plan, CudnnDescriptor pack) {
  ++cudnn_script().runs;
  cudnn_script().ran = as(plan).engine;
  const Descriptor& p = as(pack);
  ANNULUS_CHECK(p.final && as(plan).final, "pointers that are not finalised");
  ANNULUS_CHECK(p.one<void*>(kCudnnPackWorkspace) != nullptr, "no workspace");
  const auto ids = p.all<int64_t>(kCudnnPackIds);
  const auto data = p.all<const void*>(kCudnnPackPointers);
  ANNULUS_CHECK(ids.size() == data.size(), ids.size(), " ids");
  Pointers given, pointers;
  for (size_t i = 0; i < ids.size(); ++i) given[ids[i]] = data[i];
  Scalars scalars;
  for (const Operation& op : *as(plan).program)
    for (const TensorOf& tensor : {op.x, op.b, op.t, op.to}) {
      if (tensor.id == 0 || tensor.between) continue;
      ANNULUS_CHECK(given.contains(tensor.id), "tensor ", tensor.id, " has no pointer");
      const void* const pointer = given[tensor.id];
      if (tensor.by_value) {
        scalars[tensor.id] = element(tensor, pointer, 0);
      } else {
        ANNULUS_CHECK(reinterpret_cast<uintptr_t>(pointer) % 16 == 0, "tensor ", tensor.id);
        pointers[tensor.id] = pointer;
      }
    }
  ANNULUS_CHECK(given.size() == pointers.size() + scalars.size(), given.size(), " pointers");
  // Descriptors may be gone when the stream runs.
  cuda_emulation::enqueue(handle->stream, [program = as(plan).program, pointers, scalars] {
    interpret(*program, pointers, scalars);
  });
  return 0;
}

}  // namespace

CudnnScript& cudnn_script() {
  static CudnnScript script;
  return script;
}

const kernels::CudnnApi& scripted_cudnn() {
  static const kernels::CudnnApi api = {
      version,  last_error, create, destroy, set_stream, descriptor_create, descriptor_destroy,
      finalize, set,        get,    execute};
  return api;
}

}  // namespace annulus::testing

namespace annulus::kernels {

absl::StatusOr<const CudnnApi*> cudnn_of_machine() {
  return &testing::scripted_cudnn();
}

}  // namespace annulus::kernels
