#include "frontends/ext_proc/health.h"

#include <utility>

#include "frontends/ext_proc/wire.h"

namespace fairway::ext_proc {

namespace {

constexpr std::string_view kService = "/grpc.health.v1.Health/";
constexpr base::Nanos kWatchPeriod = 100 * base::kMillisecond;
// Of one loop. Gateways and tools that watch are few; the probes of Kubernetes do not.
constexpr size_t kMaxWatchers = 1000;
constexpr size_t kMaxServiceName = 1024;
constexpr std::string_view kLiveness = "liveness";
constexpr std::string_view kReadiness = "readiness";

}  // namespace

// The watchers of one loop.
struct HealthService::Worker {
  Worker(const HealthState& its_state, net::Loop& its_loop) : state(its_state), loop(its_loop) {}

  // False: there are too many.
  bool Add(HealthCall* call);
  void Remove(HealthCall* call);
  void Tell();

  const HealthState& state;
  net::Loop& loop;
  HealthCall* watchers = nullptr;   // a list through the calls themselves
  HealthCall* next_told = nullptr;  // a call may go away while another is told
  size_t count = 0;
  uint32_t told = 0;                  // what the watchers know
  std::unique_ptr<net::Timer> timer;  // runs while somebody watches
};

HealthService::Status HealthService::StatusOf(std::string_view service) const {
  const Status base = state_.serving() ? Status::kServing : Status::kNotServing;
  const bool usual = service.empty() || service == kExternalProcessor;
  if (names_ == HealthNames::kExtProcOnly) return usual ? base : Status::kServiceUnknown;
  // Who waits for a pool or for an API server would gain nothing from being restarted.
  if (service == kLiveness) return Status::kServing;
  if (!state_.has_election()) return base;
  if (!usual && service != kReadiness) return Status::kServiceUnknown;
  return state_.leading() ? base : Status::kNotServing;
}

class HealthCall final : public net::GrpcCall {
 public:
  using Status = HealthService::Status;
  enum class Method { kCheck, kWatch, kList };

  HealthCall(const HealthService& service, std::shared_ptr<HealthService::Worker> worker, Method method)
      : service_(service), worker_(std::move(worker)), method_(method) {}
  ~HealthCall() override {
    if (watching_) worker_->Remove(this);
  }

  void OnMessage(std::string_view message) override {
    if (answered_) return Finish(net::GrpcStatus::kInvalidArgument, "one message is enough");
    answered_ = true;
    WireReader r(message);
    std::string_view name;
    while (r.Next()) {
      if (r.field() == 1 && r.is_bytes()) name = r.bytes();
    }
    if (!r.ok() || name.size() > kMaxServiceName)
      return Finish(net::GrpcStatus::kInvalidArgument, "malformed request");
    name_ = name;
    switch (method_) {
      case Method::kCheck:
        // With leader election the reference answers with a status of its own, not with an error.
        if (service_.StatusOf(name_) == Status::kServiceUnknown && !service_.state_.has_election()) {
          return Finish(net::GrpcStatus::kNotFound, "unknown service");
        }
        Tell();
        return Finish(net::GrpcStatus::kOk);
      case Method::kWatch:
        watching_ = worker_->Add(this);
        if (!watching_) return Finish(net::GrpcStatus::kResourceExhausted, "too many watchers");
        return Tell();
      case Method::kList:
        List();
        return Finish(net::GrpcStatus::kOk);
    }
  }

  // A watcher goes on watching after its half-close.
  void OnHalfClose() override {
    if (!answered_) Finish(net::GrpcStatus::kInvalidArgument, "no request");
  }

  // Sends the status when it is another one than before.
  void Tell() {
    const Status now = service_.StatusOf(name_);
    if (told_ == now) return;
    told_ = now;
    WireWriter w;
    w.Number(1, static_cast<uint64_t>(now));
    w.GrpcHeader();
    Write(w.view());
  }

  HealthCall* next = nullptr;
  HealthCall* previous = nullptr;

 private:
  // HealthListResponse{map<string, HealthCheckResponse> statuses = 1}
  void List() {
    WireWriter w;
    for (const std::string_view name : {kExternalProcessor, std::string_view()}) {
      const size_t entry = w.Mark();
      w.Number(1, static_cast<uint64_t>(service_.StatusOf(name)));
      w.EndMessage(2, entry);
      w.Bytes(1, name);
      w.EndMessage(1, entry);
    }
    w.GrpcHeader();
    Write(w.view());
  }

  const HealthService& service_;
  std::shared_ptr<HealthService::Worker> worker_;
  Method method_;
  bool answered_ = false;
  std::string name_;
  bool watching_ = false;
  Status told_ = Status::kUnknown;
};

bool HealthService::Worker::Add(HealthCall* call) {
  if (count >= kMaxWatchers) return false;
  ++count;
  call->next = watchers;
  if (watchers != nullptr) watchers->previous = call;
  watchers = call;
  if (timer) return true;
  told = state.version();
  timer = std::make_unique<net::Timer>(loop);
  timer->Every(kWatchPeriod, [this] { Tell(); });
  return true;
}

void HealthService::Worker::Remove(HealthCall* call) {
  --count;
  if (next_told == call) next_told = call->next;
  if (call->next != nullptr) call->next->previous = call->previous;
  (call->previous != nullptr ? call->previous->next : watchers) = call->next;
  if (watchers == nullptr) timer.reset();
}

// The watchers are looked at when something changed, and not else.
void HealthService::Worker::Tell() {
  const uint32_t now = state.version();
  if (std::exchange(told, now) == now) return;
  for (HealthCall* call = watchers; call != nullptr; call = next_told) {
    next_told = call->next;
    call->Tell();
  }
  next_told = nullptr;
}

HealthService::HealthService(const HealthState& state, HealthNames names,
                             const std::vector<net::Loop*>& loops)
    : state_(state), names_(names) {
  for (net::Loop* loop : loops) workers_.push_back(std::make_shared<Worker>(state, *loop));
}

HealthService::~HealthService() = default;

std::unique_ptr<net::GrpcCall> HealthService::NewCall(const net::GrpcRequest& request) {
  std::string_view method = request.path;
  if (!method.starts_with(kService)) return nullptr;
  method.remove_prefix(kService.size());
  const std::shared_ptr<Worker>& worker = workers_.at(request.worker);
  if (method == "Check") return std::make_unique<HealthCall>(*this, worker, HealthCall::Method::kCheck);
  if (method == "Watch") return std::make_unique<HealthCall>(*this, worker, HealthCall::Method::kWatch);
  if (method == "List") return std::make_unique<HealthCall>(*this, worker, HealthCall::Method::kList);
  return nullptr;
}

void HealthService::Announce() {
  for (const auto& worker : workers_) worker->loop.Post([worker] { worker->Tell(); });
}

}  // namespace fairway::ext_proc
