#include "net/line_writer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace fairway::net {
namespace {

using ::testing::EndsWith;

// Two descriptors: what is written to one is read from the other.
struct Ends {
  int read_end = -1;
  int write_end = -1;
  static Ends Pipe() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    return {ends[0], ends[1]};
  }
  static Ends Terminal() {
    Ends ends;
    termios raw{};
    cfmakeraw(&raw);
    EXPECT_EQ(::openpty(&ends.read_end, &ends.write_end, nullptr, &raw, nullptr), 0);
    return ends;
  }
  ~Ends() {
    if (read_end >= 0) ::close(read_end);
    if (write_end >= 0) ::close(write_end);
  }
  // Until `end` came, or for 10 s of silence.
  std::string ReadUntil(std::string_view end) const {
    std::string got;
    char piece[65536];
    pollfd ready{read_end, POLLIN, 0};
    while (!got.ends_with(end) && ::poll(&ready, 1, 10'000) == 1) {
      const ssize_t n = ::read(read_end, piece, sizeof piece);
      if (n <= 0) break;
      got.append(piece, static_cast<size_t>(n));
    }
    return got;
  }
};

double SecondsOf(const std::function<void()>& what) {
  const auto start = std::chrono::steady_clock::now();
  what();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST(LineWriter, WritesAllInOrder) {
  const Ends pipe = Ends::Pipe();
  LineWriter writer(pipe.write_end);
  std::string expected;
  for (int i = 0; i < 2000; ++i) expected += std::to_string(i) + std::string(i % 300, '.') + "\n";
  std::thread reader([&] { EXPECT_EQ(pipe.ReadUntil("\nlast\n"), expected + "last\n"); });
  for (size_t at = 0; at < expected.size();) {
    const size_t end = expected.find('\n', at) + 1;
    writer.Write(std::string_view(expected).substr(at, end - at));
    at = end;
  }
  writer.Write("last\n");
  reader.join();
  EXPECT_EQ(writer.lost(), 0u);
}

// A pager that was not scrolled, ^S in a terminal: who writes goes on, what is lost is counted and told, and
// what waited is written once it is read.
void ExpectLossAndRecovery(const Ends& ends) {
  LineWriter writer(ends.write_end, {.max_bytes = 100'000, .note = [](uint64_t lost) {
                                       return "lost " + std::to_string(lost) + "\n";
                                     }});
  const std::string line = std::string(99, 'x') + "\n";
  const double seconds = SecondsOf([&] {
    for (int i = 0; i < 20'000; ++i) writer.Write(line);
  });
  EXPECT_LT(seconds, 5);  // it would be for ever
  const uint64_t lost = writer.lost();
  EXPECT_GT(lost, 10'000u);
  // What waited comes, what is written when there is room again does, too, and all that was lost is told.
  std::string got;
  bool again = false;
  uint64_t told = 0;
  while (!again || got.find("again\n") == std::string::npos || told != writer.lost()) {
    const std::string more = ends.ReadUntil("\n");
    ASSERT_NE(more, "") << got.size();
    got += more;
    told = 0;
    for (size_t at = got.find("lost "); at != std::string::npos; at = got.find("lost ", at + 1))
      told += std::stoull(got.substr(at + 5));
    if (again) continue;
    const uint64_t before = writer.lost();
    writer.Write("again\n");
    again = writer.lost() == before;
  }
  EXPECT_EQ(told, writer.lost());
  EXPECT_EQ(static_cast<size_t>(std::count(got.begin(), got.end(), 'x')), (20'000 - lost) * 99);
}

TEST(LineWriter, APipeThatNobodyReads) { ExpectLossAndRecovery(Ends::Pipe()); }

TEST(LineWriter, ATerminalThatNobodyReads) { ExpectLossAndRecovery(Ends::Terminal()); }

TEST(LineWriter, ATerminalThatWasStopped) {
  const Ends terminal = Ends::Terminal();
  ASSERT_EQ(::tcflow(terminal.write_end, TCOOFF), 0);
  {
    LineWriter writer(terminal.write_end, {.max_bytes = 1000, .grace = 10 * base::kMillisecond});
    for (int i = 0; i < 100; ++i) writer.Write(std::string(99, 'x') + "\n");
    EXPECT_GT(writer.lost(), 80u);
    const double seconds = SecondsOf([&] { writer.Write("more\n"); });
    EXPECT_LT(seconds, 5);
  }  // and it ends
  ASSERT_EQ(::tcflow(terminal.write_end, TCOON), 0);
}

TEST(LineWriter, TheEndWaitsForAReaderButNotForEver) {
  const Ends pipe = Ends::Pipe();
  {
    LineWriter writer(pipe.write_end);
    for (int i = 0; i < 100; ++i) writer.Write("line\n");
    writer.Write("last\n");
  }
  EXPECT_THAT(pipe.ReadUntil("last\n"), EndsWith("line\nlast\n"));
  const double seconds = SecondsOf([&] {
    LineWriter writer(pipe.write_end, {.grace = 10 * base::kMillisecond});
    for (int i = 0; i < 10'000; ++i) writer.Write(std::string(99, 'x') + "\n");
  });
  EXPECT_LT(seconds, 5);
}

// The open file is shared with others: their reads and writes must not begin to fail.
TEST(LineWriter, LeavesTheDescriptorAsItIs) {
  const Ends pipe = Ends::Pipe();
  LineWriter writer(pipe.write_end, {.grace = 10 * base::kMillisecond});
  for (int i = 0; i < 2000; ++i) writer.Write(std::string(99, 'x') + "\n");
  EXPECT_EQ(::fcntl(pipe.write_end, F_GETFL) & O_NONBLOCK, 0);
}

TEST(LineWriter, WhatCannotBeWrittenIsCounted) {
  Ends pipe = Ends::Pipe();
  ::signal(SIGPIPE, SIG_IGN);
  ::close(pipe.read_end);
  pipe.read_end = -1;
  LineWriter writer(pipe.write_end);
  writer.Write("to nobody\n");
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (writer.lost() == 0 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  EXPECT_EQ(writer.lost(), 1u);
}

}  // namespace
}  // namespace fairway::net
