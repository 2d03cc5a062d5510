// What waits to be sent: order, and memory that goes as it leaves.
#include "net/output_queue.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/socket_stream.h"

namespace fairway::net {
namespace {

// Everything that a queue sends.
std::string Sent(OutputQueue& out) {
  int ends[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
  SocketStream stream(ends[0], nullptr);
  std::string all;
  for (;;) {
    const auto status = out.Flush(stream);
    char buffer[65536];
    for (ssize_t n = 0; (n = ::recv(ends[1], buffer, sizeof buffer, 0)) > 0;)
      all.append(buffer, static_cast<size_t>(n));
    if (status != OutputQueue::Status::kBlocked) break;
  }
  ::close(ends[0]);
  ::close(ends[1]);
  return all;
}

TEST(AnswerQueueTest, KeepsTheOrderOfCopiesAndReferences) {
  std::string expected;
  AnswerQueue answer;
  OutputQueue out(false);
  const SharedBytes body(std::string(100'000, 'b'));
  for (int i = 0; i < 20; ++i) {
    const std::string prefix = "prefix " + std::to_string(i);
    answer.Copy(prefix);
    answer.Append(body.Slice(static_cast<size_t>(i) * 5000, 5000));
    expected += prefix + std::string(5000, 'b');
  }
  std::string sent;
  for (size_t step = 1; answer.bytes() > 0; step = step * 2 + 1) {
    answer.MoveTo(out, std::min(step, answer.bytes()));
    if (out.full() || answer.bytes() == 0) sent += Sent(out);
  }
  EXPECT_TRUE(sent == expected);
}

TEST(AnswerQueueTest, HoldsABodyUntilItsLastByteHasLeft) {
  AnswerQueue answer;
  OutputQueue out(false);
  std::weak_ptr<const SharedBytes::Block> seen;
  {
    const SharedBytes body(std::string(100'000, 'b'));
    seen = body.block();
    for (size_t at = 0; at < body.size(); at += 30'000) {
      answer.Copy("prefix");
      answer.Append(body.Slice(at, 30'000));
    }
  }
  EXPECT_GE(answer.pinned(), 100'000u);
  EXPECT_LT(answer.pinned(), 110'000u);  // once, however many pieces
  answer.MoveTo(out, answer.bytes() - 1);
  EXPECT_GE(answer.pinned(), 100'000u);
  answer.MoveTo(out, 1);
  EXPECT_EQ(answer.pinned(), 0u);
  EXPECT_FALSE(seen.expired());
  EXPECT_EQ(Sent(out).size(), 100'024u);
  EXPECT_TRUE(seen.expired());
}

TEST(AnswerQueueTest, SeveralBodiesAreCountedEach) {
  AnswerQueue answer;
  OutputQueue out(true);
  for (int i = 0; i < 3; ++i) {
    answer.Copy("prefix");
    answer.Append(SharedBytes(std::string(10'000, 'b')));
  }
  EXPECT_GE(answer.pinned(), 30'000u);
  answer.MoveTo(out, 10'006);
  EXPECT_LT(answer.pinned(), 21'000u);
  answer.Drop();
  EXPECT_EQ(answer.pinned(), 0u);
  EXPECT_EQ(answer.own(), 0u);
}

// A long stream of which always a bit is left must not keep what it sent.
TEST(AnswerQueueTest, AnAnswerThatNeverRunsDryDoesNotGrow) {
  AnswerQueue answer;
  OutputQueue out(false);
  const std::string piece(1000, 'x');
  answer.Copy(piece);
  for (int i = 0; i < 10'000; ++i) {
    answer.Copy(piece);
    answer.Append(SharedBytes(std::string(5000, 'y')));
    answer.MoveTo(out, 6000);
    if (out.full()) Sent(out);
    ASSERT_LT(answer.own(), 100'000u) << i;
    ASSERT_LT(answer.pinned(), 20'000u) << i;
  }
}

}  // namespace
}  // namespace fairway::net
