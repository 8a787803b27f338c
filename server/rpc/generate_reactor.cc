// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/generate_reactor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/status_map.h"
#include "server/rpc/wire.h"

namespace annulus::server {

GenerateReactor* GenerateReactor::start(ServiceCore& core, WallClock::time_point deadline,
                                        const grpc::ByteBuffer* request) {
  std::shared_ptr<GenerateReactor> reactor(new GenerateReactor(core, deadline));
  reactor->self_ = reactor;
  if (core.draining) {
    reactor->close_with(
        absl::UnavailableError("this server is shutting down: send the request to another"));
  } else if (!core.pool.post([reactor, request] { reactor->admit(*request); })) {
    reactor->close_with(
        absl::ResourceExhaustedError("too many requests wait to be tokenised: try again later"));
  }
  return reactor.get();
}

void GenerateReactor::admit(const grpc::ByteBuffer& request) {
  if (is_cancelled()) return close_with(absl::CancelledError("cancelled by the client"));
  const auto proto = parse<v1::GenerateRequest>(request);
  if (!proto.ok()) return close_with(proto.status());
  auto converted =
      to_request(*proto, core_.tokenizer.get(), core_.config.vocab, core_.facts.served_context);
  if (!converted.ok()) return close_with(converted.status());
  context_ = {.seed = converted->sampling.seed, .logprobs = converted->top_logprobs >= 0};

  const auto id = core_.engine.submit(
      *std::move(converted),
      [self = shared_from_this()](Event event) { self->push(std::move(event)); });
  if (!id.ok()) return close_with(id.status());
  {
    const std::lock_guard lock(mutex_);
    id_ = *id;
  }
  if (is_cancelled()) core_.engine.cancel(*id);  // meanwhile, when the id was not known
}

bool GenerateReactor::is_cancelled() {
  const std::lock_guard lock(mutex_);
  return cancelled_;
}

void GenerateReactor::push(Event event) {
  bool overflow = false;
  bool write = false;
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    if (const auto* failed = std::get_if<Failed>(&event)) {
      closed_ = true;
      final_ = failed->status;
    } else {
      closed_ = std::holds_alternative<Finished>(event);
      outbox_bytes_ += event_bytes(event);
      outbox_.push_back(std::move(event));
      overflow = !closed_ && (outbox_bytes_ > core_.outbox.max_bytes ||
                              static_cast<int64_t>(outbox_.size()) > core_.outbox.max_events);
    }
    if (overflow) {
      closed_ = true;
      final_ = absl::ResourceExhaustedError(
          absl::StrCat("the answer was read too slowly: ", outbox_.size(),
                       " events waited, so the request was ended"));
      outbox_.clear();
      outbox_bytes_ = 0;
    }
    write = !std::exchange(writing_, true);
  }
  if (overflow) cancel_request();
  if (write) write_next();
}

void GenerateReactor::close_with(absl::Status status) {
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    closed_ = true;
    final_ = std::move(status);
    if (writing_) return;
    writing_ = true;
  }
  write_next();
}

void GenerateReactor::cancel_request() {
  int64_t id = -1;
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    id = id_;
  }
  if (id >= 0) core_.engine.cancel(id);
}

void GenerateReactor::write_next() {
  Event event;
  bool more = false;
  bool last = false;
  absl::StatusCode code = absl::StatusCode::kOk;
  {
    const std::lock_guard lock(mutex_);
    if (outbox_.empty()) {
      if (!closed_) {
        writing_ = false;
        return;
      }
      last = true;
      code = left_.value_or(final_.code());
    } else {
      event = std::move(outbox_.front());
      outbox_.pop_front();
      outbox_bytes_ -= event_bytes(event);
      more = !outbox_.empty();
    }
  }
  if (last) {  // writing_ stays: nothing follows
    core_.requests.count(code);
    return Finish(to_grpc(final_));
  }
  message_ = serialise(to_proto(event, context_));
  grpc::WriteOptions options;
  if (more) options.set_buffer_hint();  // the next one goes into the same packet
  StartWrite(&message_, options);
}

void GenerateReactor::OnWriteDone(bool ok) {
  if (!ok) {
    {
      const std::lock_guard lock(mutex_);
      outbox_.clear();
      outbox_bytes_ = 0;
      if (!closed_) final_ = absl::CancelledError("the client is gone");
      closed_ = true;
    }
    client_left();
  }
  write_next();
}

void GenerateReactor::OnCancel() {
  client_left();
}

// Near its deadline it left because of it: the deadline comes here late, and rounded up by the wire
// format.
void GenerateReactor::client_left() {
  using std::chrono::milliseconds;
  const auto share = std::chrono::duration_cast<milliseconds>((deadline_ - began_) / 20);
  const milliseconds near = std::min(share + milliseconds(50), milliseconds(1000));
  const bool late = WallClock::now() >= deadline_ - near;
  {
    const std::lock_guard lock(mutex_);
    if (!left_) left_ = late ? absl::StatusCode::kDeadlineExceeded : absl::StatusCode::kCancelled;
  }
  cancel_request();
}

void GenerateReactor::OnDone() {
  self_.reset();
}

}  // namespace annulus::server
