// What answers say of the servers that gave them: 503 is a server that cannot, and nobody's bad request.
#include <gtest/gtest.h>

#include <string>

#include "tests/support/router_scene.h"

namespace fairway::routing {
namespace {

using tests::Completion;
using tests::Scene;

// Answers of the first endpoint, whichever was picked.
void Answer(Scene& scene, int status, bool by_gateway = false) {
  Ticket ticket = scene.Get(Completion("m"));
  ticket.OnResponseHeaders(status, "10.0.0.1:8000", false, by_gateway);
  ticket.OnComplete();
}

TEST(Unavailable, ThreeInARowAndTheEndpointIsTakenOnlyWhenNothingElseIsLeft) {
  Scene scene({{"A"}, {"B", 40}});
  EXPECT_EQ(scene.Get(Completion("m")).destination(), "10.0.0.1:8000");
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(scene.cell(0).refusing()) << i;
    Answer(scene, 503);
  }
  EXPECT_TRUE(scene.cell(0).refusing());
  EXPECT_FALSE(scene.cell(1).refusing());
  for (int i = 0; i < 20; ++i) EXPECT_EQ(scene.Get(Completion("m")).destination(), "10.0.0.2:8000");
  Answer(scene, 200);  // of a request that was on its way
  EXPECT_EQ(scene.Get(Completion("m")).destination(), "10.0.0.1:8000");
}

TEST(Unavailable, AnExplanationSaysWhoIsNoCandidateAndWhy) {
  std::string told;
  RouterOptions options;
  options.explain = [&told](std::string_view text) { told = text; };
  Scene scene({{"A"}, {"B", 40}}, {}, std::move(options));
  for (int i = 0; i < 3; ++i) Answer(scene, 503);
  scene.clock.Advance(3200 * base::kMillisecond);
  EXPECT_EQ(scene.Get(Completion("m")).destination(), "10.0.0.2:8000");
  EXPECT_NE(
      told.find("  no candidate: A 10.0.0.1:8000 refuses connections or answers 503 (last page 3.2 s ago)\n"),
      std::string::npos)
      << told;
  Answer(scene, 200);
  scene.Get(Completion("m"));
  EXPECT_EQ(told.find("no candidate"), std::string::npos) << told;
}

// A client that can make a server answer 503 has to do so three times without anybody else being served
// there.
TEST(Unavailable, OneClientsRequestsDoNotTakeAnEndpointFromOthers) {
  Scene scene({{"A"}, {"B"}});
  for (int i = 0; i < 100; ++i) {
    Answer(scene, 503);
    Answer(scene, 503);
    Answer(scene, 200);
    EXPECT_FALSE(scene.cell(0).refusing());
  }
  for (const int status : {400, 404, 413, 422, 429, 499}) {
    Answer(scene, 503);
    Answer(scene, 503);
    Answer(scene, status);
    Answer(scene, 503);
    EXPECT_FALSE(scene.cell(0).refusing()) << status << " is an answer";
    Answer(scene, 200);
  }
}

TEST(Unavailable, WhatIsNoAnswerOfTheServerSaysNothingOfIt) {
  Scene scene({{"A"}, {"B"}});
  for (int i = 0; i < 10; ++i) {
    for (const int status : {0, 500, 502, 504}) Answer(scene, status);
    Answer(scene, 503, true);
  }
  EXPECT_FALSE(scene.cell(0).refusing());
  for (int i = 0; i < 3; ++i) Answer(scene, 503);
  for (const int status : {0, 500, 502, 504}) Answer(scene, status);
  Answer(scene, 503, true);
  EXPECT_TRUE(scene.cell(0).refusing()) << "nor that it can again";
}

TEST(Unavailable, OfARetryTheEndpointThatAnsweredCounts) {
  Scene scene({{"A"}, {"B", 40}});
  for (int i = 0; i < 5; ++i) {
    Ticket ticket = scene.Get(Completion("m"));
    ASSERT_EQ(ticket.destination(), "10.0.0.1:8000");
    ticket.OnResponseHeaders(503, "10.0.0.2:8000", false);
    ticket.OnComplete();
    Ticket elsewhere = scene.Get(Completion("m"));
    elsewhere.OnResponseHeaders(503, "10.9.9.9:8000", false);  // none of the pool
    elsewhere.OnComplete();
  }
  EXPECT_FALSE(scene.cell(0).refusing());
  EXPECT_TRUE(scene.cell(1).refusing());
}

}  // namespace
}  // namespace fairway::routing
