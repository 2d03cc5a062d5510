// The text layer: YAML and JSON to values with lines, and what happens to texts that are neither.
#include "api/value.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "api/text_rules.h"

namespace fairway::api {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

// One line for a value: its kinds, texts and lines.
std::string Show(const Value& value) {
  const std::string at = "@" + std::to_string(value.line);
  std::string out;
  switch (value.kind) {
    case Value::Kind::kNull:
      return "null" + at;
    case Value::Kind::kBool:
      return "bool " + value.text + at;
    case Value::Kind::kNumber:
      return "number " + value.text + at;
    case Value::Kind::kString:
      return Quote(value.text) + at;
    case Value::Kind::kList:
      for (const ValuePtr& item : value.items) out += (out.empty() ? "" : ", ") + Show(*item);
      return "[" + out + "]" + at;
    case Value::Kind::kMap:
      for (const Value::Entry& entry : value.entries) {
        out += (out.empty() ? "" : ", ") + entry.key + "@" + std::to_string(entry.line) + ": " +
               Show(*entry.value);
      }
      return "{" + out + "}" + at;
  }
  return "";
}

std::vector<std::string> Documents(std::string_view text, std::string_view name = "f.yaml") {
  std::vector<std::string> out;
  for (const ValuePtr& document : ParseText(text, name).documents) out.push_back(Show(*document));
  return out;
}

std::vector<std::string> Problems(std::string_view text, std::string_view name = "f.yaml") {
  std::vector<std::string> out;
  for (const SyntaxProblem& problem : ParseText(text, name).problems) {
    out.push_back(std::to_string(problem.line) + ": " + problem.message);
  }
  return out;
}

TEST(Yaml, ValuesKeepTheirLinesAndTypes) {
  EXPECT_THAT(Documents("a: 1\nb:\n  - x\n  - \"1\"\nc: null\nd: true\n"),
              ElementsAre("{a@1: number 1@1, b@2: [\"x\"@3, \"1\"@4]@3, c@5: null@5, d@6: bool true@6}@1"));
  EXPECT_THAT(Documents("a: yes\nb: 'yes'\nc: 1.5e3\nd: 0x1F\ne: 1.2.3\nf: !!str 12\n"),
              ElementsAre("{a@1: bool yes@1, b@2: \"yes\"@2, c@3: number 1.5e3@3, d@4: number 0x1F@4, "
                          "e@5: \"1.2.3\"@5, f@6: \"12\"@6}@1"));
  EXPECT_THAT(Documents("a: |\n  x\n  y\nb: >-\n  p\n  q\n"),
              ElementsAre("{a@1: \"x\\ny\\n\"@1, b@4: \"p q\"@4}@1"));
}

TEST(Yaml, SeveralDocumentsAreNumberedThrough) {
  EXPECT_THAT(Documents("a: 1\n---\n# nothing\n---\nb: 2\n...\n---\nc: 3\n"),
              ElementsAre("{a@1: number 1@1}@1", "null@4", "{b@5: number 2@5}@5", "{c@8: number 3@8}@8"));
  EXPECT_THAT(Documents("a: 1\r\n---\r\nb: 2\r\n"),
              ElementsAre("{a@1: number 1@1}@1", "{b@3: number 2@3}@3"));
  EXPECT_THAT(Documents("\xef\xbb\xbf"
                        "a: 1\n"),
              ElementsAre("{a@1: number 1@1}@1"));
}

TEST(Yaml, AliasesAndMergeKeys) {
  EXPECT_THAT(Documents("a: &x {k: v}\nb: *x\n"),
              ElementsAre("{a@1: {k@1: \"v\"@1}@1, b@2: {k@1: \"v\"@1}@1}@1"));
  EXPECT_THAT(Documents("a: &x {k: v, l: w}\nb:\n  <<: *x\n  k: own\n"),
              ElementsAre("{a@1: {k@1: \"v\"@1, l@1: \"w\"@1}@1, b@2: {k@4: \"own\"@4, l@1: \"w\"@1}@3}@1"));
  EXPECT_THAT(
      Documents("- &x {k: v}\n- &y {k: w, l: z}\n- <<: [*x, *y]\n"),
      ElementsAre("[{k@1: \"v\"@1}@1, {k@2: \"w\"@2, l@2: \"z\"@2}@2, {k@1: \"v\"@1, l@2: \"z\"@2}@3]@1"));
  EXPECT_THAT(Problems("a:\n  <<: text\n"), ElementsAre("2: the merge key << wants a map or a list of maps"));
  EXPECT_THAT(Problems("a: &x [*x]\n"), ElementsAre("1: the alias stands for the value it is part of"));
  EXPECT_THAT(Problems("a: *x\n"), ElementsAre("1: not valid YAML: the alias has no anchor (column 4)"));
}

TEST(Yaml, DuplicateKeysNameBothLinesAndTheFirstStays) {
  EXPECT_THAT(Problems("a: 1\nb: 2\na: 3\nc: {x: 1, x: 2}\n"),
              ElementsAre("3: the key \"a\" is here twice; it was first set on line 1",
                          "4: the key \"x\" is here twice; it was first set on line 4"));
  EXPECT_THAT(Documents("a: 1\na: {b: [2]}\nc: 3\n"), ElementsAre("{a@1: number 1@1, c@3: number 3@3}@1"));
}

struct SyntaxCase {
  const char* text;
  const char* problem;
};

class YamlSyntax : public ::testing::TestWithParam<SyntaxCase> {};

TEST_P(YamlSyntax, SaysWhereAndWhat) {
  EXPECT_THAT(Problems(GetParam().text), ElementsAre(GetParam().problem));
}

INSTANTIATE_TEST_SUITE_P(
    Texts, YamlSyntax,
    ::testing::Values(
        SyntaxCase{
            "a: b: c\n",
            "1: not valid YAML: a colon where none can be; put a text with \": \" in quotes, or check the "
            "indentation (column 5)"},
        SyntaxCase{"a: 1\nb: [1, 2\n", "3: not valid YAML: a [ is not closed by a ] (column 1)"},
        SyntaxCase{"a: {b: 1\nc: 2\n", "2: not valid YAML: a { is not closed by a } (column 2)"},
        SyntaxCase{"a: b\n}\n", "2: not valid YAML: a ] or } that closes nothing (column 1)"},
        SyntaxCase{
            "a:\n\tb: c\n",
            "2: not valid YAML: a colon where none can be; put a text with \": \" in quotes, or check the "
            "indentation (column 3); indent with spaces, not tabs"},
        SyntaxCase{"a: @b\n",
                   "1: not valid YAML: a text cannot begin with this character; put it in quotes (column 4)"},
        // yaml-cpp itself lets these pass.
        SyntaxCase{"a: 1\nb: \"x\nc: d\n", "2: not valid YAML: a quote is opened here and never closed"},
        SyntaxCase{"a: 'it''s\n", "1: not valid YAML: a quote is opened here and never closed"},
        SyntaxCase{"a: &x !!str \"y\n", "1: not valid YAML: a quote is opened here and never closed"},
        SyntaxCase{"\xc3\xa4: \"\xc3\xbc\\\"\n",
                   "1: not valid YAML: a quote is opened here and never closed"},
        SyntaxCase{
            "- a\nb: c\n",
            "2: not valid YAML: this does not fit what is above it; check its indentation, or begin a new "
            "document with a line of ---"},
        SyntaxCase{"\t\t,\tx\n", "1: not valid YAML: nothing can begin with \",\"; put the text in quotes"},
        SyntaxCase{"a: {{ .Values.b }}\n",
                   "1: a key must be a text, not a list or map; is a [ or { not closed, or a {{ }} of a "
                   "template left?"},
        SyntaxCase{"{{ if .Values.b }}\na: b\n{{ end }}\n",
                   "1: begins with {{, as a template does; render it first (helm template)"},
        SyntaxCase{"? [a]\n: b\n",
                   "1: a key must be a text, not a list or map; is a [ or { not closed, or a {{ }} of a "
                   "template left?"},
        SyntaxCase{"a: !Ref b\n", "1: the tag \"!Ref\" means nothing in a manifest; leave it out"},
        SyntaxCase{"a: b\nc: \x01\n",
                   "2: the control character 0x01 cannot stand in YAML or JSON; take it out, or write it as "
                   "\\u0001 in a "
                   "text in double quotes"},
        SyntaxCase{"a: b\nc: \xff\n", "2: not UTF-8 text: byte 0xff; save the file as UTF-8 YAML or JSON"},
        SyntaxCase{"\xff\xfe"
                   "a",
                   "1: not UTF-8 text: byte 0xff; save the file as UTF-8 YAML or JSON"}));

TEST(Yaml, AZeroByteIsOfAnotherEncoding) {
  EXPECT_THAT(Problems(std::string_view("a: \0", 4)),
              ElementsAre("1: not UTF-8 text: byte 0x00; save the file as UTF-8 YAML or JSON"));
}

TEST(Yaml, AfterASyntaxErrorTheNextDocumentIsRead) {
  const std::string text = "a: 1\n---\nb: [\n---\nc: 3\n---\nd: }\n---\ne: 5\n";
  EXPECT_THAT(Problems(text), ElementsAre(StartsWith("4: not valid YAML"), StartsWith("7: not valid YAML")));
  EXPECT_THAT(Documents(text),
              ElementsAre("{a@1: number 1@1}@1", "{c@5: number 3@5}@5", "{e@9: number 5@9}@9"));
}

TEST(Bounds, DepthIsLimited) {
  const std::string good = std::string(99, '[') + "1" + std::string(99, ']');
  EXPECT_THAT(Problems(good), IsEmpty());
  EXPECT_THAT(Problems("a: " + good), IsEmpty());
  for (const std::string& text : {std::string(101, '['), std::string(100'000, '['),
                                  "a: " + std::string(5000, '[') + std::string(5000, ']'), [] {
                                    std::string dashes;
                                    for (int i = 0; i < 100'000; ++i) dashes += "- ";
                                    return dashes;
                                  }()}) {
    EXPECT_THAT(Problems(text), ElementsAre("1: nested deeper than 100 levels")) << text.substr(0, 10);
  }
}

TEST(Bounds, AliasBombIsDefused) {
  std::string bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n";
  for (int i = 1; i < 12; ++i) {
    const std::string alias = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int j = 0; j < 10; ++j) bomb += (j == 0 ? "" : ",") + alias;
    bomb += "]\n";
  }
  EXPECT_THAT(Problems(bomb), ElementsAre("5: aliases repeat more than 100000 values; write the values out"));
}

TEST(Bounds, SizeValuesAndProblemsAreLimited) {
  EXPECT_THAT(Problems(std::string(kMaxFileBytes + 1, ' ')),
              ElementsAre("0: larger than 16 MiB; split it into files of one folder"));
  std::string values = "[1";
  for (size_t i = 1; i < kMaxValues; ++i) values += ",1";
  values += "]";
  EXPECT_THAT(Problems(values), ElementsAre(HasSubstr("more than 1000000 values in one file")));
  EXPECT_THAT(Problems("a: [" + std::string(2'000'001, ',') + "]"),
              ElementsAre(HasSubstr("more than 2000000 commas, colons and brackets")));
  std::string duplicates;
  for (int i = 0; i < 1000; ++i) duplicates += "a: b\n";
  EXPECT_LE(Problems(duplicates).size(), kMaxSyntaxProblems + 1);
  std::string broken;
  for (int i = 0; i < 1000; ++i) broken += "---\n}\n";
  EXPECT_LE(Problems(broken).size(), kMaxSyntaxProblems + 1);
}

TEST(Json, ValuesOneAfterTheOther) {
  EXPECT_THAT(Documents("{\"a\":1,\n\t\"b\":\t[\"x\", true, null, -1.5e3]}\n{\"c\":{}}[]", "f.json"),
              ElementsAre("{a@1: number 1@1, b@2: [\"x\"@2, bool true@2, null@2, number -1.5e3@2]@2}@1",
                          "{c@3: {}@3}@3", "[]@3"));
  EXPECT_THAT(Documents(R"({"a":"\"\\\/\n\u00fc\ud83d\ude00"})"),
              ElementsAre("{a@1: \"\\\"\\\\/\\n\u00fc\U0001F600\"@1}@1"));
}

TEST(Json, FlowYamlIsNotJsonUnlessTheNameSaysSo) {
  EXPECT_THAT(Documents("{a: 1, b: x}"), ElementsAre("{a@1: number 1@1, b@1: \"x\"@1}@1"));
  EXPECT_THAT(Problems("{a: 1}", "f.json"),
              ElementsAre("1: not valid JSON: expected a key in double quotes, got \"a\""));
}

INSTANTIATE_TEST_SUITE_P(
    JsonTexts, YamlSyntax,
    ::testing::Values(
        SyntaxCase{"{\"a\": 1\n", "2: not valid JSON: expected , or }, got the end of the file"},
        SyntaxCase{"{\"a\": \"x", "1: not valid JSON: a quote is opened and never closed"},
        SyntaxCase{"{\"a\": 1, \"a\": 2}", "1: the key \"a\" is here twice; it was first set on line 1"}));

TEST(Json, Errors) {
  const auto of = [](const char* text) { return Problems(text, "f.json"); };
  EXPECT_THAT(of("{\"a\": tru}"), ElementsAre("1: not valid JSON: expected a value, got \"tru\""));
  EXPECT_THAT(of("{\"a\": 01x}"), ElementsAre("1: not valid JSON: expected a value, got \"01x\""));
  EXPECT_THAT(of("{\"a\" 1}"), ElementsAre("1: not valid JSON: expected : after the key, got \"1\""));
  EXPECT_THAT(of("[1,]"), ElementsAre("1: not valid JSON: expected a value, got \"]\""));
  EXPECT_THAT(of("[1 2]"), ElementsAre("1: not valid JSON: expected , or ], got \"2\""));
  EXPECT_THAT(of("[\"\\x\"]"), ElementsAre("1: not valid JSON: unknown escape \\x"));
  EXPECT_THAT(of("[\"\\u12\"]"), ElementsAre("1: not valid JSON: \\u wants four hexadecimal digits"));
  EXPECT_THAT(of("[\"\\ud800x\"]"), ElementsAre("1: not valid JSON: half of a surrogate pair"));
  EXPECT_THAT(of("{}\n\n}"), ElementsAre("3: not valid JSON: expected a value, got \"}\""));
}

TEST(TextRules, Times) {
  EXPECT_EQ(NormalizeTime("2025-04-02T10:00:00Z"), "2025-04-02T10:00:00Z");
  EXPECT_EQ(NormalizeTime("2025-04-02t10:00:00.123z"), "2025-04-02T10:00:00Z");
  EXPECT_EQ(NormalizeTime("2025-03-01T01:30:00+02:00"), "2025-02-28T23:30:00Z");
  EXPECT_EQ(NormalizeTime("2024-12-31T23:30:00-01:00"), "2025-01-01T00:30:00Z");
  for (const char* bad :
       {"", "2025-04-02", "2025-02-30T10:00:00Z", "2025-04-02T24:00:00Z", "2025-04-02T10:00:00",
        "2025-04-02T10:00:00.Z", "2025-04-02T10:00:00+2:00", "2025-04-02 10:00:00Z"}) {
    EXPECT_EQ(NormalizeTime(bad), std::nullopt) << bad;
  }
}

TEST(TextRules, GatewayDurations) {
  EXPECT_EQ(ParseGatewayDuration("0s"), 0);
  EXPECT_EQ(ParseGatewayDuration("500ms"), 500);
  EXPECT_EQ(ParseGatewayDuration("1h2m3s4ms"), 3'723'004);
  for (const char* bad : {"", "5", "s", "1.5s", "-1s", "100000s", "1h1h1h1h1h", "1d", "1s "}) {
    EXPECT_EQ(ParseGatewayDuration(bad), std::nullopt) << bad;
  }
}

TEST(TextRules, QuoteCutsAtACharacter) {
  EXPECT_EQ(Quote("a\"\n"), "\"a\\\"\\n\"");
  const std::string cut = Quote(std::string(79, 'x') + "\u00fc\u00fc");
  EXPECT_EQ(cut, "\"" + std::string(79, 'x') + "\"...");
}

}  // namespace
}  // namespace fairway::api
