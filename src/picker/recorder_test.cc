#include "picker/recorder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace fairway::picker {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string ReadAll(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class Recorder : public ::testing::Test {
 protected:
  Recorder() {
    std::string name = ::testing::TempDir() + "recorder-XXXXXX";
    folder_ = ::mkdtemp(name.data());
    file_ = folder_ + "/decisions.jsonl";
  }
  ~Recorder() override { std::filesystem::remove_all(folder_); }

  static std::shared_ptr<const routing::Decision> Made(int number) {
    auto decision = std::make_shared<routing::Decision>();
    decision->request_id = "r-" + std::to_string(number);
    decision->names = std::make_shared<const routing::EndpointNames>();
    return decision;
  }

  std::string folder_;
  std::string file_;
};

TEST_F(Recorder, KeepsTheLastLinesInTwoFilesOfABoundedSize) {
  constexpr size_t kMax = 4000;
  {
    auto recorder = DecisionRecorder::Open({.file = file_, .max_bytes = kMax}, {});
    ASSERT_TRUE(recorder) << recorder.error().message;
    for (int i = 0; i < 100; ++i) (*recorder)->Add(Made(i));
  }
  const std::string now = ReadAll(file_);
  const std::string before = ReadAll(file_ + ".1");
  for (const std::string& text : {now, before}) {
    EXPECT_LE(text.size(), kMax);
    EXPECT_THAT(text, StartsWith("{\"fairway\":\"decisions\",\"version\":"));
    EXPECT_EQ(text.back(), '\n');
  }
  EXPECT_THAT(now, HasSubstr("\"r-99\""));
  const auto next = std::stoi(now.substr(now.find("\"r-") + 3));
  EXPECT_THAT(before, HasSubstr("\"r-" + std::to_string(next - 1) + "\""));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 2);

  // The next process puts aside what is there.
  ASSERT_TRUE(DecisionRecorder::Open({.file = file_, .max_bytes = kMax}, {}));
  EXPECT_EQ(ReadAll(file_ + ".1"), now);
}

TEST_F(Recorder, SaysWhatIsWrongWithTheFile) {
  const auto folder = DecisionRecorder::Open({.file = folder_}, {});
  ASSERT_FALSE(folder);
  EXPECT_EQ(folder.error().message, "the record " + folder_ + " is no file");
  const auto nowhere = DecisionRecorder::Open({.file = folder_ + "/none/x"}, {});
  ASSERT_FALSE(nowhere);
  EXPECT_THAT(nowhere.error().message, HasSubstr("No such file or directory"));
}

TEST_F(Recorder, LosesWhatDoesNotFitAndCountsIt) {
  auto recorder = DecisionRecorder::Open({.file = file_, .max_waiting = 10}, {});
  ASSERT_TRUE(recorder);
  (*recorder)->Add(Made(1));
  EXPECT_EQ((*recorder)->lost(), 1u);
}

}  // namespace
}  // namespace fairway::picker
