// Configs in files that change while they are in use.
#include "picker/config_source.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "picker/picker.h"

namespace fairway::picker {
namespace {

using ::testing::HasSubstr;

const std::string kHead = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n";
const std::string kQueue = kHead + "plugins: [{type: queue-scorer}]\n";
const std::string kKv = kHead + "plugins: [{type: kv-cache-utilization-scorer}]\n";
const std::string kBroken = kHead + "plugins: [{type: queue-scorr}]\n";

class Configs : public ::testing::Test {
 protected:
  Configs() {
    std::string name = ::testing::TempDir() + "configs-XXXXXX";
    folder_ = ::mkdtemp(name.data());
    std::filesystem::create_directory(folder_ + "/pools");
  }
  ~Configs() override { std::filesystem::remove_all(folder_); }

  // In one step, as editors and ConfigMaps do it.
  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path + ".new") << text;
    std::filesystem::rename(path + ".new", path);
    return path;
  }

  void Start(ConfigOptions config) {
    Options options;
    for (const char* pool : {"a", "b"}) {
      api::InferencePool made;
      made.meta.name = pool;
      made.group = "inference.networking.k8s.io";
      made.selector = {{"app", pool}};
      made.target_ports = {8000};
      options.manifests.pools.push_back(made);
    }
    options.scrape_endpoints = false;
    options.admin = Options::Admin::kNone;
    options.config = std::move(config);
    const base::Log log(base::LogLevel::kDebug, base::LogFormat::kText, [this](std::string_view line) {
      const std::lock_guard lock(mutex_);
      lines_ += line;
    });
    auto picker = Picker::Start(std::move(options), log, {}, {});
    ASSERT_TRUE(picker) << picker.error().message;
    picker_ = std::move(*picker);
  }

  // The names of the plugins that decide for a pool.
  std::string DecidesFor(const std::string& pool) {
    std::string names;
    for (const auto& plugin : picker_->router().configs()->Of(pool).plugins) {
      if (plugin->scorer != nullptr) names += plugin->name + " ";
    }
    return names;
  }
  double Metric(const std::string& series) {
    double value = -1;
    const std::string text = picker_->registry().Render();
    const size_t at = text.find(series + " ");
    if (at != std::string::npos) value = std::stod(text.substr(at + series.size() + 1));
    return value;
  }
  double Reloads(const std::string& config, const std::string& outcome) {
    return Metric("fairway_scheduler_config_reloads_total{config=\"" + config + "\",outcome=\"" + outcome +
                  "\"}");
  }
  double Stale(const std::string& config) {
    return Metric("fairway_scheduler_config_stale{config=\"" + config + "\"}");
  }
  template <typename Condition>
  void Await(const char* what, Condition condition) {
    for (int i = 0; i < 3000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_TRUE(condition()) << what << "\n" << Lines();
  }
  std::string Lines() {
    const std::lock_guard lock(mutex_);
    return lines_;
  }

  std::string folder_;
  std::mutex mutex_;
  std::string lines_;
  std::unique_ptr<Picker> picker_;
};

TEST_F(Configs, AGoodChangeDecidesAndABrokenOneIsToldAndCounted) {
  const std::string file = Write("epp.yaml", kQueue);
  Start({.file = file});
  EXPECT_EQ(DecidesFor("default/a"), "queue-scorer ");
  EXPECT_EQ(Stale("common"), 0);
  Write("epp.yaml", kKv);
  Await("the new one decides", [&] { return DecidesFor("default/a") == "kv-cache-utilization-scorer "; });
  EXPECT_EQ(Reloads("common", "applied"), 1);
  Write("epp.yaml", kBroken);
  Await("it is refused", [&] { return Reloads("common", "refused") == 1; });
  EXPECT_EQ(Stale("common"), 1);
  EXPECT_EQ(DecidesFor("default/a"), "kv-cache-utilization-scorer ");
  EXPECT_THAT(Lines(), HasSubstr("there is no plugin type \"queue-scorr\"; did you mean \"queue-scorer\"?"));
  Write("epp.yaml", kQueue);
  Await("it is mended", [&] { return Stale("common") == 0; });
  EXPECT_EQ(DecidesFor("default/b"), "queue-scorer ");
}

TEST_F(Configs, APoolMayHaveOneOfItsOwn) {
  Write("pools/default.a.yaml", kKv);
  Start({.directory = folder_ + "/pools"});
  EXPECT_EQ(DecidesFor("default/a"), "kv-cache-utilization-scorer ");
  const std::string built_in = DecidesFor("default/b");
  EXPECT_THAT(built_in, HasSubstr("time-to-first-token-scorer"));

  Write("pools/default.b.yaml", kQueue);
  Await("another one", [&] { return DecidesFor("default/b") == "queue-scorer "; });
  // One that is broken keeps nobody else's from being changed.
  Write("pools/default.b.yaml", kBroken);
  Await("it is refused", [&] { return Stale("default/b") == 1; });
  Write("pools/default.a.yaml", kQueue);
  Await("the other one", [&] { return DecidesFor("default/a") == "queue-scorer "; });
  EXPECT_EQ(DecidesFor("default/b"), "queue-scorer ");
  std::filesystem::remove(folder_ + "/pools/default.b.yaml");
  Await("the common one decides again", [&] { return DecidesFor("default/b") == built_in; });
}

TEST_F(Configs, FilesOfAFolderAreTakenByTheirNames) {
  Write("pools/team.llama.v2.yaml", kQueue);
  const std::string common = Write("pools/default-plugins.yaml", kQueue);
  Write("pools/odd.yaml", kQueue);
  std::vector<api::Problem> problems;
  const auto files = PoolConfigFiles(folder_ + "/pools", common, problems);
  EXPECT_EQ(files.size(), 1u);
  EXPECT_EQ(files.count("team/llama.v2"), 1u);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_THAT(api::ToString(problems[0]), HasSubstr("odd.yaml: warning: decides for nobody"));
  Write("pools/team.llama.v2.yml", kQueue);
  problems.clear();
  PoolConfigFiles(folder_ + "/pools", common, problems);
  EXPECT_EQ(problems.size(), 2u);
  problems.clear();
  PoolConfigFiles(folder_ + "/nowhere", "", problems);
  EXPECT_EQ(problems.size(), 1u);
}

// Nothing reads a pipe while requests are served: who drips into it would stop scrapes, leases and the end.
TEST_F(Configs, APipeInTheFolderIsToldAndNotRead) {
  Start({.directory = folder_ + "/pools"});
  const std::string path = folder_ + "/pools/default.a.yaml";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const int writer = ::open(path.c_str(), O_RDWR | O_CLOEXEC);  // so that a reader would wait for more
  Await("it is refused", [&] { return Stale("default/a") == 1; });
  EXPECT_THAT(Lines(), HasSubstr("is a pipe, not a file"));
  ::close(writer);
  Write("pools/default.a.yaml", kQueue);
  Await("a file in its place", [&] { return DecidesFor("default/a") == "queue-scorer "; });
}

TEST_F(Configs, AFileThatBecomesAFolderOrAPipeLeavesWhatDecides) {
  const std::string file = Write("epp.yaml", kQueue);
  Start({.file = file});
  std::filesystem::remove(file);
  std::filesystem::create_directory(file);
  Await("a folder is refused", [&] { return Reloads("common", "refused") >= 1; });
  std::filesystem::remove(file);
  ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
  Await("a pipe is refused", [&] { return Lines().find("is a pipe, not a file") != std::string::npos; });
  EXPECT_EQ(DecidesFor("default/a"), "queue-scorer ");
  Write("epp.yaml", kKv);
  Await("a file again", [&] { return DecidesFor("default/a") == "kv-cache-utilization-scorer "; });
}

TEST_F(Configs, AShadowDecidesTooAndMayChange) {
  const std::string shadow = Write("next.yaml", kQueue);
  Start({.shadow_file = shadow});
  EXPECT_EQ(Stale("shadow"), 0);
  Write("next.yaml", kBroken);
  Await("it is refused", [&] { return Stale("shadow") == 1; });
  Write("next.yaml", kKv);
  Await("it is taken", [&] { return Reloads("shadow", "applied") == 1; });
}

TEST_F(Configs, MistakesAtTheStartKeepItFromStarting) {
  for (const ConfigOptions& options : {ConfigOptions{.file = Write("broken.yaml", kBroken)},
                                       ConfigOptions{.file = folder_ + "/nowhere.yaml"},
                                       ConfigOptions{.shadow_file = folder_ + "/broken.yaml"},
                                       ConfigOptions{.directory = folder_ + "/nowhere"}}) {
    std::vector<api::Problem> problems;
    EXPECT_FALSE(ConfigSource(options).Load(problems));
    EXPECT_FALSE(problems.empty());
  }
}

}  // namespace
}  // namespace fairway::picker
