// SPDX-License-Identifier: Apache-2.0
#include "parallel/comm_threads.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "parallel/comm_messages.h"

namespace annulus::parallel {
namespace {

class Mailbox {  // of one receiver
 public:
  using Key = std::pair<int32_t, uint64_t>;  // sender, tag

  void put(const Key& key, ConstBytes bytes) {
    const std::lock_guard lock(mutex_);
    messages_[key].emplace_back(bytes.begin(), bytes.end());
    ++version_;
    arrived_.notify_all();
  }
  bool take(const Key& key, Bytes into) {
    std::vector<std::byte> message;
    {
      const std::lock_guard lock(mutex_);
      const auto found = messages_.find(key);
      if (found == messages_.end()) return false;
      message = std::move(found->second.front());
      found->second.pop_front();
      if (found->second.empty()) messages_.erase(found);
    }
    if (message.size() != into.size())
      throw WireError(kernels::concat("received ", message.size(), " bytes"));
    std::memcpy(into.data(), message.data(), message.size());
    return true;
  }
  uint64_t version() {
    const std::lock_guard lock(mutex_);
    return version_;
  }
  bool wait_for_news(uint64_t seen, std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex_);
    return arrived_.wait_for(lock, limit, [&] { return version_ != seen; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<Key, std::deque<std::vector<std::byte>>> messages_;
  uint64_t version_ = 0;
};

struct Post {  // what all ranks share
  std::deque<Mailbox> boxes;
  AbortFlag aborted;
  int64_t epoch = 0;
};

class ThreadWire {
 public:
  struct Request {
    Bytes into;
    Mailbox::Key key;
    bool receiving = false;
  };

  struct Use {
    explicit Use(ThreadWire&) {}
  };

  ThreadWire(Post& post, int32_t world_rank) : post_(post), me_(world_rank) {}

  Request send(int32_t to, ConstBytes bytes, uint64_t tag) {
    box(to).put({me_, tag}, bytes);
    return {};
  }
  Request recv(int32_t from, Bytes bytes, uint64_t tag) {
    return {.into = bytes, .key = {from, tag}, .receiving = true};
  }
  bool done(Request& request) {
    return !request.receiving || box(me_).take(request.key, request.into);
  }
  void cancel(Request&) {}
  bool progress() {
    const uint64_t seen = std::exchange(seen_, box(me_).version());
    return seen != seen_;
  }
  bool block(std::chrono::milliseconds limit) { return box(me_).wait_for_news(seen_, limit); }
  std::string lost(int32_t) const { return {}; }
  int64_t epoch() const { return post_.epoch; }
  AbortFlag& abort_flag() { return post_.aborted; }

 private:
  Mailbox& box(int32_t rank) { return post_.boxes[static_cast<size_t>(rank)]; }

  Post& post_;
  int32_t me_;
  uint64_t seen_ = 0;  // news up to here have been looked at
};

struct Rank {
  Rank(Post& post, const Topology& topology, int32_t world_rank)
      : wire(post, world_rank),
        tp(make(topology, GroupId::kTp, world_rank)),
        cp(make(topology, GroupId::kCp, world_rank)),
        world(make(topology, GroupId::kWorld, world_rank)) {}

  MessageCommunicator<ThreadWire> make(const Topology& topology, GroupId group, int32_t me) {
    return {wire, group, group_members(topology, group, me), group_rank(topology, group, me)};
  }

  ThreadWire wire;
  MessageCommunicator<ThreadWire> tp, cp, world;
};

}  // namespace

struct ThreadWorld::Impl {
  Post post;
  std::deque<Rank> ranks;
};

ThreadWorld::ThreadWorld(Topology topology, int64_t epoch) : impl_(std::make_unique<Impl>()) {
  impl_->post.epoch = epoch;
  impl_->post.boxes.resize(static_cast<size_t>(topology.world()));
  for (int32_t r = 0; r < topology.world(); ++r)
    impl_->ranks.emplace_back(impl_->post, topology, r);
}

ThreadWorld::~ThreadWorld() = default;

Groups<kernels::CpuQueue> ThreadWorld::groups(int32_t world_rank) {
  Rank& rank = impl_->ranks.at(static_cast<size_t>(world_rank));
  return {.tp = &rank.tp, .cp = &rank.cp, .world = &rank.world};
}

void ThreadWorld::abort(const std::string& why) {
  impl_->post.aborted.raise(why);
}

}  // namespace annulus::parallel
