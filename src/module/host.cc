#include "module/host.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "frontends/envoy_module/abi.h"
#include "frontends/request/token_client.h"
#include "net/line_writer.h"
#include "picker/picker.h"

namespace fairway::module {
namespace {

using envoy_module::ClusterHost;
using envoy_module::ClusterHosts;
using envoy_module::ClusterPool;
using envoy_module::PickerConfig;
using envoy_module::SharedPicker;

// How often bodies are looked for that are overdue.
constexpr base::Nanos kBodyTick = 250 * base::kMillisecond;

// How often requests that wait look again: for hosts that their worker has not heard of yet.
constexpr base::Nanos kStartTick = 20 * base::kMillisecond;

// `word`: a level as base::Log writes it, of either format.
void LogToEnvoy(std::string_view word, std::string_view line) {
  using envoy_module::abi::LogLevel;
  LogLevel level = LogLevel::kInfo;
  if (word == "DEBUG" || word == "debug") level = LogLevel::kDebug;
  if (word == "WARN" || word == "warn") level = LogLevel::kWarn;
  if (word == "ERROR" || word == "error") level = LogLevel::kError;
  const std::string text = "fairway: " + std::string(base::Trim(line));
  FAIRWAY_ENVOY(log)(level, envoy_module::abi::ToBuffer(text));
}

// Our lines become Envoy's: without our time and level, which Envoy's have, too.
void TextToEnvoy(std::string_view line) {
  line.remove_prefix(std::min(line.find(' ') + 1, line.size()));
  const std::string_view word = line.substr(0, line.find(' '));
  LogToEnvoy(word, line.substr(word.size()));
}

// Whole, for who reads Envoy's log and takes the fields apart.
void JsonToEnvoy(std::string_view line) {
  constexpr std::string_view kLevel = R"("level":")";
  const size_t begin = line.find(kLevel) + kLevel.size();
  LogToEnvoy(line.substr(begin, line.find('"', begin) - begin), line);
}

// Explanations go to standard output, whole and marked, so that who reads Envoy's output can tell them from
// its log. Envoy's workers call it: none of them waits for a reader.
std::function<void(std::string_view)> PrintsExplanations() {
  constexpr size_t kMaxWaiting = 4u << 20;
  const auto out =
      std::make_shared<net::LineWriter>(STDOUT_FILENO, net::LineWriterOptions{.max_bytes = kMaxWaiting});
  return [out](std::string_view text) {
    std::string marked;
    for (const std::string_view line : base::Split(text, '\n')) {
      if (!line.empty()) marked += "fairway-explain: " + std::string(line) + "\n";
    }
    out->Write(marked);
  };
}

base::Result<picker::Options> MakeOptions(const PickerConfig& config) {
  picker::Options options;
  if (config.kubernetes) {
    auto client = sources::kubernetes::FindClientConfig(config.kubernetes->kubeconfig);
    if (!client) return tl::make_unexpected(client.error());
    auto& kubernetes = options.kubernetes.emplace();
    kubernetes.client = std::move(*client);
    const std::string& key = config.kubernetes->pool_key;
    kubernetes.options.namespace_name = key.substr(0, key.find('/'));
    kubernetes.options.pool_name = key.substr(key.find('/') + 1);
    kubernetes.options.pool_group = config.kubernetes->pool_group;
    kubernetes.options.seed = picker::SystemSeed();
  }
  options.files = config.files;
  options.manifests = config.manifests;
  options.log_problems = config.log_manifests;
  picker::Apply(config, options);
  options.admin = config.admin_port ? picker::Options::Admin::kRetried : picker::Options::Admin::kNone;
  options.admin_host = config.admin_host;
  options.admin_port = config.admin_port.value_or(0);
  options.admin_cert_dir = config.admin_cert_dir;
  options.admin_tls.client_ca_file = config.admin_client_ca_file;
  options.admin_hosts = config.admin_hosts;
  if (config.peers) {
    options.peers = {.peers = config.peers->addresses,
                     .host = config.peers->host,
                     .port = config.peers->port,
                     .keeps_trying = true,
                     .secure = config.peers->tls,
                     .cert_path = config.peers->cert_dir,
                     .ca_file = config.peers->ca_file,
                     .interval = config.peers->interval,
                     .names = {.peers = config.peers->where + "addresses",
                               .port = config.peers->where + "port",
                               .cert_path = config.peers->where + "certDir",
                               .ca_file = config.peers->where + "caFile"}};
  }
  options.router.use_subset_hint = config.use_subset_hint;
  if (config.explain) options.router.explain = PrintsExplanations();
  return options;
}

std::vector<api::Endpoint> ToEndpoints(const ClusterPool& pool, const ClusterHosts& hosts) {
  std::vector<api::Endpoint> endpoints;
  endpoints.reserve(hosts.size());
  for (const ClusterHost& host : hosts) {
    api::Endpoint endpoint;
    endpoint.namespace_name = pool.pool_key.substr(0, pool.pool_key.find('/'));
    endpoint.address = host.host;
    endpoint.port = host.port;
    endpoint.name = host.host + ":" + std::to_string(host.port);
    endpoint.labels = host.labels;
    api::TakeMetricsPlace(host.labels, endpoint);
    endpoints.push_back(std::move(endpoint));
  }
  return endpoints;
}

// Messages of many lines: one log line each.
std::string Joined(const std::vector<api::Problem>& problems) {
  std::string text;
  for (const auto& problem : problems) {
    if (problem.severity == api::Severity::kError) text += "\n" + api::ToString(problem);
  }
  return text;
}

}  // namespace

// One picker with its filters' view of it.
class Process::Host {
 public:
  static base::Result<std::unique_ptr<Host>> Make(Process& process, const PickerConfig& config) {
    auto host = std::make_unique<Host>(process, config);
    Host* const raw = host.get();
    std::string errors;
    auto options = MakeOptions(config);
    if (!options) return tl::make_unexpected(options.error());
    auto started = picker::Picker::Start(
        std::move(*options), host->log_,
        [&](const std::vector<api::Problem>& problems) {
          errors += Joined(problems);
          for (const auto& problem : problems) {
            if (config.log_manifests && problem.severity == api::Severity::kWarning)
              raw->log_.Warn(api::ToString(problem));
          }
        },
        [raw](const api::Manifests& manifests, const sources::NameResolver::Addresses& addresses) {
          raw->OnFleet(manifests, addresses);
        });
    if (!started) return base::Fail(started.error().code, started.error().message + errors);
    host->Serve(std::move(*started));
    return host;
  }

  Host(Process& process, const PickerConfig& config)
      : process_(process),
        config_(config),
        log_(base::LogLevel::kDebug, config.log_format,
             config.log_format == base::LogFormat::kJson ? JsonToEnvoy : TextToEnvoy) {}

  ~Host() {
    for (const uint64_t id : subscriptions_) process_.directory_.Unsubscribe(id);
    if (picker_ != nullptr) {
      net::RunOn(picker_->control_loop(), [this] {
        shared_raw_.store(nullptr);
        settle_.reset();
        bodies_.reset();
      });
    }
    shared_.reset();  // its workers look at the picker's fleet
    tokens_.reset();
    picker_.reset();
  }

  SharedPicker* shared() const { return shared_.get(); }

 private:
  void Serve(std::unique_ptr<picker::Picker> started) {
    picker_ = std::move(started);
    SharedPicker::Parts parts;
    parts.router = &picker_->router();
    parts.clock = &picker_->clock();
    parts.log = &log_;
    parts.settled = [this](std::string_view pool) { return Settled(pool); };
    parts.post = [this](std::function<void()> task) { picker_->control_loop().Post(std::move(task)); };
    tokens_ = std::make_unique<request::TokenClient>(picker_->registry(), log_);
    parts.ask_tokens = [this](request::TokenClient::Question question, request::TokenClient::Answer answer) {
      tokens_->Ask(std::move(question), picker_->control_loop(), std::move(answer));
    };
    parts.seed = config_.seed != 0 ? config_.seed : picker::SystemSeed();
    parts.concurrency = std::max(1u, FAIRWAY_ENVOY(get_concurrency)());
    shared_ = std::make_unique<SharedPicker>(std::move(parts));
    shared_raw_.store(shared_.get());
    for (const ClusterPool& pool : config_.clusters) {
      process_.directory_.WantLabels(pool.metadata_namespace, pool.label_keys);
      subscriptions_.push_back(++process_.last_subscription_);
      process_.directory_.Subscribe(subscriptions_.back(), pool.cluster,
                                    [this, pool](const ClusterHosts& hosts) {
                                      picker_->SetEndpoints(pool.pool_key, ToEndpoints(pool, hosts));
                                    });
    }
    net::RunOn(picker_->control_loop(), [this] {
      began_ = picker_->clock().Now();
      if (AllSettled()) shared_->Settle();
      settle_ = std::make_unique<net::Timer>(picker_->control_loop());
      settle_->Every(kStartTick, [this] { OnTick(); });
      bodies_ = std::make_unique<net::Timer>(picker_->control_loop());
      bodies_->Every(kBodyTick, [this] { shared_->RingForBodies(picker_->clock().Now()); });
    });
  }

  // On the control loop, after each change of the fleet.
  void OnFleet(const api::Manifests&, const sources::NameResolver::Addresses&) {
    SharedPicker* shared = shared_raw_.load();
    if (shared == nullptr) return;
    shared->KnewAPool();
    if (AllSettled()) {
      shared->Settle();
    } else {
      shared->waiters().Wake();
    }
  }

  // On the control loop, while the start is not over.
  void OnTick() {
    const base::Nanos now = picker_->clock().Now();
    if (!shared_->starting(now)) settle_->Cancel();  // and the last to be woken finds it over
    if (now - began_ >= config_.startup_wait) {
      shared_->Settle();
    } else {
      shared_->waiters().Wake();
    }
  }

  // Any thread. A pool that nobody declared will not come either.
  bool Settled(std::string_view key) const {
    const auto fleet = picker_->fleet().Load();
    const fleet::PoolSnapshot* pool = fleet->FindPool(key);
    if (pool == nullptr) return !config_.kubernetes || !fleet->pools.empty();
    return !pool->endpoints.empty();
  }

  bool AllSettled() const {
    const auto fleet = picker_->fleet().Load();
    if (config_.kubernetes && fleet->pools.empty()) return false;
    return std::all_of(fleet->pools.begin(), fleet->pools.end(),
                       [](const auto& entry) { return !entry.second->endpoints.empty(); });
  }

  Process& process_;
  const PickerConfig config_;
  const base::Log log_;
  std::unique_ptr<picker::Picker> picker_;
  std::unique_ptr<request::TokenClient> tokens_;
  std::unique_ptr<SharedPicker> shared_;
  std::atomic<SharedPicker*> shared_raw_{nullptr};  // what the control loop may use, and when
  std::unique_ptr<net::Timer> settle_;              // the control loop's, while the start is not over
  std::unique_ptr<net::Timer> bodies_;              // the control loop's
  base::Nanos began_ = 0;
  std::vector<uint64_t> subscriptions_;
};

Process::Process() : main_thread_(std::this_thread::get_id()) {}

base::Result<std::shared_ptr<SharedPicker>> Process::PickerFor(const PickerConfig& config) {
  const std::lock_guard lock(mutex_);
  std::erase_if(hosts_, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<Host>& slot = hosts_[config.identity];
  std::shared_ptr<Host> host = slot.lock();
  if (host == nullptr) {
    auto made = Host::Make(*this, config);
    if (!made) return tl::make_unexpected(made.error());
    host = std::shared_ptr<Host>(made->release(), [this](Host* old) { Retire(old); });
    slot = host;
  }
  SharedPicker* shared = host->shared();
  return std::shared_ptr<SharedPicker>(std::move(host), shared);
}

void Process::Retire(Host* host) {
  if (std::this_thread::get_id() == main_thread_) {
    // Not in the middle of requests, and Envoy may be on its way out: better now than beside its end.
    delete host;
    return;
  }
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread([host] { delete host; }).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

base::Result<void> Process::Check(const PickerConfig& config) const {
  if (const auto options = MakeOptions(config); !options) return tl::make_unexpected(options.error());
  std::vector<api::Problem> problems;
  if (!picker::ConfigSource(picker::ConfigOf(config)).Load(problems))
    return base::Fail(base::ErrorCode::kInvalidArgument,
                      "the scheduler config has errors" + Joined(problems));
  if (config.files.empty()) return {};
  const api::LoadResult loaded = api::LoadManifests(config.files);
  if (!loaded.ok()) {
    return base::Fail(base::ErrorCode::kInvalidArgument,
                      "the manifests have errors" + Joined(loaded.problems));
  }
  if (loaded.manifests.pools.empty() && config.manifests.pools.empty() && config.clusters.empty())
    return base::Fail(base::ErrorCode::kInvalidArgument, "the manifests have no InferencePool");
  return {};
}

}  // namespace fairway::module
