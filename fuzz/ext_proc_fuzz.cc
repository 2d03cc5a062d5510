// Any bytes as the messages of one ext_proc exchange: a reply, nothing, or an end of the call; replies that a
// parser takes; no reservation left behind.
//
// The input is a list of messages: a length in two bytes (little endian), then so many bytes. Length 0xffff
// asks for OnDeadline, 0xfffd for LetGo, 0xfffe gives the next message in pieces.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "fleet/fleet.h"
#include "frontends/ext_proc/session.h"

namespace fairway::ext_proc {
namespace {

class CheckingSink final : public Sink {
 public:
  void Send(std::string_view bytes) override {
    FAIRWAY_CHECK(!ended_);
    out_.append(bytes);
    Drain();
  }
  void Send(const net::SharedBytes& bytes) override { Send(bytes.view()); }
  net::SharedBytes Share(std::string bytes) override { return net::SharedBytes(std::move(bytes)); }
  void Finish(net::GrpcStatus, std::string_view) override {
    FAIRWAY_CHECK(!ended_);
    ended_ = true;
  }
  bool Reserve(size_t) override { return true; }
  void Release(size_t) override {}

 private:
  // Every reply is one well-formed message of at most 64 KiB and something.
  void Drain() {
    while (out_.size() >= 5) {
      size_t length = 0;
      for (size_t i = 1; i < 5; ++i) length = length << 8 | static_cast<uint8_t>(out_[i]);
      FAIRWAY_CHECK(out_[0] == 0);
      if (out_.size() < 5 + length) return;
      WireReader reader(std::string_view(out_).substr(5, length));
      int replies = 0;
      while (reader.Next()) replies += reader.field() >= 1 && reader.field() <= 7;
      FAIRWAY_CHECK(reader.ok() && replies == 1);
      out_.erase(0, 5 + length);
    }
  }
  std::string out_;
  bool ended_ = false;
};

struct World {
  World() {
    api::Manifests manifests;
    api::InferencePool pool;
    pool.meta.name = "pool";
    pool.selector = {{"app", "x"}};
    pool.target_ports = {8000};
    manifests.pools.push_back(pool);
    api::InferenceModel model;
    model.meta.name = "m";
    model.model_name = "m";
    model.criticality = api::Criticality::kCritical;
    model.pool_name = "pool";
    model.targets = {{"m-v1", std::nullopt}};
    manifests.models.push_back(model);
    for (int i = 1; i < 4; ++i) {
      api::Endpoint endpoint;
      endpoint.name = std::to_string(i);
      endpoint.address = "10.0.0." + std::to_string(i);
      endpoint.port = 8000;
      endpoint.labels = pool.selector;
      manifests.endpoints.push_back(endpoint);
    }
    fleet.Apply(manifests);
  }
  fleet::Fleet fleet;
  base::ManualClock clock;
  base::Registry registry;
  routing::Router router{fleet.published(), clock, registry, {}};
  std::unique_ptr<routing::Worker> worker = router.NewWorker(1);
  SessionOptions options{.max_body = 1 << 16};
  Metrics metrics{registry, false};
  SessionShared shared{router, *worker, clock, options, metrics, base::Random(1)};
};

void GiveInPieces(Session& session, std::string_view message) {
  const size_t first = message.size() / 3;
  const auto head =
      session.TakesBodyPieces() ? ParseBodyHead(message.substr(0, first), message.size()) : std::nullopt;
  if (!head) return session.OnMessage(message);
  session.OnBodyPiece(head->body);
  std::string_view rest = message.substr(first, head->body_left);
  while (!rest.empty()) {
    const std::string_view piece = rest.substr(0, 7);
    session.OnBodyPiece(piece);
    rest.remove_prefix(piece.size());
  }
  session.OnBodyTail(message.substr(message.size() - head->tail), head->inner_tail);
}

void Run(std::string_view input) {
  static World* const world = new World();  // one for all inputs: it is what costs
  {
    CheckingSink sink;
    Session session(world->shared, sink, "");
    bool in_pieces = false;
    while (input.size() >= 2) {
      const size_t length =
          static_cast<uint8_t>(input[0]) | static_cast<size_t>(static_cast<uint8_t>(input[1])) << 8;
      input.remove_prefix(2);
      if (length == 0xffff) {
        session.OnDeadline();
        continue;
      }
      if (length == 0xfffd) {
        session.LetGo();
        continue;
      }
      if (length == 0xfffe) {
        in_pieces = true;
        continue;
      }
      // A copy, so that a view kept too long is seen.
      const auto message = std::make_unique<std::string>(input.substr(0, length));
      input.remove_prefix(message->size());
      if (std::exchange(in_pieces, false)) {
        GiveInPieces(session, *message);
      } else {
        session.OnMessage(*message);
      }
    }
    input.size() % 2 == 0 ? session.OnGone() : session.OnHalfClose();
  }
  for (const auto& endpoint : world->fleet.published().Load()->pools.at("default/pool")->endpoints) {
    FAIRWAY_CHECK(endpoint.cell->own() == 0);
  }
}

}  // namespace
}  // namespace fairway::ext_proc

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fairway::ext_proc::Run({reinterpret_cast<const char*>(data), size});
  return 0;
}
