#include "simulator/server.h"

#include <future>
#include <utility>

#include "base/strings.h"
#include "net/address.h"
#include "net/loop.h"

namespace fairway::simulator {

using base::ErrorCode;
using base::Fail;

struct Simulator::Impl {
  struct Slot {
    net::Loop* loop = nullptr;
    std::unique_ptr<Endpoint> endpoint;  // touched on its loop only
  };

  Impl(const base::Clock& clock, const base::Log& log) : clock(clock), log(log) {}
  ~Impl() {
    for (Slot& slot : slots) RunOn(*slot.loop, [&] { slot.endpoint.reset(); });
    for (auto& thread : threads) thread->Join();
  }

  static void RunOn(net::Loop& loop, const std::function<void()>& task) {
    FAIRWAY_CHECK(!loop.InLoop());
    std::promise<void> done;
    loop.Post([&] {
      task();
      done.set_value();
    });
    done.get_future().wait();
  }

  // On the asking endpoint's loop; `done` is called there too.
  void Delegate(net::Loop& asking, TargetedPatch patch, std::function<void(base::Result<std::string>)> done) {
    const auto target = FindEndpoint(resolved, patch.endpoint);
    if (!target) {
      asking.Post([done, error = target.error()] { done(tl::make_unexpected(error)); });
      return;
    }
    Slot& slot = slots[*target];
    slot.loop->Post([&asking, &slot, patch = std::move(patch.patch), done = std::move(done)] {
      base::Result<std::string> body = Fail(ErrorCode::kUnavailable, "the simulator is being stopped");
      if (slot.endpoint) {
        const auto faults = slot.endpoint->SetFaults(patch);
        if (faults) {
          body = ToJson(*faults) + "\n";
        } else {
          body = tl::make_unexpected(faults.error());
        }
      }
      asking.Post([done, body] { done(body); });
    });
  }

  const base::Clock& clock;
  const base::Log& log;
  std::vector<std::unique_ptr<net::LoopThread>> threads;
  std::vector<Slot> slots;
  std::vector<EndpointOptions> resolved;  // with their names and ports; fixed when the first request can come
};

Simulator::Simulator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Simulator::~Simulator() = default;

base::Result<std::unique_ptr<Simulator>> Simulator::Start(SimulatorOptions options, const base::Clock& clock,
                                                          const base::Log& log) {
  if (options.endpoints.empty()) return Fail(ErrorCode::kInvalidArgument, "no endpoint to simulate");
  if (options.threads < 1 || options.threads > 64)
    return Fail(ErrorCode::kInvalidArgument, "threads must be 1..64, got " + std::to_string(options.threads));
  auto impl = std::make_unique<Impl>(clock, log);
  for (uint32_t i = 0; i < options.threads; ++i)
    impl->threads.push_back(std::make_unique<net::LoopThread>(("sim-" + std::to_string(i)).c_str()));
  impl->resolved = std::move(options.endpoints);
  impl->slots.resize(impl->resolved.size());

  base::Result<void> failed;
  std::vector<std::unique_ptr<Endpoint>> opened(impl->slots.size());
  for (size_t i = 0; i < impl->slots.size(); ++i) {
    Impl::Slot& slot = impl->slots[i];
    slot.loop = &impl->threads[i % options.threads]->loop();
  }
  // A request can come as soon as the first endpoint listens. Only one that sets another endpoint's faults
  // reads what is written here; it is held back until all is known.
  auto ready = std::make_shared<std::promise<void>>();
  auto is_ready = ready->get_future().share();
  for (size_t i = 0; i < impl->slots.size() && failed; ++i) {
    Impl::Slot& slot = impl->slots[i];
    Impl::RunOn(*slot.loop, [&, owner = impl.get()] {
      net::Loop* loop = slot.loop;
      auto endpoint = Endpoint::Listen(
          owner->resolved[i], *loop, clock, log, [owner, loop, is_ready](TargetedPatch patch, auto done) {
            if (is_ready.wait_for(std::chrono::seconds(0)) != std::future_status::ready)
              return done(Fail(ErrorCode::kUnavailable, "the simulator is starting"));
            owner->Delegate(*loop, std::move(patch), std::move(done));
          });
      if (!endpoint) {
        failed = tl::make_unexpected(endpoint.error());
        return;
      }
      slot.endpoint = std::move(*endpoint);
      owner->resolved[i].port = slot.endpoint->port();
      owner->resolved[i].name = slot.endpoint->name();
    });
    if (!failed) {
      const EndpointOptions& endpoint = impl->resolved[i];
      failed.error().message =
          "endpoint " +
          (endpoint.name.empty() ? net::FormatHostPort(endpoint.host, endpoint.port) : endpoint.name) + ": " +
          failed.error().message;
    }
  }
  if (!failed) return tl::make_unexpected(failed.error());
  ready->set_value();
  return std::unique_ptr<Simulator>(new Simulator(std::move(impl)));
}

size_t Simulator::size() const { return impl_->slots.size(); }
uint16_t Simulator::port(size_t endpoint) const { return impl_->resolved[endpoint].port; }
const std::string& Simulator::name(size_t endpoint) const { return impl_->resolved[endpoint].name; }
std::string Simulator::address(size_t endpoint) const {
  return net::FormatHostPort(impl_->resolved[endpoint].host, impl_->resolved[endpoint].port);
}

base::Result<Faults> Simulator::SetFaults(size_t endpoint, const FaultPatch& patch) {
  Impl::Slot& slot = impl_->slots.at(endpoint);
  base::Result<Faults> result;
  Impl::RunOn(*slot.loop, [&] { result = slot.endpoint->SetFaults(patch); });
  return result;
}

void Simulator::Inspect(size_t endpoint, const std::function<void(const Endpoint&)>& look) {
  Impl::Slot& slot = impl_->slots.at(endpoint);
  Impl::RunOn(*slot.loop, [&] { look(*slot.endpoint); });
}

base::Result<size_t> FindEndpoint(const std::vector<EndpointOptions>& endpoints, std::string_view target) {
  std::string known;
  for (size_t i = 0; i < endpoints.size(); ++i) {
    const EndpointOptions& endpoint = endpoints[i];
    const std::string address = net::FormatHostPort(endpoint.host, endpoint.port);
    if (target == endpoint.name || target == address || target == std::to_string(endpoint.port)) return i;
    known += (known.empty() ? "" : ", ") + (endpoint.name.empty() ? address : endpoint.name);
  }
  return Fail(ErrorCode::kNotFound, "no endpoint \"" + std::string(target) + "\"; there are: " + known);
}

}  // namespace fairway::simulator
