#include "sources/files/file_source.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
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
  void Watch(std::vector<std::string> paths, std::optional<uint64_t> known = std::nullopt) {
    std::mutex mutex;
    std::unique_lock lock(mutex);
    bool watching = false;
    std::condition_variable ready;
    thread_.loop().Post([&] {
      source_ = std::make_unique<FileSource>(
          thread_.loop(), paths,
          [this](const api::LoadResult& result) {
            if (destroy_in_callback_) source_.reset();
            std::lock_guard hold(mutex_);
            results_.push_back(result);
            arrived_.notify_all();
          },
          settle_, known);
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
  bool destroy_in_callback_ = false;
  base::Nanos settle_ = 50 * base::kMillisecond;
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

TEST_F(FileSourceTest, AFileWrittenInPiecesIsReadWhole) {
  settle_ = 500 * base::kMillisecond;  // longer than any pause between the pieces
  Write("e.yaml", Endpoints(1));
  Watch({(folder_ / "e.yaml").string()});
  const std::string text = Endpoints(50);
  {
    std::ofstream file(folder_ / "e.yaml");
    for (size_t at = 0; at < text.size(); at += 100) file << text.substr(at, 100) << std::flush;
  }
  const api::LoadResult first = Await(1);
  EXPECT_TRUE(first.ok());
  EXPECT_EQ(first.manifests.endpoints.size(), 50u);
  EXPECT_EQ(Delivered(), 1u);
}

TEST_F(FileSourceTest, WhatNeverComesToRestIsReadAllTheSame) {
  settle_ = 20 * base::kMillisecond;
  Write("e.yaml", Endpoints(1));
  Watch({(folder_ / "e.yaml").string()});
  // Another writer than the loop: it writes on until something was delivered.
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  for (int i = 2; Delivered() == 0 && std::chrono::steady_clock::now() < limit; ++i) {
    Replace("e.yaml", Endpoints(2 + i % 200));
  }
  EXPECT_GE(Await(1).manifests.endpoints.size(), 2u);
}

TEST_F(FileSourceTest, ATruncatedFileIsAProblemAndNotAnEmptyState) {
  Write("e.yaml", Endpoints(1));
  Watch({(folder_ / "e.yaml").string()});
  Write("e.yaml", "");
  EXPECT_FALSE(Await(1).ok());
}

TEST_F(FileSourceTest, AChangeBeforeWatchingBeganIsDelivered) {
  const std::string file = (folder_ / "e.yaml").string();
  Write("e.yaml", Endpoints(1));
  const api::LoadResult loaded = api::LoadManifests({file});
  Write("e.yaml", Endpoints(2));
  Watch({file}, loaded.fingerprint);
  EXPECT_EQ(Await(1).manifests.endpoints.size(), 2u);
}

TEST_F(FileSourceTest, AFileThatIsALinkIsFollowedToItsTarget) {
  fs::create_directory(folder_ / "elsewhere");
  fs::create_directory(folder_ / "here");
  Write("elsewhere/e.yaml", Endpoints(1));
  fs::create_symlink("../elsewhere/e.yaml", folder_ / "here" / "e.yaml");
  Watch({(folder_ / "here" / "e.yaml").string()});
  Write("elsewhere/e.yaml", Endpoints(3));
  EXPECT_EQ(Await(1).manifests.endpoints.size(), 3u);
}

TEST_F(FileSourceTest, AFolderThatIsReplacedIsStillFollowed) {
  fs::create_directory(folder_ / "m");
  Write("m/e.yaml", Endpoints(1));
  Watch({(folder_ / "m").string()});
  fs::rename(folder_ / "m", folder_ / "old");
  EXPECT_FALSE(Await(1).ok());
  fs::create_directory(folder_ / "m");
  Write("m/e.yaml", Endpoints(2));
  // The folder is there before its file is; that state may be delivered on its own.
  size_t n = 2;
  while (!HasFailure() && !Await(n).ok()) ++n;
  EXPECT_EQ(Await(n).manifests.endpoints.size(), 2u);
  Write("m/e.yaml", Endpoints(3));
  EXPECT_EQ(Await(n + 1).manifests.endpoints.size(), 3u);
}

TEST_F(FileSourceTest, FilesThatAreNoManifestsDoNotCount) {
  Write("e.yaml", Endpoints(1));
  Watch({folder_.string()});
  Write(".#e.yaml", "}");
  Write("e.yaml~", "}");
  Write("e.yaml", Endpoints(2));
  EXPECT_TRUE(Await(1).ok());
  EXPECT_EQ(Delivered(), 1u);
}

TEST_F(FileSourceTest, APipeIsNeitherReadNorWaitedFor) {
  const std::string pipe = (folder_ / "pipe").string();
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  Write("e.yaml", Endpoints(1));
  Watch({pipe, (folder_ / "e.yaml").string()});  // returns at once
  EXPECT_EQ(Delivered(), 0u);
}

TEST_F(FileSourceTest, MayBeDestroyedInItsCallback) {
  destroy_in_callback_ = true;
  Write("e.yaml", Endpoints(1));
  Watch({(folder_ / "e.yaml").string()});
  Write("e.yaml", Endpoints(2));
  EXPECT_EQ(Await(1).manifests.endpoints.size(), 2u);
}

}  // namespace
}  // namespace fairway::sources
