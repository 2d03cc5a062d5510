#include "frontends/envoy_module/choices.h"

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <string>
#include <thread>

namespace fairway::envoy_module {
namespace {

TEST(Choices, GivesTheListInItsOrderAndThenNothing) {
  Choices choices;
  Choice choice;
  choices.Add(choice, "id-1", "10.0.0.1:8000,[2001:db8::1]:8000");
  EXPECT_EQ(choice.asked(), 0u);
  Choice* found = choices.Find("id-1");
  ASSERT_EQ(found, &choice);
  EXPECT_EQ(found->Next(), "10.0.0.1:8000");
  EXPECT_EQ(choice.asked(), 1u);
  EXPECT_EQ(found->Next(), "[2001:db8::1]:8000");
  EXPECT_EQ(found->Next(), "");
  EXPECT_EQ(found->Next(), "");
  EXPECT_EQ(choices.Find("id-2"), nullptr);
  EXPECT_EQ(choices.Find(""), nullptr);
}

TEST(Choices, WhatIsExpectedIsTakenOnceAndNeverAnother) {
  Choices choices;
  Choice first, second;
  EXPECT_EQ(choices.TakeExpected(), nullptr);
  choices.Add(first, "id-1", "a:1");
  EXPECT_EQ(choices.TakeExpected(), nullptr);
  choices.ExpectLast();
  EXPECT_EQ(choices.TakeExpected(), &first);
  EXPECT_EQ(choices.TakeExpected(), nullptr);  // a retry looks by the id
  choices.ExpectLast();
  choices.Add(second, "id-2", "b:1");  // whose filter expects nothing
  EXPECT_EQ(choices.TakeExpected(), nullptr);
  choices.ExpectLast();
  choices.Remove(second);  // answered before it was asked for
  EXPECT_EQ(choices.TakeExpected(), nullptr);
  choices.Remove(first);
}

TEST(Choices, FindsEachOfManyWhateverItsIdLooksLike) {
  Choices choices;
  std::deque<Choice> many;
  const auto id = [](int i) { return std::string(static_cast<size_t>(i % 41), 'x') + std::to_string(i); };
  for (int i = 0; i < 5000; ++i) choices.Add(many.emplace_back(), id(i), "h");
  EXPECT_EQ(choices.size(), 5000u);
  for (int i = 0; i < 5000; i += 2) choices.Remove(many[static_cast<size_t>(i)]);
  for (int i = 0; i < 5000; ++i) {
    EXPECT_EQ(choices.Find(id(i)), i % 2 == 0 ? nullptr : &many[static_cast<size_t>(i)]) << i;
  }
  for (Choice& choice : many) choices.Remove(choice);
  EXPECT_EQ(choices.size(), 0u);
}

TEST(Choices, RequestsWithOneIdAreToldApartByTheirFirstChoice) {
  Choices choices;
  Choice older;
  choices.Add(older, "same", "a:1,b:1");
  EXPECT_FALSE(older.shared());
  {
    Choice newer;
    choices.Add(newer, "same", "b:1,a:1");
    EXPECT_TRUE(older.shared());
    EXPECT_TRUE(newer.shared());
    EXPECT_EQ(choices.Find("same"), &newer);
    EXPECT_EQ(choices.Find("same", "a:1"), &older);
    EXPECT_EQ(choices.Find("same", "b:1"), &newer);
    EXPECT_EQ(choices.Find("same", "c:1"), nullptr);
    EXPECT_EQ(choices.Find("other", "a:1"), nullptr);
    choices.Remove(newer);
  }
  EXPECT_EQ(choices.Find("same"), &older);
  EXPECT_TRUE(older.shared());         // it was
  choices.Add(older, "other", "c:1");  // again: it is in there once
  EXPECT_EQ(choices.size(), 1u);
  EXPECT_FALSE(older.shared());
  EXPECT_EQ(choices.Find("same"), nullptr);
}

TEST(Choices, TheNewestOfOneIdStaysTheFirstAsTheTableGrows) {
  Choices choices;
  std::deque<Choice> many;
  for (int i = 0; i < 2000; ++i)
    choices.Add(many.emplace_back(), i % 2 == 0 ? "same" : std::to_string(i), "h");
  Choice another;
  choices.Add(another, "last", "h");
  EXPECT_EQ(choices.Find("same"), &many[1998]);
  choices.Remove(many[1998]);
  EXPECT_EQ(choices.Find("same"), &many[1996]);
  for (Choice& choice : many) choices.Remove(choice);
  EXPECT_EQ(choices.size(), 1u);
  EXPECT_EQ(choices.Find("last"), &another);
}

TEST(Choices, AreTheirThreadsOwnAndMayEndBeforeTheirRequests) {
  Choice choice;
  std::thread([&] {
    Choices::OfThisThread().Add(choice, "id", "a");
    EXPECT_EQ(Choices::OfThisThread().Find("id"), &choice);
    EXPECT_TRUE(choice.listed());
  }).join();
  EXPECT_EQ(Choices::OfThisThread().Find("id"), nullptr);
  EXPECT_FALSE(choice.listed());
  Choices::OfThisThread().Remove(choice);  // nothing
}

TEST(Choices, EachPlaceOfAChainCanBeLeft) {
  for (size_t gone = 0; gone < 3; ++gone) {
    Choices choices;
    std::deque<Choice> chain(3);
    const std::string hosts[] = {"a:1,x:1", "b:1,x:1", "c:1,x:1"};
    for (size_t i = 0; i < 3; ++i) choices.Add(chain[i], "same", hosts[i]);
    choices.Remove(chain[gone]);
    EXPECT_FALSE(chain[gone].listed());
    choices.Remove(chain[gone]);  // once more: nothing
    EXPECT_EQ(choices.size(), 2u);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(choices.Find("same", hosts[i].substr(0, 3)), i == gone ? nullptr : &chain[i]) << gone << i;
    }
    EXPECT_EQ(choices.Find("same"), gone == 2 ? &chain[1] : &chain[2]);
    for (Choice& choice : chain) choices.Remove(choice);
    EXPECT_EQ(choices.size(), 0u);
    EXPECT_EQ(choices.Find("same"), nullptr);
  }
}

TEST(Choices, CountsHowOftenItWasAskedUpToALimit) {
  Choices choices;
  Choice choice;
  choices.Add(choice, "id", "a:1");
  EXPECT_EQ(choice.Next(), "a:1");
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(choice.Next(), "");
  EXPECT_EQ(choice.asked(), 255u);
  choices.Add(choice, "id", "b:1");
  EXPECT_EQ(choice.asked(), 0u);
  EXPECT_EQ(choice.Next(), "b:1");
  choices.Remove(choice);
}

}  // namespace
}  // namespace fairway::envoy_module
