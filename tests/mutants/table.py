# SPDX-License-Identifier: Apache-2.0
"""The known faults of ring attention and of what surrounds it, as edits of the real sources.

An edit replaces `old`, which must occur exactly once in its file: whoever changes that line changes the entry too.
`tests` names what must notice: a test binary and a GoogleTest filter, quick ones first. `quick` marks the entries that
`tests/mutants/run` seeds without --full: one for each kind of fault.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    fault: str  # what kind; design section 5 lists the first ten
    name: str
    file: str
    old: str
    new: str
    tests: tuple  # of (binary, filter)
    quick: bool = False


ATTENTION = (("kernels_attention_test", "*AttendTest*:*PartialTest*"),)
ROTATES = (("comm_test", "*Rotate*"),)
RING = (("parallel_ring_test", "*RingAttentionTest*"),)
STORE = (("parallel_ring_test", "KvStoreTest.*"),)
SHARDING = (("parallel_pure_test", "Zigzag*:DecodeOwner*:ShardItem*:Turns*:Truncate*:Fork*:Rows*"),)
SAMPLER = (("parallel_pure_test", "Filters*:Sample*:Frequencies*:Greedy*:Answer*:Logprobs*"),)
COMM = (("comm_test", "*Conformance*"),)
ENGINE = (("engine_test", "Engine.*"),)
WGMMA = (("kernels_cuda_emulated_test", "CudaAttention.TimesDoNotMatter:CudaAttention.TensorCoresPages:"
          "CudaAttention.TensorCoresOddTiles"),)
CUDNN = (("kernels_cuda_emulated_test", "CudnnAttend.PrefillsAndDecodes:CudnnAttend.OddSequences:"
          "CudnnAttend.AnyOrder:CudnnAttend.Blocks"),)
GPU_SAMPLER = (("kernels_cuda_emulated_test", "CudaSampling.*"),)
GPU_STEPS = (("kernels_cuda_host_test", "CudaQueueTest.*"),)
GRAPHS = (("kernels_cuda_host_test", "CudaGraphsTest.*"),)
OVERLAP = (("parallel_cuda_emulated_test", "CudaEngineOverlap.AStepIsBegunWhileTheOneBeforeIsUnderWay"),)
SYMMETRIC = (("parallel_cuda_emulated_test", "CudaEngineSymmetric.*"),)
SCHEDULER = (("scheduler_test", "Scheduler.*:Sessions.*:*SimulationTest*"),)

KERNEL = "kernels/cpu/attention_rows.h"
KERNEL_LOOPS = "kernels/cpu/attention_impl.cc"
CUT = "kernels/cpu/attention.cc"
ROTATE = "parallel/ring.h"
VARIANTS = "parallel/ring_attention_inl.h"
HOPPER = "kernels/cuda/attention_wgmma.cu"
NCCL = "parallel/comm_nccl.cc"
CUDNN_BLOCKS = "kernels/cuda/cudnn_attention.cu"

MUTANTS = (
    # -- a key is lost
    Mutant("lost key", "last key of a passed payload", VARIANTS,
           "theirs.device_kv_positions, static_cast<int32_t>(theirs.kv_positions.size())};",
           "theirs.device_kv_positions, static_cast<int32_t>(theirs.kv_positions.size()) - 1};", RING, quick=True),
    Mutant("lost key", "last key of a split", CUT,
           "const int32_t last_key = std::min(segment.kv.count, first_key + cut.split_keys);",
           "const int32_t last_key = std::min(segment.kv.count, first_key + cut.split_keys - 1);", ATTENTION),
    Mutant("lost key", "last key of every tile", KERNEL,
           "n = n < 0 ? 0 : n < kTile ? n : kTile;", "n = n < 0 ? 0 : n < kTile ? n : kTile - 1;", ATTENTION),
    Mutant("lost key", "packing starts a page one row late", CUT,
           "const int64_t page = first / format.page_tokens, within = first % format.page_tokens;",
           "const int64_t page = first / format.page_tokens, within = (first + 1) % format.page_tokens;",
           (("kernels_attention_test", "*KvTest*"),)),
    # -- a key counts twice
    Mutant("doubled key", "splits overlap by one key", CUT,
           "const int32_t first_key = split * cut.split_keys;",
           "const int32_t first_key = std::max(0, split * cut.split_keys - 1);", ATTENTION, quick=True),
    Mutant("doubled key", "the last payload is visited twice", ROTATE,
           "if (hop == n - 1) {", "if (hop == n - 1) {\n      visit(origin, payload);", ROTATES),
    Mutant("doubled key", "a returned partial is merged twice", VARIANTS,
           "if (r != me && mine > 0) kernels::merge(queue, result, returned[index(r)]);",
           "for (int i = 0; i < 2; ++i)\n"
           "        if (r != me && mine > 0) kernels::merge(queue, result, returned[index(r)]);", RING),
    # -- a hop is skipped
    Mutant("skipped hop", "the first foreign payload is not visited", ROTATE,
           "visit(origin, payload);\n    ring.await", "if (hop != 1) visit(origin, payload);\n    ring.await", ROTATES,
           quick=True),
    Mutant("skipped hop", "gather-Q leaves out the last rank", VARIANTS,
           "visit(r, all.subspan(index(at), index(bytes[index(r)])));",
           "if (r + 1 < ranks || r == me) visit(r, all.subspan(index(at), index(bytes[index(r)])));", RING),
    Mutant("skipped hop", "one rank's partial is not merged", VARIANTS,
           "if (r != me && mine > 0) kernels::merge(queue, result, returned[index(r)]);",
           "if (r != me && r + 1 < ranks && mine > 0) kernels::merge(queue, result, returned[index(r)]);", RING),
    # -- the mask is off by one
    Mutant("mask off by one", "a query sees the key after it", KERNEL,
           "x[i] = select(less_equal(tile.positions + 16 * i, rows.position[m]), x[i], hidden);",
           "x[i] = select(less_equal(tile.positions + 16 * i, rows.position[m] + 1), x[i], hidden);", ATTENTION),
    Mutant("mask off by one", "a tile whose last key is one ahead is not masked", KERNEL_LOOPS,
           "const bool masked = tile.highest > seen.lowest;", "const bool masked = tile.highest > seen.lowest + 1;",
           ATTENTION, quick=True),
    Mutant("mask off by one", "the same for few rows", KERNEL_LOOPS,
           "const bool masked = tile.highest > all.lowest;", "const bool masked = tile.highest > all.lowest + 1;",
           ATTENTION + RING),
    Mutant("mask off by one", "a tile that begins at the query itself is hidden", KERNEL_LOOPS,
           "hidden[panel - group] = tile.lowest > seen.highest;",
           "hidden[panel - group] = tile.lowest >= seen.highest;", ATTENTION),
    Mutant("mask off by one", "queries of a block take their neighbours' positions", VARIANTS,
           "segment.q_positions = item.device_q_positions + (begin - item.q_first);",
           "segment.q_positions = item.device_q_positions + (begin > item.q_first ? begin - item.q_first - 1 : 0);",
           RING),
    Mutant("mask off by one", "zigzag chunks meet one position late", "parallel/sharding.cc",
           "return Span{first + c * even + std::min(c, rest), static_cast<int32_t>(even + (c < rest)), 1};",
           "return Span{first + c * even + std::min(c, rest) + (c > rest), static_cast<int32_t>(even + (c < rest)), 1};",
           SHARDING),
    # -- the logarithm has another base
    Mutant("LSE in base 2", "of a block", KERNEL,
           "max * block.scale + logf(sum)", "max * block.scale + logf(sum) * 1.44269504f", ATTENTION,
           quick=True),
    Mutant("LSE in base 2", "of a merge", KERNEL,
           "*lse = high + log1pf(weight);", "*lse = high + log1pf(weight) * 1.44269504f;", ATTENTION),
    Mutant("LSE of nothing", "an empty partial weighs as one key", CUT,
           "std::fill_n(acc.lse, acc.rows * acc.heads, -std::numeric_limits<float>::infinity());",
           "std::fill_n(acc.lse, acc.rows * acc.heads, 0.0f);", ATTENTION),
    # -- a payload is not the one of this hop
    Mutant("stale payload", "the own payload goes round", ROTATE,
           "payload = room;", "payload = room.size() == own.size() ? own : ConstBytes(room);", ROTATES, quick=True),
    Mutant("stale payload", "one receive buffer instead of two", ROTATE,
           "buffers.buffer[hop % 2].first(", "buffers.buffer[0].first(", ROTATES),
    Mutant("stale payload", "partials of another block are not cleared", VARIANTS,
           "if (origin != me) kernels::clear(queue, partial[index(origin)]);", "", RING),
    Mutant("stale payload", "messages of another epoch match", "parallel/comm_ids.cc",
           "| wrapped(kTagEpoch, epoch);", "| wrapped(kTagEpoch, epoch * 0);", (("comm_test", "MessageTag.*"),)),
    Mutant("stale payload", "messages of another step match", "parallel/comm_ids.cc",
           "| wrapped(kTagStep, op.step) |", "| wrapped(kTagStep, op.step * 0) |",
           (("comm_test", "MessageTag.*:*LateMessage*"),)),
    # -- a payload is taken for another rank's
    Mutant("wrong origin", "the ring is counted the other way", ROTATE,
           "visit(origin, payload);\n    ring.await", "visit((me + hop) % n, payload);\n    ring.await",
           ROTATES, quick=True),
    Mutant("wrong origin", "a payload gets the positions of the rank on the other side", VARIANTS,
           "const ItemRows& theirs = group.ranks[index(origin)][i];",
           "const ItemRows& theirs = group.ranks[index((2 * me + ranks - origin) % ranks)][i];", RING),
    Mutant("wrong origin", "partials return to the wrong rows", VARIANTS,
           "Segment segment = segment_of(group.ranks[index(origin)][i], first, rows[index(origin)]);",
           "Segment segment = segment_of(group.ranks[index(me)][i], first, rows[index(origin)]);", RING),
    # -- decoded tokens enter the cache twice
    Mutant("decode KV appended twice", "every rank keeps the row", "parallel/sharding.cc",
           "if (skip >= span.count) return {span.first, 0, 1};", "if (skip >= span.count) return {span.first, 1, 1};",
           SHARDING, quick=True),
    Mutant("decode KV appended twice", "the store lists it twice", "parallel/kv_store_inl.h",
           "s.positions.push_back(position);", "s.positions.push_back(position), s.positions.push_back(position);", STORE + RING),
    Mutant("decode KV appended twice", "an overshoot stays in the session", "server/scheduler.cc",
           "const int64_t keep = std::min(sequence.planned, sequence.known() - 1);",
           "const int64_t keep = sequence.planned;", SCHEDULER),
    # -- a cached prefix is taken too long or too short
    Mutant("prefix off by one", "one token too many is reused", "server/scheduler_plan.cc",
           "return std::mismatch(sequence.tokens.begin(), end, session.tokens.begin()).first -\n"
           "         sequence.tokens.begin();",
           "return std::min<int64_t>(\n"
           "      most, std::mismatch(sequence.tokens.begin(), end, session.tokens.begin()).first -\n"
           "                sequence.tokens.begin() + 1);", SCHEDULER, quick=True),
    Mutant("prefix off by one", "the last prompt token is taken from the cache", "server/scheduler_plan.cc",
           "int64_t most = std::min(session.kv, sequence.prompt - 1);",
           "int64_t most = std::min(session.kv, sequence.prompt);", SCHEDULER),
    Mutant("prefix off by one", "a truncated store keeps one row more", "parallel/kv_store_inl.h",
           "s.positions.truncate(below(s.positions.host(), length));",
           "s.positions.truncate(below(s.positions.host(), length + 1));", STORE + RING),
    Mutant("prefix off by one", "a truncated shard keeps one position more", "parallel/sharding.cc",
           "while (!spans.empty() && spans.back().first >= length) spans.pop_back();",
           "while (!spans.empty() && spans.back().first > length) spans.pop_back();", SHARDING),
    Mutant("prefix off by one", "a fork takes one row more", "parallel/kv_store_inl.h",
           "first(below(source.positions.host(), length));",
           "first(below(source.positions.host(), length + 1));", STORE),
    # -- rotary angles of the row instead of the position
    Mutant("RoPE at local position", "rows are counted from 0 on every rank", "parallel/rank_inl.h",
           "fill_cos_sin(frequencies_, rows.positions, cos_sin_.data());",
           "std::vector<int32_t> local;\n"
           "    for (const int32_t p : rows.positions) local.push_back(p * 0 + static_cast<int32_t>(local.size()));\n"
           "    fill_cos_sin(frequencies_, local, cos_sin_.data());", ENGINE, quick=True),
    Mutant("RoPE at local position", "angles in single precision", "parallel/model/rope.cc",
           "const double angle = pos * frequencies[i];",
           "const double angle = static_cast<float>(pos) * static_cast<float>(frequencies[i]);",
           (("model_test", "Rope.*"),)),
    # -- what surrounds attention
    Mutant("partials", "travel as bf16", VARIANTS,
           'call.op.what = "partials";',
           'call.op.what = "partials";\n'
           "    for (int32_t r = 0; r < ranks; ++r) {\n"
           "      for (int64_t e = 0; r != me && e < partial[index(r)].o_elements(); ++e)\n"
           "        partial[index(r)].o[e] = kernels::to_float(kernels::to_bf16(partial[index(r)].o[e]));\n"
           "    }", RING, quick=True),
    Mutant("all-reduce", "the last rank is missing", "parallel/comm_messages.cc",
           "for (int32_t r = 1; r < ranks; ++r) {", "for (int32_t r = 1; r < ranks - 1; ++r) {", COMM, quick=True),
    Mutant("all-reduce", "every rank begins with its own part", "parallel/comm_messages.cc",
           "float* __restrict sum = me == 0 ? data.data() : others;",
           "float* __restrict sum = me == 0 ? data.data() : others;\n"
           "  if (me > 1) {\n"
           "    for (size_t i = 0; i < count; ++i) {\n"
           "      const float own = data[i];\n"
           "      data[i] = others[i];\n"
           "      others[i] = own;\n"
           "    }\n"
           "  }", COMM),
    Mutant("all-gather", "one part too early", "parallel/comm_messages.h",
           "const Bytes room = out.subspan(index(at), index(length));",
           "const Bytes room = out.subspan(index(at >= 4 ? at - 4 : at), index(length));", COMM),
    Mutant("sampled ids", "every sequence of a rank gets the first one's", "parallel/rank_answers_inl.h",
           "    next[index(rank)] += 4;\n", "", ENGINE, quick=True),
    Mutant("sampled ids", "the next plan names the wrong row", "server/scheduler_plan.cc",
           "if (wanted.sample) sequence.sampled = {step_, draft.rows++};",
           "if (wanted.sample) sequence.sampled = {step_, std::max(0, draft.rows++ - 1)};", SCHEDULER),
    Mutant("sampled ids", "the step before is taken", "parallel/sampled_ids.h",
           "[&](const Step& one) { return one.step == step; });",
           "[&](const Step& one) { return one.step == step || one.step + 1 == step; });", ENGINE),
    Mutant("sampled ids", "the host waits for them in the middle of a step", "parallel/rank_answers_inl.h",
           "  std::vector<int32_t> by_row;\n",
           "  queue_.finish(Clock::now() + patience_);\n  std::vector<int32_t> by_row;\n",
           (("parallel_cuda_emulated_test", "CudaEngineSampled.AStepWaitsOnceForTheGpu"),)),
    Mutant("sampling", "ties go to the larger id", "kernels/cpu/sampling.cc",
           "return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;",
           "return a.logit != b.logit ? a.logit > b.logit : a.id > b.id;", SAMPLER),
    Mutant("sampling", "the random number ignores the position", "parallel/sampler.cc",
           "wish.random = philox_uniform(params.seed, static_cast<uint64_t>(wanted.position));",
           "wish.random = philox_uniform(params.seed, static_cast<uint64_t>(wanted.position * 0));", SAMPLER),
    Mutant("sampling", "top-k keeps one more", "kernels/cpu/sampling.cc",
           "top_k ? best_of(row, static_cast<size_t>(wish.top_k))",
           "top_k ? best_of(row, static_cast<size_t>(wish.top_k) + 1)", SAMPLER),
    Mutant("cuDNN", "a block's queries are not in the order of their positions", CUDNN_BLOCKS,
           "order[rank] = mine;", "order[mine] = mine;", CUDNN, quick=True),
    Mutant("cuDNN", "a key is hidden from queries of its own position", CUDNN_BLOCKS,
           "if (positions[middle] < position) {", "if (positions[middle] <= position) {", CUDNN),
    Mutant("cuDNN", "keys younger than every query are seen", CUDNN_BLOCKS,
           "if (first == count) first = rows;", "if (first == count) first = key < key_count ? 0 : rows;", CUDNN),
    Mutant("cuDNN", "rows of keys that no query sees are not zeros", CUDNN_BLOCKS,
           "Chunk chunk = {};", "Chunk chunk = {{~0u, ~0u, ~0u, ~0u}};", CUDNN),
    Mutant("cuDNN", "rows that see nothing are merged", CUDNN_BLOCKS,
           "if (row < device::warp_min(lane < leasts ? least[lane] : count)) return;",
           "if (row < device::warp_min(lane < leasts ? 0 * least[lane] : count)) return;", CUDNN),
    Mutant("cuDNN", "the second block of keys has the first one's positions", CUDNN_BLOCKS,
           "block.rows, kv.positions + first, count,", "block.rows, kv.positions, count,", CUDNN),
    Mutant("cuDNN", "a block is merged into the rows of the segment's first", CUDNN_BLOCKS,
           "first_row = int64_t{block.segment.q_first} + block.first_query;",
           "first_row = int64_t{block.segment.q_first} + 0 * block.first_query;", CUDNN),
    Mutant("sampling", "a GPU's ties go to the larger id", "kernels/cuda/sampling.cu",
           "order_of(row.logit(id)) == order && at++ == number", "order_of(row.logit(id)) == order && at++ >= number",
           GPU_SAMPLER, quick=True),
    Mutant("sampling", "a GPU's top-p keeps one more", "kernels/cuda/sampling.cu",
           "held_by_top_p(wish.top_p, total) - 1", "held_by_top_p(wish.top_p, total)", GPU_SAMPLER),
    Mutant("logits", "vocabulary shards of two rows are mixed up", "kernels/cpu/sampling.cc",
           "stride_(logits.rows * logits.width),", "stride_(logits.width),", ENGINE),
    Mutant("sharding", "decode rows ignore their base", "parallel/sharding.cc",
           "return static_cast<int32_t>((decode_base + position) % ranks);",
           "return static_cast<int32_t>((decode_base * 0 + position) % ranks);", SHARDING),
    Mutant("heads", "K and V are those of two heads", CUT,
           "block.k_offset_bytes = int64_t{it.kv_head} * d * size;",
           "block.k_offset_bytes = int64_t{it.kv_head > 0 ? it.kv_head - 1 : 0} * d * size;", ATTENTION),
    Mutant("paging", "a fork writes into the page it shares", "parallel/kv_store_inl.h",
           "users_[static_cast<size_t>(last)] > 1) {",
           "users_[static_cast<size_t>(last)] > 1 && false) {", STORE),
    Mutant("paging", "a slot is used again while plans read it", "server/scheduler.cc",
           "pending_ops_.push_back(release_op(sequence.slot));\n    cooling_slots_.push_back(sequence.slot);",
           "pending_ops_.push_back(release_op(sequence.slot));\n    free_slots_.insert(sequence.slot);", SCHEDULER),
    Mutant("plan log", "a rank that drifted goes on", "parallel/shard_validate.cc",
           "if (plan.digest != state.digest) {", "if (plan.digest != state.digest && plan.epoch < 0) {",
           (("parallel_pure_test", "Validate.*"),)),
    # -- two steps under way on a GPU
    Mutant("overlap", "steps share one arena of pinned memory", "kernels/cuda/queue.cc",
           "open_.push_back(std::move(filling_));\n  return {++closed_};",
           "open_.push_back(std::make_unique<Step>());\n"
           "  std::swap(open_.back()->ended, filling_->ended);\n"
           "  std::swap(open_.back()->fetched, filling_->fetched);\n"
           "  std::swap(open_.back()->retired, filling_->retired);\n"
           "  open_.back()->number = filling_->number;\n"
           "  open_.back()->turn = filling_->turn;\n"
           "  filling_->turn = (filling_->turn + 1) % kTurns;\n"
           "  filling_->pinned.rewind({});\n"
           "  spare_.push_back(std::move(filling_));\n"
           "  return {++closed_};", GPU_STEPS, quick=True),
    Mutant("overlap", "a step takes what the next one fetches", "kernels/cuda/queue.cc",
           "if (open->number > step.number) break;", "if (open->number > step.number + 1) break;", GPU_STEPS),
    Mutant("overlap", "a step has ended when the next one has", "parallel/rank_on.h",
           "return steps_[index(ended_ % kMostBegun)];", "return steps_[index((begun_ - 1) % kMostBegun)];", OVERLAP),
    Mutant("overlap", "a step that releases a slot waits for the one before", "parallel/kv_store_inl.h",
           "  s.pages.retire(queue_);\n  s.positions.retire(queue_);\n", "", OVERLAP),
    Mutant("overlap", "the next step puts off a deadline", "parallel/rank_on.h",
           "return std::max(step.enqueued, last_end_) + step.patience;", "return std::max(step.enqueued, Clock::now()) + patience_;",
           (("parallel_cuda_emulated_test", "CudaEngineOverlap.AStepPassesItsOwnDeadline"),)),
    Mutant("overlap", "plans that are here wait for the step before", "server/app/step_pipeline.cc",
           "if (wanted() || !rank.wait(wanted)) return;", "rank.wait([&] { return !room && wanted(); });",
           (("front_test", "StepPipelineTest.*"),)),
    # -- loading
    Mutant("loading", "a piece is filled again while it flies", "kernels/cuda/matrix.cc",
           "std::byte* const piece = queue.stage(rows * row_bytes);",
           "static std::byte* piece = nullptr;\n      if (to == out.memory_.data()) piece = queue.stage(2 * kPieceBytes);",
           (("kernels_cuda_emulated_test", "CudaLoad.PiecesArriveWhole"),)),
    Mutant("loading", "what has been read stays resident", "parallel/model/weights_inl.h",
           "checkpoint.drop_resident();", "", (("parallel_cuda_emulated_test", "LoadedFile.*"),)),
    Mutant("loading", "the bound of inputs in config.json is not taken", "parallel/model/checkpoint.cc",
           "if (*bound) state_input_bounds", "if (*bound && raw.empty()) state_input_bounds",
           (("model_test", "Checkpoint.Fp8Inputs*"),)),
    # -- decode as CUDA graphs, on the emulated GPU
    Mutant("graphs", "a graph does for work that is as long", "kernels/cuda/graphs.cc",
           "graph.key != key || graph.log != log", "graph.key != key || graph.log.size() != log.size()", GRAPHS, quick=True),
    Mutant("graphs", "what a capture uploads lies behind what was logged", "kernels/cuda/queue.cc",
           "step.repeated.rewind(staged);", "static_cast<void>(staged);", GRAPHS),
    Mutant("graphs", "the first graph of two steps under way serves both", "kernels/cuda/queue.cc",
           "if (!enqueues(Work::kUpload, to, staged, size)) return;", "if (!enqueues(Work::kUpload, to, size)) return;", GRAPHS),
    Mutant("graphs", "a communicator is aborted before its graphs are gone", "parallel/comm_nccl.cc",
           "for (const auto& each : graphs) each->end();  // an abort waits for them", "",
           (("parallel_cuda_emulated_test", "CudaDecodeGraphs.*"),)),
    Mutant("graphs", "ranks capture by their own rows", "parallel/rank_inl.h",
           "const uint64_t key = decode_key(plan, layouts);",
           "const uint64_t key = static_cast<uint64_t>(n + 1);",
           (("parallel_cuda_emulated_test", "Layouts/CudaDecode.*Cp3*"),)),
    Mutant("graphs", "times of a step that is captured count twice", "parallel/rank_inl.h",
           "report.attend_us = report.exposed_us = report.all_to_all_us = 0;", "static_cast<void>(report);",
           (("parallel_cuda_emulated_test", "CudaDecodeGraphs.TimesOf*"),)),
    Mutant("graphs", "payloads that grow come again", "parallel/decode_key.cc",
           "if (group.variant == Variant::kPassKv && group.q_rows.size() > 1) return 0;", "",
           (("parallel_ring_test", "DecodeKey.*"),)),
    Mutant("tuning", "the last algorithm that was timed is kept", "kernels/cuda/gemm.cc",
           "if (us < least) best = offer;", "best = offer;", (("kernels_cuda_emulated_test", "GemmScript.*"),)),
    # -- small sums in symmetric memory
    Mutant("symmetric memory", "a rank decides for itself", NCCL,
           "return sum == static_cast<float>(size());", "return mine;",
           (("nccl_test", "NcclSymmetric.OneRankWithoutMemoryMeansNone"),), quick=True),
    Mutant("symmetric memory", "by kernels that an abort does not end", NCCL,
           "version >= kNcclSymmetricOldest;", "version > 0;", (("nccl_test", "NcclSymmetric.NothingOfItBelow*"),)),
    Mutant("symmetric memory", "ranks that go without keep it", NCCL,
           '      sums.give_up("sums go without symmetric memory");\n      give_memory_back();\n', "",
           (("nccl_test", "NcclSymmetric.OneRankWithoutMemoryMeansNone"),)),
    Mutant("symmetric memory", "given back while the GPU may write there", NCCL,
           "    cudaDeviceSynchronize();\n", "", (("nccl_test", "NcclSymmetric.AnAbortEndsASumThatWaits"),)),
    Mutant("symmetric memory", "each rank sums at another place", NCCL,
           "return bytes <= static_cast<int64_t>(symmetric_.size()) ? symmetric_.data() : nullptr;",
           "return bytes > static_cast<int64_t>(symmetric_.size()) ? nullptr\n"
           "           : symmetric_.data() + (bytes <= 256 ? 4 * rank_ : 0);", SYMMETRIC),
    Mutant("symmetric memory", "a sum larger than it", NCCL,
           "return bytes <= static_cast<int64_t>(symmetric_.size()) ? symmetric_.data() : nullptr;",
           "return bytes <= 4 * static_cast<int64_t>(symmetric_.size()) ? symmetric_.data() : nullptr;", SYMMETRIC),
    Mutant("symmetric memory", "is given and not used", NCCL,
           "return sums_->all_reduce(queue, data, op);", "check(op);", SYMMETRIC),
    # -- attention on Hopper, on the emulated GPU
    Mutant("wgmma", "rows written by threads are not fenced for wgmma", HOPPER,
           "device::wait_copies<0>();\n      device::fence_proxy_async();\n    }",
           "device::wait_copies<0>();\n    }", WGMMA, quick=True),
    Mutant("wgmma", "the phase of a stage is the other one", HOPPER,
           "static_cast<uint32_t>(n / S::kStages & 1)", "static_cast<uint32_t>((n / S::kStages + 1) & 1)", WGMMA),
    Mutant("wgmma", "values of the stage after the right one", HOPPER,
           "issue_output(before);", "issue_output((before + 1) % S::kStages);", WGMMA),
    Mutant("wgmma", "a stage of values is given back while products read it", HOPPER,
           "      device::wgmma_wait<0>();\n      arrive_as_warp(&memory.v_empty[before]);",
           "      arrive_as_warp(&memory.v_empty[before]);\n      device::wgmma_wait<0>();", WGMMA),
    Mutant("wgmma", "rows written by threads are not swizzled", HOPPER,
           "device::swizzled_128(static_cast<uint32_t>(c / 8 * rows * 128 + r * 128 + c % 8 * 16));",
           "static_cast<uint32_t>(c / 8 * rows * 128 + r * 128 + c % 8 * 16);", WGMMA),
    Mutant("wgmma", "scores are read before they are there", HOPPER,
           "device::wgmma_wait<1>();", "device::wgmma_wait<2>();", WGMMA),
    Mutant("wgmma", "values are read before they are there", HOPPER,
           "      wait_for_values(n - 1);\n      issue_output(before);", "      issue_output(before);", WGMMA),
    Mutant("wgmma", "a stage of keys is given back before its positions are read", HOPPER,
           "    if (tile == Tile::kMasked) {", "    arrive_as_warp(&memory.k_empty[stage]);\n    __syncwarp();\n"
           "    if (tile == Tile::kMasked) {", WGMMA),
    Mutant("wgmma", "TMA brings padding", HOPPER,
           "rows_of_box > 0 && most != kPaddingKeyPos && !tiles.cut(tile)", "rows_of_box > 0 && !tiles.cut(tile)", WGMMA),
    Mutant("wgmma", "slabs of values are taken for neighbours", HOPPER,
           "device::shared_address(memory.v[stage]), S::kSlabBytes, 1024)",
           "device::shared_address(memory.v[stage]), 1024, 1024)", WGMMA),
    Mutant("wgmma", "more registers are taken than were given", HOPPER,
           "device::give_registers<kProducerRegisters>();", "", WGMMA),
    Mutant("wgmma", "turns are not handed on", HOPPER,
           "      your_turn();\n      device::wgmma_wait", "      device::wgmma_wait", WGMMA),
)
