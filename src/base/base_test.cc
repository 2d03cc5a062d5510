#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <future>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/published.h"
#include "base/random.h"
#include "base/result.h"
#include "base/strings.h"

#include "tests/support/prometheus_page.h"

namespace fairway::base {
namespace {

using ::testing::IsEmpty;
using tests::PrometheusPage;

TEST(Result, CarriesTheError) {
  const Result<int> failed = Fail(ErrorCode::kNotFound, "no such pool");
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(failed.error().message, "no such pool");
}

TEST(Random, SameSeedSameNumbersAndUniformBelow) {
  Random a(7), b(7), other(8);
  EXPECT_EQ(a.Next(), b.Next());
  EXPECT_NE(a.Next(), other.Next());
  std::array<int, 6> seen{};
  for (int i = 0; i < 60'000; ++i) ++seen[a.Below(6)];
  for (const int n : seen) EXPECT_NEAR(n, 10'000, 4 * 92);  // 4 sigma of a binomial(60000, 1/6)
  for (int i = 0; i < 1000; ++i) {
    const double d = a.NextDouble();
    EXPECT_GE(d, 0);
    EXPECT_LT(d, 1);
  }
}

TEST(Published, ReaderSeesTheNewestAndKeepsWhatItPinned) {
  Published<int> value(std::make_shared<const int>(1));
  Published<int>::Reader reader(value);
  const auto pinned = reader.Get();
  value.Publish(std::make_shared<const int>(2));
  EXPECT_EQ(*pinned, 1);
  EXPECT_EQ(*reader.Get(), 2);
  EXPECT_EQ(*value.Load(), 2);
}

// Says which thread destroyed it.
struct Mortal {
  explicit Mortal(std::thread::id* where) : died_on(where) {}
  ~Mortal() { *died_on = std::this_thread::get_id(); }
  std::thread::id* died_on;
};

TEST(Published, TheWriterFreesWhatNobodyHoldsAndNoReaderDoes) {
  std::thread::id first, second;
  Published<Mortal> current(std::make_shared<const Mortal>(&first));
  std::promise<void> pinned, published;
  std::thread worker([&] {
    Published<Mortal>::Reader reader(current);
    pinned.set_value();
    published.get_future().wait();
    EXPECT_EQ(reader.Get()->died_on, &second);  // lets go of the first
  });
  pinned.get_future().wait();
  current.Publish(std::make_shared<const Mortal>(&second));
  EXPECT_EQ(current.retired(), 1u);
  EXPECT_EQ(first, std::thread::id()) << "the reader has it";
  published.set_value();
  worker.join();
  EXPECT_EQ(first, std::thread::id()) << "not in the reader's Get";
  current.FreeUnused();
  EXPECT_EQ(first, std::this_thread::get_id());
  EXPECT_EQ(current.retired(), 0u);
  EXPECT_EQ(second, std::thread::id()) << "it is published";
}

TEST(Published, ReadersNeverGoBackWhileAWriterPublishes) {
  Published<int> value(std::make_shared<const int>(0));
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&value] {
      Published<int>::Reader reader(value);
      int last = 0;
      while (last < 2000) {
        const int now = *reader.Get();
        ASSERT_GE(now, last);
        last = now;
      }
    });
  }
  for (int i = 1; i <= 2000; ++i) value.Publish(std::make_shared<const int>(i));
  for (auto& reader : readers) reader.join();
}

TEST(Strings, ParseDurationTakesGoSyntaxOnly) {
  EXPECT_EQ(ParseDuration("50ms"), 50 * kMillisecond);
  EXPECT_EQ(ParseDuration("1m30s"), 90 * kSecond);
  EXPECT_EQ(ParseDuration("2.5s"), 2500 * kMillisecond);
  EXPECT_EQ(ParseDuration("0"), 0);
  for (const char* bad : {"", "5", "ms", "-1s", "1x", "1s ", "nan", "1e3s", "999999999h"})
    EXPECT_FALSE(ParseDuration(bad)) << bad;
}

TEST(Strings, ParseQuantity) {
  EXPECT_EQ(ParseQuantity("4Mi"), 4u << 20);
  EXPECT_EQ(ParseQuantity("10MiB"), 10u << 20);
  EXPECT_EQ(ParseQuantity("1G"), 1'000'000'000u);
  EXPECT_EQ(ParseQuantity("512k"), 512'000u);
  EXPECT_EQ(ParseQuantity("17"), 17u);
  for (const char* bad : {"", "Mi", "-1", "1Q", "1Mx", "1 M"}) EXPECT_FALSE(ParseQuantity(bad)) << bad;
}

TEST(Strings, NearestSuggestsWhatWasMeant) {
  const std::vector<std::string> names{"vllm-llama2-7b-pool", "mistral", "qwen-coder"};
  EXPECT_EQ(Nearest("vllm-llama2-7b", names), "vllm-llama2-7b-pool");
  EXPECT_EQ(Nearest("mistrall", names), "mistral");
  EXPECT_EQ(Nearest("Qwen-Coder", names), "qwen-coder");
  EXPECT_FALSE(Nearest("gemma", names));
  EXPECT_EQ(Nearest("mistrla", names), "mistral");
  EXPECT_EQ(Nearest("chekc", std::vector<std::string>{"config", "check"}), "check") << "two letters swapped";
  EXPECT_FALSE(Nearest("chkce", std::vector<std::string>{"check"})) << "two edits of five letters";
  const std::vector<std::string> types{"prefix-cache-scorer", "kv-cache-utilization-scorer", "queue-scorer"};
  EXPECT_EQ(Nearest("kv-cache-scorer", types), "kv-cache-utilization-scorer") << "a word is missing";
}

TEST(Strings, NearestLooksAtNoLongTextsAndPrefersTheFirstOfEquals) {
  const std::string text(257, 'a');
  const std::vector<std::string> same{text + "b", text};
  EXPECT_FALSE(Nearest(text, same));
  EXPECT_EQ(Nearest("abcdef", std::vector<std::string>{"abcdxx", "abcdeg", "abcdeh"}), "abcdeg");
  EXPECT_EQ(Nearest("abcdef", std::vector<std::string>{"zzzzzz", "abcdefghijkl", "abcdeg"}), "abcdeg");
  EXPECT_EQ(Nearest("kitten", std::vector<std::string>{"sitting"}), std::nullopt) << "three of seven edits";
}

TEST(Strings, CleanTextIsUtf8WithoutControlsCutBetweenCharacters) {
  EXPECT_EQ(CleanText("plain", 128), "plain");
  EXPECT_EQ(CleanText("a\xff"
                      "b\xc3",
                      128),
            "a\xef\xbf\xbd"
            "b\xef\xbf\xbd");
  EXPECT_EQ(CleanText("a\n\x1b[31m\x7f", 128), "a\xef\xbf\xbd\xef\xbf\xbd[31m\xef\xbf\xbd");
  EXPECT_EQ(CleanText("\xc2\x9b"
                      "31m\xc2\xa0",
                      128),
            "\xef\xbf\xbd"
            "31m\xc2\xa0")
      << "CSI is C1, a space is not";
  const std::string euros = "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac";
  EXPECT_EQ(CleanText(euros, 9), euros);
  EXPECT_EQ(CleanText(euros, 8), euros.substr(0, 6));
  EXPECT_EQ(CleanText("a\u202eb\u2028c\u2066d\u2027\u202f", 128),
            "a\xef\xbf\xbd\x62\xef\xbf\xbd\x63\xef\xbf\xbd\x64\u2027\u202f");
  EXPECT_EQ(JsonString("\u202e\u2028\u2069\u2065"), "\"\\u202e\\u2028\\u2069\u2065\"");
  EXPECT_EQ(CleanText("\xff\xff", 4), "\xef\xbf\xbd");
  EXPECT_EQ(CleanText("\xed\xa0\x80", 9), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd")
      << "half of a surrogate pair";
}

TEST(Strings, CanonicalAddressWritesIpv6AsEverybodyDoes) {
  EXPECT_EQ(CanonicalAddress("10.0.0.1:8000"), "10.0.0.1:8000");
  EXPECT_EQ(CanonicalAddress("FD00:0:0::1"), "fd00::1");
  EXPECT_EQ(CanonicalAddress("[fd00:0000::0001]:8000"), "[fd00::1]:8000");
  EXPECT_EQ(CanonicalAddress("[FD00::A]"), "[fd00::a]");
  for (const char* odd : {"", "[", "[::1", "a:b:c", "fe80::1%eth0", "[x]:1", "::1::", "host:80"}) {
    EXPECT_EQ(CanonicalAddress(odd), odd);
  }
}

TEST(Strings, HashesOfEqualTextsAreEqualAndOthersSpread) {
  const StringHash hash;
  std::array<int, 64> buckets{};
  for (int i = 0; i < 6400; ++i) {
    const std::string text(static_cast<size_t>(i % 40), static_cast<char>('a' + i / 40 % 26));
    const std::string numbered = text + std::to_string(i);
    EXPECT_EQ(hash(numbered), hash(std::string_view(numbered)));
    ++buckets[hash(numbered) % buckets.size()];
  }
  for (const int count : buckets) EXPECT_NEAR(count, 100, 60);  // 6 sigma
}

TEST(Strings, JsonStringIsAlwaysValidJson) {
  EXPECT_EQ(JsonString("a\"b\\c\n\x01"), R"("a\"b\\c\n\u0001")");
  EXPECT_EQ(JsonString("h\xc3\xa9"), "\"h\xc3\xa9\"");
  EXPECT_EQ(JsonString("\xff\xc3"), R"("\ufffd\ufffd")");
  EXPECT_EQ(JsonString("\x7f\xc2\x9b\xc2\xa0"), "\"\\u007f\\u009b\xc2\xa0\"");
}

TEST(Log, WritesTextAndJson) {
  std::string out;
  const Log text(LogLevel::kInfo, LogFormat::kText, [&](std::string_view line) { out = line; });
  text.Warn("scrape failed", {{"endpoint", "10.0.0.1:8000"}, {"error", "connection refused"}});
  EXPECT_NE(out.find(R"(WARN  scrape failed endpoint=10.0.0.1:8000 error="connection refused")"),
            std::string::npos)
      << out;
  out.clear();
  text.Debug("not shown");
  EXPECT_TRUE(out.empty());
  const Log json(LogLevel::kDebug, LogFormat::kJson, [&](std::string_view line) { out = line; });
  json.Error("bad \"file\"", {{"line", "3"}});
  EXPECT_NE(out.find(R"("level":"error","msg":"bad \"file\"","line":"3"})"), std::string::npos) << out;
}

TEST(Log, NothingThatATerminalObeysPasses) {
  std::string out;
  const Log text(LogLevel::kInfo, LogFormat::kText, [&](std::string_view line) { out = line; });
  text.Info(
      "one\nof\x1b[2J\xc2\x9b"
      "2J",
      {{"csi",
        "\xc2\x9b"
        "31m"},
       {"bad", "\xff"},
       {"good", "h\xc3\xa9"}});
  const std::string replaced = "\xef\xbf\xbd";
  EXPECT_NE(out.find("one\nof" + replaced + "[2J" + replaced +
                     "2J csi=\"\\u009b31m\" bad=\"\\ufffd\" good=h\xc3\xa9\n"),
            std::string::npos)
      << out;
}

TEST(Log, AQuotedTextIsReadAsItWasWritten) {
  std::string out;
  const Log text(LogLevel::kInfo, LogFormat::kText, [&](std::string_view line) { out = line; });
  text.Info(
      "m",
      {{"a", R"(no "x"; did you mean "y"?)"}, {"b", "two words"}, {"c", R"(a\b "c")"}, {"d", R"(it's "e")"}});
  EXPECT_NE(out.find(R"(m a='no "x"; did you mean "y"?' b="two words" c='a\b "c"' d="it's \"e\"")"
                     "\n"),
            std::string::npos)
      << out;
}

// Without a sink nobody waits for who reads standard error.
TEST(Log, AFullPipeStopsNobody) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ::fcntl(ends[1], F_SETPIPE_SZ, 4096);
  ASSERT_EQ(::write(ends[1], std::string(4096, 'x').data(), 4096), 4096);
  const int before = ::dup(STDERR_FILENO);
  ASSERT_EQ(::dup2(ends[1], STDERR_FILENO), STDERR_FILENO);
  for (int i = 0; i < 100; ++i) Log().Error("nobody reads this");
  ASSERT_EQ(::dup2(before, STDERR_FILENO), STDERR_FILENO);
  for (const int fd : {before, ends[0], ends[1]}) ::close(fd);
}

TEST(Log, LimitHoldsBackAndCounts) {
  LogLimit limit(kSecond);
  uint64_t suppressed = 9;
  EXPECT_TRUE(limit.Allow(kSecond, &suppressed));
  EXPECT_EQ(suppressed, 0u);
  EXPECT_FALSE(limit.Allow(kSecond + 1));
  EXPECT_FALSE(limit.Allow(kSecond + 2));
  EXPECT_TRUE(limit.Allow(2 * kSecond, &suppressed));
  EXPECT_EQ(suppressed, 2u);
}

TEST(Metrics, PageWithTwinsHistogramsAndEscapes) {
  Registry registry;
  auto& requests = registry.AddCounter(
      {.name = "new_total",
       .help = "[ALPHA] Requests.",
       .labels = {"model_name", "fairness_id"},
       .twins = {{.name = "old_total", .help = "old", .labels = {{"model_name", "model"}}}}});
  requests.With({"a\"b", "x"}).Add(2);
  requests.With({"a\"b", "y"}).Add(3);
  auto& latency =
      registry.AddHistogram({.name = "latency_seconds", .help = "l", .buckets = {0.0005, 0.1, 1, 1048576}});
  latency.With({}).Observe(0.1);
  latency.With({}).Observe(0.5);
  latency.With({}).Observe(1e9);
  const std::string page = registry.Render();
  EXPECT_EQ(page.substr(0, page.find("# HELP fairway_metrics")),
            "# HELP new_total [ALPHA] Requests.\n# TYPE new_total counter\n"
            "new_total{model_name=\"a\\\"b\",fairness_id=\"x\"} "
            "2\nnew_total{model_name=\"a\\\"b\",fairness_id=\"y\"} 3\n"
            "# HELP latency_seconds l\n# TYPE latency_seconds histogram\n"
            "latency_seconds_bucket{le=\"0.0005\"} 0\nlatency_seconds_bucket{le=\"0.1\"} "
            "1\nlatency_seconds_bucket{le=\"1\"} 2\n"
            "latency_seconds_bucket{le=\"1.048576e+06\"} 2\nlatency_seconds_bucket{le=\"+Inf\"} 3\n"
            "latency_seconds_sum 1.0000000006e+09\nlatency_seconds_count 3\n"
            "# HELP old_total old\n# TYPE old_total counter\nold_total{model=\"a\\\"b\"} 5\n");
  EXPECT_THAT(PrometheusPage(page).problems(), IsEmpty());
}

TEST(Metrics, ATwinAddsUpWhatAgreesInItsLabels) {
  Registry registry;
  auto& runs =
      registry.AddCounter({.name = "runs_total",
                           .help = "r",
                           .labels = {"a", "b", "c"},
                           .twins = {{.name = "twin_total", .help = "t", .labels = {{"a", "a"}, {"c", "c"}}},
                                     {.name = "last_total", .help = "t", .labels = {{"c", "only"}}}}});
  uint64_t n = 1;
  for (const char* a : {"1", "2"}) {
    for (const char* b : {"x", "y", "z"}) {
      for (const char* c : {"p", "q"}) runs.With({a, b, c}).Add(n++);
    }
  }
  auto& seconds =
      registry.AddHistogram({.name = "seconds",
                             .help = "s",
                             .labels = {"a", "b"},
                             .buckets = {1, 2},
                             .twins = {{.name = "old_seconds", .help = "s", .labels = {{"a", "a"}}}}});
  seconds.With({"1", "x"}).Observe(0.5);
  seconds.With({"1", "y"}).Observe(1.5);
  seconds.With({"2", "never"});
  const PrometheusPage page(registry.Render());
  EXPECT_THAT(page.problems(), IsEmpty());
  EXPECT_EQ(page.Value("twin_total", {{"a", "1"}, {"c", "p"}}), 1 + 3 + 5);
  EXPECT_EQ(page.Value("twin_total", {{"a", "2"}, {"c", "q"}}), 8 + 10 + 12);
  EXPECT_EQ(page.Value("last_total", {{"only", "p"}}), 1 + 3 + 5 + 7 + 9 + 11);
  EXPECT_EQ(page.Value("old_seconds_bucket", {{"a", "1"}, {"le", "1"}}), 1);
  EXPECT_EQ(page.Value("old_seconds_count", {{"a", "1"}}), 2);
  EXPECT_EQ(page.Value("old_seconds_sum", {{"a", "1"}}), 2);
  EXPECT_EQ(page.ValuesOf("seconds_count", "b"), (std::set<std::string>{"x", "y"}))
      << "nothing observed, nothing shown";
}

// What a client can put into a label, on a page that a scrape must be able to read.
TEST(Metrics, HostileLabelsAreReadBack) {
  Registry registry;
  auto& requests = registry.AddCounter({.name = "t", .help = "h", .labels = {"model"}});
  std::string all;
  for (int c = 0; c < 256; ++c) all += static_cast<char>(c);
  const std::vector<std::string> texts{"a\xff",
                                       "a\nb 1\n# TYPE t gauge",
                                       "a\"} 7",
                                       "\\",
                                       "\\n",
                                       "\\\"",
                                       "\xe2\x82",
                                       "\xed\xa0\x80",
                                       "\xc2\x9b"
                                       "31m",
                                       std::string("a\0b", 3),
                                       std::string(5000, 'x'),
                                       all,
                                       ""};
  for (const std::string& text : texts) requests.With({text}).Add();
  const PrometheusPage page(registry.Render());
  EXPECT_THAT(page.problems(), IsEmpty());
  EXPECT_EQ(page.Sum("t"), texts.size());
  const auto values = page.ValuesOf("t", "model");
  for (const char* text : {"a\"} 7", "\\", "\\n", "\\\"", "a\xef\xbf\xbd"})
    EXPECT_TRUE(values.contains(text)) << text;
  for (const std::string& value : values) EXPECT_LE(value.size(), 256u);
}

TEST(Metrics, APageHasAtMostAsManyBytesAsItMay) {
  Registry registry;
  registry.set_max_page_bytes(12'000);
  auto& count =
      registry.AddCounter({.name = "z_total",
                           .help = "c",
                           .labels = {"model"},
                           .twins = {{.name = "a_total", .help = "old", .labels = {{"model", "model"}}}}});
  auto& seconds =
      registry.AddHistogram({.name = "b_seconds", .help = "h", .labels = {"model"}, .buckets = {1}});
  for (int i = 0; i < 100; ++i) {
    count.With({"m" + std::to_string(i)}).Add();
    seconds.With({"m" + std::to_string(i)}).Observe(1);
  }
  const std::string text = registry.Render();
  EXPECT_LE(text.size(), 12'000u);
  const PrometheusPage page(text);
  EXPECT_THAT(page.problems(), IsEmpty());
  EXPECT_EQ(page.Sum("z_total"), 100) << "the small ones first";
  EXPECT_GT(page.Sum("b_seconds_count"), 40);
  EXPECT_EQ(page.Sum("a_total"), 0) << "the deprecated names last";
  EXPECT_EQ(page.Value("fairway_metrics_left_out_series"), 200 - page.Sum("b_seconds_count"));
  EXPECT_EQ(page.Value("fairway_metrics_page_limit_bytes"), 12'000);
  EXPECT_LE(text.size() - static_cast<size_t>(*page.Value("fairway_metrics_page_bytes")), 1024u);
  registry.set_max_page_bytes(40'000);
  EXPECT_EQ(PrometheusPage(registry.Render()).Value("fairway_metrics_left_out_series"), 0);
}

// A page that is read slowly, while what it shows comes and goes.
TEST(Metrics, APageComesInPiecesAndTheRegistryIsFreeInBetween) {
  Registry registry;
  auto& seconds = registry.AddHistogram({.name = "s",
                                         .help = "h",
                                         .labels = {"model"},
                                         .buckets = std::vector<double>(1, 1.0),
                                         .max_series = 100'000});
  const auto name = [](int i) { return std::to_string(100'000 + i); };
  for (int i = 0; i < 5000; ++i) seconds.With({name(i)}).Observe(i);
  const auto page = registry.Open();
  std::string text, piece;
  size_t pieces = 0;
  while (page->Next(piece)) {
    EXPECT_LE(piece.size(), 70u << 10);
    text += piece;
    ++pieces;
    seconds.Remove({name(static_cast<int>(pieces) * 400)});
    seconds.With({name(5000 + static_cast<int>(pieces))}).Observe(1);
  }
  EXPECT_FALSE(page->Next(piece)) << "it stays complete";
  EXPECT_GT(pieces, 5u);
  const PrometheusPage read(text);
  EXPECT_THAT(read.problems(), IsEmpty());
  EXPECT_GT(read.ValuesOf("s_count", "model").size(), 4900u);
}

// Against the definition: the first bound that is not below the value.
TEST(Metrics, HistogramsCountInTheBucketOfTheFirstBoundThatHolds) {
  std::vector<std::vector<double>> many = {{}, {1}, {-1, 0, 0.1}, {1e300, std::nextafter(1e300, 2e300)}};
  for (const size_t size : {3, 4, 5, 35, 36, 39, 40, 41, 100, 333}) {
    std::vector<double>& bounds = many.emplace_back();
    // Neighbours that are one float, so that rounding would mix them up.
    for (size_t i = 0; i < size; ++i) bounds.push_back(0.1 + 1e-10 * static_cast<double>(i));
  }
  for (const auto& bounds : many) {
    Histogram histogram(bounds);
    ASSERT_EQ(histogram.bounds().size(), bounds.size());
    std::vector<uint64_t> expected(bounds.size() + 1);
    std::vector<double> values = {-1e308, 0, 1e308, std::numeric_limits<double>::infinity(), std::nan("")};
    for (const double bound : bounds) {
      values.insert(values.end(), {std::nextafter(bound, -1e308), bound, std::nextafter(bound, 1e308)});
    }
    for (const double value : values) {
      histogram.Observe(value);
      ++expected[static_cast<size_t>(std::lower_bound(bounds.begin(), bounds.end(), value) - bounds.begin())];
    }
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(histogram.bucket(i), expected[i]) << i;
    EXPECT_EQ(histogram.count(), values.size());
  }
}

TEST(Metrics, SeriesAreBounded) {
  Registry registry;
  auto& requests = registry.AddCounter({.name = "t", .help = "h", .labels = {"model"}, .max_series = 3});
  for (int i = 0; i < 100; ++i) requests.With({"m" + std::to_string(i)}).Add();
  EXPECT_EQ(requests.With({"other"}).value(), 97u);
}

}  // namespace
}  // namespace fairway::base
