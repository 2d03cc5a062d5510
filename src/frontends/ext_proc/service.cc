#include "frontends/ext_proc/service.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <utility>

namespace fairway::ext_proc {

namespace {
constexpr std::string_view kProcess = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
constexpr size_t kMaxPoolKey = 512;
// Calls whose deadlines are looked at in one turn: there may be a hundred thousand, and all may be over.
constexpr size_t kSweptPerTurn = 512;
// A pool that never is: no name has a slash alone.
constexpr std::string_view kNoPool = "/";

// Before there is anything to decide by. With its first message, which Envoy sends at once, and not before: a
// call that is being made cannot end.
class EarlyCall final : public net::GrpcCall {
 public:
  void OnMessage(std::string_view) override { End(); }
  void OnHalfClose() override { End(); }

 private:
  void End() {
    if (!finished()) Finish(net::GrpcStatus::kUnavailable, "no InferencePool is known yet");
  }
};
}  // namespace

class ExtProcCall;

// One loop's share. Instead of a timer per exchange, which would cost more than the exchange, one timer looks
// at the deadlines of all of them a few times a second; it runs while there are any.
struct ExtProcService::Worker {
  Worker(ExtProcService& service, const routing::Router& router, net::Loop& its_loop, uint64_t seed)
      : loop(its_loop),
        router_worker(router.NewWorker(seed)),
        ports(service.ports_),
        shared{router,           *router_worker,     service.clock_, service.options_.session,
               service.metrics_, base::Random(~seed)} {
    const SessionOptions& o = service.options_.session;
    shared.has_put_off = [this] { PutOff(); };
    shared.ask_tokens = [this, &service](request::TokenClient::Question question,
                                         request::TokenClient::Answer answer) {
      service.tokens_.Ask(std::move(question), loop, std::move(answer));
    };
    sweep_period = std::clamp(std::min({o.body_timeout, o.buffered_timeout, o.mode_timeout}) / 8,
                              base::kMillisecond * 5, base::kMillisecond * 250);
  }

  void Add(ExtProcCall* call);
  void Remove(ExtProcCall* call);
  void Sweep();
  void PutOff();
  void SweepSome();

  net::Loop& loop;
  std::unique_ptr<routing::Worker> router_worker;
  base::Published<Ports>::Reader ports;
  SessionShared shared;
  base::Nanos sweep_period;
  ExtProcCall* calls = nullptr;  // a list through the calls themselves
  ExtProcCall* sweep_next = nullptr;
  std::unique_ptr<net::Timer> timer;
  std::unique_ptr<net::Timer> sweep_on;  // the rest of a sweep
  bool knew_a_pool = false;
  bool put_off = false;                                    // a task is posted
  std::shared_ptr<bool> alive = std::make_shared<bool>();  // for that task
};

class ExtProcCall final : public net::GrpcCall, private Sink {
 public:
  ExtProcCall(ExtProcService& service, ExtProcService::Worker& worker, std::string pool_key)
      : service_(service),
        worker_(worker),
        session_(worker.shared, *this, std::move(pool_key)),
        started_(service.clock_.Now()) {
    worker_.Add(this);
    service_.metrics_.StreamStarted();
  }
  ~ExtProcCall() override {
    worker_.Remove(this);
    service_.metrics_.StreamEnded(code_.empty() ? "Canceled" : code_, service_.clock_.Now() - started_);
  }

  void OnMessage(std::string_view message) override {
    Guard([&] { session_.OnMessage(message); });
  }
  bool OnHead(std::string_view first, size_t length, size_t& body, size_t& tail) override {
    if (!session_.TakesBodyPieces()) return false;
    const auto head = ParseBodyHead(first, length);
    if (!head) return false;
    body = head->body_left;
    tail = head->tail;
    inner_tail_ = head->inner_tail;
    Guard([&] { session_.OnBodyPiece(head->body); });
    return true;
  }
  void OnPart(std::string_view bytes) override {
    Guard([&] { session_.OnBodyPiece(bytes); });
  }
  void OnTail(std::string_view tail) override {
    Guard([&] { session_.OnBodyTail(tail, inner_tail_); });
  }
  bool OnMemoryShort() override {
    bool let_go = false;
    Guard([&] { let_go = session_.LetGo(); });
    return let_go;
  }
  void OnHalfClose() override {
    Guard([&] { session_.OnHalfClose(); });
  }
  void OnCancel(bool) override {
    if (code_.empty()) code_ = "Canceled";
    session_.OnGone();
  }

  void Sweep(base::Nanos now) {
    const base::Nanos deadline = session_.deadline();
    if (deadline != 0 && now >= deadline) Guard([&] { session_.OnDeadline(); });
  }

  ExtProcCall* next = nullptr;
  ExtProcCall* previous = nullptr;

 private:
  // A fault of ours ends the call with an error, so that the gateway does what its failure mode says.
  template <typename Body>
  void Guard(Body body) {
    try {
      body();
    } catch (const std::exception& fault) {
      service_.metrics_.InternalFault();
      if (service_.fault_limit_.Allow(service_.clock_.Now())) {
        service_.log_.Error("ext_proc exchange failed", {{"error", fault.what()}});
      }
      session_.OnGone();
      Finish(net::GrpcStatus::kInternal, "internal error");
    }
  }

  // Sink.
  void Send(std::string_view bytes) override { Write(bytes); }
  void Send(const net::SharedBytes& bytes) override { Write(bytes); }
  net::SharedBytes Share(std::string bytes) override { return net::GrpcCall::Share(std::move(bytes)); }
  void Finish(net::GrpcStatus status, std::string_view message) override {
    if (code_.empty()) {
      code_ = status == net::GrpcStatus::kOk                ? "OK"
              : status == net::GrpcStatus::kInvalidArgument ? "InvalidArgument"
                                                            : "Internal";
    }
    net::GrpcCall::Finish(status, message);
  }
  void Run(const std::function<void()>& body) override {
    Guard([&body] { body(); });
  }
  bool Reserve(size_t bytes) override { return net::GrpcCall::Reserve(bytes); }
  void Release(size_t bytes) override { net::GrpcCall::Release(bytes); }

  ExtProcService& service_;
  ExtProcService::Worker& worker_;
  Session session_;
  base::Nanos started_;
  std::string_view code_;  // of the gRPC status, once ended
  size_t inner_tail_ = 0;
};

void ExtProcService::Worker::Add(ExtProcCall* call) {
  call->next = calls;
  if (calls != nullptr) calls->previous = call;
  calls = call;
  if (timer) return;
  timer = std::make_unique<net::Timer>(loop);
  timer->Every(sweep_period, [this] { Sweep(); });
}

void ExtProcService::Worker::Remove(ExtProcCall* call) {
  if (sweep_next == call) sweep_next = call->next;
  if (call->next != nullptr) call->next->previous = call->previous;
  (call->previous != nullptr ? call->previous->next : calls) = call->next;
}

void ExtProcService::Worker::Sweep() {
  if (sweep_next != nullptr) return;  // the one before is not over
  sweep_next = calls;
  SweepSome();
}

void ExtProcService::Worker::SweepSome() {
  const base::Nanos now = shared.clock.Now();
  for (size_t n = 0; n < kSweptPerTurn && sweep_next != nullptr; ++n) {
    ExtProcCall* const call = sweep_next;
    sweep_next = call->next;  // it may go away while it is looked at
    call->Sweep(now);
  }
  if (sweep_next != nullptr) {
    if (sweep_on == nullptr) sweep_on = std::make_unique<net::Timer>(loop);
    return sweep_on->After(0, [this] { SweepSome(); });
  }
  if (calls == nullptr) timer.reset();
}

// A connection writes what its calls send before its loop comes to what is posted.
void ExtProcService::Worker::PutOff() {
  if (std::exchange(put_off, true)) return;
  loop.Post([this, is_alive = std::weak_ptr<bool>(alive)] {
    if (is_alive.expired()) return;
    put_off = false;
    if (routing::Router::HasPutOff(*router_worker)) routing::Router::RunPutOff(*router_worker);
  });
}

ExtProcService::ExtProcService(ServiceOptions options, const routing::Router& router,
                               const base::Clock& clock, base::Registry& registry, const base::Log& log,
                               const std::vector<net::Loop*>& loops)
    : options_(std::move(options)),
      clock_(clock),
      log_(log),
      metrics_(registry, options_.stream_metrics),
      tokens_(registry, log) {
  uint64_t seed = options_.seed;
  for (net::Loop* loop : loops) {
    workers_.push_back(std::make_unique<Worker>(*this, router, *loop, base::SplitMix64(seed)));
  }
}

ExtProcService::~ExtProcService() = default;

void ExtProcService::StopTimers(std::function<void()> done) {
  auto left = std::make_shared<std::atomic<size_t>>(workers_.size());
  auto finished = std::make_shared<std::function<void()>>(std::move(done));
  for (const auto& worker : workers_) {
    worker->loop.Post([worker = worker.get(), left, finished] {
      worker->timer.reset();
      worker->sweep_on.reset();
      if (left->fetch_sub(1) == 1) (*finished)();
    });
  }
}

void ExtProcService::SetPorts(uint16_t main_port, std::map<uint16_t, std::string> pools) {
  ports_.Publish(std::make_shared<const Ports>(Ports{main_port, std::move(pools)}));
}

std::unique_ptr<net::GrpcCall> ExtProcService::NewCall(const net::GrpcRequest& request) {
  if (request.path != kProcess) return nullptr;
  Worker& worker = *workers_.at(request.worker);
  // A pool that goes away later is another thing: its calls get 503.
  worker.knew_a_pool = worker.knew_a_pool || worker.shared.router.knew_a_pool();
  if (!worker.knew_a_pool) {
    metrics_.NoPoolYet();
    return std::make_unique<EarlyCall>();
  }
  std::string_view pool = request.metadata ? request.metadata(kPoolMetadata) : std::string_view();
  const Ports& ports = *worker.ports.Get();
  if (pool.empty()) {
    const auto own = ports.pools.find(request.port);
    if (own != ports.pools.end()) {
      pool = own->second;
    } else if (ports.main == 0 || request.port == ports.main) {
      pool = options_.default_pool;
    } else {
      pool = kNoPool;
    }
  }
  return std::make_unique<ExtProcCall>(*this, worker, std::string(pool.substr(0, kMaxPoolKey)));
}

}  // namespace fairway::ext_proc
