// The shared object itself, through its hooks, as Envoy calls them: on a main thread and on workers, with
// configurations that come and go under load, and with faults.
#include <dirent.h>
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/fake_envoy.h"

// glibc frees the thread-local memory of a library that was loaded at run time where ThreadSanitizer does not
// see that its thread has ended and was joined. Only that function: races of ours have frames of ours on top.
extern "C" const char* __tsan_default_suppressions() {  // NOLINT: the sanitizer's name
  return "race:_dl_deallocate_tls\n";
}

namespace fairway {
namespace {

namespace abi = envoy_module::abi;
using testing::HasSubstr;
using tests::FakeCluster;
using tests::FakeStream;
using tests::TheFakeEnvoy;

// The hooks we use, found by name.
struct Module {
  Module() {
    const char* path = std::getenv("FAIRWAY_MODULE");
    handle = path == nullptr ? nullptr : dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      ADD_FAILURE() << (path == nullptr ? "FAIRWAY_MODULE is not set" : dlerror());
      std::abort();
    }
    Find(program_init, "program_init");
    Find(config_new, "http_filter_config_new");
    Find(config_destroy, "http_filter_config_destroy");
    Find(route_new, "http_filter_per_route_config_new");
    Find(route_destroy, "http_filter_per_route_config_destroy");
    Find(stream_new, "http_filter_new");
    Find(stream_destroy, "http_filter_destroy");
    Find(request_headers, "http_filter_request_headers");
    Find(request_body, "http_filter_request_body");
    Find(scheduled, "http_filter_scheduled");
    Find(response_headers, "http_filter_response_headers");
    Find(response_body, "http_filter_response_body");
    Find(stream_complete, "http_filter_stream_complete");
    Find(lb_new, "lb_new");
    Find(lb_update, "lb_on_host_membership_update");
    Find(lb_choose, "lb_choose_host");
    Find(lb_destroy, "lb_destroy");
  }
  template <typename F>
  void Find(F& function, const std::string& name) {
    function = reinterpret_cast<F>(dlsym(handle, ("envoy_dynamic_module_on_" + name).c_str()));
    if (function == nullptr) ADD_FAILURE() << "no hook " << name;
  }

  void* handle;
  const char* (*program_init)();
  const void* (*config_new)(void*, abi::Buffer, abi::Buffer);
  void (*config_destroy)(const void*);
  const void* (*route_new)(abi::Buffer, abi::Buffer);
  void (*route_destroy)(const void*);
  const void* (*stream_new)(const void*, void*);
  void (*stream_destroy)(const void*);
  abi::HeadersStatus (*request_headers)(void*, const void*, bool);
  abi::BodyStatus (*request_body)(void*, const void*, bool);
  void (*scheduled)(void*, const void*, uint64_t);
  abi::HeadersStatus (*response_headers)(void*, const void*, bool);
  abi::BodyStatus (*response_body)(void*, const void*, bool);
  void (*stream_complete)(void*, const void*);
  const void* (*lb_new)(const void*, void*);
  void (*lb_update)(void*, const void*, size_t, size_t);
  bool (*lb_choose)(void*, const void*, void*, uint32_t*, uint32_t*);
  void (*lb_destroy)(const void*);
};

Module& TheModule() {
  static auto* module = [] {
    auto* made = new Module;  // never unloaded, as Envoy does with do_not_close
    EXPECT_STREQ(made->program_init(), "v0.2.0");
    return made;
  }();
  return *module;
}

using Config = std::shared_ptr<const void>;

// As Envoy holds it: streams share it, and the last one to let go destroys it, on whatever thread that is.
Config NewConfig(const std::string& text) {
  const void* config = TheModule().config_new(nullptr, abi::ToBuffer("fairway"), abi::ToBuffer(text));
  if (config == nullptr) return nullptr;
  return {config, [](const void* c) { TheModule().config_destroy(c); }};
}

// Endpoints that nobody listens at: scrapes fail, and requests go on by what was sent.
std::string Endpoints(uint64_t seed) {
  return R"({"seed":)" + std::to_string(seed) +
         R"(,"scrapeInterval":"5ms","objects":[{"apiVersion":"inference.networking.k8s.io/v1","kind":"InferencePool",)"
         R"("metadata":{"name":"pool"},"spec":{"selector":{"matchLabels":{"a":"b"}},"targetPorts":[{"number":8000}],)"
         R"("endpointPickerRef":{"name":"x","port":{"number":9002}}}},{"endpoints":[)"
         R"({"name":"one","address":"127.0.0.1","port":1,"labels":{"a":"b"}},)"
         R"({"name":"two","address":"127.0.0.1","port":2,"labels":{"a":"b"}}]}]})";
}

const std::string kBody = R"({"model":"m","prompt":"hello"})";

// One request through all hooks. Returns where it was sent.
std::string Serve(const Config& config, uint32_t worker, FakeStream* out = nullptr) {
  Module& module = TheModule();
  FakeStream envoy{.request_headers = {{":method", "POST"},
                                       {":path", "/v1/completions"},
                                       {"content-length", std::to_string(kBody.size())}},
                   .worker = worker};
  const void* stream = module.stream_new(config.get(), &envoy);
  EXPECT_EQ(module.request_headers(&envoy, stream, false), abi::HeadersStatus::kStop);
  envoy.received = {kBody};
  const auto status = module.request_body(&envoy, stream, true);
  if (status == abi::BodyStatus::kContinue) {
    envoy.response_headers = {{":status", "200"}};
    envoy.upstream_address = envoy.override_host;
    module.response_headers(&envoy, stream, false);
    module.response_body(&envoy, stream, true);
  }
  module.stream_complete(&envoy, stream);
  module.stream_destroy(stream);
  if (out != nullptr) *out = envoy;
  return envoy.override_host;
}

size_t Threads() {
  size_t count = 0;
  DIR* folder = opendir("/proc/self/task");
  while (const dirent* entry = readdir(folder)) count += entry->d_name[0] != '.' ? 1 : 0;
  closedir(folder);
  return count;
}

bool Await(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

TEST(ModuleHooks, ServesAndSharesOnePickerAmongFiltersThatSayTheSame) {
  const size_t before = Threads();
  const Config first = NewConfig(Endpoints(1));
  ASSERT_NE(first, nullptr);
  const size_t one = Threads();
  EXPECT_GT(one, before);
  const Config second = NewConfig(Endpoints(1));
  EXPECT_EQ(Threads(), one);
  const Config other = NewConfig(Endpoints(2));
  EXPECT_GT(Threads(), one);
  for (const auto& config : {first, second, other}) {
    EXPECT_THAT(Serve(config, 0), testing::StartsWith("127.0.0.1:"));
  }
}

TEST(ModuleHooks, AMistakeIsSaidInTheLogAndRefused) {
  TheFakeEnvoy().log.clear();
  EXPECT_EQ(NewConfig(R"({"manifests":["/nowhere/at/all.yaml"]})"), nullptr);
  EXPECT_EQ(NewConfig(R"({"manifest":["/x"]})"), nullptr);
  EXPECT_EQ(NewConfig(std::string(100'000, '[')), nullptr);
  const std::string route = R"({"pool":"llama"})";
  EXPECT_EQ(TheModule().route_new(abi::ToBuffer("fairway"), abi::ToBuffer(route)), nullptr);
  std::string all;
  for (const auto& line : TheFakeEnvoy().log) all += line + "\n";
  EXPECT_THAT(all, HasSubstr("fairway: /nowhere/at/all.yaml"));
  EXPECT_THAT(all, HasSubstr("did you mean \"manifests\"?"));
  EXPECT_THAT(all, HasSubstr("namespace/name"));
}

TEST(ModuleHooks, LinesAreTextOrObjects) {
  const auto said = [](const std::string& format) {
    TheFakeEnvoy().log.clear();
    const std::string some = Endpoints(1);
    Config config = NewConfig(some.substr(0, some.size() - 1) +
                              R"(,"configText":"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig")" +
                              format + "}");
    EXPECT_NE(config, nullptr);
    config.reset();  // its threads write, too
    std::string all;
    for (const auto& line : TheFakeEnvoy().log) all += line + "\n";
    return all;
  };
  EXPECT_THAT(said(""), HasSubstr("fairway: --config-text:1: warning: "));
  EXPECT_THAT(said(R"(,"logFormat":"json")"),
              testing::ContainsRegex(
                  R"re(fairway: \{"time":"[^"]+","level":"warn","msg":"--config-text:1: warning: )re"));
}

TEST(ModuleHooks, ValidatingChecksAndStartsNothing) {
  TheFakeEnvoy().validating = true;
  const size_t before = Threads();
  const Config good = NewConfig(Endpoints(1));
  EXPECT_NE(good, nullptr);
  EXPECT_EQ(Threads(), before);
  EXPECT_EQ(NewConfig(R"({"manifests":["/nowhere/at/all.yaml"]})"), nullptr);
  TheFakeEnvoy().validating = false;
}

TEST(ModuleHooks, AFaultLeavesNoHook) {
  const Config config = NewConfig(Endpoints(1));
  ASSERT_NE(config, nullptr);
  TheFakeEnvoy().throw_on_headers = true;
  FakeStream envoy;
  EXPECT_EQ(Serve(config, 0, &envoy), "");  // FailOpen: it went on without a decision
  EXPECT_FALSE(envoy.reply);
  uint64_t counted = 0;
  for (const auto& [id, count] : envoy.counters) counted += count;
  EXPECT_EQ(counted, 2u);  // a fault, and let go
  const std::string close = Endpoints(1);
  const Config closing = NewConfig(close.substr(0, close.size() - 1) + R"(,"failureMode":"FailClose"})");
  ASSERT_NE(closing, nullptr);
  Serve(closing, 0, &envoy);
  ASSERT_TRUE(envoy.reply);
  EXPECT_EQ(envoy.reply->status, 500u);
  TheFakeEnvoy().throw_on_headers = false;
  EXPECT_NE(Serve(config, 0), "");
}

TEST(ModuleHooks, AHundredReloadsUnderLoadLoseNothingAndLeaveNothing) {
  const size_t before = Threads();
  std::mutex mutex;
  Config current = NewConfig(Endpoints(1));
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> served{0};
  std::atomic<uint64_t> lost{0};
  std::vector<std::thread> workers;
  for (uint32_t worker = 0; worker < 2; ++worker) {
    workers.emplace_back([&, worker] {
      while (!stop) {
        Config config;
        {
          const std::lock_guard lock(mutex);
          config = current;
        }
        ++(Serve(config, worker).empty() ? lost : served);
      }  // and is often the last to let an old one go
    });
  }
  for (uint64_t i = 0; i < 100; ++i) {
    Config next = NewConfig(Endpoints(2 + i % 3));
    ASSERT_NE(next, nullptr);
    const uint64_t seen = served;
    ASSERT_TRUE(Await([&] { return served > seen; }));
    const std::lock_guard lock(mutex);
    current.swap(next);
  }
  stop = true;
  for (auto& worker : workers) worker.join();
  EXPECT_EQ(lost, 0u);
  EXPECT_GT(served, 100u);
  current.reset();
  EXPECT_TRUE(Await([&] { return Threads() == before; })) << Threads() << " threads, " << before << " before";
}

TEST(ModuleHooks, EndpointsOfAClusterAndRequestsThatWaitForThem) {
  Module& module = TheModule();
  const Config config = NewConfig(R"({"pools":[{"name":"default/pool","cluster":"c"}],"startupWait":"30s"})");
  ASSERT_NE(config, nullptr);
  FakeStream envoy{.request_headers = {{":method", "GET"}, {":path", "/v1/models"}}};
  const void* stream = module.stream_new(config.get(), &envoy);
  EXPECT_EQ(module.request_headers(&envoy, stream, true), abi::HeadersStatus::kStop);
  EXPECT_FALSE(envoy.reply);

  FakeCluster cluster{.name = "c"};
  const void* balancer = module.lb_new(nullptr, &cluster);
  cluster.priorities[0] = {{.address = "127.0.0.1:1"}};
  module.lb_update(&cluster, balancer, 1, 0);
  ASSERT_TRUE(Await([] { return TheFakeEnvoy().commits() > 0; }));
  module.scheduled(&envoy, stream, 0);
  EXPECT_TRUE(envoy.continued);
  EXPECT_EQ(envoy.override_host, "127.0.0.1:1");
  module.stream_complete(&envoy, stream);
  module.stream_destroy(stream);
  EXPECT_EQ(TheFakeEnvoy().live_schedulers(), 0u);

  uint32_t priority = 7;
  uint32_t index = 7;
  EXPECT_TRUE(module.lb_choose(&cluster, balancer, nullptr, &priority, &index));
  EXPECT_EQ(index, 0u);
  // A host that goes gets nothing more, one that comes is there soon.
  cluster.priorities[0] = {{.address = "127.0.0.1:2"}};
  module.lb_update(&cluster, balancer, 1, 1);
  EXPECT_TRUE(Await([&] { return Serve(config, 1) == "127.0.0.1:2"; }));
  module.lb_destroy(balancer);
}

}  // namespace
}  // namespace fairway
