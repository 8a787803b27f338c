// SPDX-License-Identifier: Apache-2.0
// Wire form of StepPlan and StepResult: magic, version, then the fields in the order of step.h;
// counts are u32, enums and flags one byte. A field that is added raises its version: front end and
// workers are one program, so an old version is refused, not converted.
#include "parallel/model/bytes.h"
#include "parallel/step.h"

namespace annulus::parallel {
namespace {

constexpr uint32_t kPlanMagic = 0x504e4e41, kResultMagic = 0x524e4e41;  // "ANNP", "ANNR"
constexpr uint16_t kPlanVersion = 1, kResultVersion = 3;

// Least encoded bytes of one element, by which counts are checked.
constexpr size_t kOpBytes = 1 + 4 + 4 + 8 + 4 + 24, kSpanBytes = 16,
                 kWantedBytes = 8 + 1 + 4 + 4 + 1;
constexpr size_t kItemBytes = 4 + 1 + 4 + 4 + 12 + 4, kGroupBytes = 1 + 4;
constexpr size_t kTopBytes = 8, kWantedResultBytes = 4 + 8 + 4 + 4 + 4 + 4;
constexpr size_t kGroupReportBytes = 1 + 8 + 8 + 4 + 4 + 4;

void check_header(ByteReader& in, uint32_t magic, uint16_t spoken) {
  if (in.get<uint32_t>("magic") != magic) in.fail("magic", "is not that of this message");
  const auto version = in.get<uint16_t>("version");
  if (version != spoken) {
    in.fail("version", kernels::concat("is ", version, ", this program speaks ", spoken));
  }
}

void put(ByteWriter& out, const Op& op) {
  out.put(op.kind);
  out.put(op.slot);
  out.put(op.from);
  out.put(op.length);
  out.put(op.decode_base);
  out.put(op.sampling.temperature);
  out.put(op.sampling.top_k);
  out.put(op.sampling.top_p);
  out.put(op.sampling.min_p);
  out.put(op.sampling.seed);
}

Op get_op(ByteReader& in) {
  Op op;
  op.kind = in.get_enum("op.kind", Op::Kind::kRebase);
  op.slot = in.get<int32_t>("op.slot");
  op.from = in.get<int32_t>("op.from");
  op.length = in.get<int64_t>("op.length");
  op.decode_base = in.get<int32_t>("op.decode_base");
  op.sampling.temperature = in.get<float>("op.sampling.temperature");
  op.sampling.top_k = in.get<int32_t>("op.sampling.top_k");
  op.sampling.top_p = in.get<float>("op.sampling.top_p");
  op.sampling.min_p = in.get<float>("op.sampling.min_p");
  op.sampling.seed = in.get<uint64_t>("op.sampling.seed");
  return op;
}

void put(ByteWriter& out, const Item& item) {
  out.put(item.slot);
  out.put(item.placement);
  out.put_count(item.spans.size());
  for (const Span& span : item.spans) {
    out.put(span.first);
    out.put(span.count);
    out.put(span.stride);
  }
  out.put_array(item.tokens);
  out.put(item.sampled.step);
  out.put(item.sampled.row);
  out.put_count(item.wanted.size());
  for (const Wanted& wanted : item.wanted) {
    out.put(wanted.position);
    out.put(uint8_t{wanted.sample});
    out.put(wanted.target);
    out.put(wanted.top);
    out.put(uint8_t{wanted.logprob});
  }
}

Item get_item(ByteReader& in) {
  Item item;
  item.slot = in.get<int32_t>("item.slot");
  item.placement = in.get_enum("item.placement", Placement::kDecode);
  item.spans.resize(in.get_count("item.spans", kSpanBytes));
  for (Span& span : item.spans) {
    span.first = in.get<int64_t>("span.first");
    span.count = in.get<int32_t>("span.count");
    span.stride = in.get<int32_t>("span.stride");
  }
  item.tokens = in.get_array("item.tokens");
  item.sampled.step = in.get<int64_t>("item.sampled.step");
  item.sampled.row = in.get<int32_t>("item.sampled.row");
  item.wanted.resize(in.get_count("item.wanted", kWantedBytes));
  for (Wanted& wanted : item.wanted) {
    wanted.position = in.get<int64_t>("wanted.position");
    wanted.sample = in.get_flag("wanted.sample");
    wanted.target = in.get<int32_t>("wanted.target");
    wanted.top = in.get<int32_t>("wanted.top");
    wanted.logprob = in.get_flag("wanted.logprob");
  }
  return item;
}

}  // namespace

std::string encode(const StepPlan& plan) {
  ByteWriter out;
  out.put(kPlanMagic);
  out.put(kPlanVersion);
  out.put(plan.epoch);
  out.put(plan.step);
  out.put(plan.layout_id);
  out.put(plan.digest);
  out.put_count(plan.ops.size());
  for (const Op& op : plan.ops) put(out, op);
  out.put_count(plan.items.size());
  for (const Item& item : plan.items) put(out, item);
  out.put_count(plan.groups.size());
  for (const Group& group : plan.groups) {
    out.put(group.variant);
    out.put_array(group.items);
  }
  return out.take();
}

absl::StatusOr<StepPlan> decode_plan(std::string_view bytes) {
  ByteReader in(bytes, "step plan");
  check_header(in, kPlanMagic, kPlanVersion);
  StepPlan plan;
  plan.epoch = in.get<int64_t>("epoch");
  plan.step = in.get<int64_t>("step");
  plan.layout_id = in.get<int32_t>("layout_id");
  plan.digest = in.get<uint64_t>("digest");
  // Elements are read into place one by one and reading stops at the first error.
  for (size_t n = in.get_count("ops", kOpBytes); n > 0 && in.ok(); --n) {
    plan.ops.push_back(get_op(in));
  }
  for (size_t n = in.get_count("items", kItemBytes); n > 0 && in.ok(); --n) {
    plan.items.push_back(get_item(in));
  }
  for (size_t n = in.get_count("groups", kGroupBytes); n > 0 && in.ok(); --n) {
    Group& group = plan.groups.emplace_back();
    group.variant = in.get_enum("group.variant", Variant::kGatherQ);
    group.items = in.get_array("group.items");
  }
  if (absl::Status status = in.finish(); !status.ok()) return status;
  return plan;
}

std::string encode(const StepResult& result) {
  ByteWriter out;
  out.put(kResultMagic);
  out.put(kResultVersion);
  out.put(result.epoch);
  out.put(result.step);
  out.put(result.world_rank);
  out.put_count(result.wanted.size());
  for (const WantedResult& wanted : result.wanted) {
    out.put(wanted.item);
    out.put(wanted.position);
    out.put(wanted.token);
    out.put(wanted.logprob);
    out.put(wanted.target_logprob);
    out.put_count(wanted.top.size());
    for (const TopLogprob& top : wanted.top) {
      out.put(top.id);
      out.put(top.logprob);
    }
  }
  out.put_count(result.groups.size());
  for (const GroupReport& group : result.groups) {
    out.put(group.variant);
    out.put(group.bytes_sent);
    out.put(group.formula_bytes);
    out.put(group.attend_us);
    out.put(group.exposed_us);
    out.put(group.all_to_all_us);
  }
  out.put(result.step_us);
  out.put(result.idle_us);
  out.put(result.plans_waiting);
  out.put(result.kv_rows);
  out.put(result.kv_bytes);
  out.put(result.workspace_peak_bytes);
  out.put(result.resident_bytes);
  out.put_count(result.phase_us.size());
  for (const float us : result.phase_us) out.put(us);
  out.put(result.waited_us);
  out.put(result.rows);
  out.put(result.logit_rows);
  return out.take();
}

absl::StatusOr<StepResult> decode_result(std::string_view bytes) {
  ByteReader in(bytes, "step result");
  check_header(in, kResultMagic, kResultVersion);
  StepResult result;
  result.epoch = in.get<int64_t>("epoch");
  result.step = in.get<int64_t>("step");
  result.world_rank = in.get<int32_t>("world_rank");
  for (size_t n = in.get_count("wanted", kWantedResultBytes); n > 0 && in.ok(); --n) {
    WantedResult& wanted = result.wanted.emplace_back();
    wanted.item = in.get<int32_t>("wanted.item");
    wanted.position = in.get<int64_t>("wanted.position");
    wanted.token = in.get<int32_t>("wanted.token");
    wanted.logprob = in.get<float>("wanted.logprob");
    wanted.target_logprob = in.get<float>("wanted.target_logprob");
    wanted.top.resize(in.get_count("wanted.top", kTopBytes));
    for (TopLogprob& top : wanted.top) {
      top.id = in.get<int32_t>("top.id");
      top.logprob = in.get<float>("top.logprob");
    }
  }
  for (size_t n = in.get_count("groups", kGroupReportBytes); n > 0 && in.ok(); --n) {
    GroupReport& group = result.groups.emplace_back();
    group.variant = in.get_enum("group.variant", Variant::kGatherQ);
    group.bytes_sent = in.get<int64_t>("group.bytes_sent");
    group.formula_bytes = in.get<int64_t>("group.formula_bytes");
    group.attend_us = in.get<float>("group.attend_us");
    group.exposed_us = in.get<float>("group.exposed_us");
    group.all_to_all_us = in.get<float>("group.all_to_all_us");
  }
  result.step_us = in.get<float>("step_us");
  result.idle_us = in.get<float>("idle_us");
  result.plans_waiting = in.get<int32_t>("plans_waiting");
  result.kv_rows = in.get<int64_t>("kv_rows");
  result.kv_bytes = in.get<int64_t>("kv_bytes");
  result.workspace_peak_bytes = in.get<int64_t>("workspace_peak_bytes");
  result.resident_bytes = in.get<int64_t>("resident_bytes");
  for (size_t n = in.get_count("phase_us", sizeof(float)); n > 0 && in.ok(); --n) {
    result.phase_us.push_back(in.get<float>("phase_us"));
  }
  result.waited_us = in.get<float>("waited_us");
  result.rows = in.get<int32_t>("rows");
  result.logit_rows = in.get<int32_t>("logit_rows");
  if (absl::Status status = in.finish(); !status.ok()) return status;
  return result;
}

}  // namespace annulus::parallel
