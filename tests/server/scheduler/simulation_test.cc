// SPDX-License-Identifier: Apache-2.0
// Thousands of steps under random submits, cancels, stops, rewinds and lost epochs: every answer
// must be what the request gets alone, every plan possible, nothing over capacity, no slot lost.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

#include "tests/server/scheduler/fake_ranks.h"

namespace annulus::server {
namespace {

using annulus::testing::AloneRequest;
using annulus::testing::answer_alone;
using annulus::testing::FakeRanks;
using annulus::testing::test_policy;

constexpr int32_t kVocab = 40;
constexpr int32_t kEos = 3;

struct Watched {
  AloneRequest alone;
  std::string session;
  int64_t prompt_tokens = 0;
  std::vector<int32_t> before;  // the session's tokens when it was submitted
  bool accepted = false;
  int64_t done = 0;  // prompt positions reported by progress
  std::vector<int32_t> answer;
  int64_t stop_after = -1;  // a "stop string" is found after this many tokens
};

class Simulation {
 public:
  Simulation(uint64_t seed, int32_t cp, int32_t page_tokens, int32_t chunk, int64_t capacity)
      : random_(seed),
        limits_(make_limits(page_tokens, chunk)),
        capacity_(capacity),
        cp_(cp),
        scheduler_(limits_),
        ranks_(cp, kVocab, capacity, page_tokens) {
    scheduler_.begin_epoch(++epoch_, test_policy(cp), capacity);
  }

  static SchedulerLimits make_limits(int32_t page_tokens, int32_t chunk) {
    SchedulerLimits limits;
    limits.context = 400;
    limits.vocab = kVocab;
    limits.eos_ids = {kEos};
    limits.max_running = 6;
    limits.max_queue = 8;
    limits.max_sessions = 3;
    // A few dozen rows a step, so that prompts are cut.
    limits.max_step_us = 100.0 * 40;
    limits.page_tokens = page_tokens;
    limits.chunk_tokens = chunk;
    limits.debug_requests = true;
    return limits;
  }

  void step() {
    switch (draw(12)) {
      case 0:
      case 1: submit(); break;
      case 2:
        if (draw(3) == 0) cancel();
        break;
      case 3:
        if (draw(4) == 0) rewind();
        break;
      case 4:
        if (draw(200) == 0) lose();
        break;
      case 5:
      case 6:
      case 7:
      case 8: plan(); break;
      default: complete(); break;
    }
    handle_events();
  }

  void drain() {
    for (int i = 0; i < 20000 &&
                    (scheduler_.running() + scheduler_.waiting() > 0 || scheduler_.plans_out() > 0);
         ++i) {
      plan();
      handle_events();
      if (draw(2) == 0) plan();
      complete();
      handle_events();
    }
    EXPECT_EQ(scheduler_.running() + scheduler_.waiting(), 0) << "stuck";
    EXPECT_TRUE(watched_.empty());
    for (const char* name : {"a", "b", "c", "d", "e"}) {
      if (scheduler_.session_tokens(name).ok()) {
        EXPECT_TRUE(scheduler_.rewind(name, 0).ok());
      }
    }
    while (scheduler_.plans_out() > 0) complete();
    plan();
    EXPECT_TRUE(ranks_.state().slots.empty()) << "a slot leaked";
    while (scheduler_.plans_out() > 0) complete();
    EXPECT_FALSE(scheduler_.next().has_value()) << "work out of nothing";
  }

  int64_t finished = 0, steps = 0, cached = 0, refused = 0, rebases = 0, truncates = 0;
  int64_t two_out = 0;

 private:
  int64_t draw(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }
  std::vector<int32_t> ids(int64_t n) {
    std::vector<int32_t> out(static_cast<size_t>(n));
    for (int32_t& id : out) id = static_cast<int32_t>(draw(kVocab));
    return out;
  }

  void submit() {
    GenerateRequest request;
    Watched watched;
    if (draw(2) == 0) request.session = std::string(1, static_cast<char>('a' + draw(5)));
    const auto held = scheduler_.session_tokens(request.session);
    if (held.ok()) watched.before = *held;
    request.append = !request.session.empty() && draw(2) == 0;
    std::vector<int32_t> prompt = ids(draw(4) == 0 ? 1 + draw(200) : 1 + draw(30));
    AloneRequest& alone = watched.alone;
    if (request.append) {
      alone.prompt = watched.before;
      alone.prompt.insert(alone.prompt.end(), prompt.begin(), prompt.end());
    } else {
      if (draw(2) == 0) {  // shares a prefix of the session
        const int64_t keep = draw(static_cast<int64_t>(watched.before.size()) + 1);
        prompt.insert(prompt.begin(), watched.before.begin(), watched.before.begin() + keep);
      }
      alone.prompt = prompt;
    }
    request.prompt = prompt;
    alone.seed = static_cast<uint64_t>(draw(3));
    request.sampling.seed = alone.seed;
    request.max_tokens = static_cast<int32_t>(1 + draw(40));
    request.ignore_eos = draw(3) == 0;
    if (!request.ignore_eos) alone.stop_ids.push_back(kEos);
    if (draw(3) == 0) request.stop_ids = {static_cast<int32_t>(draw(kVocab))};
    alone.stop_ids.insert(alone.stop_ids.end(), request.stop_ids.begin(), request.stop_ids.end());
    if (draw(4) == 0) request.forced_tokens = ids(1 + draw(request.max_tokens));
    alone.forced = request.forced_tokens;
    if (draw(3) == 0) request.top_logprobs = static_cast<int32_t>(draw(3));
    if (draw(5) == 0)
      request.prompt_logprob_positions = {draw(static_cast<int64_t>(alone.prompt.size()))};
    if (draw(8) == 0) request.all_prompt_logprobs = true;
    if (draw(6) == 0) request.variant = static_cast<parallel::Variant>(draw(3));
    if (draw(8) == 0) request.chunk_tokens = static_cast<int32_t>(1 + draw(50));
    if (draw(6) == 0) watched.stop_after = 1 + draw(20);
    watched.session = request.session;
    watched.prompt_tokens = static_cast<int64_t>(alone.prompt.size());
    alone.max_tokens =
        std::min<int64_t>(request.max_tokens, limits_.context - watched.prompt_tokens);
    const auto id = scheduler_.submit(std::move(request));
    if (!id.ok()) {
      ++refused;
      EXPECT_NE(id.status().code(), absl::StatusCode::kInternal);
      return;
    }
    watched_[*id] = std::move(watched);
  }

  void cancel() {
    if (watched_.empty()) return;
    auto it = watched_.begin();
    std::advance(it, draw(static_cast<int64_t>(watched_.size())));
    cancelled_ = it->first;
    scheduler_.cancel(it->first);
  }

  void rewind() {
    const std::string name(1, static_cast<char>('a' + draw(5)));
    const auto held = scheduler_.session_tokens(name);
    if (!held.ok()) return;
    (void)scheduler_.rewind(name, draw(static_cast<int64_t>(held->size()) + 1));
  }

  void lose() {
    scheduler_.lose_epoch(absl::UnavailableError("rank 1 lost"));
    handle_events();
    EXPECT_TRUE(watched_.empty());
    EXPECT_FALSE(scheduler_.next().has_value());
    sent_.clear();
    ranks_ = FakeRanks(cp_, kVocab, capacity_, limits_.page_tokens);
    scheduler_.begin_epoch(++epoch_, test_policy(cp_), capacity_);
  }

  void plan() {
    const std::optional<PlannedStep> planned = scheduler_.next();
    if (!planned) return;
    ++steps;
    EXPECT_EQ(planned->plan.epoch, epoch_);
    ranks_.run(*planned);
    EXPECT_TRUE(ranks_.state() == scheduler_.state());
    sent_.push_back(planned->plan.step);
    EXPECT_LE(sent_.size(), 2u);
    two_out += sent_.size() == 2 ? 1 : 0;
    for (const parallel::Op& op : planned->plan.ops) {
      rebases += op.kind == parallel::Op::Kind::kRebase ? 1 : 0;
      truncates += op.kind == parallel::Op::Kind::kTruncate ? 1 : 0;
    }
  }

  void complete() {
    if (sent_.empty()) return;
    const int64_t step = sent_.front();
    sent_.pop_front();
    scheduler_.complete(step, ranks_.take_answers(step));
  }

  void handle_events() {
    for (std::vector<SequenceEvent> events = scheduler_.take_events(); !events.empty();
         events = scheduler_.take_events()) {
      for (const SequenceEvent& event : events) handle(event);
    }
  }

  void handle(const SequenceEvent& event) {
    ASSERT_TRUE(watched_.contains(event.id)) << "an event after the last one";
    Watched& watched = watched_.at(event.id);
    if (const auto* accepted = std::get_if<Accepted>(&event.event)) {
      EXPECT_FALSE(watched.accepted);
      watched.accepted = true;
      watched.done = accepted->cached_tokens;
      cached += accepted->cached_tokens;
      EXPECT_EQ(accepted->prompt_tokens, watched.prompt_tokens);
      EXPECT_LT(accepted->cached_tokens, watched.prompt_tokens);
      return;
    }
    EXPECT_TRUE(watched.accepted || std::holds_alternative<Failed>(event.event));
    if (const auto* progress = std::get_if<PrefillProgress>(&event.event)) {
      EXPECT_GT(progress->done, watched.done);
      watched.done = progress->done;
    } else if (const auto* scored = std::get_if<PromptLogprob>(&event.event)) {
      if (scored->token >= 0) {
        EXPECT_EQ(scored->token, watched.alone.prompt[static_cast<size_t>(scored->position + 1)]);
        EXPECT_EQ(scored->logprob, -static_cast<float>(scored->token));
      } else {
        EXPECT_EQ(scored->position, watched.prompt_tokens - 1);
      }
    } else if (const auto* token = std::get_if<Token>(&event.event)) {
      EXPECT_EQ(watched.done, watched.prompt_tokens);
      watched.answer.push_back(token->id);
      const auto n = static_cast<int64_t>(watched.answer.size());
      if (n == watched.stop_after && !event.ends) scheduler_.finish_early(event.id, n);
    } else if (const auto* end = std::get_if<Finished>(&event.event)) {
      finish(watched, *end, event.id == cancelled_);
      watched_.erase(event.id);
    } else if (std::holds_alternative<Failed>(event.event)) {
      if (!watched.session.empty()) {
        const auto held = scheduler_.session_tokens(watched.session);
        EXPECT_EQ(held.ok() ? *held : std::vector<int32_t>(), watched.before);
      }
      watched_.erase(event.id);
    }
  }

  void finish(const Watched& watched, const Finished& end, bool cancelled) {
    ++finished;
    std::vector<int32_t> expected = answer_alone(watched.alone, kVocab);
    if (cancelled) {
      EXPECT_EQ(end.reason, FinishReason::kCancelled);
      ASSERT_LE(watched.answer.size(), expected.size());
      expected.resize(watched.answer.size());
    } else if (watched.stop_after > 0 &&
               watched.stop_after < static_cast<int64_t>(expected.size())) {
      EXPECT_EQ(end.reason, FinishReason::kStop);
      expected.resize(static_cast<size_t>(watched.stop_after));
    }
    EXPECT_EQ(watched.answer, expected);
    EXPECT_EQ(end.usage.completion_tokens, static_cast<int64_t>(watched.answer.size()));
    if (watched.session.empty()) return;
    const auto held = scheduler_.session_tokens(watched.session);
    if (!held.ok() || !watched.accepted || watched.done == 0) return;  // evicted, or never ran
    if (held->size() < watched.alone.prompt.size()) return;            // cancelled while it waited
    std::vector<int32_t> all = watched.alone.prompt;
    all.insert(all.end(), watched.answer.begin(), watched.answer.end());
    if (!cancelled) {
      EXPECT_EQ(*held, all);
    }
  }

  std::mt19937_64 random_;
  SchedulerLimits limits_;
  int64_t capacity_, epoch_ = 0;
  int32_t cp_;
  Scheduler scheduler_;
  FakeRanks ranks_;
  std::deque<int64_t> sent_;
  std::map<int64_t, Watched> watched_;
  int64_t cancelled_ = -1;
};

struct World {
  int32_t cp, page_tokens, chunk;
  int64_t capacity;
};

void PrintTo(const World& world, std::ostream* out) {
  *out << "cp " << world.cp << " page " << world.page_tokens << " chunk " << world.chunk
       << " capacity " << world.capacity;
}

class SimulationTest : public ::testing::TestWithParam<World> {};

TEST_P(SimulationTest, AnswersAreThoseOfEachRequestAlone) {
  const World world = GetParam();
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(seed);
    Simulation simulation(seed, world.cp, world.page_tokens, world.chunk, world.capacity);
    for (int i = 0; i < 15000 && !::testing::Test::HasFailure(); ++i) simulation.step();
    simulation.drain();
    // The run was worth it.
    EXPECT_GT(simulation.finished, 50);
    EXPECT_GT(simulation.steps, 1000);
    EXPECT_GT(simulation.two_out, 500);
    EXPECT_GT(simulation.cached, 100);
    EXPECT_GT(simulation.truncates, 20);
    if (world.cp > 1) {
      EXPECT_GT(simulation.rebases, 0);
    }
    if (HasFailure()) return;
  }
}

// Capacity: ample; one context and a little; pages of one row and of sixteen.
INSTANTIATE_TEST_SUITE_P(Worlds, SimulationTest,
                         ::testing::Values(World{1, 1, 0, 4000}, World{1, 16, 32, 416},
                                           World{2, 16, 0, 320}, World{3, 1, 0, 180},
                                           World{3, 4, 7, 220}, World{4, 16, 24, 160},
                                           World{4, 1, 0, 4000}));

}  // namespace
}  // namespace annulus::server
