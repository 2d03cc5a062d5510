// A shell script stands in for Envoy here; the real one is in tests/envoy.
#include "frontends/local/envoy_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>
#include <mutex>
#include <thread>

#include "frontends/local/envoy_binary.h"
#include "frontends/local/local_gateway.h"
#include "net/http_server.h"

namespace fairway::local {
namespace {

using ::testing::HasSubstr;

class Folder {
 public:
  Folder() { FAIRWAY_CHECK(mkdtemp(path_.data()) != nullptr); }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  std::string Script(const std::string& name, const std::string& body) const {
    const std::string file = path_ + "/" + name;
    std::filesystem::create_directories(std::filesystem::path(file).parent_path());
    std::ofstream(file) << "#!/bin/sh\n" << body;
    chmod(file.c_str(), 0755);
    return file;
  }

 private:
  std::string path_ = "/tmp/fairway-test-XXXXXX";
};

// Runs the loop on a thread of its own, as long as the test; children die with that thread.
class EnvoyProcessTest : public ::testing::Test {
 protected:
  EnvoyProcessTest() {
    auto listening = net::HttpServer::Listen(
        {}, thread_.loop(),
        [](net::HttpRequest request, std::shared_ptr<net::HttpResponder> responder) {
          responder->Send({.body = request.target == "/ready" ? "LIVE\n" : "a::1\nb::2\n"});
        },
        log_);
    FAIRWAY_CHECK(listening.has_value());
    admin_ = std::move(*listening);
  }
  template <typename Task>
  auto OnLoop(Task task) {
    std::promise<decltype(task())> result;
    auto future = result.get_future();
    thread_.loop().Post([&] {
      if constexpr (std::is_void_v<decltype(task())>) {
        task();
        result.set_value();
      } else {
        result.set_value(task());
      }
    });
    return future.get();
  }

  ~EnvoyProcessTest() override {
    OnLoop([&] {
      process_.reset();
      admin_.reset();
    });
  }

  // Does `first`, writes the admin address as Envoy does, by which it counts as ready, then goes on with
  // `body`. $1.. are Envoy's arguments.
  std::string FakeEnvoy(const std::string& body, const std::string& first = "") {
    return folder_.Script("envoy", first + "\necho 127.0.0.1:" + std::to_string(admin_->port()) + " > " +
                                       folder_.path() + "/admin.txt.new; mv " + folder_.path() +
                                       "/admin.txt.new " + folder_.path() + "/admin.txt\n" + body);
  }

  void Make(const std::string& binary, size_t listeners = 2) {
    OnLoop([&] {
      process_ = std::make_unique<EnvoyProcess>(
          thread_.loop(),
          EnvoyProcessOptions{.binary = binary,
                              .directory = folder_.path(),
                              .listeners = listeners,
                              .first_pause = base::kMillisecond,
                              .stop_grace = 200 * base::kMillisecond},
          EnvoyProcessEvents{.on_ready = [this] { ++ready_; },
                             .on_failed = [this](const std::string& reason) { failed_.set_value(reason); }},
          log_);
      process_->Start();
    });
  }

  template <typename Condition>
  bool Await(Condition condition) {
    for (int i = 0; i < 6000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return condition();
  }
  pid_t Pid() {
    return OnLoop([&] { return process_->pid(); });
  }
  void Stop() {
    std::promise<void> stopped;
    thread_.loop().Post([&] { process_->Stop([&] { stopped.set_value(); }); });
    stopped.get_future().get();
  }
  std::string Logged() {
    std::lock_guard lock(mutex_);
    return lines_;
  }

  std::mutex mutex_;
  std::string lines_;
  base::Log log_{base::LogLevel::kInfo, base::LogFormat::kText, [this](std::string_view line) {
                   std::lock_guard lock(mutex_);
                   lines_ += line;
                 }};
  Folder folder_;
  std::atomic<int> ready_{0};
  std::promise<std::string> failed_;
  net::LoopThread thread_{"test-loop"};
  std::unique_ptr<net::HttpServer> admin_;
  std::unique_ptr<EnvoyProcess> process_;
};

TEST_F(EnvoyProcessTest, IsReadyWhenItsListenersAreOpenAndStops) {
  Make(FakeEnvoy("exec sleep 1000"));
  ASSERT_TRUE(Await([&] { return ready_ == 1; }));
  const pid_t pid = Pid();
  ASSERT_GT(pid, 0);
  EXPECT_EQ(getpgid(pid), pid);  // Ctrl-C is ours
  Stop();
  EXPECT_EQ(Pid(), -1);
  EXPECT_EQ(kill(pid, 0), -1);
}

TEST_F(EnvoyProcessTest, IsStartedAgainWhenKilled) {
  Make(FakeEnvoy("exec sleep 1000"));
  ASSERT_TRUE(Await([&] { return ready_ == 1; }));
  const pid_t first = Pid();
  kill(first, SIGKILL);
  ASSERT_TRUE(Await([&] { return ready_ == 2; }));
  EXPECT_NE(Pid(), first);
  EXPECT_EQ(OnLoop([&] { return process_->restarts(); }), 1u);
  EXPECT_THAT(Logged(), HasSubstr("Envoy ended, it is started again"));
  EXPECT_THAT(Logged(), HasSubstr("killed by signal 9"));
  EXPECT_THAT(Logged(), HasSubstr("Envoy serves again"));
}

TEST_F(EnvoyProcessTest, FirstStartThatFailsIsNotTriedAgain) {
  Make(folder_.Script("envoy",
                      "echo 'critical|main|server.cc:449|error initializing config'; echo oops >&2; exit 3"));
  const std::string reason = failed_.get_future().get();
  EXPECT_EQ(reason, "Envoy ended before it served (exit status 3): error initializing config / oops");
  EXPECT_EQ(OnLoop([&] { return process_->restarts(); }), 0u);
  Stop();  // nothing to stop: done at once
}

TEST_F(EnvoyProcessTest, WhatCannotBeExecutedFails) {
  Make("/nonexistent/envoy");
  EXPECT_THAT(failed_.get_future().get(), HasSubstr("exit status 127"));
}

TEST_F(EnvoyProcessTest, WhatIgnoresSigtermIsKilled) {
  Make(FakeEnvoy("while :; do sleep 1; done", "trap '' TERM"));
  ASSERT_TRUE(Await([&] { return ready_ == 1; }));
  const pid_t pid = Pid();
  Stop();
  EXPECT_EQ(kill(pid, 0), -1);
  EXPECT_THAT(Logged(), HasSubstr("does not end, it is killed"));
}

TEST_F(EnvoyProcessTest, LinesOfOneKindDoNotFlood) {
  Make(
      FakeEnvoy("i=0; while [ $i -lt 2000 ]; do echo \"warning|ext_proc|ext_proc.cc:2068|gRPC error on "
                "stream $i | x\"; i=$((i+1)); done >&2\n"
                "echo 'warning|config|filesystem_subscription_impl.cc:81|Filesystem config update rejected: "
                "missing ): (('\n"
                "exec sleep 1000"));
  ASSERT_TRUE(Await([&] { return Logged().find("rejected") != std::string::npos; }));
  const std::string lines = Logged();
  EXPECT_THAT(lines, HasSubstr("WARN  Envoy: gRPC error on stream 0 | x component=ext_proc"));
  EXPECT_THAT(lines, HasSubstr("ERROR Envoy: Filesystem config update rejected"));
  EXPECT_LT(std::count(lines.begin(), lines.end(), '\n'), 6);
}

// As Envoy writes what the module logs: in C's escapes.
TEST_F(EnvoyProcessTest, ThePickersLinesKeepTheirFields) {
  Make(FakeEnvoy(R"sh(cat >&2 <<'LINES'
warning|dynamic_modules|abi.cc:1|fairway: {\"time\":\"t\",\"level\":\"warn\",\"msg\":\"a page failed\",\"url\":\"http://a/m\",\"why\":\"it\'s \\\"no\\\" caf\303\251\"}
info|dynamic_modules|abi.cc:1|fairway: version 1 \"x\"
error|config|x.cc:1|no \"a\"\nno b
LINES
exec sleep 1000)sh"));
  ASSERT_TRUE(Await([&] { return Logged().find("no b") != std::string::npos; }));
  const std::string lines = Logged();
  EXPECT_THAT(lines, HasSubstr("WARN  a page failed url=http://a/m why=\"it's \\\"no\\\" caf\xc3\xa9\"\n"));
  EXPECT_THAT(lines, HasSubstr("INFO  version 1 \"x\"\n"));
  EXPECT_THAT(lines, HasSubstr("ERROR Envoy: no \"a\" no b component=config\n"));
}

TEST_F(EnvoyProcessTest, DiesWithTheThreadThatStartedIt) {
  auto other = std::make_unique<net::LoopThread>("short-lived");
  std::promise<pid_t> started;
  EnvoyProcess process(other->loop(), {.binary = FakeEnvoy("exec sleep 1000"), .directory = folder_.path()},
                       {}, log_);
  other->loop().Post([&] {
    process.Start();
    started.set_value(process.pid());
  });
  const pid_t pid = started.get_future().get();
  // Only what has become Envoy asked the kernel to die with us; before that the thread may not go.
  ASSERT_TRUE(Await([&] {
    std::ifstream comm("/proc/" + std::to_string(pid) + "/comm");
    std::string name;
    return static_cast<bool>(comm >> name) && name == "sleep";
  }));
  other->Join();
  // A zombie until it is reaped by the destructor; dead all the same.
  EXPECT_TRUE(Await([&] {
    std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
    std::string number, name, state;
    stat >> number >> name >> state;
    return state == "Z" || state.empty();
  }));
}

TEST(EnvoyBinaryTest, VersionsCompareByNumbers) {
  EXPECT_TRUE(OlderVersion("1.9.0", "1.40"));
  EXPECT_FALSE(OlderVersion("1.40.0", "1.40"));
  EXPECT_FALSE(OlderVersion("2", "1.40"));
}

TEST(EnvoyBinaryTest, FindsTheNewestOfTheCacheAndSkipsOldOnes) {
  Folder folder;
  const auto fake = [&](const std::string& name, const std::string& version) {
    return folder.Script(name, "echo; echo \"$0  version: abc/" + version + "/Clean/RELEASE/BoringSSL\"");
  };
  const std::string path_before = getenv("PATH");
  setenv("PATH", (folder.path() + "/bin").c_str(), 1);
  setenv("XDG_CACHE_HOME", folder.path().c_str(), 1);
  auto none = FindEnvoy("");
  EXPECT_THAT(none.error().message, HasSubstr("tools/get-envoy"));
  const std::string old = fake("bin/envoy", "1.30.1");
  const std::string a = fake("fairway/envoy-1.40.0/envoy", "1.40.0");
  const std::string b = fake("fairway/envoy-1.41.0/envoy", "1.41.0");
  auto found = FindEnvoy("");
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->path, b);
  EXPECT_EQ(found->version, "1.41.0");
  std::filesystem::remove_all(folder.path() + "/fairway");
  EXPECT_THAT(FindEnvoy("").error().message, HasSubstr("is Envoy 1.30.1, at least 1.40 is needed"));
  EXPECT_EQ(FindEnvoy(old)->version, "1.30.1");  // who names one gets it
  EXPECT_THAT(FindEnvoy("/nonexistent").error().message,
              HasSubstr("--envoy: /nonexistent is not an executable file"));
  EXPECT_THAT(FindEnvoy(folder.Script("odd", "echo hello")).error().message,
              HasSubstr("does not answer --version"));
  setenv("PATH", path_before.c_str(), 1);
  unsetenv("XDG_CACHE_HOME");
}

class LocalGatewayTest : public ::testing::Test {
 protected:
  LocalGatewayTest() {
    api::InferencePool pool;
    pool.meta.name = "a";
    manifests_.pools = {pool};
    options_.binary = "/nonexistent/envoy";
    options_.envoy.listen = net::HostPort{"127.0.0.1", 0};
  }
  base::Result<std::unique_ptr<LocalGateway>> Create() {
    return LocalGateway::Create(loop_, options_, manifests_, endpoints_, {}, log_);
  }

  net::Loop loop_;
  base::Log log_{base::LogLevel::kOff, base::LogFormat::kText};
  api::Manifests manifests_;
  PoolEndpoints endpoints_;
  LocalGatewayOptions options_;
};

TEST_F(LocalGatewayTest, RewritesOnlyWhatChangedAndCleansUp) {
  auto gateway = Create();
  ASSERT_TRUE(gateway) << gateway.error().message;
  const std::filesystem::path folder = (*gateway)->directory();
  EXPECT_EQ(std::filesystem::status(folder).permissions(), std::filesystem::perms::owner_all);
  EXPECT_GT((*gateway)->listeners()[0].port, 0);
  const auto inode = [&](const char* name) {
    struct stat info{};
    stat((folder / name).c_str(), &info);
    return info.st_ino;
  };
  const auto cds = inode("cds.json");
  const auto eds = inode("eds-default_a.json");
  ASSERT_NE(eds, 0u);
  endpoints_["default/a"] = {{"127.0.0.1", 8000}};
  ASSERT_TRUE((*gateway)->Update(manifests_, endpoints_));
  EXPECT_EQ(inode("cds.json"), cds);
  EXPECT_NE(inode("eds-default_a.json"), eds);
  // What is wrong changes nothing.
  EXPECT_FALSE((*gateway)->Update({}, {}));
  EXPECT_TRUE(std::filesystem::exists(folder / "eds-default_a.json"));
  // Files of pools that are gone follow one change later.
  manifests_.pools[0].meta.name = "b";
  ASSERT_TRUE((*gateway)->Update(manifests_, endpoints_));
  EXPECT_TRUE(std::filesystem::exists(folder / "eds-default_a.json"));
  manifests_.pools[0].meta.name = "c";
  ASSERT_TRUE((*gateway)->Update(manifests_, endpoints_));
  EXPECT_FALSE(std::filesystem::exists(folder / "eds-default_a.json"));
  gateway->reset();
  EXPECT_FALSE(std::filesystem::exists(folder));
}

TEST_F(LocalGatewayTest, TakenPortIsSaid) {
  net::LoopThread thread("taker");
  auto taker = net::HttpServer::Listen(
      {}, thread.loop(), [](net::HttpRequest, std::shared_ptr<net::HttpResponder>) {}, log_);
  ASSERT_TRUE(taker);
  options_.envoy.listen->port = (*taker)->port();
  EXPECT_THAT(Create().error().message, HasSubstr("something else listens there"));
  thread.Join();
  taker->reset();
  options_.envoy.listen->host = "no-address";
  EXPECT_THAT(Create().error().message, HasSubstr("not an IP address"));
}

}  // namespace
}  // namespace fairway::local
