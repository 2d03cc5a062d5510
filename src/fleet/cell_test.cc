#include "fleet/cell.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

namespace fairway::fleet {
namespace {

constexpr base::Nanos kMs = base::kMillisecond;

TEST(Unavailable, ThreeInARowRefuseUntilAnotherAnswer) {
  const auto slab = std::make_shared<LoadSlab>();
  EndpointCell cell(slab);
  for (int round = 0; round < 3; ++round) {
    cell.NoteUnavailable(1 * kMs);
    cell.NoteUnavailable(2 * kMs);
    EXPECT_FALSE(cell.refusing()) << round;
    cell.NoteAnswered();  // in between: they were not in a row
  }
  for (int i = 0; i < 2; ++i) cell.NoteUnavailable(3 * kMs);
  EXPECT_FALSE(cell.refusing());
  cell.NoteUnavailable(3 * kMs);
  EXPECT_TRUE(cell.refusing());
  EXPECT_EQ(slab->refusing(), 1);
  cell.NoteUnavailable(4 * kMs);
  EXPECT_EQ(slab->refusing(), 1);
  cell.NoteAnswered();
  EXPECT_FALSE(cell.refusing());
  EXPECT_EQ(slab->refusing(), 0);
}

TEST(Unavailable, AGoodPageThatWasAskedForLaterGivesOneMoreTry) {
  EndpointCell cell;
  cell.BeginScrape(10 * kMs);
  for (int i = 0; i < 3; ++i) cell.NoteUnavailable(11 * kMs);
  cell.PageIsGood();
  EXPECT_TRUE(cell.refusing()) << "the page was asked for before";
  cell.BeginScrape(400 * kMs);
  EXPECT_TRUE(cell.refusing()) << "nothing came yet";
  cell.PageIsGood();
  EXPECT_FALSE(cell.refusing());
  cell.NoteUnavailable(401 * kMs);
  EXPECT_TRUE(cell.refusing()) << "the page may be wrong: one try, and not three";
  cell.BeginScrape(800 * kMs);
  cell.PageIsGood();
  cell.NoteAnswered();
  for (int i = 0; i < 2; ++i) cell.NoteUnavailable(900 * kMs);
  EXPECT_FALSE(cell.refusing()) << "an answer forgets all";
}

TEST(Unavailable, WithoutAGoodPageItIsTriedAgainAfterSomeTime) {
  EndpointCell cell;
  for (int i = 0; i < 3; ++i) cell.NoteUnavailable(5 * kMs);
  cell.BeginScrape(5 * kMs + EndpointCell::kUnavailableFor);
  EXPECT_TRUE(cell.refusing());
  cell.BeginScrape(6 * kMs + EndpointCell::kUnavailableFor);
  EXPECT_FALSE(cell.refusing());
  cell.NoteUnavailable(7 * kMs + EndpointCell::kUnavailableFor);
  EXPECT_TRUE(cell.refusing());
}

TEST(Unavailable, RefusedConnectionsAreEvidenceOfTheirOwn) {
  const auto slab = std::make_shared<LoadSlab>();
  auto cell = std::make_unique<EndpointCell>(slab);
  cell->SetRefusing(true);
  for (int i = 0; i < 3; ++i) cell->NoteUnavailable(1 * kMs);
  EXPECT_EQ(slab->refusing(), 1) << "one endpoint, whatever the evidence";
  cell->NoteAnswered();
  EXPECT_TRUE(cell->refusing()) << "an answer that was on its way is no connection";
  cell->SetRefusing(false);
  EXPECT_FALSE(cell->refusing());
  for (int i = 0; i < 3; ++i) cell->NoteUnavailable(1 * kMs);
  cell->SetRefusing(false);
  EXPECT_TRUE(cell->refusing()) << "a server that answers 503 takes connections";
  cell.reset();
  EXPECT_EQ(slab->refusing(), 0);
}

// Whatever threads say at once: after an answer that all others came before it refuses nobody, and the count
// of the fleet is right.
TEST(Unavailable, AgreesWithItselfUnderConcurrency) {
  const auto slab = std::make_shared<LoadSlab>();
  EndpointCell cell(slab);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&cell, t] {
        for (int i = 0; i < 50; ++i) {
          if ((i + t) % 5 == 0) {
            cell.NoteAnswered();
          } else {
            cell.NoteUnavailable(1 * kMs);
          }
        }
      });
    }
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(slab->refusing(), cell.refusing() ? 1 : 0);
    for (int i = 0; i < 3; ++i) cell.NoteUnavailable(1 * kMs);
    EXPECT_TRUE(cell.refusing());
    cell.NoteAnswered();
    EXPECT_FALSE(cell.refusing());
    EXPECT_EQ(slab->refusing(), 0);
  }
}

}  // namespace
}  // namespace fairway::fleet
