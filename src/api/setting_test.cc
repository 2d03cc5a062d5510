#include "api/setting.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "api/picker_settings.h"

namespace fairway::api {
namespace {

enum class Mode { kFirst, kSecond };

struct AllKinds {
  bool on = false;
  std::optional<bool> maybe;
  std::string text = "t";
  std::string word = "a";
  std::vector<std::string> list;
  uint16_t port = 80;
  uint64_t bytes = 64u << 20;
  double share = 0.001;
  base::Nanos time = 90 * base::kSecond;
  std::optional<base::Nanos> interval;
  Mode mode = Mode::kSecond;
};

std::vector<Setting> SettingsOf(AllKinds& o) {
  return {{.field = "on", .value = &o.on},
          {.field = "maybe", .value = &o.maybe, .otherwise = "it depends"},
          {.field = "text", .value = &o.text},
          {.field = "word", .value = &o.word, .words = {"a", "b"}},
          {.field = "list", .value = &o.list},
          {.field = "port", .value = &o.port},
          {.field = "bytes", .value = &o.bytes, .min = 1024, .max = 0x1p40, .bytes = true},
          {.field = "share", .value = &o.share, .max = 1},
          {.field = "time", .value = &o.time, .min = base::kSecond},
          {.field = "interval", .value = &o.interval},
          {.field = "mode", .value = Word(o.mode), .words = {"first", "second"}}};
}

// What is wrong with a document that is read into `o`.
std::vector<std::string> ReadInto(AllKinds& o, std::string_view text) {
  std::vector<Problem> found;
  ProblemList problems("s.yaml", found);
  const ObjectContext context{&problems, ""};
  const ParsedText parsed = ParseText(text, "s.yaml");
  ObjectReader reader(Node(&context, parsed.documents.at(0).get(), "", 1));
  for (const Setting& setting : SettingsOf(o)) Read(setting, reader.Get(setting.field));
  reader.Finish();
  std::vector<std::string> texts;
  for (const Problem& problem : found) texts.push_back(problem.field + ": " + problem.message);
  return texts;
}

TEST(Settings, AreWrittenSoThatTheyAreReadAgain) {
  AllKinds given;
  EXPECT_THAT(
      ReadInto(
          given,
          "{on: true, maybe: false, text: 'a \"b\"', word: b, list: [x, 'y,z'], port: 8080.0, bytes: 1Gi, "
          "share: 0.25, time: 1500ms, interval: 50ms, mode: first}"),
      testing::IsEmpty());
  EXPECT_EQ(given.port, 8080);
  EXPECT_EQ(given.bytes, 1u << 30);
  EXPECT_EQ(given.mode, Mode::kFirst);
  EXPECT_EQ(given.interval, 50 * base::kMillisecond);
  std::string text;
  base::JsonWriter json(text);
  json.BeginObject();
  for (const Setting& setting : SettingsOf(given)) Write(setting, json.Key(setting.field));
  json.EndObject();
  AllKinds again;
  EXPECT_THAT(ReadInto(again, text), testing::IsEmpty());
  const auto a = SettingsOf(given);
  const auto b = SettingsOf(again);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(Show(a[i]), Show(b[i])) << a[i].field;
}

TEST(Settings, WhatIsWrongSaysWhatWouldBeRightAndChangesNothing) {
  AllKinds o;
  EXPECT_THAT(ReadInto(o,
                       "{on: 1, word: c, list: x, port: 65536, bytes: 1Ki, share: x, time: 1ms, interval: "
                       "soon, mode: third, "
                       "texd: 1}"),
              testing::ElementsAre("on: want true or false, got the number \"1\"",
                                   "word: want a or b, got \"c\"", "list: want a list, got the string \"x\"",
                                   "port: want a number from 0 to 65535, got \"65536\"",
                                   "share: want a number from 0 to 1, got the string \"x\"",
                                   "time: want a duration from 1s on, got \"1ms\"",
                                   "interval: want a duration like 50ms, 2s or 1m30s, got \"soon\"",
                                   "mode: want first or second, got \"third\"",
                                   "texd: unknown field; did you mean \"text\"?"));
  EXPECT_EQ(o.port, 80);
  EXPECT_EQ(o.word, "a");
  EXPECT_EQ(o.mode, Mode::kSecond);
}

TEST(Settings, AreDescribed) {
  AllKinds o;
  const auto all = SettingsOf(o);
  const auto told = [&](size_t i) {
    const Parameter p = Describe(all[i], all[i].field);
    return p.name + "|" + p.kind + "|" + p.otherwise + "|" + p.range;
  };
  EXPECT_EQ(told(0), "on|switch|false|");
  EXPECT_EQ(told(1), "maybe|switch|it depends|");
  EXPECT_EQ(told(3), "word|word|a|a or b");
  EXPECT_EQ(told(6), "bytes|size|64Mi|1Ki to 1Ti");
  EXPECT_EQ(told(7), "share|number|0.001|0 to 1");
  EXPECT_EQ(told(8), "time|duration|90s|");
  EXPECT_EQ(told(9), "interval|duration|auto|");
  EXPECT_EQ(told(10), "mode|word|second|first or second");
}

// A flag and a field each, so that both hosts of a picker can be told the same.
TEST(PickerSettings, HaveAFlagAndAFieldAndAWordOfHelp) {
  PickerSettings settings;
  for (const Setting& setting : SettingsOf(settings)) {
    EXPECT_TRUE(setting.flag.starts_with("--")) << setting.field;
    EXPECT_FALSE(setting.field.empty()) << setting.flag;
    EXPECT_FALSE(setting.help.empty()) << setting.flag;
  }
}

}  // namespace
}  // namespace fairway::api
