#include "sources/files/file_source.h"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace fairway::sources {
namespace {

namespace fs = std::filesystem;

std::string Endpoints(int count) {
  std::string out = "endpoints:\n";
  for (int i = 0; i < count; ++i) {
    out += "- {name: e" + std::to_string(i) + ", address: 10.0.0." + std::to_string(i + 1) +
           ", port: \"8000\"}\n";
  }
  return out;
}

class FileSourceTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "fairway-files-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override {
    if (source_ != nullptr) thread_.loop().Post([this] { source_.reset(); });
    thread_.Join();
    source_.reset();
    fs::remove_all(folder_);
  }

  void Write(const std::string& name, const std::string& text) { std::ofstream(folder_ / name) << text; }
  void Replace(const std::string& name, const std::string& text) {
    Write(name + ".tmp", text);
    fs::rename(folder_ / (name + ".tmp"), folder_ / name);
  }
  void Watch(std::vector<std::string> paths) {
    std::mutex mutex;
    std::unique_lock lock(mutex);
    bool watching = false;
    std::condition_variable ready;
    thread_.loop().Post([&] {
      source_ = std::make_unique<FileSource>(thread_.loop(), paths, [this](const api::LoadResult& result) {
        std::lock_guard hold(mutex_);
        results_.push_back(result);
        arrived_.notify_all();
      });
      std::lock_guard hold(mutex);
      watching = true;
      ready.notify_all();
    });
    ready.wait(lock, [&] { return watching; });
  }
  // The n-th delivery, counted from 1.
  api::LoadResult Await(size_t n) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(arrived_.wait_for(lock, std::chrono::seconds(20), [&] { return results_.size() >= n; }))
        << "nothing delivered";
    return results_.size() >= n ? results_[n - 1] : api::LoadResult{};
  }
  size_t Delivered() {
    std::lock_guard lock(mutex_);
    return results_.size();
  }

  fs::path folder_;
  net::LoopThread thread_{"files"};
  std::unique_ptr<FileSource> source_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<api::LoadResult> results_;
};

TEST_F(FileSourceTest, InPlaceWritesAndAtomicRenames) {
  Write("e.yaml", Endpoints(1));
  Watch({(folder_ / "e.yaml").string()});
  Write("e.yaml", Endpoints(2));
  EXPECT_EQ(Await(1).manifests.endpoints.size(), 2u);
  Replace("e.yaml", Endpoints(3));
  EXPECT_EQ(Await(2).manifests.endpoints.size(), 3u);
  Replace("e.yaml", Endpoints(4));
  EXPECT_EQ(Await(3).manifests.endpoints.size(), 4u) << "still followed after its inode changed";
}

TEST_F(FileSourceTest, ABrokenStateIsDeliveredWithItsProblemsAndTheNextGoodOneToo) {
  Write("e.yaml", Endpoints(1));
  Watch({(folder_ / "e.yaml").string()});
  Write("e.yaml", "endpoints:\n- {name: e0, address: 10.0.0.1, port: \"80");
  EXPECT_FALSE(Await(1).ok());
  Write("e.yaml", Endpoints(2));
  EXPECT_TRUE(Await(2).ok());
}

TEST_F(FileSourceTest, AFileThatVanishesIsAProblem) {
  Write("e.yaml", Endpoints(1));
  Watch({(folder_ / "e.yaml").string()});
  fs::remove(folder_ / "e.yaml");
  const api::LoadResult gone = Await(1);
  EXPECT_FALSE(gone.ok());
  Write("e.yaml", Endpoints(2));
  EXPECT_EQ(Await(2).manifests.endpoints.size(), 2u);
}

TEST_F(FileSourceTest, AFolderWithFilesThatComeAndGo) {
  Write("a.yaml", Endpoints(1));
  Watch({folder_.string()});
  Write("b.yaml", "endpoints:\n- {name: other, address: 10.1.0.1, port: \"8000\"}\n");
  EXPECT_EQ(Await(1).manifests.endpoints.size(), 2u);
  fs::remove(folder_ / "a.yaml");
  EXPECT_EQ(Await(2).manifests.endpoints.size(), 1u);
}

TEST_F(FileSourceTest, SymlinkSwapAsForConfigMaps) {
  fs::create_directory(folder_ / "v1");
  fs::create_directory(folder_ / "v2");
  Write("v1/e.yaml", Endpoints(1));
  Write("v2/e.yaml", Endpoints(5));
  fs::create_directory_symlink("v1", folder_ / "..data");
  fs::create_symlink("..data/e.yaml", folder_ / "e.yaml");
  Watch({folder_.string()});
  fs::create_directory_symlink("v2", folder_ / "..data_tmp");
  fs::rename(folder_ / "..data_tmp", folder_ / "..data");
  EXPECT_EQ(Await(1).manifests.endpoints.size(), 5u);
}

TEST_F(FileSourceTest, TouchingAFileDeliversNothing) {
  Write("e.yaml", Endpoints(1));
  Watch({(folder_ / "e.yaml").string()});
  Write("e.yaml", Endpoints(1));
  Write("e.yaml", Endpoints(2));
  EXPECT_EQ(Await(1).manifests.endpoints.size(), 2u);
  EXPECT_EQ(Delivered(), 1u);
}

}  // namespace
}  // namespace fairway::sources
